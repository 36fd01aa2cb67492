//! Integer arithmetic: PTX ISA 9.7.1 and, with carries, 9.7.2.

use super::harness::*;

const MAX: u64 = 0x7fff_ffff;
const MIN: u64 = 0x8000_0000;
const ONES: u64 = 0xffff_ffff;
const MIN64: u64 = 1 << 63;
const MAX64: u64 = MIN64 - 1;

pub fn families() -> Vec<Family> {
    [sums(), products(), quotients(), others(), carries()].into_iter().flatten().collect()
}

#[test]
fn integer_arithmetic() {
    check(&families());
}

fn sums() -> Vec<Family> {
    let add = vec![
        exact("add.u16 h0, h1, h2;", &[(&[0xffff, 1], 0), (&[0x7fff, 1], 0x8000)]),
        exact("add.s16 h0, h1, h2;", &[(&[s(-3), 5], 2), (&[0x8000, s(-1)], 0x7fff)]),
        exact("add.u32 r0, r1, r2;", &[(&[7, 8], 15), (&[ONES, 1], 0)]),
        exact("add.s32 r0, r1, r2;", &[(&[i(-7), 3], i(-4)), (&[MAX, 1], MIN)]),
        exact("add.s32 r0, r1, -5;", &[(&[3], i(-2))]),
        exact("add.u64 w0, w1, w2;", &[(&[u64::MAX, 2], 1), (&[ONES, 1], 1 << 32)]),
        exact("add.s64 w0, w1, w2;", &[(&[l(-9), 4], l(-5)), (&[MAX64, 1], MIN64)]),
        exact("add.sat.s32 r0, r1, r2;", &[(&[MAX, 1], MAX), (&[MIN, ONES], MIN), (&[2, 3], 5)]),
        exact("add.u16x2 r0, r1, r2;", &[(&[0xffff_0001, 0x0001_ffff], 0)]),
        exact("add.s16x2 r0, r1, r2;", &[(&[0x7fff_fffe, 0x0001_0003], 0x8000_0001)]),
        refused("add.u16x2 r0, r1, 5;", "constant"),
        refused("add.sat.u32 r0, r1, r2;", "does not exist"),
        refused("add.u32 r0, r1, w2;", "`w2` is B64"),
    ];
    let sub = vec![
        exact("sub.u16 h0, h1, h2;", &[(&[0, 1], 0xffff)]),
        exact("sub.s16 h0, h1, h2;", &[(&[5, 7], s(-2))]),
        exact("sub.u32 r0, r1, r2;", &[(&[3, 5], i(-2))]),
        exact("sub.s32 r0, r1, r2;", &[(&[MIN, 1], MAX)]),
        exact("sub.u64 w0, w1, w2;", &[(&[0, 1], u64::MAX)]),
        exact("sub.s64 w0, w1, w2;", &[(&[1 << 32, 1], ONES)]),
        exact("sub.sat.s32 r0, r1, r2;", &[(&[MIN, 1], MIN), (&[MAX, ONES], MAX), (&[2, 3], ONES)]),
    ];
    vec![family("9.7.1.1 add", "add", add), family("9.7.1.2 sub", "sub", sub)]
}

