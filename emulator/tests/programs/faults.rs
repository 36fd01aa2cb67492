//! What a kernel must not do is reported: what, where, by whom, and at which address.

use crate::support::{Arg, Bench, kernel};
use cuda_emulator::{Config, FaultKind, LaunchError, ModuleError};

const STORES: &str = r#"
extern "C" __global__ void past(int* p, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    p[i] = i; // line 4
}
extern "C" __global__ void crooked(char* p) {
    *(int*)(p + threadIdx.x) = 1;
}
extern "C" __global__ void shared_past(int* p, int n) {
    extern __shared__ int s[];
    s[threadIdx.x * n] = 1;
    __syncwarp();
    p[0] = s[0];
}
"#;

#[test]
fn out_of_bounds() {
    let bench = Bench::cuda(STORES);
    let p = bench.room::<i32>(100);
    let fault = bench.fault("past", 2, 64, &[Arg::U64(p), Arg::I32(0)]);
    assert_eq!(fault.kind, FaultKind::OutOfBounds);
    assert_eq!(fault.kernel, "past");
    assert_eq!(fault.block, [1, 0, 0]);
    assert_eq!(fault.thread, Some([36, 0, 0]));
    assert_eq!(fault.address, Some(p + 400));
    let (file, line) = fault.source.clone().expect("line information");
    assert!(file.ends_with("test.cu"), "{file}");
    assert_eq!(line, 4);
    let text = fault.to_string();
    assert!(text.contains("0 bytes past the end of the 400-byte allocation"), "{text}");
    assert!(text.contains("st.global"), "{text}");
}

#[test]
fn an_access_across_the_end() {
    let bench = Bench::cuda(STORES);
    let p = bench.device.alloc(402).expect("memory");
    let fault = bench.fault("past", 2, 64, &[Arg::U64(p), Arg::I32(0)]);
    assert_eq!((fault.kind, fault.address), (FaultKind::OutOfBounds, Some(p + 400)));
    assert!(fault.detail.contains("2 of the 4 bytes lie past the end"), "{fault}");
}

#[test]
fn misaligned() {
    let bench = Bench::cuda(STORES);
    let p = bench.room::<i32>(100);
    let fault = bench.fault("crooked", 1, 32, &[Arg::U64(p)]);
    assert_eq!((fault.kind, fault.address), (FaultKind::Misaligned, Some(p + 1)));
    assert_eq!(fault.thread, Some([1, 0, 0]));
}

/// A GPU may align a variable further than it asks for; code that needs that must say so.
#[test]
fn misaligned_shared_variables_are_named() {
    let body = |access: &str| {
        kernel(&format!(
            ".shared .align 2 .b8 first[6]; .shared .align 4 .b8 table[64]; .reg .b64 %d, %g;\n\
             .reg .b32 %a; mov.b64 %d, 0; cvt.u64.u32 %g, %lane; mov.u32 %a, first;\n{access}"
        ))
    };
    let detail = |access: &str| {
        let fault = Bench::load(&body(access), Config::default()).fault("k", 1, 32, &[Arg::U64(0)]);
        assert_eq!(fault.kind, FaultKind::Misaligned, "{fault}");
        fault.detail
    };
    let named = "byte 8 of the shared variable `table`, whose declared alignment is 4";
    let found = detail("st.shared.b64 [table+8], %d;");
    assert!(found.contains(named), "{found}");
    let found = detail("mov.u64 %g, table; cvta.shared.u64 %g, %g; st.b64 [%g+8], %d;");
    assert!(found.contains(named), "{found}");
    let found = detail("st.shared.b32 [%a+4], 0;");
    assert!(found.contains("byte 4 of the shared variable `first`"), "{found}");
    let found = detail("mov.u64 %g, 2; st.global.b32 [%g], 0;");
    assert!(!found.contains("variable"), "{found}");
}

/// Dynamic shared memory has the alignment of its declaration, too.
#[test]
fn misaligned_dynamic_shared_memory_is_named() {
    let ptx = kernel("st.shared.b64 [dynamic+4], %out;")
        .replace(".visible .entry", ".extern .shared .align 4 .b8 dynamic[];\n.visible .entry");
    let bench = Bench::load(&ptx, Config::default());
    match bench.try_launch("k", 1, 32, 64, &[Arg::U64(0)]) {
        Err(LaunchError::Fault(fault)) => {
            assert_eq!(fault.kind, FaultKind::Misaligned);
            assert!(fault.detail.contains("byte 4 of the shared variable `dynamic`"), "{fault}");
        }
        other => panic!("a fault was expected, not {other:?}"),
    }
}

