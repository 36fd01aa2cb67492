//! Loads and stores: PTX ISA 9.7.9.8 to 9.7.9.11.

use cuda_emulator::FaultKind;

use super::harness::*;

const EVICTIONS: &[&str] =
    &["evict_normal", "evict_unchanged", "evict_first", "evict_last", "no_allocate"];
const SCOPES: &[&str] = &["cta", "cluster", "gpu", "sys"];

pub fn families() -> Vec<Family> {
    vec![
        family("9.7.9.8 ld", "ld", loads()),
        family(
            "9.7.9.10 ldu",
            "ldu",
            vec![
                exact("ldu.global.u32 r0, [wm+4];", &[(&[], 0x0706_0504)]),
                exact("ldu.global.v2.u32 {r10, r0}, [wm];", &[(&[], 0x0706_0504)]),
                exact("ldu.v4.f32 {r10, r11, r0, r12}, [wm];", &[(&[], 0x0b0a_0908)]),
                exact("ldu.global.b8 w0, [wm+3];", &[(&[], 3)]),
                exact("ldu.global.u8 r0, [wm+3];", &[(&[], 3)]),
                exact("st.global.b8 [wm], 0xfe; ldu.global.s8 r0, [wm];", &[(&[], i(-2))]),
                exact("ldu.global.b16 h0, [wm+2];", &[(&[], 0x0302)]),
                exact("ldu.global.u16 r0, [wm+2];", &[(&[], 0x0302)]),
                exact("st.global.b16 [wm], 0xfffe; ldu.global.s16 w0, [wm];", &[(&[], l(-2))]),
                exact("ldu.global.b32 r0, [wm+4];", &[(&[], 0x0706_0504)]),
                exact("ldu.global.s32 w0, [wm+4];", &[(&[], 0x0706_0504)]),
                exact("ldu.global.f32 r0, [wm+4];", &[(&[], 0x0706_0504)]),
                exact("ldu.global.b64 w0, [wm];", &[(&[], 0x0706_0504_0302_0100)]),
                exact("ldu.global.u64 w0, [wm];", &[(&[], 0x0706_0504_0302_0100)]),
                exact("ldu.global.s64 w0, [wm];", &[(&[], 0x0706_0504_0302_0100)]),
                exact("ldu.global.f64 w0, [wm];", &[(&[], 0x0706_0504_0302_0100)]),
            ],
        ),
        family("9.7.9.11 st", "st", stores()),
    ]
}

#[test]
fn loads_and_stores() {
    check(&families());
}

/// Modifiers of loads and stores in global memory, and whether a cache policy belongs to them.
fn access_modifiers(orders: &[&str], caches: &[&str], load: bool) -> Vec<(String, bool)> {
    let mut all = Vec::new();
    let prefetches = ["", ".L2::64B", ".L2::128B", ".L2::256B"];
    let mut add = |modifiers: String| {
        // One prefetch after the other, with and without a policy.
        let prefetch = if load { prefetches[all.len() / 2 % prefetches.len()] } else { "" };
        all.push((format!("{modifiers}{prefetch}"), false));
        all.push((format!("{modifiers}.L2::cache_hint{prefetch}"), true));
    };
    for space in ["", ".global"] {
        for weak in ["", ".weak"] {
            add(format!("{weak}{space}"));
            caches.iter().for_each(|cache| add(format!("{weak}{space}.{cache}")));
            EVICTIONS.iter().for_each(|hint| add(format!("{weak}{space}.L1::{hint}")));
        }
        for order in orders {
            for scope in SCOPES {
                add(format!(".{order}.{scope}{space}"));
                EVICTIONS
                    .iter()
                    .for_each(|hint| add(format!(".{order}.{scope}{space}.L1::{hint}")));
            }
        }
    }
    if load {
        add(".global.nc".to_owned());
        ["ca", "cg", "cs"].iter().for_each(|cache| add(format!(".global.{cache}.nc")));
        EVICTIONS.iter().for_each(|hint| add(format!(".global.nc.L1::{hint}")));
    }
    all
}

