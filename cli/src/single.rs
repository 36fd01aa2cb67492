//! Adapters in one file without settings: of LyCORIS, kohya's scripts, diffusers, SimpleTuner and
//! ai-toolkit.

use std::collections::BTreeMap;
use std::path::Path;

use fused_dora::peft::names::foreign;
use fused_dora::peft::{
    CheckpointError, LayerAdapter, PeftConfig, TensorFile, lycoris_modules, read_lycoris,
};
use serde_json::{Map, Value};

use crate::error::Failure;

/// Where diffusers keeps the settings of an adapter.
const METADATA: &str = "lora_adapter_metadata";

/// What was read.
pub struct Single {
    pub kind: &'static str,
    pub layers: BTreeMap<String, LayerAdapter>,
    /// What is to be said of it.
    pub notes: Vec<String>,
}

impl Single {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let file = TensorFile::open(path)?;
        let names = file.names();
        check_writer(&file, &names)?;
        let modules = lycoris_modules(&file);
        let by_name = modules.iter().map(|(name, shape)| (name.as_str(), *shape));
        let mut layers = read_lycoris(&file, by_name)?;
        let is_pefts = names.iter().any(|name| name.contains(".lora_A."));
        let mut notes = Vec::new();
        let settings = settings(&file)?;
        let without: Vec<_> = layers
            .keys()
            .filter(|module| !names.contains(&format!("{module}.alpha")))
            .cloned()
            .collect();
        let mut plain = 0;
        for module in &without {
            let Some(settings) = settings.as_ref().and_then(|all| of_component(all, module)) else {
                plain += 1;
                continue;
            };
            let (config, name) = settings_of(path, &settings.0, settings.1)?;
            let layer = &layers[module];
            if config.rank(&name) != layer.rank() {
                let problem = format!(
                    "has the rank {} in the settings of {METADATA}, and {} in its tensors: are \
                     they of one adapter?",
                    config.rank(&name),
                    layer.rank()
                );
                return Err(CheckpointError::Layer { layer: module.clone(), problem }.into());
            }
            let scaled = rescaled(module, layer, config.scaling(&name))?;
            layers.insert(module.clone(), scaled);
        }
        if plain > 0 {
            notes.push(format!(
                "{} has no alpha and no settings for {plain} of {} modules: their s is 1",
                path.display(),
                layers.len()
            ));
        } else if !without.is_empty() {
            notes.push(format!("s is that of the file's metadata ({METADATA})"));
        }
        let kind = if is_pefts { "diffusers" } else { "LyCORIS" };
        Ok(Self { kind, layers, notes })
    }
}

/// Refuses files of programs that name or store tensors in another way.
fn check_writer(file: &TensorFile, names: &[String]) -> Result<(), Failure> {
    let malformed = |problem: String| {
        Err(CheckpointError::Malformed { path: file.path().to_owned(), problem }.into())
    };
    if names.iter().any(|name| name.contains("lora_") && name.contains("base_model.model.")) {
        let settings = fused_dora::peft::files::parent(file.path()).join(PeftConfig::FILE);
        return malformed(match settings.is_file() {
            true => {
                format!("was written by PEFT: name the folder, which also has {}", PeftConfig::FILE)
            }
            false => format!(
                "was written by PEFT, and the scaling of its layers is in {}, which is not next to \
                 it: copy that file into the folder, and name the folder",
                PeftConfig::FILE
            ),
        });
    }
    match names.iter().find_map(|name| Some((name, foreign(name)?))) {
        Some((name, reason)) => Err(CheckpointError::UnexpectedTensor {
            path: file.path().to_owned(),
            tensor: name.clone(),
            reason: reason.to_owned(),
        }
        .into()),
        None => Ok(()),
    }
}

/// The settings in the file's metadata: those of each component, with its name in front.
fn settings(file: &TensorFile) -> Result<Option<Map<String, Value>>, CheckpointError> {
    let Some(text) = file.metadata().and_then(|metadata| metadata.get(METADATA)) else {
        return Ok(None);
    };
    serde_json::from_str(text).map(Some).map_err(|error| CheckpointError::Malformed {
        path: file.path().to_owned(),
        problem: format!("has a {METADATA} that is no JSON object: {error}"),
    })
}

/// A module's component and its settings.
fn of_component(all: &Map<String, Value>, module: &str) -> Option<(Map<String, Value>, String)> {
    let component = module.split('.').next()?;
    let prefix = format!("{component}.");
    let of = all
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(&prefix)?.to_owned(), value.clone())));
    let settings: Map<String, Value> = of.collect();
    (settings.contains_key("r") || settings.contains_key("lora_alpha"))
        .then(|| (settings, module[prefix.len()..].to_owned()))
}

fn settings_of(
    path: &Path,
    settings: &Map<String, Value>,
    module: String,
) -> Result<(PeftConfig, String), Failure> {
    let get = |name: &str| settings.get(name).cloned().unwrap_or(Value::Null);
    let wrong = |name: &str| {
        Failure::from(CheckpointError::Setting {
            path: path.to_owned(),
            setting: name.to_owned(),
            value: get(name).to_string(),
            remedy: format!("{METADATA} must have a number here"),
        })
    };
    let rank = get("r").as_u64().ok_or_else(|| wrong("r"))? as usize;
    let alpha = get("lora_alpha").as_f64().ok_or_else(|| wrong("lora_alpha"))?;
    let config = PeftConfig::new(rank, alpha, false)?
        .with("use_rslora", get("use_rslora"))?
        .with("rank_pattern", get("rank_pattern"))?
        .with("alpha_pattern", get("alpha_pattern"))?;
    Ok((config, module))
}

fn rescaled(module: &str, layer: &LayerAdapter, scaling: f32) -> Result<LayerAdapter, Failure> {
    let [a, b, m] = [layer.lora_a(), layer.lora_b(), layer.magnitude()].map(<[f32]>::to_vec);
    LayerAdapter::new(layer.shape(), layer.rank(), scaling, layer.norm(), a, b, m).map_err(
        |error| {
            let (layer, problem) = (module.to_owned(), error.to_string());
            CheckpointError::Layer { layer, problem }.into()
        },
    )
}
