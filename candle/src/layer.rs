//! A frozen layer, and the layer with an adapter's values.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::Linear;
use fused_dora::cudarc::driver::{CudaSlice, CudaStream};
use fused_dora::quant::{QuantizedWeight, WeightFormat};
use fused_dora::{
    AdapterLayout, Base, DoraSpec, Dropout, DropoutForm, Kernels, Layer, Merge, Part, Prepare,
    SharedWeight, Workspace,
};

use crate::error::{OrCandle, check_dtype, check_shape};
use crate::linear::DoraConfig;
use crate::op::Op;
use crate::runtime::Runtime;
use crate::tensor::{Buffer, Constant, copy_of_f32, kernel_dtype};

/// W and b, and what their adapter is.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) runtime: Runtime,
    pub(crate) spec: DoraSpec,
    pub(crate) layout: AdapterLayout,
    pub(crate) dropout: Option<(f32, DropoutForm)>,
    /// b, as candle has it.
    pub(crate) bias: Option<Tensor>,
    dtype: DType,
    weight: FrozenWeight,
    bias_on_device: Option<Constant>,
}

/// W on the kernels' device.
#[derive(Debug)]
enum FrozenWeight {
    Dense(Constant),
    Packed(SharedWeight),
}

impl Frozen {
    pub(crate) fn new(runtime: &Runtime, config: &DoraConfig, linear: &Linear) -> Result<Self> {
        let (weight, bias) = (linear.weight(), linear.bias());
        let on_device = || Constant::new(runtime.stream(), weight).map(FrozenWeight::Dense);
        Self::of(runtime, config, weight.dims2()?, weight.dtype(), bias, None, on_device)
    }

    pub(crate) fn packed(
        runtime: &Runtime,
        config: &DoraConfig,
        dtype: DType,
        weight: &QuantizedWeight<'_>,
        bias: Option<&Tensor>,
    ) -> Result<Self> {
        let on_device = || {
            let packed = SharedWeight::packed(runtime.stream(), kernel_dtype(dtype)?, weight);
            packed.or_candle().map(FrozenWeight::Packed)
        };
        let format = Some(weight.format());
        Self::of(runtime, config, weight.shape().into(), dtype, bias, format, on_device)
    }

    fn of(
        runtime: &Runtime,
        config: &DoraConfig,
        (outputs, inputs): (usize, usize),
        weight_dtype: DType,
        bias: Option<&Tensor>,
        format: Option<WeightFormat>,
        weight: impl FnOnce() -> Result<FrozenWeight>,
    ) -> Result<Self> {
        let &DoraConfig { rank, scaling, norm, norm_grad, dropout, train_bias } = config;
        let dtype = kernel_dtype(weight_dtype)?;
        let spec =
            DoraSpec::new(inputs, outputs, rank, scaling, norm, norm_grad, dtype).or_candle()?;
        let spec = format.map_or(Ok(spec), |format| spec.with_weight(format)).or_candle()?;
        if let Some((probability, form)) = dropout {
            Dropout::new(probability, form, 0).or_candle()?;
        }
        if let Some(bias) = bias {
            check_shape("the bias does not fit the layer", bias.shape(), outputs.into())?;
        }
        let layout = match train_bias {
            true => AdapterLayout::with_bias(&spec),
            false => AdapterLayout::new(&spec),
        };
        // A trained bias takes the place of the frozen one.
        let frozen_bias = bias.filter(|_| !train_bias);
        if let Some(bias) = frozen_bias {
            check_dtype("the bias must have the dtype of the weight", bias, weight_dtype)?;
        }
        let constant = |tensor| Constant::new(runtime.stream(), tensor);
        Ok(Self {
            runtime: runtime.clone(),
            spec,
            layout,
            dropout,
            bias: bias.map(Tensor::detach),
            dtype: weight_dtype,
            weight: weight()?,
            bias_on_device: frozen_bias.map(constant).transpose()?,
        })
    }

    pub(crate) fn check_adapter(&self, adapter: &Tensor) -> Result<()> {
        check_dtype("adapters are f32, whatever the dtype of the weight", adapter, DType::F32)?;
        let expected = self.layout.len().into();
        check_shape("the adapter does not fit the layer", adapter.shape(), expected)
    }

