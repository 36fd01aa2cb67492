//! Which tensors of a base an adapter's modules mean, and how they are stored.

use std::fs;
use std::path::{Path, PathBuf};

use fused_dora::peft::PeftCheckpoint;
use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::{Dtype, Norm};
use serde_json::json;
use tempfile::TempDir;

use crate::model::layer;
use crate::program::{call, fail, program, succeed};
use crate::tensors::{self, Tensors, floats, wave};

/// A place for one base and one adapter.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: TempDir::new().expect("a folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A base of weights `[O, I]`.
    fn base(&self, weights: &[(&str, [usize; 2])]) -> PathBuf {
        let tensors = weights.iter().enumerate().map(|(number, (name, shape))| {
            (format!("{name}.weight"), wave(shape, 0.5, number as f32))
        });
        tensors::save(&self.path("base.safetensors"), &tensors.collect());
        self.path("base.safetensors")
    }

    /// PEFT's adapter for modules.
    fn adapter(&self, modules: &[(&str, [usize; 2])]) -> PathBuf {
        let layers = modules.iter().enumerate().map(|(number, (name, shape))| {
            ((*name).to_owned(), layer(*shape, Norm::Output, 3.0 + number as f32))
        });
        let checkpoint = PeftCheckpoint::new(layers.collect()).expect("a checkpoint");
        checkpoint.write(self.path("adapter"), Dtype::F32).expect("room");
        self.path("adapter")
    }

    /// The weights after a merge, and what it printed.
    fn merge(&self, arguments: &[&str]) -> (Tensors, String) {
        let (out, mut merge) = (self.path("out.safetensors"), program());
        let (base, adapter) = (self.path("base.safetensors"), self.path("adapter"));
        merge.args(call("merge", &base, &adapter, &out)).args(["--device", "cpu"]).args(arguments);
        let report = succeed(&mut merge);
        let tensors = tensors::read(&out);
        fs::remove_file(out).expect("a file");
        (tensors, report)
    }

    fn refused(&self, arguments: &[&str], parts: &[&str]) {
        let (out, mut merge) = (self.path("out.safetensors"), program());
        let (base, adapter) = (self.path("base.safetensors"), self.path("adapter"));
        merge.args(call("merge", &base, &adapter, &out)).args(["--device", "cpu"]).args(arguments);
        let error = fail(&mut merge, 1);
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!out.exists());
    }
}

/// Which weights of a base have changed.
fn changed(before: &Path, after: &Tensors) -> Vec<String> {
    let before = tensors::read(before);
    let changed = after.iter().filter(|(name, tensor)| before.get(*name) != Some(tensor));
    changed.map(|(name, _)| name.trim_end_matches(".weight").to_owned()).collect()
}

const SHAPE: [usize; 2] = [12, 8];

/// Prefixes that the same model has in other classes and versions.
#[test]
fn prefixes_are_matched_where_one_tensor_fits() {
    for (module, in_base) in [
        ("h.0.attn.x", "transformer.h.0.attn.x"),
        ("bert.encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.query"),
        ("encoder.layer.0.attention.self.query", "bert.encoder.layer.0.attention.self.query"),
        ("encoder.layer.0.x", "0.auto_model.encoder.layer.0.x"),
        ("vit.encoder.layer.0.attention.query", "encoder.layer.0.attention.query"),
        ("model.visual.blocks.0.attn.qkv", "visual.blocks.0.attn.qkv"),
        ("model.layers.0.q", "model.language_model.layers.0.q"),
        ("model.layers.0.q", "module._orig_mod.model.layers.0.q.base_layer"),
        ("model.layers.0.q", "base_model.model.model.layers.0._fsdp_wrapped_module.q"),
        ("lm_head", "language_model.lm_head"),
        ("text_encoder_2.text_model.encoder.layers.0.q", "text_model.encoder.layers.0.q"),
    ] {
        let place = Place::new();
        let base = place.base(&[(in_base, SHAPE), ("norm.other", [3, 3])]);
        place.adapter(&[(module, SHAPE)]);
        let (after, report) = place.merge(&[]);
        assert_eq!(changed(&base, &after), [in_base], "{module}");
        assert!(report.contains("Names: "), "{report}");
        place.refused(&["--strict-names"], &["missing", "--map"]);
    }
}

