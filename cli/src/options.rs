//! The command line.

use std::path::PathBuf;

use clap::{Arg, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use fused_dora::{Dtype, Norm};

const NOTES: &str = "\
Example:
  fused-dora merge --base model --adapter adapter --out merged

The program streams weights: `cpu` holds a few megabytes of one, a device holds one at a time.
Output is written to .NAME.*.partial next to its place and renamed when it is complete.

Exit codes:
  0    done
  1    a file or the device failed
  2    bad arguments
  130  interrupted";

const INSPECT: &str = "\
Examples:
  fused-dora inspect --adapter adapter
  fused-dora inspect --adapter lycoris.safetensors --base model.safetensors --json";

const MERGE: &str = "\
Example:
  fused-dora merge --base model --adapter adapter --out merged --gains gains.safetensors";

const UNMERGE: &str = "\
Example:
  fused-dora unmerge --base merged --adapter adapter --out model --gains gains.safetensors";

const KEPT_GAINS: &str = "The gains that `merge --gains` wrote: required for a DoRA";

const ANALYZE: &str = "\
Example:
  fused-dora analyze --base model --changed merged --axis input --svg picture.svg";

const QUANTIZE: &str = "\
Example:
  fused-dora quantize --base model --format nf4-nested --out packed";

const COMPLETIONS: &str = "\
Example:
  fused-dora completions bash > ~/.local/share/bash-completion/completions/fused-dora";

/// The options of `merge` as `unmerge` shows them.
fn of_unmerge(option: Arg) -> Arg {
    match option.get_id().as_str() {
        "gains" => option.help(KEPT_GAINS),
        "dtype" | "quantize" | "block" => option.hide(true),
        _ => option,
    }
}

/// Inspects, merges and compares checkpoints of LoRA and DoRA adapters.
#[derive(Parser)]
#[command(name = "fused-dora", version, after_help = NOTES)]
// Without a command, clap would print the help and no error.
#[command(subcommand_required = true, arg_required_else_help = false)]
pub struct CommandLine {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Print an adapter's layers: shape, rank, scaling, norm axis, magnitudes
    #[command(after_help = INSPECT)]
    Inspect(Inspect),
    /// Write the base with the adapter in its weights, and print what rounding lost
    #[command(after_help = MERGE)]
    Merge(Convert),
    /// Write the base that was given to `merge`
    #[command(after_help = UNMERGE, mut_args(of_unmerge))]
    Unmerge(Convert),
    /// Print how far each weight moved, in magnitude and in direction (DoRA paper, section 3.2)
    #[command(after_help = ANALYZE)]
    Analyze(Analyze),
    /// Write a base with its linear layers packed to 4 or 8 bits, and print what that lost
    #[command(after_help = QUANTIZE)]
    Quantize(Quantize),
    /// Print a script that completes commands and options in a shell
    #[command(after_help = COMPLETIONS)]
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Args)]
pub struct Inspect {
    /// A folder that PEFT wrote; or a safetensors file of LyCORIS or kohya, which needs --base, or
    /// of diffusers
    #[arg(long, value_name = "PATH")]
    pub adapter: PathBuf,
    /// The base model: its modules' names are needed to read LyCORIS, and every layer must fit it
    #[arg(long, value_name = "PATH")]
    pub base: Option<PathBuf>,
    #[command(flatten)]
    pub reading: AdapterOptions,
    #[command(flatten)]
    pub format: Format,
}

/// The options of `merge` and `unmerge`.
#[derive(Args)]
pub struct Convert {
    /// A safetensors file, or a folder with model.safetensors, or with
    /// model.safetensors.index.json and the files that it names, or with all of
    /// model-00001-of-00002.safetensors, …
    #[arg(long, value_name = "PATH")]
    pub base: PathBuf,
    /// A folder that PEFT wrote, or a safetensors file of LyCORIS, kohya or diffusers
    #[arg(long, value_name = "PATH")]
    pub adapter: PathBuf,
    /// A file if --base is a file, a folder if it is a folder; it must not exist
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Write the gains of a DoRA to this file; `unmerge` needs them and cannot compute them
    #[arg(long, value_name = "FILE")]
    pub gains: Option<PathBuf>,
    /// Replace the tensors that the adapter holds as a whole (modules_to_save); `unmerge` leaves
    /// them as they are
    #[arg(long)]
    pub replace_modules: bool,
    /// The type of the weights that were packed in the base (bitsandbytes, fp8); by default, that from
    /// which they were packed, or that of the model's config.json
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<Type>,
    /// Pack the merged weights again: those that were packed in the base, or, of a dense base, those
    /// that `quantize` packs
    #[arg(long, value_name = "FORMAT")]
    pub quantize: Option<PackedFormat>,
    /// Weights per scale in a format of 4 bits [default: 64]
    #[arg(long, value_name = "NUMBER")]
    pub block: Option<u16>,
    #[command(flatten)]
    pub reading: AdapterOptions,
    #[command(flatten)]
    pub device: DeviceOption,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Args)]
