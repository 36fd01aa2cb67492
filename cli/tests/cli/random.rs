//! Random small models and adapters, merged by the program and by float64 loops: a merge that
//! succeeds has every right value, and one that can be done succeeds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fused_dora::peft::safetensors::Dtype as Stored;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::json;
use tempfile::TempDir;

use crate::program::{call, program, text};
use crate::tensors::{self, Tensors, floats, to, values};

/// A family of models.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Family {
    Llama,
    Gpt2,
    Bert,
}

/// How a base's files lie.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    Folder,
    Index,
    NoIndex,
    File,
}

#[derive(Debug, Clone)]
struct Case {
    family: Family,
    layout: Layout,
    /// The prefixes of names in the adapter and in the base.
    prefixes: [usize; 2],
    has_config: bool,
    tie: Option<bool>,
    stores_head: bool,
    is_bf16: bool,
    is_dora: bool,
    has_biases: bool,
    /// Whether a tower of the same names is there, and whether an adapted weight is not.
    has_tower: bool,
    lacks_one: bool,
    /// `fan_in_fan_out`, where modules of both kinds are adapted.
    last_is_conv: bool,
    size: usize,
    adapted: Vec<bool>,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let kinds = (
        prop_oneof![Just(Family::Llama), Just(Family::Gpt2), Just(Family::Bert)],
        prop_oneof![
            Just(Layout::Folder),
            Just(Layout::Index),
            Just(Layout::NoIndex),
            Just(Layout::File)
        ],
        [0..4usize, 0..4usize],
        (any::<bool>(), any::<Option<bool>>(), any::<bool>()),
    );
    let flags = [any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()];
    let rare = prop::bool::weighted(0.1);
    (kinds, flags, rare, 2..7usize, vec(any::<bool>(), 5), any::<u64>()).prop_map(
        |(kinds, flags, lacks_one, size, mut adapted, seed)| {
            let (family, layout, prefixes, (has_config, tie, stores_head)) = kinds;
            if !adapted.contains(&true) {
                adapted[0] = true;
            }
            let [is_bf16, is_dora, has_biases, has_tower, last_is_conv] = flags;
            Case {
                family,
                layout,
                prefixes,
                has_config: has_config && layout != Layout::File,
                tie,
                stores_head,
                is_bf16,
                is_dora,
                has_biases,
                has_tower,
                lacks_one,
                last_is_conv,
                size,
                adapted,
                seed,
            }
        },
    )
}

/// Numbers between −1 and 1.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn matrix(&mut self, [rows, columns]: [usize; 2]) -> Vec<f32> {
        (0..rows * columns).map(|_| self.next()).collect()
    }
}

/// A module that can be adapted, with `[O, I]`.
struct Module {
    name: &'static str,
    shape: [usize; 2],
    is_conv: bool,
}

const VOCABULARY: usize = 11;

impl Case {
    /// The modules; the last of a model with a head is that.
    fn modules(&self) -> Vec<Module> {
        let n = self.size;
        let module = |name, shape, is_conv| Module { name, shape, is_conv };
        match self.family {
            Family::Llama => vec![
                module("layers.0.self_attn.q_proj", [n, n], false),
                module("layers.1.self_attn.q_proj", [n, n], false),
                module("layers.0.self_attn.k_proj", [n + 3, n], false),
                module("layers.0.mlp.down_proj", [n, 2 * n], false),
                module("lm_head", [VOCABULARY, n], false),
            ],
            Family::Gpt2 => vec![
                module("h.0.attn.c_attn", [3 * n, n], true),
                module("h.0.attn.c_proj", [n, n], true),
                module("h.0.mlp.c_fc", [4 * n, n], true),
                module("h.0.mlp.c_proj", [n, 4 * n], true),
                module("lm_head", [VOCABULARY, n], false),
            ],
            Family::Bert => vec![
                module("encoder.layer.0.attention.self.query", [n, n], false),
                module("encoder.layer.0.attention.self.key", [n, n], false),
                module("encoder.layer.1.attention.self.query", [n, n], false),
                module("encoder.layer.0.intermediate.dense", [2 * n, n], false),
                module("encoder.layer.0.output.dense", [n, 2 * n], false),
            ],
        }
    }

