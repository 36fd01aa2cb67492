//! What goes with a model's weights: its other files, its settings, tied weights and whole modules.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fused_dora::peft::PeftCheckpoint;
use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::{Dtype, Norm};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::model::{Model, layer};
use crate::program::{DEVICES, call, fail, program, succeed};
use crate::tensors::{self, Tensor, Tensors, to, values, wave};

const SHAPE: [usize; 2] = [16, 8];

/// A model with an embedding, perhaps a head, and an adapter for the head.
struct Tied {
    folder: TempDir,
    base: PathBuf,
    adapter: PathBuf,
    out: PathBuf,
}

impl Tied {
    fn new(config: &Value, has_head: bool, has_index: bool) -> Self {
        let folder = TempDir::new().expect("a folder");
        let [base, adapter, out] = ["base", "adapter", "out"].map(|it| folder.path().join(it));
        fs::create_dir(&base).expect("room");
        let weight = to(Stored::BF16, &wave(&SHAPE, 0.5, 1.0));
        let mut tensors = Tensors::from([
            ("model.embed_tokens.weight".to_owned(), weight.clone()),
            ("model.norm.weight".to_owned(), wave(&[8], 1.0, 0.0)),
        ]);
        if has_head {
            tensors.insert("lm_head.weight".to_owned(), weight);
        }
        let name = if has_index { "model-00001-of-00001.safetensors" } else { "model.safetensors" };
        tensors::save(&base.join(name), &tensors);
        if has_index {
            let map: BTreeMap<_, _> = tensors.keys().map(|tensor| (tensor, name)).collect();
            let index = json!({ "metadata": { "total_size": 100 }, "weight_map": map });
            fs::write(base.join("model.safetensors.index.json"), index.to_string()).expect("room");
        }
        fs::write(base.join("config.json"), config.to_string()).expect("room");
        let layers = BTreeMap::from([("lm_head".to_owned(), layer(SHAPE, Norm::Output, 2.0))]);
        let checkpoint = PeftCheckpoint::new(layers).expect("a checkpoint");
        checkpoint.write(&adapter, Dtype::F32).expect("room");
        Self { folder, base, adapter, out }
    }

    fn merge(&self) -> std::process::Command {
        let mut merge = program();
        merge.args(call("merge", &self.base, &self.adapter, &self.out));
        merge.args(["--device", "cpu"]);
        merge
    }

    fn refused(&self, parts: &[&str]) {
        let error = fail(&mut self.merge(), 1);
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!self.out.exists());
    }
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

/// A changed head is untied: both weights are there, and every setting says so.
#[test]
fn changed_heads_are_untied() {
    let tied = json!({ "model_type": "llama", "tie_word_embeddings": true });
    let by_default = json!({ "model_type": "gemma", "vocab_size": 16 });
    let nested = json!({
        "model_type": "llava",
        "text_config": { "model_type": "llama", "tie_word_embeddings": true },
    });
    let mut merged = Vec::new();
    for config in [&tied, &by_default, &nested] {
        for (has_head, has_index) in [(false, false), (true, false), (false, true)] {
            let model = Tied::new(config, has_head, has_index);
            let gains = model.folder.path().join("gains");
            let report = succeed(model.merge().arg("--gains").arg(&gains));
            assert!(report.contains("`lm_head.weight` is no longer tied"), "{report}");
            let settings = json_of(&model.out.join("config.json"));
            assert_eq!(settings["tie_word_embeddings"], false);
            assert_eq!(settings["model_type"], config["model_type"]);
            if config == &nested {
                assert_eq!(settings["text_config"]["tie_word_embeddings"], false);
            }
            let [before, after] = [&model.base, &model.out].map(|it| tensors::read_folder(it));
            let embedding = "model.embed_tokens.weight";
            assert!(after[embedding] == before[embedding]);
            assert!(after["lm_head.weight"] != before[embedding] && after.len() == 3);
            if has_index {
                let index = json_of(&model.out.join("model.safetensors.index.json"));
                assert_eq!(
                    index["weight_map"]["lm_head.weight"],
                    "model-00001-of-00001.safetensors"
                );
                assert_eq!(index["metadata"]["total_size"], 100 + 2 * 16 * 8);
            }
            let back = model.folder.path().join("back");
            let mut unmerge = program();
            unmerge.args(call("unmerge", &model.out, &model.adapter, &back));
            succeed(unmerge.args(["--device", "cpu", "--gains"]).arg(&gains));
            let again = tensors::read_folder(&back);
            let (found, wanted) = (values(&again["lm_head.weight"]), values(&before[embedding]));
            for (found, wanted) in found.iter().zip(&wanted) {
                assert!((found - wanted).abs() <= 0.02, "{found}, {wanted}");
            }
            merged.push(after["lm_head.weight"].clone());
        }
    }
    assert!(merged.iter().all(|head| *head == merged[0]));
    // Untied already: nothing to say, and the same weight.
    let untied = json!({ "model_type": "llama", "tie_word_embeddings": false });
    let model = Tied::new(&untied, true, false);
    assert!(!succeed(&mut model.merge()).contains("tied"));
    assert!(tensors::read_folder(&model.out)["lm_head.weight"] == merged[0]);
    assert_eq!(fs::read_to_string(model.out.join("config.json")).unwrap(), untied.to_string());
}

