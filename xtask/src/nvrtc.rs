//! Finds NVRTC, or fetches NVIDIA's Python wheel of it into the user's cache folder.

use std::path::{Path, PathBuf};

pub(crate) use fused_dora_nvrtc::ENV_LIBRARY;
use fused_dora_nvrtc::{Nvrtc, NvrtcError, Source, WHEEL_FOLDERS, user_cache};

use crate::Failure;
use crate::steps::target_folder;
use crate::wheel;

/// The oldest architecture that the kernels are compiled for, which every NVRTC must know.
const ARCHITECTURE: &str = "--gpu-architecture=compute_80";

/// Makes sure that the build script will find a working NVRTC, of `major` if one is asked for.
pub(crate) fn provide(major: Option<i32>) -> Result<(), Failure> {
    let find = || Nvrtc::find(&target_folder());
    match find() {
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
    // In the user's cache folder, programs outside this workspace find it, too.
    let fetched = user_cache().unwrap_or_else(target_folder).join("nvrtc");
    fetch(major.unwrap_or(12), &fetched)?;
    let found = find().map_err(|error| Failure::new(error.to_string()))?;
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

fn fetch(major: i32, folder: &Path) -> Result<(), Failure> {
    let package = match major {
        12 => "nvidia-cuda-nvrtc-cu12>=12.9,<13".to_owned(),
        _ => format!("nvidia-cuda-nvrtc>={major},<{}", major + 1),
    };
    let otherwise = format!("install the CUDA toolkit or set {ENV_LIBRARY} to an NVRTC library");
    wheel::fetch(&package, folder, &otherwise)
}
