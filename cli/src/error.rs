//! Why a command stopped.

use std::io;
use std::path::{Path, PathBuf};

use cuda_emulator::client::SelectError;
use fused_dora::Error;
use fused_dora::peft::CheckpointError;

/// Why a command stopped: except after [`Failure::Unreported`], none of its outputs is there.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Options that do not go together.
    #[error("{0}")]
    Call(String),
    /// A target that is also read.
    #[error("--{option} {}: it is also read (--{input}): name another place", path.display())]
    IsInput { option: &'static str, path: PathBuf, input: &'static str },
    /// A target that is there already.
    #[error("--{option} {}: it exists already: remove it, or name another place", path.display())]
    Exists { option: &'static str, path: PathBuf },
    /// What is wrong with a file.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A layer that could not be computed.
    #[error("{}: tensor `{tensor}`: {problem}", path.display())]
    Layer { path: PathBuf, tensor: String, problem: String },
    /// No device.
    #[error("--device: {0}")]
    Select(#[from] SelectError),
    /// The device, before any layer.
    #[error("{0}")]
    Device(#[from] Error),
    /// Nobody takes what is printed.
    #[error("stdout cannot be written: {0}")]
    Stdout(io::Error),
    /// The same, when the output is at its place already.
    #[error("{} is complete, but its report cannot be written to stdout: {source}", path.display())]
    Unreported { path: PathBuf, source: io::Error },
}

impl Failure {
    /// The failure when an output is at its place already.
    pub fn after_writing(self, path: &Path) -> Self {
        match self {
            Self::Stdout(source) => Self::Unreported { path: path.to_owned(), source },
            other => other,
        }
    }
}