fn products() -> Vec<Family> {
    let mul = vec![
        exact("mul.lo.u16 h0, h1, h2;", &[(&[0x1234, 0x100], 0x3400)]),
        exact("mul.lo.s16 h0, h1, h2;", &[(&[s(-3), 7], s(-21))]),
        exact("mul.hi.u16 h0, h1, h2;", &[(&[0xffff, 0xffff], 0xfffe)]),
        exact("mul.hi.s16 h0, h1, h2;", &[(&[s(-1), 5], 0xffff), (&[0x8000, 0x8000], 0x4000)]),
        exact("mul.wide.u16 r0, h1, h2;", &[(&[0xffff, 0xffff], 0xfffe_0001)]),
        exact("mul.wide.s16 r0, h1, h2;", &[(&[s(-2), 3], i(-6)), (&[0x8000, 0x8000], 1 << 30)]),
        exact("mul.lo.u32 r0, r1, r2;", &[(&[0x1_0001, 0x1_0001], 0x2_0001)]),
        exact("mul.lo.s32 r0, r1, r2;", &[(&[i(-4), 6], i(-24))]),
        exact("mul.hi.u32 r0, r1, r2;", &[(&[ONES, ONES], 0xffff_fffe), (&[MIN, 2], 1)]),
        exact("mul.hi.s32 r0, r1, r2;", &[(&[ONES, 5], ONES), (&[MIN, MIN], 0x4000_0000)]),
        exact("mul.wide.u32 w0, r1, r2;", &[(&[ONES, ONES], 0xffff_fffe_0000_0001)]),
        exact("mul.wide.s32 w0, r1, r2;", &[(&[ONES, 9], l(-9)), (&[MIN, MIN], 1 << 62)]),
        exact("mul.lo.u64 w0, w1, w2;", &[(&[1 << 33, 3 << 30], 1 << 63)]),
        exact("mul.lo.s64 w0, w1, w2;", &[(&[l(-3), 1 << 40], l(-3 << 40))]),
        exact("mul.hi.u64 w0, w1, w2;", &[(&[u64::MAX, u64::MAX], u64::MAX - 1)]),
        exact("mul.hi.s64 w0, w1, w2;", &[(&[l(-1), 2], l(-1)), (&[MIN64, MIN64], 1 << 62)]),
        refused("mul.wide.u64 w0, w1, w2;", "does not exist"),
    ];
    let mad = vec![
        exact("mad.lo.u16 h0, h1, h2, h3;", &[(&[0x100, 0x101, 5], 0x105)]),
        exact("mad.lo.s16 h0, h1, h2, h3;", &[(&[s(-2), 3, 1], s(-5))]),
        exact("mad.hi.u16 h0, h1, h2, h3;", &[(&[0xffff, 0xffff, 3], 1)]),
        exact("mad.hi.s16 h0, h1, h2, h3;", &[(&[s(-1), 2, 10], 9)]),
        exact("mad.wide.u16 r0, h1, h2, r3;", &[(&[0xffff, 0xffff, 0x2_0000], 1)]),
        exact("mad.wide.s16 r0, h1, h2, r3;", &[(&[s(-2), 3, 10], 4)]),
        exact("mad.lo.u32 r0, r1, r2, r3;", &[(&[ONES, 2, 5], 3)]),
        exact("mad.lo.s32 r0, r1, r2, r3;", &[(&[i(-6), 7, 2], i(-40))]),
        exact("mad.hi.u32 r0, r1, r2, r3;", &[(&[MIN, 6, 10], 13)]),
        exact("mad.hi.s32 r0, r1, r2, r3;", &[(&[ONES, 5, 3], 2)]),
        exact(
            "mad.hi.sat.s32 r0, r1, r2, r3;",
            &[(&[MIN, MIN, MAX], MAX), (&[MIN, MAX, MIN], MIN), (&[ONES, 5, 3], 2)],
        ),
        exact("mad.wide.u32 w0, r1, r2, w3;", &[(&[ONES, ONES, 1 << 33], 0x0000_0000_0000_0001)]),
        exact("mad.wide.s32 w0, r1, r2, w3;", &[(&[ONES, 9, 4], l(-5))]),
        exact("mad.lo.u64 w0, w1, w2, w3;", &[(&[1 << 40, 1 << 30, 7], 7)]),
        exact("mad.lo.s64 w0, w1, w2, w3;", &[(&[l(-1), 8, 3], l(-5))]),
        exact("mad.hi.u64 w0, w1, w2, w3;", &[(&[1 << 63, 6, 2], 5)]),
        exact("mad.hi.s64 w0, w1, w2, w3;", &[(&[l(-1), 6, 2], 1)]),
    ];
    let mul24 = vec![
        exact("mul24.lo.u32 r0, r1, r2;", &[(&[0xff00_0003, 5], 15)]),
        exact("mul24.lo.s32 r0, r1, r2;", &[(&[0x00ff_ffff, 3], i(-3))]),
        exact("mul24.hi.u32 r0, r1, r2;", &[(&[0xff_ffff, 0xff_ffff], 0xffff_fe00)]),
        exact(
            "mul24.hi.s32 r0, r1, r2;",
            &[(&[0xff_ffff, 1], ONES), (&[0x80_0000, 0x200], i(-65536))],
        ),
    ];
    let mad24 = vec![
        exact("mad24.lo.u32 r0, r1, r2, r3;", &[(&[0x0100_0002, 3, 4], 10)]),
        exact("mad24.lo.s32 r0, r1, r2, r3;", &[(&[0xff_fffe, 3, 4], i(-2))]),
        exact("mad24.hi.u32 r0, r1, r2, r3;", &[(&[0x10_0000, 0x10, 7], 0x107)]),
        exact("mad24.hi.s32 r0, r1, r2, r3;", &[(&[0xff_ffff, 1, 7], 6)]),
        // The product's bits 16 to 47: at most 2^30, at least -2^30.
        exact(
            "mad24.hi.sat.s32 r0, r1, r2, r3;",
            &[
                (&[0x80_0000, 0x80_0000, MAX], MAX),
                (&[0x80_0000, 0x7f_ffff, MIN], MIN),
                (&[0xff_ffff, 1, 7], 6),
            ],
        ),
    ];
    vec![
        family("9.7.1.3 mul", "mul", mul),
        family("9.7.1.4 mad", "mad", mad),
        family("9.7.1.5 mul24", "mul24", mul24),
        family("9.7.1.6 mad24", "mad24", mad24),
    ]
}

