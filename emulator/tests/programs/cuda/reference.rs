//! Mathematical functions in double precision that neither Rust nor `libm` has.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI, SQRT_2};

/// `sin(πx)`, whose argument is reduced without an error.
pub fn sin_pi(x: f64) -> f64 {
    if !x.is_finite() {
        return f64::NAN;
    }
    let rest = libm::remainder(x, 2.0);
    if rest == 0.0 || rest.abs() == 1.0 {
        return 0.0_f64.copysign(x);
    }
    // From -1 to 1; folded to where the sine is largest in the middle.
    let folded = if rest.abs() > 0.5 { 1.0_f64.copysign(rest) - rest } else { rest };
    if folded.abs() > 0.25 {
        (PI * (0.5 - folded.abs())).cos().copysign(folded)
    } else {
        (PI * folded).sin()
    }
}

/// `cos(πx)`, whose argument is reduced without an error.
pub fn cos_pi(x: f64) -> f64 {
    if !x.is_finite() {
        return f64::NAN;
    }
    let rest = libm::remainder(x, 2.0).abs();
    if rest == 0.5 {
        return 0.0;
    }
    if rest < 0.25 {
        (PI * rest).cos()
    } else if rest <= 0.75 {
        (PI * (0.5 - rest)).sin()
    } else {
        -(PI * (1.0 - rest)).cos()
    }
}

/// `libm::acosh`, which takes no arguments below one.
pub fn acosh(x: f64) -> f64 {
    if x < 1.0 { f64::NAN } else { libm::acosh(x) }
}

/// The inverse of the error function, which satisfies `erf(y) = x`.
pub fn erf_inverse(x: f64) -> f64 {
    match x.abs() {
        magnitude if magnitude > 0.5 => erfc_inverse(1.0 - magnitude).copysign(x),
        0.0 => x,
        _ => {
            let mut y = x / FRAC_2_SQRT_PI;
            for _ in 0..8 {
                y -= (libm::erf(y) - x) / (FRAC_2_SQRT_PI * (-y * y).exp());
            }
            y
        }
    }
}

/// The inverse of the complementary error function, by Newton's method on logarithms.
pub fn erfc_inverse(x: f64) -> f64 {
    if x.is_nan() || !(0.0..=2.0).contains(&x) {
        return f64::NAN;
    }
    if x == 0.0 {
        return f64::INFINITY;
    }
    if x >= 0.5 {
        return if x > 1.5 { -erfc_inverse(2.0 - x) } else { erf_inverse(1.0 - x) };
    }
    let mut y = (-x.ln()).sqrt();
    for _ in 0..40 {
        let scaled = erfc_scaled(y);
        y += (scaled.ln() - y * y - x.ln()) * scaled / FRAC_2_SQRT_PI;
    }
    y
}

/// `exp(x²) erfc(x)`.
pub fn erfc_scaled(x: f64) -> f64 {
    if x < 10.0 {
        // The square as a sum of two numbers.
        let high = x * x;
        let low = x.mul_add(x, -high);
        return if high.is_infinite() { f64::INFINITY } else { exp_sum(high, low) * libm::erfc(x) };
    }
    let (mut sum, mut term) = (0.0, 1.0);
    for k in 1..60 {
        sum += term;
        let next = -term * f64::from(2 * k - 1) / (2.0 * x * x);
        if next.abs() >= f64::abs(term) || next.abs() < 1e-19 {
            break;
        }
        term = next;
    }
    sum / x * FRAC_2_SQRT_PI / 2.0
}

fn exp_sum(high: f64, low: f64) -> f64 {
    let value = high.exp();
    if value.is_finite() { value + value * low.exp_m1() } else { value }
}

/// The distribution function of the normal distribution.
pub fn normal(x: f64) -> f64 {
    // x / √2 as a sum of two numbers.
    const REST: f64 = -4.833_646_656_726_457e-17;
    let high = x * FRAC_1_SQRT_2;
    if !high.is_finite() || high.abs() > 100.0 {
        return 0.5 * libm::erfc(-high);
    }
    let low = x.mul_add(FRAC_1_SQRT_2, -high) + x * REST;
    0.5 * (libm::erfc(-high) + FRAC_2_SQRT_PI * (-high * high).exp() * low)
}

/// The inverse of [`normal`].
pub fn normal_inverse(p: f64) -> f64 {
    0.0 - SQRT_2 * erfc_inverse(2.0 * p)
}

/// The modified Bessel function of the first kind, of order 0 or 1, by its power series.
pub fn bessel_i(order: u32, x: f64) -> f64 {
    if !x.is_finite() || x.abs() > 750.0 {
        let sign = if order == 1 { x.signum() } else { 1.0 };
        return if x.is_nan() { x } else { f64::INFINITY * sign };
    }
    // Smaller, so that no term overflows.
    const SCALE: f64 = 1.606_938_044_258_990_3e60;
    // The square of x / 2, each term and the sum are sums of two numbers.
    let half = x / 2.0;
    let square = (half * half, half.mul_add(half, -half * half));
    let (mut sum, mut term) = ((0.0, 0.0), (1.0 / SCALE, 0.0));
    for k in 1..2000 {
        let high = sum.0 + term.0;
        let back = high - sum.0;
        let lost = (sum.0 - (high - back)) + (term.0 - back);
        sum = (high, sum.1 + lost + term.1);
        let product = term.0 * square.0;
        let rest = term.0.mul_add(square.0, -product) + term.0 * square.1 + term.1 * square.0;
        let divisor = f64::from(k) * f64::from(k + order);
        let quotient = product / divisor;
        term = (quotient, ((-quotient).mul_add(divisor, product) + rest) / divisor);
        if term.0 < sum.0 * 1e-20 {
            break;
        }
    }
    let sum = (sum.0 + sum.1) * SCALE;
    if order == 1 { sum * half } else { sum }
}
