//! One linear layer: an adapter beside a frozen weight, or the weight itself trained.

use std::ops::Range;

use fused_dora::cudarc::driver::CudaSlice;
use fused_dora::{
    AdapterGroups, AdapterLayout, Backward, Decompose, DecomposeAdapter, Decomposition, DoraSpec,
    Dtype, Element, Forward, Gradients, Magnitude, Merge, Norm, NormGrad, OptimizerGroup,
    OptimizerPart, Part, Prepare, Prepared, Result, Scaling, Workspace,
};
use rand::Rng;

use crate::data::Linear;
use crate::network::{Adapter, Engine, Method};
use crate::optimizer::Optimizer;
use fused_dora_testkit::run::driver;

/// One layer, and what the backward needs of the forward.
pub struct Layer<E> {
    /// Of rank 0 and without a norm where there is no adapter.
    spec: DoraSpec,
    /// Its adapter's parameters, if any, among the network's.
    layout: AdapterLayout,
    adapter: Range<usize>,
    master: Option<Master<E>>,
    weight: CudaSlice<E>,
    bias: CudaSlice<E>,
    prepared: Prepared<E>,
    x: CudaSlice<E>,
    y: CudaSlice<E>,
    h: CudaSlice<E>,
    grad_output: CudaSlice<E>,
    grad_input: CudaSlice<E>,
}

/// A trained weight: an f32 master, of which the layer computes with a rounded copy.
struct Master<E> {
    /// The master's elements among the network's parameters.
    range: Range<usize>,
    /// W before training.
    base: CudaSlice<E>,
    /// Rounding is a merge in a layer of f32 that has no adapter.
    spec: DoraSpec,
    prepared: Prepared<f32>,
}

