//! `DoraLinear`: candle's linear layer with an adapter.

use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Tensor, Var};
use candle_nn::{Init, Linear, Module, VarBuilder};
use fused_dora::{
    AdapterLayout, DoraSpec, Dropout, DropoutForm, Dtype, Norm, NormGrad, Part, Scaling,
};
use half::{bf16, f16};

use crate::error::OrCandle;
use crate::layer::{Frozen, Layer, Ready, kernel_dtype};
use crate::runtime::Runtime;

/// The name of an adapter's buffer, below that of its layer.
const ADAPTER: &str = "adapter";

/// What a layer's adapter is. There is no default: checkpoints of one kind mean something else
/// under another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DoraConfig {
    /// r; 0 for an adapter that trains the magnitude alone.
    pub rank: usize,
    /// s in V = W + s·B·A.
    pub scaling: Scaling,
    /// The axis of the norm; [`Norm::None`] for plain LoRA.
    pub norm: Norm,
    /// Whether the gradients of A and B flow through the norm. Candle asks for whole gradients in
    /// each backward, so that [`NormGrad::Exact`] takes two launches more in each.
    pub norm_grad: NormGrad,
    /// The probability and the form of the dropout of x in
    /// [`forward_train`](DoraLinear::forward_train).
    pub dropout: Option<(f32, DropoutForm)>,
    /// Whether the adapter has a bias, which takes the place of the linear layer's.
    pub train_bias: bool,
}

/// A frozen [`Linear`] with a DoRA or LoRA adapter: y of x `[…, I]` is `[…, O]`.
///
/// The adapter is one f32 tensor, of [`AdapterLayout`]: the variable that candle's optimizers
/// train and its `VarMap` saves. Its gradient has the same layout.
///
/// Candle changes variables in place and tells nobody. So each forward prepares the adapter's
/// values as they are (one launch, one read of W), and its backward is of those values, whatever
/// became of the variable meanwhile. [`prepare`](Self::prepare) does it once for several forwards.
#[derive(Debug, Clone)]
pub struct DoraLinear {
    runtime: Runtime,
    frozen: Arc<dyn Frozen>,
    spec: DoraSpec,
    layout: AdapterLayout,
    dropout: Option<(f32, DropoutForm)>,
    adapter: Tensor,
    /// The linear layer's.
    bias: Option<Tensor>,
}

impl DoraLinear {
    /// Adapts `linear`, whose weight is bf16, f16 or f32. The adapter is the tensor `adapter` of
    /// `vb`, where there is one. Otherwise it is made, as PEFT does it: A uniform within ±1/√I (of
    /// candle's random numbers), B = 0, m = c, so that the layer computes what it did before.
    ///
    /// The tensors of `linear` are taken as constants. On a CUDA device they are shared; those of
    /// the CPU are copied to the kernels' device, once.
    ///
    /// # Errors
    /// A weight that is no matrix or of another dtype; tensors of other shapes; what
    /// [`DoraSpec::new`], [`Dropout::new`] or the driver have to say.
    pub fn new(
        runtime: &Runtime,
        config: &DoraConfig,
        linear: &Linear,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        let parts = Parts::new(runtime, config, linear)?;
        let len = parts.layout.len();
        // Before there is a variable, which a failure would leave behind without its values.
        let fresh = (!vb.contains_tensor(ADAPTER)).then(|| parts.initial()).transpose()?;
        let adapter = vb.get_with_hints_dtype(len, ADAPTER, Init::Const(0.0), DType::F32)?;
        if let Some(values) = fresh.filter(|_| adapter.is_variable()) {
            let values = Tensor::from_vec(values, len, adapter.device())?;
            Var::from_tensor(&adapter)?.set(&values)?;
        }
        parts.with_adapter(adapter)
    }

    /// Adapts `linear` with an adapter that is there already, f32 `[layout.len()]`; to be trained,
    /// it must be a [`Var`]'s tensor.
    ///
    /// # Errors
    /// As [`DoraLinear::new`].
    pub fn with_adapter(
        runtime: &Runtime,
        config: &DoraConfig,
        linear: &Linear,
        adapter: Tensor,
    ) -> Result<Self> {
        Parts::new(runtime, config, linear)?.with_adapter(adapter)
    }

