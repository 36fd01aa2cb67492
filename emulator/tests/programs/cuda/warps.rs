//! What threads do together: warp intrinsics, barriers, and clocks.

use super::builds::each;
use super::numbers::Random;
use crate::support::{Arg, Bench};

/// Runs `k(const unsigned* in, unsigned* out)` of each build with a warp, on random words of which
/// many are equal, and compares the `per_lane` results of each lane.
fn each_warp(source: &str, per_lane: usize, expected: fn(&[u32], usize) -> Vec<u32>) {
    let mut random = Random::new();
    let words: Vec<u32> = (0..32)
        .map(|_| match random.bits() % 3 {
            0 => random.bits() as u32,
            _ => (random.bits() % 4) as u32,
        })
        .collect();
    each(source, |bench| {
        let (input, out) = (bench.upload(&words), bench.room::<u32>(32 * per_lane));
        bench.launch("k", 1, 32, &[Arg::U64(input), Arg::U64(out)]);
        for (lane, found) in bench.download::<u32>(out, 32 * per_lane).chunks(per_lane).enumerate()
        {
            assert_eq!(found, expected(&words, lane), "lane {lane} of {words:?}");
        }
    });
}

#[test]
fn votes_and_matches() {
    let source = r#"
        extern "C" __global__ void k(const unsigned* in, unsigned* out) {
            int i = threadIdx.x, same;
            unsigned x = in[i], all = ~0u, *o = out + 8 * i;
            o[0] = __ballot_sync(all, x > 2);
            o[1] = __any_sync(all, x == 3) + 2 * __all_sync(all, x < 4) + 4 * __all_sync(all, 1);
            o[2] = __match_any_sync(all, x);
            o[3] = __match_any_sync(all, (unsigned long long)x << 33);
            o[4] = __match_all_sync(all, x, &same);
            o[4] ^= same ? 5 : 0;
            o[5] = __match_all_sync(all, 7.5, &same);
            o[5] ^= same ? 5 : 0;
            // Halves of the warp on their own.
            unsigned half = i < 16 ? 0xffff : 0xffff0000;
            if (i < 16) o[6] = __ballot_sync(half, x & 1); else o[6] = __ballot_sync(half, x & 2);
            o[7] = __activemask();
        }"#;
    each_warp(source, 8, |words, lane| {
        let ballot = |test: &dyn Fn(usize, u32) -> bool| {
            (0..32).filter(|&i| test(i, words[i])).fold(0, |bits, i| bits | 1_u32 << i)
        };
        let equal = ballot(&|_, x| x == words[lane]);
        let half = match lane {
            0..16 => ballot(&|i, x| i < 16 && x & 1 != 0),
            _ => ballot(&|i, x| i >= 16 && x & 2 != 0),
        };
        vec![
            ballot(&|_, x| x > 2),
            u32::from(words.contains(&3)) + 2 * u32::from(words.iter().all(|&x| x < 4)) + 4,
            equal,
            equal,
            if equal == u32::MAX { !5 } else { 0 },
            !5,
            half,
            u32::MAX,
        ]
    });
}

#[test]
fn shuffles() {
    let source = r#"
        extern "C" __global__ void k(const unsigned* in, unsigned* out) {
            int i = threadIdx.x;
            unsigned x = in[i], all = ~0u, *o = out + 10 * i;
            o[0] = __shfl_sync(all, x, i * 7);
            o[1] = __shfl_sync(all, x, i + 3, 8);
            o[2] = __shfl_up_sync(all, x, 5);
            o[3] = __shfl_up_sync(all, x, 3, 16);
            o[4] = __shfl_down_sync(all, x, 9);
            o[5] = __shfl_down_sync(all, x, 2, 4);
            o[6] = __shfl_xor_sync(all, x, 21);
            o[7] = (unsigned)__shfl_sync(all, (double)x, 31 - i);
            o[8] = (unsigned)(__shfl_xor_sync(all, (unsigned long long)x << 20, 1) >> 20);
            o[9] = __float_as_uint(__shfl_down_sync(all, __uint_as_float(x), 1, 32));
        }"#;
    each_warp(source, 10, |words, i| {
        let up = |by: usize, width: usize| if i % width >= by { words[i - by] } else { words[i] };
        let down = |by: usize, width: usize| {
            if i % width + by < width { words[i + by] } else { words[i] }
        };
        vec![
            words[i * 7 % 32],
            words[i / 8 * 8 + (i + 3) % 8],
            up(5, 32),
            up(3, 16),
            down(9, 32),
            down(2, 4),
            words[i ^ 21],
            words[31 - i],
            words[i ^ 1],
            down(1, 32),
        ]
    });
}

