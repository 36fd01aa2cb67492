//! What the sanitizer finds in single threads, and what it must not: each program once as it should
//! be, and once with a mistake, which must be found at its line.

use super::expect::{demand, program, run, sanitized};
use crate::support::{Arg, Bench};
use cuda_emulator::{Config, FaultKind};

const READS_GLOBAL: &str = r#"
extern "C" __global__ void k(const int* in, int* out) {
    int i = threadIdx.x;
    out[i] = in[i] + 1; // read
}"#;

#[test]
fn global_memory_is_written_before_it_is_read() {
    let bench = program(READS_GLOBAL, &[]);
    let out = bench.room::<i32>(64);
    let args = |from| [Arg::U64(from), Arg::U64(out)];
    let written = bench.upload(&[1_i32; 64]);
    assert_eq!(run(&bench, 1, 64, &args(written)), Ok(()));
    // What a kernel wrote, a fill wrote, and a copy copied.
    assert_eq!(run(&bench, 1, 64, &args(out)), Ok(()));
    let filled = bench.room::<i32>(64);
    bench.device.fill32(filled, 7, 64).expect("a fill");
    assert_eq!(run(&bench, 1, 64, &args(filled)), Ok(()));
    let copied = bench.room::<i32>(64);
    bench.device.copy(copied, filled, 256).expect("a copy");
    assert_eq!(run(&bench, 1, 64, &args(copied)), Ok(()));

    let fresh = bench.room::<i32>(64);
    let fault = demand(
        run(&bench, 1, 64, &args(fresh)),
        FaultKind::UninitializedRead,
        READS_GLOBAL,
        "// read",
    );
    assert_eq!((fault.thread, fault.address), (Some([0, 0, 0]), Some(fresh)));
    assert!(fault.detail.contains("4 of the 4 bytes were never written"), "{fault}");
    assert!(fault.detail.contains("256-byte allocation"), "{fault}");

    // All but two bytes of element 40.
    let partly = bench.room::<i32>(64);
    bench.device.fill8(partly, 0, 162).expect("a fill");
    bench.device.fill8(partly + 164, 0, 256 - 164).expect("a fill");
    let fault = run(&bench, 1, 64, &args(partly)).expect_err("a report");
    assert_eq!((fault.thread, fault.address), (Some([40, 0, 0]), Some(partly + 160)));
    assert!(fault.detail.contains("2 of the 4 bytes"), "{fault}");

    // A copy of memory that nothing wrote is not a write.
    bench.device.copy(copied, fresh, 128).expect("a copy");
    let fault = run(&bench, 1, 64, &args(copied)).expect_err("a report");
    assert_eq!(fault.kind, FaultKind::UninitializedRead);
}

#[test]
fn atomics_read_what_they_change() {
    let text = r#"
extern "C" __global__ void k(int* count, int* swapped) {
    atomicExch(swapped, 1);
    atomicAdd(swapped, 1);
    atomicAdd(count, 1); // add
}"#;
    let bench = program(text, &[]);
    let (count, swapped) = (bench.upload(&[0_i32]), bench.room::<i32>(1));
    assert_eq!(run(&bench, 2, 64, &[Arg::U64(count), Arg::U64(swapped)]), Ok(()));
    let count = bench.room::<i32>(1);
    let result = run(&bench, 1, 64, &[Arg::U64(count), Arg::U64(swapped)]);
    demand(result, FaultKind::UninitializedRead, text, "// add");
}

#[test]
fn shared_memory_is_written_before_it_is_read() {
    let text = r#"
extern "C" __global__ void k(int* out, int n) {
    __shared__ int tile[64];
    int i = threadIdx.x;
    if (i < n) tile[i] = i;
    __syncthreads();
    out[blockIdx.x * 64 + i] = tile[i]; // read
}"#;
    let bench = program(text, &[]);
    let out = bench.room::<i32>(128);
    assert_eq!(run(&bench, 2, 64, &[Arg::U64(out), Arg::I32(64)]), Ok(()));
    // Nothing of an earlier block or launch remains.
    let result = run(&bench, 2, 64, &[Arg::U64(out), Arg::I32(60)]);
    let fault = demand(result, FaultKind::UninitializedRead, text, "// read");
    assert_eq!(fault.thread, Some([60, 0, 0]));
    assert!(fault.detail.contains("byte 240 of 256 of shared memory"), "{fault}");
}

