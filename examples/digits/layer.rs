//! One linear layer: a frozen weight with an adapter, or the weight itself trained.

use std::ops::Range;

use fused_dora::cudarc::driver::CudaSlice;
use fused_dora::quant::QuantizedWeight;
use fused_dora::{
    AdapterGroups, AdapterLayout, Backward, Base, Decompose, DecomposeAdapter, Decomposition,
    DoraLinear, DoraSpec, Dtype, Forward, Gradients, Layer as DoraLayer, Magnitude, Merge, Norm,
    NormGrad, OptimizerGroup, OptimizerPart, Part, Prepare, Read, Result, Saved, Scaling,
    SharedWeight, Workspace,
};
use fused_dora_testkit::run::driver;
use rand::Rng;

use crate::data::Linear;
use crate::network::{Adapter, Engine, Method, Number};
use crate::optimizer::Optimizer;

/// One layer, and what the backward needs of the forward.
pub struct Layer<E> {
    /// Of rank 0 and without a norm where there is no adapter.
    layer: DoraLayer,
    /// Its adapter's parameters, if any, among the network's.
    layout: AdapterLayout,
    adapter: Range<usize>,
    master: Option<Master<E>>,
    weight: Weight<E>,
    bias: CudaSlice<E>,
    saved: Saved,
    x: CudaSlice<E>,
    y: CudaSlice<E>,
    grad_output: CudaSlice<E>,
    grad_input: CudaSlice<E>,
}

/// A trained weight: an f32 master. The layer computes with a rounded copy of it.
struct Master<E> {
    /// The master's elements among the network's parameters.
    range: Range<usize>,
    /// W before training.
    base: CudaSlice<E>,
    /// Rounding is a merge in a layer of f32 that has no adapter.
    layer: DoraLayer,
}

/// W on the device.
enum Weight<E> {
    Dense(CudaSlice<E>),
    Packed(SharedWeight),
}

impl<E: Number> Weight<E> {
    fn read(&self) -> fused_dora::Weight<'_> {
        match self {
            Self::Dense(weight) => weight.into(),
            Self::Packed(weight) => weight.read(),
        }
    }
}

impl<E: Number> Layer<E> {
    /// A layer whose parameters are the network's from `start` on.
    pub fn new(
        engine: &Engine,
        linear: &Linear,
        method: Method,
        adapter: Adapter,
        start: usize,
        max_tokens: usize,
    ) -> Result<Self> {
        let stream = &engine.stream;
        let (inputs, outputs) = (linear.in_features, linear.out_features);
        let upload = |values: &[f32]| {
            let values: Vec<_> = values.iter().map(|&value| E::from_f32(value)).collect();
            stream.clone_htod(&values).map_err(driver("copying to the device"))
        };
        let space =
            |len: usize| stream.alloc_zeros(len.max(1)).map_err(driver("allocating activations"));
        let plain = |dtype| DoraLinear::base_spec(inputs, outputs, dtype);
        let (spec, master) = match method {
            Method::Adapter(norm) => {
                let (rank, scaling) = (adapter.rank, Scaling::Standard { alpha: adapter.alpha });
                let norm_grad = NormGrad::Detached;
                let spec =
                    DoraSpec::new(inputs, outputs, rank, scaling, norm, norm_grad, E::DTYPE)?;
                (adapter.base.map_or(Ok(spec), |format| spec.with_weight(format))?, None)
            }
            Method::Full => {
                let range = start..start + linear.weight.len();
                let layer = DoraLayer::new(stream, &plain(Dtype::F32)?)?;
                let base = upload(&linear.weight)?;
                (plain(E::DTYPE)?, Some(Master { range, base, layer }))
            }
        };
        let layout = AdapterLayout::new(&spec);
        let weight = match spec.weight() {
            Some(format) => {
                let packed = QuantizedWeight::quantize(&linear.weight, [outputs, inputs], format)?;
                Weight::Packed(SharedWeight::packed(stream, E::DTYPE, &packed)?)
            }
            None => Weight::Dense(upload(&linear.weight)?),
        };
        Ok(Self {
            layer: DoraLayer::new(stream, &spec)?,
            layout,
            adapter: start..start + layout.len(),
            master,
            weight,
            bias: upload(&linear.bias)?,
            saved: Saved::new(stream, &[spec], max_tokens, None)?,
            x: space(max_tokens * inputs)?,
            y: space(max_tokens * outputs)?,
            grad_output: space(max_tokens * outputs)?,
            grad_input: space(max_tokens * inputs)?,
        })
    }

