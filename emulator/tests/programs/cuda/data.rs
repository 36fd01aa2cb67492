//! Where data lies: constants, variables of the module, shared memory, and how it is accessed.

use super::builds::each;
use crate::support::{Arg, Bench};
use cuda_emulator::FaultKind;

#[test]
fn initialised_variables() {
    let source = r#"
        __constant__ int fixed[5] = {1, -2, 3, -4, 5};
        __device__ double numbers[3] = {1.5, 2.5, -3.25};
        __device__ const char* names[2] = {"ab", "cde"};
        __device__ short grid[2][3] = {{1, -2, 3}, {4, 5, -6}};
        __device__ struct { int a; char b; double c; const int* d; } mixed = {7, 'x', 2.5, &fixed[2]};
        __device__ double* second = &numbers[1];
        __device__ float zeros[1000];
        __device__ unsigned char bytes[5] = {250, 1, 2};
        __device__ unsigned long long wide = 0xfedcba9876543210ull;
        static __device__ int counter = 100;
        extern "C" __global__ void k(double* out, int i) {
            out[0] = fixed[i];
            out[1] = numbers[i % 3];
            out[2] = names[i & 1][1];
            out[3] = grid[i & 1][i % 3];
            out[4] = mixed.a + mixed.b + mixed.c;
            out[5] = *mixed.d;
            out[6] = *second;
            out[7] = zeros[i * 100];
            out[8] = bytes[0] + bytes[i];
            out[9] = (double)(wide >> 32);
            out[10] = ++counter;
        }"#;
    each(source, |bench| {
        let out = bench.room::<f64>(11);
        for round in 1..3 {
            bench.launch("k", 1, 1, &[Arg::U64(out), Arg::I32(3)]);
            let expected = [
                -4.0,
                1.5,
                f64::from(b'd'),
                4.0,
                7.0 + f64::from(b'x') + 2.5,
                3.0,
                2.5,
                0.0,
                250.0,
                f64::from(0xfedc_ba98_u32),
                100.0 + f64::from(round),
            ];
            assert_eq!(bench.download::<f64>(out, 11), expected);
        }
    });
}

#[test]
fn variables_that_the_host_writes() {
    let source = r#"
        extern "C" {
            __constant__ float scale;
            __device__ int table[4];
            __global__ void k(float* out) { out[threadIdx.x] = scale * table[threadIdx.x]; }
        }"#;
    each(source, |bench| {
        let (scale, bytes) = bench.module.global("scale").expect("the variable");
        assert_eq!(bytes, 4);
        bench.device.write(scale, &2.5_f32.to_le_bytes()).expect("the variable");
        let (table, bytes) = bench.module.global("table").expect("the variable");
        assert_eq!(bytes, 16);
        for at in 0..4 {
            let value = at as i32 - 2;
            bench.device.write(table + 4 * at, &value.to_le_bytes()).expect("the variable");
        }
        let out = bench.room::<f32>(4);
        bench.launch("k", 1, 4, &[Arg::U64(out)]);
        assert_eq!(bench.download::<f32>(out, 4), [-5.0, -2.5, 0.0, 2.5]);
    });
}

#[test]
fn constants_cannot_be_written() {
    let bench = Bench::cuda(
        r#"
        extern "C" {
            __constant__ int fixed = 3;
            __global__ void k(int* out, int* constant) { *out = fixed; *constant = 4; }
        }"#,
    );
    let out = bench.room::<i32>(1);
    let (fixed, _) = bench.module.global("fixed").expect("the variable");
    let fault = bench.fault("k", 1, 1, &[Arg::U64(out), Arg::U64(fixed)]);
    assert_eq!(fault.kind, FaultKind::IllegalAccess);
    assert_eq!(bench.download::<i32>(out, 1), [3]);
}

#[test]
fn shared_memory_static_and_dynamic() {
    let source = r#"
        extern __shared__ double dynamic[];
        extern "C" __global__ void k(int* out, int n) {
            __shared__ short fixed[64];
            int i = threadIdx.x;
            int* words = (int*)&dynamic[n];
            dynamic[i] = i + 0.5;
            words[i] = 3 * i;
            fixed[i] = (short)(7 * i);
            __syncthreads();
            int j = n - 1 - i;
            unsigned bytes;
            asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
            out[2 * i] = (int)(2 * dynamic[j]) + words[j] + fixed[j];
            out[2 * i + 1] = bytes;
        }"#;
    each(source, |bench| {
        let out = bench.room::<i32>(128);
        let args = [Arg::U64(out), Arg::I32(64)];
        bench.try_launch("k", 1, 64, 64 * 12, &args).unwrap_or_else(|error| panic!("{error}"));
        let found: Vec<i32> = bench.download(out, 128);
        for (i, pair) in (0..).zip(found.chunks(2)) {
            let j = 63 - i;
            assert_eq!(pair, [2 * j + 1 + 3 * j + 7 * j, 64 * 12]);
        }
    });
}

