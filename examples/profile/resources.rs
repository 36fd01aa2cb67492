//! What a compiled kernel takes of a multiprocessor, as ptxas reports it to NVRTC's log.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde::{Deserialize, Serialize};

use super::nvrtc::{HEADER_FOLDERS, Nvrtc, NvrtcError, Source};

/// One kernel's resources on one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub kernel: String,
    /// Such as `sm_80`.
    pub architecture: String,
    /// 32-bit registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
    /// Local memory of a thread, of which spilled registers are a part.
    pub stack_bytes: u32,
    /// Bytes of registers that a thread stores to local memory, by instructions in the code.
    pub spill_store_bytes: u32,
    /// Bytes that it loads back.
    pub spill_load_bytes: u32,
}

/// The options of the build script, but for a device's own code, and for a report.
pub fn options(architecture: &str) -> [String; 3] {
    let architecture = format!("--gpu-architecture={architecture}");
    [architecture, "--std=c++17".to_owned(), "--ptxas-options=-v".to_owned()]
}

/// The resources of all kernels of one source.
pub fn of_source(
    nvrtc: &Nvrtc,
    source: &Source<'_>,
    architecture: &str,
) -> Result<Vec<Resources>, NvrtcError> {
    let options = options(architecture);
    let log = nvrtc.compile_log(source, &options.each_ref().map(String::as_str))?;
    Ok(read_log(&log, architecture))
}

/// The resources of all kernels in a folder, on each of the architectures. `done` is told how many
/// compilations there are, and when one is done.
pub fn of_folder(
    nvrtc: &Nvrtc,
    folder: &Path,
    architectures: &[&str],
    done: impl Fn(usize) + Sync,
) -> Result<Vec<Resources>, Box<dyn Error>> {
    let sources = read_folder(folder, "cu")?;
    let headers = read_headers(folder)?;
    let jobs: Vec<_> = architectures
        .iter()
        .flat_map(|architecture| sources.iter().map(move |source| (*architecture, source)))
        .collect();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((architecture, (name, text))) =
            jobs.get(next.fetch_add(1, Ordering::Relaxed))
        {
            let source = Source { name, text, headers: &headers };
            let result = of_source(nvrtc, &source, architecture);
            done(jobs.len());
            let mut results = results.lock().unwrap_or_else(|poison| poison.into_inner());
            results.push(result);
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let results = results.into_inner().unwrap_or_else(|poison| poison.into_inner());
    let mut resources: Vec<_> =
        results.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    let place = |name: &str| architectures.iter().position(|known| *known == name);
    resources.sort_by_cached_key(|r| (r.kernel.clone(), place(&r.architecture)));
    Ok(resources)
}

/// The headers below the kernels' folder, by their names as `#include` has them.
pub fn read_headers(kernels: &Path) -> io::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    for below in HEADER_FOLDERS {
        let found = read_folder(&kernels.join(below), "cuh")?.into_iter();
        headers.extend(found.map(|(name, text)| (format!("{below}/{name}"), text)));
    }
    Ok(headers)
}

/// The files of one extension as `(name, text)`, in name order.
pub fn read_folder(folder: &Path, extension: &str) -> io::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|known| known == extension)
            && let Some(name) = path.file_name().and_then(|name| name.to_str())
        {
            files.push((name.to_owned(), fs::read_to_string(&path)?));
        }
    }
    files.sort();
    Ok(files)
}

/// Reads ptxas's words: for each kernel a line with its name, one with stack and spills, and one
/// with registers and shared memory.
pub fn read_log(log: &str, architecture: &str) -> Vec<Resources> {
    let mut kernels: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            let architecture = architecture.to_owned();
            kernels.push(Resources { kernel, architecture, ..Resources::default() });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        let before = |words: &str| number_before(line, words);
        if let Some(bytes) = before(" bytes stack frame") {
            kernel.stack_bytes = bytes;
            kernel.spill_store_bytes = before(" bytes spill stores").unwrap_or(0);
            kernel.spill_load_bytes = before(" bytes spill loads").unwrap_or(0);
        }
        if let Some(registers) = before(" registers") {
            kernel.registers = registers;
            kernel.shared_bytes = before(" bytes smem").unwrap_or(0);
        }
    }
    kernels
}

/// The number that stands right before some words.
fn number_before(line: &str, words: &str) -> Option<u32> {
    let (before, _) = line.split_once(words)?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
