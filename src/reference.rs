//! The DoRA linear layer in plain float64 loops: what every kernel is compared with.
//!
//! [`evaluate`] computes the output and all gradients, with the norm detached (the DoRA paper,
//! §4.3) or not; [`bounds`] says how far a kernel may be from them, element by element. Speed is
//! no concern here beyond what tests need.
//!
//! ```
//! use fused_dora::reference::{Case, evaluate};
//! use fused_dora::{Norm, NormGrad};
//!
//! // Magnitudes that are the norms of W's rows: the layer is x·Wᵀ.
//! let case = Case {
//!     tokens: 1,
//!     in_features: 2,
//!     out_features: 2,
//!     rank: 1,
//!     scaling: 1.0,
//!     norm: Norm::Output,
//!     norm_grad: NormGrad::Exact,
//!     input: vec![1.0, 2.0],
//!     weight: vec![3.0, 4.0, 0.0, 1.0],
//!     bias: None,
//!     lora_a: vec![0.5, -0.5],
//!     lora_b: vec![0.0, 0.0],
//!     magnitude: vec![5.0, 1.0],
//!     grad_output: vec![1.0, 0.0],
//!     dropout: None,
//! };
//! let results = evaluate(&case)?;
//! assert_eq!(results.output, [11.0, 2.0]);
//! assert_eq!(results.grad_magnitude, [11.0 / 5.0, 0.0]);
//! # Ok::<(), fused_dora::reference::CaseError>(())
//! ```

mod adamw;
mod bounds;
mod decompose;
mod matrix;
mod merge;

pub use adamw::{AdamWState, AdamWStep, Tracked};
pub use bounds::{bounds, norm_gradient_bounds};
pub use decompose::decompose;
pub use merge::{Merged, Weight, merge, unmerge};

use half::{bf16, f16};

use crate::params::prepare::{BALANCED_TO, MOST_BALANCE};
use crate::{DropoutForm, Dtype, Norm, NormGrad};
use matrix::Matrix;

/// u, the unit roundoff of f32.
const U: f64 = 1.0 / (1u64 << 24) as f64;

/// One layer's inputs. Matrices are dense and row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// T, the number of tokens; 0 is allowed.
    pub tokens: usize,
    /// I, the columns of the weight.
    pub in_features: usize,
    /// O, the rows of the weight.
    pub out_features: usize,
    /// r, the adapter's rank.
    pub rank: usize,
    /// s, the factor of the low-rank product.
    pub scaling: f64,
    /// The features that have a magnitude, or none for plain LoRA.
    pub norm: Norm,
    /// Whether the gradients of A and B flow through the norm; without one it makes no difference.
    pub norm_grad: NormGrad,
    /// x `[T,I]`.
    pub input: Vec<f64>,
    /// W `[O,I]`.
    pub weight: Vec<f64>,
    /// b `[O]`.
    pub bias: Option<Vec<f64>>,
    /// A `[r,I]`.
    pub lora_a: Vec<f64>,
    /// B `[O,r]`.
    pub lora_b: Vec<f64>,
    /// m: `[I]`, `[O]` or, for plain LoRA, empty.
    pub magnitude: Vec<f64>,
    /// dY `[T,O]`.
    pub grad_output: Vec<f64>,
    /// Dropout of x, or none.
    pub dropout: Option<CaseDropout>,
}

/// A dropout with its mask fixed.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseDropout {
    /// Where it is applied.
    pub form: DropoutForm,
    /// M `[T,I]`: 0 or 1/(1 − p).
    pub mask: Vec<f64>,
}

/// A layer's output and gradients, or a bound on the error of each of their elements.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    /// y `[T,O]`.
    pub output: Vec<f64>,
    /// dX `[T,I]`.
    pub grad_input: Vec<f64>,
    /// dA `[r,I]`.
    pub grad_lora_a: Vec<f64>,
    /// dB `[O,r]`.
    pub grad_lora_b: Vec<f64>,
    /// dm: `[I]`, `[O]` or, for plain LoRA, empty.
    pub grad_magnitude: Vec<f64>,
    /// db `[O]`; computed for a layer without a bias, too.
    pub grad_bias: Vec<f64>,
}

