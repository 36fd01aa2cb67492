//! `backward`: all gradients of one layer, the norm held constant, in one launch
//! (kernels/backward/sm80.cu).

mod plan;

use std::sync::Arc;

use cudarc::driver::{
    CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, SyncOnDrop, result,
};

use crate::dropout::Dropout;
use crate::error::{During, Error, Result};
use crate::forward::check_z;
use crate::kernels::Kernels;
use crate::prepare::{Prepared, check_magnitude_len, optional};
use crate::raw::{self, WorkspaceSize, absent_or, present};
use crate::rows::{MatrixView, MatrixViewMut};
use crate::spec::{DoraSpec, Element, Norm, check_len};
use crate::workspace::Workspace;

#[doc(hidden)]
pub use plan::chunks;
pub(crate) use plan::needs;
use plan::{Plan, Wanted};

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

/// Inputs and outputs of the backward, row-major.
#[derive(Debug)]
pub struct Backward<'a, E> {
    /// T, the number of tokens, as in the forward; may be 0, which gives zero gradients.
    pub tokens: usize,
    /// Whether dA, dB, dm and db are written or added to. Sums are in f32; the same calls in the
    /// same order give the same bits.
    pub gradients: Gradients,
    /// x `[T, I]`, as given to the forward.
    pub x: MatrixView<'a, E>,
    /// W `[O, I]`, as given to the forward.
    pub weight: CudaView<'a, E>,
    /// b `[O]`, as given to the forward.
    pub bias: Option<CudaView<'a, E>>,
    /// y `[T, O]`, as the forward wrote it; needed for norm axis output only, and not with
    /// PEFT's dropout.
    pub output: Option<MatrixView<'a, E>>,
    /// z `[T, O]`, as the forward wrote it, with PEFT's dropout.
    pub z: Option<CudaView<'a, E>>,
    /// The forward's dropout.
    pub dropout: Option<Dropout>,
    /// dY `[T, O]`.
    pub grad_output: MatrixView<'a, E>,
    /// H `[T, R]`, as the forward wrote it.
    pub h: CudaView<'a, E>,
    /// dX `[T, I]`, written; `None` for a first layer, whose input needs no gradient.
    pub grad_input: Option<MatrixViewMut<'a, E>>,
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
    fn check(&self, kernels: &Kernels, spec: &DoraSpec) -> Result<()> {
        spec.check_tokens(self.tokens)?;
        self.check_contexts(kernels)?;
        let tokens = ("T", self.tokens);
        let (inputs, outputs) = (("I", spec.in_features()), ("O", spec.out_features()));
        let (rank, one) = (("r", spec.rank()), ("1", 1));
        self.x.check("x", tokens, inputs)?;
        check_len("weight", self.weight.len(), outputs, inputs)?;
        if let Some(bias) = &self.bias {
            check_len("bias", bias.len(), one, outputs)?;
        }
        let peft = Dropout::check(self.dropout.as_ref(), spec)?;
        check_z(peft, self.z.is_some())?;
        if let Some(z) = &self.z {
            check_len("z", z.len(), tokens, outputs)?;
        }
        match (&self.output, spec.norm()) {
            (Some(output), _) => output.check("output", tokens, outputs)?,
            (None, Norm::Output) if !peft => {
                let reason = "with norm axis output the magnitude's gradient is taken from y";
                return Err(Error::MissingTensor { tensor: "output", reason });
            }
            (None, _) => {}
        }
        self.grad_output.check("grad_output", tokens, outputs)?;
        check_len("h", self.h.len(), tokens, ("R", spec.padded_rank()))?;
        if let Some(grad_input) = &self.grad_input {
            grad_input.check("grad_input", tokens, inputs)?;
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
        for input in [&self.x.view, &self.weight, &self.grad_output.view, &self.h] {
            kernels.check_buffer(input)?;
        }
        let output = self.output.as_ref().map(|output| &output.view);
        for input in [self.bias.as_ref(), output, self.z.as_ref()].into_iter().flatten() {
            kernels.check_buffer(input)?;
        }
        kernels.check_buffer(&self.grad_lora_a)?;
        kernels.check_buffer(&self.grad_lora_b)?;
        for gradient in [&self.grad_magnitude, &self.grad_bias].into_iter().flatten() {
            kernels.check_buffer(gradient)?;
        }
        self.grad_input.as_ref().map_or(Ok(()), |gradient| kernels.check_buffer(&gradient.view))
    }

    /// The addresses, and the guards that order their use on the stream.
    fn lend<'s>(
        &'s mut self,
        stream: &'s CudaStream,
        spec: &DoraSpec,
    ) -> (raw::Backward, [Option<SyncOnDrop<'s>>; 12]) {
        let (inputs, outputs) = (spec.in_features(), spec.out_features());
        let (x_stride, grad_output_stride) =
            (self.x.stride(inputs), self.grad_output.stride(outputs));
        let output_stride = self.output.as_ref().map_or(outputs, |y| y.stride(outputs));
        let grad_input_stride = self.grad_input.as_ref().map_or(inputs, |dx| dx.stride(inputs));
        let read = |view: &'s CudaView<'_, E>| optional(view.device_ptr(stream));
        let (x, x_guard) = read(&self.x.view);
        let (weight, weight_guard) = read(&self.weight);
        let (bias, bias_guard) = self.bias.as_ref().map_or((0, None), read);
        let (output, output_guard) = self.output.as_ref().map_or((0, None), |y| read(&y.view));
        let (grad_output, grad_output_guard) = read(&self.grad_output.view);
        let (z, z_guard) = self.z.as_ref().map_or((0, None), read);
        let (h, h_guard) = read(&self.h);
        let (grad_input, grad_input_guard) = match &mut self.grad_input {
            Some(dx) => optional(dx.view.device_ptr_mut(stream)),
            None => (0, None),
        };
        let mut write = |view: &'s mut CudaViewMut<'_, f32>| optional(view.device_ptr_mut(stream));
        let (grad_lora_a, grad_lora_a_guard) = write(&mut self.grad_lora_a);
        let (grad_lora_b, grad_lora_b_guard) = write(&mut self.grad_lora_b);
        let (grad_magnitude, grad_magnitude_guard) =
            self.grad_magnitude.as_mut().map_or((0, None), &mut write);
        let (grad_bias, grad_bias_guard) = self.grad_bias.as_mut().map_or((0, None), &mut write);
        let raw = raw::Backward {
            tokens: self.tokens,
            gradients: self.gradients,
            x: raw::Matrix { pointer: x, stride: x_stride },
            weight,
            bias,
            output: raw::Matrix { pointer: output, stride: output_stride },
            z,
            dropout: self.dropout,
            grad_output: raw::Matrix { pointer: grad_output, stride: grad_output_stride },
            h,
            grad_input: raw::Matrix { pointer: grad_input, stride: grad_input_stride },
            grad_lora_a,
            grad_lora_b,
            grad_magnitude,
            grad_bias,
        };
        let guards = [
            x_guard,
            weight_guard,
            bias_guard,
            output_guard,
            z_guard,
            grad_output_guard,
            h_guard,
            grad_input_guard,
            grad_lora_a_guard,
            grad_lora_b_guard,
            grad_magnitude_guard,
            grad_bias_guard,
        ];
        (raw, guards)
    }
}