const PIPELINE: &str = r#"
__device__ void fetch(int* shared, const int* global) {
    unsigned to = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global)); // issue
    asm volatile("cp.async.commit_group;");
}
extern "C" __global__ void k(const int* in, int* out, int steps) {
    __shared__ __align__(16) int stage[2][512];
    int i = threadIdx.x, sum = 0;
    fetch(&stage[0][4 * i], in + 4 * i);
    for (int step = 0; step < steps; ++step) {
        $0
        $1
        if (step + 1 < steps) fetch(&stage[(step + 1) % 2][4 * i], in + 512 * (step + 1) + 4 * i);
        sum += stage[step % 2][511 - i]; // read
        $2
    }
    out[i] = sum;
}"#;

#[test]
fn asynchronous_copies_are_awaited() {
    let (wait, sync) =
        (r#"asm volatile("cp.async.wait_group 0;" ::: "memory");"#, "__syncthreads();");
    let result = |parts: [&str; 3]| {
        let bench = program(PIPELINE, &parts);
        let (from, to) = (bench.upload(&[1_i32; 4 * 512]), bench.room::<i32>(128));
        run(&bench, 1, 128, &[Arg::U64(from), Arg::U64(to), Arg::I32(4)])
    };
    assert_eq!(result([wait, sync, ""]), Ok(()));
    assert_eq!(result([wait, sync, sync]), Ok(()));
    let fault = demand(result(["", sync, ""]), FaultKind::UninitializedRead, PIPELINE, "// read");
    assert!(fault.detail.contains("an asynchronous copy that was not waited for"), "{fault}");
    // Without the barrier, the copies of other threads have not ended, or are overtaken.
    let fault = result([wait, "", ""]).expect_err("a report");
    assert!(matches!(fault.kind, FaultKind::Race | FaultKind::UninitializedRead), "{fault}");
    // The barrier before the wait orders nothing.
    let fault = result([sync, wait, ""]).expect_err("a report");
    assert!(matches!(fault.kind, FaultKind::Race | FaultKind::UninitializedRead), "{fault}");
}

#[test]
fn asynchronous_copies_read_what_was_written() {
    let sync = r#"asm volatile("cp.async.wait_group 0;" ::: "memory"); __syncthreads();"#;
    let bench = program(PIPELINE, &[sync, "", ""]);
    let (from, to) = (bench.room::<i32>(4 * 512), bench.room::<i32>(128));
    bench.device.fill32(from, 1, 1024).expect("a fill");
    let args = |steps| [Arg::U64(from), Arg::U64(to), Arg::I32(steps)];
    assert_eq!(run(&bench, 1, 128, &args(2)), Ok(()));
    let fault =
        demand(run(&bench, 1, 128, &args(3)), FaultKind::UninitializedRead, PIPELINE, "// issue");
    let thread = u64::from(fault.thread.expect("a thread")[0]);
    assert_eq!(fault.address, Some(from + 4096 + 16 * thread));
}

#[test]
fn matrices_are_loaded_from_what_was_written() {
    let text = r#"
extern "C" __global__ void k(unsigned* out, int rows) {
    __shared__ __align__(16) unsigned tile[8][4];
    int i = threadIdx.x;
    if (i / 4 < rows) tile[i / 4][i % 4] = i;
    __syncthreads();
    unsigned a, from = (unsigned)__cvta_generic_to_shared(tile[i % 8]);
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
        : "=r"(a) : "r"(from)); // load
    out[i] = a;
}"#;
    let bench = program(text, &[]);
    let out = bench.room::<u32>(32);
    assert_eq!(run(&bench, 1, 32, &[Arg::U64(out), Arg::I32(8)]), Ok(()));
    let result = run(&bench, 1, 32, &[Arg::U64(out), Arg::I32(7)]);
    let fault = demand(result, FaultKind::UninitializedRead, text, "// load");
    assert_eq!(fault.thread, Some([7, 0, 0]));
}

