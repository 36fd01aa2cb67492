//! Double precision: the bounds are those of the CUDA C++ Programming Guide, "Mathematical
//! Functions". The references are in double precision themselves and have errors of their own.

use super::float::{exponent, maximum};
use super::math::{Bound, Domain, Function, check, function};
use super::reference::*;
use Bound::{Absolute, Ulps};
use Domain::{All, Only};

#[rustfmt::skip]
fn elementary() -> Vec<Function> {
    vec![
        function("rsqrt(x)", All(0.0, 1e6), Ulps(1), |v| 1.0 / v[0].sqrt()).slack(1),
        function("cbrt(x)", All(-1e6, 1e6), Ulps(1), |v| libm::cbrt(v[0])).slack(1),
        function("rcbrt(x)", All(-1e6, 1e6), Ulps(1), |v| 1.0 / libm::cbrt(v[0])).slack(1),
        function("hypot(x, y)", All(-1e6, 1e6), Ulps(2), |v| v[0].hypot(v[1])).slack(1),
        function("rhypot(x, y)", Only(-1e6, 1e6), Ulps(1), |v| 1.0 / v[0].hypot(v[1])).slack(2),
        function("norm3d(x, y, z)", Only(-1e99, 1e99), Ulps(2), norm).slack(2),
        function("rnorm3d(x, y, z)", Only(-1e99, 1e99), Ulps(1), |v| 1.0 / norm(v)).slack(2),
        function("norm4d(x, y, z, w)", Only(-1e99, 1e99), Ulps(2), norm).slack(2),
        function("rnorm4d(x, y, z, w)", Only(-1e99, 1e99), Ulps(1), |v| 1.0 / norm(v)).slack(2),
        function("exp(x)", All(-746.0, 710.0), Ulps(1), |v| v[0].exp()).slack(1),
        function("exp2(x)", All(-1076.0, 1024.0), Ulps(1), |v| v[0].exp2()).slack(1),
        function("exp10(x)", All(-325.0, 308.3), Ulps(1), |v| libm::exp10(v[0])).slack(2),
        function("expm1(x)", All(-40.0, 710.0), Ulps(1), |v| v[0].exp_m1()).slack(1),
        function("log(x)", All(0.0, 4.0), Ulps(1), |v| v[0].ln()).slack(1),
        function("log2(x)", All(0.0, 4.0), Ulps(1), |v| v[0].log2()).slack(1),
        function("log10(x)", All(0.0, 4.0), Ulps(1), |v| v[0].log10()).slack(1),
        function("log1p(x)", All(-1.0, 4.0), Ulps(1), |v| v[0].ln_1p()).slack(1),
        function("sin(x)", All(-200.0, 200.0), Ulps(2), |v| v[0].sin()).slack(1),
        function("cos(x)", All(-200.0, 200.0), Ulps(2), |v| v[0].cos()).slack(1),
        function("tan(x)", All(-200.0, 200.0), Ulps(2), |v| v[0].tan()).slack(1),
        function("sinpi(x)", All(-9.0, 9.0), Ulps(2), |v| sin_pi(v[0])).slack(2),
        function("cospi(x)", All(-9.0, 9.0), Ulps(2), |v| cos_pi(v[0])).slack(2),
        function("asin(x)", All(-1.0, 1.0), Ulps(2), |v| v[0].asin()).slack(1),
        function("acos(x)", All(-1.0, 1.0), Ulps(2), |v| v[0].acos()).slack(1),
        function("atan(x)", All(-9.0, 9.0), Ulps(2), |v| v[0].atan()).slack(1),
        function("atan2(x, y)", All(-9.0, 9.0), Ulps(2), |v| v[0].atan2(v[1])).slack(1),
        function("sinh(x)", All(-711.0, 711.0), Ulps(2), |v| libm::sinh(v[0])).slack(2),
        function("cosh(x)", All(-711.0, 711.0), Ulps(1), |v| libm::cosh(v[0])).slack(2),
        function("tanh(x)", All(-20.0, 20.0), Ulps(1), |v| libm::tanh(v[0])).slack(2),
        function("asinh(x)", All(-90.0, 90.0), Ulps(3), |v| libm::asinh(v[0])).slack(2),
        function("acosh(x)", All(1.0, 90.0), Ulps(3), |v| acosh(v[0])).slack(2),
        function("atanh(x)", All(-1.0, 1.0), Ulps(2), |v| libm::atanh(v[0])).slack(2),
        function("pow(x, y)", All(0.0, 99.0), Ulps(2), |v| v[0].powf(v[1])).slack(1),
    ]
}