    /// The values of a fresh adapter, which leaves the layer's output as it was.
    pub(crate) fn initial(self: &Arc<Self>) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.layout.len()];
        let mut set = |part, from: Vec<f32>| {
            let to = values[self.layout.range(part)].iter_mut();
            to.zip(from).for_each(|(to, from)| *to = from);
        };
        let bound = 1.0 / (self.spec.in_features() as f32).sqrt();
        let lora_a = self.spec.rank() * self.spec.in_features();
        set(Part::LoraA, Tensor::rand(-bound, bound, lora_a, &Device::Cpu)?.to_vec1()?);
        if let Some(bias) = &self.bias {
            // Nothing, where the adapter has no bias.
            set(Part::Bias, bias.to_dtype(DType::F32)?.to_vec1()?);
        }
        let zeros = self.runtime.stream().alloc_zeros(self.layout.len().max(1)).or_candle()?;
        set(Part::Magnitude, self.adapted(zeros)?.norms()?);
        Ok(values)
    }

    /// Makes the layer ready for forwards with an adapter's values as they are now.
    pub(crate) fn prepare(self: &Arc<Self>, adapter: &Tensor) -> Result<Adapted> {
        self.adapted(copy_of_f32(self.runtime.stream(), adapter)?)
    }

    fn adapted(self: &Arc<Self>, parameters: CudaSlice<f32>) -> Result<Adapted> {
        let mut layer = Layer::new(self.runtime.stream(), &self.spec).or_candle()?;
        let parts = self.layout.view(parameters.slice(..self.layout.len())).or_candle()?;
        self.run(0, |kernels, stream, workspace, base| {
            let inputs = Prepare {
                weight: base.weight,
                lora_a: parts.lora_a.into(),
                lora_b: parts.lora_b.into(),
                magnitude: parts.magnitude.into(),
                bias: parts.bias.map(Into::into),
            };
            layer.prepare(kernels, stream, workspace, inputs)
        })?;
        Ok(Adapted { frozen: self.clone(), parameters, layer })
    }

    /// Runs an op on W and b, with scratch memory for so many tokens.
    pub(crate) fn run(
        &self,
        tokens: usize,
        op: impl FnOnce(&Kernels, &Arc<CudaStream>, &mut Workspace, Base<'_>) -> fused_dora::Result<()>,
    ) -> Result<()> {
        let (kernels, stream) = (self.runtime.kernels(), self.runtime.stream());
        let lent = match &self.weight {
            FrozenWeight::Dense(weight) => Ok(weight.lend(stream)?),
            FrozenWeight::Packed(weight) => Err(weight),
        };
        let weight = match &lent {
            Ok(dense) => dense.read()?.into(),
            Err(packed) => packed.read(),
        };
        let bias = self.bias_on_device.as_ref().map(|bias| bias.lend(stream)).transpose()?;
        let bias = bias.as_ref().map(|bias| bias.read()).transpose()?;
        let base = Base::new(weight).with_bias(bias);
        let op = |workspace: &mut Workspace| op(kernels, stream, workspace, base);
        self.runtime.with_workspace(&self.spec, tokens, op)
    }
}

/// A layer with an adapter's values: a copy of them, and what was prepared of it.
#[derive(Debug)]
pub(crate) struct Adapted {
    pub(crate) frozen: Arc<Frozen>,
    pub(crate) parameters: CudaSlice<f32>,
    pub(crate) layer: Layer,
}

impl Adapted {
    /// y `[…, O]` of x `[…, I]`, with a backward that gives gradients of x and of `adapter`.
    pub(crate) fn forward(
        self: &Arc<Self>,
        x: &Tensor,
        adapter: &Tensor,
        seed: u64,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        check_dtype("x must have the dtype of the layer's weight", x, self.frozen.dtype)?;
        x.contiguous()?.apply_op2(adapter, Op::new(self, seed, dropout))
    }

    /// W' `[O, I]`.
    pub(crate) fn merged(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let Frozen { runtime, spec, layout, .. } = &*self.frozen;
        let shape = (spec.out_features(), spec.in_features());
        let dtype = kernel_dtype(dtype)?;
        let mut merged = Buffer::uninitialised(runtime.stream(), dtype, shape.0 * shape.1)?;
        let values = layout.view(self.parameters.slice(..layout.len())).or_candle()?;
        self.frozen.run(0, |kernels, stream, workspace, base| {
            let io = Merge {
                weight: base.weight,
                lora_a: values.lora_a.into(),
                lora_b: values.lora_b.into(),
                merged: merged.write(),
                report: None,
            };
            kernels.merge(stream, spec, self.layer.prepared(), workspace, io)
        })?;
        merged.into_tensor(runtime.stream(), device, &shape.into())
    }

    /// c.
    fn norms(&self) -> Result<Vec<f32>> {
        self.layer.prepared().read_norm(self.frozen.runtime.stream()).or_candle()
    }
}
