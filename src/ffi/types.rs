//! The structures of the C API. Enumerations arrive as numbers, so that a wrong one is an error and
//! not undefined; all but that of dropout start from 1, so that one that was forgotten is, too.

use crate::error::{Error, Result};
use crate::{AdamWConfig, AdapterLayout, DoraSpec, OptimizerGroup, Part as AdapterPart, raw};

use super::status::{Failure, given_all};

/// What x, W, the bias, y and their gradients are stored in. Adapters and their gradients are f32.
#[repr(C)]
pub enum Dtype {
    /// bfloat16.
    Bf16 = 1,
    /// IEEE half precision.
    F16 = 2,
    /// IEEE single precision.
    F32 = 3,
}

/// Along which axis of V = W + s·B·A the norm is taken that the magnitude stands against.
#[repr(C)]
pub enum Norm {
    /// Plain LoRA, without a norm and a magnitude.
    None = 1,
    /// One per input feature: the DoRA paper, OneTrainer, LyCORIS.
    Input = 2,
    /// One per output feature: PEFT, torchtune, axolotl, MLX.
    Output = 3,
}

/// Whether the gradients of A and B flow through the norm.
#[repr(C)]
pub enum NormGrad {
    /// The norm is a constant of the backward: the paper's section 4.3, PEFT.
    Detached = 1,
    /// They do: call `fused_dora_norm_gradient` before the optimizer.
    Exact = 2,
}

/// What the number `scaling` of a spec is.
#[repr(C)]
pub enum Scaling {
    /// alpha of s = alpha/r (LoRA).
    Standard = 1,
    /// alpha of s = alpha/sqrt(r) (rsLoRA).
    RankStabilized = 2,
    /// s itself.
    Value = 3,
}

/// What becomes of the parameters' gradients that are in the buffers.
#[repr(C)]
pub enum Gradients {
    /// They are replaced: the first micro-batch of an optimizer step.
    Overwrite = 1,
    /// The new ones are added: the later micro-batches.
    Accumulate = 2,
}

/// Where dropout is applied.
#[repr(C)]
pub enum DropoutForm {
    /// Nowhere.
    None = 0,
    /// In the adapter branch alone.
    Adapter = 1,
    /// As PEFT does it, with norm axis output: needs z.
    Peft = 2,
}

/// A layer of I input and O output features, y = x·W'ᵀ + b, with an adapter of rank r. R below is r
/// rounded up to a multiple of 16, T the number of tokens. All matrices are row-major.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// I.
    pub in_features: usize,
    /// O.
    pub out_features: usize,
    /// r; 0 for none of A and B.
    pub rank: usize,
    /// A `fused_dora_scaling`.
    pub scaling_kind: u32,
    /// alpha, or s.
    pub scaling: f32,
    /// A `fused_dora_norm`.
    pub norm: u32,
    /// A `fused_dora_norm_grad`; with `FUSED_DORA_NORM_NONE`, `FUSED_DORA_NORM_GRAD_DETACHED`.
    pub norm_grad: u32,
    /// A `fused_dora_dtype`.
    pub dtype: u32,
    /// 1 if the bias is trained with the adapter, 0 if it is frozen or absent.
    pub trains_bias: u32,
}

/// Where one of an adapter's tensors lies in its buffer, in f32 elements; of none, the length is 0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// The first element.
    pub start: usize,
    /// How many.
    pub len: usize,
}

/// What a spec asks for in memory.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// R, the row length of H `[T, R]`.
    pub padded_rank: usize,
    /// Bytes of the memory of `fused_dora_layer_open`.
    pub layer_bytes: usize,
    /// Elements of an adapter in one f32 buffer, padding included, and likewise of its gradients
    /// and of an optimizer's moments. This layout is a proposal: the ops take each tensor by its
    /// address.
    pub adapter_len: usize,
    /// A `[r, I]`.
    pub lora_a: Part,
    /// B `[O, r]`.
    pub lora_b: Part,
    /// m `[I]` or `[O]`.
    pub magnitude: Part,
    /// b `[O]`.
    pub bias: Part,
}

