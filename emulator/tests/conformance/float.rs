//! Arithmetic in f32 and f64: PTX ISA 9.7.3.

use super::harness::*;

const TINY: u64 = 1; // the least subnormal
const LEAST: u64 = 0x0080_0000; // the least normal
const NEG0: u64 = 0x8000_0000;
const NEXT: u64 = 0x3f80_0001; // one plus an ulp
const BELOW: u64 = 0x3f7f_ffff; // one minus half an ulp
const HUGE: u64 = 0x7f7f_ffff;
const ONE: u64 = f(1.0);
const NINF: u64 = f(f32::NEG_INFINITY);
const D1: u64 = d(1.0);

pub fn families() -> Vec<Family> {
    [sums(), products(), signs(), extremes()].into_iter().flatten().collect()
}

#[test]
fn float_arithmetic() {
    check(&families());
}

fn sums() -> Vec<Family> {
    let tie = f(2_f32.powi(-24)); // half an ulp of one
    let small = f(2_f32.powi(-30));
    let add = vec![
        exact(
            "add.f32 r0, r1, r2;",
            &[
                (&[f(1.5), f(2.25)], f(3.75)),
                (&[ONE, tie], ONE),
                (&[NEXT, tie], NEXT + 1),
                (&[HUGE, HUGE], INF),
                (&[INF, NINF], NAN),
                (&[0x7fc0_1234, ONE], NAN),
                (&[ONE, f(-1.0)], 0),
                (&[NEG0, NEG0], NEG0),
                (&[NEG0, 0], 0),
                (&[TINY, TINY], 2),
            ],
        ),
        exact("add.rn.f32 r0, r1, r2;", &[(&[ONE, tie], ONE)]),
        exact("add.rz.f32 r0, r1, r2;", &[(&[NEXT, tie], NEXT), (&[HUGE, HUGE], HUGE)]),
        exact(
            "add.rm.f32 r0, r1, r2;",
            &[
                (&[ONE, small], ONE),
                (&[f(-1.0), NEG0 | small], NEG0 | NEXT),
                (&[ONE, f(-1.0)], NEG0),
                (&[0, 0], 0),
                (&[HUGE, HUGE], HUGE),
                (&[NEG0 | HUGE, NEG0 | HUGE], NINF),
            ],
        ),
        exact(
            "add.rp.f32 r0, r1, r2;",
            &[(&[ONE, small], NEXT), (&[f(-1.0), NEG0 | small], f(-1.0)), (&[ONE, f(-1.0)], 0)],
        ),
        exact(
            "add.ftz.f32 r0, r1, r2;",
            &[
                (&[TINY, TINY], 0),
                (&[NEG0 | TINY, NEG0 | TINY], NEG0),
                (&[LEAST + 1, NEG0 | LEAST], 0),
            ],
        ),
        exact(
            "add.sat.f32 r0, r1, r2;",
            &[
                (&[ONE, ONE], ONE),
                (&[f(-3.0), ONE], 0),
                (&[NAN, ONE], 0),
                (&[f(0.25), f(0.5)], f(0.75)),
            ],
        ),
        exact("add.rz.ftz.sat.f32 r0, r1, r2;", &[(&[BELOW, small], BELOW)]),
        exact(
            "add.f64 w0, w1, w2;",
            &[
                (&[D1, d(2_f64.powi(-53))], D1),
                (&[D1 + 1, d(2_f64.powi(-53))], D1 + 2),
                (&[1, 1], 2),
                (&[D1, d(-1.0)], 0),
            ],
        ),
        exact("add.rn.f64 w0, w1, w2;", &[(&[D1 + 1, d(2_f64.powi(-53))], D1 + 2)]),
        exact(
            "add.rz.f64 w0, w1, w2;",
            &[
                (&[D1 + 1, d(2_f64.powi(-53))], D1 + 1),
                (&[d(f64::MAX), d(f64::MAX)], d(f64::MAX)),
                (&[D1, d(-1e-300)], D1 - 1),
            ],
        ),
        exact(
            "add.rm.f64 w0, w1, w2;",
            &[(&[D1, d(-1.0)], 1 << 63), (&[d(-1.0), d(-1e-40)], d(-1.0) + 1)],
        ),
        exact("add.rp.f64 w0, w1, w2;", &[(&[D1, d(1e-40)], D1 + 1)]),
        exact(
            "add.f64 w1, w1, w2; testp.notanumber.f64 p0, w1;",
            &[(&[d(f64::INFINITY), d(f64::NEG_INFINITY)], 1)],
        ),
        refused("add.sat.f64 w0, w1, w2;", "does not exist"),
        refused("add.tf32 r0, r1, r2;", "does not exist"),
        refused("add.f32.rn.rz r0, r1, r2;", "does not exist"),
    ];
    let sub = vec![
        exact("sub.f32 r0, r1, r2;", &[(&[ONE, f(0.25)], f(0.75)), (&[INF, INF], NAN)]),
        exact("sub.rn.f32 r0, r1, r2;", &[(&[ONE, small], ONE)]),
        exact("sub.rz.f32 r0, r1, r2;", &[(&[ONE, small], BELOW)]),
        exact("sub.rm.f32 r0, r1, r2;", &[(&[ONE, small], BELOW), (&[ONE, ONE], NEG0)]),
        exact("sub.rp.f32 r0, r1, r2;", &[(&[ONE, small], ONE), (&[ONE, ONE], 0)]),
        exact("sub.ftz.f32 r0, r1, r2;", &[(&[TINY, 0], 0)]),
        exact("sub.sat.f32 r0, r1, r2;", &[(&[ONE, f(2.0)], 0)]),
        exact("sub.f64 w0, w1, w2;", &[(&[D1, d(0.25)], d(0.75))]),
        exact("sub.rn.f64 w0, w1, w2;", &[(&[D1, d(1e-40)], D1)]),
        exact("sub.rz.f64 w0, w1, w2;", &[(&[D1, d(1e-40)], D1 - 1)]),
        exact("sub.rm.f64 w0, w1, w2;", &[(&[D1, D1], 1 << 63)]),
        exact("sub.rp.f64 w0, w1, w2;", &[(&[D1, d(1e-40)], D1)]),
    ];
    vec![family("9.7.3.3 add", "add", add), family("9.7.3.4 sub", "sub", sub)]
}

