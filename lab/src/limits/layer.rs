//! Layers run once on the emulated device, and what was counted of their launches.

use std::error::Error;
use std::sync::Arc;

use cuda_emulator::client::{Choice, Emulator, select};
use cuda_emulator::profile::Profile;
use cuda_emulator::{Config, MeasuredLaunch};
use fused_dora::cudarc::driver::CudaStream;
use fused_dora::{
    DoraSpec, Dtype, Element, F32Math, Kernels, Norm, NormGrad, Scaling, Tiles, open_device,
};
use fused_dora_testkit::bench::Outcome;
use fused_dora_testkit::bench::layer::Layer;
use half::bf16;

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
        let Self { inputs, outputs, rank, norm, .. } = *self;
        let grad = if norm == Norm::None { NormGrad::Detached } else { NormGrad::Exact };
        DoraSpec::new(inputs, outputs, rank, Scaling::Value(2.0), norm, grad, Dtype::Bf16)
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
    large: Arc<Kernels>,
    picked: Arc<Kernels>,
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
        let large = Arc::new(Kernels::load(&context)?.with_tiles(Some(Tiles::Large)));
        let picked = Arc::new(Kernels::load(&context)?);
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
        let kernels = Arc::new(kernels.with_tiles(Some(Tiles::Large)).with_f32_math(math));
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
        kernels: &Arc<Kernels>,
        case: &Case,
        exact: bool,
    ) -> Result<Step, Box<dyn Error>> {
        let Case { tokens, inputs, outputs, rank, norm } = *case;
        let shape = [tokens, inputs, outputs, rank];
        let mut layer = Layer::<E>::unprepared(kernels, &self.stream, shape, norm, 1)?;
        Ok(Step {
            prepare: self.launches(|| layer.init())?,
            forward: self.launches(|| layer.forward())?,
            backward: self.launches(|| layer.backward())?,
            norm_gradient: self.launches(|| if exact { layer.norm_gradient() } else { Ok(()) })?,
        })
    }

    /// What was counted of each launch of an op.
    fn launches(
        &self,
        op: impl FnOnce() -> Outcome,
    ) -> Result<Vec<MeasuredLaunch>, Box<dyn Error>> {
        self.emulator.reset_counters();
        op()?;
        self.stream.synchronize()?;
        Ok(self.emulator.launches())
    }
}
