//! Matrix instructions and asynchronous copies, as CUDA kernels write them.

use crate::support::{Arg, Bench};
use cuda_emulator::{Accumulator, Config};
use half::{bf16, f16};

const RULES: [Accumulator; 3] =
    [Accumulator::Sequential, Accumulator::ExactF64, Accumulator::AlignedTruncate];

/// One warp: the fragments are gathered by the formulas of the PTX ISA, element by element.
fn mma_source(element: &str, instruction: &str, k: usize) -> String {
    format!(
        r#"
        typedef unsigned short u16; typedef unsigned int u32;
        __device__ u32 pair(const u16* m, int i, int j) {{
            return (u32)m[i] | (u32)m[j] << 16;
        }}
        // a: 16 x K row-major, b: K x 8 row-major, c and d: 16 x 8 row-major
        extern "C" __global__ void mma(const u16* a, const u16* b, const float* c, float* d) {{
            const int K = {k};
            int lane = threadIdx.x, g = lane / 4, q = lane % 4;
            u32 ra[4], rb[2];
            for (int i = 0; i < K / 4; ++i) {{
                int row = g + 8 * (i & 1), col = 2 * q + 8 * (i >> 1);
                ra[i] = pair(a, row * K + col, row * K + col + 1);
            }}
            for (int i = 0; i < K / 8; ++i) {{
                int row = 2 * q + 8 * i;
                rb[i] = pair(b, row * 8 + g, (row + 1) * 8 + g);
            }}
            float r[4];
            for (int i = 0; i < 4; ++i) r[i] = c[(g + 8 * (i >> 1)) * 8 + 2 * q + (i & 1)];
            {instruction}
            for (int i = 0; i < 4; ++i) d[(g + 8 * (i >> 1)) * 8 + 2 * q + (i & 1)] = r[i];
        }} // {element}"#
    )
}

fn instruction(element: &str, k: usize) -> String {
    let d = r#""+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3])"#;
    let name = format!("mma.sync.aligned.m16n8k{k}.row.col.f32.{element}.{element}.f32");
    if k == 16 {
        format!(
            r#"asm volatile("{name} {{%0,%1,%2,%3}}, {{%4,%5,%6,%7}}, {{%8,%9}}, {{%0,%1,%2,%3}};"
               : {d} : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));"#
        )
    } else {
        format!(
            r#"asm volatile("{name} {{%0,%1,%2,%3}}, {{%4,%5}}, {{%6}}, {{%0,%1,%2,%3}};"
               : {d} : "r"(ra[0]), "r"(ra[1]), "r"(rb[0]));"#
        )
    }
}

/// Small integers, whose sums of products are exact: every element must be right to the bit under
/// each rule of addition.
fn check_mma(element: &str, k: usize, encode: fn(f32) -> u16) {
    let source = mma_source(element, &instruction(element, k), k);
    let a: Vec<f32> = (0..16 * k).map(|i| ((i * 7 + i / k * 3) % 23) as f32 - 11.0).collect();
    let b: Vec<f32> = (0..k * 8).map(|i| ((i * 5 + i / 8) % 19) as f32 - 9.0).collect();
    let c: Vec<f32> = (0..128).map(|i| i as f32 * 0.5 - 30.0).collect();
    for accumulator in RULES {
        let config = Config { accumulator, ..Config::default() };
        let bench = Bench::cuda_with(&source, config);
        let encoded = |values: &[f32]| values.iter().map(|&x| encode(x)).collect::<Vec<u16>>();
        let (pa, pb) = (bench.upload(&encoded(&a)), bench.upload(&encoded(&b)));
        let (pc, pd) = (bench.upload(&c), bench.room::<f32>(128));
        bench.launch("mma", 1, 32, &[Arg::U64(pa), Arg::U64(pb), Arg::U64(pc), Arg::U64(pd)]);
        let d: Vec<f32> = bench.download(pd, 128);
        for row in 0..16 {
            for column in 0..8 {
                let products = (0..k).map(|s| a[row * k + s] * b[s * 8 + column]);
                let expected = c[row * 8 + column] + products.sum::<f32>();
                let found = d[row * 8 + column];
                assert_eq!(found, expected, "({row}, {column}) of {element} k{k}, {accumulator:?}");
            }
        }
        assert_eq!(bench.device.counters().mma, 1);
    }
}

