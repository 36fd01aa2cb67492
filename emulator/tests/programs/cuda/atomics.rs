//! Atomic operations that many threads contend for.

use half::{bf16, f16};

use super::builds::each;
use crate::support::{Arg, Bench, compile_for};
use cuda_emulator::{Config, Device, profile};

/// Threads in each launch: 8 blocks of 64.
const THREADS: u32 = 512;

/// Runs `k(T* x)` of each build on initial values and returns what is left of them.
fn each_leaves<T>(source: &str, initial: &[T], expected: &[T])
where
    T: Copy + Default + PartialEq + std::fmt::Debug,
{
    each(source, |bench| {
        let x = bench.upload(initial);
        bench.launch("k", 8, 64, &[Arg::U64(x)]);
        assert_eq!(bench.download::<T>(x, initial.len()), expected);
    });
}

#[test]
fn signed_integers() {
    each_leaves(
        r#"
        extern "C" __global__ void k(int* x) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            atomicAdd(x, i);
            atomicSub(x + 1, i);
            atomicMin(x + 2, -i);
            atomicMax(x + 3, i);
            atomicAnd(x + 4, ~(1 << i % 20));
            atomicOr(x + 5, 1 << i % 20);
            atomicXor(x + 6, i);
            atomicCAS(x + 7, 1, 2);
            atomicAdd_block(x + 8, 1);
            atomicAdd_system(x + 9, 1);
            atomicMin_block(x + 10, i - 100);
        }"#,
        &[0, 0, 0, 0, -1, 0, 5, 1, 0, 0, 0_i32],
        &[
            511 * 256,
            -511 * 256,
            -511,
            511,
            !0xf_ffff,
            0xf_ffff,
            5,
            2,
            THREADS as i32,
            THREADS as i32,
            -100,
        ],
    );
}

#[test]
fn unsigned_integers() {
    let source = r#"
        extern "C" __global__ void k(unsigned* x) {
            unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
            atomicInc(x, 9);
            atomicDec(x + 1, 9);
            atomicMin(x + 2, i + 0x80000000u);
            atomicMax(x + 3, i + 0x80000000u);
            // Each thread takes a place of its own.
            unsigned place = atomicAdd(x + 4, 1);
            atomicAdd(x + 5, place);
            // What was exchanged comes back, except what is left.
            unsigned back = atomicExch(x + 6, i);
            atomicAdd(x + 7, back);
        }"#;
    each(source, |bench| {
        let x = bench.upload(&[0, 0, u32::MAX, 0, 0, 0, 1000, 0]);
        bench.launch("k", 8, 64, &[Arg::U64(x)]);
        let found: Vec<u32> = bench.download(x, 8);
        let top = 1 << 31;
        assert_eq!(found[..6], [2, 8, top, top + 511, THREADS, 511 * 256]);
        assert_eq!(found[6] + found[7], 1000 + 511 * 256);
    });
}

#[test]
fn long_integers() {
    each_leaves(
        r#"
        extern "C" __global__ void k(unsigned long long* x) {
            unsigned long long i = blockIdx.x * blockDim.x + threadIdx.x;
            atomicAdd(x, i << 30);
            atomicMin(x + 1, i + (1ull << 63));
            atomicMax(x + 2, i + (1ull << 63));
            atomicMin((long long*)x + 3, (long long)(i - (1ull << 63)));
            atomicMax((long long*)x + 4, (long long)i);
            atomicAnd(x + 5, ~(1ull << i % 40));
            atomicOr(x + 6, 1ull << i % 40);
            atomicXor(x + 7, i << 40);
            atomicCAS(x + 8, 1ull << 50, 2ull);
            atomicMax_system((long long*)x + 9, -(long long)i);
        }"#,
        &[0, u64::MAX, 0, 0, 1 << 63, u64::MAX, 0, 0, 1 << 50, 1 << 63],
        &[
            (511 * 256) << 30,
            1 << 63,
            (1 << 63) + 511,
            1 << 63,
            511,
            !0xff_ffff_ffff,
            0xff_ffff_ffff,
            0,
            2,
            0,
        ],
    );
}

#[test]
fn floating_point() {
    // Multiples of a quarter, whose sums are exact.
    each_leaves(
        r#"
        extern "C" __global__ void k(float* x) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            __shared__ float sum;
            if (threadIdx.x == 0) sum = 0.f;
            __syncthreads();
            atomicAdd(x, 0.25f * i);
            atomicAdd(&sum, 0.5f);
            __syncthreads();
            if (threadIdx.x == 0) atomicAdd(x + 1, sum);
            if (i == 5) atomicExch(x + 2, 7.5f);
        }"#,
        &[1.0_f32, 0.0, 0.0],
        &[1.0 + 0.25 * (511 * 256) as f32, 256.0, 7.5],
    );
    each_leaves(
        r#"
        extern "C" __global__ void k(double* x) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            atomicAdd(x, 1e9 + 0.25 * i);
            if (i == 6) atomicExch((unsigned long long*)(x + 1), __double_as_longlong(-1.5));
        }"#,
        &[0.0_f64, 1.0],
        &[512e9 + 0.25 * f64::from(511 * 256), -1.5],
    );
}

