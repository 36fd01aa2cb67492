//! `cargo xtask gpu-bundle`: a folder that proves and measures the kernels on another machine's GPU.

mod build;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::steps::{Steps, run, target_folder, workspace};
use crate::{Failure, nvrtc, usage};
use build::{Built, Kind};

/// What a folder may take.
const LIMIT_BYTES: u64 = 60_000_000;

/// The GPUs whose machine code `bin/kernels` has unless others are asked for: with that of all, the
/// folder would be too large.
pub(crate) const CUBINS: &str = "80,90";

/// The programs: of which kind, and their names in `bin`.
const PROGRAMS: [(Kind, &str); 4] = [
    (Kind::Test, "kernels"),
    (Kind::Test, "alone"),
    (Kind::Program, "bench"),
    (Kind::Program, "report"),
];

const RUN: &str = include_str!("run.sh");
const README: &str = include_str!("README.md");
/// What compares the C library with PyTorch.
const PYTORCH: [(&str, &str); 3] = [
    ("peft_compare.py", include_str!("peft_compare.py")),
    ("fused_dora.py", include_str!("fused_dora.py")),
    ("reference.py", include_str!("reference.py")),
];

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) out: PathBuf,
    /// The oldest C library that the programs run with: that of this machine, if none is named.
    pub(crate) glibc: Option<String>,
    /// Compute capabilities, as `FUSED_DORA_CUBINS` has them.
    pub(crate) cubins: String,
}

impl Options {
    pub(crate) fn parse(arguments: &[&str]) -> Result<Self, Failure> {
        let (mut out, mut glibc, mut cubins) = (None, None, CUBINS.to_owned());
        let mut rest = arguments.iter();
        while let Some(&name) = rest.next() {
            let mut value = || rest.next().ok_or_else(|| usage(&format!("{name} needs a value")));
            match name {
                "--out" => out = Some(PathBuf::from(value()?)),
                "--target-glibc" => glibc = Some((*value()?).to_owned()),
                "--cubins" => cubins = (*value()?).to_owned(),
                other => return Err(usage(&format!("gpu-bundle: `{other}` is unknown"))),
            }
        }
        let is_version = |text: &String| {
            let mut parts = text.split('.').map(str::parse::<u32>);
            matches!((parts.next(), parts.next(), parts.next()), (Some(Ok(2)), Some(Ok(_)), None))
        };
        if let Some(wrong) = glibc.as_ref().filter(|text| !is_version(text)) {
            return Err(usage(&format!("--target-glibc {wrong}: it must be such as 2.28")));
        }
        let out = out.ok_or_else(|| usage("gpu-bundle needs --out DIR"))?;
        // Cargo runs elsewhere.
        let out = std::path::absolute(&out).map_err(|error| cannot("find", &out, &error))?;
        Ok(Self { out, glibc, cubins })
    }
}

/// Builds a folder, and prints its size.
pub(crate) fn gpu_bundle(options: &Options) -> Result<(), Failure> {
    Steps::run(|steps| {
        steps.step("NVRTC", || nvrtc::provide(None))?;
        let built = steps.step("build", || build::release(options))?;
        steps.step("folder", || assemble(&options.out, &built))?;
        let bytes = size(&options.out)?;
        println!("==> {}: {:.1} MB", options.out.display(), bytes as f64 / 1e6);
        if bytes > LIMIT_BYTES {
            return Err(Failure::new(format!(
                "{} takes {:.1} MB, and the limit is {:.0} MB: pass --cubins with fewer compute \
                 capabilities than {}",
                options.out.display(),
                bytes as f64 / 1e6,
                LIMIT_BYTES as f64 / 1e6,
                options.cubins
            )));
        }
        println!("==> on the machine with the GPU: bash run.sh");
        Ok(())
    })
}

