//! Adapters in files: PEFT's own, those written for it, LyCORIS's, and broken ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use fused_dora::cudarc::driver::CudaStream;
use fused_dora::peft::{
    CheckpointError, LayerAdapter, PeftCheckpoint, PeftConfig, TensorFile, read_lycoris,
};
use fused_dora::reference::Case;
use fused_dora::{
    DoraLinear, Dtype, Kernels, LinearForward, Norm, NormGrad, SharedWorkspace, Workspace,
};
use fused_dora_testkit::tensors::{self, Tensors, floats};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::Dtype as Stored;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How far from PEFT's own results, and from LyCORIS's.
const TOLERANCE: f32 = 1e-5;
const TOKENS: usize = 64;
const SAMPLES: [&str; 2] = ["dora", "lora"];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn sample(name: &str) -> PathBuf {
    repository("tests/peft").join(name)
}

fn network() -> TensorFile {
    TensorFile::open(repository("examples/data/digits-mlp.safetensors")).expect("the network")
}

/// The samples' base model on a device, an adapter attached to each layer.
struct Network {
    stream: Arc<CudaStream>,
    layers: Vec<DoraLinear>,
    shapes: Vec<[usize; 2]>,
}

impl Network {
    fn new(checkpoint: &PeftCheckpoint) -> Self {
        let context = fused_dora_testkit::device::open().expect("a device");
        let kernels = Arc::new(Kernels::load(&context).expect("kernels"));
        let stream = kernels.context().default_stream();
        let mut specs = Vec::new();
        for layer in checkpoint.layers.values() {
            let [outputs, inputs] = layer.shape();
            specs.push(DoraLinear::base_spec(inputs, outputs, Dtype::F32).expect("a layer"));
            specs.push(layer.spec(NormGrad::Detached, Dtype::F32).expect("a layer"));
        }
        let workspace = Workspace::new(&kernels, &stream, &specs, TOKENS).expect("memory");
        let workspace: SharedWorkspace = Arc::new(Mutex::new(workspace));
        let (base, mut layers, mut shapes) = (network(), Vec::new(), Vec::new());
        for (name, adapter) in &checkpoint.layers {
            let tensor = |part: &str| {
                let values = base.floats(&format!("{name}.{part}")).expect("a tensor");
                Arc::new(stream.clone_htod(&values).expect("memory"))
            };
            let (weight, bias) = (tensor("weight"), Some(tensor("bias").into()));
            let shape = adapter.shape();
            let mut layer =
                DoraLinear::new(&kernels, &stream, &workspace, shape, weight, bias).expect("fits");
            let adapter = adapter.upload(&stream, NormGrad::Detached, Dtype::F32).expect("memory");
            layer.attach("sample", adapter).expect("fits");
            layer.activate(Some("sample")).expect("attached");
            layers.push(layer);
            shapes.push(shape);
        }
        Self { stream, layers, shapes }
    }

    fn logits(&mut self, input: &[f32]) -> Vec<f32> {
        let mut x = input.to_vec();
        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let [outputs, _] = self.shapes[index];
            let source = self.stream.clone_htod(&x).expect("memory");
            let mut y = self.stream.alloc_zeros::<f32>(TOKENS * outputs).expect("memory");
            let io = LinearForward {
                tokens: TOKENS,
                x: (&source).into(),
                y: (&mut y).into(),
                seed: 0,
                dropout: None,
                counter: None,
            };
            let mut saved = layer.saved(TOKENS, None).expect("memory");
            layer.forward(&mut saved, io).expect("a forward");
            x = self.stream.clone_dtoh(&y).expect("a copy");
            if index != last {
                x.iter_mut().for_each(|value| *value = value.max(0.0));
            }
        }
        x
    }

    fn merged(&mut self) -> Vec<Vec<f32>> {
        let layers = self.layers.iter_mut().zip(&self.shapes);
        let merge = |(layer, [outputs, inputs]): (&mut DoraLinear, &[usize; 2])| {
            let mut merged = self.stream.alloc_zeros::<f32>(outputs * inputs).expect("memory");
            layer.merge(&mut merged, None).expect("a merge");
            self.stream.clone_dtoh(&merged).expect("a copy")
        };
        layers.map(merge).collect()
    }
}

