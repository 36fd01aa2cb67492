//! What every launch does, counted on the emulated device, and what bounds it on a GPU, modelled.
//!
//! Run it with `cargo xtask profile`, or `cargo run --release --bin profile -- --help`.

mod chart;
mod options;
pub mod report;
mod table;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use cuda_emulator::client::{Choice, Emulator, select};
use cuda_emulator::{Config, MeasuredLaunch};
use fused_dora::Norm;
use fused_dora_cuda_tools::PTXAS;
use fused_dora_nvrtc::Nvrtc;
use fused_dora_testkit::{bench, workspace};
use fused_dora_testkit::{eprintln, print, println};
use indicatif::{ProgressBar, ProgressStyle};

use crate::compile;
use crate::gpu::{GPUS, Gpu};
use crate::resources::Resources;
use options::Options;
use report::{GpuFigures, Launch, NOTE, Report};

/// Architectures whose registers and spills are reported, besides those of the GPUs asked for.
const OTHER_ARCHITECTURES: [&str; 2] = ["sm_86", "sm_120"];

/// The norm axes, whose launches differ.
const NORMS: [Norm; 2] = [Norm::Output, Norm::Input];

/// The program.
pub fn main() -> ExitCode {
    let options = match Options::from_arguments() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match profile(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn profile(options: &Options) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(&options.out)
        .map_err(|error| format!("--out {}: cannot be created: {error}", options.out.display()))?;
    let (version, resources) = compile(&options.gpus)?;
    let selected = select(Choice::Emulated)?;
    let emulator = selected.emulator().ok_or("the emulated device was not selected")?;
    let config = Config { measure: true, sanitizer: false, ..Config::default() };
    emulator.configure(&config).map_err(|status| status.name())?;
    let launches =
        count(options, emulator, &resources).map_err(|error| explained(error, emulator))?;
    let report = Report {
        note: NOTE.to_owned(),
        counted_on: emulator.device_name(),
        dtype: "bf16".to_owned(),
        nvrtc: version,
        gpus: options.gpus.iter().map(|gpu| GpuFigures::from(*gpu)).collect(),
        launches,
        resources,
    };
    print!("{}", table::text(&report));
    for path in write(&options.out, &report)? {
        println!("{path}");
    }
    Ok(())
}

/// Compiles the kernels for each architecture: NVRTC's version, and the kernels' resources.
fn compile(gpus: &[&Gpu]) -> Result<(String, Vec<Resources>), Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let nvrtc = Nvrtc::find(&program)?;
    let ptxas = PTXAS.find(&program)?;
    let (major, minor) = nvrtc.version()?;
    let mut architectures: Vec<&str> = gpus.iter().map(|gpu| gpu.architecture).collect();
    if gpus.len() == GPUS.len() {
        architectures.extend(OTHER_ARCHITECTURES);
    }
    // `sm_80` before `sm_120`.
    architectures.sort_by_key(|name| (name.len(), name.to_owned()));
    let kernels = workspace().join("kernels");
    let bar = bar("compiling")?;
    let all = |_: &str, _: &str| true;
    let compiled =
        compile::folder(&nvrtc, &ptxas, &kernels, false, &architectures, all, |count| {
            bar.set_length(count as u64);
            bar.inc(1);
        })?;
    bar.finish_and_clear();
    let mut resources: Vec<_> = compiled.into_iter().flat_map(|file| file.resources).collect();
    let place = |name: &str| architectures.iter().position(|known| *known == name);
    resources.sort_by_cached_key(|r| (r.kernel.clone(), place(&r.architecture)));
    Ok((format!("{major}.{minor}"), resources))
}

/// Runs each op of each layer once and keeps what was counted of its launches.
fn count(
    options: &Options,
    emulator: &Emulator,
    resources: &[Resources],
) -> Result<Vec<Launch>, Box<dyn Error>> {
    let bar = bar("counting")?;
    bar.set_length((options.shapes.len() * NORMS.len()) as u64);
    let mut launches = Vec::new();
    for &shape in &options.shapes {
        for norm in NORMS {
            let spec = options::spec(shape, norm)?;
            for measured in step(emulator, shape, norm)? {
                launches.push(Launch::new(&spec, shape[0], &measured, &options.gpus, resources)?);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(launches)
}

/// The launches of one training step of one layer, and of the other ops.
fn step(
    emulator: &Emulator,
    shape: [usize; 4],
    norm: Norm,
) -> Result<Vec<MeasuredLaunch>, Box<dyn Error>> {
    emulator.reset_counters();
    // A new layer has run prepare, forward and backward.
    let mut layer = bench::Layer::new(shape, norm)?;
    let mut launches = emulator.launches();
    emulator.reset_counters();
    layer.norm_gradient()?;
    layer.gradient_norm()?;
    layer.adamw()?;
    layer.merge()?;
    layer.decompose()?;
    layer.synchronize()?;
    for launch in emulator.launches() {
        if launches.iter().all(|known| known.kernel != launch.kernel) {
            launches.push(launch);
        }
    }
    Ok(launches)
}

fn bar(prefix: &'static str) -> Result<ProgressBar, Box<dyn Error>> {
    let style = ProgressStyle::with_template("{prefix:<10} {wide_bar} {pos:>3}/{len} {elapsed}")?;
    let bar = ProgressBar::new(1).with_prefix(prefix).with_style(style);
    bar.tick();
    Ok(bar)
}

/// An error, and what the emulated device knows about it: the kernel, the line, the address.
fn explained(error: Box<dyn Error>, emulator: &Emulator) -> Box<dyn Error> {
    match emulator.last_fault().or_else(|| emulator.last_error()) {
        Some(report) => format!("{error}\n{report}").into(),
        None => error,
    }
}

/// Writes the JSON and the pictures, and returns their paths.
fn write(folder: &Path, report: &Report) -> Result<Vec<String>, Box<dyn Error>> {
    let json = folder.join("profile.json");
    fs::write(&json, serde_json::to_string_pretty(report)? + "\n")
        .map_err(|error| format!("{} cannot be written: {error}", json.display()))?;
    let mut paths = vec![json];
    for (layer, launches) in table::by_shape(&report.launches) {
        for gpu in &report.gpus {
            let shape = layer.shape().replace([' ', '='], "");
            let name = gpu.name.replace(' ', "").to_lowercase();
            let path = folder.join(format!("{shape}-{name}.svg"));
            chart::draw(&path, gpu, &layer, &launches)
                .map_err(|error| format!("{} cannot be drawn: {error}", path.display()))?;
            paths.push(path);
        }
    }
    Ok(paths.into_iter().map(|path| path.display().to_string()).collect())
}
