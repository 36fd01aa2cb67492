//! Integer arithmetic and intrinsics.

use super::words::{Expression, Words, check};

/// Results of type `int` are extended with their sign.
fn int(value: i32) -> u64 {
    i64::from(value) as u64
}

fn bits(value: u64, condition: bool) -> u64 {
    if condition { value } else { 0 }
}

fn permuted(w: Words) -> u64 {
    let bytes = (u64::from(w.y) << 32 | u64::from(w.x)).to_le_bytes();
    let pick = |at: u32| bytes[(w.z >> (4 * at) & 7) as usize];
    u32::from_le_bytes([0, 1, 2, 3].map(pick)).into()
}

fn funnel(w: Words) -> u64 {
    u64::from(w.y) << 32 | u64::from(w.x)
}

fn dot<const N: usize>(a: [i64; N], b: [i64; N], c: i64) -> i64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum::<i64>() + c
}

fn halves(word: u32) -> [i64; 2] {
    [i64::from(word as i16), i64::from((word >> 16) as i16)]
}

#[rustfmt::skip]
const INTRINSICS: &[Expression] = &[
    ("__brev(x)", |w| w.x.reverse_bits().into()),
    ("__brevll(u)", |w| w.u.reverse_bits()),
    ("__clz(a)", |w| w.x.leading_zeros().into()),
    ("__clzll(s)", |w| w.u.leading_zeros().into()),
    ("__ffs(a)", |w| bits(u64::from(w.x.trailing_zeros() + 1), w.x != 0)),
    ("__ffsll(s)", |w| bits(u64::from(w.u.trailing_zeros() + 1), w.u != 0)),
    ("__popc(x)", |w| w.x.count_ones().into()),
    ("__popcll(u)", |w| w.u.count_ones().into()),
    ("__umulhi(x, y)", |w| (u64::from(w.x) * u64::from(w.y)) >> 32),
    ("__mulhi(a, b)", |w| ((i64::from(w.a()) * i64::from(w.b())) >> 32) as u64),
    ("__umul64hi(u, v)", |w| ((u128::from(w.u) * u128::from(w.v)) >> 64) as u64),
    ("__mul64hi(s, t)", |w| ((i128::from(w.s()) * i128::from(w.t())) >> 64) as u64),
    ("__umul24(x, y)", |w| ((w.x & 0xff_ffff).wrapping_mul(w.y & 0xff_ffff)).into()),
    ("__mul24(a, b)", |w| int((w.a() << 8 >> 8).wrapping_mul(w.b() << 8 >> 8))),
    ("__byte_perm(x, y, z)", permuted),
    ("__funnelshift_l(x, y, z)", |w| funnel(w) << (w.z & 31) >> 32),
    ("__funnelshift_lc(x, y, z)", |w| funnel(w) << w.z.min(32) >> 32),
    ("__funnelshift_r(x, y, z)", |w| (funnel(w) >> (w.z & 31)) as u32 as u64),
    ("__funnelshift_rc(x, y, z)", |w| (funnel(w) >> w.z.min(32)) as u32 as u64),
    ("__sad(a, b, z)", |w| w.a().abs_diff(w.b()).wrapping_add(w.z).into()),
    ("__usad(x, y, z)", |w| w.x.abs_diff(w.y).wrapping_add(w.z).into()),
    ("__hadd(a, b)", |w| ((i64::from(w.a()) + i64::from(w.b())) >> 1) as u64),
    ("__rhadd(a, b)", |w| ((i64::from(w.a()) + i64::from(w.b()) + 1) >> 1) as u64),
    ("__uhadd(x, y)", |w| (u64::from(w.x) + u64::from(w.y)) >> 1),
    ("__urhadd(x, y)", |w| (u64::from(w.x) + u64::from(w.y) + 1) >> 1),
    ("__dp4a(a, b, c)", |w| {
        let [a, b] = [w.x, w.y].map(|word| word.to_le_bytes().map(|byte| i64::from(byte as i8)));
        int(dot(a, b, w.c().into()) as i32)
    }),
    ("__dp4a(x, y, z)", |w| {
        let [a, b] = [w.x, w.y].map(|word| word.to_le_bytes().map(i64::from));
        u64::from(dot(a, b, w.z.into()) as u32)
    }),
    ("__dp2a_lo(a, b, c)", |w| {
        let [b0, b1, ..] = w.y.to_le_bytes().map(|byte| i64::from(byte as i8));
        int(dot(halves(w.x), [b0, b1], w.c().into()) as i32)
    }),
    ("__dp2a_hi(a, b, c)", |w| {
        let [.., b0, b1] = w.y.to_le_bytes().map(|byte| i64::from(byte as i8));
        int(dot(halves(w.x), [b0, b1], w.c().into()) as i32)
    }),
];

