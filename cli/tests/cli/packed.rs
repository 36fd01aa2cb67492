//! Bases whose weights are packed: bitsandbytes' 4 bits and int8, and fp8.

use std::fs;
use std::path::{Path, PathBuf};

use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::peft::{PackedModules, PeftCheckpoint, TensorFile};
use fused_dora::quant::{BlockScales, Code4, Fp8Scales, QuantizedWeight, Scales, WeightFormat};
use fused_dora::{Dtype, Norm};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::model::{Model, SHAPES};
use crate::program::{
    DEVICES, assert_clean, assert_near, call, fail, program, snapshot, succeed, workspace,
};
use crate::tensors::{self, Tensors, floats, values};

fn golden(name: &str) -> PathBuf {
    workspace().join("tests/golden-quant/qdora-llama").join(name)
}

fn merge(base: &Path, adapter: &Path, out: &Path, device: &str) -> std::process::Command {
    let mut merge = program();
    merge.args(call("merge", base, adapter, out)).args(["--device", device]);
    merge
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

/// A DoRA that PEFT trained on a model in NF4 with nested scales: merged weights are those that were
/// computed in float64, and the output is a dense model.
#[test]
fn a_qdora_of_peft_merges() {
    let folder = TempDir::new().expect("a folder");
    let expected = tensors::read(&golden("expected.safetensors"));
    let before = tensors::read(&golden("base/model.safetensors"));
    for device in DEVICES {
        let out = folder.path().join(device);
        let mut merge = merge(&golden("base"), &golden("dora"), &out, device);
        let text = succeed(merge.args(["--dtype", "f32"]));
        assert!(text.contains("14 weights (nf4, blocks of 64, nested scales, bf16)"), "{text}");
        assert!(text.contains("does not change 4 of these"), "{text}");
        let merged = tensors::read(&out.join("model.safetensors"));
        let (mut compared, mut unpacked) = (0, 0);
        for (name, tensor) in &merged {
            let is_packed = before.contains_key(&format!("{name}.absmax"));
            match expected.get(&format!("expected.merged.{name}")) {
                Some(expected) => {
                    assert_eq!((tensor.0, &tensor.1), (Stored::F32, &expected.1), "{name}");
                    assert_near(name, &values(tensor), &values(expected), 1e-5, 1e-7);
                    compared += 1;
                }
                None if is_packed => {
                    assert_eq!(tensor.0, Stored::F32, "{name}");
                    unpacked += 1;
                }
                None => assert!(*tensor == before[name], "{name}"),
            }
            assert!(!name.contains("absmax") && !name.contains("quant"), "{name}");
        }
        assert_eq!((compared, unpacked), (10, 4));
        assert_eq!(merged.len(), before.keys().filter(|name| !name.contains(".weight.")).count());
        let config = json_of(&out.join("config.json"));
        let mut old = json_of(&golden("base/config.json"));
        assert!(old.as_object_mut().expect("settings").remove("quantization_config").is_some());
        assert_eq!(config, old);
        assert!(out.join("generation_config.json").is_file());
        // Tensors are aligned, as loaders need them.
        let file = TensorFile::open(out.join("model.safetensors")).expect("a file");
        for name in file.names() {
            let at = file.info(&name).expect("a tensor").data_offsets.0 + file.header().len();
            assert_eq!(at % 4, 0, "{name}");
        }
    }
    assert_clean(folder.path());
}

/// With its gains, a merge of packed weights returns to the W that they stand for.
#[test]
fn a_merged_qdora_unmerges_to_dense_weights() {
    let folder = TempDir::new().expect("a folder");
    let [merged, gains, back] = ["merged", "gains", "back"].map(|name| folder.path().join(name));
    let mut merge = merge(&golden("base"), &golden("dora"), &merged, "cpu");
    succeed(merge.args(["--dtype", "f32", "--gains"]).arg(&gains));
    let mut unmerge = program();
    unmerge.args(call("unmerge", &merged, &golden("dora"), &back)).arg("--gains").arg(&gains);
    succeed(unmerge.args(["--device", "cpu"]));
    let back = tensors::read(&back.join("model.safetensors"));
    let files = [TensorFile::open(golden("base/model.safetensors")).expect("a file")];
    let packed = PackedModules::new(&files, None);
    assert_eq!(packed.names().count(), 14);
    for module in packed.names() {
        let weight = packed.find(&files, module).expect("a weight");
        let weight = weight.read(&files).expect("right numbers").dequantize::<f32>();
        assert_near(module, &values(&back[&format!("{module}.weight")]), &weight, 1e-5, 1e-6);
    }
}

/// By default a merged weight has the type from which it was packed, and a LoRA merges like a DoRA.
#[test]
fn packed_weights_return_to_their_type() {
    let folder = TempDir::new().expect("a folder");
    let [dora, lora, wide] = ["dora", "lora", "wide"].map(|name| folder.path().join(name));
    succeed(&mut merge(&golden("base"), &golden("dora"), &dora, "cpu"));
    succeed(&mut merge(&golden("base"), &golden("lora"), &lora, "cpu"));
    succeed(merge(&golden("base"), &golden("dora"), &wide, "cpu").args(["--dtype", "f32"]));
    let read = |path: &Path| tensors::read(&path.join("model.safetensors"));
    let [dora, lora, wide] = [&dora, &lora, &wide].map(|path| read(path));
    for (name, tensor) in &dora {
        assert_eq!(tensor.0, Stored::BF16, "{name}");
        // Rounded to bf16, whose significand has 8 bits.
        assert_near(name, &values(tensor), &values(&wide[name]), 1.0 / 256.0, 0.0);
    }
    let name = "model.layers.0.self_attn.q_proj.weight";
    assert!(dora[name] != lora[name]);
    let gate = "model.layers.0.mlp.gate_proj.weight";
    assert!(dora[gate] == lora[gate]);
}

/// A packed model, and its adapter: the dense one of other tests, packed.
fn packed(model: &Model, format: WeightFormat, config: &Value) -> PathBuf {
    let base = model.path("packed");
    fs::create_dir(&base).expect("room");
    for entry in fs::read_dir(model.model()).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = base.join(path.file_name().expect("a name"));
        match path.extension().is_some_and(|it| it == "safetensors") {
            true => tensors::save(&target, &packed_tensors(&tensors::read(&path), format)),
            false => drop(fs::copy(&path, &target).expect("room")),
        }
    }
    fs::write(base.join("config.json"), config.to_string()).expect("room");
    let index = base.join("model.safetensors.index.json");
    let mut map = serde_json::Map::new();
    for file in 1..=3 {
        let file = format!("model-{file}-of-00003.safetensors");
        for name in tensors::read(&base.join(&file)).into_keys() {
            map.insert(name, file.clone().into());
        }
    }
    let text = json!({ "metadata": { "total_size": 100_000 }, "weight_map": map }).to_string();
    fs::write(index, text).expect("room");
    base
}

