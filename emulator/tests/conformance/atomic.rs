//! Atomic operations: PTX ISA 9.7.13.5 and 9.7.13.6.

use super::harness::*;

const ONES: u64 = 0xffff_ffff;
const MIN: u64 = 0x8000_0000;

pub fn families() -> Vec<Family> {
    vec![family("9.7.13.5 atom", "atom", atom()), family("9.7.13.6 red", "red", red())]
}

#[test]
fn atomics() {
    check(&families());
}

/// The old value, the operand, the new value.
type Change = (u64, u64, u64);

/// Operations on 32 bits.
const WORDS: &[(&str, &[Change])] = &[
    ("add.u32", &[(ONES, 2, 1)]),
    ("add.s32", &[(5, ONES, 4)]),
    ("add.f32", &[(f(1.5), f(2.0), f(3.5)), (f(1.0), f(-1.0), 0)]),
    ("min.u32", &[(ONES, 1, 1), (1, ONES, 1)]),
    ("min.s32", &[(ONES, 1, ONES), (1, MIN, MIN)]),
    ("max.u32", &[(ONES, 1, ONES), (1, ONES, ONES)]),
    ("max.s32", &[(ONES, 1, 1), (1, MIN, 1)]),
    ("and.b32", &[(0xff0, 0x0ff, 0x0f0)]),
    ("or.b32", &[(0xff0, 0x0ff, 0xfff)]),
    ("xor.b32", &[(0xff0, 0x0ff, 0xf0f)]),
    // Wrap to zero at the operand and beyond.
    ("inc.u32", &[(7, 7, 0), (6, 7, 7), (9, 7, 0)]),
    // Wrap to the operand at zero and beyond it.
    ("dec.u32", &[(0, 7, 7), (7, 7, 6), (9, 7, 7)]),
    ("add.noftz.f16x2", &[(0x3c00_4000, 0x4000_3c00, 0x4200_4200)]),
    ("add.noftz.bf16x2", &[(0x3f80_4000, 0x4000_3f80, 0x4040_4040)]),
];

/// Operations on 64 bits.
const LONGS: &[(&str, &[Change])] = &[
    ("add.u64", &[(u64::MAX, 2, 1), (ONES, 1, 1 << 32)]),
    ("add.f64", &[(d(1.5), d(2.0), d(3.5))]),
    ("min.u64", &[(u64::MAX, 1, 1)]),
    ("min.s64", &[(u64::MAX, 1, u64::MAX)]),
    ("max.u64", &[(u64::MAX, 1, u64::MAX)]),
    ("max.s64", &[(u64::MAX, 1, 1)]),
    ("and.b64", &[(0xff0 << 32, 0x0ff << 32, 0x0f0 << 32)]),
    ("or.b64", &[(0xff0 << 32, 0x0ff << 32, 0xfff << 32)]),
    ("xor.b64", &[(0xff0 << 32, 0x0ff << 32, 0xf0f << 32)]),
];

/// Runs an operation in a place that holds input 1, with input 2; the result holds the value that
/// was returned, or 0, and the new value, folded together for 64 bits.
fn cases(opcode: &str, modifiers: &[&str]) -> Vec<Case> {
    let mut cases = Vec::new();
    let places = [(".global", "wm"), (".shared", "rs"), (".shared::cta", "ws"), ("", "wm")];
    let mut add = |modifier: &str, (space, at): (&str, &str), operation: &str, rows, wide| {
        let returns = opcode == "atom";
        let (word, ty) = if wide { ("w", "b64") } else { ("r", "b32") };
        let target = if returns { format!("{word}10, ") } else { String::new() };
        let join = if wide {
            "shl.b64 w10, w10, 1; xor.b64 w0, w10, w11;"
        } else {
            "mov.b64 w0, {r10, r11};"
        };
        let code = format!(
            "mov.{ty} {word}10, 0; st{space}.{ty} [{at}+8], {word}1; \
             {opcode}{modifier}{space}.{operation} {target}[{at}+8], {word}2; \
             ld{space}.{ty} {word}11, [{at}+8]; {join}"
        );
        let row = |&(old, operand, new): &Change| {
            let returned = if returns { old } else { 0 };
            let joined = if wide { (returned << 1) ^ new } else { returned | new << 32 };
            (vec![old, operand], joined)
        };
        let rows: &[Change] = rows;
        let rows: Vec<_> = rows.iter().map(row).collect();
        let rows: Vec<Row> = rows.iter().map(|(inputs, result)| (&inputs[..], *result)).collect();
        cases.push(exact(code, &rows));
    };
    for place in places {
        for (operation, rows) in WORDS {
            add("", place, operation, rows, false);
        }
        for (operation, rows) in LONGS {
            add("", place, operation, rows, true);
        }
    }
    for modifier in modifiers {
        add(modifier, places[0], "add.u32", WORDS[0].1, false);
        add(modifier, places[1], "max.s64", LONGS[5].1, true);
    }
    cases
}

