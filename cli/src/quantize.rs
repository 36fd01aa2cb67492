//! `quantize`: a base with the weights of its linear layers packed.

use std::collections::BTreeMap;
use std::path::Path;

use fused_dora::peft::TensorFile;
use serde::Serialize;

use crate::base::Base;
use crate::convert::{copy, progress};
use crate::error::Failure;
use crate::files::{LeftOut, Others};
use crate::layout::{self, Layout};
use crate::model::CONFIG;
use crate::options::Quantize;
use crate::output::{self, Output};
use crate::packing::{self, Packed, Packing, Part};
use crate::report::{Report, count, line};

/// The JSON document.
#[derive(Serialize)]
struct Document<'a> {
    out: String,
    format: String,
    notes: Vec<String>,
    weights: Vec<Row<'a>>,
    /// ‖Ŵ − W‖/‖W‖ of all weights together.
    relative_error: f64,
    dense: &'a [String],
    bytes_before: u64,
    bytes_after: u64,
    copied: Vec<String>,
    left_out: &'a [LeftOut],
}

/// What packing one weight lost.
#[derive(Serialize)]
struct Row<'a> {
    tensor: &'a str,
    shape: [usize; 2],
    dtype: &'static str,
    relative_error: f64,
}

pub fn run(options: &Quantize) -> Result<(), Failure> {
    output::check_target("out", &options.out, &[("base", &options.base)])?;
    let base = Base::open(&options.base)?;
    if let Some(packed) = base.packed.names().next() {
        return Err(Failure::Call(format!(
            "--base {}: `{packed}` is packed already: name the model that it was made from",
            base.path.display()
        )));
    }
    let packing = Packing::of(&base, options.format, options.block, &options.skip)?;
    let others = Others::of(&base, &options.out)?;
    let mut notes: Vec<_> = base.note.iter().cloned().collect();
    if !base.is_folder() {
        notes.push(format!(
            "The output is one file: a {CONFIG} next to it needs quantization_config: {}",
            packing.settings()
        ));
    } else if base.config.is_none() {
        notes.push(format!(
            "The base has no {CONFIG}: loaders need one with quantization_config: {}",
            packing.settings()
        ));
    }
    let report = Report::of_work(&options.output);
    for note in &notes {
        line!(report, "{note}")?;
    }
    output::watch_signals();
    let output = Output::new(&options.out, base.is_folder())?;
    let written = write(&base, &packing, &others, &output, &mut |_, _| Ok(()))?;
    output.finish()?;
    let Written { losses, bytes: bytes_after } = written;
    let relative = |[error, size]: [f64; 2]| if error == 0.0 { 0.0 } else { (error / size).sqrt() };
    let total = losses.values().fold([0.0; 2], |sum, it| [sum[0] + it[0], sum[1] + it[1]]);
    let row = |(tensor, loss): (&'_ String, &[f64; 2])| {
        let (tensor, weight) =
            packing.weights.get_key_value(tensor).map(|(it, _)| (it, base.matrix(it)))?;
        let weight = weight?;
        let relative_error = relative(*loss);
        Some(Row { tensor, shape: weight.shape, dtype: weight.dtype.name(), relative_error })
    };
    let document = Document {
        out: options.out.display().to_string(),
        format: packing.description(),
        notes,
        weights: losses.iter().filter_map(row).collect(),
        relative_error: relative(total),
        dense: &packing.dense,
        bytes_before: base.bytes(),
        bytes_after,
        copied: others.copied.iter().map(|path| path.display().to_string()).collect(),
        left_out: &others.left_out,
    };
    print(&report, &document)
        .and_then(|()| report.document(&document))
        .and_then(|()| report.finish())
        .map_err(|failure| failure.after_writing(&options.out))
}

/// What was written: the bytes of all files, and by weight ‖Ŵ − W‖² and ‖W‖².
pub struct Written {
    losses: BTreeMap<String, [f64; 2]>,
    bytes: u64,
}