fn packed_tensors(tensors: &Tensors, format: WeightFormat) -> Tensors {
    let mut packed = Tensors::new();
    for (name, tensor) in tensors {
        let Some(module) = name.strip_suffix(".weight") else {
            packed.insert(name.clone(), tensor.clone());
            continue;
        };
        let shape = [tensor.1[0], tensor.1[1]];
        let weight = QuantizedWeight::quantize(&values(tensor), shape, format).expect("a weight");
        let Scales::F32(scales) = weight.scales() else { panic!("f32") };
        let bytes = weight.packed().to_vec();
        let mut add = |part: &str, tensor| drop(packed.insert(format!("{module}.{part}"), tensor));
        match format {
            WeightFormat::Code4 { code, block, .. } => {
                add("weight", (Stored::U8, vec![bytes.len(), 1], bytes));
                add("weight.absmax", floats(&[scales.len()], scales));
                add("weight.quant_map", floats(&[16], &code.table()));
                let state = json!({ "quant_type": code.name(), "blocksize": block, "shape": shape,
                    "dtype": "bfloat16" });
                let state = state.to_string().into_bytes();
                let part = format!("weight.quant_state.bitsandbytes__{}", code.name());
                add(&part, (Stored::U8, vec![state.len()], state));
            }
            WeightFormat::Int8Rows => {
                add("weight", (Stored::I8, tensor.1.clone(), bytes));
                add("SCB", floats(&[scales.len()], scales));
                add("weight_format", (Stored::U8, vec![], vec![0]));
            }
            _ => {
                add("weight", (Stored::F8_E4M3, tensor.1.clone(), bytes));
                let grid = [shape[0].div_ceil(16), shape[1].div_ceil(32)];
                add("weight_scale_inv", floats(&grid, scales));
                add("input_scale", floats(&[1], &[0.5]));
            }
        }
    }
    packed
}

