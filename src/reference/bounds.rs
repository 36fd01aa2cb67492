//! How far a kernel's results may be from the float64 reference.

use super::{
    Case, CaseError, Matrix, Parts, Results, U, along_norm, balance, check, detached, over_norm,
    rounded, through_norm,
};
use crate::{Dtype, Norm, NormGrad};

/// The backward takes z from the stored output, as (y − b)/g, only where |g| is at least this …
const RECOVER_G: f64 = 1.0 / 64.0;
/// … and Σ|dY||y| at most this many Σ|dY||y − b|; elsewhere it computes z again.
const RECOVER_MAGNIFIED: f64 = 8.0;
/// Features this close to either limit, relatively, may be on the other side of it in f32.
const RECOVER_SLACK: f64 = 1e-3;

/// A bound on the error of every element of what a kernel computes from `case` in `dtype`,
/// relative to [`evaluate`](super::evaluate) on the same inputs, which the dtype must represent
/// ([`Case::rounded`]).
///
/// Notation: |M| is the matrix of absolute values and Δ(M) the bound on the error of M.
/// acc(n) = 64u(1 + n/4096) bounds an f32 accumulation over n terms, relative to the sum of their
/// absolute values. r(v) = ε|v| + η bounds one rounding to the dtype (ε = 2⁻⁸ bf16, 2⁻¹¹ f16,
/// 2⁻²⁴ f32; η is half a step of the subnormals). A stored result errs by Δ = e + r(|M| + e), where
/// e is its error before it is rounded. δ bounds the relative error of g. An operand M packed in
/// the dtype errs by E(M) = round(M) − M, which is known exactly, up to F(M) where g is part of it
/// and its error may change the rounding. xs = x∘g (axis input) or x, G = dY∘g (axis output) or
/// dY, H = xs·Aᵀ, P = G·(sB). The terms:
///
/// - δ: Σ|V|·64u(|W| + s|B||A|)/c² + acc(n), summed along the norm's axis of n elements; the norm
///   takes A and B as f32, whatever the dtype (as sums of two tf32 numbers, which miss at most
///   2⁻²² = 4u of an f32).
/// - Δ(xs) = 2r(xs) + δ|xs|, x∘g being rounded stochastically to either neighbour (axis input).
/// - H before rounding: acc(I)|xs||A|ᵀ + |xs·E(A)ᵀ|, and Δ(xs)|A|ᵀ.
/// - Δ(z) = acc(I)(|xs||W|ᵀ + |H||sB|ᵀ) + Δ(H)|sB|ᵀ + |H·E(sB)ᵀ| + Δ(H)|E(sB)|ᵀ + Δ(xs)|V|ᵀ; the
///   last term has xs's error on both of its ways, so Δ(H) here leaves it out.
/// - y before rounding: |g|(Δ(z) + δ|z|) on the output axis, Δ(z) elsewhere.
/// - In f16, g·sB, A and P are packed or stored times 2ᵏ, 2⁻ᵏ and 2ᵏ for P and D: r and E of them
///   there are those of the scaled values, scaled back.
/// - P before rounding: acc(O)|G||sB| + |dY·E(g·sB)| + |dY|F(g·sB), without g on the other axes.
/// - Δ(D) = acc(O)(|G||W| + |P||A|) + Δ(P)|A| + |P·E(A)| + Δ(P)|E(A)|, and |E(G)·W| + F(G)|W| on
///   the output axis.
/// - dX before rounding: |g|(Δ(D) + δ|D|) on the input axis, Δ(D) elsewhere.
/// - Δ(dA) = |g|(acc(T)|P| + Δ(P))ᵀ|x| + δ|dA|, with g and δ on the input axis.
/// - Δ(dB) = s|G|ᵀ(acc(T)|H| + Δ(H)) + δ|dB|, with δ on the output axis.
/// - Δ(dm), input axis: Σ_t |x|(acc(T)|D| + Δ(D))/c + δ|dm|.
/// - Δ(dm), output axis: Σ_t |dY|(acc(T)|z| + Δ(z))/c + δ|dm|. For the features whose z is taken
///   back from y, Σ_t |dY|Δ(z) grows by the smaller of Σ_t |dY|r(y)/|g| and, since the backward
///   looks how far y's rounding is magnified, 8ε·Σ_t |dY|(|z| + Δ(y)/|g|); and by 4u of the latter
///   sum for the subtraction.
/// - Δ(db) = acc(T)Σ_t |dY|.
/// - To everything, u|value| is added, for being stored as f32.
///
/// With dropout, xd = xs∘M is rounded: Δ(xd) = M∘Δ(xs) + r(xd). H is of xd instead of xs, and dA of
/// x∘M, which errs by r(x∘M).
///
/// - Adapter form: in Δ(z), Δ(xs)|V|ᵀ becomes Δ(xs)|W|ᵀ + Δ(xd)|A|ᵀ|sB|ᵀ; in Δ(D), all terms of P·A
///   are multiplied by M.
/// - PEFT's form: Δ(z) is of xd instead of xs, and dm takes z as it is stored, so that it has r(z)
///   instead of the recovery's terms. y before rounding has besides acc(I)|x − xd||W|ᵀ + Δ(u)|W|ᵀ with
///   Δ(u) = Δ(xd) + r(x − xd). In Δ(D), G − dY stands for G, all is multiplied by M, and
///   acc(O)|dY||W| is added.
///
/// Where the gradients flow through the norm, dA and dB lose C_A = s·Bᵀ(V∘k) and C_B = s·(V∘k)Aᵀ,
/// which are summed as W's part and the low-rank part. With B' = k∘B on the output axis, A' = A∘k
/// on the input axis (B and A elsewhere), and k the other way round, outside:
///
/// - Δ(k) = (2δ + 4u)|k| + (1 + 2δ + 4u)Δ(dm)|m|/c²: c enters twice, and four operations round.
/// - Δ(C_A) = s|k|(acc(O)|B'|ᵀ|W| + s(acc(O) + acc(r))|B'|ᵀ|B||A|) + s·Δ(k)|BᵀV| (input axis) or
///   s|B|ᵀ(Δ(k)|V|) (output axis); |k| here is |k| + Δ(k). acc has room for the products' factors,
///   which are sums of two tf32 numbers and miss at most 2⁻²² = 4u of an f32.
/// - Δ(C_B) = s|k|(acc(I)|W||A'|ᵀ + s(acc(I) + acc(r))|B||A||A'|ᵀ) + s(Δ(k)|V|)|A|ᵀ or s·Δ(k)|VAᵀ|.
/// - u|dA| and u|dB| are added once more, for the subtraction.
///
/// # Errors
/// A tensor whose length contradicts the case's shape.
pub fn bounds(case: &Case, dtype: Dtype) -> Result<Results, CaseError> {
    let parts = Parts::new(case)?;
    let (z, d) = (parts.z(case), parts.d(case));
    let values = detached(case, &parts, &z, &d);
    let terms = Terms::new(case, &parts, dtype);
    let mut bounds = terms.bounds(&z, &d, &values);
    for (bound, value) in bounds.tensors_mut().into_iter().zip(values.tensors()) {
        bound.iter_mut().zip(value).for_each(|(bound, value)| *bound += U * value.abs());
    }
    if case.norm_grad == NormGrad::Exact {
        let [from_a, from_b] = through_norm(case, &parts, &values.grad_magnitude);
        let [error_a, error_b] = terms.through_norm(&values.grad_magnitude, &bounds.grad_magnitude);
        let subtracted = |bounds: &mut [f64], values: &[f64], amounts: Matrix, errors: Matrix| {
            let terms = values.iter().zip(amounts.into_data()).zip(errors.into_data());
            for (bound, ((value, amount), error)) in bounds.iter_mut().zip(terms) {
                *bound += error + U * (value - amount).abs();
            }
        };
        subtracted(&mut bounds.grad_lora_a, &values.grad_lora_a, from_a, error_a);
        subtracted(&mut bounds.grad_lora_b, &values.grad_lora_b, from_b, error_b);
    }
    Ok(bounds)
}

