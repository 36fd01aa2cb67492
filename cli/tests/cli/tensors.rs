//! Safetensors files, made and changed.

use std::collections::BTreeMap;
use std::path::Path;

use fused_dora::peft::safetensors::tensor::{TensorView, serialize};
use fused_dora::peft::safetensors::{Dtype, SafeTensors};

/// A type, a shape and bytes.
pub type Tensor = (Dtype, Vec<usize>, Vec<u8>);
pub type Tensors = BTreeMap<String, Tensor>;

pub fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).expect("a file");
    let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let tensor = |(name, view): (&str, TensorView<'_>)| {
        (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    tensors.iter().map(tensor).collect()
}

/// Those of all safetensors files in a folder.
pub fn read_folder(folder: &Path) -> Tensors {
    let mut tensors = Tensors::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let is_adapter = path.ends_with("adapter_model.safetensors");
        if path.extension().is_some_and(|it| it == "safetensors") && !is_adapter {
            tensors.extend(read(&path));
        }
    }
    tensors
}

pub fn save(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
    });
    std::fs::write(path, serialize(views, None).expect("a file")).expect("room");
}

pub fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    (Dtype::F32, shape.to_vec(), bytes)
}

/// A tensor of f32 with values between −size and size that repeat late.
pub fn wave(shape: &[usize], size: f32, seed: f32) -> Tensor {
    let len = shape.iter().product::<usize>();
    floats(shape, &(0..len).map(|i| size * (i as f32 * 0.7 + seed).sin()).collect::<Vec<_>>())
}

/// A tensor's elements, widened.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    let (dtype, _, bytes) = tensor;
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::BF16 => {
            bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()
        }
        Dtype::F16 => {
            bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
        }
        other => panic!("{other} is no type of these tests"),
    }
}

/// The tensor in another type.
pub fn to(dtype: Dtype, tensor: &Tensor) -> Tensor {
    let values = values(tensor).into_iter();
    let bytes = match dtype {
        Dtype::BF16 => values.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        Dtype::F16 => values.flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        other => panic!("{other} is no type of these tests"),
    };
    (dtype, tensor.1.clone(), bytes)
}