#[test]
fn heads_that_cannot_be_untied_are_refused() {
    let untied = json!({ "model_type": "llama", "tie_word_embeddings": false });
    Tied::new(&untied, false, false).refused(&["lm_head.weight", "missing"]);
    let encoder_decoder = json!({ "model_type": "t5", "is_encoder_decoder": true });
    for has_head in [false, true] {
        let parts = ["tie_word_embeddings", "t5", "lm_head.weight", "transformers"];
        Tied::new(&encoder_decoder, has_head, false).refused(&parts);
    }
    let mut model = Tied::new(&json!({ "model_type": "gemma" }), false, false);
    let folder = model.base.clone();
    model.base = folder.join("model.safetensors");
    model.refused(&["lm_head.weight", "model.embed_tokens.weight", "name the folder"]);
    fs::remove_file(folder.join("config.json")).expect("a file");
    model.refused(&["lm_head.weight", "model.embed_tokens.weight", "config.json"]);
    // A copy of the head's weight, next to its adapter: that of the embedding, or another.
    let model = Tied::new(&json!({ "model_type": "gemma" }), false, false);
    let file = model.adapter.join(PeftCheckpoint::FILE);
    let mut stored = tensors::read(&file);
    let own = tensors::read_folder(&model.base)["model.embed_tokens.weight"].clone();
    for (weight, is_own) in [(wave(&SHAPE, 0.5, 7.0), false), (own, true)] {
        stored.insert("base_model.model.lm_head.base_layer.weight".to_owned(), weight);
        tensors::save(&file, &stored);
        match is_own {
            true => assert!(succeed(&mut model.merge()).contains("those of the base: 1")),
            false => model.refused(&["lm_head.base_layer.weight", "model.embed_tokens.weight"]),
        }
    }
    // An embedding alone: the head has its weight too, and is not stored.
    let model = Tied::new(&json!({ "model_type": "gemma" }), false, false);
    let mut merge = model.merge();
    let error = fail(merge.args(["--map", "lm_head=model.embed_tokens"]), 1);
    assert!(error.contains("model.embed_tokens.weight") && error.contains("head"), "{error}");
    // Without settings there is only something to say.
    let model = Tied::new(&json!({}), true, false);
    fs::remove_file(model.base.join("config.json")).expect("a file");
    assert!(succeed(&mut model.merge()).contains("there is no config.json"));
}