fn formats() -> [(WeightFormat, Value); 3] {
    let (code, scales) = (Code4::Fp4, BlockScales::F32);
    let bits4 = WeightFormat::Code4 { code, block: 32, scales, state: Dtype::Bf16 };
    let fp8 = WeightFormat::Fp8 { scales: Fp8Scales::Blocks { rows: 16, cols: 32 } };
    [
        (bits4, json!({ "quant_method": "bitsandbytes", "load_in_4bit": true })),
        (WeightFormat::Int8Rows, json!({ "quant_method": "bitsandbytes", "load_in_8bit": true })),
        (fp8, json!({ "quant_method": "fp8", "weight_block_size": [16, 32] })),
    ]
}

/// Each format, in several files: the output is that of merging the unpacked model.
#[test]
fn every_format_merges_as_its_unpacked_weights() {
    for (format, settings) in formats() {
        for norm in [Norm::Input, Norm::Output] {
            let model = Model::new(norm, Stored::BF16);
            let config = json!({ "model_type": "llama", "dtype": "bfloat16",
                "tie_word_embeddings": false, "quantization_config": settings });
            let base = packed(&model, format, &config);
            // The same weights, dense.
            let dense = model.path("dense");
            fs::create_dir(&dense).expect("room");
            let mut total = 0;
            for file in 1..=3 {
                let file = format!("model-{file}-of-00003.safetensors");
                let mut tensors = tensors::read(&model.model().join(&file));
                let packed_bytes =
                    tensors::read(&base.join(&file)).values().map(|it| it.2.len()).sum::<usize>();
                for (name, tensor) in &mut tensors {
                    if name.ends_with(".weight") {
                        let shape = [tensor.1[0], tensor.1[1]];
                        let weight = QuantizedWeight::quantize(&values(tensor), shape, format);
                        let unpacked = weight.expect("a weight").dequantize::<f32>();
                        *tensor = tensors::to(Stored::BF16, &floats(&shape, &unpacked));
                    }
                }
                total += tensors.values().map(|it| it.2.len()).sum::<usize>();
                total -= packed_bytes;
                tensors::save(&dense.join(&file), &tensors);
            }
            let index = "model.safetensors.index.json";
            fs::copy(model.model().join(index), dense.join(index)).expect("room");
            for (device, adapter) in DEVICES.into_iter().zip([model.lycoris(), model.lycoris()]) {
                let [out, expected] =
                    ["out", "expected"].map(|it| model.path(&format!("{it}-{device}")));
                succeed(&mut merge(&base, &adapter, &out, device));
                succeed(&mut merge(&dense, &adapter, &expected, device));
                let found = tensors::read_folder(&out);
                assert!(found == tensors::read_folder(&expected), "{format} on {device}");
                let index = json_of(&out.join("model.safetensors.index.json"));
                let named = index["weight_map"].as_object().expect("a map");
                assert!(named.keys().eq(found.keys()), "{format}");
                assert_eq!(index["metadata"]["total_size"], 100_000 + total, "{format}");
                let config = json_of(&out.join("config.json"));
                assert_eq!(config.get("quantization_config"), None);
                assert_eq!(config["model_type"], "llama");
            }
            assert_clean(model.folder.path());
        }
    }
}

