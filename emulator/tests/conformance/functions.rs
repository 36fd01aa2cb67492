//! Quotients, roots and transcendental functions in f32 and f64: PTX ISA 9.7.3. Approximations lie
//! within the error that the instruction's section allows.

use super::harness::*;

const TINY: u64 = 1; // the least subnormal
const LEAST: u64 = 0x0080_0000; // the least normal
const NEG0: u64 = 0x8000_0000;
const HUGE: u64 = 0x7f7f_ffff;
const ONE: u64 = f(1.0);
const NINF: u64 = f(f32::NEG_INFINITY);
const D1: u64 = d(1.0);
/// One third rounded down, and its negative.
const THIRD: u64 = 0x3fd5_5555_5555_5555;
const MINUS: u64 = 1 << 63 | THIRD;

/// Numbers of every kind of magnitude.
const SOME: &[f64] = &[1.0, -1.0, 3.0, 0.1, -7.3, 1e-30, 1e30, 12345.678, -0.999, 1.75e-38];
/// Such numbers without a sign.
const POSITIVE: &[f64] = &[1.0, 2.0, 3.0, 0.1, 0.75, 1.0001, 7.3, 1e-30, 1e30, 12345.678, 1.8e-38];

pub fn families() -> Vec<Family> {
    [quotients(), roots()].into_iter().flatten().collect()
}

#[test]
fn float_functions() {
    check(&families());
}

fn quotients() -> Vec<Family> {
    let third = 0x3eaa_aaab;
    let div = vec![
        exact(
            "div.rn.f32 r0, r1, r2;",
            &[
                (&[ONE, f(3.0)], third),
                (&[ONE, 0], INF),
                (&[f(-1.0), 0], NINF),
                (&[0, 0], NAN),
                (&[INF, INF], NAN),
                (&[LEAST, f(2.0)], 0x0040_0000),
                (&[3, f(2.0)], 2),
                (&[1, f(2.0)], 0),
            ],
        ),
        exact("div.rz.f32 r0, r1, r2;", &[(&[ONE, f(3.0)], third - 1), (&[HUGE, f(0.5)], HUGE)]),
        exact(
            "div.rm.f32 r0, r1, r2;",
            &[(&[ONE, f(-3.0)], NEG0 | third), (&[ONE, f(3.0)], third - 1)],
        ),
        exact(
            "div.rp.f32 r0, r1, r2;",
            &[(&[ONE, f(-3.0)], NEG0 | (third - 1)), (&[TINY, HUGE], 1)],
        ),
        exact("div.rn.ftz.f32 r0, r1, r2;", &[(&[LEAST, f(2.0)], 0), (&[ONE, TINY], INF)]),
        exact(
            "div.approx.f32 r0, r1, r2;",
            &[
                (&[f(8.0), f(2.0)], f(4.0)),
                (&[ONE, 0x7e80_0001], 0), // a divisor beyond 2^126
                (&[INF, 0x7e80_0001], NAN),
            ],
        ),
        exact("div.approx.ftz.f32 r0, r1, r2;", &[(&[TINY, ONE], 0)]),
        exact("div.full.f32 r0, r1, r2;", &[(&[f(9.0), f(3.0)], f(3.0))]),
        exact("div.full.ftz.f32 r0, r1, r2;", &[(&[LEAST, f(2.0)], 0)]),
        near("mov.b32 r2, 0f40E00000; div.approx.f32 r0, r1, r2;", Bound::Ulp(2.0), SOME, |x| {
            x / 7.0
        }),
        near("mov.b32 r2, 0f40E00000; div.full.f32 r0, r1, r2;", Bound::Ulp(2.0), SOME, |x| {
            x / 7.0
        }),
        exact(
            "div.rn.f64 w0, w1, w2;",
            &[(&[D1, d(3.0)], d(1.0 / 3.0)), (&[D1, 0], d(f64::INFINITY))],
        ),
        // 1/3 = 0x3fd5555555555555 and a little more.
        exact(
            "div.rz.f64 w0, w1, w2;",
            &[(&[D1, d(3.0)], THIRD), (&[d(f64::MAX), d(0.5)], d(f64::MAX)), (&[1, d(2.0)], 0)],
        ),
        exact("div.rm.f64 w0, w1, w2;", &[(&[D1, d(3.0)], THIRD), (&[D1, d(-3.0)], MINUS + 1)]),
        exact(
            "div.rp.f64 w0, w1, w2;",
            &[(&[D1, d(3.0)], THIRD + 1), (&[D1, d(-3.0)], MINUS), (&[1, d(f64::MAX)], 1)],
        ),
    ];
    let rcp = vec![
        exact(
            "rcp.rn.f32 r0, r1;",
            &[(&[f(3.0)], third), (&[NEG0], NINF), (&[INF], 0), (&[NINF], NEG0)],
        ),
        exact("rcp.rz.f32 r0, r1;", &[(&[f(3.0)], third - 1)]),
        exact("rcp.rm.f32 r0, r1;", &[(&[f(-3.0)], NEG0 | third)]),
        exact("rcp.rp.f32 r0, r1;", &[(&[f(-3.0)], NEG0 | (third - 1))]),
        exact("rcp.rn.ftz.f32 r0, r1;", &[(&[HUGE], 0), (&[TINY], INF)]),
        exact("rcp.rn.f64 w0, w1;", &[(&[d(3.0)], d(1.0 / 3.0))]),
        exact("rcp.rz.f64 w0, w1;", &[(&[d(3.0)], THIRD), (&[0], d(f64::INFINITY))]),
        exact("rcp.rm.f64 w0, w1;", &[(&[d(3.0)], THIRD), (&[d(-3.0)], MINUS + 1)]),
        exact("rcp.rp.f64 w0, w1;", &[(&[d(3.0)], THIRD + 1), (&[d(-4.0)], d(-0.25))]),
        exact(
            "rcp.approx.f32 r0, r1;",
            &[(&[0], INF), (&[NEG0], NINF), (&[INF], 0), (&[NAN], NAN)],
        ),
        near("rcp.approx.f32 r0, r1;", Bound::Ulp(1.0), SOME, |x| 1.0 / x),
        near("rcp.approx.ftz.f32 r0, r1;", Bound::Ulp(1.0), SOME, |x| 1.0 / x),
        exact(
            "rcp.approx.ftz.f64 w0, w1;",
            &[
                (&[d(4.0) | 0xffff_ffff], d(0.25)),
                (&[d(f64::NEG_INFINITY)], 1 << 63),
                (&[1], d(f64::INFINITY)),
                (&[1 << 63], d(f64::NEG_INFINITY)),
                (&[d(f64::NAN)], 0x7fff_ffff_0000_0000),
                (&[d(2_f64.powi(1023))], 0),
            ],
        ),
        near("rcp.approx.ftz.f64 w0, w1;", Bound::Relative(2e-6), SOME, |x| 1.0 / x),
    ];
    vec![family("9.7.3.8 div", "div", div), family("9.7.3.13 rcp", "rcp", rcp)]
}

