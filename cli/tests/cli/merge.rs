//! `merge` and `unmerge`: the weights that they write.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fused_dora::peft::PeftCheckpoint;
use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::{Dtype, Norm};
use tempfile::TempDir;

use crate::model::{Model, layer};
use crate::program::{
    DEVICES, assert_clean, assert_near, call, digits, fail, program, sample, succeed,
};
use crate::tensors::{self, Tensors, floats, to, values, wave};

#[test]
fn samples_merge_to_pefts_weights() {
    let folder = TempDir::new().expect("a folder");
    let base = folder.path().join("base.safetensors");
    let wide = tensors::read(&digits());
    tensors::save(&base, &wide.iter().map(|(n, t)| (n.clone(), to(Stored::F32, t))).collect());
    for (name, device) in
        ["dora", "lora"].into_iter().flat_map(|name| DEVICES.map(|device| (name, device)))
    {
        let out = folder.path().join(format!("{name}-{device}.safetensors"));
        let mut merge = program();
        merge.args(call("merge", &base, &sample(name), &out)).args(["--device", device]);
        let report = succeed(&mut merge);
        assert!(report.contains("100.00 %"), "{report}");
        let (found, before) = (tensors::read(&out), tensors::read(&base));
        let expected = tensors::read(&sample(name).join("expected.safetensors"));
        for (tensor, found) in &found {
            match expected.get(&format!("expected.merged.{tensor}")) {
                Some(merged) => {
                    assert_near(tensor, &values(found), &values(merged), 0.0, 1e-5);
                }
                None => assert!(*found == before[tensor], "{tensor} is not as it was"),
            }
        }
        assert_eq!(found.len(), before.len());
    }
    assert_clean(folder.path());
}

/// Merged with the CPU and with the kernels: the same weights, in the same files, everything else
/// to the byte; and unmerged again.
#[test]
fn models_in_several_files_merge_and_unmerge() {
    for (norm, dtype, ulp) in [
        (Norm::None, Stored::F32, 1e-6),
        (Norm::Input, Stored::F32, 1e-6),
        (Norm::Output, Stored::BF16, 1.0 / 128.0),
        (Norm::Input, Stored::F16, 1.0 / 1024.0),
    ] {
        let model = Model::new(norm, dtype);
        let adapter = if norm == Norm::Input { model.lycoris() } else { model.peft() };
        let mut merged = Vec::new();
        for device in DEVICES {
            let [out, back, gains] =
                ["out", "back", "gains"].map(|name| model.path(&format!("{name}-{device}")));
            let mut merge = program();
            merge.args(call("merge", &model.model(), &adapter, &out)).args(["--device", device]);
            succeed(merge.arg("--gains").arg(&gains));
            let mut unmerge = program();
            unmerge.args(call("unmerge", &out, &adapter, &back)).args(["--device", device]);
            succeed(unmerge.arg("--gains").arg(&gains));
            assert!(out.join("config.json").is_file());
            assert!(!out.join("pytorch_model.bin").exists());
            let mut weights = Vec::new();
            for number in 1..=3 {
                let file = format!("model-{number}-of-00003.safetensors");
                let [before, after, again] =
                    [&model.model(), &out, &back].map(|folder| folder.join(&file));
                assert_eq!(header(&before), header(&after));
                let [before, after, again] =
                    [before, after, again].map(|path| tensors::read(&path));
                for (name, tensor) in &before {
                    let module = name.strip_suffix(".weight").unwrap_or("");
                    let Some(layer) = model.layers.get(module) else {
                        assert!(after[name] == *tensor && again[name] == *tensor, "{name}");
                        continue;
                    };
                    let (old, new) = (values(tensor), values(&after[name]));
                    assert!(new != old, "{name} has not changed");
                    weights.extend(new);
                    // Rounded at W', which W = W'/g magnifies.
                    let least = layer.magnitude().iter().fold(1.0, |a: f32, b| a.min(*b));
                    assert_near(name, &values(&again[name]), &old, ulp, ulp / least);
                }
            }
            merged.push(weights);
        }
        assert_near("kernels against CPU", &merged[1], &merged[0], ulp, 1e-6);
        assert_clean(model.folder.path());
    }
}

