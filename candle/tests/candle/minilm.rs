//! `examples/minilm` as a user runs it, on a BERT of two small layers with random weights.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use candle_core::{Device, Result, Tensor};
use fused_dora_candle::fused_dora::Norm;
use fused_dora_candle::fused_dora::peft::PeftCheckpoint;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const HIDDEN: usize = 32;
const INNER: usize = 48;
const LAYERS: usize = 2;

/// Words that determine a class, and others.
const CLASSES: [(&str, &[&str]); 3] = [
    ("animal", &["cat", "dog", "whale", "finch"]),
    ("food", &["bread", "soup", "rice", "cake"]),
    ("time", &["hour", "day", "week", "year"]),
];
const WORDS: [&str; 6] = ["a", "the", "small", "of", "long", "some"];

/// The folder of a model with a tokenizer of whole words.
fn model(folder: &Path) -> Result<()> {
    let special = ["[PAD]", "[UNK]"].into_iter();
    let words = special.chain(WORDS).chain(CLASSES.iter().flat_map(|class| class.1).copied());
    let vocab: HashMap<&str, usize> = words.zip(0..).collect();
    let size = vocab.len();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": null, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string())?;
    let config = serde_json::json!({
        "model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "vocab_size": size, "type_vocab_size": 2,
        "max_position_embeddings": 16,
    });
    fs::write(folder.join("config.json"), config.to_string())?;

    let (mut tensors, mut random) = (HashMap::new(), StdRng::seed_from_u64(3));
    let mut put = |name: String, mean: f32, spread: f32, shape: &[usize]| {
        let mut value = || mean + spread * random.random_range(-1.7..1.7f32);
        let values = (0..shape.iter().product()).map(|_| value()).collect();
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        Result::Ok(())
    };
    for (name, rows) in
        [("word_embeddings", size), ("position_embeddings", 16), ("token_type_embeddings", 2)]
    {
        put(format!("embeddings.{name}.weight"), 0.0, 0.1, &[rows, HIDDEN])?;
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..LAYERS {
        let layer = format!("encoder.layer.{layer}");
        for (name, inputs, outputs) in [
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", HIDDEN, INNER),
            ("output.dense", INNER, HIDDEN),
        ] {
            put(format!("{layer}.{name}.weight"), 0.0, 0.15, &[outputs, inputs])?;
            put(format!("{layer}.{name}.bias"), 0.0, 0.05, &[outputs])?;
        }
        norms.extend(["attention.output", "output"].map(|n| format!("{layer}.{n}.LayerNorm")));
    }
    for norm in norms {
        put(format!("{norm}.weight"), 1.0, 0.05, &[HIDDEN])?;
        put(format!("{norm}.bias"), 0.0, 0.05, &[HIDDEN])?;
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors"))
}

/// The folder of a task: which class a sentence's one telling word is of.
fn data(folder: &Path) -> Result<()> {
    let mut random = StdRng::seed_from_u64(7);
    for (part, count) in [("train", 180), ("test", 30)] {
        let file = File::create(folder.join(format!("wordnet-supersense-{part}.tsv.gz")))?;
        let mut file = flate2::write::GzEncoder::new(file, flate2::Compression::default());
        for index in 0..count {
            let (class, telling) = CLASSES[index % CLASSES.len()];
            let mut words: Vec<&str> = (0..random.random_range(1..4))
                .map(|_| WORDS[random.random_range(0..WORDS.len())])
                .collect();
            let place = random.random_range(0..=words.len());
            words.insert(place, telling[random.random_range(0..telling.len())]);
            writeln!(file, "{class}\t{}", words.join(" "))?;
        }
        file.finish()?;
    }
    Ok(())
}

/// Runs the example that Cargo built next to this test.
fn minilm(arguments: &[&str], folder: &Path) -> Output {
    let test = std::env::current_exe().expect("this test");
    let profile = test.parent().and_then(Path::parent).expect("a profile's folder");
    let program = profile.join(format!("examples/minilm{}", std::env::consts::EXE_SUFFIX));
    assert!(program.is_file(), "{} is missing: cargo build --examples", program.display());
    let mut command = Command::new(program);
    for name in ["model", "data", "out"] {
        command.arg(format!("--{name}")).arg(folder.join(name));
    }
    command.args(arguments).output().expect("the example runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// The number before ` % of the test` in the line that starts so.
fn share(text: &str, line: &str) -> f64 {
    let line = text.lines().find_map(|found| found.strip_prefix(line)).expect("the line");
    let number = line.split_once(" %").expect("a share").0;
    number.parse().expect("a number")
}

#[test]
fn a_small_bert_learns_and_three_forms_agree() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let (model_folder, data_folder) = (folder.join("model"), folder.join("data"));
    fs::create_dir(&model_folder)?;
    fs::create_dir(&data_folder)?;
    model(&model_folder)?;
    data(&data_folder)?;

    for (method, norm, learns) in [("dora", Norm::Output, true), ("lora", Norm::None, false)] {
        let steps = if learns { "60" } else { "2" };
        let arguments = ["--method", method, "--steps", steps, "--lr", "1e-2", "--batch", "8"];
        let output = minilm(&arguments, folder);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert_eq!(text.matches("the same in 30 of 30").count(), 2, "{text}");
        let trained = share(&text, "as trained: ");
        assert_eq!(share(&text, "merged: "), trained, "{text}");
        if learns {
            assert!(trained >= 80.0, "{text}");
            assert!(text.contains("step 40: loss "), "{text}");
        }
        let adapter = folder.join("out/adapter");
        let checkpoint = PeftCheckpoint::read(&adapter).expect("PEFT's form");
        assert_eq!(checkpoint.layers.len(), 4 * LAYERS);
        let query = &checkpoint.layers["encoder.layer.1.attention.self.query"];
        assert_eq!((query.rank(), query.norm()), (8, norm));
        assert!(!checkpoint.layers.contains_key("encoder.layer.1.attention.output.dense"));
        let curves = fs::read_to_string(folder.join("out/minilm.svg"))?;
        assert!(curves.contains("accuracy"), "{curves}");
    }

    let refused = |arguments: &[&str], words: &[&str]| {
        let output = minilm(arguments, folder);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    refused(&["--steps", "0"], &["--steps 0", "at least 1"]);
    refused(&["--method", "full"], &["--method full", "dora or lora"]);
    let config = model_folder.join("config.json");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, text.replace("\"bert\"", "\"t5\""))?;
    refused(&[], &["config.json", "a t5 with gelu"]);
    fs::write(&config, text.replace("\"num_attention_heads\":2", "\"num_attention_heads\":3"))?;
    refused(&[], &["config.json", "32 features in 3 heads"]);
    fs::write(&config, text)?;
    let weights = model_folder.join("model.safetensors");
    let bytes = fs::read(&weights)?;
    fs::write(&weights, &bytes[..bytes.len() / 2])?;
    refused(&[], &["model.safetensors"]);
    fs::remove_file(&weights)?;
    refused(&[], &["model.safetensors", "--model"]);
    fs::write(&weights, bytes)?;
    fs::remove_file(data_folder.join("wordnet-supersense-test.tsv.gz"))?;
    refused(&[], &["wordnet-supersense-test.tsv.gz"]);
    Ok(())
}
