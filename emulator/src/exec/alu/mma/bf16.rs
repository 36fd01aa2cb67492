//! Products of bf16 matrices with AVX2: most of what kernels of the tensor cores execute.
//!
//! The sums stay as their registers hold them. Eight lanes of an accumulator are two rows and four
//! columns, all even or all odd. For each k, the element of A is spread over the four lanes of its
//! row, and the row of B is the same in both halves of a vector.

use std::arch::x86_64::*;

use super::{MmaOp, V32};

/// The elements of even and of odd k of A's registers: for each eight of k, of two bands of rows.
#[repr(C, align(32))]
struct Rows<const HALVES: usize>([[[[f32; 32]; 2]; 2]; HALVES]);

/// For each eight of k, pair of k, k of the pair, and parity of the column: four columns of B, twice.
#[repr(C, align(32))]
struct Columns<const HALVES: usize>([[[[[f32; 8]; 2]; 2]; 4]; HALVES]);

/// Eight numbers from an index on.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn load<T: Word>(from: &[T], at: usize) -> __m256 {
    let from = &from[at..at + 8];
    // SAFETY: these are eight words of 32 bits.
    unsafe { _mm256_loadu_ps(from.as_ptr().cast()) }
}

/// Four numbers from an index on, in both halves.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_twice(from: &[u32], at: usize) -> __m256 {
    let from = &from[at..at + 4];
    // SAFETY: these are four words of 32 bits.
    let four = unsafe { _mm_loadu_ps(from.as_ptr().cast()) };
    _mm256_set_m128(four, four)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn store<T: Word>(to: &mut [T], at: usize, value: __m256) {
    let to = &mut to[at..at + 8];
    // SAFETY: these are eight words of 32 bits, of which any bits are a value.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr().cast(), value) }
}

/// What is 32 bits wide and may have any bits.
trait Word {}
impl Word for u32 {}
impl Word for f32 {}

/// The low and the high bf16 of each word.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn pair(words: __m256) -> [__m256; 2] {
    let words = _mm256_castps_si256(words);
    let high = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
    [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)), _mm256_castsi256_ps(high)]
}

/// D = A B + C in the registers of fragments, one fused multiply-add after the other in the order
/// of k, of which there are eight for each of HALVES. Every NaN becomes the one that the hardware
/// writes.
#[target_feature(enable = "avx2,fma")]
pub(super) fn multiply<const HALVES: usize>(op: &MmaOp, r: &mut [V32]) {
    let mut rows = Rows::<HALVES>([[[[0.0; 32]; 2]; 2]; HALVES]);
    for half in 0..HALVES {
        for band in 0..2 {
            let register = &r[op.a[2 * half + band] as usize].0;
            let [even, odd] = &mut rows.0[half][band];
            for at in [0, 8, 16, 24] {
                let [low, high] = pair(load(register, at));
                store(even, at, low);
                store(odd, at, high);
            }
        }
    }
    let mut columns = Columns::<HALVES>([[[[[0.0; 8]; 2]; 2]; 4]; HALVES]);
    for half in 0..HALVES {
        let register = &r[op.b[half] as usize].0;
        let pairs = &mut columns.0[half];
        for parity in 0..2 {
            let column = 4 * parity;
            let (x0, x1) = (load_twice(register, column), load_twice(register, column + 8));
            let (x2, x3) = (load_twice(register, column + 16), load_twice(register, column + 24));
            let (low, high) = (_mm256_unpacklo_ps(x0, x2), _mm256_unpackhi_ps(x0, x2));
            let (low1, high1) = (_mm256_unpacklo_ps(x1, x3), _mm256_unpackhi_ps(x1, x3));
            macro_rules! put {
                ($pair:literal, $words:expr) => {
                    let [even, odd] = pair($words);
                    store(&mut pairs[$pair][0][parity], 0, even);
                    store(&mut pairs[$pair][1][parity], 0, odd);
                };
            }
            put!(0, _mm256_unpacklo_ps(low, low1));
            put!(1, _mm256_unpackhi_ps(low, low1));
            put!(2, _mm256_unpacklo_ps(high, high1));
            put!(3, _mm256_unpackhi_ps(high, high1));
        }
    }
    let c = |index: usize| &r[op.c[index] as usize].0;
    let sums = [band(0, &rows, &columns, c(0), c(1)), band(1, &rows, &columns, c(2), c(3))];
    let nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff));
    for (d, sums) in op.d.iter().zip(sums.as_flattened().as_chunks::<4>().0) {
        let register = &mut r[*d as usize].0;
        for (index, &sum) in sums.iter().enumerate() {
            let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(sum, sum);
            store(register, 8 * index, _mm256_blendv_ps(sum, nan, is_nan));
        }
    }
}

/// Eight rows of the result: its even and then its odd columns.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn band<const HALVES: usize>(
    band: usize,
    rows: &Rows<HALVES>,
    columns: &Columns<HALVES>,
    even: &[u32; 32],
    odd: &[u32; 32],
) -> [__m256; 8] {
    let (mut e0, mut e1) = (load(even, 0), load(even, 8));
    let (mut e2, mut e3) = (load(even, 16), load(even, 24));
    let (mut o0, mut o1) = (load(odd, 0), load(odd, 8));
    let (mut o2, mut o3) = (load(odd, 16), load(odd, 24));
    for (rows, pairs) in rows.0.iter().zip(&columns.0) {
        let rows = &rows[band];
        macro_rules! step {
            ($pair:literal, $part:literal, $spread:literal) => {
                let [even, odd] = &pairs[$pair][$part];
                let (even, odd) = (load(even, 0), load(odd, 0));
                let factor = _mm256_permute_ps::<$spread>(load(&rows[$part], 0));
                e0 = _mm256_fmadd_ps(factor, even, e0);
                o0 = _mm256_fmadd_ps(factor, odd, o0);
                let factor = _mm256_permute_ps::<$spread>(load(&rows[$part], 8));
                e1 = _mm256_fmadd_ps(factor, even, e1);
                o1 = _mm256_fmadd_ps(factor, odd, o1);
                let factor = _mm256_permute_ps::<$spread>(load(&rows[$part], 16));
                e2 = _mm256_fmadd_ps(factor, even, e2);
                o2 = _mm256_fmadd_ps(factor, odd, o2);
                let factor = _mm256_permute_ps::<$spread>(load(&rows[$part], 24));
                e3 = _mm256_fmadd_ps(factor, even, e3);
                o3 = _mm256_fmadd_ps(factor, odd, o3);
            };
        }
        step!(0, 0, 0b00_00_00_00);
        step!(0, 1, 0b00_00_00_00);
        step!(1, 0, 0b01_01_01_01);
        step!(1, 1, 0b01_01_01_01);
        step!(2, 0, 0b10_10_10_10);
        step!(2, 1, 0b10_10_10_10);
        step!(3, 0, 0b11_11_11_11);
        step!(3, 1, 0b11_11_11_11);
    }
    [e0, e1, e2, e3, o0, o1, o2, o3]
}
