//! What stands around instructions and in their operands: constant expressions (PTX ISA 4.5),
//! vectors and addresses (6.4), initialisers (5.4), variables in bodies, names for functions, and
//! instructions of devices that the emulated one does not have.

use super::harness::*;

pub fn families() -> Vec<Family> {
    vec![
        family("4.5 Constant expressions", "mov", expressions()),
        family("6.4.2 Vectors", "mov", vectors()),
        family("6.4.1 Addresses", "ld", addresses()),
        family("5.4 Variables", "ld", variables()),
        family("7.1 Functions", "call", functions()),
        family("10 Special registers", "mov", environment()),
        family("11.6.2 .alias", "call", aliases()),
        family("9.7.9 prefetch", "applypriority", priorities()),
    ]
}

#[test]
fn syntax() {
    check(&families());
}

fn expressions() -> Vec<Case> {
    let integers: &[(&str, i64)] = &[
        ("WARP_SZ-1", 31),
        ("(WARP_SZ-1)*2", 62),
        ("2+3*4", 14),
        ("10-4-3", 3),
        ("1 << 2 + 1", 8),
        ("1 | 2 ^ 3 & 4", 3),
        ("1 == 1 == 1", 1),
        ("1 < 2 < 3", 1),
        ("3 >= 3 && 2 <= 1 || 0 != 0", 0),
        ("3 > 2 ? 7 : 8", 7),
        ("1 ? 2 ? 3 : 4 : 5", 3),
        ("- - 3", 3),
        ("+3", 3),
        ("!5", 0),
        ("!!5", 1),
        ("3 - -2", 5),
        ("2 * -3", -6),
        ("010 + 0x10 + 0b10", 26),
        // Signed, where both are: shifts have the sign of the first.
        ("-8/3", -2),
        ("-1 >> 1", -1),
        ("-1 >> 1U", -1),
        ("-1 > 0", 0),
        // Unsigned, where one is.
        ("-8U/3", 0x5555_5555_5555_5552),
        ("-8/3U", 0x5555_5555_5555_5552),
        ("-1 > 0U", 1),
        ("-1U >> 1", i64::MAX),
        ("(.u64)-1 >> 1", i64::MAX),
        ("(.s64)-1U >> 1", -1),
        ("~0 >> 1", i64::MAX),
        ("~0 > 0", 1),
        ("0xffffffffffffffff >> 63", 1),
        // Remainders are unsigned.
        ("7 % -3", 7),
        ("-7 % 3", 0),
        ("1.5 > 1.0", 1),
    ];
    let mut cases: Vec<Case> = integers
        .iter()
        .map(|(text, value)| exact(format!("mov.b64 w0, {text};"), &[(&[], l(*value))]))
        .collect();
    let doubles = [
        ("1.5*2.0", 3.0),
        ("-1.5", -1.5),
        ("1.0/3.0", 1.0 / 3.0),
        ("0d3FF0000000000000*3.0 - 1.0", 2.0),
        ("1.0+0.5", 1.5),
        ("1.5e+2-1.0E-1", 149.9),
    ];
    cases.extend(
        doubles.map(|(text, value)| exact(format!("mov.f64 w0, {text};"), &[(&[], d(value))])),
    );
    cases.extend([
        exact("mov.f32 r0, -1.5;", &[(&[], f(-1.5))]),
        exact("mov.u32 r0, r1; add.u32 r0, r0, WARP_SZ*2;", &[(&[5], 69)]),
        exact("mov.b64 w0, {(1+2)*3, 4-5};", &[(&[], 0xffff_ffff_0000_0009)]),
        refused("mov.b64 w0, 1/0;", "divides by zero"),
        refused("mov.b64 w0, 1 << 64;", "shifts by 64"),
        refused("mov.b64 w0, 1.0+2;", "do not fit"),
        refused("mov.b64 w0, ~1.0;", "an integer is expected"),
        refused("mov.b64 w0, 1.0 ? 2 : 3;", "no integer"),
        refused("mov.b64 w0, (1;", "expected `)`"),
        refused("mov.b64 w0, 1 + ;", "expected a constant"),
        refused(&format!("mov.b64 w0, {}1;", "(".repeat(500)), "more than 128"),
        refused(&format!("mov.b64 w0, {}1;", "- ".repeat(500)), "more than 128"),
        refused(&format!("mov.b64 w0, {}1;", "1 ? 1 : ".repeat(500)), "more than 128"),
    ]);
    cases
}

