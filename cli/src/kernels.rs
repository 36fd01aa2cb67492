//! The crate's kernels, on a GPU or on the emulated device: no other file of the program knows the
//! device or launches anything.

use std::env;
use std::sync::Arc;

use cuda_emulator::Config;
use cuda_emulator::client::{self, Choice, Selected};
use fused_dora::cudarc::driver::{CudaSlice, CudaStream, DriverError};
use fused_dora::peft::LayerAdapter;
use fused_dora::{
    Decompose, Decomposition, DoraSpec, Dtype, Element, InPlace, Kernels, Magnitude, MergeReport,
    Norm, NormGrad, Prepare, Prepared, Scaling, Workspace, open_device,
};
use half::{bf16, f16};

use crate::engine::{Engine, Merged, NOT_FINITE, decode, encode, of_layer};
use crate::error::Failure;
use crate::output::Sink;
use crate::weight::{CHUNK, Weight};

/// Whether the emulated device looks for mistakes of kernels: not here, unless it is asked to.
const SANITIZER: &str = "CUDA_EMULATOR_SANITIZER";

pub struct Gpu {
    kernels: Kernels,
    stream: Arc<CudaStream>,
    name: String,
    selected: Selected,
}

/// Runs a generic function for a weight's type.
macro_rules! for_dtype {
    ($dtype:expr, $E:ident => $call:expr) => {
        match $dtype {
            Dtype::Bf16 => {
                type $E = bf16;
                $call
            }
            Dtype::F16 => {
                type $E = f16;
                $call
            }
            Dtype::F32 => {
                type $E = f32;
                $call
            }
        }
    };
}

impl Engine for Gpu {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn merge(
        &mut self,
        weight: &Weight<'_>,
        layer: &LayerAdapter,
        target: &mut Sink<'_>,
    ) -> Result<Merged, Failure> {
        for_dtype!(weight.dtype, E => self.merge_in::<E>(weight, layer, target))
    }

    fn unmerge(
        &mut self,
        merged: &Weight<'_>,
        layer: &LayerAdapter,
        gain: &[f32],
        target: &mut Sink<'_>,
    ) -> Result<(), Failure> {
        for_dtype!(merged.dtype, E => self.unmerge_in::<E>(merged, layer, gain, target))
    }

    fn decompose(
        &mut self,
        before: &Weight<'_>,
        after: &Weight<'_>,
        axis: Norm,
    ) -> Result<Decomposition, Failure> {
        for_dtype!(before.dtype, E => for_dtype!(after.dtype, F => {
            self.decompose_in::<E, F>(before, after, axis)
        }))
    }
}

impl Gpu {
    pub fn open(choice: Choice) -> Result<Self, Failure> {
        let selected = client::select(choice)?;
        if let Some(emulator) = selected.emulator()
            && env::var_os(SANITIZER).is_none()
        {
            // It only costs time and memory here.
            let config = Config { sanitizer: false, ..Config::default() };
            emulator
                .configure(&config)
                .map_err(|status| Failure::Call(format!("--device emulated: {}", status.name())))?;
        }
        let kernels = Kernels::load(&open_device(0)?)?;
        let stream = kernels.context().default_stream();
        let name = match &selected {
            Selected::Cuda(cuda) => cuda.device.clone(),
            Selected::Emulated(emulator) => emulator.device_name(),
        };
        Ok(Self { kernels, stream, name, selected })
    }

    fn merge_in<E: Element>(
        &self,
        weight: &Weight<'_>,
        layer: &LayerAdapter,
        target: &mut Sink<'_>,
    ) -> Result<Merged, Failure> {
        let mut on_device = self.upload::<E>(weight)?;
        let mut run = || -> Result<_, Problem> {
            let (stream, spec) = (&self.stream, layer.spec(NormGrad::Detached, E::DTYPE)?);
            let mut workspace = Workspace::new(&self.kernels, stream, &[spec], 0)?;
            let mut prepared = Prepared::<E>::new(stream, &spec)?;
            let factors = Factors::upload(stream, layer)?;
            let magnitude = match layer.norm() {
                Norm::None => None,
                Norm::Input | Norm::Output => Some(stream.clone_htod(layer.magnitude())?),
            };
            let given = magnitude.as_ref().map(|m| Magnitude::Given(m.as_view()));
            let inputs = Prepare {
                weight: on_device.as_view(),
                lora_a: factors.a.as_view(),
                lora_b: factors.b.as_view(),
                magnitude: given.unwrap_or(Magnitude::None),
                bias: None,
            };
            self.kernels.prepare(stream, &spec, &mut workspace, &mut prepared, inputs)?;
            let mut report = stream.alloc_zeros::<f64>(MergeReport::LEN)?;
            let io = factors.with(&mut on_device);
            let sums = Some(report.as_view_mut());
            self.kernels.merge_in_place(stream, &spec, &prepared, &mut workspace, io, sums)?;
            let report = MergeReport::read(stream, &report.as_view())?;
            let gain = match layer.norm() {
                Norm::None => Vec::new(),
                Norm::Input | Norm::Output => stream.clone_dtoh(&prepared.gain())?,
            };
            Ok(Merged { report, gain })
        };
        let merged = run().map_err(|problem| self.explained(weight, problem))?;
        self.download(weight, &on_device, target)?;
        Ok(merged)
    }

