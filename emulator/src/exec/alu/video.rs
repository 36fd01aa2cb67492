//! Video instructions: two or four small operations side by side in 32 bits, and operations on
//! parts of words.

use super::scalar::{low, signed};
use crate::program::{Relation, Subword, Video, VideoSecond};

/// The operation itself, on values that have their signs.
fn operate(op: Video, x: i64, y: i64) -> i64 {
    let by = |clamp: bool| if clamp { y.min(32) } else { y & 31 };
    match op {
        Video::Add => x + y,
        Video::Sub => x - y,
        Video::Average => (x + y + i64::from(x + y >= 0)) >> 1,
        Video::Difference => (x - y).abs(),
        Video::Min => x.min(y),
        Video::Max => x.max(y),
        Video::ShiftLeft { clamp } => x << by(clamp),
        Video::ShiftRight { clamp } => x >> by(clamp),
        Video::Compare(relation) => i64::from(match relation {
            Relation::Eq => x == y,
            Relation::Ne => x != y,
            Relation::Lt => x < y,
            Relation::Le => x <= y,
            Relation::Gt => x > y,
            _ => x >= y,
        }),
    }
}

/// Holds a value within what some bits can hold, with a sign or without.
fn clamp(value: i64, bits: u32, sign: bool) -> i64 {
    let most = if sign { (1 << (bits - 1)) - 1 } else { (1_i64 << bits) - 1 };
    value.clamp(if sign { -most - 1 } else { 0 }, most)
}

/// Evaluates all parts of `a` and `b`. The results take the place of the parts of `c`, or are added
/// to it as a whole.
pub(crate) fn evaluate(
    op: Video,
    bytes: bool,
    signs: [bool; 3],
    saturate: bool,
    accumulate: bool,
    [a, b, c, _]: [u32; 4],
) -> u32 {
    let bits = if bytes { 8 } else { 16 };
    let part = |word: u32, at: u32, sign: bool| {
        let value = u64::from(word >> at);
        if sign { signed(value, bits) } else { low(value, bits) as i64 }
    };
    let (mut merged, mut sum) = (0, c);
    for at in (0..32).step_by(bits as usize) {
        let result = operate(op, part(a, at, signs[1]), part(b, at, signs[2]));
        let result = if saturate { clamp(result, bits, signs[0]) } else { result };
        merged |= (low(result as u64, bits) as u32) << at;
        sum = sum.wrapping_add(result as u32);
    }
    if accumulate { sum } else { merged }
}

impl Subword {
    /// How many bits it has, and where they start.
    fn place(self) -> (u32, u32) {
        match self {
            Self::Word => (32, 0),
            Self::Half(at) => (16, 16 * at),
            Self::Byte(at) => (8, 8 * at),
        }
    }

    fn take(self, word: u64, sign: bool) -> i64 {
        let (bits, at) = self.place();
        let value = word >> at;
        if sign { signed(value, bits) } else { low(value, bits) as i64 }
    }
}

/// Evaluates one operation on parts of words. The result goes with `c` into a second operation, or
/// takes the place of a part of `c`.
pub(crate) fn evaluate_part(
    op: Video,
    parts: [Subword; 3],
    signs: [bool; 3],
    saturate: bool,
    second: Option<VideoSecond>,
    [a, b, c, _]: [u64; 4],
) -> u32 {
    let (bits, at) = parts[0].place();
    let result = operate(op, parts[1].take(a, signs[1]), parts[2].take(b, signs[2]));
    let result = if saturate { clamp(result, bits, signs[0]) } else { result };
    let addend = Subword::Word.take(c, signs[0]);
    let result = match second {
        None => result,
        Some(VideoSecond::Add) => result + addend,
        Some(VideoSecond::Min) => result.min(addend),
        Some(VideoSecond::Max) => result.max(addend),
    };
    if bits == 32 {
        return result as u32;
    }
    let place = (low(u64::MAX, bits) as u32) << at;
    ((result as u32) << at) & place | c as u32 & !place
}

/// Evaluates `(a * b + c) >> shift`, with the signs and complements of its parts.
#[allow(clippy::too_many_arguments)]
pub(crate) fn product(
    parts: [Subword; 2],
    signs: [bool; 2],
    negate: bool,
    subtract: bool,
    plus_one: bool,
    shift: u32,
    saturate: bool,
    [a, b, c, _]: [u64; 4],
) -> u32 {
    let sign = signs[0] || signs[1] || negate || subtract;
    let product = i128::from(parts[0].take(a, signs[0])) * i128::from(parts[1].take(b, signs[1]));
    let product = if negate { !product } else { product };
    let addend = if subtract { !(c as u32) } else { c as u32 };
    let addend = i128::from(Subword::Word.take(addend.into(), sign));
    let sum = product + addend + i128::from(negate || subtract || plus_one);
    let result = sum >> shift;
    if !saturate {
        return result as u32;
    }
    let (least, most) = match sign {
        true => (i128::from(i32::MIN), i128::from(i32::MAX)),
        false => (0, i128::from(u32::MAX)),
    };
    result.clamp(least, most) as u32
}
