//! Fragments of matrices, `wmma`: PTX ISA 9.7.14.4. Which lane holds which elements is left open.
//! Each case loads fragments, multiplies them, and looks at what is stored.

use super::harness::*;

pub fn families() -> Vec<Family> {
    let mut cases = products();
    cases.extend([
        refused("wmma.load.a.sync.aligned.row.m16n16k16.f16 {r1, r2}, [wm];", "8 are needed"),
        refused(
            "wmma.mma.sync.aligned.row.col.m16n16k16.s32.s8.u8.s32 {r1}, {r2}, {r3}, {r4};",
            "does not exist",
        ),
        fault(
            "setp.lt.u32 p10, rl, 16; \
             @p10 wmma.load.a.sync.aligned.row.m16n16k16.s8 {r1, r2}, [wm];",
            cuda_emulator::FaultKind::MissingLanes,
        ),
    ]);
    vec![family("9.7.14.4 wmma", "wmma", cases)]
}

#[test]
fn fragments() {
    check(&families());
}

/// Bytes of the lanes' memory, and of the shared variable.
const ROOM: usize = 2048;

#[derive(Clone)]
struct Product {
    m: usize,
    n: usize,
    k: usize,
    /// Type of A and B.
    factor: &'static str,
    d: &'static str,
    c: &'static str,
    saturate: bool,
    /// Whether A, B, C and D lie by rows.
    rows: [bool; 4],
    /// Where A and B lie, and where C and D do.
    spaces: [&'static str; 2],
}

/// A matrix in memory: lines, elements of a line, and the distance between lines.
#[derive(Clone, Copy)]
struct Layout {
    rows: bool,
    stride: usize,
    bytes: usize,
}

impl Layout {
    fn place(self, row: usize, column: usize) -> usize {
        let (line, at) = if self.rows { (row, column) } else { (column, row) };
        (line * self.stride + at) * self.bytes
    }
}

fn width(ty: &str) -> usize {
    match ty {
        "u8" | "s8" => 1,
        "f16" | "bf16" => 2,
        _ => 4,
    }
}

fn encode(ty: &str, value: f64) -> Vec<u8> {
    match ty {
        "u8" | "s8" => vec![value as i64 as u8],
        "f16" => half::f16::from_f64(value).to_bits().to_le_bytes().to_vec(),
        "bf16" => half::bf16::from_f64(value).to_bits().to_le_bytes().to_vec(),
        "s32" => (value as i64 as i32).to_le_bytes().to_vec(),
        _ => (value as f32).to_le_bytes().to_vec(),
    }
}

impl Product {
    fn a_at(&self, row: usize, k: usize) -> f64 {
        self.element(row * 7 + k * 3 + row * k)
    }

    fn b_at(&self, k: usize, column: usize) -> f64 {
        self.element(column * 5 + k * 11 + 1)
    }

    fn element(&self, noise: usize) -> f64 {
        match self.factor {
            "u8" => ((noise * 37) % 256) as f64,
            "s8" => ((noise * 37) % 256) as f64 - 128.0,
            _ => ((noise % 9) as f64 - 4.0) / 2.0,
        }
    }

    /// An element of C by its place in memory.
    fn c_value(&self, place: usize) -> f64 {
        let near_the_end = if self.saturate { 2_147_000_000.0 } else { 0.0 };
        place as f64 - 128.0 + near_the_end
    }

    fn layouts(&self) -> [Layout; 4] {
        let Self { m, n, k, .. } = *self;
        let layout = |at: usize, [high, wide]: [usize; 2], ty: &str, gap: usize| {
            let rows = self.rows[at];
            Layout { rows, stride: if rows { wide } else { high } + gap, bytes: width(ty) }
        };
        [
            layout(0, [m, k], self.factor, 8),
            layout(1, [k, n], self.factor, 0),
            layout(2, [m, n], self.c, 0),
            layout(3, [m, n], self.d, 4),
        ]
    }

    /// Where B lies behind A.
    fn start_of_b(&self) -> usize {
        let a = self.layouts()[0];
        (if a.rows { self.m } else { self.k }) * a.stride * a.bytes
    }

