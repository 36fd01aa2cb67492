//! `quantize`: bases whose linear layers are packed, as the programs read them whose formats they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::peft::{
    LayerAdapter, PackedModules, PeftCheckpoint, QuantizationConfig, TensorFile,
};
use fused_dora::{Dtype, Norm};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::model::{Model, SHAPES};
use crate::program::{assert_clean, call, fail, program, snapshot, succeed, workspace};
use crate::tensors::{self, Tensors, floats, to, values, wave};

const FORMATS: [&str; 5] = ["nf4", "nf4-nested", "fp4", "int8", "fp8-block"];

fn quantize(base: &Path, format: &str, out: &Path) -> Command {
    let mut quantize = program();
    quantize.args(["quantize", "--format", format, "--base"]).arg(base).arg("--out").arg(out);
    quantize
}

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

/// The files of a folder, and how its `config.json` says they are packed.
fn opened(folder: &Path) -> (Vec<TensorFile>, PackedModules) {
    let paths = fs::read_dir(folder).expect("a folder").map(|it| it.expect("an entry").path());
    let paths = paths.filter(|path| path.extension().is_some_and(|it| it == "safetensors"));
    let files: Vec<_> = paths.map(|path| TensorFile::open(path).expect("a file")).collect();
    let config = QuantizationConfig::read(folder.join("config.json")).expect("JSON");
    assert!(config.is_some(), "{}", folder.display());
    let packed = PackedModules::new(&files, config);
    (files, packed)
}

/// The tensors that bitsandbytes made of the golden files' sources, and those that fp8's definition
/// gives, under their names.
#[test]
fn tensors_are_those_of_the_golden_files() {
    for (file, format, block) in [
        ("quant_nf4", "nf4", "64"),
        ("quant_nf4_block128", "nf4", "128"),
        ("quant_nf4_odd", "nf4", "64"),
        ("quant_nf4_nested", "nf4-nested", "64"),
        ("quant_fp4", "fp4", "64"),
        ("quant_int8", "int8", ""),
        ("quant_fp8_block", "fp8-block", ""),
    ] {
        let golden = workspace().join(format!("tests/golden-quant/{file}.safetensors"));
        let golden = tensors::read(&golden);
        let folder = TempDir::new().expect("a folder");
        let [base, out] = ["base", "out"].map(|name| folder.path().join(name));
        tensors::save(&base, &Tensors::from([("m.weight".to_owned(), golden["source"].clone())]));
        let mut quantize = quantize(&base, format, &out);
        if !block.is_empty() {
            quantize.args(["--block", block]);
        }
        let text = succeed(&mut quantize);
        assert!(text.contains("quantization_config"), "{text}");
        let mut found = tensors::read(&out);
        for (name, expected) in &golden {
            if !name.starts_with("weight") && name != "SCB" {
                continue;
            }
            let found = found.remove(&format!("m.{name}"));
            let found = found.unwrap_or_else(|| panic!("{file}: {name} is missing"));
            if name.contains("quant_state") {
                let [mut found, mut expected] = [&found, expected].map(|it| json_of(&it.2));
                let [a, b] = [&mut found, &mut expected].map(|state| state["nested_offset"].take());
                if let (Some(a), Some(b)) = (a.as_f64(), b.as_f64()) {
                    assert!((a - b).abs() <= 4.0 * f64::from(f32::EPSILON) * b, "{file}: {a}, {b}");
                }
                assert_eq!(found, expected, "{file}");
                continue;
            }
            let is_codes = name == "weight" && golden.contains_key("cuda.weight");
            let expected = if is_codes { &golden["cuda.weight"] } else { expected };
            if name == "weight.nested_absmax" {
                // It has the rounding of the offset.
                let [found, expected] = [values(&found), values(expected)];
                for (a, b) in found.iter().zip(&expected) {
                    assert!((a - b).abs() <= 1e-6 * b, "{file}: {a}, {b}");
                }
                continue;
            }
            assert!(found == *expected, "{file}: {name}");
        }
        assert!(found.is_empty(), "{file}: {:?}", found.keys());
    }
}

