//! Runs kernels that Triton compiles on the emulated device.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Failure;
use crate::steps::{cargo, run, target_folder, workspace};
use crate::wheel;

/// What the Python needs. Triton brings its own ptxas, and needs neither a GPU nor PyTorch.
const PACKAGES: [&str; 2] = ["triton==3.9.0", "numpy==2.4.6"];

/// What to do where pip cannot install them.
const OTHERWISE: &str = "run `cargo xtask triton` on another machine";

/// Builds the device, fetches what is missing, and compares each kernel with numpy.
pub(crate) fn kernels() -> Result<(), Failure> {
    let target = target_folder();
    let folder = target.join("triton");
    let python = folder.join("python/bin/python");
    environment(&folder, &python)?;
    let mut build = cargo(&["build", "--release", "--package", "cuda-emulator", "--lib"]);
    run("the build", build.arg("--target-dir").arg(&target))?;
    let mut kernels = Command::new(&python);
    kernels.arg("-B").arg(workspace().join("emulator/tests/triton/run.py"));
    kernels.arg(target.join("release/libcuda_emulator.so"));
    run("Triton's kernels", kernels.env("TRITON_CACHE_DIR", folder.join("cache")))
}

/// A virtual environment with [`PACKAGES`], which a file lists once they are installed.
fn environment(folder: &Path, python: &Path) -> Result<(), Failure> {
    let (packages, list) = (PACKAGES.join("\n"), folder.join("packages"));
    if python.is_file() && fs::read_to_string(&list).is_ok_and(|listed| listed == packages) {
        return Ok(());
    }
    println!("installing {} into {}", PACKAGES.join(" and "), folder.display());
    let place = folder.join("python");
    let create = ["-m", "venv", "--clear"].map(OsStr::new);
    let created = wheel::python(&[&create[..], &[place.as_os_str()]].concat(), OTHERWISE)?;
    if !created.success() {
        return Err(Failure::new(format!(
            "python3 could not make a virtual environment in {} (its own words are above): \
             install its module (Debian: apt-get install python3-venv), or {OTHERWISE}",
            place.display()
        )));
    }
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--only-binary", ":all:"]);
    run("pip", pip.args(PACKAGES)).map_err(|_| {
        Failure::new(format!(
            "pip could not install {} (its own words are above): it needs Python 3.11 or later \
             and a reachable package index; offline, set PIP_FIND_LINKS to a folder of their \
             wheels, or {OTHERWISE}",
            PACKAGES.join(" and ")
        ))
    })?;
    fs::write(&list, packages)
        .map_err(|error| Failure::new(format!("cannot write {}: {error}", list.display())))
}