pub struct Analyze {
    /// A safetensors file, or a folder with model.safetensors, or with
    /// model.safetensors.index.json and the files that it names, or with all of
    /// model-00001-of-00002.safetensors, …
    #[arg(long, value_name = "PATH")]
    pub base: PathBuf,
    /// The checkpoint to compare with --base: a file or a folder
    #[arg(long, value_name = "PATH")]
    pub changed: PathBuf,
    /// The vectors to compare
    #[arg(long)]
    pub axis: Axis,
    /// Draw the table to this file, which is replaced if it exists
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceOption,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Args)]
pub struct Quantize {
    /// A safetensors file, or a folder with model.safetensors, or with
    /// model.safetensors.index.json and the files that it names, or with all of
    /// model-00001-of-00002.safetensors, …
    #[arg(long, value_name = "PATH")]
    pub base: PathBuf,
    /// A file if --base is a file, a folder if it is a folder; it must not exist
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// How to pack weights
    #[arg(long)]
    pub format: PackedFormat,
    /// Weights per scale in a format of 4 bits: a power of two from 32 to 4096 [default: 64]
    #[arg(long, value_name = "NUMBER")]
    pub block: Option<u16>,
    /// Leave the weights of these modules dense, next to embeddings and heads: a name, its end from
    /// a dot on, or a pattern with *
    #[arg(long, value_name = "PATTERN")]
    pub skip: Vec<String>,
    #[command(flatten)]
    pub output: Format,
}

/// How an adapter's settings and names are read.
#[derive(Args)]
pub struct AdapterOptions {
    /// Take the names that begin with FROM for names that begin with TO in the base
    #[arg(long, value_name = "FROM=TO", value_parser = pair)]
    pub map: Vec<(String, String)>,
    /// Refuse modules whose exact names the base does not have
    #[arg(long)]
    pub strict_names: bool,
    /// The base stores the weights of these modules [I, O], as GPT-2's Conv1D does: a name, its end
    /// from a dot on, or a pattern with *
    #[arg(long, value_name = "PATTERN")]
    pub transposed: Vec<String>,
    /// The base stores the weights of these modules [O, I]
    #[arg(long, value_name = "PATTERN")]
    pub not_transposed: Vec<String>,
    /// Read the adapter as if it did not have this setting, which must be unknown here
    #[arg(long, value_name = "NAME")]
    pub ignore_setting: Vec<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((from, to)) => Ok((from.to_owned(), to.to_owned())),
        None => Err("it must be FROM=TO".to_owned()),
    }
}

#[derive(Args)]
pub struct DeviceOption {
    /// Where to compute
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: Device,
}

#[derive(Args)]
pub struct Format {
    /// Print one JSON document instead of the table; the README lists its fields and their units
    #[arg(long)]
    pub json: bool,
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// A GPU if there is one, otherwise cpu
    Auto,
    /// A GPU
    Cuda,
    /// The GPU's kernels on an emulated device: slow
    Emulated,
    /// Plain loops in float64
    Cpu,
}

/// How weights are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PackedFormat {
    /// NF4 of bitsandbytes
    Nf4,
    /// The same with scales of 8 bits (double quantisation)
    Nf4Nested,
    /// FP4 of bitsandbytes
    Fp4,
    /// int8 of bitsandbytes, a scale per row
    Int8,
    /// fp8 e4m3, a scale per block of 128×128
    Fp8Block,
}

/// The type of a dense weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Type {
    Bf16,
    F16,
    F32,
}

impl Type {
    pub fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::Bf16,
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
        }
    }
}

/// The vectors that `analyze` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Axis {
    /// Columns, as in the paper
    Input,
    /// Rows
    Output,
}

impl Axis {
    pub fn norm(self) -> Norm {
        match self {
            Self::Input => Norm::Input,
            Self::Output => Norm::Output,
        }
    }
}