fn quotients() -> Vec<Family> {
    let div = vec![
        exact("div.u16 h0, h1, h2;", &[(&[0xffff, 10], 6553)]),
        exact("div.s16 h0, h1, h2;", &[(&[s(-7), 2], s(-3))]),
        exact("div.u32 r0, r1, r2;", &[(&[ONES, 16], 0x0fff_ffff), (&[5, 7], 0)]),
        exact("div.s32 r0, r1, r2;", &[(&[i(-7), 2], i(-3)), (&[7, i(-2)], i(-3))]),
        exact("div.u64 w0, w1, w2;", &[(&[u64::MAX, 1 << 32], ONES)]),
        exact("div.s64 w0, w1, w2;", &[(&[l(-100), 7], l(-14)), (&[MIN64, 2], l(-1 << 62))]),
    ];
    let rem = vec![
        exact("rem.u16 h0, h1, h2;", &[(&[0xffff, 10], 5)]),
        exact("rem.s16 h0, h1, h2;", &[(&[s(-7), 2], s(-1))]),
        exact("rem.u32 r0, r1, r2;", &[(&[ONES, 16], 15)]),
        exact("rem.s32 r0, r1, r2;", &[(&[i(-7), 2], ONES), (&[7, i(-2)], 1)]),
        exact("rem.u64 w0, w1, w2;", &[(&[(1 << 40) + 3, 1 << 20], 3)]),
        exact("rem.s64 w0, w1, w2;", &[(&[l(-100), 7], l(-2))]),
    ];
    vec![family("9.7.1.8 div", "div", div), family("9.7.1.9 rem", "rem", rem)]
}

