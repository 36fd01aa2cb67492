//! How far a kernel's results may be from the float64 reference.

use super::{Case, CaseError, Matrix, Parts, Results, evaluate_parts, rounded};
use crate::{Dtype, Norm};

/// u, the unit roundoff of f32.
const U: f64 = 1.0 / (1u64 << 24) as f64;

/// The backward takes z from the stored output, as (y − b)/g, only where |g| is at least this …
const RECOVER_G: f64 = 1.0 / 64.0;
/// … and |b| is at most this many |g|; elsewhere it computes z again.
const RECOVER_BIAS: f64 = 64.0;
/// Features this close to either limit, relatively, may be on the other side of it in f32.
const RECOVER_SLACK: f64 = 1e-3;

/// A bound on the error of every element of what a kernel computes from `case` in `dtype`,
/// relative to [`evaluate`](super::evaluate) on the same inputs.
///
/// Notation: |M| is the matrix of absolute values; acc(n) = 64u(1 + n/4096) bounds an f32
/// accumulation over n terms, relative to the sum of their absolute values; r(v) = ε|v| + η
/// bounds one rounding to the dtype (ε = 2⁻⁸ bf16, 2⁻¹¹ f16, 2⁻²⁴ f32; η is half a step of the
/// subnormals); δ bounds the relative error of g; δA = |A − round(A)| and δB = |sB − round(sB)|
/// are the packed operands' actual errors. H̄ = |xs|·|A|ᵀ, P̄ = |G|·|sB|, with xs = x∘g (input
/// axis) or x, and G = dY∘g (output axis) or dY. The terms:
///
/// - xs: 2r(xs) + δ|xs|, for x∘g rounded stochastically to either neighbour (input axis only).
/// - z: acc(I)(|xs||W|ᵀ + H̄|sB|ᵀ) for the sums, r(H̄)|sB|ᵀ for H's rounding,
///   |xs|δAᵀ|sB|ᵀ + H̄δBᵀ for the packed operands, and xs's error times |V|ᵀ.
/// - y: r(y) for its own rounding, and |g|(z's + δ|z|) on the output axis, z's elsewhere.
/// - G: r(G) + δ|G| (output axis only).
/// - P: r(P̄) for its rounding, acc(O)P̄, and |dY| times the packed operand's error: δB, or
///   r(g·sB) + δ|g·sB| for the output axis's g∘sB.
/// - D: acc(O)(|G||W| + P̄|A|), P's error times |A|, P̄δA, and G's error times |W|.
/// - dX: r(dX) + |g|(D's + δ|D|) on the input axis, r(dX) + D's elsewhere.
/// - dA: |g|(acc(T)P̄ᵀ|x| + P's errorᵀ|x| + δ|Pᵀx|), g on the input axis.
/// - dB: s|G|ᵀ(acc(T)H̄ + H's error) + δ|dB|, where H's error is acc(I)H̄ + r(H̄) + |xs|δAᵀ and
///   xs's error times |A|ᵀ.
/// - dm, input axis: Σ_t |x|(D's error)/c + acc(T)Σ_t |x||D|/c + δ|dm|.
/// - dm, output axis: Σ_t |dY|(z's error)/c + acc(T)Σ_t |dY||z|/c + δ|dm|, with z's error
///   grown by (r(y) + u(|y| + |b|))/|g| + 4u|z| for the features whose z is taken back from y.
/// - db: acc(T)Σ_t |dY|.
/// - δ: Σ|V|(σ·s|B||A| + 64u(|W| + s|B||A|))/c² + acc(n), summed along the norm's axis of n
///   elements; σ = 2⁻¹⁵ where the norm's A and sB are split into two 16-bit parts, 0 in f32.
/// - everything: u|value|, for being stored as f32.
///
/// # Errors
/// A tensor whose length contradicts the case's shape.
pub fn bounds(case: &Case, dtype: Dtype) -> Result<Results, CaseError> {
    let parts = Parts::new(case)?;
    let (z, d) = (parts.z(), parts.d());
    let values = evaluate_parts(case, &parts, &z, &d);
    let delta = gain_error(case, &parts, dtype);
    let mut bounds = Terms::new(case, &parts, dtype, delta).bounds(&z, &d, &values);
    for (bound, value) in bounds.tensors_mut().into_iter().zip(values.tensors()) {
        bound
            .iter_mut()
            .zip(value)
            .for_each(|(bound, value)| *bound += U * value.abs());
    }
    Ok(bounds)
}

/// acc(n): the relative error of an f32 accumulation over `n` terms.
fn accumulation(n: usize) -> f64 {
    64.0 * U * (1.0 + n as f64 / 4096.0)
}

/// r(v): the error of one rounding to the dtype of values as large as `v`.
fn rounding(v: f64, dtype: Dtype) -> f64 {
    let (epsilon, eta) = match dtype {
        Dtype::Bf16 => (2f64.powi(-8), 2f64.powi(-134)),
        Dtype::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        Dtype::F32 => (U, 0.0),
    };
    epsilon * v.abs() + eta
}