impl Results {
    /// The tensors' names in files and reports, in the order of [`tensors`](Self::tensors).
    pub const NAMES: [&str; 6] =
        ["output", "grad_input", "grad_lora_A", "grad_lora_B", "grad_magnitude", "grad_bias"];

    /// All tensors, in the order of [`NAMES`](Self::NAMES).
    pub fn tensors(&self) -> [&Vec<f64>; 6] {
        let Self { output, grad_input, grad_lora_a, grad_lora_b, grad_magnitude, grad_bias } = self;
        [output, grad_input, grad_lora_a, grad_lora_b, grad_magnitude, grad_bias]
    }

    /// All tensors, in the order of [`NAMES`](Self::NAMES).
    pub fn tensors_mut(&mut self) -> [&mut Vec<f64>; 6] {
        let Self { output, grad_input, grad_lora_a, grad_lora_b, grad_magnitude, grad_bias } = self;
        [output, grad_input, grad_lora_a, grad_lora_b, grad_magnitude, grad_bias]
    }
}

/// A tensor of a [`Case`] whose length contradicts the case's shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "reference case: {tensor} has {found} elements where its shape {rows} × {cols} needs {}",
    .rows.saturating_mul(*.cols)
)]
pub struct CaseError {
    /// The tensor's name.
    pub tensor: &'static str,
    /// The elements that it has.
    pub found: usize,
    /// The rows that it must have.
    pub rows: usize,
    /// The columns that it must have.
    pub cols: usize,
}

impl Case {
    /// Features that have a magnitude: I, O, or 0 for plain LoRA.
    pub fn magnitudes(&self) -> usize {
        match self.norm {
            Norm::None => 0,
            Norm::Input => self.in_features,
            Norm::Output => self.out_features,
        }
    }

    /// The case as the kernels see it: x, W, b and dY rounded to `dtype`, the adapter to f32.
    pub fn rounded(&self, dtype: Dtype) -> Self {
        let round = |values: &Vec<f64>, dtype| values.iter().map(|&v| rounded(v, dtype)).collect();
        Self {
            scaling: rounded(self.scaling, Dtype::F32),
            input: round(&self.input, dtype),
            weight: round(&self.weight, dtype),
            bias: self.bias.as_ref().map(|bias| round(bias, dtype)),
            lora_a: round(&self.lora_a, Dtype::F32),
            lora_b: round(&self.lora_b, Dtype::F32),
            magnitude: round(&self.magnitude, Dtype::F32),
            grad_output: round(&self.grad_output, dtype),
            dropout: self.dropout.clone(),
            ..*self
        }
    }

    /// The shapes of the results, in the order of [`Results::NAMES`].
    pub fn result_shapes(&self) -> [Vec<usize>; 6] {
        let &Self { tokens, in_features, out_features, rank, .. } = self;
        [
            vec![tokens, out_features],
            vec![tokens, in_features],
            vec![rank, in_features],
            vec![out_features, rank],
            vec![self.magnitudes()],
            vec![out_features],
        ]
    }

    /// c, the Euclidean norms of V = W + s·B·A along the case's axis; empty for plain LoRA. Needs
    /// W, A and B only, so that a magnitude can be made from it.
    ///
    /// # Errors
    /// One of those tensors has a length that contradicts the shape.
    pub fn norms(&self) -> Result<Vec<f64>, CaseError> {
        self.check_adapter()?;
        let (_, _, _, v) = self.weights();
        Ok(self.norms_of(&v))
    }

    /// W, A, s·B and V.
    fn weights(&self) -> (Matrix, Matrix, Matrix, Matrix) {
        let w = Matrix::new(self.out_features, self.in_features, self.weight.clone());
        let a = Matrix::new(self.rank, self.in_features, self.lora_a.clone());
        let b = Matrix::new(self.out_features, self.rank, self.lora_b.clone());
        let sb = b.scaled(self.scaling);
        let v = w.plus(&sb.times(&a));
        (w, a, sb, v)
    }