impl<E: Element> Layer<E> {
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
        let make = |rank, norm, dtype| {
            let scaling = Scaling::Standard { alpha: adapter.alpha };
            DoraSpec::new(inputs, outputs, rank, scaling, norm, NormGrad::Detached, dtype)
        };
        let upload = |values: &[f32]| {
            let values: Vec<_> = values.iter().map(|&value| E::from_f32(value)).collect();
            stream.clone_htod(&values).map_err(driver("copying to the device"))
        };
        let space =
            |len: usize| stream.alloc_zeros(len.max(1)).map_err(driver("allocating activations"));
        let (spec, master) = match method {
            Method::Adapter(norm) => (make(adapter.rank, norm, E::DTYPE)?, None),
            Method::Full => {
                let range = start..start + linear.weight.len();
                let spec = make(0, Norm::None, Dtype::F32)?;
                let (base, prepared) = (upload(&linear.weight)?, Prepared::new(stream, &spec)?);
                (make(0, Norm::None, E::DTYPE)?, Some(Master { range, base, spec, prepared }))
            }
        };
        let layout = AdapterLayout::new(&spec);
        Ok(Self {
            spec,
            layout,
            adapter: start..start + layout.len(),
            master,
            weight: upload(&linear.weight)?,
            bias: upload(&linear.bias)?,
            prepared: Prepared::new(stream, &spec)?,
            x: space(max_tokens * inputs)?,
            y: space(max_tokens * outputs)?,
            h: space(max_tokens * spec.padded_rank())?,
            grad_output: space(max_tokens * outputs)?,
            grad_input: space(max_tokens * inputs)?,
        })
    }

    /// What the workspace has to fit.
    pub fn specs(&self) -> impl Iterator<Item = DoraSpec> {
        [self.spec].into_iter().chain(self.master.as_ref().map(|master| master.spec))
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
        let limit = 1.0 / (self.spec.in_features() as f32).sqrt();
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
        if let Some(Master { range, spec, prepared, .. }) = &mut self.master {
            let empty = optimizer.parameters(&(0..0));
            let inputs = Prepare {
                weight: optimizer.parameters(range),
                lora_a: empty.slice(..),
                lora_b: empty,
                magnitude: Magnitude::None,
                bias: None,
            };
            kernels.prepare(stream, spec, workspace, prepared, inputs)?;
        }
        let adapter = self.layout.view_mut(optimizer.parameters_mut(&self.adapter))?;
        let inputs = Prepare {
            weight: self.weight.as_view(),
            lora_a: adapter.lora_a.as_view(),
            lora_b: adapter.lora_b.as_view(),
            magnitude: adapter.magnitude.map_or(Magnitude::None, Magnitude::Init),
            bias: None,
        };
        kernels.prepare(stream, &self.spec, workspace, &mut self.prepared, inputs)
    }

    /// Makes the layer compute with the parameters as they are now.
    pub fn refresh(
        &mut self,
        engine: &Engine,
        workspace: &mut Workspace,
        optimizer: &Optimizer,
    ) -> Result<()> {
        let Engine { stream, kernels } = engine;
        if let Some(Master { range, spec, prepared, .. }) = &self.master {
            let empty = optimizer.parameters(&(0..0));
            let io = Merge {
                weight: optimizer.parameters(range),
                lora_a: empty.slice(..),
                lora_b: empty,
                merged: self.weight.as_view_mut(),
                report: None,
            };
            return kernels.merge(stream, spec, prepared, workspace, io);
        }
        let adapter = self.layout.view(optimizer.parameters(&self.adapter))?;
        let inputs = Prepare {
            weight: self.weight.as_view(),
            lora_a: adapter.lora_a,
            lora_b: adapter.lora_b,
            magnitude: adapter.magnitude.map_or(Magnitude::None, Magnitude::Given),
            bias: None,
        };
        kernels.prepare(stream, &self.spec, workspace, &mut self.prepared, inputs)
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
        let outputs = tokens * self.spec.out_features();
        engine.upload(input, &mut self.x)?;
        let io = Forward {
            tokens,
            x: self.x.slice(..input.len()).into(),
            weight: self.weight.as_view(),
            bias: Some(self.bias.as_view()),
            seed,
            dropout: None,
            z: None,
            y: self.y.slice_mut(..outputs).into(),
            h: self.h.slice_mut(..tokens * self.spec.padded_rank()),
        };
        engine.kernels.forward(&engine.stream, &self.spec, &self.prepared, workspace, io)?;
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
        let spec = &self.spec;
        let (inputs, outputs) = (tokens * spec.in_features(), tokens * spec.out_features());
        engine.upload(grad_output, &mut self.grad_output)?;
        let gradients = self.layout.view_mut(optimizer.gradients_mut(&self.adapter))?;
        let mut io = Backward {
            tokens,
            gradients: Gradients::Overwrite,
            x: self.x.slice(..inputs).into(),
            weight: self.weight.as_view(),
            bias: Some(self.bias.as_view()),
            output: Some(self.y.slice(..outputs).into()),
            z: None,
            dropout: None,
            grad_output: self.grad_output.slice(..outputs).into(),
            h: self.h.slice(..tokens * spec.padded_rank()),
            grad_input: wants_input.then(|| self.grad_input.slice_mut(..inputs).into()),
            grad_lora_a: gradients.lora_a,
            grad_lora_b: gradients.lora_b,
            grad_magnitude: gradients.magnitude,
            grad_bias: gradients.bias,
        };
        let Engine { stream, kernels } = engine;
        kernels.backward(stream, spec, &self.prepared, workspace, &mut io)?;
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
        engine.download(&self.x, tokens * self.spec.in_features())
    }

    /// dX `[tokens, I]` of the last backward.
    pub fn grad_input(&self, engine: &Engine, tokens: usize) -> Result<Vec<f32>> {
        engine.download(&self.grad_input, tokens * self.spec.in_features())
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
        let axis = Norm::Input;
        if let Some(Master { range, base, .. }) = &self.master {
            let (weight, changed) = (base.as_view(), optimizer.parameters(range));
            let io = Decompose { axis, weight, changed, result: result.as_view_mut() };
            kernels.decompose(stream, &self.spec, workspace, io)?;
        } else {
            let adapter = self.layout.view(optimizer.parameters(&self.adapter))?;
            let io = DecomposeAdapter {
                axis,
                weight: self.weight.as_view(),
                lora_a: adapter.lora_a,
                lora_b: adapter.lora_b,
                result: result.as_view_mut(),
            };
            kernels.decompose_adapter(stream, &self.spec, &self.prepared, workspace, io)?;
        }
        Decomposition::read(stream, &result.as_view())
    }
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
