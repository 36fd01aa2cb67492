//! What a model's `config.json` says of its packed weights.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::peft::CheckpointError;
use crate::quant::Code4;

/// The `quantization_config` of a model's `config.json`: the arbiter of what its packed tensors mean.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizationConfig {
    pub(super) path: PathBuf,
    pub(super) method: Method,
    /// `quant_method`, as JSON.
    name: String,
}

/// How the weights are packed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Method {
    /// bitsandbytes' 4 bits, and the code where it is named.
    Bits4(Option<Code4>),
    /// bitsandbytes' int8.
    Int8,
    /// fp8 e4m3, with scales of these kinds.
    Fp8(Fp8Kinds),
    /// One that cannot be read here: the setting that says so, and its value.
    Other { setting: String, value: String },
}

/// Which kinds of fp8 scales there may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fp8Kinds {
    pub tensor: bool,
    pub rows: bool,
    pub block: Option<[u16; 2]>,
}

impl Fp8Kinds {
    /// Those of a file that nothing else describes.
    pub const ANY: Self = Self { tensor: true, rows: true, block: Some([128, 128]) };
}

impl QuantizationConfig {
    /// The settings of `config.json` that describe packed weights: the second is an older name.
    pub const SETTINGS: [&str; 2] = ["quantization_config", "compression_config"];

    /// Reads `config.json`; nothing where it has no `quantization_config`.
    ///
    /// A method that is not known is no error here: it is one when a packed tensor is looked for.
    ///
    /// # Errors
    /// [`CheckpointError::Read`]; [`CheckpointError::Malformed`] if it is no JSON.
    pub fn read(path: impl AsRef<Path>) -> Result<Option<Self>, CheckpointError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(CheckpointError::read(path))?;
        let settings = serde_json::from_str(&text)
            .map_err(|error| CheckpointError::malformed(path, format!("is no JSON: {error}")))?;
        Ok(Self::of(path, &settings))
    }

    /// The same of JSON that was read from a path.
    pub fn of(path: &Path, settings: &Value) -> Option<Self> {
        let settings = Self::SETTINGS.into_iter().find_map(|name| settings.get(name))?;
        let name = settings.get("quant_method").unwrap_or(&Value::Null).to_string();
        let (path, method) = (path.to_owned(), Method::of(settings));
        (!settings.is_null()).then_some(Self { path, method, name })
    }

    /// Why the packed tensors cannot be read here, if it is so.
    pub(super) fn check(&self) -> Result<(), CheckpointError> {
        let Method::Other { setting, value } = &self.method else { return Ok(()) };
        Err(self.setting(
            setting,
            value,
            "the base is packed in a way that is not supported (bitsandbytes' nf4, fp4 and int8 are, \
             fp8 e4m3, and float-quantized of compressed-tensors): name the model that it was made \
             from",
        ))
    }

    /// Another format than the tensors have.
    pub(super) fn contradicts(&self, tensor: &str, format: &str) -> CheckpointError {
        let (setting, value) = match &self.method {
            Method::Bits4(Some(code)) => ("bnb_4bit_quant_type", format!("\"{}\"", code.name())),
            Method::Bits4(None) => ("load_in_4bit", "true".to_owned()),
            Method::Int8 => ("load_in_8bit", "true".to_owned()),
            Method::Fp8(_) | Method::Other { .. } => ("quant_method", self.name.clone()),
        };
        self.setting(
            setting,
            &value,
            format!("but `{tensor}` shows {format}: are the files of one model?"),
        )
    }

    fn setting(&self, setting: &str, value: &str, remedy: impl Into<String>) -> CheckpointError {
        CheckpointError::Setting {
            path: self.path.clone(),
            setting: format!("{}.{setting}", Self::SETTINGS[0]),
            value: value.to_owned(),
            remedy: remedy.into(),
        }
    }
}

impl Method {
    fn of(settings: &Value) -> Self {
        let other = |setting: &str, value: &Value| Self::Other {
            setting: setting.to_owned(),
            value: value.to_string(),
        };
        let is_set = |name: &str| settings.get(name) == Some(&Value::Bool(true));
        let method = settings.get("quant_method").unwrap_or(&Value::Null);
        match method.as_str() {
            // Old files of bitsandbytes do not name it.
            Some("bitsandbytes") | None if is_set("load_in_4bit") => {
                let name = settings.get("bnb_4bit_quant_type").unwrap_or(&Value::Null);
                match name.as_str() {
                    Some("nf4") => Self::Bits4(Some(Code4::Nf4)),
                    Some("fp4") => Self::Bits4(Some(Code4::Fp4)),
                    None if name.is_null() => Self::Bits4(None),
                    _ => other("bnb_4bit_quant_type", name),
                }
            }
            Some("bitsandbytes") | None if is_set("load_in_8bit") => Self::Int8,
            Some("fp8") => match settings.get("weight_block_size") {
                None | Some(Value::Null) => {
                    Self::Fp8(Fp8Kinds { tensor: true, rows: true, block: None })
                }
                Some(size) => match block(size) {
                    Some(block) => {
                        Self::Fp8(Fp8Kinds { block: Some(block), ..Fp8Kinds::default() })
                    }
                    None => other("weight_block_size", size),
                },
            },
            Some("compressed-tensors") => {
                let format = settings.get("format").unwrap_or(&Value::Null);
                match format.as_str() {
                    Some("float-quantized") => Self::compressed(settings),
                    _ => other("format", format),
                }
            }
            _ => other("quant_method", method),
        }
    }

    /// compressed-tensors' groups of layers, which must all be fp8.
    fn compressed(settings: &Value) -> Self {
        let groups = settings.get("config_groups").and_then(Value::as_object);
        let mut kinds = Fp8Kinds::default();
        for (name, group) in groups.into_iter().flatten() {
            let weights = group.get("weights").unwrap_or(&Value::Null);
            let is = |field: &str, value: Value| weights.get(field) == Some(&value);
            let strategy = weights.get("strategy").and_then(Value::as_str);
            match strategy {
                _ if !is("num_bits", 8.into()) || !is("type", "float".into()) => {
                    let setting = format!("config_groups.{name}.weights");
                    return Self::Other { setting, value: weights.to_string() };
                }
                Some("tensor") => kinds.tensor = true,
                Some("channel") => kinds.rows = true,
                Some("block") if weights.get("block_structure").and_then(block).is_some() => {
                    kinds.block = weights.get("block_structure").and_then(block);
                }
                _ => {
                    let setting = format!("config_groups.{name}.weights.strategy");
                    let value = weights.get("strategy").unwrap_or(&Value::Null).to_string();
                    return Self::Other { setting, value };
                }
            }
        }
        match kinds == Fp8Kinds::default() {
            true => Self::Other { setting: "config_groups".to_owned(), value: "empty".to_owned() },
            false => Self::Fp8(kinds),
        }
    }
}

/// Two numbers of at least 1.
fn block(size: &Value) -> Option<[u16; 2]> {
    let [rows, cols] = size.as_array()?.as_slice() else { return None };
    let number = |value: &Value| u16::try_from(value.as_u64()?).ok().filter(|size| *size > 0);
    Some([number(rows)?, number(cols)?])
}