/// Forms of a load or store: all modifiers, types and vectors, not each with each.
fn forms(opcode: &str) -> Vec<Case> {
    let load = opcode == "ld";
    let orders: &[&str] = if load { &["relaxed", "acquire"] } else { &["relaxed", "release"] };
    let caches: &[&str] =
        if load { &["ca", "cg", "cs", "lu", "cv"] } else { &["wb", "cg", "cs", "wt"] };
    let mut modifiers = access_modifiers(orders, caches, load);
    let plain = |modifiers: String| (modifiers, false);
    for space in ["", ".global", ".shared", ".shared::cta"] {
        modifiers.push(plain(format!(".volatile{space}")));
    }
    if load {
        modifiers
            .extend(["64B", "128B", "256B"].map(|size| plain(format!(".volatile.L2::{size}"))));
    }
    for space in [".shared", ".shared::cta", ".local"] {
        for weak in ["", ".weak"] {
            modifiers.push(plain(format!("{weak}{space}")));
            caches.iter().for_each(|cache| modifiers.push(plain(format!("{weak}{space}.{cache}"))));
        }
        for scope in SCOPES.iter().filter(|_| space != ".local") {
            orders.iter().for_each(|o| modifiers.push(plain(format!(".{o}.{scope}{space}"))));
        }
    }
    let mut cases = Vec::new();
    for (modifiers, policy) in &modifiers {
        let address = match modifiers {
            m if m.contains(".shared") => "rs",
            m if m.contains(".local") => "stack",
            _ => "wm",
        };
        let space = ["global", "shared", "local"][match address {
            "wm" => 0,
            "rs" => 1,
            _ => 2,
        }];
        // Every modifier with one of the types, so that each type comes around many times.
        let types = [
            "b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64",
            "f64",
        ];
        for (at, vector) in ["", ".v2", ".v4"].into_iter().enumerate() {
            for step in 0..2 {
                let ty = types[(cases.len() * 5 + at + step * 7) % types.len()];
                cases.push(form(opcode, modifiers, *policy, vector, ty, address, space));
            }
        }
    }
    for ty in [
        "b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64",
        "f64",
    ] {
        for modifiers in [
            ".mmio.relaxed.sys",
            ".mmio.relaxed.sys.global",
            ".volatile",
            ".volatile.shared",
            ".acquire.gpu",
            ".release.gpu",
            ".relaxed.sys.shared",
            ".global.nc",
            ".weak.local",
            ".global.L1::evict_first",
        ] {
            let wrong = if load {
                modifiers.contains("release")
            } else {
                modifiers.contains("acquire") || modifiers.contains("nc")
            };
            if wrong {
                continue;
            }
            let (address, space) = match modifiers {
                m if m.contains("shared") => ("rs", "shared"),
                m if m.contains("local") => ("stack", "local"),
                _ => ("wm", "global"),
            };
            cases.push(form(opcode, modifiers, false, "", ty, address, space));
        }
    }
    cases
}

/// One form: the bytes from 16 on, all positive, go through the last element of a vector.
fn form(
    opcode: &str,
    modifiers: &str,
    policy: bool,
    vector: &str,
    ty: &str,
    address: &str,
    space: &str,
) -> Case {
    let bits: usize = ty[1..].parse().expect("a width");
    // At most 16 bytes move at once.
    let count = vector.get(2..).map_or(1, |n| n.parse().expect("a length")).min(128 / bits);
    let vector = if count == 1 { String::new() } else { format!(".v{count}") };
    let register = |at: usize| format!("w{}", 10 + at);
    let list: Vec<_> = (0..count).map(register).collect();
    let list = if count == 1 { list[0].clone() } else { format!("{{{}}}", list.join(", ")) };
    let hint = if policy { ", w8" } else { "" };
    let (last, offset) = (register(count - 1), 16 + (count - 1) * bits / 8);
    // Registers of 64 bits hold elements of every type but those of the other size of float.
    let list = if ty == "f32" { list.replace('w', "r") } else { list };
    let last = if ty == "f32" { last.replace('w', "r") } else { last };
    let widen = if ty == "f32" { "cvt.u64.u32 w0, r0;" } else { "" };
    let zero = if ty == "f32" { "r0" } else { "w0" };
    let value = (0..bits / 8).fold(0, |value, at| value | ((offset + at) as u64 % 64) << (8 * at));
    let stack = ".local .align 16 .b8 stack[64];";
    if opcode == "ld" {
        let fill = "ld.global.v2.b64 {w5, w6}, [wm+16];";
        let code = format!(
            "{stack} {fill} st.{space}.v2.b64 [{address}+16], {{w5, w6}}; \
             ld{modifiers}{vector}.{ty} {list}, [{address}+16]{hint}; \
             mov.b{} {zero}, {last}; {widen}",
            if ty == "f32" { 32 } else { 64 }
        );
        return exact(code, &[(&[], value)]);
    }
    let moved = if ty == "f32" { 32 } else { 64 };
    let fill: String = (0..count)
        .map(|at| format!("mov.b{moved} {}{}, {}1; ", &last[..1], 10 + at, &last[..1]))
        .collect();
    let code = format!(
        "{stack} {fill} st{modifiers}{vector}.{ty} [{address}+16], {list}{hint}; \
         ld.{space}.b{bits} w0, [{address}+{offset}];"
    );
    exact(code, &[(&[value], value)])
}