    /// The memory of A and B.
    fn factors(&self) -> Vec<u8> {
        let [a, b, ..] = self.layouts();
        let mut image = vec![0; ROOM];
        let mut put = |place: usize, value: f64| {
            let bytes = encode(self.factor, value);
            image[place..place + bytes.len()].copy_from_slice(&bytes);
        };
        for k in 0..self.k {
            (0..self.m).for_each(|row| put(a.place(row, k), self.a_at(row, k)));
            let start = self.start_of_b();
            (0..self.n).for_each(|column| put(start + b.place(k, column), self.b_at(k, column)));
        }
        image
    }

    /// The memory of C, and of D over it.
    fn results(&self) -> Vec<u8> {
        let [_, _, c, d] = self.layouts();
        let mut image = vec![0; ROOM];
        let mut put = |place: usize, ty: &str, value: f64| {
            let bytes = encode(ty, value);
            image[place..place + bytes.len()].copy_from_slice(&bytes);
        };
        for place in 0..self.m * self.n {
            put(place * c.bytes, self.c, self.c_value(place));
        }
        for (row, column) in (0..self.m).flat_map(|row| (0..self.n).map(move |at| (row, at))) {
            let term = |k: usize| self.a_at(row, k) * self.b_at(k, column);
            let sum =
                (0..self.k).map(term).sum::<f64>() + self.c_value(c.place(row, column) / c.bytes);
            let sum = if self.saturate { sum.min(f64::from(i32::MAX)) } else { sum };
            put(d.place(row, column), self.d, sum);
        }
        image
    }

    fn code(&self, pass: usize) -> String {
        let Self { m, n, k, factor, d, c, .. } = self;
        let [la, lb, lc, ld] = self.rows.map(|rows| if rows { "row" } else { "col" });
        let [a, _, _, to] = self.layouts();
        let shape = format!("m{m}n{n}k{k}");
        let [of_factors, of_results] = self.spaces;
        let space = |name: &str| if name.is_empty() { String::new() } else { format!(".{name}") };
        // A and B are where the lanes' memory is, unless they are in shared memory.
        let shared = of_factors.starts_with("shared");
        let base = |name: &str, shared: bool| match (name, shared) {
            ("", true) => "w21",
            (_, true) => "r20",
            (_, false) => "w20",
        };
        let (from, at) = (base(of_factors, shared), base(of_results, !shared));
        let list = |name: &str, first: usize, count: usize| {
            let names: Vec<String> =
                (first..first + count).map(|at| format!("{name}{at}")).collect();
            format!("{{{}}}", names.join(", "))
        };
        let count = |lines: usize| match *factor {
            "f16" => 8,
            "bf16" => lines * k / 64,
            "tf32" => lines * k / 32,
            _ => lines * k / 128,
        };
        let sums = |ty: &str| if ty == "f16" { 4 } else { 8 };
        let fragments = [
            list("x", 0, count(*m)),
            list("x", 8, count(*n)),
            list(if *c == "f32" { "z" } else { "x" }, 16, sums(c)),
            list(if *d == "f32" { "z" } else { "x" }, 24, sums(d)),
        ];
        let [fa, fb, fc, fd] = &fragments;
        let types = match *factor {
            "f16" => format!("{d}.{c}"),
            _ => format!("{d}.{factor}.{factor}.{c}"),
        };
        let satfinite = if self.saturate { ".satfinite" } else { "" };
        let own = |shared: bool| if shared { "[rs" } else { "[wm" };
        let in_space = |shared: bool| if shared { "shared" } else { "global" };
        let store: String = (0..4)
            .map(|at| {
                format!(
                    "st.{}.v2.b64 {}+{}], {{w{}, w{}}}; ",
                    in_space(shared),
                    own(shared),
                    16 * at,
                    2 * at + 1,
                    2 * at + 2
                )
            })
            .collect();
        let results = in_space(!shared);
        let clear: String = (0..8)
            .map(|at| format!("st.{results}.b64 {}+{}], 0; ", own(!shared), 8 * at))
            .collect();
        // Lane l writes the elements 8 l to 8 l + 7 of C.
        let bytes = width(c);
        let fill: String = (0..8)
            .map(|at| {
                let value = match *c {
                    "s32" => "mov.b32 r11, r10;",
                    "f16" => "cvt.rn.f16.s32 h11, r10;",
                    _ => "cvt.rn.f32.s32 r11, r10;",
                };
                let start = self.c_value(at) as i64;
                let (register, ty) = if *c == "f16" { ("h11", "b16") } else { ("r11", "b32") };
                format!(
                    "mad.lo.s32 r10, rl, 8, {start}; {value} \
                     st.{results}.{ty} [w23+{}], {register}; ",
                    at * bytes
                )
            })
            .collect();
        let start = match shared {
            true => "mov.b64 w22, w20;",
            false => "cvt.u64.u32 w22, r20;",
        };
        format!(
            ".reg .b32 x<32>; .reg .f32 z<32>; \
             mul.wide.u32 w20, rl, 64; sub.u64 w20, wm, w20; mov.u32 r20, tile; \
             cvt.u64.u32 w21, r20; cvta.shared.u64 w21, w21; {start} \
             mad.wide.u32 w23, rl, {}, w22; {store} {clear} bar.warp.sync -1; {fill} \
             bar.warp.sync -1; mov.u32 r21, {}; \
             wmma.load.a.sync.aligned.{la}.{shape}{}.{factor} {fa}, [{from}], {}; \
             wmma.load.b.sync.aligned.{lb}.{shape}{}.{factor} {fb}, [{from}+{}]; \
             wmma.load.c.sync.aligned.{lc}.{shape}{}.{c} {fc}, [{at}]; \
             wmma.mma.sync.aligned.{la}.{lb}.{shape}.{types}{satfinite} {fd}, {fa}, {fb}, {fc}; \
             bar.warp.sync -1; \
             wmma.store.d.sync.aligned.{ld}.{shape}{}.{d} [{at}], {fd}, r21; bar.warp.sync -1; \
             mad.wide.u32 w23, rl, 8, w22; ld.{results}.b64 w0, [w23+{}];",
            8 * bytes,
            to.stride,
            space(of_factors),
            a.stride,
            space(of_factors),
            self.start_of_b(),
            space(of_results),
            space(of_results),
            256 * pass,
        )
    }

