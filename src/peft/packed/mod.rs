//! Packed weights in a model's files: which tensors make one, and reading it.

mod config;
mod find;

use std::collections::{BTreeMap, BTreeSet};

use safetensors::Dtype as Stored;
use safetensors::tensor::TensorInfo;

pub use config::QuantizationConfig;

use crate::dtype::Dtype;
use crate::peft::{CheckpointError, TensorFile};
use crate::quant::{BlockScales, QuantizedWeight, Scales, WeightFormat};

/// The modules of a model whose weights are packed, by their tensors' names.
///
/// ```no_run
/// use fused_dora::peft::{PackedModules, QuantizationConfig, TensorFile};
///
/// let files = [TensorFile::open("base/model.safetensors")?];
/// let config = QuantizationConfig::read("base/config.json")?;
/// let packed = PackedModules::new(&files, config);
/// for module in packed.names() {
///     let weight = packed.find(&files, module)?.read(&files)?;
///     println!("{module}: {:?}, {}", weight.shape(), weight.format());
/// }
/// # Ok::<(), fused_dora::peft::CheckpointError>(())
/// ```
#[derive(Debug)]
pub struct PackedModules {
    config: Option<QuantizationConfig>,
    /// The parts of each module, as `weight.absmax`.
    parts: BTreeMap<String, Vec<String>>,
}

/// Parts of a module's name that show a packed weight, by themselves.
const SIGNS: [&str; 9] = [
    "SCB",
    "weight_scale",
    "weight_scale_inv",
    "qweight",
    "weight_packed",
    "weight_blocks",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
];

const STATE: &str = "weight.quant_state.";

/// A tensor's module and part.
fn split(tensor: &str) -> Option<(&str, &str)> {
    // `X.weight.absmax` is of X.
    let at = tensor.rfind(".weight.").or_else(|| tensor.rfind('.'))?;
    Some((&tensor[..at], &tensor[at + 1..]))
}

impl PackedModules {
    /// Looks through the headers of a model's files. A module's tensors may lie in several of them.
    pub fn new(files: &[TensorFile], config: Option<QuantizationConfig>) -> Self {
        let mut parts = BTreeMap::<String, Vec<String>>::new();
        let mut packed = BTreeSet::new();
        for file in files {
            for tensor in file.names() {
                let Some((module, part)) = split(&tensor) else { continue };
                parts.entry(module.to_owned()).or_default().push(part.to_owned());
                let stored = file.info(&tensor).map(|info| info.dtype);
                let is_code = |stored| {
                    matches!(stored, Stored::U8 | Stored::I8 | Stored::F8_E4M3 | Stored::F8_E5M2)
                };
                if SIGNS.contains(&part)
                    || part.starts_with(STATE)
                    || part == "weight" && stored.is_some_and(is_code)
                {
                    packed.insert(module.to_owned());
                }
            }
        }
        parts.retain(|module, _| packed.contains(module));
        Self { config, parts }
    }

    /// The modules' names, as `model.layers.0.self_attn.q_proj`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.keys().map(String::as_str)
    }

    /// Whether a module's weight is packed, in whatever way.
    pub fn contains(&self, module: &str) -> bool {
        self.parts.contains_key(module)
    }

    /// The packed weight of a module, by the headers of the model's files.
    ///
    /// # Errors
    /// [`CheckpointError::Setting`] for a format that is not supported, or another than that of
    /// `config.json`; [`CheckpointError::Shape`], [`CheckpointError::Dtype`],
    /// [`CheckpointError::MissingTensor`], [`CheckpointError::UnexpectedTensor`] and
    /// [`CheckpointError::Malformed`] where its tensors make no weight.
    pub fn find(
        &self,
        files: &[TensorFile],
        module: &str,
    ) -> Result<QuantizedTensor, CheckpointError> {
        let parts = self.parts.get(module).map_or(&[][..], Vec::as_slice);
        find::Module { files, config: self.config.as_ref(), name: module, parts }.find()
    }
}

/// A packed weight in a model's files, by their headers.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedTensor {
    module: String,
    shape: [usize; 2],
    format: WeightFormat,
    /// Its tensor, and those that belong to it.
    keys: Vec<String>,
    /// The tensor of its scales, or nothing for 1.
    scales: Option<String>,
    offset: f32,
}

