//! The programs and libraries of the folder.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Options, PROGRAMS};
use crate::steps::{cargo, target_folder, workspace};
use crate::wheel;
use crate::{Failure, cuda_tools::make_executable};

/// The oldest CUDA version that cudarc is asked to bind: that of the oldest driver that takes the
/// kernels' PTX. Functions that later drivers alone have would be missing where they are called.
const CUDA_VERSION: [&str; 2] = ["CUDARC_CUDA_VERSION", "11080"];

const ENV_CUBINS: &str = "FUSED_DORA_CUBINS";

/// What is built with machine code beside PTX, and what without.
const WITH_CUBINS: [&str; 6] =
    ["--package", "fused-dora", "--features", "fused-dora/cubins", "--test", "kernels"];
const PACKAGES: [&str; 12] = [
    "--package",
    "fused-dora",
    "--package",
    "fused-dora-benches",
    "--package",
    "fused-dora-lab",
    "--package",
    "fused-dora-capi",
    "--package",
    "cuda-emulator",
    "--features",
    "fused-dora-benches/cublaslt",
];

/// What a program is to Cargo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Test,
    Program,
}

/// Where everything is.
#[derive(Debug, Default)]
pub(super) struct Built {
    /// Each with its name.
    pub(super) programs: Vec<(&'static str, PathBuf)>,
    /// The C library, and the emulated device's.
    pub(super) library: PathBuf,
    pub(super) emulator: PathBuf,
}

/// Builds what travels: small, with machine code for some GPUs, for old drivers, and with
/// `--target-glibc` for an old C library.
pub(super) fn release(options: &Options) -> Result<Built, Failure> {
    let portable = options.glibc.as_deref().map(Portable::provide).transpose()?;
    let command = || {
        let mut command = match &portable {
            Some(portable) => portable.build(),
            None => cargo(&["build"]),
        };
        command.args(["--profile", "bundle"]).env(CUDA_VERSION[0], CUDA_VERSION[1]);
        command
    };
    let mut with_cubins = command();
    with_cubins.args(WITH_CUBINS).env(ENV_CUBINS, &options.cubins);
    let kernels = artifacts(&mut with_cubins)?;
    let mut rest = command();
    rest.args(PACKAGES).arg("--lib").env_remove(ENV_CUBINS);
    for (kind, name) in PROGRAMS {
        if name != "kernels" {
            rest.args([kind.option(), name]);
        }
    }
    found(&format!("{}{kernels}", artifacts(&mut rest)?))
}

/// What the tests have built anyway.
pub(super) fn development(packages: &[&str]) -> Result<Built, Failure> {
    let mut build = cargo(&["build"]);
    build.args(packages).args(["--lib", "--bins"]);
    for (kind, name) in PROGRAMS.into_iter().filter(|(kind, _)| *kind == Kind::Test) {
        build.args([kind.option(), name]);
    }
    found(&artifacts(&mut build)?)
}

impl Kind {
    /// Cargo's option for such a target.
    fn option(self) -> &'static str {
        match self {
            Self::Test => "--test",
            Self::Program => "--bin",
        }
    }

    /// As Cargo's messages have it.
    fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Program => "bin",
        }
    }
}

