//! Conversions between types: PTX ISA 9.7.9.21; moves, packing and unpacking: 9.7.9.3.

use super::harness::*;

const MAX: u64 = 0x7fff_ffff;
const MIN: u64 = 0x8000_0000;
const ONES: u64 = 0xffff_ffff;
const MIN64: u64 = 1 << 63;
const NINF: u64 = f(f32::NEG_INFINITY);

pub fn families() -> Vec<Family> {
    let cvt = [integers(), to_integers(), from_integers(), floats(), narrow(), packed()];
    vec![
        family("9.7.9.21 cvt", "cvt", cvt.into_iter().flatten().collect()),
        family("9.7.9.3 mov", "mov", moves()),
    ]
}

#[test]
fn conversions_and_moves() {
    check(&families());
}

fn integers() -> Vec<Case> {
    vec![
        exact("cvt.s32.s8 r0, r1;", &[(&[0x1ff], ONES), (&[0x7f], 0x7f)]),
        exact("cvt.u32.u8 r0, r1;", &[(&[0x1ff], 0xff)]),
        exact("cvt.u32.s8 r0, h1;", &[(&[0x80], 0xffff_ff80)]),
        exact("cvt.s32.s16 r0, h1;", &[(&[0x8000], 0xffff_8000)]),
        exact("cvt.u32.u16 r0, h1;", &[(&[0x1_8000], 0x8000)]),
        exact("cvt.u16.u32 h0, r1;", &[(&[0x0001_2345], 0x2345)]),
        exact("cvt.s16.s8 h0, h1;", &[(&[0x80], 0xff80)]),
        exact("cvt.u8.u32 r0, r1;", &[(&[0x1_2345], 0x45)]),
        // A destination that is wider than the type takes the value extended.
        exact("cvt.s8.u32 r0, r1;", &[(&[0x80], 0xffff_ff80)]),
        exact("cvt.u64.u32 w0, r1;", &[(&[ONES], ONES)]),
        exact("cvt.s64.s32 w0, r1;", &[(&[ONES], u64::MAX)]),
        exact("cvt.u64.s32 w0, r1;", &[(&[ONES], u64::MAX)]),
        exact("cvt.s64.u32 w0, r1;", &[(&[ONES], ONES)]),
        exact("cvt.s64.s8 w0, r1;", &[(&[0x80], l(-128))]),
        exact("cvt.s64.s16 w0, h1;", &[(&[0x8000], l(-32768))]),
        exact("cvt.u32.u64 r0, w1;", &[(&[0x1_2345_6789], 0x2345_6789)]),
        exact("cvt.u16.u64 h0, w1;", &[(&[0x1_2345_6789], 0x6789)]),
        exact("cvt.s32.s64 r0, w1;", &[(&[l(-2)], i(-2))]),
        exact("cvt.sat.u8.s32 r0, r1;", &[(&[i(-5)], 0), (&[300], 255), (&[7], 7)]),
        exact("cvt.sat.s8.s32 r0, r1;", &[(&[i(-200)], i(-128)), (&[200], 127)]),
        exact("cvt.sat.u16.s32 h0, r1;", &[(&[i(-1)], 0), (&[70000], 0xffff)]),
        exact("cvt.sat.s16.u32 h0, r1;", &[(&[ONES], 0x7fff)]),
        exact("cvt.sat.u32.s32 r0, r1;", &[(&[i(-1)], 0), (&[MAX], MAX)]),
        exact("cvt.sat.s32.u32 r0, r1;", &[(&[ONES], MAX)]),
        exact("cvt.sat.s32.s64 r0, w1;", &[(&[1 << 40], MAX), (&[l(-1 << 40)], MIN)]),
        exact("cvt.sat.u64.s64 w0, w1;", &[(&[l(-1)], 0)]),
        exact("cvt.sat.s64.u64 w0, w1;", &[(&[u64::MAX], MIN64 - 1)]),
    ]
}

