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
//! Over several devices, gradients are summed between 3 and 4, and layers may be sharded: [`parallel`].
//!
//! [`DoraLinear`] does all of that for a layer that owns its adapters, [`Kernels`] shows the ops by
//! themselves, and [`raw`] takes tensors by their addresses.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use fused_dora::{
//!     Adapter, AdapterGroups, AdamWConfig, DoraLinear, DoraSpec, Dtype, Gradients, Kernels,
//!     LinearBackward, LinearForward, Moments, Norm, NormGrad, Scaling, Schedule, Workspace, open_device,
//! };
//! use half::bf16;
//!
//! # cuda_emulator::client::select(cuda_emulator::client::Choice::from_env()?)?;
//! let kernels = Arc::new(Kernels::load(&open_device(0)?)?);
//! let stream = kernels.context().default_stream();
//! let (tokens, inputs, outputs, scaling) = (32, 64, 48, Scaling::Standard { alpha: 16.0 });
//! let base = DoraLinear::<bf16>::base_spec(inputs, outputs)?;
//! let spec = DoraSpec::new(inputs, outputs, 8, scaling, Norm::Output, NormGrad::Exact, Dtype::Bf16)?;
//! // Shared by all layers of a stream.
//! let workspace = Workspace::new(&kernels, &stream, &[base, spec], tokens)?;
//! let workspace = Arc::new(Mutex::new(workspace));
//!
//! // A frozen W [O, I], and a DoRA adapter that changes nothing yet.
//! let values = |len, step: f32| (0..len).map(move |i| bf16::from_f32((i as f32 * step).sin()));
//! let weight = stream.clone_htod(&values(outputs * inputs, 0.7).collect::<Vec<_>>())?;
//! let shape = [outputs, inputs];
//! let mut layer = DoraLinear::new(&kernels, &stream, &workspace, shape, Arc::new(weight), None)?;
//! layer.attach("task", Adapter::new(&stream, &spec, false)?)?;
//! layer.initialise("task", 1)?;
//! layer.activate(Some("task"))?;
//!
//! let mut saved = layer.saved(tokens, None)?;
//! let layout = *layer.adapter("task")?.layout();
//! let mut moments = Moments::new(&stream, &layout, AdapterGroups::default())?;
//! let x = stream.clone_htod(&values(tokens * inputs, 1.3).collect::<Vec<_>>())?;
//! let mut y = stream.alloc_zeros::<bf16>(tokens * outputs)?;
//! let mut losses = Vec::new();
//! for step in 1..=4 {
//!     let io = LinearForward {
//!         tokens,
//!         x: x.as_view().into(),
//!         y: y.as_view_mut().into(),
//!         seed: step,
//!         dropout: None,
//!     };
//!     layer.forward(&mut saved, io)?;
//!     // To make y small: the loss is ‖y‖²/2, so that dY is y.
//!     losses.push(stream.clone_dtoh(&y)?.iter().map(|y| y.to_f32().powi(2) / 2.0).sum::<f32>());
//!     let io = LinearBackward {
//!         tokens,
//!         gradients: Gradients::Overwrite,
//!         x: x.as_view().into(),
//!         y: y.as_view().into(),
//!         dropout: None,
//!         grad_output: y.as_view().into(),
//!         grad_input: None,
//!     };
//!     layer.backward(&saved, io)?;
//!     layer.finish_gradients()?;
//!     let schedule = Schedule::Host { learning_rate: 0.005, step };
//!     layer.adamw(&AdamWConfig::default(), schedule, None, &mut moments)?;
//! }
//! assert!(losses.is_sorted_by(|before, after| after < before), "{losses:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Shapes, throughout: x `[T, I]` tokens × input features, W `[O, I]`, A `[r, I]`, B `[O, r]`, all
//! row-major; x, y and their gradients may have row strides ([`Rows`]), all others are contiguous. R
//! is r rounded up to a multiple of 16. x, W, b, y and their gradients are of one [`Dtype`]; adapter
//! parameters and their gradients are f32.

pub mod adamw;
mod adapter;
pub mod backward;
pub mod decompose;
mod device;
mod dropout;
mod error;
mod f32_math;
#[cfg(feature = "ffi")]
pub mod ffi;
pub mod forward;
mod kernels;
mod linear;
pub mod merge;
pub mod norm_gradient;
pub mod parallel;
mod params;
#[cfg(feature = "peft")]
pub mod peft;
pub mod prepare;
pub mod raw;
pub mod reference;
mod rows;
mod spec;
mod tiles;
mod workspace;

pub use adamw::{
    AdamW, AdamWConfig, AdapterGroups, Clip, GradientNorm, OptimizerGroup, OptimizerPart, Schedule,
};
pub use adapter::{Adapter, AdapterLayout, AdapterView, AdapterViewMut, Part};
pub use backward::{Backward, Gradients};
pub use cudarc;
pub use decompose::{Decompose, DecomposeAdapter, Decomposition};
pub use device::open_device;
pub use dropout::{Dropout, DropoutForm};
pub use error::{Error, Result};
#[doc(hidden)]
pub use f32_math::F32Math;
pub use forward::Forward;
pub use kernels::Kernels;
#[doc(hidden)]
pub use kernels::load_image;
pub use linear::{DoraLinear, LinearBackward, LinearForward, Moments, Saved, SharedWorkspace};
pub use merge::{InPlace, Merge, MergeReport, Unmerge};
pub use norm_gradient::NormGradient;
pub use parallel::{AllReduce, HostRank};
pub use prepare::{Magnitude, Prepare, Prepared};
pub use rows::{MatrixView, MatrixViewMut, Rows};
pub use spec::{DoraSpec, Dtype, Element, Norm, NormGrad, Scaling};
pub use tiles::Tiles;
pub use workspace::Workspace;

/// The guides' examples are tests.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../docs/dora-in-five-minutes.md")]
    struct DoraInFiveMinutes;

    #[cfg(feature = "peft")]
    #[doc = include_str!("../docs/cudarc.md")]
    struct Cudarc;

    #[cfg(feature = "dlpack")]
    #[doc = include_str!("../docs/raw.md")]
    struct Raw;
}
