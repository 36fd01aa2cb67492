//! The limits that the kernels must meet, checked without a GPU: registers and machine code, counts
//! on the emulated device, and bounds modelled from them.
//!
//! Run it with `cargo xtask limits`, or `cargo run --release --bin limits -- --help`.

mod bounds;
mod code;
mod counters;
mod f32_products;
pub mod latency;
pub mod layer;
pub mod line;
mod options;
mod packed;
mod ptxas;
mod report;
pub mod sass;
mod scale;
mod table;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use fused_dora::Norm;
use fused_dora_cuda_tools::{NVDISASM, PTXAS, Tool};
use fused_dora_nvrtc::Nvrtc;
use fused_dora_testkit::workspace;
use fused_dora_testkit::{eprintln, print, println};
use indicatif::{ProgressBar, ProgressStyle};

use crate::compile::{self, Compiled};
use crate::gpu::GPUS;
use crate::splice;
use layer::Device;
use line::{Group, Limit, Line};
use options::Options;
use report::{Evidence, NOTE};
use scale::Law;

/// A dtype whose code differs from another one's only in the kind of its instructions: one
/// architecture is enough.
const TWIN: &str = "f16";
const TWIN_ON: &str = "sm_80";

/// The largest error of a scaled count.
const MOST_ERROR: f64 = 0.001;

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
    match collect(&options).and_then(|evidence| write(&options, &evidence)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that is checked.
fn collect(options: &Options) -> Result<Evidence, Box<dyn Error>> {
    fs::create_dir_all(&options.out)
        .map_err(|error| format!("--out {}: cannot be created: {error}", options.out.display()))?;
    let program = std::env::current_exe()?;
    let nvrtc = Nvrtc::find(&program)?;
    let (ptxas, nvdisasm) = (PTXAS.find(&program)?, NVDISASM.find(&program)?);
    let compiled = compile(&nvrtc, &ptxas, false, &options.architectures)?;
    let packed = compile(&nvrtc, &ptxas, true, &options.architectures)?;

    let bar = bar("disassembling", compiled.len())?;
    let codes = code::disassemble(&nvdisasm, &compiled, || bar.inc(1))?;
    bar.finish_and_clear();
    let loops = code::loops(&codes);

    let bar = self::bar("modelling", GPUS.len())?;
    let latency = latency::collect(&nvdisasm, &compiled, &options.architectures, || bar.inc(1))?;
    bar.finish_and_clear();

    let device = Device::open()?;
    let (plain, fused) = laws(&device, &options.ranks)?;
    let mut lines = ptxas::lines(&compiled, &options.architectures, &dynamic_shared(&device)?)?;
    lines.extend(code::lines(&codes, &loops, &counters::ragged(&device)?)?);
    lines.extend(packed::lines(&nvdisasm, &packed, &options.architectures)?);
    for law in fused.iter().filter(|law| law.rank == counters::RANK) {
        lines.extend(counters::lines(&device, law)?);
    }
    for norm in counters::NORMS {
        lines.extend(counters::few_tokens(&device, norm)?);
    }
    lines.extend(f32_products::lines(&device)?);
    for law in fused.iter().chain([&plain]) {
        let (error, about) = law.worst_error(&device)?;
        let [t, i, o] = scale::PROOF;
        let axis = counters::axis(law.norm);
        let what = format!("{axis}, r={}, T={t} I={i} O={o}: largest error ({about})", law.rank);
        lines.push(Line::new(Group::Scaling, what, error, Limit::AtMost(MOST_ERROR)));
    }
    let model = bounds::Model { plain: &plain, fused: &fused };
    lines.extend(model.lines()?);
    lines.extend(latency.lines);
    let (major, minor) = nvrtc.version()?;
    Ok(Evidence {
        note: NOTE.to_owned(),
        counted_on: device.name(),
        nvrtc: format!("{major}.{minor}"),
        ptxas: ptxas.version,
        nvdisasm: nvdisasm.version,
        lines,
        loops: loops.iter().map(report::Loop::from).collect(),
        ratios: model.ratios(&options.ranks)?,
        waits: latency.waits,
        launches: latency.launches,
        products: latency.products,
    })
}

/// All kernels for a dense or a packed W, for some architectures.
fn compile(
    nvrtc: &Nvrtc,
    ptxas: &Tool,
    packed: bool,
    architectures: &[&'static str],
) -> Result<Vec<Compiled>, Box<dyn Error>> {
    let bar = bar("compiling", 1)?;
    let kernels = workspace().join("kernels");
    // f32 on packed weights decodes as 16 bit does, and multiplies as f32 on a dense W.
    let wanted = |dtype: &str, architecture: &str| {
        (dtype != TWIN || architecture == TWIN_ON) && !(packed && dtype == "f32")
    };
    let compiled =
        compile::folder(nvrtc, ptxas, &kernels, packed, architectures, wanted, |count| {
            bar.set_length(count as u64);
            bar.inc(1);
        })?;
    bar.finish_and_clear();
    Ok(compiled)
}

/// The scaling of a plain layer's counts, and of those of each rank and norm axis.
fn laws(device: &Device, ranks: &[usize]) -> Result<(Law, Vec<Law>), Box<dyn Error>> {
    let kinds: Vec<_> =
        ranks.iter().flat_map(|&rank| counters::NORMS.map(|norm| (rank, norm))).collect();
    let bar = bar("counting", (kinds.len() + 1) * scale::FITTED.len())?;
    let fit = |rank, norm| Law::fit(device, rank, norm, || bar.inc(1));
    let plain = fit(0, Norm::None)?;
    let fused = kinds.iter().map(|&(rank, norm)| fit(rank, norm)).collect::<Result<_, _>>()?;
    bar.finish_and_clear();
    Ok((plain, fused))
}

/// The shared memory that launches ask for, by the kernel's name without its dtype.
fn dynamic_shared(device: &Device) -> Result<BTreeMap<String, u32>, Box<dyn Error>> {
    let mut dynamic = BTreeMap::new();
    for norm in counters::NORMS {
        let (tokens, rank) = (256, counters::RANK);
        let case = layer::Case { tokens, inputs: 256, outputs: 256, rank, norm };
        for launch in device.step(&case, true)?.all() {
            let name = launch.kernel.rsplit_once('_').map_or("", |(name, _dtype)| name);
            let bytes = dynamic.entry(name.to_owned()).or_insert(0);
            *bytes = launch.dynamic_shared.max(*bytes);
        }
    }
    Ok(dynamic)
}

fn bar(prefix: &'static str, length: usize) -> Result<ProgressBar, Box<dyn Error>> {
    let style = ProgressStyle::with_template("{prefix:<13} {wide_bar} {pos:>3}/{len} {elapsed}")?;
    let bar = ProgressBar::new(length as u64).with_prefix(prefix).with_style(style);
    bar.tick();
    Ok(bar)
}

/// Prints and writes the lines; whether all of them hold.
fn write(options: &Options, evidence: &Evidence) -> Result<bool, Box<dyn Error>> {
    print!("{}", table::text(evidence));
    let cannot = |path: &Path, error| format!("{} cannot be written: {error}", path.display());
    let markdown = table::markdown(evidence);
    let json = serde_json::to_string_pretty(evidence)? + "\n";
    for (name, text) in [("limits.json", &json), ("limits.md", &markdown)] {
        let path = options.out.join(name);
        fs::write(&path, text).map_err(|error| cannot(&path, error))?;
        println!("{}", path.display());
    }
    if let Some(path) = &options.write {
        splice::into_file(path, "expectation", &table::expectation(evidence))?;
        splice::into_file(path, "limits", &markdown)?;
        println!("{}", path.display());
    }
    Ok(evidence.lines.iter().all(|line| line.holds))
}
