//! Conversions between all types, against plain integer arithmetic: PTX ISA 9.7.9.21.

use super::harness::*;

pub fn families() -> Vec<Family> {
    let cvt = [between_integers(), to_integers(), from_integers(), floats(), bytes(), packs()];
    vec![family("9.7.9.21 cvt", "cvt", cvt.into_iter().flatten().collect())]
}

#[test]
fn conversions() {
    check(&families());
}

const INTEGERS: [(&str, u32, bool); 8] = [
    ("u8", 8, false),
    ("u16", 16, false),
    ("u32", 32, false),
    ("u64", 64, false),
    ("s8", 8, true),
    ("s16", 16, true),
    ("s32", 32, true),
    ("s64", 64, true),
];

fn least_and_most(bits: u32, signed: bool) -> (i128, i128) {
    let most = (1 << (bits - u32::from(signed))) - 1;
    (if signed { -most - 1 } else { 0 }, most)
}

/// The value of the lowest bits.
fn value(bits: u64, width: u32, signed: bool) -> i128 {
    let value = i128::from(bits) & ((1 << width) - 1);
    if signed && value >> (width - 1) == 1 { value - (1 << width) } else { value }
}

/// Integers of all sizes and both signs.
const SAMPLES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0x1_0000_0001,
    0x8000_0000,
    0xffff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0x0123_4567_89ab_cdef,
];

fn between_integers() -> Vec<Case> {
    let mut cases = Vec::new();
    for (to, to_bits, to_signed) in INTEGERS {
        for (from, from_bits, from_signed) in INTEGERS {
            let (least, most) = least_and_most(to_bits, to_signed);
            let (from_least, from_most) = least_and_most(from_bits, from_signed);
            // `.sat` is for conversions that can overflow only.
            let overflows = from_least < least || from_most > most;
            for sat in ["", ".sat"].into_iter().filter(|sat| sat.is_empty() || overflows) {
                let rows = SAMPLES.map(|sample| {
                    let number = value(sample, from_bits, from_signed);
                    let number = if sat.is_empty() { number } else { number.clamp(least, most) };
                    // Registers that are wider than the type hold the value extended.
                    ([sample], value(number as u64, to_bits, to_signed) as u64)
                });
                let rows: Vec<Row> = rows.iter().map(|(v, d)| (&v[..], *d)).collect();
                cases.push(exact(format!("cvt{sat}.{to}.{from} w0, w1;"), &rows));
            }
        }
    }
    cases.push(refused("cvt.sat.u32.u16 w0, w1;", "does not exist"));
    cases.push(refused("cvt.u32.u64 r0, r1;", "`r1` is B32"));
    cases
}

/// Floating-point formats: name, register, digits of the mantissa, the largest number.
struct Format {
    ty: &'static str,
    register: &'static str,
    digits: u32,
    encode: fn(f64) -> u64,
    most: f64,
}

const FORMATS: [Format; 4] = [
    Format {
        ty: "f16",
        register: "h",
        digits: 11,
        encode: |x| ::half::f16::from_f64(x).to_bits().into(),
        most: 65504.0,
    },
    Format {
        ty: "bf16",
        register: "h",
        digits: 8,
        encode: |x| ::half::bf16::from_f64(x).to_bits().into(),
        most: 3.389_531_389_251_535_5e38,
    },
    Format {
        ty: "f32",
        register: "r",
        digits: 24,
        encode: |x| (x as f32).to_bits().into(),
        most: f32::MAX as f64,
    },
    Format { ty: "f64", register: "w", digits: 53, encode: f64::to_bits, most: f64::MAX },
];