/// Another layer, another part of the model, several candidates: none of them is taken.
#[test]
fn other_modules_are_not_taken() {
    for (module, in_base, parts) in [
        ("model.layers.1.q", &[("model.layers.0.q", SHAPE)][..], &["--map model.layers.1.q="][..]),
        ("decoder.layers.0.q", &[("encoder.layers.0.q", SHAPE)], &["most similar"]),
        ("vision_tower.layers.0.q", &[("layers.0.q", SHAPE)], &["most similar"]),
        ("model.layers.0.q", &[("mtp.layers.0.q", SHAPE)], &["most similar"]),
        ("text_encoder.layers.0.q", &[("model.layers.0.q", SHAPE)], &["most similar"]),
        ("model.layers.0.q", &[("model.layers.0.k", SHAPE)], &["another model", "--map FROM=TO"]),
        (
            "layers.0.q",
            &[("encoder.layers.0.q", SHAPE), ("decoder.layers.0.q", SHAPE)],
            &["most similar", "--map layers=encoder.layers"],
        ),
        (
            "layers.0.q",
            &[("a.layers.0.q", SHAPE), ("b.layers.0.q", SHAPE)],
            &["2 tensors", "`a.layers.0.q.weight`, `b.layers.0.q.weight`", "--map layers.0.q="],
        ),
        // Its shape fits only an image encoder's.
        (
            "layers.0.q",
            &[("vision.layers.0.q", SHAPE), ("text.layers.0.q", [4, 4])],
            &["text.layers.0.q.weight", "[4, 4]", "another model"],
        ),
        ("layers.0.q", &[("model.layers.0.q", [5, 5])], &["[5, 5]", "[12, 8]", "another model"]),
    ] {
        let place = Place::new();
        place.base(in_base);
        place.adapter(&[(module, SHAPE)]);
        place.refused(&[], parts);
    }
    // Two modules for one tensor, and names that contradict each other.
    let place = Place::new();
    place.base(&[("layers.0.q", SHAPE), ("layers.1.q", SHAPE)]);
    place.adapter(&[("model.layers.0.q", SHAPE), ("transformer.layers.0.q", SHAPE)]);
    place.refused(&[], &["another module"]);
    let place = Place::new();
    place.base(&[("a.layers.0.q", SHAPE), ("b.layers.1.q", SHAPE)]);
    place.adapter(&[("layers.0.q", SHAPE), ("layers.1.q", SHAPE)]);
    place.refused(&[], &["contradict", "--map layers="]);
}

#[test]
fn names_can_be_given() {
    let place = Place::new();
    let base = place.base(&[("encoder.layers.0.q", SHAPE), ("decoder.layers.0.q", SHAPE)]);
    place.adapter(&[("layers.0.q", SHAPE)]);
    for (map, part) in [
        ("layers=decoder.layers", "decoder.layers.0.q"),
        ("layers.0.q=encoder.layers.0.q", "encoder.layers.0.q"),
        ("layers.0.q.weight=encoder.layers.0.q.weight", "encoder.layers.0.q"),
        ("=decoder", "decoder.layers.0.q"),
    ] {
        let (after, report) = place.merge(&["--map", map]);
        assert_eq!(changed(&base, &after), [part], "{map}");
        assert!(report.contains("`layers.`"), "{report}");
    }
}

