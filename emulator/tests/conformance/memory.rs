//! Loads, stores, address spaces, caches, asynchronous copies and fences: PTX ISA 9.7.9, 9.7.13.

use cuda_emulator::FaultKind;

use super::harness::*;

pub fn families() -> Vec<Family> {
    vec![
        family("9.7.9.8 ld", "ld", loads()),
        family(
            "9.7.9.10 ldu",
            "ldu",
            vec![
                exact("ldu.global.u32 r0, [wm+4];", &[(&[], 0x0706_0504)]),
                exact("ldu.global.v2.u32 {r10, r0}, [wm];", &[(&[], 0x0706_0504)]),
            ],
        ),
        family("9.7.9.11 st", "st", stores()),
        family(
            "9.7.9.15 prefetch",
            "prefetch",
            vec![
                exact(
                    "prefetch.global.L1 [wm]; prefetch.global.L2 [wm]; mov.u32 r0, 1;",
                    &[(&[], 1)],
                ),
                exact(
                    "prefetch.global.L2::evict_last [wm]; prefetch.L1 [wm]; mov.u32 r0, 1;",
                    &[(&[], 1)],
                ),
                refused("prefetch.global [wm];", "cache level"),
            ],
        ),
        family(
            "9.7.9.15 prefetchu",
            "prefetchu",
            vec![exact("prefetchu.L1 [wm]; mov.u32 r0, 1;", &[(&[], 1)])],
        ),
        family(
            "9.7.9.18 createpolicy",
            "createpolicy",
            vec![exact(
                "createpolicy.fractional.L2::evict_last.b64 w10, 1.0; \
             ld.global.L2::cache_hint.u32 r0, [wm], w10;",
                &[(&[], 0x0302_0100)],
            )],
        ),
        family("9.7.9.19 isspacep", "isspacep", spaces()),
        family("9.7.9.20 cvta", "cvta", conversions()),
        family("9.7.9.25.3 cp.async", "cp", copies()),
        family("9.7.13.4 membar", "membar", fences("membar", &["cta", "gl", "sys"])),
        family(
            "9.7.13.4 fence",
            "fence",
            fences("fence", &["sc.cta", "acq_rel.cta", "acq_rel.gpu", "acq_rel.sys", "sc.gpu"]),
        ),
    ]
}

#[test]
fn memory() {
    check(&families());
}

fn loads() -> Vec<Case> {
    let mut cases = Vec::new();
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
        refused("ld.global.u32 h0, [wm];", "narrower"),
        refused("ld.global.u32.nothing r0, [wm];", "unknown modifier"),
        refused("ld.shared.u32 r0, [memory];", "state space"),
    ]);
    cases
}

fn stores() -> Vec<Case> {
    let ones = u64::MAX;
    let mut cases = Vec::new();
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
        refused("st.const.u32 [wm], 1;", "constant"),
        refused("st.global.v2.u32 [wm], r1;", "sources"),
    ]);
    cases
}

fn spaces() -> Vec<Case> {
    let mut cases = Vec::new();
    let prepare = ".local .align 8 .b8 stack[8]; mov.u64 w10, stack; cvta.local.u64 w10, w10; \
                   cvta.shared.u64 w11, ws;";
    for (space, results) in [
        ("global", [1, 0, 0]),
        ("shared", [0, 1, 0]),
        ("shared::cta", [0, 1, 0]),
        ("local", [0, 0, 1]),
        ("param", [0, 0, 0]),
        ("param::entry", [0, 0, 0]),
    ] {
        for (address, result) in ["wm", "w11", "w10"].into_iter().zip(results) {
            let code = format!("{prepare} isspacep.{space} p0, {address};");
            cases.push(exact(code, &[(&[], result)]));
        }
    }
    cases
}

fn conversions() -> Vec<Case> {
    vec![
        exact(
            "cvta.shared.u64 w10, ws; st.u32 [w10+4], r1; ld.shared.u32 r0, [rs+4];",
            &[(&[7], 7)],
        ),
        exact(
            "cvta.shared.u64 w10, ws; cvta.to.shared.u64 w0, w10; sub.u64 w0, w0, ws;",
            &[(&[], 0)],
        ),
        exact(
            "cvta.to.shared::cta.u64 w0, ws; cvta.shared::cta.u64 w0, w0; sub.u64 w0, w0, ws;",
            &[(&[], 0)],
        ),
        exact("cvta.to.global.u64 w10, wm; ld.global.u32 r0, [w10];", &[(&[], 0x0302_0100)]),
        exact("cvta.global.u64 w10, wm; ld.u32 r0, [w10];", &[(&[], 0x0302_0100)]),
        exact(
            ".local .b32 x[2]; st.local.u32 [x+4], r1; mov.u64 w10, x; cvta.local.u64 w10, w10; \
             ld.u32 r0, [w10+4];",
            &[(&[9], 9)],
        ),
        exact(
            ".local .b32 x; mov.u64 w10, x; cvta.local.u64 w11, w10; cvta.to.local.u64 w11, w11; \
             sub.u64 w0, w10, w11;",
            &[(&[], 0)],
        ),
        exact(
            "mov.u64 w10, active; cvta.param.u64 w10, w10; ld.u32 r0, [w10]; sub.u32 r0, r0, ra;",
            &[(&[], 0)],
        ),
        refused("cvta.shared.u32 r0, rs;", "64-bit"),
        refused("cvta.u64 w0, ws;", "state space"),
    ]
}