fn to_bf16(x: f32) -> u16 {
    bf16::from_f32(x).to_bits()
}

fn to_f16(x: f32) -> u16 {
    f16::from_f32(x).to_bits()
}

#[test]
fn mma_of_bf16() {
    check_mma("bf16", 16, to_bf16);
    check_mma("bf16", 8, to_bf16);
}

#[test]
fn mma_of_f16() {
    check_mma("f16", 16, to_f16);
    check_mma("f16", 8, to_f16);
}

#[test]
fn mma_of_tf32() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void mma(const float* a, const float* b, float* d) {
            int lane = threadIdx.x, g = lane / 4, q = lane % 4;
            unsigned ra[4], rb[2];
            for (int i = 0; i < 4; ++i) {
                float x = a[(g + 8 * (i & 1)) * 8 + q + 4 * (i >> 1)];
                asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(ra[i]) : "f"(x));
            }
            for (int i = 0; i < 2; ++i) {
                float x = b[(q + 4 * i) * 8 + g];
                asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rb[i]) : "f"(x));
            }
            float r[4] = {0.f, 0.f, 0.f, 0.f};
            asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3])
                : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
            for (int i = 0; i < 4; ++i) d[(g + 8 * (i >> 1)) * 8 + 2 * q + (i & 1)] = r[i];
        }"#,
    );
    let a: Vec<f32> = (0..128).map(|i| (i % 13) as f32 - 6.0).collect();
    let b: Vec<f32> = (0..64).map(|i| (i % 7) as f32 - 3.0).collect();
    let (pa, pb, pd) = (bench.upload(&a), bench.upload(&b), bench.room::<f32>(128));
    bench.launch("mma", 1, 32, &[Arg::U64(pa), Arg::U64(pb), Arg::U64(pd)]);
    let d: Vec<f32> = bench.download(pd, 128);
    for row in 0..16 {
        for column in 0..8 {
            let expected: f32 = (0..8).map(|s| a[row * 8 + s] * b[s * 8 + column]).sum();
            assert_eq!(d[row * 8 + column], expected, "({row}, {column})");
        }
    }
}

#[test]
fn mma_with_f16_accumulator() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void mma(unsigned* d) {
            unsigned one = 0x3c003c00, half = 0x38003800, c[2] = {0x4000bc00, 0x3c003c00};
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 "
                "{%0,%1}, {%2,%2,%2,%2}, {%3,%3}, {%0,%1};"
                : "+r"(c[0]), "+r"(c[1]) : "r"(one), "r"(half));
            d[threadIdx.x] = c[0];
            d[32 + threadIdx.x] = c[1];
        }"#,
    );
    let out = bench.room::<u32>(64);
    bench.launch("mma", 1, 32, &[Arg::U64(out)]);
    let words: Vec<u32> = bench.download(out, 64);
    let halves = |low: f32, high: f32| u32::from(to_f16(low)) | u32::from(to_f16(high)) << 16;
    assert!(words[..32].iter().all(|&word| word == halves(7.0, 10.0)));
    assert!(words[32..].iter().all(|&word| word == halves(9.0, 9.0)));
}

