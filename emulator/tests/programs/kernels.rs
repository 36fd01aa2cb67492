//! Programs compiled by NVRTC, run from end to end.

use crate::support::{Arg, Bench};

#[test]
fn vector_addition() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void add(const float* a, const float* b, float* c, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < n) c[i] = a[i] + b[i];
        }"#,
    );
    let n = 1000;
    let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let b: Vec<f32> = (0..n).map(|i| 0.5 * i as f32).collect();
    let (pa, pb, pc) = (bench.upload(&a), bench.upload(&b), bench.room::<f32>(n));
    let args = [Arg::U64(pa), Arg::U64(pb), Arg::U64(pc), Arg::I32(n as i32)];
    bench.launch("add", 8, 128, &args);
    for (i, value) in bench.download::<f32>(pc, n).into_iter().enumerate() {
        assert_eq!(value, 1.5 * i as f32, "element {i}");
    }
    let counters = bench.device.counters();
    assert_eq!(counters.launches, 1);
    assert_eq!(counters.global_bytes_read, 8 * n as u64);
    assert_eq!(counters.global_bytes_written, 4 * n as u64);
}

#[test]
fn block_reduction_with_shuffles() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void sum(const float* x, float* out, int n) {
            __shared__ float partial[32];
            float s = 0.f;
            for (int i = threadIdx.x; i < n; i += blockDim.x) s += x[i];
            for (int d = 16; d; d >>= 1) s += __shfl_down_sync(~0u, s, d);
            if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = s;
            __syncthreads();
            if (threadIdx.x < 32) {
                s = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.f;
                for (int d = 16; d; d >>= 1) s += __shfl_xor_sync(~0u, s, d);
                if (threadIdx.x == 0) *out = s;
            }
        }"#,
    );
    let n = 10_000;
    let x: Vec<f32> = (0..n).map(|i| (i % 17) as f32).collect();
    let (px, out) = (bench.upload(&x), bench.room::<f32>(1));
    bench.launch("sum", 1, 256, &[Arg::U64(px), Arg::U64(out), Arg::I32(n)]);
    let expected: f32 = x.iter().sum();
    assert_eq!(bench.download::<f32>(out, 1), [expected]);
}

#[test]
fn transpose_through_shared_memory() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void transpose(const int* in, int* out) {
            __shared__ int tile[32][33];
            int x = threadIdx.x % 32, y = threadIdx.x / 32;
            for (int i = y; i < 32; i += 4) tile[i][x] = in[32 * i + x];
            __syncthreads();
            for (int i = y; i < 32; i += 4) out[32 * i + x] = tile[x][i];
        }"#,
    );
    let input: Vec<i32> = (0..1024).collect();
    let (from, to) = (bench.upload(&input), bench.room::<i32>(1024));
    bench.launch("transpose", 1, 128, &[Arg::U64(from), Arg::U64(to)]);
    let output: Vec<i32> = bench.download(to, 1024);
    assert!(output.iter().enumerate().all(|(i, &x)| x as usize == i % 32 * 32 + i / 32));
}

#[test]
fn divergent_loops_meet_again() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void collatz(int* out) {
            int n = threadIdx.x + 1, steps = 0;
            while (n != 1) {
                if (n % 2) n = 3 * n + 1; else n /= 2;
                if (++steps > 1000) break;
            }
            // All lanes are here again, or the shuffle is a fault.
            int most = steps;
            for (int d = 16; d; d >>= 1) most = max(most, __shfl_xor_sync(~0u, most, d));
            out[threadIdx.x] = steps;
            if (threadIdx.x == 0) out[32] = most;
        }"#,
    );
    let out = bench.room::<i32>(33);
    bench.launch("collatz", 1, 32, &[Arg::U64(out)]);
    let steps: Vec<i32> = bench.download(out, 33);
    let expected = |n: i32| {
        let (mut n, mut steps) = (n, 0);
        while n != 1 {
            n = if n % 2 == 1 { 3 * n + 1 } else { n / 2 };
            steps += 1;
        }
        steps
    };
    assert!((0..32).all(|i| steps[i] == expected(i as i32 + 1)));
    assert_eq!(steps[32], (1..=32).map(expected).max().expect("not empty"));
}

