//! What can be wrong with files.

use std::io;
use std::path::{Path, PathBuf};

/// Why a checkpoint cannot be read or written: the file, what in it, and the remedy.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file that is not there or that cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file that cannot be written, e.g. because the disk is full. What was at its place is
    /// still there.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file of another kind, or a part of a file.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A setting that means something that this crate does not do, or nothing at all.
    #[error("{}: {setting} is {value}: {remedy}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The setting's name.
        setting: String,
        /// Its value, as JSON.
        value: String,
        /// What it may be, and what to do.
        remedy: String,
    },
    /// A tensor that should be there.
    #[error("{}: tensor `{tensor}` is missing: {reason}", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Why it is needed, and what to do.
        reason: String,
    },
    /// A tensor that has no place in such a file.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Why it has no place there, and what to do.
        reason: String,
    },
    /// A tensor of the wrong shape.
    #[error("{}: tensor `{tensor}` is {found:?}, but {needed}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it must have, and why.
        needed: String,
    },
    /// A tensor of a type that is not floating point.
    #[error("{}: tensor `{tensor}` is stored as {found}: {remedy}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Its type.
        found: String,
        /// Which types will do, and what to do.
        remedy: &'static str,
    },
    /// A layer that no spec can describe, or that such a file cannot hold.
    #[error("layer `{layer}` {problem}")]
    Layer {
        /// The layer's name.
        layer: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

impl CheckpointError {
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Read { path: path.to_owned(), source }
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Write { path: path.to_owned(), source }
    }

    pub(crate) fn malformed(path: &Path, problem: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), problem: problem.into() }
    }
}