/// δ, the relative error of c and with it of g, per feature of the norm's axis.
fn gain_error(case: &Case, parts: &Parts, dtype: Dtype) -> Vec<f64> {
    let split = if dtype == Dtype::F32 {
        0.0
    } else {
        2f64.powi(-15)
    };
    let low_rank = parts.sb.abs().times(&parts.a.abs());
    let error = low_rank
        .zip(&parts.w, |low_rank, w| {
            split * low_rank + 64.0 * U * (w.abs() + low_rank)
        })
        .zip(&parts.v, |error, v| error * v.abs());
    let (sums, terms) = match case.norm {
        Norm::None => (Vec::new(), 0),
        Norm::Input => (error.column_sums(), case.out_features),
        Norm::Output => (error.transposed().column_sums(), case.in_features),
    };
    let relative = |(sum, &c): (f64, &f64)| super::over_norm(sum, c * c) + accumulation(terms);
    sums.into_iter().zip(&parts.c).map(relative).collect()
}

/// The quantities of [`bounds`]' table that more than one result needs.
struct Terms<'a> {
    case: &'a Case,
    parts: &'a Parts,
    dtype: Dtype,
    /// |g| and δ on the input axis; ones and zeros on the other axes.
    g_in: Vec<f64>,
    delta_in: Vec<f64>,
    /// |g| and δ on the output axis; ones and zeros on the other axes.
    g_out: Vec<f64>,
    delta_out: Vec<f64>,
    x: Matrix,
    w: Matrix,
    a: Matrix,
    sb: Matrix,
    dy: Matrix,
    /// δA and δB.
    packed_a: Matrix,
    packed_sb: Matrix,
    /// |xs| and its error.
    xs: Matrix,
    xs_error: Matrix,
    /// |G|.
    g: Matrix,
    /// H̄.
    h: Matrix,
    /// P̄ and the error of P.
    p: Matrix,
    p_error: Matrix,
}

impl<'a> Terms<'a> {
    fn new(case: &'a Case, parts: &'a Parts, dtype: Dtype, delta: Vec<f64>) -> Self {
        let round = |v| rounding(v, dtype);
        let packing = |v: f64| (v - rounded(v, dtype)).abs();
        let (mut delta_in, mut delta_out) =
            (vec![0.0; case.in_features], vec![0.0; case.out_features]);
        match case.norm {
            Norm::None => {}
            Norm::Input => delta_in = delta,
            Norm::Output => delta_out = delta,
        }
        let [x, w, a, sb, dy] =
            [&parts.x, &parts.w, &parts.a, &parts.sb, &parts.dy].map(Matrix::abs);
        let abs = |g: &[f64]| g.iter().map(|g| g.abs()).collect::<Vec<_>>();
        let (g_in, g_out) = (abs(&parts.g_in), abs(&parts.g_out));
        let (packed_a, packed_sb) = (parts.a.map(packing), parts.sb.map(packing));
        let xs = x.scale_columns(&g_in);
        let xs_error = match case.norm {
            Norm::Input => xs.with_columns(&delta_in, |xs, delta| 2.0 * round(xs) + delta * xs),
            Norm::None | Norm::Output => xs.scaled(0.0),
        };
        let g = dy.scale_columns(&g_out);
        let operand_error = match case.norm {
            Norm::Output => {
                let gsb = sb.scale_rows(&g_out);
                gsb.map(round).plus(&gsb.scale_rows(&delta_out))
            }
            Norm::None | Norm::Input => packed_sb.clone(),
        };
        let p = g.times(&sb);
        let p_error = p
            .map(|p| round(p) + accumulation(case.out_features) * p)
            .plus(&dy.times(&operand_error));
        let h = xs.times(&a.transposed());
        Self {
            case,
            parts,
            dtype,
            g_in,
            delta_in,
            g_out,
            delta_out,
            x,
            w,
            a,
            sb,
            dy,
            packed_a,
            packed_sb,
            xs,
            xs_error,
            g,
            h,
            p,
            p_error,
        }
    }

    fn round(&self, v: f64) -> f64 {
        rounding(v, self.dtype)
    }

