//! `backward`: all gradients of one layer, the norm held constant, in one launch
//! (kernels/backward).

mod sm80;

use std::sync::Arc;

use cudarc::driver::CudaStream;

#[cfg(doc)]
use super::forward::Forward;
use super::forward::need_of_z;
use super::prepared::{Operands, Prepared};
use crate::device::{Arch, Kernel, Kernels, Needs, Tiling, Workspace};
use crate::dropout::{Dropout, DropoutMode};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{During, Result};
use crate::params::backward::BackwardParams;
use crate::spec::{DoraSpec, Norm};
use crate::tensor::{
    Base, ElementType, Need, Placed, Read, Tensors, Write, check_given, matrix, vector,
};

#[doc(hidden)]
pub use sm80::chunks;

/// What becomes of the parameters' gradients (dA, dB, dm and db) that are in their buffers. There
/// is no default: a wrong one would go unnoticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gradients {
    /// They are replaced (`=`): the first micro-batch of an optimizer step.
    Overwrite,
    /// The new ones are added to them (`+=`): the later micro-batches.
    Accumulate,
}

impl Gradients {
    /// The kernels' flag.
    pub(crate) fn accumulate(self) -> i32 {
        i32::from(self == Self::Accumulate)
    }
}

/// Inputs and outputs of [`Kernels::backward`], row-major.
#[derive(Debug)]
pub struct Backward<'a> {
    /// T, the number of tokens, as in the forward; may be 0, which gives zero gradients.
    pub tokens: usize,
    /// Whether dA, dB, dm and db are written or added to. Sums are in f32; the same calls in the
    /// same order give the same bits.
    pub gradients: Gradients,
    /// The frozen layer, as given to the forward.
    pub base: Base<'a>,
    /// x `[T, I]`, as given to the forward.
    pub x: Read<'a>,
    /// y `[T, O]`, as the forward wrote it; needed for norm axis output only, and not with
    /// PEFT's dropout. Its rows may have a stride, as those of x, dY and dX.
    pub output: Option<Read<'a>>,
    /// z `[T, O]`, as the forward wrote it, with PEFT's dropout.
    pub z: Option<Read<'a>>,
    /// The forward's dropout.
    pub dropout: Option<Dropout>,
    /// The forward's counter `[1]`, u64, which must not have changed since; see [`Forward::counter`].
    pub counter: Option<Read<'a>>,
    /// dY `[T, O]`.
    pub grad_output: Read<'a>,
    /// H `[T, R]`, as the forward wrote it.
    pub h: Read<'a>,
    /// dX `[T, I]`, written; `None` for a first layer, whose input needs no gradient.
    pub grad_input: Option<Write<'a>>,
    /// dA `[r, I]`, f32, written or added to.
    pub grad_lora_a: Write<'a>,
    /// dB `[O, r]`, f32, written or added to.
    pub grad_lora_b: Write<'a>,
    /// dm `[I]` or `[O]`, f32, written or added to; `None` for plain LoRA only.
    pub grad_magnitude: Option<Write<'a>>,
    /// db `[O]`, f32, written or added to; `None` where the bias is frozen.
    pub grad_bias: Option<Write<'a>>,
}

