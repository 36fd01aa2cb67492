//! Intrinsics on the halves and bytes of a word.

use super::words::{Expression, Words, check};

/// The parts of a word, with or without their signs.
fn parts<const BITS: u32, const SIGNED: bool>(word: u32) -> impl Iterator<Item = i64> {
    (0..32 / BITS).map(move |at| {
        let up = i64::from(word) << (64 - BITS * (at + 1));
        if SIGNED { up >> (64 - BITS) } else { (up as u64 >> (64 - BITS)) as i64 }
    })
}

fn join<const BITS: u32>(parts: impl Iterator<Item = i64>) -> u64 {
    let mask = (1_u64 << BITS) - 1;
    parts.enumerate().fold(0, |word, (at, part)| word | (part as u64 & mask) << (BITS * at as u32))
}

fn two<const BITS: u32, const SIGNED: bool>(w: Words, f: fn(i64, i64) -> i64) -> u64 {
    let pairs = parts::<BITS, SIGNED>(w.x).zip(parts::<BITS, SIGNED>(w.y));
    join::<BITS>(pairs.map(|(x, y)| f(x, y)))
}

fn three<const BITS: u32, const SIGNED: bool>(w: Words, f: fn(i64, i64, i64) -> i64) -> u64 {
    let pairs = parts::<BITS, SIGNED>(w.x).zip(parts::<BITS, SIGNED>(w.y));
    let triples = pairs.zip(parts::<BITS, SIGNED>(w.z));
    join::<BITS>(triples.map(|((x, y), z)| f(x, y, z)))
}

fn one<const BITS: u32>(w: Words, f: fn(i64) -> i64) -> u64 {
    join::<BITS>(parts::<BITS, true>(w.x).map(f))
}

/// The sum of the absolute differences.
fn distances<const BITS: u32, const SIGNED: bool>(w: Words) -> u64 {
    let pairs = parts::<BITS, SIGNED>(w.x).zip(parts::<BITS, SIGNED>(w.y));
    pairs.map(|(x, y)| (x - y).unsigned_abs()).sum()
}

fn saturate<const BITS: u32>(value: i64) -> i64 {
    value.clamp(-(1 << (BITS - 1)), (1 << (BITS - 1)) - 1)
}

fn saturate_unsigned<const BITS: u32>(value: i64) -> i64 {
    value.clamp(0, (1 << BITS) - 1)
}

fn mask(condition: bool) -> i64 {
    -i64::from(condition)
}

