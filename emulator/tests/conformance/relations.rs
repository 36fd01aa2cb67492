//! Every comparison with every type and logic operation: PTX ISA 9.7.6 and 9.7.7. The results are
//! those of a table by hand.

use super::harness::*;

pub fn families() -> Vec<Family> {
    vec![family("9.7.6.2 setp", "setp", setp()), family("9.7.6.1 set", "set", set())]
}

#[test]
fn relations() {
    check(&families());
}

/// Whether a relation holds of less, equal, greater and unordered.
const RELATIONS: [(&str, [bool; 4]); 18] = [
    ("eq", [false, true, false, false]),
    ("ne", [true, false, true, false]),
    ("lt", [true, false, false, false]),
    ("le", [true, true, false, false]),
    ("gt", [false, false, true, false]),
    ("ge", [false, true, true, false]),
    ("lo", [true, false, false, false]),
    ("ls", [true, true, false, false]),
    ("hi", [false, false, true, false]),
    ("hs", [false, true, true, false]),
    ("equ", [false, true, false, true]),
    ("neu", [true, false, true, true]),
    ("ltu", [true, false, false, true]),
    ("leu", [true, true, false, true]),
    ("gtu", [false, false, true, true]),
    ("geu", [false, true, true, true]),
    ("num", [true, true, true, false]),
    ("nan", [false, false, false, true]),
];

/// A type that is compared: its register, and values of which the first is less than the second,
/// and the third is NaN or nothing.
struct Compared {
    ty: &'static str,
    register: &'static str,
    values: [u64; 3],
}

const COMPARED: &[Compared] = &[
    Compared { ty: "b16", register: "h", values: [3, 0xfffe, 0] },
    Compared { ty: "b32", register: "r", values: [3, 0xffff_fffe, 0] },
    Compared { ty: "b64", register: "w", values: [3, 1 << 63, 0] },
    Compared { ty: "u16", register: "h", values: [3, 0xfffe, 0] },
    Compared { ty: "u32", register: "r", values: [3, 0xffff_fffe, 0] },
    Compared { ty: "u64", register: "w", values: [3, 1 << 63, 0] },
    Compared { ty: "s16", register: "h", values: [0xfffe, 3, 0] },
    Compared { ty: "s32", register: "r", values: [0xffff_fffe, 3, 0] },
    Compared { ty: "s64", register: "w", values: [1 << 63, 3, 0] },
    Compared { ty: "f16", register: "h", values: [0xbc00, 0x3c00, 0x7e00] },
    Compared { ty: "f16x2", register: "r", values: [0xbc00, 0x3c00, 0x7e00] },
    Compared { ty: "bf16", register: "h", values: [0xbf80, 0x3f80, 0x7fc0] },
    Compared { ty: "bf16x2", register: "r", values: [0xbf80, 0x3f80, 0x7fc0] },
    Compared { ty: "f32", register: "r", values: [f(-1.0), f(1.0), NAN] },
    Compared { ty: "f64", register: "w", values: [d(-1.0), d(1.0), d(f64::NAN)] },
];

impl Compared {
    fn is_float(&self) -> bool {
        self.ty.contains('f')
    }

    fn has(&self, relation: &str) -> bool {
        match relation {
            "eq" | "ne" => true,
            "lt" | "le" | "gt" | "ge" => {
                !self.ty.starts_with("b1")
                    && !self.ty.starts_with("b3")
                    && !self.ty.starts_with("b6")
            }
            "lo" | "ls" | "hi" | "hs" => self.ty.starts_with('u'),
            _ => self.is_float(),
        }
    }

    fn flushes(&self) -> bool {
        matches!(self.ty, "f16" | "f16x2" | "f32")
    }

    fn is_packed(&self) -> bool {
        self.ty.ends_with("x2")
    }

    /// Operands by the column of the table that they belong to.
    fn operands(&self) -> Vec<(u64, u64, usize)> {
        let [a, b, nan] = self.values;
        let mut rows = vec![(a, b, 0), (b, b, 1), (b, a, 2), (a, a, 1)];
        if self.is_float() {
            rows.extend([(nan, a, 3), (b, nan, 3), (nan, nan, 3)]);
        }
        rows
    }
}

/// What a case computes of whether the relation holds of the low and of the high values.
type Result = fn(bool, bool) -> u64;

/// One case: all columns, each with both values of the predicate that is input 3.
fn case(code: String, compared: &Compared, table: [bool; 4], logic: &str, result: Result) -> Case {
    let with = |holds: bool, c: bool| match logic {
        ".and" => holds && c,
        ".or" => holds || c,
        ".xor" => holds != c,
        _ => holds,
    };
    let operands = compared.operands();
    let mut rows = Vec::new();
    for (at, &(a, b, column)) in operands.iter().enumerate() {
        // Next to it, in the upper half, stands another column.
        let (high_a, high_b, high) = operands[(at + 1) % operands.len()];
        let packed = compared.is_packed();
        let (a, b) = if packed { (a | high_a << 16, b | high_b << 16) } else { (a, b) };
        for c in [false, true] {
            let low = with(table[column], c);
            let high = if packed { with(table[high], c) } else { with(!table[column], c) };
            rows.push(([a, b, u64::from(c)], result(low, high)));
        }
    }
    let rows: Vec<Row> = rows.iter().map(|(inputs, d)| (&inputs[..], *d)).collect();
    exact(code, &rows)
}

