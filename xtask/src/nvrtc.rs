//! Finds NVRTC, or fetches NVIDIA's Python wheel of it into the target folder.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use crate::Failure;
use crate::steps::target_folder;

#[path = "../../build/nvrtc.rs"]
#[allow(dead_code, reason = "the build script uses the rest")]
mod binding;

pub(crate) use binding::ENV_LIBRARY;
use binding::{Nvrtc, NvrtcError, Source, WHEEL_FOLDERS};

/// The oldest architecture that the kernels are compiled for, so what an NVRTC must know.
const ARCHITECTURE: &str = "--gpu-architecture=compute_80";

/// Makes sure that the build script will find a working NVRTC, of `major` if one is asked for.
pub(crate) fn provide(major: Option<i32>) -> Result<(), Failure> {
    let fetched = target_folder().join("nvrtc");
    match Nvrtc::find(Some(&fetched)) {
        Ok(found) => {
            let version = check(&found)?;
            if major.is_none_or(|major| major == version.0) {
                report(&found.path, version);
                return Ok(());
            }
            println!("NVRTC {}.{} is at {}", version.0, version.1, found.path.display());
        }
        Err(error) if std::env::var_os(ENV_LIBRARY).is_some_and(|value| !value.is_empty()) => {
            return Err(Failure::new(format!(
                "{error}; correct {ENV_LIBRARY}, or unset it to have NVRTC looked for and fetched"
            )));
        }
        Err(_) => println!("no NVRTC on this machine"),
    }
    fetch(major.unwrap_or(12), &fetched)?;
    let found = Nvrtc::find(Some(&fetched)).map_err(|error| Failure::new(error.to_string()))?;
    let version = check(&found)?;
    report(&found.path, version);
    match major {
        Some(major) if major != version.0 => Err(Failure::new(format!(
            "NVRTC {major} was fetched into {}, but {} comes before it in the search: set \
             {ENV_LIBRARY} to the fetched folder",
            fetched.display(),
            found.path.display()
        ))),
        _ => Ok(()),
    }
}

/// A folder that holds NVRTC `major` alone, fetched on first use.
pub(crate) fn of_major(major: i32) -> Result<PathBuf, Failure> {
    let wheel = target_folder().join(format!("nvrtc-matrix/{major}"));
    let libraries = || WHEEL_FOLDERS.iter().map(|below| wheel.join(below)).find(|f| f.is_dir());
    if libraries().is_none() {
        fetch(major, &wheel)?;
    }
    libraries().ok_or_else(|| {
        Failure::new(format!(
            "NVIDIA's NVRTC {major} wheel has none of {} below {}: its layout has changed",
            WHEEL_FOLDERS.join(", "),
            wheel.display()
        ))
    })
}

fn report(path: &Path, version: (i32, i32)) {
    println!("NVRTC {}.{}: {}", version.0, version.1, path.display());
}

/// Compiles a trivial kernel, and returns the version of a library that can.
fn check(nvrtc: &Nvrtc) -> Result<(i32, i32), Failure> {
    let text = "extern \"C\" __global__ void probe(int* out) { *out = threadIdx.x; }";
    let source = Source { name: "probe.cu", text, headers: &[] };
    let works = || -> Result<(i32, i32), NvrtcError> {
        let version = nvrtc.version()?;
        nvrtc.compile(&source, &[ARCHITECTURE, "--std=c++17"])?;
        Ok(version)
    };
    works().map_err(|error| {
        Failure::new(format!(
            "the NVRTC at {} cannot compile a kernel: {error}; the build would find it first, so \
             repair or remove it, or set {ENV_LIBRARY} to another",
            nvrtc.path.display()
        ))
    })
}

/// Downloads NVIDIA's wheel with pip and unpacks it to `folder`, which appears complete or not
/// at all.
fn fetch(major: i32, folder: &Path) -> Result<(), Failure> {
    let package = match major {
        12 => "nvidia-cuda-nvrtc-cu12>=12.9,<13".to_owned(),
        _ => format!("nvidia-cuda-nvrtc>={major},<{}", major + 1),
    };
    let download = beside(folder, "download");
    let unpacked = beside(folder, "unpacking");
    let replaced = beside(folder, "replaced");
    for leftover in [&download, &unpacked, &replaced] {
        remove(leftover).map_err(|error| cannot("remove", leftover, &error))?;
    }
    fs::create_dir_all(&download).map_err(|error| cannot("create", &download, &error))?;

    println!("fetching NVIDIA's wheel {package}");
    let mut pip: Vec<&OsStr> =
        ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"].map(OsStr::new).to_vec();
    pip.extend(["--disable-pip-version-check", "--dest"].map(OsStr::new));
    pip.extend([download.as_os_str(), OsStr::new(&package)]);
    if !python(&pip)?.success() {
        return Err(Failure::new(format!(
            "pip could not download {package} (its own words are above): it needs Python 3 with \
             pip (Debian: apt-get install python3-pip) and a reachable package index; offline, \
             or where NVIDIA publishes no wheel, install the CUDA toolkit or set {ENV_LIBRARY} \
             to an NVRTC library"
        )));
    }
    let wheel = fs::read_dir(&download)
        .map_err(|error| cannot("read", &download, &error))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| Failure::new(format!("pip left no wheel in {}", download.display())))?;
    let arguments = ["-m", "zipfile", "-e"].map(OsStr::new);
    let unpack = [&arguments[..], &[wheel.as_os_str(), unpacked.as_os_str()]].concat();
    if !python(&unpack)?.success() {
        return Err(Failure::new(format!(
            "{} could not be unpacked: is the disk full? Free some space and run this again",
            wheel.display()
        )));
    }
    if fs::symlink_metadata(folder).is_ok() {
        fs::rename(folder, &replaced).map_err(|error| cannot("move away", folder, &error))?;
    }
    fs::rename(&unpacked, folder).map_err(|error| cannot("create", folder, &error))?;
    for leftover in [&download, &replaced] {
        remove(leftover).map_err(|error| cannot("remove", leftover, &error))?;
    }
    Ok(())
}

fn python(arguments: &[&OsStr]) -> Result<ExitStatus, Failure> {
    Command::new("python3").args(arguments).status().map_err(|error| {
        Failure::new(format!(
            "python3 could not be run ({error}): install Python 3 with pip (Debian: apt-get \
             install python3-pip), or the CUDA toolkit, or set {ENV_LIBRARY} to an NVRTC library"
        ))
    })
}

fn beside(folder: &Path, suffix: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push("-");
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes a folder, or a link to one, that may not be there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot {what} {}: {error}", path.display()))
}