/// Bounds on the errors of what [`norm_gradient`](super::norm_gradient) takes from dA and dB, for a
/// dm that is itself off by up to `error`. Rounding the differences comes on top: u of each.
///
/// # Errors
/// A tensor whose length contradicts the case's shape.
pub fn norm_gradient_bounds(
    case: &Case,
    dtype: Dtype,
    grad_magnitude: &[f64],
    error: &[f64],
) -> Result<[Vec<f64>; 2], CaseError> {
    let parts = Parts::new(case)?;
    check("grad_magnitude", grad_magnitude.len(), case.magnitudes(), 1)?;
    check("grad_magnitude's error", error.len(), case.magnitudes(), 1)?;
    let terms = Terms::new(case, &parts, dtype);
    Ok(terms.through_norm(grad_magnitude, error).map(Matrix::into_data))
}

/// acc(n): the relative error of an f32 accumulation over `n` terms.
pub(super) fn accumulation(n: usize) -> f64 {
    64.0 * U * (1.0 + n as f64 / 4096.0)
}

/// r(v): the error of one rounding to the dtype of values as large as `v`.
pub(super) fn rounding(v: f64, dtype: Dtype) -> f64 {
    let (epsilon, eta) = match dtype {
        Dtype::Bf16 => (2f64.powi(-8), 2f64.powi(-134)),
        Dtype::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        Dtype::F32 => (U, 0.0),
    };
    epsilon * v.abs() + eta
}

