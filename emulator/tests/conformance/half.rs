//! Arithmetic in f16 and bf16, single and packed: PTX ISA 9.7.4.

use super::harness::*;

// f16
const H1: u64 = 0x3c00;
const H2: u64 = 0x4000;
const H3: u64 = 0x4200;
const HMAX: u64 = 0x7bff;
const HINF: u64 = 0x7c00;
// bf16
const B1: u64 = 0x3f80;
const B2: u64 = 0x4000;
const B3: u64 = 0x4040;
const MINUS: u64 = 0x8000;

pub fn families() -> Vec<Family> {
    [arithmetic(), signs(), extremes(), functions()].into_iter().flatten().collect()
}

#[test]
fn half_arithmetic() {
    check(&families());
}

/// Two elements, the second in the upper half.
const fn two(low: u64, high: u64) -> u64 {
    high << 16 | low
}

fn arithmetic() -> Vec<Family> {
    let add = vec![
        exact(
            "add.f16 h0, h1, h2;",
            &[
                (&[H1, H2], H3),
                (&[H1, 0x1000], H1),         // a tie goes to even
                (&[H1 + 1, 0x1000], H1 + 2), // and here up
                (&[HMAX, HMAX], HINF),
                (&[1, 1], 2),
                (&[HINF, HINF | MINUS], NAN16),
            ],
        ),
        exact("add.rn.f16 h0, h1, h2;", &[(&[H1, H1], H2)]),
        exact("add.ftz.f16 h0, h1, h2;", &[(&[1, 1], 0)]),
        exact(
            "add.sat.f16 h0, h1, h2;",
            &[(&[H1, H1], H1), (&[H1 | MINUS, 0], 0), (&[NAN16, H1], 0)],
        ),
        exact("add.f16x2 r0, r1, r2;", &[(&[two(H1, 1), two(H2, 2)], two(H3, 3))]),
        exact("add.rn.ftz.sat.f16x2 r0, r1, r2;", &[(&[two(H1, 1), two(H2, 2)], two(H1, 0))]),
        exact("add.bf16 h0, h1, h2;", &[(&[B1, B2], B3), (&[B1, 0x3b80], B1)]),
        exact("add.rn.bf16x2 r0, r1, r2;", &[(&[two(B1, B2), two(B2, B1)], two(B3, B3))]),
        refused("add.rz.f16 h0, h1, h2;", "does not exist"),
    ];
    let sub = vec![
        exact("sub.f16 h0, h1, h2;", &[(&[H3, H1], H2), (&[H1, H1], 0)]),
        exact("sub.rn.ftz.sat.f16 h0, h1, h2;", &[(&[H3, H1], H1), (&[2, 1], 0)]),
        exact("sub.rn.bf16 h0, h1, h2;", &[(&[B3, B1], B2)]),
        exact("sub.f16x2 r0, r1, r2;", &[(&[two(H3, H1), two(H1, H2)], two(H2, H1 | MINUS))]),
        exact("sub.bf16 h0, h1, h2;", &[(&[B3, B1], B2)]),
        exact("sub.bf16x2 r0, r1, r2;", &[(&[two(B3, B1), two(B1, B2)], two(B2, B1 | MINUS))]),
    ];
    let mul = vec![
        exact(
            "mul.f16 h0, h1, h2;",
            &[(&[H2, H3], 0x4600), (&[HMAX, H2], HINF), (&[1, 0x3800], 0)],
        ),
        exact("mul.rn.f16 h0, h1, h2;", &[(&[H2, H3], 0x4600)]),
        exact("mul.rn.bf16 h0, h1, h2;", &[(&[B2, B3], 0x40c0)]),
        exact("mul.ftz.f16 h0, h1, h2;", &[(&[0x0400, 0x3800], 0)]),
        exact("mul.sat.f16 h0, h1, h2;", &[(&[H2, H3], H1)]),
        exact("mul.f16x2 r0, r1, r2;", &[(&[two(H2, H1), two(H3, H2)], two(0x4600, H2))]),
        exact("mul.bf16 h0, h1, h2;", &[(&[B2, B3], 0x40c0)]),
        exact("mul.bf16x2 r0, r1, r2;", &[(&[two(B2, B1), two(B3, B2)], two(0x40c0, B2))]),
    ];
    // (1 + e)(1 + e) - 1 - 2e = e^2 with e the distance after one.
    let e = H1 + 1;
    let fma = vec![
        exact(
            "fma.rn.f16 h0, h1, h2, h3;",
            &[
                (&[e, e, 0x3c02 | MINUS], 0x0010),
                (&[H2, H3, H1], 0x4700),
                (&[HMAX, H2, HMAX | MINUS], HMAX),
            ],
        ),
        exact("fma.rn.ftz.f16 h0, h1, h2, h3;", &[(&[e, e, 0x3c02 | MINUS], 0)]),
        exact("fma.rn.sat.f16 h0, h1, h2, h3;", &[(&[H2, H3, H1], H1)]),
        exact(
            "fma.rn.relu.f16 h0, h1, h2, h3;",
            &[(&[H2, H3 | MINUS, H1], 0), (&[H2, H3, H1], 0x4700), (&[NAN16, H1, H1], NAN16)],
        ),
        exact(
            "fma.rn.ftz.relu.f16 h0, h1, h2, h3;",
            &[(&[e, e, 0x3c02 | MINUS], 0), (&[H2, H3, H1], 0x4700)],
        ),
        exact(
            "fma.rn.f16x2 r0, r1, r2, r3;",
            &[(&[two(H2, e), two(H3, e), two(H1, 0x3c02 | MINUS)], two(0x4700, 0x0010))],
        ),
        exact(
            "fma.rn.relu.f16x2 r0, r1, r2, r3;",
            &[(&[two(H2, H2), two(H3, H3 | MINUS), two(H1, H1)], two(0x4700, 0))],
        ),
        exact(
            "fma.rn.bf16 h0, h1, h2, h3;",
            &[
                (&[B1 + 1, B1 + 1, (B1 + 2) | MINUS], 0x3880), // 2^-14
                (&[B2, B3, B1], 0x40e0),
            ],
        ),
        exact("fma.rn.relu.bf16 h0, h1, h2, h3;", &[(&[B2, B3 | MINUS, B1], 0)]),
        exact(
            "fma.rn.bf16x2 r0, r1, r2, r3;",
            &[(&[two(B2, B1), two(B3, B1), two(B1, B1)], two(0x40e0, B2))],
        ),
        exact(
            "fma.rn.relu.bf16x2 r0, r1, r2, r3;",
            &[(&[two(B2, B1), two(B3 | MINUS, B1), two(B1, B1)], two(0, B2))],
        ),
        refused("fma.rn.sat.bf16 h0, h1, h2, h3;", "does not exist"),
    ];
    vec![
        family("9.7.4.1 add", "add", add),
        family("9.7.4.2 sub", "sub", sub),
        family("9.7.4.3 mul", "mul", mul),
        family("9.7.4.4 fma", "fma", fma),
    ]
}