/// Runs a build, and returns Cargo's messages, a line for each.
fn artifacts(build: &mut Command) -> Result<String, Failure> {
    build.args(["--message-format", "json-render-diagnostics"]);
    let output = build.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output =
        output.map_err(|error| Failure::new(format!("Cargo could not be run: {error}")))?;
    if !output.status.success() {
        return Err(Failure::new("the build failed; its own words are above"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The paths in Cargo's messages.
fn found(messages: &str) -> Result<Built, Failure> {
    let lines = || messages.lines().filter(|line| line.contains("\"compiler-artifact\""));
    let missing = |what: &str| Failure::new(format!("Cargo did not say where it built {what}"));
    let mut programs = Vec::new();
    for (kind, name) in PROGRAMS {
        let target = (format!("\"kind\":[\"{}\"]", kind.name()), format!("\"name\":\"{name}\""));
        let mut of_target =
            lines().filter(|line| line.contains(&target.0) && line.contains(&target.1));
        let path = of_target.find_map(|line| quoted(line.split_once("\"executable\":\"")?.1));
        programs.push((name, path.ok_or_else(|| missing(name))?));
    }
    let library = |file: &str| {
        let end = format!("/{file}");
        let names = lines().flat_map(|line| line.split('"'));
        let mut paths = names.filter(|text| text.ends_with(&end)).map(PathBuf::from);
        paths.next().ok_or_else(|| missing(file))
    };
    let (emulator, library) = (library("libcuda_emulator.so")?, library("libfused_dora.so")?);
    Ok(Built { programs, library, emulator })
}

/// The path up to the next quotation mark.
fn quoted(text: &str) -> Option<PathBuf> {
    text.split_once('"').map(|(path, _)| PathBuf::from(path))
}

/// cargo-zigbuild and the C compiler of Zig, which links for any version of glibc.
struct Portable {
    program: PathBuf,
    zig: PathBuf,
    /// With the version of glibc.
    target: String,
}

impl Portable {
    /// Finds both among what was fetched before, or fetches their Python wheels.
    fn provide(glibc: &str) -> Result<Self, Failure> {
        let folder = target_folder().join("zig");
        let provide = |package: &str, file: &str| {
            let unpacked = folder.join(package);
            if find(&unpacked, file).is_none() {
                let otherwise = "leave out --target-glibc, and build on a machine as old";
                wheel::fetch(package, &unpacked, otherwise)?;
            }
            let program = find(&unpacked, file).ok_or_else(|| {
                Failure::new(format!("the wheel {package} has no {file}: its layout has changed"))
            })?;
            make_executable(&program)?;
            Ok::<_, Failure>(program)
        };
        Ok(Self {
            program: provide("cargo-zigbuild", "cargo-zigbuild")?,
            zig: provide("ziglang", "zig")?,
            target: format!("x86_64-unknown-linux-gnu.{glibc}"),
        })
    }

    fn build(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["zigbuild", "--target", &self.target]).current_dir(workspace());
        if let Some(cargo) = env::var_os("CARGO") {
            command.env("CARGO", cargo);
        }
        command.env("CARGO_ZIGBUILD_ZIG_PATH", &self.zig);
        command
    }
}

/// A file of this name, somewhere below a folder.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let file = files.into_iter().find(|path| path.ends_with(name));
    file.or_else(|| folders.iter().find_map(|folder| find(folder, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_in_messages() {
        let program = |kind: &str, name: &str| {
            format!(
                "{{\"reason\":\"compiler-artifact\",\"target\":{{\"kind\":[\"{kind}\"],\
                 \"name\":\"{name}\"}},\"executable\":\"/t/{name}-1\"}}\n"
            )
        };
        let mut messages: String =
            PROGRAMS.into_iter().map(|(kind, name)| program(kind.name(), name)).collect();
        // A library's tests have no program of that name, and a bench is another thing.
        messages += &program("bench", "report");
        let failure = found(&messages).expect_err("no libraries yet");
        assert!(failure.message.contains("libcuda_emulator.so"), "{}", failure.message);
        messages += "{\"reason\":\"compiler-artifact\",\"filenames\":[\"/t/libcuda_emulator.so\",\
                     \"/t/libcuda_emulator.rlib\"],\"executable\":null}\n";
        messages += "{\"reason\":\"compiler-artifact\",\"filenames\":[\"/t/libfused_dora.so\"]}\n";
        let built = found(&messages).expect("all of it");
        assert_eq!(built.emulator, Path::new("/t/libcuda_emulator.so"));
        assert_eq!(built.library, Path::new("/t/libfused_dora.so"));
        assert_eq!(built.programs[0], ("kernels", PathBuf::from("/t/kernels-1")));
    }
}