fn to_integers() -> Vec<Case> {
    // Nearest even, towards zero, down, up.
    let mut cases = Vec::new();
    let inputs = [2.5_f32, -2.5, 3.5, 2.1, -2.1, -0.4];
    for (mode, results) in [
        ("rni", [2, -2, 4, 2, -2, 0]),
        ("rzi", [2, -2, 3, 2, -2, 0]),
        ("rmi", [2, -3, 3, 2, -3, -1]),
        ("rpi", [3, -2, 4, 3, -2, 0]),
    ] {
        let singles = inputs.map(|x| [f(x)]);
        let doubles = inputs.map(|x| [d(x.into())]);
        let rows = |values: &[[u64; 1]; 6], of: fn(i32) -> u64| -> Vec<(Vec<u64>, u64)> {
            values.iter().zip(results).map(|(v, r)| (v.to_vec(), of(r))).collect()
        };
        let mut add = |code: String, rows: Vec<(Vec<u64>, u64)>| {
            let rows: Vec<Row> = rows.iter().map(|(v, r)| (&v[..], *r)).collect();
            cases.push(exact(code, &rows));
        };
        let long = |r: i32| l(r.into());
        add(format!("cvt.{mode}.s32.f32 r0, r1;"), rows(&singles, i));
        add(format!("cvt.{mode}.s64.f32 w0, r1;"), rows(&singles, long));
        add(format!("cvt.{mode}.s32.f64 r0, w1;"), rows(&doubles, i));
        add(format!("cvt.{mode}.s64.f64 w0, w1;"), rows(&doubles, long));
        add(format!("cvt.{mode}.u32.f32 r0, r1;"), rows(&singles, |r| r.max(0) as u64));
        add(format!("cvt.{mode}.s16.f32 h0, r1;"), rows(&singles, |r| s(r as i16)));
        // The same, but the result stays a floating-point number; -0.4 may give a zero with a sign.
        let float = |r: i32| if r == 0 { MIN } else { f(r as f32) };
        add(format!("cvt.{mode}.f32.f32 r0, r1;"), rows(&singles, float));
        let double = |r: i32| if r == 0 { MIN64 } else { d(r.into()) };
        add(format!("cvt.{mode}.f64.f64 w0, w1;"), rows(&doubles, double));
    }
    cases.extend([
        exact(
            "cvt.rzi.s32.f32 r0, r1;",
            &[(&[f(3e9)], MAX), (&[f(-3e9)], MIN), (&[NAN], 0), (&[INF], MAX)],
        ),
        exact(
            "cvt.rzi.u32.f32 r0, r1;",
            &[(&[f(-1.0)], 0), (&[f(5e9)], ONES), (&[NAN], 0), (&[NINF], 0)],
        ),
        exact("cvt.rzi.u8.f32 r0, r1;", &[(&[f(300.0)], 255), (&[f(-3.0)], 0)]),
        exact("cvt.rzi.s8.f32 r0, r1;", &[(&[f(300.0)], 127), (&[f(-300.0)], i(-128))]),
        exact(
            "cvt.rzi.u64.f32 w0, r1;",
            &[(&[f(2e19)], u64::MAX), (&[NAN], MIN64), (&[f(-1.0)], 0)],
        ),
        exact("cvt.rzi.s64.f32 w0, r1;", &[(&[f(1e19)], MIN64 - 1), (&[NAN], MIN64)]),
        exact("cvt.rzi.s32.f64 r0, w1;", &[(&[d(1e10)], MAX), (&[d(f64::NAN)], MIN)]),
        exact("cvt.rzi.u32.f64 r0, w1;", &[(&[d(4294967295.5)], ONES), (&[d(f64::NAN)], MIN)]),
        exact("cvt.rzi.s64.f64 w0, w1;", &[(&[d(-9007199254740993.0)], l(-9007199254740992))]),
        exact("cvt.rni.s32.f16 r0, h1;", &[(&[0x4100], 2), (&[0xfc00], MIN)]),
        exact("cvt.rzi.s16.bf16 h0, h1;", &[(&[0xc020], s(-2))]),
        exact("cvt.rpi.ftz.s32.f32 r0, r1;", &[(&[1], 0)]),
        exact("cvt.rpi.s32.f32 r0, r1;", &[(&[1], 1)]),
        refused("cvt.s32.f32 r0, r1;", "does not exist"),
    ]);
    cases
}

