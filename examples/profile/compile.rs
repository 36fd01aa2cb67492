//! The kernels as device code, kept beside what the build script made of them, so that unchanged
//! ones are not compiled again.

use std::error::Error;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use fused_dora_nvrtc::{Nvrtc, Source, sources};
use tempfile::NamedTempFile;

use super::resources::{Resources, options, read_log};

/// What a kernel file that has entry points per dtype makes them with.
const ENTRIES: &str = "FUSED_DORA_ENTRIES(";
const DTYPES: [&str; 3] = ["bf16", "f16", "f32"];

/// Where device code is kept.
const FOLDER: &str = concat!(env!("OUT_DIR"), "/device-code");

/// The device code of one kernel file, for one dtype where it has entry points per dtype.
pub struct Compiled {
    pub file: String,
    pub dtype: Option<&'static str>,
    pub architecture: &'static str,
    pub resources: Vec<Resources>,
    pub cubin: PathBuf,
}

/// Compiles all kernels of a folder for each of the architectures that a dtype is wanted for. `done`
/// is told how many compilations there are, and when one is done.
pub fn folder(
    nvrtc: &Nvrtc,
    kernels: &Path,
    architectures: &[&'static str],
    wanted: impl Fn(&str, &str) -> bool,
    done: impl Fn(usize) + Sync,
) -> Result<Vec<Compiled>, Box<dyn Error>> {
    let out = Path::new(FOLDER);
    fs::create_dir_all(out).map_err(|error| format!("{FOLDER} cannot be created: {error}"))?;
    let headers = sources(kernels, "cuh")?;
    let files = sources(kernels, "cu")?;
    let mut jobs = Vec::new();
    for (name, text) in &files {
        let source = Source { name, text, headers: &headers };
        let per_dtype = text.contains(ENTRIES);
        let dtypes = if per_dtype { DTYPES.map(Some).to_vec() } else { vec![None] };
        for dtype in dtypes {
            let kept =
                architectures.iter().filter(|&&a| dtype.is_none_or(|dtype| wanted(dtype, a)));
            jobs.extend(kept.map(|&a| (source, dtype, a)));
        }
    }
    // Long ones first, so that the last ones are short.
    jobs.sort_by_key(|(source, ..)| std::cmp::Reverse(source.text.len()));
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((source, dtype, architecture)) =
            jobs.get(next.fetch_add(1, Ordering::Relaxed))
        {
            let result = one(nvrtc, source, *dtype, architecture, out);
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
    source: &Source<'_>,
    dtype: Option<&'static str>,
    architecture: &'static str,
    out: &Path,
) -> Result<Compiled, String> {
    let mut options = options(architecture).to_vec();
    options.extend(dtype.map(|dtype| format!("--define-macro=FUSED_DORA_DTYPE={dtype}")));
    let version = nvrtc.version().map_err(|error| error.to_string())?;
    let mut hasher = DefaultHasher::new();
    (version, &options, source.text, source.headers).hash(&mut hasher);
    let key = format!("{:016x}", hasher.finish());

    let file = source.name.to_owned();
    let name = format!("{}-{}-{architecture}", file.replace('.', "_"), dtype.unwrap_or("all"));
    let (log_path, cubin) = (out.join(format!("{name}.log")), out.join(format!("{name}.cubin")));
    let known = fs::read_to_string(&log_path).ok();
    let known = known.as_deref().and_then(|text| text.strip_prefix(&key)).map(str::to_owned);
    let log = match known.filter(|_| cubin.is_file()) {
        Some(log) => log,
        None => {
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            let (log, code) = nvrtc
                .compile_device(source, &options)
                .map_err(|error| format!("{file} for {architecture}: {error}"))?;
            let cannot = |error| format!("{name} cannot be kept in {}: {error}", out.display());
            write(out, &cubin, &code).map_err(cannot)?;
            write(out, &log_path, format!("{key}\n{log}").as_bytes()).map_err(cannot)?;
            log
        }
    };
    let resources = read_log(&log, architecture);
    Ok(Compiled { file, dtype, architecture, resources, cubin })
}

/// Writes a file at once: other programs may do and read the same.
fn write(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}
