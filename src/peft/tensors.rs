//! A safetensors file of any size, read by pieces.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype as Stored;
use safetensors::tensor::{Metadata, TensorInfo};

use super::CheckpointError;

/// The number at the start of a file: the length of the header behind it.
const LENGTH_BYTES: u64 = 8;

/// No header is longer, says the format.
const MAX_HEADER: u64 = 100_000_000;

/// An open safetensors file. Only its header is in memory.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    header: Vec<u8>,
    metadata: Metadata,
}

impl TensorFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`CheckpointError::Read`]; [`CheckpointError::Malformed`] if it is no safetensors file, or
    /// shorter or longer than its header says.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, CheckpointError> {
        let path = path.into();
        let mut file = File::open(&path).map_err(CheckpointError::read(&path))?;
        let length = file.metadata().map_err(CheckpointError::read(&path))?.len();
        let malformed = |problem: String| CheckpointError::malformed(&path, problem);
        let mut start = [0; LENGTH_BYTES as usize];
        if length < LENGTH_BYTES {
            return Err(malformed(format!("is no safetensors file: it is {length} bytes long")));
        }
        file.read_exact(&mut start).map_err(CheckpointError::read(&path))?;
        let header_length = u64::from_le_bytes(start);
        if header_length > MAX_HEADER || header_length > length - LENGTH_BYTES {
            return Err(malformed(format!(
                "is no safetensors file, or truncated: of its {length} bytes the header would be \
                 {header_length}"
            )));
        }
        let mut header = start.to_vec();
        header.resize(start.len() + header_length as usize, 0);
        file.read_exact(&mut header[start.len()..]).map_err(CheckpointError::read(&path))?;
        let metadata: Metadata = serde_json::from_slice(&header[start.len()..])
            .map_err(|error| malformed(format!("is no safetensors file: {error}")))?;
        let needed = header.len() as u64 + metadata.data_len() as u64;
        if needed != length {
            let what = if length < needed { "it is truncated" } else { "more follows them" };
            return Err(malformed(format!(
                "is {length} bytes long, but its header describes tensors of {needed} bytes in \
                 all: {what}"
            )));
        }
        Ok(Self { path, file, header, metadata })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's first bytes, up to the first tensor's.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The tensors' names, in the order in which their bytes lie.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// A tensor's type, shape and place behind the header.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// Reads bytes of a tensor, from byte `start` of it on.
    ///
    /// # Errors
    /// [`CheckpointError::Read`].
    pub fn read_at(
        &self,
        info: &TensorInfo,
        start: usize,
        target: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let at = self.header.len() as u64 + info.data_offsets.0 as u64 + start as u64;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(at))
            .and_then(|_| file.read_exact(target))
            .map_err(CheckpointError::read(&self.path))
    }

    /// All of a tensor of bf16, f16 or f32 elements, widened to f32.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], [`CheckpointError::Dtype`], [`CheckpointError::Read`].
    pub fn floats(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let info = self.info(name).ok_or_else(|| self.missing(name, "it is needed"))?;
        let dtype = self.dtype(name, info)?;
        let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
        self.read_at(info, 0, &mut bytes)?;
        Ok(widened(&bytes, dtype))
    }

    /// A tensor's type, if it is one that kernels take.
    ///
    /// # Errors
    /// [`CheckpointError::Dtype`].
    pub fn dtype(&self, name: &str, info: &TensorInfo) -> Result<crate::Dtype, CheckpointError> {
        match info.dtype {
            Stored::BF16 => Ok(crate::Dtype::Bf16),
            Stored::F16 => Ok(crate::Dtype::F16),
            Stored::F32 => Ok(crate::Dtype::F32),
            other => Err(CheckpointError::Dtype {
                path: self.path.clone(),
                tensor: name.to_owned(),
                found: other.to_string(),
                remedy: "it must be BF16, F16 or F32; quantised and wider weights have to be \
                       converted first",
            }),
        }
    }

    /// The shape of a matrix, or of a 1×1 convolution, which is one; nothing for other numbers of
    /// dimensions.
    pub(crate) fn matrix(&self, name: &str) -> Result<Option<[usize; 2]>, CheckpointError> {
        match *self.info(name).map_or(&[][..], |info| &info.shape) {
            [rows, columns] => Ok(Some([rows, columns])),
            [rows, columns, ref kernel @ ..] if kernel.iter().all(|size| *size == 1) => {
                Ok(Some([rows, columns]))
            }
            [_, _, _, ..] => Err(self.unexpected(
                name,
                "this is a convolution's, and only linear layers and 1×1 convolutions are \
                 supported: merge with the program that wrote the file, or train without \
                 convolutions",
            )),
            _ => Ok(None),
        }
    }

    /// The texts of the file's header (`__metadata__`).
    pub fn metadata(&self) -> Option<&std::collections::HashMap<String, String>> {
        self.metadata.metadata().as_ref()
    }

    pub(crate) fn missing(&self, name: &str, reason: impl Into<String>) -> CheckpointError {
        let (path, tensor) = (self.path.clone(), name.to_owned());
        CheckpointError::MissingTensor { path, tensor, reason: reason.into() }
    }

    pub(crate) fn unexpected(&self, name: &str, reason: impl Into<String>) -> CheckpointError {
        let (path, tensor) = (self.path.clone(), name.to_owned());
        CheckpointError::UnexpectedTensor { path, tensor, reason: reason.into() }
    }

    pub(crate) fn shape(&self, name: &str, needed: impl Into<String>) -> CheckpointError {
        let found = self.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        let (path, tensor) = (self.path.clone(), name.to_owned());
        CheckpointError::Shape { path, tensor, found, needed: needed.into() }
    }
}

/// Elements of their bytes.
fn widened(bytes: &[u8], dtype: crate::Dtype) -> Vec<f32> {
    let pairs = || bytes.as_chunks::<2>().0.iter().copied();
    match dtype {
        crate::Dtype::Bf16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
        crate::Dtype::F16 => pairs().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        crate::Dtype::F32 => {
            bytes.as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four)).collect()
        }
    }
}