fn others() -> Vec<Family> {
    let sad = vec![
        exact("sad.u16 h0, h1, h2, h3;", &[(&[3, 10, 1], 8)]),
        exact("sad.s16 h0, h1, h2, h3;", &[(&[s(-3), 4, 10], 17)]),
        exact("sad.u32 r0, r1, r2, r3;", &[(&[0, ONES, 2], 1), (&[9, 4, 1], 6)]),
        exact("sad.s32 r0, r1, r2, r3;", &[(&[i(-3), 4, 10], 17)]),
        exact("sad.u64 w0, w1, w2, w3;", &[(&[1, 1 << 40, 1], 1 << 40)]),
        exact("sad.s64 w0, w1, w2, w3;", &[(&[l(-5), 5, 1], 11)]),
    ];
    let abs = vec![
        exact("abs.s16 h0, h1;", &[(&[s(-5)], 5), (&[0x8000], 0x8000)]),
        exact("abs.s32 r0, r1;", &[(&[i(-5)], 5), (&[5], 5), (&[MIN], MIN)]),
        exact("abs.s64 w0, w1;", &[(&[l(-5)], 5), (&[MIN64], MIN64)]),
    ];
    let neg = vec![
        exact("neg.s16 h0, h1;", &[(&[5], s(-5)), (&[0x8000], 0x8000)]),
        exact("neg.s32 r0, r1;", &[(&[5], i(-5)), (&[MIN], MIN), (&[0], 0)]),
        exact("neg.s64 w0, w1;", &[(&[5], l(-5))]),
    ];
    let min = vec![
        exact("min.u16 h0, h1, h2;", &[(&[0xffff, 1], 1)]),
        exact("min.s16 h0, h1, h2;", &[(&[0xffff, 1], 0xffff)]),
        exact("min.u32 r0, r1, r2;", &[(&[ONES, 1], 1)]),
        exact("min.s32 r0, r1, r2;", &[(&[ONES, 1], ONES)]),
        exact("min.u64 w0, w1, w2;", &[(&[u64::MAX, 1], 1)]),
        exact("min.s64 w0, w1, w2;", &[(&[u64::MAX, 1], u64::MAX)]),
        exact("min.u16x2 r0, r1, r2;", &[(&[0xffff_0001, 0x0002_8000], 0x0002_0001)]),
        exact("min.s16x2 r0, r1, r2;", &[(&[0xffff_0001, 0x0002_8000], 0xffff_8000)]),
        exact("min.relu.s32 r0, r1, r2;", &[(&[ONES, 1], 0), (&[7, 5], 5), (&[MIN, 5], 0)]),
        exact("min.relu.s16x2 r0, r1, r2;", &[(&[0xffff_0005, 0x0002_0003], 0x0000_0003)]),
    ];
    let max = vec![
        exact("max.u16 h0, h1, h2;", &[(&[0xffff, 1], 0xffff)]),
        exact("max.s16 h0, h1, h2;", &[(&[0xffff, 1], 1)]),
        exact("max.u32 r0, r1, r2;", &[(&[ONES, 1], ONES)]),
        exact("max.s32 r0, r1, r2;", &[(&[ONES, 1], 1)]),
        exact("max.u64 w0, w1, w2;", &[(&[u64::MAX, 1], u64::MAX)]),
        exact("max.s64 w0, w1, w2;", &[(&[u64::MAX, 1], 1)]),
        exact("max.u16x2 r0, r1, r2;", &[(&[0xffff_0001, 0x0002_8000], 0xffff_8000)]),
        exact("max.s16x2 r0, r1, r2;", &[(&[0xffff_0001, 0x0002_8000], 0x0002_0001)]),
        exact("max.relu.s32 r0, r1, r2;", &[(&[ONES, 1], 1), (&[ONES, MIN], 0), (&[7, 5], 7)]),
        exact("max.relu.s16x2 r0, r1, r2;", &[(&[0xffff_fffe, 0xfffd_0003], 0x0000_0003)]),
    ];
    let bytes = &[0xff01_ff01, 0x0203_0405, 100];
    let dp4a = vec![
        exact("dp4a.s32.u32 r0, r1, r2, r3;", &[(bytes, 102)]),
        exact("dp4a.u32.u32 r0, r1, r2, r3;", &[(bytes, 100 + 255 * 2 + 3 + 255 * 4 + 5)]),
        exact("dp4a.u32.s32 r0, r2, r1, r3;", &[(bytes, 102)]),
        exact("dp4a.s32.s32 r0, r1, r2, r3;", &[(&[0x8080_8080, 0x7f7f_7f7f, 0], i(-65024))]),
    ];
    let words = &[0xffff_0003, 0x0405_0607, 10];
    let dp2a = vec![
        exact("dp2a.lo.s32.u32 r0, r1, r2, r3;", &[(words, 10 + 3 * 7 - 6)]),
        exact("dp2a.hi.s32.u32 r0, r1, r2, r3;", &[(words, 10 + 3 * 5 - 4)]),
        exact("dp2a.lo.u32.u32 r0, r1, r2, r3;", &[(words, 10 + 3 * 7 + 65535 * 6)]),
        exact("dp2a.lo.u32.s32 r0, r1, r2, r3;", &[(&[0x0002_0003, 0xfffe, 0], i(-8))]),
        exact("dp2a.hi.s32.s32 r0, r1, r2, r3;", &[(&[0xffff_0003, 0xfffe_0000, 0], i(-5))]),
    ];
    vec![
        family("9.7.1.7 sad", "sad", sad),
        family("9.7.1.10 abs", "abs", abs),
        family("9.7.1.11 neg", "neg", neg),
        family("9.7.1.12 min", "min", min),
        family("9.7.1.13 max", "max", max),
        family("9.7.1.23 dp4a", "dp4a", dp4a),
        family("9.7.1.24 dp2a", "dp2a", dp2a),
    ]
}

/// A result and the carry after it, as `{result, carry}`.
fn with_carry(code: &str) -> String {
    format!("{code} addc.u32 r21, 0, 0; mov.b64 w0, {{r20, r21}};")
}

