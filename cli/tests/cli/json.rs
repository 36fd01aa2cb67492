//! `--json`: one document on stdout and nothing else, with the fields that the README lists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use fused_dora::Norm;
use fused_dora::peft::safetensors::Dtype as Stored;
use serde_json::{Value, json};

use crate::model::Model;
use crate::program::{DEVICES, call, program, sample, succeed, workspace};

/// The document that a command prints: all of its stdout.
fn document(command: &mut Command) -> Value {
    let output = command.arg("--json").output().expect("the program");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let document = serde_json::from_slice(&output.stdout);
    document.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stdout)))
}

/// A number of a document as a table prints it in scientific notation.
fn printed(number: &Value) -> String {
    format!("{:.4e}", number.as_f64().expect("a number"))
}

/// The fields of a document, those of its parts with a dot.
fn fields(document: &Value, within: &str, found: &mut BTreeSet<String>) {
    match document {
        Value::Object(map) => {
            for (name, value) in map {
                found.insert(format!("{within}{name}"));
                fields(value, &format!("{within}{name}."), found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| fields(value, within, found)),
        _ => {}
    }
}

/// The README's table below a command's heading lists the fields of its document, all of them.
fn assert_documented(command: &str, document: &Value) {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(readme).expect("the README");
    let heading = format!("\n### `{command} --json`\n");
    let (_, section) = readme.split_once(&heading).unwrap_or_else(|| panic!("no {heading:?}"));
    let section = section.split("\n#").next().expect("its text");
    let name = |line: &str| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned());
    let documented: BTreeSet<String> = section.lines().filter_map(name).collect();
    let mut found = BTreeSet::new();
    fields(document, "", &mut found);
    assert_eq!(found, documented, "{command}");
}

#[test]
fn inspect_prints_a_document() {
    let adapter = sample("dora");
    let found = document(program().args(["inspect", "--adapter"]).arg(&adapter));
    assert_eq!(found["adapter"], adapter.display().to_string());
    assert_eq!(found["format"], "PEFT");
    assert_eq!(found["fan_in_fan_out"], false);
    assert_eq!(found["parameters"], 9306);
    assert_eq!(found["base"], Value::Null);
    let layers = found["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 3);
    let magnitude = &layers[1]["magnitude"];
    let [least, mean, most] = ["least", "mean", "most"].map(|name| {
        let value = magnitude[name].as_f64().expect("a number");
        format!("{value:.4}")
    });
    // As the guide shows them.
    assert_eq!([least, mean, most].join(", "), "0.5184, 1.0342, 1.5891");
    let mut layer = layers[1].clone();
    layer.as_object_mut().expect("an object").remove("magnitude");
    let expected = json!({
        "module": "layers.1",
        "shape": [256, 256],
        "rank": 8,
        "scaling": 2.0,
        "norm_axis": "output",
        "parameters": 4352,
    });
    assert_eq!(layer, expected);

    let lycoris = workspace().join("tests/peft/lycoris");
    let mut inspect = program();
    inspect.args(["inspect", "--adapter"]).arg(lycoris.join("adapter.safetensors"));
    let found = document(inspect.arg("--base").arg(lycoris.join("base.safetensors")));
    assert_eq!(found["format"], "LyCORIS");
    let expected = json!({
        "path": lycoris.join("base.safetensors").display().to_string(),
        "bytes": 32128,
        "files": 1,
        "tensors": 10,
        "adapted": 5,
        "packed": [],
    });
    assert_eq!(found["base"], expected);
    let axes = found["layers"].as_array().expect("layers").iter();
    let axes: Vec<_> = axes.map(|layer| layer["norm_axis"].as_str().expect("a word")).collect();
    assert_eq!(axes, ["output", "input", "input", "output", "none"]);
    assert_eq!(found["layers"][4]["magnitude"], Value::Null);

    let qdora = workspace().join("tests/golden-quant/qdora-llama");
    let mut inspect = program();
    inspect.args(["inspect", "--adapter"]).arg(qdora.join("dora"));
    let found = document(inspect.arg("--base").arg(qdora.join("base")));
    assert_documented("inspect", &found);
    let expected = json!([{
        "format": "nf4-nested",
        "description": "nf4, blocks of 64, nested scales, bf16",
        "weights": 14,
        "bytes": 55645,
    }]);
    assert_eq!(found["base"]["packed"], expected);
}

/// The documents have the numbers of the tables.
#[test]
fn merge_unmerge_and_analyze_print_documents() {
    let model = Model::new(Norm::Output, Stored::BF16);
    let (base, adapter) = (model.model(), model.peft());
    for device in DEVICES {
        let path = |name: &str| model.path(&format!("{name}-{device}"));
        let [out, gains, table] = ["out", "gains", "table"].map(path);
        let mut merge = program();
        merge.args(call("merge", &base, &adapter, &out)).args(["--device", device]);
        let found = document(merge.arg("--gains").arg(&gains));
        assert_eq!(found["packed"], Value::Null);
        assert!(gains.is_file() && out.join("config.json").is_file());
        assert_eq!(found["out"], out.display().to_string());
        assert_eq!(found["gains"], gains.display().to_string());
        let mut merge = program();
        merge.args(call("merge", &base, &adapter, &table)).args(["--device", device]);
        let text = succeed(&mut merge);
        assert!(text.contains(&format!("Device: {}.", found["device"].as_str().expect("a name"))));
        let layers = found["layers"].as_array().expect("layers");
        assert_eq!(layers.len(), model.layers.len());
        for layer in layers {
            let tensor = layer["tensor"].as_str().expect("a name");
            assert_eq!((&layer["dtype"], &layer["rank"]), (&json!("bf16"), &json!(4)));
            let shape = model.layers[tensor.strip_suffix(".weight").expect("a weight")].shape();
            assert_eq!(layer["shape"], json!(shape));
            let row = text.lines().find(|line| line.starts_with(tensor)).expect("its row");
            let kept = 100.0 * layer["kept"].as_f64().expect("a number");
            for part in [printed(&layer["change"]), format!("{kept:.2} %")] {
                assert!(row.contains(&part), "{part}: {row}");
            }
        }
        let squares = layers.iter().map(|layer| layer["change"].as_f64().expect("a number"));
        let change = squares.map(|change| change * change).sum::<f64>().sqrt();
        let all = found["all"]["change"].as_f64().expect("a number");
        assert!((all - change).abs() <= 1e-12 * change, "{all}, {change}");
        assert!(found["all"]["relative_error"].as_f64().is_some_and(|error| error > 0.0));

        let mut merge = program();
        merge.args(call("merge", &base, &adapter, &path("small"))).args(["--device", device]);
        let found_packed = document(merge.args(["--quantize", "fp8-block"]));
        assert_documented("merge", &found_packed);
        assert_eq!(found_packed["layers"], found["layers"]);
        let packed = found_packed["packed"]["layers"].as_array().expect("layers");
        assert_eq!(packed.len(), model.layers.len());
        for (packed, dense) in packed.iter().zip(layers) {
            assert_eq!(packed["tensor"], dense["tensor"]);
            let [packed, dense] =
                [packed, dense].map(|it| it["relative_error"].as_f64().expect("a number"));
            assert!(packed > dense, "{packed}, {dense}");
        }

        let back = path("back");
        let mut unmerge = program();
        unmerge.args(call("unmerge", &out, &adapter, &back)).args(["--device", device]);
        let found = document(unmerge.arg("--gains").arg(&gains));
        assert_documented("unmerge", &found);
        assert_eq!(found["layers"], 4);
        assert!(back.join("config.json").is_file());

        let svg = path("picture.svg");
        let analyze = || {
            let mut analyze = program();
            analyze.args(["analyze", "--axis", "output", "--device", device, "--base"]);
            analyze.arg(&base).arg("--changed").arg(&out).arg("--svg").arg(&svg);
            analyze
        };
        let (found, text) = (document(&mut analyze()), succeed(&mut analyze()));
        assert_documented("analyze", &found);
        assert_eq!((&found["moved"], &found["axis"]), (&json!(4), &json!("output")));
        for weight in found["weights"].as_array().expect("weights") {
            let tensor = weight["tensor"].as_str().expect("a name");
            let row = text.lines().find(|line| line.starts_with(tensor)).expect("its row");
            for part in ["magnitude_change", "direction_change"].map(|name| &weight[name]) {
                assert!(row.contains(&printed(part)), "{part}: {row}");
            }
        }
        let packed = path("packed");
        let mut quantize = program();
        quantize
            .args(["quantize", "--format", "nf4", "--base"])
            .arg(&base)
            .arg("--out")
            .arg(packed);
        let found_packed = document(&mut quantize);
        assert_documented("quantize", &found_packed);
        assert_eq!(found_packed["weights"].as_array().expect("weights").len(), 5);
        assert_eq!(found_packed["format"], "nf4, blocks of 64");

        let slope = found["fit"]["slope"].as_f64().expect("a number");
        assert!(text.contains(&format!("slope {slope:.4}")), "{slope}: {text}");
    }
}

/// An error leaves stdout empty, and has the exit code that it has without `--json`.
#[test]
fn errors_print_no_document() {
    for (arguments, code) in [
        (&["inspect", "--adapter", "no/such/folder", "--json"][..], 1),
        (&["inspect", "--json"], 2),
        (&["merge", "--json", "--base", "x", "--adapter", "y", "--out", "/"], 2),
    ] {
        let output = program().args(arguments).output().expect("the program");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(output.stderr.starts_with(b"error: "), "{arguments:?}");
    }
}
