//! The files of `tests/golden-quant`: packed weights, and layers on them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use fused_dora::Dtype;
use fused_dora::quant::{BlockScales, Code4, Fp8Scales, QuantizedWeight, Scales, WeightFormat};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;

use crate::case::CaseFile;
use crate::tensors::{self, Tensors, floats, values};

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

/// A layer of a file `dora_*`, with W unpacked to f32: rounded to S, and not to T. And its packed W.
pub fn case(path: &Path) -> (CaseFile, QuantizedWeight<'static>) {
    let mut tensors = tensors::read(path);
    let packed = weight(&tensors).into_owned();
    let unpacked = floats(&packed.shape(), &packed.dequantize::<f32>());
    tensors.insert("weight".to_owned(), unpacked);
    let bytes = std::fs::read(path).expect("a file");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
    let metadata: Option<HashMap<String, String>> = header.metadata().clone();
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
    });
    let bytes = safetensors::serialize(views, metadata).expect("a file");
    let case = CaseFile::parse(path, &bytes);
    (case.unwrap_or_else(|error| panic!("{}: {error}", path.display())), packed)
}

/// The packed weight of a file's tensors.
pub fn weight(tensors: &Tensors) -> QuantizedWeight<'_> {
    let bytes = |name: &str| tensors[name].2.as_slice();
    let floats = |name: &str| values(&tensors[name]);
    let [rows, cols] = match tensors["weight"].1[..] {
        [rows, cols] => [rows, cols],
        _ => panic!("no matrix"),
    };
    if let Some((name, state)) = tensors.iter().find(|(name, _)| name.starts_with(STATE)) {
        let state: Value = serde_json::from_slice(&state.2).expect("JSON");
        let number = |value: &Value| value.as_u64().expect("a number") as usize;
        let shape = [number(&state["shape"][0]), number(&state["shape"][1])];
        let is_nested = state.get("nested_offset").is_some();
        let format = WeightFormat::Code4 {
            code: if name.ends_with("nf4") { Code4::Nf4 } else { Code4::Fp4 },
            block: number(&state["blocksize"]) as u16,
            scales: if is_nested { BlockScales::Nested } else { BlockScales::F32 },
            state: match state["dtype"].as_str() {
                Some("bfloat16") => Dtype::Bf16,
                Some("float16") => Dtype::F16,
                _ => Dtype::F32,
            },
        };
        let scales = match is_nested {
            true => Scales::Nested {
                codes: bytes("weight.absmax").into(),
                absmax: floats("weight.nested_absmax").into(),
                map: floats("weight.nested_quant_map").into(),
                offset: state["nested_offset"].as_f64().expect("a number") as f32,
            },
            false => floats("weight.absmax").into(),
        };
        return QuantizedWeight::new(shape, format, bytes("weight"), scales).expect("a weight");
    }
    let (format, scales) =
        match tensors.keys().find(|name| name.contains("scale") || *name == "SCB") {
            Some(name) if name == "SCB" => (WeightFormat::Int8Rows, floats(name)),
            Some(name) => {
                let scales = match tensors[name].1[..] {
                    [1] => Fp8Scales::Tensor,
                    [_, 1] => Fp8Scales::Rows,
                    _ => Fp8Scales::Blocks { rows: 128, cols: 128 },
                };
                (WeightFormat::Fp8 { scales }, floats(name))
            }
            None => panic!("no format"),
        };
    QuantizedWeight::new([rows, cols], format, bytes("weight"), scales).expect("a weight")
}
