//! What `merge` and `unmerge` print when their output is complete.

use std::collections::BTreeMap;

use fused_dora::{Dtype, MergeReport};
use serde::Serialize;

use crate::base::Base;
use crate::engine::Merged;
use crate::error::Failure;
use crate::files::{LeftOut, Others};
use crate::fit::{Fit, Layer as FitLayer};
use crate::options::Convert;
use crate::report::{Report, count, line};
use crate::weight::Weight;

/// What was done.
pub struct Done<'a> {
    pub options: &'a Convert,
    /// What computed, and why not a GPU.
    pub device: (String, Option<String>),
    pub base: &'a Base,
    pub fit: &'a Fit,
    pub others: &'a Others,
    /// How the output is packed, and what that left of each change.
    pub packed: Option<(String, BTreeMap<String, MergeReport>)>,
}

/// The JSON document of `merge`.
#[derive(Serialize)]
struct MergeDocument<'a> {
    device: &'a str,
    no_gpu: Option<&'a str>,
    out: String,
    gains: Option<String>,
    notes: &'a [String],
    layers: Vec<Layer<'a>>,
    all: Change,
    packed: Option<Packed<'a>>,
    replaced: Vec<&'a str>,
    #[serde(flatten)]
    files: Files<'a>,
}

/// The base's files that are no weights.
#[derive(Serialize)]
struct Files<'a> {
    copied: Vec<String>,
    left_out: &'a [LeftOut],
}

/// What `--quantize` left of the changes.
#[derive(Serialize)]
struct Packed<'a> {
    format: &'a str,
    layers: Vec<PackedLayer<'a>>,
    all: Change,
}

#[derive(Serialize)]
struct PackedLayer<'a> {
    tensor: &'a str,
    #[serde(flatten)]
    change: Change,
}

#[derive(Serialize)]
struct Layer<'a> {
    tensor: &'a str,
    module: &'a str,
    shape: [usize; 2],
    dtype: &'static str,
    rank: usize,
    #[serde(flatten)]
    change: Change,
}

/// What merging changed, and what its rounding lost of that.
#[derive(Serialize)]
struct Change {
    change: f64,
    /// Nothing where nothing is changed.
    kept: Option<f64>,
    relative_error: f64,
}

/// The JSON document of `unmerge`.
#[derive(Serialize)]
struct UnmergeDocument<'a> {
    device: &'a str,
    no_gpu: Option<&'a str>,
    out: String,
    notes: &'a [String],
    layers: usize,
    #[serde(flatten)]
    files: Files<'a>,
}