#[test]
fn lanes_store_one_value_to_one_address() {
    let global = r#"
extern "C" __global__ void k(int* out, int value) {
    out[0] = threadIdx.x * value; // store
}"#;
    let shared = r#"
extern "C" __global__ void k(int* out, int value) {
    __shared__ int word;
    word = threadIdx.x * value; // store
    __syncthreads();
    if (threadIdx.x == 0) *out = word;
}"#;
    for text in [global, shared] {
        let bench = program(text, &[]);
        let args = |value| [Arg::U64(bench.room::<i32>(1)), Arg::I32(value)];
        assert_eq!(run(&bench, 1, 32, &args(0)), Ok(()));
        let fault = demand(run(&bench, 1, 32, &args(1)), FaultKind::Race, text, "// store");
        assert!(fault.detail.contains("lanes 0 and 1"), "{fault}");
    }
}

#[test]
fn the_sanitizer_can_be_off() {
    let config = Config { sanitizer: false, ..Config::default() };
    let bench = Bench::cuda_with(READS_GLOBAL, config);
    let (from, to) = (bench.room::<i32>(64), bench.room::<i32>(64));
    assert_eq!(run(&bench, 1, 64, &[Arg::U64(from), Arg::U64(to)]), Ok(()));
    assert_eq!(bench.download::<i32>(to, 64), [0; 64]);
}

const REGISTERS: &str = ".version 8.0\n.target sm_80\n.address_size 64\n\
    .visible .entry k(.param .u64 out, .param .u32 n) {\n\
    .reg .b64 %out; .reg .b32 %lane, %n, %a, %b, %c; .reg .pred %p, %q; .reg .b64 %d, %e;\
    .reg .b16 %g, %h;\n\
    ld.param.u64 %out, [out]; ld.param.u32 %n, [n]; mov.u32 %lane, %laneid;\n\
    mad.wide.u32 %out, %lane, 8, %out;\n$0\nret;\n}\n";

fn run_registers(body: &str, n: u32) -> Result<(), Box<cuda_emulator::Fault>> {
    let bench = Bench::load(&REGISTERS.replace("$0", body), sanitized());
    let out = bench.room::<u64>(32);
    run(&bench, 1, 32, &[Arg::U64(out), Arg::U32(n)])
}

/// A register may be written in one way through the kernel and used in another.
#[test]
fn registers_are_written_before_they_are_used() {
    // (PTX, is it right for n = 32, for n = 31)
    let cases = [
        ("add.u32 %a, %b, 1; st.global.u32 [%out], %a;", false, false),
        ("st.global.u32 [%out], %b;", false, false),
        ("mov.u32 %a, %b; st.global.u32 [%out], %a;", false, false),
        // Moved and not used.
        ("mov.u32 %a, %b; mov.u32 %c, 1; st.global.u32 [%out], %c;", true, true),
        // Written by some threads, used by the same, and used by all.
        ("setp.lt.u32 %p, %lane, %n; @%p mov.u32 %a, 5; @%p st.global.u32 [%out], %a;", true, true),
        ("setp.lt.u32 %p, %lane, %n; @%p mov.u32 %a, 5; st.global.u32 [%out], %a;", true, false),
        // The same by branches, with a loop that writes to it again.
        (
            "setp.ge.u32 %p, %lane, %n; @%p bra L; mov.u32 %a, 5; L: st.global.u32 [%out], %a;",
            true,
            false,
        ),
        (
            "mov.u32 %c, 0; A: add.u32 %c, %c, 1; setp.ge.u32 %p, %lane, %n; @%p bra B;
             mov.u32 %a, 5; B: setp.lt.u32 %q, %c, 3; @%q bra A; st.global.u32 [%out], %a;",
            true,
            false,
        ),
        // A selection needs what it selects, and its predicate.
        (
            "setp.lt.u32 %p, %lane, %n; selp.b32 %a, 5, %b, %p; st.global.u32 [%out], %a;",
            true,
            false,
        ),
        ("selp.b32 %a, 5, 6, %q; st.global.u32 [%out], %a;", false, false),
        ("@%q st.global.u32 [%out], 1;", false, false),
        ("@%q bra L; st.global.u32 [%out], 1; L:", false, false),
        // Half of a pair.
        (
            "mov.u32 %a, 1; mov.b64 %d, {%a, %b}; mov.b64 {%a, %c}, %d; st.global.u32 [%out], 1;",
            true,
            true,
        ),
        ("mov.u32 %a, 1; mov.b64 %d, {%a, %b}; st.global.u64 [%out], %d;", false, false),
    ];
    check_registers(&cases);
    let fault = run_registers("mov.u32 %c, 1; add.u32 %a, %b, %c;", 32).expect_err("a report");
    assert!(fault.detail.contains("lanes 0-31 never wrote to the register `%b`"), "{fault}");
    assert_eq!(fault.instruction, "add.u32 %a, %b, %c");
}