/// δ, the relative error of c and with it of g, per feature of the norm's axis.
fn gain_error(case: &Case, parts: &Parts) -> Vec<f64> {
    let low_rank = parts.sb.abs().times(&parts.a.abs());
    let error = low_rank
        .zip(&parts.w, |low_rank, w| 64.0 * U * (w.abs() + low_rank))
        .zip(&parts.v, |error, v| error * v.abs());
    let (sums, terms) = match case.norm {
        Norm::None => (Vec::new(), 0),
        Norm::Input => (error.column_sums(), case.out_features),
        Norm::Output => (error.transposed().column_sums(), case.in_features),
    };
    let relative = |(sum, &c): (f64, &f64)| over_norm(sum, c * c) + accumulation(terms);
    sums.into_iter().zip(&parts.c).map(relative).collect()
}

/// How operands are packed: times 2ᵏ, in the dtype.
#[derive(Clone, Copy)]
struct Packing {
    dtype: Dtype,
    scale: f64,
}

impl Packing {
    fn scaled(dtype: Dtype, k: i32) -> Self {
        Self { dtype, scale: 2f64.powi(k) }
    }

    /// The nearest value that can be packed.
    fn round(self, v: f64) -> f64 {
        rounded(v * self.scale, self.dtype) / self.scale
    }

    /// r: the error of storing values as large as `v`.
    fn rounding(self, v: f64) -> f64 {
        rounding(v * self.scale, self.dtype) / self.scale
    }
}

/// E and F of a packed operand.
struct Packed {
    error: Matrix,
    doubt: Matrix,
}

impl Packed {
    /// What rounding does to `values`, if the kernel has exactly those.
    fn exactly(values: &Matrix, packing: Packing) -> Self {
        let error = values.map(|v| packing.round(v) - v);
        Self { doubt: error.scaled(0.0), error }
    }

    /// What rounding does to `values`, if the kernel's are anywhere from `low` to `high`: rounding
    /// is monotonic.
    fn between(values: &Matrix, low: &Matrix, high: &Matrix, packing: Packing) -> Self {
        let round = |v| packing.round(v);
        let below = values.zip(low, |v, low| (round(v) - round(low)).abs());
        let above = values.zip(high, |v, high| (round(v) - round(high)).abs());
        Self { doubt: below.zip(&above, f64::max), ..Self::exactly(values, packing) }
    }
}