/// Every file that is no weight goes along, links and folders too; the others are named.
#[test]
fn other_files_go_along_or_are_named() {
    let model = Model::new(Norm::Output, Stored::F32);
    let base = model.model();
    let adapter = base.join("adapter");
    fs::rename(model.peft(), &adapter).expect("a folder");
    for folder in ["1_Pooling", "2_Dense", ".git", ".cache", "onnx", "tokenizer/deep"] {
        fs::create_dir_all(base.join(folder)).expect("room");
    }
    let modules = json!([{ "path": "" }, { "path": "1_Pooling" }, { "path": "2_Dense" }]);
    let text = modules.to_string();
    let copied = [
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "2_Dense/pytorch_model.bin",
        "LICENSE",
        "config.json",
        "modeling_x.py",
        "modules.json",
        "onnx/config.json",
        "tokenizer/deep/vocab.bpe",
        "tokenizer/x.tiktoken",
    ];
    let left_out = [
        ".cache",
        ".git",
        ".gitattributes",
        "adapter",
        "adapter_config.json",
        "consolidated.safetensors",
        "model.gguf",
        "onnx/model.onnx",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
    ];
    for name in copied.iter().chain(&left_out) {
        let path = base.join(name);
        if !path.exists() {
            fs::write(&path, if *name == "modules.json" { &text } else { *name }).expect("room");
        }
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("LICENSE", base.join("COPYING")).expect("room");
        std::os::unix::fs::symlink("nothing", base.join("broken")).expect("room");
        std::os::unix::fs::symlink("tokenizer", base.join("linked")).expect("room");
    }
    let out = model.path("out");
    let mut merge = program();
    merge.args(call("merge", &base, &adapter, &out)).args(["--device", "cpu", "--json"]);
    let output = merge.output().expect("the program");
    let document: Value = serde_json::from_slice(&output.stdout).expect("a document");
    let list = |names: &[&str], more: &[&str]| {
        let mut all: Vec<_> = names.iter().chain(more).map(|name| (*name).to_owned()).collect();
        all.sort();
        all
    };
    let links = |names: &'static [&'static str]| if cfg!(unix) { names } else { &[] };
    let wanted = list(&copied, links(&["COPYING"]));
    let mut found: Vec<String> = serde_json::from_value(document["copied"].clone()).expect("names");
    found.sort();
    assert_eq!(found, wanted);
    for name in &wanted {
        assert!(fs::read(out.join(name)).expect("a copy") == fs::read(base.join(name)).unwrap());
    }
    let entries = document["left_out"].as_array().expect("files");
    let names: Vec<_> = entries.iter().map(|it| it["path"].as_str().expect("a path")).collect();
    assert_eq!(names, list(&left_out, links(&["broken", "linked"])));
    for name in names {
        assert!(!out.join(name).exists(), "{name}");
    }
    // A target within the base would become a part of it.
    let inside = base.join("merged");
    let error = fail(program().args(call("merge", &base, &adapter, &inside)), 2);
    assert!(error.contains("also read (--base)"), "{error}");
}

/// A folder's weights without an index: all of them, or a refusal that says what is missing.
#[test]
fn weights_without_an_index_are_complete_or_refused() {
    let model = Model::new(Norm::Output, Stored::F32);
    let (base, adapter) = (model.model(), model.peft());
    let run = |name: &str| {
        let out = model.path(name);
        let mut merge = program();
        merge.args(call("merge", &base, &adapter, &out)).args(["--device", "cpu"]);
        (merge, out)
    };
    let (mut merge, with_index) = run("with-index");
    succeed(&mut merge);
    let index = base.join("model.safetensors.index.json");
    let kept = fs::read(&index).expect("a file");
    fs::remove_file(&index).expect("a file");
    let (mut merge, without) = run("without");
    assert!(succeed(&mut merge).contains("No index: all 3 files"));
    assert!(tensors::read_folder(&without) == tensors::read_folder(&with_index));
    let third = base.join("model-00003-of-00003.safetensors");
    for number in 1..=3 {
        let from = base.join(format!("model-{number}-of-00003.safetensors"));
        fs::rename(from, base.join(format!("model-{number:05}-of-00003.safetensors")))
            .expect("room");
    }
    let moved = model.path("moved");
    fs::rename(&third, &moved).expect("a file");
    let refused = |parts: &[&str]| {
        let error = fail(&mut run("refused").0, 1);
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
    };
    refused(&["no index", "model-00001-of-00003.safetensors", "missing: number 3"]);
    fs::rename(&moved, &third).expect("a file");
    fs::copy(&third, base.join("model.safetensors")).expect("room");
    fs::write(&index, String::from_utf8(kept).unwrap().replace("model-", "model-0000")).unwrap();
    refused(&["model.safetensors", "model.safetensors.index.json", "--base"]);
    for file in fs::read_dir(&base).expect("a folder").map(|it| it.expect("an entry").path()) {
        if file.extension().is_some_and(|it| it == "safetensors") || file == index {
            fs::remove_file(file).expect("a file");
        }
    }
    refused(&["no model.safetensors", "`pytorch_model.bin`", "save_pretrained"]);
    fs::create_dir(base.join("unet")).expect("room");
    tensors::save(&base.join("unet/diffusion_pytorch_model.safetensors"), &Tensors::new());
    refused(&["its folders have: `unet`"]);
    for name in ["a.safetensors", "b.safetensors"] {
        tensors::save(&base.join(name), &Tensors::new());
    }
    refused(&["`a.safetensors`, `b.safetensors`", "--base"]);
}

