//! `inspect`: what an adapter's files hold.

use fused_dora::Norm;

use crate::adapters::Adapters;
use crate::base::Base;
use crate::error::Failure;
use crate::options::Inspect;

pub fn run(options: &Inspect) -> Result<(), Failure> {
    let base = options.base.as_deref().map(Base::open).transpose()?;
    let adapters = Adapters::open(&options.adapter, base.as_ref())?;
    if let Some(base) = &base {
        adapters.for_base(base)?;
    }
    let layers = &adapters.layers;
    let width = layers.keys().map(String::len).max().unwrap_or(0).max(6);
    println!(
        "{:<width$} | {:>13} | rank | scaling | axis   | parameters | magnitude: least, mean, most",
        "module", "shape [O, I]"
    );
    for (module, layer) in layers {
        let (shape, rank, scaling) =
            (format!("{:?}", layer.shape()), layer.rank(), layer.scaling());
        println!(
            "{module:<width$} | {shape:>13} | {rank:>4} | {scaling:>7.4} | {:<6} | {:>10} | {}",
            axis(layer.norm()),
            layer.parameters(),
            statistics(layer.magnitude()),
        );
    }
    let parameters: usize = layers.values().map(|layer| layer.parameters()).sum();
    println!("{}: {} layers, {parameters} parameters", adapters.kind, layers.len());
    if adapters.by_input {
        println!("The base stores these weights [I, O] (fan_in_fan_out).");
    }
    if let Some(base) = &base {
        println!(
            "Fits {}: {} bytes in {} file(s), {} of {} tensors adapted",
            base.path.display(),
            base.bytes(),
            base.files.len(),
            layers.len(),
            base.names().count()
        );
    }
    Ok(())
}

fn axis(norm: Norm) -> &'static str {
    match norm {
        Norm::None => "none",
        Norm::Input => "input",
        Norm::Output => "output",
    }
}

fn statistics(magnitude: &[f32]) -> String {
    if magnitude.is_empty() {
        return "-".to_owned();
    }
    let least = magnitude.iter().copied().fold(f32::INFINITY, f32::min);
    let most = magnitude.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mean = magnitude.iter().map(|&m| f64::from(m)).sum::<f64>() / magnitude.len() as f64;
    format!("{least:.4}, {mean:.4}, {most:.4}")
}
