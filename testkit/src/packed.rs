//! The files of `tests/golden-quant`: packed weights, and layers on them.

use std::path::{Path, PathBuf};

use fused_dora::Dtype;
use fused_dora::quant::{BlockScales, Code4, Fp8Scales, QuantizedWeight, Scales, WeightFormat};
use safetensors::Dtype as Stored;
use serde_json::Value;

use crate::case::CaseFile;
use crate::tensors::{Tensors, values};

const STATE: &str = "weight.quant_state.bitsandbytes__";

/// The folder of these files.
pub fn folder() -> PathBuf {
    crate::workspace().join("tests/golden-quant")
}

/// Those whose names begin so, in order.
pub fn files(start: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder()).expect("the golden files");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let is_meant = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().display().to_string();
        name.starts_with(start) && name.ends_with(".safetensors")
    };
    let mut files: Vec<_> = paths.filter(is_meant).collect();
    files.sort();
    files
}

/// A layer of a file `dora_*`, and its packed W.
pub fn case(path: &Path) -> (CaseFile, QuantizedWeight<'static>) {
    let mut case = CaseFile::read(path).unwrap_or_else(|error| panic!("{error}"));
    let packed = case.packed.take();
    (case, packed.unwrap_or_else(|| panic!("{}: W is not packed", path.display())))
}

/// The packed weight of a file's tensors.
pub fn weight(tensors: &Tensors) -> QuantizedWeight<'_> {
    find(tensors).unwrap_or_else(|problem| panic!("{problem}"))
}

/// What the metadata of a file calls a format.
pub(crate) const NAMES: [&str; 6] =
    ["bnb-nf4", "bnb-fp4", "bnb-int8", "fp8-tensor", "fp8-row", "fp8-block"];

/// The name in [`NAMES`].
pub(crate) const fn name(format: WeightFormat) -> &'static str {
    match format {
        WeightFormat::Code4 { code: Code4::Nf4, .. } => "bnb-nf4",
        WeightFormat::Code4 { code: Code4::Fp4, .. } => "bnb-fp4",
        WeightFormat::Int8Rows => "bnb-int8",
        WeightFormat::Fp8 { scales: Fp8Scales::Tensor } => "fp8-tensor",
        WeightFormat::Fp8 { scales: Fp8Scales::Rows } => "fp8-row",
        WeightFormat::Fp8 { scales: Fp8Scales::Blocks { .. } } => "fp8-block",
        _ => "another",
    }
}

/// The packed weight of a file's tensors, or what is wrong with them.
pub(crate) fn find(tensors: &Tensors) -> Result<QuantizedWeight<'_>, String> {
    let tensor = |name: &str| tensors.get(name).ok_or(format!("tensor `{name}` is missing"));
    let bytes = |name: &str| tensor(name).map(|(_, _, bytes)| bytes.as_slice());
    let floats = |name: &str| match tensor(name)? {
        tensor @ (Stored::F32, ..) => Ok(values(tensor)),
        (other, ..) => Err(format!("`{name}` is stored as {other}; it must be F32")),
    };
    let (stored, shape, packed) = tensor("weight")?;
    let state = tensors.iter().find_map(|(name, state)| Some((name.strip_prefix(STATE)?, state)));
    let (shape, format, scales) = if let Some((code, (_, _, json))) = state {
        let (shape, format, offset) = state_of(code, json)?;
        let scales = match offset {
            Some(offset) => Scales::Nested {
                codes: bytes("weight.absmax")?.into(),
                absmax: floats("weight.nested_absmax")?.into(),
                map: floats("weight.nested_quant_map")?.into(),
                offset,
            },
            None => floats("weight.absmax")?.into(),
        };
        (shape, format, scales)
    } else {
        let &[rows, cols] = shape.as_slice() else {
            return Err(format!("`weight` has shape {shape:?}; it must be [O, I]"));
        };
        let (format, scales) = match stored {
            Stored::I8 => (WeightFormat::Int8Rows, floats("SCB")?),
            Stored::F8_E4M3 => fp8(tensors, floats)?,
            other => {
                return Err(format!(
                    "`weight` is stored as {other}, without `{STATE}nf4` or `fp4`: a packed W is \
                     U8 with it, I8 with `SCB`, or F8_E4M3 with `weight_scale` or `weight_scale_inv`"
                ));
            }
        };
        ([rows, cols], format, scales.into())
    };
    let weight = QuantizedWeight::new(shape, format, packed.as_slice(), scales);
    weight.map_err(|error| error.to_string())
}

/// What a `quant_state` says: the shape, the format, and the offset of nested scales.
fn state_of(code: &str, json: &[u8]) -> Result<([usize; 2], WeightFormat, Option<f32>), String> {
    let state: Value = serde_json::from_slice(json)
        .map_err(|error| format!("`{STATE}{code}` is no JSON: {error}"))?;
    let wrong = |key: &str, needed: &str| {
        format!("`{key}` in `{STATE}{code}` is {}; it must be {needed}", state[key])
    };
    let number = |value: &Value| value.as_u64().and_then(|value| usize::try_from(value).ok());
    let shape = [&state["shape"][0], &state["shape"][1]].map(number);
    let [Some(rows), Some(cols)] = shape else { return Err(wrong("shape", "[O, I]")) };
    let block = number(&state["blocksize"]).and_then(|block| u16::try_from(block).ok());
    let offset = match state.get("nested_offset") {
        Some(offset) => Some(offset.as_f64().ok_or(wrong("nested_offset", "a number"))? as f32),
        None => None,
    };
    let format = WeightFormat::Code4 {
        code: match code {
            "nf4" => Code4::Nf4,
            "fp4" => Code4::Fp4,
            _ => return Err(format!("`{STATE}{code}`: the code must be nf4 or fp4")),
        },
        block: block.ok_or(wrong("blocksize", "a power of two from 32 to 4096"))?,
        scales: if offset.is_some() { BlockScales::Nested } else { BlockScales::F32 },
        state: match state["dtype"].as_str() {
            Some("bfloat16") => Dtype::Bf16,
            Some("float16") => Dtype::F16,
            Some("float32") => Dtype::F32,
            _ => return Err(wrong("dtype", "bfloat16, float16 or float32")),
        },
    };
    Ok(([rows, cols], format, offset))
}

/// fp8's format and scales.
fn fp8(
    tensors: &Tensors,
    floats: impl Fn(&str) -> Result<Vec<f32>, String>,
) -> Result<(WeightFormat, Vec<f32>), String> {
    let name = match tensors.contains_key("weight_scale_inv") {
        true => "weight_scale_inv",
        false => "weight_scale",
    };
    let values = floats(name)?;
    let scales = match tensors[name].1[..] {
        [1] => Fp8Scales::Tensor,
        [_, 1] => Fp8Scales::Rows,
        // Models have no others.
        _ => Fp8Scales::Blocks { rows: 128, cols: 128 },
    };
    Ok((WeightFormat::Fp8 { scales }, values))
}
