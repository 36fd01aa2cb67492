//! `merge` and `unmerge`: a base, file by file and tensor by tensor, with the adapter in its
//! weights or without it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use fused_dora::MergeReport;
use fused_dora::peft::safetensors::tensor::TensorInfo;
use fused_dora::peft::{CheckpointError, LayerAdapter, TensorFile};
use indicatif::{ProgressBar, ProgressStyle};

use crate::adapters::Adapters;
use crate::base::Base;
use crate::converted;
use crate::engine::{self, Engine, Merged, NOT_FINITE, of_layer};
use crate::error::Failure;
use crate::gains;
use crate::options::Convert;
use crate::output::{self, Output, Sink};
use crate::report::{Report, line};
use crate::weight::{CHUNK, Weight};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Merge,
    Unmerge,
}

/// The files of a model's folder that are copied with its weights: settings and tokenizers.
const COPIED: [&str; 5] = ["json", "jinja", "md", "model", "txt"];

pub fn run(options: &Convert, direction: Direction) -> Result<(), Failure> {
    check_targets(options, direction)?;
    let base = Base::open(&options.base)?;
    let adapters = Adapters::open(&options.adapter, Some(&base))?;
    let layers = adapters.for_base(&base)?;
    let kept = match direction {
        Direction::Merge => HashMap::new(),
        Direction::Unmerge => gains::read(options.gains.as_deref(), &layers)?,
    };
    let engine = engine::open(options.device.device)?;
    let report = Report::new(&options.format);
    let device = engine.name();
    line!(report, "Device: {device}.")?;
    output::watch_signals();
    let output = Output::new(&options.out, base.is_folder())?;
    let gains = match (direction, &options.gains) {
        (Direction::Merge, Some(path)) => Some((path, Output::new(path, false)?)),
        _ => None,
    };
    let progress = progress(base.bytes());
    let mut work = Work { direction, layers: &layers, kept, engine, merged: BTreeMap::new() };
    for file in &base.files {
        work.file(file, &output, &progress)?;
    }
    progress.finish_and_clear();
    if base.is_folder() {
        copy_others(&base, &output)?;
    }
    if let Some((path, output)) = gains {
        gains::write(path, output, &work.merged)?;
    }
    output.finish()?;
    match direction {
        Direction::Merge => {
            converted::merged(&report, options, device, &base, &layers, &work.merged)
        }
        Direction::Unmerge => converted::unmerged(&report, options, device, layers.len()),
    }
    .map_err(|failure| failure.after_writing(&options.out))
}

/// A bar on stderr, if that is a terminal.
fn progress(bytes: u64) -> ProgressBar {
    let progress = ProgressBar::new(bytes);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {msg} {eta}")
    {
        progress.set_style(style);
    }
    progress
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
                    return Err(of_layer(weight, NOT_FINITE));
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