/// A trainer's state dict: the adapter's name, and another adapter's.
#[test]
fn adapters_names_are_no_part_of_a_modules() {
    let place = Place::new();
    let base = place.base(&[("model.layers.0.q", SHAPE)]);
    let adapter = place.adapter(&[("model.layers.0.q", SHAPE)]);
    let (plain, _) = place.merge(&[]);
    let file = adapter.join(PeftCheckpoint::FILE);
    let stored = tensors::read(&file);
    let named = |name: &str| match name.strip_suffix(".weight") {
        Some(name) => format!("{name}.chat.weight"),
        None => format!("{name}.chat.weight"),
    };
    let mut renamed: Tensors =
        stored.iter().map(|(name, tensor)| (named(name), tensor.clone())).collect();
    tensors::save(&file, &renamed);
    assert!(place.merge(&[]).0 == plain && changed(&base, &plain).len() == 1);
    let other = renamed.keys().next().expect("a tensor").replace("chat", "other");
    renamed.insert(other, floats(&[1], &[0.0]));
    tensors::save(&file, &renamed);
    place.refused(&[], &["adapter `other`", "one adapter per file"]);
    // Adapters of other layers, by name.
    for (name, part) in [
        ("base_model.model.x.lora_embedding_A", "embedding"),
        ("base_model.model.x.lora_B.bias", "biases"),
        ("x.lora_a.weight", "torchtune"),
        ("x.magnitude", "torchtune"),
        ("x.lora_a", "MLX"),
        ("x.weight_m_wdecomp.weight", "NVlabs"),
    ] {
        let mut more = stored.clone();
        more.insert(name.to_owned(), floats(&[1], &[0.0]));
        tensors::save(&file, &more);
        place.refused(&[], &[name, part]);
    }
    // The same in one file.
    let single = place.path("single.safetensors");
    for (name, part) in [
        ("x.lora_a.weight", "torchtune"),
        ("x.lora_a", "MLX"),
        ("x.weight_m_wdecomp.weight", "NVlabs"),
        ("base_model.model.x.lora_A.weight", "adapter_config.json"),
        ("x.lokr_w1", "other methods of LyCORIS"),
        ("x.lora_mid.weight", "convolution"),
    ] {
        tensors::save(&single, &Tensors::from([(name.to_owned(), floats(&[1], &[0.0]))]));
        let error = fail(program().args(["inspect", "--adapter"]).arg(&single), 1);
        assert!(error.contains(part) && error.contains("single.safetensors"), "{error}");
    }
}

#[test]
fn adapters_in_other_folders_are_named() {
    let place = Place::new();
    let base = place.base(&[("a", SHAPE)]);
    let adapter = place.adapter(&[("a", SHAPE)]);
    let error = |folder: &Path| {
        let out = place.path("out");
        fail(program().args(call("merge", &base, folder, &out)), 1)
    };
    let above = place.path("above");
    fs::create_dir(&above).expect("room");
    fs::rename(&adapter, above.join("chat")).expect("a folder");
    assert!(error(&above).contains(&format!("--adapter {}", above.join("chat").display())));
    let chat = above.join("chat");
    fs::rename(chat.join(PeftCheckpoint::FILE), chat.join("adapter_model.bin")).expect("a file");
    assert!(error(&chat).contains("adapter_model.bin"));
    fs::remove_file(chat.join("adapter_config.json")).expect("a file");
    tensors::save(&chat.join("lora.safetensors"), &Tensors::new());
    assert!(error(&chat).contains("lora.safetensors"));
    // MLX writes settings of another kind.
    let settings = json!({ "fine_tune_type": "dora", "lora_parameters": { "rank": 8 } });
    fs::write(chat.join("adapter_config.json"), settings.to_string()).expect("room");
    fs::remove_file(chat.join("adapter_model.bin")).expect("a file");
    assert!(error(&chat).contains("MLX"));
}