#[rustfmt::skip]
const HALVES: &[Expression] = &[
    ("__vadd2(x, y)", |w| two::<16, false>(w, |x, y| x + y)),
    ("__vaddss2(x, y)", |w| two::<16, true>(w, |x, y| saturate::<16>(x + y))),
    ("__vaddus2(x, y)", |w| two::<16, false>(w, |x, y| saturate_unsigned::<16>(x + y))),
    ("__vsub2(x, y)", |w| two::<16, false>(w, |x, y| x - y)),
    ("__vsubss2(x, y)", |w| two::<16, true>(w, |x, y| saturate::<16>(x - y))),
    ("__vsubus2(x, y)", |w| two::<16, false>(w, |x, y| saturate_unsigned::<16>(x - y))),
    ("__vavgs2(x, y)", |w| two::<16, true>(w, |x, y| (x + y + i64::from(x + y >= 0)) >> 1)),
    ("__vavgu2(x, y)", |w| two::<16, false>(w, |x, y| (x + y + 1) >> 1)),
    ("__vhaddu2(x, y)", |w| two::<16, false>(w, |x, y| (x + y) >> 1)),
    ("__vcmpeq2(x, y)", |w| two::<16, false>(w, |x, y| mask(x == y))),
    ("__vcmpne2(x, y)", |w| two::<16, false>(w, |x, y| mask(x != y))),
    ("__vcmpges2(x, y)", |w| two::<16, true>(w, |x, y| mask(x >= y))),
    ("__vcmpgeu2(x, y)", |w| two::<16, false>(w, |x, y| mask(x >= y))),
    ("__vcmpgts2(x, y)", |w| two::<16, true>(w, |x, y| mask(x > y))),
    ("__vcmpgtu2(x, y)", |w| two::<16, false>(w, |x, y| mask(x > y))),
    ("__vcmples2(x, y)", |w| two::<16, true>(w, |x, y| mask(x <= y))),
    ("__vcmpleu2(x, y)", |w| two::<16, false>(w, |x, y| mask(x <= y))),
    ("__vcmplts2(x, y)", |w| two::<16, true>(w, |x, y| mask(x < y))),
    ("__vcmpltu2(x, y)", |w| two::<16, false>(w, |x, y| mask(x < y))),
    ("__vseteq2(x, y)", |w| two::<16, false>(w, |x, y| i64::from(x == y))),
    ("__vsetges2(x, y)", |w| two::<16, true>(w, |x, y| i64::from(x >= y))),
    ("__vsetltu2(x, y)", |w| two::<16, false>(w, |x, y| i64::from(x < y))),
    ("__vmaxs2(x, y)", |w| two::<16, true>(w, i64::max)),
    ("__vmaxu2(x, y)", |w| two::<16, false>(w, i64::max)),
    ("__vmins2(x, y)", |w| two::<16, true>(w, i64::min)),
    ("__vminu2(x, y)", |w| two::<16, false>(w, i64::min)),
    ("__vabsdiffs2(x, y)", |w| two::<16, true>(w, |x, y| (x - y).abs())),
    ("__vabsdiffu2(x, y)", |w| two::<16, false>(w, |x, y| (x - y).abs())),
    ("__vsads2(x, y)", distances::<16, true>),
    ("__vsadu2(x, y)", distances::<16, false>),
    ("__vabs2(x)", |w| one::<16>(w, i64::abs)),
    ("__vabsss2(x)", |w| one::<16>(w, |x| saturate::<16>(x.abs()))),
    ("__vneg2(x)", |w| one::<16>(w, |x| -x)),
    ("__vnegss2(x)", |w| one::<16>(w, |x| saturate::<16>(-x))),
];

#[rustfmt::skip]
const BYTES: &[Expression] = &[
    ("__vadd4(x, y)", |w| two::<8, false>(w, |x, y| x + y)),
    ("__vaddss4(x, y)", |w| two::<8, true>(w, |x, y| saturate::<8>(x + y))),
    ("__vaddus4(x, y)", |w| two::<8, false>(w, |x, y| saturate_unsigned::<8>(x + y))),
    ("__vsub4(x, y)", |w| two::<8, false>(w, |x, y| x - y)),
    ("__vsubss4(x, y)", |w| two::<8, true>(w, |x, y| saturate::<8>(x - y))),
    ("__vsubus4(x, y)", |w| two::<8, false>(w, |x, y| saturate_unsigned::<8>(x - y))),
    ("__vavgs4(x, y)", |w| two::<8, true>(w, |x, y| (x + y + i64::from(x + y >= 0)) >> 1)),
    ("__vavgu4(x, y)", |w| two::<8, false>(w, |x, y| (x + y + 1) >> 1)),
    ("__vhaddu4(x, y)", |w| two::<8, false>(w, |x, y| (x + y) >> 1)),
    ("__vcmpeq4(x, y)", |w| two::<8, false>(w, |x, y| mask(x == y))),
    ("__vcmpne4(x, y)", |w| two::<8, false>(w, |x, y| mask(x != y))),
    ("__vcmpges4(x, y)", |w| two::<8, true>(w, |x, y| mask(x >= y))),
    ("__vcmpgtu4(x, y)", |w| two::<8, false>(w, |x, y| mask(x > y))),
    ("__vcmples4(x, y)", |w| two::<8, true>(w, |x, y| mask(x <= y))),
    ("__vcmpltu4(x, y)", |w| two::<8, false>(w, |x, y| mask(x < y))),
    ("__vseteq4(x, y)", |w| two::<8, false>(w, |x, y| i64::from(x == y))),
    ("__vsetgts4(x, y)", |w| two::<8, true>(w, |x, y| i64::from(x > y))),
    ("__vsetleu4(x, y)", |w| two::<8, false>(w, |x, y| i64::from(x <= y))),
    ("__vmaxs4(x, y)", |w| two::<8, true>(w, i64::max)),
    ("__vmaxu4(x, y)", |w| two::<8, false>(w, i64::max)),
    ("__vmins4(x, y)", |w| two::<8, true>(w, i64::min)),
    ("__vminu4(x, y)", |w| two::<8, false>(w, i64::min)),
    ("__vabsdiffs4(x, y)", |w| two::<8, true>(w, |x, y| (x - y).abs())),
    ("__vabsdiffu4(x, y)", |w| two::<8, false>(w, |x, y| (x - y).abs())),
    ("__vsads4(x, y)", distances::<8, true>),
    ("__vsadu4(x, y)", distances::<8, false>),
    ("__vabs4(x)", |w| one::<8>(w, i64::abs)),
    ("__vabsss4(x)", |w| one::<8>(w, |x| saturate::<8>(x.abs()))),
    ("__vneg4(x)", |w| one::<8>(w, |x| -x)),
    ("__vnegss4(x)", |w| one::<8>(w, |x| saturate::<8>(-x))),
];