/// The quantities of [`bounds`]' table that more than one result needs; `x`, `w`, `a`, `sb` and
/// `dy` are absolute values.
struct Terms<'a> {
    case: &'a Case,
    parts: &'a Parts,
    /// Of most operands.
    plain: Packing,
    /// Of g·sB and P.
    up: Packing,
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
    mask: &'a Matrix,
    /// A for H, and for D.
    packed_a: [Packed; 2],
}

impl<'a> Terms<'a> {
    fn new(case: &'a Case, parts: &'a Parts, dtype: Dtype) -> Self {
        let delta = gain_error(case, parts);
        let (mut delta_in, mut delta_out) =
            (vec![0.0; case.in_features], vec![0.0; case.out_features]);
        match case.norm {
            Norm::None => {}
            Norm::Input => delta_in = delta,
            Norm::Output => delta_out = delta,
        }
        let [x, w, a, sb, dy] =
            [&parts.x, &parts.w, &parts.a, &parts.sb, &parts.dy].map(Matrix::abs);
        let abs = |g: &[f64]| g.iter().map(|g| g.abs()).collect();
        let k = balance(case, dtype);
        let [plain, up, down] = [0, k, -k].map(|k| Packing::scaled(dtype, k));
        Self {
            case,
            parts,
            plain,
            up,
            g_in: abs(&parts.g_in),
            delta_in,
            g_out: abs(&parts.g_out),
            delta_out,
            x,
            w,
            a,
            sb,
            dy,
            mask: &parts.mask,
            packed_a: [plain, down].map(|packing| Packed::exactly(&parts.a, packing)),
        }
    }

    fn round(&self, v: f64) -> f64 {
        self.plain.rounding(v)
    }

    /// Δ of a stored value with error `e` before it is rounded.
    fn stored(&self, value: &Matrix, error: &Matrix) -> Matrix {
        value.zip(error, |v, e| e + self.round(v.abs() + e))
    }

    /// δ of the output features on top of what computing g times something else adds.
    fn gain_doubt(&self) -> Vec<f64> {
        self.delta_out.iter().map(|delta| delta + 4.0 * U).collect()
    }

    /// xs and Δ(xs).
    fn xs(&self) -> (Matrix, Matrix) {
        let xs = self.parts.x.scale_columns(&self.parts.g_in);
        let error = match self.case.norm {
            Norm::Input => {
                let error = |xs: f64, delta| 2.0 * self.round(xs) + delta * xs.abs();
                xs.with_columns(&self.delta_in, error)
            }
            Norm::None | Norm::Output => xs.scaled(0.0),
        };
        (xs, error)
    }

    /// Elementwise with the mask of dropout.
    fn masked(&self, matrix: &Matrix) -> Matrix {
        matrix.zip(self.mask, |value, m| value * m)
    }

    /// xd = xs∘M and Δ(xd).
    fn xd(&self, xs: &Matrix, xs_error: &Matrix) -> (Matrix, Matrix) {
        if self.case.dropout.is_none() {
            return (xs.clone(), xs_error.clone());
        }
        let xd = self.masked(xs);
        let error = self.stored(&xd, &self.masked(xs_error));
        (xd, error)
    }