fn header(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).expect("a file");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    bytes.truncate(8 + length);
    bytes
}

/// A base that stores its weights by input features.
#[test]
fn transposed_weights_merge() {
    let folder = TempDir::new().expect("a folder");
    let [straight, turned] = ["straight", "turned"].map(|name| folder.path().join(name));
    let shape = [12, 20];
    let weight = wave(&shape, 0.3, 0.5);
    let transposed = |values: Vec<f32>, [rows, cols]: [usize; 2]| -> Vec<f32> {
        (0..rows * cols).map(|n| values[n % rows * cols + n / rows]).collect()
    };
    let of_input = floats(&[20, 12], &transposed(values(&weight), shape));
    tensors::save(&straight, &Tensors::from([("a.weight".to_owned(), weight)]));
    tensors::save(&turned, &Tensors::from([("a.weight".to_owned(), of_input)]));
    let layers = BTreeMap::from([("a".to_owned(), layer(shape, Norm::Output, 0.1))]);
    let mut checkpoint = PeftCheckpoint::new(layers).expect("a checkpoint");
    let mut merged = Vec::new();
    for (base, by_input) in [(straight, false), (turned, true)] {
        checkpoint.config =
            checkpoint.config.clone().with("fan_in_fan_out", by_input).expect("a setting");
        let adapter = folder.path().join(format!("adapter-{by_input}"));
        checkpoint.write(&adapter, Dtype::F32).expect("room");
        for device in DEVICES {
            let out = folder.path().join(format!("{by_input}-{device}"));
            let mut merge = program();
            succeed(merge.args(call("merge", &base, &adapter, &out)).args(["--device", device]));
            let found = values(&tensors::read(&out)["a.weight"]);
            merged.push(if by_input { transposed(found, [20, 12]) } else { found });
        }
    }
    for found in &merged[1..] {
        assert_near("transposed", found, &merged[0], 1e-6, 1e-6);
    }
    // The setting is that of the module that PEFT met last; the shape shows what is stored.
    let out = folder.path().join("by-shape");
    let adapter = folder.path().join("adapter-true");
    let base = folder.path().join("straight");
    succeed(program().args(call("merge", &base, &adapter, &out)).args(["--device", "cpu"]));
    let found = values(&tensors::read(&out)["a.weight"]);
    assert_near("by its shape", &found, &merged[0], 1e-6, 1e-6);
}

/// A weight that would hold NaN is an error, of `unmerge` as of `merge`, and nothing is written.
#[test]
fn weights_that_are_not_finite_are_not_written() {
    let model = Model::new(Norm::Output, Stored::BF16);
    let (base, adapter) = (model.model(), model.peft());
    let [merged, gains, out] = ["merged", "gains", "out"].map(|name| model.path(name));
    succeed(program().args(call("merge", &base, &adapter, &merged)).arg("--gains").arg(&gains));
    let file = adapter.join(PeftCheckpoint::FILE);
    let mut tensors = tensors::read(&file);
    let tensor = tensors.get_mut("base_model.model.model.layers.1.proj.lora_A.weight");
    tensor.expect("a tensor").2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    tensors::save(&file, &tensors);
    for device in DEVICES {
        let mut merge = program();
        merge.args(call("merge", &base, &adapter, &out)).args(["--device", device]);
        let mut unmerge = program();
        unmerge.args(call("unmerge", &merged, &adapter, &out)).args(["--device", device]);
        unmerge.arg("--gains").arg(&gains);
        for mut command in [merge, unmerge] {
            let error = fail(&mut command, 1);
            assert!(error.contains("model.layers.1.proj.weight"), "{error}");
            assert!(error.contains("not finite"), "{error}");
            assert!(!out.exists());
        }
    }
    assert_clean(model.folder.path());
}