/// `modules_to_save`: inspected, named by a merge, and replaced on request.
#[test]
fn whole_modules_are_replaced_on_request() {
    let model = Model::new(Norm::Output, Stored::BF16);
    let (base, adapter) = (model.model(), model.peft());
    let file = adapter.join(PeftCheckpoint::FILE);
    let plain = tensors::read(&file);
    let (last, bias) = ("model.layers.4.proj.weight", "model.layers.4.proj.bias");
    let with = |more: &[(&str, Tensor)]| {
        let mut tensors = plain.clone();
        for (name, tensor) in more {
            tensors.insert(format!("base_model.model.{name}"), tensor.clone());
        }
        tensors::save(&file, &tensors);
    };
    let settings = adapter.join("adapter_config.json");
    let text = fs::read_to_string(&settings).expect("a file");
    let saved = text.replace("\"modules_to_save\": null", "\"modules_to_save\": [\"score\"]");
    fs::write(&settings, saved).expect("room");
    let run = |name: &str, arguments: &[&str]| {
        let out = model.path(name);
        let mut merge = program();
        merge.args(call("merge", &base, &adapter, &out)).args(["--device", "cpu"]).args(arguments);
        (merge, out)
    };
    let (weight, score) = (wave(&[16, 24], 0.3, 9.0), wave(&[2, 24], 0.3, 8.0));
    with(&[
        ("model.layers.4.proj.weight", weight.clone()),
        ("score.modules_to_save.default.weight", score.clone()),
    ]);
    let report = succeed(program().args(["inspect", "--adapter"]).arg(&adapter));
    for name in [last, "score.weight"] {
        assert!(
            report.contains(&format!("Holds a tensor of the model itself: {name}")),
            "{report}"
        );
    }
    let error = fail(&mut run("refused", &[]).0, 1);
    for part in [last, "`score.weight`", "--replace-modules", PeftCheckpoint::FILE] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let gains = model.path("gains");
    let (mut merge, out) = run("replaced", &["--replace-modules", "--gains"]);
    let report = succeed(merge.arg(&gains));
    assert!(report.contains(&format!("Replaced: {last}")), "{report}");
    assert!(report.contains("`score.weight` is new"), "{report}");
    let after = tensors::read_folder(&out);
    assert!(after[last] == to(Stored::BF16, &weight) && after["score.weight"] == score);
    assert!(after[bias] == tensors::read_folder(&base)[bias]);
    let index = json_of(&out.join("model.safetensors.index.json"));
    assert_eq!(index["weight_map"]["score.weight"], "model-3-of-00003.safetensors");
    // They are not in a merged model, and cannot be put back.
    let unmerge = |name: &str| {
        let mut unmerge = program();
        unmerge.args(call("unmerge", &out, &adapter, &model.path(name)));
        unmerge.args(["--device", "cpu", "--gains"]).arg(&gains);
        unmerge
    };
    assert!(fail(&mut unmerge("back"), 1).contains("--replace-modules"));
    let report = succeed(unmerge("back").arg("--replace-modules"));
    assert!(report.contains("Left as they are in --base") && report.contains(last), "{report}");
    // An embedding whose place is not clear.
    with(&[("embed_tokens.weight", wave(&[2, 24], 0.3, 9.0))]);
    let more = base.join("model-3-of-00003.safetensors");
    let whole = fs::read(&more).expect("a file");
    let mut tensors = tensors::read(&more);
    tensors.insert("decoder.embed_tokens.weight".to_owned(), wave(&[2, 24], 0.3, 9.0));
    tensors::save(&more, &tensors);
    let error = fail(&mut run("unclear", &["--replace-modules"]).0, 1);
    assert!(
        error.contains("not clear") && error.contains("--map embed_tokens=decoder.embed_tokens"),
        "{error}"
    );
    fs::write(&more, whole).expect("room");
    // Another shape, as of more tokens; and a copy that is the base's, and one that is not.
    with(&[("model.layers.4.proj.weight", wave(&[17, 24], 0.3, 9.0))]);
    let error = fail(&mut run("resized", &["--replace-modules"]).0, 1);
    assert!(error.contains("[17, 24]") && error.contains("resize_token_embeddings"), "{error}");
    let own = tensors::read_folder(&base)["model.layers.0.proj.weight"].clone();
    let copy = "model.layers.0.proj.base_layer.weight";
    with(&[(copy, to(Stored::F32, &own))]);
    assert!(succeed(&mut run("copy", &[]).0).contains("are those of the base"));
    with(&[(copy, wave(&[48, 40], 0.3, 9.0))]);
    let error = fail(&mut run("other", &["--replace-modules"]).0, 1);
    assert!(error.contains(copy) && error.contains("save_embedding_layers=False"), "{error}");
}