/// Runs bodies that are right, or are not, for n = 32 and for n = 31.
fn check_registers(cases: &[(&str, bool, bool)]) {
    for &(body, all, some) in cases {
        for (n, right) in [(32, all), (31, some)] {
            match run_registers(body, n) {
                Ok(()) => assert!(right, "{body}"),
                Err(fault) => {
                    assert!(!right, "{body}: {fault}");
                    assert_eq!(fault.kind, FaultKind::UninitializedRegister, "{fault}");
                }
            }
        }
    }
}

/// Parts of a word that nothing wrote may be moved and dropped, and must not be used. `%h` is never
/// written, and `%a` holds it in its upper half.
#[test]
fn parts_of_registers_are_written_before_they_are_used() {
    let half = "mov.b16 %g, 5; mov.b32 %a, {%g, %h};";
    let cases = [
        ("st.global.u32 [%out], %a;", false),
        ("and.b32 %b, %a, 255; st.global.u32 [%out], %b;", true),
        ("mov.u32 %c, 255; and.b32 %b, %c, %a; st.global.u32 [%out], %b;", true),
        ("and.b32 %b, %a, 0x1ffff; st.global.u32 [%out], %b;", false),
        ("and.b32 %b, %a, %n; st.global.u32 [%out], %b;", false),
        ("or.b32 %b, %a, 0xffff0000; st.global.u32 [%out], %b;", true),
        ("or.b32 %b, %a, 0xfffe0000; st.global.u32 [%out], %b;", false),
        ("xor.b32 %b, %a, -1; st.global.u32 [%out], %b;", false),
        ("not.b32 %b, %a; cvt.u16.u32 %g, %b; st.global.u16 [%out], %g;", true),
        // a AND b, a OR b, b alone.
        ("lop3.b32 %b, %a, 0xffff, 0, 0xc0; st.global.u32 [%out], %b;", true),
        ("lop3.b32 %b, %a, 0xffff, 0, 0xfc; st.global.u32 [%out], %b;", false),
        ("lop3.b32 %b, %a, %n, 0, 0xcc; st.global.u32 [%out], %b;", true),
        // Shifts, and what is shifted out.
        ("shl.b32 %b, %a, 16; st.global.u32 [%out], %b;", true),
        ("shl.b32 %b, %a, 15; st.global.u32 [%out], %b;", false),
        ("shr.u32 %b, %a, 16; st.global.u32 [%out], %b;", false),
        ("shl.b32 %b, %a, 16; shr.s32 %b, %b, 16; st.global.u32 [%out], %b;", true),
        ("shl.b32 %b, %a, %n; st.global.u32 [%out], %b;", false),
        // Fields.
        ("bfe.u32 %b, %a, 8, 8; st.global.u32 [%out], %b;", true),
        ("bfe.u32 %b, %a, 9, 8; st.global.u32 [%out], %b;", false),
        ("bfe.s32 %b, %a, 8, 8; st.global.u32 [%out], %b;", true),
        ("bfe.s32 %b, %a, 8, 9; st.global.u32 [%out], %b;", false),
        ("bfi.b32 %b, %n, %a, 16, 16; st.global.u32 [%out], %b;", true),
        ("bfi.b32 %b, %a, %n, 8, 16; st.global.u32 [%out], %b;", true),
        ("bfi.b32 %b, %a, %n, 8, 17; st.global.u32 [%out], %b;", false),
        // Bytes: 0 and 1 are there, 2 and 3 are not; 4 to 7 are those of %n.
        ("prmt.b32 %b, %a, %n, 0x4510; st.global.u32 [%out], %b;", true),
        ("prmt.b32 %b, %a, %n, 0x4519; st.global.u32 [%out], %b;", true),
        ("prmt.b32 %b, %a, %n, 0x4512; st.global.u32 [%out], %b;", false),
        ("prmt.b32 %b, %a, %n, 0x451b; st.global.u32 [%out], %b;", false),
        ("prmt.b32 %b, %a, %n, %n; st.global.u32 [%out], %b;", false),
        // Conversions.
        ("cvt.u16.u32 %g, %a; st.global.u16 [%out], %g;", true),
        ("cvt.u32.u8 %b, %a; st.global.u32 [%out], %b;", true),
        ("cvt.s32.s8 %b, %a; st.global.u32 [%out], %b;", true),
        ("cvt.s32.s16 %b, %h; st.global.u32 [%out], %b;", false),
        ("cvt.u64.u32 %d, %a; and.b64 %d, %d, 7; st.global.u64 [%out], %d;", true),
        ("cvt.u64.u32 %d, %a; st.global.u64 [%out], %d;", false),
        // A part that comes back out, and one that does not.
        ("mov.b32 {%g, _}, %a; st.global.u16 [%out], %g;", true),
        ("mov.b32 {_, %g}, %a; st.global.u16 [%out], %g;", false),
        ("mov.b32 {%g, %h}, %a; st.global.u16 [%out], %g;", true),
        ("mov.b64 %d, {%n, %b}; and.b64 %d, %d, 255; st.global.u64 [%out], %d;", true),
        (
            "mov.b64 %d, {%n, %b}; shr.u64 %e, %d, 8; cvt.u32.u64 %c, %e;
          and.b32 %c, %c, 0xffffff; st.global.u32 [%out], %c;",
            true,
        ),
        (
            "mov.b64 %d, {%n, %b}; shr.u64 %e, %d, 8; cvt.u32.u64 %c, %e;
          st.global.u32 [%out], %c;",
            false,
        ),
        ("mov.b64 %d, {%g, %g, %g, %h}; shl.b64 %d, %d, 16; st.global.u64 [%out], %d;", true),
        ("mov.b64 %d, {%g, %g, %g, %h}; st.global.u64 [%out], %d;", false),
        // Some threads write the rest.
        ("setp.lt.u32 %p, %lane, %n; @%p mov.u32 %a, 5; st.global.u32 [%out], %a;", false),
        ("selp.b32 %b, %a, 5, %p; st.global.u32 [%out], %b;", false),
        ("setp.eq.u32 %p, %n, 99; selp.b32 %b, %a, 5, %p; st.global.u32 [%out], %b;", true),
        // A sum uses all of its operands.
        ("add.u32 %b, %a, 1; and.b32 %b, %b, 255; st.global.u32 [%out], %b;", false),
    ];
    for (rest, right) in cases {
        check_registers(&[(
            &format!("{half} {rest}"),
            right || rest.starts_with("setp.lt"),
            right,
        )]);
    }
    let fault = run_registers(&format!("{half} st.global.u32 [%out], %a;"), 32);
    let fault = fault.expect_err("a report");
    assert!(fault.detail.contains("all of the register `%a`: lane 0 lacks the bits 0xffff0000"));
}

