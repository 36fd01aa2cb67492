//! Single precision: the bounds are those of the CUDA C++ Programming Guide, "Mathematical
//! Functions", for correctly rounded results.

use std::f64::consts::PI;

use super::math::{Bound, Domain, Function, check, function};
use super::reference::*;
use Bound::{Absolute, Relative, Ulps, UlpsAt};
use Domain::{All, Only};

#[rustfmt::skip]
fn elementary() -> Vec<Function> {
    vec![
        function("x + y", All(-1e3, 1e3), Ulps(0), |v| v[0] + v[1]),
        function("x - y", All(-1e3, 1e3), Ulps(0), |v| v[0] - v[1]),
        function("x * y", All(-1e3, 1e3), Ulps(0), |v| v[0] * v[1]),
        function("x / y", All(-1e3, 1e3), Ulps(0), |v| v[0] / v[1]),
        function("1 / x", All(-1e3, 1e3), Ulps(0), |v| 1.0 / v[0]),
        function("fdividef(x, y)", All(-1e3, 1e3), Ulps(0), |v| v[0] / v[1]),
        function("fmaf(x, y, z)", All(-1e3, 1e3), Ulps(0), fma),
        function("sqrtf(x)", All(0.0, 1e6), Ulps(0), |v| v[0].sqrt()),
        function("rsqrtf(x)", All(0.0, 1e6), Ulps(2), |v| 1.0 / v[0].sqrt()),
        function("cbrtf(x)", All(-1e6, 1e6), Ulps(1), |v| v[0].cbrt()),
        function("rcbrtf(x)", All(-1e6, 1e6), Ulps(1), |v| 1.0 / v[0].cbrt()),
        function("hypotf(x, y)", All(-1e6, 1e6), Ulps(3), |v| v[0].hypot(v[1])),
        function("rhypotf(x, y)", All(-1e6, 1e6), Ulps(2), |v| 1.0 / v[0].hypot(v[1])),
        function("norm3df(x, y, z)", Only(-1e9, 1e9), Ulps(3), norm),
        function("rnorm3df(x, y, z)", Only(-1e9, 1e9), Ulps(2), |v| 1.0 / norm(v)),
        function("norm4df(x, y, z, w)", Only(-1e9, 1e9), Ulps(3), norm),
        function("rnorm4df(x, y, z, w)", Only(-1e9, 1e9), Ulps(2), |v| 1.0 / norm(v)),
        function("expf(x)", All(-104.0, 89.0), Ulps(2), |v| v[0].exp()),
        function("exp2f(x)", All(-150.0, 128.0), Ulps(2), |v| v[0].exp2()),
        function("exp10f(x)", All(-45.0, 38.6), Ulps(2), |v| libm::exp10(v[0])),
        function("expm1f(x)", All(-20.0, 89.0), Ulps(1), |v| v[0].exp_m1()),
        function("logf(x)", All(0.0, 4.0), Ulps(1), |v| v[0].ln()),
        function("log2f(x)", All(0.0, 4.0), Ulps(1), |v| v[0].log2()),
        function("log10f(x)", All(0.0, 4.0), Ulps(2), |v| v[0].log10()),
        function("log1pf(x)", All(-1.0, 4.0), Ulps(1), |v| v[0].ln_1p()),
        function("sinf(x)", All(-200.0, 200.0), Ulps(2), |v| v[0].sin()),
        function("cosf(x)", All(-200.0, 200.0), Ulps(2), |v| v[0].cos()),
        function("tanf(x)", All(-200.0, 200.0), Ulps(4), |v| v[0].tan()),
        function("sinpif(x)", All(-9.0, 9.0), Ulps(1), |v| sin_pi(v[0])),
        function("cospif(x)", All(-9.0, 9.0), Ulps(1), |v| cos_pi(v[0])),
        function("asinf(x)", All(-1.0, 1.0), Ulps(2), |v| v[0].asin()),
        function("acosf(x)", All(-1.0, 1.0), Ulps(2), |v| v[0].acos()),
        function("atanf(x)", All(-9.0, 9.0), Ulps(2), |v| v[0].atan()),
        function("atan2f(x, y)", All(-9.0, 9.0), Ulps(3), |v| v[0].atan2(v[1])),
        function("sinhf(x)", All(-90.0, 90.0), Ulps(3), |v| v[0].sinh()),
        function("coshf(x)", All(-90.0, 90.0), Ulps(2), |v| v[0].cosh()),
        function("tanhf(x)", All(-9.0, 9.0), Ulps(2), |v| v[0].tanh()),
        function("asinhf(x)", All(-90.0, 90.0), Ulps(3), |v| libm::asinh(v[0])),
        function("acoshf(x)", All(1.0, 90.0), Ulps(4), |v| acosh(v[0])),
        function("atanhf(x)", All(-1.0, 1.0), Ulps(3), |v| libm::atanh(v[0])),
        function("powf(x, y)", All(0.0, 20.0), Ulps(4), |v| v[0].powf(v[1])),
    ]
}

