//! A base model's checkpoint: one safetensors file, or a folder of them.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use fused_dora::peft::{CheckpointError, TensorFile};
use serde::Deserialize;

use crate::model::ModelConfig;
use crate::packed::Packed;
use crate::weight::Weight;

/// What a folder's weights are called, without an index.
const SINGLES: [&str; 2] = ["model.safetensors", "diffusion_pytorch_model.safetensors"];
const INDEX_END: &str = ".safetensors.index.json";

/// An open checkpoint.
pub struct Base {
    /// As it was named.
    pub path: PathBuf,
    /// Its files, by the order of their names.
    pub files: Vec<TensorFile>,
    /// Which of them has a tensor.
    tensors: BTreeMap<String, usize>,
    /// The index that named them, if there is one.
    pub index: Option<PathBuf>,
    /// What is to be said of the files.
    pub note: Option<String>,
    /// Its settings, if they are there.
    pub config: Option<ModelConfig>,
    /// Its packed weights.
    pub packed: Packed,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Base {
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let Found { index, files: mut paths, note } = match path.is_dir() {
            true => Found::in_folder(path)?,
            false => Found { index: None, files: vec![path.to_owned()], note: None },
        };
        let map = index.as_deref().map(read_index).transpose()?;
        if let Some(map) = &map {
            paths = map.values().map(|file| path.join(file)).collect();
            let single = path.join(SINGLES[0]);
            if single.is_file() && !paths.contains(&single) {
                let problem = format!(
                    "is there, and so is {}, which names other files: loaders take the first. \
                     Move away the one that is not meant, or name a file as --base",
                    index.as_ref().map_or_else(String::new, |index| index.display().to_string())
                );
                return Err(CheckpointError::Malformed { path: single, problem });
            }
        }
        paths.sort();
        paths.dedup();
        let files = paths.into_iter().map(TensorFile::open).collect::<Result<Vec<_>, _>>()?;
        let mut tensors = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(other) = tensors.insert(name.clone(), number) {
                    let problem = format!(
                        "and {} both hold `{name}`: which one is meant is not known",
                        files[other].path().display()
                    );
                    let path = file.path().to_owned();
                    return Err(CheckpointError::Malformed { path, problem });
                }
            }
        }
        let index_path = index.clone();
        let index = index.unwrap_or_default();
        for (tensor, file) in map.into_iter().flatten() {
            let file = path.join(file);
            let found = tensors.get(&tensor).map(|&number| files[number].path());
            if found != Some(&file) {
                let reason = format!("{} says that it is there", index.display());
                return Err(CheckpointError::MissingTensor { path: file, tensor, reason });
            }
        }
        let config = ModelConfig::of(path)?;
        let packed = Packed::of(&files, config.as_ref());
        let (path, index) = (path.to_owned(), index_path);
        Ok(Self { path, files, tensors, index, note, config, packed })
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

    /// The base's own text of a tensor's name, if it has the tensor.
    pub fn tensor(&self, name: &str) -> Option<&str> {
        self.tensors.get_key_value(name).map(|(name, _)| name.as_str())
    }

    /// The number of a tensor's file.
    pub fn number(&self, tensor: &str) -> Option<usize> {
        self.tensors.get(tensor).copied()
    }

    /// The file of a tensor.
    pub fn file(&self, tensor: &str) -> Option<&TensorFile> {
        self.tensors.get(tensor).map(|&number| &self.files[number])
    }

    /// The shape of a tensor, of what a packed one stands for.
    pub fn shape(&self, tensor: &str) -> Vec<usize> {
        match self.packed.known(tensor) {
            Some(packed) => packed.shape().to_vec(),
            None => {
                let info = self.file(tensor).and_then(|file| file.info(tensor));
                info.map(|info| info.shape.clone()).unwrap_or_default()
            }
        }
    }

    /// A matrix of floating-point numbers, if the tensor is one or stands for one.
    pub fn matrix(&self, tensor: &str) -> Option<Weight<'_>> {
        self.weight(tensor).ok().filter(|_| !self.packed.is_part(tensor))
    }

    /// A matrix of floating-point numbers, or why the tensor is none.
    pub fn weight(&self, tensor: &str) -> Result<Weight<'_>, CheckpointError> {
        let Some((name, &number)) = self.tensors.get_key_value(tensor) else {
            let (path, tensor) = (self.path.clone(), tensor.to_owned());
            let reason = "it was asked for".to_owned();
            return Err(CheckpointError::MissingTensor { path, tensor, reason });
        };
        let file = &self.files[number];
        match self.packed.find(&self.files, name)? {
            Some(packed) => {
                let dtype = self.packed.dtype(file, name, packed)?;
                Ok(Weight::packed(file, name, packed, &self.files, dtype))
            }
            None => Weight::new(file, name),
        }
    }
}

