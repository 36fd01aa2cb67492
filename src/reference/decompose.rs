//! The change of a weight's magnitudes and directions in float64, and how far a kernel may be from
//! it.

use crate::{Decomposition, Norm};

/// ΔM and ΔD (arXiv:2402.09353, §3.2, eqs. 3 and 4) of W `[O, I]` and W + D, by their definitions,
/// 1 − cos being ‖t/‖t‖ − w/‖w‖‖²/2; and bounds on the errors of a kernel's.
///
/// `change_error` bounds, element by element, the error of the kernel's own D: 0 for two dense
/// weights, and for an adapter what the product s·B·A errs by ([`Merged`](super::Merged)). Per
/// feature, with η the Euclidean norm of those bounds, ε = 2⁻⁴⁰ for f64, and φ = πη/(2‖t‖) the most
/// that η turns t:
/// - e(‖t‖) = η + ε(‖d‖ + ‖d‖²/(‖t‖ + ‖w‖));
/// - e(1 − cos) = φ·sin + φ² + ε(‖d‖²/‖t‖² + 1 − cos);
/// - and 2⁻⁴⁸ of ‖w‖, or of ‖d‖/‖w‖, for what this very function cancels.
///
/// Slices that are not of `shape`'s length, or an axis of [`Norm::None`], give NaN.
pub fn decompose(
    shape: [usize; 2],
    axis: Norm,
    weight: &[f64],
    change: &[f64],
    change_error: &[f64],
) -> (Decomposition, Decomposition) {
    let [rows, cols] = shape;
    let lengths = [weight.len(), change.len(), change_error.len()];
    if axis == Norm::None || lengths.iter().any(|&len| len != rows * cols) {
        let nan = Decomposition { magnitude: f64::NAN, direction: f64::NAN };
        return (nan, nan);
    }
    let (features, summed) = if axis == Norm::Input { (cols, rows) } else { (rows, cols) };
    let at = |feature: usize, along: usize| match axis {
        Norm::Input => along * cols + feature,
        _ => feature * cols + along,
    };
    let zero = Decomposition { magnitude: 0.0, direction: 0.0 };
    let (mut sums, mut bounds) = (zero, zero);
    for feature in 0..features {
        let of = |values: &[f64]| -> Vec<f64> {
            (0..summed).map(|along| values[at(feature, along)]).collect()
        };
        let (value, bound) = decompose_feature(&of(weight), &of(change), &of(change_error));
        sums.magnitude += value.magnitude / features as f64;
        sums.direction += value.direction / features as f64;
        bounds.magnitude += bound.magnitude / features as f64;
        bounds.direction += bound.direction / features as f64;
    }
    (sums, bounds)
}

fn decompose_feature(w: &[f64], d: &[f64], error: &[f64]) -> (Decomposition, Decomposition) {
    const SUMS: f64 = 1.0 / (1u64 << 40) as f64;
    const OWN: f64 = 1.0 / (1u64 << 48) as f64;
    let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let t: Vec<f64> = w.iter().zip(d).map(|(w, d)| w + d).collect();
    let [norm_w, norm_t, norm_d, eta] = [norm(w), norm(&t), norm(d), norm(error)];
    let both = norm_w + norm_t;
    let ratio = if both > 0.0 { norm_d * norm_d / both } else { 0.0 };
    let mut value = Decomposition { magnitude: (norm_t - norm_w).abs(), direction: 0.0 };
    let mut bound =
        Decomposition { magnitude: eta + SUMS * (norm_d + ratio) + OWN * norm_w, direction: 0.0 };
    if norm_w > 0.0 && norm_t > 0.0 {
        let apart = w.iter().zip(&t).map(|(w, t)| t / norm_t - w / norm_w).collect::<Vec<_>>();
        value.direction = norm(&apart).powi(2) / 2.0;
        let sine = (value.direction * (2.0 - value.direction)).max(0.0).sqrt();
        let turn = std::f64::consts::FRAC_PI_2 * eta / norm_t;
        bound.direction = turn * sine
            + turn * turn
            + SUMS * ((norm_d / norm_t).powi(2) + value.direction)
            + OWN * norm(&apart);
    }
    (value, bound)
}