fn carries() -> Vec<Family> {
    const CARRY: u64 = 1 << 32;
    let set = "add.cc.u32 r19, r4, r4;"; // carries where input 4 has its highest bit set
    let borrow = "sub.cc.u32 r19, 0, r4;"; // borrows where input 4 is not zero
    let subtracts = |code: &str| format!("{code} subc.u32 r21, 0, 0; mov.b64 w0, {{r20, r21}};");
    let add = vec![
        exact(
            with_carry("add.cc.u32 r20, r1, r2;"),
            &[(&[ONES, 1], CARRY), (&[ONES, 0], ONES), (&[MIN, MIN], CARRY), (&[1, 2], 3)],
        ),
        exact(with_carry("add.cc.s32 r20, r1, r2;"), &[(&[ONES, 2], CARRY | 1)]),
        exact(
            "add.cc.u64 w20, w1, w2; addc.u64 w0, w3, 0;",
            &[(&[u64::MAX, 1, 5], 6), (&[1, 1, 5], 5)],
        ),
        exact("add.cc.s64 w20, w1, w2; addc.s64 w0, w3, w4;", &[(&[l(-1), 1, l(-1), 0], 0)]),
    ];
    let addc = vec![
        exact(
            with_carry(&format!("{set} addc.cc.u32 r20, r1, r2;")),
            &[(&[ONES, 0, 0, MIN], CARRY), (&[ONES, 0, 0, 1], ONES), (&[1, 2, 0, MIN], 4)],
        ),
        exact(format!("{set} addc.s32 r0, r1, r2;"), &[(&[ONES, ONES, 0, MIN], ONES)]),
        // An addition without `.cc` leaves the carry as it was.
        exact(
            format!("{set} add.u32 r19, r1, r2; addc.u32 r0, 0, 0;"),
            &[(&[ONES, 1, 0, 0], 0), (&[1, 1, 0, MIN], 1)],
        ),
        exact(format!("{set} addc.s64 w0, w1, w2;"), &[(&[l(-5), 3, 0, MIN], l(-1))]),
        exact(
            format!("{set} addc.cc.s32 r20, r1, r2; addc.u32 r0, 0, 0;"),
            &[(&[ONES, 0, 0, MIN], 1)],
        ),
        exact(
            format!("{set} addc.cc.s64 w20, w1, w2; addc.u64 w0, 0, 0;"),
            &[(&[l(-1), 0, 0, MIN], 1)],
        ),
        exact(
            format!("{set} addc.cc.u64 w20, w1, w2; addc.u64 w0, 0, 0;"),
            &[(&[u64::MAX, 0, 0, MIN], 1), (&[u64::MAX, 0, 0, 0], 0)],
        ),
        // The carry of a difference says that nothing was borrowed: so translates ptxas (an IADD3
        // with -b, whose carry goes on), where the text of the ISA speaks of a borrow.
        exact("sub.cc.u32 r19, r1, r2; addc.u32 r0, 0, 0;", &[(&[7, 7], 1), (&[6, 7], 0)]),
        exact("sub.cc.s64 w19, w1, w2; addc.s64 w0, 5, 0;", &[(&[8, 7], 6), (&[0, 1], 5)]),
    ];
    let sub = vec![
        exact(
            subtracts("sub.cc.u32 r20, r1, r2;"),
            &[(&[0, 1], u64::MAX), (&[5, 5], 0), (&[MIN, 1], MAX)],
        ),
        exact("sub.cc.s32 r19, r1, r2; subc.s32 r0, r3, r4;", &[(&[0, 1, 5, 3], 1)]),
        exact("sub.cc.u64 w19, w1, w2; subc.u64 w0, w3, w4;", &[(&[0, 1, 5, 3], 1)]),
        exact("sub.cc.s64 w19, w1, w2; subc.s64 w0, w3, w4;", &[(&[1, 1, 5, 7], l(-2))]),
    ];
    let subc = vec![
        exact(
            subtracts(&format!("{borrow} subc.cc.u32 r20, r1, r2;")),
            &[
                (&[5, 5, 0, 1], u64::MAX),
                (&[5, 5, 0, 0], 0),
                (&[0, ONES, 0, 1], 0xffff_ffff_0000_0000),
            ],
        ),
        exact(format!("{borrow} subc.s32 r0, r1, r2;"), &[(&[5, 7, 0, 1], i(-3))]),
        exact(format!("{borrow} subc.u64 w0, w1, w2;"), &[(&[1 << 32, 0, 0, 1], ONES)]),
        exact(format!("{borrow} subc.s64 w0, w1, w2;"), &[(&[0, 5, 0, 1], l(-6)), (&[9, 5], 4)]),
        exact(
            format!("{borrow} subc.cc.s64 w20, w1, w2; subc.s64 w0, w3, 0;"),
            &[(&[0, 0, 9, 1], 8), (&[1, 0, 9, 1], 9)],
        ),
        exact("add.cc.u32 r19, r1, r2; subc.u32 r0, 9, 0;", &[(&[0, 0], 8), (&[1, ONES], 9)]),
    ];
    let mad = vec![
        exact(
            with_carry("mad.lo.cc.u32 r20, r1, r2, r3;"),
            &[(&[ONES, 1, 1], CARRY), (&[ONES, ONES, 5], 6), (&[MIN, 2, 7], 7)],
        ),
        exact(with_carry("mad.hi.cc.u32 r20, r1, r2, r3;"), &[(&[ONES, ONES, 2], CARRY)]),
        exact(with_carry("mad.hi.cc.s32 r20, r1, r2, r3;"), &[(&[ONES, 2, 1], CARRY)]),
        exact("mad.lo.cc.u64 w20, w1, w2, w3; addc.u64 w0, 0, 0;", &[(&[u64::MAX, 1, 1], 1)]),
        exact("mad.lo.cc.s32 r20, r1, r2, r3; addc.u32 r0, r20, 0;", &[(&[ONES, 1, 3], 3)]),
        exact("mad.lo.cc.s64 w20, w1, w2, w3; addc.u64 w0, w20, 0;", &[(&[l(-1), 1, 3], 3)]),
        // (-2^63 * 2) >> 64 = -1, and one more carries.
        exact("mad.hi.cc.s64 w20, w1, w2, w3; addc.u64 w0, w20, 5;", &[(&[1 << 63, 2, 1], 6)]),
        exact(
            "mad.hi.cc.u64 w20, w1, w2, w3; addc.u64 w0, w20, 0;",
            &[(&[1 << 63, 4, ONES], ONES + 2)],
        ),
    ];
    let madc = vec![
        exact("sub.cc.u32 r19, 0, r1; madc.lo.u32 r0, r2, 3, 4;", &[(&[0, 5], 20), (&[1, 5], 19)]),
        exact(
            format!("{set} madc.lo.u32 r0, r1, r2, r3;"),
            &[(&[3, 4, 5, MIN], 18), (&[3, 4, 5, 0], 17)],
        ),
        exact(format!("{set} madc.hi.u32 r0, r1, r2, r3;"), &[(&[MIN, 4, 5, MIN], 8)]),
        exact(format!("{set} madc.hi.s32 r0, r1, r2, r3;"), &[(&[ONES, 4, 5, MIN], 5)]),
        exact(
            with_carry(&format!("{set} madc.lo.cc.u32 r20, r1, r2, r3;")),
            &[(&[1, ONES, 0, MIN], CARRY)],
        ),
        exact(
            with_carry(&format!("{set} madc.hi.cc.u32 r20, r1, r2, r3;")),
            &[(&[ONES, ONES, 1, MIN], CARRY)],
        ),
        exact(format!("{set} madc.lo.u64 w0, w1, w2, w3;"), &[(&[2, 3, 4, MIN], 11)]),
        exact(format!("{set} madc.lo.s64 w0, w1, w2, w3;"), &[(&[l(-2), 3, 4, MIN], l(-1))]),
        exact(format!("{set} madc.lo.s32 r0, r1, r2, r3;"), &[(&[i(-2), 3, 4, MIN], ONES)]),
        exact(format!("{set} madc.hi.s64 w0, w1, w2, w3;"), &[(&[l(-2), 3, 4, MIN], 4)]),
    ];
    vec![
        family("9.7.2.1 add.cc", "add", add),
        family("9.7.2.2 addc", "addc", addc),
        family("9.7.2.3 sub.cc", "sub", sub),
        family("9.7.2.4 subc", "subc", subc),
        family("9.7.2.5 mad.cc", "mad", mad),
        family("9.7.2.6 madc", "madc", madc),
    ]
}