fn signs() -> Vec<Family> {
    let neg = vec![
        exact("neg.f16 h0, h1;", &[(&[H1], H1 | MINUS), (&[1], 1 | MINUS)]),
        exact("neg.ftz.f16 h0, h1;", &[(&[1], MINUS)]),
        exact("neg.f16x2 r0, r1;", &[(&[two(H1, H2 | MINUS)], two(H1 | MINUS, H2))]),
        exact("neg.bf16 h0, h1;", &[(&[B1], B1 | MINUS)]),
        exact("neg.bf16x2 r0, r1;", &[(&[two(B1, B2 | MINUS)], two(B1 | MINUS, B2))]),
    ];
    let abs = vec![
        exact("abs.f16 h0, h1;", &[(&[H1 | MINUS], H1), (&[1 | MINUS], 1)]),
        exact("abs.ftz.f16 h0, h1;", &[(&[1 | MINUS], 0)]),
        exact("abs.f16x2 r0, r1;", &[(&[two(H1, H2 | MINUS)], two(H1, H2))]),
        exact("abs.bf16 h0, h1;", &[(&[B1 | MINUS], B1)]),
        exact("abs.bf16x2 r0, r1;", &[(&[two(B1 | MINUS, B2)], two(B1, B2))]),
    ];
    vec![family("9.7.4.5 neg", "neg", neg), family("9.7.4.6 abs", "abs", abs)]
}

