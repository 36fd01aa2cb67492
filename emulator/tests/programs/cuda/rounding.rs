//! Arithmetic and conversions with a direction of rounding.

use super::numbers::Random;
use super::words::{Expression, Words, check};

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nearest,
    Zero,
    Up,
    Down,
}

use Mode::{Down, Nearest, Up, Zero};

/// Rounds `nearest + error`, where the first is the closest number and the second exact in its sign.
fn directed(nearest: f64, error: f64, mode: Mode, up: fn(f64) -> f64, down: fn(f64) -> f64) -> f64 {
    let mode = match mode {
        Zero if nearest > 0.0 => Down,
        Zero => Up,
        mode => mode,
    };
    match mode {
        Up if error > 0.0 => up(nearest),
        Down if error < 0.0 => down(nearest),
        _ => nearest,
    }
}

fn double(nearest: f64, error: f64, mode: Mode) -> u64 {
    directed(nearest, error, mode, f64::next_up, f64::next_down).to_bits()
}

/// Rounds the sum of a number and a much smaller one to single precision.
fn single(high: f64, low: f64, mode: Mode) -> u64 {
    let nearest = high as f32;
    let rest = high - f64::from(nearest);
    let error = if rest == 0.0 { low } else { rest };
    let up = |x| f64::from((x as f32).next_up());
    let down = |x| f64::from((x as f32).next_down());
    u64::from((directed(nearest.into(), error, mode, up, down) as f32).to_bits())
}

/// The error of a sum: of the exact one, less the closest number.
fn sum_error(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let back = sum - a;
    (a - (sum - back)) + (b - back)
}

/// The sign of the error of a quotient or a square root, by what is left of the dividend.
fn quotient_error(a: f64, b: f64) -> f64 {
    (-(a / b)).mul_add(b, a) * b.signum()
}

fn root_error(a: f64) -> f64 {
    (-a.sqrt()).mul_add(a.sqrt(), a)
}

fn ranged(value: f64, exponent: f64) -> f64 {
    let (fraction, _) = libm::frexp(if value.is_finite() { value } else { 0.7 });
    if fraction == 0.0 { 0.5 } else { fraction * exponent.exp2() }
}

/// Numbers whose sums, products and quotients are normal and finite.
fn numbers(random: &mut Random) -> Words {
    let mut double = |limit: f64| {
        let value = f64::from_bits(random.bits());
        ranged(value, random.within(-limit, limit).trunc())
    };
    let [x, y, z] = [(); 3].map(|()| (double(30.0) as f32).to_bits());
    Words { x, y, z, u: double(200.0).to_bits(), v: double(200.0).to_bits() }
}

/// Numbers that fit the integers, and some that do not.
fn numbers_to_convert(random: &mut Random) -> Words {
    let mut draw = |limit: f64| match random.bits() % 8 {
        0 => f64::NAN,
        1 => (random.bits() % 9) as f64 - 4.5,
        _ => {
            let value = f64::from_bits(random.bits());
            ranged(value, random.within(-2.0, limit).trunc())
        }
    };
    let (x, u) = ((draw(70.0) as f32).to_bits(), draw(70.0).to_bits());
    Words { x, y: random.bits() as u32, z: 0, u, v: random.bits() }
}

/// The expressions of an operation in the four modes.
macro_rules! modes {
    ($cuda:literal, $arguments:literal, |$w:ident, $mode:ident| $reference:expr) => {
        [
            (concat!($cuda, "_rn", $arguments), |$w| {
                let $mode = Nearest;
                $reference
            }),
            (concat!($cuda, "_rz", $arguments), |$w| {
                let $mode = Zero;
                $reference
            }),
            (concat!($cuda, "_ru", $arguments), |$w| {
                let $mode = Up;
                $reference
            }),
            (concat!($cuda, "_rd", $arguments), |$w| {
                let $mode = Down;
                $reference
            }),
        ]
    };
}

#[rustfmt::skip]
const SINGLE: [[Expression; 4]; 6] = [
    modes!("__float_as_uint(__fadd", "(f, g))", |w, mode| {
        let (f, g) = (f64::from(w.f()), f64::from(w.g()));
        single(f + g, sum_error(f, g), mode)
    }),
    modes!("__float_as_uint(__fsub", "(f, g))", |w, mode| {
        let (f, g) = (f64::from(w.f()), f64::from(w.g()));
        single(f - g, sum_error(f, -g), mode)
    }),
    modes!("__float_as_uint(__fmul", "(f, g))", |w, mode| {
        single(f64::from(w.f()) * f64::from(w.g()), 0.0, mode)
    }),
    modes!("__float_as_uint(__fdiv", "(f, g))", |w, mode| {
        let (f, g) = (f64::from(w.f()), f64::from(w.g()));
        single(f / g, quotient_error(f, g), mode)
    }),
    modes!("__float_as_uint(__frcp", "(f))", |w, mode| {
        single(1.0 / f64::from(w.f()), quotient_error(1.0, w.f().into()), mode)
    }),
    modes!("__float_as_uint(__fsqrt", "(fabsf(f)))", |w, mode| {
        let f = f64::from(w.f().abs());
        single(f.sqrt(), root_error(f), mode)
    }),
];

