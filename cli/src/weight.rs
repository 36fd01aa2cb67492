//! A matrix in a file, read by rows.

use fused_dora::Dtype;
use fused_dora::peft::safetensors::tensor::TensorInfo;
use fused_dora::peft::{CheckpointError, TensorFile};

/// Bytes that are read or written at once.
pub const CHUNK: usize = 4 << 20;

/// A matrix `[rows, columns]` of bf16, f16 or f32 in a file.
pub struct Weight<'a> {
    pub file: &'a TensorFile,
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: [usize; 2],
    info: &'a TensorInfo,
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
                Ok(Self { file, name, dtype, shape: [rows, columns], info })
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

    pub fn elements(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// How many rows make a chunk.
    pub fn chunk_rows(&self) -> usize {
        (CHUNK / (self.shape[1] * self.dtype.bytes()).max(1)).clamp(1, self.shape[0])
    }

    /// Reads rows from one on, as many as the target holds.
    pub fn read(&self, first: usize, target: &mut [u8]) -> Result<(), CheckpointError> {
        self.file.read_at(self.info, first * self.shape[1] * self.dtype.bytes(), target)
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