#[rustfmt::skip]
fn special() -> Vec<Function> {
    vec![
        function("erf(x)", All(-6.0, 6.0), Ulps(2), |v| libm::erf(v[0])).slack(1),
        function("erfc(x)", All(-6.0, 28.0), Ulps(5), |v| libm::erfc(v[0])).slack(1),
        function("erfinv(x)", All(-1.0, 1.0), Ulps(5), |v| erf_inverse(v[0])).slack(4),
        function("erfcinv(x)", All(0.0, 2.0), Ulps(6), |v| erfc_inverse(v[0])).slack(4),
        function("erfcx(x)", All(-26.0, 90.0), Ulps(4), |v| erfc_scaled(v[0])).slack(4),
        function("normcdf(x)", All(-38.0, 9.0), Ulps(5), |v| normal(v[0])).slack(4),
        function("normcdfinv(x)", All(0.0, 1.0), Ulps(8), |v| normal_inverse(v[0])).slack(4),
        function("lgamma(x)", Only(-2.2637, 90.0), Ulps(4), |v| libm::lgamma(v[0])).slack(4),
        function("tgamma(x)", Only(-20.0, 171.0), Ulps(10), |v| libm::tgamma(v[0])).slack(4),
        function("j0(x)", Only(-1.5, 1.5), Ulps(7), |v| libm::j0(v[0])).slack(2),
        function("j0(x)", Only(8.0, 1e3), Absolute(5e-12), |v| libm::j0(v[0])),
        function("j1(x)", Only(-2.0, 2.0), Ulps(7), |v| libm::j1(v[0])).slack(2),
        function("j1(x)", Only(8.0, 1e3), Absolute(5e-12), |v| libm::j1(v[0])),
        function("jn(128, x)", Only(0.0, 1e3), Absolute(5e-12), |v| libm::jn(128, v[0])),
        function("y0(x)", Only(1.5, 3.0), Ulps(7), |v| libm::y0(v[0])).slack(2),
        function("y0(x)", Only(8.0, 1e3), Absolute(5e-12), |v| libm::y0(v[0])),
        function("y1(x)", Only(0.1, 1.5), Ulps(7), |v| libm::y1(v[0])).slack(2),
        function("y1(x)", Only(8.0, 1e3), Absolute(5e-12), |v| libm::y1(v[0])),
        function("yn(3, x)", Only(4.5, 1e3), Absolute(5e-12), |v| libm::yn(3, v[0])),
        function("cyl_bessel_i0(x)", All(-713.0, 713.0), Ulps(6), |v| bessel_i(0, v[0])).slack(1),
        function("cyl_bessel_i1(x)", All(-713.0, 713.0), Ulps(6), |v| bessel_i(1, v[0])).slack(1),
    ]
}

/// Functions that are exact, and arithmetic.
#[rustfmt::skip]
fn exact() -> Vec<Function> {
    vec![
        function("x + y", All(-1e3, 1e3), Ulps(0), |v| v[0] + v[1]),
        function("x - y", All(-1e3, 1e3), Ulps(0), |v| v[0] - v[1]),
        function("x * y", All(-1e3, 1e3), Ulps(0), |v| v[0] * v[1]),
        function("x / y", All(-1e3, 1e3), Ulps(0), |v| v[0] / v[1]),
        function("1 / x", All(-1e3, 1e3), Ulps(0), |v| 1.0 / v[0]),
        function("sqrt(x)", All(0.0, 1e6), Ulps(0), |v| v[0].sqrt()),
        function("fma(x, y, z)", All(-1e3, 1e3), Ulps(0), |v| v[0].mul_add(v[1], v[2])),
        function("fmod(x, y)", All(-1e3, 1e3), Ulps(0), |v| v[0] % v[1]),
        function("remainder(x, y)", All(-1e3, 1e3), Ulps(0), |v| libm::remainder(v[0], v[1])),
        function("fdim(x, y)", All(-1e3, 1e3), Ulps(0), |v| libm::fdim(v[0], v[1])),
        function("copysign(x, y)", All(-1e3, 1e3), Ulps(0), |v| v[0].copysign(v[1])),
        function("fmax(x, y)", All(-1e3, 1e3), Ulps(0), maximum),
        function("fmin(x, y)", All(-1e3, 1e3), Ulps(0), |v| -maximum(&[-v[0], -v[1]])),
        function("nextafter(x, y)", All(-1e3, 1e3), Ulps(0), |v| libm::nextafter(v[0], v[1])),
        function("ceil(x)", All(-9.0, 9.0), Ulps(0), |v| v[0].ceil()),
        function("floor(x)", All(-9.0, 9.0), Ulps(0), |v| v[0].floor()),
        function("trunc(x)", All(-9.0, 9.0), Ulps(0), |v| v[0].trunc()),
        function("round(x)", All(-9.0, 9.0), Ulps(0), |v| v[0].round()),
        function("rint(x)", All(-9.0, 9.0), Ulps(0), |v| v[0].round_ties_even()),
        function("fabs(x)", All(-9.0, 9.0), Ulps(0), |v| v[0].abs()),
        function("logb(x)", All(-9.0, 9.0), Ulps(0), |v| exponent(v[0])),
        function("ldexp(x, (int)y)", Only(-160.0, 160.0), Ulps(0), |v| {
            v[0] * v[1].trunc().exp2()
        }),
        function("frexp(x, &e)", Only(-9.0, 9.0), Ulps(0), |v| libm::frexp(v[0]).0),
        function("modf(x, &r)", Only(-9.0, 9.0), Ulps(0), |v| v[0] - v[0].trunc()),
        function("remquo(x, y, &e)", All(-9.0, 9.0), Ulps(0), |v| libm::remainder(v[0], v[1])),
        function("isnan(x) + 2 * isinf(x) + 4 * !!isfinite(x) + 8 * !!signbit(x)",
            Only(-9.0, 9.0), Ulps(0), |v| if v[0] < 0.0 { 12.0 } else { 4.0 }),
        function("lrint(x) + llround(x) + 2 * lround(x) + 2 * llrint(x)",
            Only(-9.0, 9.0), Ulps(0), |v| 0.0 + 3.0 * (v[0].round() + v[0].round_ties_even())),
    ]
}

fn norm(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn elementary_functions() {
    for options in [&[][..], &["--fmad=false"], &["--device-debug"]] {
        check::<f64>(&elementary(), options);
    }
}

#[test]
fn special_functions() {
    check::<f64>(&special(), &[]);
}

#[test]
fn exact_functions() {
    check::<f64>(&exact(), &[]);
}