fn assert_near(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let errors = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs());
    let worst = errors.fold(0.0, |worst: f32, error| if error <= worst { worst } else { error });
    println!("{what}: off by {worst:.2e}");
    assert!(worst <= TOLERANCE, "{what}: off by {worst:e}, more than {TOLERANCE:e}");
}

#[test]
fn samples_give_pefts_logits_and_merged_weights() {
    for name in SAMPLES {
        let checkpoint = PeftCheckpoint::read(sample(name)).expect("the sample");
        let expected = TensorFile::open(sample(name).join("expected.safetensors")).expect("a file");
        let mut network = Network::new(&checkpoint);
        let input = expected.floats("input").expect("a tensor");
        let logits = expected.floats("expected.logits").expect("a tensor");
        assert_near(&format!("{name}: logits"), &network.logits(&input), &logits);
        for (module, merged) in checkpoint.layers.keys().zip(network.merged()) {
            let tensor = format!("expected.merged.{module}.weight");
            let weight = expected.floats(&tensor).expect("a tensor");
            assert_near(&format!("{name}: {module}"), &merged, &weight);
        }
    }
}

#[test]
fn samples_are_written_as_peft_wrote_them() {
    let folder = TempDir::new().expect("a folder");
    for name in SAMPLES {
        let checkpoint = PeftCheckpoint::read(sample(name)).expect("the sample");
        // Through a device, as a trainer has them.
        let network = Network::new(&checkpoint);
        let adapters =
            network.layers.iter().map(|layer| layer.adapter("sample").expect("attached"));
        let layers =
            adapters.map(|it| LayerAdapter::download(&network.stream, it).expect("a copy"));
        let layers = checkpoint.layers.keys().cloned().zip(layers).collect();
        let checkpoint = PeftCheckpoint { layers, ..checkpoint };
        checkpoint.write(folder.path(), Dtype::F32).expect("room");
        for file in [PeftConfig::FILE, PeftCheckpoint::FILE] {
            let read = |folder: &Path| fs::read(folder.join(file)).expect("a file");
            assert!(read(folder.path()) == read(&sample(name)), "{name}/{file} differs");
        }
    }
}

/// A layer of small random numbers.
fn made_up(shape: [usize; 2], rank: usize, scaling: f32, norm: Norm, seed: f32) -> LayerAdapter {
    let mut random = StdRng::seed_from_u64(u64::from(seed.to_bits()));
    let mut noise = |len: usize, size: f32| -> Vec<f32> {
        (0..len).map(|_| random.random_range(-size..size)).collect()
    };
    let [outputs, inputs] = shape;
    let magnitude = match norm {
        Norm::None => Vec::new(),
        Norm::Input => noise(inputs, 0.3),
        Norm::Output => noise(outputs, 0.3),
    };
    let magnitude = magnitude.into_iter().map(|m| 1.0 + m).collect();
    let (lora_a, lora_b) = (noise(rank * inputs, 0.1), noise(outputs * rank, 0.1));
    LayerAdapter::new(shape, rank, scaling, norm, lora_a, lora_b, magnitude).expect("a layer")
}

/// A checkpoint of several ranks and scalings.
fn of_several_ranks(norm: Norm) -> PeftCheckpoint {
    let shapes = [([256, 64], 4, 2.0), ([256, 256], 8, 0.3), ([10, 256], 3, 2.0)];
    let layers = shapes.into_iter().enumerate().map(|(index, (shape, rank, scaling))| {
        (format!("layers.{index}"), made_up(shape, rank, scaling, norm, index as f32))
    });
    PeftCheckpoint::new(layers.collect()).expect("a checkpoint")
}

