//! Floating-point operations of one lane, in every format, rounding mode and with every modifier.
//!
//! The approximations of the instruction set are computed in f64 and rounded once: more exact than
//! any device, and within each instruction's bound.

use super::double;
use super::round::{BF16, E4M3, E5M2, Exact, F16, F32, Format, NAN32, flush32};
use crate::program::{Float, FloatMode, FloatTest, Rounding};
use crate::ptx::Type;

/// The value of a register of a floating-point type.
pub(crate) fn value(ty: Type, bits: u64, flush: bool) -> f64 {
    match format(ty) {
        None => f64::from_bits(bits),
        Some(format) => {
            let bits = bits as u32 & (u32::MAX >> (32 - ty.bits()));
            format.value(if flush { flush_in(ty, bits) } else { bits })
        }
    }
}

fn flush_in(ty: Type, bits: u32) -> u32 {
    match ty {
        Type::F32 => flush32(bits),
        Type::F16 if bits & 0x7c00 == 0 => bits & 0x8000,
        Type::Bf16 if bits & 0x7f80 == 0 => bits & 0x8000,
        _ => bits,
    }
}

fn format(ty: Type) -> Option<Format> {
    Some(match ty {
        Type::F16 | Type::F16x2 => F16,
        Type::Bf16 | Type::Bf16x2 => BF16,
        Type::E4m3x2 => E4M3,
        Type::E5m2x2 => E5M2,
        Type::F32 => F32,
        _ => return None,
    })
}

/// Evaluates one operation on the values of one lane.
pub(crate) fn evaluate(op: Float, mode: FloatMode, s: [u64; 4]) -> u64 {
    let half = match mode.ty {
        Type::F16x2 => Type::F16,
        Type::Bf16x2 => Type::Bf16,
        Type::F64 => return double(op, mode, s),
        _ => return u64::from(narrow(op, mode, s.map(|bits| bits as u32))),
    };
    let mode = FloatMode { ty: half, ..mode };
    let part =
        |shift: u32| u64::from(narrow(op, mode, s.map(|bits| (bits >> shift) as u32 & 0xffff)));
    part(0) | part(16) << 16
}

/// An operation in 16 or 32 bits.
fn narrow(op: Float, mode: FloatMode, s: [u32; 4]) -> u32 {
    let ty = mode.ty;
    let format = format(ty).unwrap_or(F32);
    let sign = format.nan() + 1;
    let bits = s.map(|bits| if ty.bits() == 16 { bits & 0xffff } else { bits });
    let bits = if mode.flush { bits.map(|bits| flush_in(ty, bits)) } else { bits };
    let [a, b, c, _] = bits.map(|bits| format.value(bits));
    let quiet = |bits: u32| if format.value(bits).is_nan() { format.nan() } else { bits };
    let exact = match op {
        Float::Add => sum(a, b, mode.rounding),
        Float::Sub => sum(a, -b, mode.rounding),
        Float::Mul => Exact::of(a * b),
        Float::Fma => sum(a * b, c, mode.rounding),
        Float::Div => Exact::quotient(a, b),
        Float::DivApprox if b.abs() > 2_f64.powi(126) && b.is_finite() => {
            Exact::of(if a.is_infinite() { f64::NAN } else { (a * b).signum() * 0.0 })
        }
        Float::DivApprox => Exact::of(a / b),
        Float::Reciprocal | Float::ReciprocalUpper => Exact::quotient(1.0, a),
        Float::SquareRoot => Exact::root(a),
        Float::ReciprocalRoot | Float::ReciprocalRootUpper => Exact::of(1.0 / a.sqrt()),
        Float::Sin => Exact::of(a.sin()),
        Float::Cos => Exact::of(a.cos()),
        Float::Log2 => Exact::of(a.log2()),
        Float::Exp2 => Exact::of(a.exp2()),
        Float::Tanh => Exact::of(a.tanh()),
        Float::Abs => return quiet(bits[0] & !sign),
        Float::Neg => return quiet(bits[0] ^ sign),
        Float::Min | Float::Max => return extremum(op, mode, format, bits),
        // The sign of the first, the magnitude of the second.
        Float::Copysign => return bits[0] & sign | bits[1] & !sign,
        Float::Test(test) => return u32::from(classify(test, format, bits[0])),
    };
    let mut result = format.round(exact.to_odd(), mode.rounding);
    if mode.flush {
        result = flush_in(ty, result);
    }
    clamp(result, mode, format)
}

/// A sum; an exact zero of operands of both signs is negative only when rounding down.
fn sum(a: f64, b: f64, rounding: Rounding) -> Exact {
    let opposite = a.is_sign_negative() != b.is_sign_negative();
    if rounding == Rounding::Down && opposite && a == -b {
        return Exact::of(-0.0);
    }
    Exact::sum(a, b)
}

/// Applies `.sat` and `.relu`; both turn NaN into what they name.
fn clamp(result: u32, mode: FloatMode, format: Format) -> u32 {
    let value = format.value(result);
    if mode.saturate {
        return if value.is_nan() || value <= 0.0 {
            0
        } else {
            format.round(value.min(1.0), Rounding::Nearest)
        };
    }
    if mode.relu && value <= 0.0 { 0 } else { result }
}

fn extremum(op: Float, mode: FloatMode, format: Format, bits: [u32; 4]) -> u32 {
    let sign = format.nan() + 1;
    let product_sign = (bits[0] ^ bits[1]) & sign;
    let [a, b, ..] = if mode.xorsign { bits.map(|bits| bits & !sign) } else { bits };
    let (x, y) = (format.value(a), format.value(b));
    if (x.is_nan() && y.is_nan()) || (mode.nan && (x.is_nan() || y.is_nan())) {
        return format.nan();
    }
    let picked = if x.is_nan() {
        b
    } else if y.is_nan() {
        a
    } else {
        // Minus zero is less than plus zero.
        let a_is_less = x < y || (x == y && a & sign != 0);
        if a_is_less == (op == Float::Min) { a } else { b }
    };
    if mode.xorsign { picked | product_sign } else { picked }
}

