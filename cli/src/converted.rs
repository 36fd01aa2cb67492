//! What `merge` and `unmerge` print when their output is complete.

use std::collections::BTreeMap;

use fused_dora::MergeReport;
use fused_dora::peft::LayerAdapter;
use serde::Serialize;

use crate::base::Base;
use crate::engine::Merged;
use crate::error::Failure;
use crate::options::Convert;
use crate::report::{Report, line};

/// The JSON document of `merge`.
#[derive(Serialize)]
struct MergeDocument<'a> {
    device: String,
    out: String,
    gains: Option<String>,
    layers: Vec<Layer<'a>>,
    all: Change,
}

#[derive(Serialize)]
struct Layer<'a> {
    tensor: &'a str,
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
    kept: f64,
    relative_error: f64,
}

/// The JSON document of `unmerge`.
#[derive(Serialize)]
struct UnmergeDocument {
    device: String,
    out: String,
    layers: usize,
}

pub fn merged(
    report: &Report,
    options: &Convert,
    device: String,
    base: &Base,
    layers: &BTreeMap<String, LayerAdapter>,
    merged: &BTreeMap<String, Merged>,
) -> Result<(), Failure> {
    let mut all = MergeReport { change_squared: 0.0, error_squared: 0.0, error_along_change: 0.0 };
    let mut lines = Vec::new();
    for (tensor, layer) in layers {
        let Some(Merged { report, .. }) = merged.get(tensor) else { continue };
        all.change_squared += report.change_squared;
        all.error_squared += report.error_squared;
        all.error_along_change += report.error_along_change;
        lines.push(Layer {
            tensor,
            shape: layer.shape(),
            dtype: base.matrix(tensor).map_or("", |weight| weight.dtype.name()),
            rank: layer.rank(),
            change: Change::of(report),
        });
    }
    let document = MergeDocument {
        device,
        out: options.out.display().to_string(),
        gains: options.gains.as_ref().map(|path| path.display().to_string()),
        layers: lines,
        all: Change::of(&all),
    };
    print(report, &document)?;
    report.document(&document)
}

impl Change {
    fn of(report: &MergeReport) -> Self {
        Self {
            change: report.change_squared.sqrt(),
            kept: report.kept(),
            relative_error: report.relative_error(),
        }
    }

    fn columns(&self) -> String {
        let Self { change, kept, relative_error } = self;
        format!("{change:>11.4e} | {:>8.2} % | {relative_error:>10.2e}", 100.0 * kept)
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
    for Layer { tensor, shape, dtype, rank, change } in &document.layers {
        let (shape, change) = (format!("{shape:?}"), change.columns());
        line!(report, "{tensor:<width$} | {shape:>13} | {dtype:>5} | {rank:>4} | {change}")?;
    }
    let all = document.all.columns();
    line!(report, "{:<width$} | {:>13} | {:>5} | {:>4} | {all}", "all", "", "", "")?;
    line!(report, "Written: {}", document.out)
}

pub fn unmerged(
    report: &Report,
    options: &Convert,
    device: String,
    layers: usize,
) -> Result<(), Failure> {
    let out = options.out.display().to_string();
    line!(report, "{layers} layers unmerged.")?;
    line!(report, "Written: {out}")?;
    report.document(&UnmergeDocument { device, out, layers })
}