fn extremes() -> Vec<Family> {
    let min = vec![
        exact(
            "min.f16 h0, h1, h2;",
            &[(&[H1, H2], H1), (&[0, MINUS], MINUS), (&[NAN16, H1], H1), (&[NAN16, 0x7e00], NAN16)],
        ),
        exact("min.ftz.f16 h0, h1, h2;", &[(&[1, H2], 0)]),
        exact("min.NaN.f16 h0, h1, h2;", &[(&[0x7e00, H1], NAN16)]),
        exact("min.xorsign.abs.f16 h0, h1, h2;", &[(&[H3 | MINUS, H2], H2 | MINUS)]),
        exact("min.f16x2 r0, r1, r2;", &[(&[two(H1, NAN16), two(H2, H3)], two(H1, H3))]),
        exact("min.NaN.f16x2 r0, r1, r2;", &[(&[two(H1, NAN16), two(H2, H3)], two(H1, NAN16))]),
        exact("min.bf16 h0, h1, h2;", &[(&[B1, B2 | MINUS], B2 | MINUS), (&[0x7fc0, B1], B1)]),
        exact("min.NaN.bf16 h0, h1, h2;", &[(&[0x7fc0, B1], NAN16)]),
        exact("min.bf16x2 r0, r1, r2;", &[(&[two(B1, B2), two(B2, B1)], two(B1, B1))]),
        exact(
            "min.ftz.NaN.xorsign.abs.f16x2 r0, r1, r2;",
            &[(&[two(H3 | MINUS, NAN16), two(H2, H1)], two(H2 | MINUS, NAN16))],
        ),
        exact("min.xorsign.abs.bf16 h0, h1, h2;", &[(&[B3 | MINUS, B2], B2 | MINUS)]),
        exact(
            "min.NaN.xorsign.abs.bf16x2 r0, r1, r2;",
            &[(&[two(B3 | MINUS, NAN16), two(B2, B1)], two(B2 | MINUS, NAN16))],
        ),
    ];
    let max = vec![
        exact("max.f16 h0, h1, h2;", &[(&[H1, H2], H2), (&[MINUS, 0], 0), (&[NAN16, H1], H1)]),
        exact("max.ftz.f16 h0, h1, h2;", &[(&[1, MINUS | 1], 0)]),
        exact("max.NaN.bf16 h0, h1, h2;", &[(&[0x7fc0, B1], NAN16), (&[B1, B2], B2)]),
        exact(
            "max.ftz.NaN.xorsign.abs.f16 h0, h1, h2;",
            &[(&[H3 | MINUS, H2], H3 | MINUS), (&[NAN16, H1], NAN16), (&[1 | MINUS, 1], MINUS)],
        ),
        exact("max.xorsign.abs.bf16 h0, h1, h2;", &[(&[B1 | MINUS, B2], B2 | MINUS)]),
        exact(
            "max.NaN.xorsign.abs.bf16x2 r0, r1, r2;",
            &[(&[two(B3 | MINUS, NAN16), two(B2, B1)], two(B3 | MINUS, NAN16))],
        ),
        exact("max.NaN.f16 h0, h1, h2;", &[(&[H1, 0x7e00], NAN16)]),
        exact("max.f16x2 r0, r1, r2;", &[(&[two(H1, NAN16), two(H2, H3)], two(H2, H3))]),
        exact(
            "max.xorsign.abs.f16x2 r0, r1, r2;",
            &[(&[two(H1 | MINUS, H1), two(H2, H2)], two(H2 | MINUS, H2))],
        ),
        exact("max.bf16 h0, h1, h2;", &[(&[B1, B2], B2)]),
        exact("max.bf16x2 r0, r1, r2;", &[(&[two(B1, 0xffff), two(0xbf80, B2)], two(B1, B2))]),
    ];
    vec![family("9.7.4.7 min", "min", min), family("9.7.4.8 max", "max", max)]
}

fn functions() -> Vec<Family> {
    let some = &[0.5, -0.25, 1.0, 2.5, -3.0, 0.001];
    let tanh = vec![
        near("tanh.approx.f16 h0, h1;", Bound::Absolute(2_f64.powf(-10.987)), some, f64::tanh),
        exact("tanh.approx.f16 h0, h1;", &[(&[HINF], H1), (&[MINUS], MINUS), (&[0x7e00], NAN16)]),
        exact("tanh.approx.f16x2 r0, r1;", &[(&[two(HINF, HINF | MINUS)], two(H1, H1 | MINUS))]),
        near("tanh.approx.bf16 h0, h1;", Bound::Absolute(2_f64.powi(-8)), some, f64::tanh),
        exact("tanh.approx.bf16x2 r0, r1;", &[(&[two(0x7f80, 0)], two(B1, 0))]),
    ];
    let ex2 = vec![
        near("ex2.approx.f16 h0, h1;", Bound::Relative(2_f64.powf(-9.9)), some, f64::exp2),
        exact("ex2.approx.f16 h0, h1;", &[(&[HINF], HINF), (&[HINF | MINUS], 0), (&[H1], H2)]),
        exact("ex2.approx.f16x2 r0, r1;", &[(&[two(H1, 0)], two(H2, H1))]),
        near("ex2.approx.ftz.bf16 h0, h1;", Bound::Relative(2_f64.powi(-7)), some, f64::exp2),
        exact("ex2.approx.ftz.bf16x2 r0, r1;", &[(&[two(B1, 0)], two(B2, B1))]),
    ];
    vec![family("9.7.4.9 tanh", "tanh", tanh), family("9.7.4.10 ex2", "ex2", ex2)]
}
