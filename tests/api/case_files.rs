//! Case files and their comparison: what is refused, and with which words.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use fused_dora::Dtype;
use fused_dora::reference::{self, Results};
use fused_dora_testkit::case::{CaseFile, write_results};
use fused_dora_testkit::compare::{self, Comparison};
use safetensors::tensor::TensorView;
use safetensors::{Dtype as Stored, SafeTensors};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.safetensors"))
}

/// A folder of the test's own.
fn folder(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A case's tensors and metadata, to be spoiled.
struct Parts {
    tensors: HashMap<String, (Stored, Vec<usize>, Vec<u8>)>,
    metadata: HashMap<String, String>,
}

impl Parts {
    fn read() -> Self {
        let bytes = std::fs::read(golden("tiny_odd_input_detached")).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = tensors
            .iter()
            .map(|(name, view)| {
                (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
            })
            .collect();
        Self { tensors, metadata: header.metadata().clone().unwrap() }
    }

    /// What reading these parts from a file is answered with, without the path.
    fn problem(&self, test: &str) -> String {
        let path = folder("case_files").join(format!("{test}.safetensors"));
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let bytes = safetensors::serialize(views, Some(self.metadata.clone())).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let text = CaseFile::read(&path).unwrap_err().to_string();
        let prefix = format!("{}: ", path.display());
        text.strip_prefix(&prefix).expect("the path comes first").to_owned()
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = CaseFile::read(Path::new("nowhere.safetensors")).unwrap_err().to_string();
    assert!(error.starts_with("nowhere.safetensors: cannot be read: "), "{error}");
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = std::fs::read(golden("tiny_odd_input_detached")).unwrap();
    let path = folder("case_files").join("truncated.safetensors");
    for length in (0..bytes.len()).step_by(7) {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = CaseFile::read(&path).unwrap_err().to_string();
        assert!(error.contains("not a safetensors file, or truncated"), "{length}: {error}");
    }
}

#[test]
fn missing_tensors_are_named() {
    for name in ["input", "weight", "lora_A", "lora_B", "magnitude", "grad_output"] {
        let mut parts = Parts::read();
        parts.tensors.remove(name);
        let problem = parts.problem(name);
        assert!(problem.starts_with(&format!("tensor `{name}` is missing")), "{problem}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_named_together() {
    let mut parts = Parts::read();
    parts.tensors.get_mut("lora_B").unwrap().1 = vec![2, 7];
    assert_eq!(
        parts.problem("lora_b"),
        "`lora_B` has shape [2, 7], which does not fit `weight` of shape [7, 5]: it must be [7, 2]"
    );
    let mut parts = Parts::read();
    parts.tensors.get_mut("grad_output").unwrap().1 = vec![7, 3];
    assert_eq!(
        parts.problem("grad_output"),
        "`grad_output` has shape [7, 3], which does not fit `input` of shape [3, 5]: it must be \
         [3, 7]"
    );
    let mut parts = Parts::read();
    parts.tensors.get_mut("weight").unwrap().1 = vec![35];
    assert_eq!(
        parts.problem("weight"),
        "`weight` has shape [35] where [out_features, in_features] is needed"
    );
}

#[test]
fn unsupported_dtypes_are_named() {
    let mut parts = Parts::read();
    parts.tensors.get_mut("input").unwrap().0 = Stored::U16;
    assert_eq!(parts.problem("dtype"), "`input` is stored as U16; use BF16, F16, F32 or F64");
}

#[test]
fn bad_metadata_is_named() {
    let mut parts = Parts::read();
    parts.metadata.remove("scaling");
    assert_eq!(
        parts.problem("no_scaling"),
        "metadata `scaling` is missing; it must be a finite number"
    );
    for (key, value, needed) in [
        ("scaling", "NaN", "a finite number"),
        ("scaling", "two", "a finite number"),
        ("norm_axis", "rows", "input, output or none"),
        ("norm_grad", "half", "full or detached"),
    ] {
        let mut parts = Parts::read();
        parts.metadata.insert(key.to_owned(), value.to_owned());
        assert_eq!(
            parts.problem("metadata"),
            format!("metadata `{key}` is `{value}`; it must be {needed}")
        );
    }
}

#[test]
fn written_results_can_be_read_back() {
    let case = CaseFile::read(&golden("tiny_odd_input_detached")).unwrap().case;
    let results = reference::evaluate(&case).unwrap();
    let tensors = results.tensors().map(|tensor| tensor.iter().map(|&v| v as f32).collect());
    let path = folder("case_files").join("results.safetensors");
    write_results(&path, &case, &tensors).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let written = SafeTensors::deserialize(&bytes).unwrap();
    for ((name, shape), tensor) in Results::NAMES.into_iter().zip(case.result_shapes()).zip(tensors)
    {
        let view = written.tensor(name).unwrap();
        assert_eq!((view.dtype(), view.shape()), (Stored::F32, &shape[..]), "{name}");
        let values: Vec<f32> = fused_dora_testkit::case::decode(&view)
            .unwrap()
            .into_iter()
            .map(|v| v as f32)
            .collect();
        assert_eq!(values, tensor, "{name}");
    }
}

#[test]
fn a_comparison_names_what_is_beyond_its_bound() {
    let expected = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let bounds = [0.1; 6];
    let compare = |found: &[f32]| {
        Comparison::new("grad_input", &[2, 3], Dtype::Bf16, found, &expected, &bounds)
    };
    let same = compare(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert!(same.ok() && same.frobenius == 0.0);
    let wrong = compare(&[1.0, 2.0, 3.0, 4.5, 5.05, f32::NAN]);
    assert!(!wrong.ok());
    let text = wrong.to_string();
    for part in [
        "grad_input",
        "[2, 3]",
        "bf16",
        "FAIL: 2 of 6 elements",
        "at [1, 0]: found 4.5e0, expected 4e0, |error| 5.000e-1 > bound 1.000e-1",
        "at [1, 2]: found NaN",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let short = compare(&[1.0]);
    assert!(!short.ok() && short.to_string().contains("1 elements where the shape has 6"));
}

#[test]
fn what_rounding_does_to_the_inputs_is_allowed() {
    // Its smallest weights have bits that f16 does not.
    let case = CaseFile::read(&golden("aligned_output_detached")).unwrap().case;
    assert_eq!(case.rounded(Dtype::Bf16), case);
    let rounded = case.rounded(Dtype::F16);
    assert_ne!(rounded, case);
    let wide = compare::bounds(&case, Dtype::F16).unwrap();
    let narrow = reference::bounds(&rounded, Dtype::F16).unwrap();
    let pairs = wide.tensors().into_iter().zip(narrow.tensors());
    assert!(pairs.into_iter().all(|(wide, narrow)| wide.iter().zip(narrow).all(|(w, n)| w >= n)));
    assert_ne!(wide, narrow);
}
