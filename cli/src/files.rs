//! The files of a model's folder that are no weights: they go along to the output.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fused_dora::peft::CheckpointError;
use serde::Serialize;

use crate::base::Base;
use crate::error::Failure;

/// Endings of weights in other formats, and of what belongs to them.
const WEIGHTS: [&str; 23] = [
    "bin",
    "ckpt",
    "data",
    "engine",
    "ggml",
    "gguf",
    "h5",
    "keras",
    "llamafile",
    "mlmodel",
    "mlpackage",
    "msgpack",
    "nemo",
    "npz",
    "onnx",
    "onnx_data",
    "ot",
    "pb",
    "pkl",
    "pt",
    "pth",
    "tflite",
    "distcp",
];

/// A file of the base that is not in the output.
#[derive(Debug, Serialize)]
pub struct LeftOut {
    /// Below the base.
    pub path: String,
    pub reason: &'static str,
}

/// What is copied, by names below the base, and what is not.
#[derive(Default)]
pub struct Others {
    pub copied: Vec<PathBuf>,
    pub left_out: Vec<LeftOut>,
}

impl Others {
    /// Looks through a base's folder; `adapter` may lie in it and stays out of the output.
    pub fn of(base: &Base, adapter: &Path) -> Result<Self, Failure> {
        let mut others = Self::default();
        if !base.is_folder() {
            return Ok(others);
        }
        let search = Search {
            written: base.files.iter().map(|file| file.path().to_owned()).collect(),
            index: base.index.as_deref(),
            adapter: adapter.canonicalize().ok(),
            parts: parts(&base.path),
            root: &base.path,
        };
        search.folder(Path::new(""), &mut others)?;
        others.copied.sort();
        others.left_out.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(others)
    }
}

/// The folders of a sentence transformer's other modules, which have weights of their own.
fn parts(folder: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(folder.join("modules.json")).unwrap_or_default();
    let modules: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap_or_default();
    let path = |module: &serde_json::Value| module.get("path")?.as_str().map(PathBuf::from);
    modules.iter().filter_map(path).filter(|path| !path.as_os_str().is_empty()).collect()
}

struct Search<'a> {
    root: &'a Path,
    written: BTreeSet<PathBuf>,
    index: Option<&'a Path>,
    adapter: Option<PathBuf>,
    parts: Vec<PathBuf>,
}

impl Search<'_> {
    fn folder(&self, within: &Path, others: &mut Others) -> Result<(), Failure> {
        let folder = self.root.join(within);
        let read = |source| CheckpointError::Read { path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(read)? {
            let name = within.join(entry.map_err(read)?.file_name());
            let path = self.root.join(&name);
            if self.written.contains(&path) || self.index == Some(path.as_path()) {
                continue;
            }
            match self.reason(&name, &path) {
                Some(reason) => {
                    others.left_out.push(LeftOut { path: name.display().to_string(), reason });
                }
                None if path.is_dir() => self.folder(&name, others)?,
                None => others.copied.push(name),
            }
        }
        Ok(())
    }

    /// Why something is not copied.
    fn reason(&self, name: &Path, path: &Path) -> Option<&'static str> {
        let file = name.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let has_ending =
            |ending: &str| file.strip_suffix(ending).is_some_and(|before| before.ends_with('.'));
        let is_link = path.is_symlink();
        if file.starts_with('.') {
            return Some("hidden");
        }
        if self.adapter.as_ref().is_some_and(|it| path.canonicalize().is_ok_and(|at| at == *it)) {
            return Some("the adapter");
        }
        if is_link && !path.exists() {
            return Some("a link to a file that is not there");
        }
        if path.is_dir() {
            let is_weights = has_ending("mlpackage") || has_ending("mlmodelc");
            return match is_link {
                true => Some("a link to a folder"),
                false => is_weights.then_some("weights in another format"),
            };
        }
        if !path.is_file() {
            return Some("no file");
        }
        if file.starts_with("adapter_config.") || file.starts_with("adapter_model.") {
            return Some("of an adapter, which loaders would apply to the output again");
        }
        if self.parts.iter().any(|part| name.starts_with(part)) {
            return None;
        }
        if has_ending("safetensors") {
            return Some("weights that are not among those that were read");
        }
        if file.ends_with(".index.json") {
            return Some("an index of other weights");
        }
        WEIGHTS.into_iter().any(has_ending).then_some("weights in another format")
    }
}
