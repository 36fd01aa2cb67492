//! `forward`: the adapted linear layer in one launch (kernels/forward/sm80.cu).

mod plan;

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};

use crate::dropout::Dropout;
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::prepare::{Prepared, optional};
use crate::raw::{self, absent_or, present};
use crate::rows::{MatrixView, MatrixViewMut};
use crate::spec::{DoraSpec, Dtype, Element, check_len};
use crate::workspace::Workspace;

pub(crate) use plan::needs;
#[doc(hidden)]
pub use plan::parts_of_h;
use plan::{Masked, Plan};

/// Inputs and outputs of [`Kernels::forward`], row-major.
#[derive(Debug)]
pub struct Forward<'a, E> {
    /// T, the number of tokens; may be 0.
    pub tokens: usize,
    /// x `[T, I]`.
    pub x: MatrixView<'a, E>,
    /// W `[O, I]`, as given to `prepare`.
    pub weight: CudaView<'a, E>,
    /// b `[O]`: a frozen one, or [`Prepared::bias`].
    pub bias: Option<CudaView<'a, E>>,
    /// Seed of the stochastic rounding of x∘g (norm axis input in 16 bit; otherwise unused). Use
    /// another one each step; the same one gives the same bits.
    pub seed: u64,
    /// Dropout of x, in training.
    pub dropout: Option<Dropout>,
    /// z `[T, O]`, written, for PEFT's dropout with norm axis output only: keep it for the backward.
    pub z: Option<CudaViewMut<'a, E>>,
    /// y `[T, O]`, written.
    pub y: MatrixViewMut<'a, E>,
    /// H = (x∘g)·Aᵀ or x·Aᵀ, `[T, R]`, written: keep it for the backward.
    pub h: CudaViewMut<'a, E>,
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
    /// Before anything is launched: [`Error::Dtype`], [`Error::Shape`], [`Error::NotPrepared`],
    /// [`Error::WorkspaceTooSmall`], [`Error::DeviceLimit`], [`Error::ContextMismatch`],
    /// [`Error::InvalidSpec`] for too many tokens. Afterwards [`Error::Driver`].
    ///
    /// [`Error::Dtype`]: crate::Error::Dtype
    /// [`Error::Shape`]: crate::Error::Shape
    /// [`Error::NotPrepared`]: crate::Error::NotPrepared
    /// [`Error::WorkspaceTooSmall`]: crate::Error::WorkspaceTooSmall
    /// [`Error::DeviceLimit`]: crate::Error::DeviceLimit
    /// [`Error::ContextMismatch`]: crate::Error::ContextMismatch
    /// [`Error::InvalidSpec`]: crate::Error::InvalidSpec
    /// [`Error::Driver`]: crate::Error::Driver
    pub fn forward<E: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared<E>,
        workspace: &mut Workspace,
        mut io: Forward<'_, E>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        prepared.check(self, spec)?;
        self.check_buffer(workspace.buffer())?;
        spec.check_tokens(io.tokens)?;
        check(spec, &io)?;
        self.check_buffer(&io.x.view)?;
        self.check_buffer(&io.weight)?;
        self.check_buffer(&io.y.view)?;
        self.check_buffer(&io.h)?;
        io.bias.as_ref().map_or(Ok(()), |bias| self.check_buffer(bias))?;
        io.z.as_ref().map_or(Ok(()), |z| self.check_buffer(z))?;
        let plan = self.check_forward(spec, io.tokens, io.dropout.as_ref())?;
        workspace.size().check(plan.needs(), io.tokens)?;

        let (prepared, _guards) = prepared.lend(stream);
        let (scratch, _guard) = workspace.lend(stream);
        let (x_stride, y_stride) =
            (io.x.stride(spec.in_features()), io.y.stride(spec.out_features()));
        let (x, _guard) = io.x.view.device_ptr(stream);
        let (weight, _guard) = io.weight.device_ptr(stream);
        let (bias, _bias) =
            io.bias.as_ref().map_or((0, None), |bias| optional(bias.device_ptr(stream)));
        let (h, _guard) = io.h.device_ptr_mut(stream);
        let (z, _z) = io.z.as_mut().map_or((0, None), |z| optional(z.device_ptr_mut(stream)));
        let (y, _guard) = io.y.view.device_ptr_mut(stream);
        let raw = raw::Forward {
            tokens: io.tokens,
            x: raw::Matrix { pointer: x, stride: x_stride },
            weight,
            bias,
            seed: io.seed,
            dropout: io.dropout,
            z,
            y: raw::Matrix { pointer: y, stride: y_stride },
            h,
        };
        // SAFETY: each buffer was checked against its shape, and its guard orders the launches on
        // the stream.
        unsafe { self.forward_raw(stream, spec, &prepared, &scratch, &raw) }
    }

    /// [`Kernels::forward`] on device addresses.
    ///
    /// # Safety
    /// Every address that is not 0 is one of the kernels' context, of memory that holds what
    /// [`raw::Forward`] says, valid until the stream has run the launches, and ordered on it against
    /// other uses; what is written overlaps with nothing else. `prepared` was left by
    /// [`Kernels::prepare_raw`] for this spec and the adapter as it is.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::MissingTensor`], [`Error::Misaligned`],
    /// [`Error::Stride`], [`Error::WorkspaceTooSmall`], [`Error::DeviceLimit`],
    /// [`Error::ContextMismatch`], [`Error::InvalidSpec`] for too many tokens. Afterwards
    /// [`Error::Driver`].
    ///
    /// [`Error::MissingTensor`]: crate::Error::MissingTensor
    /// [`Error::Misaligned`]: crate::Error::Misaligned
    /// [`Error::Stride`]: crate::Error::Stride
    /// [`Error::WorkspaceTooSmall`]: crate::Error::WorkspaceTooSmall
    /// [`Error::DeviceLimit`]: crate::Error::DeviceLimit
    /// [`Error::ContextMismatch`]: crate::Error::ContextMismatch
    /// [`Error::InvalidSpec`]: crate::Error::InvalidSpec
    /// [`Error::Driver`]: crate::Error::Driver
    pub unsafe fn forward_raw(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &raw::Prepared,
        workspace: &raw::Workspace,
        io: &raw::Forward,
    ) -> Result<()> {
        self.check_stream(stream)?;
        spec.check_tokens(io.tokens)?;
        let tokens = io.tokens;
        let plan = self.check_forward(spec, tokens, io.dropout.as_ref())?;
        let scratch = workspace.parts(plan.needs(), tokens)?;
        if tokens == 0 {
            return Ok(());
        }
        check_raw(spec, prepared, io)?;
        let params = plan.params(spec, prepared, &scratch, io);
        let grid = plan.grid(spec, tokens);
        // SAFETY: the struct is the kernel's; the caller vouches for the addresses.
        unsafe { self.launch(stream, plan.entry(), spec.dtype(), grid, &params) }
    }

    /// The tiles, within the device's limits.
    fn check_forward(
        &self,
        spec: &DoraSpec,
        tokens: usize,
        dropout: Option<&Dropout>,
    ) -> Result<Plan> {
        let peft = Dropout::check(dropout, spec)?;
        let masked = Masked { dropout: dropout.is_some(), peft };
        let plan = Plan::new(spec, tokens, self.tiling(), masked);
        self.check_grid(plan.entry(), spec.dtype(), plan.grid(spec, tokens))?;
        Ok(plan)
    }
}