    fn norms_of(&self, v: &Matrix) -> Vec<f64> {
        let squares = v.map(|value| value * value);
        let sums = match self.norm {
            Norm::None => Vec::new(),
            Norm::Input => squares.column_sums(),
            Norm::Output => squares.transposed().column_sums(),
        };
        sums.into_iter().map(f64::sqrt).collect()
    }

    fn check_adapter(&self) -> Result<(), CaseError> {
        let &Self { in_features, out_features, rank, .. } = self;
        check("weight", self.weight.len(), out_features, in_features)?;
        check("lora_A", self.lora_a.len(), rank, in_features)?;
        check("lora_B", self.lora_b.len(), out_features, rank)
    }

    fn check(&self) -> Result<(), CaseError> {
        self.check_adapter()?;
        check("input", self.input.len(), self.tokens, self.in_features)?;
        if let Some(bias) = &self.bias {
            check("bias", bias.len(), self.out_features, 1)?;
        }
        check("magnitude", self.magnitude.len(), self.magnitudes(), 1)?;
        check("grad_output", self.grad_output.len(), self.tokens, self.out_features)?;
        let mask = self.dropout.as_ref().map(|dropout| dropout.mask.len());
        mask.map_or(Ok(()), |len| check("mask", len, self.tokens, self.in_features))
    }

    /// Whether x is dropped as PEFT does, which only norm axis output supports.
    fn drops_as_peft(&self) -> bool {
        let form = self.dropout.as_ref().map(|dropout| dropout.form);
        form == Some(DropoutForm::Peft) && self.norm == Norm::Output
    }
}

/// k of the scales 2ᵏ of g∘s·B and 2⁻ᵏ of A that the kernels take P, dA and dX through. It is 0
/// except in f16, whose least normal number is 2⁻¹⁴. There the largest |s·B|·2ᵏ reaches 2⁻⁶, with k
/// from 0 to 40.
fn balance(case: &Case, dtype: Dtype) -> i32 {
    if dtype != Dtype::F16 {
        return 0;
    }
    let largest = case.lora_b.iter().map(|&b| b as f32).fold(0.0, |most: f32, b| most.max(b.abs()));
    let largest = (case.scaling as f32 * largest).abs();
    if largest == 0.0 {
        return 0;
    }
    let exponent = (largest.to_bits() >> 23) as i32 - 127;
    (-(BALANCED_TO as i32) - exponent).clamp(0, MOST_BALANCE as i32)
}

fn check(tensor: &'static str, found: usize, rows: usize, cols: usize) -> Result<(), CaseError> {
    if rows.checked_mul(cols) == Some(found) {
        return Ok(());
    }
    Err(CaseError { tensor, found, rows, cols })
}

/// What the evaluation and its bounds share. The factor g = m/c acts on the input features or on
/// the output features; the axis it does not act on has ones, so that one set of formulas serves.
struct Parts {
    x: Matrix,
    w: Matrix,
    a: Matrix,
    /// s·B.
    sb: Matrix,
    dy: Matrix,
    /// M, the mask of dropout; ones without it.
    mask: Matrix,
    /// W + s·B·A.
    v: Matrix,
    /// The norms of V; empty for plain LoRA.
    c: Vec<f64>,
    /// g `[I]`, or ones.
    g_in: Vec<f64>,
    /// g `[O]`, or ones.
    g_out: Vec<f64>,
}

impl Parts {
    fn new(case: &Case) -> Result<Self, CaseError> {
        case.check()?;
        let &Case { tokens, in_features, out_features, .. } = case;
        let (w, a, sb, v) = case.weights();
        let c = case.norms_of(&v);
        let g = case.magnitude.iter().zip(&c).map(|(&m, &c)| over_norm(m, c)).collect();
        let (mut g_in, mut g_out) = (vec![1.0; in_features], vec![1.0; out_features]);
        match case.norm {
            Norm::None => {}
            Norm::Input => g_in = g,
            Norm::Output => g_out = g,
        }
        let mask = match &case.dropout {
            Some(dropout) => dropout.mask.clone(),
            None => vec![1.0; tokens * in_features],
        };
        Ok(Self {
            mask: Matrix::new(tokens, in_features, mask),
            x: Matrix::new(tokens, in_features, case.input.clone()),
            w,
            a,
            sb,
            dy: Matrix::new(tokens, out_features, case.grad_output.clone()),
            v,
            c,
            g_in,
            g_out,
        })
    }