#[test]
fn use_after_free() {
    let bench = Bench::cuda(STORES);
    let p = bench.room::<i32>(100);
    bench.device.free(p).expect("an allocation");
    let fault = bench.fault("past", 1, 32, &[Arg::U64(p), Arg::I32(0)]);
    assert_eq!((fault.kind, fault.address), (FaultKind::UseAfterFree, Some(p)));
    assert!(bench.device.free(p).is_err());
}

#[test]
fn shared_memory_has_an_end() {
    let bench = Bench::cuda(STORES);
    let p = bench.room::<i32>(1);
    let args = [Arg::U64(p), Arg::I32(2)];
    match bench.try_launch("shared_past", 1, 32, 128, &args) {
        Err(LaunchError::Fault(fault)) => {
            assert_eq!(fault.kind, FaultKind::OutOfBounds);
            assert_eq!(fault.thread, Some([16, 0, 0]));
            assert!(fault.detail.contains("128 bytes of shared memory"), "{fault}");
        }
        other => panic!("a fault was expected, not {other:?}"),
    }
    bench.try_launch("shared_past", 1, 32, 252, &args).expect("enough shared memory");
}

#[test]
fn a_shuffle_without_all_of_its_lanes() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void half(int* p) {
            int x = threadIdx.x;
            if (x < 16) x = __shfl_xor_sync(~0u, x, 1);
            __syncwarp();
            p[threadIdx.x] = x;
        }"#,
    );
    let p = bench.room::<i32>(32);
    let fault = bench.fault("half", 1, 32, &[Arg::U64(p)]);
    assert_eq!(fault.kind, FaultKind::MissingLanes);
    assert!(fault.detail.contains("lanes 0-15") || fault.detail.contains("lanes 16-31"), "{fault}");
    assert!(fault.instruction.contains("shfl.sync"), "{fault}");
}

#[test]
fn a_matrix_instruction_without_all_lanes() {
    let ptx = kernel(
        ".reg .pred p; .reg .b32 %r<4>; setp.lt.u32 p, %lane, 30; mov.u32 %r0, 1024;\n\
         .shared .align 16 .b8 tile[512];\n\
         @p ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r0];",
    );
    let bench = Bench::load(&ptx, Config::default());
    let fault = bench.fault("k", 1, 32, &[Arg::U64(0)]);
    assert_eq!(fault.kind, FaultKind::MissingLanes);
}

#[test]
fn a_barrier_that_part_of_a_warp_reaches() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void half(int* p) {
            if (threadIdx.x < 16) { asm volatile("bar.sync 0;"); p[threadIdx.x] = 1; }
            else { asm volatile("bar.sync 0;"); p[threadIdx.x] = 2; }
        }"#,
    );
    let p = bench.room::<i32>(32);
    let fault = bench.fault("half", 1, 32, &[Arg::U64(p)]);
    assert_eq!(fault.kind, FaultKind::DivergentBarrier);
}

#[test]
fn a_barrier_that_a_warp_never_reaches() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void stuck(int* p) {
            if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;");
            else asm volatile("bar.sync 2, 64;");
            p[threadIdx.x] = 1;
        }"#,
    );
    let p = bench.room::<i32>(64);
    let fault = bench.fault("stuck", 1, 64, &[Arg::U64(p)]);
    assert_eq!(fault.kind, FaultKind::BarrierDeadlock);
    assert!(fault.detail.contains("warp 0 waits at barrier 1"), "{fault}");
    assert!(fault.detail.contains("warp 1 waits at barrier 2"), "{fault}");
}

#[test]
fn a_loop_without_end() {
    let config = Config { watchdog: 1 << 20, ..Config::default() };
    let asleep = "again: nanosleep.u32 100; bra again;";
    for body in ["again: bra again;", "again: bar.sync 0; bra again;", asleep] {
        let bench = Bench::load(&kernel(body), config);
        let fault = bench.fault("k", 1, 64, &[Arg::U64(0)]);
        assert_eq!(fault.kind, FaultKind::Timeout, "{body}");
    }
}

