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
        family("9.7.12.5 call", "call", recursive_calls()),
        family("9.7.12.5 call", "call", indirect_calls()),
        family("9.7.12.6 ret", "ret", leaving("ret")),
        family("9.7.12.6 ret", "ret", leaving("ret.uni")),
        family("9.7.12.7 exit", "exit", leaving("exit")),
        family("9.7.17.1 stacksave", "stacksave", stack("stacksave")),
        family("9.7.17.2 stackrestore", "stackrestore", stack("stackrestore")),
        family("9.7.17.3 alloca", "alloca", stack("alloca")),
        family("9.7.19.1 brkpt", "brkpt", vec![fault("brkpt;", FaultKind::Trap)]),
        family(
            "9.7.19.2 nanosleep",
            "nanosleep",
            vec![exact("nanosleep.u32 10; nanosleep.u32 r1; mov.u32 r0, 1;", &[(&[5], 1)])],
        ),
        family(
            "9.7.19.3 pmevent",
            "pmevent",
            vec![
                exact("pmevent 3; pmevent.mask 0xff; mov.u32 r0, 1;", &[(&[], 1)]),
                refused("pmevent r1;", "constant"),
            ],
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

/// Memory that is taken from the stack, and given back.
fn stack(opcode: &str) -> Vec<Case> {
    match opcode {
        "stacksave" => {
            vec![exact("stacksave.u64 w10; stacksave.u64 w11; sub.u64 w0, w10, w11;", &[(&[], 0)])]
        }
        "stackrestore" => vec![exact(
            "stacksave.u64 w10; alloca.u64 w11, 64; stackrestore.u64 w10; alloca.u64 w12, 64; \
             sub.u64 w0, w11, w12;",
            &[(&[], 0)],
        )],
        _ => vec![
            exact(
                "alloca.u64 w10, w1; alloca.u64 w11, 16; st.local.u32 [w10+12], r2; \
                 st.local.u32 [w11+12], r3; ld.local.u32 r10, [w10+12]; \
                 ld.local.u32 r11, [w11+12]; mov.b64 w0, {r10, r11};",
                &[(&[16, 5, 6], 5 | 6 << 32), (&[100, 7, 8], 7 | 8 << 32)],
            ),
            exact("alloca.u64 w10, 3, 64; and.b64 w0, w10, 63;", &[(&[], 0)]),
            // What a function takes of the stack is free again after it.
            exact(
                ".func take() { .reg .b64 a; alloca.u64 a, 600; st.local.u32 [a], 1; ret; } --- \
                 call take; call take; call take; alloca.u64 w10, 600; mov.u32 r0, 1;",
                &[(&[], 1)],
            ),
            // Fresh memory of the stack holds nothing.
            fault("alloca.u64 w10, 8; ld.local.u64 w0, [w10];", FaultKind::UninitializedRead),
            fault("alloca.u64 w10, 100000;", FaultKind::StackOverflow),
            refused("alloca.u64 w10, 8, 3;", "power of two"),
        ],
    }
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
        // The heap: two allocations do not overlap, and a freed one is given out again.
        exact(
            ".extern .func (.param .b64 o) malloc(.param .b64 i); .extern .func free(.param .b64 i); \
             --- { .param .b64 i; .param .b64 o; st.param.b64 [i], 24; call (o), malloc, (i); \
             ld.param.b64 w10, [o]; call (o), malloc, (i); ld.param.b64 w11, [o]; \
             st.u64 [w10+16], w1; st.u64 [w11+16], w2; ld.u64 w12, [w10+16]; \
             st.param.b64 [i], w10; call free, (i); st.param.b64 [i], 0; call free, (i); \
             st.param.b64 [i], w11; call free, (i); mov.u64 w0, w12; }",
            &[(&[5, 6], 5)],
        ),
        fault(
            ".extern .func free(.param .b64 i); --- { .param .b64 i; st.param.b64 [i], 64; \
             call free, (i); }",
            FaultKind::IllegalOperand,
        ),
        fault(&format!("{assert} --- {arguments}"), FaultKind::Assertion),
        refused(&pass("call (b), twice;"), "results and arguments"),
        refused(&pass("call (b), thrice, (a);"), "thrice"),
    ]
}