    /// xs∘M with xs = x∘g_in: what the adapter sees.
    fn dropped(&self) -> Matrix {
        self.x.scale_columns(&self.g_in).zip(&self.mask, |xs, m| xs * m)
    }

    /// z `[T,O]`, what g_out acts on: xs·Wᵀ + s·(xs∘M)·AᵀBᵀ, or all of it of xs∘M in PEFT's form.
    fn z(&self, case: &Case) -> Matrix {
        let dropped = self.dropped();
        if case.drops_as_peft() {
            return dropped.times(&self.v.transposed());
        }
        let low_rank = dropped.times(&self.a.transposed()).times(&self.sb.transposed());
        self.x.scale_columns(&self.g_in).times(&self.w.transposed()).plus(&low_rank)
    }

    /// D `[T,I]`, the input's gradient before g_in: G·W + (P·A)∘M with G = dY∘g_out, or
    /// dY·W + ((G − dY)·W + P·A)∘M in PEFT's form.
    fn d(&self, case: &Case) -> Matrix {
        let g = self.dy.scale_columns(&self.g_out);
        let low_rank = g.times(&self.sb).times(&self.a);
        let (kept, dropped) = match case.drops_as_peft() {
            true => (&self.dy, g.zip(&self.dy, |g, dy| g - dy).times(&self.w).plus(&low_rank)),
            false => (&g, low_rank),
        };
        kept.times(&self.w).plus(&dropped.zip(&self.mask, |d, m| d * m))
    }

    /// k = dm·m/c², what the gradient through the norm scales V by; empty for plain LoRA.
    fn k(&self, case: &Case, grad_magnitude: &[f64]) -> Vec<f64> {
        let terms = grad_magnitude.iter().zip(&case.magnitude).zip(&self.c);
        terms.map(|((dm, m), c)| over_norm(dm * m, c * c)).collect()
    }
}

/// `matrix [O,I]` times one factor per feature of the norm's axis; zero for plain LoRA.
fn along_norm(case: &Case, matrix: &Matrix, factors: &[f64]) -> Matrix {
    match case.norm {
        Norm::None => matrix.scaled(0.0),
        Norm::Input => matrix.scale_columns(factors),
        Norm::Output => matrix.scale_rows(factors),
    }
}

/// `value / norm`, and 0 for a feature whose norm is 0.
fn over_norm(value: f64, norm: f64) -> f64 {
    if norm == 0.0 { 0.0 } else { value / norm }
}

/// The output and the gradients of a case.
///
/// With xs = x∘g on the input axis and G = dY∘g on the output axis (x and dY elsewhere):
/// y = (xs·Vᵀ)∘g + b, P = G·(sB), D = G·V, dX = D∘g, dA = (Pᵀx)∘g, dB = s·Gᵀ(xs·Aᵀ),
/// dm = (Σ_t x∘D)/c or (Σ_t dY∘z)/c, db = Σ_t dY. A feature whose norm is 0 has g = 0 and dm = 0.
/// With a dropout mask M: see [`DropoutForm`].
/// Where the norm is not a constant of the backward, [`NormGrad::Exact`], its own gradient
/// −dm·m/c² reaches V along V/c: with k = dm·m/c² (0 where c = 0) and V∘k scaled along the norm's
/// axis, dA −= s·Bᵀ(V∘k) and dB −= s·(V∘k)Aᵀ.
///
/// # Errors
/// A tensor whose length contradicts the case's shape.
pub fn evaluate(case: &Case) -> Result<Results, CaseError> {
    let parts = Parts::new(case)?;
    let mut results = detached(case, &parts, &parts.z(case), &parts.d(case));
    if case.norm_grad == NormGrad::Exact {
        let [from_a, from_b] = through_norm(case, &parts, &results.grad_magnitude);
        subtract(&mut results.grad_lora_a, from_a);
        subtract(&mut results.grad_lora_b, from_b);
    }
    Ok(results)
}