#[rustfmt::skip]
fn special() -> Vec<Function> {
    vec![
        function("erff(x)", All(-4.0, 4.0), Ulps(2), |v| libm::erf(v[0])),
        function("erfcf(x)", All(-4.0, 11.0), Ulps(4), |v| libm::erfc(v[0])),
        function("erfinvf(x)", All(-1.0, 1.0), Ulps(2), |v| erf_inverse(v[0])),
        function("erfcinvf(x)", All(0.0, 2.0), Ulps(4), |v| erfc_inverse(v[0])),
        function("erfcxf(x)", All(-10.0, 90.0), Ulps(4), |v| erfc_scaled(v[0])),
        function("normcdff(x)", All(-15.0, 6.0), Ulps(5), |v| normal(v[0])),
        function("normcdfinvf(x)", All(0.0, 1.0), Ulps(5), |v| normal_inverse(v[0])),
        function("lgammaf(x)", Only(-2.264, 90.0), Ulps(6), |v| libm::lgamma(v[0])),
        function("tgammaf(x)", Only(-30.0, 36.0), Ulps(5), |v| libm::tgamma(v[0])),
        function("j0f(x)", Only(-8.0, 8.0), Ulps(9), |v| libm::j0(v[0])),
        function("j0f(x)", Only(8.0, 1e3), Absolute(2.2e-6), |v| libm::j0(v[0])),
        function("j1f(x)", Only(-8.0, 8.0), Ulps(9), |v| libm::j1(v[0])),
        function("j1f(x)", Only(8.0, 1e3), Absolute(2.2e-6), |v| libm::j1(v[0])),
        function("jnf(128, x)", Only(0.0, 1e3), Absolute(2.2e-6), |v| libm::jn(128, v[0])),
        function("y0f(x)", Only(0.1, 8.0), Ulps(9), |v| libm::y0(v[0])),
        function("y0f(x)", Only(8.0, 1e3), Absolute(2.2e-6), |v| libm::y0(v[0])),
        function("y1f(x)", Only(0.1, 8.0), Ulps(9), |v| libm::y1(v[0])),
        function("y1f(x)", Only(8.0, 1e3), Absolute(2.2e-6), |v| libm::y1(v[0])),
        function("ynf(3, x)", Only(0.1, 3.0), Ulps(10), |v| libm::yn(3, v[0])),
        function("ynf(3, x)", Only(3.0, 1e3), Absolute(2.2e-6), |v| libm::yn(3, v[0])),
        function("cyl_bessel_i0f(x)", All(-91.0, 91.0), Ulps(6), |v| bessel_i(0, v[0])),
        function("cyl_bessel_i1f(x)", All(-91.0, 91.0), Ulps(6), |v| bessel_i(1, v[0])),
    ]
}