fn to_integers() -> Vec<Case> {
    // All are exact in every format.
    let numbers = [
        0.0,
        0.5,
        -0.5,
        1.5,
        -1.5,
        2.5,
        -2.5,
        2.25,
        -2.25,
        2.75,
        127.0,
        -128.0,
        200.0,
        -200.0,
        25600.0,
        -25600.0,
        65280.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
    ];
    let mut cases = Vec::new();
    for Format { ty, register, encode, .. } in &FORMATS {
        for (to, bits, signed) in INTEGERS {
            let (least, most) = least_and_most(bits, signed);
            for (mode, round) in [
                ("rni", (|x: f64| x.round_ties_even()) as fn(f64) -> f64),
                ("rzi", f64::trunc),
                ("rmi", f64::floor),
                ("rpi", f64::ceil),
            ] {
                let rows: Vec<_> = numbers
                    .iter()
                    .map(|&number| {
                        let result = match number {
                            x if !x.is_nan() => (round(x) as i128).clamp(least, most),
                            _ if *ty == "f64" || bits == 64 => 1 << (bits - 1),
                            _ => 0,
                        };
                        ([encode(number)], value(result as u64, bits, signed) as u64)
                    })
                    .collect();
                let rows: Vec<Row> = rows.iter().map(|(v, d)| (&v[..], *d)).collect();
                let sat = if *ty == "bf16" { &[""][..] } else { &["", ".sat"] };
                for sat in sat {
                    // Conversions of bf16 do not extend their results.
                    let (target, widen) = match (*ty, bits) {
                        ("bf16", 8) => ("b0", format!("cvt.{}64.{to} w0, b0;", &to[..1])),
                        ("bf16", 16) => ("h10", format!("cvt.{}64.{to} w0, h10;", &to[..1])),
                        ("bf16", 32) => ("r10", format!("cvt.{}64.{to} w0, r10;", &to[..1])),
                        _ => ("w0", String::new()),
                    };
                    let ftz = if *ty == "f32" && mode == "rzi" { ".ftz" } else { "" };
                    cases.push(exact(
                        format!(
                            ".reg .b8 b0; cvt.{mode}{ftz}{sat}.{to}.{ty} {target}, {register}1; {widen}"
                        ),
                        &rows,
                    ));
                }
            }
        }
    }
    cases.push(refused("cvt.rn.s32.f32 r0, r1;", "does not exist"));
    cases
}

/// An integer as a number of the format: the next one towards zero or away from it.
fn rounded(number: i128, format: &Format, mode: &str) -> u64 {
    let magnitude = number.unsigned_abs();
    let drop = (128 - magnitude.leading_zeros()).saturating_sub(format.digits);
    let down = magnitude >> drop << drop;
    let rest = magnitude - down;
    let half = (1_u128 << drop) / 2;
    let away = match mode {
        "rn" => rest > half || (rest == half && rest > 0 && (down >> drop) & 1 == 1),
        "rz" => false,
        "rm" => number < 0 && rest > 0,
        _ => number > 0 && rest > 0,
    };
    let result = if away { down + (1 << drop) } else { down } as f64;
    let sign = if number < 0 { -1.0 } else { 1.0 };
    if result <= format.most {
        return (format.encode)(sign * result);
    }
    let to_infinity = match mode {
        "rn" => true,
        "rz" => false,
        "rm" => number < 0,
        _ => number > 0,
    };
    (format.encode)(sign * if to_infinity { f64::INFINITY } else { format.most })
}

