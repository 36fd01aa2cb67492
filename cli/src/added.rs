//! Tensors that an output has and its base has not: a head that is no longer tied, and modules that
//! the adapter adds.

use fused_dora::peft::TensorFile;
use fused_dora::peft::safetensors::Dtype as Stored;

use crate::adapters::Adapters;
use crate::base::Base;
use crate::fit::Fit;

/// A tensor that is written behind those of a file.
pub struct Added {
    pub name: String,
    /// The file, by its number.
    pub file: usize,
    pub dtype: Stored,
    pub shape: Vec<usize>,
    pub bytes: usize,
}

/// What a merge adds.
pub fn of(base: &Base, adapters: &Adapters, fit: &Fit) -> Vec<Added> {
    let add = |name: &String, from: &TensorFile, stored: &str, file| {
        let info = from.info(stored)?;
        let bytes = info.data_offsets.1 - info.data_offsets.0;
        let (name, dtype, shape) = (name.clone(), info.dtype, info.shape.clone());
        Some(Added { name, file, dtype, shape, bytes })
    };
    let heads = fit.layers.iter().filter(|(tensor, layer)| **tensor != layer.source);
    let heads = heads.filter_map(|(tensor, layer)| {
        let number = base.number(&layer.source)?;
        add(tensor, &base.files[number], &layer.source, number)
    });
    let whole = fit.replacements.iter().filter(|(_, replacement)| replacement.is_added);
    let whole = whole.filter_map(|(tensor, replacement)| {
        add(tensor, adapters.file.as_ref()?, &replacement.stored, base.files.len() - 1)
    });
    heads.chain(whole).collect()
}