#[test]
fn what_is_written_is_read_back() {
    let folder = TempDir::new().expect("a folder");
    for (norm, dtype, tolerance) in [
        (Norm::Output, Dtype::F32, 0.0),
        (Norm::None, Dtype::F32, 0.0),
        (Norm::Output, Dtype::Bf16, 1.0 / 256.0),
        (Norm::Output, Dtype::F16, 1.0 / 2048.0),
    ] {
        let checkpoint = of_several_ranks(norm);
        checkpoint.write(folder.path(), dtype).expect("room");
        let found = PeftCheckpoint::read(folder.path()).expect("what was written");
        assert_eq!(found.config.settings(), checkpoint.config.settings());
        for (name, layer) in &checkpoint.layers {
            let read = &found.layers[name];
            assert_eq!((read.rank(), read.scaling()), (layer.rank(), layer.scaling()), "{name}");
            let pairs = [
                (read.lora_a(), layer.lora_a()),
                (read.lora_b(), layer.lora_b()),
                (read.magnitude(), layer.magnitude()),
            ];
            for (found, expected) in pairs {
                let near = |(f, e): (&f32, &f32)| (f - e).abs() <= tolerance * e.abs() + 1e-7;
                assert_eq!(found.len(), expected.len());
                assert!(found.iter().zip(expected).all(near), "{name} in {dtype}");
            }
        }
    }
}

/// The other way round, with PEFT itself: it loads what this crate writes, and computes the same.
/// The Python that has it: `FUSED_DORA_PYTHON`, or else `python3`.
#[test]
#[ignore = "takes Python with peft; `cargo xtask test` runs it where there is one"]
fn peft_loads_what_is_written() {
    let python = std::env::var_os("FUSED_DORA_PYTHON").unwrap_or_else(|| "python3".into());
    let folder = TempDir::new().expect("a folder");
    let expected = sample("dora").join("expected.safetensors");
    let input = TensorFile::open(&expected).expect("a file").floats("input").expect("a tensor");
    let rslora = |norm| {
        let layers = of_several_ranks(norm).layers;
        let config = PeftConfig::new(6, 4.0, norm == Norm::Output)
            .and_then(|config| config.with("use_rslora", true))
            .and_then(|config| config.with("rank_pattern", json!({ r"layers\.[02]": 4, "2": 9 })))
            .and_then(|config| config.with("alpha_pattern", json!({ "1": 12 })))
            .and_then(|config| config.with("target_modules", r"layers\.(?!9)\d"))
            .expect("settings");
        let layer = |(name, layer): (String, LayerAdapter)| {
            let (rank, scaling) = (config.rank(&name), config.scaling(&name));
            let layer = made_up(layer.shape(), rank, scaling, norm, 0.5);
            (name, layer)
        };
        PeftCheckpoint { layers: layers.into_iter().map(layer).collect(), config }
    };
    let by_input = |norm| {
        let PeftCheckpoint { config, layers } = of_several_ranks(norm);
        let config = config.with("fan_in_fan_out", true).expect("settings");
        PeftCheckpoint { config, layers }
    };
    for (name, checkpoint) in [
        ("dora", of_several_ranks(Norm::Output)),
        ("lora", of_several_ranks(Norm::None)),
        ("dora, rsLoRA and patterns", rslora(Norm::Output)),
        ("lora, rsLoRA and patterns", rslora(Norm::None)),
        ("dora, fan_in_fan_out", by_input(Norm::Output)),
    ] {
        checkpoint.write(folder.path(), Dtype::F32).expect("room");
        let output = folder.path().join("output.safetensors");
        let run = Command::new(&python)
            .arg(sample("load.py"))
            .arg(network().path())
            .args([folder.path(), &expected, &output])
            .output()
            .expect("Python");
        assert!(run.status.success(), "{name}: {}", String::from_utf8_lossy(&run.stderr));
        let found = TensorFile::open(&output).expect("PEFT's results");
        let mut network = Network::new(&checkpoint);
        // These logits go up to some tens; there 1e-5 is only the last digits of an f32.
        let logits = found.floats("logits").expect("a tensor");
        let largest = logits.iter().fold(1.0, |largest: f32, logit| largest.max(logit.abs()));
        let shares = |logits: &[f32]| logits.iter().map(|l| l / largest).collect::<Vec<_>>();
        let found_logits = shares(&network.logits(&input));
        assert_near(&format!("{name}: logits / {largest}"), &found_logits, &shares(&logits));
        for (module, merged) in checkpoint.layers.keys().zip(network.merged()) {
            let mut weight = found.floats(&format!("merged.{module}.weight")).expect("a tensor");
            if checkpoint.config.fan_in_fan_out() {
                let [outputs, inputs] = checkpoint.layers[module].shape();
                let at = |o: usize, i: usize| weight[i * outputs + o];
                weight =
                    (0..outputs * inputs).map(|n| at(n / inputs, n % inputs)).collect::<Vec<_>>();
            }
            assert_near(&format!("{name}: {module}"), &merged, &weight);
        }
    }
}

