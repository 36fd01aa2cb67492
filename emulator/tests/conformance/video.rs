//! Two or four operations side by side in 32 bits: PTX ISA 9.7.18.

use super::harness::*;

pub fn families() -> Vec<Family> {
    let families = [
        ("vadd2", "9.7.18.2"),
        ("vsub2", "9.7.18.2"),
        ("vavrg2", "9.7.18.2"),
        ("vabsdiff2", "9.7.18.2"),
        ("vmin2", "9.7.18.2"),
        ("vmax2", "9.7.18.2"),
        ("vadd4", "9.7.18.2"),
        ("vsub4", "9.7.18.2"),
        ("vavrg4", "9.7.18.2"),
        ("vabsdiff4", "9.7.18.2"),
        ("vmin4", "9.7.18.2"),
        ("vmax4", "9.7.18.2"),
    ];
    let mut all: Vec<_> =
        families.map(|(opcode, section)| family(section, opcode, systematic(opcode))).into();
    all.push(family("9.7.18.2 vadd2", "vadd2", by_hand()));
    for opcode in ["vset2", "vset4"] {
        all.push(family("9.7.18.2", opcode, comparisons(opcode)));
    }
    for opcode in ["vadd", "vsub", "vabsdiff", "vmin", "vmax", "vshl", "vshr", "vset"] {
        all.push(family("9.7.18.1", opcode, on_parts(opcode)));
    }
    all.push(family("9.7.18.1 vadd", "vadd", parts_by_hand()));
    all.push(family("9.7.18.1 vmad", "vmad", products()));
    all
}

#[test]
fn video() {
    check(&families());
}

fn by_hand() -> Vec<Case> {
    vec![
        exact(
            "vadd2.s32.s32.s32.sat r0, r1, r2, r3;",
            &[
                (&[0x7fff_8000, 0x0001_ffff, 0], 0x7fff_8000),
                (&[0x0001_0002, 0x0003_0004], 0x0004_0006),
            ],
        ),
        exact(
            "vadd2.u32.u32.u32 r0, r1, r2, r3;",
            &[(&[0xffff_0001, 0x0001_0001, 99], 0x0000_0002)],
        ),
        exact("vadd2.u32.u32.u32.add r0, r1, r2, r3;", &[(&[0xffff_0001, 1, 5], 0xffff + 2 + 5)]),
        exact("vadd2.s32.s32.s32.add r0, r1, r2, r3;", &[(&[0xffff_0001, 1, 5], 6)]),
        refused("vadd2.u32.u32.u32.sat.add r0, r1, r2, r3;", "does not exist"),
        refused("vadd2.u32.u32.u32 r0, r1, 5, r3;", "constants"),
    ]
}

/// All signs and secondary operations, against plain arithmetic on the parts.
fn systematic(opcode: &'static str) -> Vec<Case> {
    let (name, digit) = opcode.split_at(opcode.len() - 1);
    let bits = if digit == "2" { 16 } else { 8 };
    let inputs = [
        [0x0102_0304, 0x1020_3040, 1000],
        [0x80ff_7f00, 0x7f01_8080, 0],
        [0xffff_ffff, 0x0000_0001, 7],
        [0x8000_8000, 0xffff_8001, 0xffff_ffff],
        [0x1234_abcd, 0x9876_5432, 5],
    ];
    let mut cases = Vec::new();
    for signs in 0..8 {
        let [d, a, b] = [4, 2, 1].map(|bit| signs & bit != 0);
        let ty = |signed: bool| if signed { "s32" } else { "u32" };
        for secondary in ["", ".sat", ".add"] {
            let code = format!("{opcode}.{}.{}.{}{secondary} r0, r1, r2, r3;", ty(d), ty(a), ty(b));
            let rows = inputs.map(|[x, y, z]: [u64; 3]| {
                let (mut parts, mut sum) = (0_u64, z as i64);
                for at in (0..32).step_by(bits) {
                    let cut = |word: u64, signed: bool| -> i64 {
                        let value = (word >> at & ((1 << bits) - 1)) as i64;
                        if signed && value >> (bits - 1) == 1 { value - (1 << bits) } else { value }
                    };
                    let (p, q) = (cut(x, a), cut(y, b));
                    let mut t = match name {
                        "vadd" => p + q,
                        "vsub" => p - q,
                        "vavrg" if p + q >= 0 => (p + q + 1) >> 1,
                        "vavrg" => (p + q) >> 1,
                        "vabsdiff" => (p - q).abs(),
                        "vmin" => p.min(q),
                        _ => p.max(q),
                    };
                    if secondary == ".sat" {
                        let most = if d { (1 << (bits - 1)) - 1 } else { (1 << bits) - 1 };
                        t = t.clamp(if d { -most - 1 } else { 0 }, most);
                    }
                    parts |= (t as u64 & ((1 << bits) - 1)) << at;
                    sum += t;
                }
                let result = if secondary == ".add" { sum as u32 } else { parts as u32 };
                ([x, y, z], u64::from(result))
            });
            let rows: Vec<Row> = rows.iter().map(|(inputs, d)| (&inputs[..], *d)).collect();
            cases.push(exact(code, &rows));
        }
    }
    cases
}

