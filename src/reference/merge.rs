//! The merged weight and the way back from it, in float64, and how far a kernel may be from them.

use super::bounds::{accumulation, rounding};
use super::{Case, CaseError, Matrix, U};
use crate::{Dtype, Norm};

/// A weight `[O, I]`, and a bound on the error of every element of a kernel's.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// The weight.
    pub values: Vec<f64>,
    /// The bounds.
    pub bounds: Vec<f64>,
}

/// A merged weight, and what it is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// W'.
    pub weight: Weight,
    /// Δ = W' − W, and the bound on its error before it is added and rounded.
    pub change: Weight,
    /// The part of that bound which the product s·B·A is answerable for.
    pub product_error: Vec<f64>,
}

/// The case's W' = V∘g, Δ = (g − 1)∘W + g∘(s·B·A), for gains `[I]`, `[O]` or, for plain LoRA, none.
///
/// e(Δ) = 64u(1 + r/4096)|g|(s|B||A|) + u(|g − 1||W| + |g||s·B·A| + |Δ|), the products taking A and
/// s·B with all 24 bits of an f32; e(W') = e(Δ) + u|W'|, and r(|W'| + e(W')) for the rounding to `to`
/// as in [`bounds`](super::bounds()).
///
/// # Errors
/// A tensor whose length contradicts the case's shape.
pub fn merge(case: &Case, gain: &[f64], to: Dtype) -> Result<Merged, CaseError> {
    case.check_adapter()?;
    let (w, a, sb, v) = case.weights();
    let low_rank = sb.times(&a);
    let terms = sb.abs().times(&a.abs());
    let ones = w.map(|_| 1.0);
    let g = scaled(case, &ones, gain, |one, g| one * g);
    let merged = v.zip(&g, |v, g| v * g);
    let change = w.zip(&g, |w, g| (g - 1.0) * w).plus(&low_rank.zip(&g, |ba, g| g * ba));
    let product = g.zip(&terms, |g, terms| accumulation(case.rank) * g.abs() * terms);
    let error = product
        .plus(&w.zip(&g, |w, g| U * ((g - 1.0) * w).abs()))
        .plus(&low_rank.zip(&g, |ba, g| U * (g * ba).abs()))
        .plus(&change.map(|change| U * change.abs()));
    let sum_error = error.zip(&merged, |error, merged| error + U * merged.abs());
    let bounds = merged.zip(&sum_error, |merged, e| e + rounding(merged.abs() + e, to));
    Ok(Merged {
        weight: Weight { values: merged.into_data(), bounds: bounds.into_data() },
        change: Weight { values: change.into_data(), bounds: error.into_data() },
        product_error: product.into_data(),
    })
}

/// W = W'/g − s·B·A from a merged weight `[O, I]`, and gains as for [`merge`].
///
/// e(W) = u|W'/g| + 64u(1 + r/4096)s|B||A| + u|W|, and r(|W| + e(W)) for the rounding to `to`. W'
/// itself is taken as it is. Compared with the W that it was made of, the result is also off by the
/// bound of W' over |g|.
///
/// # Errors
/// A tensor whose length contradicts the case's shape.
pub fn unmerge(case: &Case, gain: &[f64], merged: &[f64], to: Dtype) -> Result<Weight, CaseError> {
    case.check_adapter()?;
    super::check("merged", merged.len(), case.out_features, case.in_features)?;
    let (_, a, sb, _) = case.weights();
    let merged = Matrix::new(case.out_features, case.in_features, merged.to_vec());
    let v = scaled(case, &merged, gain, |merged, g| merged / g);
    let w = v.zip(&sb.times(&a), |v, ba| v - ba);
    let terms = sb.abs().times(&a.abs());
    let error = v
        .zip(&terms, |v, terms| U * v.abs() + accumulation(case.rank) * terms)
        .plus(&w.map(|w| U * w.abs()));
    let bounds = w.zip(&error, |w, e| e + rounding(w.abs() + e, to));
    Ok(Weight { values: w.into_data(), bounds: bounds.into_data() })
}

/// Each element combined with its feature's gain.
fn scaled(case: &Case, of: &Matrix, gain: &[f64], f: impl Fn(f64, f64) -> f64) -> Matrix {
    match case.norm {
        Norm::None => of.clone(),
        Norm::Input => of.with_columns(gain, f),
        Norm::Output => of.transposed().with_columns(gain, f).transposed(),
    }
}