fn vectors() -> Vec<Case> {
    let declare = ".reg .v2 .u32 a, pair<2>; .reg .v4 .f32 four; .reg .v2 .b64 wide;";
    let case = |code: &str, result: u64| {
        exact(format!("{declare} {code}"), &[(&[11, 22, 33, 44], result)])
    };
    vec![
        case("mov.u32 a.x, r1; mov.u32 a.y, r2; add.u32 r0, a.x, a.y;", 33),
        case("mov.u32 a.r, r1; mov.u32 a.g, r2; sub.u32 r0, a.y, a.x;", 11),
        case("mov.u32 pair0.x, r1; mov.u32 pair1.y, r2; sub.u32 r0, pair1.y, pair0.x;", 11),
        // A vector as a whole is its elements in braces.
        case("mov.u32 a.x, r1; mov.u32 a.y, r2; mov.b64 w0, a;", 11 | 22 << 32),
        case("mov.b64 a, w2; mov.u32 r0, a.x;", 22),
        case(
            "st.global.v2.u64 [wm], {w1, w2}; ld.global.v4.f32 four, [wm]; mov.b32 r0, four.z;",
            22,
        ),
        case(
            "st.shared.v2.u64 [rs], {w1, w3}; ld.shared.v4.f32 four, [rs]; mov.b32 r0, four.b;",
            33,
        ),
        case(
            "mov.u32 a.x, r1; mov.u32 a.y, r2; st.global.v2.u32 [wm], a; ld.global.u64 w0, [wm];",
            11 | 22 << 32,
        ),
        // Moves of vectors, whose elements may be on both sides.
        case(
            "mov.v2.u32 a, {r1, r2}; mov.v2.u32 {a.x, a.y}, {a.y, a.x}; mov.b64 w0, a;",
            22 | 11 << 32,
        ),
        case("mov.v4.f32 four, {r1, r2, r3, r4}; mov.b32 r0, four.w;", 44),
        case("mov.v2.b64 wide, {w1, w4}; add.u64 w0, wide.x, wide.y;", 55),
        case("mov.v2.s32 {r10, r11}, {r1, -3}; add.s32 r0, r10, r11;", 8),
        case(
            "mov.v2.b32 {r10, r11}, {r1, r2}; mov.v2.s64 {w10, w11}, {w1, w2}; \
              mov.v2.u64 {w12, w13}, {w10, w11}; mov.v2.f64 {w10, w11}, {w12, w13}; \
              cvt.u32.u64 r12, w11; sub.u32 r0, r12, r10;",
            11,
        ),
        case(
            "mov.v2.b16 {h10, h11}, {h1, h2}; mov.v2.u16 {h12, h13}, {h10, h11}; \
              mov.v2.s16 {h10, h11}, {h13, h12}; mov.b32 r0, {h10, h11};",
            22 | 11 << 16,
        ),
        // An inner scope hides a vector.
        case("{ .reg .u32 a; mov.u32 a, r1; mov.u32 r0, a; }", 11),
        refused(".reg .v2 .u32 a; mov.u32 r0, a;", ".b16, .b32 and .b64"),
        refused(".reg .v2 .u32 a; mov.u32 r0, a.z;", "unknown name `a.z`"),
        refused("mov.v2.u32 {r1, r2}, {r3};", "two vectors of 2 elements"),
    ]
}

fn addresses() -> Vec<Case> {
    vec![
        exact(
            ".global .u32 words[4] = {5, 6, 7, 8}; --- ld.global.u32 r0, [words+4*2];",
            &[(&[], 7)],
        ),
        exact("ld.global.u8 r0, [wm+WARP_SZ-1];", &[(&[], 31)]),
        exact("ld.global.u8 r0, [wm+(2+3)*4];", &[(&[], 20)]),
        exact("add.u64 w10, wm, 9; ld.global.u8 r0, [w10-4*2];", &[(&[], 1)]),
        exact("add.u64 w10, wm, 9; ld.global.u8 r0, [w10+-4+1];", &[(&[], 6)]),
        exact(
            ".global .u32 words[2*2] = {1+1, WARP_SZ*2, -1, ~0}; --- \
             ld.global.u32 r0, [words+4];",
            &[(&[], 64)],
        ),
        // A name says where it lies, whatever the access names.
        exact(".local .u32 mine; st.u32 [mine], r1; ld.u32 r0, [mine];", &[(&[7], 7)]),
        warp(
            ".shared .u32 ours[32]; setp.eq.u32 p10, rl, 0; @p10 st.u32 [ours+4], 7; \
             bar.warp.sync -1; ld.u32 r0, [ours+4];",
            |_| vec![],
            |_| 7,
        ),
        refused("ld.shared.u32 r0, [wm, {r1, r2}];", "an address in brackets"),
        // A register and a constant, outside of brackets.
        exact("mov.b64 w10, w1; ld.global.u8 r10, [wm]; mov.b64 w0, w10+5;", &[(&[7], 12)]),
        exact(
            "st.global.u32 [wm], r1+1; st.global.u16 [wm+4], h1 + 2; ld.global.b64 w0, [wm];",
            &[(&[7], 8 | 9 << 32 | 0x0706 << 48)],
        ),
        refused("ld.global.u32 r10, [wm]; mov.u32 r0, p1+1;", "cannot be an operand"),
    ]
}