fn subtract(values: &mut [f64], amounts: Matrix) {
    values.iter_mut().zip(amounts.into_data()).for_each(|(value, amount)| *value -= amount);
}

/// What the gradient through the norm takes from dA `[r,I]` and dB `[O,r]`, for some dm: the case's
/// x and dY are not used.
///
/// # Errors
/// A tensor whose length contradicts the case's shape.
pub fn norm_gradient(case: &Case, grad_magnitude: &[f64]) -> Result<[Vec<f64>; 2], CaseError> {
    let parts = Parts::new(case)?;
    check("grad_magnitude", grad_magnitude.len(), case.magnitudes(), 1)?;
    Ok(through_norm(case, &parts, grad_magnitude).map(Matrix::into_data))
}

/// The output alone, `[T,O]`.
///
/// # Errors
/// A tensor whose length contradicts the case's shape.
pub fn forward(case: &Case) -> Result<Vec<f64>, CaseError> {
    let parts = Parts::new(case)?;
    Ok(output(case, &parts, &parts.z(case)).into_data())
}

fn output(case: &Case, parts: &Parts, z: &Matrix) -> Matrix {
    let mut y = z.scale_columns(&parts.g_out);
    if case.drops_as_peft() {
        let rest = parts.x.zip(&parts.dropped(), |x, dropped| x - dropped);
        y = y.plus(&rest.times(&parts.w.transposed()));
    }
    match &case.bias {
        Some(bias) => y.with_columns(bias, |y, bias| y + bias),
        None => y,
    }
}

/// The results with the norm as a constant.
fn detached(case: &Case, parts: &Parts, z: &Matrix, d: &Matrix) -> Results {
    let Parts { x, a, sb, dy, c, g_in, g_out, .. } = parts;
    let p = dy.scale_columns(g_out).times(sb);
    let h = parts.dropped().times(&a.transposed());
    let dropped_x = x.zip(&parts.mask, |x, m| x * m);
    let sums = match case.norm {
        Norm::None => Vec::new(),
        Norm::Input => x.zip(d, |x, d| x * d).column_sums(),
        Norm::Output => dy.zip(z, |dy, z| dy * z).column_sums(),
    };
    Results {
        output: output(case, parts, z).into_data(),
        grad_input: d.scale_columns(g_in).into_data(),
        grad_lora_a: p.transposed().times(&dropped_x).scale_columns(g_in).into_data(),
        grad_lora_b: dy.transposed().times(&h).scale_rows(g_out).scaled(case.scaling).into_data(),
        grad_magnitude: sums.iter().zip(c).map(|(&sum, &c)| over_norm(sum, c)).collect(),
        grad_bias: dy.column_sums(),
    }
}

/// What has to be subtracted from dA and dB where the norm is not a constant: s·Bᵀ(V∘k) and
/// s·(V∘k)Aᵀ.
fn through_norm(case: &Case, parts: &Parts, grad_magnitude: &[f64]) -> [Matrix; 2] {
    let kv = along_norm(case, &parts.v, &parts.k(case, grad_magnitude));
    let from_a = parts.sb.transposed().times(&kv);
    let from_b = kv.times(&parts.a.transposed()).scaled(case.scaling);
    [from_a, from_b]
}

/// `value` rounded to nearest, ties to even, in a compute dtype, by way of f32.
pub fn rounded(value: f64, dtype: Dtype) -> f64 {
    let single = value as f32;
    match dtype {
        Dtype::Bf16 => bf16::from_f32(single).to_f64(),
        Dtype::F16 => f16::from_f32(single).to_f64(),
        Dtype::F32 => f64::from(single),
    }
}
