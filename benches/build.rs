//! Compiles `elementwise.cu` to PTX with NVRTC, such that the benches need no NVRTC where they run.
//!
//! Without an NVRTC the benches still compile, and say so when they are run.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use fused_dora_nvrtc::ptx::portable;
use fused_dora_nvrtc::{
    Cache, DTYPES, ENV_CACHE, ENV_LIBRARY, Nvrtc, Source, fetched_folders, sources,
};

const NAME: &str = "elementwise.cu";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let (file, kernels) = (root.join("src/baseline").join(NAME), root.join("../kernels"));
    for watched in [&root.join("build.rs"), &file, &kernels.join("common")] {
        println!("cargo:rerun-if-changed={}", watched.display());
    }
    let toolkits = ["CUDA_PATH", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX"];
    for variable in [ENV_LIBRARY, ENV_CACHE].into_iter().chain(toolkits) {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let mut table = String::from("[\n");
    match Nvrtc::find(&out) {
        Ok(nvrtc) => {
            let (text, headers) = (fs::read_to_string(&file)?, sources(&kernels, "cuh")?);
            let source = Source { name: NAME, text: &text, headers: &headers };
            for dtype in DTYPES {
                let path = compile(&nvrtc, &source, dtype, &out)?;
                table += &format!("    ({dtype:?}, include_str!({path:?})),\n");
            }
        }
        Err(error) => {
            println!("cargo:warning=the baselines' kernels were not compiled: {error}");
            // A copy fetched later must be noticed; Cargo reruns for a file that is missing.
            for folder in fetched_folders(&out) {
                println!("cargo:rerun-if-changed={}", folder.display());
            }
        }
    }
    fs::write(out.join("elementwise.rs"), table + "]\n")?;
    Ok(())
}

/// Writes the PTX of a dtype, and returns its path.
fn compile(
    nvrtc: &Nvrtc,
    source: &Source<'_>,
    dtype: &str,
    out: &Path,
) -> Result<PathBuf, Box<dyn Error>> {
    let define = format!("--define-macro=FUSED_DORA_DTYPE={dtype}");
    let options = ["--gpu-architecture=compute_80", "--std=c++17", "--generate-line-info", &define];
    let ptx = Cache::from_env().ptx(nvrtc, source, &options)?;
    let path = out.join(format!("elementwise_{dtype}.ptx"));
    fs::write(&path, portable(&ptx)?)?;
    Ok(path)
}