/// Checks what can be told from the numbers.
fn check_raw(spec: &DoraSpec, prepared: &raw::Prepared, io: &raw::Forward) -> Result<()> {
    let peft = Dropout::check(io.dropout.as_ref(), spec)?;
    check_z(peft, io.z != 0)?;
    let bytes = spec.dtype().bytes();
    io.x.present("x", spec.in_features(), bytes)?;
    present("weight", io.weight, bytes)?;
    absent_or("bias", io.bias, bytes)?;
    io.y.present("y", spec.out_features(), bytes)?;
    if spec.rank() > 0 {
        present("h", io.h, bytes)?;
    }
    absent_or("z", io.z, bytes)?;
    prepared.check(spec)
}

/// Checks that z is there if it is needed.
pub(crate) fn check_z(needed: bool, given: bool) -> Result<()> {
    let tensor = "z";
    match (needed, given) {
        (true, false) => {
            let reason = "PEFT's dropout keeps it from the forward to the backward";
            Err(Error::MissingTensor { tensor, reason })
        }
        (false, true) => {
            let reason = "only PEFT's dropout with norm axis output keeps it";
            Err(Error::UnexpectedTensor { tensor, reason })
        }
        _ => Ok(()),
    }
}

/// Whether rows of these lengths at these addresses all start at 16-byte boundaries: then kernels
/// move 16 bytes at a time.
pub(crate) fn are_aligned(dtype: Dtype, row_lengths: &[usize], pointers: &[u64]) -> bool {
    const VECTOR_BYTES: usize = 16;
    row_lengths.iter().all(|len| (len * dtype.bytes()).is_multiple_of(VECTOR_BYTES))
        && pointers.iter().all(|pointer| pointer.is_multiple_of(VECTOR_BYTES as u64))
}

fn check<E: Element>(spec: &DoraSpec, io: &Forward<'_, E>) -> Result<()> {
    let tokens = ("T", io.tokens);
    let (inputs, outputs) = (("I", spec.in_features()), ("O", spec.out_features()));
    io.x.check("x", tokens, inputs)?;
    check_len("weight", io.weight.len(), outputs, inputs)?;
    if let Some(bias) = &io.bias {
        check_len("bias", bias.len(), ("1", 1), outputs)?;
    }
    io.y.check("y", tokens, outputs)?;
    check_z(Dropout::check(io.dropout.as_ref(), spec)?, io.z.is_some())?;
    if let Some(z) = &io.z {
        check_len("z", z.len(), tokens, outputs)?;
    }
    check_len("h", io.h.len(), tokens, ("R", spec.padded_rank()))
}