#[test]
fn histogram_with_atomics() {
    let bench = Bench::cuda(
        r#"
        __device__ unsigned total = 7;
        extern "C" __global__ void histogram(const unsigned char* x, unsigned* bins, int n) {
            __shared__ unsigned local[16];
            if (threadIdx.x < 16) local[threadIdx.x] = 0;
            __syncthreads();
            for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
                atomicAdd(&local[x[i] % 16], 1u);
            __syncthreads();
            if (threadIdx.x < 16) {
                atomicAdd(&bins[threadIdx.x], local[threadIdx.x]);
                atomicAdd(&total, local[threadIdx.x]);
            }
        }"#,
    );
    let n = 5000;
    let x: Vec<u8> = (0..n).map(|i| (i * i % 251) as u8).collect();
    let (px, bins) = (bench.upload(&x), bench.upload(&[0_u32; 16]));
    bench.launch("histogram", 7, 96, &[Arg::U64(px), Arg::U64(bins), Arg::I32(n)]);
    let counts: Vec<u32> = bench.download(bins, 16);
    let mut expected = vec![0; 16];
    x.iter().for_each(|&x| expected[x as usize % 16] += 1);
    assert_eq!(counts, expected);
    let (total, bytes) = bench.module.global("total").expect("the variable");
    assert_eq!(bytes, 4);
    assert_eq!(bench.download::<u32>(total, 1), [7 + n as u32]);
}

#[test]
fn locks_between_threads_of_a_warp_make_progress() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void count(int* lock, int* sum) {
            bool done = false;
            while (!done) {
                if (atomicCAS(lock, 0, 1) == 0) {
                    *(volatile int*)sum += 1;
                    __threadfence();
                    atomicExch(lock, 0);
                    done = true;
                }
            }
        }"#,
    );
    let (lock, sum) = (bench.upload(&[0_i32]), bench.upload(&[0_i32]));
    bench.launch("count", 3, 64, &[Arg::U64(lock), Arg::U64(sum)]);
    assert_eq!(bench.download::<i32>(sum, 1), [192]);
}

#[test]
fn device_functions_local_arrays_and_math() {
    let bench = Bench::cuda(
        r#"
        __constant__ float table[4] = {1.f, 2.f, 4.f, 8.f};
        __device__ __noinline__ float helper(float x, const float* t) {
            float local[8];
            for (int i = 0; i < 8; ++i) local[i] = x * t[i & 3];
            float s = 0.f;
            for (int i = 0; i < 8; ++i) s += local[(i * 5 + (int)x) & 7];
            return s;
        }
        extern "C" __global__ void math(float* out) {
            float x = threadIdx.x * 0.25f;
            float* o = out + 8 * threadIdx.x;
            o[0] = helper(x, table);
            o[1] = expf(x);
            o[2] = sinf(100.f * x);
            o[3] = logf(x + 1.f);
            o[4] = tanhf(x);
            o[5] = x / 3.f;
            o[6] = rsqrtf(x + 1.f);
            o[7] = powf(x, 1.7f);
        }"#,
    );
    let out = bench.room::<f32>(256);
    bench.launch("math", 1, 32, &[Arg::U64(out)]);
    let values: Vec<f32> = bench.download(out, 256);
    for thread in 0..32 {
        let x = f64::from(thread as f32 * 0.25);
        let expected = [
            30.0 * x,
            x.exp(),
            (100.0 * x).sin(),
            (x + 1.0).ln(),
            x.tanh(),
            f64::from(x as f32 / 3.0),
            1.0 / (x + 1.0).sqrt(),
            x.powf(f64::from(1.7_f32)),
        ];
        for (at, expected) in expected.into_iter().enumerate() {
            let found = f64::from(values[8 * thread + at]);
            let error = (found - expected).abs() / expected.abs().max(1e-3);
            assert!(error < 1e-6, "value {at} at {x}: {found} is not {expected}");
        }
    }
}

