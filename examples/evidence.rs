//! What the kernels are held to without a GPU: registers and machine code, counts on the emulated
//! device, and bounds modelled from them.
//!
//! Run it with `cargo xtask evidence`, or `cargo run --release --example evidence -- --help`.

#[path = "evidence/bounds.rs"]
mod bounds;
#[path = "evidence/code.rs"]
mod code;
#[path = "profile/compile.rs"]
mod compile;
#[path = "evidence/counters.rs"]
mod counters;
#[path = "evidence/f32.rs"]
mod f32_products;
#[allow(dead_code, reason = "the profile uses the rest")]
#[path = "profile/gpu.rs"]
mod gpu;
#[path = "evidence/layer.rs"]
mod layer;
#[path = "evidence/line.rs"]
mod line;
#[allow(dead_code, reason = "the profile uses the rest")]
#[path = "profile/model.rs"]
mod model;
#[allow(dead_code, reason = "`xtask` uses the rest")]
#[path = "evidence/nvdisasm.rs"]
mod nvdisasm;
#[allow(dead_code, reason = "the profile uses the rest")]
#[path = "profile/occupancy.rs"]
mod occupancy;
#[path = "evidence/options.rs"]
mod options;
#[path = "evidence/ptxas.rs"]
mod ptxas;
#[path = "evidence/report.rs"]
mod report;
#[allow(dead_code, reason = "the profile uses the rest")]
#[path = "profile/resources.rs"]
mod resources;
#[path = "evidence/sass.rs"]
mod sass;
#[path = "evidence/scale.rs"]
mod scale;
#[path = "report/splice.rs"]
mod splice;
#[path = "evidence/table.rs"]
mod table;
#[allow(dead_code, reason = "the profile uses the rest")]
#[path = "profile/work.rs"]
mod work;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use fused_dora::Norm;
use fused_dora_nvrtc::Nvrtc;
use indicatif::{ProgressBar, ProgressStyle};

use compile::Compiled;
use layer::Device;
use line::{Group, Limit, Line};
use nvdisasm::Nvdisasm;
use options::Options;
use report::{Evidence, NOTE};
use scale::Law;

/// A dtype whose code is another one's but for the kind of its instructions: one architecture does.
const TWIN: &str = "f16";
const TWIN_ON: &str = "sm_80";

/// The largest error of a scaled count.
const MOST_ERROR: f64 = 0.001;

fn main() -> ExitCode {
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

/// All of the evidence.
fn collect(options: &Options) -> Result<Evidence, Box<dyn Error>> {
    fs::create_dir_all(&options.out)
        .map_err(|error| format!("--out {}: cannot be created: {error}", options.out.display()))?;
    let program = std::env::current_exe()?;
    let nvrtc = Nvrtc::find(&program)?;
    let nvdisasm = Nvdisasm::find(nvdisasm::fetched_folder(&program).as_deref())?;
    let compiled = compile(&nvrtc)?;

    let bar = bar("disassembling", compiled.len())?;
    let codes = code::disassemble(&nvdisasm, &compiled, || bar.inc(1))?;
    bar.finish_and_clear();
    let loops = code::loops(&codes);

    let device = Device::open()?;
    let (plain, fused) = laws(&device, &options.ranks)?;
    let mut lines = ptxas::lines(&compiled, &dynamic_shared(&device)?)?;
    lines.extend(code::lines(&codes, &loops, &counters::ragged(&device)?)?);
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
    let (major, minor) = nvrtc.version()?;
    Ok(Evidence {
        note: NOTE.to_owned(),
        counted_on: device.name(),
        nvrtc: format!("{major}.{minor}"),
        nvdisasm: nvdisasm.version,
        lines,
        loops: loops.iter().map(report::Loop::from).collect(),
        ratios: model.ratios(&options.ranks)?,
    })
}

/// All kernels for all architectures.
fn compile(nvrtc: &Nvrtc) -> Result<Vec<Compiled>, Box<dyn Error>> {
    let bar = bar("compiling", 1)?;
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let architectures = ptxas::ARCHITECTURES.map(|(name, _)| name);
    let wanted = |dtype: &str, architecture: &str| dtype != TWIN || architecture == TWIN_ON;
    let compiled = compile::folder(nvrtc, &kernels, &architectures, wanted, |count| {
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

/// Prints and writes the evidence; whether all of it holds.
fn write(options: &Options, evidence: &Evidence) -> Result<bool, Box<dyn Error>> {
    print!("{}", table::text(evidence));
    let cannot = |path: &Path, error| format!("{} cannot be written: {error}", path.display());
    let markdown = table::markdown(evidence);
    let json = serde_json::to_string_pretty(evidence)? + "\n";
    for (name, text) in [("evidence.json", &json), ("evidence.md", &markdown)] {
        let path = options.out.join(name);
        fs::write(&path, text).map_err(|error| cannot(&path, error))?;
        println!("{}", path.display());
    }
    if let Some(path) = &options.write {
        splice::into_file(path, "evidence", &markdown)?;
        println!("{}", path.display());
    }
    Ok(evidence.lines.iter().all(|line| line.holds))
}