fn loads() -> Vec<Case> {
    let mut cases = forms("ld");
    // A narrow element is extended to the width of its register, by sign where its type has one.
    let bytes = 0x8182_8384_8586_8788;
    for (ty, wide) in [
        ("u8", 0x88),
        ("s8", l(-0x78)),
        ("b8", 0x88),
        ("u16", 0x8788),
        ("s16", l(-0x7878)),
        ("b16", 0x8788),
        ("u32", 0x8586_8788),
        ("s32", l(-0x7a79_7878)),
        ("b32", 0x8586_8788),
        ("f32", 0x8586_8788),
        ("u64", bytes),
        ("s64", bytes),
        ("b64", bytes),
        ("f64", bytes),
    ] {
        let width: u32 = ty[1..].parse().expect("a width");
        for (space, address) in [(".global", "wm"), (".shared", "rs"), (".local", "stack")] {
            let store = format!(".local .align 16 .b8 stack[64]; st{space}.b64 [{address}+8], w1;");
            let rows: &[Row] = &[(&[bytes], wide)];
            cases.push(exact(format!("{store} ld{space}.{ty} w0, [{address}+8];"), rows));
            if width <= 32 {
                let rows: &[Row] = &[(&[bytes], wide & 0xffff_ffff)];
                cases.push(exact(format!("{store} ld{space}.{ty} r0, [{address}+8];"), rows));
            }
            if width <= 16 {
                let rows: &[Row] = &[(&[bytes], wide & 0xffff)];
                cases.push(exact(format!("{store} ld{space}.{ty} h0, [{address}+8];"), rows));
            }
        }
    }
    for modifiers in [
        "weak.global",
        "volatile.global",
        "relaxed.gpu.global",
        "acquire.sys.global",
        "global.nc",
        "global.ca",
        "global.cg",
        "global.cs",
        "global.lu",
        "global.cv",
        "global.L1::no_allocate",
        "global.nc.L1::no_allocate.L2::128B",
        "global.L1::evict_last.L2::256B",
        "relaxed.cta",
        "global.nc.L1::evict_first",
        "global.L2::64B",
    ] {
        cases.push(exact(format!("ld.{modifiers}.u32 r0, [wm+8];"), &[(&[], 0x0b0a_0908)]));
    }
    cases.extend([
        exact(".const .b32 table[2] = { 5, 6 }; --- ld.const.u32 r0, [table+4];", &[(&[], 6)]),
        exact(
            ".const .align 8 .b32 table[4] = { 5, 6, 7, 8 }; --- mov.u64 w10, table; \
             ld.weak.const.ca.v2.u32 {r10, r0}, [w10+8];",
            &[(&[], 8)],
        ),
        exact("ld.param::entry.u32 r0, [active]; sub.u32 r0, r0, ra;", &[(&[], 0)]),
        exact(
            "{ .param .align 8 .b8 pair[8]; st.param::func.v2.b32 [pair], {r1, r2}; \
             ld.param::func.b32 r0, [pair+4]; }",
            &[(&[5, 6], 6)],
        ),
        exact("ld.u32 r0, [wm+12];", &[(&[], 0x0f0e_0d0c)]),
        exact("add.u64 w10, wm, 16; ld.global.u32 r0, [w10+-4];", &[(&[], 0x0f0e_0d0c)]),
        exact("ld.global.v2.u8 {r10, r0}, [wm+2];", &[(&[], 3)]),
        exact("ld.global.v4.u8 {r10, r11, r12, r0}, [wm+4];", &[(&[], 7)]),
        exact("ld.global.v2.s16 {r0, r10}, [wm+4];", &[(&[], 0x0504)]),
        exact("ld.global.v4.u16 {h10, h11, h0, h12}, [wm+8];", &[(&[], 0x0d0c)]),
        exact("ld.global.v2.u32 {_, r0}, [wm+8];", &[(&[], 0x0f0e_0d0c)]),
        exact("ld.global.v4.f32 {r10, r11, r12, r0}, [wm+16];", &[(&[], 0x1f1e_1d1c)]),
        exact("ld.global.v2.b64 {w10, w0}, [wm+32];", &[(&[], 0x2f2e_2d2c_2b2a_2928)]),
        exact("ld.param.u32 r0, [active]; sub.u32 r0, r0, ra;", &[(&[], 0)]),
        exact(
            "ld.param.v2.u32 {r10, r11}, [memory]; cvt.u32.u64 r0, wm; \
             mad.lo.u32 r10, rl, 64, r10; sub.u32 r0, r0, r10;",
            &[(&[], 0)],
        ),
        fault("ld.global.u32 r1, [wm+2]; mov.u32 r0, r1;", FaultKind::Misaligned),
        fault("ld.global.v2.u32 {r1, r2}, [wm+4];", FaultKind::Misaligned),
        fault("ld.global.u32 r1, [wm+4096];", FaultKind::OutOfBounds),
        fault("ld.shared.u32 r1, [tile+2048];", FaultKind::OutOfBounds),
        refused("ld.global.v4.u64 {w1, w2, w3, w4}, [wm];", "32 bytes"),
        refused("ld.global.u32 h0, [wm];", "`h0` is B16"),
        refused("ld.global.u32.nothing r0, [wm];", "does not exist"),
        refused("ld.shared.u32 r0, [memory];", "state space"),
    ]);
    cases
}

