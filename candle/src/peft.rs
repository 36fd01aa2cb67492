//! A layer's adapter as PEFT's checkpoints hold it.

use candle_core::{Error, Result, Tensor, Var};
use fused_dora::peft::LayerAdapter;
use fused_dora::{Norm, NormGrad, Part, Scaling};

use crate::linear::{DoraConfig, DoraLinear};

impl DoraConfig {
    /// What a layer must be to take `adapter`: its rank, scaling and norm axis, without dropout and
    /// without a bias of its own. Plain LoRA has no norm, and its `norm_grad` is none.
    pub fn of_peft(adapter: &LayerAdapter, norm_grad: NormGrad) -> Self {
        Self {
            rank: adapter.rank(),
            scaling: Scaling::Value(adapter.scaling()),
            norm: adapter.norm(),
            norm_grad: if adapter.norm() == Norm::None { NormGrad::Detached } else { norm_grad },
            dropout: None,
            train_bias: false,
        }
    }
}

impl DoraLinear {
    /// The adapter's values as they are now, for a
    /// [`PeftCheckpoint`](fused_dora::peft::PeftCheckpoint).
    ///
    /// # Errors
    /// A trained bias, which such a file does not hold.
    pub fn to_peft(&self) -> Result<LayerAdapter> {
        if !self.layout().range(Part::Bias).is_empty() {
            return Err(Error::msg(
                "this layer trains a bias, which PEFT's files of adapters do not hold: save it \
                 apart, or make the layer without `train_bias`",
            ));
        }
        let spec = self.spec();
        let values = self.adapter().to_vec1::<f32>()?;
        let part = |part| values[self.layout().range(part)].to_vec();
        LayerAdapter::new(
            [spec.out_features(), spec.in_features()],
            spec.rank(),
            spec.scaling(),
            spec.norm(),
            part(Part::LoraA),
            part(Part::LoraB),
            part(Part::Magnitude),
        )
        .map_err(Error::wrap)
    }

    /// Puts a checkpoint's values into this layer's variable, as `VarMap::load` does with candle's
    /// own checkpoints. A trained bias stays as it is.
    ///
    /// # Errors
    /// An adapter of another shape, rank, scaling or norm axis; an adapter that is no variable.
    pub fn load_peft(&self, adapter: &LayerAdapter) -> Result<()> {
        let spec = self.spec();
        let ours = ([spec.out_features(), spec.in_features()], spec.rank(), spec.norm());
        let theirs = (adapter.shape(), adapter.rank(), adapter.norm());
        if ours != theirs || spec.scaling() != adapter.scaling() {
            let named = |([outputs, inputs], rank, norm): ([usize; 2], usize, _), scaling: f32| {
                format!("[{outputs}, {inputs}] of rank {rank}, scaling {scaling} and {norm:?} norm")
            };
            return Err(Error::msg(format!(
                "an adapter of a weight {} does not fit a layer of {}: make the layer with \
                 `DoraConfig::of_peft`, of the weight that the adapter is for",
                named(theirs, adapter.scaling()),
                named(ours, spec.scaling()),
            )));
        }
        if !self.adapter().is_variable() {
            return Err(Error::msg(
                "this layer's adapter is a constant: make the layer with `DoraLinear::new` and the \
                 `VarBuilder` of a `VarMap`",
            ));
        }
        let mut values = self.adapter().to_vec1::<f32>()?;
        for (part, source) in [
            (Part::LoraA, adapter.lora_a()),
            (Part::LoraB, adapter.lora_b()),
            (Part::Magnitude, adapter.magnitude()),
        ] {
            values[self.layout().range(part)].copy_from_slice(source);
        }
        let values = Tensor::from_vec(values, self.layout().len(), self.adapter().device())?;
        Var::from_tensor(self.adapter())?.set(&values)
    }
}