/// A model in files, with an embedding, a tied head and a matrix that stays dense.
fn base() -> Model {
    let model = Model::new(Norm::Output, Stored::BF16);
    let config = json!({ "model_type": "llama", "dtype": "bfloat16", "tie_word_embeddings": true });
    fs::write(model.model().join("config.json"), config.to_string()).expect("room");
    let last = model.model().join("model-3-of-00003.safetensors");
    let mut tensors = tensors::read(&last);
    tensors
        .insert("model.embed_tokens.weight".to_owned(), to(Stored::BF16, &wave(&[9, 40], 1., 0.)));
    tensors.insert("model.layers.4.router.weight".to_owned(), wave(&[4, 40], 1.0, 0.5));
    tensors::save(&last, &tensors);
    let index = model.model().join("model.safetensors.index.json");
    let mut map = json_of(&fs::read(&index).expect("a file"));
    for name in ["model.embed_tokens.weight", "model.layers.4.router.weight"] {
        map["weight_map"][name] = json!("model-3-of-00003.safetensors");
    }
    fs::write(index, map.to_string()).expect("room");
    model
}

/// A packed model is read by its settings, has the loss that is reported, and takes an adapter.
#[test]
fn packed_models_are_read_and_merged() {
    let model = base();
    let before = tensors::read_folder(&model.model());
    for format in FORMATS {
        let [out, merged] = ["out", "merged"].map(|name| model.path(&format!("{name}-{format}")));
        let mut quantize = quantize(&model.model(), format, &out);
        let output = quantize.args(["--skip", "router", "--json"]).output().expect("the program");
        let document = json_of(&output.stdout);
        let after = tensors::read_folder(&out);
        let (files, packed) = opened(&out);
        let modules: Vec<_> = packed.names().map(str::to_owned).collect();
        assert_eq!(modules.len(), SHAPES.len(), "{format}: {modules:?}");
        let mut keys: Vec<String> = Vec::new();
        for (module, row) in modules.iter().zip(document["weights"].as_array().expect("weights")) {
            let tensor = packed.find(&files, module).expect("a packed weight");
            assert_eq!(tensor.format().name(), format);
            keys.extend(tensor.keys().iter().cloned());
            let weight = tensor.read(&files).expect("right numbers");
            let source = values(&before[&format!("{module}.weight")]);
            let found = weight.dequantize::<f32>();
            let sum = |of: &dyn Fn(usize) -> f32| {
                (0..source.len()).map(|n| f64::from(of(n)).powi(2)).sum::<f64>().sqrt()
            };
            let error = sum(&|n| found[n] - source[n]) / sum(&|n| source[n]);
            let reported = row["relative_error"].as_f64().expect("a number");
            assert_eq!(row["tensor"], format!("{module}.weight"));
            assert!((error - reported).abs() <= 1e-6 * error, "{format}: {error}, {reported}");
            let bound = if format.starts_with("fp8") || format == "int8" { 0.04 } else { 0.2 };
            assert!(error > 1e-3 && error < bound, "{format}: {error}");
        }
        // All else is there, to the byte.
        for (name, tensor) in &before {
            let is_packed = modules.iter().any(|module| *name == format!("{module}.weight"));
            assert!(is_packed || after[name] == *tensor, "{format}: {name}");
        }
        let others = before.len() - SHAPES.len();
        assert_eq!(after.len(), keys.len() + others, "{format}");
        let index = json_of(&fs::read(out.join("model.safetensors.index.json")).expect("a file"));
        assert!(index["weight_map"].as_object().expect("a map").keys().eq(after.keys()));
        let config = json_of(&fs::read(out.join("config.json")).expect("a file"));
        let settings = &config["quantization_config"];
        let skipped = match format {
            "fp8-block" => &settings["modules_to_not_convert"],
            _ => &settings["llm_int8_skip_modules"],
        };
        let dense = ["model.embed_tokens", "model.layers.4.router", "lm_head"];
        assert_eq!(*skipped, json!(dense), "{format}");
        assert_eq!(document["dense"], json!(dense[..2]));
        succeed(program().args(call("merge", &out, &model.peft(), &merged)));
        let merged = tensors::read_folder(&merged);
        assert!(merged.keys().eq(before.keys()), "{format}");
        assert!(merged.values().all(|tensor| tensor.0 != Stored::U8), "{format}");
    }
    assert_clean(model.folder.path());
}