impl raw::Backward {
    fn wanted(&self) -> Wanted {
        Wanted { grad_input: self.grad_input.pointer != 0, grad_bias: self.grad_bias != 0 }
    }

    /// Checks what can be told from the numbers, and tells whether the dropout is PEFT's.
    fn check(&self, spec: &DoraSpec) -> Result<bool> {
        let (bytes, single) = (spec.dtype().bytes(), size_of::<f32>());
        let (inputs, outputs) = (spec.in_features(), spec.out_features());
        spec.check_tokens(self.tokens)?;
        let peft = Dropout::check(self.dropout.as_ref(), spec)?;
        if self.tokens > 0 {
            check_z(peft, self.z != 0)?;
            absent_or("z", self.z, bytes)?;
            self.x.present("x", inputs, bytes)?;
            present("weight", self.weight, bytes)?;
            absent_or("bias", self.bias, bytes)?;
            if spec.norm() == Norm::Output && !peft {
                self.output.present("output", outputs, bytes)?;
            }
            self.grad_output.present("grad_output", outputs, bytes)?;
            if self.grad_input.pointer != 0 {
                self.grad_input.present("grad_input", inputs, bytes)?;
            }
        }
        if spec.rank() > 0 {
            present("grad_lora_A", self.grad_lora_a, single)?;
            present("grad_lora_B", self.grad_lora_b, single)?;
            if self.tokens > 0 {
                present("h", self.h, bytes)?;
            }
        }
        if spec.norm() != Norm::None {
            present("grad_magnitude", self.grad_magnitude, single)?;
        }
        absent_or("grad_bias", self.grad_bias, single)?;
        Ok(peft)
    }
}