#[test]
fn switches_and_64_bit_integers() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void mix(unsigned long long* out, long long d) {
            unsigned long long x = threadIdx.x * 0x123456789abcdefull;
            switch (threadIdx.x % 8) {
                case 0: x = __umul64hi(x, x); break;
                case 1: x = x / 12345; break;
                case 2: x = x % 12345; break;
                case 3: x = (unsigned long long)((long long)(x << 3) / d); break;
                case 4: x = __popcll(x) | __clzll(x) << 8; break;
                case 5: x = __brevll(x); break;
                case 6: x = (unsigned long long)(double)x; break;
                default: x = x >> (threadIdx.x / 2) ^ x << 7;
            }
            out[threadIdx.x] = x;
        }"#,
    );
    let out = bench.room::<u64>(32);
    bench.launch("mix", 1, 32, &[Arg::U64(out), Arg::U64(-77_i64 as u64)]);
    for (thread, found) in bench.download::<u64>(out, 32).into_iter().enumerate() {
        let x = (thread as u64).wrapping_mul(0x123_4567_89ab_cdef);
        let expected = match thread % 8 {
            0 => ((u128::from(x) * u128::from(x)) >> 64) as u64,
            1 => x / 12345,
            2 => x % 12345,
            3 => ((x << 3) as i64 / -77) as u64,
            4 => u64::from(x.count_ones()) | u64::from(x.leading_zeros()) << 8,
            5 => x.reverse_bits(),
            6 => x as f64 as u64,
            _ => x >> (thread / 2) ^ x << 7,
        };
        assert_eq!(found, expected, "thread {thread}");
    }
}

#[test]
fn blocks_that_wait_for_later_blocks_make_progress() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void chain(volatile int* flags) {
            if (threadIdx.x == 0) {
                int last = gridDim.x - 1, me = blockIdx.x;
                if (me != last) while (flags[me + 1] == 0) {}
                __threadfence();
                flags[me] = 1;
            }
        }"#,
    );
    let flags = bench.upload(&[0_i32; 6]);
    bench.launch("chain", 6, 32, &[Arg::U64(flags)]);
    assert_eq!(bench.download::<i32>(flags, 6), [1; 6]);
}

#[test]
fn printing_counts_its_arguments() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void hello(int* out) {
            *out = printf("thread %d of %s: %6.2f and %llx\n", 3, "block", 1.5, 0x123456789abull);
        }"#,
    );
    let out = bench.room::<i32>(1);
    bench.launch("hello", 1, 1, &[Arg::U64(out)]);
    assert_eq!(bench.download::<i32>(out, 1), [4]);
}

#[test]
fn every_seed_and_thread_count_gives_the_same_sums() {
    let source = r#"
        extern "C" __global__ void scan(const int* x, int* out) {
            __shared__ int s[256];
            int i = threadIdx.x;
            s[i] = x[256 * blockIdx.x + i];
            for (int d = 1; d < 256; d *= 2) {
                __syncthreads();
                int y = i >= d ? s[i - d] : 0;
                __syncthreads();
                s[i] += y;
            }
            out[256 * blockIdx.x + i] = s[i];
        }"#;
    let x: Vec<i32> = (0..1024).map(|i| i * 37 % 101).collect();
    for (seed, threads) in [(0, 1), (1, 1), (2, 2), (3, 4)] {
        let config = cuda_emulator::Config { seed, threads, ..Default::default() };
        let bench = Bench::cuda_with(source, config);
        let (px, out) = (bench.upload(&x), bench.room::<i32>(1024));
        bench.launch("scan", 4, 256, &[Arg::U64(px), Arg::U64(out)]);
        let sums: Vec<i32> = bench.download(out, 1024);
        for (block, sums) in sums.chunks(256).enumerate() {
            let mut sum = 0;
            for (i, &found) in sums.iter().enumerate() {
                sum += x[256 * block + i];
                assert_eq!(found, sum, "element {i} of block {block}, seed {seed}");
            }
        }
    }
}

/// Lanes that are converged may belong to groups of their own, as tiles of cooperative groups do.
#[test]
fn groups_of_a_warp_shuffle_side_by_side() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void k(int* out) {
            int lane = threadIdx.x;
            unsigned tile = 0xffu << (lane & 24);
            int sum = lane;
            for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(tile, sum, step);
            // Half of a tile is elsewhere for a while; the other tiles go on.
            if ((lane & 4) && lane < 8) sum += 1000;
            __syncwarp(tile);
            unsigned odd = __ballot_sync(tile, sum & 1);
            out[lane] = sum + (odd ? 1 : 0);
        }"#,
    );
    let out = bench.room::<i32>(32);
    bench.launch("k", 1, 32, &[Arg::U64(out)]);
    let expected = |lane: i32| {
        let tile = lane / 8;
        8 * 8 * tile + 28 + if (4..8).contains(&lane) { 1000 } else { 0 }
    };
    assert_eq!(bench.download::<i32>(out, 32), (0..32).map(expected).collect::<Vec<_>>());
}