#[test]
fn reductions_of_a_warp() {
    let source = r#"
        extern "C" __global__ void k(const unsigned* in, unsigned* out) {
            int i = threadIdx.x;
            unsigned x = in[i], all = ~0u, *o = out + 8 * i;
            o[0] = __reduce_add_sync(all, x);
            o[1] = __reduce_min_sync(all, x);
            o[2] = __reduce_max_sync(all, x);
            o[3] = __reduce_min_sync(all, (int)x);
            o[4] = __reduce_max_sync(all, (int)x);
            o[5] = __reduce_and_sync(all, x);
            o[6] = __reduce_or_sync(all, x);
            o[7] = __reduce_xor_sync(all, x);
        }"#;
    each_warp(source, 8, |words, _| {
        let all = || words.iter().copied();
        let signed = || words.iter().map(|&x| x as i32);
        vec![
            all().fold(0, u32::wrapping_add),
            all().min().expect("a lane"),
            all().max().expect("a lane"),
            signed().min().expect("a lane") as u32,
            signed().max().expect("a lane") as u32,
            all().fold(u32::MAX, |a, b| a & b),
            all().fold(0, |a, b| a | b),
            all().fold(0, |a, b| a ^ b),
        ]
    });
}

#[test]
fn masks_and_numbers_of_threads() {
    let source = r#"
        extern "C" __global__ void k(const unsigned* in, unsigned* out) {
            int i = threadIdx.x;
            unsigned* o = out + 7 * i;
            asm("mov.u32 %0, %%lanemask_lt;" : "=r"(o[0]));
            asm("mov.u32 %0, %%lanemask_ge;" : "=r"(o[1]));
            asm("mov.u32 %0, %%lanemask_eq;" : "=r"(o[2]));
            asm("mov.u32 %0, %%laneid;" : "=r"(o[3]));
            asm("mov.u32 %0, %%nwarpid;" : "=r"(o[4]));
            o[4] = o[4] > 0;
            o[5] = warpSize + blockDim.x + gridDim.x + blockIdx.y;
            o[6] = in[i];
        }"#;
    each_warp(source, 7, |words, i| {
        let below = (1_u64 << i) as u32 - 1;
        vec![below, !below, 1 << i, i as u32, 1, 65, words[i]]
    });
}

#[test]
fn barriers_that_reduce() {
    let source = r#"
        extern "C" __global__ void k(int* out) {
            int i = threadIdx.x;
            out[3 * i] = __syncthreads_count(i % 3 == 0);
            out[3 * i + 1] = __syncthreads_and(i < 96) + 2 * __syncthreads_and(i < 95);
            out[3 * i + 2] = __syncthreads_or(i == 77) + 2 * __syncthreads_or(i == 96);
        }"#;
    each(source, |bench| {
        let out = bench.room::<i32>(288);
        bench.launch("k", 1, 96, &[Arg::U64(out)]);
        for found in bench.download::<i32>(out, 288).chunks(3) {
            assert_eq!((found[0], found[1] != 0, found[2] != 0), (32, true, true));
            assert_eq!((found[1] & 2, found[2] & 2), (0, 0));
        }
    });
}

#[test]
fn named_barriers_between_producers_and_consumers() {
    let source = r#"
        extern "C" __global__ void k(int* out) {
            __shared__ int item[32];
            int lane = threadIdx.x % 32;
            for (int round = 0; round < 5; ++round) {
                if (threadIdx.x < 32) {
                    item[lane] = 100 * round + lane;
                    asm volatile("barrier.cta.arrive 1, 64;" ::: "memory");
                    asm volatile("barrier.cta.sync 2, 64;" ::: "memory");
                } else {
                    asm volatile("barrier.cta.sync 1, 64;" ::: "memory");
                    out[32 * round + lane] = item[31 - lane];
                    asm volatile("barrier.cta.arrive 2, 64;" ::: "memory");
                }
            }
        }"#;
    each(source, |bench| {
        let out = bench.room::<i32>(160);
        bench.launch("k", 1, 64, &[Arg::U64(out)]);
        let expected: Vec<i32> = (0..160).map(|i| 100 * (i / 32) + 31 - i % 32).collect();
        assert_eq!(bench.download::<i32>(out, 160), expected);
    });
}

