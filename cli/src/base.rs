//! A base model's checkpoint: one safetensors file, or a folder of them.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use fused_dora::peft::{CheckpointError, TensorFile};
use serde::Deserialize;

use crate::weight::Weight;

const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";

/// An open checkpoint.
pub struct Base {
    /// As it was named.
    pub path: PathBuf,
    /// Its files, by the order of their names.
    pub files: Vec<TensorFile>,
    /// Which of them has a tensor.
    tensors: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Base {
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let index = path.join(INDEX);
        let map = match path.is_dir() {
            true if index.is_file() => Some(read_index(&index)?),
            _ => None,
        };
        let mut paths = match &map {
            Some(map) => map.values().map(|file| path.join(file)).collect(),
            None if path.is_dir() => vec![path.join(SINGLE)],
            None => vec![path.to_owned()],
        };
        paths.sort();
        paths.dedup();
        let files = paths.into_iter().map(TensorFile::open).collect::<Result<Vec<_>, _>>()?;
        let mut tensors = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            tensors.extend(file.names().into_iter().map(|name| (name, number)));
        }
        for (tensor, file) in map.into_iter().flatten() {
            let file = path.join(file);
            let found = tensors.get(&tensor).map(|&number| files[number].path());
            if found != Some(&file) {
                let reason = format!("{} says that it is there", index.display());
                return Err(CheckpointError::MissingTensor { path: file, tensor, reason });
            }
        }
        Ok(Self { path: path.to_owned(), files, tensors })
    }

    /// Whether it is a folder.
    pub fn is_folder(&self) -> bool {
        self.path.is_dir()
    }

    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        let file = |file: &TensorFile| {
            let names = file.names();
            let last = names.last().and_then(|name| file.info(name));
            file.header().len() as u64 + last.map_or(0, |info| info.data_offsets.1 as u64)
        };
        self.files.iter().map(file).sum()
    }

    /// The names of its tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The file of a tensor.
    pub fn file(&self, tensor: &str) -> Option<&TensorFile> {
        self.tensors.get(tensor).map(|&number| &self.files[number])
    }

    /// A matrix of floating-point numbers, if the tensor is one.
    pub fn matrix(&self, tensor: &str) -> Option<Weight<'_>> {
        let (name, &number) = self.tensors.get_key_value(tensor)?;
        Weight::new(&self.files[number], name).ok()
    }
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let read = |source| CheckpointError::Read { path: path.to_owned(), source };
    let malformed = |problem| CheckpointError::Malformed { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path).map_err(read)?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|error| malformed(format!("is no index of a checkpoint: {error}")))?;
    for file in index.weight_map.values() {
        let mut parts = Path::new(file).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            let problem = format!("names the file `{file}`: it must be in the same folder");
            return Err(malformed(problem));
        }
    }
    match index.weight_map.is_empty() {
        true => Err(malformed("names no tensors".to_owned())),
        false => Ok(index.weight_map),
    }
}