fn products() -> Vec<Family> {
    let third = 0x3eaa_aaab; // one third, rounded up
    let mul = vec![
        exact(
            "mul.f32 r0, r1, r2;",
            &[
                (&[f(1.5), f(-2.0)], f(-3.0)),
                (&[NEXT, NEXT], 0x3f80_0002),
                (&[HUGE, f(2.0)], INF),
                (&[0, INF], NAN),
                (&[LEAST, f(0.5)], 0x0040_0000),
                (&[TINY, f(0.5)], 0),
                (&[0x3, f(0.5)], 2),
                (&[NEG0, ONE], NEG0),
            ],
        ),
        exact("mul.rn.f32 r0, r1, r2;", &[(&[third, f(3.0)], ONE)]),
        exact("mul.rz.f32 r0, r1, r2;", &[(&[HUGE, f(2.0)], HUGE), (&[third, f(3.0)], ONE)]),
        exact(
            "mul.rm.f32 r0, r1, r2;",
            &[(&[NEXT, NEXT], 0x3f80_0002), (&[TINY, f(-0.5)], NEG0 | 1)],
        ),
        exact("mul.rp.f32 r0, r1, r2;", &[(&[NEXT, NEXT], 0x3f80_0003), (&[TINY, f(0.5)], 1)]),
        exact("mul.ftz.f32 r0, r1, r2;", &[(&[TINY | NEG0, ONE], NEG0), (&[LEAST, f(0.5)], 0)]),
        exact(
            "mul.sat.f32 r0, r1, r2;",
            &[(&[f(3.0), ONE], ONE), (&[f(-3.0), ONE], 0), (&[0, INF], 0)],
        ),
        exact(
            "mul.f64 w0, w1, w2;",
            &[
                (&[d(1.5), d(-2.0)], d(-3.0)),
                (&[D1 + 1, D1 + 1], D1 + 2),
                (&[d(f64::MAX), d(2.0)], d(f64::INFINITY)),
            ],
        ),
        exact("mul.rn.f64 w0, w1, w2;", &[(&[D1 + 1, D1 + 1], D1 + 2)]),
        // (1 + u)^2 = 1 + 2u + u^2 lies above 1 + 2u.
        exact(
            "mul.rz.f64 w0, w1, w2;",
            &[(&[D1 + 1, D1 + 1], D1 + 2), (&[d(f64::MAX), d(2.0)], d(f64::MAX)), (&[1, D1], 1)],
        ),
        exact(
            "mul.rm.f64 w0, w1, w2;",
            &[(&[D1 + 1, D1 + 1], D1 + 2), (&[1, d(-0.5)], 1 << 63 | 1), (&[1, d(0.5)], 0)],
        ),
        exact(
            "mul.rp.f64 w0, w1, w2;",
            &[(&[D1 + 1, D1 + 1], D1 + 3), (&[1, d(0.5)], 1), (&[0, d(-2.0)], 1 << 63)],
        ),
        refused("mul.lo.f32 r0, r1, r2;", "does not exist"),
    ];
    // (1 + e)(1 - e) - 1 = -e^2, which two roundings would lose.
    let fused = &[NEXT, 0x3f7f_fffe, f(-1.0)];
    let fma = vec![
        exact(
            "fma.rn.f32 r0, r1, r2, r3;",
            &[
                (fused, f(-(2_f32.powi(-46)))),
                (&[f(2.0), f(3.0), f(4.0)], f(10.0)),
                (&[INF, 0, ONE], NAN),
                (&[HUGE, f(2.0), NINF], NINF),
                (&[HUGE, f(2.0), NEG0 | HUGE], HUGE),
                (&[ONE, f(-1.0), ONE], 0),
                (&[TINY, f(0.5), TINY], 2),
            ],
        ),
        exact(
            "fma.rz.f32 r0, r1, r2, r3;",
            &[(&[ONE, ONE, TINY], ONE), (&[HUGE, f(2.0), 0], HUGE)],
        ),
        exact(
            "fma.rm.f32 r0, r1, r2, r3;",
            &[(&[ONE, ONE, TINY | NEG0], BELOW), (&[ONE, ONE, f(-1.0)], NEG0)],
        ),
        exact("fma.rp.f32 r0, r1, r2, r3;", &[(&[ONE, ONE, TINY], NEXT)]),
        exact(
            "fma.rn.ftz.f32 r0, r1, r2, r3;",
            &[(&[TINY, ONE, TINY], 0), (&[f(2.0), ONE, TINY], f(2.0))],
        ),
        exact(
            "fma.rn.sat.f32 r0, r1, r2, r3;",
            &[(&[f(2.0), f(3.0), f(-1.0)], ONE), (&[INF, 0, 0], 0)],
        ),
        exact(
            "fma.rn.f64 w0, w1, w2, w3;",
            &[
                (&[D1 + 1, D1 - 2, d(-1.0)], d(-(2_f64.powi(-104)))),
                (&[d(2.0), d(3.0), d(4.0)], d(10.0)),
            ],
        ),
        exact(
            "fma.rz.f64 w0, w1, w2, w3;",
            &[(&[D1, D1, 1], D1), (&[d(f64::MAX), d(2.0), 0], d(f64::MAX))],
        ),
        exact(
            "fma.rm.f64 w0, w1, w2, w3;",
            &[(&[D1, D1, 1 << 63 | 1], D1 - 1), (&[D1, D1, d(-1.0)], 1 << 63)],
        ),
        exact(
            "fma.rp.f64 w0, w1, w2, w3;",
            &[
                (&[D1, D1, 1], D1 + 1),
                (&[D1, D1, d(-1.0)], 0),
                // 2^-1074 * 2^-1074 is far below, but not nothing.
                (&[1, 1, D1], D1 + 1),
                (&[1, 1 << 63 | 1, D1], D1),
            ],
        ),
    ];
    let mad = vec![
        exact("mad.rn.f32 r0, r1, r2, r3;", &[(fused, f(-(2_f32.powi(-46))))]),
        exact("mad.rz.f32 r0, r1, r2, r3;", &[(&[ONE, ONE, TINY], ONE)]),
        exact("mad.rm.f32 r0, r1, r2, r3;", &[(&[ONE, ONE, TINY | NEG0], BELOW)]),
        exact("mad.rp.f32 r0, r1, r2, r3;", &[(&[ONE, ONE, TINY], NEXT)]),
        exact("mad.rn.ftz.sat.f32 r0, r1, r2, r3;", &[(&[ONE, f(2.0), TINY], ONE)]),
        exact("mad.rz.f64 w0, w1, w2, w3;", &[(&[D1, D1, 1], D1)]),
        exact("mad.rm.f64 w0, w1, w2, w3;", &[(&[D1, D1, 1 << 63 | 1], D1 - 1)]),
        exact("mad.rp.f64 w0, w1, w2, w3;", &[(&[D1, D1, 1], D1 + 1)]),
        exact("mad.rn.f64 w0, w1, w2, w3;", &[(&[d(2.0), d(3.0), d(4.0)], d(10.0))]),
    ];
    vec![
        family("9.7.3.5 mul", "mul", mul),
        family("9.7.3.6 fma", "fma", fma),
        family("9.7.3.7 mad", "mad", mad),
    ]
}