#[test]
fn a_barrier_of_the_grid() {
    let source = r#"
        __device__ unsigned arrived, generation;
        __device__ void grid_barrier() {
            __syncthreads();
            if (threadIdx.x == 0) {
                unsigned before = *(volatile unsigned*)&generation;
                __threadfence();
                if (atomicAdd(&arrived, 1) == gridDim.x - 1) {
                    arrived = 0;
                    __threadfence();
                    atomicAdd(&generation, 1);
                } else {
                    while (*(volatile unsigned*)&generation == before) __nanosleep(50);
                }
                __threadfence();
            }
            __syncthreads();
        }
        extern "C" __global__ void k(volatile int* x, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            for (int d = 1; d < n; d *= 2) {
                int y = i >= d ? x[i - d] : 0;
                grid_barrier();
                x[i] += y;
                grid_barrier();
            }
        }"#;
    each(source, |bench| {
        let ones = [1_i32; 192];
        let x = bench.upload(&ones);
        let function = bench.module.function("k").expect("the kernel");
        let mut params = x.to_le_bytes().to_vec();
        params.extend(192_i32.to_le_bytes());
        let launch = cuda_emulator::Launch {
            grid: [6, 1, 1],
            block: [32, 1, 1],
            dynamic_shared: 0,
            dynamic_shared_limit: 0,
            params: &params,
            cooperative: true,
        };
        bench.device.launch(&function, &launch).unwrap_or_else(|error| panic!("{error}"));
        let sums: Vec<i32> = (1..=192).collect();
        assert_eq!(bench.download::<i32>(x, 192), sums);
    });
}

/// Blocks that draw numbers, each of which waits for the one before it, and in which one warp waits
/// while the others are at a barrier.
#[test]
fn blocks_that_wait_for_others() {
    let source = r#"
        __device__ unsigned drawn, done;
        extern "C" __global__ void k(int* x) {
            __shared__ unsigned number;
            if (threadIdx.x == 0) {
                number = atomicAdd(&drawn, 1);
                unsigned before;
                do {
                    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(before) : "l"(&done));
                    if (before < number) __nanosleep(100);
                } while (before < number);
            }
            __syncthreads();
            x[threadIdx.x] = x[threadIdx.x] * 3 + number;
            __syncthreads();
            if (threadIdx.x == 0) {
                __threadfence();
                atomicAdd(&done, 1);
            }
        }"#;
    each(source, |bench| {
        let x = bench.upload(&[0_i32; 96]);
        bench.launch("k", 9, 96, &[Arg::U64(x)]);
        let expected = (0..9).fold(0, |sum, number| sum * 3 + number);
        assert_eq!(bench.download::<i32>(x, 96), [expected; 96]);
    });
}

#[test]
fn clocks() {
    let source = r#"
        extern "C" __global__ void k(long long* out) {
            long long start = clock64();
            unsigned low = clock();
            unsigned long long time, later;
            asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
            for (int i = 0; i < 100; ++i) __nanosleep(100);
            asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(later));
            out[0] = clock64() - start;
            out[1] = (unsigned)clock() - low;
            out[2] = (long long)(later - time);
        }"#;
    each(source, |bench| {
        let out = bench.room::<i64>(3);
        bench.launch("k", 1, 1, &[Arg::U64(out)]);
        let found: Vec<i64> = bench.download(out, 3);
        assert!(found.iter().all(|&passed| passed > 0), "{found:?}");
    });
}

#[test]
fn asynchronous_copies_and_matrices() {
    // The forms that CUDA's own headers use, by inline PTX.
    let source = r#"
        extern "C" __global__ void k(const float4* in, float* out) {
            __shared__ float4 tile[32];
            unsigned to = (unsigned)__cvta_generic_to_shared(&tile[threadIdx.x]);
            asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" :: "r"(to), "l"(in + threadIdx.x));
            asm volatile("cp.async.commit_group;");
            asm volatile("cp.async.wait_group 0;" ::: "memory");
            __syncthreads();
            const float* words = (const float*)tile;
            unsigned a[4], b[2];
            float c[4] = {0.f, 0.f, 0.f, 0.f};
            int lane = threadIdx.x;
            for (int i = 0; i < 4; ++i) {
                float x = words[(lane / 4 + 8 * (i & 1)) * 8 + lane % 4 + 4 * (i >> 1)];
                asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(a[i]) : "f"(x));
            }
            for (int i = 0; i < 2; ++i) {
                float x = lane / 4 == lane % 4 + 4 * i ? 2.f : 0.f;
                asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(b[i]) : "f"(x));
            }
            asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
            for (int i = 0; i < 4; ++i)
                out[(lane / 4 + 8 * (i >> 1)) * 8 + 2 * (lane % 4) + (i & 1)] = c[i];
        }"#;
    each(source, |bench: &Bench| {
        let x: Vec<f32> = (0..128).map(|i| i as f32 - 60.0).collect();
        let (input, out) = (bench.upload(&x), bench.room::<f32>(128));
        bench.launch("k", 1, 32, &[Arg::U64(input), Arg::U64(out)]);
        let doubled: Vec<f32> = x.iter().map(|x| 2.0 * x).collect();
        assert_eq!(bench.download::<f32>(out, 128), doubled);
    });
}
