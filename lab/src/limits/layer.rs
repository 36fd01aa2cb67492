//! Layers run once on the emulated device, and what was counted of their launches.

use std::error::Error;
use std::sync::Arc;

use cuda_emulator::client::{Choice, Emulator, select};
use cuda_emulator::profile::Profile;
use cuda_emulator::{Config, MeasuredLaunch};
use fused_dora::cudarc::driver::CudaStream;
use fused_dora::{
    Backward, Base, DoraSpec, Dtype, Element, F32Math, Forward, Gradients, Kernels, Magnitude,
    Norm, NormGrad, NormGradient, Prepare, Prepared, Scaling, Tiles, Workspace, open_device,
};
use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// One layer and its batch, in bf16 but where something else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub tokens: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub rank: usize,
    pub norm: Norm,
}

impl Case {
    pub fn spec(&self) -> fused_dora::Result<DoraSpec> {
        self.spec_in(Dtype::Bf16)
    }

    fn spec_in(&self, dtype: Dtype) -> fused_dora::Result<DoraSpec> {
        let Self { inputs, outputs, rank, norm, .. } = *self;
        let grad = if norm == Norm::None { NormGrad::Detached } else { NormGrad::Exact };
        DoraSpec::new(inputs, outputs, rank, Scaling::Value(2.0), norm, grad, dtype)
    }
}

/// The launches of one step of a layer, by the op that makes them.
pub struct Step {
    pub prepare: Vec<MeasuredLaunch>,
    pub forward: Vec<MeasuredLaunch>,
    pub backward: Vec<MeasuredLaunch>,
    /// Of the exact gradient; none where there is no norm.
    pub norm_gradient: Vec<MeasuredLaunch>,
}

impl Step {
    pub fn all(&self) -> impl Iterator<Item = &MeasuredLaunch> {
        let ops = [&self.prepare, &self.forward, &self.backward, &self.norm_gradient];
        ops.into_iter().flatten()
    }
}

/// The emulated device, with its counters on.
pub struct Device {
    emulator: Emulator,
    /// Of large tiles, whose counts are scaled to many tokens, and of those that the crate picks.
    large: Kernels,
    picked: Kernels,
    stream: Arc<CudaStream>,
    sm_count: usize,
}

impl Device {
    pub fn open() -> Result<Self, Box<dyn Error>> {
        let selected = select(Choice::Emulated)?;
        let emulator = *selected.emulator().ok_or("the emulated device was not selected")?;
        // One thread runs blocks in their order: none waits for another, which would be counted.
        let config = Config { measure: true, sanitizer: false, threads: 1, ..Config::default() };
        emulator.configure(&config).map_err(|status| status.name())?;
        let context = open_device(0)?;
        let large = Kernels::load(&context)?.with_tiles(Some(Tiles::Large));
        let picked = Kernels::load(&context)?;
        let name = emulator.device_name();
        let known = Profile::ALL.iter().find(|(_, profile)| profile.name == name);
        let (_, profile) = known.ok_or_else(|| format!("{name}: no such emulated device"))?;
        let sm_count = profile.sm_count as usize;
        Ok(Self { emulator, large, picked, stream: context.new_stream()?, sm_count })
    }

    pub fn name(&self) -> String {
        self.emulator.device_name()
    }

    /// Multiprocessors: launches are planned for them.
    pub fn sm_count(&self) -> usize {
        self.sm_count
    }

    /// Runs a step of a layer in large tiles, with the gradient through the norm where it is to be
    /// `exact`.
    pub fn step(&self, case: &Case, exact: bool) -> Result<Step, Box<dyn Error>> {
        self.explained(case, self.run::<bf16>(&self.large, case, exact))
    }

    /// The same in the tiles that the crate picks, the norm held constant.
    pub fn step_as_picked(&self, case: &Case) -> Result<Step, Box<dyn Error>> {
        self.explained(case, self.run::<bf16>(&self.picked, case, false))
    }

    /// The same of an f32 layer whose products are of this kind.
    pub fn f32_step(&self, case: &Case, math: F32Math) -> Result<Step, Box<dyn Error>> {
        let kernels = Kernels::load(self.large.context())?;
        let kernels = kernels.with_tiles(Some(Tiles::Large)).with_f32_math(math);
        self.explained(case, self.run::<f32>(&kernels, case, false))
    }

    fn explained(
        &self,
        case: &Case,
        step: Result<Step, Box<dyn Error>>,
    ) -> Result<Step, Box<dyn Error>> {
        step.map_err(|error| {
            match self.emulator.last_fault().or_else(|| self.emulator.last_error()) {
                Some(report) => format!("{case:?}: {error}\n{report}").into(),
                None => error,
            }
        })
    }

