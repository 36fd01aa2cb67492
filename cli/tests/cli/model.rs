//! Models and adapters that the tests make.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::peft::{LayerAdapter, PeftCheckpoint};
use fused_dora::{Dtype, Norm};
use serde_json::json;
use tempfile::TempDir;

use crate::tensors::{self, Tensors, floats, to, values, wave};

/// A model in a folder, in files of a few layers, and an adapter for all but its last one.
pub struct Model {
    pub folder: TempDir,
    pub layers: BTreeMap<String, LayerAdapter>,
}

pub const SHAPES: [[usize; 2]; 5] = [[48, 40], [33, 7], [40, 48], [64, 64], [16, 24]];

impl Model {
    pub fn new(norm: Norm, dtype: Stored) -> Self {
        let folder = TempDir::new().expect("a folder");
        let model = folder.path().join("model");
        fs::create_dir(&model).expect("room");
        let mut files = BTreeMap::<String, Tensors>::new();
        let (mut layers, mut map) = (BTreeMap::new(), serde_json::Map::new());
        for (index, shape) in SHAPES.into_iter().enumerate() {
            let (module, seed) = (format!("model.layers.{index}.proj"), index as f32);
            let file = format!("model-{}-of-00003.safetensors", index / 2 + 1);
            let tensors = files.entry(file.clone()).or_default();
            let weight = to(dtype, &wave(&shape, 0.05, seed));
            tensors.insert(format!("{module}.weight"), weight);
            tensors.insert(format!("{module}.bias"), wave(&[shape[0]], 1.0, seed));
            let odd = (Stored::I64, vec![1], 7u64.to_le_bytes().to_vec());
            tensors.insert(format!("{module}.position"), odd);
            for part in ["weight", "bias", "position"] {
                map.insert(format!("{module}.{part}"), file.clone().into());
            }
            if index + 1 < SHAPES.len() {
                layers.insert(module, layer(shape, norm, seed));
            }
        }
        for (file, tensors) in &files {
            tensors::save(&model.join(file), tensors);
        }
        let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
        fs::write(model.join("model.safetensors.index.json"), index.to_string()).expect("room");
        fs::write(model.join("config.json"), "{}").expect("room");
        fs::write(model.join("pytorch_model.bin"), "not ours").expect("room");
        Self { folder, layers }
    }

    pub fn model(&self) -> PathBuf {
        self.path("model")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The adapter in PEFT's form, if it has one.
    pub fn peft(&self) -> PathBuf {
        let checkpoint = PeftCheckpoint::new(self.layers.clone()).expect("a checkpoint");
        checkpoint.write(self.path("adapter"), Dtype::F32).expect("room");
        self.path("adapter")
    }

    /// The adapter in LyCORIS's form.
    pub fn lycoris(&self) -> PathBuf {
        let mut tensors = Tensors::new();
        for (module, layer) in &self.layers {
            let name = format!("lycoris_{}", module.replace('.', "_"));
            let ([o, i], rank) = (layer.shape(), layer.rank());
            let alpha = layer.scaling() * rank as f32;
            tensors.insert(format!("{name}.lora_down.weight"), floats(&[rank, i], layer.lora_a()));
            tensors.insert(format!("{name}.lora_up.weight"), floats(&[o, rank], layer.lora_b()));
            tensors.insert(format!("{name}.alpha"), floats(&[], &[alpha]));
            let shape = match layer.norm() {
                Norm::None => continue,
                Norm::Input => [1, i],
                Norm::Output => [o, 1],
            };
            tensors.insert(format!("{name}.dora_scale"), floats(&shape, layer.magnitude()));
        }
        tensors::save(&self.path("adapter.safetensors"), &tensors);
        self.path("adapter.safetensors")
    }
}

/// A layer of rank 4 that changes its weight a good deal.
pub fn layer(shape: [usize; 2], norm: Norm, seed: f32) -> LayerAdapter {
    let [o, i] = shape;
    let of = |shape: [usize; 2], size| values(&wave(&shape, size, seed));
    let features = match norm {
        Norm::None => 0,
        Norm::Input => i,
        Norm::Output => o,
    };
    let magnitude = of([1, features], 0.1).iter().map(|m| 0.3 + m).collect();
    let (a, b) = (of([4, i], 0.1), of([o, 4], 0.1));
    LayerAdapter::new(shape, 4, 0.5, norm, a, b, magnitude).expect("a layer")
}
