//! The command line.

use std::path::PathBuf;

use fused_dora::Norm;
use lexopt::prelude::*;

pub const USAGE: &str = "\
Inspects, merges and compares checkpoints of LoRA and DoRA adapters.

Usage: fused-dora COMMAND OPTIONS

  inspect  --adapter PATH [--base PATH]
           the adapter's layers: shape, rank, scaling, norm axis, magnitudes
  merge    --base PATH --adapter PATH --out PATH [--gains FILE] [--device D]
           the base with the adapter in its weights, and what their rounding lost of it
  unmerge  --base PATH --adapter PATH --out PATH [--gains FILE] [--device D]
           the base that merge made --base of
  analyze  --base PATH --changed PATH --axis input|output [--svg FILE] [--device D]
           how far each weight moved, in magnitude and in direction (the DoRA paper, section 3.2)

  --base PATH     a safetensors file; or a folder with model.safetensors, or with
                  model.safetensors.index.json and the files that it names
  --adapter PATH  a folder that PEFT wrote; or a safetensors file of LyCORIS or kohya, which takes
                  --base for the modules' names
  --changed PATH  like --base
  --out PATH      a file where --base is one, and a folder where that is one; it must not exist
  --gains FILE    merge writes the gains of a DoRA to it, which unmerge needs: a merged weight does
                  not tell them
  --axis AXIS     the vectors that are compared: input for columns, as in the paper, output for rows
  --svg FILE      a picture of the table; replaced if it exists
  --device D      auto (a GPU if there is one, else cpu), cuda, emulated (the GPU's kernels on an
                  emulated device: slow) or cpu (plain loops in float64) (auto)
  --help          print this

Weights are streamed: through a few megabytes by cpu, and one at a time through a device's memory.
What is written lies beside its place, as .NAME.*.partial, until it is complete. Exit codes: 0 done,
1 a file or the device failed, 2 bad arguments, 130 interrupted.
";

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Auto,
    Cuda,
    Emulated,
    Cpu,
}

pub struct Inspect {
    pub adapter: PathBuf,
    pub base: Option<PathBuf>,
}

/// Of merge and unmerge.
pub struct Convert {
    pub base: PathBuf,
    pub adapter: PathBuf,
    pub out: PathBuf,
    pub gains: Option<PathBuf>,
    pub device: Device,
}

pub struct Analyze {
    pub base: PathBuf,
    pub changed: PathBuf,
    pub axis: Norm,
    pub svg: Option<PathBuf>,
    pub device: Device,
}

pub enum Command {
    Inspect(Inspect),
    Merge(Convert),
    Unmerge(Convert),
    Analyze(Analyze),
}

/// What was given, of the options of all commands.
#[derive(Default)]
struct Given {
    base: Option<PathBuf>,
    adapter: Option<PathBuf>,
    changed: Option<PathBuf>,
    out: Option<PathBuf>,
    gains: Option<PathBuf>,
    svg: Option<PathBuf>,
    axis: Option<Norm>,
    device: Option<Device>,
}

/// Reads the process's arguments; `None` if help was asked for.
pub fn from_arguments() -> Result<Option<Command>, lexopt::Error> {
    let mut parser = lexopt::Parser::from_env();
    let (mut command, mut given) = (None, Given::default());
    while let Some(argument) = parser.next()? {
        match argument {
            Value(word) if command.is_none() => command = Some(word.string()?),
            Long("base") => given.base = Some(parser.value()?.into()),
            Long("adapter") => given.adapter = Some(parser.value()?.into()),
            Long("changed") => given.changed = Some(parser.value()?.into()),
            Long("out") => given.out = Some(parser.value()?.into()),
            Long("gains") => given.gains = Some(parser.value()?.into()),
            Long("svg") => given.svg = Some(parser.value()?.into()),
            Long("axis") => given.axis = Some(axis(&parser.value()?.string()?)?),
            Long("device") => given.device = Some(device(&parser.value()?.string()?)?),
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    let command = command.ok_or("no command given")?;
    let command = match command.as_str() {
        "inspect" => Command::Inspect(Inspect {
            adapter: needed("inspect", "--adapter", given.adapter.take())?,
            base: given.base.take(),
        }),
        "merge" => Command::Merge(given.convert("merge")?),
        "unmerge" => Command::Unmerge(given.convert("unmerge")?),
        "analyze" => Command::Analyze(Analyze {
            base: needed("analyze", "--base", given.base.take())?,
            changed: needed("analyze", "--changed", given.changed.take())?,
            axis: needed("analyze", "--axis", given.axis.take())?,
            svg: given.svg.take(),
            device: given.device.take().unwrap_or(Device::Auto),
        }),
        other => {
            let known = "inspect, merge, unmerge or analyze";
            return Err(format!("{other} is no command: it must be {known}").into());
        }
    };
    given.check_all_used()?;
    Ok(Some(command))
}

impl Given {
    fn convert(&mut self, command: &str) -> Result<Convert, lexopt::Error> {
        Ok(Convert {
            base: needed(command, "--base", self.base.take())?,
            adapter: needed(command, "--adapter", self.adapter.take())?,
            out: needed(command, "--out", self.out.take())?,
            gains: self.gains.take(),
            device: self.device.take().unwrap_or(Device::Auto),
        })
    }

    fn check_all_used(&self) -> Result<(), lexopt::Error> {
        for (name, left) in [
            ("--base", self.base.is_some()),
            ("--adapter", self.adapter.is_some()),
            ("--changed", self.changed.is_some()),
            ("--out", self.out.is_some()),
            ("--gains", self.gains.is_some()),
            ("--svg", self.svg.is_some()),
            ("--axis", self.axis.is_some()),
            ("--device", self.device.is_some()),
        ] {
            if left {
                return Err(format!("{name} is no option of this command").into());
            }
        }
        Ok(())
    }
}

fn needed<T>(command: &str, name: &str, value: Option<T>) -> Result<T, lexopt::Error> {
    value.ok_or_else(|| format!("{command} needs {name}").into())
}

fn axis(word: &str) -> Result<Norm, lexopt::Error> {
    match word {
        "input" => Ok(Norm::Input),
        "output" => Ok(Norm::Output),
        _ => Err(format!("--axis {word}: it must be input or output").into()),
    }
}

fn device(word: &str) -> Result<Device, lexopt::Error> {
    match word {
        "auto" => Ok(Device::Auto),
        "cuda" => Ok(Device::Cuda),
        "emulated" => Ok(Device::Emulated),
        "cpu" => Ok(Device::Cpu),
        _ => Err(format!("--device {word}: it must be auto, cuda, emulated or cpu").into()),
    }
}