fn variables() -> Vec<Case> {
    let bytes = ".global .u32 word[2]; .global .u8 address[8] = {0xff(word), 0xff00(word), \
                 0xff0000(word), 0xff000000(word), 0xff00000000(generic(word)), \
                 0xff0000000000(word), 0xff000000000000(word), 0xff00000000000000(word)}; \
                 .global .u8 next = 0xff(word+4); ---";
    vec![
        exact(
            ".global .u32 inner[2] = {5, 6}; .const .u32 fixed = 9; ld.global.u32 r10, [inner+4]; \
             ld.const.u32 r11, [fixed]; add.u32 r0, r10, r11;",
            &[(&[], 15)],
        ),
        // Each scope has its own.
        exact(
            "{ .global .u32 one = 1; ld.global.u32 r10, [one]; } \
             { .global .u32 one = 2; ld.global.u32 r11, [one]; } add.u32 r0, r10, r11;",
            &[(&[], 3)],
        ),
        exact(
            ".func (.reg .u32 out) f() { .global .u32 hidden = 8; \
             ld.global.u32 out, [hidden]; ret; } \
             --- call (r10), f; .global .u32 hidden = 1; ld.global.u32 r11, [hidden]; \
             add.u32 r0, r10, r11;",
            &[(&[], 9)],
        ),
        exact(
            format!(
                "{bytes} mov.u64 w10, word; ld.global.u64 w11, [address]; sub.u64 w0, w10, w11;"
            ),
            &[(&[], 0)],
        ),
        exact(
            format!(
                "{bytes} mov.u64 w10, word; ld.global.u8 r10, [next]; cvt.u32.u64 r11, w10; \
                 add.u32 r11, r11, 4; sub.u32 r10, r10, r11; and.b32 r0, r10, 255;"
            ),
            &[(&[], 0)],
        ),
        exact(
            ".global .f32 x[2] = {1.0+0.5, -2.0}; .global .f64 y = 0f3F800000; --- \
             ld.global.f32 r10, [x]; ld.global.f32 r11, [x+4]; ld.global.f64 w10, [y]; \
             add.f32 r10, r10, r11; cvt.rn.f32.f64 r11, w10; add.f32 r0, r10, r11;",
            &[(&[], f(0.5))],
        ),
        refused(".global .u32 a; .global .u8 b = 0xf0(a); --- ld.global.u32 r0, [a];", "one byte"),
        refused(".global .texref t; --- ld.global.u32 r0, [wm];", "textures and surfaces are not"),
    ]
}

/// Predicates as parameters and as results.
fn functions() -> Vec<Case> {
    let invert = ".func (.reg .pred out) invert(.reg .pred in) { not.pred out, in; ret; } ---";
    vec![
        exact(format!("{invert} call (p0), invert, (p1);"), &[(&[0], 1), (&[5], 0)]),
        exact(format!("{invert} call (p0), invert, (!p1);"), &[(&[0], 0), (&[5], 1)]),
        exact(
            format!(
                "{invert} shape: .callprototype (.reg .pred _) _ (.reg .pred _); \
                 mov.u64 w10, invert; call (p0), w10, (p1), shape;"
            ),
            &[(&[0], 1), (&[5], 0)],
        ),
        refused(&format!("{invert} call (p0), invert, (r1);"), "cannot be an operand"),
        // Vectors, element by element.
        exact(
            ".func (.reg .v2 .u32 out) swap(.reg .v2 .u32 in) { \
             mov.v2.u32 out, {in.y, in.x}; ret; } \
             --- .reg .v2 .u32 pair; mov.v2.u32 pair, {r1, r2}; call (pair), swap, (pair); \
             mov.b64 w0, pair;",
            &[(&[11, 22], 22 | 11 << 32)],
        ),
        refused(
            ".func f(.reg .v2 .u32 in) { ret; } --- .reg .v4 .u32 four; call f, (four);",
            "4 results and arguments, not 2",
        ),
    ]
}