/// `inspect` shows the formats, and `analyze` compares a packed base with what was merged.
#[test]
fn inspect_and_analyze_read_packed_bases() {
    let mut inspect = program();
    inspect.args(["inspect", "--adapter"]).arg(golden("dora"));
    let text = succeed(inspect.arg("--base").arg(golden("base")));
    let line = "Packed: 14 weights, nf4, blocks of 64, nested scales, bf16: ";
    assert!(text.contains(line), "{text}");

    let model = Model::new(Norm::Output, Stored::BF16);
    let (format, settings) = &formats()[2];
    let base = packed(&model, *format, &json!({ "quantization_config": settings }));
    let out = model.path("out");
    let error = fail(&mut merge(&base, &model.lycoris(), &out, "cpu"), 1);
    assert!(error.contains("does not say") && error.contains("--dtype"), "{error}");
    succeed(merge(&base, &model.lycoris(), &out, "cpu").args(["--dtype", "f32"]));
    let mut tables = Vec::new();
    for device in DEVICES {
        let mut analyze = program();
        analyze.args(["analyze", "--axis", "output", "--device", device, "--base"]).arg(&base);
        let text = succeed(analyze.arg("--changed").arg(&out));
        assert!(text.contains("4 of 5 weights moved"), "{text}");
        assert!(!text.contains("scale"), "{text}");
        let lines = text.lines().filter(|line| line.starts_with("model.layers."));
        let number = |word: &str| word.trim().parse::<f32>().expect("a number");
        tables.push(lines.flat_map(|line| line.split('|').skip(2).map(number)).collect::<Vec<_>>());
    }
    assert_eq!(tables[0].len(), 2 * SHAPES.len());
    // The one that the adapter does not change is the base's to the bit.
    assert_eq!(tables[0][8..], [0.0, 0.0]);
    assert_near("kernels against CPU", &tables[1], &tables[0], 1e-3, 1e-9);
}

/// What would be wrong is refused, and nothing is written.
#[test]
fn packed_bases_that_are_wrong_are_refused() {
    let model = Model::new(Norm::Output, Stored::BF16);
    let (format, settings) = &formats()[0];
    let config = |settings: &Value| {
        json!({ "model_type": "llama", "dtype": "bfloat16", "tie_word_embeddings": false,
            "quantization_config": settings })
    };
    let base = packed(&model, *format, &config(settings));
    let (adapter, out) = (model.peft(), model.path("out"));
    let refused = |parts: &[&str]| {
        let before = snapshot(model.folder.path());
        let error = fail(&mut merge(&base, &adapter, &out, "cpu"), 1);
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(snapshot(model.folder.path()) == before, "something was changed");
    };
    // By the settings.
    for (settings, parts) in [
        (json!({ "quant_method": "gptq" }), ["quant_method", "gptq"]),
        (
            json!({ "quant_method": "bitsandbytes", "load_in_4bit": true,
                "bnb_4bit_quant_type": "nf4" }),
            ["bnb_4bit_quant_type", "fp4"],
        ),
    ] {
        fs::write(base.join("config.json"), config(&settings).to_string()).expect("room");
        refused(&parts);
    }
    let first = base.join("model-1-of-00003.safetensors");
    let whole = fs::read(&first).expect("a file");
    // And by the tensors: those of the last, which the adapter does not change, too.
    fs::write(base.join("config.json"), config(settings).to_string()).expect("room");
    let last = base.join("model-3-of-00003.safetensors");
    let rest = fs::read(&last).expect("a file");
    let mut tensors = tensors::read(&last);
    let nan = tensors.get_mut("model.layers.4.proj.weight.absmax").expect("scales");
    nan.2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    tensors::save(&last, &tensors);
    refused(&["model.layers.4.proj.weight", "absmax is NaN"]);
    fs::write(&last, rest).expect("room");
    let mut tensors = tensors::read(&first);
    let state = "model.layers.0.proj.weight.quant_state.bitsandbytes__fp4";
    let tensor = tensors.get_mut(state).expect("a state");
    let text = String::from_utf8(tensor.2.clone()).expect("JSON").replace("[48,40]", "[40,48]");
    tensor.2 = text.into_bytes();
    tensors::save(&first, &tensors);
    refused(&["model.layers.0.proj.weight", "[40, 48]", "[48, 40]", "old bitsandbytes"]);
    fs::write(&first, whole).expect("room");

    let mut unmerge = program();
    let error = fail(unmerge.args(call("unmerge", &base, &adapter, &out)), 1);
    assert!(error.contains("model.layers.0.proj.weight") && error.contains("packed"), "{error}");
    let plain = Model::new(Norm::Output, Stored::BF16);
    let mut wide = merge(&plain.model(), &plain.peft(), &plain.path("out"), "cpu");
    let error = fail(wide.args(["--dtype", "f32"]), 2);
    assert!(error.contains("--dtype") && error.contains("no packed weight"), "{error}");
    // And then all is well.
    succeed(&mut merge(&base, &adapter, &out, "cpu"));
}

