//! Functions: recursion, pointers to functions, virtual functions, and how arguments are passed.

use super::builds::{each, each_stores};
use crate::support::{Arg, Bench};
use cuda_emulator::FaultKind;

#[test]
fn recursion() {
    let source = r#"
        __device__ __noinline__ int factorial(int n) { return n <= 1 ? 1 : n * factorial(n - 1); }

        __device__ __noinline__ int odd(int n);
        __device__ __noinline__ int even(int n) { return n == 0 ? 1 : odd(n - 1); }
        __device__ __noinline__ int odd(int n) { return n == 0 ? 0 : even(n - 1); }

        __device__ __noinline__ int ackermann(int m, int n) {
            volatile int kept[4];
            kept[n & 3] = m;
            if (m == 0) return n + 1;
            int result = n == 0 ? ackermann(m - 1, 1) : ackermann(m - 1, ackermann(m, n - 1));
            return kept[n & 3] == m ? result : -1;
        }

        // Sorts by recursion on both halves, in a local array.
        __device__ __noinline__ void sort(int* x, int n) {
            if (n < 2) return;
            int pivot = x[n / 2], i = 0, j = n - 1;
            while (i <= j) {
                while (x[i] < pivot) ++i;
                while (x[j] > pivot) --j;
                if (i <= j) { int t = x[i]; x[i++] = x[j]; x[j--] = t; }
            }
            sort(x, j + 1);
            sort(x + i, n - i);
        }

        extern "C" __global__ void k(int* out, int n) {
            int i = threadIdx.x, x[16];
            for (int j = 0; j < 16; ++j) x[j] = (j * 7 + i * 5) % 16;
            sort(x, 16);
            bool sorted = true;
            for (int j = 0; j < 16; ++j) sorted &= x[j] == j;
            out[4 * i] = factorial(i % n);
            out[4 * i + 1] = even(i);
            out[4 * i + 2] = ackermann(2, i % 5);
            out[4 * i + 3] = sorted;
        }"#;
    each_stores(source, 40, 12, 160, |at| {
        let i = at / 4;
        match at % 4 {
            0 => (1..=i % 12).product(),
            1 => (i + 1) % 2,
            2 => 2 * (i % 5) + 3,
            _ => 1,
        }
    });
}

#[test]
fn too_deep_a_recursion_is_a_fault() {
    let bench = Bench::cuda(
        r#"
        __device__ __noinline__ int deep(int n) {
            volatile int kept[8];
            kept[n & 7] = n;
            return n == 0 ? 0 : deep(n - 1) + kept[n & 7];
        }
        extern "C" __global__ void k(int* out, int n) { *out = deep(n); }"#,
    );
    let out = bench.room::<i32>(1);
    let fault = bench.fault("k", 1, 1, &[Arg::U64(out), Arg::I32(1000)]);
    assert_eq!(fault.kind, FaultKind::StackOverflow);
    assert!(fault.detail.contains("CU_LIMIT_STACK_SIZE"), "{fault}");
    bench.device.set_stack_limit(256 << 10);
    bench.launch("k", 1, 1, &[Arg::U64(out), Arg::I32(1000)]);
    assert_eq!(bench.download::<i32>(out, 1), [500_500]);
}