fn from_integers() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in &FORMATS {
        for (from, bits, signed) in INTEGERS {
            for mode in ["rn", "rz", "rm", "rp"] {
                let samples = SAMPLES.into_iter().chain([2049, 2050, 2051, 70000, 0x0100_0001]);
                let rows: Vec<_> = samples
                    .map(|sample| ([sample], rounded(value(sample, bits, signed), format, mode)))
                    .collect();
                let rows: Vec<Row> = rows.iter().map(|(v, d)| (&v[..], *d)).collect();
                let Format { ty, register, .. } = format;
                // The sources of bf16 have exactly their width.
                let (load, source) = match (*ty, bits) {
                    ("bf16", 8) => ("cvt.u8.u64 b1, w1;", "b1"),
                    ("bf16", 16) => ("", "h1"),
                    ("bf16", 32) => ("", "r1"),
                    _ => ("", "w1"),
                };
                let ftz = if *ty == "f32" && mode == "rz" { ".ftz" } else { "" };
                cases.push(exact(
                    format!(
                        ".reg .b8 b1; {load} cvt.{mode}{ftz}.{ty}.{from} {register}0, {source};"
                    ),
                    &rows,
                ));
                if *ty != "bf16" {
                    let one = (format.encode)(1.0);
                    let rows: Vec<_> = [0, 1, 5, 0xff]
                        .map(|sample| {
                            let number = value(sample, bits, signed);
                            ([sample], if number > 0 { one } else { 0 })
                        })
                        .into();
                    let rows: Vec<Row> = rows.iter().map(|(v, d)| (&v[..], *d)).collect();
                    cases
                        .push(exact(format!("cvt.{mode}.sat.{ty}.{from} {register}0, w1;"), &rows));
                }
            }
        }
    }
    cases
}