impl QuantizedTensor {
    /// `[O, I]`.
    pub const fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// How it is packed.
    pub const fn format(&self) -> WeightFormat {
        self.format
    }

    /// All tensors that describe this weight, the weight's own first.
    pub fn keys(&self) -> &[String] {
        &self.keys
    }

    /// The dtype that it was packed from, where files say it.
    pub const fn state(&self) -> Option<Dtype> {
        match self.format {
            WeightFormat::Code4 { state, .. } => Some(state),
            _ => None,
        }
    }

    /// Bytes of all its tensors.
    pub fn bytes(&self, files: &[TensorFile]) -> usize {
        let infos = self.keys.iter().filter_map(|key| tensor(files, key));
        infos.map(|(_, info)| info.data_offsets.1 - info.data_offsets.0).sum()
    }

    /// Reads it, and looks for numbers that make W infinite or NaN.
    ///
    /// # Errors
    /// [`CheckpointError::Read`]; [`CheckpointError::Malformed`] with the number's place, and where
    /// `quant_map` is another code than its name says.
    pub fn read(&self, files: &[TensorFile]) -> Result<QuantizedWeight<'static>, CheckpointError> {
        let name = format!("{}.weight", self.module);
        let (file, packed) = bytes(files, &name)?;
        let part = |part: &str| format!("{name}.{part}");
        let floats = |key: &str| match tensor(files, key) {
            Some((file, _)) => file.floats(key),
            None => Err(file.missing(key, "it is needed")),
        };
        let wrong = |problem: String| {
            CheckpointError::malformed(file.path(), format!("`{name}`: {problem}"))
        };
        if let WeightFormat::Code4 { code, .. } = self.format
            && self.keys.contains(&part("quant_map"))
        {
            let map = floats(&part("quant_map"))?;
            let is_other = |(a, b): (&f32, f32)| (a - b).abs() > 1e-6 || a.is_nan();
            let other = map.iter().zip(code.table()).position(is_other);
            if let Some(place) = other.or_else(|| (map.len() != 16).then_some(map.len())) {
                return Err(wrong(format!(
                    "quant_map is not the code of {} (number {place} of {}): bitsandbytes' kernels \
                     would ignore it, so that W would be another one",
                    code.name(),
                    map.len()
                )));
            }
        }
        let scales = match (self.format, &self.scales) {
            (WeightFormat::Code4 { scales: BlockScales::Nested, .. }, Some(codes)) => {
                Scales::Nested {
                    codes: bytes(files, codes)?.1.into(),
                    absmax: floats(&part("nested_absmax"))?.into(),
                    map: floats(&part("nested_quant_map"))?.into(),
                    offset: self.offset,
                }
            }
            (_, Some(scales)) => floats(scales)?.into(),
            (_, None) => vec![1.0].into(),
        };
        let weight = QuantizedWeight::new(self.shape, self.format, packed, scales);
        let weight = weight.map_err(|error| wrong(error.to_string()))?;
        weight.check_values().map_err(|error| wrong(error.to_string()))?;
        Ok(weight)
    }
}

/// A tensor of a model, and its file.
fn tensor<'a>(files: &'a [TensorFile], name: &str) -> Option<(&'a TensorFile, &'a TensorInfo)> {
    files.iter().find_map(|file| Some((file, file.info(name)?)))
}

fn bytes<'a>(
    files: &'a [TensorFile],
    name: &str,
) -> Result<(&'a TensorFile, Vec<u8>), CheckpointError> {
    let Some((file, info)) = tensor(files, name) else {
        return Err(missing(files, name, "it is needed"));
    };
    let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
    file.read_at(info, 0, &mut bytes)?;
    Ok((file, bytes))
}

/// A tensor that no file has.
fn missing(files: &[TensorFile], name: &str, reason: &str) -> CheckpointError {
    let path = files.first().map_or_else(Default::default, |file| file.path().to_owned());
    CheckpointError::MissingTensor { path, tensor: name.to_owned(), reason: reason.to_owned() }
}
