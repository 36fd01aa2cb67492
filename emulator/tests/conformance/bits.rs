//! Bit counts and fields (PTX ISA 9.7.1.14 on), logic and shifts (9.7.8), and `prmt`.

use super::harness::*;

const ONES: u64 = 0xffff_ffff;
const MIN: u64 = 0x8000_0000;

pub fn families() -> Vec<Family> {
    [counts(), fields(), logic(), shifts(), permutations()].into_iter().flatten().collect()
}

#[test]
fn bits() {
    check(&families());
}

fn counts() -> Vec<Family> {
    let popc = vec![
        exact("popc.b32 r0, r1;", &[(&[0], 0), (&[ONES], 32), (&[0xf0f0_0001], 9)]),
        exact("popc.b64 r0, w1;", &[(&[u64::MAX], 64), (&[1 << 63 | 1], 2)]),
    ];
    let clz = vec![
        exact("clz.b32 r0, r1;", &[(&[0], 32), (&[1], 31), (&[MIN], 0)]),
        exact("clz.b64 r0, w1;", &[(&[0], 64), (&[1 << 32], 31), (&[1 << 63], 0)]),
    ];
    let bfind = vec![
        exact("bfind.u32 r0, r1;", &[(&[0], ONES), (&[1], 0), (&[0x0010_0000], 20), (&[MIN], 31)]),
        exact("bfind.s32 r0, r1;", &[(&[ONES], ONES), (&[0], ONES), (&[i(-2)], 0), (&[MIN], 30)]),
        exact("bfind.u64 r0, w1;", &[(&[0], ONES), (&[1 << 40], 40)]),
        exact("bfind.s64 r0, w1;", &[(&[u64::MAX], ONES), (&[1 << 63], 62)]),
        exact("bfind.shiftamt.u32 r0, r1;", &[(&[0], ONES), (&[0x0010_0000], 11), (&[MIN], 0)]),
        exact("bfind.shiftamt.s32 r0, r1;", &[(&[ONES], ONES), (&[MIN], 1)]),
        exact("bfind.shiftamt.u64 r0, w1;", &[(&[1], 63)]),
        exact("bfind.shiftamt.s64 r0, w1;", &[(&[l(-2)], 63), (&[0], ONES)]),
    ];
    let brev = vec![
        exact("brev.b32 r0, r1;", &[(&[1], MIN), (&[0x0000_00f1], 0x8f00_0000)]),
        exact("brev.b64 w0, w1;", &[(&[1], 1 << 63), (&[0xf0 << 56], 0x0f)]),
    ];
    let fns = vec![exact(
        "fns.b32 r0, r1, r2, r3;",
        &[
            (&[0xaaaa_aaaa, 3, 1], 3),
            (&[0xaaaa_aaaa, 3, i(-1)], 3),
            (&[0xaaaa_aaaa, 2, 1], 3),
            (&[0xaaaa_aaaa, 2, i(-1)], 1),
            (&[0xaaaa_aaaa, 3, 3], 7),
            (&[0xaaaa_aaaa, 3, 0], 3),
            (&[0xaaaa_aaaa, 2, 0], ONES),
            (&[0xaaaa_aaaa, 31, 2], ONES),
            (&[0xaaaa_aaaa, 5, i(-4)], ONES),
        ],
    )];
    vec![
        family("9.7.1.17 fns", "fns", fns),
        family("9.7.1.14 popc", "popc", popc),
        family("9.7.1.15 clz", "clz", clz),
        family("9.7.1.16 bfind", "bfind", bfind),
        family("9.7.1.18 brev", "brev", brev),
    ]
}

