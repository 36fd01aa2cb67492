//! `DoraLinear`: candle's linear layer with an adapter.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Init, Linear, Module, VarBuilder};
use fused_dora::quant::QuantizedWeight;
use fused_dora::{AdapterLayout, DoraSpec, Dropout, DropoutForm, Norm, NormGrad, Part, Scaling};

use crate::error::OrCandle;
use crate::layer::{Adapted, Frozen};
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
/// Candle changes variables in place and reports it to nobody. So each forward prepares the adapter's
/// values as they are (one launch, one read of W), and its backward is of those values, whatever
/// became of the variable meanwhile. [`prepare`](Self::prepare) does it once for several forwards.
#[derive(Debug, Clone)]
pub struct DoraLinear {
    frozen: Arc<Frozen>,
    adapter: Tensor,
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
    /// A weight that is no matrix or of another dtype; tensors of other shapes; the
    /// errors of [`DoraSpec::new`], [`Dropout::new`] and the driver.
    pub fn new(
        runtime: &Runtime,
        config: &DoraConfig,
        linear: &Linear,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        Self::of(Frozen::new(runtime, config, linear)?, vb)
    }

    /// Adapts a linear layer whose W is packed (QDoRA), such as a base in NF4. `dtype` (bf16, f16 or
    /// f32) is that of x, of `bias` `[O]` and of what the packed W stands for. W is copied to the
    /// kernels' device as it is. Otherwise as [`DoraLinear::new`].
    ///
    /// # Errors
    /// Those of [`DoraLinear::new`].
    pub fn packed(
        runtime: &Runtime,
        config: &DoraConfig,
        dtype: DType,
        weight: &QuantizedWeight<'_>,
        bias: Option<&Tensor>,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        Self::of(Frozen::packed(runtime, config, dtype, weight, bias)?, vb)
    }

    fn of(frozen: Frozen, vb: VarBuilder<'_>) -> Result<Self> {
        let frozen = Arc::new(frozen);
        let len = frozen.layout.len();
        // Before there is a variable, which a failure would leave behind without its values.
        let fresh = (!vb.contains_tensor(ADAPTER)).then(|| frozen.initial()).transpose()?;
        let adapter = vb.get_with_hints_dtype(len, ADAPTER, Init::Const(0.0), DType::F32)?;
        if let Some(values) = fresh.filter(|_| adapter.is_variable()) {
            let values = Tensor::from_vec(values, len, adapter.device())?;
            Var::from_tensor(&adapter)?.set(&values)?;
        }
        frozen.check_adapter(&adapter)?;
        Ok(Self { frozen, adapter })
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
        let frozen = Arc::new(Frozen::new(runtime, config, linear)?);
        frozen.check_adapter(&adapter)?;
        Ok(Self { frozen, adapter })
    }

    /// The adapter's tensor.
    pub fn adapter(&self) -> &Tensor {
        &self.adapter
    }

    /// What it runs on.
    pub fn runtime(&self) -> &Runtime {
        &self.frozen.runtime
    }

    /// What the layer is.
    pub fn spec(&self) -> &DoraSpec {
        &self.frozen.spec
    }

    /// Where A, B, m and the bias lie in the adapter, and in its gradient.
    pub fn layout(&self) -> &AdapterLayout {
        &self.frozen.layout
    }

    /// A view of one part of the adapter, or of its gradient: A `[r, I]`, B `[O, r]`, m or b.
    /// `None` where the adapter has no such part.
    ///
    /// # Errors
    /// Candle's, if `buffer` is shorter than the layout.
    pub fn part(&self, buffer: &Tensor, part: Part) -> Result<Option<Tensor>> {
        let range = self.layout().range(part);
        if range.is_empty() {
            return Ok(None);
        }
        let (inputs, outputs) = (self.spec().in_features(), self.spec().out_features());
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
        let adapted = Arc::new(self.frozen.prepare(&self.adapter)?);
        Ok(PreparedLinear { adapted, adapter: self.adapter.clone() })
    }

    /// A linear layer that computes what this one does: W' = (m/c)∘V in f32, rounded once to
    /// `dtype` (bf16, f16 or f32), and the bias. A 16-bit W' loses most of a small adapter:
    /// the report of [`Kernels::merge`](fused_dora::Kernels::merge) says how much.
    ///
    /// # Errors
    /// Another dtype; as [`DoraLinear::prepare`].
    pub fn merge(&self, dtype: DType) -> Result<Linear> {
        let weight = self.frozen.prepare(&self.adapter)?.merged(dtype, self.adapter.device())?;
        // A copy, which later steps do not change.
        let trained = self.part(&self.adapter.detach().copy()?, Part::Bias)?;
        let bias = trained.or_else(|| self.frozen.bias.clone());
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
    adapted: Arc<Adapted>,
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
        let Frozen { runtime, dropout, .. } = &*self.adapted.frozen;
        let seed = runtime.next_seed();
        let dropout = dropout.map(|(p, form)| Dropout::new(p, form, seed));
        let dropout = dropout.transpose().or_candle()?;
        self.adapted.forward(x, &self.adapter, seed, dropout)
    }
}

impl Module for PreparedLinear {
    /// As that of [`DoraLinear`], with the values that were prepared.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.adapted.forward(x, &self.adapter, 0, None)
    }
}