/// A row-major matrix on the device.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// Device address of the first element.
    pub pointer: u64,
    /// Elements from the start of a row to that of the next, at least the row's length.
    pub stride: usize,
}

/// Dropout of x; all zero for none.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// A `fused_dora_dropout_form`.
    pub form: u32,
    /// From 0 to 1 − 2⁻¹⁶.
    pub probability: f32,
    /// Another one for each layer and step; the same in the backward as in the forward.
    pub seed: u64,
}

/// Device addresses for `fused_dora_prepare`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PrepareIo {
    /// W `[O, I]`.
    pub weight: u64,
    /// A `[r, I]`, f32; 0 for rank 0.
    pub lora_a: u64,
    /// B `[O, r]`, f32; 0 for rank 0.
    pub lora_b: u64,
    /// m `[I]` or `[O]`, f32; 0 for plain LoRA and where `magnitude_out` is given.
    pub magnitude: u64,
    /// For a fresh adapter: where m, the norm that is found, is written to.
    pub magnitude_out: u64,
    /// b `[O]`, f32, where it is trained.
    pub bias: u64,
}

/// Device addresses for `fused_dora_forward`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ForwardIo {
    /// T.
    pub tokens: usize,
    /// x `[T, I]`.
    pub x: Matrix,
    /// W `[O, I]`.
    pub weight: u64,
    /// The frozen b `[O]`, in the dtype; 0 where there is none, and where it is trained.
    pub bias: u64,
    /// Seed of the stochastic rounding of norm axis input in 16 bit: another one each step.
    pub seed: u64,
    /// Dropout of x.
    pub dropout: Dropout,
    /// z `[T, O]`, written; 0 unless the dropout is PEFT's.
    pub z: u64,
    /// y `[T, O]`, written.
    pub y: Matrix,
    /// H `[T, R]`, in the dtype, written: keep it for the backward; 0 for rank 0.
    pub h: u64,
}

/// Device addresses for `fused_dora_backward`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct BackwardIo {
    /// T.
    pub tokens: usize,
    /// A `fused_dora_gradients`.
    pub gradients: u32,
    /// x `[T, I]`, as given to the forward.
    pub x: Matrix,
    /// W `[O, I]`.
    pub weight: u64,
    /// The frozen b `[O]`, as given to the forward.
    pub bias: u64,
    /// y `[T, O]`, as the forward wrote it; needed for norm axis output, but with PEFT's dropout.
    pub y: Matrix,
    /// z `[T, O]`, as the forward wrote it; 0 unless the dropout is PEFT's.
    pub z: u64,
    /// The forward's dropout.
    pub dropout: Dropout,
    /// dY `[T, O]`.
    pub grad_output: Matrix,
    /// H `[T, R]`, as the forward wrote it.
    pub h: u64,
    /// dX `[T, I]`, written; address 0 where it is not wanted.
    pub grad_input: Matrix,
    /// dA `[r, I]`, f32.
    pub grad_lora_a: u64,
    /// dB `[O, r]`, f32.
    pub grad_lora_b: u64,
    /// dm `[I]` or `[O]`, f32.
    pub grad_magnitude: u64,
    /// db `[O]`, f32; 0 where it is not wanted.
    pub grad_bias: u64,
}

/// Device addresses for `fused_dora_norm_gradient`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct NormGradientIo {
    /// W `[O, I]`.
    pub weight: u64,
    /// A `[r, I]`, f32.
    pub lora_a: u64,
    /// B `[O, r]`, f32.
    pub lora_b: u64,
    /// dm `[I]` or `[O]`, f32, of all micro-batches of the step.
    pub grad_magnitude: u64,
    /// dA `[r, I]`, f32, read and written.
    pub grad_lora_a: u64,
    /// dB `[O, r]`, f32, read and written.
    pub grad_lora_b: u64,
}