/// A merge that is packed again has the tensors of its base, and of weights that the adapter does not
/// change the same codes.
#[test]
fn merged_models_are_packed_again() {
    let folder = TempDir::new().expect("a folder");
    let golden = |name: &str| workspace().join("tests/golden-quant/qdora-llama").join(name);
    let [out, dense] = ["out", "dense"].map(|name| folder.path().join(name));
    let mut merge = program();
    merge.args(call("merge", &golden("base"), &golden("dora"), &out));
    let text = succeed(merge.args(["--quantize", "nf4-nested", "--device", "cpu"]));
    assert!(text.contains("Packed again (nf4, blocks of 64, nested scales)"), "{text}");
    let [before, after] = [golden("base"), out.clone()].map(|it| tensors::read_folder(&it));
    assert!(before.keys().eq(after.keys()));
    for (name, tensor) in &before {
        let is_kept = !["down", "up", "o", "q", "v"]
            .iter()
            .any(|part| name.contains(&format!(".{part}_proj.")));
        if name.ends_with("_proj.weight") {
            assert_eq!(after[name] == *tensor, is_kept, "{name}");
        } else if !name.contains(".weight.") {
            assert!(after[name] == *tensor, "{name}");
        }
    }
    let config = |folder: &Path| json_of(&fs::read(folder.join("config.json")).expect("a file"));
    let [old, new] =
        [golden("base"), out.clone()].map(|it| config(&it)["quantization_config"].take());
    for name in ["quant_method", "load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"]
    {
        assert_eq!(new[name], old[name], "{name}");
    }
    // What it reports is what is lost: W' in bf16 against what is packed.
    let mut merge = program();
    merge.args(call("merge", &golden("base"), &golden("dora"), &dense));
    succeed(merge.args(["--device", "cpu"]));
    let dense = tensors::read_folder(&dense);
    let (files, packed) = opened(&out);
    let (from, base) = opened(&golden("base"));
    let module = "model.layers.0.self_attn.q_proj";
    let [found, w] = [(&files, &packed), (&from, &base)].map(|(files, packed)| {
        let weight = packed.find(files, module).expect("a weight").read(files).expect("numbers");
        weight.dequantize::<f32>()
    });
    let merged = values(&dense[&format!("{module}.weight")]);
    let sum = |of: &dyn Fn(usize) -> f32| {
        (0..w.len()).map(|n| f64::from(of(n)).powi(2)).sum::<f64>().sqrt()
    };
    let error = sum(&|n| found[n] - merged[n]) / sum(&|n| merged[n] - w[n]);
    let (_, table) = text.split_once("Packed again").expect("a table");
    let row = table.lines().find(|line| line.starts_with(module)).expect("a row");
    assert!(row.trim_end().ends_with(&format!("{error:.2e}")), "{error:.2e}: {row}");

    let small = folder.path().join("small");
    for (arguments, part) in [
        (&["--quantize", "nf4", "--gains", "gains"][..], "cannot be unmerged"),
        (&["--block", "64"], "--quantize"),
    ] {
        let mut merge = program();
        merge.args(call("merge", &golden("base"), &golden("dora"), &small)).args(arguments);
        let error = fail(&mut merge, 2);
        assert!(error.contains(part), "{error}");
    }
    let plain = Model::new(Norm::Output, Stored::BF16);
    let mut unmerge = program();
    unmerge.args(call("unmerge", &plain.model(), &plain.peft(), &small));
    let error = fail(unmerge.args(["--quantize", "nf4"]), 2);
    assert!(error.contains("an option of `merge`"), "{error}");
    assert!(!small.exists());
    assert_clean(folder.path());
}

