//! The network: three linear layers on the device, ReLU between them on the host.

use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use fused_dora::quant::WeightFormat;
use fused_dora::{
    AllReduce, Decomposition, Element, Kernels, Norm, Result, TensorElement, Workspace,
};
use rand::Rng;

use crate::data::Linear;
use crate::layer::Layer;
use crate::optimizer::Optimizer;
use fused_dora_testkit::run::driver;

const TO_DEVICE: &str = "copying to the device";
const FROM_DEVICE: &str = "copying from the device";

/// What a layer computes in.
pub trait Number: Element + TensorElement {}

impl<E: Element + TensorElement> Number for E {}

/// What all layers of a network share.
pub struct Engine {
    pub stream: Arc<CudaStream>,
    pub kernels: Kernels,
}

impl Engine {
    /// Loads the kernels into `context`.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        Ok(Self { stream: context.default_stream(), kernels: Kernels::load(context)? })
    }

    /// Rounds `values` to the start of a device buffer.
    pub fn upload<E: Element>(&self, values: &[f32], to: &mut CudaSlice<E>) -> Result<()> {
        let values: Vec<E> = values.iter().map(|&value| E::from_f32(value)).collect();
        let mut to = to.slice_mut(..values.len());
        self.stream.memcpy_htod(&values, &mut to).map_err(driver(TO_DEVICE))
    }

    /// The first `len` elements of a device buffer.
    pub fn download<E: Element>(&self, from: &CudaSlice<E>, len: usize) -> Result<Vec<f32>> {
        let values = self.stream.clone_dtoh(&from.slice(..len)).map_err(driver(FROM_DEVICE))?;
        Ok(values.into_iter().map(Element::to_f32).collect())
    }
}

/// What is trained.
#[derive(Clone, Copy, PartialEq)]
pub enum Method {
    /// Every weight.
    Full,
    /// An adapter for each weight, with this norm axis.
    Adapter(Norm),
}

/// The adapter that every layer gets, if it gets one.
#[derive(Clone, Copy)]
pub struct Adapter {
    /// r.
    pub rank: usize,
    /// α; the scaling is α/r.
    pub alpha: f32,
    /// How the frozen weights are packed, if they are.
    pub base: Option<WeightFormat>,
}

/// A network, and the optimizer of what is trained in it.
pub struct Network<'a, E> {
    engine: &'a Engine,
    workspace: Workspace,
    layers: Vec<Layer<E>>,
    optimizer: Optimizer,
}

impl<'a, E: Number> Network<'a, E> {
    /// Uploads the base, with fresh adapters where there are some, so that the network computes what
    /// the base does.
    pub fn new(
        engine: &'a Engine,
        base: &[Linear],
        method: Method,
        adapter: Adapter,
        max_tokens: usize,
        rng: &mut impl Rng,
    ) -> Result<Self> {
        let (mut layers, mut parameters, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for linear in base {
            let start = parameters.len();
            let layer = Layer::new(engine, linear, method, adapter, start, max_tokens)?;
            parts.extend(layer.parts());
            parameters.extend(layer.initial(linear, rng));
            layers.push(layer);
        }
        let specs: Vec<_> = layers.iter().flat_map(Layer::specs).collect();
        let mut workspace = Workspace::new(&engine.kernels, &engine.stream, &specs, max_tokens)?;
        let mut optimizer = Optimizer::new(engine, &parameters, parts)?;
        for layer in &mut layers {
            layer.initialise(engine, &mut workspace, &mut optimizer)?;
        }
        Ok(Self { engine, workspace, layers, optimizer })
    }

    /// How many numbers are trained.
    pub fn parameter_count(&self) -> usize {
        self.optimizer.parameter_count()
    }

    /// Kernels launched by a training step: 1 for the optimizer, and per layer 1 for `prepare` (or for
    /// rounding the weight, without an adapter), 1 for `forward` and 1 for `backward`.
    pub fn launches_per_step(&self) -> usize {
        3 * self.layers.len() + 1
    }

    /// The logits of a batch, `[tokens, CLASSES]`. `seed` is for the stochastic rounding.
    pub fn forward(&mut self, tokens: usize, input: &[f32], seed: u64) -> Result<Vec<f32>> {
        let mut x = input.to_vec();
        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            x = layer.forward(self.engine, &mut self.workspace, tokens, &x, seed)?;
            if index != last {
                x.iter_mut().for_each(|value| *value = value.max(0.0));
            }
        }
        Ok(x)
    }

    /// The gradients for the batch of the last forward, which the next [`update`](Self::update)
    /// takes.
    pub fn backward(&mut self, tokens: usize, grad_logits: &[f32]) -> Result<()> {
        let Self { engine, workspace, layers, optimizer, .. } = self;
        let mut grad = grad_logits.to_vec();
        for (index, layer) in layers.iter_mut().enumerate().rev() {
            let wants_input = index > 0;
            layer.backward(engine, workspace, optimizer, tokens, &grad, wants_input)?;
            if wants_input {
                // x is what the ReLU let through, so where it is 0, so is the gradient.
                let x = layer.input(engine, tokens)?;
                grad = layer.grad_input(engine, tokens)?;
                grad.iter_mut().zip(x).filter(|(_, x)| *x <= 0.0).for_each(|(g, _)| *g = 0.0);
            }
        }
        Ok(())
    }

    /// Adds up the gradients of all ranks: one sum, of the one buffer in which they lie.
    pub fn sum_over_ranks(&mut self, rank: &dyn AllReduce) -> Result<()> {
        self.optimizer.sum_over_ranks(rank)
    }

    /// The parameters, and padding.
    pub fn parameters(&self) -> Result<Vec<f32>> {
        self.optimizer.download(self.engine)
    }

    /// A step of the optimizer, after which the layers are made ready again.
    pub fn update(&mut self, learning_rate: f32) -> Result<()> {
        self.optimizer.update(self.engine, learning_rate)?;
        for layer in &mut self.layers {
            layer.refresh(self.engine, &mut self.workspace, &self.optimizer)?;
        }
        Ok(())
    }

    /// How far each layer's weight has moved from the base, along its columns.
    pub fn decompose(&mut self) -> Result<Vec<Decomposition>> {
        let Self { engine, workspace, layers, optimizer, .. } = self;
        layers.iter().map(|layer| layer.decompose(engine, workspace, optimizer)).collect()
    }
}
