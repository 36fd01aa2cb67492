//! What the sanitizer reports, and what it must not: each program once as it should be, and once
//! with a mistake, which must be found at its line.

mod support;

use cuda_emulator::{Config, Fault, FaultKind, LaunchError};
use support::{Arg, Bench};

/// The device that the tests run on, whatever the environment says.
fn sanitized() -> Config {
    Config { sanitizer: true, ..Config::default() }
}

/// A program with a place where mistakes are made: `$0`, `$1`… stand for statements of `parts`.
fn program(text: &str, parts: &[&str]) -> Bench {
    let mut text = text.to_owned();
    for (index, part) in parts.iter().enumerate() {
        text = text.replace(&format!("${index}"), part);
    }
    Bench::cuda_with(&text, sanitized())
}

/// The line on which a marker stands.
fn line_of(text: &str, marker: &str) -> u32 {
    let line = text.lines().position(|line| line.contains(marker));
    line.expect("the marker") as u32 + 1
}

fn run(bench: &Bench, grid: u32, block: u32, args: &[Arg]) -> Result<(), Box<Fault>> {
    match bench.try_launch("k", grid, block, 0, args) {
        Ok(()) => Ok(()),
        Err(LaunchError::Fault(fault)) => Err(fault),
        Err(error) => panic!("{error}"),
    }
}

/// Demands a report at the line of a marker.
fn demand(result: Result<(), Box<Fault>>, kind: FaultKind, text: &str, marker: &str) -> Box<Fault> {
    let fault = result.expect_err("a report");
    assert_eq!(fault.kind, kind, "{fault}");
    let (file, line) = fault.source.clone().expect("line information");
    assert!(file.ends_with("test.cu"), "{file}");
    assert_eq!(line, line_of(text, marker), "{fault}");
    assert_eq!(fault.kernel, "k");
    fault
}

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

const REVERSE: &str = r#"
extern "C" __global__ void k(int* out) {
    __shared__ int tile[128];
    int i = threadIdx.x;
    $0
    tile[i] = i; // write
    $1
    out[i] = tile[127 - i]; // read
    $2
    tile[i] = out[i]; // again
}"#;

#[test]
fn shared_memory_is_ordered_by_barriers() {
    let sync = "__syncthreads();";
    let out = |bench: &Bench| [Arg::U64(bench.room::<i32>(128))];
    let bench = program(REVERSE, &["", sync, sync]);
    assert_eq!(run(&bench, 1, 128, &out(&bench)), Ok(()));
    for seed in 1..8 {
        // Written by the kernel, so that a barrier that is missing is a race and not a read of
        // what was not written, whatever the order of warps.
        let config = Config { seed, ..sanitized() };
        let text = REVERSE.replace("$0", "tile[i] = 0; __syncthreads();");
        for (barriers, marker) in [(["", sync], "// write"), ([sync, ""], "// again")] {
            let racy = text.replace("$1", barriers[0]).replace("$2", barriers[1]);
            let bench = Bench::cuda_with(&racy, config);
            let fault = run(&bench, 1, 128, &out(&bench)).expect_err("a report");
            assert_eq!(fault.kind, FaultKind::Race, "{fault}");
            // Whichever comes second is at fault, and names the other.
            let line = fault.source.as_ref().expect("a line").1;
            let (write, read) = (line_of(&racy, marker), line_of(&racy, "// read"));
            assert!(line == write || line == read, "{fault}");
            let other = if line == write { read } else { write };
            assert!(fault.detail.contains(&format!("test.cu:{other}")), "{fault}");
        }
    }
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
    __shared__ int stage[2][512];
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
fn shared_atomics_do_not_race_with_each_other() {
    let text = r#"
extern "C" __global__ void k(int* out) {
    __shared__ int sum;
    if (threadIdx.x == 0) sum = 0;
    $0
    if (threadIdx.x >= 32) atomicAdd(&sum, 1); // add
    $1
    if (threadIdx.x == 1) *out = sum; // read
}"#;
    let sync = "__syncthreads();";
    let result = |parts: [&str; 2]| {
        let bench = program(text, &parts);
        run(&bench, 1, 96, &[Arg::U64(bench.room::<i32>(1))])
    };
    assert_eq!(result([sync, sync]), Ok(()));
    demand(result(["", sync]), FaultKind::Race, text, "// add");
    let fault = result([sync, ""]).expect_err("a report");
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
}

#[test]
fn neighbours_may_share_a_word() {
    // Two warps write the halves of each word, and read their own.
    let text = r#"
extern "C" __global__ void k(unsigned short* out) {
    __shared__ unsigned short halves[64];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int round = 0; round < 3; ++round) {
        halves[2 * lane + warp] = threadIdx.x + round;
        out[threadIdx.x] = halves[2 * lane + warp];
    }
}"#;
    let bench = program(text, &[]);
    for _ in 0..3 {
        assert_eq!(run(&bench, 1, 64, &[Arg::U64(bench.room::<u16>(64))]), Ok(()));
    }
}

