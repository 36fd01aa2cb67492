//! Video instructions: two or four small operations side by side in 32 bits.

use super::scalar::{low, signed};
use crate::program::Video;

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
    let most = if signs[0] { (1 << (bits - 1)) - 1 } else { (1 << bits) - 1 };
    let least = if signs[0] { -most - 1 } else { 0 };
    let (mut merged, mut sum) = (0, c);
    for at in (0..32).step_by(bits as usize) {
        let (x, y) = (part(a, at, signs[1]), part(b, at, signs[2]));
        let result = match op {
            Video::Add => x + y,
            Video::Sub => x - y,
            Video::Average => (x + y + i64::from(x + y >= 0)) >> 1,
            Video::Difference => (x - y).abs(),
            Video::Min => x.min(y),
            Video::Max => x.max(y),
        };
        let result = if saturate { result.clamp(least, most) } else { result };
        merged |= (low(result as u64, bits) as u32) << at;
        sum = sum.wrapping_add(result as u32);
    }
    if accumulate { sum } else { merged }
}
