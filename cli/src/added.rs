//! Tensors that an output has and its base has not: a head that is no longer tied, and modules that
//! the adapter adds.

use std::path::Path;

use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::peft::{CheckpointError, TensorFile};
use serde_json::{Map, Value, json};

use crate::adapters::Adapters;
use crate::base::Base;
use crate::error::Failure;
use crate::fit::Fit;

/// A tensor that is written behind those of a file.
pub struct Added {
    pub name: String,
    /// The file, by its number.
    pub file: usize,
    pub dtype: Stored,
    shape: Vec<usize>,
    bytes: usize,
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

/// A file's header with more tensors.
pub fn header(file: &TensorFile, added: &[&Added]) -> Result<Vec<u8>, Failure> {
    let malformed = |error: serde_json::Error| CheckpointError::Malformed {
        path: file.path().to_owned(),
        problem: format!("has a header that cannot be extended: {error}"),
    };
    let mut entries: Map<String, Value> =
        serde_json::from_slice(&file.header()[8..]).map_err(malformed)?;
    let mut end =
        file.names().last().and_then(|name| file.info(name)).map_or(0, |it| it.data_offsets.1);
    for Added { name, dtype, shape, bytes, .. } in added {
        let offsets = [end, end + bytes];
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        entries.insert(name.clone(), entry);
        end += bytes;
    }
    let mut text = serde_json::to_vec(&entries).map_err(malformed)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
}

/// An index with more tensors.
pub fn index(path: &Path, base: &Base, added: &[Added]) -> Result<String, Failure> {
    let read = |source| CheckpointError::Read { path: path.to_owned(), source };
    let malformed = |error: serde_json::Error| CheckpointError::Malformed {
        path: path.to_owned(),
        problem: format!("is no index of a checkpoint: {error}"),
    };
    let text = std::fs::read_to_string(path).map_err(read)?;
    let mut index: Value = serde_json::from_str(&text).map_err(malformed)?;
    for Added { name, file, bytes, .. } in added {
        let file = base.files[*file].path().file_name().unwrap_or_default();
        index["weight_map"][name] = json!(file.to_string_lossy());
        if let Some(total) = index["metadata"]["total_size"].as_u64() {
            index["metadata"]["total_size"] = json!(total + *bytes as u64);
        }
    }
    Ok(format!("{index:#}\n"))
}
