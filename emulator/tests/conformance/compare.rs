//! Comparison and selection: PTX ISA 9.7.6, and for 16-bit floats 9.7.7.

use super::harness::*;

const MINUS1: u64 = 0xffff_ffff;

pub fn families() -> Vec<Family> {
    vec![
        family("9.7.6.2 setp", "setp", setp()),
        family("9.7.6.1 set", "set", set()),
        family("9.7.6.3 selp", "selp", selp()),
        family("9.7.6.4 slct", "slct", slct()),
    ]
}

#[test]
fn comparison_and_selection() {
    check(&families());
}

/// The results of a relation: less, equal, greater, unordered.
const RELATIONS: [(&str, [u64; 4]); 14] = [
    ("eq", [0, 1, 0, 0]),
    ("ne", [1, 0, 1, 0]),
    ("lt", [1, 0, 0, 0]),
    ("le", [1, 1, 0, 0]),
    ("gt", [0, 0, 1, 0]),
    ("ge", [0, 1, 1, 0]),
    ("equ", [0, 1, 0, 1]),
    ("neu", [1, 0, 1, 1]),
    ("ltu", [1, 0, 0, 1]),
    ("leu", [1, 1, 0, 1]),
    ("gtu", [0, 0, 1, 1]),
    ("geu", [0, 1, 1, 1]),
    ("num", [1, 1, 1, 0]),
    ("nan", [0, 0, 0, 1]),
];

fn setp() -> Vec<Case> {
    let mut cases = Vec::new();
    for (relation, [less, equal, greater, unordered]) in RELATIONS {
        // Integers: minus one against one is less only where signed.
        if relation.len() == 2 {
            for (ty, register) in [("16", "h"), ("32", "r"), ("64", "w")] {
                let minus = u64::MAX >> (64 - ty.parse::<u32>().expect("a width"));
                for (sign, minus_one) in [("s", less), ("u", greater)] {
                    let code = format!("setp.{relation}.{sign}{ty} p0, {register}1, {register}2;");
                    cases.push(exact(
                        code,
                        &[
                            (&[minus, 1], minus_one),
                            (&[5, 5], equal),
                            (&[3, 5], less),
                            (&[5, 3], greater),
                        ],
                    ));
                }
                if matches!(relation, "eq" | "ne") {
                    let code = format!("setp.{relation}.b{ty} p0, {register}1, {register}2;");
                    cases.push(exact(code, &[(&[minus, 1], less), (&[7, 7], equal)]));
                }
            }
        }
        let float = |ty: &str, register: &str, [nan, one, two]: [u64; 3]| {
            let zero = if register == "w" { 1 << 63 } else { one & 0x8000 };
            let code = format!("setp.{relation}.{ty} p0, {register}1, {register}2;");
            exact(
                code,
                &[
                    (&[one, two], less),
                    (&[one, one], equal),
                    (&[two, one], greater),
                    (&[nan, one], unordered),
                    (&[one, nan], unordered),
                    (&[nan, nan], unordered),
                    (&[zero, 0], equal),
                ],
            )
        };
        cases.push(float("f16", "h", [NAN16, 0x3c00, 0x4000]));
        cases.push(float("bf16", "h", [0x7fc0, 0x3f80, 0x4000]));
        cases.push(float("f32", "r", [NAN, f(1.0), f(2.0)]));
        cases.push(float("ftz.f32", "r", [NAN, f(1.0), f(2.0)]));
        cases.push(float("f64", "w", [d(f64::NAN), d(1.0), d(2.0)]));
    }
    for (relation, [less, equal, greater]) in
        [("lo", [1, 0, 0]), ("ls", [1, 1, 0]), ("hi", [0, 0, 1]), ("hs", [0, 1, 1])]
    {
        let code = format!("setp.{relation}.u32 p0, r1, r2;");
        let rows: &[Row] = &[(&[1, MINUS1], less), (&[4, 4], equal), (&[MINUS1, 1], greater)];
        cases.push(exact(code, rows));
    }
    let subnormal = &[(&[1_u64, 0][..], 1)];
    cases.push(exact("setp.gt.f32 p0, r1, r2;", subnormal));
    cases.push(exact("setp.eq.ftz.f32 p0, r1, r2;", subnormal));
    cases.push(exact("setp.eq.ftz.f16 p0, h1, h2;", subnormal));
    cases.push(exact("setp.gt.f16 p0, h1, h2;", subnormal));
    // Both results, combined with a predicate: p = (a < b) op c, q = !(a < b) op c.
    // Rows: false and c false, true and c true, true and c false, false and c true.
    for (combine, table) in [("and", [0, 1, 0, 2]), ("or", [2, 3, 1, 3]), ("xor", [2, 2, 1, 1])] {
        let code = format!(
            "setp.lt.{combine}.s32 p10|p11, r1, r2, p3; selp.b32 r0, 1, 0, p10; \
             selp.b32 r10, 2, 0, p11; add.u32 r0, r0, r10;"
        );
        cases.push(exact(
            code,
            &[
                (&[2, 1, 0], table[0]),
                (&[1, 2, 1], table[1]),
                (&[1, 2, 0], table[2]),
                (&[2, 1, 1], table[3]),
            ],
        ));
    }
    cases.push(exact(
        "setp.lt.or.f32 p0, r1, r2, !p3;",
        &[(&[NAN, f(1.0), 1], 0), (&[NAN, f(1.0), 0], 1), (&[f(1.0), f(2.0), 1], 1)],
    ));
    cases.push(refused("setp.nan.u32 p0, r1, r2;", "does not exist"));
    cases
}