const ORDERS: &[&str] = &[
    ".relaxed",
    ".relaxed.cta",
    ".relaxed.gpu",
    ".relaxed.sys",
    ".acquire.gpu",
    ".release.gpu",
    ".acq_rel.gpu",
    ".acq_rel.sys",
    ".cta",
];

/// The value that all lanes together leave, in lane order.
fn together(code: &str, expected: u64) -> Case {
    let code = format!(
        "@p2 st.shared.b32 [tile], r1; bar.warp.sync -1; {code} bar.warp.sync -1; \
         ld.shared.b32 r0, [tile];"
    );
    let input = |lane: usize| vec![if lane == 0 { 100 } else { lane as u64 }, u64::from(lane == 0)];
    warp(code, input, move |_| expected)
}

fn atom() -> Vec<Case> {
    let mut cases = cases("atom", ORDERS);
    let swap = "ld.global.b32 r11, [wm]; mov.b64 w0, {r10, r11};";
    let old = 0x0302_0100;
    cases.extend([
        exact(
            format!("atom.global.cas.b32 r10, [wm], r1, r2; {swap}"),
            &[(&[old, 9], old | 9 << 32), (&[5, 9], old | old << 32)],
        ),
        exact(format!("atom.global.exch.b32 r10, [wm], r1; {swap}"), &[(&[9], old | 9 << 32)]),
        exact(
            "atom.cas.b64 w10, [wm+8], w1, w2; ld.u64 w0, [wm+8]; xor.b64 w0, w0, w10;",
            &[(&[0x0f0e_0d0c_0b0a_0908, 0], 0x0f0e_0d0c_0b0a_0908), (&[1, 0], 0)],
        ),
        exact(
            "atom.exch.b64 w10, [wm+8], w1; ld.u64 w0, [wm+8];",
            &[(&[u64::MAX - 1], u64::MAX - 1)],
        ),
        exact(
            "atom.global.cas.b16 h10, [wm+2], h1, h2; ld.global.u32 r0, [wm];",
            &[(&[0x0302, 0xabcd], 0xabcd_0100), (&[1, 2], old)],
        ),
        exact(
            "st.global.b16 [wm], h1; atom.global.add.noftz.f16 h10, [wm], h2; \
             ld.global.b16 h11, [wm]; mov.b32 r0, {h10, h11};",
            &[(&[0x3c00, 0x4000], 0x4200_3c00), (&[1, 1], 0x0002_0001)],
        ),
        exact(
            "st.global.b16 [wm], h1; atom.global.add.noftz.bf16 h10, [wm], h2; \
             ld.global.b16 h0, [wm];",
            &[(&[0x3f80, 0x4000], 0x4040)],
        ),
        // Sums of f32 flush subnormals in global memory and keep them in shared memory.
        exact(
            "st.global.b32 [wm], 1; atom.global.add.f32 r10, [wm], r1; ld.global.b32 r0, [wm];",
            &[(&[1], 0)],
        ),
        exact(
            "st.shared.b32 [rs], 1; atom.shared.add.f32 r10, [rs], r1; ld.shared.b32 r0, [rs];",
            &[(&[1], 2)],
        ),
        exact("atom.global.add.u32 _, [wm], 1; ld.global.u32 r0, [wm];", &[(&[], old + 1)]),
        together("atom.shared.add.u32 r10, [tile], r1;", 100 + 100 + 496),
        together("atom.shared.max.u32 r10, [tile], r1;", 100),
        together("atom.shared.min.s32 r10, [tile], r1;", 1),
        refused("atom.global.add.s64 w10, [wm], w1;", "does not exist"),
        refused("atom.global.add.f16 h10, [wm], h1;", "does not exist"),
        refused("atom.global.inc.s32 r10, [wm], r1;", "does not exist"),
        refused("atom.local.add.u32 r10, [wm], r1;", "global and shared"),
    ]);
    cases
}

fn red() -> Vec<Case> {
    let mut cases = cases("red", ORDERS);
    cases.extend([
        together("red.shared.add.u32 [tile], r1;", 100 + 100 + 496),
        together("red.shared.xor.b32 [tile], r1;", 0),
        together("red.shared.or.b32 [tile], r1;", 127),
        refused("red.global.exch.b32 [wm], r1;", "cannot exchange"),
    ]);
    cases
}
