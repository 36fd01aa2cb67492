//! Dense weights that an output has packed: which of them, their tensors, and the model's settings.

use std::collections::BTreeMap;

use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::quant::{
    BlockScales, Code4, Fp8Scales, NESTED_BLOCK, QuantizedWeight, Scales, WeightFormat,
};
use fused_dora::{Dtype, MergeReport};
use serde_json::{Value, json};

use crate::base::Base;
use crate::engine::{decode, of_layer};
use crate::error::Failure;
use crate::layout::Entry;
use crate::options::PackedFormat;
use crate::orientation::{self, matches};
use crate::tied;
use crate::weight::Weight;

/// Parts of the names of modules that are not linear layers, or whose weights loaders expect dense.
const DENSE: [&str; 7] =
    ["wte", "wpe", "shared", "relative_attention_bias", "score", "classifier", "qa_outputs"];

/// The length of a state's text beyond one with the offset 0: no number is longer.
const OFFSET_LENGTH: usize = 24;

/// Which weights an output has packed, and how.
pub struct Packing {
    pub format: PackedFormat,
    block: u16,
    /// The formats by the weights' names.
    pub weights: BTreeMap<String, WeightFormat>,
    /// Modules with matrices that stay dense.
    pub dense: Vec<String>,
}

/// A tensor of a packed weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Weight,
    Scales,
    Codes,
    NestedScales,
    NestedMap,
    Map,
    State,
    Format,
}

impl PackedFormat {
    fn of(self, state: Dtype, block: u16) -> WeightFormat {
        let bits4 = |code, scales| WeightFormat::Code4 { code, block, scales, state };
        match self {
            Self::Nf4 => bits4(Code4::Nf4, BlockScales::F32),
            Self::Nf4Nested => bits4(Code4::Nf4, BlockScales::Nested),
            Self::Fp4 => bits4(Code4::Fp4, BlockScales::F32),
            Self::Int8 => WeightFormat::Int8Rows,
            Self::Fp8Block => {
                WeightFormat::Fp8 { scales: Fp8Scales::Blocks { rows: 128, cols: 128 } }
            }
        }
    }

    fn is_bits4(self) -> bool {
        matches!(self, Self::Nf4 | Self::Nf4Nested | Self::Fp4)
    }
}

impl Packing {
    /// The linear layers of a base, without heads and what `skip` names; of a packed base, those that
    /// it has packed.
    pub fn of(
        base: &Base,
        format: PackedFormat,
        block: Option<u16>,
        skip: &[String],
    ) -> Result<Self, Failure> {
        if block.is_some() && !format.is_bits4() {
            return Err(Failure::Call("--block: it is for formats of 4 bits only".to_owned()));
        }
        let (mut weights, mut dense) = (BTreeMap::new(), Vec::new());
        let block = block.unwrap_or(64);
        for tensor in base.names() {
            let (Some(module), Some(weight)) =
                (tensor.strip_suffix(".weight"), base.matrix(tensor))
            else {
                continue;
            };
            // Of a packed model, what was packed is packed again.
            let is_skipped = skip.iter().any(|pattern| matches(pattern, module))
                || base.packed.names().next().is_some() && !base.packed.contains(tensor);
            if is_skipped || !is_linear(base, tensor) {
                dense.push(module.to_owned());
                continue;
            }
            if base.config.as_ref().is_some_and(|it| orientation::is_conv1d(it, module)) {
                return Err(of_layer(
                    &weight,
                    "it is of a Conv1D, which packs its transpose: pack the model with bitsandbytes",
                ));
            }
            weights.insert(tensor.to_owned(), format.of(weight.dtype, block));
        }
        let modules = || weights.keys().map(|tensor| tensor.trim_end_matches(".weight"));
        for pattern in skip {
            if !dense.iter().any(|module| matches(pattern, module)) {
                return Err(Failure::Call(format!(
                    "--skip {pattern}: the base has no such matrix; its first linear layer is `{}`",
                    modules().next().unwrap_or_default()
                )));
            }
        }
        if weights.is_empty() {
            return Err(Failure::Call(format!(
                "--base {}: it has no linear layer to be packed",
                base.path.display()
            )));
        }
        // Loaders take a name for all that begin or end with it.
        let clash = dense.iter().find_map(|dense| {
            let is_meant = |module: &&str| {
                module.starts_with(dense.as_str()) || module.ends_with(dense.as_str())
            };
            Some((dense, modules().find(is_meant)?))
        });
        if let Some((dense, module)) = clash {
            return Err(Failure::Call(format!(
                "`{dense}` would stay dense, and loaders would take `{module}` for dense, too, whose \
                 name begins or ends with it: pass --skip {module}"
            )));
        }
        weights.values().try_for_each(|format| format.check())?;
        Ok(Self { format, block, weights, dense })
    }