fn floats() -> Vec<Case> {
    // One plus half of a bf16's last place and a little more.
    let above = d(1.0 + 2_f64.powi(-8) + 2_f64.powi(-40));
    let half = 0x3c00;
    let mut cases = vec![
        exact("cvt.sat.f64.f32 w0, r1;", &[(&[f(7.0)], d(1.0)), (&[f(-7.0)], 0), (&[NAN], 0)]),
        exact("cvt.f64.bf16 w0, h1;", &[(&[0xc020], d(-2.5)), (&[1], d(2_f64.powi(-133)))]),
        exact("cvt.ftz.f32.bf16 r0, h1;", &[(&[0x8001], 0x8000_0000), (&[0x3f80], f(1.0))]),
        exact("cvt.ftz.sat.f32.f16 r0, h1;", &[(&[0x4000], f(1.0)), (&[0x3800], f(0.5))]),
        exact("cvt.sat.f64.f16 w0, h1;", &[(&[0x4000], d(1.0)), (&[0xbc00], 0)]),
        exact("cvt.f16.f16 h0, h1;", &[(&[0x3c01], 0x3c01)]),
        exact("cvt.sat.f16.f16 h0, h1;", &[(&[0x4000], half), (&[0xbc00], 0), (&[NAN16], 0)]),
        exact("cvt.bf16.bf16 h0, h1;", &[(&[0x3f81], 0x3f81)]),
        // 2 + 2^-7 has 9 digits.
        exact("cvt.rn.bf16.f16 h0, h1;", &[(&[0x4004], 0x4000), (&[0x400c], 0x4002)]),
        exact("cvt.rz.bf16.f16 h0, h1;", &[(&[0x400c], 0x4001)]),
        exact("cvt.rm.bf16.f16 h0, h1;", &[(&[0xc004], 0xc001), (&[0x4004], 0x4000)]),
        exact("cvt.rp.bf16.f16 h0, h1;", &[(&[0x4004], 0x4001), (&[0xfc00], 0xff80)]),
        exact("cvt.rn.bf16.f64 h0, w1;", &[(&[above], 0x3f81), (&[d(1e300)], 0x7f80)]),
        exact("cvt.rz.bf16.f64 h0, w1;", &[(&[above], 0x3f80), (&[d(1e300)], 0x7f7f)]),
        exact("cvt.rm.bf16.f64 h0, w1;", &[(&[above], 0x3f80), (&[d(-1e-300)], 0x8001)]),
        exact("cvt.rp.bf16.f64 h0, w1;", &[(&[above], 0x3f81), (&[d(1e-300)], 1)]),
        exact("cvt.rn.f16.bf16 h0, h1;", &[(&[0x3f80], half), (&[0x4f80], 0x7c00), (&[0x3300], 0)]),
        exact("cvt.rz.f16.bf16 h0, h1;", &[(&[0x4f80], 0x7bff), (&[0xcf80], 0xfbff)]),
        exact("cvt.rm.f16.bf16 h0, h1;", &[(&[0xcf80], 0xfc00), (&[0x3300], 0)]),
        exact("cvt.rp.f16.bf16 h0, h1;", &[(&[0x3300], 1), (&[0xb300], 0x8000)]),
        exact("cvt.rm.bf16.f32 h0, r1;", &[(&[0xbf80_0001], 0xbf81), (&[0x3f80_ffff], 0x3f80)]),
        exact("cvt.rp.ftz.bf16.f32 h0, r1;", &[(&[1], 0), (&[0x3f80_0001], 0x3f81)]),
        exact("cvt.rz.f16.f64 h0, w1;", &[(&[d(70000.0)], 0x7bff)]),
        exact("cvt.rm.f16.f64 h0, w1;", &[(&[d(-70000.0)], 0xfc00), (&[d(1e-300)], 0)]),
        exact("cvt.rp.f16.f64 h0, w1;", &[(&[d(1e-300)], 1), (&[d(-70000.0)], 0xfbff)]),
        exact("cvt.rn.sat.f16.f64 h0, w1;", &[(&[d(3.0)], half), (&[d(-3.0)], 0)]),
        exact(
            "cvt.rn.satfinite.f16.f32 h0, r1;",
            &[(&[INF], 0x7bff), (&[f(-1e9)], 0xfbff), (&[NAN], NAN16), (&[f(1.0)], half)],
        ),
        exact("cvt.rz.relu.satfinite.f16.f32 h0, r1;", &[(&[f(-1e9)], 0), (&[INF], 0x7bff)]),
        exact("cvt.rn.satfinite.bf16.f32 h0, r1;", &[(&[0x7f7f_ffff], 0x7f7f), (&[INF], 0x7f7f)]),
        exact(
            "cvt.rn.relu.satfinite.f16x2.f32 r0, r1, r2;",
            &[(&[f(-1.0), f(1e9)], 0x0000_7bff), (&[NAN, f(1.0)], 0x7fff_3c00)],
        ),
        exact("cvt.rz.satfinite.bf16x2.f32 r0, r1, r2;", &[(&[INF, f(-1.0)], 0x7f7f_bf80)]),
        exact("cvt.rz.relu.tf32.f32 r0, r1;", &[(&[f(-1.0)], 0), (&[0x3f80_1fff], f(1.0))]),
        refused("cvt.rn.sat.bf16.f32 h0, r1;", "does not exist"),
        refused("cvt.rn.f64.f32 w0, r1;", "does not exist"),
        refused("cvt.f32.f64 r0, w1;", "does not exist"),
        refused("cvt.rn.bf16.f32 r0, r1;", "`r0` is B32"),
    ];
    // Rounding to integers within a format.
    for (mode, results) in
        [("rni", [2.0, -2.0]), ("rzi", [2.0, -2.0]), ("rmi", [2.0, -3.0]), ("rpi", [3.0, -2.0])]
    {
        for Format { ty, register, encode, .. } in &FORMATS {
            let [up, down] = [2.5, -2.5].map(|x| [encode(x)]);
            let rows: &[Row] = &[(&up, encode(results[0])), (&down, encode(results[1]))];
            cases.push(exact(format!("cvt.{mode}.{ty}.{ty} {register}0, {register}1;"), rows));
        }
        let one = (FORMATS[0].encode)(1.0);
        let rows: &[Row] = &[(&[0x4100], one), (&[0xc100], 0)];
        cases.push(exact(format!("cvt.{mode}.sat.f16.f16 h0, h1;"), rows));
    }
    cases
}

