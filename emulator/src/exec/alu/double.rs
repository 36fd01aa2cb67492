//! Arithmetic in f64 with directed rounding, by exact integers.
//!
//! A value is a mantissa of up to 128 bits and a power of two; what does not fit is remembered as
//! one sticky bit, which is all that rounding needs to know. Rounding to nearest is left to the
//! processor.

use crate::program::Rounding;

/// Bits of a f64's mantissa, the hidden one included.
const DIGITS: i32 = 53;
/// The exponent of the least subnormal.
const LEAST: i32 = -1074;

/// A positive real number, or zero: `mantissa * 2^exponent`, and whether it is a little more.
#[derive(Clone, Copy, Debug)]
struct Real {
    mantissa: u128,
    exponent: i32,
    sticky: bool,
}

impl Real {
    /// The magnitude of a finite value.
    fn of(value: f64) -> Self {
        let bits = value.to_bits();
        let (field, fraction) = ((bits >> 52 & 0x7ff) as i32, u128::from(bits & ((1 << 52) - 1)));
        let (mantissa, exponent) =
            if field == 0 { (fraction, LEAST) } else { (fraction | 1 << 52, field - 1 + LEAST) };
        Self { mantissa, exponent, sticky: false }
    }

    fn digits(self) -> i32 {
        128 - self.mantissa.leading_zeros() as i32
    }

    /// The same number with its mantissa shifted to the left; what falls off at the right sticks.
    fn shifted(self, left: i32) -> Self {
        let Self { mantissa, exponent, sticky } = self;
        let exponent = exponent - left;
        if mantissa == 0 {
            return Self { mantissa, exponent, sticky };
        }
        if left >= 0 {
            return Self { mantissa: mantissa << left, exponent, sticky };
        }
        let right = -left as u32;
        let kept = mantissa.checked_shr(right).unwrap_or(0);
        let lost = right >= 128 || mantissa & ((1 << right) - 1) != 0;
        Self { mantissa: kept, exponent, sticky: sticky || lost }
    }

    /// The same number with a mantissa of that many digits.
    fn with_digits(self, digits: i32) -> Self {
        if self.mantissa == 0 { self } else { self.shifted(digits - self.digits()) }
    }

    /// The f64 next to the number in the direction of the mode.
    fn round(self, negative: bool, rounding: Rounding) -> f64 {
        let exponent = if self.mantissa == 0 {
            LEAST
        } else {
            (self.exponent + self.digits() - DIGITS).max(LEAST)
        };
        let kept = self.shifted(self.exponent - exponent);
        let away = match rounding {
            Rounding::Down => negative,
            Rounding::Up => !negative,
            _ => false,
        };
        // The hidden bit adds one to the exponent's field; so may the carry.
        let field = u64::from((exponent - LEAST) as u32).min(0x7ff) << 52;
        let bits = field + kept.mantissa as u64 + u64::from(kept.sticky && away);
        let magnitude = match bits < f64::INFINITY.to_bits() {
            true => f64::from_bits(bits),
            false if away => f64::INFINITY,
            false => f64::MAX,
        };
        if negative { -magnitude } else { magnitude }
    }
}

/// `a + b` of signed numbers.
fn sum((a, a_negative): (Real, bool), (b, b_negative): (Real, bool), rounding: Rounding) -> f64 {
    const ROOM: i32 = 126;
    let (a, b) = (a.with_digits(ROOM), b.with_digits(ROOM));
    let key = |x: Real| (x.mantissa != 0, x.exponent, x.mantissa);
    let swap = key(a) < key(b);
    let (large, small) = if swap { (b, a) } else { (a, b) };
    let negative = if swap { b_negative } else { a_negative };
    if small.mantissa == 0 {
        let zero = large.mantissa == 0;
        let negative = match zero && a_negative != b_negative {
            true => rounding == Rounding::Down,
            false => negative,
        };
        return large.round(negative, rounding);
    }
    let small = small.shifted(small.exponent - large.exponent);
    let result = match a_negative == b_negative {
        true => Real { mantissa: large.mantissa + small.mantissa, ..small },
        // What sticks is taken away, too: borrow for it, and less than that comes back.
        false => {
            let borrowed = small.mantissa + u128::from(small.sticky);
            Real { mantissa: large.mantissa - borrowed, ..small }
        }
    };
    let cancelled = result.mantissa == 0 && !result.sticky;
    let negative = if cancelled { rounding == Rounding::Down } else { negative };
    result.round(negative, rounding)
}

fn signed(value: f64) -> (Real, bool) {
    (Real::of(value), value.is_sign_negative())
}

fn product(a: f64, b: f64) -> (Real, bool) {
    let (x, y) = (Real::of(a), Real::of(b));
    let mantissa = x.mantissa * y.mantissa;
    let real = Real { mantissa, exponent: x.exponent + y.exponent, sticky: false };
    (real, a.is_sign_negative() != b.is_sign_negative())
}

/// `a + b`.
pub(crate) fn add(a: f64, b: f64, rounding: Rounding) -> f64 {
    if !a.is_finite() || !b.is_finite() || rounding == Rounding::Nearest {
        return a + b;
    }
    sum(signed(a), signed(b), rounding)
}

/// `a * b`.
pub(crate) fn mul(a: f64, b: f64, rounding: Rounding) -> f64 {
    if !a.is_finite() || !b.is_finite() || rounding == Rounding::Nearest {
        return a * b;
    }
    let (real, negative) = product(a, b);
    real.round(negative, rounding)
}

