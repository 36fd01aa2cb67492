//! `analyze`: how far each weight moved between two checkpoints (arXiv:2402.09353, §3.2).

use std::io::Write;
use std::path::Path;

use fused_dora::peft::CheckpointError;
use fused_dora::{Decomposition, Norm};

use crate::base::Base;
use crate::engine;
use crate::error::Failure;
use crate::options::Analyze;
use crate::plot;
use crate::weight::Weight;

pub fn run(options: &Analyze) -> Result<(), Failure> {
    let (base, changed) = (Base::open(&options.base)?, Base::open(&options.changed)?);
    let pairs = pairs(&base, &changed)?;
    let mut engine = engine::open(options.device)?;
    println!("Device: {}.", engine.name());
    let axis = if options.axis == Norm::Input { "columns" } else { "rows" };
    println!(
        "{axis} of the weights of {} against those of {}: ΔM, the mean change of magnitude, and \
         ΔD, that of direction (1 - cosine)",
        changed.path.display(),
        base.path.display()
    );
    let width = pairs.iter().map(|(before, _)| before.name.len()).max().unwrap_or(0).max(6);
    println!("{:<width$} | {:>13} | {:>11} | {:>11}", "tensor", "shape", "ΔM", "ΔD");
    let mut points = Vec::new();
    for (before, after) in &pairs {
        let moved = engine.decompose(before, after, options.axis)?;
        let shape = format!("{:?}", before.shape);
        let Decomposition { magnitude, direction } = moved;
        println!("{:<width$} | {shape:>13} | {magnitude:>11.4e} | {direction:>11.4e}", before.name);
        points.push(moved);
    }
    let moved: Vec<_> = points.iter().filter(|moved| moved.direction > 0.0).copied().collect();
    println!("{} of {} weights moved{}", moved.len(), points.len(), fit(&moved));
    match &options.svg {
        Some(path) => save(path, &plot::svg(axis, &moved).map_err(Failure::Call)?),
        None => Ok(()),
    }
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
        let after = Weight::new(file, before.name)?;
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

/// The slope of the line through the points, and how well they lie on it.
fn fit(points: &[Decomposition]) -> String {
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
    match points.len() > 2 && dd > 0.0 && mm > 0.0 {
        true => {
            let correlation = dm / (dd * mm).sqrt();
            format!("; ΔM against ΔD: slope {:.4}, correlation {correlation:.3}", dm / dd)
        }
        false => String::new(),
    }
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
    write().map_err(|source| CheckpointError::Write { path: path.to_owned(), source })?;
    println!("Written: {}", path.display());
    Ok(())
}