    /// Δ(z), and |H| and Δ(H) for dB.
    fn forward(&self) -> (Matrix, Matrix, Matrix) {
        let sums = accumulation(self.case.in_features);
        let (xs, xs_error) = self.xs();
        let (xd, xd_error) = self.xd(&xs, &xs_error);
        let (a, sb) = (self.a.transposed(), self.sb.transposed());
        let h = xd.times(&self.parts.a.transposed());
        let own = xd.abs().times(&a).scaled(sums);
        let own = own.plus(&xd.times(&self.packed_a[0].error.transposed()).abs());
        let from_xd = xd_error.times(&a);
        let rounded = h.zip(&own.plus(&from_xd), |h, e| self.round(h.abs() + e));
        let h_error = own.plus(&rounded);

        let (base, from_inputs) = match (&self.case.dropout, self.case.drops_as_peft()) {
            (_, true) => (&xd, xd_error.times(&self.parts.v.abs().transposed())),
            (None, _) => (&xs, xs_error.times(&self.parts.v.abs().transposed())),
            (Some(_), false) => {
                (&xs, xs_error.times(&self.w.transposed()).plus(&from_xd.times(&sb)))
            }
        };
        let packed_sb = Packed::exactly(&self.parts.sb, self.plain).error.transposed();
        let z_error = base
            .abs()
            .times(&self.w.transposed())
            .plus(&h.abs().times(&sb))
            .scaled(sums)
            .plus(&h_error.times(&sb))
            .plus(&h.times(&packed_sb).abs())
            .plus(&h_error.times(&packed_sb.abs()))
            .plus(&from_inputs);
        (z_error, h.abs(), h_error.plus(&from_xd))
    }

    /// What x − xd adds to the error of y in PEFT's form.
    fn rest_error(&self) -> Matrix {
        let (xs, xs_error) = self.xs();
        let (xd, xd_error) = self.xd(&xs, &xs_error);
        let rest = xs.zip(&xd, |x, xd| (x - xd).abs());
        let sums = accumulation(self.case.in_features);
        self.stored(&rest, &xd_error).plus(&rest.scaled(sums)).times(&self.w.transposed())
    }

    /// |P| and Δ(P).
    fn low_rank_gradient(&self) -> (Matrix, Matrix) {
        let operand = match self.case.norm {
            Norm::Output => {
                let gsb = self.parts.sb.scale_rows(&self.parts.g_out);
                let [low, high] = [-1.0, 1.0].map(|sign: f64| {
                    let doubt = self.gain_doubt();
                    gsb.scale_rows(&doubt.iter().map(|d| 1.0 + sign * d).collect::<Vec<_>>())
                });
                Packed::between(&gsb, &low, &high, self.up)
            }
            Norm::None | Norm::Input => Packed::exactly(&self.parts.sb, self.up),
        };
        let p = self.parts.dy.scale_columns(&self.parts.g_out).times(&self.parts.sb);
        let error = self
            .dy
            .scale_columns(&self.g_out)
            .times(&self.sb)
            .scaled(accumulation(self.case.out_features))
            .plus(&self.parts.dy.times(&operand.error).abs())
            .plus(&self.dy.times(&operand.doubt));
        let stored = p.zip(&error, |p, e| e + self.up.rounding(p.abs() + e));
        (p.abs(), stored)
    }

    /// Δ(D).
    fn d_error(&self, p: &Matrix, p_error: &Matrix) -> Matrix {
        let sums = accumulation(self.case.out_features);
        let g = self.parts.dy.scale_columns(&self.parts.g_out);
        let signed_p = g.times(&self.parts.sb);
        let low_rank = p
            .times(&self.a)
            .scaled(sums)
            .plus(&p_error.times(&self.a))
            .plus(&signed_p.times(&self.packed_a[1].error).abs())
            .plus(&p_error.times(&self.packed_a[1].error.abs()));
        if self.case.drops_as_peft() {
            let less = g.zip(&self.parts.dy, |g, dy| g - dy);
            let dropped = less.abs().times(&self.w).scaled(sums).plus(&self.packed_grad(&less, &g));
            let kept = self.dy.times(&self.w).scaled(sums);
            return self.masked(&dropped.plus(&low_rank)).plus(&kept);
        }
        let error = g.abs().times(&self.w).scaled(sums).plus(&self.masked(&low_rank));
        match self.case.norm {
            Norm::Output => error.plus(&self.packed_grad(&g, &g)),
            Norm::None | Norm::Input => error,
        }
    }

