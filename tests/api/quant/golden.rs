//! The files of `tests/golden-quant`.

use std::path::Path;

use fused_dora::quant::{QuantizedWeight, Scales, WeightFormat};
use fused_dora::{Dtype, Element};
use fused_dora_testkit::packed::{files, weight as packed};
use fused_dora_testkit::tensors::{self, Tensors, values};
use half::{bf16, f16};
use safetensors::Dtype as Stored;

/// The golden files whose names begin so.
fn read(start: &str) -> Vec<(String, Tensors)> {
    let files = files(start);
    assert!(files.len() > 10, "{start}: {} files", files.len());
    let name = |path: &Path| path.file_name().unwrap_or_default().display().to_string();
    files.iter().map(|path| (name(path), tensors::read(path))).collect()
}

/// The bits of numbers in a tensor; all NaN are one.
fn bits<E: Element>(values: &[E]) -> Vec<u32> {
    let bits =
        |value: &E| if value.to_f32().is_nan() { u32::MAX } else { value.to_f32().to_bits() };
    values.iter().map(bits).collect()
}

fn assert_bits<E: Element>(name: &str, found: &[E], expected: &[f32]) {
    let (found, expected) = (bits(found), bits(expected));
    assert_eq!(found.len(), expected.len(), "{name}");
    let differ = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
    let first = found.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(differ, 0, "{name}: {differ} of {} differ, the first is {first:?}", found.len());
}

/// W has the bits of bitsandbytes' `dequantize_4bit` and of the definitions.
#[test]
fn weights_are_dequantized_bit_by_bit() {
    let mut compared = 0;
    for (name, tensors) in read("quant_") {
        let weight = packed(&tensors);
        // The file's f32 are not yet rounded to S.
        if let Some(exact) = tensors.get("dequantized.f32") {
            let state = weight.format().state();
            let rounded: Vec<f32> = values(exact)
                .iter()
                .map(|&value| match state {
                    Dtype::Bf16 => bf16::from_f32(value).to_f32(),
                    Dtype::F16 => f16::from_f32(value).to_f32(),
                    Dtype::F32 => value,
                })
                .collect();
            assert_bits(&name, &weight.dequantize::<f32>(), &rounded);
            compared += 1;
        }
        if let Some(expected) = tensors.get("dequantized.bf16") {
            assert_bits(&name, &weight.dequantize::<bf16>(), &values(expected));
            compared += 1;
        }
        if let Some(expected) = tensors.get("dequantized.f16") {
            assert_bits(&name, &weight.dequantize::<f16>(), &values(expected));
            compared += 1;
        }
        let is_nan = name.starts_with("quant_fp8_all");
        assert_eq!(weight.check_values().is_err(), is_nan, "{name}");
    }
    assert!(compared > 30, "{compared}");
}

fn quantized(
    source: &(Stored, Vec<usize>, Vec<u8>),
    like: &QuantizedWeight<'_>,
) -> QuantizedWeight<'static> {
    let offset = match like.scales() {
        Scales::Nested { offset, .. } => Some(*offset),
        Scales::F32(_) => None,
    };
    let (shape, format) = (like.shape(), like.format());
    // The dtype of the source has the values that it is read with.
    let source = values(source);
    match offset {
        Some(offset) => QuantizedWeight::quantize_with_offset(&source, shape, format, offset),
        None => QuantizedWeight::quantize(&source, shape, format),
    }
    .expect("a weight")
}

/// Nested scales for which bitsandbytes' CPU, which made the files, takes the second nearest number of
/// the map: the file, the place of the scale, and the code that its CUDA kernel computes.
const CUDA_CODES: [(&str, usize, u8); 2] =
    [("quant_fp4_nested", 55, 120), ("quant_fp4_nested", 73, 94)];

/// The largest magnitude of a block of 64.
fn largest(tensor: &(Stored, Vec<usize>, Vec<u8>), block: usize) -> f32 {
    let values = values(tensor).into_iter().skip(64 * block).take(64);
    values.fold(0.0, |most, value| most.max(value.abs()))
}

