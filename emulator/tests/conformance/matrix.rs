//! Matrix instructions of a warp: PTX ISA 9.7.14.5. Lane l belongs to group g = l / 4 and is number
//! q = l % 4 in it.

use super::harness::*;

pub fn families() -> Vec<Family> {
    vec![
        family("9.7.14.5.15 ldmatrix", "ldmatrix", loads()),
        family("9.7.14.5.16 stmatrix", "stmatrix", matrix_stores()),
        family("9.7.14.5.17 movmatrix", "movmatrix", transpositions()),
        family("9.7.14.5.14 mma", "mma", products()),
    ]
}

#[test]
fn matrices() {
    check(&families());
}

/// Element of a matrix in shared memory.
fn element(matrix: usize, row: usize, column: usize) -> u64 {
    (matrix << 8 | row << 4 | column) as u64
}

/// The two elements of a matrix that a lane receives; `swap` exchanges neighbouring rows.
fn received(matrix: usize, lane: usize, transposed: bool, swap: usize) -> u64 {
    let (g, q) = (lane / 4, lane % 4);
    let at = |part: usize| match transposed {
        false => element(matrix, g ^ swap, 2 * q + part),
        true => element(matrix, (2 * q + part) ^ swap, g),
    };
    at(0) | at(1) << 16
}

fn loads() -> Vec<Case> {
    let mut cases = Vec::new();
    for (count, registers) in [(1, "{r20}"), (2, "{r20, r21}"), (4, "{r20, r21, r22, r23}")] {
        for (trans, transposed) in [("", false), (".trans", true)] {
            for (space, swap) in [("shared", 0), ("shared::cta", 1)] {
                for half in 0..count_of_pairs(count) {
                    let (low, high) = (2 * half, 2 * half + 1);
                    let result = match count {
                        1 => "mov.b64 w0, {r20, 0};".to_owned(),
                        _ => format!("mov.b64 w0, {{r{}, r{}}};", 20 + low, 20 + high),
                    };
                    let code = format!(
                        "mov.u32 r10, tile; mad.lo.u32 r10, rl, 16, r10; \
                         st.shared.v2.b64 [r10], {{w1, w2}}; bar.warp.sync -1; \
                         xor.b32 r10, r10, {}; \
                         ldmatrix.sync.aligned.m8n8.x{count}{trans}.{space}.b16 \
                         {registers}, [r10]; \
                         {result}",
                        16 * swap
                    );
                    // Lane l stores row l % 8 of matrix l / 8.
                    let rows = |lane: usize| {
                        let word = |from: usize| {
                            (0..4).fold(0, |word, at| {
                                word | element(lane / 8, lane % 8, from + at) << (16 * at)
                            })
                        };
                        vec![word(0), word(4)]
                    };
                    cases.push(warp(code, rows, move |lane| {
                        let high =
                            if count == 1 { 0 } else { received(high, lane, transposed, swap) };
                        received(low, lane, transposed, swap) | high << 32
                    }));
                }
            }
        }
    }
    cases.extend([
        warp(
            "cvta.shared.u64 w10, ws; st.shared.v2.b64 [rs], {w1, w1}; bar.warp.sync -1; \
             ldmatrix.sync.aligned.m8n8.x1.b16 {r0}, [w10];",
            |lane| vec![0x0001_0001_0001_0001 * lane as u64],
            |lane| 0x0001_0001 * (lane / 4) as u64,
        ),
        fault(
            "add.u32 r10, rs, 8; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {r11}, [r10];",
            cuda_emulator::FaultKind::Misaligned,
        ),
        fault(
            "setp.lt.u32 p10, rl, 8; \
             @p10 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {r11}, [rs];",
            cuda_emulator::FaultKind::MissingLanes,
        ),
        refused("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {r11}, [rs];", "registers"),
        refused("ldmatrix.sync.aligned.m8n8.x3.shared.b16 {r11}, [rs];", "does not exist"),
        refused("ldmatrix.sync.aligned.m8n8.x1.shared.b8 {r11}, [rs];", "does not exist"),
    ]);
    cases
}