#[test]
fn ldmatrix_straight_and_transposed() {
    for trans in [false, true] {
        let modifier = if trans { ".trans" } else { "" };
        let bench = Bench::cuda(&format!(
            r#"
            extern "C" __global__ void load(unsigned* out) {{
                __shared__ __align__(16) unsigned short tile[32 * 8];
                for (int i = threadIdx.x; i < 256; i += 32) tile[i] = i;
                __syncthreads();
                unsigned address = (unsigned)__cvta_generic_to_shared(tile + 8 * threadIdx.x);
                unsigned r[4];
                asm volatile("ldmatrix.sync.aligned.m8n8.x4{modifier}.shared.b16 "
                    "{{%0,%1,%2,%3}}, [%4];"
                    : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
                for (int i = 0; i < 4; ++i) out[32 * i + threadIdx.x] = r[i];
            }}"#
        ));
        let out = bench.room::<u32>(128);
        bench.launch("load", 1, 32, &[Arg::U64(out)]);
        for (at, word) in bench.download::<u32>(out, 128).into_iter().enumerate() {
            let (matrix, lane) = (at as u32 / 32, at as u32 % 32);
            let element = |odd: u32| {
                let (major, minor) = (lane / 4, 2 * (lane % 4) + odd);
                let (row, column) = if trans { (minor, major) } else { (major, minor) };
                64 * matrix + 8 * row + column
            };
            assert_eq!(word, element(0) | element(1) << 16, "matrix {matrix}, lane {lane}");
        }
    }
}

/// Copies tiles through a two-stage pipeline; `wait` is what stands before the barrier.
fn pipeline(wait: &str, sanitizer: bool) -> Bench {
    let text = format!(
        r#"
        __device__ void fetch(float* to, const float* from, int bytes) {{
            unsigned address = (unsigned)__cvta_generic_to_shared(to);
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                :: "r"(address), "l"(from), "r"(bytes));
            asm volatile("cp.async.commit_group;");
        }}
        extern "C" __global__ void copy(const float* in, float* out, int n) {{
            __shared__ __align__(16) float stage[2][256];
            int tiles = (n + 255) / 256, at = 4 * threadIdx.x;
            int bytes = max(0, min(16, 4 * (n - at)));
            fetch(&stage[0][at], in + (bytes ? at : 0), bytes);
            for (int tile = 0; tile < tiles; ++tile) {{
                int next = 256 * (tile + 1) + at;
                bytes = max(0, min(16, 4 * (n - next)));
                fetch(&stage[(tile + 1) % 2][at], in + (bytes ? next : 0), bytes);
                {wait}
                __syncthreads();
                // Read what another thread copied.
                int mirror = 255 - (int)threadIdx.x;
                for (int i = mirror; i >= 0; i -= 64)
                    if (256 * tile + i < n) out[256 * tile + i] = stage[tile % 2][i];
                __syncthreads();
            }}
            asm volatile("cp.async.wait_all;" ::: "memory");
        }}"#
    );
    Bench::cuda_with(&text, Config { sanitizer, ..Config::default() })
}

fn run_pipeline(bench: &Bench, n: usize) -> Vec<f32> {
    let input: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let (from, to) = (bench.upload(&input), bench.room::<f32>(n));
    bench.launch("copy", 1, 64, &[Arg::U64(from), Arg::U64(to), Arg::I32(n as i32)]);
    bench.download(to, n)
}

#[test]
fn asynchronous_copies_arrive_when_waited_for() {
    for n in [256, 1024, 1000, 1027] {
        let bench = pipeline(r#"asm volatile("cp.async.wait_group 1;" ::: "memory");"#, true);
        let output = run_pipeline(&bench, n);
        assert!(output.iter().enumerate().all(|(i, &x)| x == i as f32), "{n} elements");
    }
}

#[test]
fn asynchronous_copies_leave_poison_where_the_wait_is_missing() {
    let bench = pipeline("", false);
    assert!(run_pipeline(&bench, 256).iter().all(|x| x.is_nan()));
    // One group too many is left pending.
    let bench = pipeline(r#"asm volatile("cp.async.wait_group 2;" ::: "memory");"#, false);
    assert!(run_pipeline(&bench, 256).iter().all(|x| x.is_nan()));
}

#[test]
fn a_matrix_instruction_that_is_switched_off_does_nothing() {
    let bench = Bench::ptx(
        ".reg .b32 %a; .reg .f32 %f<4>; .reg .pred never;\n\
         setp.gt.u32 never, %lane, 99;\nmov.u32 %a, 0x3f803f80;\n\
         mov.f32 %f0, 0f3F800000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;\n\
         @never mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3},\n\
         {%a, %a, %a, %a}, {%a, %a}, {%f0, %f1, %f2, %f3};\n\
         @!never mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3},\n\
         {%a, %a}, {%a}, {%f0, %f1, %f2, %f3};\n\
         st.global.f32 [%out], %f0;",
    );
    assert_eq!(bench.words(1), [9_f32.to_bits()]);
    assert_eq!(bench.device.counters().mma, 1);
}
