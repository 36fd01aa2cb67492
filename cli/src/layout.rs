//! Where tensors lie in the files of an output.

use std::path::Path;

use fused_dora::Dtype;
use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::peft::{CheckpointError, TensorFile};
use serde_json::{Map, Value, json};

use crate::added::Added;
use crate::base::Base;
use crate::error::Failure;

/// One file of an output: its header, and its tensors in the order of their bytes.
pub struct Layout {
    pub header: Vec<u8>,
    pub tensors: Vec<Entry>,
}

/// A tensor of an output.
#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub dtype: Stored,
    pub shape: Vec<usize>,
    pub bytes: usize,
}

/// How files call a type.
pub fn stored(dtype: Dtype) -> Stored {
    match dtype {
        Dtype::Bf16 => Stored::BF16,
        Dtype::F16 => Stored::F16,
        Dtype::F32 => Stored::F32,
    }
}

/// The tensors of a file, in the order of their bytes.
pub fn entries(file: &TensorFile) -> impl Iterator<Item = Entry> {
    file.names().into_iter().filter_map(|name| {
        let info = file.info(&name)?;
        let bytes = info.data_offsets.1 - info.data_offsets.0;
        Some(Entry { name, dtype: info.dtype, shape: info.shape.clone(), bytes })
    })
}

impl Layout {
    /// A file of these tensors, with the metadata of another.
    pub fn new(file: &TensorFile, mut tensors: Vec<Entry>) -> Result<Self, Failure> {
        // Wide types first, as other writers have them: loaders need tensors to be aligned.
        tensors.sort_by_key(|entry| std::cmp::Reverse(entry.dtype.bitsize()));
        Ok(Self { header: header(file, &tensors)?, tensors })
    }

    /// The layout of the file of a number: that of the base, with what is added behind its tensors,
    /// and with dense weights in place of packed ones if these are unpacked.
    pub fn of(
        base: &Base,
        number: usize,
        added: &[Added],
        is_unpacked: bool,
    ) -> Result<Self, Failure> {
        let file = &base.files[number];
        let added: Vec<_> = added.iter().filter(|added| added.file == number).collect();
        let mut tensors = Vec::new();
        for mut entry in entries(file) {
            if is_unpacked && base.packed.is_part(&entry.name) {
                continue;
            }
            if is_unpacked && base.packed.contains(&entry.name) {
                let weight = base.weight(&entry.name)?;
                entry.bytes = weight.elements() * weight.dtype.bytes();
                (entry.dtype, entry.shape) = (stored(weight.dtype), weight.shape.to_vec());
            }
            tensors.push(entry);
        }
        for Added { name, dtype, shape, bytes, .. } in &added {
            let (name, shape) = (name.clone(), shape.clone());
            tensors.push(Entry { name, dtype: *dtype, shape, bytes: *bytes });
        }
        if added.is_empty() && !is_unpacked {
            return Ok(Self { header: file.header().to_vec(), tensors });
        }
        match is_unpacked {
            true => Self::new(file, tensors),
            false => Ok(Self { header: header(file, &tensors)?, tensors }),
        }
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.header.len() as u64 + self.tensors.iter().map(|it| it.bytes as u64).sum::<u64>()
    }
}

/// A header for these tensors, with the metadata of a file's.
fn header(file: &TensorFile, tensors: &[Entry]) -> Result<Vec<u8>, Failure> {
    let malformed = |error: serde_json::Error| CheckpointError::Malformed {
        path: file.path().to_owned(),
        problem: format!("has a header that cannot be changed: {error}"),
    };
    let mut old: Map<String, Value> =
        serde_json::from_slice(&file.header()[8..]).map_err(malformed)?;
    let mut entries = Map::new();
    if let Some(metadata) = old.remove("__metadata__") {
        entries.insert("__metadata__".to_owned(), metadata);
    }
    let mut start = 0;
    for Entry { name, dtype, shape, bytes } in tensors {
        let offsets = [start, start + bytes];
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        entries.insert(name.clone(), entry);
        start += bytes;
    }
    let mut text = serde_json::to_vec(&entries).map_err(malformed)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
}

/// The text of an index for these files.
pub fn index(path: &Path, base: &Base, layouts: &[Layout]) -> Result<String, Failure> {
    let read = |source| CheckpointError::Read { path: path.to_owned(), source };
    let malformed = |error: serde_json::Error| CheckpointError::Malformed {
        path: path.to_owned(),
        problem: format!("is no index of a checkpoint: {error}"),
    };
    let text = std::fs::read_to_string(path).map_err(read)?;
    let mut index: Value = serde_json::from_str(&text).map_err(malformed)?;
    let (mut map, mut change) = (Map::new(), 0);
    let known = index["weight_map"].take();
    for (file, layout) in base.files.iter().zip(layouts) {
        let name = file.path().file_name().unwrap_or_default().to_string_lossy();
        change += layout.bytes() as i64 - layout.header.len() as i64 - data_bytes(file) as i64;
        for Entry { name: tensor, .. } in &layout.tensors {
            // Tensors that the base's index leaves out stay out of it.
            if known.get(tensor).is_some() || file.info(tensor).is_none() {
                map.insert(tensor.clone(), json!(name));
            }
        }
    }
    index["weight_map"] = map.into();
    if let Some(total) = index["metadata"]["total_size"].as_i64() {
        index["metadata"]["total_size"] = json!(total + change);
    }
    Ok(format!("{index:#}\n"))
}

fn data_bytes(file: &TensorFile) -> usize {
    file.names().last().and_then(|name| file.info(name)).map_or(0, |info| info.data_offsets.1)
}