/// Every lane offers the fragments of matrices, as `mma` would hold them, and gives the address of a
/// row; then it looks at one half of a row.
fn matrix_stores() -> Vec<Case> {
    let mut cases = Vec::new();
    for (count, registers) in [(1, "{r1}"), (2, "{r1, r2}"), (4, "{r1, r2, r3, r4}")] {
        for (trans, transposed) in [("", false), (".trans", true)] {
            for space in [".shared", ".shared::cta", ""] {
                for half in [0, 8] {
                    let address = if space.is_empty() { "w10" } else { "r10" };
                    let code = format!(
                        "mov.u32 r10, tile; mad.lo.u32 r10, rl, 16, r10; \
                         st.shared.v2.b64 [r10], {{-1, -1}}; cvt.u64.u32 w10, r10; \
                         cvta.shared.u64 w10, w10; bar.warp.sync -1; \
                         stmatrix.sync.aligned.m8n8.x{count}{trans}{space}.b16 [{address}], \
                         {registers}; bar.warp.sync -1; ld.shared.b64 w0, [r10+{half}];"
                    );
                    let fragments = |lane: usize| {
                        (0..4).map(|matrix| received(matrix, lane, false, 0)).collect()
                    };
                    cases.push(warp(code, fragments, move |lane| {
                        let (matrix, row) = (lane / 8, lane % 8);
                        if matrix >= count {
                            return u64::MAX;
                        }
                        (0..4).fold(0, |word, at| {
                            let column = half / 2 + at;
                            let value = match transposed {
                                false => element(matrix, row, column),
                                true => element(matrix, column, row),
                            };
                            word | value << (16 * at)
                        })
                    }));
                }
            }
        }
    }
    cases.push(fault(
        "add.u32 r10, rs, 8; stmatrix.sync.aligned.m8n8.x1.shared.b16 [r10], {rl};",
        cuda_emulator::FaultKind::Misaligned,
    ));
    cases.push(fault(
        "stmatrix.sync.aligned.m8n8.x1.b16 [wm], {rl};",
        cuda_emulator::FaultKind::IllegalAccess,
    ));
    cases.push(refused("stmatrix.sync.aligned.m8n8.x1.shared.b16 [rs], r11;", "braces"));
    cases
}

fn transpositions() -> Vec<Case> {
    vec![
        warp(
            "movmatrix.sync.aligned.m8n8.trans.b16 r0, r1;",
            |lane| vec![received(3, lane, false, 0)],
            |lane| received(3, lane, true, 0),
        ),
        fault(
            "setp.lt.u32 p10, rl, 8; @p10 movmatrix.sync.aligned.m8n8.trans.b16 r0, r1;",
            cuda_emulator::FaultKind::MissingLanes,
        ),
    ]
}

fn count_of_pairs(count: usize) -> usize {
    count.div_ceil(2)
}

/// A shape and types of `mma`.
#[derive(Clone, Copy)]
struct Shape {
    k: usize,
    element: &'static str,
    half_result: bool,
}

impl Shape {
    /// Elements in a register of A and B.
    fn packed(self) -> usize {
        if self.element == "tf32" { 1 } else { 2 }
    }

    fn encode(self, value: i32) -> u64 {
        match self.element {
            "bf16" => ::half::bf16::from_f32(value as f32).to_bits().into(),
            "f16" => ::half::f16::from_f32(value as f32).to_bits().into(),
            _ => f(value as f32),
        }
    }

    /// Row and column of an element of A: register i, part p.
    fn a(self, lane: usize, i: usize, p: usize) -> (usize, usize) {
        let (g, q) = (lane / 4, lane % 4);
        match self.packed() {
            2 => (g + 8 * (i & 1), 2 * q + 8 * (i >> 1) + p),
            _ => (g + 8 * (i & 1), q + 4 * (i >> 1)),
        }
    }

    /// Row and column of an element of B.
    fn b(self, lane: usize, i: usize, p: usize) -> (usize, usize) {
        let (g, q) = (lane / 4, lane % 4);
        match self.packed() {
            2 => (2 * q + 8 * i + p, g),
            _ => (q + 4 * i, g),
        }
    }

    /// A register of C or D, from its elements by row and column.
    fn c(self, lane: usize, i: usize, at: fn(Self, usize, usize) -> f32) -> u64 {
        let (g, q) = (lane / 4, lane % 4);
        if self.half_result {
            let half = |p: usize| {
                u64::from(::half::f16::from_f32(at(self, g + 8 * i, 2 * q + p)).to_bits())
            };
            half(0) | half(1) << 16
        } else {
            f(at(self, g + 8 * (i >> 1), 2 * q + (i & 1)))
        }
    }