fn fields() -> Vec<Family> {
    let bfe = vec![
        exact(
            "bfe.u32 r0, r1, r2, r3;",
            &[
                (&[0xabcd_1234, 8, 12], 0xd12),
                (&[ONES, 4, 0], 0),
                (&[ONES, 28, 12], 0xf),
                (&[ONES, 32, 4], 0),
                (&[0xabcd_1234, 0, 32], 0xabcd_1234),
                (&[0xabcd_1234, 0, 255], 0xabcd_1234),
                // Only the low byte of position and length counts.
                (&[0xabcd_1234, 0x108, 0x10c], 0xd12),
            ],
        ),
        exact(
            "bfe.s32 r0, r1, r2, r3;",
            &[
                (&[0xabcd_1234, 16, 8], i(-0x33)),
                (&[0xabcd_1234, 8, 4], 2),
                (&[MIN, 40, 4], ONES),
                (&[ONES, 3, 0], 0),
                (&[0xf000_0000, 28, 20], ONES),
                (&[0x7000_0000, 28, 20], 7),
                (&[MIN, 255, 255], ONES),
            ],
        ),
        exact("bfe.u64 w0, w1, r2, r3;", &[(&[0xab_cdef << 32, 36, 12], 0xcde), (&[1, 64, 1], 0)]),
        exact("bfe.s64 w0, w1, r2, r3;", &[(&[0xab_cdef << 32, 40, 8], l(-0x33))]),
    ];
    let bfi = vec![
        exact(
            "bfi.b32 r0, r1, r2, r3, r4;",
            &[
                (&[0xff, 0, 28, 8], 0xf000_0000),
                (&[0xff, 0x1234, 32, 8], 0x1234),
                (&[0, ONES, 8, 8], 0xffff_00ff),
                (&[0xab, 0x1234, 4, 0], 0x1234),
                (&[0xdead_beef, 0, 0, 255], 0xdead_beef),
                (&[5, 0, 0x104, 0x103], 0x50),
            ],
        ),
        exact(
            "bfi.b64 w0, w1, w2, r3, r4;",
            &[
                (&[0xff, 0, 60, 8], 0xf << 60),
                (&[0, u64::MAX, 32, 16], 0xffff_0000_ffff_ffff),
                (&[7, 9, 64, 2], 9),
            ],
        ),
    ];
    let szext = vec![
        exact(
            "szext.clamp.s32 r0, r1, r2;",
            &[(&[0xf8, 4], 0xffff_fff8), (&[0xf7, 4], 7), (&[5, 0], 0), (&[MIN, 40], MIN)],
        ),
        exact("szext.wrap.s32 r0, r1, r2;", &[(&[0xf8, 36], 0xffff_fff8), (&[ONES, 32], 0)]),
        exact("szext.clamp.u32 r0, r1, r2;", &[(&[0xf8, 4], 8), (&[ONES, 99], ONES)]),
        exact("szext.wrap.u32 r0, r1, r2;", &[(&[0x1ff, 40], 0xff), (&[ONES, 32], 0)]),
    ];
    let bmsk = vec![
        exact(
            "bmsk.clamp.b32 r0, r1, r2;",
            &[
                (&[4, 8], 0xff0),
                (&[28, 8], 0xf000_0000),
                (&[32, 3], 0),
                (&[0, 40], ONES),
                (&[3, 0], 0),
            ],
        ),
        exact(
            "bmsk.wrap.b32 r0, r1, r2;",
            &[(&[36, 40], 0xff0), (&[28, 8], 0xf000_0000), (&[3, 32], 0)],
        ),
    ];
    vec![
        family("9.7.1.19 bfe", "bfe", bfe),
        family("9.7.1.20 bfi", "bfi", bfi),
        family("9.7.1.21 szext", "szext", szext),
        family("9.7.1.22 bmsk", "bmsk", bmsk),
    ]
}

/// Adds code that the PTX ISA does not have.
fn with_refusal(mut cases: Vec<Case>, code: &str, message: &'static str) -> Vec<Case> {
    cases.push(refused(code, message));
    cases
}

/// A predicate operation on inputs 1 and 2, over all four rows of its table.
fn predicates(code: &str, table: [u64; 4]) -> Case {
    let rows: [Row; 4] =
        [(&[0, 0], table[0]), (&[0, 1], table[1]), (&[1, 0], table[2]), (&[1, 1], table[3])];
    exact(code, &rows)
}