/// NF4's steps are about a tenth of a block's largest weight: of a small adapter nothing is left.
#[test]
fn packing_again_loses_small_changes() {
    let folder = TempDir::new().expect("a folder");
    let [base, packed, adapter] = ["base", "packed", "adapter"].map(|it| folder.path().join(it));
    let weight = to(Stored::BF16, &wave(&[64, 64], 0.05, 0.0));
    tensors::save(&base, &Tensors::from([("m.weight".to_owned(), weight)]));
    succeed(&mut quantize(&base, "nf4", &packed));
    let layer = crate::model::layer([64, 64], Norm::None, 0.1);
    let factors = (layer.lora_a().to_vec(), layer.lora_b().to_vec());
    let small = LayerAdapter::new([64, 64], 4, 1e-2, Norm::None, factors.0, factors.1, vec![]);
    let layers = [("m".to_owned(), small.expect("a layer"))];
    let checkpoint = PeftCheckpoint::new(layers.into()).expect("a checkpoint");
    checkpoint.write(&adapter, Dtype::F32).expect("room");
    let kept = |arguments: &[&str]| {
        let out = folder.path().join(format!("out{}", arguments.len()));
        let mut merge = program();
        merge.args(call("merge", &packed, &adapter, &out)).args(["--device", "cpu", "--json"]);
        let output = merge.args(arguments).output().expect("the program");
        let document = json_of(&output.stdout);
        let of = |document: &Value| document["all"]["kept"].as_f64().unwrap_or(f64::NAN);
        [of(&document), of(&document["packed"])]
    };
    let [dense, packed] = kept(&["--dtype", "f32", "--quantize", "nf4"]);
    assert!(dense > 0.999, "{dense}");
    assert!(packed.abs() < 0.5, "{packed}");
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let model = base();
    let (base, out) = (model.model(), model.path("out"));
    let before = snapshot(model.folder.path());
    for (arguments, code, parts) in [
        (&["--format", "nf5"][..], 2, &["'nf5'", "nf4-nested", "fp8-block"][..]),
        (&["--format", "int8", "--block", "64"], 2, &["--block", "4 bits"]),
        (&["--format", "nf4", "--block", "48"], 1, &["48", "32 to 4096"]),
        (&["--format", "nf4", "--skip", "nothing"], 2, &["--skip nothing", "no such matrix"]),
        (&["--format", "nf4", "--skip", "*"], 2, &["no linear layer"]),
    ] {
        let mut quantize = program();
        quantize.arg("quantize").args(arguments).arg("--base").arg(&base).arg("--out").arg(&out);
        let error = fail(&mut quantize, code);
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
    }
    let error = fail(&mut quantize(&base, "nf4", &base), 2);
    assert!(error.contains("also read (--base)"), "{error}");
    assert!(snapshot(model.folder.path()) == before, "something was changed");

    let folder = TempDir::new().expect("a folder");
    let file = |name: &str, tensors: &[(&str, tensors::Tensor)]| -> PathBuf {
        let path = folder.path().join(name);
        let named = tensors.iter().map(|(name, it)| ((*name).to_owned(), it.clone()));
        tensors::save(&path, &named.collect());
        path
    };
    let weight = wave(&[8, 8], 1.0, 0.0);
    let clash =
        file("clash", &[("a.gate.weight", weight.clone()), ("a.gate_proj.weight", weight.clone())]);
    let error = fail(quantize(&clash, "nf4", &out).args(["--skip", "gate"]), 2);
    assert!(error.contains("`a.gate`") && error.contains("--skip a.gate_proj"), "{error}");
    let bad = file("bad", &[("a.weight", floats(&[1, 2], &[0.0, f32::NAN]))]);
    let error = fail(&mut quantize(&bad, "nf4", &out), 1);
    assert!(error.contains("`a.weight`") && error.contains("number 1"), "{error}");
    let large = file("large", &[("a.weight", floats(&[1, 2], &[0.0, 1e6]))]);
    let error = fail(&mut quantize(&large, "int8", &out), 1);
    assert!(error.contains("`a.weight`") && error.contains("f16"), "{error}");
    let packed = workspace().join("tests/golden-quant/qdora-llama/base");
    let error = fail(&mut quantize(&packed, "nf4", &out), 2);
    assert!(error.contains("packed already"), "{error}");
    // GPT-2's Conv1D.
    let gpt = folder.path().join("gpt");
    fs::create_dir(&gpt).expect("room");
    let conv = [("h.0.attn.c_attn.weight".to_owned(), weight)];
    tensors::save(&gpt.join("model.safetensors"), &conv.into());
    fs::write(gpt.join("config.json"), "{\"model_type\": \"gpt2\"}").expect("room");
    let error = fail(&mut quantize(&gpt, "nf4", &out), 1);
    assert!(error.contains("Conv1D"), "{error}");
    assert!(!out.exists());
    assert_clean(folder.path());
}