    /// Registers of A, B and C.
    fn counts(self) -> [usize; 3] {
        let a = 16 * self.k / 32 / self.packed();
        [a, a / 2, if self.half_result { 2 } else { 4 }]
    }

    /// All source registers of a lane, two by two.
    fn inputs(self, lane: usize) -> Vec<u64> {
        let [a, b, c] = self.counts();
        let join = |value: &dyn Fn(usize) -> u64| {
            (0..self.packed()).fold(0, |word, p| word | value(p) << (16 * p))
        };
        let mut words: Vec<u64> = (0..a)
            .map(|i| {
                join(&|p| {
                    let (row, k) = self.a(lane, i, p);
                    self.encode(a_at(row, k))
                })
            })
            .collect();
        words.extend((0..b).map(|i| {
            join(&|p| {
                let (k, column) = self.b(lane, i, p);
                self.encode(b_at(k, column))
            })
        }));
        words.extend((0..c).map(|i| self.c(lane, i, |_, row, column| c_at(row, column))));
        words.push(0);
        words.chunks_exact(2).map(|pair| pair[0] | pair[1] << 32).collect()
    }
}

fn a_at(row: usize, k: usize) -> i32 {
    ((row * 7 + k * 3) % 11) as i32 - 5
}

fn b_at(k: usize, column: usize) -> i32 {
    ((k * 5 + column * 3) % 7) as i32 - 3
}

fn c_at(row: usize, column: usize) -> f32 {
    row as f32 * 0.5 - column as f32
}

/// An element of A B + C; all of its terms and sums are exact in f16.
fn d_at(shape: Shape, row: usize, column: usize) -> f32 {
    let sum: i32 = (0..shape.k).map(|k| a_at(row, k) * b_at(k, column)).sum();
    sum as f32 + c_at(row, column)
}

fn products() -> Vec<Case> {
    let mut cases = Vec::new();
    for (k, element, half_result) in [
        (16, "bf16", false),
        (8, "bf16", false),
        (16, "f16", false),
        (8, "f16", false),
        (16, "f16", true),
        (8, "f16", true),
        (8, "tf32", false),
        (4, "tf32", false),
    ] {
        let shape = Shape { k, element, half_result };
        let [a, b, c] = shape.counts();
        let list = |from: usize, count: usize| {
            let names: Vec<String> = (from..from + count).map(|at| format!("x{at}")).collect();
            format!("{{{}}}", names.join(", "))
        };
        let unpack: String = (0..(a + b + c).div_ceil(2))
            .map(|at| format!("mov.b64 {{x{}, x{}}}, w{}; ", 2 * at, 2 * at + 1, at + 1))
            .collect();
        let result = if half_result { "f16" } else { "f32" };
        let types = format!("{result}.{element}.{element}.{result}");
        let (from_a, from_b, from_c) = (list(0, a), list(a, b), list(a + b, c));
        for (target, first) in [(20, 0), (a + b, 2), (20, 2), (a + b, 0)] {
            // D may be the registers of C.
            if first >= c {
                continue;
            }
            let code = format!(
                ".reg .b32 x<24>; {unpack} \
                 mma.sync.aligned.m16n8k{k}.row.col.{types} {}, {from_a}, {from_b}, {from_c}; \
                 mov.b64 w0, {{x{}, x{}}};",
                list(target, c),
                target + first,
                target + first + 1
            );
            cases.push(warp(
                code,
                move |lane| shape.inputs(lane),
                move |lane| shape.c(lane, first, d_at) | shape.c(lane, first + 1, d_at) << 32,
            ));
        }
    }
    let mma = "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {r10, r11, r12, r13}, \
               {r1, r2}, {r3}, {r4, r5, r6, r7};";
    let one_row = &format!("setp.lt.u32 p10, rl, 16; @p10 {mma}");
    cases.extend([
        fault(one_row, cuda_emulator::FaultKind::MissingLanes),
        refused(&mma.replace("{r1, r2}", "{r1}"), "registers"),
        refused(&mma.replace("row.col", "col.row"), "by rows"),
        refused(&mma.replace("m16n8k8", "m16n8k32"), "does not exist"),
        refused(&mma.replace("bf16.bf16", "bf16.f16"), "does not exist"),
    ]);
    cases
}