/// Functions that are exact.
#[rustfmt::skip]
fn exact() -> Vec<Function> {
    vec![
        function("fmodf(x, y)", All(-1e3, 1e3), Ulps(0), |v| v[0] % v[1]),
        function("remainderf(x, y)", All(-1e3, 1e3), Ulps(0), |v| libm::remainder(v[0], v[1])),
        function("fdimf(x, y)", All(-1e3, 1e3), Ulps(0), |v| libm::fdim(v[0], v[1])),
        function("copysignf(x, y)", All(-1e3, 1e3), Ulps(0), |v| v[0].copysign(v[1])),
        function("fmaxf(x, y)", All(-1e3, 1e3), Ulps(0), maximum),
        function("fminf(x, y)", All(-1e3, 1e3), Ulps(0), |v| -maximum(&[-v[0], -v[1]])),
        function("nextafterf(x, y)", All(-1e3, 1e3), Ulps(0), |v| {
            libm::nextafterf(v[0] as f32, v[1] as f32).into()
        }),
        function("ceilf(x)", All(-9.0, 9.0), Ulps(0), |v| v[0].ceil()),
        function("floorf(x)", All(-9.0, 9.0), Ulps(0), |v| v[0].floor()),
        function("truncf(x)", All(-9.0, 9.0), Ulps(0), |v| v[0].trunc()),
        function("roundf(x)", All(-9.0, 9.0), Ulps(0), |v| v[0].round()),
        function("rintf(x)", All(-9.0, 9.0), Ulps(0), |v| v[0].round_ties_even()),
        function("nearbyintf(x)", All(-9.0, 9.0), Ulps(0), |v| v[0].round_ties_even()),
        function("fabsf(x)", All(-9.0, 9.0), Ulps(0), |v| v[0].abs()),
        function("logbf(x)", All(-9.0, 9.0), Ulps(0), |v| exponent(v[0])),
        function("ldexpf(x, (int)y)", Only(-160.0, 160.0), Ulps(0), |v| {
            v[0] * v[1].trunc().exp2()
        }),
        function("scalbnf(x, (int)y)", Only(-160.0, 160.0), Ulps(0), |v| {
            v[0] * v[1].trunc().exp2()
        }),
        function("__saturatef(x)", All(-1.0, 2.0), Ulps(0), |v| {
            if v[0] > 0.0 { v[0].min(1.0) } else { 0.0 }
        }),
        function("frexpf(x, &e)", Only(-9.0, 9.0), Ulps(0), |v| libm::frexp(v[0]).0),
        function("modff(x, &r)", Only(-9.0, 9.0), Ulps(0), |v| v[0] - v[0].trunc()),
        function("remquof(x, y, &e)", All(-9.0, 9.0), Ulps(0), |v| libm::remainder(v[0], v[1])),
        function("isnan(x) + 2 * isinf(x) + 4 * !!isfinite(x) + 8 * signbit(x)",
            Only(-9.0, 9.0), Ulps(0), |v| if v[0] < 0.0 { 12.0 } else { 4.0 }),
        function("lrintf(x) + llroundf(x) + 2 * lroundf(x) + 2 * llrintf(x)",
            Only(-9.0, 9.0), Ulps(0), |v| 0.0 + 3.0 * (v[0].round() + v[0].round_ties_even())),
    ]
}

