//! A frozen layer of one dtype, and the layer with an adapter's values.

use std::fmt::Debug;
use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Tensor, WithDType};
use fused_dora::cudarc::driver::CudaSlice;
use fused_dora::{AdapterLayout, DoraSpec, Dropout, Dtype, Magnitude, Merge, Prepare, Prepared};
use half::{bf16, f16};

use crate::error::OrCandle;
use crate::op::Op;
use crate::runtime::Runtime;
use crate::tensor::{Constant, Element, Lent, into_tensor, uninitialised};

/// A frozen layer, whatever its dtype.
pub(crate) trait Frozen: Debug + Send + Sync {
    /// Makes the layer ready for forwards with an adapter's values as they are now.
    fn prepare(self: Arc<Self>, adapter: &Tensor) -> Result<Arc<dyn Ready>>;

    /// c of W alone.
    fn norms(&self) -> Result<Vec<f32>>;
}

/// A frozen layer and an adapter's values, whatever their dtype.
pub(crate) trait Ready: Debug + Send + Sync {
    /// y `[…, O]` of x `[…, I]`, with a backward that gives gradients of x and of `adapter`.
    fn forward(
        self: Arc<Self>,
        x: &Tensor,
        adapter: &Tensor,
        seed: u64,
        dropout: Option<Dropout>,
    ) -> Result<Tensor>;

    /// W' `[O, I]`.
    fn merged(&self, dtype: Dtype, device: &Device) -> Result<Tensor>;
}

/// The kernels' name for candle's dtype.
pub(crate) fn kernel_dtype(dtype: DType) -> Result<Dtype> {
    match dtype {
        DType::BF16 => Ok(Dtype::Bf16),
        DType::F16 => Ok(Dtype::F16),
        DType::F32 => Ok(Dtype::F32),
        other => Err(Error::UnsupportedDTypeForOp(other, "fused-dora").bt()),
    }
}

/// W and b, and what their adapter is.
#[derive(Debug)]
pub(crate) struct Layer<E> {
    pub(crate) runtime: Runtime,
    pub(crate) spec: DoraSpec,
    pub(crate) layout: AdapterLayout,
    pub(crate) weight: Constant<E>,
    pub(crate) bias: Option<Constant<E>>,
}

impl<E: Element> Layer<E> {
    pub(crate) fn new(
        runtime: &Runtime,
        spec: DoraSpec,
        layout: AdapterLayout,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Self> {
        let constant = |tensor| Constant::new(runtime.stream(), tensor);
        Ok(Self {
            runtime: runtime.clone(),
            spec,
            layout,
            weight: constant(weight)?,
            bias: bias.map(constant).transpose()?,
        })
    }
}

impl<E: Element> Frozen for Layer<E> {
    fn prepare(self: Arc<Self>, adapter: &Tensor) -> Result<Arc<dyn Ready>> {
        let Self { runtime, spec, layout, weight, .. } = &*self;
        let stream = runtime.stream();
        let adapter = adapter.contiguous()?;
        let parameters = Lent::<f32>::new(stream, &adapter)?.into_copy(stream)?;
        let mut prepared = Prepared::<E>::new(stream, spec).or_candle()?;
        let parts = layout.view(parameters.slice(..layout.len())).or_candle()?;
        let weight = weight.lend(stream)?;
        let inputs = Prepare {
            weight: weight.view()?,
            lora_a: parts.lora_a,
            lora_b: parts.lora_b,
            magnitude: parts.magnitude.map_or(Magnitude::None, Magnitude::Given),
            bias: parts.bias,
        };
        runtime.with_workspace(spec, 0, |workspace| {
            runtime.kernels().prepare(stream, spec, workspace, &mut prepared, inputs)
        })?;
        drop(weight);
        Ok(Arc::new(Adapted { layer: self, parameters, prepared }))
    }

    fn norms(&self) -> Result<Vec<f32>> {
        let Self { runtime, spec, layout, weight, .. } = self;
        let stream = runtime.stream();
        let mut zeros = stream.alloc_zeros::<f32>(layout.len().max(1)).or_candle()?;
        let parts = layout.view_mut(zeros.slice_mut(..layout.len())).or_candle()?;
        let Some(mut magnitude) = parts.magnitude else { return Ok(Vec::new()) };
        let mut prepared = Prepared::<E>::new(stream, spec).or_candle()?;
        let weight = weight.lend(stream)?;
        let inputs = Prepare {
            weight: weight.view()?,
            lora_a: parts.lora_a.as_view(),
            lora_b: parts.lora_b.as_view(),
            magnitude: Magnitude::Init(magnitude.slice_mut(..)),
            bias: None,
        };
        runtime.with_workspace(spec, 0, |workspace| {
            runtime.kernels().prepare(stream, spec, workspace, &mut prepared, inputs)
        })?;
        stream.clone_dtoh(&magnitude).or_candle()
    }
}

/// A layer with an adapter's values: a copy of them, and what was prepared of it.
#[derive(Debug)]
pub(crate) struct Adapted<E> {
    pub(crate) layer: Arc<Layer<E>>,
    pub(crate) parameters: CudaSlice<f32>,
    pub(crate) prepared: Prepared<E>,
}

impl<E: Element> Ready for Adapted<E> {
    fn forward(
        self: Arc<Self>,
        x: &Tensor,
        adapter: &Tensor,
        seed: u64,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let (expected, got) = (<E as WithDType>::DTYPE, x.dtype());
        if got != expected {
            let msg = "x must have the dtype of the layer's weight";
            return Err(Error::UnexpectedDType { msg, expected, got }.bt());
        }
        x.contiguous()?.apply_op2(adapter, Op::new(self, seed, dropout))
    }

    fn merged(&self, dtype: Dtype, device: &Device) -> Result<Tensor> {
        match dtype {
            Dtype::Bf16 => self.merged_as::<bf16>(device),
            Dtype::F16 => self.merged_as::<f16>(device),
            Dtype::F32 => self.merged_as::<f32>(device),
        }
    }
}

impl<E: Element> Adapted<E> {
    fn merged_as<F: Element>(&self, device: &Device) -> Result<Tensor> {
        let Self { layer, parameters, prepared } = self;
        let Layer { runtime, spec, layout, weight, .. } = &**layer;
        let stream = runtime.stream();
        let shape = (spec.out_features(), spec.in_features());
        let mut merged = uninitialised::<F>(stream, shape.0 * shape.1)?;
        let values = layout.view(parameters.slice(..layout.len())).or_candle()?;
        let weight = weight.lend(stream)?;
        let io = Merge {
            weight: weight.view()?,
            lora_a: values.lora_a,
            lora_b: values.lora_b,
            merged: merged.as_view_mut(),
            report: None,
        };
        runtime.with_workspace(spec, 0, |workspace| {
            runtime.kernels().merge(stream, spec, prepared, workspace, io)
        })?;
        into_tensor(stream, device, merged, &shape.into())
    }
}
