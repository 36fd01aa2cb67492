//! The profile's command line.

use std::path::PathBuf;

use fused_dora::{DoraSpec, Dtype, Norm, NormGrad, Scaling};
use fused_dora_testkit::workspace;
use lexopt::prelude::*;

use crate::gpu::{GPUS, Gpu};

pub const USAGE: &str = "\
Counts what every launch does, on the emulated device, and models what bounds it on GPUs.

Usage: profile [OPTIONS]

  --shape T,I,O,R  tokens, input and output features and rank of a layer; can be given
                   several times (256,1024,1024,16 and 2048,4096,4096,16)
  --gpu NAME       a100, rtx4090 or h100; can be given several times (all)
  --out DIR        folder for profile.json and the pictures (target/profile)
  --help           print this

The model is of bf16. CUDA_EMULATOR_PROFILE names the device whose number of multiprocessors
launches are planned for (a100). Exit codes: 0 done, 1 the device failed, 2 bad arguments.
";

/// Layers that are looked at: a small one, and one of a 7B model's.
const SHAPES: [[usize; 4]; 2] = [[256, 1024, 1024, 16], [2048, 4096, 4096, 16]];

/// What to do.
pub struct Options {
    /// (T, I, O, r).
    pub shapes: Vec<[usize; 4]>,
    pub gpus: Vec<&'static Gpu>,
    pub out: PathBuf,
}

impl Options {
    /// Reads the process's arguments; `None` if help was asked for.
    pub fn from_arguments() -> Result<Option<Self>, lexopt::Error> {
        let out = workspace().join("target/profile");
        let mut options = Self { shapes: Vec::new(), gpus: Vec::new(), out };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("shape") => options.shapes.push(shape(&parser.value()?.string()?)?),
                Long("gpu") => options.gpus.push(gpu(&parser.value()?.string()?)?),
                Long("out") => options.out = parser.value()?.into(),
                Long("help") | Short('h') => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        if options.shapes.is_empty() {
            options.shapes = SHAPES.to_vec();
        }
        if options.gpus.is_empty() {
            options.gpus = GPUS.iter().collect();
        }
        Ok(Some(options))
    }
}

fn gpu(name: &str) -> Result<&'static Gpu, lexopt::Error> {
    Gpu::by_name(name)
        .ok_or_else(|| format!("--gpu {name}: it must be one of a100, rtx4090 and h100").into())
}

fn shape(text: &str) -> Result<[usize; 4], lexopt::Error> {
    let numbers: Vec<Result<usize, _>> = text.split(',').map(|word| word.trim().parse()).collect();
    let shape = match numbers.as_slice() {
        &[Ok(tokens @ 1..), Ok(inputs), Ok(outputs), Ok(rank)] => [tokens, inputs, outputs, rank],
        _ => return Err(format!("--shape {text}: it must be T,I,O,R, all positive").into()),
    };
    spec(shape, Norm::Output).map_err(|error| format!("--shape {text}: {error}"))?;
    Ok(shape)
}

/// The layer of a shape, with scaling 2.
pub fn spec([_, inputs, outputs, rank]: [usize; 4], norm: Norm) -> fused_dora::Result<DoraSpec> {
    DoraSpec::new(inputs, outputs, rank, Scaling::Value(2.0), norm, NormGrad::Detached, Dtype::Bf16)
}