/// What a shuffle brings from a lane that does not take part is not there.
#[test]
fn shuffles_read_lanes_that_take_part() {
    let some = "setp.lt.u32 %p, %lane, 16; @!%p bra L;";
    let use_it = "st.global.u32 [%out], %a;";
    let cases = [
        ("add.u32 %c, %lane, 16; shfl.sync.idx.b32 %a, %n, %c, 31, 0xffff;", use_it, false),
        ("add.u32 %c, %lane, 16; shfl.sync.idx.b32 %a, %n, %c, 31, 0xffff;", "", true),
        ("shfl.sync.down.b32 %a, %n, 8, 31, 0xffff;", use_it, false),
        ("shfl.sync.down.b32 %a|%q, %n, 8, 31, 0xffff; @%q mov.u32 %a, 1;", use_it, true),
        ("shfl.sync.down.b32 %a, %n, 8, 0x100f, 0xffff;", use_it, true),
        ("shfl.sync.bfly.b32 %a, %n, 8, 31, 0xffff;", use_it, true),
        // From one shuffle into the next, where lanes drop what they do not need.
        (
            "shfl.sync.down.b32 %a, %n, 8, 31, 0xffff; shfl.sync.idx.b32 %a, %a, 0, 31, 0xffff;",
            use_it,
            true,
        ),
        (
            "shfl.sync.down.b32 %a, %n, 8, 31, 0xffff; shfl.sync.idx.b32 %a, %a, 8, 31, 0xffff;",
            use_it,
            false,
        ),
    ];
    for (shuffle, then, right) in cases {
        let body = format!("{some} {shuffle} {then} L:");
        check_registers(&[(&body, right, right)]);
        // The members may be known to the program only.
        let body = format!("activemask.b32 %b; {}", shuffle.replace("0xffff;", "%b;"));
        check_registers(&[(&format!("{some} {body} {then} L:"), right, right)]);
    }
    // What one lane has is passed on to all; the others need not have it.
    let cases = [
        (
            "setp.eq.u32 %p, %lane, 0; @%p mov.u32 %a, 5;
          shfl.sync.idx.b32 %b, %a, 0, 31, -1; st.global.u32 [%out], %b;",
            true,
            true,
        ),
        (
            "setp.eq.u32 %p, %lane, 1; @%p mov.u32 %a, 5;
          shfl.sync.idx.b32 %b, %a, 0, 31, -1; st.global.u32 [%out], %b;",
            false,
            false,
        ),
    ];
    check_registers(&cases);
}