/// A range of the optimizer's buffers that is treated alike, in elements.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct OptimizerPart {
    /// The first element; a multiple of 4 is faster.
    pub start: usize,
    /// How many.
    pub len: usize,
    /// What the learning rate is multiplied by: 1, or more for B (LoRA+).
    pub learning_rate_factor: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// What `fused_dora_gradient_norm` takes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct GradientNormIo {
    /// The ranges that count, ascending and disjoint; on the host.
    pub parts: *const OptimizerPart,
    /// How many ranges.
    pub part_count: usize,
    /// Elements of the gradients.
    pub len: usize,
    /// Device address of the gradients, f32.
    pub gradients: u64,
    /// Device address of the norm `[1]`, f32, written.
    pub norm: u64,
}

/// What `fused_dora_adamw` takes: four f32 buffers of one length.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AdamwIo {
    /// The ranges to go through, ascending and disjoint; on the host.
    pub parts: *const OptimizerPart,
    /// How many ranges.
    pub part_count: usize,
    /// 0.9, for example.
    pub beta1: f64,
    /// 0.999, for example.
    pub beta2: f64,
    /// 1e-8, for example.
    pub epsilon: f64,
    /// The learning rate, where `schedule` is 0.
    pub learning_rate: f64,
    /// The number of the step, from 1, where `schedule` is 0.
    pub step: u64,
    /// Device address of the learning rate and the step `[2]`, f32, for captured graphs; or 0.
    pub schedule: u64,
    /// The longest gradient that is left as it is, where `norm` is not 0.
    pub max_norm: f64,
    /// Device address of the gradient's norm `[1]`, f32; 0 for no clipping.
    pub norm: u64,
    /// Elements of each buffer.
    pub len: usize,
    /// Device address of the parameters, updated.
    pub parameters: u64,
    /// Device address of the gradients.
    pub gradients: u64,
    /// Device address of the running mean of the gradient, updated; zero before the first step.
    pub exp_avg: u64,
    /// Device address of that of its square, updated; zero before the first step.
    pub exp_avg_sq: u64,
}

/// Device addresses for `fused_dora_merge`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct MergeIo {
    /// W `[O, I]`.
    pub weight: u64,
    /// A `[r, I]`, f32; 0 for rank 0.
    pub lora_a: u64,
    /// B `[O, r]`, f32; 0 for rank 0.
    pub lora_b: u64,
    /// W' `[O, I]`, written; may be W, if it is of the same dtype.
    pub merged: u64,
    /// A `fused_dora_dtype`: that of W'.
    pub merged_dtype: u32,
    /// `[3]`, f64, written: with D the adapter's change of the weight and E the error of rounding
    /// W', the squared norms of D and E, and their inner product; 0 where they are not wanted.
    pub report: u64,
}

/// Device addresses for `fused_dora_unmerge`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UnmergeIo {
    /// W' `[O, I]`.
    pub merged: u64,
    /// A `fused_dora_dtype`: that of W'.
    pub merged_dtype: u32,
    /// A `[r, I]`, f32; 0 for rank 0.
    pub lora_a: u64,
    /// B `[O, r]`, f32; 0 for rank 0.
    pub lora_b: u64,
    /// W `[O, I]`, written; may be W', if it is of the same dtype.
    pub weight: u64,
}

/// The choice that a number stands for, and what to say if it stands for none.
fn choose<T: Copy>(
    parameter: &'static str,
    number: u32,
    choices: &[(u32, T)],
    requirement: &'static str,
) -> Result<T> {
    let found = choices.iter().find(|(value, _)| *value == number);
    found.map(|(_, choice)| *choice).ok_or_else(|| Error::InvalidSpec {
        parameter,
        value: number.to_string(),
        requirement,
    })
}

pub(super) fn dtype(parameter: &'static str, number: u32) -> Result<crate::Dtype> {
    let choices = [
        (Dtype::Bf16 as u32, crate::Dtype::Bf16),
        (Dtype::F16 as u32, crate::Dtype::F16),
        (Dtype::F32 as u32, crate::Dtype::F32),
    ];
    choose(parameter, number, &choices, "a FUSED_DORA_DTYPE: 1 (bf16), 2 (f16) or 3 (f32)")
}

