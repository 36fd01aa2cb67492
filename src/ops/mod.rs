//! The ops: each checks its tensors and launches its kernels.

pub mod adamw;
pub mod backward;
pub mod decompose;
pub mod forward;
pub mod gradient_norm;
pub mod merge;
pub mod norm_gradient;
pub mod prepare;
pub mod prepared;
pub mod quantize;
mod tiles;
mod workspace;