#[test]
fn pointers_to_functions() {
    let source = r#"
        typedef int (*Operation)(int, int);
        __device__ __noinline__ int add(int a, int b) { return a + b; }
        __device__ __noinline__ int mul(int a, int b) { return a * b; }
        __device__ __noinline__ int sub(int a, int b) { return a - b; }
        __device__ Operation table[3] = {add, mul, sub};
        __constant__ Operation fixed[3] = {sub, add, mul};
        struct Named { char name; Operation operation; };
        __device__ Named named[2] = {{'s', sub}, {'a', add}};

        __device__ __noinline__ int fold(Operation operation, int from, int to) {
            int result = from;
            for (int i = from + 1; i <= to; ++i) result = operation(result, i);
            return result;
        }

        extern "C" __global__ void k(int* out, int n) {
            int i = threadIdx.x;
            Operation chosen = i & 1 ? add : mul;
            out[4 * i] = table[i % 3](i, 2);
            out[4 * i + 1] = fixed[(i + n) % 3](i, 3);
            out[4 * i + 2] = fold(chosen, 1, i % 7 + 1);
            out[4 * i + 3] = named[i % 2].operation(i, 5) + named[i % 2].name;
        }"#;
    each_stores(source, 32, 4, 128, |at| {
        let i = at / 4;
        let apply = |which: i32, a: i32, b: i32| match which % 3 {
            0 => a + b,
            1 => a * b,
            _ => a - b,
        };
        let last = i % 7 + 1;
        match at % 4 {
            0 => apply(i, i, 2),
            1 => apply(i + 4 + 2, i, 3),
            2 if i % 2 == 1 => (1..=last).sum(),
            2 => (1..=last).product(),
            _ if i % 2 == 0 => i - 5 + i32::from(b's'),
            _ => i + 5 + i32::from(b'a'),
        }
    });
}

#[test]
fn a_pointer_to_no_function_is_a_fault() {
    let bench = Bench::cuda(
        r#"
        extern "C" __global__ void k(int* out, long long address) {
            *out = ((int (*)(int))address)(1);
        }"#,
    );
    let out = bench.room::<i32>(1);
    let fault = bench.fault("k", 1, 1, &[Arg::U64(out), Arg::U64(0x1234)]);
    assert_eq!(fault.kind, FaultKind::IllegalOperand);
}

#[test]
fn virtual_functions_and_objects_on_the_heap() {
    let source = r#"
        struct Shape {
            int size;
            __device__ Shape(int size) : size(size) {}
            __device__ virtual ~Shape() {}
            __device__ virtual int area() const = 0;
            __device__ virtual int corners() const { return 0; }
        };
        struct Square : Shape {
            __device__ Square(int size) : Shape(size) {}
            __device__ int area() const override { return size * size; }
            __device__ int corners() const override { return 4; }
        };
        struct Disc : Shape {
            int* gone;
            __device__ Disc(int size, int* gone) : Shape(size), gone(gone) {}
            __device__ ~Disc() override { atomicAdd(gone, 1); }
            __device__ int area() const override { return 3 * size * size; }
        };
        __device__ __noinline__ int measure(const Shape* shape) {
            return shape->area() + 1000 * shape->corners();
        }
        extern "C" __global__ void k(int* out, int n) {
            __shared__ int gone;
            int i = threadIdx.x;
            if (i == 0) gone = 0;
            __syncthreads();
            Square here(i);
            Shape* there = i & 1 ? (Shape*)new Disc(i, &gone) : (Shape*)new Square(i + n);
            out[2 * i] = measure(&here);
            out[2 * i + 1] = measure(there);
            delete there;
            __syncthreads();
            if (i == 0) out[64] = gone;
        }"#;
    each_stores(source, 32, 2, 65, |at| {
        let i = at / 2;
        match at % 2 {
            _ if at == 64 => 16,
            0 => i * i + 4000,
            _ if i % 2 == 1 => 3 * i * i,
            _ => (i + 2) * (i + 2) + 4000,
        }
    });
}

