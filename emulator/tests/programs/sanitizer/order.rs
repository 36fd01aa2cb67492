//! Races that the sanitizer finds, and orders that it must understand: each program once as it
//! should be, and once with a mistake, which must be found at its line.

use super::expect::{demand, line_of, program, run, sanitized};
use crate::support::{Arg, Bench};
use cuda_emulator::{Config, FaultKind};

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
    let fault = result(32).expect_err("a report");
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
    assert!(fault.detail.contains("not ordered by fences and atomics"), "{fault}");
    assert!(fault.detail.contains("of block ("), "{fault}");
}

/// The thread that counts its block must release and acquire itself: by the release and acquire
/// patterns of the PTX ISA no fence of another thread does it, before a barrier or behind it.
#[test]
fn the_last_block_sees_what_the_others_wrote() {
    let text = r#"
extern "C" __global__ void k(float* partial, unsigned* counter, float* out, int blocks) {
    __shared__ bool last;
    partial[blockIdx.x * 64 + threadIdx.x] = threadIdx.x; // write
    $0
    __syncthreads();
    if (threadIdx.x == 0) {
        $1
        last = atomicAdd(counter, 1) == blocks - 1;
        $2
        if (last) *counter = 0;
    }
    __syncthreads();
    if (!last) return;
    $3
    float sum = 0;
    for (int b = 0; b < blocks; ++b) sum += partial[b * 64 + threadIdx.x]; // read
    out[threadIdx.x] = sum;
}"#;
    let fence = "__threadfence();";
    for threads in [1, 2] {
        let result = |parts: [&str; 4]| {
            let numbered = parts.iter().enumerate();
            let text = numbered
                .fold(text.to_owned(), |text, (at, part)| text.replace(&format!("${at}"), part));
            let bench = Bench::cuda_with(&text, Config { threads, ..sanitized() });
            let (partial, out) = (bench.room::<f32>(64 * 9), bench.room::<f32>(64));
            let counter = bench.upload(&[0_u32]);
            let args = [Arg::U64(partial), Arg::U64(counter), Arg::U64(out), Arg::I32(9)];
            run(&bench, 9, 64, &args).and_then(|()| run(&bench, 9, 64, &args))
        };
        assert_eq!(result(["", fence, fence, ""]), Ok(()));
        for parts in [["", "", fence, ""], [fence, "", fence, ""], ["", fence, "", fence]] {
            let fault = demand(result(parts), FaultKind::Race, text, "// read");
            let write = line_of(text, "// write");
            assert!(fault.detail.contains(&format!("test.cu:{write}")), "{fault}");
        }
    }
}

/// Within a warp, too, lanes are ordered by barriers only.
#[test]
fn lanes_of_a_warp_are_ordered_by_warp_barriers() {
    let text = r#"
extern "C" __global__ void k(int* out, int* data) {
    __shared__ int tile[32];
    int lane = threadIdx.x;
    tile[lane] = lane; // write
    $0
    int other = tile[lane ^ 1]; // read
    $1
    tile[lane] = other; // again
    data[lane] = tile[lane];
    $2
    out[lane] = data[31 - lane]; // global
}"#;
    let sync = "__syncwarp();";
    let half = "__syncwarp(lane < 16 ? 0xffff : 0xffff0000);";
    let quarter = "__syncwarp(0xffu << (lane & 24));";
    let result = |parts: [&str; 3]| {
        let bench = program(text, &parts);
        run(&bench, 1, 32, &[Arg::U64(bench.room::<i32>(32)), Arg::U64(bench.room::<i32>(32))])
    };
    assert_eq!(result([sync, sync, sync]), Ok(()));
    // Neighbours are in one half, and in one quarter; lanes 0 and 31 meet by way of neither.
    assert_eq!(result([half, quarter, sync]), Ok(()));
    for (parts, marker) in [
        (["", sync, sync], "// read"),
        ([sync, "", sync], "// again"),
        ([sync, sync, ""], "// global"),
        ([sync, sync, half], "// global"),
    ] {
        demand(result(parts), FaultKind::Race, text, marker);
    }
}

/// Who meets one lane and then another carries the order from the first to the second.
#[test]
fn order_within_a_warp_is_passed_on() {
    let text = r#"
extern "C" __global__ void k(int* out, int to, int from) {
    __shared__ int box[2];
    int lane = threadIdx.x;
    if (lane == 0) box[to] = 5;
    if (lane < 2) __syncwarp(0x3);
    if (lane == 1 || lane == 2) __syncwarp($0);
    if (lane == 2) *out = box[from]; // read
}"#;
    let result = |mask: &str| {
        let bench = program(text, &[mask]);
        run(&bench, 1, 32, &[Arg::U64(bench.room::<i32>(1)), Arg::I32(1), Arg::I32(1)])
    };
    assert_eq!(result("0x6"), Ok(()));
    demand(result("1u << lane"), FaultKind::Race, text, "// read");
}

