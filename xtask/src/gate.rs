//! What must pass: `cargo xtask check`, `test` and `soak`.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cuda_tools;
use crate::gpu_bundle;
use crate::nvrtc::{self, ENV_LIBRARY};
use crate::steps::{Steps, cargo, run, target_folder, workspace};
use crate::triton;
use crate::{Failure, usage};

/// How long `cargo xtask test` may take, unless [`ENV_LIMIT`] is another number of seconds.
const LIMIT: Duration = Duration::from_secs(20 * 60);
const ENV_LIMIT: &str = "FUSED_DORA_TEST_LIMIT";

/// How many random layers the property tests try.
const RANDOM_LAYERS: &str = "PROPTEST_CASES";
/// How many they try in a soak.
const SOAK_LAYERS: &str = "5000";

/// The Python that may have PEFT.
const PYTHON: &str = "FUSED_DORA_PYTHON";

/// What is checked: all members, with all features that need nothing installed. cuBLASLt and NCCL are
/// loaded at run time. Every step builds with these arguments, such that nothing is built twice.
const ALL: [&str; 3] = [
    "--workspace",
    "--features",
    "fused-dora/dlpack,fused-dora/nccl,fused-dora/peft,\
     fused-dora-benches/cublaslt,fused-dora-candle/peft,fused-dora-examples/nccl",
];

/// The test that runs a sample of the kernels' mutants.
const MUTANT_SAMPLE: &str = "every_mutant_of_a_sample_is_noticed";

/// The test of the limits.
const LIMITS: &str = "all_lines_hold";

/// What that sample is about, kernels aside.
const MUTATION_SOURCES: [&str; 4] = ["emulator", "lab", "mutants", "testkit"];

/// The device settings of a soak: a seed of the schedule, tensor-core sums, jitter.
const SOAK_SETTINGS: [[&str; 3]; 5] = [
    ["1", "exact", "1"],
    ["2", "truncate", "0"],
    ["3", "sequential", "1"],
    ["4", "truncate", "1"],
    ["5", "exact", "0"],
];

/// Formatting, lints and documentation.
pub(crate) fn check() -> Result<(), Failure> {
    Steps::run(|steps| {
        steps.step("NVRTC", || nvrtc::provide(None))?;
        steps.step("formatting", || run("cargo fmt", &mut cargo(&["fmt", "--all", "--check"])))?;
        steps.step("lints", || {
            let mut lints = cargo(&["clippy", "--all-targets"]);
            run("cargo clippy", lints.args(ALL).args(["--", "--deny", "warnings"]))
        })?;
        steps.step("documentation", || {
            let mut doc = cargo(&["doc", "--no-deps"]);
            run("cargo doc", doc.args(ALL).env("RUSTDOCFLAGS", "--deny warnings"))
        })?;
        steps.step("the crate without its optional features", || {
            run("cargo check", &mut cargo(&["check", "--package", "fused-dora", "--lib"]))
        })
    })
}

/// All tests. With `since`, the sample of the kernels' mutants gives way to all mutants of the kernel
/// files that differ from that revision.
pub(crate) fn test(since: Option<&str>) -> Result<(), Failure> {
    let limit = limit()?;
    Steps::run(|steps| {
        let changed = since.map(changed_since).transpose()?;
        steps.step("NVRTC", || nvrtc::provide(None))?;
        steps.step("ptxas and nvdisasm", cuda_tools::provide)?;
        steps.step("build", || build(None)?.check(true))?;
        steps.step("tests' build", || {
            let runner: &[&str] = if has_nextest() { &["nextest", "run"] } else { &["test"] };
            run("the build", cargo(runner).arg("--no-run").args(ALL))
        })?;
        steps.step("tests", || {
            let mut tests = tests(&ALL);
            if has_nextest() && changed.as_ref().is_some_and(|changed| !changed.sample) {
                tests.args(["-E", &format!("not test({MUTANT_SAMPLE})")]);
            }
            run("the tests", &mut tests)
        })?;
        if let Some(changed) = changed.filter(|changed| !changed.kernels.is_empty()) {
            steps.step("mutants of changed kernel files", || mutants(&changed.kernels))?;
        }
        steps.step("a dry run of the GPU's folder", || gpu_bundle::dry_run(&ALL))?;
        steps.step("PEFT loads our adapters", with_peft)?;
        if has_nextest() {
            steps.step("documentation tests", || {
                run("cargo test --doc", cargo(&["test", "--doc"]).args(ALL))
            })?;
        }
        if steps.elapsed() > limit {
            return Err(Failure::new(format!(
                "all passed, but in {:.0} s, and the limit is {} s: make the slowest step faster, \
                 or set {ENV_LIMIT} to more seconds on a slower machine",
                steps.elapsed().as_secs_f64(),
                limit.as_secs()
            )));
        }
        Ok(())
    })
}

