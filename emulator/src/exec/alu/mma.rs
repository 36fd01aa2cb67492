//! Products of matrices.
//!
//! A 32-bit register of a fragment holds, over its 32 lanes, an 8x8 matrix of 16-bit elements row
//! by row, or an 8x4 matrix of 32-bit elements: lane l holds the pair of row l / 4 and columns
//! 2 (l % 4) and 2 (l % 4) + 1. The fragments of A and B are such matrices side by side, B's
//! transposed, so that spreading them into tiles is a conversion and, for B, a transposition.

#[cfg(target_arch = "x86_64")]
mod bf16;

use super::float::{from_f16, quiet, to_f16};
use super::lanes::{LANES, V32, Wide, over_lanes};
use super::round::F32;
use crate::config::Accumulator;
use crate::exec::context::Machine;
use crate::exec::warp::Warp;
use crate::program::{Element, MmaOp, R, Rounding};

const ROWS: usize = 16;
const COLUMNS: usize = 8;
const MOST_K: usize = 16;

/// A tile of A: rows of at most 16 elements.
#[repr(C, align(64))]
struct TileA([[f32; MOST_K]; ROWS]);
/// A tile of B: at most 16 rows.
#[repr(C, align(64))]
struct TileB([[f32; COLUMNS]; MOST_K]);
/// A tile of C and D.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct TileC([[f32; COLUMNS]; ROWS]);

/// The low and the high element of a register's lane.
#[inline(always)]
fn pair(element: Element, word: u32) -> [f32; 2] {
    match element {
        Element::Bf16 => [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)],
        Element::F16 => {
            [f32::from_bits(from_f16(word & 0xffff)), f32::from_bits(from_f16(word >> 16))]
        }
        Element::Tf32 => [tf32(word), 0.0],
    }
}

/// Of a tf32 operand only the upper 19 bits count.
#[inline(always)]
fn tf32(word: u32) -> f32 {
    f32::from_bits(word & 0xffff_e000)
}

