//! Products of matrices of integers, bits, 8-bit floating-point numbers and f64.
//!
//! For `mma` lane l has the number g = l / 4 of its group and q = l % 4 in it. Register i of a
//! fragment of A holds elements of row g + 8 (i % 2) for matrices of 16 rows, of row g for those of
//! 8: as many as fit into the register, from column n (q + 4 (i / 2)) on, where n is how many fit.
//! The fragment of B is the same of B's transpose, by columns. Of C and D a lane has the columns
//! 2 q and 2 q + 1 of row g, and then those of row g + 8. Fragments of `wmma` hold their matrices
//! in order.

use super::float::{from_f16, quiet, to_f16};
use super::lanes::LANES;
use super::mma::aligned_truncate;
use super::round::{E4M3, E5M2};
use super::scalar::signed;
use crate::config::Accumulator;
use crate::exec::context::Machine;
use crate::exec::warp::Warp;
use crate::program::{Cell, ProductOp, Source, Sum};

/// Bits of the numbers whose products tensor cores add at once.
const BLOCK_BITS: u32 = 128;

/// An element: an integer, or a floating-point number.
#[derive(Clone, Copy)]
enum Number {
    Integer(i64),
    Float(f64),
}

fn element(cell: Cell, register: u64, at: u32) -> Number {
    let bits = register >> (at * cell.bits() % 64);
    match cell {
        Cell::Integer { bits: width, signed: true } => Number::Integer(signed(bits, width)),
        Cell::Integer { bits: width, .. } => Number::Integer((bits & ((1 << width) - 1)) as i64),
        Cell::E4m3 => Number::Float(E4M3.value(bits as u32 & 0xff)),
        Cell::E5m2 => Number::Float(E5M2.value(bits as u32 & 0xff)),
        Cell::F16 => Number::Float(f32::from_bits(from_f16(bits as u32 & 0xffff)).into()),
        Cell::Bf16 => Number::Float(f32::from_bits((bits as u32) << 16).into()),
        Cell::Tf32 => Number::Float(f32::from_bits(bits as u32 & 0xffff_e000).into()),
        Cell::F64 => Number::Float(f64::from_bits(register)),
    }
}

/// A sum of products of integers.
fn integers(sum: Sum, products: &[(Number, Number)], c: u64) -> u64 {
    let term = |&(a, b): &(Number, Number)| match (a, b, sum) {
        (Number::Integer(a), Number::Integer(b), Sum::CountAnd) => a & b,
        (Number::Integer(a), Number::Integer(b), Sum::CountXor) => a ^ b,
        (Number::Integer(a), Number::Integer(b), _) => a * b,
        _ => 0,
    };
    let total = products.iter().map(term).sum::<i64>() + i64::from(c as i32);
    let total = match sum {
        Sum::Integer { saturate: true } => total.clamp(i32::MIN.into(), i32::MAX.into()),
        _ => total,
    };
    u64::from(total as u32)
}

/// A sum of products of floating-point numbers.
fn floats(op: &ProductOp, rule: Accumulator, products: &[(Number, Number)], c: u64) -> u64 {
    let pair = |&(a, b): &(Number, Number)| match (a, b) {
        (Number::Float(a), Number::Float(b)) => (a, b),
        _ => (0.0, 0.0),
    };
    let pairs = products.iter().map(pair);
    if op.sum == Sum::F64 {
        return pairs.fold(f64::from_bits(c), |sum, (a, b)| a.mul_add(b, sum)).to_bits();
    }
    let start = f32::from_bits(c as u32);
    let total = match rule {
        Accumulator::Sequential => {
            pairs.fold(start, |sum, (a, b)| (a as f32).mul_add(b as f32, sum))
        }
        Accumulator::AlignedTruncate => {
            let products: Vec<f64> = pairs.map(|(a, b)| a * b).collect();
            products
                .chunks((BLOCK_BITS / op.cells[0].bits()) as usize)
                .fold(start, aligned_truncate)
        }
        Accumulator::ExactF64 => (pairs.map(|(a, b)| a * b).sum::<f64>() + f64::from(start)) as f32,
    };
    let total = quiet(total);
    u64::from(if op.sum == Sum::F16 { to_f16(total) } else { total })
}