/// A flag that is set again after it was seen: the write that was read comes before.
#[test]
fn what_was_observed_comes_before() {
    let text = r#"
extern "C" __global__ void k(int* data, int* flag, int* out) {
    if (blockIdx.x == 0) {
        if (threadIdx.x == 0) {
            *data = 7;
            __threadfence();
            asm volatile("st.relaxed.gpu.global.s32 [%0], 1;" ::"l"(flag) : "memory");
        }
        return;
    }
    if (threadIdx.x == 0) {
        int seen;
        do asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
        while (!seen);
        __threadfence();
        $0
    }
    __syncthreads();
    if (threadIdx.x == 40) {
        *flag = 0; // reset
        *out = *data;
    }
}"#;
    let result = |part: &str| {
        let bench = program(text, &[part]);
        let (data, flag) = (bench.room::<i32>(1), bench.upload(&[0_i32]));
        run(&bench, 2, 64, &[Arg::U64(data), Arg::U64(flag), Arg::U64(bench.room::<i32>(1))])
    };
    assert_eq!(result(""), Ok(()));
}

/// To learn of another block, one must look where that block has left word.
#[test]
fn another_flag_orders_nothing() {
    let text = r#"
extern "C" __global__ void k(int* data, int* flags, int* out) {
    if (threadIdx.x != 0) return;
    if (blockIdx.x == 0) {
        *data = 7; // write
        __threadfence();
        atomicExch(&flags[0], 1);
        atomicExch(&flags[$0], 1);
    } else {
        while (atomicAdd(&flags[1], 0) == 0);
        __threadfence();
        *out = *data; // read
    }
}"#;
    let result = |flag: &str, set: i32| {
        let bench = program(text, &[flag]);
        let (data, flags) = (bench.upload(&[0_i32]), bench.upload(&[0_i32, set, 0]));
        run(&bench, 2, 32, &[Arg::U64(data), Arg::U64(flags), Arg::U64(bench.room::<i32>(1))])
    };
    assert_eq!(result("1", 0), Ok(()));
    let fault = result("2", 1).expect_err("a report");
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
    let line = fault.source.as_ref().expect("a line").1;
    assert!([line_of(text, "// write"), line_of(text, "// read")].contains(&line), "{fault}");
}

/// Blocks start in the order that the seed draws, and the sanitizer finds the same.
#[test]
fn seeds_permute_blocks() {
    let text = r#"
extern "C" __global__ void k(int* next, int* order) {
    if (threadIdx.x == 0) order[atomicAdd(next, 1)] = blockIdx.x;
}"#;
    let order = |seed| {
        let bench = Bench::cuda_with(text, Config { seed, threads: 1, ..sanitized() });
        let (next, order) = (bench.upload(&[0_i32]), bench.room::<i32>(64));
        bench.launch("k", 64, 32, &[Arg::U64(next), Arg::U64(order)]);
        bench.download::<i32>(order, 64)
    };
    let orders: Vec<Vec<i32>> = (0..4).map(order).collect();
    let numbers: Vec<i32> = (0..64).collect();
    assert_eq!(orders[0], numbers);
    for (seed, order) in orders.iter().enumerate().skip(1) {
        assert!(orders[..seed].iter().all(|other| other != order), "seed {seed}: {order:?}");
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, numbers);
    }
}

#[test]
fn a_discard_is_a_write() {
    let text = r#"
extern "C" __global__ void k(int* line, int* out) {
    int i = threadIdx.x;
    if (i < 32) line[i] = 1;
    $0
    out[i] = line[(i + 1) % 32]; // read
    $1
    if (i == 32) {
        size_t at = __cvta_generic_to_global(line);
        asm volatile("discard.global.L2 [%0], 128;" ::"l"(at) : "memory");
    }
    $2
}"#;
    let sync = "__syncthreads();";
    let result = |parts: [&str; 3]| {
        let bench = program(text, &parts);
        let args = [Arg::U64(bench.room::<i32>(32)), Arg::U64(bench.room::<i32>(64))];
        run(&bench, 1, 64, &args)
    };
    assert_eq!(result([sync, sync, ""]), Ok(()));
    let fault = result([sync, "", ""]).expect_err("a report");
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
    let read = "__syncthreads(); out[i] = line[i % 32]; // gone";
    demand(result([sync, sync, read]), FaultKind::UninitializedRead, text, "$2");
}