fn environment() -> Vec<Case> {
    // No grid of these tests is cooperative.
    vec![
        exact("mov.u32 r10, %envreg1; mov.u32 r11, %envreg2; mov.b64 w0, {r10, r11};", &[(&[], 0)]),
        exact("mov.u32 r10, %envreg0; mov.b32 r11, %envreg31; or.b32 r0, r10, r11;", &[(&[], 0)]),
        refused("mov.u32 r0, %envreg32;", "unknown name"),
    ]
}

fn aliases() -> Vec<Case> {
    let f = ".func (.reg .u32 out) g(.reg .u32 in); \
             .func (.reg .u32 out) f(.reg .u32 in) { add.u32 out, in, 1; ret; } .alias g, f; ---";
    vec![
        exact(format!("{f} call (r0), g, (r1);"), &[(&[6], 7)]),
        exact(
            format!(
                "{f} shape: .callprototype (.reg .u32 _) _ (.reg .u32 _); mov.u64 w10, g; \
                 call (r0), w10, (r1), shape;"
            ),
            &[(&[6], 7)],
        ),
        exact(
            format!(
                "{f} mov.u64 w10, g; mov.u64 w11, f; sub.u64 w0, w10, w11; call (r1), g, (r1);"
            ),
            &[(&[6], 0)],
        ),
    ]
}

fn priorities() -> Vec<Case> {
    vec![
        exact("applypriority.global.L2::evict_normal [wm], 128; mov.u32 r0, 1;", &[(&[], 1)]),
        exact("applypriority.L2::evict_normal [wm], 128; mov.u32 r0, 1;", &[(&[], 1)]),
        refused("applypriority.L2::evict_normal [wm], 64;", "only size"),
        refused("applypriority.L2::evict_first [wm], 128;", "does not exist"),
    ]
}

/// Instructions that the emulated device does not have say so by name.
#[test]
fn instructions_that_are_not_there_are_named() {
    let unsupported = [
        ("tex.2d.v4.f32.f32 {r1, r2, r3, r4}, [t, {r5, r6}];", "textures and surfaces"),
        ("tex.2d.v4.f32.f32 {r1, r2, r3, r4}, [t, s, {r5, r6}];", "textures and surfaces"),
        ("tld4.r.2d.v4.f32.f32 {r1, r2, r3, r4}, [t, {r5, r6}];", "textures and surfaces"),
        ("txq.width.b32 r1, [t];", "textures and surfaces"),
        ("suld.b.2d.v4.b8.trap {h1, h2, h3, h4}, [s, {r1, r2}];", "textures and surfaces"),
        ("sust.b.1d.b32.clamp [s, {r1}], {r2};", "textures and surfaces"),
        ("wgmma.fence.sync.aligned;", "`wgmma`"),
        ("wmma.load.a.sync.aligned.row.m8n8k4.f64 {w2}, [w1];", "`wmma`"),
        ("tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [w1];", "`tcgen05`"),
        ("mbarrier.init.shared.b64 [r1], 5;", "`mbarrier`"),
        ("cp.async.mbarrier.arrive.b64 [r1];", "`mbarrier`"),
        ("cp.async.bulk.commit_group;", "TMA"),
        (
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes \
          [r1], [w1, {r2, r3}], [r4];",
            "TMA",
        ),
        ("fence.proxy.async;", "TMA"),
        ("tensormap.replace.tile.rank.global.b1024.b32 [w1], 1;", "TMA"),
        ("mapa.u64 w1, w2, r1;", "clusters"),
        ("barrier.cluster.arrive;", "clusters"),
        ("multimem.red.add.u32 [w1], r1;", "`multimem`"),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {r1}, {r2}, {r3}, {r4};", "m8n8k4"),
        ("setmaxnreg.inc.sync.aligned.u32 64;", "`setmaxnreg`"),
        (
            "mma.sp.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {r1}, {r2}, {r3}, {r4}, r5, 0;",
            "`mma.sp`",
        ),
    ];
    let device = cuda_emulator::Device::new(cuda_emulator::profile::H100);
    for (code, what) in unsupported {
        let text = format!(
            ".version 8.8\n.target sm_90, texmode_independent\n.address_size 64\n\
             .entry k() {{\n.reg .b16 h<9>; .reg .b32 r<9>; .reg .b64 w<9>;\n{code}\n}}"
        );
        let error = device.load_module(&text).expect_err(code).to_string();
        assert!(error.contains(what) && error.contains("are not supported"), "{code}: {error}");
        assert!(error.contains("line 6"), "{code}: {error}");
    }
}
