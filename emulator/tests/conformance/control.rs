//! Control flow: PTX ISA 9.7.12; and what stops or delays a thread: 9.7.19.

use cuda_emulator::FaultKind;

use super::harness::*;

pub fn families() -> Vec<Family> {
    vec![
        family("9.7.12.1 {}", "mov", scopes()),
        family("9.7.12.2 @", "add", predicated()),
        family("9.7.12.3 bra", "bra", branches()),
        family("9.7.12.4 brx.idx", "brx", indexed()),
        family("9.7.12.5 call", "call", calls()),
        family("9.7.12.6 ret", "ret", leaving("ret")),
        family("9.7.12.7 exit", "exit", leaving("exit")),
        family("9.7.19.1 brkpt", "brkpt", vec![fault("brkpt;", FaultKind::Trap)]),
        family(
            "9.7.19.2 nanosleep",
            "nanosleep",
            vec![exact("nanosleep.u32 10; nanosleep.u32 r1; mov.u32 r0, 1;", &[(&[5], 1)])],
        ),
        family(
            "9.7.19.4 trap",
            "trap",
            vec![
                fault("trap;", FaultKind::Trap),
                exact("setp.eq.u32 p10, r1, 9; @p10 trap; mov.u32 r0, 1;", &[(&[5], 1)]),
            ],
        ),
    ]
}

#[test]
fn control_flow() {
    check(&families());
}

fn scopes() -> Vec<Case> {
    vec![
        // A name hides the one outside; a label belongs to its scope.
        exact(
            ".reg .b32 x, y; mov.u32 x, 1; mov.u32 y, 0; \
             { .reg .b32 x; mov.u32 x, 20; add.u32 y, y, x; bra done; add.u32 y, y, 1000; done: } \
             { .reg .b32 x; mov.u32 x, 300; add.u32 y, y, x; bra done; add.u32 y, y, 5000; done: } \
             add.u32 r0, x, y;",
            &[(&[], 321)],
        ),
        // Variables of one name in two scopes are two variables.
        exact(
            "{ .local .b32 x; st.local.b32 [x], r1; { .local .b32 x; st.local.b32 [x], r2; \
             ld.local.b32 r10, [x]; } ld.local.b32 r11, [x]; mov.b64 w0, {r10, r11}; }",
            &[(&[5, 6], 6 | 5 << 32)],
        ),
        exact(
            "{ .shared .b32 x[32]; mov.u32 r10, x; } { .shared .b64 x[32]; mov.u32 r11, x; } \
             setp.ne.u32 p0, r10, r11;",
            &[(&[], 1)],
        ),
        exact("{ { { bra out; } } mov.u32 r1, 0; } out: mov.u32 r0, r1;", &[(&[8], 8)]),
        refused("{ .reg .b32 inner; } mov.u32 r0, inner;", "unknown name"),
        refused("{ inner: mov.u32 r0, 1; } bra inner;", "unknown label"),
        refused(".reg .b32 x; .reg .b64 x; mov.u32 r0, 1;", "taken"),
    ]
}

fn predicated() -> Vec<Case> {
    vec![
        exact(
            "mov.u32 r0, 5; @p1 add.u32 r0, r0, 1; @!p1 add.u32 r0, r0, 2;",
            &[(&[1], 6), (&[0], 7)],
        ),
        exact("mov.u64 w0, 5; @p1 add.u64 w0, w0, 1;", &[(&[1], 6), (&[0], 5)]),
        exact("mov.u16 h0, 5; @p1 add.u16 h0, h0, h0;", &[(&[1], 10), (&[0], 5)]),
        exact("mov.f64 w0, 1.0; @!p1 add.f64 w0, w0, w0;", &[(&[1], d(1.0)), (&[0], d(2.0))]),
        exact(
            "mov.b32 r0, r2; @p1 add.f16x2 r0, r0, r0;",
            &[(&[1, 0x3c00_4000], 0x4000_4400), (&[0, 9], 9)],
        ),
        exact(
            "@p1 add.u32 r1, r1, 7; @p1 setp.eq.u32 p10, r1, r2; @!p1 setp.ne.u32 p10, r1, r2; \
             @p10 st.global.u32 [wm], 99; ld.global.u8 r0, [wm];",
            &[(&[1, 8], 99), (&[1, 9], 0), (&[0, 0], 0), (&[0, 1], 99)],
        ),
        exact(
            "add.u32 r0, r1, 0; @p2 ld.global.u32 r0, [wm]; @!p2 ld.global.u8 r0, [wm+9];",
            &[(&[0, 1], 0x0302_0100), (&[0, 0], 9)],
        ),
        // An address that no lane uses may be anything.
        exact(
            "add.u64 w10, w1, 3; setp.ne.u64 p10, w1, w1; @p10 ld.global.u32 r1, [w10]; \
             mov.u32 r0, 4;",
            &[(&[1], 4)],
        ),
    ]
}