const WORDS: [[u64; 3]; 6] = [
    [0x0102_0304, 0x1020_3040, 1000],
    [0x80ff_7f00, 0x7f01_8080, 0],
    [0xffff_ffff, 0x0000_0001, 0x8765_4321],
    [0x8000_8000, 0xffff_8001, 0xffff_ffff],
    [0x1234_abcd, 0x0000_0005, 5],
    [0x7fff_ffff, 0x0000_0021, 0x8000_0000],
];

const RELATIONS: [&str; 6] = ["eq", "ne", "lt", "le", "gt", "ge"];

fn holds(relation: &str, a: i64, b: i64) -> i64 {
    i64::from(match relation {
        "eq" => a == b,
        "ne" => a != b,
        "lt" => a < b,
        "le" => a <= b,
        "gt" => a > b,
        _ => a >= b,
    })
}

/// The part of a word that a suffix names, with its sign.
fn part(word: u64, suffix: &str, signed: bool) -> i64 {
    let (bits, at) = place(suffix);
    let value = (word >> at & ((1 << bits) - 1)) as i64;
    if signed && value >> (bits - 1) == 1 { value - (1 << bits) } else { value }
}

fn place(suffix: &str) -> (u32, u32) {
    match suffix {
        ".h0" => (16, 0),
        ".h1" => (16, 16),
        ".b0" => (8, 0),
        ".b1" => (8, 8),
        ".b2" => (8, 16),
        ".b3" => (8, 24),
        _ => (32, 0),
    }
}

fn comparisons(opcode: &'static str) -> Vec<Case> {
    let bits = if opcode == "vset2" { 16 } else { 8 };
    let mut cases = Vec::new();
    for (at, relation) in RELATIONS.into_iter().enumerate() {
        let [a, b] = [at & 1 != 0, at & 2 != 0];
        let ty = |signed: bool| if signed { "s32" } else { "u32" };
        for add in ["", ".add"] {
            let code = format!("{opcode}.{}.{}.{relation}{add} r0, r1, r2, r3;", ty(a), ty(b));
            let rows = WORDS.map(|[x, y, z]| {
                let suffix = |at: u32| match bits {
                    16 => [".h0", ".h1"][at as usize],
                    _ => [".b0", ".b1", ".b2", ".b3"][at as usize],
                };
                let results = (0..32 / bits).map(|at| {
                    let (x, y) = (part(x, suffix(at), a), part(y, suffix(at), b));
                    (at, holds(relation, x, y) as u64)
                });
                let result = match add {
                    "" => results.fold(0, |word, (at, bit)| word | bit << (bits * at)),
                    _ => results.fold(z, |sum, (_, bit)| sum + bit) & 0xffff_ffff,
                };
                ([x, y, z], result)
            });
            let rows: Vec<Row> = rows.iter().map(|(inputs, d)| (&inputs[..], *d)).collect();
            cases.push(exact(code, &rows));
        }
    }
    cases
}

/// All signs, parts and second operations, against plain arithmetic.
fn on_parts(opcode: &'static str) -> Vec<Case> {
    let shifts = matches!(opcode, "vshl" | "vshr");
    let suffixes = ["", ".h0", ".h1", ".b0", ".b1", ".b2", ".b3"];
    let mut cases = Vec::new();
    for number in 0..84 {
        let signs = number % 8;
        let [d, a, b] = [4, 2, 1].map(|bit| signs & bit != 0);
        let (d, b) = (d && opcode != "vset", b && !shifts);
        let [of_a, of_b] = [suffixes[number % 7], suffixes[number / 7 % 7]];
        let modes = if shifts { [".clamp", ".wrap"] } else { ["", ""] };
        let mode = modes[number / 2 % 2];
        let relation = RELATIONS[number % 6];
        let (second, of_d) = match number % 11 {
            0 => (".add", ""),
            1 => (".min", ""),
            2 => (".max", ""),
            3 | 4 => ("", ""),
            at => ("", suffixes[at - 4]),
        };
        let sat = if number % 3 == 0 && opcode != "vset" { ".sat" } else { "" };
        let ty = |signed: bool| if signed { "s32" } else { "u32" };
        let types = match opcode {
            "vset" => format!("{}.{}.{relation}", ty(a), ty(b)),
            _ => format!("{}.{}.{}{sat}{mode}", ty(d), ty(a), ty(b)),
        };
        let third = if second.is_empty() && of_d.is_empty() { "" } else { ", r3" };
        let code = format!("{opcode}.{types}{second} r0{of_d}, r1{of_a}, r2{of_b}{third};");
        let rows = WORDS.map(|[x, y, z]: [u64; 3]| {
            let (p, q) = (part(x, of_a, a), part(y, of_b, b));
            let by = if mode == ".clamp" { q.min(32) } else { q & 31 };
            let t = match opcode {
                "vadd" => p + q,
                "vsub" => p - q,
                "vabsdiff" => (p - q).abs(),
                "vmin" => p.min(q),
                "vmax" => p.max(q),
                "vshl" => p << by,
                "vshr" => p >> by,
                _ => holds(relation, p, q),
            };
            let (bits, at) = place(of_d);
            let most = if d { (1_i64 << (bits - 1)) - 1 } else { (1 << bits) - 1 };
            let t = match sat {
                "" => t,
                _ => t.clamp(if d { -most - 1 } else { 0 }, most),
            };
            let c = part(z, "", d);
            let t = match second {
                ".add" => t + c,
                ".min" => t.min(c),
                ".max" => t.max(c),
                _ => t,
            };
            let field = ((1_u64 << bits) - 1) << at;
            let kept = if of_d.is_empty() { 0 } else { z & !field };
            ([x, y, z], ((t as u64) << at) & field | kept)
        });
        let rows: Vec<Row> = rows.iter().map(|(inputs, d)| (&inputs[..], *d)).collect();
        cases.push(exact(code, &rows));
    }
    cases
}