#[test]
fn spaces_of_addresses() {
    let source = r#"
        __constant__ int fixed = 5;
        __device__ int variable = 6;
        __device__ __noinline__ int read(const int* x) { return *x; }
        extern "C" __global__ void k(int* out, int n) {
            __shared__ int shared;
            int local = n, i = threadIdx.x;
            if (i == 0) shared = 8;
            __syncthreads();
            // One load, from a space that differs by thread.
            const int* places[5] = {&fixed, &variable, &shared, &local, out + 32};
            out[i] = read(places[i % 5]);
            const int* at = places[i % 5];
            out[i + 64] = __isConstant(at) + 2 * __isGlobal(at) + 4 * __isShared(at)
                + 8 * __isLocal(at);
            size_t offset = __cvta_generic_to_shared(&shared);
            int again;
            asm volatile("ld.shared.s32 %0, [%1];" : "=r"(again) : "r"((unsigned)offset));
            out[i + 128] = again + (&shared == __cvta_shared_to_generic(offset));
        }"#;
    each(source, |bench| {
        let mut initial = [0_i32; 192];
        initial[32] = 9;
        let out = bench.upload(&initial);
        bench.launch("k", 1, 32, &[Arg::U64(out), Arg::I32(7)]);
        let found: Vec<i32> = bench.download(out, 192);
        for i in 0..32 {
            assert_eq!(found[i], [5, 6, 8, 7, 9][i % 5], "thread {i}");
            let space = [1, 2, 4, 8, 2][i % 5];
            assert_eq!(found[i + 64], space, "thread {i}");
            assert_eq!(found[i + 128], 9, "thread {i}");
        }
    });
}

#[test]
fn vectors_and_small_types() {
    let source = r#"
        struct __attribute__((packed)) Packed { char a; int b; short c; };
        struct Fields { unsigned a : 3; int b : 7; unsigned c : 22; };
        union Bits { float f; unsigned u; unsigned short h[2]; };
        extern "C" __global__ void k(const float4* f, const uchar4* c, const short2* h,
                                     const double2* d, const longlong2* l, float* out) {
            int i = threadIdx.x;
            float* o = out + 12 * i;
            float4 a = f[i];
            ((float4*)o)[0] = make_float4(a.w, a.z, a.y, a.x);
            uchar4 b = c[i];
            o[4] = b.x + 2 * b.y + 3 * b.z + 4 * b.w;
            short2 e = h[i];
            o[5] = e.x - e.y;
            double2 g = d[i];
            o[6] = (float)(g.x * g.y);
            longlong2 m = l[i];
            o[7] = (float)(m.x - m.y);
            Packed packed = {(char)i, i * 1000, (short)-i};
            const volatile Packed* p = &packed;
            o[8] = p->a + p->b + p->c;
            Fields fields = {(unsigned)i, -i, 1u << 20};
            o[9] = fields.a + fields.b + (fields.c >> 20);
            Bits bits;
            bits.f = a.x;
            o[10] = (float)(bits.h[1] + (bits.u & 0xff));
            o[11] = (bool)(i & 4) + (signed char)(200 + i);
        }"#;
    each(source, |bench| {
        let floats: Vec<f32> = (0..64).map(|i| i as f32 * 1.25 - 7.0).collect();
        let bytes: Vec<u8> = (0..64).map(|i| (i * 37) as u8).collect();
        let shorts: Vec<i16> = (0..32).map(|i| i * 999 - 12_000).collect();
        let doubles: Vec<f64> = (0..32).map(|i| f64::from(i) - 9.5).collect();
        let longs: Vec<i64> = (0..32).map(|i| i * i - 40).collect();
        let out = bench.room::<f32>(16 * 12);
        let inputs = [
            bench.upload(&floats),
            bench.upload(&bytes),
            bench.upload(&shorts),
            bench.upload(&doubles),
            bench.upload(&longs),
            out,
        ];
        bench.launch("k", 1, 16, &inputs.map(Arg::U64));
        for (i, found) in bench.download::<f32>(out, 16 * 12).chunks(12).enumerate() {
            let n = i as i32;
            let a = &floats[4 * i..4 * i + 4];
            let weights = bytes[4 * i..4 * i + 4].iter().zip([1.0, 2.0, 3.0, 4.0]);
            let bits = a[0].to_bits();
            let expected = [
                a[3],
                a[2],
                a[1],
                a[0],
                weights.map(|(byte, weight)| f32::from(*byte) * weight).sum(),
                f32::from(shorts[2 * i]) - f32::from(shorts[2 * i + 1]),
                (doubles[2 * i] * doubles[2 * i + 1]) as f32,
                (longs[2 * i] - longs[2 * i + 1]) as f32,
                (n + n * 1000 - n) as f32,
                (n % 8 - n + 1) as f32,
                ((bits >> 16) + (bits & 0xff)) as f32,
                (n >> 2 & 1) as f32 + f32::from((200 + i) as u8 as i8),
            ];
            assert_eq!(found, expected, "thread {i}");
        }
    });
}