/// The fast functions; errors that the guide derives from others are derived here, too.
#[rustfmt::skip]
fn intrinsic() -> Vec<Function> {
    let sine = 2_f64.powf(-21.41);
    vec![
        function("__fdividef(x, y)", Only(-1e15, 1e15), Ulps(2), |v| v[0] / v[1]),
        function("__frsqrt_rn(x)", All(0.0, 9.0), Ulps(0), |v| 1.0 / v[0].sqrt()),
        function("__expf(x)", Only(-87.0, 88.0), UlpsAt(|x| 2 + (1.173 * x).abs() as u64),
            |v| v[0].exp()),
        function("__exp10f(x)", Only(-37.0, 38.0), UlpsAt(|x| 2 + (2.97 * x).abs() as u64),
            |v| libm::exp10(v[0])),
        function("__logf(x)", Only(0.5, 2.0), Absolute(sine), |v| v[0].ln()),
        function("__logf(x)", Only(2.0, 1e9), Ulps(3), |v| v[0].ln()),
        function("__log2f(x)", Only(0.5, 2.0), Absolute(2_f64.powi(-22)), |v| v[0].log2()),
        function("__log2f(x)", Only(2.0, 1e9), Ulps(2), |v| v[0].log2()),
        function("__log10f(x)", Only(0.5, 2.0), Absolute(2_f64.powi(-24)), |v| v[0].log10()),
        function("__log10f(x)", Only(2.0, 1e9), Ulps(3), |v| v[0].log10()),
        function("__sinf(x)", Only(-PI, PI), Absolute(sine), |v| v[0].sin()),
        function("__cosf(x)", Only(-PI, PI), Absolute(sine), |v| v[0].cos()),
        // (sin + e) / (cos + e) where both are at least 0.5.
        function("__tanf(x)", Only(0.53, 1.04), Absolute(6.0 * sine), |v| v[0].tan()),
        // 2 to the power of a product of at most 8 with an error of 2⁻²² in a factor.
        function("__powf(x, y)", Only(0.5, 2.0), Relative(2_f64.powi(-20)),
            |v| v[0].powf(v[1])),
        function("__saturatef(x)", Only(-1.0, 2.0), Ulps(0), |v| v[0].clamp(0.0, 1.0)),
    ]
}

/// What `--use_fast_math` makes of these is as exact as the intrinsics.
#[rustfmt::skip]
fn fast() -> Vec<Function> {
    let sine = 2_f64.powf(-21.41);
    vec![
        function("x / y", Only(-1e15, 1e15), Ulps(2), |v| v[0] / v[1]),
        function("1 / x", Only(-1e15, 1e15), Ulps(1), |v| 1.0 / v[0]),
        function("sqrtf(x)", Only(0.0, 1e15), Ulps(1), |v| v[0].sqrt()),
        function("rsqrtf(x)", Only(0.0, 1e15), Ulps(2), |v| 1.0 / v[0].sqrt()),
        function("expf(x)", Only(-87.0, 88.0), UlpsAt(|x| 2 + (1.173 * x).abs() as u64),
            |v| v[0].exp()),
        function("logf(x)", Only(2.0, 1e9), Ulps(3), |v| v[0].ln()),
        function("log2f(x)", Only(2.0, 1e9), Ulps(2), |v| v[0].log2()),
        function("sinf(x)", Only(-PI, PI), Absolute(sine), |v| v[0].sin()),
        function("cosf(x)", Only(-PI, PI), Absolute(sine), |v| v[0].cos()),
        function("powf(x, y)", Only(0.5, 2.0), Relative(2_f64.powi(-20)), |v| v[0].powf(v[1])),
        function("x * 1e-39f", Only(-1.0, 1.0), Ulps(0), |v| v[0] * 0.0),
    ]
}

fn fma(v: &[f64]) -> f64 {
    (v[0] as f32).mul_add(v[1] as f32, v[2] as f32).into()
}

fn norm(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The larger one. NaN is never it, and a negative zero is less than a positive one.
pub fn maximum(v: &[f64]) -> f64 {
    if v[0] == 0.0 && v[1] == 0.0 {
        return if v[0].is_sign_negative() { v[1] } else { v[0] };
    }
    v[0].max(v[1])
}

/// The exponent of a number.
pub fn exponent(x: f64) -> f64 {
    match x {
        0.0 => f64::NEG_INFINITY,
        x if x.is_infinite() => f64::INFINITY,
        x if x.is_nan() => x,
        x => f64::from(libm::ilogb(x)),
    }
}

#[test]
fn elementary_functions() {
    for options in [&[][..], &["--fmad=false"], &["--device-debug"]] {
        check::<f32>(&elementary(), options);
    }
}

#[test]
fn special_functions() {
    check::<f32>(&special(), &[]);
}

#[test]
fn exact_functions() {
    check::<f32>(&exact(), &[]);
}

#[test]
fn fast_functions() {
    check::<f32>(&intrinsic(), &[]);
    check::<f32>(&fast(), &["--use_fast_math"]);
}
