//! An adapter's layers, by the tensors of the base that they adapt.

use std::collections::BTreeMap;
use std::path::Path;

use fused_dora::peft::{
    CheckpointError, LayerAdapter, PeftCheckpoint, PeftConfig, TensorFile, read_lycoris,
};

use crate::base::Base;
use crate::error::Failure;
use crate::weight::Weight;

/// An adapter that was read.
pub struct Adapters {
    /// The program that wrote it.
    pub kind: &'static str,
    /// Its layers by module.
    pub layers: BTreeMap<String, LayerAdapter>,
    /// Whether the base stores its weights `[I, O]`.
    pub by_input: bool,
}

impl Adapters {
    /// Reads a folder that PEFT wrote, or a LyCORIS file, which needs the base for its names.
    pub fn open(path: &Path, base: Option<&Base>) -> Result<Self, Failure> {
        if path.is_dir() {
            let PeftCheckpoint { config, layers } = PeftCheckpoint::read(path)?;
            return Ok(Self { kind: "PEFT", layers, by_input: config.fan_in_fan_out() });
        }
        let file = TensorFile::open(path)?;
        if file.names().iter().any(|name| name.contains("lora_A")) {
            let problem = format!(
                "was written by PEFT: name the folder, which also has {}",
                PeftConfig::FILE
            );
            return Err(CheckpointError::Malformed { path: path.to_owned(), problem }.into());
        }
        let Some(base) = base else {
            let name = path.display();
            return Err(Failure::Call(format!(
                "--adapter {name}: a LyCORIS file needs --base, because it abbreviates modules' names"
            )));
        };
        let modules = base.names().filter_map(|tensor| {
            let module = tensor.strip_suffix(".weight")?;
            Some((module, base.matrix(tensor)?.shape))
        });
        let layers = read_lycoris(&file, modules)?;
        Ok(Self { kind: "LyCORIS", layers, by_input: false })
    }

    /// The layers by the tensors that they adapt, as the base stores those; each of them is there,
    /// and fits.
    pub fn for_base(&self, base: &Base) -> Result<BTreeMap<String, LayerAdapter>, CheckpointError> {
        let mut layers = BTreeMap::new();
        for (module, layer) in &self.layers {
            let layer = match self.by_input {
                true => layer.transposed(),
                false => layer.clone(),
            };
            let tensor = format!("{module}.weight");
            let Some(file) = base.file(&tensor) else {
                return Err(missing(base, module, tensor));
            };
            let weight = Weight::new(file, &tensor)?;
            let [rows, columns] = layer.shape();
            if weight.shape != layer.shape() {
                return Err(CheckpointError::Shape {
                    path: file.path().to_owned(),
                    found: weight.shape.to_vec(),
                    needed: format!(
                        "the adapter is for [{rows}, {columns}] (fan_in_fan_out is {}): is it for \
                         another model?",
                        self.by_input
                    ),
                    tensor,
                });
            }
            layers.insert(tensor, layer);
        }
        Ok(layers)
    }
}

fn missing(base: &Base, module: &str, tensor: String) -> CheckpointError {
    let packed = ["qweight", "weight_packed", "weight.absmax"];
    let quantised = packed.iter().map(|part| format!("{module}.{part}"));
    let reason = match quantised.into_iter().find(|name| base.file(name).is_some()) {
        Some(name) => {
            format!("the base is quantised (it has `{name}`): name the model it was made from")
        }
        None => "the adapter changes it: is it for another model?".to_owned(),
    };
    CheckpointError::MissingTensor { path: base.path.clone(), tensor, reason }
}
