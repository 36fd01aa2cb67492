//! Layers: what each call of an adapted layer needs, and what it keeps.

mod adapter;
mod linear;
pub mod parallel;
mod saved;

use std::sync::Arc;

use cudarc::driver::CudaStream;

pub use adapter::Adapter;
pub use linear::{DoraLinear, LinearBackward, LinearForward, Moments, SharedWorkspace};
pub use saved::Saved;

use crate::device::{Kernels, Workspace};
use crate::dropout::{Dropout, DropoutMode};
use crate::error::Result;
use crate::ops::backward::Backward;
use crate::ops::forward::Forward;
use crate::ops::norm_gradient::NormGradient;
use crate::ops::prepare::Prepare;
use crate::ops::prepared::Prepared;
use crate::spec::{DoraSpec, Norm, NormGrad};

/// One adapted layer: its spec, and what is prepared of its adapter.
///
/// It takes the ops' own arguments and passes on what the op needs: callers give what they have, y
/// and z alike, and need not know which of them a norm axis or a dropout takes.
#[derive(Debug)]
pub struct Layer {
    spec: DoraSpec,
    prepared: Prepared,
}

impl Layer {
    /// Allocates [`Prepared::bytes`] on `stream`.
    ///
    /// # Errors
    /// The driver's, e.g. out of memory.
    pub fn new(stream: &Arc<CudaStream>, spec: &DoraSpec) -> Result<Self> {
        Ok(Self { spec: *spec, prepared: Prepared::new(stream, spec)? })
    }

    /// A layer whose prepared operands are in memory of the caller.
    ///
    /// # Safety
    /// That of [`Prepared::at_address`].
    ///
    /// # Errors
    /// Those of [`Prepared::at_address`].
    pub unsafe fn at_address(spec: &DoraSpec, address: u64, bytes: usize) -> Result<Self> {
        // SAFETY: passed on to the caller.
        let prepared = unsafe { Prepared::at_address(spec, address, bytes) }?;
        Ok(Self { spec: *spec, prepared })
    }

    /// Its spec.
    pub const fn spec(&self) -> &DoraSpec {
        &self.spec
    }

    /// c, g and the packed operands, as of the last [`prepare`](Self::prepare).
    pub const fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    /// The same, to be completed on a shard.
    pub const fn prepared_mut(&mut self) -> &mut Prepared {
        &mut self.prepared
    }

    /// Elements of H, which a forward of so many tokens writes and its backward reads: `[T, R]`.
    pub const fn h_len(&self, tokens: usize) -> usize {
        tokens.saturating_mul(self.spec.padded_rank())
    }

    /// Whether a forward writes z `[T, O]` and its backward reads it: with PEFT's dropout and norm
    /// axis output.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`](crate::Error::InvalidSpec) if the form does not fit the norm axis.
    pub fn keeps_z(&self, dropout: Option<&Dropout>) -> Result<bool> {
        Ok(Dropout::mode(dropout, &self.spec)? == DropoutMode::Peft)
    }

    /// Whether a backward reads y: with norm axis output, unless it reads z.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`](crate::Error::InvalidSpec) if the form does not fit the norm axis.
    pub fn takes_y(&self, dropout: Option<&Dropout>) -> Result<bool> {
        Ok(self.spec.norm() == Norm::Output && !self.keeps_z(dropout)?)
    }

    /// [`Kernels::prepare`].
    ///
    /// # Errors
    /// Those of the op.
    pub fn prepare(
        &mut self,
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        workspace: &mut Workspace,
        inputs: Prepare<'_>,
    ) -> Result<()> {
        kernels.prepare(stream, &self.spec, workspace, &mut self.prepared, inputs)
    }

    /// [`Kernels::forward`]; z may be given whether or not the forward keeps it.
    ///
    /// # Errors
    /// Those of the op.
    pub fn forward(
        &self,
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        workspace: &mut Workspace,
        io: Forward<'_>,
    ) -> Result<()> {
        let keeps_z = self.keeps_z(io.dropout.as_ref())?;
        let io = Forward { z: io.z.filter(|_| keeps_z), ..io };
        kernels.forward(stream, &self.spec, &self.prepared, workspace, io)
    }

    /// [`Kernels::backward`]; y and z may be given whether or not the backward takes them.
    ///
    /// # Errors
    /// Those of the op.
    pub fn backward(
        &self,
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        workspace: &mut Workspace,
        io: Backward<'_>,
    ) -> Result<()> {
        let keeps_z = self.keeps_z(io.dropout.as_ref())?;
        let takes_y = self.takes_y(io.dropout.as_ref())?;
        let io =
            Backward { output: io.output.filter(|_| takes_y), z: io.z.filter(|_| keeps_z), ..io };
        kernels.backward(stream, &self.spec, &self.prepared, workspace, io)
    }

    /// Completes the gradients of A and B once per optimizer step: [`Kernels::norm_gradient`] where
    /// they flow through the norm, and otherwise nothing.
    ///
    /// # Errors
    /// Those of the op.
    pub fn finish(
        &self,
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        workspace: &mut Workspace,
        io: NormGradient<'_>,
    ) -> Result<()> {
        match self.spec.norm_grad() {
            NormGrad::Detached => Ok(()),
            NormGrad::Exact => {
                kernels.norm_gradient(stream, &self.spec, &self.prepared, workspace, io)
            }
        }
    }
}
