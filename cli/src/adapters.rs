//! An adapter that was read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fused_dora::peft::{
    CheckpointError, LayerAdapter, PeftCheckpoint, PeftConfig, PeftContents, PeftOptions,
    TensorFile, WholeTensor,
};

use crate::error::Failure;
use crate::options::AdapterOptions;
use crate::single::Single;

/// An adapter that was read.
pub struct Adapters {
    /// The program that wrote it.
    pub kind: &'static str,
    pub path: PathBuf,
    /// Its layers by module, as it calls them.
    pub layers: BTreeMap<String, LayerAdapter>,
    /// `fan_in_fan_out`, where it has settings.
    pub by_input: Option<bool>,
    /// Tensors of the model itself, and the file that has them.
    pub whole: Vec<WholeTensor>,
    pub file: Option<TensorFile>,
    /// What is to be said of it.
    pub notes: Vec<String>,
}

impl Adapters {
    /// Reads a folder that PEFT wrote, or one file.
    pub fn open(path: &Path, options: &AdapterOptions) -> Result<Self, Failure> {
        if !path.is_dir() {
            if let [setting, ..] = &options.ignore_setting[..] {
                return Err(Failure::Call(format!(
                    "--ignore-setting {setting}: {} has no settings",
                    path.display()
                )));
            }
            let Single { kind, layers, notes } = Single::open(path)?;
            let (path, whole) = (path.to_owned(), Vec::new());
            return Ok(Self { kind, path, layers, by_input: None, whole, file: None, notes });
        }
        check_folder(path)?;
        let options =
            PeftOptions { ignore_settings: options.ignore_setting.clone(), whole_modules: true };
        let PeftContents { checkpoint, whole, file } = PeftCheckpoint::read_with(path, &options)?;
        let PeftCheckpoint { config, layers } = checkpoint;
        let notes = options.ignore_settings.iter().map(|setting| {
            let value = config.settings().get(setting).map(ToString::to_string).unwrap_or_default();
            format!("Ignored: {setting} is {value} in {}", PeftConfig::FILE)
        });
        Ok(Self {
            kind: "PEFT",
            path: path.to_owned(),
            layers,
            by_input: Some(config.fan_in_fan_out()),
            whole,
            notes: notes.collect(),
            file: Some(file),
        })
    }

    /// Whether a module's name has `_` for each dot, so that only the base shows what is meant.
    pub fn is_flat(&self, module: &str) -> bool {
        self.by_input.is_none() && !module.contains('.')
    }
}

/// Says where PEFT's two files are, if they are not in the folder.
fn check_folder(folder: &Path) -> Result<(), Failure> {
    let has = |name: &str| folder.join(name).exists();
    let wrong = |problem: String| {
        Err(CheckpointError::Malformed { path: folder.to_owned(), problem }.into())
    };
    match (has(PeftConfig::FILE), has(PeftCheckpoint::FILE)) {
        (true, false) if has("adapter_model.bin") => {
            return wrong(format!(
                "has adapter_model.bin and no {}: load the adapter with PEFT and save it again \
                 (save_pretrained)",
                PeftCheckpoint::FILE
            ));
        }
        (true, _) => return Ok(()),
        (false, _) => {}
    }
    let read = |source| CheckpointError::Read { path: folder.to_owned(), source };
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path.join(PeftConfig::FILE).is_file() {
            folders.push(path);
        } else if path.extension().is_some_and(|ending| ending == "safetensors") {
            files.push(path);
        }
    }
    let list = |paths: &mut Vec<PathBuf>| {
        paths.sort();
        let all: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        all.join(", ")
    };
    match (folders.is_empty(), files.is_empty()) {
        (false, _) => wrong(format!(
            "has no {}, but a folder below it has: PEFT saves an adapter with a name in a folder \
             of that name. Pass --adapter {}",
            PeftConfig::FILE,
            list(&mut folders)
        )),
        (true, false) if !has(PeftCheckpoint::FILE) => wrong(format!(
            "has no {}. If a file in it is an adapter of LyCORIS, kohya or diffusers, pass \
             --adapter {}",
            PeftConfig::FILE,
            list(&mut files)
        )),
        // The system's answer names the file.
        _ => Ok(()),
    }
}