/// The formats of 8 bits, two by two.
fn bytes() -> Vec<Case> {
    vec![
        exact(
            "cvt.rn.satfinite.e4m3x2.f32 h0, r1, r2;",
            &[
                (&[f(1.0), f(-448.0)], 0x38fe),
                (&[f(449.0), INF], 0x7e7e),
                (&[NAN, f(-1e9)], 0x7ffe),
                // The least number is 2^-9; a half of it is a tie.
                (&[f(2_f32.powi(-9)), f(2_f32.powi(-10))], 0x0100),
                (&[f(1.5 * 2_f32.powi(-9)), f(-0.0)], 0x0280),
                // 17 and 19 lie between 16, 18 and 20.
                (&[f(17.0), f(19.0)], 0x585a),
            ],
        ),
        exact(
            "cvt.rn.satfinite.e5m2x2.f32 h0, r1, r2;",
            &[
                (&[f(1.0), f(57344.0)], 0x3c7b),
                (&[f(61440.0), INF], 0x7b7b),
                (&[NAN, f(-1e9)], 0x7ffb),
                (&[f(2_f32.powi(-16)), f(2_f32.powi(-17))], 0x0100),
            ],
        ),
        exact(
            "cvt.rn.satfinite.relu.e4m3x2.f32 h0, r1, r2;",
            &[(&[f(-1.0), f(1.0)], 0x0038), (&[NAN, f(-0.0)], 0x7f00)],
        ),
        exact("cvt.rn.satfinite.e4m3x2.f16x2 h0, r1;", &[(&[0x3c00_6400], 0x387e)]),
        exact("cvt.rn.satfinite.relu.e5m2x2.f16x2 h0, r1;", &[(&[0x3c00_bc00], 0x3c00)]),
        exact(
            "cvt.rn.f16x2.e4m3x2 r0, h1;",
            &[(&[0x387e], 0x3c00_5f00), (&[0x7f01], 0x7fff_1800), (&[0x80b8], 0x8000_bc00)],
        ),
        exact(
            "cvt.rn.f16x2.e5m2x2 r0, h1;",
            &[(&[0x3c7b], 0x3c00_7b00), (&[0x7cfc], 0x7c00_fc00), (&[0x7f01], 0x7fff_0100)],
        ),
        exact("cvt.rn.relu.f16x2.e4m3x2 r0, h1;", &[(&[0xb838], 0x0000_3c00)]),
        refused("cvt.rn.e4m3x2.f32 h0, r1, r2;", "does not exist"),
    ]
}

/// `cvt.pack`: two numbers held within a narrow type, below the lower bits of a third operand.
fn packs() -> Vec<Case> {
    let values = [0, 1, 2, 3, 7, 8, 100, 127, 128, 255, 256, 40_000, 70_000, 0x7fff_ffff];
    let mut cases = Vec::new();
    for bits in [2_u32, 4, 8, 16] {
        for signed in [false, true] {
            let name = format!("{}{bits}", if signed { 's' } else { 'u' });
            let (least, most) = least_and_most(bits, signed);
            let mask = (1_u64 << bits) - 1;
            let held = |value: i32| i128::from(value).clamp(least, most) as u64 & mask;
            let c = 0x9abc_def0;
            let rows = values.iter().flat_map(|&a| [(a, -a), (-a - 1, a), (a, a / 2)]);
            let rows = rows.map(|(a, b)| {
                let pair = held(a) << bits | held(b);
                let kept = if bits == 16 { 0 } else { c << (2 * bits) & 0xffff_ffff };
                ([i(a), i(b), c], pair | kept)
            });
            let rows: Vec<_> = rows.collect();
            let rows: Vec<Row> = rows.iter().map(|(inputs, d)| (&inputs[..], *d)).collect();
            let code = match bits {
                16 => format!("cvt.pack.sat.{name}.s32 r0, r1, r2;"),
                _ => format!("cvt.pack.sat.{name}.s32.b32 r0, r1, r2, r3;"),
            };
            cases.push(exact(code, &rows));
        }
    }
    cases.push(refused("cvt.pack.sat.u8.s32.b32 r0, r1, r2;", "takes 4 operands"));
    cases
}