    fn bounds(&self, z: &Matrix, d: &Matrix, values: &Results) -> Results {
        let (case, parts) = (self.case, self.parts);
        let over_tokens = accumulation(case.tokens);
        let (z_error, d_error) = (self.z_error(), self.d_error());
        let y_error = z_error
            .plus(&z.abs().scale_columns(&self.delta_out))
            .scale_columns(&self.g_out)
            .zip(
                &Matrix::new(case.tokens, case.out_features, values.output.clone()),
                |error, y| error + self.round(y),
            );
        let dx_error = d_error
            .plus(&d.abs().scale_columns(&self.delta_in))
            .scale_columns(&self.g_in)
            .zip(
                &Matrix::new(case.tokens, case.in_features, values.grad_input.clone()),
                |e, dx| e + self.round(dx),
            );
        let da_value = Matrix::new(case.rank, case.in_features, values.grad_lora_a.clone());
        let da_error = self
            .p
            .zip(&self.p_error, |p, error| over_tokens * p + error)
            .transposed()
            .times(&self.x)
            .scale_columns(&self.g_in)
            .plus(&da_value.abs().scale_columns(&self.delta_in));
        let db_value = Matrix::new(case.out_features, case.rank, values.grad_lora_b.clone());
        let db_error = self
            .g
            .transposed()
            .times(
                &self
                    .h
                    .zip(&self.h_error(), |h, error| over_tokens * h + error),
            )
            .scaled(case.scaling.abs())
            .plus(&db_value.abs().scale_rows(&self.delta_out));
        let (sums, delta) = match case.norm {
            Norm::None => (Vec::new(), &self.delta_in),
            Norm::Input => {
                let error = d.zip(&d_error, |d, error| over_tokens * d.abs() + error);
                (
                    self.x.zip(&error, |x, error| x * error).column_sums(),
                    &self.delta_in,
                )
            }
            Norm::Output => {
                let error = z_error.plus(&self.recovery_error(z, values));
                let error = z.zip(&error, |z, error| over_tokens * z.abs() + error);
                (
                    self.dy.zip(&error, |dy, error| dy * error).column_sums(),
                    &self.delta_out,
                )
            }
        };
        let dm_error = sums
            .iter()
            .zip(&parts.c)
            .map(|(&sum, &c)| super::over_norm(sum, c));
        Results {
            output: y_error.into_data(),
            grad_input: dx_error.into_data(),
            grad_lora_a: da_error.into_data(),
            grad_lora_b: db_error.into_data(),
            grad_magnitude: dm_error
                .zip(delta)
                .zip(&values.grad_magnitude)
                .map(|((error, delta), dm)| error + delta * dm.abs())
                .collect(),
            grad_bias: self
                .dy
                .column_sums()
                .iter()
                .map(|sum| over_tokens * sum)
                .collect(),
        }
    }

    fn z_error(&self) -> Matrix {
        let sb = self.sb.transposed();
        let low_rank = self.h.times(&sb);
        let sums = self
            .xs
            .times(&self.w.transposed())
            .plus(&low_rank)
            .scaled(accumulation(self.case.in_features));
        let h = self
            .h
            .map(|h| self.round(h))
            .plus(&self.xs.times(&self.packed_a.transposed()))
            .times(&sb);
        sums.plus(&h)
            .plus(&self.h.times(&self.packed_sb.transposed()))
            .plus(&self.xs_error.times(&self.parts.v.abs().transposed()))
    }

    fn h_error(&self) -> Matrix {
        let own = self
            .h
            .map(|h| accumulation(self.case.in_features) * h + self.round(h));
        own.plus(&self.xs.times(&self.packed_a.transposed()))
            .plus(&self.xs_error.times(&self.a.transposed()))
    }

    fn d_error(&self) -> Matrix {
        let sums = self.g.times(&self.w).plus(&self.p.times(&self.a));
        let error = sums
            .scaled(accumulation(self.case.out_features))
            .plus(&self.p_error.times(&self.a))
            .plus(&self.p.times(&self.packed_a));
        match self.case.norm {
            Norm::Output => {
                let g = self
                    .g
                    .with_columns(&self.delta_out, |g, delta| self.round(g) + delta * g);
                error.plus(&g.times(&self.w))
            }
            Norm::None | Norm::Input => error,
        }
    }

    /// What taking z back from the stored output adds to its error.
    fn recovery_error(&self, z: &Matrix, values: &Results) -> Matrix {
        let zeros = vec![0.0; self.case.out_features];
        let bias: Vec<f64> = self
            .case
            .bias
            .as_ref()
            .unwrap_or(&zeros)
            .iter()
            .map(|b| b.abs())
            .collect();
        let recovers = |g: f64, b: f64| {
            g >= RECOVER_G * (1.0 - RECOVER_SLACK) && b <= RECOVER_BIAS * (1.0 + RECOVER_SLACK) * g
        };
        let inverse: Vec<f64> = self
            .g_out
            .iter()
            .zip(&bias)
            .map(|(&g, &b)| if recovers(g, b) { 1.0 / g } else { 0.0 })
            .collect();
        let y = Matrix::new(
            self.case.tokens,
            self.case.out_features,
            values.output.clone(),
        );
        y.with_columns(&bias, |y, b| self.round(y) + U * (y.abs() + b))
            .scale_columns(&inverse)
            .zip(z, |error, z| error + 4.0 * U * z.abs())
    }
}