#[test]
fn patterns_match_as_in_peft() {
    let config = |ranks: &str| {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join(PeftConfig::FILE);
        let text = format!(
            r#"{{ "peft_type": "LORA", "r": 8, "lora_alpha": 16, "rank_pattern": {ranks},
                 "target_modules": ["q_proj", "v"] }}"#
        );
        fs::write(&path, text).expect("room");
        PeftConfig::read(&path).expect("settings")
    };
    // A name's end from a dot on; the first in the file's order; anchors and look-ahead.
    let ranks = r#"{ "q_proj": 4, "layers.1.q_proj": 2, "^lm": 3, "layers\\.(?!5)\\d\\.k": 1 }"#;
    let config = config(ranks);
    for (module, rank) in [
        ("q_proj", 4),
        ("model.layers.1.q_proj", 4),
        ("model.layers.1.eq_proj", 8),
        ("lm", 3),
        ("model.lm", 8),
        ("a.layers.3.k", 1),
        ("a.layers.5.k", 8),
    ] {
        assert_eq!(config.rank(module), rank, "{module}");
        assert_eq!(config.scaling(module), 16.0 / rank as f32, "{module}");
    }
    for (module, target) in
        [("a.q_proj", true), ("v", true), ("a.v", true), ("av", false), ("v.a", false)]
    {
        assert_eq!(config.is_target(module), target, "{module}");
    }
}

/// A copy of the sample whose settings are changed.
fn with_setting(setting: &str, value: Value) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let text = fs::read_to_string(sample("dora").join(PeftConfig::FILE)).expect("settings");
    let mut settings: Value = serde_json::from_str(&text).expect("JSON");
    settings[setting] = value;
    fs::write(folder.path().join(PeftConfig::FILE), settings.to_string()).expect("room");
    fs::copy(sample("dora").join(PeftCheckpoint::FILE), folder.path().join(PeftCheckpoint::FILE))
        .expect("room");
    folder
}

#[test]
fn unsupported_settings_are_refused_by_name() {
    for (setting, value) in [
        ("peft_type", json!("LOHA")),
        ("peft_type", Value::Null),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("lora_bias", json!(true)),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!("olora")),
        ("modules_to_save", json!(["classifier"])),
        ("layer_replication", json!([[0, 4], [2, 5]])),
        ("trainable_token_indices", json!([1, 2])),
        ("target_parameters", json!(["experts.gate_up_proj"])),
        ("use_qalora", json!(true)),
        ("alora_invocation_tokens", json!([1])),
        ("arrow_config", json!({ "top_k": 3 })),
        ("megatron_config", json!({ "a": 1 })),
        ("a_setting_of_the_future", json!(0.5)),
        ("r", json!(0)),
        ("r", json!("8")),
        ("lora_alpha", json!([])),
        ("use_dora", json!("yes")),
        ("target_modules", json!("(")),
        ("target_modules", json!(7)),
    ] {
        let folder = with_setting(setting, value.clone());
        match PeftCheckpoint::read(folder.path()) {
            Err(CheckpointError::Setting { path, setting: named, value: shown, .. }) => {
                assert_eq!(path, folder.path().join(PeftConfig::FILE));
                assert_eq!((named.as_str(), shown), (setting, value.to_string()));
            }
            other => panic!("{setting} = {value}: {other:?}"),
        }
    }
    for (setting, value) in
        [("rank_pattern", json!({ "a(": 2 })), ("alpha_pattern", json!({ "a": "b" }))]
    {
        let error = PeftCheckpoint::read(with_setting(setting, value).path()).expect_err("wrong");
        assert!(error.to_string().contains(setting), "{error}");
    }
    // Unused ones, and those that do not matter.
    for (setting, value) in [
        ("a_setting_of_the_future", Value::Null),
        ("another", json!({})),
        ("lora_dropout", json!(0.1)),
        ("revision", json!("main")),
        ("init_lora_weights", json!("gaussian")),
        ("layers_to_transform", json!([0, 1, 2])),
    ] {
        PeftCheckpoint::read(with_setting(setting, value).path()).expect("no matter");
    }
}

