//! The adapted network: three DoRA layers on the device, ReLU between them on the host.

use std::ops::Range;
use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use fused_dora::{
    Backward, DoraSpec, Element, Forward, Gradients, Kernels, Magnitude, Norm, NormGrad, Prepare,
    Prepared, Result, Scaling, Workspace,
};
use rand::Rng;

use crate::common::run::driver;
use crate::digits::Linear;

const TO_DEVICE: &str = "copying to the device";
const FROM_DEVICE: &str = "copying from the device";

/// What all layers of a network share.
pub struct Engine {
    stream: Arc<CudaStream>,
    kernels: Kernels,
}

impl Engine {
    /// Loads the kernels into `context`.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        Ok(Self { stream: context.default_stream(), kernels: Kernels::load(context)? })
    }
}

/// One layer: the frozen base, the adapter, and what the backward needs of the forward.
struct Layer<E> {
    spec: DoraSpec,
    weight: CudaSlice<E>,
    bias: CudaSlice<E>,
    /// A, B and m, one after the other: the host's masters and the device's copy.
    parameters: Vec<f32>,
    device_parameters: CudaSlice<f32>,
    /// dA, dB and dm, laid out like the parameters.
    gradients: CudaSlice<f32>,
    prepared: Prepared<E>,
    x: CudaSlice<E>,
    y: CudaSlice<E>,
    h: CudaSlice<E>,
    grad_output: CudaSlice<E>,
    grad_input: CudaSlice<E>,
}

/// Layers with adapters of one rank and norm axis.
pub struct Network<'a, E> {
    engine: &'a Engine,
    workspace: Workspace,
    layers: Vec<Layer<E>>,
}

/// The adapter that every layer gets.
#[derive(Clone, Copy)]
pub struct Adapter {
    /// r.
    pub rank: usize,
    /// α; the scaling is α/r.
    pub alpha: f32,
    /// The norm axis.
    pub norm: Norm,
}