impl Spec {
    pub(super) fn spec(&self) -> Result<DoraSpec> {
        let norms = [
            (Norm::None as u32, crate::Norm::None),
            (Norm::Input as u32, crate::Norm::Input),
            (Norm::Output as u32, crate::Norm::Output),
        ];
        let grads = [
            (NormGrad::Detached as u32, crate::NormGrad::Detached),
            (NormGrad::Exact as u32, crate::NormGrad::Exact),
        ];
        let scalings = [
            (Scaling::Standard as u32, crate::Scaling::Standard { alpha: self.scaling }),
            (
                Scaling::RankStabilized as u32,
                crate::Scaling::RankStabilized { alpha: self.scaling },
            ),
            (Scaling::Value as u32, crate::Scaling::Value(self.scaling)),
        ];
        let scaling = choose(
            "scaling_kind",
            self.scaling_kind,
            &scalings,
            "a FUSED_DORA_SCALING: 1 (standard), 2 (rank-stabilized) or 3 (value)",
        )?;
        let norm = choose(
            "norm",
            self.norm,
            &norms,
            "a FUSED_DORA_NORM: 1 (none), 2 (input) or 3 (output)",
        )?;
        let norm_grad = choose(
            "norm_grad",
            self.norm_grad,
            &grads,
            "a FUSED_DORA_NORM_GRAD: 1 (detached) or 2 (exact)",
        )?;
        let dtype = dtype("dtype", self.dtype)?;
        DoraSpec::new(
            self.in_features,
            self.out_features,
            self.rank,
            scaling,
            norm,
            norm_grad,
            dtype,
        )
    }

    pub(super) fn trains_bias(&self) -> Result<bool> {
        choose("trains_bias", self.trains_bias, &[(0, false), (1, true)], "0 or 1")
    }

    pub(super) fn sizes(&self) -> Result<Sizes> {
        let (spec, trains_bias) = (self.spec()?, self.trains_bias()?);
        let layout = match trains_bias {
            true => AdapterLayout::with_bias(&spec),
            false => AdapterLayout::new(&spec),
        };
        let part = |part| {
            let range = layout.range(part);
            Part { start: range.start, len: range.len() }
        };
        Ok(Sizes {
            padded_rank: spec.padded_rank(),
            layer_bytes: raw::Prepared::bytes(&spec, trains_bias),
            adapter_len: layout.len(),
            lora_a: part(AdapterPart::LoraA),
            lora_b: part(AdapterPart::LoraB),
            magnitude: part(AdapterPart::Magnitude),
            bias: part(AdapterPart::Bias),
        })
    }
}

impl From<Matrix> for raw::Matrix {
    fn from(Matrix { pointer, stride }: Matrix) -> Self {
        Self { pointer, stride }
    }
}

impl Dropout {
    fn dropout(&self) -> Result<Option<crate::Dropout>> {
        let forms = [
            (DropoutForm::None as u32, None),
            (DropoutForm::Adapter as u32, Some(crate::DropoutForm::Adapter)),
            (DropoutForm::Peft as u32, Some(crate::DropoutForm::Peft)),
        ];
        let form = choose(
            "the dropout form",
            self.form,
            &forms,
            "a FUSED_DORA_DROPOUT_FORM: 0 (none), 1 (adapter) or 2 (peft)",
        )?;
        form.map(|form| crate::Dropout::new(self.probability, form, self.seed)).transpose()
    }
}

impl PrepareIo {
    pub(super) fn raw(&self) -> raw::Prepare {
        let &Self { weight, lora_a, lora_b, magnitude, magnitude_out, bias } = self;
        raw::Prepare { weight, lora_a, lora_b, magnitude, magnitude_out, bias }
    }
}