fn recursive_calls() -> Vec<Case> {
    // n + the sum of the smaller ones; x has to survive the call.
    let sum = ".func (.param .b32 o) sum(.param .b32 i) { .reg .b32 x, y; .reg .pred p; \
               .local .b32 kept; .param .b32 a; .param .b32 b; ld.param.b32 x, [i]; \
               mov.u32 y, 0; setp.eq.u32 p, x, 0; @p bra done; st.local.u32 [kept], x; \
               sub.u32 y, x, 1; st.param.b32 [a], y; call (b), sum, (a); ld.param.b32 y, [b]; \
               add.u32 y, y, x; ld.local.u32 x, [kept]; setp.gt.u32 p, y, 1000; @p trap; \
               done: st.param.b32 [o], y; ret.uni; }";
    let run = "{ .param .b32 a; .param .b32 b; st.param.b32 [a], r1; call (b), sum, (a); \
               ld.param.b32 r0, [b]; }";
    // Each calls the other with one less.
    let mutual = |name: &str, other: &str, at_zero: u32| {
        format!(
            ".func (.param .b32 o) {name}(.param .b32 i) {{ .reg .b32 x; .reg .pred p; \
             .param .b32 a; .param .b32 b; ld.param.b32 x, [i]; setp.ne.u32 p, x, 0; @p bra more; \
             st.param.b32 [o], {at_zero}; ret; more: sub.u32 x, x, 1; st.param.b32 [a], x; \
             call (b), {other}, (a); ld.param.b32 x, [b]; st.param.b32 [o], x; ret; }} "
        )
    };
    let declared = ".func (.param .b32 o) odd(.param .b32 i); ";
    let parity = format!("{declared}{}{}", mutual("even", "odd", 1), mutual("odd", "even", 0));
    vec![
        exact(format!("{sum} --- {run}"), &[(&[0], 0), (&[1], 1), (&[4], 10), (&[20], 210)]),
        exact(
            format!("{parity} --- {}", run.replace("sum", "even")),
            &[(&[0], 1), (&[1], 0), (&[6], 1), (&[9], 0)],
        ),
        fault(&format!("{sum} --- mov.u32 r1, 30000; {run}"), FaultKind::StackOverflow),
        fault(".func f() { call f; ret; } --- call f;", FaultKind::StackOverflow),
    ]
}

fn indirect_calls() -> Vec<Case> {
    let two = ".func (.param .b32 o) double(.param .b32 i) { .reg .b32 x; ld.param.b32 x, [i]; \
               add.u32 x, x, x; st.param.b32 [o], x; ret; } \
               .func (.param .b32 o) square(.param .b32 i) { .reg .b32 x; ld.param.b32 x, [i]; \
               mul.lo.u32 x, x, x; st.param.b32 [o], x; ret; } \
               .func (.param .b64 o) other(.param .b64 i) { ret; } \
               .global .u64 table[3] = { double, square, other };";
    let call = "{ .param .b32 a; .param .b32 b; st.param.b32 [a], r1; \
                shape: .callprototype (.param .b32 _) _ (.param .b32 _); \
                call (b), w10, (a), shape; ld.param.b32 r0, [b]; }";
    let pick = "mad.wide.u32 w10, r2, 8, 0; mov.u64 w11, table; add.u64 w10, w10, w11; \
                ld.global.u64 w10, [w10];";
    vec![
        // Lanes of one warp call different functions.
        exact(
            format!("{two} --- {pick} {call}"),
            &[(&[7, 0], 14), (&[7, 1], 49), (&[9, 0], 18), (&[9, 1], 81)],
        ),
        exact(format!("{two} --- mov.u64 w10, square; {call}"), &[(&[5], 25)]),
        exact(
            format!(
                "{two} --- {}",
                format!("mov.u64 w10, double; {call}").replace(
                    "shape: .callprototype (.param .b32 _) _ (.param .b32 _);",
                    "shape: .calltargets double, square;"
                )
            ),
            &[(&[5], 10)],
        ),
        exact(
            format!(
                "{two} --- mov.u64 w10, square; setp.eq.u32 p10, r2, 1; mov.u32 r0, 3; {}",
                call.replace("call (b)", "@p10 call (b)")
                    .replace("st.param.b32 [a], r1;", "st.param.b32 [a], r1; st.param.b32 [b], 3;")
            ),
            &[(&[5, 1], 25), (&[5, 0], 3)],
        ),
        // Formals in registers, and arguments that are registers and constants.
        exact(
            ".func (.reg .b32 o) add3(.reg .b32 a, .reg .b32 b, .param .b32 c) { .reg .b32 x; \
             ld.param.b32 x, [c]; add.u32 o, a, b; add.u32 o, o, x; ret; } --- \
             call (r0), add3, (r1, 5, r2);",
            &[(&[1, 100], 106)],
        ),
        fault(&format!("{two} --- mov.u64 w10, 0; {call}"), FaultKind::IllegalOperand),
        fault(&format!("{two} --- mov.u64 w10, other; {call}"), FaultKind::IllegalOperand),
        refused(&format!("{two} --- mov.u64 w10, square; call w10, nothing;"), "unknown prototype"),
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