/// Packing gives the codes of bitsandbytes' CUDA kernels, and the scales.
#[test]
fn weights_are_quantized_bit_by_bit() {
    let mut compared = 0;
    for (name, tensors) in read("quant_") {
        let Some(source) = tensors.get("source") else { continue };
        let expected = packed(&tensors);
        let found = quantized(source, &expected);
        let codes = tensors.get("cuda.weight").map_or(expected.packed(), |cuda| &cuda.2);
        let differ = found.packed().iter().zip(codes).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0, "{name}: codes in {differ} of {} bytes", codes.len());
        match (found.scales(), expected.scales()) {
            (Scales::F32(found), Scales::F32(expected)) => assert_bits(&name, found, expected),
            (
                Scales::Nested { codes, absmax, map, .. },
                Scales::Nested { codes: c, absmax: a, map: m, offset },
            ) => {
                assert_bits(&format!("{name}: the map"), map, m);
                assert_bits(&format!("{name}: nested_absmax"), absmax, a);
                let mut cuda = c.to_vec();
                for (file, place, code) in CUDA_CODES {
                    if name.starts_with(file) {
                        let of = |code: u8| m[usize::from(code)];
                        let scaled = (largest(source, place) - offset) / a[0];
                        let distance = |code: u8| (of(code) - scaled).abs();
                        assert!(distance(code) < distance(c[place]), "{file}: {place}");
                        cuda[place] = code;
                    }
                }
                assert_eq!(codes[..], cuda, "{name}");
                // Without the file's offset: the mean, however it is summed.
                let values = values(source);
                let own = QuantizedWeight::quantize(&values, expected.shape(), expected.format());
                let own = own.expect("a weight");
                let Scales::Nested { codes, offset: mean, .. } = own.scales() else {
                    panic!("nested")
                };
                assert!((mean - offset).abs() <= 4.0 * f32::EPSILON * offset, "{name}: {mean}");
                assert_eq!(codes[..], cuda, "{name}");
            }
            _ => panic!("{name}: other scales"),
        }
        compared += 1;
    }
    assert!(compared > 15, "{compared}");
}

/// bitsandbytes' tables, as its files hold them.
#[test]
fn tables_are_those_of_the_files() {
    for (name, tensors) in read("quant_") {
        let WeightFormat::Code4 { code, .. } = packed(&tensors).format() else { continue };
        assert_bits(&name, &code.table(), &values(&tensors["weight.quant_map"]));
    }
}

/// The norm of a layer's V and the merged W' are those of the dequantised W.
#[test]
fn layers_have_the_norms_of_their_dequantized_weight() {
    let mut merged = 0;
    for (name, tensors) in read("dora_") {
        if !tensors.contains_key("weight") {
            continue;
        }
        let weight = packed(&tensors);
        let [rows, cols] = weight.shape();
        let w: Vec<f64> = weight.dequantize::<f32>().into_iter().map(f64::from).collect();
        let [a, b, m] = ["lora_A", "lora_B", "magnitude"].map(|name| values(&tensors[name]));
        let rank = a.len() / cols;
        let scaling = if name.contains("straddle") { 0.5 } else { 2.0 };
        let v = |row: usize, col: usize| {
            let product =
                (0..rank).map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * cols + col]));
            w[row * cols + col] + scaling * product.sum::<f64>()
        };
        let of_rows = m.len() == rows && name.contains("_output_");
        let norm = |feature: usize| {
            let of = |other: usize| if of_rows { v(feature, other) } else { v(other, feature) };
            (0..if of_rows { cols } else { rows }).map(|n| of(n).powi(2)).sum::<f64>().sqrt()
        };
        let norms: Vec<f64> = (0..m.len()).map(norm).collect();
        for (found, expected) in norms.iter().zip(values(&tensors["expected.norm"])) {
            let error = (found - f64::from(expected)).abs();
            assert!(error <= 1e-6 * f64::from(expected), "{name}: {found}, {expected}");
        }
        let Some(expected) = tensors.get("expected.merged") else { continue };
        merged += 1;
        for (element, expected) in values(expected).into_iter().enumerate() {
            let (row, col) = (element / cols, element % cols);
            let feature = if of_rows { row } else { col };
            let found = v(row, col) * f64::from(m[feature]) / norms[feature];
            let error = (found - f64::from(expected)).abs();
            assert!(error <= 1e-6 * f64::from(expected).abs() + 1e-7, "{name}: {element}");
        }
    }
    assert_eq!(merged, 2);
}