/// Zero gradients of a batch without tokens; an address of 0 stands for none.
///
/// # Safety
/// The address is of as many f32 elements, or 0.
unsafe fn zero(stream: &CudaStream, gradients: u64, len: usize) -> Result<()> {
    if gradients == 0 || len == 0 {
        return Ok(());
    }
    stream.context().bind_to_thread().during("zeroing gradients")?;
    // SAFETY: passed on to the caller.
    unsafe { result::memset_d8_async(gradients, 0, len * size_of::<f32>(), stream.cu_stream()) }
        .during("zeroing gradients")
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
    /// Before anything is launched: [`Error::Dtype`], [`Error::Shape`], [`Error::NotPrepared`],
    /// [`Error::MissingTensor`], [`Error::UnexpectedTensor`], [`Error::WorkspaceTooSmall`],
    /// [`Error::DeviceLimit`], [`Error::ContextMismatch`], [`Error::InvalidSpec`] for too many tokens.
    /// Afterwards [`Error::Driver`].
    ///
    /// [`NormGrad::Exact`]: crate::NormGrad::Exact
    pub fn backward<E: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared<E>,
        workspace: &mut Workspace,
        io: &mut Backward<'_, E>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        prepared.check(self, spec)?;
        self.check_buffer(workspace.buffer())?;
        io.check(self, spec)?;
        let wanted =
            Wanted { grad_input: io.grad_input.is_some(), grad_bias: io.grad_bias.is_some() };
        let (tokens, size) = (io.tokens, workspace.size());
        self.check_backward(spec, &size, tokens, io.dropout.as_ref(), wanted)?;

        let (prepared, _guards) = prepared.lend(stream);
        let (scratch, _guard) = workspace.lend(stream);
        let (raw, _guards) = io.lend(stream, spec);
        // SAFETY: each buffer was checked against its shape, and its guard orders the launch on the
        // stream.
        unsafe { self.backward_raw(stream, spec, &prepared, &scratch, &raw) }
    }

    /// [`Kernels::backward`] on device addresses.
    ///
    /// # Safety
    /// As for [`Kernels::forward_raw`], with what [`raw::Backward`] says; x, W, b, y and H are those
    /// of the forward.
    ///
    /// # Errors
    /// Those of [`Kernels::forward_raw`].
    pub unsafe fn backward_raw(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &raw::Prepared,
        workspace: &raw::Workspace,
        io: &raw::Backward,
    ) -> Result<()> {
        self.check_stream(stream)?;
        let peft = io.check(spec)?;
        prepared.check(spec)?;
        let (tokens, wanted) = (io.tokens, io.wanted());
        let plan =
            self.check_backward(spec, &workspace.size, tokens, io.dropout.as_ref(), wanted)?;
        let scratch = workspace.parts(plan.needs(), tokens)?;
        if tokens == 0 {
            if io.gradients == Gradients::Accumulate {
                return Ok(());
            }
            let (rank, magnitude) = (spec.rank(), spec.magnitude_len());
            // SAFETY: the caller vouches for the addresses.
            return unsafe {
                zero(stream, io.grad_lora_a, rank * spec.in_features())?;
                zero(stream, io.grad_lora_b, spec.out_features() * rank)?;
                zero(stream, io.grad_magnitude, magnitude)?;
                zero(stream, io.grad_bias, spec.out_features())
            };
        }
        let grid = plan.grid(spec, tokens, wanted);
        if grid[0] == 0 {
            return Ok(());
        }
        let params = plan.params(spec, prepared, &scratch, io, peft);
        // SAFETY: the struct is the kernel's; the caller vouches for the addresses.
        unsafe { self.launch(stream, plan.entry(), spec.dtype(), grid, &params) }
    }

    /// The tiles, within the device's limits and the workspace.
    fn check_backward(
        &self,
        spec: &DoraSpec,
        workspace: &WorkspaceSize,
        tokens: usize,
        dropout: Option<&Dropout>,
        wanted: Wanted,
    ) -> Result<Plan> {
        let plan = Plan::new(spec, tokens, self.tiling(), dropout.is_some());
        workspace.check(plan.needs(), tokens)?;
        self.check_grid(plan.entry(), spec.dtype(), plan.grid(spec, tokens, wanted))?;
        Ok(plan)
    }
}
