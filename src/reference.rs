//! The DoRA linear layer in plain float64 loops: what every kernel is compared with.
//!
//! [`evaluate`] computes the output and all gradients with the norm detached (the DoRA paper,
//! §4.3); [`bounds`] says how far a kernel may be from them, element by element. Speed is no
//! concern here beyond what tests need.

mod adamw;
mod bounds;
mod decompose;
mod matrix;
mod merge;

pub use adamw::{AdamWState, AdamWStep, Tracked};
pub use bounds::bounds;
pub use decompose::decompose;
pub use merge::{Merged, Weight, merge, unmerge};

use half::{bf16, f16};

use crate::{Dtype, Norm};
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
        check("grad_output", self.grad_output.len(), self.tokens, self.out_features)
    }
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
        Ok(Self {
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

    /// z = (x∘g_in)·Vᵀ `[T,O]`, the output before g_out and the bias.
    fn z(&self) -> Matrix {
        self.x.scale_columns(&self.g_in).times(&self.v.transposed())
    }

    /// D = (dY∘g_out)·V `[T,I]`, the input's gradient before g_in.
    fn d(&self) -> Matrix {
        self.dy.scale_columns(&self.g_out).times(&self.v)
    }
}

/// `value / norm`, and 0 for a feature whose norm is 0.
fn over_norm(value: f64, norm: f64) -> f64 {
    if norm == 0.0 { 0.0 } else { value / norm }
}

/// The output and the gradients of a case, the norm being a constant of the backward.
///
/// With xs = x∘g on the input axis and G = dY∘g on the output axis (x and dY elsewhere):
/// y = (xs·Vᵀ)∘g + b, P = G·(sB), D = G·V, dX = D∘g, dA = (Pᵀx)∘g, dB = s·Gᵀ(xs·Aᵀ),
/// dm = (Σ_t x∘D)/c or (Σ_t dY∘z)/c, db = Σ_t dY. A feature whose norm is 0 has g = 0 and dm = 0.
///
/// # Errors
/// A tensor whose length contradicts the case's shape.
pub fn evaluate(case: &Case) -> Result<Results, CaseError> {
    let parts = Parts::new(case)?;
    Ok(evaluate_parts(case, &parts, &parts.z(), &parts.d()))
}

/// The output alone, `[T,O]`.
///
/// # Errors
/// A tensor whose length contradicts the case's shape.
pub fn forward(case: &Case) -> Result<Vec<f64>, CaseError> {
    let parts = Parts::new(case)?;
    Ok(output(case, &parts, &parts.z()).into_data())
}

fn output(case: &Case, parts: &Parts, z: &Matrix) -> Matrix {
    let y = z.scale_columns(&parts.g_out);
    match &case.bias {
        Some(bias) => y.with_columns(bias, |y, bias| y + bias),
        None => y,
    }
}

fn evaluate_parts(case: &Case, parts: &Parts, z: &Matrix, d: &Matrix) -> Results {
    let Parts { x, a, sb, dy, c, g_in, g_out, .. } = parts;
    let p = dy.scale_columns(g_out).times(sb);
    let h = x.scale_columns(g_in).times(&a.transposed());
    let sums = match case.norm {
        Norm::None => Vec::new(),
        Norm::Input => x.zip(d, |x, d| x * d).column_sums(),
        Norm::Output => dy.zip(z, |dy, z| dy * z).column_sums(),
    };
    Results {
        output: output(case, parts, z).into_data(),
        grad_input: d.scale_columns(g_in).into_data(),
        grad_lora_a: p.transposed().times(x).scale_columns(g_in).into_data(),
        grad_lora_b: dy.transposed().times(&h).scale_rows(g_out).scaled(case.scaling).into_data(),
        grad_magnitude: sums.iter().zip(c).map(|(&sum, &c)| over_norm(sum, c)).collect(),
        grad_bias: dy.column_sums(),
    }
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
