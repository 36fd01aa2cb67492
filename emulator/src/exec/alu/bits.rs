//! Single bits and bytes of integers.

use super::scalar::{low, signed, wide};
use crate::program::Permute;
use crate::ptx::Type;

/// The function of three bits that the table gives, for all bits at once.
pub(crate) fn lop3(table: u8, a: u32, b: u32, c: u32) -> u32 {
    let mut result = 0;
    for row in 0..8 {
        if table >> row & 1 == 1 {
            let pick = |bit, value: u32| if row >> bit & 1 == 1 { value } else { !value };
            result |= pick(2, a) & pick(1, b) & pick(0, c);
        }
    }
    result
}

/// The position of the most significant bit that differs from the sign, or all ones.
pub(crate) fn find(ty: Type, a: u64, shift: bool) -> u64 {
    let bits = ty.bits();
    let a = if ty.is_signed() && signed(a, bits) < 0 { low(!a, bits) } else { low(a, bits) };
    match a.checked_ilog2() {
        None => 0xffff_ffff,
        Some(position) if shift => u64::from(bits - 1 - position),
        Some(position) => u64::from(position),
    }
}

pub(crate) fn extract(ty: Type, a: u64, b: u64, c: u64) -> u64 {
    let bits = ty.bits();
    let (position, length) = (low(b, 8) as u32, low(c, 8) as u32);
    if length == 0 {
        return 0;
    }
    // Beyond the value lies its sign; beyond the field lies the field's most significant bit.
    let shifted = wide(a, ty) >> position.min(bits);
    if length >= bits {
        return shifted as u64;
    }
    let field = low(shifted as u64, length);
    let top = (position + length - 1).min(bits - 1);
    if ty.is_signed() && a >> top & 1 == 1 { field | u64::MAX << length } else { field }
}

pub(crate) fn insert(bits: u32, a: u64, b: u64, c: u64, d: u64) -> u64 {
    let (position, length) = (low(c, 8) as u32, low(d, 8) as u32);
    if position >= bits {
        return b;
    }
    let field = low(u64::MAX, length.min(64)) << position;
    (b & !field) | (a << position & field)
}

/// A run of ones: `b` of them from bit `a` on.
pub(crate) fn mask(a: u64, b: u64, clamp: bool) -> u64 {
    let (from, length) = if clamp { (low(a, 32), low(b, 32)) } else { (low(a, 5), low(b, 5)) };
    if from >= 32 { 0 } else { low(low(u64::MAX, length.min(32) as u32) << from, 32) }
}

pub(crate) fn permute(mode: Permute, a: u64, b: u64, control: u32) -> u64 {
    let bytes = low(b, 32) << 32 | low(a, 32);
    let n = control & 3;
    let selectors: [u32; 4] = match mode {
        Permute::Index => std::array::from_fn(|i| control >> (4 * i) & 0xf),
        Permute::ForwardFour => std::array::from_fn(|i| (n + i as u32) & 7),
        Permute::BackwardFour => std::array::from_fn(|i| n.wrapping_sub(i as u32) & 7),
        Permute::Replicate => [n; 4],
        Permute::EdgeLeft => std::array::from_fn(|i| n.max(i as u32)),
        Permute::EdgeRight => std::array::from_fn(|i| n.min(i as u32)),
        Permute::ReplicateHalf => std::array::from_fn(|i| (2 * (n & 1)) + (i as u32 & 1)),
    };
    let mut result = 0;
    for (i, selector) in selectors.into_iter().enumerate() {
        let byte = low(bytes >> (8 * (selector & 7)), 8);
        let sign = selector & 8 != 0;
        let byte = if !sign { byte } else { (byte >> 7) * 0xff };
        result |= byte << (8 * i);
    }
    result
}

/// The lowest `b` bits of `a`, extended.
pub(crate) fn sign_or_zero_extend(ty: Type, a: u64, b: u64, clamp: bool) -> u64 {
    let bits = if clamp { b.min(32) as u32 } else { low(b, 5) as u32 };
    match ty.is_signed() {
        _ if bits == 0 => 0,
        true => signed(a, bits) as u64,
        false => low(a, bits),
    }
}

/// The position of the n-th set bit from a position on, upwards or downwards, or all ones.
pub(crate) fn find_set(mask: u32, base: u32, offset: i32) -> u64 {
    const NONE: u64 = 0xffff_ffff;
    let is_set = |at: &u32| mask >> at & 1 == 1;
    let nth = offset.unsigned_abs() as usize;
    let found = match offset {
        // A base beyond the mask is undefined.
        _ if base > 31 => None,
        0 => Some(base).filter(is_set),
        1.. => (base..32).filter(is_set).nth(nth - 1),
        _ => (0..=base).rev().filter(is_set).nth(nth - 1),
    };
    found.map_or(NONE, u64::from)
}
