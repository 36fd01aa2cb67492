//! Arithmetic lane by lane: every operation of the instruction set in its plainest form.
//!
//! The operations that kernels spend their time in have a second form over all lanes in `lanes`. A
//! test compares it with this one.

use std::cmp::Ordering;

use super::bits::{extract, find, find_set, insert, lop3, mask, permute, sign_or_zero_extend};
use super::convert;
use super::video;
use crate::program::{Comparison, Integer, Logic, Relation, Scalar};
use crate::ptx::Type;

/// The lowest `bits` of a value.
pub(crate) fn low(value: u64, bits: u32) -> u64 {
    if bits >= 64 { value } else { value & ((1 << bits) - 1) }
}

/// The value of the lowest `bits`, sign-extended.
pub(crate) fn signed(value: u64, bits: u32) -> i64 {
    let spare = 64 - bits.min(64);
    (value << spare) as i64 >> spare
}

/// Evaluates one lane: the result, and the second predicate that `setp` writes.
pub(crate) fn evaluate(scalar: &Scalar, s: [u64; 4]) -> (u64, bool) {
    match *scalar {
        Scalar::Integer(op, ty) => (integer(op, ty, s), false),
        Scalar::Float(op, mode) => (super::float::evaluate(op, mode, s), false),
        Scalar::Approximate(op, mode) => (super::jitter::approximate(op, mode, s), false),
        Scalar::SetPredicate(comparison) => {
            let (first, second) = compare(comparison, s);
            (u64::from(first), second)
        }
        Scalar::Set(comparison, ty) => (set(comparison, ty, s), false),
        Scalar::Select => (if s[2] != 0 { s[0] } else { s[1] }, false),
        Scalar::SelectBySign { float: false, .. } => {
            (if s[2] as i32 >= 0 { s[0] } else { s[1] }, false)
        }
        Scalar::SelectBySign { float: true, flush } => {
            let c = if flush { super::round::flush32(s[2] as u32) } else { s[2] as u32 };
            (if f32::from_bits(c) >= 0.0 { s[0] } else { s[1] }, false)
        }
        Scalar::Convert(op) => (convert::evaluate(op, s), false),
        Scalar::Video { op, bytes, signs, saturate, accumulate } => {
            let s = s.map(|value| value as u32);
            let result = video::evaluate(op, bytes, signs, saturate, accumulate, s);
            (u64::from(result), false)
        }
        Scalar::VideoPart { op, parts, signs, saturate, second } => {
            (video::evaluate_part(op, parts, signs, saturate, second, s).into(), false)
        }
        Scalar::VideoProduct { parts, signs, negate, subtract, plus_one, shift, saturate } => {
            let result =
                video::product(parts, signs, negate, subtract, plus_one, shift, saturate, s);
            (result.into(), false)
        }
    }
}

/// The value of a comparison: all ones or one where it holds, of each half where they are packed.
fn set(comparison: Comparison, ty: Type, s: [u64; 4]) -> u64 {
    let one = match ty {
        Type::F32 => u64::from(1_f32.to_bits()),
        Type::F16 | Type::F16x2 => 0x3c00,
        Type::Bf16 | Type::Bf16x2 => 0x3f80,
        _ if comparison.ty.is_packed() => 0xffff,
        _ => u64::MAX,
    };
    let (low, high) = compare(comparison, s);
    let high = if comparison.ty.is_packed() && high { one << 16 } else { 0 };
    if low { one | high } else { high }
}

/// Whether a comparison holds, and whether its opposite does; of packed values whether it holds for
/// the low and for the high ones.
fn compare(comparison: Comparison, s: [u64; 4]) -> (bool, bool) {
    let Comparison { relation, ty, flush, combine } = comparison;
    let with = |holds: bool| match combine {
        None => holds,
        Some(Logic::And) => holds & (s[2] != 0),
        Some(Logic::Or) => holds | (s[2] != 0),
        Some(Logic::Xor) => holds ^ (s[2] != 0),
    };
    if ty.is_packed() {
        let half = |shift: u32| {
            let value = |bits: u64| super::float::value(ty.element(), bits >> shift, flush);
            with(holds(relation, value(s[0]).partial_cmp(&value(s[1]))))
        };
        return (half(0), half(16));
    }
    let ordering = if ty.is_float() {
        let value = |bits| super::float::value(ty, bits, flush);
        value(s[0]).partial_cmp(&value(s[1]))
    } else {
        Some(wide(s[0], ty).cmp(&wide(s[1], ty)))
    };
    let holds = holds(relation, ordering);
    (with(holds), with(!holds))
}