impl<'a, E: Element> Network<'a, E> {
    /// Uploads the base and makes fresh adapters: A uniform in ±1/√I (Kaiming, a = √5), B zero,
    /// m the norm of W, so that the network computes what the base does.
    pub fn new(
        engine: &'a Engine,
        base: &[Linear],
        adapter: Adapter,
        max_tokens: usize,
        rng: &mut impl Rng,
    ) -> Result<Self> {
        let specs = base
            .iter()
            .map(|linear| {
                let scaling = Scaling::Standard { alpha: adapter.alpha };
                let (inputs, outputs) = (linear.in_features, linear.out_features);
                let (rank, norm) = (adapter.rank, adapter.norm);
                let detached = NormGrad::Detached;
                DoraSpec::new(inputs, outputs, rank, scaling, norm, detached, E::DTYPE)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut workspace = Workspace::new(&engine.kernels, &engine.stream, &specs, max_tokens)?;
        let layers = base
            .iter()
            .zip(specs)
            .map(|(linear, spec)| {
                let mut layer = Layer::new(engine, linear, spec, max_tokens, rng)?;
                layer.initialise_magnitude(engine, &mut workspace)?;
                Ok(layer)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { engine, workspace, layers })
    }

    /// How many numbers the adapters have.
    pub fn parameter_count(&self) -> usize {
        self.layers.iter().map(|layer| layer.parameters.len()).sum()
    }

    /// Kernels launched by a training step: per layer 1 for `prepare`, 2 for `forward`, and for
    /// `backward` 3, or 2 where neither dX nor the input's magnitude gradient is computed.
    pub fn launches_per_step(&self) -> usize {
        let first = &self.layers[0].spec;
        6 * self.layers.len() - usize::from(first.norm() != Norm::Input)
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

    /// The adapters' gradients for the batch of the last forward, each layer's in one piece.
    pub fn backward(&mut self, tokens: usize, grad_logits: &[f32]) -> Result<Vec<Vec<f32>>> {
        let mut gradients = Vec::new();
        let mut grad = grad_logits.to_vec();
        for index in (0..self.layers.len()).rev() {
            let layer = &mut self.layers[index];
            let wants_input = index > 0;
            layer.backward(self.engine, &mut self.workspace, tokens, &grad, wants_input)?;
            let stream = &self.engine.stream;
            gradients.push(stream.clone_dtoh(&layer.gradients).map_err(driver(FROM_DEVICE))?);
            if wants_input {
                // x is what the ReLU let through, so where it is 0, so is the gradient.
                let x = download(stream, &layer.x, tokens * layer.spec.in_features())?;
                grad = download(stream, &layer.grad_input, x.len())?;
                grad.iter_mut().zip(x).filter(|(_, x)| *x <= 0.0).for_each(|(g, _)| *g = 0.0);
            }
        }
        gradients.reverse();
        Ok(gradients)
    }

    /// Lets `update` change each layer's parameters, and prepares the layers again.
    pub fn update(&mut self, mut update: impl FnMut(usize, &mut [f32])) -> Result<()> {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            update(index, &mut layer.parameters);
            layer.prepare(self.engine, &mut self.workspace)?;
        }
        Ok(())
    }
}

impl<E: Element> Layer<E> {
    fn new(
        engine: &Engine,
        linear: &Linear,
        spec: DoraSpec,
        max_tokens: usize,
        rng: &mut impl Rng,
    ) -> Result<Self> {
        let stream = &engine.stream;
        let cast = |values: &[f32]| values.iter().map(|&v| E::from_f32(v)).collect::<Vec<_>>();
        let upload = |values: &[f32]| stream.clone_htod(&cast(values)).map_err(driver(TO_DEVICE));
        let space = |len| stream.alloc_zeros::<E>(len).map_err(driver("allocating activations"));
        let [a, b, m] = parts(&spec);
        let limit = 1.0 / (spec.in_features() as f32).sqrt();
        let mut parameters = vec![0.0; m.end];
        parameters[a].iter_mut().for_each(|value| *value = rng.random_range(-limit..limit));
        debug_assert!(parameters[b].iter().all(|&value| value == 0.0));
        Ok(Self {
            weight: upload(&linear.weight)?,
            bias: upload(&linear.bias)?,
            device_parameters: stream.clone_htod(&parameters).map_err(driver(TO_DEVICE))?,
            gradients: stream
                .alloc_zeros(parameters.len())
                .map_err(driver("allocating gradients"))?,
            parameters,
            prepared: Prepared::new(stream, &spec)?,
            x: space(max_tokens * spec.in_features())?,
            y: space(max_tokens * spec.out_features())?,
            h: space(max_tokens * spec.padded_rank())?,
            grad_output: space(max_tokens * spec.out_features())?,
            grad_input: space(max_tokens * spec.in_features())?,
            spec,
        })
    }

    /// The first preparation: the magnitude becomes the norm.
    fn initialise_magnitude(&mut self, engine: &Engine, workspace: &mut Workspace) -> Result<()> {
        if self.spec.norm() == Norm::None {
            return self.prepare(engine, workspace);
        }
        let [a, b, _] = parts(&self.spec);
        let (a, mut rest) = self.device_parameters.split_at_mut(a.end);
        let (b, m) = rest.split_at_mut(b.len());
        let inputs = Prepare {
            weight: self.weight.as_view(),
            lora_a: a.as_view(),
            lora_b: b.as_view(),
            magnitude: Magnitude::Init(m),
            bias: None,
        };
        let (stream, prepared) = (&engine.stream, &mut self.prepared);
        engine.kernels.prepare(stream, &self.spec, workspace, prepared, inputs)?;
        stream
            .memcpy_dtoh(&self.device_parameters, &mut self.parameters)
            .map_err(driver(FROM_DEVICE))
    }

    fn prepare(&mut self, engine: &Engine, workspace: &mut Workspace) -> Result<()> {
        let stream = &engine.stream;
        stream
            .memcpy_htod(&self.parameters, &mut self.device_parameters)
            .map_err(driver(TO_DEVICE))?;
        let [a, b, m] = parts(&self.spec).map(|part| self.device_parameters.slice(part));
        let magnitude = match self.spec.norm() {
            Norm::None => Magnitude::None,
            Norm::Input | Norm::Output => Magnitude::Given(m),
        };
        let inputs =
            Prepare { weight: self.weight.as_view(), lora_a: a, lora_b: b, magnitude, bias: None };
        engine.kernels.prepare(stream, &self.spec, workspace, &mut self.prepared, inputs)
    }

    fn forward(
        &mut self,
        engine: &Engine,
        workspace: &mut Workspace,
        tokens: usize,
        input: &[f32],
        seed: u64,
    ) -> Result<Vec<f32>> {
        let stream = &engine.stream;
        let outputs = tokens * self.spec.out_features();
        upload(stream, input, &mut self.x)?;
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
        engine.kernels.forward(stream, &self.spec, &self.prepared, workspace, io)?;
        download(stream, &self.y, outputs)
    }

    fn backward(
        &mut self,
        engine: &Engine,
        workspace: &mut Workspace,
        tokens: usize,
        grad_output: &[f32],
        wants_input: bool,
    ) -> Result<()> {
        let stream = &engine.stream;
        let spec = &self.spec;
        let (inputs, outputs) = (tokens * spec.in_features(), tokens * spec.out_features());
        upload(stream, grad_output, &mut self.grad_output)?;
        let [a, b, _] = parts(spec);
        let (grad_lora_a, mut rest) = self.gradients.split_at_mut(a.end);
        let (grad_lora_b, grad_magnitude) = rest.split_at_mut(b.len());
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
            grad_lora_a,
            grad_lora_b,
            grad_magnitude: (spec.norm() != Norm::None).then_some(grad_magnitude),
            grad_bias: None,
        };
        engine.kernels.backward(stream, spec, &self.prepared, workspace, &mut io)
    }
}

/// Where A, B and m lie among a layer's parameters.
fn parts(spec: &DoraSpec) -> [Range<usize>; 3] {
    let a = spec.rank() * spec.in_features();
    let b = a + spec.out_features() * spec.rank();
    [0..a, a..b, b..b + spec.magnitude_len()]
}

fn upload<E: Element>(
    stream: &Arc<CudaStream>,
    values: &[f32],
    to: &mut CudaSlice<E>,
) -> Result<()> {
    let values: Vec<E> = values.iter().map(|&value| E::from_f32(value)).collect();
    stream.memcpy_htod(&values, &mut to.slice_mut(..values.len())).map_err(driver(TO_DEVICE))
}

fn download<E: Element>(
    stream: &Arc<CudaStream>,
    from: &CudaSlice<E>,
    len: usize,
) -> Result<Vec<f32>> {
    let values = stream.clone_dtoh(&from.slice(..len)).map_err(driver(FROM_DEVICE))?;
    Ok(values.into_iter().map(Element::to_f32).collect())
}
