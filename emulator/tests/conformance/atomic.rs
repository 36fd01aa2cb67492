//! Atomic operations: PTX ISA 9.7.13.5 and 9.7.13.6.

use cuda_emulator::FaultKind;

use super::harness::*;

const ONES: u64 = 0xffff_ffff;
const MIN: u64 = 0x8000_0000;
// One, two and three in f16 and bf16.
const H: [u64; 4] = [0, 0x3c00, 0x4000, 0x4200];
const B: [u64; 4] = [0, 0x3f80, 0x4000, 0x4040];

pub fn families() -> Vec<Family> {
    vec![family("9.7.13.5 atom", "atom", atom()), family("9.7.13.6 red", "red", red())]
}

#[test]
fn atomics() {
    check(&families());
}

/// The old value, the operand, the new value.
type Change = (u64, u64, u64);

/// Operations on 16, 32 and 64 bits; those that only `atom` has come last.
const OPERATIONS: &[(u32, &str, &[Change])] = &[
    (16, "add.noftz.f16", &[(H[1], H[2], H[3]), (1, 1, 2)]),
    (16, "add.noftz.bf16", &[(B[1], B[2], B[3])]),
    (32, "add.u32", &[(ONES, 2, 1)]),
    (32, "add.s32", &[(5, ONES, 4)]),
    (32, "add.f32", &[(f(1.5), f(2.0), f(3.5)), (f(1.0), f(-1.0), 0)]),
    (32, "min.u32", &[(ONES, 1, 1), (1, ONES, 1)]),
    (32, "min.s32", &[(ONES, 1, ONES), (1, MIN, MIN)]),
    (32, "max.u32", &[(ONES, 1, ONES), (1, ONES, ONES)]),
    (32, "max.s32", &[(ONES, 1, 1), (1, MIN, 1)]),
    (32, "and.b32", &[(0xff0, 0x0ff, 0x0f0)]),
    (32, "or.b32", &[(0xff0, 0x0ff, 0xfff)]),
    (32, "xor.b32", &[(0xff0, 0x0ff, 0xf0f)]),
    // Wrap to zero at the operand and beyond.
    (32, "inc.u32", &[(7, 7, 0), (6, 7, 7), (9, 7, 0)]),
    // Wrap to the operand at zero and beyond it.
    (32, "dec.u32", &[(0, 7, 7), (7, 7, 6), (9, 7, 7)]),
    (32, "add.noftz.f16x2", &[(0x3c00_4000, 0x4000_3c00, 0x4200_4200)]),
    (32, "add.noftz.bf16x2", &[(0x3f80_4000, 0x4000_3f80, 0x4040_4040)]),
    (64, "add.u64", &[(u64::MAX, 2, 1), (ONES, 1, 1 << 32)]),
    (64, "add.f64", &[(d(1.5), d(2.0), d(3.5))]),
    (64, "min.u64", &[(u64::MAX, 1, 1)]),
    (64, "min.s64", &[(u64::MAX, 1, u64::MAX)]),
    (64, "max.u64", &[(u64::MAX, 1, u64::MAX)]),
    (64, "max.s64", &[(u64::MAX, 1, 1)]),
    (64, "and.b64", &[(0xff0 << 32, 0x0ff << 32, 0x0f0 << 32)]),
    (64, "or.b64", &[(0xff0 << 32, 0x0ff << 32, 0xfff << 32)]),
    (64, "xor.b64", &[(0xff0 << 32, 0x0ff << 32, 0xf0f << 32)]),
    (32, "exch.b32", &[(5, 9, 9)]),
    (64, "exch.b64", &[(5, 9 << 40, 9 << 40)]),
    // Here the operand is what is compared with; 77 is what is swapped in.
    (16, "cas.b16", &[(5, 5, 77), (5, 6, 5)]),
    (32, "cas.b32", &[(5, 5, 77), (5, 6, 5)]),
    (64, "cas.b64", &[(5 << 40, 5 << 40, 77), (5 << 40, 5, 5 << 40)]),
];

const SCOPES: &[&str] = &["", ".cta", ".cluster", ".gpu", ".sys"];

