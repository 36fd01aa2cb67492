//! `inspect`: what an adapter's files hold.

use std::collections::BTreeMap;

use fused_dora::Dtype;
use fused_dora::peft::LayerAdapter;
use serde::Serialize;

use crate::adapters::Adapters;
use crate::base::Base;
use crate::error::Failure;
use crate::fit::{Fit, Whole};
use crate::options::Inspect;
use crate::packed::Summary;
use crate::report::{Report, axis, count, line};

/// The JSON document.
#[derive(Serialize)]
struct Document<'a> {
    adapter: String,
    format: &'static str,
    fan_in_fan_out: bool,
    parameters: usize,
    notes: Vec<String>,
    layers: Vec<Layer<'a>>,
    whole: Vec<&'a str>,
    base: Option<BaseFacts>,
}

#[derive(Serialize)]
struct Layer<'a> {
    module: &'a str,
    shape: [usize; 2],
    rank: usize,
    scaling: f32,
    norm_axis: &'static str,
    parameters: usize,
    magnitude: Option<Magnitude>,
}

#[derive(Serialize)]
struct Magnitude {
    least: f32,
    mean: f64,
    most: f32,
}

#[derive(Serialize)]
struct BaseFacts {
    path: String,
    bytes: u64,
    files: usize,
    tensors: usize,
    adapted: usize,
    packed: Vec<Packed>,
}

/// Packed weights of one format.
#[derive(Serialize)]
struct Packed {
    format: &'static str,
    description: String,
    weights: usize,
    bytes: usize,
}

pub fn run(options: &Inspect) -> Result<(), Failure> {
    let mut base = options.base.as_deref().map(Base::open).transpose()?;
    if let Some(base) = &mut base {
        // Nothing is written: no type is needed for those that do not say theirs.
        base.packed.read_as = Some(Dtype::F32);
    }
    let adapters = Adapters::open(&options.adapter, &options.reading)?;
    let fit = match &base {
        Some(base) => Some(Fit::new(&adapters, base, &options.reading, Whole::Compare)?),
        None => None,
    };
    if base.is_none() && adapters.layers.keys().any(|module| adapters.is_flat(module)) {
        let name = options.adapter.display();
        return Err(Failure::Call(format!(
            "--adapter {name}: a LyCORIS file needs --base, because it abbreviates modules' names"
        )));
    }
    let notes = match &fit {
        Some(fit) => fit.notes.clone(),
        None => adapters.notes.clone(),
    };
    // A flattened name says less than the base's.
    let of_base = |module: &String| {
        let layers = fit.as_ref().filter(|_| adapters.is_flat(module))?.layers.iter();
        let (tensor, _) = layers.into_iter().find(|(_, layer)| layer.module == *module)?;
        tensor.strip_suffix(".weight").map(str::to_owned)
    };
    let by_name: BTreeMap<String, LayerAdapter> = adapters
        .layers
        .iter()
        .map(|(module, layer)| (of_base(module).unwrap_or_else(|| module.clone()), layer.clone()))
        .collect();
    let report = Report::new(&options.format);
    let layers = layers(&by_name);
    let base = base.as_ref().map(|base| BaseFacts {
        path: base.path.display().to_string(),
        bytes: base.bytes(),
        files: base.files.len(),
        tensors: base.names().count(),
        adapted: layers.len(),
        packed: packed(base),
    });
    let document = Document {
        adapter: options.adapter.display().to_string(),
        format: adapters.kind,
        fan_in_fan_out: adapters.by_input.unwrap_or(false),
        notes,
        parameters: layers.iter().map(|layer| layer.parameters).sum(),
        layers,
        whole: adapters.whole.iter().map(|whole| whole.name.as_str()).collect(),
        base,
    };
    print(&report, &document)?;
    report.document(&document)
}

fn packed(base: &Base) -> Vec<Packed> {
    let (known, unknown) = base.packed.summary(&base.files);
    let of_known = |(description, summary): (String, Summary)| Packed {
        format: summary.format.name(),
        description,
        weights: summary.weights,
        bytes: summary.bytes,
    };
    let mut packed: Vec<_> = known.into_iter().map(of_known).collect();
    if let [first, ..] = &unknown[..] {
        let (description, weights) = (first.clone(), unknown.len());
        packed.push(Packed { format: "not supported", description, weights, bytes: 0 });
    }
    packed
}

fn layers(layers: &BTreeMap<String, LayerAdapter>) -> Vec<Layer<'_>> {
    let mut found = Vec::new();
    for (module, layer) in layers {
        found.push(Layer {
            module,
            shape: layer.shape(),
            rank: layer.rank(),
            scaling: layer.scaling(),
            norm_axis: axis(layer.norm()),
            parameters: layer.parameters(),
            magnitude: Magnitude::of(layer.magnitude()),
        });
    }
    found
}

impl Magnitude {
    fn of(values: &[f32]) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        Some(Self {
            least: values.iter().copied().fold(f32::INFINITY, f32::min),
            mean: values.iter().map(|&m| f64::from(m)).sum::<f64>() / values.len() as f64,
            most: values.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        })
    }
}

/// The document as a table.
fn print(report: &Report, document: &Document<'_>) -> Result<(), Failure> {
    let layers = &document.layers;
    let width = layers.iter().map(|layer| layer.module.len()).max().unwrap_or(0).max(6);
    line!(
        report,
        "{:<width$} | {:>13} | rank | scaling | axis   | parameters | magnitude: least, mean, most",
        "module",
        "shape [O, I]"
    )?;
    for Layer { module, shape, rank, scaling, norm_axis, parameters, magnitude } in layers {
        let shape = format!("{shape:?}");
        let magnitude = match magnitude {
            Some(Magnitude { least, mean, most }) => format!("{least:.4}, {mean:.4}, {most:.4}"),
            None => "-".to_owned(),
        };
        line!(
            report,
            "{module:<width$} | {shape:>13} | {rank:>4} | {scaling:>7.4} | {norm_axis:<6} | \
             {parameters:>10} | {magnitude}"
        )?;
    }
    let Document { format, parameters, .. } = document;
    line!(report, "{format}: {} layers, {parameters} parameters", layers.len())?;
    if document.fan_in_fan_out {
        line!(report, "fan_in_fan_out is true: PEFT met a module last that is stored [I, O].")?;
    }
    for note in &document.notes {
        line!(report, "{note}")?;
    }
    for tensor in &document.whole {
        line!(report, "Holds a tensor of the model itself: {tensor}")?;
    }
    if let Some(BaseFacts { path, bytes, files, tensors, adapted, packed }) = &document.base {
        line!(
            report,
            "Fits {path}: {bytes} bytes in {files} file(s), {adapted} of {tensors} tensors adapted"
        )?;
        for Packed { format, description, weights, bytes } in packed {
            let weights = count(*weights, "weight");
            match *bytes {
                0 => line!(report, "Packed, {format}: {weights}. {description}")?,
                _ => line!(report, "Packed: {weights}, {description}: {bytes} bytes with scales")?,
            }
        }
    }
    Ok(())
}