    /// What the workspace has to fit.
    pub fn specs(&self) -> impl Iterator<Item = DoraSpec> {
        let master = self.master.as_ref().map(|master| &master.layer);
        [&self.layer].into_iter().chain(master).map(|layer| *layer.spec())
    }

    /// What the optimizer does with its parameters: matrices decay, magnitudes do not.
    pub fn parts(&self) -> impl Iterator<Item = OptimizerPart> {
        let groups = AdapterGroups::default();
        let master = self.master.as_ref().map(|master| OptimizerPart {
            range: master.range.clone(),
            group: OptimizerGroup { weight_decay: 0.01, ..OptimizerGroup::default() },
        });
        groups.parts(&self.layout, self.adapter.start).chain(master)
    }

    /// Its parameters before training: the weight as the layer has it; or A uniform in ±1/√I
    /// (Kaiming, a = √5), B zero, and m as [`initialise`](Self::initialise) will set it.
    pub fn initial(&self, linear: &Linear, rng: &mut impl Rng) -> Vec<f32> {
        if self.master.is_some() {
            return linear.weight.iter().map(|&w| E::from_f32(w).to_f32()).collect();
        }
        let limit = 1.0 / (self.layer.spec().in_features() as f32).sqrt();
        let mut parameters = vec![0.0; self.layout.len()];
        let lora_a = &mut parameters[self.layout.range(Part::LoraA)];
        lora_a.iter_mut().for_each(|value| *value = rng.random_range(-limit..limit));
        parameters
    }

    /// The first preparation, in which m becomes the norm of W: the layer computes what the base
    /// does.
    pub fn initialise(
        &mut self,
        engine: &Engine,
        workspace: &mut Workspace,
        optimizer: &mut Optimizer,
    ) -> Result<()> {
        let Engine { stream, kernels } = engine;
        if let Some(Master { range, layer, .. }) = &mut self.master {
            let [lora_a, lora_b] = no_factors(optimizer);
            let weight = optimizer.parameters(range).into();
            let (magnitude, bias) = (Magnitude::None, None);
            let inputs = Prepare { weight, lora_a, lora_b, magnitude, bias };
            layer.prepare(kernels, stream, workspace, inputs)?;
        }
        let adapter = self.layout.view_mut(optimizer.parameters_mut(&self.adapter))?;
        let fresh = adapter.magnitude.map(|magnitude| Magnitude::Init(magnitude.into()));
        let inputs = Prepare {
            weight: self.weight.read(),
            lora_a: adapter.lora_a.as_view().into(),
            lora_b: adapter.lora_b.as_view().into(),
            magnitude: fresh.unwrap_or(Magnitude::None),
            bias: None,
        };
        self.layer.prepare(kernels, stream, workspace, inputs)
    }

    /// Makes the layer compute with the parameters as they are now.
    pub fn refresh(
        &mut self,
        engine: &Engine,
        workspace: &mut Workspace,
        optimizer: &Optimizer,
    ) -> Result<()> {
        let Engine { stream, kernels } = engine;
        // A weight that is trained is dense.
        if let (Some(Master { range, layer, .. }), Weight::Dense(merged)) =
            (&self.master, &mut self.weight)
        {
            let [lora_a, lora_b] = no_factors(optimizer);
            let weight = optimizer.parameters(range).into();
            let merged = merged.into();
            let io = Merge { weight, lora_a, lora_b, merged, report: None };
            return kernels.merge(stream, layer.spec(), layer.prepared(), workspace, io);
        }
        let adapter = self.layout.view(optimizer.parameters(&self.adapter))?;
        let inputs = Prepare {
            weight: self.weight.read(),
            lora_a: adapter.lora_a.into(),
            lora_b: adapter.lora_b.into(),
            magnitude: adapter.magnitude.into(),
            bias: None,
        };
        self.layer.prepare(kernels, stream, workspace, inputs)
    }

    /// y `[tokens, O]` of x `[tokens, I]`.
    pub fn forward(
        &mut self,
        engine: &Engine,
        workspace: &mut Workspace,
        tokens: usize,
        input: &[f32],
        seed: u64,
    ) -> Result<Vec<f32>> {
        let outputs = tokens * self.layer.spec().out_features();
        engine.upload(input, &mut self.x)?;
        let (h, z) = self.saved.write(&self.layer, tokens, None)?;
        let io = Forward {
            tokens,
            base: Base::new(self.weight.read()).with_bias(Some(&self.bias)),
            x: self.x.slice(..input.len()).into(),
            y: self.y.slice_mut(..outputs).into(),
            h,
            z,
            dropout: None,
            counter: None,
            seed,
        };
        self.layer.forward(&engine.kernels, &engine.stream, workspace, io)?;
        engine.download(&self.y, outputs)
    }

