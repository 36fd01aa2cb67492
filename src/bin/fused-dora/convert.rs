//! `merge` and `unmerge`: a base, file by file and tensor by tensor, with the adapter in its
//! weights or without it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use fused_dora::MergeReport;
use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::peft::safetensors::tensor::{TensorInfo, TensorView, serialize};
use fused_dora::peft::{CheckpointError, LayerAdapter, TensorFile};
use indicatif::{ProgressBar, ProgressStyle};

use crate::adapters::Adapters;
use crate::base::Base;
use crate::engine::{self, Engine, Merged, of_layer};
use crate::error::Failure;
use crate::options::Convert;
use crate::output::{self, Output, Sink};
use crate::weight::{CHUNK, Weight};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Merge,
    Unmerge,
}

/// What of a model's folder is copied beside its weights: settings and tokenizers.
const COPIED: [&str; 5] = ["json", "jinja", "md", "model", "txt"];

pub fn run(options: &Convert, direction: Direction) -> Result<(), Failure> {
    check_targets(options, direction)?;
    let base = Base::open(&options.base)?;
    let adapters = Adapters::open(&options.adapter, Some(&base))?;
    let layers = adapters.for_base(&base)?;
    let kept = match direction {
        Direction::Merge => HashMap::new(),
        Direction::Unmerge => read_gains(options.gains.as_deref(), &layers)?,
    };
    let engine = engine::open(options.device)?;
    println!("Device: {}.", engine.name());
    output::watch_signals();
    let output = Output::new(&options.out, base.is_folder())?;
    let gains = match (direction, &options.gains) {
        (Direction::Merge, Some(path)) => Some((path, Output::new(path, false)?)),
        _ => None,
    };
    let progress = ProgressBar::new(base.bytes());
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {msg} {eta}")
    {
        progress.set_style(style);
    }
    let mut work = Work { direction, layers: &layers, kept, engine, merged: BTreeMap::new() };
    for file in &base.files {
        work.file(file, &output, &progress)?;
    }
    progress.finish_and_clear();
    if base.is_folder() {
        copy_others(&base, &output)?;
    }
    if let Some((path, output)) = gains {
        write_gains(path, output, &work.merged)?;
    }
    output.finish()?;
    match direction {
        Direction::Merge => print_report(&base, &layers, &work.merged),
        Direction::Unmerge => println!("{} layers unmerged.", layers.len()),
    }
    println!("Written: {}", options.out.display());
    Ok(())
}

/// Refuses targets that are there already, are read, or are one.
fn check_targets(options: &Convert, direction: Direction) -> Result<(), Failure> {
    let mut inputs = vec![("base", &*options.base), ("adapter", &*options.adapter)];
    if let Some(gains) = &options.gains {
        match direction {
            Direction::Merge => output::check_target("gains", gains, &inputs)?,
            Direction::Unmerge => inputs.push(("gains", gains)),
        }
        if *gains == options.out {
            let problem = format!("--gains and --out are both {}", gains.display());
            return Err(Failure::Call(problem));
        }
    }
    output::check_target("out", &options.out, &inputs)
}

struct Work<'a> {
    direction: Direction,
    /// By tensor.
    layers: &'a BTreeMap<String, LayerAdapter>,
    /// The gains of a merge that is undone, by tensor.
    kept: HashMap<String, Vec<f32>>,
    engine: Box<dyn Engine>,
    merged: BTreeMap<String, Merged>,
}

impl Work<'_> {
    /// One file: its header and the tensors that are not adapted as they are, to the byte.
    fn file(
        &mut self,
        file: &TensorFile,
        output: &Output,
        progress: &ProgressBar,
    ) -> Result<(), Failure> {
        let name = Path::new(file.path().file_name().unwrap_or_default());
        let mut sink = output.sink(name, progress)?;
        sink.write(file.header())?;
        for tensor in file.names() {
            let Some(info) = file.info(&tensor) else { continue };
            match self.layers.get(&tensor) {
                None => copy(file, info, &mut sink)?,
                Some(layer) => {
                    progress.set_message(tensor.clone());
                    self.layer(&Weight::new(file, &tensor)?, layer, &mut sink)?;
                }
            }
        }
        sink.finish()
    }

    fn layer(
        &mut self,
        weight: &Weight<'_>,
        layer: &LayerAdapter,
        sink: &mut Sink<'_>,
    ) -> Result<(), Failure> {
        match self.direction {
            Direction::Merge => {
                let merged = self.engine.merge(weight, layer, sink)?;
                let MergeReport { change_squared, error_squared, .. } = merged.report;
                if !(change_squared.is_finite() && error_squared.is_finite()) {
                    let problem = "the merged weight is not finite: the adapter or the base holds \
                                   NaN or infinity, or the type is too narrow";
                    return Err(of_layer(weight, problem));
                }
                self.merged.insert(weight.name.to_owned(), merged);
                Ok(())
            }
            Direction::Unmerge => {
                let gain = self.kept.get(weight.name).map_or(&[][..], Vec::as_slice);
                self.engine.unmerge(weight, layer, gain, sink)
            }
        }
    }
}

