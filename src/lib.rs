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
//! [`DoraLinear`] does all of that for a layer that owns its adapters, [`Layer`] for a layer whose
//! caller owns them, and [`Kernels`] shows the ops by themselves. Tensors are cudarc slices and views,
//! DLPack tensors, or addresses: [`Read`] and [`Write`].
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
//! let base = DoraLinear::base_spec(inputs, outputs, Dtype::Bf16)?;
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
//!         x: (&x).into(),
//!         y: (&mut y).into(),
//!         seed: step,
//!         dropout: None,
//!         counter: None,
//!     };
//!     layer.forward(&mut saved, io)?;
//!     // To make y small: the loss is ‖y‖²/2, so that dY is y.
//!     losses.push(stream.clone_dtoh(&y)?.iter().map(|y| y.to_f32().powi(2) / 2.0).sum::<f32>());
//!     let io = LinearBackward {
//!         tokens,
//!         gradients: Gradients::Overwrite,
//!         x: (&x).into(),
//!         y: (&y).into(),
//!         dropout: None,
//!         counter: None,
//!         grad_output: (&y).into(),
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
//! row-major; x, y and their gradients may have row strides, all others are contiguous. R
//! is r rounded up to a multiple of 16. x, W, b, y and their gradients are of one [`Dtype`]; adapter
//! parameters and their gradients are f32.

mod device;
mod dropout;
mod dtype;
mod error;
mod layer;
mod layout;
pub mod ops;
mod params;
#[cfg(feature = "peft")]
pub mod peft;
pub mod quant;
pub mod reference;
mod spec;
mod tensor;

pub use cudarc;
#[doc(hidden)]
pub use device::{F32Math, load_image};
pub use device::{Kernels, Tiles, Workspace, borrow_context, open_device, probe_driver};
pub use dropout::{Dropout, DropoutForm, seed_at};
pub use dtype::{Dtype, ElementType};
pub use error::{Error, Result};
pub use layer::parallel::{self, AllReduce, HostRank};
pub use layer::{
    Adapter, DoraLinear, Layer, LinearBackward, LinearForward, Moments, Saved, SharedWorkspace,
};
pub use layout::{AdapterLayout, AdapterView, AdapterViewMut, Part};
pub use ops::adamw::{
    AdamW, AdamWConfig, AdapterGroups, Clip, OptimizerGroup, OptimizerPart, Schedule,
};
pub use ops::backward::{Backward, Gradients};
pub use ops::decompose::{Decompose, DecomposeAdapter, Decomposition};
pub use ops::forward::Forward;
pub use ops::gradient_norm::GradientNorm;
pub use ops::merge::{InPlace, Merge, MergeReport, Unmerge};
pub use ops::norm_gradient::NormGradient;
pub use ops::prepare::{Magnitude, Prepare};
pub use ops::prepared::Prepared;
pub use ops::quantize::{Dequantize, NestedOffset, NestedTarget, Quantize};
pub use spec::{DoraSpec, Norm, NormGrad, Scaling};
#[cfg(feature = "dlpack")]
pub use tensor::dlpack;
pub use tensor::{
    Base, Element, NestedScales, PackedWeight, Read, SharedTensor, SharedWeight, TensorElement,
    Weight, Write,
};

/// The guides' examples are tests.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../docs/dora-in-five-minutes.md")]
    struct DoraInFiveMinutes;

    #[doc = include_str!("../docs/qdora.md")]
    struct Qdora;

    #[cfg(feature = "peft")]
    #[doc = include_str!("../docs/cudarc.md")]
    struct Cudarc;

    #[cfg(feature = "dlpack")]
    #[doc = include_str!("../docs/raw.md")]
    struct Raw;
}
