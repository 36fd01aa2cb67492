//! Products of matrices of integers, bits, 8-bit floating-point numbers and f64: PTX ISA 9.7.14.5,
//! whose figures say which element lies where. Lane l belongs to group g = l / 4 and is number
//! q = l % 4 in it.

use super::harness::*;

pub fn families() -> Vec<Family> {
    vec![family("9.7.14.5.14 mma", "mma", [integers(), bits(), small(), doubles()].concat_all())]
}

#[test]
fn products() {
    check(&families());
}

trait ConcatAll {
    fn concat_all(self) -> Vec<Case>;
}

impl<const N: usize> ConcatAll for [Vec<Case>; N] {
    fn concat_all(self) -> Vec<Case> {
        self.into_iter().flatten().collect()
    }
}

/// Types of elements.
#[derive(Clone, Copy, PartialEq)]
enum Ty {
    Integer(u32, bool),
    E4m3,
    E5m2,
    F64,
}

impl Ty {
    fn bits(self) -> usize {
        match self {
            Ty::Integer(bits, _) => bits as usize,
            Ty::E4m3 | Ty::E5m2 => 8,
            Ty::F64 => 64,
        }
    }

    fn name(self) -> String {
        match self {
            Ty::Integer(1, _) => "b1".to_owned(),
            Ty::Integer(bits, signed) => format!("{}{bits}", if signed { 's' } else { 'u' }),
            Ty::E4m3 => "e4m3".to_owned(),
            Ty::E5m2 => "e5m2".to_owned(),
            Ty::F64 => "f64".to_owned(),
        }
    }

    /// An element that depends on its place: its bits and its value.
    fn element(self, line: usize, k: usize) -> (u64, f64) {
        let noise = (line * 31 + k * 17 + line * k + 5) as u64;
        // 0.5, 1, 1.5 and 2, with both signs.
        let pick = |bits: [u64; 4]| {
            let negative = noise >> 2 & 1;
            let value = [0.5, 1.0, 1.5, 2.0][noise as usize & 3];
            (bits[noise as usize & 3] | negative << 7, if negative == 1 { -value } else { value })
        };
        match self {
            Ty::Integer(width, signed) => {
                let bits = noise & ((1 << width) - 1);
                let negative = signed && bits >> (width - 1) == 1;
                (bits, bits as f64 - if negative { (1_u64 << width) as f64 } else { 0.0 })
            }
            Ty::E4m3 => pick([0x30, 0x38, 0x3c, 0x40]),
            Ty::E5m2 => pick([0x38, 0x3c, 0x3e, 0x40]),
            Ty::F64 => {
                let value = (noise % 13) as f64 - 6.0;
                (value.to_bits(), value)
            }
        }
    }
}

/// A shape, the types of A and B, and the rest of the instruction's name.
#[derive(Clone)]
struct Product {
    rows: usize,
    k: usize,
    a: Ty,
    b: Ty,
    result: &'static str,
    /// What stands before and behind the types.
    before: &'static str,
    behind: &'static str,
    c: i64,
}

impl Product {
    fn name(&self) -> String {
        let Self { rows, k, result, before, behind, .. } = self;
        let (a, b) = (self.a.name(), self.b.name());
        format!("mma.sync.aligned.m{rows}n8k{k}.row.col{before}.{result}.{a}.{b}.{result}{behind}")
    }

    /// Words of a lane's fragment: of lines in groups, each with so many elements.
    fn fragment(&self, ty: Ty, lines: usize, lane: usize) -> Vec<u64> {
        let per_register = if ty == Ty::F64 { 1 } else { 32 / ty.bits() };
        let registers = lines * self.k / 32 / per_register;
        let tall = lines / 8;
        let register = |r: usize| {
            (0..per_register).fold(0, |word, i| {
                let line = lane / 4 + 8 * (r % tall);
                let k = per_register * (lane % 4) + i + 4 * per_register * (r / tall);
                word | ty.element(line, k).0 << (i * ty.bits() % 64)
            })
        };
        (0..registers).map(register).collect()
    }

    fn c_at(&self, row: usize, column: usize) -> i64 {
        self.c + (row * 8 + column) as i64 * if self.result == "s32" { 1001 } else { 1 }
    }

    /// The exact element of A B + C.
    fn d_at(&self, row: usize, column: usize) -> f64 {
        let term = |k: usize| {
            let ((x, a), (y, b)) = (self.a.element(row, k), self.b.element(column, k));
            match self.behind {
                ".xor.popc" => (x ^ y) as f64,
                ".and.popc" => (x & y) as f64,
                _ => a * b,
            }
        };
        (0..self.k).map(term).sum::<f64>() + self.c_at(row, column) as f64
    }

    /// Registers of C and D: each of one or two elements.
    fn accumulator(&self, lane: usize, at: impl Fn(usize, usize) -> u64) -> Vec<u64> {
        let (g, q) = (lane / 4, lane % 4);
        let rows = (0..self.rows / 8).map(|half| g + 8 * half);
        let pair = |row: usize| [at(row, 2 * q), at(row, 2 * q + 1)];
        match self.result {
            "f16" => rows.map(pair).map(|[low, high]| low | high << 16).collect(),
            _ => rows.flat_map(pair).collect(),
        }
    }

    fn bits(&self, value: f64) -> u64 {
        match self.result {
            "f16" => half::f16::from_f64(value).to_bits().into(),
            "f32" => f(value as f32),
            "f64" => value.to_bits(),
            _ if self.before == ".satfinite" => {
                u64::from((value.clamp(i32::MIN.into(), i32::MAX.into()) as i32) as u32)
            }
            _ => u64::from(value as i64 as u32),
        }
    }