#[test]
fn traps_and_assertions() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void check(int* p) {
            if (p[threadIdx.x] < 0) __assertfail("p >= 0", "here.cu", 12, "check", 1);
            if (p[threadIdx.x] > 9) __trap();
        }"#,
    );
    let mut values = [0_i32; 32];
    values[5] = -1;
    let fault = bench.fault("check", 1, 32, &[Arg::U64(bench.upload(&values))]);
    assert_eq!((fault.kind, fault.thread), (FaultKind::Assertion, Some([5, 0, 0])));
    assert!(fault.detail.contains("`p >= 0` in check, here.cu:12"), "{fault}");
    values[5] = 10;
    let fault = bench.fault("check", 1, 32, &[Arg::U64(bench.upload(&values))]);
    assert_eq!((fault.kind, fault.thread), (FaultKind::Trap, Some([5, 0, 0])));
}

#[test]
fn modules_for_older_targets_may_use_all_that_is_taken_for_granted() {
    for (version, target) in
        [("6.0", "sm_50"), ("6.4", "sm_52"), ("8.0", "sm_60"), ("6.5", "sm_70")]
    {
        let ptx = kernel("mov.u32 %lane, 1;").replace("8.0", version).replace("sm_80", target);
        let device = cuda_emulator::Device::new(cuda_emulator::profile::A100);
        if let Err(error) = device.load_module(&ptx) {
            panic!("PTX {version} for {target}: {error}");
        }
    }
    // Anything else is there from the target on that the instruction set names.
    let ptx = kernel("cp.async.wait_all;").replace("sm_80", "sm_60");
    let device = cuda_emulator::Device::new(cuda_emulator::profile::A100);
    let error = device.load_module(&ptx).expect_err("no copies before sm_80").to_string();
    assert!(error.contains("needs target sm_80 and PTX version 7.0"), "{error}");
}

#[test]
fn fp8_conversions_are_older_on_hopper() {
    let ptx = |version: &str, target: &str| {
        let code = ".reg .b16 %two; cvt.rn.satfinite.e4m3x2.f32 %two, 0f3F800000, 0f40000000;";
        kernel(code).replace("8.0", version).replace("sm_80", target)
    };
    let load = |profile, ptx: &str| cuda_emulator::Device::new(profile).load_module(ptx).map(drop);
    use cuda_emulator::profile::{H100, RTX4090};
    load(H100, &ptx("7.8", "sm_90")).expect("PTX 7.8 has them for sm_90");
    load(RTX4090, &ptx("8.1", "sm_89")).expect("PTX 8.1 has them for sm_89");
    let error = load(RTX4090, &ptx("8.0", "sm_89")).expect_err("8.0 has not").to_string();
    assert!(error.contains("sm_89 and PTX version 8.1"), "{error}");
}

#[test]
fn modules_that_are_refused() {
    let device = cuda_emulator::Device::new(cuda_emulator::profile::A100);
    let load = |ptx: &str| device.load_module(ptx).expect_err("a refused module");
    match load(&kernel("\nfrobnicate.b32 %lane, %lane;")) {
        ModuleError::Parse { line, message, .. } => {
            assert_eq!(line, 9);
            assert_eq!(message, "unknown instruction `frobnicate`");
        }
        other => panic!("{other}"),
    }
    let message = load(&kernel("add.quick.u32 %lane, %lane, 1;")).to_string();
    assert!(message.contains("`add.quick.u32` does not exist"), "{message}");
    let message = load(&kernel(".surprise;")).to_string();
    assert!(message.contains("unknown directive `.surprise`"), "{message}");
    let message = load(&kernel("mov.u32 %lane, %nothing;")).to_string();
    assert!(message.contains("%nothing"), "{message}");
    let newer = kernel("").replace(".version 8.0", ".version 99.1");
    assert_eq!(
        load(&newer),
        ModuleError::UnsupportedVersion { found: (99, 1), supported: device.config().ptx_version }
    );
    let target = kernel("").replace("sm_80", "sm_90a");
    assert!(matches!(load(&target), ModuleError::TargetTooNew { .. }));
    assert!(matches!(load("\u{7f}ELF"), ModuleError::NotPtx(_)));
    assert_eq!(device.memory_in_use(), 0);
}