const LOGIC: [&str; 4] = ["", ".and", ".or", ".xor"];

fn all(mut add: impl FnMut(&'static Compared, &'static str, [bool; 4], &'static str, usize)) {
    let mut number = 0;
    for compared in COMPARED {
        for (relation, table) in RELATIONS {
            for logic in LOGIC.into_iter().filter(|_| compared.has(relation)) {
                add(compared, relation, table, logic, number);
                number += 1;
            }
        }
    }
}

fn setp() -> Vec<Case> {
    let mut cases = Vec::new();
    all(|compared, relation, table, logic, number| {
        let Compared { ty, register, .. } = compared;
        let c = if logic.is_empty() { "" } else { ", p3" };
        let single = matches!(*ty, "f16" | "bf16");
        let ftz = if compared.flushes() && number % 2 == 0 { ".ftz" } else { "" };
        let name = format!("setp.{relation}{logic}{ftz}.{ty}");
        let operands = format!("{register}1, {register}2{c}");
        let (code, result): (_, Result) = match single {
            true => (format!("{name} p0, {operands};"), |low, _| u64::from(low)),
            false => (
                format!(
                    "{name} p10|p11, {operands}; selp.b32 r10, 1, 0, p10; \
                     selp.b32 r11, 2, 0, p11; add.u32 r0, r10, r11;"
                ),
                |low, high| u64::from(low) + 2 * u64::from(high),
            ),
        };
        cases.push(case(code, compared, table, logic, result));
    });
    cases.extend([
        exact("setp.eq.u32 _|p0, r1, r2;", &[(&[1, 2], 1), (&[2, 2], 0)]),
        exact("setp.eq.u32 p0|_, r1, r2;", &[(&[1, 2], 0), (&[2, 2], 1)]),
        exact("setp.eq.ftz.f16x2 p0|_, r1, r2;", &[(&[0x8001, 0], 1)]),
        refused("setp.lt.b32 p0, r1, r2;", "does not exist"),
        refused("setp.lo.s32 p0, r1, r2;", "does not exist"),
        refused("setp.eq.f16 p0|p10, h1, h2;", "one result"),
        refused("setp.eq.ftz.f64 p0, w1, w2;", "does not exist"),
    ]);
    cases
}

/// What `set` writes for a comparison of type `from`, and into which register.
fn targets(from: &Compared) -> Vec<(&'static str, &'static str, Result)> {
    let ones: Result = |low, _| if low { 0xffff_ffff } else { 0 };
    let short: Result = |low, _| if low { 0xffff } else { 0 };
    let masks: Result = |low, high| u64::from(low) * 0xffff + ((u64::from(high) * 0xffff) << 16);
    let word = [("u32", "r", ones), ("s32", "r", ones)];
    let all = [("f32", "r", (|low, _| if low { f(1.0) } else { 0 }) as Result)];
    let half = ("f16", "h", (|low, _| if low { 0x3c00 } else { 0 }) as Result);
    let brain = ("bf16", "h", (|low, _| if low { 0x3f80 } else { 0 }) as Result);
    match from.ty {
        "f16" => [&word[..], &[("u16", "h", short), ("s16", "h", short), half]].concat(),
        "bf16" => [&word[..], &[("u16", "h", short), ("s16", "h", short), brain]].concat(),
        "f16x2" => vec![
            ("u32", "r", masks),
            ("s32", "r", masks),
            ("f16x2", "r", |low, high| {
                u64::from(low) * 0x3c00 + ((u64::from(high) * 0x3c00) << 16)
            }),
        ],
        "bf16x2" => vec![
            ("u32", "r", masks),
            ("s32", "r", masks),
            ("bf16x2", "r", |low, high| {
                u64::from(low) * 0x3f80 + ((u64::from(high) * 0x3f80) << 16)
            }),
        ],
        _ => [&word[..], &all, &[half, brain]].concat(),
    }
}

fn set() -> Vec<Case> {
    let mut cases = Vec::new();
    all(|compared, relation, table, logic, number| {
        let Compared { ty, register, .. } = compared;
        let c = if logic.is_empty() { "" } else { ", p3" };
        for (at, (to, target, result)) in targets(compared).into_iter().enumerate() {
            let flushes = compared.flushes() && to != "bf16";
            let ftz = if flushes && (number + at) % 2 == 0 { ".ftz" } else { "" };
            let code = format!(
                "set.{relation}{logic}{ftz}.{to}.{ty} {target}0, {register}1, {register}2{c};"
            );
            cases.push(case(code, compared, table, logic, result));
        }
    });
    cases.push(refused("set.lt.f32.f16 r0, h1, h2;", "does not exist"));
    cases
}
