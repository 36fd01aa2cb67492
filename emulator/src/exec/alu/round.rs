//! Rounding to the floating-point formats of PTX.
//!
//! Every operand of 32 bits or fewer is exact in f64, and so is every product of two of them. A sum
//! or a quotient is kept as its nearest f64 and the sign of what is missing; that pair is first
//! rounded to odd, after which one more rounding to any narrower format is right in every mode.

use crate::program::Rounding;

/// A binary floating-point format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    exponent_bits: u32,
    mantissa_bits: u32,
}

pub(crate) const F16: Format = Format { exponent_bits: 5, mantissa_bits: 10 };
pub(crate) const BF16: Format = Format { exponent_bits: 8, mantissa_bits: 7 };
pub(crate) const TF32: Format = Format { exponent_bits: 8, mantissa_bits: 10 };
pub(crate) const F32: Format = Format { exponent_bits: 8, mantissa_bits: 23 };
pub(crate) const E5M2: Format = Format { exponent_bits: 5, mantissa_bits: 2 };
/// Has no infinity. Its largest exponent belongs to numbers, except for one NaN.
pub(crate) const E4M3: Format = Format { exponent_bits: 4, mantissa_bits: 3 };

/// The NaN that f32 instructions return.
pub(crate) const NAN32: u32 = 0x7fff_ffff;

impl Format {
    fn sign(self) -> u32 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    /// The NaN that instructions of the format return: all bits set but the sign.
    pub(crate) fn nan(self) -> u32 {
        self.sign() - 1
    }

    /// Positive infinity.
    pub(crate) fn infinity(self) -> u32 {
        ((1 << self.exponent_bits) - 1) << self.mantissa_bits
    }

    /// The largest finite magnitude.
    pub(crate) fn most(self) -> u32 {
        if self == E4M3 { self.nan() - 1 } else { self.infinity() - 1 }
    }

    /// The bits of a value rounded to the format.
    pub(crate) fn round(self, value: f64, rounding: Rounding) -> u32 {
        let bits = value.to_bits();
        let negative = bits >> 63 != 0;
        let sign = if negative { self.sign() } else { 0 };
        if value.is_nan() {
            return self.nan();
        }
        if value.is_infinite() {
            return sign | (self.most() + 1);
        }
        if value == 0.0 {
            return sign;
        }
        let field = (bits >> 52 & 0x7ff) as i32;
        let fraction = bits & ((1 << 52) - 1);
        // value = mantissa * 2^(exponent - 52)
        let (mantissa, exponent) =
            if field == 0 { (fraction, -1022) } else { (fraction | 1 << 52, field - 1023) };
        let least = 2 - (1 << (self.exponent_bits - 1));
        let place = exponent.max(least);
        let dropped = place - self.mantissa_bits as i32 - (exponent - 52);
        let (kept, rest, half) = if dropped >= 64 {
            (0, 1, 2)
        } else {
            let unit = 1_u64 << dropped;
            (mantissa >> dropped, mantissa & (unit - 1), unit >> 1)
        };
        let up = match rounding {
            Rounding::Nearest => rest > half || (rest == half && kept & 1 == 1),
            Rounding::NearestAway => rest >= half,
            Rounding::Zero => false,
            Rounding::Down => negative && rest != 0,
            Rounding::Up => !negative && rest != 0,
        };
        let magnitude =
            u64::from((place - least) as u32) * (1 << self.mantissa_bits) + kept + u64::from(up);
        if magnitude <= u64::from(self.most()) {
            return sign | magnitude as u32;
        }
        let to_infinity = match rounding {
            Rounding::Nearest | Rounding::NearestAway => true,
            Rounding::Zero => false,
            Rounding::Down => negative,
            Rounding::Up => !negative,
        };
        sign | if to_infinity { self.most() + 1 } else { self.most() }
    }

    /// The value of bits of the format.
    pub(crate) fn value(self, bits: u32) -> f64 {
        if self.exponent_bits == 8 {
            let shift = 23 - self.mantissa_bits;
            return f64::from(f32::from_bits(bits << shift));
        }
        let magnitude = bits & self.nan();
        let sign = if bits & self.sign() != 0 { -1.0 } else { 1.0 };
        if magnitude > self.most() {
            let infinite = self != E4M3 && magnitude == self.infinity();
            return sign * if infinite { f64::INFINITY } else { f64::NAN };
        }
        let (field, bias) = (magnitude >> self.mantissa_bits, (1 << (self.exponent_bits - 1)) - 1);
        let fraction = f64::from(magnitude & ((1 << self.mantissa_bits) - 1));
        let unit = 2_f64.powi(field.max(1) as i32 - bias - self.mantissa_bits as i32);
        let hidden = if field == 0 { 0.0 } else { f64::from(1_u32 << self.mantissa_bits) };
        sign * (hidden + fraction) * unit
    }
}

/// A real number: the nearest f64, and the sign of the real number less that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exact {
    near: f64,
    rest: f64,
}

impl Exact {
    pub(crate) fn of(near: f64) -> Self {
        Self { near, rest: 0.0 }
    }

    /// The sum of two f64.
    pub(crate) fn sum(a: f64, b: f64) -> Self {
        let near = a + b;
        if !near.is_finite() {
            return Self::of(near);
        }
        let from_b = near - a;
        let from_a = near - from_b;
        Self { near, rest: (a - from_a) + (b - from_b) }
    }

    /// The quotient of two f64 that hold f32 values.
    pub(crate) fn quotient(a: f64, b: f64) -> Self {
        let near = a / b;
        if !near.is_finite() || near == 0.0 || b.is_infinite() {
            return Self::of(near);
        }
        Self { near, rest: f64::mul_add(-near, b, a) * b.signum() }
    }

    /// The square root of a f64 that holds a f32 value.
    pub(crate) fn root(a: f64) -> Self {
        let near = a.sqrt();
        if !near.is_finite() || near == 0.0 {
            return Self::of(near);
        }
        Self { near, rest: f64::mul_add(-near, near, a) }
    }

    /// An integer.
    pub(crate) fn integer(value: i128) -> Self {
        let near = value as f64;
        Self { near, rest: (value - near as i128) as f64 }
    }

    /// The f64 that rounds to any narrower format as the real number does.
    pub(crate) fn to_odd(self) -> f64 {
        if self.rest == 0.0 || !self.near.is_finite() {
            return self.near;
        }
        let mut bits = self.near.to_bits();
        if (self.rest < 0.0) != (self.near < 0.0) {
            // The nearest f64 is farther from zero than the real number.
            bits -= 1;
        }
        f64::from_bits(bits | 1)
    }
}

/// A f32 with subnormals replaced by zeros of the same sign.
pub(crate) fn flush32(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}