#[test]
fn loops_of_compare_and_swap() {
    each_leaves(
        r#"
        extern "C" __global__ void k(double* x) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            // A product of powers of two: as many halves as doubles.
            unsigned long long* bits = (unsigned long long*)x;
            unsigned long long old = *(volatile unsigned long long*)bits, assumed;
            do {
                assumed = old;
                double next = __longlong_as_double(assumed) * (i % 2 ? 2.0 : 0.5);
                old = atomicCAS(bits, assumed, __double_as_longlong(next));
            } while (assumed != old);
            // The largest float, by comparing it as an integer.
            float value = 0.5f * ((i * 37) % 512);
            atomicMax((int*)(x + 1), __float_as_int(value));
            // Sixteen bits each.
            unsigned short* half = (unsigned short*)(x + 2) + i % 4;
            unsigned short seen = *(volatile unsigned short*)half, expected;
            do {
                expected = seen;
                seen = atomicCAS(half, expected, (unsigned short)(expected + 1));
            } while (seen != expected);
        }"#,
        &[3.0, 0.0, 0.0].map(f64::to_bits),
        &[3.0_f64.to_bits(), 255.5_f32.to_bits().into(), 0x0080_0080_0080_0080],
    );
}

#[test]
fn halves_by_inline_ptx() {
    let source = r#"
        extern "C" __global__ void k(unsigned* x) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            // 1 and 0.5; sums up to 512 and 256 are exact.
            asm volatile("red.global.add.noftz.f16x2 [%0], %1;" :: "l"(x), "r"(0x38003c00));
            unsigned old;
            asm volatile("atom.global.add.noftz.f16x2 %0, [%1], %2;"
                         : "=r"(old) : "l"(x + 1), "r"(0x3c003c00));
            unsigned short one = 0x3c00;
            asm volatile("red.global.add.noftz.f16 [%0], %1;"
                         :: "l"((unsigned short*)x + 4 + i % 2), "h"(one));
        }"#;
    let pair = |low: f32, high: f32| {
        u32::from(f16::from_f32(high).to_bits()) << 16 | u32::from(f16::from_f32(low).to_bits())
    };
    each_leaves(
        source,
        &[0_u32, 0, 0],
        &[pair(512.0, 256.0), pair(512.0, 512.0), pair(256.0, 256.0)],
    );
}

#[test]
fn vectors_on_the_h100() {
    let source = r#"
        extern "C" __global__ void k(float* x, float* sums) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            float4 old = atomicAdd((float4*)x, make_float4(1.f, 2.f, 3.f, 4.f));
            float2 other = atomicAdd((float2*)(x + 4), make_float2(0.5f, i));
            atomicAdd(sums, old.x + old.w);
            atomicAdd(sums + 1, other.x);
            asm volatile("red.global.add.noftz.v4.f16x2 [%0], {%1, %1, %1, %2};"
                         :: "l"(x + 8), "r"(0x3c003c00), "r"(0x40003c00));
            asm volatile("red.global.add.noftz.v2.bf16x2 [%0], {%1, %1};"
                         :: "l"(x + 12), "r"(0x3f803f80));
        }"#;
    let device = Device::with_config(profile::H100, Config::default());
    let module = device.load_module(&compile_for("compute_90", &[], source));
    let bench = Bench { module: module.unwrap_or_else(|error| panic!("{error}")), device };
    let (x, sums) = (bench.upload(&[0_f32; 16]), bench.upload(&[0_f32; 2]));
    bench.launch("k", 2, 64, &[Arg::U64(x), Arg::U64(sums)]);
    let found: Vec<f32> = bench.download(x, 16);
    assert_eq!(found[..6], [128.0, 256.0, 384.0, 512.0, 64.0, 127.0 * 64.0]);
    let halves = found[8..12].iter().flat_map(|word| {
        let bits = word.to_bits();
        [f16::from_bits(bits as u16), f16::from_bits((bits >> 16) as u16)].map(f16::to_f32)
    });
    assert_eq!(
        halves.collect::<Vec<_>>(),
        [128.0, 128.0, 128.0, 128.0, 128.0, 128.0, 128.0, 256.0]
    );
    let short = bf16::from_f32(128.0).to_bits();
    let pair = u32::from(short) << 16 | u32::from(short);
    assert_eq!(found[12..14].iter().map(|word| word.to_bits()).collect::<Vec<_>>(), [pair; 2]);
    // Before each of the 128 additions.
    let before: f32 = (0..128).map(|n| n as f32).sum();
    assert_eq!(bench.download::<f32>(sums, 2), [5.0 * before, 0.5 * before]);
}

#[test]
fn loads_and_stores_with_cache_operators() {
    each_leaves(
        r#"
        extern "C" __global__ void k(int* x) {
            if (blockIdx.x || threadIdx.x) return;
            int sum = __ldg(x) + __ldcg(x + 1) + __ldca(x + 2) + __ldcs(x + 3) + __ldlu(x + 4)
                + __ldcv(x + 5);
            __stwb(x + 6, sum);
            __stcg(x + 7, sum + 1);
            __stcs(x + 8, sum + 2);
            __stwt(x + 9, sum + 3);
            int2 pair = __ldg((const int2*)x);
            __stcs((int2*)(x + 10), pair);
            __threadfence_block();
            __threadfence();
            __threadfence_system();
        }"#,
        &[1, 2, 4, 8, 16, 32, 0, 0, 0, 0, 0, 0_i32],
        &[1, 2, 4, 8, 16, 32, 63, 64, 65, 66, 1, 2],
    );
}