/// The error that reading the DoRA sample gives when its tensors are changed.
fn broken(change: impl FnOnce(&mut Tensors)) -> CheckpointError {
    let folder = with_setting("revision", Value::Null);
    let path = folder.path().join(PeftCheckpoint::FILE);
    let mut changed = tensors::read(&path);
    change(&mut changed);
    tensors::save(&path, &changed);
    PeftCheckpoint::read(folder.path()).expect_err("a broken checkpoint")
}

#[test]
fn broken_tensors_are_refused_by_name() {
    const M: &str = "base_model.model.layers.1.lora_magnitude_vector";
    const A: &str = "base_model.model.layers.1.lora_A.weight";
    let error = broken(|tensors| drop(tensors.remove(M)));
    assert!(matches!(&error, CheckpointError::MissingTensor { tensor, .. } if tensor == M));
    let error = broken(|tensors| drop(tensors.remove(A)));
    assert!(matches!(&error, CheckpointError::MissingTensor { tensor, .. } if tensor == A));
    let error = broken(|tensors| drop(tensors.insert(A.to_owned(), floats(&[2, 2], &[0.0; 4]))));
    assert!(
        matches!(&error, CheckpointError::Shape { tensor, found, .. }
            if tensor == A && found[..] == [2, 2]),
        "{error}"
    );
    assert!(error.to_string().contains("[8, I]"), "{error}");
    let error = broken(|tensors| drop(tensors.insert(M.to_owned(), floats(&[3], &[0.0; 3]))));
    assert!(error.to_string().contains("[256]"), "{error}");
    let error = broken(|tensors| {
        tensors.insert(M.to_owned(), (Stored::I8, vec![256], vec![0; 256]));
    });
    assert!(matches!(&error, CheckpointError::Dtype { tensor, .. } if tensor == M), "{error}");
    for name in [
        "layers.1.lora_A.weight",
        "base_model.model.layers.1.lora_embedding_A",
        "base_model.model.layers.1.lora_B.bias",
        "base_model.model.classifier.weight",
    ] {
        let error = broken(|tensors| drop(tensors.insert(name.to_owned(), floats(&[1], &[0.0]))));
        assert!(
            matches!(&error, CheckpointError::UnexpectedTensor { tensor, .. } if tensor == name),
            "{error}"
        );
    }
    // A magnitude under both of its names, and a LoRA with one.
    let twice = format!("{M}.weight");
    let error = broken(|tensors| drop(tensors.insert(twice, tensors[M].clone())));
    assert!(error.to_string().contains("twice"), "{error}");
    let error = PeftCheckpoint::read(with_setting("use_dora", json!(false)).path());
    assert!(matches!(error, Err(CheckpointError::UnexpectedTensor { .. })));
    let error = PeftCheckpoint::read(with_setting("target_modules", json!(["layers.0"])).path());
    assert!(error.expect_err("not targeted").to_string().contains("layers.1"));
}

#[test]
fn magnitudes_are_found_under_both_names() {
    let folder = with_setting("revision", Value::Null);
    let path = folder.path().join(PeftCheckpoint::FILE);
    let renamed =
        tensors::read(&path).into_iter().map(|(name, tensor)| match name.ends_with("vector") {
            true => (format!("{name}.weight"), tensor),
            false => (name, tensor),
        });
    tensors::save(&path, &renamed.collect());
    let read = |folder: &Path| PeftCheckpoint::read(folder).expect("a checkpoint").layers;
    assert_eq!(read(folder.path()), read(&sample("dora")));
}