#[rustfmt::skip]
const ARITHMETIC: &[Expression] = &[
    ("x / (y | 1)", |w| (w.x / (w.y | 1)).into()),
    ("x % (y | 1)", |w| (w.x % (w.y | 1)).into()),
    ("a / (b | 1)", |w| int(w.a().wrapping_div(w.b() | 1))),
    ("a % (b | 1)", |w| int(w.a().wrapping_rem(w.b() | 1))),
    ("u / (v | 1)", |w| w.u / (w.v | 1)),
    ("u % (v | 1)", |w| w.u % (w.v | 1)),
    ("s / (t | 1)", |w| w.s().wrapping_div(w.t() | 1) as u64),
    ("s % (t | 1)", |w| w.s().wrapping_rem(w.t() | 1) as u64),
    ("x / 10", |w| (w.x / 10).into()),
    ("a % 7", |w| int(w.a() % 7)),
    ("u / 1000003", |w| w.u / 1_000_003),
    ("s % 1000003", |w| (w.s() % 1_000_003) as u64),
    ("(x >> 16) / ((y >> 16) | 1)", |w| ((w.x >> 16) / (w.y >> 16 | 1)).into()),
    ("(unsigned char)(x / 3 * y)", |w| u64::from((w.x / 3).wrapping_mul(w.y) as u8)),
    ("(signed char)x * (short)y", |w| int(i32::from(w.x as i8) * i32::from(w.y as i16))),
    ("u * v + x", |w| w.u.wrapping_mul(w.v).wrapping_add(w.x.into())),
    ("(u64)x * y + u", |w| (u64::from(w.x) * u64::from(w.y)).wrapping_add(w.u)),
    ("(i64)a * b - s", |w| (i64::from(w.a()) * i64::from(w.b())).wrapping_sub(w.s()) as u64),
    ("x << (z & 31)", |w| (w.x << (w.z & 31)).into()),
    ("a >> (z & 31)", |w| int(w.a() >> (w.z & 31))),
    ("u << (z & 63)", |w| w.u << (w.z & 63)),
    ("u >> (z & 63)", |w| w.u >> (w.z & 63)),
    ("s >> (z & 63)", |w| (w.s() >> (w.z & 63)) as u64),
    ("abs(a)", |w| int(w.a().wrapping_abs())),
    ("llabs(s)", |w| w.s().wrapping_abs() as u64),
    ("min(a, b)", |w| int(w.a().min(w.b()))),
    ("max(x, y)", |w| w.x.max(w.y).into()),
    ("min(u, v)", |w| w.u.min(w.v)),
    ("llmax(s, t)", |w| w.s().max(w.t()) as u64),
    ("a < b ? s : t", |w| if w.a() < w.b() { w.u } else { w.v }),
    ("(u < v) + 2 * (s < t) + 4 * (u == v) + 8 * (x >= y)", |w| {
        u64::from(w.u < w.v) + 2 * u64::from(w.s() < w.t()) + 4 * u64::from(w.u == w.v)
            + 8 * u64::from(w.x >= w.y)
    }),
    ("(x & y) | (~x & z)", |w| (w.x & w.y | !w.x & w.z).into()),
    ("u ^ ~v", |w| w.u ^ !w.v),
];

#[rustfmt::skip]
const WIDE: &[Expression] = &[
    ("(unsigned __int128)u * v >> 64", |w| ((u128::from(w.u) * u128::from(w.v)) >> 64) as u64),
    ("((__int128)s * t + s) >> 40", |w| {
        ((i128::from(w.s()) * i128::from(w.t()) + i128::from(w.s())) >> 40) as u64
    }),
    ("(((unsigned __int128)u << 64) | v) / ((unsigned __int128)x + 1)", |w| {
        ((u128::from(w.u) << 64 | u128::from(w.v)) / (u128::from(w.x) + 1)) as u64
    }),
    ("(((unsigned __int128)u << 64) | v) % ((unsigned __int128)v + 7)", |w| {
        ((u128::from(w.u) << 64 | u128::from(w.v)) % (u128::from(w.v) + 7)) as u64
    }),
    ("(((__int128)s << 64) | v) / ((__int128)b | 1)", |w| {
        let dividend = (u128::from(w.u) << 64 | u128::from(w.v)) as i128;
        dividend.wrapping_div(i128::from(w.b()) | 1) as u64
    }),
    ("(((unsigned __int128)u << 64) | v) << (z & 127) >> 64", |w| {
        ((u128::from(w.u) << 64 | u128::from(w.v)) << (w.z & 127) >> 64) as u64
    }),
];

#[test]
fn intrinsics() {
    for options in [&[][..], &["--device-debug"]] {
        check(INTRINSICS, options, Words::draw);
    }
}

#[test]
fn arithmetic() {
    for options in [&[][..], &["--device-debug"]] {
        check(ARITHMETIC, options, Words::draw);
    }
}

#[test]
fn arithmetic_of_128_bits() {
    check(WIDE, &["--device-int128"], Words::draw);
}
