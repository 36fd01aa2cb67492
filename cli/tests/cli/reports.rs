//! Adapters and models as other programs write them, made from public reports: each is merged to
//! the right values (`expected64.safetensors`), or refused with what to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fused_dora::peft::safetensors::{Dtype as Stored, SafeTensors};
use tempfile::TempDir;

use crate::program::{call, fail, program, succeed};
use crate::tensors::{self, values};

/// A case's folder.
fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reports").join(name)
}

/// A part of a case, which is a folder or one file.
fn part(case: &Path, name: &str) -> PathBuf {
    let folder = case.join(name);
    if folder.is_dir() { folder } else { case.join(format!("{name}.safetensors")) }
}

fn merge(case: &Path, out: &Path) -> Command {
    let mut merge = program();
    merge.args(call("merge", &part(case, "base"), &part(case, "adapter"), out));
    merge.args(["--device", "cpu"]);
    merge
}

/// The output has the expected values, and nothing else has changed.
pub fn assert_expected(case: &Path, base: &Path, out: &Path) {
    let bytes = fs::read(case.join("expected64.safetensors")).expect("a file");
    let expected = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let [found, before] = [out, base].map(|path| match path.is_dir() {
        true => tensors::read_folder(path),
        false => tensors::read(path),
    });
    for (name, view) in expected.tensors() {
        let wanted: Vec<f64> =
            view.data().as_chunks().0.iter().map(|&eight| f64::from_le_bytes(eight)).collect();
        let wrapped = name.replace(".weight", ".base_layer.weight");
        let tensor = found.get(&name).or_else(|| found.get(&wrapped));
        let tensor = tensor.unwrap_or_else(|| panic!("{name} is missing"));
        let bound = if tensor.0 == Stored::BF16 { 8e-3 } else { 1e-6 };
        let most = wanted.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
        assert_eq!(tensor.1, view.shape(), "{name}");
        for (found, wanted) in values(tensor).iter().zip(&wanted) {
            let error = (f64::from(*found) - wanted).abs();
            assert!(error <= bound * most, "{name}: {found} where {wanted} should be");
        }
    }
    for (name, tensor) in &before {
        let plain = name.replace(".base_layer.", ".");
        if expected.tensor(&plain).is_err() {
            assert!(found.get(name) == Some(tensor), "{name} is not as it was");
        }
    }
}

#[test]
fn cases_are_merged_to_the_right_values() {
    for (name, arguments, parts) in [
        ("automodel_adapter", &[][..], &["`layers.`", "`model.layers.`", "(4 tensors)"][..]),
        ("cfg_future", &["some_new_name", "some_new_number"], &["Ignored: some_new_name"]),
        ("diffusers_file", &[], &["no alpha and no settings", "s is 1"]),
        ("dotted_kohya", &[], &["`transformer.single_transformer_blocks.`"]),
        ("gpt2_head_nosave", &[], &["Stored [I, O]: 2 weights"]),
        ("gpt2_prefix", &[], &["`transformer.h.`", "`h.`", "Stored [I, O]: 4 weights"]),
        ("lm_head_untied", &[], &["those of the base"]),
        ("no_index", &[], &["No index: all 2 files are read."]),
        ("other_files", &[], &["Copied with the weights: 16 files", "Left out: pytorch_model.bin"]),
        ("pre_fsdp", &[], &[]),
        ("tied_none", &[], &["no longer tied", "tie_word_embeddings is false"]),
        ("vlm_llava", &[], &["`model.language_model.layers.`", "`language_model.model.layers.`"]),
        ("vlm_qwen2vl", &[], &["`model.language_model.layers.`", "`model.layers.`"]),
    ] {
        let folder = TempDir::new().expect("a folder");
        let (case, out) = (case(name), folder.path().join("out"));
        let mut merge = merge(&case, &out);
        for setting in arguments {
            merge.args(["--ignore-setting", setting]);
        }
        let report = succeed(&mut merge);
        for part in parts {
            assert!(report.contains(part), "{name}: {part}: {report}");
        }
        assert_expected(&case, &part(&case, "base"), &out);
    }
}