#[test]
fn files_that_are_no_checkpoints_are_refused() {
    let folder = with_setting("revision", Value::Null);
    let path = folder.path().join(PeftCheckpoint::FILE);
    let whole = fs::read(&path).expect("a file");
    let open = || TensorFile::open(&path).expect_err("no safetensors file");
    for (bytes, part) in [
        (&whole[..whole.len() - 5], "it is truncated"),
        (&whole[..500], "truncated: of its 500 bytes the header would be 968"),
        (&whole[..5], "5 bytes"),
        (&b"PK\x03\x04 a zip of a pickle, as torch.save writes it"[..], "is no safetensors file"),
        (b"\x10\0\0\0\0\0\0\0{ not JSON      ", "is no safetensors file"),
        (&[&whole[..], b"more"].concat(), "more follows them"),
    ] {
        fs::write(&path, bytes).expect("room");
        let error = open();
        assert!(matches!(error, CheckpointError::Malformed { .. }));
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.to_string().contains(PeftCheckpoint::FILE), "{error}");
    }
    fs::remove_file(&path).expect("a file");
    assert!(matches!(open(), CheckpointError::Read { .. }));
    fs::create_dir(&path).expect("room");
    assert!(matches!(open(), CheckpointError::Read { .. }));
    fs::write(folder.path().join(PeftConfig::FILE), "[]").expect("room");
    let error = PeftCheckpoint::read(folder.path()).expect_err("a list");
    assert!(matches!(error, CheckpointError::Malformed { .. }));
}