/// What is left to nights: all mutants, all architectures, every NVRTC and none, all tests under
/// several device settings, many random layers, and Triton's kernels.
pub(crate) fn soak() -> Result<(), Failure> {
    Steps::run(|steps| {
        steps.step("NVRTC", || nvrtc::provide(None))?;
        steps.step("ptxas and nvdisasm", cuda_tools::provide)?;
        steps.step("build", || build(None)?.check(true))?;
        steps.step("limits on all architectures", || {
            run("the limits", &mut Command::new(built("limits")))
        })?;
        steps.step("machine code for all GPUs, beside PTX", || {
            let cubins = ["--package", "fused-dora", "--features", "fused-dora/cubins"];
            let mut tests = tests(&[&cubins[..], &["--test", "kernels"]].concat());
            run("the tests", &mut tests)
        })?;
        steps.step("all mutants", || mutants(&BTreeSet::new()))?;
        steps.step(&format!("{SOAK_LAYERS} random layers in each dtype"), || {
            let mut tests = tests(&ALL);
            tests.args(filter("random_layers")).env(RANDOM_LAYERS, SOAK_LAYERS);
            run("the tests", &mut tests)
        })?;
        for [seed, accumulator, jitter] in SOAK_SETTINGS {
            let way = format!("schedule {seed}, tensor-core sums {accumulator}, jitter {jitter}");
            steps.step(&format!("all tests, {way}"), || {
                let mut tests = tests(&ALL);
                tests.env("CUDA_EMULATOR_SEED", seed);
                tests.env("CUDA_EMULATOR_ACCUMULATOR", accumulator);
                run("the tests", tests.env("CUDA_EMULATOR_JITTER", jitter))
            })?;
        }
        steps.step("build without NVRTC", || build(Some(&no_nvrtc()))?.check(false))?;
        for major in [12, 13] {
            let folder = nvrtc::of_major(major)?;
            steps
                .step(&format!("kernels by NVRTC {major}"), || build(Some(&folder))?.check(true))?;
            steps.step(&format!("tests with NVRTC {major}"), || {
                let mut tests = tests(&ALL);
                // The limits were set for the code of NVRTC 12.
                if major > 12 && has_nextest() {
                    tests.args(["-E", &format!("not test({LIMITS})")]);
                }
                run("the tests", tests.env(ENV_LIBRARY, &folder))
            })?;
        }
        steps.step("Triton's kernels", triton::kernels)
    })
}

/// All checks of the member for candle.
pub(crate) fn candle() -> Result<(), Failure> {
    let package = ["--package", "fused-dora-candle", "--features", "fused-dora-candle/peft"];
    Steps::run(|steps| {
        steps.step("NVRTC", || nvrtc::provide(None))?;
        steps.step("lints", || {
            let mut lints = cargo(&["clippy", "--all-targets"]);
            run("cargo clippy", lints.args(package).args(["--", "--deny", "warnings"]))
        })?;
        steps.step("documentation", || {
            let mut doc = cargo(&["doc", "--no-deps"]);
            run("cargo doc", doc.args(package).env("RUSTDOCFLAGS", "--deny warnings"))
        })?;
        steps.step("tests", || run("the tests", cargo(&["test", "--no-fail-fast"]).args(package)))
    })
}

/// Runs every mutant of the kernels, or of some of their files, and prints the table. With `since`,
/// these are the kernel files that differ from that revision.
pub(crate) fn mutate(files: &[&str], since: Option<&str>) -> Result<(), Failure> {
    let mut files: BTreeSet<String> = files.iter().map(|&file| file.to_owned()).collect();
    if let Some(revision) = since {
        files = changed_since(revision)?.kernels;
        if files.is_empty() {
            println!("no kernel file differs from {revision}");
            return Ok(());
        }
    }
    Steps::run(|steps| {
        steps.step("NVRTC", || nvrtc::provide(None))?;
        steps.step("mutants", || {
            let mut mutants = cargo(&["run", "--release", "--package", "fused-dora-lab"]);
            mutants.args(["--bin", "mutate", "--"]).args(&files);
            run("the mutants", &mut mutants)
        })
    })
}

/// How long `test` may take.
fn limit() -> Result<Duration, Failure> {
    let Ok(text) = env::var(ENV_LIMIT) else { return Ok(LIMIT) };
    let seconds = text.trim().parse().map(Duration::from_secs);
    seconds.map_err(|_| usage(&format!("{ENV_LIMIT}={text}: it must be a number of seconds")))
}

/// What differs from a revision.
#[derive(Debug, Default, PartialEq)]
struct Changed {
    /// The files of `kernels/`, by their names below it.
    kernels: BTreeSet<String>,
    /// Whether anything else does that decides which mutants are noticed.
    sample: bool,
}

