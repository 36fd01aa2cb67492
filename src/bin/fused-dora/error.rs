//! Why a command stopped.

use std::path::PathBuf;

use cuda_emulator::client::SelectError;
use fused_dora::Error;
use fused_dora::peft::CheckpointError;

/// Why a command stopped: nothing that it names has been written.
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
}