fn from_integers() -> Vec<Case> {
    let odd = 0x0100_0001; // halfway between two f32
    vec![
        exact("cvt.rn.f32.s32 r0, r1;", &[(&[odd], f(16777216.0)), (&[i(-7)], f(-7.0)), (&[0], 0)]),
        exact("cvt.rz.f32.s32 r0, r1;", &[(&[odd + 2], f(16777218.0))]),
        exact("cvt.rm.f32.s32 r0, r1;", &[(&[i(-0x0100_0001)], f(-16777218.0))]),
        exact("cvt.rp.f32.u32 r0, r1;", &[(&[odd], f(16777218.0)), (&[ONES], f(4294967296.0))]),
        exact("cvt.rn.f32.u32 r0, r1;", &[(&[ONES], f(4294967296.0)), (&[MIN], f(2147483648.0))]),
        exact("cvt.rn.f32.u8 r0, r1;", &[(&[0x1ff], f(255.0))]),
        exact("cvt.rn.f32.s8 r0, r1;", &[(&[0xff], f(-1.0))]),
        exact("cvt.rn.f32.u16 r0, h1;", &[(&[0xffff], f(65535.0))]),
        exact("cvt.rn.f32.s16 r0, h1;", &[(&[0xffff], f(-1.0))]),
        exact(
            "cvt.rn.f32.u64 r0, w1;",
            &[(&[u64::MAX], f(18446744073709551616.0)), (&[(1 << 40) + 1], f(1099511627776.0))],
        ),
        exact("cvt.rz.f32.u64 r0, w1;", &[(&[u64::MAX], 0x5f7f_ffff)]),
        exact("cvt.rn.f32.s64 r0, w1;", &[(&[l(-3)], f(-3.0))]),
        exact("cvt.rn.f64.s32 w0, r1;", &[(&[i(-7)], d(-7.0))]),
        exact("cvt.rn.f64.u32 w0, r1;", &[(&[ONES], d(4294967295.0))]),
        exact("cvt.rn.f64.s64 w0, w1;", &[(&[(1 << 53) + 1], d(9007199254740992.0))]),
        exact("cvt.rp.f64.u64 w0, w1;", &[(&[(1 << 53) + 1], d(9007199254740994.0))]),
        exact("cvt.rz.f64.s64 w0, w1;", &[(&[l(-(1 << 53) - 1)], d(-9007199254740992.0))]),
        exact(
            "cvt.rn.f16.s32 h0, r1;",
            &[(&[2049], 0x6800), (&[70000], 0x7c00), (&[i(-1)], 0xbc00)],
        ),
        exact("cvt.rn.f16.u16 h0, h1;", &[(&[1], 0x3c00)]),
        exact("cvt.rz.f16.u32 h0, r1;", &[(&[70000], 0x7bff)]),
        exact("cvt.rn.bf16.s32 h0, r1;", &[(&[257], 0x4380), (&[259], 0x4382)]),
    ]
}