fn holds(relation: Relation, ordering: Option<Ordering>) -> bool {
    use Ordering::*;
    let unordered = ordering.is_none();
    match relation {
        Relation::Eq => ordering == Some(Equal),
        Relation::Ne => matches!(ordering, Some(Less | Greater)),
        Relation::Lt => ordering == Some(Less),
        Relation::Le => matches!(ordering, Some(Less | Equal)),
        Relation::Gt => ordering == Some(Greater),
        Relation::Ge => matches!(ordering, Some(Greater | Equal)),
        Relation::EqU => unordered || ordering == Some(Equal),
        Relation::NeU => ordering != Some(Equal),
        Relation::LtU => unordered || ordering == Some(Less),
        Relation::LeU => ordering != Some(Greater),
        Relation::GtU => unordered || ordering == Some(Greater),
        Relation::GeU => ordering != Some(Less),
        Relation::Num => !unordered,
        Relation::Nan => unordered,
    }
}

/// The value as an exact integer.
pub(crate) fn wide(value: u64, ty: Type) -> i128 {
    if ty.is_signed() {
        i128::from(signed(value, ty.bits()))
    } else {
        i128::from(low(value, ty.bits()))
    }
}

fn saturate(value: i128, bits: u32) -> u64 {
    let most = (1_i128 << (bits - 1)) - 1;
    value.clamp(-most - 1, most) as u64
}