    fn prefix(&self, which: usize) -> &'static str {
        let number = self.prefixes[which];
        match self.family {
            Family::Llama => {
                ["model.", "", "model.language_model.", "language_model.model."][number]
            }
            Family::Gpt2 => ["transformer.", ""][number % 2],
            Family::Bert => ["bert.", ""][number % 2],
        }
    }

    fn name(&self, which: usize, module: &str) -> String {
        match (module, self.prefix(which)) {
            ("lm_head", "language_model.model.") if which == 1 => "language_model.lm_head".into(),
            ("lm_head", _) => module.to_owned(),
            (_, prefix) => format!("{prefix}{module}"),
        }
    }

    fn embedding(&self) -> Option<String> {
        let name = match self.family {
            Family::Llama => "embed_tokens.weight",
            Family::Gpt2 => "wte.weight",
            Family::Bert => return None,
        };
        Some(format!("{}{name}", self.prefix(1)))
    }

    fn adapted(&self) -> impl Iterator<Item = Module> {
        let modules = self.modules().into_iter().zip(self.adapted.clone());
        modules.filter_map(|(module, is_adapted)| is_adapted.then_some(module))
    }

    fn adapts_head(&self) -> bool {
        self.adapted().any(|module| module.name == "lm_head")
    }

    fn is_tied(&self) -> bool {
        self.has_config && self.tie != Some(false)
    }

    /// What the program has to do; nothing where either is right.
    fn must_succeed(&self) -> Option<bool> {
        if self.lacks_one && self.adapted().any(|module| module.name != "lm_head") {
            return Some(false);
        }
        if self.adapts_head() && !self.stores_head && !self.is_tied() {
            return Some(false);
        }
        let has_square_conv = self.adapted().any(|it| it.is_conv && it.shape[0] == it.shape[1]);
        if has_square_conv && !self.has_config && !self.has_biases {
            return None;
        }
        Some(true)
    }
}

/// What was written, and what has to come of it.
struct Written {
    base: PathBuf,
    adapter: PathBuf,
    before: Tensors,
    /// By the tensor: W' in float64, as it is stored.
    expected: BTreeMap<String, Vec<f64>>,
}

fn transposed<T: Copy>(values: &[T], [rows, columns]: [usize; 2]) -> Vec<T> {
    (0..rows * columns).map(|n| values[n % rows * columns + n / rows]).collect()
}

const RANK: usize = 2;
const ALPHA: usize = 3;

fn write(case: &Case, folder: &Path) -> Written {
    let mut numbers = Numbers(case.seed);
    let dtype = if case.is_bf16 { Stored::BF16 } else { Stored::F32 };
    let (mut before, mut expected) = (Tensors::new(), BTreeMap::new());
    let mut factors = Tensors::new();
    let stored = |shape: [usize; 2], is_conv: bool, values: &[f32]| match is_conv {
        true => to(dtype, &floats(&[shape[1], shape[0]], &transposed(values, shape))),
        false => to(dtype, &floats(&shape, values)),
    };
    let head_shape = [VOCABULARY, case.size];
    let embedding = numbers.matrix(head_shape);
    if let Some(name) = case.embedding() {
        before.insert(name, to(dtype, &floats(&head_shape, &embedding)));
    }
    let names: Vec<_> = case.adapted().map(|module| module.name).collect();
    let lacking = case.adapted().find(|module| module.name != "lm_head");
    let lacking = lacking.filter(|_| case.lacks_one).map(|module| module.name);
    for Module { name, shape: shape @ [outputs, inputs], is_conv } in case.modules() {
        let is_head = name == "lm_head";
        let is_source = is_head && case.stores_head && case.is_tied();
        let weight = match is_source || is_head && !case.stores_head {
            true => embedding.clone(),
            false => numbers.matrix(shape),
        };
        // As it is after it was rounded.
        let weight = values(&to(dtype, &floats(&shape, &weight)));
        let is_stored = (!is_head || case.stores_head) && lacking != Some(name);
        let mut tensor = format!("{}.weight", case.name(1, name));
        if is_head && !case.stores_head {
            tensor = "lm_head.weight".to_owned();
        }
        if is_stored {
            before.insert(tensor.clone(), stored(shape, is_conv, &weight));
            if case.has_biases && !is_head {
                let bias = numbers.matrix([1, outputs]);
                let bias_name = format!("{}.bias", case.name(1, name));
                before.insert(bias_name, floats(&[outputs], &bias));
            }
        }
        if case.has_tower && !is_head {
            let tower = stored(shape, is_conv, &numbers.matrix(shape));
            before.insert(format!("vision_tower.{}.weight", case.name(0, name)), tower);
        }
        if !names.contains(&name) {
            continue;
        }
        let (a, b) = (numbers.matrix([RANK, inputs]), numbers.matrix([outputs, RANK]));
        let magnitude: Vec<f32> = (0..outputs).map(|_| 1.5 + numbers.next()).collect();
        let s = f64::from(ALPHA as f32 / RANK as f32);
        let mut merged: Vec<f64> = weight.iter().copied().map(f64::from).collect();
        for (row, merged) in merged.chunks_mut(inputs).enumerate() {
            for (column, value) in merged.iter_mut().enumerate() {
                for r in 0..RANK {
                    *value += s * f64::from(b[row * RANK + r]) * f64::from(a[r * inputs + column]);
                }
            }
            if case.is_dora {
                let norm = merged.iter().map(|v| v * v).sum::<f64>().sqrt();
                merged.iter_mut().for_each(|v| *v *= f64::from(magnitude[row]) / norm);
            }
        }
        expected.insert(tensor, if is_conv { transposed(&merged, shape) } else { merged });
        let stem = format!("base_model.model.{}", case.name(0, name));
        factors.insert(format!("{stem}.lora_A.weight"), floats(&[RANK, inputs], &a));
        factors.insert(format!("{stem}.lora_B.weight"), floats(&[outputs, RANK], &b));
        if case.is_dora {
            let vector = floats(&[outputs], &magnitude);
            factors.insert(format!("{stem}.lora_magnitude_vector"), vector);
        }
    }
    let has = |is_conv| case.adapted().any(|module| module.is_conv == is_conv);
    let by_input = has(true) && (case.last_is_conv || !has(false));
    let adapter = folder.join("adapter");
    fs::create_dir(&adapter).expect("room");
    tensors::save(&adapter.join("adapter_model.safetensors"), &factors);
    let settings = json!({
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "use_dora": case.is_dora,
        "fan_in_fan_out": by_input,
        "target_modules": null,
    });
    fs::write(adapter.join("adapter_config.json"), settings.to_string()).expect("room");
    let base = write_base(case, folder, &before);
    Written { base, adapter, before, expected }
}

