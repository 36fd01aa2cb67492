//! Conversions between types.

use super::double;
use super::float;
use super::round::{BF16, E4M3, E5M2, Exact, F16, F32, Format, TF32, flush32};
use super::scalar::signed;
use crate::program::{Convert, Rounding};
use crate::ptx::Type;

enum Number {
    Integer(i128),
    Real(f64),
}

/// Converts one value, or two to a packed type, the first into the upper half.
pub(crate) fn evaluate(op: Convert, s: [u64; 4]) -> u64 {
    let (to, width) = match op.to {
        Type::F16x2 => (Type::F16, 16),
        Type::Bf16x2 => (Type::Bf16, 16),
        Type::E4m3x2 | Type::E5m2x2 => (op.to, 8),
        _ => return one(op, s[0]),
    };
    // Two sources, or one with two values.
    let (from, high, low) = match op.from {
        Type::F16x2 => (Type::F16, s[0] >> 16, s[0] & 0xffff),
        Type::E4m3x2 | Type::E5m2x2 => (op.from, s[0] >> 8, s[0] & 0xff),
        from => (from, s[0], s[1]),
    };
    let single = Convert { to, from, ..op };
    one(single, high) << width | one(single, low)
}

fn one(op: Convert, bits: u64) -> u64 {
    let width = op.from.bits();
    let number = if op.from.is_float() {
        Number::Real(float::value(op.from, bits, op.flush && op.from == Type::F32))
    } else if op.from.is_signed() {
        Number::Integer(i128::from(signed(bits, width)))
    } else {
        let spare = 64 - width;
        Number::Integer(i128::from(bits << spare >> spare))
    };
    match op.to {
        Type::F16 => u64::from(to_format(op, F16, number)),
        Type::Bf16 => u64::from(to_format(op, BF16, number)),
        Type::F32 => u64::from(to_format(op, F32, number)),
        Type::Tf32 => u64::from(to_format(op, TF32, number)) << 13,
        Type::E4m3x2 => u64::from(to_format(op, E4M3, number)),
        Type::E5m2x2 => u64::from(to_format(op, E5M2, number)),
        Type::F64 => to_double(op, number),
        _ => to_integer(op, number),
    }
}

fn to_integer(op: Convert, number: Number) -> u64 {
    let bits = op.to.bits();
    let (least, most) = if op.to.is_signed() {
        (-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1)
    } else {
        (0, (1_i128 << bits) - 1)
    };
    let value = match number {
        Number::Integer(value) if op.saturate => value.clamp(least, most),
        Number::Integer(value) => value,
        Number::Real(value) if value.is_nan() => {
            // NaN gives 0, but the most significant bit alone where 64 bits are involved.
            if op.from == Type::F64 || bits == 64 { 1 << (bits - 1) } else { 0 }
        }
        // Rust's conversion of a float to i128 saturates.
        Number::Real(value) => (round_integral(value, op.rounding) as i128).clamp(least, most),
    };
    // A wider destination takes the value extended by its sign.
    let spare = 64 - bits;
    let placed = (value as u64) << spare;
    if op.to.is_signed() { (placed as i64 >> spare) as u64 } else { placed >> spare }
}

fn to_format(op: Convert, format: Format, number: Number) -> u32 {
    let value = match number {
        Number::Integer(value) => Exact::integer(value).to_odd(),
        Number::Real(value) if op.integral => round_integral(value, op.rounding),
        Number::Real(value) => value,
    };
    let mut bits = format.round(value, op.rounding);
    if op.flush && format == F32 {
        bits = flush32(bits);
    }
    let rounded = format.value(bits);
    if op.saturate {
        return if rounded.is_nan() || rounded <= 0.0 {
            0
        } else {
            format.round(rounded.min(1.0), Rounding::Nearest)
        };
    }
    if op.relu && rounded <= 0.0 {
        return 0;
    }
    // Past the largest finite value comes infinity, or in one format NaN.
    let overflows = bits & format.nan() == format.most() + 1 && !value.is_nan();
    if op.finite && overflows { bits - 1 } else { bits }
}

fn to_double(op: Convert, number: Number) -> u64 {
    let value = match number {
        Number::Integer(value) => double::of_integer(value, op.rounding),
        Number::Real(value) if op.integral => round_integral(value, op.rounding),
        Number::Real(value) => value,
    };
    if !op.saturate {
        return value.to_bits();
    }
    if value > 0.0 { value.min(1.0).to_bits() } else { 0 }
}

fn round_integral(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::NearestAway => value.round(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}
