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
use crate::added;
use crate::base::Base;
use crate::converted::{self, Done};
use crate::engine::{self, Engine, Merged, NOT_FINITE, decode, of_layer};
use crate::error::Failure;
use crate::files::Others;
use crate::fit::{Fit, Layer, Whole};
use crate::gains;
use crate::layout::{self, Layout};
use crate::model::CONFIG;
use crate::options::{Convert, Type};
use crate::output::{self, Output, Sink};
use crate::packing::Packing;
use crate::quantize;
use crate::report::{Report, line};
use crate::weight::{CHUNK, Weight};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Merge,
    Unmerge,
}

pub fn run(options: &Convert, direction: Direction) -> Result<(), Failure> {
    check_targets(options, direction)?;
    let mut base = Base::open(&options.base)?;
    base.packed.read_as = options.dtype.map(Type::dtype);
    let base = base;
    let adapters = Adapters::open(&options.adapter, &options.reading)?;
    let whole = match direction {
        Direction::Merge => Whole::Compare,
        Direction::Unmerge => Whole::Leave,
    };
    let mut fit = Fit::new(&adapters, &base, &options.reading, whole)?;
    check_replacements(options, direction, &adapters, &mut fit)?;
    check_packed(options, direction, &base, &fit)?;
    let packing = packing(options, direction, &base, &mut fit)?;
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
    let layout = |number| Layout::of(&base, number, &added, fit.is_unpacked);
    let layouts = (0..base.files.len()).map(layout).collect::<Result<Vec<_>, _>>()?;
    let progress = progress(layouts.iter().map(Layout::bytes).sum());
    let device = (opened.engine.name(), opened.no_gpu);
    let (engine, merged) = (opened.engine, BTreeMap::new());
    let (fit, adapters) = (&fit, &adapters);
    let mut work = Work { direction, base: &base, adapters, fit, kept, engine, merged };
    for (file, layout) in base.files.iter().zip(&layouts) {
        work.file(file, layout, &output, &progress)?;
    }
    progress.finish_and_clear();
    let is_same = added.is_empty() && !fit.is_unpacked;
    copy_others(&base, fit, (!is_same).then_some(&layouts), &others, &output)?;
    if let Some((path, output)) = gains {
        gains::write(path, output, &work.merged)?;
    }
    let packed = match &packing {
        None => {
            output.finish()?;
            None
        }
        Some(packing) => {
            let changes = pack(options, &base, fit, packing, &output)?;
            Some((packing.description(), changes))
        }
    };
    let done = Done { options, device, base: &base, fit, others: &others, packed };
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

/// How the merged weights are to be packed.
fn packing(
    options: &Convert,
    direction: Direction,
    base: &Base,
    fit: &mut Fit,
) -> Result<Option<Packing>, Failure> {
    let Some(format) = options.quantize else {
        return match options.block {
            Some(_) => Err(Failure::Call("--block: it is an option of --quantize".to_owned())),
            None => Ok(None),
        };
    };
    let wrong = |problem: &str| Err(Failure::Call(format!("--quantize: {problem}")));
    if direction == Direction::Unmerge {
        return wrong("it is an option of `merge`: call `quantize` with the output");
    }
    if options.gains.is_some() {
        return wrong(
            "the packed output cannot be unmerged with --gains: merge without --quantize, and call \
             `quantize` with the output",
        );
    }
    if !fit.is_unpacked && base.packed.names().next().is_some() {
        return wrong(
            "the base's packed weights stay as they are, because the adapter changes none",
        );
    }
    let mut packing = Packing::of(base, format, options.block, &[])?;
    let added = fit.layers.keys().chain(fit.replacements.keys());
    let added = added.filter(|tensor| base.tensor(tensor).is_none());
    packing
        .dense
        .extend(added.filter_map(|tensor| Some(tensor.strip_suffix(".weight")?.to_owned())));
    if !base.is_folder() || base.config.is_none() {
        fit.notes.push(format!(
            "The output needs a {CONFIG} with quantization_config: {}",
            packing.settings()
        ));
    }
    Ok(Some(packing))
}

/// Packs what was merged, and returns what is left of each change.
fn pack(
    options: &Convert,
    base: &Base,
    fit: &Fit,
    packing: &Packing,
    merged: &Output,
) -> Result<BTreeMap<String, MergeReport>, Failure> {
    let dense = Base::open(merged.place())?;
    let others = Others::of(&dense, &options.out)?;
    let output = Output::new(&options.out, dense.is_folder())?;
    let mut changes = BTreeMap::new();
    quantize::write(&dense, packing, &others, &output, &mut |tensor, packed| {
        if let Some(layer) = fit.layers.get(tensor) {
            changes.insert(tensor.to_owned(), packed.change(&base.weight(&layer.source)?)?);
        }
        Ok(())
    })?;
    output.finish()?;
    Ok(changes)
}

/// Refuses to take an adapter out of packed weights, and a type for those of which there are none.
fn check_packed(
    options: &Convert,
    direction: Direction,
    base: &Base,
    fit: &Fit,
) -> Result<(), Failure> {
    let packed = fit.layers.values().find_map(|layer| base.packed.known(&layer.source));
    match (direction, packed) {
        (Direction::Unmerge, Some(packed)) => Err(CheckpointError::UnexpectedTensor {
            path: base.path.clone(),
            tensor: packed.keys()[0].clone(),
            reason: format!(
                "it is packed ({}), and a merged weight is not: --base must be what `merge` wrote. \
                 The packed base itself is the one that was merged: take its files",
                packed.format()
            ),
        }
        .into()),
        (_, None) if options.dtype.is_some() => Err(Failure::Call(
            "--dtype: the adapter changes no packed weight, and dense ones keep their type"
                .to_owned(),
        )),
        _ => Ok(()),
    }
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
pub fn progress(bytes: u64) -> ProgressBar {
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
        file: &TensorFile,
        layout: &Layout,
        output: &Output,
        progress: &ProgressBar,
    ) -> Result<(), Failure> {
        let fit = self.fit;
        let name = Path::new(file.path().file_name().unwrap_or_default());
        let mut sink = output.sink(name, progress)?;
        sink.write(&layout.header)?;
        for tensor in &layout.tensors {
            let name = &tensor.name;
            if let Some(layer) = fit.layers.get(name) {
                progress.set_message(name.clone());
                self.layer(name, layer, &mut sink)?;
            } else if fit.replacements.contains_key(name) {
                self.replacement(name, tensor.dtype, &mut sink)?;
            } else if fit.is_unpacked && self.base.packed.contains(name) {
                progress.set_message(name.clone());
                unpack(&self.base.weight(name)?, &mut sink)?;
            } else if let Some(info) = file.info(name) {
                copy(file, info, &mut sink)?;
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
        let weight = self.base.weight(source)?;
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

/// Writes a packed weight as a dense one.
fn unpack(weight: &Weight<'_>, sink: &mut Sink<'_>) -> Result<(), Failure> {
    let mut is_finite = true;
    weight.chunks(|_, bytes| {
        decode(bytes, weight.dtype, |value| is_finite &= value.is_finite());
        sink.write(bytes)
    })?;
    match is_finite {
        true => Ok(()),
        false => Err(of_layer(weight, "it is too large for the type: pass another --dtype")),
    }
}

/// Writes a tensor as it is.
pub fn copy(file: &TensorFile, info: &TensorInfo, sink: &mut Sink<'_>) -> Result<(), Failure> {
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
    changed: Option<&Vec<Layout>>,
    others: &Others,
    output: &Output,
) -> Result<(), Failure> {
    if let Some(index) = &base.index {
        let name = Path::new(index.file_name().unwrap_or_default());
        match changed {
            None => output.copy(index, name)?,
            Some(layouts) => output.text(&layout::index(index, base, layouts)?, name)?,
        }
    }
    for name in &others.copied {
        match &fit.config {
            Some(text) if name == Path::new(CONFIG) => output.text(text, name)?,
            _ => output.copy(&base.path.join(name), name)?,
        }
    }
    Ok(())
}