fn floats() -> Vec<Case> {
    vec![
        exact("cvt.f64.f32 w0, r1;", &[(&[f(-1.5)], d(-1.5)), (&[1], d(2_f64.powi(-149)))]),
        exact("cvt.ftz.f64.f32 w0, r1;", &[(&[1], 0)]),
        exact(
            "cvt.rn.f32.f64 r0, w1;",
            &[(&[d(0.1)], f(0.1)), (&[d(1e300)], INF), (&[d(f64::NAN)], NAN)],
        ),
        exact("cvt.rz.f32.f64 r0, w1;", &[(&[d(1e300)], 0x7f7f_ffff), (&[d(0.1)], 0x3dcc_cccc)]),
        exact("cvt.rm.f32.f64 r0, w1;", &[(&[d(-1e-300)], MIN | 1), (&[d(1e-300)], 0)]),
        exact("cvt.rp.f32.f64 r0, w1;", &[(&[d(1e-300)], 1)]),
        exact("cvt.rn.ftz.f32.f64 r0, w1;", &[(&[d(1e-40)], 0)]),
        exact("cvt.rn.sat.f32.f64 r0, w1;", &[(&[d(7.0)], f(1.0)), (&[d(-7.0)], 0)]),
        exact("cvt.sat.f32.f32 r0, r1;", &[(&[f(1.5)], f(1.0)), (&[NAN], 0), (&[f(0.5)], f(0.5))]),
        exact("cvt.ftz.f32.f32 r0, r1;", &[(&[MIN | 3], MIN)]),
        exact("cvt.rni.ftz.f32.f32 r0, r1;", &[(&[f(2.5)], f(2.0))]),
        exact("cvt.sat.f64.f64 w0, w1;", &[(&[d(3.0)], d(1.0)), (&[d(f64::NAN)], 0)]),
        exact(
            "cvt.f32.f16 r0, h1;",
            &[
                (&[0x3c00], f(1.0)),
                (&[1], f(2_f32.powi(-24))),
                (&[0xfc00], NINF),
                (&[0x83ff], f(-1023.0 * 2_f32.powi(-24))),
            ],
        ),
        exact("cvt.f64.f16 w0, h1;", &[(&[0xc000], d(-2.0)), (&[1], d(2_f64.powi(-24)))]),
        exact("cvt.f32.bf16 r0, h1;", &[(&[0xbf80], f(-1.0)), (&[1], 1 << 16)]),
        exact("cvt.rpi.f16.f16 h0, h1;", &[(&[0x3c01], 0x4000)]),
    ]
}

fn narrow() -> Vec<Case> {
    vec![
        exact(
            "cvt.rn.f16.f32 h0, r1;",
            &[
                (&[f(1.0)], 0x3c00),
                (&[f(65519.0)], 0x7bff),
                (&[f(65520.0)], 0x7c00),
                (&[f(2_f32.powi(-24))], 1),
                (&[f(2_f32.powi(-25))], 0),
                (&[f(3.0 * 2_f32.powi(-25))], 2),
                (&[f(-0.0)], 0x8000),
                (&[NAN], NAN16),
                (&[0x3f80_1000], 0x3c00),
                (&[0x3f80_3000], 0x3c02),
            ],
        ),
        exact("cvt.rz.f16.f32 h0, r1;", &[(&[f(65520.0)], 0x7bff), (&[0x3f80_3000], 0x3c01)]),
        exact("cvt.rm.f16.f32 h0, r1;", &[(&[0xbf80_1000], 0xbc01), (&[INF], 0x7c00)]),
        exact("cvt.rp.f16.f32 h0, r1;", &[(&[0x3f80_0001], 0x3c01), (&[1], 1)]),
        exact("cvt.rn.ftz.f16.f32 h0, r1;", &[(&[MIN | 1], 0x8000)]),
        exact("cvt.rn.sat.f16.f32 h0, r1;", &[(&[f(2.0)], 0x3c00), (&[f(-2.0)], 0)]),
        exact(
            "cvt.rn.relu.f16.f32 h0, r1;",
            &[(&[f(-2.0)], 0), (&[f(2.0)], 0x4000), (&[NAN], NAN16)],
        ),
        exact("cvt.rn.f16.f64 h0, w1;", &[(&[d(1.0 + 2_f64.powi(-11) + 2_f64.powi(-50))], 0x3c01)]),
        exact(
            "cvt.rn.bf16.f32 h0, r1;",
            &[
                (&[0x3f80_8000], 0x3f80),
                (&[0x3f81_8000], 0x3f82),
                (&[0x3f80_8001], 0x3f81),
                (&[0x7f7f_ffff], 0x7f80),
                (&[0x0000_ffff], 1),
                (&[0xffff_ffff], NAN16),
                (&[0x7f80_0001], NAN16),
                (&[NINF], 0xff80),
            ],
        ),
        exact("cvt.rz.bf16.f32 h0, r1;", &[(&[0x3f80_ffff], 0x3f80), (&[0x7f7f_ffff], 0x7f7f)]),
        exact("cvt.rn.relu.bf16.f32 h0, r1;", &[(&[f(-2.0)], 0), (&[f(2.0)], 0x4000)]),
        exact(
            "cvt.rna.tf32.f32 r0, r1;",
            &[
                (&[0x3f80_1000], 0x3f80_2000),
                (&[0xbf80_1000], 0xbf80_2000),
                (&[0x3f80_0fff], 0x3f80_0000),
            ],
        ),
        exact(
            "cvt.rn.tf32.f32 r0, r1;",
            &[(&[0x3f80_1000], 0x3f80_0000), (&[0x3f80_3000], 0x3f80_4000)],
        ),
        exact("cvt.rz.tf32.f32 r0, r1;", &[(&[0x3f80_1fff], 0x3f80_0000)]),
        exact("cvt.rn.relu.tf32.f32 r0, r1;", &[(&[f(-2.0)], 0)]),
        exact("cvt.rna.satfinite.tf32.f32 r0, r1;", &[(&[0x7f7f_ffff], 0x7f7f_e000)]),
    ]
}

