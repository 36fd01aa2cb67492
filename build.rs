//! Compiles `kernels/OP/ARCH.cu` to PTX with NVRTC and hands the texts to the crate, with the
//! kernels' parameter structs as Rust.
//!
//! Without an NVRTC (or on docs.rs) the crate still compiles: each image is then `None`, and
//! loading kernels returns `Error::KernelsNotBuilt`.

use std::env;
use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use fused_dora_nvrtc::{
    Cache, ENV_CACHE, ENV_LIBRARY, Image, KernelFolder, Mirror, Nvrtc, NvrtcError, Source,
    fetched_folders,
};

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
    for watched in ["build.rs", "kernels"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    let toolkits = ["CUDA_PATH", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX"];
    for variable in [ENV_LIBRARY, ENV_CACHE].into_iter().chain(toolkits) {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let folder = KernelFolder::read(&root.join("kernels"))?;
    let mirror = folder.mirror()?;
    write_if_changed(&out.join("params.rs"), &mirror.rust())?;

    let images = folder.images();
    let ptx = match find_nvrtc(&out) {
        Some(nvrtc) => {
            let cache = Cache::from_env();
            check_layout(&nvrtc, &cache, &folder, &mirror)?;
            compile(&nvrtc, &cache, &images)?.into_iter().map(Some).collect()
        }
        None => vec![None; images.len()],
    };
    write_if_changed(&out.join("kernels.rs"), &table(&out, &images, &ptx)?)?;
    Ok(())
}

fn find_nvrtc(out: &Path) -> Option<Nvrtc> {
    if env::var_os("DOCS_RS").is_some() {
        return None;
    }
    match Nvrtc::find(out) {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) => {
            println!("cargo:warning=the kernels were not compiled: {error}");
            // A copy fetched later must be noticed; Cargo reruns for a file that is missing.
            for folder in fetched_folders(out) {
                println!("cargo:rerun-if-changed={}", folder.display());
            }
            None
        }
    }
}

/// Has the CUDA compiler check the layout of the structs that Rust mirrors.
fn check_layout(
    nvrtc: &Nvrtc,
    cache: &Cache,
    folder: &KernelFolder,
    mirror: &Mirror,
) -> Result<(), String> {
    for op in mirror.ops() {
        let text = mirror.asserts(op);
        let source = Source { name: "params.cu", text: &text, headers: folder.headers() };
        let options = ["--gpu-architecture=compute_80", "--std=c++17"];
        cache.ptx(nvrtc, &source, &options).map_err(|error| {
            format!("the parameters of kernels/{op} are not as in Rust:\n{error}")
        })?;
    }
    Ok(())
}

/// The PTX of every image, on as many threads as there are.
fn compile(nvrtc: &Nvrtc, cache: &Cache, images: &[Image<'_>]) -> Result<Vec<String>, String> {
    let (start, compiled) = (Instant::now(), AtomicUsize::new(0));
    let one = |image: &Image<'_>| {
        let (source, options) = (image.source(), image.ptx_options());
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        if !cache.has_ptx(nvrtc, &source, &options) {
            compiled.fetch_add(1, Ordering::Relaxed);
        }
        cache.ptx(nvrtc, &source, &options).map_err(|error| match error {
            NvrtcError::Compile(log) => format!("kernels/{} does not compile:\n{log}", image.file),
            error => error.to_string(),
        })
    };
    let next = AtomicUsize::new(0);
    let ptx = Mutex::new(vec![Ok(String::new()); images.len()]);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(image) = images.get(at) else { break };
            let result = one(image);
            ptx.lock().expect("no panic")[at] = result;
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    if let compiled @ 1.. = compiled.into_inner() {
        report(nvrtc, compiled, start, cache);
        cache.prune();
    }
    ptx.into_inner().expect("no panic").into_iter().collect()
}

/// Says why the build took long, and where the images are kept for the next one. It is no warning:
/// Cargo would repeat that at every later build. `cargo build -vv` shows it.
fn report(nvrtc: &Nvrtc, images: usize, start: Instant, cache: &Cache) {
    let (major, minor) = nvrtc.version().unwrap_or_default();
    let seconds = start.elapsed().as_secs();
    let kept = match cache.folder() {
        Some(folder) => format!("the next build takes them from {}", folder.display()),
        None => format!("{ENV_CACHE} keeps none of them"),
    };
    println!("compiled {images} kernel images with NVRTC {major}.{minor} in {seconds} s; {kept}");
}

/// The Rust table of all images: per kernel file its op, its architecture and its images, one per
/// dtype or one for all. Programs load only those that they use.
fn table(out: &Path, images: &[Image<'_>], ptx: &[Option<String>]) -> io::Result<String> {
    let mut table = "pub(crate) const FILES: &[(&str, &str, &[Option<&str>])] = &[\n".to_owned();
    let mut ptx = ptx.iter();
    for of_file in images.chunk_by(|image, other| image.file == other.file) {
        let mut row = String::new();
        let Image { op, architecture, .. } = of_file[0];
        for (image, ptx) in of_file.iter().zip(&mut ptx) {
            row += &match ptx {
                None => "None, ".to_owned(),
                Some(ptx) => {
                    let name = format!("{op}_{architecture}_{}.ptx", image.dtype.unwrap_or("all"));
                    write_if_changed(&out.join(&name), ptx)?;
                    format!("Some(include_str!(concat!(env!(\"OUT_DIR\"), \"/{name}\"))), ")
                }
            };
        }
        table += &format!("    (\"{op}\", \"{architecture}\", &[{row}]),\n");
    }
    Ok(table + "];\n")
}

/// Leaves an unchanged file alone, so that nothing that includes it is rebuilt.
fn write_if_changed(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text)
}
