//! `analyze`: how far each weight moved between two checkpoints (arXiv:2402.09353, §3.2).

use std::io::Write;
use std::path::Path;

use fused_dora::Decomposition;
use fused_dora::Dtype;
use fused_dora::peft::CheckpointError;
use serde::Serialize;

use crate::base::Base;
use crate::engine;
use crate::error::Failure;
use crate::options::{Analyze, Axis};
use crate::plot;
use crate::report::{Report, axis, line};
use crate::weight::Weight;

/// The JSON document. Numbers that are not finite are null.
#[derive(Serialize)]
struct Document<'a> {
    device: String,
    no_gpu: Option<String>,
    base: String,
    changed: String,
    axis: &'static str,
    weights: Vec<Row<'a>>,
    moved: usize,
    not_finite: Vec<&'a str>,
    not_compared: Vec<Uncounted<'a>>,
    fit: Option<Fit>,
    svg: Option<String>,
}

#[derive(Serialize)]
struct Row<'a> {
    tensor: &'a str,
    shape: [usize; 2],
    magnitude_change: f64,
    direction_change: f64,
}

/// A tensor that is not compared.
#[derive(Serialize)]
struct Uncounted<'a> {
    tensor: &'a str,
    reason: &'static str,
}

/// The line through the points, ΔM against ΔD.
#[derive(Serialize)]
struct Fit {
    slope: f64,
    correlation: f64,
}

pub fn run(options: &Analyze) -> Result<(), Failure> {
    let [mut base, mut changed] = [Base::open(&options.base)?, Base::open(&options.changed)?];
    for base in [&mut base, &mut changed] {
        // Nothing is written: as they are.
        base.packed.read_as = Some(Dtype::F32);
    }
    let pairs = pairs(&base, &changed)?;
    let not_compared = not_compared(&base, &changed);
    let opened = engine::open(options.device.device)?;
    let report = match options.svg {
        Some(_) => Report::of_work(&options.format),
        None => Report::new(&options.format),
    };
    opened.report(&report)?;
    let (mut engine, no_gpu) = (opened.engine, opened.no_gpu);
    let vectors = if options.axis == Axis::Input { "columns" } else { "rows" };
    let paths = [&base, &changed].map(|it| it.path.display().to_string());
    line!(
        report,
        "{vectors} of the weights of {} against those of {}: ΔM, the mean change of magnitude, \
         and ΔD, that of direction (1 - cosine)",
        paths[1],
        paths[0]
    )?;
    let width = pairs.iter().map(|(before, _)| before.name.len()).max().unwrap_or(0).max(6);
    line!(report, "{:<width$} | {:>13} | {:>11} | {:>11}", "tensor", "shape", "ΔM", "ΔD")?;
    let (mut weights, mut moved, mut not_finite) = (Vec::new(), Vec::new(), Vec::new());
    for (before, after) in &pairs {
        let change = engine.decompose(before, after, options.axis.norm())?;
        let Decomposition { magnitude, direction } = change;
        let (tensor, shape) = (before.name, format!("{:?}", before.shape));
        line!(report, "{tensor:<width$} | {shape:>13} | {magnitude:>11.4e} | {direction:>11.4e}")?;
        weights.push(Row {
            tensor,
            shape: before.shape,
            magnitude_change: magnitude,
            direction_change: direction,
        });
        if !(direction.is_finite() && magnitude.is_finite()) {
            not_finite.push(tensor);
        } else if direction > 0.0 {
            moved.push(change);
        }
    }
    let fit = fit(&moved);
    let line = fit.as_ref().map_or_else(String::new, |Fit { slope, correlation }| {
        format!("; ΔM against ΔD: slope {slope:.4}, correlation {correlation:.3}")
    });
    line!(report, "{} of {} weights moved{line}", moved.len(), weights.len())?;
    if !not_finite.is_empty() {
        line!(report, "NaN or infinity, not counted as moved: {}", not_finite.join(", "))?;
    }
    for reason in [NO_MATRIX, ONLY_IN_CHANGED] {
        let names = not_compared.iter().filter(|it| it.reason == reason).map(|it| it.tensor);
        let names: Vec<_> = names.collect();
        if !names.is_empty() {
            line!(report, "Not compared, {reason}: {}", names.join(", "))?;
        }
    }
    if let Some(path) = &options.svg {
        save(path, &plot::svg(vectors, &moved).map_err(Failure::Call)?)?;
        line!(report, "Written: {}", path.display())?;
    }
    let [base, changed] = paths;
    report.document(&Document {
        device: engine.name(),
        no_gpu,
        base,
        changed,
        axis: axis(options.axis.norm()),
        weights,
        moved: moved.len(),
        not_finite,
        not_compared,
        fit,
        svg: options.svg.as_ref().map(|path| path.display().to_string()),
    })?;
    report.finish()
}