fn parts_by_hand() -> Vec<Case> {
    vec![
        exact("vadd.s32.u32.s32.sat r0, r1.b0, r2.h0;", &[(&[0x7ff, 0x8000], i(-32768 + 255))]),
        exact(
            "vadd.u32.u32.u32 r0.h1, r1.b3, r2, r3;",
            &[(&[0x0900_0000, 1, 0x1111_2222], 0x000a_2222)],
        ),
        exact("vadd.u32.u32.u32.sat r0, r1, r2;", &[(&[0xffff_ffff, 2], 0xffff_ffff)]),
        exact("vadd.u32.u32.u32 r0, 5, r2.b1;", &[(&[0, 0x0300], 8)]),
        refused("vadd.u32.u32.u32.add r0.b1, r1, r2, r3;", "excludes a second operation"),
        refused("vadd.u32.u32.u32 r0, r1, r2, r3;", "does not take 4 operands"),
        refused("vadd.u32.u32.u32 r0, r1.b4, r2;", "unknown name `r1.b4`"),
    ]
}

fn products() -> Vec<Case> {
    let minus = |value: i64| value as u32 as u64;
    vec![
        exact("vmad.u32.u32.u32 r0, r1, r2, r3;", &[(&[7, 5, 2], 37), (&[0xffff_ffff, 2, 5], 3)]),
        exact("vmad.s32.s32.s32 r0, r1, r2, r3;", &[(&[minus(-7), 5, 2], minus(-33))]),
        exact(
            "vmad.s32.u32.s32 r0, r1.b1, r2.h1, r3;",
            &[(&[0xff00, 0xfffe_0000, 3], minus(-507))],
        ),
        exact("vmad.s32.s32.u32 r0, r1.b3, r2.b0, r3;", &[(&[0xff00_0000, 0xff, 0], minus(-255))]),
        exact("vmad.s32.u32.u32 r0, -r1, r2, r3;", &[(&[7, 5, 2], minus(-33))]),
        exact("vmad.s32.u32.u32 r0, r1, -r2, r3;", &[(&[7, 5, 2], minus(-33))]),
        exact("vmad.s32.u32.u32 r0, -r1, -r2, r3;", &[(&[7, 5, 2], 37)]),
        exact("vmad.s32.u32.u32 r0, r1, r2, -r3;", &[(&[7, 5, 2], 33)]),
        exact("vmad.s32.s32.s32 r0, r1, r2, -r3;", &[(&[minus(-7), 5, 2], minus(-37))]),
        exact("vmad.u32.u32.u32.po r0, r1, r2, r3;", &[(&[7, 5, 2], 38)]),
        exact("vmad.u32.u32.u32.shr7 r0, r1, r2, r3;", &[(&[256, 256, 128], 513)]),
        exact("vmad.u32.u32.u32.shr15 r0, r1, r2, r3;", &[(&[0x1_0000, 0x8000, 0], 0x1_0000)]),
        exact("vmad.s32.s32.s32.shr7 r0, r1, r2, r3;", &[(&[minus(-1), 1, 0], minus(-1))]),
        exact(
            "vmad.u32.u32.u32.sat r0, r1, r2, r3;",
            &[(&[0x1_0000, 0x1_0000, 0], 0xffff_ffff), (&[7, 5, 2], 37)],
        ),
        exact(
            "vmad.s32.s32.s32.sat r0, r1, r2, r3;",
            &[
                (&[0x1_0000, 0x1_0000, 0], 0x7fff_ffff),
                (&[minus(-65536), 0x1_0000, 0], 0x8000_0000),
            ],
        ),
        exact("vmad.u32.u32.u32.po.sat.shr15 r0, r1, r2, r3;", &[(&[0x8000, 4, 0x7fff], 5)]),
        refused("vmad.u32.u32.u32.po r0, r1, r2, -r3;", "may be negated"),
        refused("vmad.s32.u32.u32 r0, -r1, r2, -r3;", "may be negated"),
    ]
}
