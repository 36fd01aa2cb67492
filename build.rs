//! Compiles `kernels/OP/ARCH.cu` to PTX with NVRTC and hands the texts to the crate, with the
//! kernels' parameter structs as Rust. Each kernel is a module of its own, compressed.
//!
//! Without an NVRTC (or on docs.rs) the crate still compiles: the kernels of each file are then `None`, and
//! loading kernels returns `Error::KernelsNotBuilt`.

use std::env;
use std::error::Error;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use fused_dora_nvrtc::{
    Cache, ENV_CACHE, ENV_LIBRARY, Image, KernelFolder, Mirror, Nvrtc, NvrtcError, Source,
    fetched_folders, ptx,
};

/// The environment variable with the compute capabilities that the feature `cubins` builds for.
const ENV_CUBINS: &str = "FUSED_DORA_CUBINS";
const CAPABILITIES: &str = "80,86,89,90,120";

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
    for variable in [ENV_LIBRARY, ENV_CACHE, ENV_CUBINS].into_iter().chain(toolkits) {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let folder = KernelFolder::read(&root.join("kernels"))?;
    let mirror = folder.mirror()?;
    write_if_changed(&out.join("params.rs"), mirror.rust().as_bytes())?;

    let images = folder.images();
    let kernels = match find_nvrtc(&out) {
        Some(nvrtc) => {
            let cache = Cache::from_env();
            check_layout(&nvrtc, &cache, &folder, &mirror)?;
            Some(compile(&nvrtc, &cache, &images, &capabilities(&nvrtc)?)?)
        }
        None => None,
    };
    let table = table(&out, &images, kernels.as_deref())?;
    write_if_changed(&out.join("kernels.rs"), table.as_bytes())?;
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

/// The compute capabilities to build machine code for: none without the feature `cubins`.
fn capabilities(nvrtc: &Nvrtc) -> Result<Vec<u32>, Box<dyn Error>> {
    let given = env::var(ENV_CUBINS).ok().filter(|given| !given.is_empty());
    if env::var_os("CARGO_FEATURE_CUBINS").is_none() {
        if given.is_some() {
            println!("cargo:warning={ENV_CUBINS} does nothing without the feature `cubins`");
        }
        return Ok(Vec::new());
    }
    let supported = nvrtc.capabilities()?;
    let mut wanted = Vec::new();
    for word in given.as_deref().unwrap_or(CAPABILITIES).split(',') {
        let capability = word.trim().parse().map_err(|_| {
            format!("{ENV_CUBINS}: `{word}` is no compute capability such as 86 (for 8.6)")
        })?;
        if supported.contains(&capability) {
            wanted.push(capability);
        } else if given.is_some() {
            let (major, minor) = nvrtc.version()?;
            let known = supported.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            return Err(format!(
                "{ENV_CUBINS}: NVRTC {major}.{minor} makes no machine code for {capability}, only for {known}"
            )
            .into());
        } else {
            println!("cargo:warning=this NVRTC makes no machine code for sm_{capability}");
        }
    }
    Ok(wanted)
}

/// What becomes of an image, compressed with zlib.
#[derive(Clone, Default)]
struct Compiled {
    /// The PTX of each kernel, by its name.
    kernels: Vec<(String, Vec<u8>)>,
    /// Machine code of all of them, by its compute capability.
    cubins: Vec<(u32, Vec<u8>)>,
}

fn compressed(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// The kernels of every image, on as many threads as there are.
fn compile(
    nvrtc: &Nvrtc,
    cache: &Cache,
    images: &[Image<'_>],
    capabilities: &[u32],
) -> Result<Vec<Compiled>, String> {
    let (start, compiled) = (Instant::now(), AtomicUsize::new(0));
    let one = |image: &Image<'_>| {
        if !image.is_in(cache, nvrtc) {
            compiled.fetch_add(1, Ordering::Relaxed);
        }
        let ptx = image.ptx(nvrtc, Some(cache)).map_err(|error| match error {
            NvrtcError::Compile(log) => format!("kernels/{} does not compile:\n{log}", image.file),
            NvrtcError::NewerPtx(line) => format!("kernels/{}: {line}", image.file),
            error => error.to_string(),
        })?;
        let modules = ptx::modules(&ptx).map_err(|line| format!("{}: {line}", image.file))?;
        let mut compiled = Compiled::default();
        let failed = |error: io::Error| error.to_string();
        for module in modules {
            let ptx = compressed(module.text.as_bytes()).map_err(failed)?;
            compiled.kernels.push((module.entry, ptx));
        }
        for &capability in capabilities {
            let cubin = image
                .cubin(nvrtc, Some(cache), capability)
                .map_err(|error| format!("kernels/{} for sm_{capability}: {error}", image.file))?;
            compiled.cubins.push((capability, compressed(&cubin).map_err(failed)?));
        }
        Ok(compiled)
    };
    let next = AtomicUsize::new(0);
    let kernels = Mutex::new(vec![Ok(Compiled::default()); images.len()]);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(image) = images.get(at) else { break };
            let result = one(image);
            kernels.lock().expect("no panic")[at] = result;
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    if let compiled @ 1.. = compiled.into_inner() {
        report(nvrtc, compiled, start, cache);
        cache.prune();
    }
    kernels.into_inner().expect("no panic").into_iter().collect()
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

/// The Rust table of all kernel files: of each its op, its architecture and its kernels.
fn table(out: &Path, images: &[Image<'_>], kernels: Option<&[Compiled]>) -> io::Result<String> {
    let include = |name: &str, bytes: &[u8]| {
        write_if_changed(&out.join(name), bytes)?;
        Ok::<_, io::Error>(format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\"))"))
    };
    let mut table = "const FILES: &[Embedded] = &[\n".to_owned();
    let mut at = 0;
    for of_file in images.chunk_by(|image, other| image.file == other.file) {
        let Image { op, architecture, .. } = of_file[0];
        let (mut rows, mut cubins) = ("None".to_owned(), String::new());
        if let Some(kernels) = kernels {
            rows = "Some(&[".to_owned();
            for (image, compiled) in of_file.iter().zip(&kernels[at..]) {
                let packed = image.packed;
                let kind = if packed { "_packed" } else { "" };
                for (entry, ptx) in &compiled.kernels {
                    let bytes = include(&format!("{entry}{kind}_{architecture}.ptx.z"), ptx)?;
                    rows += &format!("\n            (\"{entry}\", {packed}, {bytes}),");
                }
                let dtype = image.dtype.unwrap_or_default();
                for (capability, cubin) in &compiled.cubins {
                    let name = format!("{op}_{architecture}_{dtype}{kind}_sm{capability}.cubin.z");
                    let bytes = include(&name, cubin)?;
                    cubins +=
                        &format!("\n            (\"{dtype}\", {packed}, {capability}, {bytes}),");
                }
            }
            rows += "\n        ])";
        }
        table += &format!(
            "    Embedded {{\n        op: \"{op}\",\n        arch: \"{architecture}\",\n        \
             kernels: {rows},\n        cubins: &[{cubins}],\n    }},\n"
        );
        at += of_file.len();
    }
    Ok(table + "];\n")
}

/// Leaves an unchanged file alone, so that nothing that includes it is rebuilt.
fn write_if_changed(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::write(path, bytes)
}