#[rustfmt::skip]
const DOUBLE: [[Expression; 4]; 6] = [
    modes!("__double_as_longlong(__dadd", "(d, e))", |w, mode| {
        double(w.d() + w.e(), sum_error(w.d(), w.e()), mode)
    }),
    modes!("__double_as_longlong(__dsub", "(d, e))", |w, mode| {
        double(w.d() - w.e(), sum_error(w.d(), -w.e()), mode)
    }),
    modes!("__double_as_longlong(__dmul", "(d, e))", |w, mode| {
        double(w.d() * w.e(), w.d().mul_add(w.e(), -(w.d() * w.e())), mode)
    }),
    modes!("__double_as_longlong(__ddiv", "(d, e))", |w, mode| {
        double(w.d() / w.e(), quotient_error(w.d(), w.e()), mode)
    }),
    modes!("__double_as_longlong(__drcp", "(d))", |w, mode| {
        double(1.0 / w.d(), quotient_error(1.0, w.d()), mode)
    }),
    modes!("__double_as_longlong(__dsqrt", "(fabs(d)))", |w, mode| {
        double(w.d().abs().sqrt(), root_error(w.d().abs()), mode)
    }),
];

fn whole(value: f64, mode: Mode) -> f64 {
    match mode {
        Nearest => value.round_ties_even(),
        Zero => value.trunc(),
        Up => value.ceil(),
        Down => value.floor(),
    }
}

/// An integer as the closest double and what is left.
fn parts(value: i128) -> (f64, f64) {
    let nearest = value as f64;
    (nearest, (value - nearest as i128) as f64)
}

#[rustfmt::skip]
const TO_INTEGERS: [[Expression; 4]; 8] = [
    modes!("__float2int", "(f)", |w, mode| i64::from(whole(w.f().into(), mode) as i32) as u64),
    modes!("__float2uint", "(f)", |w, mode| u64::from(whole(w.f().into(), mode) as u32)),
    modes!("__float2ll", "(f)", |w, mode| long(w.f().into(), whole(w.f().into(), mode) as i64 as u64)),
    modes!("__float2ull", "(f)", |w, mode| long(w.f().into(), whole(w.f().into(), mode) as u64)),
    modes!("__double2int", "(d)", |w, mode| {
        if w.d().is_nan() { i64::from(i32::MIN) as u64 } else { i64::from(whole(w.d(), mode) as i32) as u64 }
    }),
    modes!("__double2uint", "(d)", |w, mode| {
        if w.d().is_nan() { 1 << 31 } else { u64::from(whole(w.d(), mode) as u32) }
    }),
    modes!("__double2ll", "(d)", |w, mode| long(w.d(), whole(w.d(), mode) as i64 as u64)),
    modes!("__double2ull", "(d)", |w, mode| long(w.d(), whole(w.d(), mode) as u64)),
];

/// Where one of the types has 64 bits, NaN becomes the integer with nothing but its first bit.
fn long(from: f64, converted: u64) -> u64 {
    if from.is_nan() { 1 << 63 } else { converted }
}

#[rustfmt::skip]
const FROM_INTEGERS: [[Expression; 4]; 7] = [
    modes!("__float_as_uint(__int2float", "(b))", |w, mode| single(w.b().into(), 0.0, mode)),
    modes!("__float_as_uint(__uint2float", "(y))", |w, mode| single(w.y.into(), 0.0, mode)),
    modes!("__float_as_uint(__ll2float", "(t))", |w, mode| {
        let (high, low) = parts(w.t().into());
        single(high, low, mode)
    }),
    modes!("__float_as_uint(__ull2float", "(v))", |w, mode| {
        let (high, low) = parts(w.v.into());
        single(high, low, mode)
    }),
    modes!("__double_as_longlong(__ll2double", "(t))", |w, mode| {
        let (high, low) = parts(w.t().into());
        double(high, low, mode)
    }),
    modes!("__double_as_longlong(__ull2double", "(v))", |w, mode| {
        let (high, low) = parts(w.v.into());
        double(high, low, mode)
    }),
    modes!("__float_as_uint(__double2float", "(d))", |w, mode| {
        if w.d().is_nan() { 0x7fff_ffff } else { single(w.d(), 0.0, mode) }
    }),
];

#[rustfmt::skip]
const BITS: &[Expression] = &[
    ("__double_as_longlong(__int2double_rn(b))", |w| f64::from(w.b()).to_bits()),
    ("__double_as_longlong(__uint2double_rn(y))", |w| f64::from(w.y).to_bits()),
    ("__float_as_int(f)", |w| i64::from(w.a()) as u64),
    ("__double2hiint(d)", |w| (w.s() >> 32) as u64),
    ("__double2loint(d)", |w| i64::from(w.s() as i32) as u64),
    ("__double_as_longlong(__hiloint2double(b, a))", |w| {
        u64::from(w.y) << 32 | u64::from(w.x)
    }),
];

#[test]
fn single_precision() {
    check(&SINGLE.concat(), &[], numbers);
}

#[test]
fn double_precision() {
    check(&DOUBLE.concat(), &[], numbers);
}

#[test]
fn conversions() {
    check(&TO_INTEGERS.concat(), &[], numbers_to_convert);
    check(&FROM_INTEGERS.concat(), &[], numbers_to_convert);
    check(BITS, &[], Words::draw);
}