#[test]
fn barriers_of_some_threads_order_those_threads() {
    // Warps 0 and 1 produce for warps 2 and 3 through named barriers, as pipelines do.
    let text = r#"
__device__ void arrive(int id) { asm volatile("bar.arrive %0, 128;" ::"r"(id) : "memory"); }
__device__ void await(int id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); }
extern "C" __global__ void k(int* out) {
    __shared__ int box[64];
    int i = threadIdx.x % 64;
    if (threadIdx.x < 64) {
        for (int round = 0; round < 4; ++round) {
            if (round > 0) { $0 }
            box[i] = round + i; // write
            arrive(1);
        }
    } else {
        int sum = 0;
        for (int round = 0; round < 4; ++round) {
            await(1);
            sum += box[63 - i]; // read
            if (round < 3) { $1 }
        }
        out[i] = sum;
    }
}"#;
    let result = |parts: [&str; 2], seed| {
        let text = text.replace("$0", parts[0]).replace("$1", parts[1]);
        let bench = Bench::cuda_with(&text, Config { seed, ..sanitized() });
        let result = run(&bench, 1, 128, &[Arg::U64(bench.room::<i32>(64))]);
        (result, text)
    };
    for seed in 0..6 {
        assert_eq!(result(["await(2);", "arrive(2);"], seed).0, Ok(()));
    }
    let mut found = 0;
    for seed in 0..6 {
        // The producer runs ahead; that it may not is a deadlock or a race.
        let (result, _) = result(["", ""], seed);
        found += usize::from(result.is_err());
    }
    assert_eq!(found, 6);
}

#[test]
fn a_fence_and_a_flag_order_warps() {
    let text = r#"
extern "C" __global__ void k(int* out, int to, int from) {
    __shared__ int box[2], flag;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    if (threadIdx.x == 0) {
        box[to] = 42; // write
        $0
        atomicExch(&flag, 1);
    }
    if (threadIdx.x == 32) {
        while (atomicAdd(&flag, 0) == 0);
        $1
        *out = box[from]; // read
    }
}"#;
    let fence = "__threadfence_block();";
    let result = |parts: [&str; 2]| {
        let bench = program(text, &parts);
        run(&bench, 1, 64, &[Arg::U64(bench.room::<i32>(1)), Arg::I32(1), Arg::I32(1)])
    };
    assert_eq!(result([fence, fence]), Ok(()));
    for parts in [["", fence], [fence, ""]] {
        let fault = demand(result(parts), FaultKind::Race, text, "// read");
        assert_eq!(fault.thread, Some([32, 0, 0]));
        let write = line_of(text, "// write");
        assert!(fault.detail.contains("the write by thread (0, 0, 0)"), "{fault}");
        assert!(fault.detail.contains(&format!("test.cu:{write}")), "{fault}");
    }
}

#[test]
fn global_memory_is_ordered_by_barriers_within_a_block() {
    let text = r#"
extern "C" __global__ void k(int* data, int* out) {
    int i = blockIdx.x * 128 + threadIdx.x;
    data[i] = i; // write
    $0
    out[i] = data[blockIdx.x * 128 + 127 - threadIdx.x]; // read
}"#;
    let result = |sync: &str| {
        let bench = program(text, &[sync]);
        let (data, out) = (bench.upload(&[0_i32; 256]), bench.room::<i32>(256));
        run(&bench, 2, 128, &[Arg::U64(data), Arg::U64(out)])
    };
    assert_eq!(result("__syncthreads();"), Ok(()));
    let fault = result("").expect_err("a report");
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
    assert!(fault.detail.contains("not ordered by a barrier"), "{fault}");
}

#[test]
fn blocks_do_not_touch_what_others_write() {
    let text = r#"
extern "C" __global__ void k(int* data, int* out, int shift) {
    int i = blockIdx.x * 32 + threadIdx.x;
    data[i] = i; // write
    out[i] = data[(i + shift) % 128]; // read
}"#;
    let bench = program(text, &[]);
    let result = |shift| {
        let (data, out) = (bench.upload(&[0_i32; 128]), bench.room::<i32>(128));
        run(&bench, 4, 32, &[Arg::U64(data), Arg::U64(out), Arg::I32(shift)])
    };
    assert_eq!(result(0), Ok(()));
    let fault = result(1).expect_err("a report");
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
    assert!(fault.detail.contains("not ordered by fences and atomics"), "{fault}");
    assert!(fault.detail.contains("of block ("), "{fault}");
}

#[test]
fn the_last_block_sees_what_the_others_wrote() {
    let text = r#"
extern "C" __global__ void k(float* partial, unsigned* counter, float* out, int blocks) {
    __shared__ bool last;
    partial[blockIdx.x * 64 + threadIdx.x] = threadIdx.x; // write
    $0
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1) == blocks - 1;
        if (last) *counter = 0;
    }
    __syncthreads();
    if (!last) return;
    $1
    float sum = 0;
    for (int b = 0; b < blocks; ++b) sum += partial[b * 64 + threadIdx.x]; // read
    out[threadIdx.x] = sum;
}"#;
    let fence = "__threadfence();";
    for threads in [1, 2] {
        let result = |parts: [&str; 2]| {
            let text = text.replace("$0", parts[0]).replace("$1", parts[1]);
            let bench = Bench::cuda_with(&text, Config { threads, ..sanitized() });
            let (partial, out) = (bench.room::<f32>(64 * 9), bench.room::<f32>(64));
            let counter = bench.upload(&[0_u32]);
            let args = [Arg::U64(partial), Arg::U64(counter), Arg::U64(out), Arg::I32(9)];
            run(&bench, 9, 64, &args).and_then(|()| run(&bench, 9, 64, &args))
        };
        assert_eq!(result([fence, fence]), Ok(()));
        for parts in [["", fence], [fence, ""]] {
            let fault = demand(result(parts), FaultKind::Race, text, "// read");
            let write = line_of(text, "// write");
            assert!(fault.detail.contains(&format!("test.cu:{write}")), "{fault}");
        }
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