fn stores() -> Vec<Case> {
    let ones = u64::MAX;
    let mut cases = forms("st");
    for (ty, register, stored) in [
        ("u8", "r1", 0x0706_0504_0302_01ff_u64),
        ("b8", "h1", 0x0706_0504_0302_01ff),
        ("s16", "h1", 0x0706_0504_0302_ffff),
        ("b16", "r1", 0x0706_0504_0302_ffff),
        ("u32", "r1", 0x0706_0504_ffff_ffff),
        ("u32", "w1", 0x0706_0504_ffff_ffff),
        ("f64", "w1", ones),
    ] {
        let code = format!("st.global.{ty} [wm], {register}; ld.global.u64 w0, [wm];");
        cases.push(exact(code, &[(&[ones], stored)]));
    }
    for modifiers in [
        "global.wb",
        "global.cg",
        "global.cs",
        "global.wt",
        "weak.global",
        "volatile.global",
        "relaxed.gpu.global",
        "release.gpu.global",
        "release.cta",
        "global.L1::no_allocate",
    ] {
        let code = format!("st.{modifiers}.u32 [wm+4], r1; ld.global.u32 r0, [wm+4];");
        cases.push(exact(code, &[(&[77], 77)]));
    }
    let sum = "ld.global.v2.u64 {w10, w11}, [wm+16]; xor.b64 w0, w10, w11;";
    cases.extend([
        exact("{ .param .b32 x; st.param.b32 [x], r1; ld.param.b32 r0, [x]; }", &[(&[5], 5)]),
        exact(
            "{ .param .align 4 .b8 x[8]; st.weak.param::func.b8 [x+3], r1; \
             ld.param::func.u8 r0, [x+3]; }",
            &[(&[5], 5)],
        ),
        exact(
            format!("st.global.v4.u32 [wm+16], {{r1, r2, r3, 5}}; {sum}"),
            &[(&[1, 2, 3], 0x7_0000_0002)],
        ),
        exact(
            format!("st.global.v2.u64 [wm+16], {{w1, w2}}; {sum}"),
            &[(&[1 << 40, 2], 1 << 40 | 2)],
        ),
        exact(
            "st.global.v4.u8 [wm], {r1, r2, r3, r4}; ld.global.u32 r0, [wm];",
            &[(&[1, 2, 3, 0x1ff], 0xff03_0201)],
        ),
        exact(
            "st.shared.v2.f32 [rs+8], {r1, 0f3F800000}; ld.shared.b64 w0, [rs+8];",
            &[(&[9], f(1.0) << 32 | 9)],
        ),
        exact("st.u32 [wm+60], 8; ld.u8 r0, [wm+60];", &[(&[], 8)]),
        exact(
            "st.global.L2::cache_hint.u32 [wm], r1, w2; ld.global.u32 r0, [wm];",
            &[(&[6, 0], 6)],
        ),
        fault("st.global.u16 [wm+1], 1;", FaultKind::Misaligned),
        fault("st.global.u16 [wm+-4096], 1;", FaultKind::OutOfBounds),
        refused("st.const.u32 [wm], 1;", "does not exist"),
        refused("st.global.v2.u32 [wm], r1;", "sources"),
    ]);
    cases
}