/// Runs an operation in a place that holds input 1, with input 2; the result holds the value that
/// was returned, or 0, and the new value, folded together.
fn case(
    opcode: &str,
    modifiers: &str,
    (space, at): (&str, &str),
    &(bits, operation, rows): &(u32, &str, &[Change]),
    hint: bool,
) -> Case {
    let word = match bits {
        16 => "h",
        32 => "r",
        _ => "w",
    };
    let target = if opcode == "atom" { format!("{word}10, ") } else { String::new() };
    let swapped = if operation.starts_with("cas") { ", 77" } else { "" };
    let (name, ty) = operation.rsplit_once('.').expect("a type");
    let (hinted, policy) = if hint { (".L2::cache_hint", ", w8") } else { ("", "") };
    let wide = |register: u32| match bits {
        64 => String::new(),
        _ => format!("cvt.u64.u{bits} w{register}, {word}{register};"),
    };
    let code = format!(
        "mov.b{bits} {word}10, 0; st{space}.b{bits} [{at}+8], {word}1; \
         {opcode}{modifiers}{space}.{name}{hinted}.{ty} {target}[{at}+8], {word}2{swapped}{policy}; \
         ld{space}.b{bits} {word}11, [{at}+8]; {} {} shl.b64 w10, w10, 1; xor.b64 w0, w10, w11;",
        wide(10),
        wide(11)
    );
    let row = |&(old, operand, new): &Change| {
        let returned = if opcode == "atom" { old } else { 0 };
        (vec![old, operand], (returned << 1) ^ new)
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    let rows: Vec<Row> = rows.iter().map(|(inputs, result)| (&inputs[..], *result)).collect();
    exact(code, &rows)
}

/// Every operation in every space, with every order and scope, and with a cache policy.
fn cases(opcode: &str, orders: &[&str]) -> Vec<Case> {
    let only_atom = |name: &str| name.starts_with("exch") || name.starts_with("cas");
    let places = [("", "wm"), (".global", "wm"), (".shared", "rs"), (".shared::cta", "ws")];
    let mut cases = Vec::new();
    for operation in OPERATIONS.iter().filter(|o| opcode == "atom" || !only_atom(o.1)) {
        for place in places {
            cases.push(case(opcode, "", place, operation, false));
        }
        let hints = !operation.1.starts_with("cas");
        for order in orders {
            for (at, scope) in SCOPES.iter().enumerate() {
                let modifiers = format!("{order}{scope}");
                cases.push(case(opcode, &modifiers, places[at % 4], operation, false));
                if hints {
                    cases.push(case(opcode, &modifiers, places[at % 2], operation, true));
                }
            }
        }
    }
    cases.extend(vectors(opcode, orders));
    cases
}

/// Operations on vectors: each element on its own.
fn vectors(opcode: &str, orders: &[&str]) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut modifiers = Vec::new();
    for (at, order) in orders.iter().enumerate() {
        for (scope, global) in SCOPES.iter().zip([".global", "", ".global", "", ".global"]) {
            let hint = if (at + scope.len()).is_multiple_of(2) { "" } else { ".L2::cache_hint" };
            modifiers.push((format!("{order}{scope}{global}"), hint));
        }
    }
    for (modifiers, hint) in &modifiers {
        for (ty, word, bits, lengths, one) in [
            ("f32", "r", 32, &[2, 4][..], [f(1.0), f(2.0), f(3.0)]),
            ("f16", "h", 16, &[2, 4, 8], [H[1], H[2], H[3]]),
            ("bf16", "h", 16, &[2, 4, 8], [B[1], B[2], B[3]]),
            ("f16x2", "r", 32, &[2, 4], [H[1], H[2], H[3]].map(|h| h << 16 | h)),
            ("bf16x2", "r", 32, &[2, 4], [B[1], B[2], B[3]].map(|b| b << 16 | b)),
        ] {
            for length in lengths {
                for (name, new) in [("add", 2), ("min", 0), ("max", 1)] {
                    if ty == "f32" && name != "add" {
                        continue;
                    }
                    let noftz = if ty == "f32" { "" } else { ".noftz" };
                    let list = |from: u32| {
                        let names: Vec<_> =
                            (from..from + length).map(|at| format!("{word}{at}")).collect();
                        format!("{{{}}}", names.join(", "))
                    };
                    let target =
                        if opcode == "atom" { format!("{}, ", list(12)) } else { String::new() };
                    let policy = if hint.is_empty() { "" } else { ", w8" };
                    // All elements hold one and meet two; the last one is looked at.
                    let fill: String = (0..*length)
                        .map(|at| {
                            let offset = 16 + at * bits / 8;
                            format!(
                                "st.global.b{bits} [wm+{offset}], {word}1; \
                                 mov.b{bits} {word}{}, {word}2; mov.b{bits} {word}{}, 0; ",
                                12 + at,
                                4 + at
                            )
                        })
                        .collect();
                    let last = length - 1;
                    let returned = if opcode == "atom" { 12 + last } else { 4 + last };
                    let code = format!(
                        "{fill} {opcode}{modifiers}.{name}{noftz}{hint}.v{length}.{ty} \
                         {target}[wm+16], {}{policy}; ld.global.b{bits} {word}3, [wm+{}]; \
                         cvt.u64.u{bits} w3, {word}3; cvt.u64.u{bits} w2, {word}{returned}; \
                         shl.b64 w3, w3, 1; xor.b64 w0, w2, w3;",
                        list(12),
                        16 + last * bits / 8
                    );
                    let old = if opcode == "atom" { one[0] } else { 0 };
                    cases.push(exact(code, &[(&[one[0], one[1]], old ^ (one[new] << 1))]));
                }
            }
        }
    }
    cases
}

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
    let mut cases = cases("atom", &["", ".relaxed", ".acquire", ".release", ".acq_rel"]);
    let old = 0x0302_0100;
    cases.extend([
        exact(
            "atom.global.cas.b16 h10, [wm+2], h1, h2; ld.global.u32 r0, [wm];",
            &[(&[0x0302, 0xabcd], 0xabcd_0100), (&[1, 2], old)],
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
        // What one element returns may be what another adds.
        exact(
            "mov.b32 r10, 0f40000000; mov.b32 r11, 0f40400000; st.global.v2.f32 [wm], {r1, r1}; \
             atom.global.add.v2.f32 {r11, r10}, [wm], {r10, r11}; ld.global.b64 w0, [wm];",
            &[(&[f(1.0)], f(4.0) << 32 | f(3.0))],
        ),
        together("atom.shared.add.u32 r10, [tile], r1;", 100 + 100 + 496),
        together("atom.shared.max.u32 r10, [tile], r1;", 100),
        together("atom.shared.min.s32 r10, [tile], r1;", 1),
        refused("atom.global.add.s64 w10, [wm], w1;", "does not exist"),
        refused("atom.global.add.f16 h10, [wm], h1;", "does not exist"),
        refused("atom.global.inc.s32 r10, [wm], r1;", "does not exist"),
        refused("atom.local.add.u32 r10, [wm], r1;", "does not exist"),
        refused("atom.global.cas.u32 r10, [wm], r1, r2;", "does not exist"),
        refused("atom.shared.add.v2.f32 {r10, r11}, [rs], {r1, r2};", "does not exist"),
        refused("atom.global.add.v4.f32 {r10, r11}, [wm], {r1, r2, r3, r4};", "results"),
        refused("atom.global.add.f32 r10, [wm], 1;", "constant"),
        fault("atom.global.add.u32 r10, [wm+2], r1;", FaultKind::Misaligned),
        fault("atom.global.add.v2.f32 {r10, r11}, [wm+4], {r1, r2};", FaultKind::Misaligned),
    ]);
    cases
}

fn red() -> Vec<Case> {
    let mut cases = cases("red", &["", ".relaxed", ".release"]);
    cases.extend([
        together("red.shared.add.u32 [tile], r1;", 100 + 100 + 496),
        together("red.shared.xor.b32 [tile], r1;", 0),
        together("red.shared.or.b32 [tile], r1;", 127),
        refused("red.global.exch.b32 [wm], r1;", "does not exist"),
        refused("red.acquire.gpu.global.add.u32 [wm], r1;", "does not exist"),
    ]);
    cases
}