#[test]
fn local_memory_is_written_before_it_is_read() {
    let text = r#"
extern "C" __global__ void k(int* out, const int* at, int n) {
    int box[8];
    for (int i = 0; i < n; ++i) box[at[i]] = i;
    out[threadIdx.x] = box[at[threadIdx.x % 8]]; // read
}"#;
    let bench = program(text, &[]);
    let (out, at) = (bench.room::<i32>(32), bench.upload(&[3_i32, 1, 4, 0, 5, 7, 2, 6]));
    let args = |n| [Arg::U64(out), Arg::U64(at), Arg::I32(n)];
    assert_eq!(run(&bench, 1, 32, &args(8)), Ok(()));
    let fault = demand(run(&bench, 1, 32, &args(6)), FaultKind::UninitializedRead, text, "// read");
    assert_eq!(fault.thread, Some([6, 0, 0]));
    assert!(fault.detail.contains("of the 32 bytes of the thread's local memory"), "{fault}");
}

#[test]
fn asynchronous_copies_are_awaited_before_the_end() {
    let text = r#"
extern "C" __global__ void k(const int* in, int* out) {
    __shared__ __align__(16) int tile[128];
    unsigned to = (unsigned)__cvta_generic_to_shared(tile + 4 * threadIdx.x);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(in)); // issue
    $0
    out[threadIdx.x] = 1;
}"#;
    let result = |wait: &str| {
        let bench = program(text, &[wait]);
        let (from, to) = (bench.upload(&[1_i32; 4]), bench.room::<i32>(32));
        run(&bench, 1, 32, &[Arg::U64(from), Arg::U64(to)])
    };
    assert_eq!(result(r#"asm volatile("cp.async.wait_all;" ::: "memory");"#), Ok(()));
    for wait in ["", r#"asm volatile("cp.async.commit_group;" ::: "memory");"#] {
        let fault = result(wait).expect_err("a report");
        assert_eq!(fault.kind, FaultKind::UnawaitedCopy, "{fault}");
        let issue = super::expect::line_of(text, "// issue");
        assert!(fault.detail.contains(&format!("test.cu:{issue}")), "{fault}");
    }
}