/// The files of weights in a folder.
struct Found {
    index: Option<PathBuf>,
    files: Vec<PathBuf>,
    note: Option<String>,
}

impl Found {
    fn in_folder(folder: &Path) -> Result<Self, CheckpointError> {
        let read = |source| CheckpointError::Read { path: folder.to_owned(), source };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(read)? {
            names.push(entry.map_err(read)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        let wrong =
            |problem: String| Err(CheckpointError::Malformed { path: folder.to_owned(), problem });
        let list = |names: &[&String]| {
            names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        };
        let is_adapter = |name: &str| name.starts_with("adapter_model.");
        let indices: Vec<_> = names.iter().filter(|name| name.ends_with(INDEX_END)).collect();
        let weights: Vec<_> = names
            .iter()
            .filter(|name| name.ends_with(".safetensors") && !is_adapter(name))
            .collect();
        match indices[..] {
            [index] => {
                return Ok(Self { index: Some(folder.join(index)), files: vec![], note: None });
            }
            [] => {}
            _ => {
                return wrong(format!(
                    "has the indices {}: name one safetensors file as --base, or move away those \
                     that are not meant",
                    list(&indices)
                ));
            }
        }
        let one = |name: &str, note| Ok(Self { index: None, files: vec![folder.join(name)], note });
        if let Some(single) =
            SINGLES.iter().find(|single| names.iter().any(|name| name == **single))
        {
            return one(single, None);
        }
        let shards: Vec<_> = weights.iter().filter_map(|name| Shard::of(name)).collect();
        if let Some(first) = shards.first() {
            let is_of_first =
                |shard: &Shard<'_>| (shard.stem, shard.count) == (first.stem, first.count);
            let missing: Vec<_> = (1..=first.count)
                .filter(|number| !shards.iter().any(|shard| shard.number == *number))
                .map(|number| number.to_string())
                .collect();
            if !shards.iter().all(is_of_first) || !missing.is_empty() || shards.len() != first.count
            {
                return wrong(format!(
                    "has no index ({}{INDEX_END}), and of the {} files of a model it has only {}; \
                     missing: number {}. Download them all, and the index",
                    first.stem,
                    first.count,
                    list(&weights),
                    missing.join(", ")
                ));
            }
            let note = format!("No index: all {} files are read.", first.count);
            let files = shards.iter().map(|shard| folder.join(shard.name)).collect();
            return Ok(Self { index: None, files, note: Some(note) });
        }
        match weights[..] {
            [only] => {
                one(only, Some(format!("`{only}` is the only safetensors file, and is read.")))
            }
            [] => {
                let others = names.iter().filter(|name| {
                    [".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".ckpt", ".npz"]
                        .iter()
                        .any(|ending| name.ends_with(ending))
                });
                let others: Vec<_> = others.collect();
                let below = names.iter().filter(|name| {
                    let files = std::fs::read_dir(folder.join(name)).into_iter().flatten();
                    files.flatten().any(|file| {
                        let name = file.file_name().to_string_lossy().into_owned();
                        name.ends_with(".safetensors") && !is_adapter(&name)
                    })
                });
                let below: Vec<_> = below.collect();
                let found = match others[..] {
                    _ if !below.is_empty() => {
                        return wrong(format!(
                            "has no weights, but its folders have: {}. Name the one that the \
                             adapter is for",
                            list(&below)
                        ));
                    }
                    [] => "no weights at all".to_owned(),
                    _ => format!("weights in other formats: {}", list(&others)),
                };
                wrong(format!(
                    "has no model.safetensors and no model{INDEX_END}, but {found}. Save the model \
                     as safetensors (transformers: save_pretrained), or name a safetensors file"
                ))
            }
            _ => wrong(format!(
                "has no model.safetensors and no model{INDEX_END}, but {}: name one of them as \
                 --base",
                list(&weights)
            )),
        }
    }
}

/// A file's place among those of a model.
struct Shard<'a> {
    name: &'a str,
    stem: &'a str,
    number: usize,
    count: usize,
}

impl<'a> Shard<'a> {
    /// By a name like `model-00001-of-00002.safetensors`.
    fn of(name: &'a str) -> Option<Self> {
        let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        Some(Self { name, stem, number: number.parse().ok()?, count: count.parse().ok()? })
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