fn wrapped(value: i64) -> i64 {
    i64::from(value as i32)
}

fn halved(value: i64) -> i64 {
    i64::from(value as i16)
}

#[rustfmt::skip]
const FUSED: &[Expression] = &[
    ("__vimax3_s32(a, b, c)", |w| i64::from(w.a().max(w.b()).max(w.c())) as u64),
    ("__vimin3_u32(x, y, z)", |w| w.x.min(w.y).min(w.z).into()),
    ("__vimax3_s32_relu(a, b, c)", |w| w.a().max(w.b()).max(w.c()).max(0) as u64),
    ("__vimax3_u16x2(x, y, z)", |w| three::<16, false>(w, |x, y, z| x.max(y).max(z))),
    ("__vimin3_s16x2(x, y, z)", |w| three::<16, true>(w, |x, y, z| x.min(y).min(z))),
    ("__vimin3_s16x2_relu(x, y, z)", |w| {
        three::<16, true>(w, |x, y, z| x.min(y).min(z).max(0))
    }),
    ("__vimax_s32_relu(a, b)", |w| w.a().max(w.b()).max(0) as u64),
    ("__vimax_s16x2_relu(x, y)", |w| two::<16, true>(w, |x, y| x.max(y).max(0))),
    ("__vimin_s16x2_relu(x, y)", |w| two::<16, true>(w, |x, y| x.min(y).max(0))),
    ("__viaddmax_s32(a, b, c)", |w| {
        wrapped(i64::from(w.a()) + i64::from(w.b())).max(w.c().into()) as u64
    }),
    ("__viaddmin_s32_relu(a, b, c)", |w| {
        wrapped(i64::from(w.a()) + i64::from(w.b())).min(w.c().into()).max(0) as u64
    }),
    ("__viaddmax_u32(x, y, z)", |w| w.x.wrapping_add(w.y).max(w.z).into()),
    ("__viaddmax_s16x2(x, y, z)", |w| three::<16, true>(w, |x, y, z| halved(x + y).max(z))),
    ("__viaddmin_s16x2_relu(x, y, z)", |w| {
        three::<16, true>(w, |x, y, z| halved(x + y).min(z).max(0))
    }),
    ("__viaddmax_u16x2(x, y, z)", |w| {
        three::<16, false>(w, |x, y, z| i64::from((x + y) as u16).max(z))
    }),
    ("[&]{ bool p, q; unsigned r = __vibmax_s16x2(x, y, &p, &q); return r ^ p << 7 ^ q << 9; }()",
        |w| {
            let chosen: Vec<bool> = parts::<16, true>(w.x)
                .zip(parts::<16, true>(w.y)).map(|(x, y)| x >= y).collect();
            two::<16, true>(w, i64::max) ^ u64::from(chosen[1]) << 7 ^ u64::from(chosen[0]) << 9
        }),
    ("[&]{ bool p; unsigned r = __vibmin_u32(x, y, &p); return r ^ p << 7; }()",
        |w| u64::from(w.x.min(w.y)) ^ u64::from(w.x <= w.y) << 7),
];

#[test]
fn halves_of_words() {
    for options in [&[][..], &["--device-debug"]] {
        check(HALVES, options, Words::draw);
    }
}

#[test]
fn bytes_of_words() {
    for options in [&[][..], &["--device-debug"]] {
        check(BYTES, options, Words::draw);
    }
}

#[test]
fn fused_comparisons() {
    check(FUSED, &[], Words::draw);
}