fn signs() -> Vec<Family> {
    let abs = vec![
        exact(
            "abs.f32 r0, r1;",
            &[(&[f(-2.0)], f(2.0)), (&[NEG0], 0), (&[NINF], INF), (&[NEG0 | 5], 5)],
        ),
        exact("abs.ftz.f32 r0, r1;", &[(&[NEG0 | 5], 0)]),
        exact("abs.f64 w0, w1;", &[(&[d(-2.0)], d(2.0)), (&[1 << 63 | 1], 1)]),
        refused("abs.sat.f32 r0, r1;", "does not exist"),
    ];
    let neg = vec![
        exact("neg.f32 r0, r1;", &[(&[f(2.0)], f(-2.0)), (&[0], NEG0), (&[5], NEG0 | 5)]),
        exact("neg.ftz.f32 r0, r1;", &[(&[5], NEG0)]),
        exact("neg.f64 w0, w1;", &[(&[d(2.0)], d(-2.0)), (&[1 << 63], 0)]),
    ];
    let copysign = vec![
        exact(
            "copysign.f32 r0, r1, r2;",
            &[(&[f(-1.0), f(2.0)], f(-2.0)), (&[0, f(-3.0)], f(3.0))],
        ),
        exact("copysign.f64 w0, w1, w2;", &[(&[1 << 63, d(2.0)], d(-2.0))]),
    ];
    // NaN, infinity, one, zero, a subnormal.
    let classes = |class: &str, expected: [u64; 5]| {
        let of = |values: [u64; 5], code: String| {
            let values = values.map(|value| [value]);
            let rows: Vec<Row> = values.iter().zip(expected).map(|(v, e)| (&v[..], e)).collect();
            exact(code, &rows)
        };
        let negative = 1 << 63;
        let wide = [d(f64::NAN), d(f64::NEG_INFINITY), d(1.0), negative, negative | 7];
        [
            of([NAN, NINF, ONE, NEG0, NEG0 | 7], format!("testp.{class}.f32 p0, r1;")),
            of(wide, format!("testp.{class}.f64 p0, w1;")),
        ]
    };
    let testp = [
        classes("finite", [0, 0, 1, 1, 1]),
        classes("infinite", [0, 1, 0, 0, 0]),
        classes("number", [0, 1, 1, 1, 1]),
        classes("notanumber", [1, 0, 0, 0, 0]),
        classes("normal", [0, 0, 1, 1, 0]),
        classes("subnormal", [0, 0, 0, 0, 1]),
    ];
    vec![
        family("9.7.3.9 abs", "abs", abs),
        family("9.7.3.10 neg", "neg", neg),
        family("9.7.3.2 copysign", "copysign", copysign),
        family("9.7.3.1 testp", "testp", testp.into_iter().flatten().collect()),
    ]
}

