//! What an instruction moves from register to register, bit by bit.
//!
//! Compilers move bits that nothing wrote and drop them later, for example when they build a word
//! of bytes. Such an instruction uses none of them; what it moves is known here. Every other
//! instruction uses all that it reads.

use crate::program::*;
use crate::ptx::Type;

/// A register by its kind and place.
pub(super) type Key = (RegisterClass, u16);
/// The registers that are written to, and what goes into each.
pub(super) type Moves = Vec<(Key, Vec<Part<Key>>)>;

/// All bits of a number of bits.
fn ones(bits: u32) -> u64 {
    u64::MAX.checked_shr(64_u32.saturating_sub(bits)).unwrap_or(0)
}

fn word(slot: R) -> Key {
    (RegisterClass::Word, slot)
}

fn double(slot: Q) -> Key {
    (RegisterClass::Double, slot)
}

/// Bits of a register, from one place to another.
pub(super) fn bits(from: Key, down: u32, mask: u64, up: u32) -> Part<Key> {
    Part { from, down, mask, up, spread: false, when: None }
}

/// The sign of a value, in the upper bits of a result.
fn sign(from: Key, at: u32, start: u32, end: u32) -> Part<Key> {
    let mask = ones(end.saturating_sub(start));
    Part { from, down: at, mask, up: start, spread: true, when: None }
}

fn of_source(source: Source) -> Option<Key> {
    match source {
        Source::R(r) => Some(word(r)),
        Source::Q(q) => Some(double(q)),
        Source::P(_) => None,
    }
}

/// The parts of a whole, from the lowest on, into the whole.
pub(super) fn packed(whole: Target, parts: &[R], bits_each: u32) -> Moves {
    let part = |(at, &r): (usize, &R)| bits(word(r), 0, ones(bits_each), at as u32 * bits_each);
    let parts = parts.iter().enumerate().map(part).collect();
    of_target(whole).map(|key| (key, parts)).into_iter().collect()
}

/// Registers, each into another one.
pub(super) fn copied(targets: &[Target], sources: &[Source]) -> Moves {
    let pair = |(target, source): (&Target, &Source)| {
        let part = of_source(*source).map(|key| bits(key, 0, u64::MAX, 0));
        Some((of_target(*target)?, part.into_iter().collect()))
    };
    targets.iter().zip(sources).filter_map(pair).collect()
}

/// A whole, into its parts.
pub(super) fn unpacked(parts: &[Target], whole: Source, bits_each: u32) -> Moves {
    let Some(whole) = of_source(whole) else { return Vec::new() };
    let part = |at: usize| vec![bits(whole, at as u32 * bits_each, ones(bits_each), 0)];
    let targets = parts.iter().enumerate();
    targets.filter_map(|(at, target)| Some((of_target(*target)?, part(at)))).collect()
}

fn of_target(target: Target) -> Option<Key> {
    match target {
        Target::R(r, _) => Some(word(r)),
        Target::Q(q) => Some(double(q)),
        Target::P(_) | Target::Nowhere => None,
    }
}