fn classify(test: FloatTest, format: Format, bits: u32) -> bool {
    let magnitude = bits & format.nan();
    let infinity = format.infinity();
    let smallest_normal = infinity & infinity.wrapping_neg();
    match test {
        FloatTest::Finite => magnitude < infinity,
        FloatTest::Infinite => magnitude == infinity,
        FloatTest::Number => magnitude <= infinity,
        FloatTest::NotANumber => magnitude > infinity,
        // Zeros count as normal.
        FloatTest::Normal => magnitude == 0 || (smallest_normal..infinity).contains(&magnitude),
        FloatTest::Subnormal => (1..smallest_normal).contains(&magnitude),
    }
}

/// An operation in f64.
fn double(op: Float, mode: FloatMode, s: [u64; 4]) -> u64 {
    const SIGN: u64 = 1 << 63;
    let [a, b, c, _] = s.map(f64::from_bits);
    let rounding = mode.rounding;
    let result = match op {
        Float::Add => double::add(a, b, rounding),
        Float::Sub => double::add(a, -b, rounding),
        Float::Mul => double::mul(a, b, rounding),
        Float::Fma => double::fma(a, b, c, rounding),
        Float::Div | Float::DivApprox => double::div(a, b, rounding),
        Float::Reciprocal => double::div(1.0, a, rounding),
        Float::SquareRoot => double::sqrt(a, rounding),
        Float::ReciprocalRoot => 1.0 / a.sqrt(),
        Float::ReciprocalUpper => upper(1.0 / flush_double(upper(a))),
        Float::ReciprocalRootUpper => upper(1.0 / flush_double(upper(a)).sqrt()),
        Float::Sin => a.sin(),
        Float::Cos => a.cos(),
        Float::Log2 => a.log2(),
        Float::Exp2 => a.exp2(),
        Float::Tanh => a.tanh(),
        Float::Abs => return s[0] & !SIGN,
        Float::Neg => return s[0] ^ SIGN,
        Float::Copysign => return s[0] & SIGN | s[1] & !SIGN,
        Float::Min | Float::Max if a.is_nan() => b,
        Float::Min | Float::Max if b.is_nan() => a,
        Float::Min | Float::Max => {
            let a_is_less = a < b || (a == b && a.is_sign_negative());
            if a_is_less == (op == Float::Min) { a } else { b }
        }
        Float::Test(test) => {
            return u64::from(match test {
                FloatTest::Finite => a.is_finite(),
                FloatTest::Infinite => a.is_infinite(),
                FloatTest::Number => !a.is_nan(),
                FloatTest::NotANumber => a.is_nan(),
                FloatTest::Normal => a.is_normal() || a == 0.0,
                FloatTest::Subnormal => a.is_subnormal(),
            });
        }
    };
    result.to_bits()
}

fn flush_double(value: f64) -> f64 {
    if value.is_subnormal() { 0_f64.copysign(value) } else { value }
}

/// The upper 32 bits of an approximation, rounded, with zeros below.
fn upper(value: f64) -> f64 {
    let kept = f64::from_bits(value.to_bits() & 0xffff_ffff_0000_0000);
    flush_double(if value.is_nan() { f64::from_bits(0x7fff_ffff_0000_0000) } else { kept })
}

/// A f32 whose NaN is the one that instructions return.
#[inline(always)]
pub(crate) fn quiet(value: f32) -> u32 {
    if value.is_nan() { NAN32 } else { value.to_bits() }
}

/// The bits of a square root, with the one NaN of the device. The compiler takes a comparison of a
/// root with itself for one of the operand, and then any NaN for another: not of bits.
#[inline(always)]
pub(crate) fn quiet_root(root: f32) -> u32 {
    let bits = root.to_bits();
    let mask = if bits << 1 > 0xff00_0000 { u32::MAX } else { 0 };
    (bits | mask) & !(mask << 31)
}

/// A f32 rounded to bf16.
#[inline(always)]
pub(crate) fn to_bf16(bits: u32) -> u32 {
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { rounded }
}

/// A f32 rounded to f16.
#[inline(always)]
pub(crate) fn to_f16(bits: u32) -> u32 {
    let sign = bits >> 16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // Normal results: change the bias of the exponent and round off 13 bits.
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_add(0xfff + odd).wrapping_sub(112 << 23) >> 13;
    // Subnormal results: adding one half lets the addition round at the right place.
    let shifted = (f32::from_bits(magnitude) + 0.5).to_bits();
    let subnormal = shifted.wrapping_sub(0.5_f32.to_bits());
    let finite = if magnitude < 113 << 23 { subnormal } else { normal };
    let large = if magnitude > 0x7f80_0000 { 0x7fff } else { 0x7c00 };
    let limited = if magnitude >= 0x477f_f000 { large } else { finite };
    if magnitude > 0x7f80_0000 { 0x7fff } else { sign | limited }
}

/// The f32 value of an f16.
#[inline(always)]
pub(crate) fn from_f16(bits: u32) -> u32 {
    let sign = (bits & 0x8000) << 16;
    let magnitude = (bits & 0x7fff) << 13;
    // Scaling moves the exponent's bias, subnormals included; infinity and NaN are set apart.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = magnitude | 0x7f80_0000;
    let is_special = bits & 0x7c00 == 0x7c00;
    sign | if is_special { special } else { scaled }
}