#[inline(always)]
fn spread(element: Element, registers: &[&V32; 4], tile: &mut TileA) {
    match element {
        Element::Tf32 => {
            for (index, register) in registers.iter().enumerate() {
                let (row, k) = (8 * (index & 1), 4 * (index >> 1));
                for lane in 0..LANES {
                    tile.0[row + lane / 4][k + lane % 4] = tf32(register.0[lane]);
                }
            }
        }
        _ => {
            for (index, register) in registers.iter().enumerate() {
                let (row, k) = (8 * (index & 1), 8 * (index >> 1));
                for group in 0..8 {
                    for quad in 0..4 {
                        let [low, high] = pair(element, register.0[4 * group + quad]);
                        tile.0[row + group][k + 2 * quad] = low;
                        tile.0[row + group][k + 2 * quad + 1] = high;
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn spread_transposed(element: Element, registers: &[&V32; 2], tile: &mut TileB) {
    for (index, register) in registers.iter().enumerate() {
        for quad in 0..4 {
            for column in 0..COLUMNS {
                let word = register.0[4 * column + quad];
                if element == Element::Tf32 {
                    tile.0[4 * index + quad][column] = tf32(word);
                } else {
                    let [low, high] = pair(element, word);
                    tile.0[8 * index + 2 * quad][column] = low;
                    tile.0[8 * index + 2 * quad + 1][column] = high;
                }
            }
        }
    }
}

#[inline(always)]
fn accumulate(a: &TileA, b: &TileB, c: &mut TileC, k: usize) {
    const BAND: usize = 8;
    for band in (0..ROWS).step_by(BAND) {
        let mut sums = [[0.0_f32; COLUMNS]; BAND];
        sums.copy_from_slice(&c.0[band..band + BAND]);
        for step in 0..k {
            for row in 0..BAND {
                let factor = a.0[band + row][step];
                for column in 0..COLUMNS {
                    sums[row][column] = factor.mul_add(b.0[step][column], sums[row][column]);
                }
            }
        }
        c.0[band..band + BAND].copy_from_slice(&sums);
    }
}

/// C += A B, one fused multiply-add after the other in the order of k.
#[inline(always)]
fn multiply(element: Element, k: usize, a: &[&V32; 4], b: &[&V32; 2], c: &mut TileC) {
    let mut tile_a = TileA([[0.0; MOST_K]; ROWS]);
    let mut tile_b = TileB([[0.0; COLUMNS]; MOST_K]);
    spread(element, a, &mut tile_a);
    spread_transposed(element, b, &mut tile_b);
    if k == MOST_K {
        accumulate(&tile_a, &tile_b, c, MOST_K);
    } else {
        accumulate(&tile_a, &tile_b, c, k);
    }
}

/// D = A B + C in registers, one fused multiply-add after the other in the order of k.
fn sequential(wide: Wide, op: &MmaOp, r: &mut [V32]) {
    #[cfg(target_arch = "x86_64")]
    if op.element == Element::Bf16 && wide.available() {
        // SAFETY: `Wide` says that the processor has these features.
        unsafe { if op.k == 16 { bf16::multiply::<2>(op, r) } else { bf16::multiply::<1>(op, r) } }
        return;
    }
    by_tiles(wide, op, r);
}

over_lanes! {
    /// The same, by way of tiles.
    fn by_tiles(op: &MmaOp, r: &mut [V32]) -> () {
        let a = op.a.map(|index| &r[index as usize]);
        let b = op.b.map(|index| &r[index as usize]);
        let mut c = gather(op.c.map(|index| &r[index as usize]));
        match op.element {
            Element::Bf16 => multiply(Element::Bf16, op.k, &a, &b, &mut c),
            Element::F16 => multiply(Element::F16, op.k, &a, &b, &mut c),
            Element::Tf32 => multiply(Element::Tf32, op.k, &a, &b, &mut c),
        }
        for (index, &d) in op.d.iter().enumerate() {
            scatter(&c, index, &mut r[d as usize]);
        }
    }
}

/// The tile that four accumulator registers hold.
#[inline(always)]
fn gather(c: [&V32; 4]) -> TileC {
    let mut tile = TileC([[0.0; COLUMNS]; ROWS]);
    for (index, register) in c.iter().enumerate() {
        let (row, odd) = (8 * (index / 2), index % 2);
        for lane in 0..LANES {
            tile.0[row + lane / 4][2 * (lane % 4) + odd] = f32::from_bits(register.0[lane]);
        }
    }
    tile
}

/// The part of a tile that one accumulator register holds.
#[inline(always)]
fn scatter(tile: &TileC, index: usize, register: &mut V32) {
    let (row, odd) = (8 * (index / 2), index % 2);
    for lane in 0..LANES {
        register.0[lane] = quiet(tile.0[row + lane / 4][2 * (lane % 4) + odd]);
    }
}

/// C += A B under another rule of addition.
fn by_rule(
    rule: Accumulator,
    element: Element,
    k: usize,
    a: &[&V32; 4],
    b: &[&V32; 2],
    tile_c: &mut TileC,
) {
    let mut tile_a = TileA([[0.0; MOST_K]; ROWS]);
    let mut tile_b = TileB([[0.0; COLUMNS]; MOST_K]);
    spread(element, a, &mut tile_a);
    spread_transposed(element, b, &mut tile_b);
    // Tensor cores of this generation add blocks of 8 16-bit or 4 tf32 products.
    let block = if element == Element::Tf32 { 4 } else { 8 };
    for (row, values) in tile_c.0.iter_mut().enumerate() {
        for (column, value) in values.iter_mut().enumerate() {
            let products: [f64; MOST_K] = std::array::from_fn(|step| {
                f64::from(tile_a.0[row][step]) * f64::from(tile_b.0[step][column])
            });
            *value = match rule {
                Accumulator::AlignedTruncate => {
                    products[..k].chunks(block).fold(*value, aligned_truncate)
                }
                _ => {
                    let sum: f64 = products[..k].iter().sum();
                    (sum + f64::from(*value)) as f32
                }
            };
        }
    }
}

/// Adds a block of products and an addend: all are cut to the weight of the last bit that the
/// largest of them has in f32, plus one guard bit, added as integers, and the sum is cut to f32.
pub(crate) fn aligned_truncate(addend: f32, products: &[f64]) -> f32 {
    let terms = || products.iter().copied().chain([f64::from(addend)]);
    if !terms().all(f64::is_finite) {
        return terms().sum::<f64>() as f32;
    }
    let exponent = |value: f64| (value.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    let Some(largest) = terms().filter(|&term| term != 0.0).map(exponent).max() else {
        return terms().sum::<f64>() as f32;
    };
    const KEPT_BITS: i32 = 24;
    let unit = 2_f64.powi((largest - KEPT_BITS).max(-1000));
    let sum: i64 = terms().map(|term| (term / unit) as i64).sum();
    f32::from_bits(F32.round(sum as f64 * unit, Rounding::Zero))
}

impl Warp {
    /// Executes a matrix multiply-accumulate; all lanes are here.
    pub(crate) fn mma(&mut self, machine: &mut Machine, op: &MmaOp) {
        machine.counters.mma += 1;
        let rule = machine.context.config.accumulator;
        if rule == Accumulator::Sequential && !op.half_result {
            return sequential(machine.context.wide, op, &mut self.r);
        }
        let a = op.a.map(|index| &self.r[index as usize]);
        let b = op.b.map(|index| &self.r[index as usize]);
        let c = op.c.map(|index| &self.r[index as usize]);
        let mut tile = match op.half_result {
            true => gather(unpack_halves(c[0], c[1]).each_ref()),
            false => gather(c),
        };
        match rule {
            Accumulator::Sequential => multiply(op.element, op.k, &a, &b, &mut tile),
            rule => by_rule(rule, op.element, op.k, &a, &b, &mut tile),
        }
        let mut results = [V32([0; LANES]); 4];
        results.iter_mut().enumerate().for_each(|(index, d)| scatter(&tile, index, d));
        if op.half_result {
            for (half, pair) in results.chunks_exact(2).enumerate() {
                let packed = &mut self.r[op.d[half] as usize].0;
                for lane in 0..LANES {
                    packed[lane] = to_f16(pair[0].0[lane]) | to_f16(pair[1].0[lane]) << 16;
                }
            }
        } else {
            for (&d, result) in op.d.iter().zip(results) {
                self.r[d as usize] = result;
            }
        }
    }

    /// Transposes the 8x8 matrix that a register holds; all lanes are here.
    pub(crate) fn transpose_matrix(&mut self, d: R, a: R) {
        self.r[d as usize].0 = transpose(&self.r[a as usize].0);
    }
}

/// The transpose of an 8x8 matrix of 16-bit elements. Word 4 r + c holds the elements of row r and
/// columns 2 c and 2 c + 1.
pub(crate) fn transpose(words: &[u32; LANES]) -> [u32; LANES] {
    let element =
        |row: usize, column: usize| words[4 * row + column / 2] >> (16 * (column & 1)) & 0xffff;
    std::array::from_fn(|at| {
        let (row, column) = (at / 4, 2 * (at % 4));
        element(column, row) | element(column + 1, row) << 16
    })
}

/// Four f32 accumulators of two registers of packed f16.
fn unpack_halves(first: &V32, second: &V32) -> [V32; 4] {
    let part = |register: &V32, shift: u32| {
        V32(std::array::from_fn(|lane| from_f16(register.0[lane] >> shift & 0xffff)))
    };
    [part(first, 0), part(first, 16), part(second, 0), part(second, 16)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both forms of one product, of numbers, infinities, NaNs, zeros and subnormals.
    #[test]
    fn the_vector_form_of_bf16_has_the_bits_of_the_other() {
        let wide = Wide::detect();
        let mut state = 1_u64;
        let mut word = |k: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let random = (state >> 32) as u32;
            match (state >> 20) as usize % k {
                0 => [0x7f80_ff80, 0x7fc1_0001, 0x8000_0000, 0x0001_8001][random as usize % 4],
                // Of a few binades, so that sums round.
                _ => random & 0x83ff_83ff | 0x3c00_3c00,
            }
        };
        for (round, k) in (0..2000).map(|round| (round, if round % 2 == 0 { 16 } else { 8 })) {
            // Few special values, so that most sums are numbers.
            let often = if round % 5 == 0 { 20 } else { 100_000 };
            let registers: Vec<V32> =
                (0..10).map(|_| V32(std::array::from_fn(|_| word(often)))).collect();
            let op = MmaOp {
                element: Element::Bf16,
                half_result: false,
                k,
                d: [6, 7, 8, 9],
                a: [0, 1, 2, 3],
                b: [4, 5],
                c: [6, 7, 8, 9],
            };
            let (mut vector, mut tiles) = (registers.clone(), registers);
            sequential(wide, &op, &mut vector);
            by_tiles(wide, &op, &mut tiles);
            assert_eq!(vector, tiles, "round {round}");
        }
    }
}