/// Names of kohya's scripts: of Stability's file for a base of diffusers, and prefixed bases.
#[test]
fn flattened_names_are_found() {
    let place = Place::new();
    let factors = |name: &str| {
        Tensors::from([
            (format!("{name}.lora_down.weight"), wave(&[2, 8, 1, 1], 0.2, 1.0)),
            (format!("{name}.lora_up.weight"), wave(&[12, 2, 1, 1], 0.2, 2.0)),
            (format!("{name}.alpha"), floats(&[], &[2.0])),
            (format!("{name}.dora_scale"), wave(&[12, 1, 1, 1], 0.2, 3.0)),
        ])
    };
    let adapter = place.path("adapter");
    for (name, in_base) in [
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        ("lora_unet_middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
        ("lora_unet_mid_block_attentions_0_proj_in", "middle_block.1.proj_in"),
        ("lora_unet_down_blocks_1_attentions_0_proj_in", "input_blocks.4.1.proj_in"),
        ("lora_unet_up_blocks_1_attentions_2_proj_in", "output_blocks.5.1.proj_in"),
        ("lora_unet_output_blocks_3_1_proj_in", "up_blocks.1.attentions.0.proj_in"),
        ("lora_unet_input_blocks_4_1_proj_in", "model.diffusion_model.input_blocks.4.1.proj_in"),
        ("lora_te_text_model_encoder_layers_0_fc1", "text_model.encoder.layers.0.fc1"),
    ] {
        let base = place.base(&[(in_base, SHAPE), ("other", SHAPE)]);
        tensors::save(&adapter, &factors(name));
        assert_eq!(changed(&base, &place.merge(&[]).0), [in_base], "{name}");
        // A 1×1 convolution is a linear layer.
        let mut kernels = tensors::read(&base);
        let weight = kernels.get_mut(&format!("{in_base}.weight")).expect("a weight");
        weight.1.extend([1, 1]);
        tensors::save(&base, &kernels);
        let (after, _) = place.merge(&[]);
        assert_eq!(changed(&base, &after), [in_base], "{name}");
        assert_eq!(after[&format!("{in_base}.weight")].1, [12, 8, 1, 1]);
        // A convolution is never stored the other way round.
        let weight = kernels.get_mut(&format!("{in_base}.weight")).expect("a weight");
        weight.1 = vec![8, 12, 1, 1];
        tensors::save(&base, &kernels);
        place.refused(&[], &["[8, 12]", "[12, 8]"]);
    }
    place.base(&[("controlnet.x.y", SHAPE)]);
    tensors::save(&adapter, &factors("lora_unet_x_y"));
    place.refused(&[], &["lora_unet_x_y", "another model"]);
    place.base(&[("a.x_y", SHAPE), ("b.x.y", SHAPE)]);
    tensors::save(&adapter, &factors("lora_unet_x_y"));
    place.refused(&[], &["2 tensors", "`a.x_y.weight`", "`b.x.y.weight`"]);
    tensors::save(&adapter, &factors("lora_unet_z"));
    place.refused(&[], &["lora_unet_z", "another model", "--map lora_unet_z=NAME"]);
    let (after, _) = place.merge(&["--map", "lora_unet_z=a.x_y"]);
    assert_eq!(changed(&place.path("base.safetensors"), &after), ["a.x_y"]);
}

/// diffusers keeps an adapter's settings in the file's metadata.
#[test]
fn scaling_comes_from_the_metadata_of_a_file() {
    let place = Place::new();
    let base = place.base(&[("blocks.0.q", SHAPE)]);
    let (down, up) = (wave(&[2, 8], 0.2, 1.0), wave(&[12, 2], 0.2, 2.0));
    let write = |metadata: Option<String>| {
        let views = [
            ("transformer.blocks.0.q.lora_A.weight", &down),
            ("transformer.blocks.0.q.lora_B.weight", &up),
        ];
        let views = views.map(|(name, (dtype, shape, bytes))| {
            let view = fused_dora::peft::safetensors::tensor::TensorView::new(
                *dtype,
                shape.clone(),
                bytes,
            );
            (name, view.expect("a tensor"))
        });
        let metadata = metadata.map(|text| [("lora_adapter_metadata".to_owned(), text)].into());
        let bytes = fused_dora::peft::safetensors::serialize(views, metadata).expect("a file");
        fs::write(place.path("adapter"), bytes).expect("room");
    };
    let change = |tensors: &Tensors| {
        let [after, before] =
            [tensors, &tensors::read(&base)].map(|it| tensors::values(&it["blocks.0.q.weight"]));
        f64::from(after[0] - before[0])
    };
    write(None);
    let (plain, report) = place.merge(&[]);
    assert!(report.contains("s is 1"), "{report}");
    let settings = json!({ "transformer.r": 2, "transformer.lora_alpha": 8 });
    write(Some(settings.to_string()));
    let (scaled, report) = place.merge(&[]);
    assert!(report.contains("metadata"), "{report}");
    assert!((change(&scaled) / change(&plain) - 4.0).abs() < 1e-4);
    let settings = json!({ "transformer.r": 3, "transformer.lora_alpha": 8 });
    write(Some(settings.to_string()));
    let (out, mut merge) = (place.path("out"), program());
    let error = fail(merge.args(call("merge", &base, &place.path("adapter"), &out)), 1);
    assert!(error.contains("transformer.blocks.0.q") && error.contains("rank 3"), "{error}");
}

/// The type of a model against the setting and against its own biases.
#[test]
fn orientations_that_contradict_each_other_are_refused() {
    let place = Place::new();
    let square = [8, 8];
    place.base(&[("h.0.attn.c_proj", square), ("q_proj", square)]);
    let config = |value| fs::write(place.path("config.json"), format!("{value}")).expect("room");
    let adapter = |modules: &[&str], by_input: bool| {
        let modules: Vec<_> = modules.iter().map(|name| (*name, square)).collect();
        let folder = place.adapter(&modules);
        let path = folder.join("adapter_config.json");
        let text = fs::read_to_string(&path).expect("a file");
        let turned =
            text.replace("\"fan_in_fan_out\": false", &format!("\"fan_in_fan_out\": {by_input}"));
        fs::write(path, turned).expect("room");
    };
    let turned = |arguments: &[&str]| place.merge(arguments).1.contains("[I, O]");
    adapter(&["h.0.attn.c_proj"], false);
    config(json!({ "model_type": "gpt2" }));
    assert!(turned(&[]), "GPT-2's c_proj is a Conv1D, whatever the setting says");
    config(json!({ "model_type": "starcoder2" }));
    assert!(!turned(&[]), "Starcoder's c_proj is linear");
    config(json!({ "model_type": "vision-encoder-decoder", "decoder": { "model_type": "gpt2" } }));
    assert!(turned(&[]));
    adapter(&["q_proj"], true);
    assert!(!turned(&[]), "no Conv1D has this name");
    config(json!({ "model_type": "llama" }));
    place.refused(&[], &["q_proj", "fan_in_fan_out is true", "llama", "--not-transposed q_proj"]);
    assert!(turned(&["--transposed", "q_*"]));
    // Code of its own, or no settings: the setting, where it cannot be another module's.
    config(json!({ "model_type": "gpt2", "auto_map": { "AutoModel": "x.X" } }));
    assert!(turned(&[]));
    adapter(&["h.0.attn.c_proj", "q_proj"], false);
    place.refused(&[], &["h.0.attn.c_proj", "square", "--transposed h.0.attn.c_proj"]);
    fs::remove_file(place.path("config.json")).expect("a file");
    place.refused(&[], &["h.0.attn.c_proj", "square"]);
    adapter(&["h.0.attn.c_proj", "q_proj"], true);
    place.refused(&[], &["q_proj", "square", "--transposed q_proj"]);
    assert!(turned(&["--not-transposed", "q_proj"]));
    fs::write(place.path("config.json"), "{").expect("room");
    place.refused(&[], &["config.json", "no JSON"]);
    // Biases of weights of the same name that are not square.
    fs::remove_file(place.path("config.json")).expect("a file");
    let mut tensors = tensors::read(&place.path("base.safetensors"));
    tensors.insert("h.0.mlp.c_proj.weight".to_owned(), wave(&[32, 8], 1.0, 0.0));
    tensors.insert("h.0.mlp.c_proj.bias".to_owned(), wave(&[8], 1.0, 0.0));
    tensors::save(&place.path("base.safetensors"), &tensors);
    adapter(&["h.0.attn.c_proj", "q_proj"], false);
    assert!(turned(&[]));
    tensors.insert("h.1.mlp.c_proj.weight".to_owned(), wave(&[8, 32], 1.0, 0.0));
    tensors.insert("h.1.mlp.c_proj.bias".to_owned(), wave(&[8], 1.0, 0.0));
    tensors::save(&place.path("base.safetensors"), &tensors);
    place.refused(&[], &["stored either way", "--transposed"]);
    assert_eq!(Stored::F32, tensors["q_proj.weight"].0);
}