#[test]
fn cases_that_cannot_be_merged_say_what_to_do() {
    for (name, parts) in [
        ("cfg_future", &["some_new_name is \"default\"", "--ignore-setting some_new_name"][..]),
        ("cfg_torchtune", &["lora_magnitude_vector", "use_dora is missing", "torchtune"]),
        ("lycoris_conv", &["conv1.lora_down.weight", "convolution"]),
    ] {
        let folder = TempDir::new().expect("a folder");
        let out = folder.path().join("out");
        let error = fail(&mut merge(&case(name), &out), 1);
        for part in parts {
            assert!(error.contains(part), "{name}: {part}: {error}");
        }
        assert!(!out.exists());
    }
    for (setting, part) in [
        ("lora_alpha", "is understood"),
        ("some_name", "not in the file"),
        ("lora_bias", "not in the file"),
    ] {
        let mut merge = merge(&case("cfg_future"), Path::new("out"));
        let error = fail(merge.args(["--ignore-setting", setting]), 1);
        assert!(error.contains(setting) && error.contains(part), "{error}");
    }
    let mut single = merge(&case("diffusers_file"), Path::new("out"));
    let error = fail(single.args(["--ignore-setting", "x"]), 2);
    assert!(error.contains("has no settings"), "{error}");
    let mut strict = merge(&case("gpt2_prefix"), Path::new("out"));
    let error = fail(strict.arg("--strict-names"), 1);
    for part in ["transformer.h.0.attn.c_attn.weight", "--map", "h.0.attn.c_attn"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

/// Square weights of GPT-2 in one file: biases of others show how they are stored. Without these,
/// nothing does, and an option has to.
#[test]
fn square_weights_are_not_guessed() {
    let case = case("gpt2_head_nosave");
    let folder = TempDir::new().expect("a folder");
    let base = folder.path().join("base.safetensors");
    let mut tensors = tensors::read(&case.join("base/model.safetensors"));
    tensors::save(&base, &tensors);
    let adapter = case.join("adapter");
    let run = |name: &str| {
        let out = folder.path().join(name);
        let mut merge = program();
        merge.args(call("merge", &base, &adapter, &out)).args(["--device", "cpu"]);
        (merge, out)
    };
    let (mut by_biases, out) = run("by-biases");
    succeed(&mut by_biases);
    assert_expected(&case, &base, &out);
    tensors.retain(|name, _| !name.ends_with(".bias"));
    tensors::save(&base, &tensors);
    let (mut unknown, out) = run("unknown");
    let error = fail(&mut unknown, 1);
    for part in [
        "h.0.attn.c_proj",
        "square",
        "--transposed transformer.h.0.attn.c_proj",
        "--not-transposed",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!out.exists());
    let (mut named, out) = run("named");
    succeed(named.args(["--transposed", "attn.c_proj"]));
    assert_expected(&case, &base, &out);
    let (mut straight, _) = run("straight");
    let report = succeed(straight.args(["--not-transposed", "transformer.*"]));
    assert!(!report.contains("[I, O]"), "{report}");
    for (arguments, part) in [
        (&["--transposed", "c_proj", "--not-transposed", "attn.c_proj"][..], "both name"),
        (
            &["--transposed", "c_proj", "--transposed", "lm_head"],
            "the shape shows that it is not transposed",
        ),
        (&["--transposed", "c_fc"], "no such module"),
        (&["--map", "h.0=x"], "no module of the adapter begins with"),
        (&["--map", "transformer.h=x"], "does not have"),
        (&["--replace-modules", "--transposed", "c_proj"], "no whole tensors"),
    ] {
        let (mut wrong, out) = run("wrong");
        let error = fail(wrong.args(arguments), 2);
        assert!(error.contains(part), "{arguments:?}: {error}");
        assert!(!out.exists());
    }
}
