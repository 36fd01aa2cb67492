//! What a module's tensors say: the format, the shape, and whether they fit together.

use safetensors::Dtype as Stored;
use safetensors::tensor::TensorInfo;
use serde_json::Value;

use super::config::{Fp8Kinds, Method};
use super::{QuantizationConfig, QuantizedTensor, STATE, bytes, missing, tensor};
use crate::dtype::Dtype;
use crate::peft::{CheckpointError, TensorFile};
use crate::quant::{BlockScales, Code4, Fp8Scales, NESTED_BLOCK, WeightFormat};

/// Parts that describe activations. They mean nothing next to a W that is no longer packed.
const OF_ACTIVATIONS: [&str; 3] = ["input_scale", "output_scale", "input_zero_point"];

/// What a packed weight that is not supported has, and what wrote it.
const FOREIGN: [(&str, &str); 4] = [
    ("qweight", "GPTQ or AWQ packed the module"),
    ("weight_packed", "compressed-tensors packed the module to 4 bits"),
    ("weight_blocks", "the module is packed as MXFP4"),
    ("weight_global_scale", "the module is packed as NVFP4"),
];

/// A module whose weight is packed.
pub(super) struct Module<'a> {
    pub files: &'a [TensorFile],
    pub config: Option<&'a QuantizationConfig>,
    pub name: &'a str,
    pub parts: &'a [String],
}