    /// Gives the optimizer this layer's gradients for dY `[tokens, O]`, and makes dX if it is wanted.
    pub fn backward(
        &mut self,
        engine: &Engine,
        workspace: &mut Workspace,
        optimizer: &mut Optimizer,
        tokens: usize,
        grad_output: &[f32],
        wants_input: bool,
    ) -> Result<()> {
        let spec = self.layer.spec();
        let (inputs, outputs) = (tokens * spec.in_features(), tokens * spec.out_features());
        engine.upload(grad_output, &mut self.grad_output)?;
        let (h, z) = self.saved.read(&self.layer, tokens, None)?;
        let gradients = self.layout.view_mut(optimizer.gradients_mut(&self.adapter))?;
        let io = Backward {
            tokens,
            gradients: Gradients::Overwrite,
            base: Base::new(self.weight.read()).with_bias(Some(&self.bias)),
            x: self.x.slice(..inputs).into(),
            output: Some(self.y.slice(..outputs).into()),
            z,
            dropout: None,
            counter: None,
            grad_output: self.grad_output.slice(..outputs).into(),
            h,
            grad_input: wants_input.then(|| self.grad_input.slice_mut(..inputs).into()),
            grad_lora_a: gradients.lora_a.into(),
            grad_lora_b: gradients.lora_b.into(),
            grad_magnitude: gradients.magnitude.map(Into::into),
            grad_bias: gradients.bias.map(Into::into),
        };
        let Engine { stream, kernels } = engine;
        self.layer.backward(kernels, stream, workspace, io)?;
        if let Some(Master { range, .. }) = &self.master {
            let x = self.input(engine, tokens)?;
            let gradient = weight_gradient(grad_output, &x, tokens);
            let mut to = optimizer.gradients_mut(range);
            stream.memcpy_htod(&gradient, &mut to).map_err(driver("copying to the device"))?;
        }
        Ok(())
    }

    /// x `[tokens, I]` of the last forward.
    pub fn input(&self, engine: &Engine, tokens: usize) -> Result<Vec<f32>> {
        engine.download(&self.x, tokens * self.layer.spec().in_features())
    }

    /// dX `[tokens, I]` of the last backward.
    pub fn grad_input(&self, engine: &Engine, tokens: usize) -> Result<Vec<f32>> {
        engine.download(&self.grad_input, tokens * self.layer.spec().in_features())
    }

    /// How far the weight has moved from the base, along its columns as in the paper.
    pub fn decompose(
        &self,
        engine: &Engine,
        workspace: &mut Workspace,
        optimizer: &Optimizer,
    ) -> Result<Decomposition> {
        let Engine { stream, kernels } = engine;
        let during = "allocating a decomposition";
        let mut result = stream.alloc_zeros(Decomposition::LEN).map_err(driver(during))?;
        let (axis, spec) = (Norm::Input, self.layer.spec());
        if let Some(Master { range, base, .. }) = &self.master {
            let (weight, changed) = (base.into(), optimizer.parameters(range).into());
            let io = Decompose { axis, weight, changed, result: (&mut result).into() };
            kernels.decompose(stream, spec, workspace, io)?;
        } else {
            let adapter = self.layout.view(optimizer.parameters(&self.adapter))?;
            let io = DecomposeAdapter {
                axis,
                weight: self.weight.read(),
                lora_a: adapter.lora_a.into(),
                lora_b: adapter.lora_b.into(),
                result: (&mut result).into(),
            };
            kernels.decompose_adapter(stream, spec, self.layer.prepared(), workspace, io)?;
        }
        Decomposition::read(stream, &result.as_view())
    }
}

/// A and B of a layer that has none.
fn no_factors(optimizer: &Optimizer) -> [Read<'_>; 2] {
    [optimizer.parameters(&(0..0)).into(), optimizer.parameters(&(0..0)).into()]
}

/// dW = dYᵀ·x `[O, I]`, on the host: the crate's ops have no dense gradient of a weight.
fn weight_gradient(grad_output: &[f32], input: &[f32], tokens: usize) -> Vec<f32> {
    let (outputs, inputs) = (grad_output.len() / tokens, input.len() / tokens);
    let mut gradient = vec![0.0; outputs * inputs];
    for (grads, x) in grad_output.chunks_exact(outputs).zip(input.chunks_exact(inputs)) {
        for (row, &grad) in gradient.chunks_exact_mut(inputs).zip(grads) {
            row.iter_mut().zip(x).for_each(|(sum, x)| *sum += grad * x);
        }
    }
    gradient
}