pub fn merged(
    report: &Report,
    done: &Done<'_>,
    merged: &BTreeMap<String, Merged>,
) -> Result<(), Failure> {
    let mut all = MergeReport { change_squared: 0.0, error_squared: 0.0, error_along_change: 0.0 };
    let (mut lines, mut idle) = (Vec::new(), 0);
    for (tensor, FitLayer { module, layer, source }) in &done.fit.layers {
        let Some(Merged { report, .. }) = merged.get(tensor) else { continue };
        all.change_squared += report.change_squared;
        all.error_squared += report.error_squared;
        all.error_along_change += report.error_along_change;
        let dtype = done.base.matrix(source).map(|weight: Weight<'_>| weight.dtype);
        let change = Change::of(report, changes_nothing(report, dtype));
        idle += usize::from(change.kept.is_none());
        lines.push(Layer {
            tensor,
            module,
            shape: layer.shape(),
            dtype: dtype.map_or("", Dtype::name),
            rank: layer.rank(),
            change,
        });
    }
    let document = MergeDocument {
        device: &done.device.0,
        no_gpu: done.device.1.as_deref(),
        out: done.options.out.display().to_string(),
        gains: done.options.gains.as_ref().map(|path| path.display().to_string()),
        notes: &done.fit.notes,
        all: Change::of(&all, idle == lines.len()),
        packed: done.packed.as_ref().map(Packed::of),
        layers: lines,
        replaced: done.fit.replacements.keys().map(String::as_str).collect(),
        files: Files::of(done.others),
    };
    print(report, &document)?;
    if let Some(packed) = &document.packed {
        packed.print(report)?;
    }
    if idle > 0 {
        let what = "their change is 0, or too small for the rounding of f32";
        match idle == document.layers.len() {
            true => line!(report, "The adapter changes nothing: {what}")?,
            false => {
                line!(report, "Not changed by the adapter: {}: {what}", count(idle, "weight"))?
            }
        }
    }
    for tensor in &document.replaced {
        line!(report, "Replaced: {tensor}")?;
    }
    document.files.print(report)?;
    let has_gains = merged.values().any(|merged| !merged.gain.is_empty());
    if has_gains && document.gains.is_none() && document.packed.is_none() {
        line!(report, "Without --gains FILE, `unmerge` cannot undo this merge of a DoRA.")?;
    }
    line!(report, "Written: {}", document.out)?;
    report.document(&document)
}

/// Whether a change is 0, or no more than a few roundings of f32: then the adapter does not change
/// the weight, and what rounding kept of it is no figure.
fn changes_nothing(report: &MergeReport, dtype: Option<Dtype>) -> bool {
    report.change_squared == 0.0 || dtype == Some(Dtype::F32) && report.relative_error() > 0.05
}

impl<'a> Packed<'a> {
    fn of((format, changes): &'a (String, BTreeMap<String, MergeReport>)) -> Self {
        let mut all =
            MergeReport { change_squared: 0.0, error_squared: 0.0, error_along_change: 0.0 };
        let mut layers = Vec::new();
        for (tensor, report) in changes {
            all.change_squared += report.change_squared;
            all.error_squared += report.error_squared;
            all.error_along_change += report.error_along_change;
            let change = Change::of(report, report.change_squared == 0.0);
            layers.push(PackedLayer { tensor, change });
        }
        let all = Change::of(&all, all.change_squared == 0.0);
        Self { format, layers, all }
    }

    fn print(&self, report: &Report) -> Result<(), Failure> {
        let width = self.layers.iter().map(|layer| layer.tensor.len()).max().unwrap_or(0).max(3);
        let Self { format, layers, all } = self;
        line!(report, "Packed again ({format}), which leaves of the changes:")?;
        line!(report, "{:<width$} | change ‖Δ‖ | kept of it | error ‖E‖/‖Δ‖", "tensor")?;
        for PackedLayer { tensor, change } in layers {
            line!(report, "{tensor:<width$} | {}", change.columns())?;
        }
        line!(report, "{:<width$} | {}", "all", all.columns())
    }
}

impl<'a> Files<'a> {
    fn of(others: &'a Others) -> Self {
        let copied = others.copied.iter().map(|path| path.display().to_string());
        Self { copied: copied.collect(), left_out: &others.left_out }
    }

    fn print(&self, report: &Report) -> Result<(), Failure> {
        if !self.copied.is_empty() {
            line!(report, "Copied with the weights: {}", count(self.copied.len(), "file"))?;
        }
        for LeftOut { path, reason } in self.left_out {
            line!(report, "Left out: {path} ({reason})")?;
        }
        Ok(())
    }
}

impl Change {
    fn of(report: &MergeReport, is_idle: bool) -> Self {
        Self {
            change: report.change_squared.sqrt(),
            kept: (!is_idle).then(|| report.kept()),
            relative_error: report.relative_error(),
        }
    }

    fn columns(&self) -> String {
        let Self { change, kept, relative_error } = self;
        match kept {
            Some(kept) => {
                let kept = 100.0 * kept;
                format!("{change:>11.4e} | {kept:>8.2} % | {relative_error:>10.2e}")
            }
            None => format!("{change:>11.4e} | {:>10} | {:>10}", "-", "-"),
        }
    }
}

/// The document as a table.
fn print(report: &Report, document: &MergeDocument<'_>) -> Result<(), Failure> {
    let width = document.layers.iter().map(|layer| layer.tensor.len()).max().unwrap_or(0);
    line!(
        report,
        "{:<width$} | {:>13} | dtype | rank | change ‖Δ‖ | kept of it | error ‖E‖/‖Δ‖",
        "tensor",
        "shape"
    )?;
    for Layer { tensor, shape, dtype, rank, change, .. } in &document.layers {
        let (shape, change) = (format!("{shape:?}"), change.columns());
        line!(report, "{tensor:<width$} | {shape:>13} | {dtype:>5} | {rank:>4} | {change}")?;
    }
    let all = document.all.columns();
    line!(report, "{:<width$} | {:>13} | {:>5} | {:>4} | {all}", "all", "", "", "")
}

pub fn unmerged(report: &Report, done: &Done<'_>) -> Result<(), Failure> {
    let document = UnmergeDocument {
        device: &done.device.0,
        no_gpu: done.device.1.as_deref(),
        out: done.options.out.display().to_string(),
        notes: &done.fit.notes,
        layers: done.fit.layers.len(),
        files: Files::of(done.others),
    };
    line!(report, "{} layers unmerged.", document.layers)?;
    document.files.print(report)?;
    line!(report, "Written: {}", document.out)?;
    report.document(&document)
}