impl Module<'_> {
    pub fn find(&self) -> Result<QuantizedTensor, CheckpointError> {
        if let Some(config) = self.config {
            config.check()?;
        }
        if let Some((part, reason)) = FOREIGN.iter().find(|(part, _)| self.has(part)) {
            let (file, _) = self.part(part, "")?;
            let reason =
                format!("{reason}, which is not supported: name the model that it was made from");
            return Err(file.unexpected(&self.key(part), reason));
        }
        let (file, info) =
            self.part("weight", "its scales are there: the model's files are incomplete")?;
        let state = self.parts.iter().find(|part| part.starts_with(STATE));
        let is_bits4 = self.has("weight.absmax") || self.has("weight.nested_absmax");
        match (state, info.dtype) {
            (Some(state), _) => self.bits4(state, info),
            (None, _) if is_bits4 => {
                let reason = "absmax is there, and this has W's shape and block size: the model's \
                              files are incomplete";
                Err(file.missing(&self.key(&format!("{STATE}bitsandbytes__nf4")), reason))
            }
            (None, Stored::I8) => self.int8(file, info),
            (None, Stored::F8_E4M3) => self.fp8(file, info),
            (None, other) => Err(CheckpointError::Dtype {
                path: file.path().to_owned(),
                tensor: self.key("weight"),
                found: other.to_string(),
                remedy: "a quantised weight has bitsandbytes' quant_state, or SCB and I8, or is \
                         F8_E4M3: it cannot be read in another form. Name the model that it was made from",
            }),
        }
    }

    fn key(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    fn has(&self, part: &str) -> bool {
        self.parts.iter().any(|known| known == part)
    }

    fn part(
        &self,
        part: &str,
        reason: &str,
    ) -> Result<(&TensorFile, &TensorInfo), CheckpointError> {
        let key = self.key(part);
        tensor(self.files, &key).ok_or_else(|| missing(self.files, &key, reason))
    }

    /// Checks that a part has so many elements of a type.
    fn check(
        &self,
        part: &str,
        needed: usize,
        dtypes: &[Stored],
        why: &str,
    ) -> Result<(), CheckpointError> {
        let (file, info) = self.part(part, why)?;
        if !dtypes.contains(&info.dtype) {
            return Err(CheckpointError::Dtype {
                path: file.path().to_owned(),
                tensor: self.key(part),
                found: info.dtype.to_string(),
                remedy: "bitsandbytes stores absmax as F32, or as U8 if it is nested, and other \
                         scales as F32: the file is of another program",
            });
        }
        match info.shape.iter().product::<usize>() == needed {
            true => Ok(()),
            false => {
                Err(file.shape(&self.key(part), format!("{needed} elements are needed: {why}")))
            }
        }
    }

    /// The weight, where `config.json` does not contradict the format.
    fn tensor(
        &self,
        shape: [usize; 2],
        format: WeightFormat,
        parts: &[&str],
        scales: Option<&str>,
    ) -> QuantizedTensor {
        let others = parts.iter().chain(&OF_ACTIVATIONS).filter(|part| self.has(part));
        let keys = [self.key("weight")].into_iter().chain(others.map(|part| self.key(part)));
        QuantizedTensor {
            module: self.name.to_owned(),
            shape,
            format,
            keys: keys.collect(),
            scales: scales.map(|part| self.key(part)),
            offset: 0.0,
        }
    }

    fn bits4(&self, state: &str, info: &TensorInfo) -> Result<QuantizedTensor, CheckpointError> {
        let key = self.key(state);
        let (file, text) = bytes(self.files, &key)?;
        let problem =
            |error: String| CheckpointError::malformed(file.path(), format!("`{key}` {error}"));
        let state_of: Value = serde_json::from_slice(&text)
            .map_err(|error| problem(format!("is no JSON: {error}")))?;
        let field = |name: &str| state_of.get(name).unwrap_or(&Value::Null);
        let setting = |name: &str, allowed: &str| CheckpointError::Setting {
            path: file.path().to_owned(),
            setting: format!("{key}: {name}"),
            value: field(name).to_string(),
            remedy: format!("it must be {allowed}"),
        };
        let named = state.trim_start_matches(STATE).trim_start_matches("bitsandbytes__");
        let code = match named {
            "nf4" => Code4::Nf4,
            "fp4" => Code4::Fp4,
            _ => return Err(setting("quant_type", "nf4 or fp4, as the tensor's name")),
        };
        if field("quant_type") != code.name() {
            return Err(setting("quant_type", &format!("{}, as the tensor's name", code.name())));
        }
        match self.config.map(|config| (config, &config.method)) {
            Some((_, Method::Bits4(known))) if known.is_none_or(|known| known == code) => {}
            Some((config, _)) => return Err(config.contradicts(&key, code.name())),
            None => {}
        }
        let block = field("blocksize").as_u64().and_then(|size| u16::try_from(size).ok());
        let block = block.filter(|size| size.is_power_of_two() && (32..=4096).contains(size));
        let block = block.ok_or_else(|| setting("blocksize", "a power of two from 32 to 4096"))?;
        let dtype = match field("dtype").as_str() {
            Some("bfloat16") => Dtype::Bf16,
            Some("float16") => Dtype::F16,
            Some("float32") => Dtype::F32,
            _ => return Err(setting("dtype", "bfloat16, float16 or float32")),
        };
        let shape: Vec<u64> =
            field("shape").as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        let sizes = match shape[..] {
            [rows, cols] if field("shape").as_array().is_some_and(|it| it.len() == 2) => {
                Some([rows as usize, cols as usize])
            }
            _ => None,
        };
        let is_possible =
            |&[rows, cols]: &[usize; 2]| rows > 0 && cols > 0 && rows.checked_mul(cols).is_some();
        let shape = sizes
            .filter(is_possible)
            .ok_or_else(|| setting("shape", "[O, I], the shape of a linear layer's weight"))?;
        let is_nested = ["nested_offset", "nested_blocksize", "nested_dtype"]
            .into_iter()
            .any(|name| !field(name).is_null());
        let mut offset = 0.0;
        if is_nested {
            if field("nested_blocksize") != NESTED_BLOCK {
                return Err(setting("nested_blocksize", "256"));
            }
            if field("nested_dtype") != "float32" {
                return Err(setting("nested_dtype", "float32"));
            }
            offset = match field("nested_offset").as_f64() {
                Some(offset) if (offset as f32).is_finite() => offset as f32,
                _ => return Err(setting("nested_offset", "a finite number")),
            };
        }
        let scales = if is_nested { BlockScales::Nested } else { BlockScales::F32 };
        let format = WeightFormat::Code4 { code, block, scales, state: dtype };
        let found = info.data_offsets.1 - info.data_offsets.0;
        let needed = format.packed_bytes(shape);
        if found != needed {
            let (file, _) = self.part("weight", "")?;
            return Err(file.shape(
                &self.key("weight"),
                format!("W {shape:?} of two codes a byte needs {needed} bytes, and it has {found}"),
            ));
        }
        let blocks = format.scales(shape);
        let why = format!("W {shape:?} has {blocks} blocks of {block}");
        let of_scales = if is_nested { Stored::U8 } else { Stored::F32 };
        self.check("weight.absmax", blocks, &[of_scales], &why)?;
        if is_nested {
            let absmax = blocks.div_ceil(NESTED_BLOCK);
            let why = format!("{why}, and an absmax of each 256 of them");
            self.check("weight.nested_absmax", absmax, &[Stored::F32], &why)?;
            let why = "a code of nested scales is a place in it";
            self.check("weight.nested_quant_map", 256, &[Stored::F32], why)?;
        } else if self.has("weight.nested_absmax") {
            return Err(problem("has no nested_offset, but nested_absmax is there".to_owned()));
        }
        let parts = [
            "weight.absmax",
            "weight.quant_map",
            "weight.nested_absmax",
            "weight.nested_quant_map",
            state,
        ];
        Ok(QuantizedTensor { offset, ..self.tensor(shape, format, &parts, Some("weight.absmax")) })
    }

    fn matrix(&self, file: &TensorFile, info: &TensorInfo) -> Result<[usize; 2], CheckpointError> {
        match info.shape[..] {
            [rows, cols] if rows > 0 && cols > 0 => Ok([rows, cols]),
            _ => Err(file.shape(&self.key("weight"), "a packed weight must be a matrix [O, I]")),
        }
    }

    fn int8(
        &self,
        file: &TensorFile,
        info: &TensorInfo,
    ) -> Result<QuantizedTensor, CheckpointError> {
        let shape = self.matrix(file, info)?;
        match self.config.map(|config| (config, &config.method)) {
            None | Some((_, Method::Int8)) => {}
            Some((config, _)) => return Err(config.contradicts(&self.key("weight"), "int8")),
        }
        let why = format!("W {shape:?} of int8 has a scale per row");
        self.check("SCB", shape[0], &[Stored::F32], &why)?;
        if self.has("weight_format") {
            let (file, found) = bytes(self.files, &self.key("weight_format"))?;
            if found != [0] {
                return Err(CheckpointError::Setting {
                    path: file.path().to_owned(),
                    setting: self.key("weight_format"),
                    value: format!("{found:?}"),
                    remedy:
                        "it must be 0, rows: others are layouts of old GPUs. Load the model with \
                             the bitsandbytes that saved it, and save it again"
                            .to_owned(),
                });
            }
        }
        let parts = ["SCB", "weight_format"];
        Ok(self.tensor(shape, WeightFormat::Int8Rows, &parts, Some("SCB")))
    }

    fn fp8(
        &self,
        file: &TensorFile,
        info: &TensorInfo,
    ) -> Result<QuantizedTensor, CheckpointError> {
        let shape = self.matrix(file, info)?;
        let kinds = match self.config.map(|config| (config, &config.method)) {
            None => Fp8Kinds::ANY,
            Some((_, Method::Fp8(kinds))) => *kinds,
            Some((config, _)) => return Err(config.contradicts(&self.key("weight"), "fp8")),
        };
        let names = ["weight_scale_inv", "weight_scale"];
        let part = match names.map(|name| self.has(name)) {
            [true, true] => {
                let reason = "weight_scale is there, too: which one is meant is not known";
                return Err(file.unexpected(&self.key(names[0]), reason));
            }
            [true, false] => names[0],
            [false, true] => names[1],
            [false, false] => return self.unscaled(file, shape),
        };
        let (of_scale, scale) = self.part(part, "")?;
        let stored = [Stored::F32, Stored::BF16, Stored::F16];
        if !stored.contains(&scale.dtype) {
            return Err(CheckpointError::Dtype {
                path: of_scale.path().to_owned(),
                tensor: self.key(part),
                found: scale.dtype.to_string(),
                remedy: "scales of fp8 must be F32, BF16 or F16: convert them to F32",
            });
        }
        let scales = self
            .kind(&scale.shape, shape, kinds)
            .ok_or_else(|| of_scale.shape(&self.key(part), kinds.needed(shape)))?;
        Ok(self.tensor(shape, WeightFormat::Fp8 { scales }, &names, Some(part)))
    }

    /// What the shape of the scales says.
    fn kind(&self, found: &[usize], shape: [usize; 2], kinds: Fp8Kinds) -> Option<Fp8Scales> {
        let [rows, cols] = shape;
        let grid = |[height, width]: [u16; 2]| {
            [rows.div_ceil(usize::from(height)), cols.div_ceil(usize::from(width))]
        };
        match (found, kinds.block) {
            (found, Some(block)) if *found == grid(block) => {
                Some(Fp8Scales::Blocks { rows: block[0], cols: block[1] })
            }
            ([] | [1] | [1, 1], _) if kinds.tensor => Some(Fp8Scales::Tensor),
            ([count] | [count, 1], _) if kinds.rows && *count == rows => Some(Fp8Scales::Rows),
            _ => None,
        }
    }

    /// fp8 without a scale, as image models have it: the scale is 1.
    fn unscaled(
        &self,
        file: &TensorFile,
        shape: [usize; 2],
    ) -> Result<QuantizedTensor, CheckpointError> {
        if self.config.is_some() {
            let reason = "the weight is fp8, and config.json describes its scales: the model's files \
                          are incomplete";
            return Err(file.missing(&self.key("weight_scale_inv"), reason));
        }
        let other = self
            .parts
            .iter()
            .find(|part| part.contains("scale") && !OF_ACTIVATIONS.contains(&part.as_str()));
        if let Some(part) = other {
            let reason = "it may be the scale of the fp8 weight, under a name that is not known here: \
                          name the model that it was made from";
            return Err(file.unexpected(&self.key(part), reason));
        }
        Ok(self.tensor(shape, WeightFormat::Fp8 { scales: Fp8Scales::Tensor }, &[], None))
    }
}

impl Fp8Kinds {
    /// The shapes that scales of these kinds may have.
    fn needed(self, [rows, cols]: [usize; 2]) -> String {
        let mut shapes = Vec::new();
        if self.tensor {
            shapes.push("[1] (one scale)".to_owned());
        }
        if self.rows {
            shapes.push(format!("[{rows}, 1] (a scale per row)"));
        }
        if let Some([height, width]) = self.block {
            let grid = [rows.div_ceil(usize::from(height)), cols.div_ceil(usize::from(width))];
            shapes.push(format!("{grid:?} (blocks of {height}×{width})"));
        }
        format!("W [{rows}, {cols}] of fp8 needs {}", shapes.join(" or "))
    }
}