impl ForwardIo {
    pub(super) fn raw(&self) -> Result<raw::Forward> {
        Ok(raw::Forward {
            tokens: self.tokens,
            x: self.x.into(),
            weight: self.weight,
            bias: self.bias,
            seed: self.seed,
            dropout: self.dropout.dropout()?,
            z: self.z,
            y: self.y.into(),
            h: self.h,
        })
    }
}

impl BackwardIo {
    pub(super) fn raw(&self) -> Result<raw::Backward> {
        let gradients = [
            (Gradients::Overwrite as u32, crate::Gradients::Overwrite),
            (Gradients::Accumulate as u32, crate::Gradients::Accumulate),
        ];
        Ok(raw::Backward {
            tokens: self.tokens,
            gradients: choose(
                "gradients",
                self.gradients,
                &gradients,
                "a FUSED_DORA_GRADIENTS: 1 (overwrite) or 2 (accumulate)",
            )?,
            x: self.x.into(),
            weight: self.weight,
            bias: self.bias,
            output: self.y.into(),
            z: self.z,
            dropout: self.dropout.dropout()?,
            grad_output: self.grad_output.into(),
            h: self.h,
            grad_input: self.grad_input.into(),
            grad_lora_a: self.grad_lora_a,
            grad_lora_b: self.grad_lora_b,
            grad_magnitude: self.grad_magnitude,
            grad_bias: self.grad_bias,
        })
    }
}

impl NormGradientIo {
    pub(super) fn raw(&self) -> raw::NormGradient {
        let &Self { weight, lora_a, lora_b, grad_magnitude, grad_lora_a, grad_lora_b } = self;
        raw::NormGradient { weight, lora_a, lora_b, grad_magnitude, grad_lora_a, grad_lora_b }
    }
}

impl MergeIo {
    pub(super) fn raw(&self) -> Result<raw::Merge> {
        let &Self { weight, lora_a, lora_b, merged, merged_dtype, report } = self;
        let merged_dtype = dtype("merged_dtype", merged_dtype)?;
        Ok(raw::Merge { weight, lora_a, lora_b, merged, merged_dtype, report })
    }
}

impl UnmergeIo {
    pub(super) fn raw(&self) -> Result<raw::Unmerge> {
        let &Self { merged, merged_dtype, lora_a, lora_b, weight } = self;
        let merged_dtype = dtype("merged_dtype", merged_dtype)?;
        Ok(raw::Unmerge { merged, merged_dtype, lora_a, lora_b, weight })
    }
}

/// The optimizer's parts.
///
/// # Safety
/// Unless it is null or not aligned, the pointer is of that many.
pub(super) unsafe fn parts(
    pointer: *const OptimizerPart,
    count: usize,
) -> Result<Vec<crate::OptimizerPart>, Failure> {
    // SAFETY: passed on to the caller.
    let parts = unsafe { given_all("parts", pointer, count) }?;
    let part = |part: &OptimizerPart| crate::OptimizerPart {
        range: part.start..part.start.saturating_add(part.len),
        group: OptimizerGroup {
            learning_rate_factor: part.learning_rate_factor,
            weight_decay: part.weight_decay,
        },
    };
    Ok(parts.iter().map(part).collect())
}

impl AdamwIo {
    pub(super) fn config(&self) -> AdamWConfig {
        AdamWConfig { beta1: self.beta1, beta2: self.beta2, epsilon: self.epsilon }
    }

    pub(super) fn raw<'a>(&self, parts: &'a [crate::OptimizerPart]) -> raw::AdamW<'a> {
        let (learning_rate, step) = (self.learning_rate, self.step);
        let schedule = match self.schedule {
            0 => raw::Schedule::Host { learning_rate, step },
            numbers => raw::Schedule::Device(numbers),
        };
        let (max_norm, norm) = (self.max_norm, self.norm);
        raw::AdamW {
            parts,
            schedule,
            clip: (norm != 0).then_some(raw::Clip { max_norm, norm }),
            len: self.len,
            parameters: self.parameters,
            gradients: self.gradients,
            exp_avg: self.exp_avg,
            exp_avg_sq: self.exp_avg_sq,
        }
    }
}
