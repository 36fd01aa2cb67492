//! A base's packed weights: what they are read as.

use std::collections::{BTreeMap, BTreeSet};

use fused_dora::Dtype;
use fused_dora::peft::{CheckpointError, PackedModules, QuantizedTensor, TensorFile};
use fused_dora::quant::WeightFormat;

use crate::model::ModelConfig;

/// A base's packed weights.
pub struct Packed {
    modules: PackedModules,
    /// By the name of the weight; nothing where the tensors make no weight that can be read.
    weights: BTreeMap<String, Option<QuantizedTensor>>,
    /// The tensors that belong to these, without the weights' own.
    parts: BTreeSet<String>,
    /// The type to read them as: by default, that from which they were packed.
    pub read_as: Option<Dtype>,
    /// The model's type, for formats that do not say it.
    dtype: Option<Dtype>,
}

impl Packed {
    pub fn of(files: &[TensorFile], config: Option<&ModelConfig>) -> Self {
        let modules = PackedModules::new(files, config.and_then(ModelConfig::quantization));
        let weight = |module: &str| (format!("{module}.weight"), modules.find(files, module).ok());
        let weights: BTreeMap<_, _> = modules.names().map(weight).collect();
        let parts = weights.values().flatten().flat_map(|weight| &weight.keys()[1..]);
        let parts = parts.cloned().collect();
        let dtype = config.and_then(ModelConfig::dtype);
        Self { modules, weights, parts, read_as: None, dtype }
    }

    /// The names of all packed weights.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.weights.keys().map(String::as_str)
    }

    /// Whether a tensor is a packed weight, in whatever way.
    pub fn contains(&self, tensor: &str) -> bool {
        self.weights.contains_key(tensor)
    }

    /// Whether a tensor belongs to a packed weight and is not the weight's own.
    pub fn is_part(&self, tensor: &str) -> bool {
        self.parts.contains(tensor)
    }

    /// A packed weight that can be read.
    pub fn known(&self, tensor: &str) -> Option<&QuantizedTensor> {
        self.weights.get(tensor)?.as_ref()
    }

    /// The packed weight of a tensor, nothing where it is dense, and why it cannot be read.
    pub fn find(
        &self,
        files: &[TensorFile],
        tensor: &str,
    ) -> Result<Option<&QuantizedTensor>, CheckpointError> {
        match self.weights.get(tensor) {
            None => Ok(None),
            Some(Some(weight)) => Ok(Some(weight)),
            Some(None) => {
                let module = tensor.trim_end_matches(".weight");
                let file = files.iter().find(|file| file.info(tensor).is_some());
                let path = file.or(files.first()).map(|file| file.path().to_owned());
                Err(self.modules.find(files, module).err().unwrap_or(CheckpointError::Malformed {
                    path: path.unwrap_or_default(),
                    problem: format!("`{tensor}` changes while it is read"),
                }))
            }
        }
    }

    /// The type that a weight is read as.
    pub fn dtype(
        &self,
        file: &TensorFile,
        tensor: &str,
        weight: &QuantizedTensor,
    ) -> Result<Dtype, CheckpointError> {
        let dtype = self.read_as.or(weight.state()).or(self.dtype);
        dtype.ok_or_else(|| CheckpointError::Malformed {
            path: file.path().to_owned(),
            problem: format!(
                "`{tensor}` is packed as {} and does not say from which type, nor does a config.json: \
                 pass --dtype",
                weight.format().name()
            ),
        })
    }

    /// The formats, with the number of weights and their bytes; what cannot be read, and why.
    pub fn summary(&self, files: &[TensorFile]) -> (BTreeMap<String, Summary>, Vec<String>) {
        let (mut known, mut unknown) = (BTreeMap::<String, Summary>::new(), Vec::new());
        for (tensor, weight) in &self.weights {
            let Some(weight) = weight else {
                let error = self.find(files, tensor).err();
                unknown.extend(error.map(|error| error.to_string()));
                continue;
            };
            let format = weight.format();
            let summary =
                known.entry(format.to_string()).or_insert(Summary { format, weights: 0, bytes: 0 });
            summary.weights += 1;
            summary.bytes += weight.bytes(files);
        }
        (known, unknown)
    }
}

/// The weights of one format.
pub struct Summary {
    pub format: WeightFormat,
    pub weights: usize,
    pub bytes: usize,
}