fn copy(file: &TensorFile, info: &TensorInfo, sink: &mut Sink<'_>) -> Result<(), Failure> {
    let len = info.data_offsets.1 - info.data_offsets.0;
    let mut buffer = vec![0; CHUNK.min(len)];
    for start in (0..len).step_by(CHUNK) {
        let bytes = &mut buffer[..CHUNK.min(len - start)];
        file.read_at(info, start, bytes)?;
        sink.write(bytes)?;
    }
    Ok(())
}

fn copy_others(base: &Base, output: &Output) -> Result<(), Failure> {
    let read = |source| CheckpointError::Read { path: base.path.clone(), source };
    for entry in fs::read_dir(&base.path).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if path.is_file() && extension.is_some_and(|extension| COPIED.contains(&extension)) {
            output.copy(&path, Path::new(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}

/// The gains that a merge wrote, for all layers that have some.
fn read_gains(
    path: Option<&Path>,
    layers: &BTreeMap<String, LayerAdapter>,
) -> Result<HashMap<String, Vec<f32>>, Failure> {
    let mut gains = HashMap::new();
    let mut file = None;
    for (tensor, layer) in layers {
        let features = layer.magnitude().len();
        if features == 0 {
            continue;
        }
        let Some(path) = path else {
            return Err(Failure::Call(format!(
                "unmerge needs --gains, which merge wrote: {tensor} has a magnitude, and the norms \
                 that it was merged by are not to be told from merged weights"
            )));
        };
        let file = match &mut file {
            Some(file) => file,
            None => file.insert(TensorFile::open(path)?),
        };
        let gain = file.floats(tensor)?;
        if gain.len() != features {
            return Err(CheckpointError::Shape {
                path: path.to_owned(),
                tensor: tensor.clone(),
                found: vec![gain.len()],
                needed: format!("the adapter has {features} magnitudes: are they of this merge?"),
            }
            .into());
        }
        gains.insert(tensor.clone(), gain);
    }
    Ok(gains)
}

fn write_gains(
    path: &Path,
    output: Output,
    merged: &BTreeMap<String, Merged>,
) -> Result<(), Failure> {
    let gains = merged.iter().filter(|(_, merged)| !merged.gain.is_empty());
    let gains: Vec<(&String, usize, Vec<u8>)> = gains
        .map(|(tensor, Merged { gain, .. })| {
            (tensor, gain.len(), gain.iter().flat_map(|gain| gain.to_le_bytes()).collect())
        })
        .collect();
    let malformed = |error| CheckpointError::Malformed {
        path: path.to_owned(),
        problem: format!("cannot hold the gains: {error}"),
    };
    let view = |(tensor, len, bytes)| Ok((tensor, TensorView::new(Stored::F32, vec![len], bytes)?));
    let views = gains.iter().map(|(tensor, len, bytes)| view((tensor, *len, bytes)));
    let views = views.collect::<Result<Vec<_>, _>>().map_err(malformed)?;
    let bytes = serialize(views, None).map_err(malformed)?;
    let hidden = ProgressBar::hidden();
    let mut sink = output.sink(path, &hidden)?;
    sink.write(&bytes)?;
    sink.finish()?;
    output.finish()
}

/// What the merge changed, and what its rounding lost of that.
fn print_report(
    base: &Base,
    layers: &BTreeMap<String, LayerAdapter>,
    merged: &BTreeMap<String, Merged>,
) {
    let width = layers.keys().map(String::len).max().unwrap_or(0);
    println!(
        "{:<width$} | {:>13} | dtype | rank | change ‖Δ‖ | kept of it | error ‖E‖/‖Δ‖",
        "tensor", "shape"
    );
    let mut total =
        MergeReport { change_squared: 0.0, error_squared: 0.0, error_along_change: 0.0 };
    let line = |report: &MergeReport| {
        format!(
            "{:>11.4e} | {:>8.2} % | {:>10.2e}",
            report.change_squared.sqrt(),
            100.0 * report.kept(),
            report.relative_error()
        )
    };
    for (tensor, layer) in layers {
        let Some(Merged { report, .. }) = merged.get(tensor) else { continue };
        let dtype = base.matrix(tensor).map_or("", |weight| weight.dtype.name());
        let shape = format!("{:?}", layer.shape());
        let rank = layer.rank();
        println!("{tensor:<width$} | {shape:>13} | {dtype:>5} | {rank:>4} | {}", line(report));
        total.change_squared += report.change_squared;
        total.error_squared += report.error_squared;
        total.error_along_change += report.error_along_change;
    }
    println!("{:<width$} | {:>13} | {:>5} | {:>4} | {}", "all", "", "", "", line(&total));
}