fn extremes() -> Vec<Family> {
    let min = vec![
        exact(
            "min.f32 r0, r1, r2;",
            &[
                (&[ONE, f(2.0)], ONE),
                (&[0, NEG0], NEG0),
                (&[NEG0, 0], NEG0),
                (&[NAN, ONE], ONE),
                (&[ONE, NAN], ONE),
                (&[NAN, 0x7fc0_0000], NAN),
                (&[NINF, ONE], NINF),
            ],
        ),
        exact("min.ftz.f32 r0, r1, r2;", &[(&[TINY, ONE], 0)]),
        exact("min.ftz.NaN.f32 r0, r1, r2;", &[(&[TINY, ONE], 0), (&[NAN, ONE], NAN)]),
        exact(
            "min.NaN.f32 r0, r1, r2;",
            &[(&[NAN, ONE], NAN), (&[ONE, 0x7fc0_0000], NAN), (&[ONE, 0], 0)],
        ),
        exact(
            "min.xorsign.abs.f32 r0, r1, r2;",
            &[(&[f(-3.0), f(2.0)], f(-2.0)), (&[f(-1.0), f(-2.0)], ONE)],
        ),
        exact(
            "min.ftz.NaN.xorsign.abs.f32 r0, r1, r2;",
            &[(&[f(-3.0), TINY], NEG0), (&[NAN, ONE], NAN)],
        ),
        exact(
            "min.f64 w0, w1, w2;",
            &[
                (&[D1, d(-2.0)], d(-2.0)),
                (&[0, 1 << 63], 1 << 63),
                (&[d(f64::NAN), D1], D1),
                (&[D1, d(f64::NAN)], D1),
            ],
        ),
    ];
    let max = vec![
        exact(
            "max.f32 r0, r1, r2;",
            &[
                (&[ONE, f(2.0)], f(2.0)),
                (&[0, NEG0], 0),
                (&[NEG0, 0], 0),
                (&[NAN, ONE], ONE),
                (&[ONE, NAN], ONE),
                (&[NAN, NAN], NAN),
            ],
        ),
        exact("max.ftz.f32 r0, r1, r2;", &[(&[TINY, f(-1.0)], 0)]),
        exact("max.ftz.NaN.f32 r0, r1, r2;", &[(&[TINY, NEG0 | TINY], 0), (&[NAN, ONE], NAN)]),
        exact(
            "max.ftz.NaN.xorsign.abs.f32 r0, r1, r2;",
            &[(&[f(-3.0), TINY], f(-3.0)), (&[NAN, ONE], NAN), (&[NEG0 | TINY, 0], NEG0)],
        ),
        exact("max.NaN.f32 r0, r1, r2;", &[(&[NAN, ONE], NAN), (&[ONE, 0], ONE)]),
        exact(
            "max.xorsign.abs.f32 r0, r1, r2;",
            &[(&[f(-3.0), f(2.0)], f(-3.0)), (&[f(3.0), f(2.0)], f(3.0))],
        ),
        exact(
            "max.f64 w0, w1, w2;",
            &[(&[D1, d(-2.0)], D1), (&[1 << 63, 0], 0), (&[d(f64::NAN), D1], D1)],
        ),
    ];
    vec![family("9.7.3.11 min", "min", min), family("9.7.3.12 max", "max", max)]
}