    /// `quantization_config`.
    pub fn settings(&self) -> Value {
        // A head that is tied to the embedding has no tensor, and is dense.
        let mut skipped = self.dense.clone();
        if !skipped.iter().any(|module| module.ends_with("lm_head")) {
            skipped.push("lm_head".to_owned());
        }
        let state = self.weights.values().next().map_or(Dtype::Bf16, |format| format.state());
        match self.format {
            PackedFormat::Fp8Block => json!({
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "weight_block_size": [128, 128],
                "modules_to_not_convert": skipped,
            }),
            format => json!({
                "quant_method": "bitsandbytes",
                "load_in_4bit": format.is_bits4(),
                "load_in_8bit": !format.is_bits4(),
                "bnb_4bit_compute_dtype": torch(state),
                "bnb_4bit_quant_storage": "uint8",
                "bnb_4bit_quant_type": if format == PackedFormat::Fp4 { "fp4" } else { "nf4" },
                "bnb_4bit_use_double_quant": format == PackedFormat::Nf4Nested,
                "llm_int8_enable_fp32_cpu_offload": false,
                "llm_int8_has_fp16_weight": false,
                "llm_int8_skip_modules": skipped,
                "llm_int8_threshold": 6.0,
            }),
        }
    }

    /// The format in words.
    pub fn description(&self) -> String {
        self.format.of(Dtype::Bf16, self.block).to_string().trim_end_matches(", bf16").to_owned()
    }
}

/// The tensors of a packed weight.
pub fn entries(tensor: &str, format: WeightFormat, shape: [usize; 2]) -> Vec<(Entry, Part)> {
    let module = tensor.trim_end_matches(".weight");
    let [scales, packed] = [format.scales(shape), format.packed_bytes(shape)];
    let entry = |part: &str, dtype: Stored, shape: Vec<usize>, kind| {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (Entry { name: format!("{module}.{part}"), dtype, shape, bytes }, kind)
    };
    match format {
        WeightFormat::Code4 { code, scales: kind, .. } => {
            let name = format!("weight.quant_state.bitsandbytes__{}", code.name());
            let mut entries = vec![
                entry("weight", Stored::U8, vec![packed, 1], Part::Weight),
                entry("weight.quant_map", Stored::F32, vec![16], Part::Map),
                entry(&name, Stored::U8, vec![state_length(format, shape)], Part::State),
            ];
            let absmax = "weight.absmax";
            match kind {
                BlockScales::F32 => {
                    entries.push(entry(absmax, Stored::F32, vec![scales], Part::Scales));
                }
                BlockScales::Nested => {
                    let (nested, count) = ("weight.nested_absmax", scales.div_ceil(NESTED_BLOCK));
                    let map = "weight.nested_quant_map";
                    entries.push(entry(absmax, Stored::U8, vec![scales], Part::Codes));
                    entries.push(entry(nested, Stored::F32, vec![count], Part::NestedScales));
                    entries.push(entry(map, Stored::F32, vec![256], Part::NestedMap));
                }
            }
            entries
        }
        WeightFormat::Int8Rows => vec![
            entry("weight", Stored::I8, shape.to_vec(), Part::Weight),
            entry("SCB", Stored::F32, vec![scales], Part::Scales),
            entry("weight_format", Stored::U8, vec![], Part::Format),
        ],
        _ => {
            let grid = shape.map(|features| features.div_ceil(128)).to_vec();
            vec![
                entry("weight", Stored::F8_E4M3, shape.to_vec(), Part::Weight),
                entry("weight_scale_inv", Stored::F32, grid, Part::Scales),
            ]
        }
    }
}