impl Kernels {
    /// All gradients of one layer, the norm c held constant, in one launch. With G = dY∘g (norm axis
    /// output) or dY, P = G·(sB) and D = G·W + P·A: dX = D(∘g), dA = (Pᵀx)(∘g), dB = s·(g∘)dYᵀH,
    /// db = Σ_t dY, and dm = (Σ_t x∘D)/c (input) or (Σ_t dY∘z)/c (output), z = x·Vᵀ taken from y.
    /// For a spec with [`NormGrad::Exact`], [`Kernels::norm_gradient`] completes dA and dB once all
    /// micro-batches are through.
    ///
    /// Formulas: the chain rule on the forward; c constant as in DoRA (arXiv:2402.09353) §4.3.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::Dtype`], [`Error::Shape`], [`Error::Stride`],
    /// [`Error::Misaligned`], [`Error::NotPrepared`], [`Error::MissingTensor`],
    /// [`Error::UnexpectedTensor`], [`Error::WorkspaceTooSmall`], [`Error::DeviceLimit`],
    /// [`Error::ContextMismatch`], [`Error::InvalidSpec`] for too many tokens. Afterwards
    /// [`Error::Driver`].
    ///
    /// [`NormGrad::Exact`]: crate::NormGrad::Exact
    pub fn backward(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared,
        workspace: &mut Workspace,
        mut io: Backward<'_>,
    ) -> Result<()> {
        spec.check_tokens(io.tokens)?;
        let dropout = Dropout::mode(io.dropout.as_ref(), spec)?;
        let (tokens, gradients) = (io.tokens, io.gradients);
        let wanted =
            Wanted { grad_input: io.grad_input.is_some(), grad_bias: io.grad_bias.is_some() };
        let plan = match self.arch() {
            Arch::Sm80 => sm80::Plan::new(spec, tokens, self.tiling(), dropout),
        };
        let launch = plan.launch(spec, tokens, wanted);
        let mut t = Tensors::new(self.context(), stream, spec.dtype())?;
        self.check_launch(&launch)?;
        let operands = prepared.read(&mut t, spec)?;
        let scratch = workspace.scratch(&mut t, plan.needs(), tokens)?;
        check_given("z", io.z.is_some(), need_of_z(dropout))?;
        let bias = prepared.has_bias().then_some(operands.bias);
        let of_plan = plan.params(spec, wanted, scratch);
        let params = io.params(&mut t, spec, dropout, (&operands, bias), of_plan)?;
        match (tokens, gradients) {
            (0, Gradients::Accumulate) => Ok(()),
            (0, Gradients::Overwrite) => zero_gradients(&t, spec, &params),
            _ if launch.grid[0] == 0 => Ok(()),
            // SAFETY: the struct is the kernel's, and each address in it was checked.
            _ => unsafe { self.launch(stream, &launch, &params) },
        }
    }
}

/// What a call asks for besides the shapes: it decides which tiles there are.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// dX.
    grad_input: bool,
    /// db.
    grad_bias: bool,
}