impl ProductOp {
    /// The rows of A or the columns of B, each with k elements.
    fn spread(&self, warp: &Warp, cell: Cell, registers: &[Source], lines: usize) -> Vec<Number> {
        let each = (if cell == Cell::F64 { 1 } else { 32 / cell.bits() }) as usize;
        let mut matrix = vec![Number::Integer(0); lines * self.k];
        let (tall, taken) = (lines / 8, lines * self.k / LANES / each);
        for (index, &register) in registers.iter().enumerate().take(taken) {
            for lane in 0..LANES {
                let first = match self.in_order {
                    true => (LANES * index + lane) * each,
                    false => {
                        let line = lane / 4 + 8 * (index % tall);
                        line * self.k + each * (lane % 4 + 4 * (index / tall))
                    }
                };
                let word = warp.get(register, lane);
                for at in 0..each {
                    matrix[first + at] = element(cell, word, at as u32);
                }
            }
        }
        matrix
    }

    /// The row and the column of an element of C or D.
    fn place(&self, register: usize, lane: usize, part: usize, packed: bool) -> (usize, usize) {
        if self.in_order {
            let each = if packed { 2 } else { 1 };
            let position = (LANES * register + lane) * each + part;
            return (position / self.columns, position % self.columns);
        }
        let (half, odd) = if packed { (register, part) } else { (register / 2, register % 2) };
        (lane / 4 + 8 * half, 2 * (lane % 4) + odd)
    }

    /// The elements of C; of f16 as f32.
    fn addends(&self, warp: &Warp) -> Vec<u64> {
        let mut matrix = vec![0; self.rows * self.columns];
        let parts = if self.half_addend { 2 } else { 1 };
        for (register, &source) in self.c.iter().enumerate() {
            for (lane, part) in (0..LANES).flat_map(|lane| (0..parts).map(move |p| (lane, p))) {
                let (row, column) = self.place(register, lane, part, self.half_addend);
                let word = warp.get(source, lane);
                let half = || from_f16((word >> (16 * part)) as u32 & 0xffff).into();
                let value = if self.half_addend { half() } else { word };
                matrix[row * self.columns + column] = value;
            }
        }
        matrix
    }
}

impl Warp {
    /// Executes a product; all lanes are here.
    pub(crate) fn product(&mut self, machine: &mut Machine, op: &ProductOp) {
        machine.counters.mma += 1;
        let rule = machine.context.config.accumulator;
        let a = op.spread(self, op.cells[0], &op.a, op.rows);
        let b = op.spread(self, op.cells[1], &op.b, op.columns);
        let c = op.addends(self);
        let packed = op.sum == Sum::F16;
        let parts = if packed { 2 } else { 1 };
        let mut products = Vec::with_capacity(op.k);
        for (register, &target) in op.d.iter().enumerate() {
            for lane in 0..LANES {
                let mut word = 0;
                for part in 0..parts {
                    let (row, column) = op.place(register, lane, part, packed);
                    products.clear();
                    let (row_of_a, column_of_b) = (&a[row * op.k..], &b[column * op.k..]);
                    let pairs = row_of_a.iter().copied().zip(column_of_b.iter().copied());
                    products.extend(pairs.take(op.k));
                    let c = c[row * op.columns + column];
                    let value = match op.sum {
                        Sum::F16 | Sum::F32 | Sum::F64 => floats(op, rule, &products, c),
                        _ => integers(op.sum, &products, c),
                    };
                    word |= value << (16 * part);
                }
                self.put(target, lane, word);
            }
        }
    }
}