/// Makes a folder of what the tests are built from, and runs it on the emulated device, in an
/// environment in which nothing is set.
pub(crate) fn dry_run(packages: &[&str]) -> Result<(), Failure> {
    let folder = target_folder().join("gpu-bundle");
    let built = build::development(packages)?;
    assemble(&folder, &built)?;
    let results = folder.join("gpu-results");
    let mut script = Command::new("bash");
    script.arg(folder.join("run.sh")).args(["--dry-run", "--tests", DRY_TESTS, "--out"]);
    run("run.sh", script.arg(&results).env_clear())?;
    for made in ["REPORT.md", "layers.json", "prepare.json", "machine.json", "logs/steps.json"] {
        let path = results.join(made);
        fs::metadata(&path).map_err(|error| cannot("find", &path, &error))?;
    }
    Ok(())
}

/// The tests of a dry run, all of which the tests themselves have run.
const DRY_TESTS: &str = "a_graph_replays_a_micro_batch";

/// Makes the folder anew.
fn assemble(out: &Path, built: &Built) -> Result<(), Failure> {
    let root = workspace();
    let marker = out.join("commit.txt");
    if out.exists() && !marker.is_file() && !is_empty(out)? {
        return Err(Failure::new(format!(
            "{} is there, and no gpu-bundle made it: name another folder, or remove it",
            out.display()
        )));
    }
    if out.exists() {
        fs::remove_dir_all(out).map_err(|error| cannot("remove", out, &error))?;
    }
    let copies = built.programs.iter().map(|(name, path)| (path.clone(), format!("bin/{name}")));
    let libraries = [
        (built.emulator.clone(), "bin/libcuda_emulator.so".to_owned()),
        (built.library.clone(), "lib/libfused_dora.so".to_owned()),
        (root.join("capi/include/fused_dora.h"), "include/fused_dora.h".to_owned()),
    ];
    for (from, to) in copies.chain(libraries) {
        copy(&from, &out.join(to))?;
    }
    for below in ["tests/golden", "tests/golden-quant"] {
        copy_all(&root.join(below), &out.join(below))?;
    }
    for (name, text) in PYTORCH {
        write(&out.join("pytorch").join(name), text)?;
    }
    write(&out.join("run.sh"), RUN)?;
    write(&out.join("README.md"), README)?;
    write(&marker, &commit())
}

/// The commit that is built, and whether files differ from it; empty where git cannot say.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(workspace()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    let Some(commit) = git(&["rev-parse", "HEAD"]) else { return String::new() };
    match git(&["status", "--porcelain", "--untracked-files=no"]).as_deref() {
        Some("") => commit,
        _ => format!("{commit} with changes"),
    }
}

fn is_empty(folder: &Path) -> Result<bool, Failure> {
    let mut entries = fs::read_dir(folder).map_err(|error| cannot("read", folder, &error))?;
    Ok(entries.next().is_none())
}

/// The bytes of all files below a folder.
fn size(folder: &Path) -> Result<u64, Failure> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).map_err(|error| cannot("read", folder, &error))? {
        let path = entry.map_err(|error| cannot("read", folder, &error))?.path();
        bytes += match path.is_dir() {
            true => size(&path)?,
            false => fs::metadata(&path).map_err(|error| cannot("read", &path, &error))?.len(),
        };
    }
    Ok(bytes)
}