fn packed() -> Vec<Case> {
    vec![
        exact(
            "cvt.rn.f16x2.f32 r0, r1, r2;",
            &[(&[f(65519.0), f(65520.0)], 0x7bff_7c00), (&[f(1.0), 1], 0x3c00_0000)],
        ),
        exact("cvt.rz.f16x2.f32 r0, r1, r2;", &[(&[f(65519.0), f(65520.0)], 0x7bff_7bff)]),
        exact("cvt.rn.relu.f16x2.f32 r0, r1, r2;", &[(&[f(-1.0), f(1.0)], 0x0000_3c00)]),
        exact(
            "cvt.rn.bf16x2.f32 r0, r1, r2;",
            &[(&[f(1.0), f(-2.0)], 0x3f80_c000), (&[NAN, 0x3f81_8000], 0x7fff_3f82)],
        ),
        exact("cvt.rz.bf16x2.f32 r0, r1, r2;", &[(&[0x3f80_ffff, 0xbf80_ffff], 0x3f80_bf80)]),
        exact("cvt.rn.relu.bf16x2.f32 r0, r1, r2;", &[(&[f(1.0), f(-2.0)], 0x3f80_0000)]),
        exact("cvt.rz.relu.bf16x2.f32 r0, r1, r2;", &[(&[f(-1.0), 0x3f80_ffff], 0x0000_3f80)]),
    ]
}