fn integer(op: Integer, ty: Type, [a, b, c, d]: [u64; 4]) -> u64 {
    let bits = ty.bits();
    let (x, y) = (wide(a, ty), wide(b, ty));
    let result = match op {
        Integer::Add => a.wrapping_add(b),
        Integer::Sub => a.wrapping_sub(b),
        Integer::AddSaturate => saturate(x + y, bits),
        Integer::SubSaturate => saturate(x - y, bits),
        Integer::MulLow => a.wrapping_mul(b),
        Integer::MulHigh => (x.wrapping_mul(y) >> bits) as u64,
        Integer::MulWide => return low(x.wrapping_mul(y) as u64, 2 * bits),
        Integer::MadLow => a.wrapping_mul(b).wrapping_add(c),
        Integer::MadHigh => ((x.wrapping_mul(y) >> bits) as u64).wrapping_add(c),
        Integer::MadHighSaturate => saturate((x.wrapping_mul(y) >> bits) + wide(c, ty), bits),
        Integer::MadWide => return low((x.wrapping_mul(y) as u64).wrapping_add(c), 2 * bits),
        Integer::Mul24Low => product24(ty, a, b) as u64,
        Integer::Mul24High => (product24(ty, a, b) >> 16) as u64,
        Integer::Mad24Low => (product24(ty, a, b) as u64).wrapping_add(c),
        Integer::Mad24High => ((product24(ty, a, b) >> 16) as u64).wrapping_add(c),
        Integer::Mad24HighSaturate => saturate((product24(ty, a, b) >> 16) + wide(c, ty), bits),
        Integer::Sad => ((x - y).unsigned_abs() as u64).wrapping_add(c),
        // Division by zero gives an unspecified value; all ones is as good as any.
        Integer::Div => x.checked_div(y).map_or(u64::MAX, |value| value as u64),
        Integer::Rem => x.checked_rem(y).map_or(u64::MAX, |value| value as u64),
        Integer::Abs => x.unsigned_abs() as u64,
        Integer::Neg => a.wrapping_neg(),
        Integer::Min => x.min(y) as u64,
        Integer::Max => x.max(y) as u64,
        Integer::MinRelu => x.min(y).max(0) as u64,
        Integer::MaxRelu => x.max(y).max(0) as u64,
        Integer::And => a & b,
        Integer::Or => a | b,
        Integer::Xor => a ^ b,
        Integer::Not => !a,
        Integer::IsZero => u64::from(low(a, bits) == 0),
        Integer::Shl if b >= u64::from(bits) => 0,
        Integer::Shl => a << b,
        Integer::Shr => (x >> (b as u32).min(bits)) as u64,
        Integer::FunnelLeft { clamp } => {
            let n = if clamp { (c as u32).min(32) } else { c as u32 & 31 };
            ((low(b, 32) << 32 | low(a, 32)) << n) >> 32
        }
        Integer::FunnelRight { clamp } => {
            let n = if clamp { (c as u32).min(32) } else { c as u32 & 31 };
            (low(b, 32) << 32 | low(a, 32)) >> n
        }
        Integer::Lop3(table) => u64::from(lop3(table, a as u32, b as u32, c as u32)),
        Integer::Popc => return u64::from(low(a, bits).count_ones()),
        Integer::LeadingZeros => return u64::from(low(a, bits).leading_zeros() - (64 - bits)),
        Integer::Find { shift } => return find(ty, a, shift),
        Integer::Reverse => a.reverse_bits() >> (64 - bits),
        Integer::Extract => extract(ty, a, b, c),
        Integer::Insert => insert(bits, a, b, c, d),
        Integer::Mask { clamp } => mask(a, b, clamp),
        Integer::Permute(mode) => permute(mode, a, b, c as u32),
        Integer::Dot4 { a_signed, b_signed } => {
            let byte = |v: u64, i, sign| element(v >> (8 * i), 8, sign);
            let sum: i64 = (0..4).map(|i| byte(a, i, a_signed) * byte(b, i, b_signed)).sum();
            (sum as u64).wrapping_add(c)
        }
        Integer::Dot2 { a_signed, b_signed, high } => {
            let b = if high { b >> 16 } else { b };
            let word = |i| element(a >> (16 * i), 16, a_signed);
            let sum: i64 = (0..2).map(|i| word(i) * element(b >> (8 * i), 8, b_signed)).sum();
            (sum as u64).wrapping_add(c)
        }
        Integer::Copy => a,
        Integer::SignOrZeroExtend { clamp } => sign_or_zero_extend(ty, a, b, clamp),
        Integer::FindSet => return find_set(a as u32, b as u32, c as i32),
        Integer::MinPacked { relu: false } => packed(ty, a, b, i64::min),
        Integer::MaxPacked { relu: false } => packed(ty, a, b, i64::max),
        Integer::MinPacked { relu: true } => packed(ty, a, b, |x, y| x.min(y).max(0)),
        Integer::MaxPacked { relu: true } => packed(ty, a, b, |x, y| x.max(y).max(0)),
        Integer::AddPacked => packed(ty, a, b, |x, y| x + y),
        Integer::Pack { bits, signed: sign } => {
            let most = if sign { (1 << (bits - 1)) - 1 } else { (1 << bits) - 1 };
            let least = if sign { -most - 1 } else { 0 };
            let held = |value| low(signed(value, 32).clamp(least, most) as u64, bits);
            c << (2 * bits) | held(a) << bits | held(b)
        }
    };
    low(result, bits)
}

fn element(value: u64, bits: u32, sign: bool) -> i64 {
    if sign { signed(value, bits) } else { low(value, bits) as i64 }
}

fn packed(ty: Type, a: u64, b: u64, combine: impl Fn(i64, i64) -> i64) -> u64 {
    let sign = ty == Type::S16x2;
    let half = |shift| combine(element(a >> shift, 16, sign), element(b >> shift, 16, sign));
    low(half(0) as u64, 16) | low(half(16) as u64, 16) << 16
}

fn product24(ty: Type, a: u64, b: u64) -> i128 {
    let part = |value| i128::from(element(value, 24, ty.is_signed()));
    part(a) * part(b)
}
