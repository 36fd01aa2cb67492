//! The backward of one layer: its tensors, their checks, and both ops in one call.

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView, CudaViewMut};

use crate::error::{During, Error, Result};
use crate::kernels::Kernels;
use crate::prepare::{Prepared, check_magnitude_len};
use crate::spec::{DoraSpec, Element, Norm, check_len};
use crate::workspace::Workspace;

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

/// Inputs and outputs of the backward, row-major and contiguous.
#[derive(Debug)]
pub struct Backward<'a, E> {
    /// T, the number of tokens, as in the forward; may be 0, which gives zero gradients.
    pub tokens: usize,
    /// Whether dA, dB, dm and db are written or added to. Sums are in f32; the same calls in the
    /// same order give the same bits.
    pub gradients: Gradients,
    /// x `[T, I]`, as given to the forward.
    pub x: CudaView<'a, E>,
    /// W `[O, I]`, as given to the forward.
    pub weight: CudaView<'a, E>,
    /// b `[O]`, as given to the forward.
    pub bias: Option<CudaView<'a, E>>,
    /// y `[T, O]`, as the forward wrote it; needed for norm axis output only.
    pub output: Option<CudaView<'a, E>>,
    /// dY `[T, O]`.
    pub grad_output: CudaView<'a, E>,
    /// H `[T, R]`, as the forward wrote it.
    pub h: CudaView<'a, E>,
    /// dX `[T, I]`, written; `None` for a first layer, whose input needs no gradient.
    pub grad_input: Option<CudaViewMut<'a, E>>,
    /// dA `[r, I]`, written or added to.
    pub grad_lora_a: CudaViewMut<'a, f32>,
    /// dB `[O, r]`, written or added to.
    pub grad_lora_b: CudaViewMut<'a, f32>,
    /// dm `[I]` or `[O]`, written or added to; `None` for plain LoRA only.
    pub grad_magnitude: Option<CudaViewMut<'a, f32>>,
    /// db `[O]`, written or added to; `None` where the bias is frozen.
    pub grad_bias: Option<CudaViewMut<'a, f32>>,
}

impl<E: Element> Backward<'_, E> {
    pub(crate) fn check(&self, kernels: &Kernels, spec: &DoraSpec) -> Result<()> {
        spec.check_tokens(self.tokens)?;
        self.check_contexts(kernels)?;
        let tokens = ("T", self.tokens);
        let (inputs, outputs) = (("I", spec.in_features()), ("O", spec.out_features()));
        let (rank, one) = (("r", spec.rank()), ("1", 1));
        check_len("x", self.x.len(), tokens, inputs)?;
        check_len("weight", self.weight.len(), outputs, inputs)?;
        if let Some(bias) = &self.bias {
            check_len("bias", bias.len(), one, outputs)?;
        }
        match (&self.output, spec.norm()) {
            (Some(output), _) => check_len("output", output.len(), tokens, outputs)?,
            (None, Norm::Output) => {
                let reason = "with norm axis output the magnitude's gradient is taken from y";
                return Err(Error::MissingTensor { tensor: "output", reason });
            }
            (None, _) => {}
        }
        check_len("grad_output", self.grad_output.len(), tokens, outputs)?;
        check_len("h", self.h.len(), tokens, ("R", spec.padded_rank()))?;
        if let Some(grad_input) = &self.grad_input {
            check_len("grad_input", grad_input.len(), tokens, inputs)?;
        }
        check_len("grad_lora_A", self.grad_lora_a.len(), rank, inputs)?;
        check_len("grad_lora_B", self.grad_lora_b.len(), outputs, rank)?;
        match (&self.grad_magnitude, spec.norm()) {
            (None, Norm::None) => {}
            (Some(_), Norm::None) => {
                let reason = "plain LoRA has no magnitude";
                return Err(Error::UnexpectedTensor { tensor: "grad_magnitude", reason });
            }
            (Some(grad), _) => check_magnitude_len("grad_magnitude", spec, grad.len())?,
            (None, _) => {
                let reason = "DoRA trains the magnitude";
                return Err(Error::MissingTensor { tensor: "grad_magnitude", reason });
            }
        }
        if let Some(grad) = &self.grad_bias {
            check_len("grad_bias", grad.len(), one, outputs)?;
        }
        Ok(())
    }

    fn check_contexts(&self, kernels: &Kernels) -> Result<()> {
        for input in [&self.x, &self.weight, &self.grad_output, &self.h] {
            kernels.check_buffer(input)?;
        }
        for input in [&self.bias, &self.output].into_iter().flatten() {
            kernels.check_buffer(input)?;
        }
        kernels.check_buffer(&self.grad_lora_a)?;
        kernels.check_buffer(&self.grad_lora_b)?;
        for gradient in [&self.grad_magnitude, &self.grad_bias].into_iter().flatten() {
            kernels.check_buffer(gradient)?;
        }
        self.grad_input.as_ref().map_or(Ok(()), |gradient| kernels.check_buffer(gradient))
    }
}

/// Zero gradients of a batch without tokens.
pub(crate) fn zero(stream: &Arc<CudaStream>, gradients: &mut CudaViewMut<'_, f32>) -> Result<()> {
    stream.memset_zeros(gradients).during("zeroing gradients")
}

impl Kernels {
    /// All gradients of one layer, the norm c held constant: [`Kernels::backward_adapter`], then
    /// [`Kernels::backward_input`]. Three launches (two where dX is not wanted and m is not on the
    /// input). For a spec with [`NormGrad::Exact`], [`Kernels::norm_gradient`] completes dA and dB
    /// once all micro-batches are through.
    ///
    /// [`NormGrad::Exact`]: crate::NormGrad::Exact
    ///
    /// Formulas: the chain rule on the forward; c constant as in DoRA (arXiv:2402.09353) §4.3.
    ///
    /// # Errors
    /// Those of the two ops; all checks of both come before the first launch.
    pub fn backward<E: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared<E>,
        workspace: &mut Workspace,
        io: &mut Backward<'_, E>,
    ) -> Result<()> {
        spec.check_dtype::<E>()?;
        io.check(self, spec)?;
        self.check_backward_input::<E>(spec, workspace, io.tokens)?;
        self.backward_adapter(stream, spec, prepared, workspace, io)?;
        self.backward_input(stream, spec, prepared, workspace, io)
    }
}