    /// One case for each pair of registers of D.
    fn cases(self) -> Vec<Case> {
        let list = |name: &str, from: usize, count: usize| {
            let names: Vec<String> = (from..from + count).map(|at| format!("{name}{at}")).collect();
            format!("{{{}}}", names.join(", "))
        };
        let wide = self.result == "f64";
        let count = |ty, lines| self.fragment(ty, lines, 0).len();
        let (a, b) = (count(self.a, self.rows), count(self.b, 8));
        let c = self.accumulator(0, |_, _| 0).len();
        let inputs = (a + b + c).div_ceil(2);
        let mut unpack: String = (0..inputs)
            .map(|at| format!("mov.b64 {{x{}, x{}}}, w{}; ", 2 * at, 2 * at + 1, at + 1))
            .collect();
        if wide {
            // Two inputs to a word, as f32.
            unpack +=
                &(0..a + b + c).map(|at| format!("cvt.f64.f32 y{at}, x{at}; ")).collect::<String>();
        }
        let name = if wide { "y" } else { "x" };
        let mut cases = Vec::new();
        for first in (0..c).step_by(if wide || c == 1 { 1 } else { 2 }) {
            let code = format!(
                ".reg .b32 x<32>; .reg .f64 y<32>; {unpack} {} {}, {}, {}, {}; {}",
                self.name(),
                list(name, 20, c),
                list(name, 0, a),
                list(name, a, b),
                list(name, a + b, c),
                match wide {
                    true => format!("mov.b64 w0, y{};", 20 + first),
                    false if c == 1 => "mov.b64 w0, {x20, 0};".to_owned(),
                    false => format!("mov.b64 w0, {{x{}, x{}}};", 20 + first, 21 + first),
                }
            );
            let (from, to) = (self.clone(), self.clone());
            cases.push(warp(
                code,
                move |lane| {
                    let c = |row, column| from.bits_of_c(row, column);
                    let parts = [
                        from.fragment(from.a, from.rows, lane),
                        from.fragment(from.b, 8, lane),
                        from.accumulator(lane, c),
                    ];
                    let words: Vec<u64> = parts.into_iter().flatten().collect();
                    let narrow = |word: &u64| match wide {
                        true => f(f64::from_bits(*word) as f32),
                        false => *word,
                    };
                    let pair =
                        |pair: &[u64]| narrow(&pair[0]) | pair.get(1).map_or(0, narrow) << 32;
                    words.chunks(2).map(pair).collect()
                },
                move |lane| {
                    let d = to.accumulator(lane, |row, column| to.bits(to.d_at(row, column)));
                    match wide {
                        true => d[first],
                        false => d[first] | d.get(first + 1).map_or(0, |high| high << 32),
                    }
                },
            ));
        }
        cases
    }

    fn bits_of_c(&self, row: usize, column: usize) -> u64 {
        match self.result {
            "s32" => u64::from(self.c_at(row, column) as u32),
            _ => self.bits(self.c_at(row, column) as f64),
        }
    }
}

fn integers() -> Vec<Case> {
    let mut cases = Vec::new();
    for (width, shapes) in [(8, [(8, 16), (16, 16), (16, 32)]), (4, [(8, 32), (16, 32), (16, 64)])]
    {
        for (rows, k) in shapes {
            for (at, signs) in
                [(true, true), (true, false), (false, true), (false, false)].into_iter().enumerate()
            {
                let (a, b) = (Ty::Integer(width, signs.0), Ty::Integer(width, signs.1));
                let product =
                    |before, c| Product { rows, k, a, b, result: "s32", before, behind: "", c };
                cases.extend(product("", -50_000).cases());
                // Near the end of what the result can hold.
                let end = i64::from(i32::MAX) - 128 * 1001;
                let c = if at == 0 { i64::from(i32::MIN) } else { end };
                cases.extend(product("", c).cases());
                cases.extend(product(".satfinite", c).cases());
            }
        }
    }
    cases.push(refused(
        "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {r10}, {r1}, {r2}, {r3};",
        "1 registers where 2 are needed",
    ));
    cases.push(refused(
        "mma.sync.aligned.m8n8k16.col.row.s32.s8.s8.s32 {r10, r11}, {r1}, {r2}, {r3, r4};",
        "A by rows",
    ));
    cases
}

fn bits() -> Vec<Case> {
    let one = Ty::Integer(1, false);
    let mut cases = Vec::new();
    for (rows, k) in [(8, 128), (16, 128), (16, 256)] {
        for behind in [".xor.popc", ".and.popc"] {
            let product =
                Product { rows, k, a: one, b: one, result: "s32", before: "", behind, c: -77 };
            cases.extend(product.cases());
        }
    }
    cases
}

fn small() -> Vec<Case> {
    let mut cases = Vec::new();
    for k in [16, 32] {
        for (a, b) in [(Ty::E4m3, Ty::E4m3), (Ty::E4m3, Ty::E5m2), (Ty::E5m2, Ty::E4m3)] {
            for result in ["f32", "f16"] {
                let product = Product { rows: 16, k, a, b, result, before: "", behind: "", c: -60 };
                cases.extend(product.cases());
            }
        }
    }
    let (a, b) = (Ty::E5m2, Ty::E5m2);
    for (k, result) in [(16, "f16"), (32, "f32")] {
        cases.extend(Product { rows: 16, k, a, b, result, before: "", behind: "", c: 3 }.cases());
    }
    cases
}

fn doubles() -> Vec<Case> {
    let (a, b) = (Ty::F64, Ty::F64);
    let mut cases = Vec::new();
    for (rows, k) in [(8, 4), (16, 4), (16, 8), (16, 16)] {
        let product = Product { rows, k, a, b, result: "f64", before: "", behind: "", c: -9 };
        cases.extend(product.cases());
    }
    cases
}
