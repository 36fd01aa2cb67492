//! Compiles `kernels/*.cu` to PTX with NVRTC and hands the texts to the crate.
//!
//! Without an NVRTC (or on docs.rs) the crate still compiles: each kernel is then `None`, and
//! loading kernels returns `Error::KernelsNotBuilt`.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use fused_dora_nvrtc::{ENV_LIBRARY, Nvrtc, NvrtcError, Source, fetched_folders, sources};

/// PTX for the oldest GPU with bf16 tensor cores and `cp.async`; drivers translate it for later
/// ones.
const ARCHITECTURE: &str = "--gpu-architecture=compute_80";
const OPTIONS: [&str; 3] = [ARCHITECTURE, "--std=c++17", "--generate-line-info"];

/// What a kernel file that has entry points per dtype makes them with, and the dtypes, in the order
/// of `Dtype`. Others are about adapters alone, which are f32.
const ENTRIES: &str = "FUSED_DORA_ENTRIES(";
const DTYPES: [&str; 3] = ["bf16", "f16", ADAPTERS];
const ADAPTERS: &str = "f32";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for watched in ["build.rs", "kernels"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    for variable in [ENV_LIBRARY, "CUDA_PATH", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let kernels = sources(&root.join("kernels"), "cu")?;
    let headers = sources(&root.join("kernels"), "cuh")?;

    let nvrtc = if env::var_os("DOCS_RS").is_some() {
        None
    } else {
        match Nvrtc::find(&out) {
            Ok(nvrtc) => Some(nvrtc),
            Err(error) => {
                println!("cargo:warning=the kernels were not compiled: {error}");
                // A copy fetched later must be noticed; Cargo reruns for a file that is missing.
                for folder in fetched_folders(&out) {
                    println!("cargo:rerun-if-changed={}", folder.display());
                }
                None
            }
        }
    };

    // An image per dtype, so that programs load only what they use.
    let images: Vec<_> = kernels
        .iter()
        .flat_map(|(name, text)| {
            let dtypes: &[_] = if text.contains(ENTRIES) { &DTYPES } else { &[ADAPTERS] };
            dtypes.iter().map(move |dtype| (name.as_str(), text.as_str(), *dtype))
        })
        .collect();
    let compile = |&(name, text, dtype): &(&str, &str, &str)| {
        let name = format!("kernels/{name}");
        let source = Source { name: &name, text, headers: &headers };
        let dtype = format!("--define-macro=FUSED_DORA_DTYPE={dtype}");
        let options: Vec<&str> = OPTIONS.into_iter().chain([dtype.as_str()]).collect();
        nvrtc.as_ref().map(|nvrtc| match nvrtc.compile(&source, &options) {
            Err(NvrtcError::Compile(log)) => Err(format!("{name} does not compile:\n{log}")),
            compiled => compiled.map_err(|error| error.to_string()),
        })
    };
    // NVRTC compiles on as many threads as call it.
    let next = AtomicUsize::new(0);
    let ptx = Mutex::new(vec![None; images.len()]);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(image) = images.get(at) else { break };
            let compiled = compile(image);
            ptx.lock().expect("no panic")[at] = compiled;
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));

    let mut table = "pub(crate) const FILES: &[(&str, &[Option<&str>])] = &[\n".to_owned();
    let mut ptx = ptx.into_inner().expect("no panic").into_iter();
    for of_file in images.chunk_by(|(name, ..), (other, ..)| name == other) {
        let mut row = String::new();
        for ((name, _, dtype), ptx) in of_file.iter().zip(&mut ptx) {
            row += &match ptx.transpose()? {
                None => "None, ".to_owned(),
                Some(ptx) => {
                    let name = name.replace(".cu", &format!("_{dtype}.ptx"));
                    write_if_changed(&out.join(&name), &ptx)?;
                    format!("Some(include_str!(concat!(env!(\"OUT_DIR\"), \"/{name}\"))), ")
                }
            };
        }
        table += &format!("    (\"{}\", &[{row}]),\n", of_file[0].0);
    }
    table += "];\n";
    write_if_changed(&out.join("kernels.rs"), &table)?;
    Ok(())
}

/// Leaves an unchanged file alone, so that nothing that includes it is rebuilt.
fn write_if_changed(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text)
}