    /// |E(G)·W| + F(G)|W| for a packed G whose part `scaled` has g in it.
    fn packed_grad(&self, g: &Matrix, scaled: &Matrix) -> Matrix {
        let doubt = scaled.abs().scale_columns(&self.gain_doubt());
        let low = g.zip(&doubt, |g, doubt| g - doubt);
        let high = g.plus(&doubt);
        let packed = Packed::between(g, &low, &high, self.plain);
        packed.error.times(&self.parts.w).abs().plus(&packed.doubt.times(&self.w))
    }

    fn bounds(&self, z: &Matrix, d: &Matrix, values: &Results) -> Results {
        let &Case { tokens, in_features, out_features, rank, norm, .. } = self.case;
        let over_tokens = accumulation(tokens);
        let (z_error, h, h_error) = self.forward();
        let (p, p_error) = self.low_rank_gradient();
        let d_error = self.d_error(&p, &p_error);

        let y = Matrix::new(tokens, out_features, values.output.clone());
        let mut y_error =
            z_error.plus(&z.abs().scale_columns(&self.delta_out)).scale_columns(&self.g_out);
        if self.case.drops_as_peft() {
            y_error = y_error.plus(&self.rest_error());
        }
        let y_error = self.stored(&y, &y_error);
        let dx = Matrix::new(tokens, in_features, values.grad_input.clone());
        let dx_error =
            d_error.plus(&d.abs().scale_columns(&self.delta_in)).scale_columns(&self.g_in);
        let da = Matrix::new(rank, in_features, values.grad_lora_a.clone()).abs();
        // What is dropped is rounded.
        let seen = self.masked(&self.x);
        let seen = match &self.case.dropout {
            Some(_) => self.stored(&seen, &seen.scaled(0.0)).plus(&seen),
            None => seen,
        };
        let seen_error = seen.zip(&self.masked(&self.x), |seen, x| seen - x);
        let da_error = p
            .zip(&p_error, |p, error| over_tokens * (p + error) + error)
            .transposed()
            .times(&seen)
            .plus(&p.transposed().times(&seen_error))
            .scale_columns(&self.g_in)
            .plus(&da.scale_columns(&self.delta_in));
        let db = Matrix::new(out_features, rank, values.grad_lora_b.clone()).abs();
        let db_error = self
            .dy
            .scale_columns(&self.g_out)
            .transposed()
            .times(&h.zip(&h_error, |h, error| over_tokens * (h + error) + error))
            .scaled(self.case.scaling.abs())
            .plus(&db.scale_rows(&self.delta_out));
        let (sums, delta) = match norm {
            Norm::None => (Vec::new(), &self.delta_in),
            Norm::Input => {
                let error = d.zip(&d_error, |d, error| over_tokens * d.abs() + error);
                (self.x.zip(&error, |x, error| x * error).column_sums(), &self.delta_in)
            }
            Norm::Output => {
                let error = z.zip(&z_error, |z, error| over_tokens * z.abs() + error);
                let sums = self.dy.zip(&error, |dy, error| dy * error).column_sums();
                let recovery = match self.case.drops_as_peft() {
                    true => {
                        let stored = z.zip(&z_error, |z, e| self.round(z.abs() + e));
                        self.dy.zip(&stored, |dy, error| dy * error).column_sums()
                    }
                    false => self.recovery_error(z, &y, &y_error),
                };
                let sums = sums.iter().zip(recovery).map(|(sum, recovery)| sum + recovery);
                (sums.collect(), &self.delta_out)
            }
        };
        let dm_error = sums.iter().zip(&self.parts.c).map(|(&sum, &c)| over_norm(sum, c));
        Results {
            output: y_error.into_data(),
            grad_input: self.stored(&dx, &dx_error).into_data(),
            grad_lora_a: da_error.into_data(),
            grad_lora_b: db_error.into_data(),
            grad_magnitude: dm_error
                .zip(delta)
                .zip(&values.grad_magnitude)
                .map(|((error, delta), dm)| error + delta * dm.abs())
                .collect(),
            grad_bias: self.dy.column_sums().iter().map(|sum| over_tokens * sum).collect(),
        }
    }