fn roots() -> Vec<Family> {
    let root2 = 0x3fb5_04f3; // below the square root of two
    let sqrt = vec![
        exact(
            "sqrt.rn.f32 r0, r1;",
            &[(&[f(2.0)], root2), (&[f(-1.0)], NAN), (&[NEG0], NEG0), (&[INF], INF)],
        ),
        exact("sqrt.rz.f32 r0, r1;", &[(&[f(2.0)], root2), (&[f(3.0)], 0x3fdd_b3d7)]),
        exact("sqrt.rm.f32 r0, r1;", &[(&[f(2.0)], root2)]),
        exact("sqrt.rp.f32 r0, r1;", &[(&[f(2.0)], root2 + 1), (&[f(4.0)], f(2.0))]),
        exact("sqrt.rn.ftz.f32 r0, r1;", &[(&[TINY], 0)]),
        // The square root of two lies below 0x3ff6a09e667f3bcd.
        exact("sqrt.rn.f64 w0, w1;", &[(&[d(2.0)], 0x3ff6_a09e_667f_3bcd)]),
        exact("sqrt.rz.f64 w0, w1;", &[(&[d(2.0)], 0x3ff6_a09e_667f_3bcc), (&[1 << 63], 1 << 63)]),
        exact("sqrt.rm.f64 w0, w1;", &[(&[d(2.0)], 0x3ff6_a09e_667f_3bcc), (&[d(9.0)], d(3.0))]),
        exact("sqrt.rp.f64 w0, w1;", &[(&[d(2.0)], 0x3ff6_a09e_667f_3bcd), (&[d(9.0)], d(3.0))]),
        exact("sqrt.approx.f32 r0, r1;", &[(&[NEG0], NEG0), (&[f(-1.0)], NAN), (&[INF], INF)]),
        near("sqrt.approx.f32 r0, r1;", Bound::Relative(2_f64.powi(-23)), POSITIVE, f64::sqrt),
        exact("sqrt.approx.ftz.f32 r0, r1;", &[(&[TINY], 0), (&[f(9.0)], f(3.0))]),
    ];
    let rsqrt = vec![
        exact(
            "rsqrt.approx.f32 r0, r1;",
            &[(&[f(4.0)], f(0.5)), (&[f(-4.0)], NAN), (&[0], INF), (&[NEG0], NINF), (&[INF], 0)],
        ),
        near("rsqrt.approx.f32 r0, r1;", Bound::Relative(2_f64.powf(-22.9)), POSITIVE, |x| {
            1.0 / x.sqrt()
        }),
        exact("rsqrt.approx.ftz.f32 r0, r1;", &[(&[TINY], INF), (&[NEG0 | TINY], NINF)]),
        near("rsqrt.approx.f64 w0, w1;", Bound::Relative(1e-9), POSITIVE, |x| 1.0 / x.sqrt()),
        near("rsqrt.approx.ftz.f64 w0, w1;", Bound::Relative(2e-6), POSITIVE, |x| 1.0 / x.sqrt()),
        exact("rsqrt.approx.ftz.f64 w0, w1;", &[(&[d(4.0) | 7], d(0.5)), (&[1], d(f64::INFINITY))]),
    ];
    let angles = &[0.1, -0.5, 1.0, 1.5, 3.0, -3.1, 1e-3];
    let sin = vec![
        exact("sin.approx.f32 r0, r1;", &[(&[0], 0), (&[NEG0], NEG0), (&[INF], NAN)]),
        near("sin.approx.f32 r0, r1;", Bound::Absolute(2_f64.powf(-20.5)), angles, f64::sin),
        exact("sin.approx.ftz.f32 r0, r1;", &[(&[NEG0 | TINY], NEG0)]),
    ];
    let cos = vec![
        exact("cos.approx.f32 r0, r1;", &[(&[0], ONE), (&[INF], NAN)]),
        near("cos.approx.f32 r0, r1;", Bound::Absolute(2_f64.powf(-20.5)), angles, f64::cos),
        exact("cos.approx.ftz.f32 r0, r1;", &[(&[TINY], ONE)]),
    ];
    let lg2 = vec![
        exact(
            "lg2.approx.f32 r0, r1;",
            &[
                (&[f(8.0)], f(3.0)),
                (&[0], NINF),
                (&[NEG0], NINF),
                (&[f(-1.0)], NAN),
                (&[INF], INF),
                (&[TINY], f(-149.0)),
            ],
        ),
        near(
            "lg2.approx.f32 r0, r1;",
            Bound::Absolute(2_f64.powi(-22)),
            &[0.6, 0.9, 1.1, 1.9],
            f64::log2,
        ),
        near(
            "lg2.approx.f32 r0, r1;",
            Bound::Relative(2_f64.powi(-22)),
            &[2.0, 1e30, 1e-30],
            f64::log2,
        ),
        exact("lg2.approx.ftz.f32 r0, r1;", &[(&[TINY], NINF)]),
    ];
    let ex2 = vec![
        exact(
            "ex2.approx.f32 r0, r1;",
            &[
                (&[f(3.0)], f(8.0)),
                (&[NEG0], ONE),
                (&[NINF], 0),
                (&[INF], INF),
                (&[f(-140.0)], 1 << 9),
                (&[f(129.0)], INF),
                (&[NAN], NAN),
            ],
        ),
        near(
            "ex2.approx.f32 r0, r1;",
            Bound::Ulp(2.0),
            &[0.3, -0.7, 10.1, -125.5, -0.001],
            f64::exp2,
        ),
        exact("ex2.approx.ftz.f32 r0, r1;", &[(&[f(-140.0)], 0), (&[TINY], ONE)]),
    ];
    let tanh = vec![
        exact(
            "tanh.approx.f32 r0, r1;",
            &[(&[NEG0], NEG0), (&[INF], ONE), (&[NINF], f(-1.0)), (&[NAN], NAN)],
        ),
        near("tanh.approx.f32 r0, r1;", Bound::Relative(2_f64.powi(-11)), SOME, f64::tanh),
    ];
    vec![
        family("9.7.3.15 sqrt", "sqrt", sqrt),
        family("9.7.3.16 rsqrt", "rsqrt", rsqrt),
        family("9.7.3.18 sin", "sin", sin),
        family("9.7.3.19 cos", "cos", cos),
        family("9.7.3.20 lg2", "lg2", lg2),
        family("9.7.3.21 ex2", "ex2", ex2),
        family("9.7.3.22 tanh", "tanh", tanh),
    ]
}
