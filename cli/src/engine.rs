//! What computes a layer: the kernels on a device (`kernels.rs`), or plain loops on the CPU
//! (`cpu.rs`).

use cuda_emulator::client::Choice;
use fused_dora::peft::LayerAdapter;
use fused_dora::{Decomposition, Dtype, MergeReport, Norm};
use half::{bf16, f16};

use crate::cpu::Cpu;
use crate::error::Failure;
use crate::kernels::Gpu;
use crate::options::Device;
use crate::output::Sink;
use crate::report::{Report, line};
use crate::weight::Weight;

/// What a merge yields in addition to W'.
pub struct Merged {
    pub report: MergeReport,
    /// `[I]` or `[O]`; empty for plain LoRA.
    pub gain: Vec<f32>,
}

/// Layers are computed as the file stores their weight: rows are what it calls rows.
pub trait Engine {
    /// What it runs on.
    fn name(&self) -> String;

    /// W' of W.
    fn merge(
        &mut self,
        weight: &Weight<'_>,
        layer: &LayerAdapter,
        target: &mut Sink<'_>,
    ) -> Result<Merged, Failure>;

    /// W of W', with the merge's gains; an error if W is not finite.
    fn unmerge(
        &mut self,
        merged: &Weight<'_>,
        layer: &LayerAdapter,
        gain: &[f32],
        target: &mut Sink<'_>,
    ) -> Result<(), Failure>;

    /// How far a weight has moved.
    fn decompose(
        &mut self,
        before: &Weight<'_>,
        after: &Weight<'_>,
        axis: Norm,
    ) -> Result<Decomposition, Failure>;
}

/// An engine, and why it is not a GPU where that was looked for.
pub struct Opened {
    pub engine: Box<dyn Engine>,
    pub no_gpu: Option<String>,
}

/// The engine of a choice.
pub fn open(device: Device) -> Result<Opened, Failure> {
    let of = |engine: Box<dyn Engine>| Opened { engine, no_gpu: None };
    match device {
        Device::Cpu => Ok(of(Box::new(Cpu))),
        Device::Cuda => Ok(of(Box::new(Gpu::open(Choice::Cuda)?))),
        Device::Emulated => Ok(of(Box::new(Gpu::open(Choice::Emulated)?))),
        Device::Auto => Ok(match Gpu::open(Choice::Cuda) {
            Ok(gpu) => of(Box::new(gpu)),
            Err(error) => {
                let reason = error.to_string().trim_start_matches("--device: ").to_owned();
                Opened { engine: Box::new(Cpu), no_gpu: Some(reason) }
            }
        }),
    }
}

impl Opened {
    /// Prints what computes, and why no GPU does.
    pub fn report(&self, report: &Report) -> Result<(), Failure> {
        line!(report, "Device: {}.", self.engine.name())?;
        match &self.no_gpu {
            Some(reason) => line!(report, "No GPU: {reason}"),
            None => Ok(()),
        }
    }
}

/// Why a weight is not written that holds NaN or infinity.
pub const NOT_FINITE: &str = "the new weight is not finite: the adapter, the base or the gains \
                              hold NaN or infinity, or the type is too narrow";

/// An error of one layer.
pub fn of_layer(weight: &Weight<'_>, problem: impl ToString) -> Failure {
    Failure::Layer {
        path: weight.file.path().to_owned(),
        tensor: weight.name.to_owned(),
        problem: problem.to_string(),
    }
}

/// Elements of their bytes.
pub fn decode(bytes: &[u8], dtype: Dtype, mut each: impl FnMut(f32)) {
    match dtype {
        Dtype::Bf16 => {
            bytes.as_chunks().0.iter().for_each(|&b| each(bf16::from_le_bytes(b).to_f32()))
        }
        Dtype::F16 => {
            bytes.as_chunks().0.iter().for_each(|&b| each(f16::from_le_bytes(b).to_f32()))
        }
        Dtype::F32 => bytes.as_chunks().0.iter().for_each(|&b| each(f32::from_le_bytes(b))),
    }
}

/// Appends an element's bytes, and returns what it was rounded to.
pub fn encode(value: f64, dtype: Dtype, bytes: &mut Vec<u8>) -> f64 {
    match dtype {
        Dtype::Bf16 => {
            let rounded = bf16::from_f64(value);
            bytes.extend(rounded.to_le_bytes());
            rounded.to_f64()
        }
        Dtype::F16 => {
            let rounded = f16::from_f64(value);
            bytes.extend(rounded.to_le_bytes());
            rounded.to_f64()
        }
        Dtype::F32 => {
            bytes.extend((value as f32).to_le_bytes());
            f64::from(value as f32)
        }
    }
}
