//! Conversions between types.

use super::round::{BF16, E4M3, E5M2, Exact, F16, F32, Format, Rounding, TF32, flush32};
use super::scalar::signed;
use super::{double, float};
use crate::ptx::Type;

/// A conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Convert {
    pub(crate) to: Type,
    pub(crate) from: Type,
    pub(crate) rounding: Rounding,
    /// Whether it rounds to an integer, which may stay in a floating-point type.
    pub(crate) integral: bool,
    /// `.ftz`: f32 subnormals become zeros.
    pub(crate) flush: bool,
    /// `.sat`
    pub(crate) saturate: bool,
    /// `.relu`: negative results become 0.
    pub(crate) relu: bool,
    /// `.satfinite`: overflow gives the largest finite value.
    pub(crate) finite: bool,
}

enum Number {
    Integer(i128),
    Real(f64),
}

impl Convert {
    /// Converts one value, or two to a packed type, the first into the upper half.
    pub(crate) fn evaluate(self, s: [u64; 4]) -> u64 {
        let (to, width) = match self.to {
            Type::F16x2 => (Type::F16, 16),
            Type::Bf16x2 => (Type::Bf16, 16),
            Type::E4m3x2 | Type::E5m2x2 => (self.to, 8),
            _ => return self.one(s[0]),
        };
        // Two sources, or one with two values.
        let (from, high, low) = match self.from {
            Type::F16x2 => (Type::F16, s[0] >> 16, s[0] & 0xffff),
            Type::E4m3x2 | Type::E5m2x2 => (self.from, s[0] >> 8, s[0] & 0xff),
            from => (from, s[0], s[1]),
        };
        let single = Self { to, from, ..self };
        single.one(high) << width | single.one(low)
    }

    fn one(self, bits: u64) -> u64 {
        let width = self.from.bits();
        let number = if self.from.is_float() {
            Number::Real(float::value(self.from, bits, self.flush && self.from == Type::F32))
        } else if self.from.is_signed() {
            Number::Integer(i128::from(signed(bits, width)))
        } else {
            let spare = 64 - width;
            Number::Integer(i128::from(bits << spare >> spare))
        };
        match self.to {
            Type::F16 => u64::from(self.to_format(F16, number)),
            Type::Bf16 => u64::from(self.to_format(BF16, number)),
            Type::F32 => u64::from(self.to_format(F32, number)),
            Type::Tf32 => u64::from(self.to_format(TF32, number)) << 13,
            Type::E4m3x2 => u64::from(self.to_format(E4M3, number)),
            Type::E5m2x2 => u64::from(self.to_format(E5M2, number)),
            Type::F64 => self.to_double(number),
            _ => self.to_integer(number),
        }
    }

    fn to_integer(self, number: Number) -> u64 {
        let bits = self.to.bits();
        let (least, most) = if self.to.is_signed() {
            (-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1)
        } else {
            (0, (1_i128 << bits) - 1)
        };
        let value = match number {
            Number::Integer(value) if self.saturate => value.clamp(least, most),
            Number::Integer(value) => value,
            Number::Real(value) if value.is_nan() => {
                // NaN gives 0, but the most significant bit alone where 64 bits are involved.
                if self.from == Type::F64 || bits == 64 { 1 << (bits - 1) } else { 0 }
            }
            // Rust's conversion of a float to i128 saturates.
            Number::Real(value) => {
                (round_integral(value, self.rounding) as i128).clamp(least, most)
            }
        };
        // A wider destination takes the value extended by its sign.
        let spare = 64 - bits;
        let placed = (value as u64) << spare;
        if self.to.is_signed() { (placed as i64 >> spare) as u64 } else { placed >> spare }
    }

    fn to_format(self, format: Format, number: Number) -> u32 {
        let value = match number {
            Number::Integer(value) => Exact::integer(value).to_odd(),
            Number::Real(value) if self.integral => round_integral(value, self.rounding),
            Number::Real(value) => value,
        };
        let mut bits = format.round(value, self.rounding);
        if self.flush && format == F32 {
            bits = flush32(bits);
        }
        let rounded = format.value(bits);
        if self.saturate {
            return if rounded.is_nan() || rounded <= 0.0 {
                0
            } else {
                format.round(rounded.min(1.0), Rounding::Nearest)
            };
        }
        if self.relu && rounded <= 0.0 {
            return 0;
        }
        // Past the largest finite value comes infinity, or in one format NaN.
        let overflows = bits & format.nan() == format.most() + 1 && !value.is_nan();
        if self.finite && overflows { bits - 1 } else { bits }
    }

    fn to_double(self, number: Number) -> u64 {
        let value = match number {
            Number::Integer(value) => double::of_integer(value, self.rounding),
            Number::Real(value) if self.integral => round_integral(value, self.rounding),
            Number::Real(value) => value,
        };
        if !self.saturate {
            return value.to_bits();
        }
        if value > 0.0 { value.min(1.0).to_bits() } else { 0 }
    }
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
