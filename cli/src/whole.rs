//! Tensors of the model itself in an adapter's file: copies of the base's, which PEFT stores next
//! to adapters of embeddings and heads, and replacements (`modules_to_save`).

use fused_dora::Dtype;
use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::peft::{CheckpointError, TensorFile};

use crate::engine::{decode, encode};

/// The dtype of a tensor of floating-point numbers.
fn dtype_of(stored: Stored) -> Option<Dtype> {
    match stored {
        Stored::BF16 => Some(Dtype::Bf16),
        Stored::F16 => Some(Dtype::F16),
        Stored::F32 => Some(Dtype::F32),
        _ => None,
    }
}

/// A tensor's bytes.
pub fn bytes(file: &TensorFile, name: &str) -> Result<Vec<u8>, CheckpointError> {
    let Some(info) = file.info(name) else { return Ok(Vec::new()) };
    let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
    file.read_at(info, 0, &mut bytes)?;
    Ok(bytes)
}

/// A tensor's bytes in another type; nothing where one of the types is not known here.
pub fn converted(
    file: &TensorFile,
    name: &str,
    to: Stored,
) -> Result<Option<Vec<u8>>, CheckpointError> {
    let bytes = bytes(file, name)?;
    let Some(info) = file.info(name) else { return Ok(None) };
    if info.dtype == to {
        return Ok(Some(bytes));
    }
    let (Some(from), Some(to)) = (dtype_of(info.dtype), dtype_of(to)) else { return Ok(None) };
    let mut narrowed = Vec::new();
    decode(&bytes, from, |value| {
        encode(f64::from(value), to, &mut narrowed);
    });
    Ok(Some(narrowed))
}

/// Whether two tensors hold the same numbers, rounded to the narrower of their types.
pub fn is_same(
    (file, name): (&TensorFile, &str),
    (other_file, other): (&TensorFile, &str),
) -> Result<bool, CheckpointError> {
    let (Some(one), Some(two)) = (file.info(name), other_file.info(other)) else {
        return Ok(false);
    };
    if one.shape != two.shape {
        return Ok(false);
    }
    let same = |converted: Option<Vec<u8>>, exact: Vec<u8>| converted.is_some_and(|it| it == exact);
    Ok(same(converted(file, name, two.dtype)?, bytes(other_file, other)?)
        || same(converted(other_file, other, one.dtype)?, bytes(file, name)?))
}
