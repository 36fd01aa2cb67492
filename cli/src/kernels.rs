//! The crate's kernels, on a GPU or on the emulated device: no other file of the program knows the
//! device or launches anything.

use std::env;
use std::sync::Arc;

use cuda_emulator::client::{self, Choice, Selected};
use fused_dora::cudarc::driver::{CudaSlice, CudaStream, DriverError};
use fused_dora::peft::LayerAdapter;
use fused_dora::{
    Decompose, Decomposition, DoraLinear, Dtype, InPlace, Kernels, MergeReport, Norm, NormGrad,
    Prepare, Prepared, Read, Workspace, Write, open_device,
};
use half::{bf16, f16};

use crate::engine::{Engine, Merged, NOT_FINITE, decode, of_layer};
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
        let mut matrix = self.upload(weight)?;
        let mut run = || -> Result<_, Problem> {
            let (stream, spec) = (&self.stream, layer.spec(NormGrad::Detached, weight.dtype)?);
            let mut workspace = Workspace::new(&self.kernels, stream, &[spec], 0)?;
            let mut prepared = Prepared::new(stream, &spec)?;
            let factors = Factors::upload(stream, layer)?;
            let magnitude = match layer.norm() {
                Norm::None => None,
                Norm::Input | Norm::Output => Some(stream.clone_htod(layer.magnitude())?),
            };
            let inputs = Prepare {
                weight: matrix.read().into(),
                lora_a: (&factors.a).into(),
                lora_b: (&factors.b).into(),
                magnitude: magnitude.as_ref().into(),
                bias: None,
            };
            self.kernels.prepare(stream, &spec, &mut workspace, &mut prepared, inputs)?;
            let mut report = stream.alloc_zeros::<f64>(MergeReport::LEN)?;
            let (io, sums) = (factors.with(&mut matrix), Some((&mut report).into()));
            self.kernels.merge_in_place(stream, &spec, &prepared, &mut workspace, io, sums)?;
            let report = MergeReport::read(stream, &report.as_view())?;
            Ok(Merged { report, gain: prepared.read_gain(stream)? })
        };
        let merged = run().map_err(|problem| self.explained(weight, problem))?;
        self.download(weight, &matrix, target)?;
        Ok(merged)
    }

    fn unmerge(
        &mut self,
        merged: &Weight<'_>,
        layer: &LayerAdapter,
        gain: &[f32],
        target: &mut Sink<'_>,
    ) -> Result<(), Failure> {
        let mut matrix = self.upload(merged)?;
        let mut run = || -> Result<_, Problem> {
            let (stream, spec) = (&self.stream, layer.spec(NormGrad::Detached, merged.dtype)?);
            let mut workspace = Workspace::new(&self.kernels, stream, &[spec], 0)?;
            let prepared = Prepared::for_unmerge(stream, &spec, gain)?;
            let factors = Factors::upload(stream, layer)?;
            let io = factors.with(&mut matrix);
            self.kernels.unmerge_in_place(stream, &spec, &prepared, &mut workspace, io)?;
            Ok(())
        };
        run().map_err(|problem| self.explained(merged, problem))?;
        match self.download(merged, &matrix, target)? {
            true => Ok(()),
            false => Err(of_layer(merged, NOT_FINITE)),
        }
    }

    fn decompose(
        &mut self,
        before: &Weight<'_>,
        after: &Weight<'_>,
        axis: Norm,
    ) -> Result<Decomposition, Failure> {
        let (weight, changed) = (self.upload(before)?, self.upload(after)?);
        let run = || -> Result<_, Problem> {
            let (stream, [rows, columns]) = (&self.stream, before.shape);
            let spec = DoraLinear::base_spec(columns, rows, before.dtype)?;
            let mut workspace = Workspace::new(&self.kernels, stream, &[spec], 0)?;
            let mut result = stream.alloc_zeros::<f64>(Decomposition::LEN)?;
            let io = Decompose {
                axis,
                weight: weight.read().into(),
                changed: changed.read(),
                result: (&mut result).into(),
            };
            self.kernels.decompose(stream, &spec, &mut workspace, io)?;
            Ok(Decomposition::read(stream, &result.as_view())?)
        };
        run().map_err(|problem| self.explained(before, problem))
    }
}

