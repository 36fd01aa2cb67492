//! The kernels as device code, which ptxas makes of the PTX that ships, as a driver does.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use fused_dora_cuda_tools::Tool;
use fused_dora_nvrtc::{Cache, Image, KernelFolder, Nvrtc};
use fused_dora_testkit::bench::record::target_folder;
use tempfile::TempDir;

use crate::resources::{Resources, read_log};

/// The device code of one kernel file, for one dtype where it has entry points per dtype.
pub struct Compiled {
    pub file: String,
    pub dtype: Option<&'static str>,
    pub architecture: &'static str,
    pub resources: Vec<Resources>,
    pub cubin: PathBuf,
}

/// Compiles all kernels of a folder, those for a dense or those for a packed W, for each of the
/// architectures that a dtype is wanted for. `done` receives how many compilations there are, and when
/// one is done.
pub fn folder(
    nvrtc: &Nvrtc,
    ptxas: &Tool,
    kernels: &Path,
    packed: bool,
    architectures: &[&'static str],
    wanted: impl Fn(&str, &str) -> bool,
    done: impl Fn(usize) + Sync,
) -> Result<Vec<Compiled>, Box<dyn Error>> {
    let out = &target_folder().join("device-code");
    fs::create_dir_all(out)
        .map_err(|error| format!("{} cannot be created: {error}", out.display()))?;
    let folder = KernelFolder::read(kernels)?;
    let mut jobs = Vec::new();
    for image in folder.images().into_iter().filter(|image| image.packed == packed) {
        let kept =
            architectures.iter().filter(|&&a| image.dtype.is_none_or(|dtype| wanted(dtype, a)));
        jobs.extend(kept.map(|&architecture| (image, architecture)));
    }
    // Long ones first, so that the last ones are short.
    jobs.sort_by_key(|(image, _)| std::cmp::Reverse(image.source().text.len()));
    let cache = Cache::from_env();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((image, architecture)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = one(nvrtc, ptxas, &cache, image, architecture, out);
            done(jobs.len());
            results.lock().unwrap_or_else(|poison| poison.into_inner()).push(result);
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let results = results.into_inner().unwrap_or_else(|poison| poison.into_inner());
    let mut compiled = results.into_iter().collect::<Result<Vec<_>, String>>()?;
    let place = |name: &str| architectures.iter().position(|known| *known == name);
    compiled.sort_by_cached_key(|c| (c.file.clone(), c.dtype, place(c.architecture)));
    Ok(compiled)
}

fn one(
    nvrtc: &Nvrtc,
    ptxas: &Tool,
    cache: &Cache,
    image: &Image<'_>,
    architecture: &'static str,
    out: &Path,
) -> Result<Compiled, String> {
    let dtype = image.dtype;
    let file = image.file.to_owned();
    let ptx = image
        .ptx(nvrtc, Some(cache))
        .map_err(|error| format!("{file} for {architecture}: {error}"))?;
    let kind = if image.packed { "-packed" } else { "" };
    let dtype_name = dtype.unwrap_or("all");
    let name = format!("{}-{dtype_name}{kind}-{architecture}", file.replace(['.', '/'], "_"));
    let folder = TempDir::new_in(out)
        .map_err(|error| format!("{} cannot be written: {error}", out.display()))?;
    let [source, made] = ["ptx", "cubin"].map(|kind| folder.path().join(format!("{name}.{kind}")));
    let cannot = |path: &Path, error| format!("{} cannot be written: {error}", path.display());
    fs::write(&source, ptx).map_err(|error| cannot(&source, error))?;
    let to = made.to_str().ok_or_else(|| format!("{}: a name in UTF-8", made.display()))?;
    let target = format!("--gpu-name={architecture}");
    // Line numbers do not change the code; the witness finds loops by them.
    let options = ["--verbose", "--generate-line-info", &target, "--output-file", to];
    let output = ptxas.run(&options, &source)?;
    let log = [output.stdout, output.stderr].concat();
    let cubin = out.join(format!("{name}.cubin"));
    // At once: other programs may do and read the same.
    fs::rename(&made, &cubin).map_err(|error| cannot(&cubin, error))?;
    let resources = read_log(&String::from_utf8_lossy(&log), architecture);
    Ok(Compiled { file, dtype, architecture, resources, cubin })
}