/// `a * b + c`, rounded once.
pub(crate) fn fma(a: f64, b: f64, c: f64, rounding: Rounding) -> f64 {
    let finite = a.is_finite() && b.is_finite() && c.is_finite();
    if !finite || rounding == Rounding::Nearest {
        return a.mul_add(b, c);
    }
    sum(product(a, b), signed(c), rounding)
}

/// `a / b`.
pub(crate) fn div(a: f64, b: f64, rounding: Rounding) -> f64 {
    if !a.is_finite() || !b.is_finite() || b == 0.0 || rounding == Rounding::Nearest {
        return a / b;
    }
    let (x, y) = (Real::of(a).with_digits(127), Real::of(b));
    let (mantissa, rest) = (x.mantissa / y.mantissa, x.mantissa % y.mantissa);
    let real = Real { mantissa, exponent: x.exponent - y.exponent, sticky: rest != 0 };
    real.round(a.is_sign_negative() != b.is_sign_negative(), rounding)
}

/// The square root of `a`.
pub(crate) fn sqrt(a: f64, rounding: Rounding) -> f64 {
    if !a.is_finite() || a <= 0.0 || rounding == Rounding::Nearest {
        return a.sqrt();
    }
    let x = Real::of(a).with_digits(126);
    let x = x.shifted(x.exponent & 1);
    let mantissa = x.mantissa.isqrt();
    let sticky = mantissa * mantissa != x.mantissa;
    Real { mantissa, exponent: x.exponent / 2, sticky }.round(false, rounding)
}

/// An integer.
pub(crate) fn of_integer(value: i128, rounding: Rounding) -> f64 {
    if rounding == Rounding::Nearest {
        return value as f64;
    }
    let real = Real { mantissa: value.unsigned_abs(), exponent: 0, sticky: false };
    real.round(value < 0, rounding)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers whose results are on both sides of a f64, at all magnitudes.
    fn numbers() -> impl Iterator<Item = f64> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Fields close together, so that sums cancel; now and then anything at all.
            let field = if state.is_multiple_of(4) { state >> 53 } else { 1000 + (state >> 58) };
            f64::from_bits(state << 63 | (field % 0x7ff) << 52 | state & ((1 << 52) - 1))
        })
    }

    /// Rounding down and up must give the two neighbours of what is between them.
    fn check(nearest: f64, directed: impl Fn(Rounding) -> f64) {
        let (down, up) = (directed(Rounding::Down), directed(Rounding::Up));
        if nearest.is_infinite() {
            let (inner, outer) = if nearest > 0.0 { (down, up) } else { (up, down) };
            assert_eq!((inner.abs(), outer), (f64::MAX, nearest));
        } else {
            assert!(down == nearest || up == nearest, "{down:e} {nearest:e} {up:e}");
            assert!(up == down || up == down.next_up(), "{down:e} {nearest:e} {up:e}");
        }
        let zero = directed(Rounding::Zero);
        assert_eq!(zero, if nearest < 0.0 || up <= 0.0 { up } else { down });
    }

    #[test]
    fn directed_results_surround_the_nearest() {
        let mut numbers = numbers();
        for _ in 0..20_000 {
            let [a, b, c] = std::array::from_fn(|_| numbers.next().expect("without end"));
            check(a + b, |r| add(a, b, r));
            check(a * b, |r| mul(a, b, r));
            check(a.mul_add(b, c), |r| fma(a, b, c, r));
            check(a / b, |r| div(a, b, r));
            check(a.abs().sqrt(), |r| sqrt(a.abs(), r));
        }
    }

    #[test]
    fn exact_results_stay() {
        for rounding in [Rounding::Down, Rounding::Up, Rounding::Zero] {
            assert_eq!(add(1.5, 2.25, rounding), 3.75);
            assert_eq!(mul(1.5, -2.5, rounding), -3.75);
            assert_eq!(fma(3.0, 5.0, -15.0, rounding), 0.0);
            assert_eq!(div(-7.5, 2.5, rounding), -3.0);
            assert_eq!(sqrt(6.25, rounding), 2.5);
            assert_eq!(of_integer(-(1 << 60), rounding), -(2_f64.powi(60)));
            assert_eq!(mul(f64::MIN_POSITIVE, 0.5, rounding), f64::MIN_POSITIVE / 2.0);
        }
    }

    #[test]
    fn what_is_lost_rounds_away() {
        let tiny = f64::from_bits(1);
        assert_eq!(add(1.0, tiny, Rounding::Up), 1.0_f64.next_up());
        assert_eq!(add(1.0, -tiny, Rounding::Zero), 1.0_f64.next_down());
        assert_eq!(mul(tiny, tiny, Rounding::Up), tiny);
        assert_eq!(mul(tiny, -tiny, Rounding::Up), -0.0);
        assert_eq!(fma(f64::MAX, f64::MAX, -tiny, Rounding::Zero), f64::MAX);
        assert_eq!(add(f64::MAX, f64::MAX, Rounding::Down), f64::MAX);
        assert_eq!(add(f64::MAX, f64::MAX, Rounding::Up), f64::INFINITY);
        assert!(add(1.0, -1.0, Rounding::Down).is_sign_negative());
        assert!(add(1.0, -1.0, Rounding::Up).is_sign_positive());
    }
}
