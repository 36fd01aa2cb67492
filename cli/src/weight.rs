//! A matrix in a file, read by rows.

use std::cell::OnceCell;

use fused_dora::Dtype;
use fused_dora::peft::safetensors::tensor::TensorInfo;
use fused_dora::peft::{CheckpointError, QuantizedTensor, TensorFile};
use fused_dora::quant::QuantizedWeight;

use crate::engine::encode;

/// Bytes that are read or written at once.
pub const CHUNK: usize = 4 << 20;

/// A matrix `[rows, columns]` of bf16, f16 or f32 in a file, or a packed one that is read as one.
pub struct Weight<'a> {
    pub file: &'a TensorFile,
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: [usize; 2],
    content: Content<'a>,
}

/// Where its elements are.
enum Content<'a> {
    Dense(&'a TensorInfo),
    Packed {
        tensor: &'a QuantizedTensor,
        files: &'a [TensorFile],
        /// All of it in memory, still packed, once it is needed.
        weight: OnceCell<QuantizedWeight<'static>>,
    },
}

impl<'a> Weight<'a> {
    pub fn new(file: &'a TensorFile, name: &'a str) -> Result<Self, CheckpointError> {
        let (path, tensor) = (file.path().to_owned(), name.to_owned());
        let Some(info) = file.info(name) else {
            let reason = "it was asked for".to_owned();
            return Err(CheckpointError::MissingTensor { path, tensor, reason });
        };
        let dtype = file.dtype(name, info)?;
        match info.shape[..] {
            // A 1×1 convolution is a matrix, too.
            [rows, columns, ref kernel @ ..]
                if rows > 0 && columns > 0 && kernel.iter().all(|size| *size == 1) =>
            {
                let content = Content::Dense(info);
                Ok(Self { file, name, dtype, shape: [rows, columns], content })
            }
            _ => {
                let needed = match info.shape.len() {
                    3.. => {
                        "it is a convolution's, and only linear layers and 1×1 convolutions are \
                            supported"
                    }
                    _ => "must be a matrix",
                };
                let (found, needed) = (info.shape.clone(), needed.to_owned());
                Err(CheckpointError::Shape { path, tensor, found, needed })
            }
        }
    }

    /// A packed weight, unpacked to a dtype as it is read.
    pub fn packed(
        file: &'a TensorFile,
        name: &'a str,
        tensor: &'a QuantizedTensor,
        files: &'a [TensorFile],
        dtype: Dtype,
    ) -> Self {
        let content = Content::Packed { tensor, files, weight: OnceCell::new() };
        Self { file, name, dtype, shape: tensor.shape(), content }
    }

    pub fn elements(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// How many rows make a chunk.
    pub fn chunk_rows(&self) -> usize {
        (CHUNK / (self.shape[1] * self.dtype.bytes()).max(1)).clamp(1, self.shape[0])
    }

    /// Reads rows from one on, as many as the target holds.
    pub fn read(&self, first: usize, target: &mut [u8]) -> Result<(), CheckpointError> {
        let row_bytes = self.shape[1] * self.dtype.bytes();
        let (tensor, files, cell) = match &self.content {
            Content::Dense(info) => return self.file.read_at(info, first * row_bytes, target),
            Content::Packed { tensor, files, weight } => (tensor, files, weight),
        };
        let weight = match cell.get() {
            Some(weight) => weight,
            None => {
                let read = tensor.read(files)?;
                cell.get_or_init(|| read)
            }
        };
        let (mut values, mut bytes) = (vec![0.0; self.shape[1]], Vec::with_capacity(row_bytes));
        for (row, target) in (first..).zip(target.chunks_exact_mut(row_bytes)) {
            weight.row(row, &mut values);
            bytes.clear();
            for value in &values {
                encode(f64::from(*value), self.dtype, &mut bytes);
            }
            target.copy_from_slice(&bytes);
        }
        Ok(())
    }

    /// Calls `visit` with each chunk's first row and its bytes, in order.
    pub fn chunks<E: From<CheckpointError>>(
        &self,
        mut visit: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let row = self.shape[1] * self.dtype.bytes();
        let mut buffer = vec![0; self.chunk_rows() * row];
        for first in (0..self.shape[0]).step_by(self.chunk_rows()) {
            let rows = self.chunk_rows().min(self.shape[0] - first);
            let bytes = &mut buffer[..rows * row];
            self.read(first, bytes)?;
            visit(first, bytes)?;
        }
        Ok(())
    }
}