impl Changed {
    /// Sorts paths below the workspace.
    fn of<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        let mut changed = Self::default();
        for path in paths {
            let (folder, name) = path.split_once('/').unwrap_or(("", path));
            if folder == "kernels" && (name.ends_with(".cu") || name.ends_with(".cuh")) {
                changed.kernels.insert(name.to_owned());
            }
            changed.sample |= MUTATION_SOURCES.contains(&folder);
        }
        // A file that is gone has no mutants.
        changed.kernels.retain(|name| workspace().join("kernels").join(name).is_file());
        changed
    }
}

/// What differs between a revision and the working tree, files that git does not know included.
fn changed_since(revision: &str) -> Result<Changed, Failure> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(workspace()).output();
        let output = output.map_err(|error| Failure::new(format!("git: {error}")))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            let words = words.lines().next().unwrap_or("git failed");
            return Err(usage(&format!("--since {revision}: {words}")));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    git(&["rev-parse", "--verify", "--quiet", &format!("{revision}^{{commit}}")])
        .map_err(|_| usage(&format!("--since {revision}: it is not a commit here")))?;
    let known = git(&["diff", "--name-only", "--relative", revision, "--"])?;
    let new = git(&["ls-files", "--others", "--exclude-standard"])?;
    Ok(Changed::of(known.lines().chain(new.lines())))
}

/// A program that `build` made.
fn built(name: &str) -> PathBuf {
    target_folder().join("debug").join(format!("{name}{}", env::consts::EXE_SUFFIX))
}

/// All mutants of some files, or of all, by the program that `build` made.
fn mutants(files: &BTreeSet<String>) -> Result<(), Failure> {
    run("the mutants", Command::new(built("mutate")).args(files))
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
    let mut test = cargo(&["test", "--test", "api"]);
    run("the test", test.args(ALL).args(["--", "--ignored", "--nocapture"]))
}

/// Whether cargo-nextest is installed, which runs each test in a process of its own but no
/// documentation tests.
pub(crate) fn has_nextest() -> bool {
    let mut version = cargo(&["nextest", "--version"]);
    let status = version.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// The command that runs tests, by nextest where it is installed. It builds the packages' examples,
/// too, which tests run.
pub(crate) fn tests(packages: &[&str]) -> Command {
    let runner: &[&str] = if has_nextest() { &["nextest", "run"] } else { &["test"] };
    let mut command = cargo(runner);
    command.arg("--no-fail-fast").args(packages);
    command
}

/// Arguments that select tests by a part of their names.
fn filter(name: &str) -> Vec<String> {
    if has_nextest() {
        vec!["-E".to_owned(), format!("test({name})")]
    } else {
        vec!["--".to_owned(), name.to_owned()]
    }
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
        match (count("include_bytes!"), count("None)")) {
            (some @ 1.., 0) if built => {
                println!("{some} kernels compiled");
                Ok(())
            }
            (0, 1..) if !built => {
                println!("compiles without kernels");
                Ok(())
            }
            (some, none) => Err(Failure::new(format!(
                "{some} kernels were compiled and {none} files were not, according to {}: run \
                 `cargo xtask nvrtc`, then `cargo build --verbose`, and read its warnings",
                self.path.display()
            ))),
        }
    }
}

/// Builds everything, and reads the table of kernels that the crate's build script wrote.
fn build(nvrtc: Option<&Path>) -> Result<Table, Failure> {
    let mut build = cargo(&["build"]);
    build.args(ALL).args(["--message-format", "json-render-diagnostics"]);
    build.stderr(Stdio::inherit());
    if let Some(nvrtc) = nvrtc {
        build.env(ENV_LIBRARY, nvrtc);
    }
    let output =
        build.output().map_err(|error| Failure::new(format!("cargo could not be run: {error}")))?;
    if !output.status.success() {
        return Err(Failure::new("cargo build failed"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_kernels_are_told_from_what_judges_them() {
        let kernel = |name: &str| BTreeSet::from([name.to_owned()]);
        let changed = Changed::of(["kernels/adamw/sm80.cu", "README.md", "kernels/gone.cu"]);
        assert_eq!(changed, Changed { kernels: kernel("adamw/sm80.cu"), sample: false });
        let changed = Changed::of(["emulator/src/lib.rs", "src/lib.rs"]);
        assert_eq!(changed, Changed { kernels: BTreeSet::new(), sample: true });
    }

    #[test]
    fn an_unknown_revision_is_a_usage_error() {
        let failure = changed_since("no-such-revision").expect_err("no revision");
        assert_eq!(failure.code, 2);
        assert!(failure.message.contains("--since no-such-revision"), "{}", failure.message);
    }
}
