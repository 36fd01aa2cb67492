//! Address spaces, caches, asynchronous copies and fences: PTX ISA 9.7.9 and 9.7.13.

use cuda_emulator::FaultKind;

use super::harness::*;

pub fn families() -> Vec<Family> {
    vec![
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
                exact(
                    ".local .align 8 .b8 stack[8]; prefetch.local.L1 [stack]; \
                     prefetch.global.L2::evict_normal [wm]; mov.u32 r0, 1;",
                    &[(&[], 1)],
                ),
                refused("prefetch.global [wm];", "does not exist"),
            ],
        ),
        family(
            "9.7.9.15 prefetchu",
            "prefetchu",
            vec![exact("prefetchu.L1 [wm]; mov.u32 r0, 1;", &[(&[], 1)])],
        ),
        family("9.7.9.17 discard", "discard", discards()),
        family("9.7.9.18 createpolicy", "createpolicy", policies()),
        family("9.7.9.19 isspacep", "isspacep", spaces()),
        family("9.7.9.20 cvta", "cvta", conversions()),
        family("9.7.9.25.3 cp.async", "cp", copies()),
        family("9.7.13.4 membar", "membar", fences("membar", &["cta", "gl", "sys", "proxy.alias"])),
        family("9.7.13.4 fence", "fence", fences("fence", &fence_levels())),
    ]
}

#[test]
fn memory() {
    check(&families());
}

fn fence_levels() -> Vec<String> {
    let mut levels = vec!["proxy.alias".to_owned()];
    for scope in ["cta", "cluster", "gpu", "sys"] {
        levels.push(scope.to_owned());
        for order in ["sc", "acq_rel", "acquire", "release"] {
            levels.push(format!("{order}.{scope}"));
        }
    }
    levels
}

/// Two lanes have 128 bytes.
fn discards() -> Vec<Case> {
    let line = "and.b64 w1, wm, -128;";
    vec![
        exact(
            format!(
                "{line} discard.global.L2 [w1], 128; bar.warp.sync -1; \
                 st.u32 [wm], 7; ld.u32 r0, [wm];"
            ),
            &[(&[], 7)],
        ),
        exact(
            format!(
                "{line} discard.L2 [w1], 0x80; bar.warp.sync -1; \
                 st.u32 [wm+60], 7; ld.u32 r0, [wm+60];"
            ),
            &[(&[], 7)],
        ),
        // Only the first lines: what lies next to them stays.
        exact(
            "mov.u32 r1, %laneid; setp.eq.u32 p1, r1, 0; @p1 discard.global.L2 [wm], 128; \
             setp.ge.u32 p1, r1, 2; mov.u32 r0, 0x03020100; @p1 ld.u32 r0, [wm];",
            &[(&[], 0x0302_0100)],
        ),
        fault(
            &format!("{line} discard.global.L2 [w1], 128; ld.u32 r0, [wm];"),
            FaultKind::UninitializedRead,
        ),
        fault("discard.global.L2 [wm+64], 128;", FaultKind::Misaligned),
        fault("mov.b64 w1, 0; discard.global.L2 [w1], 128;", FaultKind::OutOfBounds),
        fault(
            "add.u64 w1, ws, 127; and.b64 w1, w1, -128; cvta.shared.u64 w1, w1; \
             mov.u32 r1, %laneid; setp.eq.u32 p1, r1, 0; @p1 discard.L2 [w1], 128;",
            FaultKind::IllegalAccess,
        ),
        refused("discard.global.L2 [wm], 64;", "128"),
        refused("discard.global.L2 [wm];", "operands"),
        refused("discard.global [wm], 128;", "does not exist"),
    ]
}

fn policies() -> Vec<Case> {
    let mut cases = Vec::new();
    let load = "ld.global.L2::cache_hint.u32 r0, [wm], w10;";
    for first in ["evict_last", "evict_normal", "evict_first", "evict_unchanged"] {
        for second in ["", ".L2::evict_first", ".L2::evict_unchanged"] {
            for policy in [
                format!("fractional.L2::{first}{second}.b64 w10, 0.5;"),
                format!("fractional.L2::{first}{second}.b64 w10;"),
                format!("range.L2::{first}{second}.b64 w10, [wm], 64, 128;"),
                format!("range.global.L2::{first}{second}.b64 w10, [wm], r1, r1;"),
            ] {
                let code = format!("createpolicy.{policy} {load}");
                cases.push(exact(code, &[(&[64], 0x0302_0100)]));
            }
        }
    }
    let code = format!("createpolicy.cvt.L2.b64 w10, w1; {load}");
    cases.push(exact(code, &[(&[0], 0x0302_0100)]));
    cases.push(refused("createpolicy.range.L2::evict_last.b64 w1, [wm], 64;", "operands"));
    cases.push(refused("createpolicy.fractional.b64 w1, 1.0;", "does not exist"));
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
        ("const", [0, 0, 0]),
        ("param", [0, 0, 0]),
        ("param::entry", [0, 0, 0]),
    ] {
        for (address, result) in ["wm", "w11", "w10"].into_iter().zip(results) {
            let code = format!("{prepare} isspacep.{space} p0, {address};");
            cases.push(exact(code, &[(&[], result)]));
        }
    }
    let constants = ".const .b32 table[2] = { 5, 6 }; ---";
    let at = "mov.u64 w10, table; cvta.const.u64 w10, w10;";
    cases.extend([
        exact(format!("{constants} {at} isspacep.const p0, w10;"), &[(&[], 1)]),
        exact(format!("{constants} {at} isspacep.global p0, w10;"), &[(&[], 0)]),
        exact(
            "mov.u64 w10, active; cvta.param::entry.u64 w10, w10; isspacep.param::entry p0, w10;",
            &[(&[], 1)],
        ),
    ]);
    cases
}

fn conversions() -> Vec<Case> {
    let constants = ".const .b32 table[2] = { 5, 6 }; ---";
    vec![
        exact(
            format!("{constants} mov.u64 w10, table; cvta.const.u64 w10, w10; ld.u32 r0, [w10+4];"),
            &[(&[], 6)],
        ),
        exact(
            format!(
                "{constants} mov.u64 w10, table; cvta.const.u64 w10, w10; cvta.to.const.u64 w10, w10; \
                 ld.const.u32 r0, [w10];"
            ),
            &[(&[], 5)],
        ),
        exact(
            "mov.u64 w10, active; cvta.param::entry.u64 w11, w10; cvta.to.param::entry.u64 w11, w11; \
             sub.u64 w0, w10, w11;",
            &[(&[], 0)],
        ),
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
        refused("cvta.shared.u32 r0, rs;", "does not exist"),
        refused("cvta.u64 w0, ws;", "does not exist"),
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
    for modifiers in [
        "cg.shared.global",
        "cg.shared::cta.global.L2::128B",
        "ca.shared.global.L2::64B",
        "ca.shared::cta.global.L2::256B",
    ] {
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
            "mov.u64 w10, 0; cp.async.ca.shared.global [rs], [w10], 4, 0; cp.async.wait_all; \
             ld.shared.u32 r0, [rs];",
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

fn fences(opcode: &str, levels: &[impl AsRef<str>]) -> Vec<Case> {
    let mut cases: Vec<_> = levels
        .iter()
        .map(|level| {
            let level = level.as_ref();
            exact(
                format!("st.global.u32 [wm], r1; {opcode}.{level}; ld.global.u32 r0, [wm];"),
                &[(&[5], 5)],
            )
        })
        .collect();
    cases.push(match opcode {
        "fence" => refused("fence.sc;", "does not exist"),
        _ => refused("membar;", "does not exist"),
    });
    cases
}