/// What an operation moves, if it moves anything. `constant` gives the values of registers that
/// hold one and the same in all threads.
pub(super) fn moves(op: &Op, constant: &dyn Fn(Key) -> Option<u64>) -> Option<Moves> {
    let of_integer = |op: Integer, width: u32, d: Key, sources: &[Key]| {
        let parts = integer(op, width, false, sources, constant)?;
        Some(vec![(d, parts)])
    };
    match *op {
        Op::Un32(op, d, a) => {
            let a = word(a);
            let parts = match op {
                Un32::Copy | Un32::Not => vec![bits(a, 0, ones(32), 0)],
                Un32::Low16 => vec![bits(a, 0, ones(16), 0)],
                Un32::High16 => vec![bits(a, 16, ones(16), 0)],
                Un32::Signed16 => vec![bits(a, 0, ones(16), 0), sign(a, 15, 16, 32)],
                _ => return None,
            };
            Some(vec![(word(d), parts)])
        }
        Op::Bin32(op, d, a, b) => {
            let (d, sources) = (word(d), [word(a), word(b)]);
            match op {
                Bin32::PackHalves => Some(packed(Target::R(d.1, 32), &[a, b], 16)),
                Bin32::And => of_integer(Integer::And, 32, d, &sources),
                Bin32::Or => of_integer(Integer::Or, 32, d, &sources),
                Bin32::Xor => of_integer(Integer::Xor, 32, d, &sources),
                Bin32::Shl => of_integer(Integer::Shl, 32, d, &sources),
                Bin32::ShrU => of_integer(Integer::Shr, 32, d, &sources),
                Bin32::ShrS => {
                    Some(vec![(d, integer(Integer::Shr, 32, true, &sources, constant)?)])
                }
                _ => None,
            }
        }
        Op::Tri32(op, d, a, b, c) => {
            let op = match op {
                Tri32::BfeU => Integer::Extract,
                Tri32::Prmt => Integer::Permute(Permute::Index),
                Tri32::Lop3(table) => Integer::Lop3(table),
                _ => return None,
            };
            of_integer(op, 32, word(d), &[word(a), word(b), word(c)])
        }
        Op::Bin64(op, d, a, b) => {
            let op = match op {
                Bin64::And => Integer::And,
                Bin64::Or => Integer::Or,
                Bin64::Xor => Integer::Xor,
                _ => return None,
            };
            of_integer(op, 64, double(d), &[double(a), double(b)])
        }
        Op::Copy64(d, a) => Some(vec![(double(d), vec![bits(double(a), 0, ones(64), 0)])]),
        Op::Shl64(d, a, b) => of_integer(Integer::Shl, 64, double(d), &[double(a), word(b)]),
        Op::Shr64 { signed, d, a, b } => {
            let parts = integer(Integer::Shr, 64, signed, &[double(a), word(b)], constant)?;
            Some(vec![(double(d), parts)])
        }
        Op::Extend { signed, d, a } => {
            let mut parts = vec![bits(word(a), 0, ones(32), 0)];
            parts.extend(signed.then(|| sign(word(a), 31, 32, 64)));
            Some(vec![(double(d), parts)])
        }
        Op::Truncate(d, a) => Some(vec![(word(d), vec![bits(double(a), 0, ones(32), 0)])]),
        Op::Pack64 { d, low, high } => Some(packed(Target::Q(d), &[low, high], 32)),
        Op::Unpack64 { low, high, a } => Some(unpacked(&[low, high], Source::Q(a), 32)),
        Op::Select32 { d, a, b, test } => Some(vec![(word(d), chosen(word(a), word(b), test))]),
        Op::Select64 { d, a, b, test } => {
            Some(vec![(double(d), chosen(double(a), double(b), test))])
        }
        Op::Scalar(ref op) => {
            let d = of_target(op.target).filter(|_| op.second == Target::Nowhere)?;
            match op.scalar {
                Scalar::Integer(integer_op, ty) => {
                    let sources: Option<Vec<Key>> = op
                        .sources
                        .iter()
                        .take_while(|source| !matches!(source, Source::P(_)))
                        .map(|&source| of_source(source))
                        .collect();
                    let (width, signed) = (ty.bits(), ty.is_signed());
                    let parts = integer(integer_op, width, signed, &sources?, constant)?;
                    Some(vec![(d, parts)])
                }
                Scalar::Convert(convert) => {
                    Some(vec![(d, conversion(convert, of_source(op.sources[0])?)?)])
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// What a selection takes, in the lanes in which it does.
fn chosen(a: Key, b: Key, test: Test) -> Vec<Part<Key>> {
    let other = Test { negated: !test.negated, ..test };
    let part = |from, when| Part { when: Some(when), ..bits(from, 0, u64::MAX, 0) };
    vec![part(a, test), part(b, other)]
}

/// Conversions of integers drop bits, or extend the sign.
fn conversion(convert: Convert, a: Key) -> Option<Vec<Part<Key>>> {
    let Convert { to, from, saturate, .. } = convert;
    let whole = |ty: Type| ty.is_integer();
    if saturate || !whole(to) || !whole(from) {
        return None;
    }
    let kept = to.bits().min(from.bits());
    let signed = if to.bits() <= from.bits() { to.is_signed() } else { from.is_signed() };
    let mut parts = vec![bits(a, 0, ones(kept), 0)];
    parts.extend(signed.then(|| sign(a, kept - 1, kept, 64)));
    Some(parts)
}

/// What an integer operation of that width moves: logic, and others by constants.
fn integer(
    op: Integer,
    width: u32,
    signed: bool,
    sources: &[Key],
    constant: &dyn Fn(Key) -> Option<u64>,
) -> Option<Vec<Part<Key>>> {
    let all = ones(width);
    let value = |at: usize| constant(*sources.get(at)?);
    let whole = |at: usize, mask: u64| bits(sources[at], 0, mask & all, 0);
    Some(match op {
        Integer::Copy | Integer::Not => vec![whole(0, all)],
        Integer::And => {
            vec![whole(0, value(1).unwrap_or(all)), whole(1, value(0).unwrap_or(all))]
        }
        Integer::Or => {
            vec![whole(0, !value(1).unwrap_or(0)), whole(1, !value(0).unwrap_or(0))]
        }
        Integer::Xor => vec![whole(0, all), whole(1, all)],
        Integer::Shl => {
            let by = value(1)?.min(u64::from(width)) as u32;
            vec![bits(sources[0], 0, ones(width - by), by)]
        }
        Integer::Shr => {
            let by = value(1)?.min(u64::from(width)) as u32;
            let mut parts = vec![bits(sources[0], by, ones(width - by), 0)];
            parts.extend(signed.then(|| sign(sources[0], width - 1, width - by, width)));
            parts
        }
        Integer::Extract => {
            let (at, length) = ((value(1)? & 0xff) as u32, (value(2)? & 0xff) as u32);
            let kept = length.min(width.saturating_sub(at));
            let mut parts = vec![bits(sources[0], at, ones(kept), 0)];
            if signed && length > 0 {
                parts.push(sign(sources[0], (at + length - 1).min(width - 1), kept, width));
            }
            parts
        }
        Integer::Insert => {
            let (at, length) = ((value(2)? & 0xff) as u32, (value(3)? & 0xff) as u32);
            let kept = length.min(width.saturating_sub(at));
            let place = ones(kept).checked_shl(at).unwrap_or(0);
            vec![bits(sources[0], 0, ones(kept), at), whole(1, !place)]
        }
        Integer::Permute(Permute::Index) => {
            let selectors = value(2)?;
            (0..4_u32)
                .map(|byte| {
                    let selector = (selectors >> (4 * byte)) as u32;
                    let (from, at) = (sources[(selector >> 2 & 1) as usize], 8 * (selector & 3));
                    match selector & 8 != 0 {
                        true => sign(from, at + 7, 8 * byte, 8 * byte + 8),
                        false => bits(from, at, 0xff, 8 * byte),
                    }
                })
                .collect()
        }
        Integer::Lop3(table) => {
            let known = [value(0), value(1), value(2)];
            // Where the result depends on an operand, for some values of what is not known.
            let depends = |on: usize| {
                let differs = |bit: u32| {
                    let fits = |row: usize| {
                        (0..3).all(|at| {
                            at == on
                                || known[at].is_none_or(|value| {
                                    (value >> bit & 1) as usize == row >> (2 - at) & 1
                                })
                        })
                    };
                    let result = |row: usize| table >> row & 1;
                    (0..8).any(|row| fits(row) && result(row) != result(row ^ 4 >> on))
                };
                (0..32).filter(|&bit| differs(bit)).fold(0, |mask, bit| mask | 1_u64 << bit)
            };
            (0..3).map(|at| whole(at, depends(at))).collect()
        }
        _ => return None,
    })
}
