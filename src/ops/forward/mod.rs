//! `forward`: the adapted linear layer in one launch (kernels/forward).

mod sm80;

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::prepared::{Operands, Prepared};
use crate::device::{Arch, Kernel, Kernels, Needs, Tiling, Workspace};
use crate::dropout::{Dropout, DropoutMode};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::params::common::Seed;
use crate::params::forward::ForwardParams;
use crate::spec::{DoraSpec, Norm};
use crate::tensor::{Base, Need, Read, Tensors, Write, check_given, matrix};

#[doc(hidden)]
pub use sm80::parts_of_h;

/// Inputs and outputs of [`Kernels::forward`], row-major.
#[derive(Debug)]
pub struct Forward<'a> {
    /// T, the number of tokens; may be 0.
    pub tokens: usize,
    /// The frozen layer: W as given to `prepare`, and b. Where `prepare` was given a bias to train,
    /// the kernel adds that instead of b.
    pub base: Base<'a>,
    /// x `[T, I]`; its rows may have a stride.
    pub x: Read<'a>,
    /// y `[T, O]`, written; its rows may have a stride.
    pub y: Write<'a>,
    /// H = (x∘g)·Aᵀ or x·Aᵀ, `[T, R]`, written: keep it for the backward.
    pub h: Write<'a>,
    /// z `[T, O]`, written, for PEFT's dropout with norm axis output only: keep it for the backward.
    pub z: Option<Write<'a>>,
    /// Dropout of x, in training.
    pub dropout: Option<Dropout>,
    /// Seed of the stochastic rounding of x∘g (norm axis input in 16 bit; otherwise unused). Use
    /// another one each step; the same one gives the same bits.
    pub seed: u64,
    /// For captured graphs: a counter `[1]`, u64, that the kernel reads when it runs. It combines both
    /// seeds with it ([`seed_at`](crate::seed_at)), so that each replay has a mask and a rounding of
    /// its own once the counter has changed: [`Schedule::Counted`](crate::Schedule::Counted) lets the
    /// optimizer's step do that.
    pub counter: Option<Read<'a>>,
}

impl Kernels {
    /// The adapted linear layer: y = (x∘g)·Vᵀ + b (norm axis input), g∘(x·Vᵀ) + b (output), or
    /// x·Vᵀ + b (plain LoRA), with V = W + s·B·A never formed. One launch.
    ///
    /// Error, elementwise against float64: ε|y| + 64u(1 + I/4096)·|g|(|x||W|ᵀ) + ε·s|g|(|x||A|ᵀ)|B|ᵀ
    /// with u = 2⁻²⁴ and ε = 2⁻⁸ (bf16) or 2⁻¹¹ (f16), and 2ε|x∘g||V|ᵀ more for the stochastic
    /// rounding of norm axis input; [`crate::reference::bounds`] has all terms.
    /// Formula: DoRA (arXiv:2402.09353) §4.1, factored.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::Dtype`], [`Error::Shape`], [`Error::Stride`],
    /// [`Error::Misaligned`], [`Error::MissingTensor`], [`Error::UnexpectedTensor`],
    /// [`Error::NotPrepared`], [`Error::WorkspaceTooSmall`], [`Error::DeviceLimit`],
    /// [`Error::ContextMismatch`], [`Error::InvalidSpec`] for too many tokens. Afterwards
    /// [`Error::Driver`].
    pub fn forward(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared,
        workspace: &mut Workspace,
        mut io: Forward<'_>,
    ) -> Result<()> {
        spec.check_tokens(io.tokens)?;
        let dropout = Dropout::mode(io.dropout.as_ref(), spec)?;
        let plan = match self.arch() {
            Arch::Sm80 => sm80::Plan::new(spec, io.tokens, self.tiling(), dropout),
        };
        let launch = plan.launch(spec, io.tokens);
        let mut t = Tensors::new(self.context(), stream, spec.dtype())?;
        self.check_launch(&launch)?;
        let operands = prepared.read(&mut t, spec)?;
        let tokens = io.tokens;
        let scratch = workspace.scratch(&mut t, plan.needs(), tokens)?;
        check_given("z", io.z.is_some(), need_of_z(dropout))?;
        let trains_bias = prepared.has_bias();
        let params = io.params(&mut t, spec, &operands, trains_bias, plan.params(scratch))?;
        if tokens == 0 {
            return Ok(());
        }
        // SAFETY: the struct is the kernel's, and each address in it was checked.
        unsafe { self.launch(stream, &launch, &params) }
    }
}

impl Forward<'_> {
    /// The kernel's parameters: each tensor is checked here, once.
    fn params<'t>(
        &'t mut self,
        t: &mut Tensors<'t>,
        spec: &DoraSpec,
        operands: &Operands,
        trains_bias: bool,
        of_plan: ForwardParams,
    ) -> Result<ForwardParams> {
        let (tokens, inputs, outputs) = (("T", self.tokens), spec.inputs(), spec.outputs());
        let x = t.read_rows("x", &self.x, matrix(tokens, inputs))?;
        let y = t.write_rows("y", &mut self.y, matrix(tokens, outputs))?;
        let bias = t.read_vector_if_given("bias", &self.base.bias, outputs)?;
        let counter = t.counter_if_given(&self.counter)?;
        Ok(ForwardParams {
            x: x.address,
            weight: t.weight(&self.base.weight, spec)?,
            a: operands.a,
            sb: operands.sb,
            bias: if trains_bias { operands.bias } else { bias },
            gain: operands.gain,
            h: t.write("h", &mut self.h, matrix(tokens, spec.padded_ranks()))?,
            z: t.write_if_given("z", &mut self.z, matrix(tokens, outputs))?,
            y: y.address,
            seed: Seed { value: self.seed, counter },
            dropout: self.dropout.map(|dropout| dropout.kernel(counter)).unwrap_or_default(),
            tokens: self.tokens as i32,
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            padded_rank: spec.padded_rank() as i32,
            x_stride: x.stride,
            y_stride: y.stride,
            gain_on_input: i32::from(spec.norm() == Norm::Input),
            aligned: t.aligned(),
            ..of_plan
        })
    }
}

/// Whether the forward keeps z for the backward.
pub(super) const fn need_of_z(dropout: DropoutMode) -> Need {
    match dropout {
        DropoutMode::Peft => {
            Need::Required("PEFT's dropout keeps it from the forward to the backward")
        }
        DropoutMode::None | DropoutMode::Adapter => {
            Need::Excluded("only PEFT's dropout with norm axis output keeps it")
        }
    }
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