    /// The adapter's tensor.
    pub fn adapter(&self) -> &Tensor {
        &self.adapter
    }

    /// What it runs on.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// What the layer is.
    pub fn spec(&self) -> &DoraSpec {
        &self.spec
    }

    /// Where A, B, m and the bias lie in the adapter, and in its gradient.
    pub fn layout(&self) -> &AdapterLayout {
        &self.layout
    }

    /// A view of one part of the adapter, or of its gradient: A `[r, I]`, B `[O, r]`, m or b.
    /// `None` where the adapter has no such part.
    ///
    /// # Errors
    /// Candle's, if `buffer` is shorter than the layout.
    pub fn part(&self, buffer: &Tensor, part: Part) -> Result<Option<Tensor>> {
        let range = self.layout.range(part);
        if range.is_empty() {
            return Ok(None);
        }
        let (inputs, outputs) = (self.spec.in_features(), self.spec.out_features());
        let elements = buffer.narrow(0, range.start, range.len())?;
        match part {
            Part::LoraA => elements.reshape(((), inputs)).map(Some),
            Part::LoraB => elements.reshape((outputs, ())).map(Some),
            Part::Magnitude | Part::Bias => Ok(Some(elements)),
        }
    }

    /// The layer with the adapter's values as they are now, for any number of forwards: the
    /// micro-batches of an optimizer step, or inference.
    ///
    /// # Errors
    /// Those of [`Kernels::prepare`](fused_dora::Kernels::prepare).
    pub fn prepare(&self) -> Result<PreparedLinear> {
        Ok(PreparedLinear {
            runtime: self.runtime.clone(),
            ready: self.frozen.clone().prepare(&self.adapter)?,
            dropout: self.dropout,
            adapter: self.adapter.clone(),
        })
    }

    /// A linear layer that computes what this one does: W' = (m/c)∘V in f32, rounded once to
    /// `dtype` (bf16, f16 or f32), and the bias. A 16-bit W' loses most of a small adapter:
    /// [`Kernels::merge`](fused_dora::Kernels::merge) can tell how much.
    ///
    /// # Errors
    /// Another dtype; as [`DoraLinear::prepare`].
    pub fn merge(&self, dtype: DType) -> Result<Linear> {
        let ready = self.frozen.clone().prepare(&self.adapter)?;
        let weight = ready.merged(kernel_dtype(dtype)?, self.adapter.device())?;
        // A copy, which later steps do not change.
        let trained = self.part(&self.adapter.detach().copy()?, Part::Bias)?;
        let bias = trained.or_else(|| self.bias.clone());
        Ok(Linear::new(weight, bias.map(|bias| bias.to_dtype(dtype)).transpose()?))
    }

    /// y in training: with dropout, where there is any, and with a fresh seed for it and for the
    /// stochastic rounding of x∘g (norm axis input in 16 bit).
    ///
    /// # Errors
    /// As [`DoraLinear::prepare`] and [`PreparedLinear::forward_train`].
    pub fn forward_train(&self, x: &Tensor) -> Result<Tensor> {
        self.prepare()?.forward_train(x)
    }
}

impl Module for DoraLinear {
    /// y without dropout, and with one fixed seed for the rounding, so that the same x gives the
    /// same y. Autograd follows this, too.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.prepare()?.forward(x)
    }
}

/// A [`DoraLinear`] with its adapter's values of some time.
#[derive(Debug, Clone)]
pub struct PreparedLinear {
    runtime: Runtime,
    ready: Arc<dyn Ready>,
    dropout: Option<(f32, DropoutForm)>,
    adapter: Tensor,
}

impl PreparedLinear {
    /// The layer as a constant: forwards keep nothing for a backward, unless x asks for one.
    pub fn detach(&self) -> Self {
        Self { adapter: self.adapter.detach(), ..self.clone() }
    }

