//! `merge` and `unmerge`: a base, file by file and tensor by tensor, with the adapter in its
//! weights or without it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use fused_dora::MergeReport;
use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::peft::safetensors::tensor::TensorInfo;
use fused_dora::peft::{CheckpointError, TensorFile};
use indicatif::{ProgressBar, ProgressStyle};

use crate::adapters::Adapters;
use crate::added::{self, Added};
use crate::base::Base;
use crate::converted::{self, Done};
use crate::engine::{self, Engine, Merged, NOT_FINITE, of_layer};
use crate::error::Failure;
use crate::files::Others;
use crate::fit::{Fit, Layer, Whole};
use crate::gains;
use crate::model::CONFIG;
use crate::options::Convert;
use crate::output::{self, Output, Sink};
use crate::report::{Report, line};
use crate::weight::{CHUNK, Weight};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Merge,
    Unmerge,
}

pub fn run(options: &Convert, direction: Direction) -> Result<(), Failure> {
    check_targets(options, direction)?;
    let base = Base::open(&options.base)?;
    let adapters = Adapters::open(&options.adapter, &options.reading)?;
    let whole = match direction {
        Direction::Merge => Whole::Compare,
        Direction::Unmerge => Whole::Leave,
    };
    let mut fit = Fit::new(&adapters, &base, &options.reading, whole)?;
    check_replacements(options, direction, &adapters, &mut fit)?;
    for (tensor, _) in fit.replacements.iter().filter(|(_, replacement)| replacement.is_added) {
        fit.notes.push(format!(
            "`{tensor}` is new: the output's {CONFIG} still describes the base (architectures, \
             number of labels)"
        ));
    }
    let others = Others::of(&base, &options.adapter)?;
    let kept = match direction {
        Direction::Merge => HashMap::new(),
        Direction::Unmerge => {
            check_sources(&base, &fit)?;
            gains::read(options.gains.as_deref(), &fit.layers)?
        }
    };
    let opened = engine::open(options.device.device)?;
    let report = Report::of_work(&options.format);
    opened.report(&report)?;
    for note in &fit.notes {
        line!(report, "{note}")?;
    }
    output::watch_signals();
    let output = Output::new(&options.out, base.is_folder())?;
    let gains = match (direction, &options.gains) {
        (Direction::Merge, Some(path)) => Some((path, Output::new(path, false)?)),
        _ => None,
    };
    let added = added::of(&base, &adapters, &fit);
    let progress = progress(base.bytes());
    let device = (opened.engine.name(), opened.no_gpu);
    let (engine, merged) = (opened.engine, BTreeMap::new());
    let (fit, adapters) = (&fit, &adapters);
    let mut work =
        Work { direction, base: &base, adapters, fit, added: &added, kept, engine, merged };
    for number in 0..base.files.len() {
        work.file(number, &output, &progress)?;
    }
    progress.finish_and_clear();
    copy_others(&base, fit, &added, &others, &output)?;
    if let Some((path, output)) = gains {
        gains::write(path, output, &work.merged)?;
    }
    output.finish()?;
    let done = Done { options, device, base: &base, fit, others: &others };
    match direction {
        Direction::Merge => converted::merged(&report, &done, &work.merged),
        Direction::Unmerge => converted::unmerged(&report, &done),
    }
    .and_then(|()| report.finish())
    .map_err(|failure| failure.after_writing(&options.out))
}

/// Refuses to replace tensors unless it is asked for, and to undo it.
fn check_replacements(
    options: &Convert,
    direction: Direction,
    adapters: &Adapters,
    fit: &mut Fit,
) -> Result<(), Failure> {
    let list = |names: &mut dyn Iterator<Item = &str>| {
        names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    };
    let is_whole = match direction {
        Direction::Merge => !fit.replacements.is_empty(),
        Direction::Unmerge => adapters.whole.iter().any(|whole| !whole.is_copy),
    };
    if !is_whole {
        return match options.replace_modules && adapters.whole.is_empty() {
            true => Err(Failure::Call(format!(
                "--replace-modules: {} holds no whole tensors",
                adapters.path.display()
            ))),
            false => Ok(()),
        };
    }
    let problem = match direction {
        _ if options.replace_modules && direction == Direction::Merge => return Ok(()),
        _ if options.replace_modules => {
            fit.replacements.clear();
            let names = adapters.whole.iter().filter(|whole| !whole.is_copy);
            let names = list(&mut names.map(|whole| whole.name.as_str()));
            fit.notes.push(format!("Left as they are in --base: {names}"));
            return Ok(());
        }
        Direction::Merge => format!(
            "holds whole tensors (modules_to_save), which would replace those of the base: {}. \
             Pass --replace-modules if they should, or `inspect` the adapter",
            list(&mut fit.replacements.keys().map(String::as_str))
        ),
        Direction::Unmerge => {
            "holds whole tensors (modules_to_save), which a merge may have put in \
                               place of the base's, and those are not in the merged model: take \
                               them from the base, or pass --replace-modules to leave them as they \
                               are"
            .to_owned()
        }
    };
    let path = adapters.file.as_ref().map_or(&*adapters.path, TensorFile::path).to_owned();
    Err(CheckpointError::Malformed { path, problem }.into())
}