/// GPT-2's `Conv1D` has the transpose of what is packed: a merge would be wrong in silence where a
/// weight is square.
#[test]
fn packed_conv1d_is_refused() {
    let folder = TempDir::new().expect("a folder");
    let base = folder.path().join("base");
    fs::create_dir(&base).expect("room");
    let name = "transformer.h.0.attn.c_proj";
    let weight = tensors::wave(&[64, 64], 0.1, 0.0);
    let (format, settings) = &formats()[0];
    let dense = Tensors::from([(format!("{name}.weight"), weight)]);
    tensors::save(&base.join("model.safetensors"), &packed_tensors(&dense, *format));
    let layers = [(name.to_owned(), crate::model::layer([64, 64], Norm::Output, 0.1))];
    let adapter = folder.path().join("adapter");
    let checkpoint = PeftCheckpoint::new(layers.into()).expect("a checkpoint");
    checkpoint.write(&adapter, Dtype::F32).expect("room");
    for (model, is_refused) in [("gpt2", true), ("llama", false)] {
        let config = json!({ "model_type": model, "quantization_config": settings,
            "tie_word_embeddings": false });
        fs::write(base.join("config.json"), config.to_string()).expect("room");
        let out = folder.path().join(model);
        let mut merge = merge(&base, &adapter, &out, "cpu");
        match is_refused {
            true => {
                let error = fail(&mut merge, 1);
                assert!(error.contains("gpt2") && error.contains("[I, O]"), "{error}");
            }
            false => drop(succeed(&mut merge)),
        }
    }
}

/// Where the adapter changes dense weights only, packed ones stay as they are, to the byte.
#[test]
fn packed_weights_stay_where_none_is_adapted() {
    let model = Model::new(Norm::Output, Stored::BF16);
    let (format, settings) = &formats()[1];
    let config = json!({ "model_type": "llama", "tie_word_embeddings": false,
        "quantization_config": settings });
    let base = packed(&model, *format, &config);
    let last = base.join("model-3-of-00003.safetensors");
    let mut tensors = tensors::read(&last);
    let head = ("lm_head.weight".to_owned(), tensors::wave(&[32, 48], 0.1, 0.3));
    tensors.insert(head.0.clone(), head.1.clone());
    tensors::save(&last, &tensors);
    fs::remove_file(base.join("model.safetensors.index.json")).expect("an index");
    for number in 1..=3 {
        let file = |digits: &str| base.join(format!("model-{digits}{number}-of-00003.safetensors"));
        fs::rename(file(""), file("0000")).expect("a file");
    }
    let layers = [("lm_head".to_owned(), crate::model::layer([32, 48], Norm::Output, 0.1))];
    let adapter = model.path("adapter");
    let checkpoint = PeftCheckpoint::new(layers.into()).expect("a checkpoint");
    checkpoint.write(&adapter, Dtype::F32).expect("room");
    let out = model.path("out");
    let text = succeed(&mut merge(&base, &adapter, &out, "cpu"));
    assert!(!text.contains("acked"), "{text}");
    let (mut before, mut after) = (tensors::read_folder(&base), tensors::read_folder(&out));
    assert!(before.remove(&head.0) != after.remove(&head.0));
    assert!(before == after);
    let [old, new] = [&base, &out].map(|it| fs::read(it.join("config.json")).expect("a file"));
    assert!(old == new);
}
