//! A table of mathematical functions, compiled in one program and compared with references.

use super::numbers::{Random, Real, distance};
use crate::support::{Arg, Bench};
use cuda_emulator::Config;

/// Random arguments of each kind that every function gets.
const SAMPLES: usize = 512;

/// How far a result may be from the reference.
#[derive(Clone, Copy)]
pub enum Bound {
    /// In units of the last place.
    Ulps(u64),
    Absolute(f64),
    Relative(f64),
    /// In units of the last place, by the argument.
    UlpsAt(fn(f64) -> u64),
}

/// Where a function is tested.
#[derive(Clone, Copy)]
pub enum Domain {
    /// Special values, random bits, and numbers from a range.
    All(f64, f64),
    /// Numbers from a range.
    Only(f64, f64),
}

/// A function of `x`, `y`, `z` and `w`; there are places for results, `r` and the integer `e`.
pub struct Function {
    /// How CUDA writes it.
    pub expression: &'static str,
    pub arguments: usize,
    pub domain: Domain,
    pub bound: Bound,
    pub reference: fn(&[f64]) -> f64,
    /// The error of the reference itself, in units of the last place.
    pub slack: u64,
}

/// A function with references that are exact to the last place.
pub fn function(
    expression: &'static str,
    domain: Domain,
    bound: Bound,
    reference: fn(&[f64]) -> f64,
) -> Function {
    let has = |name: &char| {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        expression.match_indices(*name).any(|(at, _)| {
            !expression[..at].ends_with(is_name) && !expression[at + 1..].starts_with(is_name)
        })
    };
    let arguments = ['x', 'y', 'z', 'w'].iter().filter(|name| has(name)).count();
    Function { expression, arguments, domain, bound, reference, slack: 0 }
}

impl Function {
    /// The same with a reference that has an error.
    pub fn slack(self, slack: u64) -> Self {
        Self { slack, ..self }
    }
}

/// A program with one kernel for each expression.
pub fn program<T: Real>(expressions: impl Iterator<Item = &'static str>) -> String {
    let mut text = String::new();
    for (index, expression) in expressions.enumerate() {
        let ty = T::NAME;
        text += &format!(
            "extern \"C\" __global__ void f{index}(const {ty}* in, {ty}* out, int n) {{\n\
             int i = blockIdx.x * blockDim.x + threadIdx.x;\nif (i >= n) return;\n\
             {ty} x = in[i], y = in[n + i], z = in[2 * n + i], w = in[3 * n + i], r;\nint e;\n\
             out[i] = {expression};\n}}\n"
        );
    }
    text
}

/// The arguments of a function: sets of four numbers.
fn arguments<T: Real>(function: &Function, random: &mut Random) -> Vec<[T; 4]> {
    let mut sets = Vec::new();
    let (from, to) = match function.domain {
        Domain::All(from, to) => {
            for x in T::specials() {
                match function.arguments {
                    1 => sets.push([x; 4]),
                    _ => sets.extend(T::specials().into_iter().map(|y| [x, y, T::narrow(1.5), y])),
                }
            }
            sets.extend((0..SAMPLES).map(|_| [(); 4].map(|()| T::from_bits(random.bits()))));
            (from, to)
        }
        Domain::Only(from, to) => (from, to),
    };
    let mut draw = || {
        let value = T::narrow(random.within(from, to));
        // Not beyond the range by rounding.
        if (from..=to).contains(&value.widen()) { value } else { T::narrow(from) }
    };
    sets.extend((0..SAMPLES).map(|_| [(); 4].map(|()| draw())));
    sets
}

/// Runs the functions with these options of the compiler.
pub fn check<T: Real>(functions: &[Function], options: &[&str]) {
    let mut random = Random::new();
    let text = program::<T>(functions.iter().map(|function| function.expression));
    let bench = Bench::cuda_for("compute_80", options, &text, Config::default());
    let mut wrong = Vec::new();
    for (index, function) in functions.iter().enumerate() {
        let sets: Vec<[T; 4]> = arguments(function, &mut random);
        let columns: Vec<T> =
            (0..4).flat_map(|column| sets.iter().map(move |set| set[column])).collect();
        let (input, out) = (bench.upload(&columns), bench.room::<T>(sets.len()));
        let args = [Arg::U64(input), Arg::U64(out), Arg::I32(sets.len() as i32)];
        bench.launch(&format!("f{index}"), sets.len().div_ceil(256) as u32, 256, &args);
        let found: Vec<T> = bench.download(out, sets.len());
        let differs =
            sets.iter().zip(&found).find_map(|(set, &found)| differs(function, set, found));
        wrong.extend(differs);
    }
    assert!(wrong.is_empty(), "options {options:?}, seed {}:\n{}", random.seed, wrong.join("\n"));
}

/// What is wrong with a result, if anything is.
fn differs<T: Real>(function: &Function, arguments: &[T; 4], found: T) -> Option<String> {
    let arguments = &arguments.map(T::widen)[..function.arguments];
    let reference = (function.reference)(arguments);
    let expected = T::narrow(reference);
    let (ulps, error) = (distance(found, expected), (found.widen() - reference).abs());
    let within = match function.bound {
        Bound::Ulps(bound) => ulps <= bound + function.slack,
        Bound::UlpsAt(bound) => ulps <= bound(arguments[0]),
        Bound::Absolute(bound) => ulps == 0 || error <= bound,
        Bound::Relative(bound) => ulps == 0 || error <= bound * reference.abs(),
    };
    (!within).then(|| {
        let (name, found) = (function.expression, found.widen());
        format!("{name} of {arguments:?} is {found:e}, not {:e} ({ulps} ulps)", expected.widen())
    })
}
