//! A table of expressions of integers, compiled in one kernel and compared with Rust.

use super::numbers::Random;
use crate::support::{Arg, Bench};
use cuda_emulator::Config;

/// Threads, each with arguments of its own.
const THREADS: usize = 1024;

/// The arguments: `x`, `y`, `z` in CUDA are `unsigned`, `a`, `b`, `c` the same bits as `int`; `u`,
/// `v` and `s`, `t` are the like in 64 bits; `f`, `g` and `d`, `e` are the bits as numbers.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    pub x: u32,
    pub y: u32,
    pub z: u32,
    pub u: u64,
    pub v: u64,
}

impl Words {
    pub fn a(self) -> i32 {
        self.x as i32
    }

    pub fn b(self) -> i32 {
        self.y as i32
    }

    pub fn c(self) -> i32 {
        self.z as i32
    }

    pub fn s(self) -> i64 {
        self.u as i64
    }

    pub fn t(self) -> i64 {
        self.v as i64
    }

    pub fn f(self) -> f32 {
        f32::from_bits(self.x)
    }

    pub fn g(self) -> f32 {
        f32::from_bits(self.y)
    }

    pub fn d(self) -> f64 {
        f64::from_bits(self.u)
    }

    pub fn e(self) -> f64 {
        f64::from_bits(self.v)
    }

    /// Words of which many are close to an end of the range or have few bits.
    pub fn draw(random: &mut Random) -> Self {
        let mut word = || {
            let bits = random.bits();
            match random.bits() % 6 {
                0 => bits % 40,
                1 => 0_u64.wrapping_sub(bits % 40),
                2 => 1 << (bits % 64),
                3 => (1 << 31 | 1 << 63) - 1 + bits % 3,
                _ => bits,
            }
        };
        let [x, y, z] = [(); 3].map(|()| word() as u32);
        Self { x, y, z, u: word(), v: word() }
    }
}

/// An expression in CUDA, and what it must be; results of 32 bits are extended as CUDA does it.
pub type Expression = (&'static str, fn(Words) -> u64);

/// Runs the expressions with arguments that `draw` makes.
pub fn check(expressions: &[Expression], options: &[&str], draw: fn(&mut Random) -> Words) {
    let count = expressions.len();
    let stores: String = expressions
        .iter()
        .enumerate()
        .map(|(at, (text, _))| format!("out[{at}] = (u64)({text});\n"))
        .collect();
    let text = format!(
        "typedef unsigned long long u64; typedef long long i64;\n\
         extern \"C\" __global__ void k(const unsigned* words, const u64* longs, u64* out) {{\n\
         int i = blockIdx.x * blockDim.x + threadIdx.x; out += {count} * i;\n\
         unsigned x = words[3 * i], y = words[3 * i + 1], z = words[3 * i + 2];\n\
         u64 u = longs[2 * i], v = longs[2 * i + 1];\n\
         int a = x, b = y, c = z; i64 s = u, t = v;\n\
         float f = __uint_as_float(x), g = __uint_as_float(y);\n\
         double d = __longlong_as_double(u), e = __longlong_as_double(v);\n{stores}}}\n"
    );
    let bench = Bench::cuda_for("compute_80", options, &text, Config::default());
    let mut random = Random::new();
    let words: Vec<Words> = (0..THREADS).map(|_| draw(&mut random)).collect();
    let shorts: Vec<u32> = words.iter().flat_map(|w| [w.x, w.y, w.z]).collect();
    let longs: Vec<u64> = words.iter().flat_map(|w| [w.u, w.v]).collect();
    let out = bench.room::<u64>(count * THREADS);
    let args = [Arg::U64(bench.upload(&shorts)), Arg::U64(bench.upload(&longs)), Arg::U64(out)];
    bench.launch("k", THREADS as u32 / 128, 128, &args);
    let found: Vec<u64> = bench.download(out, count * THREADS);
    let mut wrong = Vec::new();
    for (at, (text, reference)) in expressions.iter().enumerate() {
        let bad = words
            .iter()
            .zip(found.chunks(count))
            .find(|(words, found)| found[at] != reference(**words));
        wrong.extend(bad.map(|(words, found)| {
            format!("{text} of {words:x?} is {:#x}, not {:#x}", found[at], reference(*words))
        }));
    }
    assert!(wrong.is_empty(), "options {options:?}, seed {}:\n{}", random.seed, wrong.join("\n"));
}