impl Backward<'_> {
    /// The kernel's parameters: each tensor is checked here, once.
    fn params<'t>(
        &'t mut self,
        t: &mut Tensors<'t>,
        spec: &DoraSpec,
        dropout: DropoutMode,
        (operands, trained_bias): (&Operands, Option<u64>),
        of_plan: BackwardParams,
    ) -> Result<BackwardParams> {
        let (tokens, inputs, outputs) = (("T", self.tokens), spec.inputs(), spec.outputs());
        let (ranks, f32) = (spec.ranks(), ElementType::F32);
        let x = t.read_rows("x", &self.x, matrix(tokens, inputs))?;
        let grad_output = t.read_rows("grad_output", &self.grad_output, matrix(tokens, outputs))?;
        let output = match (spec.norm(), dropout, &self.output, &self.z) {
            (Norm::Output, DropoutMode::Peft, _, Some(z)) => {
                t.read_rows("z", z, matrix(tokens, outputs))?
            }
            (Norm::Output, _, output, _) => {
                let reason = "with norm axis output the magnitude's gradient is taken from y";
                check_given("output", output.is_some(), Need::Required(reason))?;
                t.read_rows_if_given("output", output, matrix(tokens, outputs))?
            }
            // The kernel takes z from x.
            _ => Placed::default(),
        };
        let grad_input =
            t.write_rows_if_given("grad_input", &mut self.grad_input, matrix(tokens, inputs))?;
        let bias = t.read_vector_if_given("bias", &self.base.bias, outputs)?;
        let need = match spec.norm() {
            Norm::None => Need::Excluded("plain LoRA has no magnitude"),
            Norm::Input | Norm::Output => Need::Required("DoRA trains the magnitude"),
        };
        check_given("grad_magnitude", self.grad_magnitude.is_some(), need)?;
        let [grad_magnitude, grad_bias] = [
            ("grad_magnitude", &mut self.grad_magnitude, spec.magnitudes()),
            ("grad_bias", &mut self.grad_bias, outputs),
        ]
        .map(|(tensor, write, len)| t.write_as_if_given(f32, tensor, write, vector(len)));
        let grad_lora_a =
            t.write_as(f32, "grad_lora_A", &mut self.grad_lora_a, matrix(ranks, inputs))?;
        let grad_lora_b =
            t.write_as(f32, "grad_lora_B", &mut self.grad_lora_b, matrix(outputs, ranks))?;
        let counter = t.counter_if_given(&self.counter)?;
        let only = |norm, address| if spec.norm() == norm { address } else { 0 };
        Ok(BackwardParams {
            grad_output: grad_output.address,
            output: output.address,
            x: x.address,
            weight: t.weight(&self.base.weight, spec)?,
            bias: trained_bias.unwrap_or(bias),
            h: t.read("h", &self.h, matrix(tokens, spec.padded_ranks()))?,
            a: operands.expanded(),
            sb: operands.sb,
            gsb: operands.contracted(),
            unbalance: operands.unbalance(),
            input_gain: only(Norm::Input, operands.gain),
            output_gain: only(Norm::Output, operands.gain),
            norm: operands.norm,
            grad_input: grad_input.address,
            grad_lora_a: grad_lora_a.address,
            grad_lora_b: grad_lora_b.address,
            grad_magnitude: grad_magnitude?,
            grad_bias: grad_bias?,
            dropout: self.dropout.map(|dropout| dropout.kernel(counter)).unwrap_or_default(),
            scaling: spec.scaling(),
            tokens: self.tokens as i32,
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            rank: spec.rank() as i32,
            padded_rank: spec.padded_rank() as i32,
            grad_stride: grad_output.stride,
            output_stride: output.stride,
            x_stride: x.stride,
            grad_input_stride: grad_input.stride,
            peft_dropout: i32::from(dropout == DropoutMode::Peft),
            aligned: t.aligned(),
            accumulate: self.gradients.accumulate(),
            ..of_plan
        })
    }
}

/// Zero gradients of a batch without tokens.
fn zero_gradients(t: &Tensors<'_>, spec: &DoraSpec, params: &BackwardParams) -> Result<()> {
    let (inputs, outputs, rank) = (spec.in_features(), spec.out_features(), spec.rank());
    for (address, len) in [
        (params.grad_lora_a, rank * inputs),
        (params.grad_lora_b, outputs * rank),
        (params.grad_magnitude, spec.magnitude_len()),
        (params.grad_bias, outputs),
    ] {
        if address != 0 && len > 0 {
            // SAFETY: the tensor at the address was checked to have this length.
            unsafe { t.zero(address, len * size_of::<f32>()) }.during("zeroing gradients")?;
        }
    }
    Ok(())
}

/// For any call of up to so many tokens, with dropout or without.
pub(super) fn needs(spec: &DoraSpec, tokens: usize, tiling: Tiling) -> Needs {
    sm80::Plan::new(spec, tokens, tiling, DropoutMode::None).needs()
}

/// The kernel of calls with dropout.
pub(super) fn dropout_kernel(dropout: DropoutMode) -> Kernel {
    sm80::dropout_kernel(dropout)
}

/// The kernels that train a layer of the spec by calls of up to so many tokens without dropout.
pub(super) fn kernels(
    spec: &DoraSpec,
    max_tokens: usize,
    tiling: Tiling,
) -> impl Iterator<Item = Kernel> {
    sm80::kernels(spec, max_tokens, tiling)
}
