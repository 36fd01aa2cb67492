//! Steps of the optimizer on the device and in float64.

use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaSlice, CudaStream};
use fused_dora::reference::{AdamWState, AdamWStep, Tracked};
use fused_dora::{
    AdamW, AdamWConfig, AdapterGroups, AdapterLayout, Clip, DoraSpec, Dtype, GradientNorm, Kernels,
    Norm, NormGrad, OptimizerGroup, OptimizerPart, Result, Scaling, Schedule, Workspace,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::compare::Comparison;
use super::random::fresh_seed;

pub const POISON: f32 = f32::from_bits(u32::MAX);

pub const CONFIG: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.99, epsilon: 1e-8 };

/// How a run's gradients are clipped.
#[derive(Clone, Copy, PartialEq)]
pub enum Clipping {
    None,
    /// By `gradient_norm`, to this norm.
    Norm(f64),
}

/// Where a run's learning rate and step come from.
#[derive(Clone, Copy)]
pub enum From {
    Host,
    Device,
}

pub struct Device {
    pub stream: Arc<CudaStream>,
    pub kernels: Arc<Kernels>,
    workspace: Workspace,
}

impl Device {
    pub fn open() -> Self {
        let context = super::device::open().expect("a device");
        Self::with_kernels(&Arc::new(Kernels::load(&context).expect("kernels")))
    }

    /// Takes kernels that are loaded.
    pub fn with_kernels(kernels: &Arc<Kernels>) -> Self {
        let (stream, kernels) = (kernels.context().default_stream(), kernels.clone());
        let workspace = Workspace::new(&kernels, &stream, &[], 0).expect("memory");
        Self { stream, kernels, workspace }
    }

    pub fn upload(&self, values: &[f32]) -> CudaSlice<f32> {
        self.stream.clone_htod(values).expect("memory")
    }

    pub fn norm(&mut self, parts: &[OptimizerPart], gradients: &[f32]) -> Result<f32> {
        let gradients = self.upload(gradients);
        let mut norm = self.upload(&[POISON]);
        let io = GradientNorm {
            len: gradients.len(),
            parts,
            gradients: (&gradients).into(),
            norm: (&mut norm).into(),
        };
        self.kernels.gradient_norm(&self.stream, &mut self.workspace, io)?;
        Ok(self.stream.clone_dtoh(&norm).expect("a copy")[0])
    }
}

/// Buffers of `len` elements from `offset` on. Their `parts` go through the optimizer.
pub struct Problem {
    pub parts: Vec<OptimizerPart>,
    pub len: usize,
    pub offset: usize,
}

impl Problem {
    /// Adapters one behind the other in one buffer.
    pub fn of_adapters(layouts: &[AdapterLayout], groups: AdapterGroups) -> Self {
        let (mut parts, mut len) = (Vec::new(), 0);
        for layout in layouts {
            parts.extend(groups.parts(layout, len));
            len += layout.len();
        }
        Self { parts, len, offset: 0 }
    }

    fn elements(&self) -> impl Iterator<Item = (usize, OptimizerGroup)> {
        self.parts.iter().flat_map(|part| part.range.clone().map(|i| (i, part.group)))
    }

    /// A buffer with NaN wherever no part is.
    fn poisoned(&self, mut value: impl FnMut(usize) -> f32) -> Vec<f32> {
        let mut buffer = vec![POISON; self.len];
        self.elements().for_each(|(i, _)| buffer[i] = value(i));
        buffer
    }