    fn unmerge_in<E: Element>(
        &self,
        merged: &Weight<'_>,
        layer: &LayerAdapter,
        gain: &[f32],
        target: &mut Sink<'_>,
    ) -> Result<(), Failure> {
        let mut on_device = self.upload::<E>(merged)?;
        let mut run = || -> Result<_, Problem> {
            let (stream, spec) = (&self.stream, layer.spec(NormGrad::Detached, E::DTYPE)?);
            let mut workspace = Workspace::new(&self.kernels, stream, &[spec], 0)?;
            let prepared = Prepared::<E>::for_unmerge(stream, &spec, gain)?;
            let factors = Factors::upload(stream, layer)?;
            let io = factors.with(&mut on_device);
            self.kernels.unmerge_in_place(stream, &spec, &prepared, &mut workspace, io)?;
            Ok(())
        };
        run().map_err(|problem| self.explained(merged, problem))?;
        match self.download(merged, &on_device, target)? {
            true => Ok(()),
            false => Err(of_layer(merged, NOT_FINITE)),
        }
    }

    fn decompose_in<E: Element, F: Element>(
        &self,
        before: &Weight<'_>,
        after: &Weight<'_>,
        axis: Norm,
    ) -> Result<Decomposition, Failure> {
        let (weight, changed) = (self.upload::<E>(before)?, self.upload::<F>(after)?);
        let run = || -> Result<_, Problem> {
            let (stream, [rows, columns]) = (&self.stream, before.shape);
            let scaling = Scaling::Value(1.0);
            let spec =
                DoraSpec::new(columns, rows, 0, scaling, Norm::None, NormGrad::Detached, E::DTYPE)?;
            let mut workspace = Workspace::new(&self.kernels, stream, &[spec], 0)?;
            let mut result = stream.alloc_zeros::<f64>(Decomposition::LEN)?;
            let io = Decompose {
                axis,
                weight: weight.as_view(),
                changed: changed.as_view(),
                result: result.as_view_mut(),
            };
            self.kernels.decompose(stream, &spec, &mut workspace, io)?;
            Ok(Decomposition::read(stream, &result.as_view())?)
        };
        run().map_err(|problem| self.explained(before, problem))
    }

    /// A weight on the device, copied by chunks.
    fn upload<E: Element>(&self, weight: &Weight<'_>) -> Result<CudaSlice<E>, Failure> {
        let failed = |error: DriverError| self.explained(weight, error.into());
        let mut on_device = self.stream.alloc_zeros::<E>(weight.elements()).map_err(failed)?;
        let mut host = Vec::new();
        weight.chunks(|first, bytes| {
            host.clear();
            decode(bytes, weight.dtype, |value| host.push(E::from_f32(value)));
            let at = first * weight.shape[1];
            let mut part = on_device.slice_mut(at..at + host.len());
            self.stream.memcpy_htod(&host, &mut part).map_err(failed)?;
            self.stream.synchronize().map_err(failed)
        })?;
        Ok(on_device)
    }

    /// Writes what is on the device, by chunks; whether all of it is finite.
    fn download<E: Element>(
        &self,
        weight: &Weight<'_>,
        on_device: &CudaSlice<E>,
        target: &mut Sink<'_>,
    ) -> Result<bool, Failure> {
        let failed = |error: DriverError| self.explained(weight, error.into());
        let (len, step) = (on_device.len(), CHUNK / size_of::<E>());
        let (mut bytes, mut is_finite) = (Vec::new(), true);
        for at in (0..len).step_by(step) {
            let part = on_device.slice(at..len.min(at + step));
            let host = self.stream.clone_dtoh(&part).map_err(failed)?;
            bytes.clear();
            for value in host {
                let value = encode(f64::from(value.to_f32()), weight.dtype, &mut bytes);
                is_finite &= value.is_finite();
            }
            target.write(&bytes)?;
        }
        Ok(is_finite)
    }

    /// What is wrong with a layer, and what the emulated device knows about it.
    fn explained(&self, weight: &Weight<'_>, problem: Problem) -> Failure {
        let known = self.selected.emulator().and_then(|emulator| emulator.last_fault());
        let known = known.map_or_else(String::new, |fault| format!("\n{fault}"));
        of_layer(weight, format!("{problem}{known}"))
    }
}

/// A and B on the device.
struct Factors {
    a: CudaSlice<f32>,
    b: CudaSlice<f32>,
}

impl Factors {
    fn upload(stream: &Arc<CudaStream>, layer: &LayerAdapter) -> Result<Self, DriverError> {
        let [a, b] = [layer.lora_a(), layer.lora_b()].map(|factor| stream.clone_htod(factor));
        Ok(Self { a: a?, b: b? })
    }

    /// The arguments of an op that replaces a weight.
    fn with<'a, E>(&'a self, weight: &'a mut CudaSlice<E>) -> InPlace<'a, E> {
        InPlace { weight: weight.as_view_mut(), lora_a: self.a.as_view(), lora_b: self.b.as_view() }
    }
}

/// An error of the crate, or of its driver.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Crate(#[from] fused_dora::Error),
    #[error("CUDA driver error: {0}")]
    Driver(#[from] DriverError),
}
