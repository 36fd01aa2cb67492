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