/// The bytes of a part.
pub fn bytes(weight: &QuantizedWeight<'_>, part: Part) -> Vec<u8> {
    let floats = |values: &[f32]| values.iter().flat_map(|it| it.to_le_bytes()).collect();
    match (part, weight.scales()) {
        (Part::Weight, _) => weight.packed().to_vec(),
        (Part::Format, _) => vec![0],
        (Part::Map, _) => match weight.format() {
            WeightFormat::Code4 { code, .. } => floats(&code.table()),
            _ => Vec::new(),
        },
        (Part::Scales, Scales::F32(scales)) => floats(scales),
        (Part::Codes, Scales::Nested { codes, .. }) => codes.to_vec(),
        (Part::NestedScales, Scales::Nested { absmax, .. }) => floats(absmax),
        (Part::NestedMap, Scales::Nested { map, .. }) => floats(map),
        (Part::State, scales) => {
            let offset = match scales {
                Scales::Nested { offset, .. } => *offset,
                Scales::F32(_) => 0.0,
            };
            let mut text = state(weight.format(), weight.shape(), offset).into_bytes();
            // JSON may end in spaces, so that its length is known before the offset.
            text.resize(state_length(weight.format(), weight.shape()), b' ');
            text
        }
        _ => Vec::new(),
    }
}

/// The text of `quant_state`.
fn state(format: WeightFormat, shape: [usize; 2], offset: f32) -> String {
    let WeightFormat::Code4 { code, block, scales, state } = format else { return String::new() };
    let mut text = json!({
        "quant_type": code.name(),
        "blocksize": block,
        "dtype": torch(state),
        "shape": shape,
    });
    if scales == BlockScales::Nested {
        text["nested_blocksize"] = json!(NESTED_BLOCK);
        text["nested_dtype"] = json!("float32");
        text["nested_offset"] = json!(f64::from(offset));
    }
    text.to_string()
}

fn state_length(format: WeightFormat, shape: [usize; 2]) -> usize {
    state(format, shape, 0.0).len() + OFFSET_LENGTH
}

/// What PyTorch calls a type.
fn torch(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "bfloat16",
        Dtype::F16 => "float16",
        Dtype::F32 => "float32",
    }
}

/// Whether a matrix is a linear layer's, by its name and its shape.
fn is_linear(base: &Base, tensor: &str) -> bool {
    let parts: Vec<&str> = tensor.split('.').collect();
    let is_dense = |part: &&str| part.contains("embed") || DENSE.contains(part);
    base.shape(tensor).len() == 2 && !tied::is_tied_part(tensor) && !parts.iter().any(is_dense)
}

/// Packs a dense weight.
pub fn pack(weight: &Weight<'_>, format: WeightFormat) -> Result<Packed, Failure> {
    let mut values = Vec::with_capacity(weight.elements());
    weight.chunks::<Failure>(|_, bytes| {
        decode(bytes, weight.dtype, |value| values.push(value));
        Ok(())
    })?;
    let packed = QuantizedWeight::quantize(&values, weight.shape, format);
    Ok(Packed { weight: packed.map_err(|error| of_layer(weight, error))?, values })
}

/// A packed weight, and the numbers from which it was packed.
pub struct Packed {
    pub weight: QuantizedWeight<'static>,
    pub values: Vec<f32>,
}

impl Packed {
    /// What is left of the change from W, which this W' was merged of: Δ = W' − W and E = Ŵ' − W'.
    pub fn change(&self, before: &Weight<'_>) -> Result<MergeReport, Failure> {
        let [_, cols] = self.weight.shape();
        let mut report =
            MergeReport { change_squared: 0.0, error_squared: 0.0, error_along_change: 0.0 };
        let (mut row, mut w) = (vec![0.0; cols], Vec::new());
        before.chunks::<Failure>(|first, bytes| {
            w.clear();
            decode(bytes, before.dtype, |value| w.push(f64::from(value)));
            for (number, w) in (first..).zip(w.chunks(cols)) {
                self.weight.row(number, &mut row);
                let merged = &self.values[number * cols..];
                for ((found, merged), w) in row.iter().zip(merged).zip(w) {
                    let change = f64::from(*merged) - w;
                    let error = f64::from(*found) - f64::from(*merged);
                    report.change_squared += change * change;
                    report.error_squared += error * error;
                    report.error_along_change += error * change;
                }
            }
            Ok(())
        })?;
        Ok(report)
    }

    /// ‖Ŵ − W‖² and ‖W‖².
    pub fn loss(&self) -> [f64; 2] {
        let [_, cols] = self.weight.shape();
        let (mut error, mut size, mut row) = (0.0, 0.0, vec![0.0; cols]);
        for (number, values) in self.values.chunks(cols).enumerate() {
            self.weight.row(number, &mut row);
            for (found, value) in row.iter().zip(values) {
                error += (f64::from(*found) - f64::from(*value)).powi(2);
                size += f64::from(*value).powi(2);
            }
        }
        [error, size]
    }
}