fn logic() -> Vec<Family> {
    let wide = &[0xff00_ff00_ff00_ff00, 0x0ff0_0ff0_0ff0_0ff0];
    let and = vec![
        exact("and.b16 h0, h1, h2;", &[(&[0xff00, 0x0ff0], 0x0f00)]),
        exact("and.b32 r0, r1, r2;", &[(&[0xff00_ff00, 0x0ff0_0ff0], 0x0f00_0f00)]),
        exact("and.b64 w0, w1, w2;", &[(wide, 0x0f00_0f00_0f00_0f00)]),
        predicates("and.pred p0, p1, p2;", [0, 0, 0, 1]),
        predicates("and.pred p0, p1, !p2;", [0, 0, 1, 0]),
    ];
    let or = vec![
        exact("or.b16 h0, h1, h2;", &[(&[0xff00, 0x0ff0], 0xfff0)]),
        exact("or.b32 r0, r1, r2;", &[(&[0xff00_ff00, 0x0ff0_0ff0], 0xfff0_fff0)]),
        exact("or.b64 w0, w1, w2;", &[(wide, 0xfff0_fff0_fff0_fff0)]),
        predicates("or.pred p0, p1, p2;", [0, 1, 1, 1]),
    ];
    let xor = vec![
        exact("xor.b16 h0, h1, h2;", &[(&[0xff00, 0x0ff0], 0xf0f0)]),
        exact("xor.b32 r0, r1, r2;", &[(&[0xff00_ff00, 0x0ff0_0ff0], 0xf0f0_f0f0)]),
        exact("xor.b64 w0, w1, w2;", &[(wide, 0xf0f0_f0f0_f0f0_f0f0)]),
        predicates("xor.pred p0, p1, p2;", [0, 1, 1, 0]),
    ];
    let not = vec![
        exact("not.b16 h0, h1;", &[(&[0xff00], 0x00ff)]),
        exact("not.b32 r0, r1;", &[(&[0xff00_ff00], 0x00ff_00ff)]),
        exact("not.b64 w0, w1;", &[(&[0], u64::MAX)]),
        predicates("not.pred p0, p1;", [1, 1, 0, 0]),
    ];
    let cnot = vec![
        exact("cnot.b16 h0, h1;", &[(&[0x1_0000], 1), (&[2], 0)]),
        exact("cnot.b32 r0, r1;", &[(&[0], 1), (&[MIN], 0)]),
        exact("cnot.b64 w0, w1;", &[(&[0], 1), (&[1 << 63], 0)]),
    ];
    // The table's index is a * 4 + b * 2 + c for each bit.
    let bits = &[0b1111_0000, 0b1100_1100, 0b1010_1010];
    let lop3: Vec<_> = [0x00, 0x01, 0x80, 0xe8, 0x96, 0xca, 0xf0, 0xcc, 0xaa, 0xfe, 0x1b, 0xff]
        .into_iter()
        .map(|table| {
            let result = table | if table & 1 != 0 { 0xffff_ff00 } else { 0 };
            exact(format!("lop3.b32 r0, r1, r2, r3, {table:#x};"), &[(bits, result)])
        })
        .collect();
    let mut lop3 = with_refusal(lop3, "lop3.b64 w0, w1, w2, w3, 0x96;", ".b32");
    // The predicate: whether the result is not zero, combined with input 4.
    let both = "selp.b32 r11, 1, 0, p10; mov.b64 w0, {r10, r11};";
    lop3.extend([
        exact(
            format!("lop3.or.b32 r10|p10, r1, r2, r3, 0x80, p4; {both}"),
            &[(&[7, 6, 4, 0], 4 | 1 << 32), (&[1, 2, 4, 0], 0), (&[1, 2, 4, 1], 1 << 32)],
        ),
        exact(
            format!("lop3.and.b32 r10|p10, r1, r2, r3, 0x80, !p4; {both}"),
            &[(&[7, 6, 4, 0], 4 | 1 << 32), (&[7, 6, 4, 1], 4), (&[1, 2, 4, 0], 0)],
        ),
        exact(
            "lop3.and.b32 _|p0, r1, r2, r3, 0x80, p4;",
            &[(&[7, 6, 4, 1], 1), (&[7, 6, 4, 0], 0)],
        ),
        refused("lop3.b32 r0, r1, r2, r3, 0x100;", "0 to 255"),
    ]);
    let and = with_refusal(and, "and.u32 r0, r1, r2;", "does not exist");
    vec![
        family("9.7.8.1 and", "and", and),
        family("9.7.8.2 or", "or", or),
        family("9.7.8.3 xor", "xor", xor),
        family("9.7.8.4 not", "not", not),
        family("9.7.8.5 cnot", "cnot", cnot),
        family("9.7.8.6 lop3", "lop3", lop3),
    ]
}

