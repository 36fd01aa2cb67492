//! An adapter: its parameters, its gradients, and what is prepared of them.

use std::sync::Arc;

use cudarc::driver::sys::CUstreamCaptureStatus;
use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut};

use super::Layer;
use crate::device::{Kernels, Workspace};
use crate::error::{During, Error, Result};
use crate::layout::AdapterLayout;
use crate::ops::prepare::Prepare;
use crate::ops::prepared::Prepared;
use crate::spec::DoraSpec;
use crate::tensor::Weight;

/// An adapter: its parameters and gradients, one contiguous f32 buffer each, and what the ops
/// prepare of it.
#[derive(Debug)]
pub struct Adapter {
    pub(crate) layout: AdapterLayout,
    pub(crate) parameters: CudaSlice<f32>,
    pub(crate) gradients: CudaSlice<f32>,
    pub(crate) layer: Layer,
    pub(crate) generation: u64,
    prepared_generation: Option<u64>,
    /// Whether a graph prepares it: whenever that is launched, the parameters and what is prepared of
    /// them may change unseen.
    is_in_graph: bool,
}

impl Adapter {
    /// An adapter of zeros, gradients included; with a trained bias where `has_bias`. Load its
    /// parameters, or make them with [`DoraLinear::initialise`](crate::DoraLinear::initialise).
    ///
    /// # Errors
    /// [`Error::Dtype`], or the driver's, e.g. out of memory.
    pub fn new(stream: &Arc<CudaStream>, spec: &DoraSpec, has_bias: bool) -> Result<Self> {
        let layout = match has_bias {
            true => AdapterLayout::with_bias(spec),
            false => AdapterLayout::new(spec),
        };
        let zeros = || stream.alloc_zeros(layout.len().max(1)).during("allocating an adapter");
        Ok(Self {
            layout,
            parameters: zeros()?,
            gradients: zeros()?,
            layer: Layer::new(stream, spec)?,
            generation: 0,
            prepared_generation: None,
            is_in_graph: false,
        })
    }

    /// Its spec.
    pub const fn spec(&self) -> &DoraSpec {
        self.layer.spec()
    }

    /// Where A, B, m and the bias lie in its buffers.
    pub const fn layout(&self) -> &AdapterLayout {
        &self.layout
    }

    /// The parameters.
    pub fn parameters(&self) -> CudaView<'_, f32> {
        self.parameters.slice(..self.layout.len())
    }

    /// The parameters, to be changed: the layer prepares them anew at its next forward.
    pub fn parameters_mut(&mut self) -> CudaViewMut<'_, f32> {
        self.generation += 1;
        self.parameters.slice_mut(..self.layout.len())
    }

    /// The gradients.
    pub fn gradients(&self) -> CudaView<'_, f32> {
        self.gradients.slice(..self.layout.len())
    }

    /// The gradients, to be changed, as by an all-reduce.
    pub fn gradients_mut(&mut self) -> CudaViewMut<'_, f32> {
        self.gradients.slice_mut(..self.layout.len())
    }

    /// How often the parameters were lent to be changed.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// c and g, as of the last forward.
    pub const fn prepared(&self) -> &Prepared {
        self.layer.prepared()
    }

    /// Prepares the parameters, unless that was done since they changed. A launch of a graph changes
    /// them unseen: a capture always takes `prepare` up, and after it nothing is known any more.
    pub(crate) fn prepare(
        &mut self,
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        workspace: &mut Workspace,
        weight: Weight<'_>,
    ) -> Result<()> {
        // A layer without parameters stays as it is.
        self.is_in_graph |= !self.layout.is_empty() && is_captured(stream)?;
        if !self.is_in_graph && self.prepared_generation == Some(self.generation) {
            return Ok(());
        }
        let parts = self.layout.view(self.parameters.slice(..self.layout.len()))?;
        let inputs = Prepare {
            weight,
            lora_a: parts.lora_a.into(),
            lora_b: parts.lora_b.into(),
            magnitude: parts.magnitude.into(),
            bias: parts.bias.map(Into::into),
        };
        self.layer.prepare(kernels, stream, workspace, inputs)?;
        self.prepared_generation = Some(self.generation);
        Ok(())
    }

    /// Whether the parameters are known to be those of the last `prepare`: a graph that was launched
    /// may have changed them.
    pub(crate) fn check_seen(&self) -> Result<()> {
        match self.is_in_graph {
            false => Ok(()),
            true => Err(Error::NotPrepared {
                problem: "may be outdated, because a captured graph changes this adapter: copy \
                          its parameters into a new adapter, and merge and unmerge with that",
            }),
        }
    }

    /// Whether the prepared operands are those of the parameters as they are.
    pub(crate) fn check_prepared(&self, problem: &'static str) -> Result<()> {
        match self.prepared_generation == Some(self.generation) {
            true => Ok(()),
            false => Err(Error::NotPrepared { problem }),
        }
    }
}

/// Whether operations on a stream become parts of a graph instead of running.
fn is_captured(stream: &CudaStream) -> Result<bool> {
    let status = stream.capture_status().during("reading whether the stream is captured")?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}