fn moves() -> Vec<Case> {
    let word = 0x4433_2211;
    let wide = 0x8877_6655_4433_2211;
    let mut cases = vec![
        exact("mov.pred p0, p1;", &[(&[1], 1), (&[0], 0)]),
        exact("mov.pred p0, !p1;", &[(&[1], 0), (&[0], 1)]),
        exact("mov.u32 r0, %laneid; sub.u32 r0, r0, rl;", &[(&[], 0)]),
        exact("mov.f32 r0, 0f3FC00000;", &[(&[], f(1.5))]),
        exact("mov.f32 r0, 1.5;", &[(&[], f(1.5))]),
        exact("mov.f64 w0, 0d3FF8000000000000;", &[(&[], d(1.5))]),
        exact("mov.u64 w0, 0xFFFFFFFFFFFFFFFF;", &[(&[], u64::MAX)]),
        exact("mov.s32 r0, -2;", &[(&[], i(-2))]),
        exact("mov.u32 r0, 0b101;", &[(&[], 5)]),
        exact("mov.u32 r0, 017;", &[(&[], 15)]),
        exact("mov.u32 r0, 7U;", &[(&[], 7)]),
        exact("mov.b32 r0, {h1, h2};", &[(&[0x2211, 0x4433], word)]),
        exact("mov.b64 w0, {r1, r2};", &[(&[word, 0x8877_6655], wide)]),
        exact("mov.b64 w0, {h1, h2, h3, h4};", &[(&[0x2211, 0x4433, 0x6655, 0x8877], wide)]),
        exact("mov.b32 {h10, h0}, r1;", &[(&[word], 0x4433)]),
        exact("mov.b32 {h0, _}, r1;", &[(&[word], 0x2211)]),
        exact("mov.b64 {r10, r0}, w1;", &[(&[wide], 0x8877_6655)]),
        exact("mov.b64 {r0, _}, w1;", &[(&[wide], word)]),
        exact("mov.b64 {_, h10, h0, _}, w1;", &[(&[wide], 0x6655)]),
        exact(
            ".reg .b8 a<4>; mov.b32 {a0, a1, a2, a3}, r1; mov.b32 r0, {a3, a2, a1, a0};",
            &[(&[word], 0x1122_3344)],
        ),
        // Halves that are swapped in place.
        exact(
            "mov.b32 {h1, h2}, r1; mov.b32 r1, {h2, h1}; mov.b32 r0, r1;",
            &[(&[word], 0x2211_4433)],
        ),
        exact("mov.u32 r0, tile; mad.lo.u32 r0, rl, 64, r0; sub.u32 r0, rs, r0;", &[(&[], 0)]),
        exact("mov.u32 r10, tile; mov.u32 r0, tile+12; sub.u32 r0, r0, r10;", &[(&[], 12)]),
        exact(
            "mov.u32 r10, %clock; mov.u32 r0, %clock; setp.ge.u32 p10, r0, r10; \
             selp.u32 r0, 1, 0, p10;",
            &[(&[], 1)],
        ),
        exact("mov.u64 w10, %clock64; mov.u64 w0, %globaltimer; mov.u64 w0, 3;", &[(&[], 3)]),
    ];
    for (register, types) in [
        ("h", &["b16", "u16", "s16"][..]),
        ("r", &["b32", "u32", "s32", "f32"]),
        ("w", &["b64", "u64", "s64", "f64"]),
    ] {
        for ty in types {
            let kept = if register == "h" { 0x2211 } else { word };
            cases.push(exact(format!("mov.{ty} {register}0, {register}1;"), &[(&[word], kept)]));
        }
    }
    let specials = [
        ("%tid.x", "rl"),
        ("%tid.y", "0"),
        ("%tid.z", "0"),
        ("%ntid.x", "32"),
        ("%ntid.y", "1"),
        ("%ctaid.x", "0"),
        ("%nctaid.z", "1"),
        ("%warpid", "0"),
        ("%nwarpid", "1"),
        ("%dynamic_smem_size", "0"),
    ];
    for (special, value) in specials {
        cases.push(exact(format!("mov.u32 r0, {special}; sub.u32 r0, r0, {value};"), &[(&[], 0)]));
    }
    for (mask, of) in [
        ("eq", (|lane| 1 << lane) as fn(usize) -> u64),
        ("lt", |lane| (1 << lane) - 1),
        ("le", |lane| (2 << lane) - 1),
        ("gt", |lane| ONES & !((2 << lane) - 1)),
        ("ge", |lane| ONES & !((1 << lane) - 1)),
    ] {
        cases.push(warp(format!("mov.u32 r0, %lanemask_{mask};"), |_| vec![], of));
    }
    cases
}
