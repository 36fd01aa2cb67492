//! Models that are larger than the memory that a merge takes, and merges that are stopped midway.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::{Norm, reference};
use serde_json::json;
use tempfile::TempDir;

use crate::model::{Model, layer};
use crate::program::{call, program, snapshot, succeed, text};
use crate::tensors::{self, Tensors, values};

/// 64 MiB of weights, the largest of them 8 MiB, in four files; and an adapter for them all.
fn large() -> Model {
    let folder = TempDir::new().expect("a folder");
    fs::create_dir(folder.path().join("model")).expect("room");
    let (mut layers, mut map) = (BTreeMap::new(), serde_json::Map::new());
    let shape = [LARGEST / 2 / 1024, 1024];
    for file in 0..4 {
        let name = format!("model-{file}.safetensors");
        let mut tensors = Tensors::new();
        for number in 0..2 {
            let module = format!("layers.{}", 2 * file + number);
            let bytes = (0..LARGEST / 2).flat_map(|i| [(i * 37 + i / 7) as u8, 0x3c]).collect();
            tensors.insert(format!("{module}.weight"), (Stored::BF16, shape.to_vec(), bytes));
            map.insert(format!("{module}.weight"), name.clone().into());
            layers.insert(module, layer(shape, Norm::Output, number as f32));
        }
        tensors::save(&folder.path().join("model").join(name), &tensors);
    }
    let index = json!({ "weight_map": map }).to_string();
    fs::write(folder.path().join("model/model.safetensors.index.json"), index).expect("room");
    Model { folder, layers }
}

const LARGEST: usize = 8 << 20;

/// The most memory that a process had in use so far, in bytes.
fn peak_memory(process: &Child) -> Option<usize> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().strip_suffix(" kB")?.parse::<usize>().ok()?)
}

/// Started, and its output folder begun.
fn begun(model: &Model, out: &Path) -> (Child, PathBuf) {
    let mut merge = program();
    merge.args(call("merge", &model.model(), &model.peft(), out)).args(["--device", "cpu"]);
    let child = merge.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the program");
    let begun = |path: &PathBuf| {
        path.extension().is_some_and(|it| it == "partial")
            && path.join("model-1.safetensors").exists()
    };
    let unfinished = loop {
        let entries = fs::read_dir(model.folder.path()).expect("a folder");
        if let Some(path) = entries.map(|entry| entry.expect("an entry").path()).find(begun) {
            break path;
        }
        assert!(child.try_wait().expect("a process").is_none(), "it has ended already");
        sleep(Duration::from_millis(1));
    };
    (child, unfinished)
}

/// A merge that is killed midway leaves its inputs, and no target; one that is interrupted leaves
/// nothing at all; and the next one has its memory bounded by the largest weight.
#[test]
fn large_models_take_little_memory_and_killed_merges_leave_no_target() {
    let model = large();
    let (before, out) = (snapshot(&model.model()), model.path("out"));
    let (mut child, unfinished) = begun(&model, &out);
    child.kill().expect("a process");
    assert_eq!(child.wait().expect("a process").code(), None, "it was done before it was killed");
    assert!(!out.exists() && unfinished.exists());
    fs::remove_dir_all(unfinished).expect("a folder");

    let (child, unfinished) = begun(&model, &out);
    let signal = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &signal]).status().expect("a shell").success());
    let output = child.wait_with_output().expect("a process");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(text(&output).contains("interrupted: nothing was written"), "{}", text(&output));
    assert!(!out.exists() && !unfinished.exists());
    assert!(snapshot(&model.model()) == before, "an input was changed");

    let (mut child, _) = begun(&model, &out);
    let mut peak = 0;
    while child.try_wait().expect("a process").is_none() {
        peak = peak.max(peak_memory(&child).unwrap_or(0));
        sleep(Duration::from_millis(1));
    }
    assert!(out.is_dir());
    // A gigabyte may take one and a half times its largest weight and 200 MB. This is a sixteenth.
    let bound = LARGEST * 3 / 2 + 200_000_000 / 16;
    println!("peak memory: {peak} bytes of {bound}");
    assert!((1..=bound).contains(&peak), "{peak} bytes, more than {bound}");
    compare_first_layer(&model, &out);
}

/// Weights are read in pieces: the first one has the right W' at the pieces' edges, and `analyze`
/// reports how far it moved.
fn compare_first_layer(model: &Model, out: &Path) {
    let layer = &model.layers["layers.0"];
    let ([rows, columns], rank, scaling) = (layer.shape(), layer.rank(), layer.scaling());
    let weight = |folder: &Path| -> Vec<f64> {
        let tensors = tensors::read(&folder.join("model-0.safetensors"));
        values(&tensors["layers.0.weight"]).into_iter().map(f64::from).collect()
    };
    let (before, after) = (weight(&model.model()), weight(out));
    for row in [0, 1, rows / 2 - 1, rows / 2, rows - 1] {
        let v: Vec<f64> = (0..columns)
            .map(|column| {
                let product = (0..rank).map(|r| {
                    f64::from(layer.lora_b()[row * rank + r] * scaling)
                        * f64::from(layer.lora_a()[r * columns + column])
                });
                before[row * columns + column] + product.sum::<f64>()
            })
            .collect();
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let gain = f64::from(layer.magnitude()[row]) / norm;
        for (column, v) in v.iter().enumerate() {
            let (found, expected) = (after[row * columns + column], v * gain);
            let error = (found - expected).abs();
            assert!(error <= expected.abs() / 250.0, "[{row}, {column}]: {found}, {expected}");
        }
    }
    let mut analyze = program();
    analyze.args(["analyze", "--device", "cpu", "--axis", "output", "--base"]).arg(model.model());
    let text = succeed(analyze.arg("--changed").arg(out));
    let line = text.lines().find(|line| line.starts_with("layers.0.weight")).expect("its line");
    let found: Vec<f64> = line.split('|').skip(2).map(|w| w.trim().parse().unwrap()).collect();
    let change: Vec<f64> =
        after.iter().zip(&before).map(|(after, before)| after - before).collect();
    let exact = vec![0.0; change.len()];
    let shape = [rows, columns];
    let (moved, _) = reference::decompose(shape, Norm::Output, &before, &change, &exact);
    for (found, expected) in found.iter().zip([moved.magnitude, moved.direction]) {
        assert!((found - expected).abs() <= 1e-4 * expected, "{line}: {expected:e}");
    }
}