const NO_MATRIX: &str = "no matrix of bf16, f16 or f32";
const ONLY_IN_CHANGED: &str = "only in --changed";

/// The tensors of either that are no pair of matrices.
fn not_compared<'a>(base: &'a Base, changed: &'a Base) -> Vec<Uncounted<'a>> {
    let of = |reason| move |tensor| Uncounted { tensor, reason };
    let no_matrix = base.names().filter(|name| base.matrix(name).is_none());
    let no_matrix = no_matrix.filter(|name| !base.packed.is_part(name)).map(of(NO_MATRIX));
    let only = changed.names().filter(|name| base.tensor(name).is_none());
    let only = only.filter(|name| !changed.packed.is_part(name));
    no_matrix.chain(only.map(of(ONLY_IN_CHANGED))).collect()
}

/// The matrices of both.
fn pairs<'a>(
    base: &'a Base,
    changed: &'a Base,
) -> Result<Vec<(Weight<'a>, Weight<'a>)>, CheckpointError> {
    let mut pairs = Vec::new();
    for name in base.names() {
        let Some(before) = base.matrix(name) else { continue };
        let Some(file) = changed.file(name) else {
            let reason = "the other checkpoint has it: are they of one model?".to_owned();
            let (path, tensor) = (changed.path.clone(), name.to_owned());
            return Err(CheckpointError::MissingTensor { path, tensor, reason });
        };
        let after = changed.weight(name)?;
        if before.shape != after.shape {
            let needed = format!("{:?} in {}", before.shape, before.file.path().display());
            return Err(CheckpointError::Shape {
                path: file.path().to_owned(),
                tensor: name.to_owned(),
                found: after.shape.to_vec(),
                needed,
            });
        }
        pairs.push((before, after));
    }
    match pairs.is_empty() {
        true => Err(CheckpointError::Malformed {
            path: base.path.clone(),
            problem: "holds no matrices of bf16, f16 or f32".to_owned(),
        }),
        false => Ok(pairs),
    }
}

/// The slope of the line through the points, and how well they lie on it; nothing where fewer than
/// three points, or points on one value, give no line.
fn fit(points: &[Decomposition]) -> Option<Fit> {
    let count = points.len() as f64;
    let mean = |of: fn(&Decomposition) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (mean_d, mean_m) = (mean(|it| it.direction), mean(|it| it.magnitude));
    let (mut dd, mut mm, mut dm) = (0.0, 0.0, 0.0);
    for Decomposition { magnitude, direction } in points {
        let (d, m) = (direction - mean_d, magnitude - mean_m);
        dd += d * d;
        mm += m * m;
        dm += d * m;
    }
    let has_line = points.len() > 2 && dd > 0.0 && mm > 0.0;
    has_line.then(|| Fit { slope: dm / dd, correlation: dm / (dd * mm).sqrt() })
}

/// Writes a picture, in place of one that is there.
fn save(path: &Path, picture: &str) -> Result<(), Failure> {
    let write = || {
        let mut file = fused_dora::peft::files::file_beside(path)?;
        file.write_all(picture.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|source| CheckpointError::Write { path: path.to_owned(), source }.into())
}