/// Writes all files of a base with weights packed. Each packed weight is shown to `measure`, once.
pub fn write(
    base: &Base,
    packing: &Packing,
    others: &Others,
    output: &Output,
    measure: &mut Measure<'_>,
) -> Result<Written, Failure> {
    let (mut layouts, mut parts) = (Vec::new(), BTreeMap::new());
    for file in &base.files {
        layouts.push(layout(file, base, packing, &mut parts)?);
    }
    let bytes = layouts.iter().map(Layout::bytes).sum();
    let progress = progress(bytes);
    let mut work = Work { base, packing, parts, last: None, losses: BTreeMap::new(), measure };
    for (file, layout) in base.files.iter().zip(&layouts) {
        let name = Path::new(file.path().file_name().unwrap_or_default());
        let mut sink = output.sink(name, &progress)?;
        sink.write(&layout.header)?;
        for entry in &layout.tensors {
            match (work.parts.get(&entry.name).cloned(), file.info(&entry.name)) {
                (Some((tensor, part)), _) => {
                    progress.set_message(tensor.clone());
                    sink.write(&work.part(&tensor, part)?)?;
                }
                (None, Some(info)) => copy(file, info, &mut sink)?,
                (None, None) => {}
            }
        }
        sink.finish()?;
    }
    progress.finish_and_clear();
    let losses = work.losses;
    if let Some(index) = &base.index {
        let name = Path::new(index.file_name().unwrap_or_default());
        output.text(&layout::index(index, base, &layouts)?, name)?;
    }
    for name in &others.copied {
        match &base.config {
            Some(config) if name == Path::new(CONFIG) => {
                output.text(&config.packed(packing.settings()), name)?;
            }
            _ => output.copy(&base.path.join(name), name)?,
        }
    }
    Ok(Written { losses, bytes })
}

/// The document as a table.
fn print(report: &Report, document: &Document<'_>) -> Result<(), Failure> {
    let width = document.weights.iter().map(|it| it.tensor.len()).max().unwrap_or(0).max(6);
    line!(report, "{:<width$} | {:>13} | dtype | error ‖E‖/‖W‖", "tensor", "shape")?;
    for Row { tensor, shape, dtype, relative_error } in &document.weights {
        let shape = format!("{shape:?}");
        line!(report, "{tensor:<width$} | {shape:>13} | {dtype:>5} | {relative_error:>13.4e}")?;
    }
    let all = document.relative_error;
    line!(report, "{:<width$} | {:>13} | {:>5} | {all:>13.4e}", "all", "", "")?;
    let packed = count(document.weights.len(), "weight");
    let Document { format, bytes_before, bytes_after, .. } = document;
    line!(report, "Packed: {packed} ({format}); {bytes_before} bytes are {bytes_after}")?;
    if !document.dense.is_empty() {
        line!(report, "Dense: {}", document.dense.join(", "))?;
    }
    for LeftOut { path, reason } in document.left_out {
        line!(report, "Left out: {path} ({reason})")?;
    }
    line!(report, "Written: {}", document.out)
}

/// A file with the tensors of packed weights in place of dense ones.
fn layout(
    file: &TensorFile,
    base: &Base,
    packing: &Packing,
    parts: &mut BTreeMap<String, (String, Part)>,
) -> Result<Layout, Failure> {
    let mut tensors = Vec::new();
    for entry in layout::entries(file) {
        let Some(format) = packing.weights.get(&entry.name) else {
            tensors.push(entry);
            continue;
        };
        let shape = base.weight(&entry.name)?.shape;
        for (part, kind) in packing::entries(&entry.name, *format, shape) {
            parts.insert(part.name.clone(), (entry.name.clone(), kind));
            tensors.push(part);
        }
    }
    Layout::new(file, tensors)
}

/// What is to be done with each packed weight.
pub type Measure<'a> = dyn FnMut(&str, &Packed) -> Result<(), Failure> + 'a;

struct Work<'a, 'b> {
    base: &'a Base,
    packing: &'a Packing,
    /// The weight and the part that a tensor is of.
    parts: BTreeMap<String, (String, Part)>,
    /// The weight that was packed last: of the narrow parts, many follow each other.
    last: Option<(String, Packed)>,
    losses: BTreeMap<String, [f64; 2]>,
    measure: &'a mut Measure<'b>,
}

impl Work<'_, '_> {
    /// The bytes of a packed weight's part. Wide parts come first in a file, so that most weights are
    /// packed twice: that takes time and no memory.
    fn part(&mut self, tensor: &str, part: Part) -> Result<Vec<u8>, Failure> {
        if self.last.as_ref().is_none_or(|(last, _)| last != tensor) {
            let packed = packing::pack(&self.base.weight(tensor)?, self.packing.weights[tensor])?;
            if !self.losses.contains_key(tensor) {
                self.losses.insert(tensor.to_owned(), packed.loss());
                (self.measure)(tensor, &packed)?;
            }
            self.last = Some((tensor.to_owned(), packed));
        }
        Ok(self.last.as_ref().map_or_else(Vec::new, |(_, it)| packing::bytes(&it.weight, part)))
    }
}