/// A compare-and-swap loop starts with a plain read: its value is a guess. A plain read that
/// decides anything else is a race.
#[test]
fn a_plain_read_may_be_a_guess() {
    let text = r#"
extern "C" __global__ void k(unsigned long long* sum, double* out) {
    unsigned long long old = *sum, assumed; // read
    do {
        assumed = old;
        double more = __longlong_as_double(assumed) + 1.0;
        old = atomicCAS($0, assumed, __double_as_longlong(more));
    } while (old != assumed);
    if (threadIdx.x == 0) out[blockIdx.x] = 1.0;
}"#;
    for threads in [1, 2] {
        let result = |place: &str| {
            let text = text.replace("$0", place);
            let bench = Bench::cuda_with(&text, Config { threads, ..sanitized() });
            let (sums, out) = (bench.upload(&[0.0_f64; 2]), bench.room::<f64>(4));
            let result = run(&bench, 4, 64, &[Arg::U64(sums), Arg::U64(out)]);
            (result, bench.download::<f64>(sums, 1)[0])
        };
        assert_eq!(result("sum"), (Ok(()), 256.0));
        let other = text.replace("*sum, assumed", "sum[1], assumed");
        let bench = Bench::cuda_with(
            &other.replace("$0", "sum").replace("out[blockIdx.x] = 1.0", "atomicAdd(sum + 1, 1)"),
            Config { threads, ..sanitized() },
        );
        let (sums, out) = (bench.upload(&[0.0_f64; 2]), bench.room::<f64>(4));
        let fault = run(&bench, 4, 64, &[Arg::U64(sums), Arg::U64(out)]).expect_err("a report");
        assert_eq!(fault.kind, FaultKind::Race, "{fault}");
    }
}

/// Lanes of a warp that change their own parts of one word in place touch no byte of another.
#[test]
fn parts_of_a_word_belong_to_their_lanes() {
    let text = r#"
extern "C" __global__ void k(unsigned* out) {
    __shared__ $0 parts[64];
    unsigned lane = threadIdx.x;
    parts[lane] = lane;
    parts[lane] += 1;
    parts[lane] *= 2; // again
    $1
    out[lane] = parts[$2]; // read
}"#;
    for kind in ["unsigned char", "unsigned short", "unsigned"] {
        let result = |sync: &str, read: &str| {
            let bench = program(text, &[kind, sync, read]);
            run(&bench, 1, 32, &[Arg::U64(bench.room::<u32>(32))])
        };
        assert_eq!(result("", "lane"), Ok(()), "{kind}");
        assert_eq!(result("__syncwarp();", "lane ^ 1"), Ok(()), "{kind}");
        let fault = result("", "lane ^ 1").expect_err("a report");
        assert_eq!(fault.kind, FaultKind::Race, "{kind}: {fault}");
    }
}

/// Who overwrites what others of the block still read, as a maximum in shared memory often is.
#[test]
fn a_maximum_is_overwritten_before_all_have_read_it() {
    let text = r#"
extern "C" __global__ void k(const float* in, float* out) {
    __shared__ float shared[4];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float value = in[threadIdx.x];
    for (int step = 16; step > 0; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
    if (lane == 0) shared[warp] = value;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int w = 1; w < 4; ++w) shared[0] = fmaxf(shared[0], shared[w]);
    __syncthreads();
    float most = shared[0]; // read
    $0
    float sum = expf(in[threadIdx.x] - most);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) shared[warp] = sum; // write
    __syncthreads();
    out[threadIdx.x] = shared[0] + shared[1] + shared[2] + shared[3];
}"#;
    let result = |sync: &str, seed| {
        let bench = Bench::cuda_with(&text.replace("$0", sync), Config { seed, ..sanitized() });
        let args = [Arg::U64(bench.upload(&[1.0_f32; 128])), Arg::U64(bench.room::<f32>(128))];
        run(&bench, 1, 128, &args)
    };
    for seed in 0..4 {
        assert_eq!(result("__syncthreads();", seed), Ok(()));
        let fault = result("", seed).expect_err("a report");
        assert_eq!(fault.kind, FaultKind::Race, "{fault}");
    }
}

/// Writes of one value race as others do; the report says so, and a setting lets them.
#[test]
fn writes_of_one_value_are_named() {
    let text = r#"
extern "C" __global__ void k(int* flag, int* out, int value, int step) {
    __shared__ int seen;
    if (threadIdx.x % 32 == 0) $0 = value + step * (threadIdx.x / 32); // write
    __syncthreads();
    out[blockIdx.x * blockDim.x + threadIdx.x] = $1;
}"#;
    for (place, read) in [("*flag", "value"), ("seen", "seen")] {
        let result = |same_value_writes, step| {
            let config = Config { same_value_writes, threads: 1, ..sanitized() };
            let text = text.replace("$0", place).replace("$1", read);
            let bench = Bench::cuda_with(&text, config);
            let (flag, out) = (bench.upload(&[0_i32]), bench.room::<i32>(128));
            let args = [Arg::U64(flag), Arg::U64(out), Arg::I32(1), Arg::I32(step)];
            run(&bench, 2, 64, &args)
        };
        let same = "both write the same value";
        let fault = demand(result(false, 0), FaultKind::Race, text, "// write");
        assert!(fault.detail.contains(same), "{fault}");
        assert_eq!(result(true, 0), Ok(()));
        for allowed in [false, true] {
            let fault = demand(result(allowed, 1), FaultKind::Race, text, "// write");
            assert!(!fault.detail.contains(same), "{fault}");
        }
    }
}
