//! Fused CUDA kernels for DoRA, weight-decomposed low-rank adaptation (arXiv:2402.09353).
//!
//! A DoRA layer computes y = x·W'ᵀ + b with `W' = m·(W + s·B·A)/‖W + s·B·A‖`: W frozen, the
//! low-rank A and B and the magnitude m trained. This crate computes its forward and its
//! hand-derived backward in a few launches, never forming W', from any Rust trainer that holds its
//! tensors in cudarc buffers.
//!
//! One step of one layer:
//! 1. [`Kernels::prepare`], after each change of A, B or m: norms, gains, packed operands;
//! 2. [`Kernels::forward`]: y, and H for the backward;
//! 3. [`Kernels::backward`]: the gradients of x, A, B, m and b; over several micro-batches they
//!    accumulate on request;
//! 4. [`Kernels::norm_gradient`], before the optimizer, where the gradients of A and B are to flow
//!    through the norm ([`NormGrad::Exact`]).
//!
//! [`DoraLinear`] does all of that for a layer that owns its adapters, [`raw`] for tensors that are
//! given by their addresses.
//!
//! Shapes, throughout: x `[T, I]` tokens × input features, W `[O, I]`, A `[r, I]`, B `[O, r]`, all
//! row-major; x, y and their gradients may have row strides ([`Rows`]), all others are contiguous. R
//! is r rounded up to a multiple of 16. x, W, b, y and their gradients are of one [`Dtype`]; adapter
//! parameters and their gradients are f32.

pub mod adamw;
mod adapter;
mod backward;
pub mod backward_adapter;
pub mod backward_input;
pub mod decompose;
mod device;
mod dropout;
mod error;
pub mod forward;
mod kernels;
mod linear;
pub mod merge;
pub mod norm_gradient;
pub mod prepare;
pub mod raw;
pub mod reference;
mod rows;
mod spec;
mod workspace;

pub use adamw::{
    AdamW, AdamWConfig, AdapterGroups, Clip, GradientNorm, OptimizerGroup, OptimizerPart, Schedule,
};
pub use adapter::{AdapterLayout, AdapterView, AdapterViewMut, Part};
pub use backward::{Backward, Gradients};
pub use cudarc;
pub use decompose::{Decompose, DecomposeAdapter, Decomposition};
pub use device::open_device;
pub use dropout::{Dropout, DropoutForm};
pub use error::{Error, Result};
pub use forward::Forward;
pub use kernels::Kernels;
#[doc(hidden)]
pub use kernels::load_image;
pub use linear::{
    Adapter, DoraLinear, LinearBackward, LinearForward, Moments, Saved, SharedWorkspace,
};
pub use merge::{InPlace, Merge, MergeReport, Unmerge};
pub use norm_gradient::NormGradient;
pub use prepare::{Magnitude, Prepare, Prepared};
pub use rows::{MatrixView, MatrixViewMut, Rows};
pub use spec::{DoraSpec, Dtype, Element, Norm, NormGrad, Scaling};
pub use workspace::Workspace;