/// A merged model has each weight that was changed.
fn check_sources(base: &Base, fit: &Fit) -> Result<(), Failure> {
    match fit.layers.iter().find(|(tensor, layer)| **tensor != layer.source) {
        None => Ok(()),
        Some((tensor, layer)) => Err(CheckpointError::MissingTensor {
            path: base.path.clone(),
            tensor: tensor.clone(),
            reason: format!(
                "it is tied to `{}`, but a merge with this adapter writes it: is --base merged?",
                layer.source
            ),
        }
        .into()),
    }
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
    base: &'a Base,
    adapters: &'a Adapters,
    fit: &'a Fit,
    added: &'a [Added],
    /// The gains of a merge that is undone, by tensor.
    kept: HashMap<String, Vec<f32>>,
    engine: Box<dyn Engine>,
    merged: BTreeMap<String, Merged>,
}

impl Work<'_> {
    /// One file: its header and the tensors that are not adapted as they are, to the byte, and
    /// what is added to it.
    fn file(
        &mut self,
        number: usize,
        output: &Output,
        progress: &ProgressBar,
    ) -> Result<(), Failure> {
        let (file, fit) = (&self.base.files[number], self.fit);
        let added = self.added.iter().filter(|added| added.file == number);
        let added: Vec<_> = added.collect();
        let name = Path::new(file.path().file_name().unwrap_or_default());
        let mut sink = output.sink(name, progress)?;
        match added.is_empty() {
            true => sink.write(file.header())?,
            false => sink.write(&added::header(file, &added)?)?,
        }
        for tensor in file.names() {
            let Some(info) = file.info(&tensor) else { continue };
            if let Some(layer) = fit.layers.get(&tensor) {
                progress.set_message(tensor.clone());
                self.layer(&tensor, layer, &mut sink)?;
            } else if fit.replacements.contains_key(&tensor) {
                self.replacement(&tensor, info.dtype, &mut sink)?;
            } else {
                copy(file, info, &mut sink)?;
            }
        }
        for Added { name, dtype, .. } in added {
            match fit.layers.get(name) {
                Some(layer) => self.layer(name, layer, &mut sink)?,
                None => self.replacement(name, *dtype, &mut sink)?,
            }
        }
        sink.finish()
    }

    fn replacement(&self, tensor: &str, dtype: Stored, sink: &mut Sink<'_>) -> Result<(), Failure> {
        let bytes = self.fit.replacement(self.adapters, tensor, dtype)?;
        bytes.chunks(CHUNK).try_for_each(|chunk| sink.write(chunk))
    }

    fn layer(
        &mut self,
        tensor: &str,
        Layer { layer, source, .. }: &Layer,
        sink: &mut Sink<'_>,
    ) -> Result<(), Failure> {
        let file = self.base.file(source).expect("the base has it");
        let weight = Weight::new(file, source)?;
        match self.direction {
            Direction::Merge => {
                let merged = self.engine.merge(&weight, layer, sink)?;
                let MergeReport { change_squared, error_squared, .. } = merged.report;
                if !(change_squared.is_finite() && error_squared.is_finite()) {
                    return Err(of_layer(&weight, NOT_FINITE));
                }
                self.merged.insert(tensor.to_owned(), merged);
                Ok(())
            }
            Direction::Unmerge => {
                let gain = self.kept.get(tensor).map_or(&[][..], Vec::as_slice);
                self.engine.unmerge(&weight, layer, gain, sink)
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

/// The folder's other files, the index and the settings, with what has changed in them.
fn copy_others(
    base: &Base,
    fit: &Fit,
    added: &[Added],
    others: &Others,
    output: &Output,
) -> Result<(), Failure> {
    if let Some(index) = &base.index {
        let name = Path::new(index.file_name().unwrap_or_default());
        match added.is_empty() {
            true => output.copy(index, name)?,
            false => output.text(&added::index(index, base, added)?, name)?,
        }
    }
    for name in &others.copied {
        match &fit.untied.config {
            Some(text) if name == Path::new(CONFIG) => output.text(text, name)?,
            _ => output.copy(&base.path.join(name), name)?,
        }
    }
    Ok(())
}