fn write_base(case: &Case, folder: &Path, tensors: &Tensors) -> PathBuf {
    let base = folder.join("base");
    if case.layout == Layout::File {
        tensors::save(&base, tensors);
        return base;
    }
    fs::create_dir(&base).expect("room");
    if case.has_config {
        let name = match case.family {
            Family::Llama => "llama",
            Family::Gpt2 => "gpt2",
            Family::Bert => "bert",
        };
        let mut config = json!({ "model_type": name });
        if let Some(tie) = case.tie {
            config["tie_word_embeddings"] = json!(tie);
        }
        fs::write(base.join("config.json"), config.to_string()).expect("room");
    }
    if case.layout == Layout::Folder {
        tensors::save(&base.join("model.safetensors"), tensors);
        return base;
    }
    let (mut shards, mut map) = ([Tensors::new(), Tensors::new()], serde_json::Map::new());
    for (number, (name, tensor)) in tensors.iter().enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", number % 2 + 1);
        map.insert(name.clone(), file.into());
        shards[number % 2].insert(name.clone(), tensor.clone());
    }
    for (number, shard) in shards.iter().enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", number + 1);
        tensors::save(&base.join(file), shard);
    }
    if case.layout == Layout::Index {
        let index = json!({ "metadata": {}, "weight_map": map });
        fs::write(base.join("model.safetensors.index.json"), index.to_string()).expect("room");
    }
    base
}

/// The output has the right values of all that is adapted, and all else as it was.
fn check(case: &Case, written: &Written, out: &Path) -> Result<(), TestCaseError> {
    let after = match out.is_dir() {
        true => tensors::read_folder(out),
        false => tensors::read(out),
    };
    let bound = if case.is_bf16 { 8e-3 } else { 1e-6 };
    for (name, wanted) in &written.expected {
        let Some(tensor) = after.get(name) else {
            return Err(TestCaseError::fail(format!("{name} is missing")));
        };
        let most = wanted.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
        for (found, wanted) in values(tensor).iter().zip(wanted) {
            let error = (f64::from(*found) - wanted).abs();
            prop_assert!(error <= bound * most, "{name}: {found} where {wanted} should be");
        }
    }
    for (name, tensor) in &written.before {
        if !written.expected.contains_key(name) {
            prop_assert!(after.get(name) == Some(tensor), "{name} is not as it was");
        }
    }
    let names = written.before.keys().chain(written.expected.keys());
    let names: std::collections::BTreeSet<_> = names.collect();
    prop_assert!(after.keys().eq(names), "{:?}", after.keys());
    if out.join("model.safetensors.index.json").is_file() {
        let text = fs::read(out.join("model.safetensors.index.json")).expect("a file");
        let index: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        for name in after.keys() {
            prop_assert!(index["weight_map"][name].is_string(), "{name} is not in the index");
        }
    }
    if case.has_config && case.adapts_head() {
        let config = fs::read(out.join("config.json")).expect("a file");
        let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
        prop_assert_eq!(&config["tie_word_embeddings"], false);
    }
    Ok(())
}

#[test]
fn random_models_merge_right_or_are_refused() {
    let config = Config { cases: 160, failure_persistence: None, ..Config::default() };
    let (mut runner, merged) = (TestRunner::new(config), std::cell::Cell::new(0));
    let result = runner.run(&cases(), |case| {
        let folder = TempDir::new().expect("a folder");
        let (written, out) = (write(&case, folder.path()), folder.path().join("out"));
        let mut merge = program();
        merge.args(call("merge", &written.base, &written.adapter, &out));
        let output = merge.args(["--device", "cpu"]).output().expect("the program");
        let text = text(&output);
        match output.status.code() {
            Some(0) => {
                prop_assert!(case.must_succeed() != Some(false), "it must be refused: {text}");
                merged.set(merged.get() + 1);
                check(&case, &written, &out)
                    .map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))
            }
            Some(1) => {
                prop_assert!(case.must_succeed() != Some(true), "it can be merged: {text}");
                prop_assert!(text.contains("error: ") && !out.exists(), "{text}");
                Ok(())
            }
            code => Err(TestCaseError::fail(format!("exit code {code:?}: {text}"))),
        }
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    // Most of them are clear.
    assert!(merged.get() > 80, "{}", merged.get());
}
