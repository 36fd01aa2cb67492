//! What the kernels compute, op by op, against the float64 reference.

mod adamw;
mod adapter;
mod counter;
mod decompose;
mod golden_packed;
mod init;
mod merge;
mod norm_gradient;
mod numerics;
mod ops;
mod packed;
mod quantize;
mod tiles;