impl Gpu {
    pub fn open(choice: Choice) -> Result<Self, Failure> {
        if choice == Choice::Emulated && env::var_os(SANITIZER).is_none() {
            // It only costs time and memory here. The emulator reads it when it is selected.
            // SAFETY: no other thread of the program runs yet.
            unsafe { env::set_var(SANITIZER, "0") };
        }
        let selected = client::select(choice)?;
        let kernels = Kernels::load(&open_device(0)?)?;
        let stream = kernels.context().default_stream();
        let name = match &selected {
            Selected::Cuda(cuda) => cuda.device.clone(),
            Selected::Emulated(emulator) => emulator.device_name(),
        };
        Ok(Self { kernels, stream, name, selected })
    }

    /// A weight on the device, copied by chunks.
    fn upload(&self, weight: &Weight<'_>) -> Result<Matrix, Failure> {
        let failed = |error: DriverError| self.explained(weight, error.into());
        let (dtype, elements) = (weight.dtype, weight.elements());
        let mut bytes = self.stream.alloc_zeros(elements * dtype.bytes()).map_err(failed)?;
        weight.chunks(|first, chunk| {
            let at = first * weight.shape[1] * dtype.bytes();
            let mut part = bytes.slice_mut(at..at + chunk.len());
            self.stream.memcpy_htod(chunk, &mut part).map_err(failed)?;
            self.stream.synchronize().map_err(failed)
        })?;
        Ok(Matrix { bytes, dtype, elements })
    }

    /// Writes what is on the device, by chunks; whether all of it is finite.
    fn download(
        &self,
        weight: &Weight<'_>,
        matrix: &Matrix,
        target: &mut Sink<'_>,
    ) -> Result<bool, Failure> {
        let failed = |error: DriverError| self.explained(weight, error.into());
        let (len, mut is_finite) = (matrix.bytes.len(), true);
        for at in (0..len).step_by(CHUNK) {
            let part = matrix.bytes.slice(at..len.min(at + CHUNK));
            let bytes = self.stream.clone_dtoh(&part).map_err(failed)?;
            decode(&bytes, matrix.dtype, |value| is_finite &= value.is_finite());
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

/// A weight on the device, in the file's bytes: little-endian, as devices have their numbers.
struct Matrix {
    bytes: CudaSlice<u8>,
    dtype: Dtype,
    elements: usize,
}

impl Matrix {
    fn read(&self) -> Read<'_> {
        let (bytes, elements) = (&self.bytes, self.elements);
        // SAFETY: any bits are numbers; an allocation is aligned for them, and `upload` made this
        // one as long as so many elements of the dtype.
        let read: Option<Read<'_>> = unsafe {
            match self.dtype {
                Dtype::Bf16 => bytes.transmute::<bf16>(elements).map(Into::into),
                Dtype::F16 => bytes.transmute::<f16>(elements).map(Into::into),
                Dtype::F32 => bytes.transmute::<f32>(elements).map(Into::into),
            }
        };
        read.expect("memory for the elements")
    }

    fn write(&mut self) -> Write<'_> {
        let (bytes, elements) = (&mut self.bytes, self.elements);
        // SAFETY: as in `read`.
        let write: Option<Write<'_>> = unsafe {
            match self.dtype {
                Dtype::Bf16 => bytes.transmute_mut::<bf16>(elements).map(Into::into),
                Dtype::F16 => bytes.transmute_mut::<f16>(elements).map(Into::into),
                Dtype::F32 => bytes.transmute_mut::<f32>(elements).map(Into::into),
            }
        };
        write.expect("memory for the elements")
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
    fn with<'a>(&'a self, weight: &'a mut Matrix) -> InPlace<'a> {
        InPlace { weight: weight.write(), lora_a: (&self.a).into(), lora_b: (&self.b).into() }
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