#[test]
fn arguments_and_results_of_all_sizes() {
    let source = r#"
        struct Small { char a; short b; };
        struct Large { double d[3]; char c; int i; };
        struct __align__(16) Aligned { float x, y, z, w; };
        __device__ __noinline__ Small swap(Small s) { return {(char)s.b, (short)(s.a + 1)}; }
        __device__ __noinline__ Large turn(Large l, bool up, char by) {
            Large r = l;
            r.d[0] = l.d[2]; r.d[2] = l.d[0];
            r.i = up ? l.i + by : l.i - by;
            return r;
        }
        __device__ __noinline__ Aligned sum(Aligned a, float4 b, const Aligned* c) {
            return {a.x + b.x, a.y + b.y + c->y, a.z + b.z, a.w + b.w};
        }
        __device__ __noinline__ unsigned char narrow(unsigned short a, signed char b) {
            return (unsigned char)(a * b);
        }
        __device__ __noinline__ void both(int i, long long& twice, unsigned long long* square) {
            twice = 2 * i;
            *square = (unsigned long long)i * i;
        }
        extern "C" __global__ void k(int* out, int n) {
            int i = threadIdx.x, *o = out + 8 * i;
            Small s = swap({(char)i, (short)(i + n)});
            o[0] = s.a;
            o[1] = s.b;
            Large l = turn({{1.0 * i, 2.0, 3.0}, 'x', i}, i & 1, 5);
            o[2] = (int)(l.d[0] + 10 * l.d[1] + 100 * l.d[2]);
            o[3] = l.i + l.c;
            Aligned a = {1, 2, 3, 4}, b = sum(a, make_float4(i, i, i, i), &a);
            o[4] = (int)(b.x + b.y + b.z + b.w);
            o[5] = narrow((unsigned short)(i + 300), (signed char)-3);
            long long twice;
            unsigned long long square;
            both(i, twice, &square);
            o[6] = (int)twice;
            o[7] = (int)square;
        }"#;
    each_stores(source, 32, 3, 256, |at| {
        let i = at / 8;
        match at % 8 {
            0 => i + 3,
            1 => i + 1,
            2 => 3 + 20 + 100 * i,
            3 => i + if i % 2 == 1 { 5 } else { -5 } + i32::from(b'x'),
            4 => 10 + 4 * i + 2,
            5 => i32::from(((i + 300) * -3) as u8),
            6 => 2 * i,
            _ => i * i,
        }
    });
}

#[test]
fn barriers_and_shuffles_within_functions() {
    let source = r#"
        __device__ __noinline__ int sum_of_warp(int x) {
            for (int d = 16; d; d >>= 1) x += __shfl_xor_sync(~0u, x, d);
            return x;
        }
        __device__ __noinline__ int sum_of_block(int x) {
            __shared__ int partial[4];
            int sum = sum_of_warp(x);
            if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
            __syncthreads();
            int all = partial[0] + partial[1] + partial[2] + partial[3];
            __syncthreads();
            return all;
        }
        extern "C" __global__ void k(int* out, int n) {
            int sum = sum_of_block(threadIdx.x * n);
            sum += threadIdx.x % 2 + 0 * sum_of_block(0);
            out[threadIdx.x] = sum_of_warp(sum);
        }"#;
    each_stores(source, 128, 3, 128, |_| 32 * 3 * (127 * 128 / 2) + 16);
}

#[test]
fn functions_with_threads_apart() {
    let source = r#"
        __device__ __noinline__ int collatz(int n, int depth) {
            if (n == 1) return depth;
            return collatz(n % 2 ? 3 * n + 1 : n / 2, depth + 1);
        }
        extern "C" __global__ void k(int* out, int n) {
            int i = threadIdx.x, steps = 0;
            if (i % 3 == 0) steps = collatz(i + 1, 0);
            else if (i % 3 == 1) steps = -collatz(i + n, 0);
            // All lanes are here again.
            out[i] = steps + __popc(__ballot_sync(~0u, steps > 0)) * 1000;
        }"#;
    each(source, |bench| {
        let out = bench.room::<i32>(32);
        bench.launch("k", 1, 32, &[Arg::U64(out), Arg::I32(5)]);
        let collatz = |mut n: i32| {
            let mut steps = 0;
            while n != 1 {
                n = if n % 2 == 1 { 3 * n + 1 } else { n / 2 };
                steps += 1;
            }
            steps
        };
        let steps = |i: i32| match i % 3 {
            0 => collatz(i + 1),
            1 => -collatz(i + 5),
            _ => 0,
        };
        let positive = (0..32).filter(|&i| steps(i) > 0).count() as i32;
        let expected: Vec<i32> = (0..32).map(|i| steps(i) + 1000 * positive).collect();
        assert_eq!(bench.download::<i32>(out, 32), expected);
    });
}