/// An adapter that changes nothing has no share that rounding kept; a hint says what unmerge needs.
#[test]
fn idle_adapters_and_missing_gains_are_said() {
    let folder = TempDir::new().expect("a folder");
    let base = folder.path().join("base.safetensors");
    let adapter = folder.path().join("adapter");
    let weight = wave(&SHAPE, 0.5, 1.0);
    tensors::save(&base, &Tensors::from([("a.weight".to_owned(), weight.clone())]));
    let norms = values(&weight);
    let norms = norms.chunks(8).map(|row| row.iter().map(|w| w * w).sum::<f32>().sqrt());
    let layer = |norm, magnitude| {
        let a = values(&wave(&[2, 8], 0.1, 3.0));
        fused_dora::peft::LayerAdapter::new(SHAPE, 2, 1.0, norm, a, vec![0.0; 32], magnitude)
    };
    for (number, layer) in
        [layer(Norm::None, vec![]), layer(Norm::Output, norms.collect())].into_iter().enumerate()
    {
        let layers = BTreeMap::from([("a".to_owned(), layer.expect("a layer"))]);
        PeftCheckpoint::new(layers).expect("one").write(&adapter, Dtype::F32).expect("room");
        let out = folder.path().join(format!("out{number}"));
        let mut merge = program();
        merge.args(call("merge", &base, &adapter, &out)).args(["--device", "cpu"]);
        let report = succeed(&mut merge);
        assert!(report.contains("The adapter changes nothing"), "{report}");
        assert!(!report.contains('%'), "{report}");
        assert_eq!(report.matches("Without --gains FILE").count(), number, "{report}");
    }
}

/// `analyze` names what it does not count.
#[test]
fn analyze_names_what_it_leaves_out() {
    let folder = TempDir::new().expect("a folder");
    let [base, changed] = ["base", "changed"].map(|name| folder.path().join(name));
    let mut tensors = Tensors::from([
        ("a.weight".to_owned(), wave(&SHAPE, 0.5, 1.0)),
        ("b.weight".to_owned(), wave(&SHAPE, 0.5, 2.0)),
        ("a.bias".to_owned(), wave(&[16], 0.5, 2.0)),
        ("c.weight".to_owned(), wave(&[4, 4, 3, 3], 0.5, 2.0)),
        ("d.weight".to_owned(), (Stored::I64, vec![1, 1], vec![0; 8])),
    ]);
    tensors::save(&base, &tensors);
    let weight = tensors.get_mut("b.weight").expect("a weight");
    weight.2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    tensors.insert("e.weight".to_owned(), wave(&SHAPE, 0.5, 1.0));
    tensors::save(&changed, &tensors);
    for (device, part) in DEVICES.into_iter().flat_map(|device| PARTS.map(|part| (device, part))) {
        let mut analyze = program();
        analyze.args(["analyze", "--axis", "output", "--device", device, "--base"]).arg(&base);
        let report = succeed(analyze.arg("--changed").arg(&changed));
        assert!(report.contains(part), "{part}: {report}");
    }
}

const PARTS: [&str; 4] = [
    "NaN or infinity, not counted as moved: b.weight",
    "no matrix of bf16, f16 or f32: a.bias, c.weight, d.weight",
    "only in --changed: e.weight",
    "0 of 2 weights moved",
];

/// The device, and why it is not another.
#[test]
fn devices_are_named() {
    let model = Model::new(Norm::None, Stored::F32);
    let (base, adapter) = (model.model(), model.peft());
    let run = |name: &str, device: &str| {
        let mut merge = program();
        merge.args(call("merge", &base, &adapter, &model.path(name))).args(["--device", device]);
        merge
    };
    let report = succeed(&mut run("auto", "auto"));
    let is_gpu = !report.contains("Device: CPU");
    assert!(is_gpu || report.contains("\nNo GPU: "), "{report}");
    if !is_gpu {
        assert!(fail(&mut run("cuda", "cuda"), 1).contains("--device: "));
    }
    // The emulated device has its settings from the environment, as in any other program.
    for (variable, wrong, right) in [
        ("CUDA_EMULATOR_SEED", "x", "7"),
        ("CUDA_EMULATOR_ACCUMULATOR", "x", "exact"),
        ("CUDA_EMULATOR_JITTER", "x", "1"),
    ] {
        let error = fail(run("wrong", "emulated").env(variable, wrong), 1);
        assert!(error.contains(variable), "{error}");
        succeed(run(variable, "emulated").env(variable, right));
    }
}
