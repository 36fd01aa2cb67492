//! Statements and local data: loops, switches, arrays with dynamic indices, the heap.

use super::builds::{each, each_stores};
use crate::support::Arg;

#[test]
fn switches() {
    let source = r#"
        extern "C" __global__ void k(int* out, int n) {
            int i = threadIdx.x, r = 0;
            switch ((i + n) % 12) {
                case 0: r = 17; break;
                case 1: r = i * 3; break;
                case 2: r = i - 9;  // falls through
                case 3: r += i / 3; break;
                case 4: r = i ^ 55; break;
                case 5: r = i << 3; break;
                case 6: r = -i; break;
                case 7: r = i % 13; break;
                case 8: r = i | 64; break;
                case 9: r = __popc(i); break;
                case 10: return;
                default: r = 1;
            }
            switch (r) { case -1000: r = 5; break; case 17: r = 18; break; case 100000: r = 9; }
            out[i] = r;
        }"#;
    each(source, |bench| {
        let out = bench.upload(&[-7_i32; 64]);
        bench.launch("k", 1, 64, &[Arg::U64(out), Arg::I32(5)]);
        for (i, found) in (0_i32..).zip(bench.download::<i32>(out, 64)) {
            let r = match (i + 5) % 12 {
                0 => 17,
                1 => i * 3,
                2 => i - 9 + i / 3,
                3 => i / 3,
                4 => i ^ 55,
                5 => i << 3,
                6 => -i,
                7 => i % 13,
                8 => i | 64,
                9 => i.count_ones() as i32,
                10 => -7,
                _ => 1,
            };
            assert_eq!(found, if r == 17 { 18 } else { r }, "thread {i}");
        }
    });
}

#[test]
fn loops() {
    let source = r#"
        extern "C" __global__ void k(int* out, int n) {
            int i = threadIdx.x, sum = 0;
            for (int a = 0; a < n; ++a) {
                if (a == i % 7) continue;
                for (int b = a; ; b += 2) {
                    if (b > i) break;
                    if ((a + b) % 5 == 0) goto next;
                    sum += a * b;
                }
                sum += 1;
            next:;
            }
            do { sum ^= i; i /= 2; } while (i > 3);
            while (i --> 0) sum += 100;
            out[threadIdx.x] = sum;
        }"#;
    each_stores(source, 64, 9, 64, |thread| {
        let (mut i, mut sum) = (thread, 0);
        for a in (0..9).filter(|a| *a != i % 7) {
            let mut b = a;
            while b <= i && (a + b) % 5 != 0 {
                sum += a * b;
                b += 2;
            }
            sum += i32::from(b > i);
        }
        loop {
            sum ^= i;
            i /= 2;
            if i <= 3 {
                return sum + 100 * i;
            }
        }
    });
}

#[test]
fn local_arrays() {
    let source = r#"
        struct Pair { short key; double value; };
        extern "C" __global__ void k(int* out, int n) {
            int i = threadIdx.x;
            int plain[37];
            unsigned char bytes[50];
            double grid[4][5];
            Pair pairs[6];
            for (int j = 0; j < n; ++j) {
                plain[j] = j * i;
                bytes[j] = (unsigned char)(j + i);
                grid[j % 4][j % 5] = j;
                pairs[j % 6].key = (short)(j - i);
                pairs[j % 6].value = 0.5 * j;
            }
            int copy[37];
            memcpy(copy, plain, sizeof(copy));
            memset(bytes, 3, 10);
            int* at = &copy[i % 20];
            int sum = at[i % 5] + bytes[i] + (int)grid[i % 4][i % 5];
            Pair& pair = pairs[(i + 1) % 6];
            out[i] = sum + pair.key + (int)(2 * pair.value);
        }"#;
    each_stores(source, 20, 37, 20, |i| {
        let last = |m: i32| (0..37).rev().find(|j| j % 6 == m).expect("one of them");
        let grid = (0..37).rev().find(|j| (j % 4, j % 5) == (i % 4, i % 5)).expect("one of them");
        let pair = last((i + 1) % 6);
        let byte = if i < 10 { 3 } else { 2 * i };
        (i % 20 + i % 5) * i + byte + grid + pair - i + pair
    });
}

#[test]
fn the_heap() {
    let source = r#"
        struct Node { int value; Node* next; };
        extern "C" __global__ void k(int* out, int n) {
            int i = threadIdx.x;
            Node* list = nullptr;
            for (int j = 0; j < i % n; ++j) {
                Node* node = (Node*)malloc(sizeof(Node));
                node->value = j * i;
                node->next = list;
                list = node;
            }
            int sum = 0;
            while (list) {
                sum += list->value;
                Node* next = list->next;
                free(list);
                list = next;
            }
            double* numbers = new double[n];
            for (int j = 0; j < n; ++j) numbers[j] = j;
            sum += (int)numbers[i % n];
            delete[] numbers;
            // More than there is.
            out[i] = malloc((size_t)1 << 40) ? -1 : sum;
        }"#;
    each_stores(source, 64, 9, 64, |i| {
        let length = i % 9;
        length * (length - 1) / 2 * i + length
    });
}

#[test]
fn hints_to_the_compiler() {
    let source = r#"
        extern "C" __global__ void __launch_bounds__(128, 4)
        k(int* __restrict__ out, int n) {
            __builtin_assume(n > 0 && n < 100);
            int i = threadIdx.x, sum = 0;
            #pragma unroll 4
            for (int j = 0; j < n; ++j) sum += __builtin_expect(j & 1, 0) ? j : i;
            switch (i & 3) {
                case 0: case 1: case 2: case 3: out[i] = sum; break;
                default: __builtin_unreachable();
            }
            #pragma unroll
            for (int j = 0; j < 3; ++j) asm volatile("" ::: "memory");
        }"#;
    each_stores(source, 32, 11, 32, |i| (0..11).map(|j| if j % 2 == 1 { j } else { i }).sum());
}
