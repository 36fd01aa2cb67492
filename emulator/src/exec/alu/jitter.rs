//! Approximations as bad as the PTX ISA allows them to be. A device's are somewhere between these
//! and the exact ones; programs must be right with either.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::float::evaluate;
use crate::program::{Float, FloatMode, Rounding};
use crate::ptx::Type;

/// An approximation off by an error within its bound, the same whenever the operands are.
pub(crate) fn approximate(op: Float, mode: FloatMode, s: [u64; 4]) -> u64 {
    let noise = noise(op, mode.ty, s);
    match mode.ty {
        Type::F32 => u64::from(single(op, mode, s, noise)),
        // Of an f64 the upper half alone is computed: bad enough.
        Type::F64 => evaluate(op, mode, s),
        _ => evaluate(op, directed(mode, noise), s),
    }
}

/// The mode that rounds away from or towards zero: an error of less than one unit in the last
/// place.
fn directed(mode: FloatMode, noise: u32) -> FloatMode {
    let rounding = if noise & 1 == 0 { Rounding::Down } else { Rounding::Up };
    FloatMode { rounding, ..mode }
}

fn single(op: Float, mode: FloatMode, s: [u64; 4], noise: u32) -> u32 {
    let exact = evaluate(op, mode, s) as u32;
    let value = f64::from(f32::from_bits(exact));
    if !value.is_normal() || mode.saturate {
        return exact;
    }
    // Within -1 and 1.
    let share = f64::from(noise as i32) / 2_f64.powi(31);
    let rounding = 2_f64.powi(-24);
    let moved = match op {
        // 1 ulp, relative 2^-23 and 2^-22.9.
        Float::Reciprocal | Float::SquareRoot | Float::ReciprocalRoot => {
            return evaluate(op, directed(mode, noise), s) as u32;
        }
        // 2 ulp, half of one of which the rounding may take.
        Float::Div | Float::DivApprox | Float::Exp2 => {
            let step = (noise % 3) as i32 - 1;
            return exact.wrapping_add_signed(step);
        }
        Float::Sin | Float::Cos => {
            (value + share * (2_f64.powf(-20.5) - 2.0 * rounding)).clamp(-1.0, 1.0)
        }
        Float::Log2 if (0.5..2.0).contains(&f64::from(f32::from_bits(s[0] as u32))) => {
            value + share * (2_f64.powi(-22) - 2.0 * rounding)
        }
        Float::Log2 => value * (1.0 + share * (2_f64.powi(-22) - 2.0 * rounding)),
        Float::Tanh => {
            (value * (1.0 + share * (2_f64.powi(-11) - 2.0 * rounding))).clamp(-1.0, 1.0)
        }
        _ => value,
    };
    (moved as f32).to_bits()
}

/// Bits that depend on the operation and its operands, and on nothing else.
fn noise(op: Float, ty: Type, s: [u64; 4]) -> u32 {
    let mut hasher = DefaultHasher::new();
    (std::mem::discriminant(&op), ty.bits(), s).hash(&mut hasher);
    hasher.finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_within_their_bounds_and_not_zero() {
        let ty = Type::F32;
        let mode = FloatMode {
            ty,
            rounding: Rounding::Nearest,
            flush: false,
            saturate: false,
            relu: false,
            nan: false,
            xorsign: false,
        };
        let ulp = |y: f64| 2_f64.powi(y.abs().log2().floor() as i32 - 23);
        type Case = (Float, fn(f64) -> f64, fn(f64, f64) -> f64);
        let cases: [Case; 7] = [
            (Float::Reciprocal, |x| 1.0 / x, |_, ulp| ulp),
            (Float::SquareRoot, f64::sqrt, |y, _| y * 2_f64.powi(-23)),
            (Float::ReciprocalRoot, |x| 1.0 / x.sqrt(), |y, _| y * 2_f64.powf(-22.9)),
            (Float::Exp2, f64::exp2, |_, ulp| 2.0 * ulp),
            (Float::Sin, f64::sin, |_, _| 2_f64.powf(-20.5)),
            (Float::Log2, f64::log2, |y, _| 2_f64.powi(-22) * y.abs().max(1.0)),
            (Float::Tanh, f64::tanh, |y, _| y * 2_f64.powi(-11)),
        ];
        for (op, exact, bound) in cases {
            let mut worst = 0_f64;
            for i in 1..2000 {
                let x = i as f32 * 0.001_7;
                let found = approximate(op, mode, [u64::from(x.to_bits()), 0, 0, 0]) as u32;
                let y = exact(f64::from(x));
                let error = (f64::from(f32::from_bits(found)) - y).abs();
                worst = worst.max(error / bound(y, ulp(y)));
            }
            assert!((0.6..=1.0).contains(&worst), "{op:?}: {worst} of its bound");
        }
    }
}