    /// As [`DoraLinear::forward_train`], with the values that were prepared.
    ///
    /// # Errors
    /// A tensor of another device, dtype or number of features; those of
    /// [`Kernels::forward`](fused_dora::Kernels::forward).
    pub fn forward_train(&self, x: &Tensor) -> Result<Tensor> {
        let seed = self.runtime.next_seed();
        let dropout = self.dropout.map(|(p, form)| Dropout::new(p, form, seed));
        let dropout = dropout.transpose().or_candle()?;
        self.ready.clone().forward(x, &self.adapter, seed, dropout)
    }
}

impl Module for PreparedLinear {
    /// As that of [`DoraLinear`], with the values that were prepared.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.ready.clone().forward(x, &self.adapter, 0, None)
    }
}

/// A layer that lacks its adapter.
struct Parts<'a> {
    runtime: &'a Runtime,
    config: &'a DoraConfig,
    spec: DoraSpec,
    layout: AdapterLayout,
    frozen: Arc<dyn Frozen>,
    bias: Option<Tensor>,
}

impl<'a> Parts<'a> {
    fn new(runtime: &'a Runtime, config: &'a DoraConfig, linear: &Linear) -> Result<Self> {
        let &DoraConfig { rank, scaling, norm, norm_grad, dropout, train_bias } = config;
        let weight = linear.weight();
        let (outputs, inputs) = weight.dims2()?;
        let dtype = kernel_dtype(weight.dtype())?;
        let spec =
            DoraSpec::new(inputs, outputs, rank, scaling, norm, norm_grad, dtype).or_candle()?;
        if let Some((probability, form)) = dropout {
            Dropout::new(probability, form, 0).or_candle()?;
        }
        let bias = linear.bias();
        if let Some(bias) = bias {
            check_shape("the bias", bias, &[outputs])?;
        }
        let layout = match train_bias {
            true => AdapterLayout::with_bias(&spec),
            false => AdapterLayout::new(&spec),
        };
        let frozen_bias = bias.filter(|_| !train_bias);
        let frozen: Arc<dyn Frozen> = match dtype {
            Dtype::Bf16 => {
                Arc::new(Layer::<bf16>::new(runtime, spec, layout, weight, frozen_bias)?)
            }
            Dtype::F16 => Arc::new(Layer::<f16>::new(runtime, spec, layout, weight, frozen_bias)?),
            Dtype::F32 => Arc::new(Layer::<f32>::new(runtime, spec, layout, weight, frozen_bias)?),
        };
        Ok(Self { runtime, config, spec, layout, frozen, bias: bias.map(Tensor::detach) })
    }

    /// The values of a fresh adapter.
    fn initial(&self) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.layout.len()];
        let mut set = |part, from: Vec<f32>| {
            let to = values[self.layout.range(part)].iter_mut();
            to.zip(from).for_each(|(to, from)| *to = from);
        };
        let bound = 1.0 / (self.spec.in_features() as f32).sqrt();
        let lora_a = self.spec.rank() * self.spec.in_features();
        set(Part::LoraA, Tensor::rand(-bound, bound, lora_a, &Device::Cpu)?.to_vec1()?);
        set(Part::Magnitude, self.frozen.norms()?);
        if let Some(bias) = self.bias.as_ref().filter(|_| self.config.train_bias) {
            set(Part::Bias, bias.to_dtype(DType::F32)?.to_vec1()?);
        }
        Ok(values)
    }

    fn with_adapter(self, adapter: Tensor) -> Result<DoraLinear> {
        if adapter.dtype() != DType::F32 {
            let (expected, got) = (DType::F32, adapter.dtype());
            let msg = "adapters are f32, whatever the dtype of the weight";
            return Err(Error::UnexpectedDType { msg, expected, got }.bt());
        }
        check_shape("the adapter", &adapter, &[self.layout.len()])?;
        let (runtime, dropout) = (self.runtime.clone(), self.config.dropout);
        let Self { frozen, spec, layout, bias, .. } = self;
        Ok(DoraLinear { runtime, frozen, spec, layout, dropout, adapter, bias })
    }
}

fn check_shape(what: &str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.dims() == expected {
        return Ok(());
    }
    let msg = format!("{what} does not fit the layer");
    let (expected, got) = (expected.into(), tensor.shape().clone());
    Err(Error::UnexpectedShape { msg, expected, got }.bt())
}