    /// `steps` of the optimizer on the device and in float64, compared element by element.
    pub fn run(&self, device: &mut Device, steps: u64, from: From, clipping: Clipping) {
        let mut random = StdRng::seed_from_u64(fresh_seed());
        let stream = device.stream.clone();
        let start = self.poisoned(|_| random.random_range(-1.0..1.0));
        let shifted = |values: &[f32]| {
            let mut padded = vec![POISON; self.offset];
            padded.extend(values);
            stream.clone_htod(&padded).expect("memory")
        };
        let mut parameters = shifted(&start);
        let mut moments = [0, 1].map(|_| shifted(&self.poisoned(|_| 0.0)));
        let mut norm = device.upload(&[POISON]);
        let exactly = |value: &f32| Tracked::exactly((*value).into());
        let mut states: Vec<_> = start
            .iter()
            .map(|value| AdamWState { parameter: exactly(value), ..AdamWState::default() })
            .collect();

        for step in 1..=steps {
            // All magnitudes that gradients have, and some that are none.
            let gradients = self.poisoned(|i| match (i + step as usize) % 17 {
                0 => 0.0,
                _ => {
                    let power: f32 = random.random_range(-12.0..1.0);
                    random.random_range(-1.0f32..1.0) * 10.0f32.powf(power)
                }
            });
            let learning_rate = f64::from(1e-2 / step as f32);
            let on_device = shifted(&gradients);
            let numbers = device.upload(&[learning_rate as f32, step as f32]);
            let clip = match clipping {
                Clipping::None => None,
                Clipping::Norm(max_norm) => {
                    let io = GradientNorm {
                        len: self.len,
                        parts: &self.parts,
                        gradients: on_device.slice(self.offset..).into(),
                        norm: (&mut norm).into(),
                    };
                    let workspace = &mut device.workspace;
                    device.kernels.gradient_norm(&stream, workspace, io).expect("the norm");
                    Some(Clip { max_norm, norm: (&norm).into() })
                }
            };
            let [exp_avg, exp_avg_sq] = &mut moments;
            let io = AdamW {
                len: self.len,
                parts: &self.parts,
                schedule: match from {
                    From::Host => Schedule::Host { learning_rate, step },
                    From::Device => Schedule::Device((&numbers).into()),
                },
                clip,
                parameters: parameters.slice_mut(self.offset..).into(),
                gradients: on_device.slice(self.offset..).into(),
                exp_avg: exp_avg.slice_mut(self.offset..).into(),
                exp_avg_sq: exp_avg_sq.slice_mut(self.offset..).into(),
            };
            device.kernels.adamw(&stream, &CONFIG, io).expect("a step");
            let clip = self.clip(&gradients, clipping);
            self.advance(&mut states, &gradients, learning_rate, step, clip);
        }
        let [exp_avg, exp_avg_sq] = &moments;
        self.compare(device, "parameters", &parameters, &states, |state| state.parameter);
        self.compare(device, "exp_avg", exp_avg, &states, |state| state.exp_avg);
        self.compare(device, "exp_avg_sq", exp_avg_sq, &states, |state| state.exp_avg_sq);
    }

    fn clip(&self, gradients: &[f32], clipping: Clipping) -> f64 {
        let square = |(i, _)| f64::from(gradients[i]).powi(2);
        let norm = self.elements().map(square).sum::<f64>().sqrt();
        match clipping {
            Clipping::Norm(max_norm) if norm > max_norm => max_norm / norm,
            _ => 1.0,
        }
    }

    fn advance(
        &self,
        states: &mut [AdamWState],
        gradients: &[f32],
        learning_rate: f64,
        step: u64,
        clip: f64,
    ) {
        for (i, group) in self.elements() {
            let step = AdamWStep {
                learning_rate: group.learning_rate_factor * learning_rate,
                weight_decay: group.weight_decay,
                beta1: CONFIG.beta1,
                beta2: CONFIG.beta2,
                epsilon: CONFIG.epsilon,
                step,
                clip,
            };
            step.apply(&mut states[i], gradients[i].into());
        }
    }

    fn compare(
        &self,
        device: &Device,
        name: &str,
        found: &CudaSlice<f32>,
        states: &[AdamWState],
        of: impl Fn(&AdamWState) -> Tracked,
    ) {
        let found = device.stream.clone_dtoh(found).expect("a copy").split_off(self.offset);
        let (mut values, mut expected, mut bounds) = (Vec::new(), Vec::new(), Vec::new());
        let mut is_part = vec![false; self.len];
        for (i, _) in self.elements() {
            let tracked = of(&states[i]);
            values.push(found[i]);
            expected.push(tracked.value);
            bounds.push(tracked.error);
            is_part[i] = true;
        }
        let shape = [values.len()];
        let comparison = Comparison::new(name, &shape, Dtype::F32, &values, &expected, &bounds);
        assert!(comparison.ok(), "{} elements, {comparison}", self.len);
        for (i, value) in found.iter().enumerate().filter(|(i, _)| !is_part[*i]) {
            assert_eq!(value.to_bits(), POISON.to_bits(), "{name}: element {i} is nobody's");
        }
    }
}

pub fn layout(shape: [usize; 3], norm: Norm, bias: bool) -> AdapterLayout {
    let [inputs, outputs, rank] = shape;
    let scaling = Scaling::Value(1.0);
    let spec = DoraSpec::new(inputs, outputs, rank, scaling, norm, NormGrad::Detached, Dtype::Bf16)
        .expect("a layer");
    if bias { AdapterLayout::with_bias(&spec) } else { AdapterLayout::new(&spec) }
}

/// LoRA, DoRA on both axes and the magnitude alone, with padding and without.
pub fn adapters() -> Problem {
    let layouts = [
        layout([37, 53, 3], Norm::Input, true),
        layout([64, 64, 16], Norm::Output, false),
        layout([129, 70, 5], Norm::None, false),
        layout([301, 5, 0], Norm::Input, true),
    ];
    let group =
        |learning_rate_factor, weight_decay| OptimizerGroup { learning_rate_factor, weight_decay };
    let groups = AdapterGroups {
        lora_a: group(1.0, 0.01),
        lora_b: group(16.0, 0.1),
        magnitude: group(0.5, 0.0),
        bias: group(2.0, 0.0),
    };
    Problem::of_adapters(&layouts, groups)
}