#[test]
fn what_peft_cannot_hold_is_not_written() {
    let layer = |norm| made_up([4, 3], 2, 1.0, norm, 0.0);
    let new = |layers: &[(&str, LayerAdapter)]| {
        let layers = layers.iter().map(|(name, layer)| ((*name).to_owned(), layer.clone()));
        PeftCheckpoint::new(layers.collect())
    };
    for layers in [
        &[][..],
        &[("a", layer(Norm::Input))],
        &[("a", layer(Norm::None)), ("b", layer(Norm::Output))],
        &[(
            "a",
            LayerAdapter::new([1, 1], 0, 1.0, Norm::Output, vec![], vec![], vec![1.0])
                .expect("a layer"),
        )],
    ] {
        assert!(matches!(new(layers), Err(CheckpointError::Layer { .. })));
    }
    let folder = TempDir::new().expect("a folder");
    let mut checkpoint = new(&[("a", layer(Norm::None))]).expect("a checkpoint");
    checkpoint.layers.insert("b".to_owned(), layer(Norm::None));
    let error = checkpoint.write(folder.path(), Dtype::F32).expect_err("b is not a target");
    assert!(error.to_string().contains("target_modules"), "{error}");
    checkpoint.layers.insert("a".to_owned(), made_up([4, 3], 1, 1.0, Norm::None, 0.0));
    let error = checkpoint.write(folder.path(), Dtype::F32).expect_err("another rank");
    assert!(error.to_string().contains("rank_pattern"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    // A file in the folder's place.
    let path = folder.path().join("file");
    fs::write(&path, "").expect("room");
    let checkpoint = new(&[("a", layer(Norm::None))]).expect("a checkpoint");
    let error = checkpoint.write(&path, Dtype::F32).expect_err("no folder");
    assert!(matches!(error, CheckpointError::Write { .. }), "{error}");
}

/// By the float64 reference: W'ᵀ of the transposed layer is W' of the layer.
#[test]
fn transposed_adapters_are_those_of_transposed_weights() {
    for norm in [Norm::None, Norm::Input, Norm::Output] {
        let layer = made_up([5, 3], 2, 0.7, norm, 0.3);
        let weight: Vec<f64> = (0..15).map(|i| (f64::from(i) * 1.3).cos()).collect();
        let turned: Vec<f64> = (0..15).map(|i| weight[i % 5 * 3 + i / 5]).collect();
        let (merged, back) = (merge(&layer, &weight), merge(&layer.transposed(), &turned));
        for (i, value) in back.iter().enumerate() {
            assert!((value - merged[i % 5 * 3 + i / 5]).abs() < 1e-12, "{norm:?}");
        }
        assert_eq!(layer.transposed().transposed(), layer);
    }
}

/// W' in float64, the norms by their definition.
fn merge(layer: &LayerAdapter, weight: &[f64]) -> Vec<f64> {
    let [outputs, inputs] = layer.shape();
    let (a, b, s) = (layer.lora_a(), layer.lora_b(), f64::from(layer.scaling()));
    let rank = layer.rank();
    let v = |o: usize, i: usize| {
        let product = (0..rank).map(|r| f64::from(b[o * rank + r]) * f64::from(a[r * inputs + i]));
        weight[o * inputs + i] + s * product.sum::<f64>()
    };
    let gain: Vec<f64> = match layer.norm() {
        Norm::None => Vec::new(),
        Norm::Input => (0..inputs)
            .map(|i| {
                f64::from(layer.magnitude()[i])
                    / (0..outputs).map(|o| v(o, i).powi(2)).sum::<f64>().sqrt()
            })
            .collect(),
        Norm::Output => (0..outputs)
            .map(|o| {
                f64::from(layer.magnitude()[o])
                    / (0..inputs).map(|i| v(o, i).powi(2)).sum::<f64>().sqrt()
            })
            .collect(),
    };
    let at = |n: usize| {
        let (o, i) = (n / inputs, n % inputs);
        v(o, i)
            * match layer.norm() {
                Norm::None => 1.0,
                Norm::Input => gain[i],
                Norm::Output => gain[o],
            }
    };
    (0..outputs * inputs).map(at).collect()
}

/// The tensors of a LyCORIS module of rank 2.
fn lycoris(name: &str, [o, i]: [usize; 2], scale: Option<&[usize]>) -> Tensors {
    let wave = |shape: &[usize]| {
        let len = shape.iter().product::<usize>();
        floats(shape, &(0..len).map(|n| (n as f32 * 0.9).sin() + 1.5).collect::<Vec<_>>())
    };
    let mut tensors = Tensors::from([
        (format!("{name}.lora_down.weight"), wave(&[2, i])),
        (format!("{name}.lora_up.weight"), wave(&[o, 2])),
        (format!("{name}.alpha"), floats(&[], &[3.0])),
    ]);
    tensors.extend(scale.map(|shape| (format!("{name}.dora_scale"), wave(shape))));
    tensors
}

fn read(tensors: &Tensors) -> Result<BTreeMap<String, LayerAdapter>, CheckpointError> {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("lycoris.safetensors");
    tensors::save(&path, tensors);
    let modules = [("a.b_c", [4, 4]), ("a.d", [4, 6]), ("x.y", [2, 2]), ("x_y", [2, 2])];
    read_lycoris(&TensorFile::open(&path).expect("a file"), modules)
}

#[test]
fn lycoris_files_show_their_axis() {
    for (name, module, shape, scale, norm) in [
        ("lora_unet_a_b_c", "a.b_c", [4, 4], Some(&[1, 4][..]), Norm::Input),
        ("lycoris_a_b_c", "a.b_c", [4, 4], Some(&[4, 1]), Norm::Output),
        ("lora_te1_a_d", "a.d", [4, 6], Some(&[1, 6]), Norm::Input),
        ("lora_te_a_d", "a.d", [4, 6], Some(&[4, 1]), Norm::Output),
        ("a.d", "a.d", [4, 6], Some(&[6]), Norm::Input),
        ("a_d", "a.d", [4, 6], None, Norm::None),
    ] {
        let layers = read(&lycoris(name, shape, scale)).expect("a LyCORIS file");
        let layer = &layers[module];
        assert_eq!((layer.norm(), layer.rank(), layer.scaling()), (norm, 2, 1.5), "{name}");
        assert_eq!(layer.shape(), shape);
        assert_eq!(layer.lora_a()[..2], [1.5, 0.9f32.sin() + 1.5]);
    }
    // Without α, or of 0, LyCORIS scales by 1; α may be an integer.
    let mut tensors = lycoris("lycoris_a_d", [4, 6], None);
    for (alpha, scaling) in [
        (Some(floats(&[], &[0.0])), 1.0),
        (Some((Stored::I64, vec![], 5i64.to_le_bytes().to_vec())), 2.5),
        (Some((Stored::BF16, vec![1], half::bf16::from_f32(1.0).to_le_bytes().to_vec())), 0.5),
        (None, 1.0),
    ] {
        match alpha {
            Some(alpha) => tensors.insert("lycoris_a_d.alpha".to_owned(), alpha),
            None => tensors.remove("lycoris_a_d.alpha"),
        };
        assert_eq!(read(&tensors).expect("a LyCORIS file")["a.d"].scaling(), scaling);
    }
}

#[test]
fn what_is_not_in_a_lycoris_file_is_refused_by_name() {
    for (tensors, part) in [
        (lycoris("lycoris_a_b_c", [4, 4], Some(&[4])), "either axis"),
        (lycoris("lycoris_a_d", [4, 6], Some(&[1, 4])), "[1, 6]"),
        (lycoris("lycoris_a_d", [4, 5], None), "[r, 6]"),
        (lycoris("lycoris_a_d", [5, 6], None), "[4, 2]"),
        (lycoris("lycoris_other", [4, 6], None), "another model"),
        (lycoris("lycoris_x_y", [2, 2], None), "any of x.y, x_y"),
        (Tensors::from([("lycoris_a_d.lokr_w1".to_owned(), floats(&[1], &[0.0]))]), "lokr_w1"),
        (Tensors::from([("lycoris_a_d.alpha".to_owned(), floats(&[], &[1.0]))]), "lora_down"),
        (Tensors::new(), "no adapter"),
    ] {
        let error = read(&tensors).expect_err("a broken file").to_string();
        assert!(error.contains("lycoris.safetensors") && error.contains(part), "{error}");
    }
}

/// Through the kernels, on both axes, square layers among them.
#[test]
fn lycoris_sample_gives_its_own_merged_weights() {
    let open = |name: &str| {
        TensorFile::open(sample("lycoris").join(format!("{name}.safetensors"))).expect("a file")
    };
    let [base, adapter, expected] = ["base", "adapter", "expected"].map(open);
    let names = base.names();
    let modules = names.iter().filter_map(|tensor| {
        let shape = &base.info(tensor).expect("a tensor").shape;
        Some((tensor.strip_suffix(".weight")?, [shape[0], shape[1]]))
    });
    let layers = read_lycoris(&adapter, modules).expect("the sample");
    let norms: Vec<_> = layers.values().map(LayerAdapter::norm).collect();
    assert_eq!(norms, [Norm::Output, Norm::Input, Norm::Input, Norm::Output, Norm::None]);
    let context = fused_dora_testkit::device::open().expect("a device");
    let kernels = Kernels::load(&context).expect("kernels");
    let device = fused_dora_testkit::layer::Device::with_kernels(&Arc::new(kernels), 0);
    for (module, layer) in &layers {
        let tensor = format!("{module}.weight");
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let [outputs, inputs] = layer.shape();
        let case = Case {
            tokens: 0,
            in_features: inputs,
            out_features: outputs,
            rank: layer.rank(),
            scaling: f64::from(layer.scaling()),
            norm: layer.norm(),
            norm_grad: NormGrad::Detached,
            input: Vec::new(),
            weight: wide(&base.floats(&tensor).expect("a tensor")),
            bias: None,
            lora_a: wide(layer.lora_a()),
            lora_b: wide(layer.lora_b()),
            magnitude: wide(layer.magnitude()),
            grad_output: Vec::new(),
            dropout: None,
        };
        let mut on_device = fused_dora_testkit::layer::Layer::<f32>::new(&device, &case);
        let (merged, _) = on_device.merge::<f32>();
        let weight = expected.floats(&tensor).expect("a tensor");
        assert_near(&tensor, &device.download(&merged), &weight);
    }
}
