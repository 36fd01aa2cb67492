//! The float64 reference against the golden cases, which independent implementations computed.

use std::path::PathBuf;

use fused_dora::reference::{self, Results};
use fused_dora::{Dtype, Norm};
use fused_dora_testkit::case::CaseFile;
use fused_dora_testkit::compare::Comparison;

/// The expected values are stored as f32, and their sums were taken in another order.
const TOLERANCE: f64 = 1e-6;

fn golden() -> Vec<CaseFile> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    paths.sort();
    assert_eq!(paths.len(), 19, "golden cases");
    paths.iter().map(|path| CaseFile::read(path).unwrap()).collect()
}

/// An error relative to the tensor's root mean square, so that sums that cancel are fair.
fn allowed(expected: &[f64]) -> Vec<f64> {
    let squares: f64 = expected.iter().map(|v| v * v).sum();
    let scale = (squares / expected.len().max(1) as f64).sqrt();
    expected.iter().map(|v| TOLERANCE * (scale + v.abs())).collect()
}

#[test]
fn reproduces_the_golden_cases() {
    let mut compared = 0;
    for file in golden() {
        let results = reference::evaluate(&file.case).unwrap();
        let shapes = file.case.result_shapes();
        for (i, (name, found)) in Results::NAMES.into_iter().zip(results.tensors()).enumerate() {
            let Some(expected) = &file.expected[i] else {
                assert!(name == "grad_bias" && file.case.bias.is_none(), "{name}");
                continue;
            };
            let found: Vec<_> = found.iter().map(|&v| v as f32).collect();
            let bounds = allowed(expected);
            let comparison =
                Comparison::new(name, &shapes[i], Dtype::F32, &found, expected, &bounds);
            assert!(comparison.ok(), "{}: {comparison}", file.name);
            compared += 1;
        }
    }
    assert!(compared > 90, "{compared}");
}

#[test]
fn a_zero_norm_gives_a_zero_factor_and_a_zero_gradient() {
    for norm in [Norm::Input, Norm::Output] {
        let mut case = golden().into_iter().find(|file| file.case.norm == norm).unwrap().case;
        case.lora_b.fill(0.0);
        let [rows, cols] = [case.out_features, case.in_features];
        match norm {
            Norm::Output => case.weight[..cols].fill(0.0),
            _ => (0..rows).for_each(|row| case.weight[row * cols] = 0.0),
        }
        let results = reference::evaluate(&case).unwrap();
        assert_eq!(case.norms().unwrap()[0], 0.0);
        assert_eq!(results.grad_magnitude[0], 0.0);
        let bounds = reference::bounds(&case, Dtype::Bf16).unwrap();
        for tensor in results.tensors().into_iter().chain(bounds.tensors()) {
            assert!(tensor.iter().all(|v| v.is_finite()));
        }
    }
}

#[test]
fn without_a_norm_the_layer_is_plain_lora() {
    let mut dora = golden().into_iter().find(|file| file.case.norm == Norm::Output).unwrap().case;
    dora.magnitude = dora.norms().unwrap();
    let mut lora = dora.clone();
    (lora.norm, lora.magnitude) = (Norm::None, Vec::new());
    let [dora, lora] = [dora, lora].map(|case| reference::evaluate(&case).unwrap());
    assert!(lora.grad_magnitude.is_empty());
    for (lora, dora) in lora.tensors().into_iter().zip(dora.tensors()) {
        assert!(lora.iter().zip(dora).all(|(a, b)| (a - b).abs() <= 1e-12 * (1.0 + b.abs())));
    }
}

#[test]
fn no_tokens_give_empty_outputs_and_zero_gradients() {
    let mut case = golden().remove(0).case;
    (case.tokens, case.input, case.grad_output) = (0, Vec::new(), Vec::new());
    let results = reference::evaluate(&case).unwrap();
    assert!(results.output.is_empty() && results.grad_input.is_empty());
    assert_eq!(results.grad_lora_a, vec![0.0; case.rank * case.in_features]);
    assert_eq!(results.grad_magnitude, vec![0.0; case.magnitudes()]);
    reference::bounds(&case, Dtype::F16).unwrap();
}

#[test]
fn the_bounds_of_f32_are_small_and_those_of_16_bits_larger() {
    for file in golden() {
        let results = reference::evaluate(&file.case).unwrap();
        let [f32, f16, bf16] = [Dtype::F32, Dtype::F16, Dtype::Bf16]
            .map(|dtype| reference::bounds(&file.case, dtype).unwrap());
        let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        for (i, value) in results.tensors().into_iter().enumerate() {
            let [f32, f16, bf16] = [&f32, &f16, &bf16].map(|bounds| norm(bounds.tensors()[i]));
            assert!(f32 <= f16 && f32 <= bf16, "{}: {i}", file.name);
            assert!(f32 <= 2e-3 * norm(value), "{}: {i}: {f32:e}", file.name);
        }
    }
}

#[test]
fn a_tensor_of_the_wrong_length_is_named() {
    let mut case = golden().remove(0).case;
    case.lora_b.pop();
    let error = reference::evaluate(&case).unwrap_err();
    assert_eq!(
        error.to_string(),
        "reference case: lora_B has 2047 elements where its shape 128 × 16 needs 2048"
    );
}

#[test]
fn rounding_matches_the_dtypes() {
    assert_eq!(reference::rounded(1.0 + 2f64.powi(-9), Dtype::Bf16), 1.0);
    assert_eq!(reference::rounded(1.0 + 3.0 * 2f64.powi(-9), Dtype::Bf16), 1.0 + 2f64.powi(-7));
    assert_eq!(reference::rounded(2f64.powi(-25), Dtype::F16), 0.0);
    assert_eq!(reference::rounded(0.1, Dtype::F32), f64::from(0.1f32));
}
