//! Instructions that reach memory: loads and stores, atomics, asynchronous copies and matrices.

pub(crate) mod access;
pub(crate) mod atomic;
pub(crate) mod copy;
pub(crate) mod matrices;