    fn case(self, pass: usize) -> Case {
        let (image, results) = (self.factors(), self.results());
        let word = |bytes: &[u8]| u64::from_le_bytes(std::array::from_fn(|at| bytes[at]));
        warp(
            self.code(pass),
            move |lane| image[64 * lane..64 * lane + 64].chunks(8).map(word).collect(),
            move |lane| word(&results[256 * pass + 8 * lane..][..8]),
        )
    }
}

fn products() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes = [(16, 16, 16), (8, 32, 16), (32, 8, 16)];
    let kinds = [
        ("f16", "f32", "f32"),
        ("f16", "f16", "f16"),
        ("f16", "f32", "f16"),
        ("f16", "f16", "f32"),
        ("bf16", "f32", "f32"),
        ("u8", "s32", "s32"),
        ("s8", "s32", "s32"),
        ("tf32", "f32", "f32"),
    ];
    let spaces = [
        ["global", "shared"],
        ["", "shared::cta"],
        ["shared", "global"],
        ["shared::cta", ""],
        ["", ""],
    ];
    for (factor, d, c) in kinds {
        let shapes = if factor == "tf32" { &[(16, 16, 8); 3] } else { &shapes };
        for (turn, &(m, n, k)) in shapes.iter().enumerate() {
            for variant in 0..5 {
                let number = turn + variant;
                let rows = [1, 2, 4, 8].map(|bit| (number * 5 + turn) & bit != 0);
                let saturate = d == "s32" && variant % 2 == 1;
                let spaces = spaces[variant];
                let product = Product { m, n, k, factor, d, c, saturate, rows, spaces };
                cases.push(product.clone().case(number % 2));
                cases.push(product.case(2 + number % 2));
            }
        }
    }
    cases
}