fn set() -> Vec<Case> {
    vec![
        exact("set.lt.u32.s32 r0, r1, r2;", &[(&[MINUS1, 0], MINUS1), (&[0, 0], 0)]),
        exact("set.lt.s32.u32 r0, r1, r2;", &[(&[MINUS1, 0], 0), (&[0, 1], MINUS1)]),
        exact("set.lt.f32.u32 r0, r1, r2;", &[(&[0, 1], f(1.0)), (&[1, 0], 0)]),
        exact("set.eq.u32.b16 r0, h1, h2;", &[(&[0x1_0005, 5], MINUS1)]),
        exact("set.ge.u32.s64 r0, w1, w2;", &[(&[l(-1), 0], 0), (&[5, 5], MINUS1)]),
        exact("set.ltu.u32.f32 r0, r1, r2;", &[(&[NAN, 0], MINUS1), (&[f(1.0), 0], 0)]),
        exact("set.num.f32.f64 r0, w1, w2;", &[(&[d(1.0), 0], f(1.0)), (&[d(f64::NAN), 0], 0)]),
        exact("set.eq.ftz.u32.f32 r0, r1, r2;", &[(&[1, 0], MINUS1)]),
        exact("set.lt.and.u32.s32 r0, r1, r2, p3;", &[(&[1, 2, 1], MINUS1), (&[1, 2, 0], 0)]),
        exact("set.lt.xor.f32.s32 r0, r1, r2, !p3;", &[(&[1, 2, 1], f(1.0)), (&[1, 2, 0], 0)]),
        exact("set.gt.f16.f16 h0, h1, h2;", &[(&[0x4000, 0x3c00], 0x3c00), (&[NAN16, 0], 0)]),
        exact("set.gt.bf16.bf16 h0, h1, h2;", &[(&[0x4000, 0x3f80], 0x3f80)]),
        exact("set.eq.u16.f16 h0, h1, h2;", &[(&[0x8000, 0], 0xffff)]),
    ]
}

fn selp() -> Vec<Case> {
    let rows: &[Row] = &[(&[0x1_2345, 0x6_789a, 1], 0x2345), (&[0x1_2345, 0x6_789a, 0], 0x789a)];
    let whole: &[Row] = &[(&[11, 22, 1], 11), (&[11, 22, 0], 22)];
    let mut cases: Vec<_> = ["b16", "u16", "s16"]
        .map(|ty| exact(format!("selp.{ty} h0, h1, h2, p3;"), rows))
        .into_iter()
        .collect();
    cases.extend(
        ["b32", "u32", "s32", "f32"].map(|ty| exact(format!("selp.{ty} r0, r1, r2, p3;"), whole)),
    );
    cases.extend(
        ["b64", "u64", "s64", "f64"].map(|ty| exact(format!("selp.{ty} w0, w1, w2, p3;"), whole)),
    );
    cases.push(exact("selp.b32 r0, 5, r2, !p3;", &[(&[0, 22, 1], 22), (&[0, 22, 0], 5)]));
    cases
}

fn slct() -> Vec<Case> {
    let by_integer: &[Row] =
        &[(&[11, 22, 0], 11), (&[11, 22, MINUS1], 22), (&[11, 22, 0x7fff_ffff], 11)];
    let by_float: &[Row] = &[
        (&[11, 22, f(1.0)], 11),
        (&[11, 22, f(-1.0)], 22),
        (&[11, 22, f(-0.0)], 11),
        (&[11, 22, NAN], 22),
        (&[11, 22, 0x8000_0001], 22),
    ];
    let mut cases = Vec::new();
    for (register, types) in [
        ("h", &["b16", "u16", "s16"][..]),
        ("r", &["b32", "u32", "s32", "f32"]),
        ("w", &["b64", "u64", "s64", "f64"]),
    ] {
        for ty in types {
            let operands = format!("{register}0, {register}1, {register}2, r3");
            cases.push(exact(format!("slct.{ty}.s32 {operands};"), by_integer));
            cases.push(exact(format!("slct.{ty}.f32 {operands};"), by_float));
        }
    }
    cases.push(exact("slct.ftz.u32.f32 r0, r1, r2, r3;", &[(&[11, 22, 0x8000_0001], 11)]));
    cases
}