fn copies() -> Vec<Case> {
    // What a copy overwrites is set first; what it does not touch stays.
    let fill = "st.shared.v2.b64 [rs], {-1, -1}; st.shared.v2.b64 [rs+16], {-1, -1};";
    let read = "ld.shared.v2.b64 {w10, w11}, [rs]; ld.shared.b64 w12, [rs+16]; \
                shl.b64 w11, w11, 1; add.u64 w0, w10, w11; xor.b64 w0, w0, w12;";
    let copied = |bytes: u32, from: u32| {
        // The words at 0 and 8 of the destination, by bytes of which byte i is `from + i`.
        let word = |at: u32| {
            (0..8).fold(0_u64, |word, byte| {
                let place = at + byte;
                let value = if place < bytes { u64::from(from + place) } else { 0xff };
                word | value << (8 * byte)
            })
        };
        word(0).wrapping_add(word(8) << 1) ^ u64::MAX
    };
    let mut cases = Vec::new();
    for bytes in [4, 8, 16] {
        for wait in ["cp.async.wait_all;", "cp.async.commit_group; cp.async.wait_group 0;"] {
            let code =
                format!("{fill} cp.async.ca.shared.global [rs], [wm+16], {bytes}; {wait} {read}");
            cases.push(exact(code, &[(&[], copied(bytes, 16))]));
        }
    }
    for modifiers in
        ["cg.shared.global", "cg.shared::cta.global.L2::128B", "ca.shared.global.L2::64B"]
    {
        let code =
            format!("{fill} cp.async.{modifiers} [rs], [wm+32], 16; cp.async.wait_all; {read}");
        cases.push(exact(code, &[(&[], copied(16, 32))]));
    }
    let policy = "cp.async.cg.shared.global.L2::cache_hint [rs], [wm+32], 16, w1;";
    cases.push(exact(
        format!("{fill} {policy} cp.async.wait_all; {read}"),
        &[(&[0], copied(16, 32))],
    ));
    let word = "ld.shared.b64 w0, [rs];";
    cases.extend([
        // Beyond the bytes to read come zeros.
        exact(
            format!("cp.async.ca.shared.global [rs], [wm], 8, r1; cp.async.wait_all; {word}"),
            &[(&[0], 0), (&[3], 0x0002_0100), (&[8], 0x0706_0504_0302_0100)],
        ),
        exact(
            format!("cp.async.cg.shared.global [rs], [wm+16], 16, 5; cp.async.wait_all; {word}"),
            &[(&[], 0x14_1312_1110)],
        ),
        exact(
            format!("cp.async.ca.shared.global [rs], [wm], 8, p1; cp.async.wait_all; {word}"),
            &[(&[0], 0x0706_0504_0302_0100), (&[1], 0)],
        ),
        // No byte is read of an address that is not one.
        exact(
            "cp.async.ca.shared.global [rs], [0], 4, 0; cp.async.wait_all; ld.shared.u32 r0, [rs];",
            &[(&[], 0)],
        ),
        // The newest group may still be under way: its destination holds poison.
        exact(
            "st.shared.v2.b32 [rs], {5, 5}; cp.async.ca.shared.global [rs], [wm], 4; \
             cp.async.commit_group; cp.async.ca.shared.global [rs+4], [wm+4], 4; \
             cp.async.commit_group; cp.async.wait_group 1; ld.shared.u32 r0, [rs]; \
             cp.async.wait_group 0;",
            &[(&[], 0x0302_0100)],
        ),
        exact(
            "cp.async.ca.shared.global [rs], [wm], 4; cp.async.commit_group; \
             cp.async.commit_group; cp.async.wait_group 1; ld.shared.u32 r0, [rs];",
            &[(&[], 0x0302_0100)],
        ),
        fault(
            "cp.async.ca.shared.global [rs+2], [wm], 4; cp.async.wait_all;",
            FaultKind::Misaligned,
        ),
        fault(
            "cp.async.ca.shared.global [rs], [wm], 8, 9; cp.async.wait_all;",
            FaultKind::IllegalOperand,
        ),
        refused("cp.async.cg.shared.global [rs], [wm], 8;", "16 bytes"),
        refused("cp.async.ca.shared.global [rs], [wm], 12;", "4, 8 or 16"),
        refused("cp.async.ca.shared.global [rs], [wm], 4, 4, 4;", "takes two addresses"),
    ]);
    cases
}

fn fences(opcode: &str, levels: &[&str]) -> Vec<Case> {
    let mut cases: Vec<_> = levels
        .iter()
        .map(|level| {
            exact(
                format!("st.global.u32 [wm], r1; {opcode}.{level}; ld.global.u32 r0, [wm];"),
                &[(&[5], 5)],
            )
        })
        .collect();
    cases.push(match opcode {
        "fence" => refused("fence.sc;", "scope"),
        _ => refused("membar;", "level"),
    });
    cases
}
