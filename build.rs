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

#[allow(dead_code)] // `xtask` and the emulator's tests use the rest
#[path = "build/nvrtc.rs"]
mod nvrtc;

use nvrtc::{HEADER_FOLDERS, Nvrtc, NvrtcError, Source};

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
    for watched in ["build.rs", "build/nvrtc.rs", "kernels"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    for variable in [nvrtc::ENV_LIBRARY, "CUDA_PATH", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let kernels = read_sources(&root.join("kernels"), "cu")?;
    let mut headers = Vec::new();
    for folder in HEADER_FOLDERS {
        let found = read_sources(&root.join("kernels").join(folder), "cuh")?.into_iter();
        headers.extend(found.map(|(name, text)| (format!("{folder}/{name}.cuh"), text)));
    }

    let nvrtc = if env::var_os("DOCS_RS").is_some() {
        None
    } else {
        match Nvrtc::find(nvrtc::fetched_folder(&out).as_deref()) {
            Ok(nvrtc) => Some(nvrtc),
            Err(error) => {
                println!("cargo:warning=kernels not built: {error}");
                // A copy fetched later must be noticed; Cargo reruns for a file that is missing.
                if let Some(target) = out.ancestors().nth(4) {
                    println!("cargo:rerun-if-changed={}", target.join("nvrtc").display());
                }
                None
            }
        }
    };

    // An image per dtype, so that programs load only what they use.
    let images: Vec<_> = kernels
        .iter()
        .flat_map(|(stem, text)| {
            let dtypes: &[_] = if text.contains(ENTRIES) { &DTYPES } else { &[ADAPTERS] };
            dtypes.iter().map(move |dtype| (stem, text, *dtype))
        })
        .collect();
    let compile = |&(stem, text, dtype): &(&String, &String, &str)| {
        let name = format!("kernels/{stem}.cu");
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
    for of_file in images.chunk_by(|(stem, ..), (other, ..)| stem == other) {
        let mut row = String::new();
        for ((stem, _, dtype), ptx) in of_file.iter().zip(&mut ptx) {
            row += &match ptx.transpose()? {
                None => "None, ".to_owned(),
                Some(ptx) => {
                    let name = format!("{stem}_{dtype}.ptx");
                    write_if_changed(&out.join(&name), &ptx)?;
                    format!("Some(include_str!(concat!(env!(\"OUT_DIR\"), \"/{name}\"))), ")
                }
            };
        }
        table += &format!("    (\"{}.cu\", &[{row}]),\n", of_file[0].0);
    }
    table += "];\n";
    write_if_changed(&out.join("kernels.rs"), &table)?;
    Ok(())
}

/// The files of one extension in a folder as `(stem, text)`, in name order.
fn read_sources(folder: &Path, extension: &str) -> io::Result<Vec<(String, String)>> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension)
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
        {
            sources.push((stem.to_owned(), fs::read_to_string(&path)?));
        }
    }
    sources.sort();
    Ok(sources)
}

/// Leaves an unchanged file alone, so that nothing that includes it is rebuilt.
fn write_if_changed(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text)
}