    fn run<E: Element>(
        &self,
        kernels: &Kernels,
        case: &Case,
        exact: bool,
    ) -> Result<Step, Box<dyn Error>> {
        let stream = &self.stream;
        let Case { tokens, inputs, outputs, rank, norm } = *case;
        let spec = case.spec_in(E::DTYPE)?;
        let mut random = StdRng::seed_from_u64(7);
        let mut f32s = |n: usize| -> Vec<f32> {
            (0..n.max(1)).map(|_| random.random_range(-0.05..0.05)).collect()
        };
        let mut elements = |n: usize| -> Vec<E> { f32s(n).into_iter().map(E::from_f32).collect() };
        let x = stream.clone_htod(&elements(tokens * inputs))?;
        let weight = stream.clone_htod(&elements(outputs * inputs))?;
        let grad_output = stream.clone_htod(&elements(tokens * outputs))?;
        let lora_a = stream.clone_htod(&f32s(rank * inputs))?;
        let lora_b = stream.clone_htod(&f32s(outputs * rank))?;
        let zeros = |n: usize| stream.alloc_zeros::<f32>(n.max(1));
        let (mut magnitude, mut grad_m) =
            (zeros(spec.magnitude_len())?, zeros(spec.magnitude_len())?);
        let (mut grad_a, mut grad_b) = (zeros(rank * inputs)?, zeros(outputs * rank)?);
        let mut y = stream.alloc_zeros::<E>(tokens * outputs)?;
        let mut h = stream.alloc_zeros::<E>((tokens * spec.padded_rank()).max(1))?;
        let mut grad_input = stream.alloc_zeros::<E>(tokens * inputs)?;
        let mut workspace = Workspace::new(kernels, stream, &[spec], tokens)?;
        let mut prepared = Prepared::new(stream, &spec)?;
        let (len_a, len_b, len_h) = (rank * inputs, outputs * rank, tokens * spec.padded_rank());

        let prepare = self.launches(|| {
            let magnitude = match norm {
                Norm::None => Magnitude::None,
                _ => Magnitude::Init((&mut magnitude).into()),
            };
            let io = Prepare {
                weight: (&weight).into(),
                lora_a: lora_a.slice(..len_a).into(),
                lora_b: lora_b.slice(..len_b).into(),
                magnitude,
                bias: None,
            };
            kernels.prepare(stream, &spec, &mut workspace, &mut prepared, io)
        })?;
        let forward = self.launches(|| {
            let io = Forward {
                tokens,
                x: (&x).into(),
                base: Base::new(&weight),
                seed: 1,
                dropout: None,
                z: None,
                y: (&mut y).into(),
                h: h.slice_mut(..len_h).into(),
            };
            kernels.forward(stream, &spec, &prepared, &mut workspace, io)
        })?;
        let backward = self.launches(|| {
            let io = Backward {
                tokens,
                gradients: Gradients::Overwrite,
                x: (&x).into(),
                base: Base::new(&weight),
                output: (norm == Norm::Output).then(|| (&y).into()),
                z: None,
                dropout: None,
                grad_output: (&grad_output).into(),
                h: h.slice(..len_h).into(),
                grad_input: Some((&mut grad_input).into()),
                grad_lora_a: grad_a.slice_mut(..len_a).into(),
                grad_lora_b: grad_b.slice_mut(..len_b).into(),
                grad_magnitude: (norm != Norm::None).then(|| (&mut grad_m).into()),
                grad_bias: None,
            };
            kernels.backward(stream, &spec, &prepared, &mut workspace, io)
        })?;
        let norm_gradient = self.launches(|| {
            if norm == Norm::None || !exact {
                return Ok(());
            }
            let io = NormGradient {
                weight: (&weight).into(),
                lora_a: lora_a.slice(..len_a).into(),
                lora_b: lora_b.slice(..len_b).into(),
                grad_magnitude: (&grad_m).into(),
                grad_lora_a: grad_a.slice_mut(..len_a).into(),
                grad_lora_b: grad_b.slice_mut(..len_b).into(),
            };
            kernels.norm_gradient(stream, &spec, &prepared, &mut workspace, io)
        })?;
        Ok(Step { prepare, forward, backward, norm_gradient })
    }

    /// What was counted of each launch of an op.
    fn launches(
        &self,
        op: impl FnOnce() -> fused_dora::Result<()>,
    ) -> Result<Vec<MeasuredLaunch>, Box<dyn Error>> {
        self.emulator.reset_counters();
        op()?;
        self.stream.synchronize()?;
        Ok(self.emulator.launches())
    }
}
