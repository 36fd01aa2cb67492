//! Measures layers and ops for a fixed time, what tells most first: see [`USAGE`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fused_dora::Norm;
use fused_dora_benches::compare::{self, Phase};
use fused_dora_benches::measure;
use fused_dora_testkit::bench::case::most_valuable_first;
use fused_dora_testkit::bench::record::{Results, folder};
use fused_dora_testkit::bench::{Case, Device, Layer, Op, Outcome, results};
use fused_dora_testkit::{eprintln, print, println};
use lexopt::prelude::*;

const USAGE: &str = "\
Measures on a GPU, or counts on the emulated device, the most valuable layers first.

Usage: bench [OPTIONS] layers|ops|once

  layers       forward and backward against layers of separate ops, launched by the host and, of up
               to 2048 tokens, as captured graphs
  ops          prepare, norm_gradient, adamw, merge, decompose, quantize and dequantize alone
  once         each kernel of a training step, for a profiler

  --out DIR    where the results go: DIR/layers.json, or DIR/prepare.json and so on (target/bench)
  --seconds N  begin no layer after so many seconds, and name those that are left out (600)
  --help       print this

CUDA_EMULATOR_DEVICE chooses the device: cuda or emulated. Exit codes: 0 done, 1 failed, 2 wrong
usage.
";

/// The ops that `ops` measures, and of how many tokens: none of them depends on it.
const OPS: [Op; 7] = [
    Op::Prepare,
    Op::NormGradient,
    Op::AdamW,
    Op::Merge,
    Op::Decompose,
    Op::Quantize,
    Op::Dequantize,
];
const OPS_TOKENS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Layers,
    Ops,
    Once,
}

struct Options {
    what: What,
    out: PathBuf,
    end: Instant,
}

fn main() -> ExitCode {
    let options = match options() {
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
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Option<Options>, lexopt::Error> {
    let (mut what, mut out, mut seconds) = (None, folder(), 600);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("out") => out = parser.value()?.into(),
            Long("seconds") => seconds = parser.value()?.parse()?,
            Long("help") | Short('h') => return Ok(None),
            Value(value) if what.is_none() => {
                what = Some(match value.to_string_lossy().as_ref() {
                    "layers" => What::Layers,
                    "ops" => What::Ops,
                    "once" => What::Once,
                    other => return Err(format!("`{other}` is not layers, ops or once").into()),
                });
            }
            other => return Err(other.unexpected()),
        }
    }
    let what = what.ok_or("say what to measure: layers, ops or once")?;
    Ok(Some(Options { what, out, end: Instant::now() + Duration::from_secs(seconds) }))
}

fn run(options: &Options) -> Outcome {
    match options.what {
        What::Layers => layers(options),
        What::Ops => ops(options),
        What::Once => once(),
    }
}

/// What was measured so far is on disk after each layer.
fn each_layer(
    cases: &[Case],
    results: &mut Results,
    options: &Options,
    mut measure: impl FnMut(&Case, &mut Results) -> Outcome,
) -> Outcome {
    for (number, case) in (1..).zip(cases) {
        if Instant::now() >= options.end {
            println!("left out, for lack of time: {case}");
            results.left_out.push(format!("{case}: no time was left"));
        } else {
            println!("layer {number} of {}: {case}", cases.len());
            measure(case, results).map_err(|error| format!("{case}: {error}"))?;
        }
        results.write(&options.out)?;
    }
    Ok(())
}

fn layers(options: &Options) -> Outcome {
    let device = Device::open()?;
    let mut results = results("layers", &device)?;
    compare::introduce("layers", &device, &mut results);
    let cases = most_valuable_first(device.is_emulated());
    each_layer(&cases, &mut results, options, |case, results| {
        let both = [Phase::Forward, Phase::Backward];
        // Of one token only the forward is of use: it is how an adapted model generates text.
        let phases = if case.shape[0] == 1 { &both[..1] } else { &both[..] };
        compare::compare(&device, case, phases, results)
    })
}

fn ops(options: &Options) -> Outcome {
    let device = Device::open()?;
    let mut cases: Vec<Case> = Vec::new();
    for mut case in most_valuable_first(device.is_emulated()) {
        case.shape[0] = OPS_TOKENS;
        if case.norm != Norm::None && !cases.contains(&case) {
            cases.push(case);
        }
    }
    for op in OPS {
        let mut results = results(op.name(), &device)?;
        println!("{}", op.name());
        let cases: Vec<Case> = cases.iter().filter(|case| op.applies(case)).copied().collect();
        each_layer(&cases, &mut results, options, |case, results| {
            measure::op(&device, op, case, results)
        })?;
    }
    Ok(())
}

/// Forward, backward and all that an optimizer step takes, once.
fn once() -> Outcome {
    let device = Device::open()?;
    let case = most_valuable_first(device.is_emulated()).swap_remove(0);
    let mut layer = Layer::on(&device.kernels, &device.stream, case.shape, case.norm, 1)?;
    layer.step()?;
    layer.synchronize()?;
    println!("{case}: done");
    Ok(())
}