fn branches() -> Vec<Case> {
    vec![
        exact(
            "mov.u32 r0, 0; again: add.u32 r0, r0, 1; setp.lt.u32 p10, r0, r1; @p10 bra again;",
            &[(&[0], 1), (&[1], 1), (&[7], 7), (&[100], 100)],
        ),
        exact("mov.u32 r0, 3; bra.uni skip; mov.u32 r0, 4; skip:", &[(&[], 3)]),
        // Lanes part, run loops of different lengths, and meet.
        exact(
            "mov.u32 r0, 0; mov.u32 r10, r1; outer: setp.eq.u32 p10, r10, 0; @p10 bra end; \
             mov.u32 r11, r10; inner: add.u32 r0, r0, 1; sub.u32 r11, r11, 1; \
             setp.ne.u32 p11, r11, 0; @p11 bra inner; sub.u32 r10, r10, 1; bra outer; end:",
            &[(&[0], 0), (&[1], 1), (&[4], 10), (&[9], 45)],
        ),
        warp(
            "and.b32 r10, rl, 1; setp.eq.u32 p10, r10, 0; @p10 bra even; mov.u32 r0, 7; bra join; \
             even: mov.u32 r0, 8; join: bar.warp.sync -1; redux.sync.add.u32 r0, r0, -1;",
            |_| vec![],
            |_| 16 * 15,
        ),
        refused("bra nowhere;", "unknown label"),
    ]
}

fn indexed() -> Vec<Case> {
    let targets = "list: .branchtargets first, second, third;";
    let places = "first: mov.u32 r0, 10; bra end; second: mov.u32 r0, 20; bra end; \
                  third: mov.u32 r0, 30; end:";
    let rows: &[Row] = &[(&[0], 10), (&[1], 20), (&[2], 30)];
    vec![
        exact(format!("{targets} brx.idx r1, list; {places}"), rows),
        exact(format!("{targets} mov.u32 r1, 1; brx.idx.uni r1, list; {places}"), &[(&[0], 20)]),
        refused("brx.idx r1, nothing;", "unknown list"),
    ]
}

fn calls() -> Vec<Case> {
    let twice = ".func (.param .b32 out) twice(.param .b32 in) { .reg .b32 x; .reg .pred p; \
                 ld.param.b32 x, [in]; setp.eq.u32 p, x, 13; @p bra unlucky; add.u32 x, x, x; \
                 st.param.b32 [out], x; ret; unlucky: st.param.b32 [out], -1; ret; } ";
    let pass = |call: &str| {
        format!(
            "{twice} --- {{ .param .b32 a; .param .b32 b; st.param.b32 [a], r1; \
             st.param.b32 [b], 5; {call} ld.param.b32 r0, [b]; }}"
        )
    };
    let nested = ".func (.param .b32 o) outer(.param .b32 i) { .reg .b32 x; .param .b32 a; \
                  .param .b32 b; ld.param.b32 x, [i]; st.param.b32 [a], x; \
                  call (b), twice, (a); ld.param.b32 x, [b]; st.param.b32 [a], x; \
                  call (b), twice, (a); ld.param.b32 x, [b]; st.param.b32 [o], x; ret; }";
    let assert = ".extern .func __assertfail(.param .b64 m, .param .b64 f, .param .b32 l, \
                  .param .b64 n, .param .b64 c) .noreturn; \
                  .global .b8 text[4] = { 111, 107, 0, 0 };";
    let arguments = "{ .param .b64 m; .param .b64 f; .param .b32 l; .param .b64 n; .param .b64 c; \
                     mov.u64 w10, text; cvta.global.u64 w10, w10; st.param.b64 [m], w10; \
                     st.param.b64 [f], w10; st.param.b32 [l], 3; st.param.b64 [n], w10; \
                     st.param.b64 [c], 1; call.uni __assertfail, (m, f, l, n, c); }";
    vec![
        exact(pass("call (b), twice, (a);"), &[(&[4], 8), (&[13], 0xffff_ffff), (&[0], 0)]),
        exact(pass("call.uni (b), twice, (a);"), &[(&[21], 42)]),
        exact(
            pass("setp.gt.u32 p10, r1, 9; @p10 call (b), twice, (a);"),
            &[(&[4], 5), (&[10], 20)],
        ),
        exact(
            format!(
                "{twice}{nested} --- {{ .param .b32 a; .param .b32 b; st.param.b32 [a], r1; \
                 call (b), outer, (a); ld.param.b32 r0, [b]; }}"
            ),
            &[(&[3], 12)],
        ),
        // A structure by value, and a function without parameters.
        exact(
            ".func (.param .align 8 .b8 o[16]) turn(.param .align 8 .b8 i[16]) { .reg .b64 x, y; \
             ld.param.b64 x, [i]; ld.param.b64 y, [i+8]; st.param.b64 [o], y; \
             st.param.b64 [o+8], x; ret; } --- { .param .align 8 .b8 a[16]; \
             .param .align 8 .b8 b[16]; st.param.b64 [a], w1; st.param.b64 [a+8], w2; \
             call (b), turn, (a); ld.param.v2.b64 {w10, w11}, [b]; shl.b64 w11, w11, 8; \
             or.b64 w0, w10, w11; }",
            &[(&[1, 2], 0x102)],
        ),
        exact(".func idle() { ret; } --- call idle; mov.u32 r0, r1;", &[(&[6], 6)]),
        fault(&format!("{assert} --- {arguments}"), FaultKind::Assertion),
        refused(&pass("call (b), twice;"), "does not fit"),
        refused(&pass("call (b), thrice, (a);"), "thrice"),
    ]
}

fn leaving(opcode: &str) -> Vec<Case> {
    vec![
        exact(
            format!("mov.u32 r0, 3; @p1 {opcode}; mov.u32 r0, 4;"),
            &[(&[1], UNTOUCHED), (&[0], 4)],
        ),
        // The lanes that stay are those that count.
        warp(
            format!("mov.u32 r0, 0; setp.lt.u32 p10, rl, 8; @p10 {opcode}; activemask.b32 r0;"),
            |_| vec![],
            |lane| if lane < 8 { UNTOUCHED } else { 0xffff_ff00 },
        ),
    ]
}