    /// Δ(C_A) and Δ(C_B): what the gradient through the norm adds to the errors of dA and dB.
    fn through_norm(&self, grad_magnitude: &[f64], dm_error: &[f64]) -> [Matrix; 2] {
        let &Case { in_features, out_features, rank, scaling, norm, .. } = self.case;
        let parts = self.parts;
        let k = parts.k(self.case, grad_magnitude);
        let of_dm = parts.k(self.case, dm_error);
        let delta = if norm == Norm::Input { &self.delta_in } else { &self.delta_out };
        let k_error: Vec<f64> = k
            .iter()
            .zip(&of_dm)
            .zip(delta)
            .map(|((k, of_dm), &delta)| {
                let relative = 2.0 * delta + 4.0 * U;
                relative * k.abs() + (1.0 + relative) * of_dm.abs()
            })
            .collect();
        let k: Vec<f64> = k.iter().zip(&k_error).map(|(k, error)| k.abs() + error).collect();

        // |B'|, |A'|, and the factors outside.
        let (mut left, mut right) = (self.sb.clone(), self.a.clone());
        let (mut k_in, mut k_out) = (vec![1.0; in_features], vec![1.0; out_features]);
        match norm {
            Norm::None => {}
            Norm::Input => (right, k_in) = (right.scale_columns(&k), k),
            Norm::Output => (left, k_out) = (left.scale_rows(&k), k),
        }
        let [over_outputs, over_inputs, over_rank] =
            [out_features, in_features, rank].map(accumulation);
        let low_rank = left.transposed().times(&self.sb).times(&self.a);
        let sum_a = left
            .transposed()
            .times(&self.w)
            .scaled(over_outputs)
            .plus(&low_rank.scaled(over_outputs + over_rank))
            .scale_columns(&k_in);
        let low_rank = self.sb.times(&self.a.times(&right.transposed()));
        let sum_b = self
            .w
            .times(&right.transposed())
            .scaled(over_inputs)
            .plus(&low_rank.scaled(over_inputs + over_rank))
            .scale_rows(&k_out)
            .scaled(scaling.abs());
        let v = along_norm(self.case, &parts.v.abs(), &k_error);
        let (of_k_a, of_k_b) = match norm {
            Norm::Input => {
                let product = parts.sb.transposed().times(&parts.v).abs();
                (product.scale_columns(&k_error), v.times(&self.a.transposed()))
            }
            _ => {
                let product = parts.v.times(&parts.a.transposed()).abs();
                (self.sb.transposed().times(&v), product.scale_rows(&k_error))
            }
        };
        [sum_a.plus(&of_k_a), sum_b.plus(&of_k_b.scaled(scaling.abs()))]
    }

    /// What taking z back from the stored output adds to its error.
    fn recovery_error(&self, z: &Matrix, y: &Matrix, y_error: &Matrix) -> Vec<f64> {
        let recovers = |g: f64| g >= RECOVER_G * (1.0 - RECOVER_SLACK);
        let inverse = |&g: &f64| if recovers(g) { 1.0 / g } else { 0.0 };
        let inverse: Vec<f64> = self.g_out.iter().map(inverse).collect();
        let weighed = |of: &Matrix| self.dy.zip(of, |dy, of| dy * of).column_sums();
        let stored = y.zip(y_error, |y, error| self.round(y.abs() + error));
        let stored = weighed(&stored.scale_columns(&inverse));
        let kept = weighed(&z.abs().plus(&y_error.scale_columns(&inverse)));
        let magnified = RECOVER_MAGNIFIED * (1.0 + RECOVER_SLACK) * self.round(1.0);
        let subnormal = weighed(&y.map(|_| self.round(0.0)).scale_columns(&inverse));
        let terms = stored.iter().zip(&kept).zip(&subnormal).zip(&inverse);
        terms
            .map(|(((stored, kept), subnormal), &inverse)| match inverse {
                0.0 => 0.0,
                _ => stored.min(magnified * kept + subnormal) + 4.0 * U * kept,
            })
            .collect()
    }
}
