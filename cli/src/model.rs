//! What a model's `config.json` says of its weights.

use std::path::{Path, PathBuf};

use fused_dora::Dtype;
use fused_dora::peft::{CheckpointError, QuantizationConfig};
use serde_json::Value;

pub const CONFIG: &str = "config.json";
const TIE: &str = "tie_word_embeddings";

/// A model's settings.
pub struct ModelConfig {
    pub path: PathBuf,
    settings: Value,
    /// `model_type` of the model and of its parts.
    pub types: Vec<String>,
}

impl ModelConfig {
    /// The settings next to a base's weights, if they are there.
    pub fn of(base: &Path) -> Result<Option<Self>, CheckpointError> {
        let folder = match base.is_dir() {
            true => base,
            false => fused_dora::peft::files::parent(base),
        };
        let path = folder.join(CONFIG);
        if !path.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path)
            .map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
        let settings = serde_json::from_str(&text).map_err(|error| CheckpointError::Malformed {
            path: path.clone(),
            problem: format!("is no JSON: {error}"),
        })?;
        let mut types = Vec::new();
        collect_types(&settings, &mut types);
        Ok(Some(Self { path, settings, types }))
    }

    /// Whether the model's code comes with it, so that its type says nothing about it.
    pub fn has_own_code(&self) -> bool {
        self.settings.get("auto_map").is_some_and(|map| !map.is_null())
    }

    /// Whether the model is made of an encoder and a decoder that share embeddings.
    pub fn is_encoder_decoder(&self) -> bool {
        self.settings.get("is_encoder_decoder") == Some(&Value::Bool(true))
            || self.types.iter().any(|name| name.contains("t5"))
    }

    /// Whether a loader gives the head the weight of the embedding: where the setting is absent,
    /// it is at its default, true, for any known type.
    pub fn is_tied(&self) -> bool {
        let of = |settings: &Value| settings.get(TIE).and_then(Value::as_bool);
        let text = self.settings.get("text_config").and_then(of);
        let whole = of(&self.settings);
        whole == Some(true)
            || text == Some(true)
            || whole.is_none() && text.is_none() && !self.types.is_empty()
    }

    /// How its weights are packed, if it says so.
    pub fn quantization(&self) -> Option<QuantizationConfig> {
        QuantizationConfig::of(&self.path, &self.settings)
    }

    /// The type that the model is loaded in, if it is one of ours.
    pub fn dtype(&self) -> Option<Dtype> {
        let of = |settings: &Value| {
            let name =
                ["dtype", "torch_dtype"].into_iter().find_map(|it| settings.get(it)?.as_str());
            match name? {
                "bfloat16" => Some(Dtype::Bf16),
                "float16" => Some(Dtype::F16),
                "float32" => Some(Dtype::F32),
                _ => None,
            }
        };
        of(&self.settings).or_else(|| self.settings.get("text_config").and_then(of))
    }

    /// The file's text with a `quantization_config`.
    pub fn packed(&self, quantization: Value) -> String {
        let mut settings = self.settings.clone();
        if let Value::Object(entries) = &mut settings {
            entries.insert(QuantizationConfig::SETTINGS[0].to_owned(), quantization);
        }
        format!("{settings:#}\n")
    }

    /// The file's text with untied embeddings, or with weights that are not packed.
    pub fn changed(&self, is_untied: bool, is_unpacked: bool) -> String {
        let mut settings = self.settings.clone();
        if let Value::Object(entries) = &mut settings {
            if is_untied {
                entries.insert(TIE.to_owned(), Value::Bool(false));
                if let Some(Value::Object(text)) = entries.get_mut("text_config") {
                    text.insert(TIE.to_owned(), Value::Bool(false));
                }
            }
            if is_unpacked {
                entries.retain(|name, _| !QuantizationConfig::SETTINGS.contains(&name.as_str()));
            }
        }
        if is_untied {
            untie_parts(&mut settings);
        }
        format!("{settings:#}\n")
    }
}

fn collect_types(settings: &Value, types: &mut Vec<String>) {
    let Value::Object(entries) = settings else { return };
    types.extend(entries.get("model_type").and_then(Value::as_str).map(str::to_owned));
    entries.values().for_each(|value| collect_types(value, types));
}

fn untie_parts(settings: &mut Value) {
    let Value::Object(entries) = settings else { return };
    if let Some(tie @ Value::Bool(true)) = entries.get_mut(TIE) {
        *tie = Value::Bool(false);
    }
    entries.values_mut().for_each(untie_parts);
}