fn shifts() -> Vec<Family> {
    let pair = &[0x8765_4321, 0xfedc_ba98];
    let with = |amount: u64| [pair[0], pair[1], amount];
    let shf = vec![
        exact(
            "shf.l.wrap.b32 r0, r1, r2, r3;",
            &[
                (&with(0), 0xfedc_ba98),
                (&with(4), 0xedcb_a988),
                (&with(32), 0xfedc_ba98),
                (&with(36), 0xedcb_a988),
            ],
        ),
        exact(
            "shf.l.clamp.b32 r0, r1, r2, r3;",
            &[
                (&with(8), 0xdcba_9887),
                (&with(31), 0x43b2_a190),
                (&with(32), 0x8765_4321),
                (&with(99), 0x8765_4321),
            ],
        ),
        exact(
            "shf.r.wrap.b32 r0, r1, r2, r3;",
            &[(&with(0), 0x8765_4321), (&with(4), 0x8876_5432), (&with(33), 0x43b2_a190)],
        ),
        exact(
            "shf.r.clamp.b32 r0, r1, r2, r3;",
            &[(&with(8), 0x9887_6543), (&with(32), 0xfedc_ba98), (&with(40), 0xfedc_ba98)],
        ),
    ];
    let shl = vec![
        exact("shl.b16 h0, h1, r2;", &[(&[0x8001, 1], 2), (&[1, 15], 0x8000), (&[1, 16], 0)]),
        exact(
            "shl.b32 r0, r1, r2;",
            &[(&[1, 31], MIN), (&[1, 32], 0), (&[1, ONES], 0), (&[3, 0], 3)],
        ),
        exact("shl.b64 w0, w1, r2;", &[(&[1, 63], 1 << 63), (&[1, 64], 0), (&[1, 33], 1 << 33)]),
    ];
    let shr = vec![
        exact("shr.u16 h0, h1, r2;", &[(&[0x8000, 15], 1), (&[0x8000, 16], 0)]),
        exact("shr.s16 h0, h1, r2;", &[(&[0x8000, 3], 0xf000), (&[0x8000, 99], 0xffff)]),
        exact("shr.b16 h0, h1, r2;", &[(&[0x8000, 3], 0x1000)]),
        exact("shr.u32 r0, r1, r2;", &[(&[ONES, 31], 1), (&[ONES, 40], 0)]),
        exact(
            "shr.s32 r0, r1, r2;",
            &[(&[MIN, 31], ONES), (&[MIN, 40], ONES), (&[MIN >> 1, 40], 0)],
        ),
        exact("shr.b32 r0, r1, r2;", &[(&[MIN, 31], 1)]),
        exact("shr.u64 w0, w1, r2;", &[(&[1 << 63, 63], 1), (&[1 << 63, 64], 0)]),
        exact("shr.s64 w0, w1, r2;", &[(&[1 << 63, 62], l(-2)), (&[1 << 63, 99], l(-1))]),
        exact("shr.b64 w0, w1, r2;", &[(&[1 << 63, 1], 1 << 62)]),
    ];
    let shf = with_refusal(shf, "shf.l.wrap.b64 w0, w1, w2, r3;", "does not exist");
    vec![
        family("9.7.8.7 shf", "shf", shf),
        family("9.7.8.8 shl", "shl", shl),
        family("9.7.8.9 shr", "shr", shr),
    ]
}

fn permutations() -> Vec<Family> {
    // Byte i of the pair holds i * 0x11.
    let (a, b) = (0x3322_1100, 0x7766_5544);
    let all = |results: [u64; 4], mode: &str| {
        let rows: [[u64; 3]; 4] = std::array::from_fn(|n| [a, b, n as u64 + 4]);
        let rows: Vec<Row> = rows.iter().zip(results).map(|(row, d)| (&row[..], d)).collect();
        exact(format!("prmt.b32.{mode} r0, r1, r2, r3;"), &rows)
    };
    let prmt = vec![
        exact(
            "prmt.b32 r0, r1, r2, r3;",
            &[
                (&[a, b, 0x7610], 0x7766_1100),
                (&[a, b, 0x0123], 0x0011_2233),
                // The highest bit of a selector replicates the byte's sign.
                (&[0x80, 0x7f80, 0xd4c0], 0x0080_ff80),
                (&[0x80, 0x44, 0x00c8], 0x8080_00ff),
                (&[a, b, 0xffff_7654], 0x7766_5544),
            ],
        ),
        all([0x3322_1100, 0x4433_2211, 0x5544_3322, 0x6655_4433], "f4e"),
        all([0x5566_7700, 0x6677_0011, 0x7700_1122, 0x0011_2233], "b4e"),
        all([0x0000_0000, 0x1111_1111, 0x2222_2222, 0x3333_3333], "rc8"),
        all([0x3322_1100, 0x3322_1111, 0x3322_2222, 0x3333_3333], "ecl"),
        all([0x0000_0000, 0x1111_1100, 0x2222_1100, 0x3322_1100], "ecr"),
        all([0x1100_1100, 0x3322_3322, 0x1100_1100, 0x3322_3322], "rc16"),
    ];
    vec![family("9.7.9.7 prmt", "prmt", prmt)]
}
