//! The optimizer: AdamW over the parameters of all layers, on the device.

use std::ops::Range;

use fused_dora::cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use fused_dora::{AdamW, AdamWConfig, AllReduce, OptimizerPart, Result, Schedule};

use crate::network::Engine;
use fused_dora_testkit::run::driver;

/// What is trained, one layer behind the other, and what the optimizer keeps of it.
pub struct Optimizer {
    parts: Vec<OptimizerPart>,
    parameters: CudaSlice<f32>,
    gradients: CudaSlice<f32>,
    exp_avg: CudaSlice<f32>,
    exp_avg_sq: CudaSlice<f32>,
    step: u64,
}

impl Optimizer {
    /// An optimizer of `parameters`, in the ranges of `parts`.
    pub fn new(engine: &Engine, parameters: &[f32], parts: Vec<OptimizerPart>) -> Result<Self> {
        let stream = &engine.stream;
        let zeros = || {
            stream.alloc_zeros(parameters.len()).map_err(driver("allocating the optimizer's state"))
        };
        Ok(Self {
            parts,
            gradients: zeros()?,
            exp_avg: zeros()?,
            exp_avg_sq: zeros()?,
            parameters: stream
                .clone_htod(parameters)
                .map_err(driver("copying parameters to the device"))?,
            step: 0,
        })
    }

    /// How many numbers are trained.
    pub fn parameter_count(&self) -> usize {
        self.parts.iter().map(|part| part.range.len()).sum()
    }

    /// The parameters of one layer.
    pub fn parameters(&self, layer: &Range<usize>) -> CudaView<'_, f32> {
        self.parameters.slice(layer.clone())
    }

    /// Likewise, to be written.
    pub fn parameters_mut(&mut self, layer: &Range<usize>) -> CudaViewMut<'_, f32> {
        self.parameters.slice_mut(layer.clone())
    }

    /// The gradients of one layer, to be written.
    pub fn gradients_mut(&mut self, layer: &Range<usize>) -> CudaViewMut<'_, f32> {
        self.gradients.slice_mut(layer.clone())
    }

    /// All parameters, on the host.
    pub fn download(&self, engine: &Engine) -> Result<Vec<f32>> {
        let during = "copying parameters from the device";
        engine.stream.clone_dtoh(&self.parameters).map_err(driver(during))
    }

    /// Adds up the gradients of all ranks.
    pub fn sum_over_ranks(&mut self, rank: &dyn AllReduce) -> Result<()> {
        rank.sum_over_ranks(self.gradients.as_view_mut())
    }

    /// One step, by the gradients that are there: one launch.
    pub fn update(&mut self, engine: &Engine, learning_rate: f32) -> Result<()> {
        self.step += 1;
        let io = AdamW {
            len: self.parameters.len(),
            parts: &self.parts,
            schedule: Schedule::Host { learning_rate: learning_rate.into(), step: self.step },
            clip: None,
            parameters: (&mut self.parameters).into(),
            gradients: (&self.gradients).into(),
            exp_avg: (&mut self.exp_avg).into(),
            exp_avg_sq: (&mut self.exp_avg_sq).into(),
        };
        engine.kernels.adamw(&engine.stream, &AdamWConfig::default(), io)
    }
}