fn copy_all(from: &Path, to: &Path) -> Result<(), Failure> {
    for entry in fs::read_dir(from).map_err(|error| cannot("read", from, &error))? {
        let path = entry.map_err(|error| cannot("read", from, &error))?.path();
        let to = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() { copy_all(&path, &to)? } else { copy(&path, &to)? }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    create_above(to)?;
    fs::copy(from, to).map(drop).map_err(|error| cannot("copy to", to, &error))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    create_above(path)?;
    fs::write(path, text).map_err(|error| cannot("write", path, &error))
}

fn create_above(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|error| cannot("create", folder, &error))
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let options = Options::parse(&["--out", "/a", "--target-glibc", "2.28"]).expect("options");
        let expected =
            Options { out: "/a".into(), glibc: Some("2.28".to_owned()), cubins: CUBINS.to_owned() };
        assert_eq!(options, expected);
        for wrong in [
            &[][..],
            &["--out"],
            &["--out", "a", "--target-glibc", "2"],
            &["--out", "a", "--target-glibc", "3.1"],
            &["--dir", "a"],
        ] {
            assert_eq!(Options::parse(wrong).expect_err("usage").code, 2, "{wrong:?}");
        }
    }

    #[test]
    fn a_folder_of_others_is_left_alone() {
        let folder = std::env::temp_dir().join(format!("gpu-bundle-{}", std::process::id()));
        write(&folder.join("mine.txt"), "mine").expect("a writable folder");
        let built = Built::default();
        let failure = assemble(&folder, &built).expect_err("not of a bundle");
        assert!(failure.message.contains("name another folder"), "{}", failure.message);
        assert_eq!(size(&folder).expect("a folder"), 4);
        fs::remove_dir_all(&folder).expect("the test's own");
    }
    /// Runs the script with programs that do as they are told.
    #[cfg(unix)]
    fn run_script(name: &str, programs: [(&str, &str); 4], options: &[&str]) -> (i32, String) {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        for (program, text) in programs {
            let path = folder.join("bin").join(program);
            write(&path, &format!("#!/bin/sh\n{text}\n")).expect("a writable folder");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its own file");
        }
        for (path, text) in
            [("run.sh", RUN), ("commit.txt", "abc"), ("pytorch/peft_compare.py", "exit(77)")]
        {
            write(&folder.join(path), text).expect("a writable folder");
        }
        let mut script = Command::new("bash");
        script.arg(folder.join("run.sh")).arg("--dry-run").args(options).arg("--out");
        let output = script.arg(folder.join("out")).output().expect("bash");
        let report = fs::read_to_string(folder.join("out/REPORT.md")).expect("a report");
        fs::remove_dir_all(&folder).expect("the test's own");
        (output.status.code().expect("an exit code"), report)
    }

    #[cfg(unix)]
    #[test]
    fn the_script_goes_on_after_failures_and_reports_them() {
        let report = "while [ $# -gt 1 ]; do shift; done; echo all >\"$1/REPORT.md\"";
        let programs = |kernels| {
            [("kernels", kernels), ("alone", "true"), ("bench", "true"), ("report", report)]
        };
        let has = |text: &str, step: &str, result: &str| {
            let start = format!("| {step} | ");
            text.lines()
                .any(|line| line.starts_with(&start) && line.contains(&format!(" | {result}")))
        };
        let (code, text) = run_script("run-failing", programs("exit 3"), &["--minutes", "1"]);
        assert_eq!(code, 1, "{text}");
        assert!(has(&text, "kernels", "failed (3), see logs/kernels.log |"), "{text}");
        assert!(has(&text, "alone", "ok |") && has(&text, "report", "ok |"), "{text}");
        let (code, text) = run_script("run-succeeding", programs("true"), &["--minutes", "1"]);
        assert_eq!(code, 0, "{text}");
        assert!(has(&text, "pytorch", "left out: "), "{text}");
        // What was not run was not proved.
        let (code, text) = run_script("run-without-time", programs("true"), &["--minutes", "0"]);
        assert_eq!(code, 1, "{text}");
        assert!(has(&text, "kernels", "left out: no time |"), "{text}");
        let some = [("echo running 1 test", 0), ("echo running 0 tests", 1)];
        for (kernels, expected) in some {
            let (code, text) = run_script("run-filtered", programs(kernels), &["--tests", "x"]);
            assert_eq!(code, expected, "{text}");
            assert_eq!(has(&text, "tests", "failed: no test has 'x'"), expected == 1, "{text}");
        }
    }
}
