//! Runs DoRA layers from files through the kernels, and compares them with what the files expect.
//!
//! For whoever doubts a number: write a layer's inputs, and what they should give, to a safetensors
//! file (the format is in tests/golden/README.md), and replay it in any dtype.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use fused_dora::reference::{Case, Results};
use fused_dora::{Dtype, Kernels};
use fused_dora_testkit::case::{CaseFile, write_results};
use fused_dora_testkit::compare::{self, Comparison};
use fused_dora_testkit::device::{self, Choice};
use fused_dora_testkit::options::{self, dtype, text};
use fused_dora_testkit::run::{self, Runner};
use fused_dora_testkit::{eprintln, print, println};
use lexopt::prelude::*;

const USAGE: &str = "\
Runs DoRA layers from case files, and compares them with what the files expect.

Usage: replay CASE.safetensors… [OPTIONS]

  --dtype D     bf16, f16 or f32 (bf16)
  --device D    auto (a GPU if there is one), cuda or emulated
                ($CUDA_EMULATOR_DEVICE, or auto)
  --write DIR   save the results (f32) to DIR/CASE.DTYPE.safetensors
  --help        print this

Per tensor, a line: the relative Frobenius error, the element that takes up most of its error
bound, and ok or FAIL. A case without expected.* is run and not compared.
Exit codes: 0 all within bounds, 1 a tensor beyond its bounds or a device that failed, 2 bad
arguments, files or cases. The file format is described in tests/golden/README.md, and that of
layers on packed weights in tests/golden-quant/README.md: the kernels decode W.
";

struct Options {
    cases: Vec<PathBuf>,
    dtype: Dtype,
    device: Choice,
    write: Option<PathBuf>,
}

impl Options {
    fn from_arguments() -> Result<Option<Self>, lexopt::Error> {
        let mut options =
            Self { cases: Vec::new(), dtype: Dtype::Bf16, device: Choice::Auto, write: None };
        let mut device = None;
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Value(path) => options.cases.push(path.into()),
                Long("dtype") => options.dtype = dtype(&text(&mut parser)?)?,
                Long("device") => device = Some(text(&mut parser)?),
                Long("write") => options.write = Some(parser.value()?.into()),
                Long("help") | Short('h') => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        if options.cases.is_empty() {
            return Err("no case given".into());
        }
        options.device = options::device(device)?;
        Ok(Some(options))
    }
}

/// Why replaying stopped, and the exit code that says so.
enum Stop {
    BadInput(Box<dyn Error>),
    Failed(Box<dyn Error>),
}

/// The program.
pub fn main() -> ExitCode {
    let options = match Options::from_arguments() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match replay(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Stop::Failed(error)) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
        Err(Stop::BadInput(error)) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Replays all cases; `false` if a tensor is beyond its bounds.
fn replay(options: &Options) -> Result<bool, Stop> {
    let bad = |error: Box<dyn Error>| Stop::BadInput(error);
    // Every file is checked before anything runs.
    let files = options.cases.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>();
    let files = files.map_err(bad)?;
    if let Some(folder) = &options.write {
        std::fs::create_dir_all(folder).map_err(|error| {
            bad(format!("--write {}: cannot be created: {error}", folder.display()).into())
        })?;
    }
    let device = device::open_choice(Some(options.device)).map_err(Stop::Failed)?;
    let failed = |error| Stop::Failed(device.explained(error));
    println!("device: {}", device.name);
    let kernels = Arc::new(Kernels::load(&device.context).map_err(failed)?);
    let mut ok = true;
    for file in &files {
        let found = match &file.packed {
            Some(weight) => Runner::with_kernels(&kernels).with_packed(weight.clone()),
            None => Runner::with_kernels(&kernels),
        }
        .run(&file.case, options.dtype)
        .map_err(failed)?;
        ok &= report(file, options.dtype, &found).map_err(bad)?;
        if let Some(folder) = &options.write {
            let path = folder.join(format!("{}.{}.safetensors", file.name, options.dtype));
            write_results(&path, &file.case, &found).map_err(|error| bad(error.into()))?;
            println!("  written to {}", path.display());
        }
    }
    Ok(ok)
}

fn read(path: &Path) -> Result<CaseFile, Box<dyn Error>> {
    let file = CaseFile::read(path)?;
    run::spec(&file.case, Dtype::F32).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(file)
}

/// Prints a line per tensor; `false` if one is beyond its bounds.
fn report(file: &CaseFile, dtype: Dtype, found: &[Vec<f32>; 6]) -> Result<bool, Box<dyn Error>> {
    let Case { tokens, in_features, out_features, rank, norm, norm_grad, .. } = &file.case;
    println!(
        "{}: {tokens} tokens, {in_features} -> {out_features} features, rank {rank}, \
         norm {norm:?} {norm_grad:?}, {dtype}{}",
        file.name,
        file.packed.as_ref().map_or_else(String::new, |w| format!(", W in {}", w.format()))
    );
    if file.expected.iter().all(Option::is_none) {
        println!("  no expected tensors: run, not compared");
        return Ok(true);
    }
    let bounds = compare::bounds(&file.case, dtype)?;
    let shapes = file.case.result_shapes();
    let mut ok = true;
    for (index, name) in Results::NAMES.into_iter().enumerate() {
        let Some(expected) = &file.expected[index] else {
            continue;
        };
        let bounds = bounds.tensors()[index];
        let (shape, found) = (&shapes[index], &found[index]);
        let comparison = Comparison::new(name, shape, dtype, found, expected, bounds);
        println!("  {comparison}");
        ok &= comparison.ok();
    }
    Ok(ok)
}
