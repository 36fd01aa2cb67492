//! The ops on device addresses, for trainers whose tensors cudarc does not own: tch, burn, C++.
//!
//! | op | here | from cudarc's buffers |
//! |---|---|---|
//! | [`Kernels::prepare_raw`](crate::Kernels::prepare_raw) | [`Prepare`] | [`crate::Prepare`] |
//! | [`Kernels::forward_raw`](crate::Kernels::forward_raw) | [`Forward`] | [`crate::Forward`] |
//! | [`Kernels::backward_raw`](crate::Kernels::backward_raw) | [`Backward`] | [`crate::Backward`] |
//! | [`Kernels::norm_gradient_raw`](crate::Kernels::norm_gradient_raw) | [`NormGradient`] | [`crate::NormGradient`] |
//! | [`Kernels::gradient_norm_raw`](crate::Kernels::gradient_norm_raw) | [`GradientNorm`] | [`crate::GradientNorm`] |
//! | [`Kernels::adamw_raw`](crate::Kernels::adamw_raw) | [`AdamW`] | [`crate::AdamW`] |
//! | [`Kernels::merge_raw`](crate::Kernels::merge_raw) | [`Merge`] | [`crate::Merge`] |
//! | [`Kernels::unmerge_raw`](crate::Kernels::unmerge_raw) | [`Unmerge`] | [`crate::Unmerge`] |
//! | [`Kernels::decompose_raw`](crate::Kernels::decompose_raw) | [`Decompose`] | [`crate::Decompose`] |
//! | [`Kernels::decompose_adapter_raw`](crate::Kernels::decompose_adapter_raw) | [`DecomposeAdapter`] | [`crate::DecomposeAdapter`] |
//!
//! Of a shard, [`prepare_shard_raw`](crate::Kernels::prepare_shard_raw) and
//! [`finish_prepare_raw`](crate::Kernels::finish_prepare_raw) do what `prepare_raw` does of a whole
//! weight.
//!
//! An address of 0 stands for a tensor that is absent. Shapes and dtypes are those of the structs
//! for cudarc's buffers; matrices are row-major. What can be told from numbers (strides, alignment,
//! missing tensors, the workspace's size, the device's limits) is checked before anything is
//! launched; that the addresses hold what they should is the caller's promise.
//!
//! A context of another library becomes one that kernels load into with [`borrow_context`], a
//! stream one that the ops take with [`CudaContext::wrap_borrowed_stream`]. The ops allocate
//! nothing, and but for the unmerge wait for nothing and read nothing back. `examples/raw.rs` is a
//! whole training loop.
//!
//! ```
//! use fused_dora::cudarc::driver::{DevicePtr, DevicePtrMut};
//! use fused_dora::{DoraSpec, Dtype, Kernels, Norm, NormGrad, Scaling, open_device, raw};
//!
//! # cuda_emulator::client::select(cuda_emulator::client::Choice::from_env()?)?;
//! let kernels = Kernels::load(&open_device(0)?)?;
//! let stream = kernels.context().default_stream();
//! // A layer without an adapter: y = x·Wᵀ.
//! let scaling = Scaling::Value(1.0);
//! let spec = DoraSpec::new(4, 3, 0, scaling, Norm::None, NormGrad::Detached, Dtype::F32)?;
//! let size = raw::WorkspaceSize::new(&kernels, &[spec], 2)?;
//! let scratch = stream.alloc_zeros::<u8>(size.bytes)?;
//! let weight = stream.clone_htod(&[1.0f32; 12])?;
//! let x = stream.clone_htod(&[1.0f32, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 1.0])?;
//! let mut y = stream.alloc_zeros::<f32>(6)?;
//! {
//!     // Of tensors of another library, these would be its own addresses.
//!     let (scratch, _guard) = scratch.device_ptr(&stream);
//!     let (weight, _guard) = weight.device_ptr(&stream);
//!     let (x, _guard) = x.device_ptr(&stream);
//!     let (y, _guard) = y.device_ptr_mut(&stream);
//!     let workspace = raw::Workspace { pointer: scratch, size };
//!     let prepared = raw::Prepared { norm: 0, gain: 0, a: 0, sb: 0, gsb: 0, bias: 0 };
//!     let io = raw::Forward {
//!         tokens: 2,
//!         x: raw::Matrix::dense(x, 4),
//!         weight,
//!         bias: 0,
//!         seed: 0,
//!         dropout: None,
//!         z: 0,
//!         y: raw::Matrix::dense(y, 3),
//!         h: 0,
//!     };
//!     // SAFETY: the tensors have the shapes that the spec asks for, and live until the stream is read.
//!     unsafe { kernels.forward_raw(&stream, &spec, &prepared, &workspace, &io)? };
//! }
//! assert_eq!(stream.clone_dtoh(&y)?, [10.0, 10.0, 10.0, 1.0, 1.0, 1.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(feature = "dlpack")]
pub mod dlpack;

use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use crate::adamw::OptimizerPart;
use crate::backward::Gradients;
use crate::device::probe_driver;
use crate::dropout::Dropout;
use crate::error::{During, Error, Result};
use crate::kernels::Kernels;
use crate::rows::check_stride;
use crate::spec::{DoraSpec, Dtype, Norm};
use crate::workspace::{Layout, Regions};

/// A row-major matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Device address of the first element, a multiple of the element's size.
    pub pointer: u64,
    /// Elements from the start of a row to the start of the next, at least the row's length.
    pub stride: usize,
}

/// Where [`Kernels::prepare_raw`] leaves what the other ops read, each a multiple of its element's
/// size; [`crate::Prepared`] has the shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared {
    /// c `[I]` or `[O]`, f32; 0 for plain LoRA.
    pub norm: u64,
    /// g `[I]` or `[O]`, f32; 0 for plain LoRA.
    pub gain: u64,
    /// A, packed: `[R, I]`; 0 for rank 0.
    pub a: u64,
    /// s·B, packed: `[O, R]`; 0 for rank 0.
    pub sb: u64,
    /// g∘(s·B), packed: `[O, R]`, norm axis output only; 0 for rank 0.
    pub gsb: u64,
    /// The trained bias `[O]`, rounded to the dtype; 0 where there is none.
    pub bias: u64,
}

impl Prepared {
    /// Bytes of one block of memory that holds what `spec` needs, and a trained bias if it
    /// `has_bias`.
    pub fn bytes(spec: &DoraSpec, has_bias: bool) -> usize {
        Self::layout(spec, has_bias).0
    }

    /// The addresses within such a block, which starts at `pointer`, a multiple of 256.
    pub fn within(pointer: u64, spec: &DoraSpec, has_bias: bool) -> Self {
        let (_, offsets) = Self::layout(spec, has_bias);
        let [norm, gain, a, sb, gsb, bias] =
            offsets.map(|offset| offset.map_or(0, |offset| pointer.saturating_add(offset as u64)));
        Self { norm, gain, a, sb, gsb, bias }
    }

    /// The bytes in all, and where in them each tensor starts that the spec has.
    fn layout(spec: &DoraSpec, has_bias: bool) -> (usize, [Option<usize>; 6]) {
        let (element, single) = (spec.dtype().bytes(), size_of::<f32>());
        let (inputs, outputs, rank) = (spec.in_features(), spec.out_features(), spec.padded_rank());
        let gsb = if spec.norm() == Norm::Output { outputs * rank } else { 0 };
        let mut regions = Regions::default();
        let offsets = [
            (spec.magnitude_len(), single),
            (spec.magnitude_len(), single),
            (inputs * rank, element),
            (outputs * rank, element),
            (gsb, element),
            (if has_bias { outputs } else { 0 }, element),
        ]
        .map(|(count, size)| (count > 0).then(|| regions.take(count, size)));
        (regions.bytes(), offsets)
    }
}

/// Scratch memory: see [`WorkspaceSize`]. Calls that share one must be ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workspace {
    /// Device address, a multiple of 256.
    pub pointer: u64,
    /// What it holds.
    pub size: WorkspaceSize,
}

/// How much scratch memory calls of up to some number of tokens need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkspaceSize {
    /// Bytes in all.
    pub bytes: usize,
    /// The first of them, which hold counters: zero before the first call; every call leaves them
    /// so.
    pub counter_bytes: usize,
}

impl WorkspaceSize {
    /// What calls of up to `max_tokens` tokens need, for any of `specs`. Loads the kernels that train
    /// them ([`Kernels::load`]).
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if `max_tokens` is beyond what kernels can index, or the driver's.
    pub fn new(kernels: &Kernels, specs: &[DoraSpec], max_tokens: usize) -> Result<Self> {
        let Layout { counters_end, total } = Layout::new(kernels, specs, max_tokens)?;
        kernels.load_training(specs)?;
        Ok(Self { bytes: total, counter_bytes: counters_end })
    }
}

/// Inputs of [`Kernels::prepare_raw`].
#[derive(Debug, Clone, Copy)]
pub struct Prepare {
    /// W `[O, I]`.
    pub weight: u64,
    /// A `[r, I]`, f32; 0 for rank 0.
    pub lora_a: u64,
    /// B `[O, r]`, f32; 0 for rank 0.
    pub lora_b: u64,
    /// m `[I]` or `[O]`, f32; 0 for plain LoRA and where `magnitude_out` is given.
    pub magnitude: u64,
    /// For a fresh adapter: where m = c is written to.
    pub magnitude_out: u64,
    /// b `[O]`, f32; 0 where the bias is not trained.
    pub bias: u64,
}

/// Inputs and outputs of [`Kernels::forward_raw`].
#[derive(Debug, Clone, Copy)]
pub struct Forward {
    /// T.
    pub tokens: usize,
    /// x `[T, I]`.
    pub x: Matrix,
    /// W `[O, I]`.
    pub weight: u64,
    /// b `[O]` in the dtype; 0 where there is none.
    pub bias: u64,
    /// Seed of the stochastic rounding of x∘g.
    pub seed: u64,
    /// Dropout of x.
    pub dropout: Option<Dropout>,
    /// z `[T, O]`, written; 0 unless the dropout is PEFT's.
    pub z: u64,
    /// y `[T, O]`, written.
    pub y: Matrix,
    /// H `[T, R]`, written; 0 for rank 0.
    pub h: u64,
}

/// Inputs and outputs of [`Kernels::backward_raw`].
#[derive(Debug, Clone, Copy)]
pub struct Backward {
    /// T.
    pub tokens: usize,
    /// What becomes of the gradients that are in the buffers.
    pub gradients: Gradients,
    /// x `[T, I]`.
    pub x: Matrix,
    /// W `[O, I]`.
    pub weight: u64,
    /// b `[O]`, as given to the forward; 0 where there is none.
    pub bias: u64,
    /// y `[T, O]`; address 0 where the norm axis is not the output, or the dropout is PEFT's.
    pub output: Matrix,
    /// z `[T, O]`, as the forward wrote it; 0 unless the dropout is PEFT's.
    pub z: u64,
    /// The forward's dropout.
    pub dropout: Option<Dropout>,
    /// dY `[T, O]`.
    pub grad_output: Matrix,
    /// H `[T, R]`; 0 for rank 0.
    pub h: u64,
    /// dX `[T, I]`, written; address 0 where it is not wanted.
    pub grad_input: Matrix,
    /// dA `[r, I]`, f32; 0 for rank 0.
    pub grad_lora_a: u64,
    /// dB `[O, r]`, f32; 0 for rank 0.
    pub grad_lora_b: u64,
    /// dm `[I]` or `[O]`, f32; 0 for plain LoRA.
    pub grad_magnitude: u64,
    /// db `[O]`, f32; 0 where it is not wanted.
    pub grad_bias: u64,
}

/// Inputs of [`Kernels::norm_gradient_raw`], all of them needed.
#[derive(Debug, Clone, Copy)]
pub struct NormGradient {
    /// W `[O, I]`.
    pub weight: u64,
    /// A `[r, I]`, f32.
    pub lora_a: u64,
    /// B `[O, r]`, f32.
    pub lora_b: u64,
    /// dm `[I]` or `[O]`, f32.
    pub grad_magnitude: u64,
    /// dA `[r, I]`, f32, read and written.
    pub grad_lora_a: u64,
    /// dB `[O, r]`, f32, read and written.
    pub grad_lora_b: u64,
}

/// Input and output of [`Kernels::gradient_norm_raw`].
#[derive(Debug, Clone, Copy)]
pub struct GradientNorm<'a> {
    /// The ranges that count, as for [`crate::AdamW::parts`].
    pub parts: &'a [OptimizerPart],
    /// Elements of the gradients.
    pub len: usize,
    /// The gradients, f32.
    pub gradients: u64,
    /// ‖g‖ `[1]`, f32, written.
    pub norm: u64,
}

/// The learning rate, and the number of the step, which counts from 1; as [`crate::Schedule`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// Numbers of the host.
    Host {
        /// η.
        learning_rate: f64,
        /// t.
        step: u64,
    },
    /// Where `[η, t]`, f32, lie on the device when the launch runs.
    Device(u64),
}

/// The longest gradient, and where its norm is; as [`crate::Clip`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    /// The longest gradient that is left as it is.
    pub max_norm: f64,
    /// `[1]`, f32, the gradient's norm.
    pub norm: u64,
}

/// Inputs and outputs of [`Kernels::adamw_raw`]: four f32 buffers of one length.
#[derive(Debug, Clone, Copy)]
pub struct AdamW<'a> {
    /// The ranges to go through, as for [`crate::AdamW::parts`].
    pub parts: &'a [OptimizerPart],
    /// The learning rate and the number of the step.
    pub schedule: Schedule,
    /// Whether gradients are clipped.
    pub clip: Option<Clip>,
    /// Elements of each buffer.
    pub len: usize,
    /// The parameters, updated.
    pub parameters: u64,
    /// The gradients.
    pub gradients: u64,
    /// The running mean of the gradient, updated; zero before the first step.
    pub exp_avg: u64,
    /// The running mean of the gradient's square, updated; zero before the first step.
    pub exp_avg_sq: u64,
}

/// Inputs and outputs of [`Kernels::merge_raw`].
#[derive(Debug, Clone, Copy)]
pub struct Merge {
    /// W `[O, I]`.
    pub weight: u64,
    /// A `[r, I]`, f32; 0 for rank 0.
    pub lora_a: u64,
    /// B `[O, r]`, f32; 0 for rank 0.
    pub lora_b: u64,
    /// W' `[O, I]`, written; may be W, if it is of the same dtype.
    pub merged: u64,
    /// The dtype of W'.
    pub merged_dtype: Dtype,
    /// `[MergeReport::LEN]`, f64, written: see [`crate::MergeReport`]; 0 where it is not wanted.
    pub report: u64,
}

/// Inputs and outputs of [`Kernels::unmerge_raw`].
#[derive(Debug, Clone, Copy)]
pub struct Unmerge {
    /// W' `[O, I]`.
    pub merged: u64,
    /// The dtype of W'.
    pub merged_dtype: Dtype,
    /// A `[r, I]`, f32; 0 for rank 0.
    pub lora_a: u64,
    /// B `[O, r]`, f32; 0 for rank 0.
    pub lora_b: u64,
    /// W `[O, I]`, written; may be W', if it is of the same dtype.
    pub weight: u64,
}

/// Inputs and output of [`Kernels::decompose_raw`].
#[derive(Debug, Clone, Copy)]
pub struct Decompose {
    /// Which vectors are compared: columns ([`Norm::Input`]) or rows ([`Norm::Output`]).
    pub axis: Norm,
    /// W `[O, I]`.
    pub weight: u64,
    /// W_t `[O, I]`.
    pub changed: u64,
    /// The dtype of W_t.
    pub changed_dtype: Dtype,
    /// `[Decomposition::LEN]`, f64, written: see [`crate::Decomposition`].
    pub result: u64,
}

/// Inputs and output of [`Kernels::decompose_adapter_raw`].
#[derive(Debug, Clone, Copy)]
pub struct DecomposeAdapter {
    /// Which vectors are compared: columns ([`Norm::Input`]) or rows ([`Norm::Output`]).
    pub axis: Norm,
    /// W `[O, I]`.
    pub weight: u64,
    /// A `[r, I]`, f32; 0 for rank 0.
    pub lora_a: u64,
    /// B `[O, r]`, f32; 0 for rank 0.
    pub lora_b: u64,
    /// `[Decomposition::LEN]`, f64, written: see [`crate::Decomposition`].
    pub result: u64,
}

/// A context of another library, to load kernels into. Its primary context, which the CUDA runtime
/// and most libraries use, is retained until the last user of the returned one is gone; any other
/// must outlive them, and is not destroyed. It is the thread's current context afterwards.
///
/// # Safety
/// `context` is a CUDA context that is not destroyed.
///
/// # Errors
/// [`Error::MissingTensor`] if the address is 0, [`Error::DriverMissing`], or the driver's.
pub unsafe fn borrow_context(context: sys::CUcontext) -> Result<Arc<CudaContext>> {
    if context.is_null() {
        let reason = "its address is 0";
        return Err(Error::MissingTensor { tensor: "the context", reason });
    }
    probe_driver()?;
    let during = "borrowing a context";
    // SAFETY: the caller vouches for the context.
    unsafe { result::ctx::set_current(context) }.during(during)?;
    let mut device = 0;
    // SAFETY: the place is writable.
    unsafe { sys::cuCtxGetDevice(&mut device) }.result().during(during)?;
    let count = result::device::get_count().during(during)?;
    let named = |ordinal: &i32| result::device::get(*ordinal).is_ok_and(|found| found == device);
    let ordinal = (0..count).find(named).unwrap_or(device) as usize;
    let (mut flags, mut is_active) = (0, 0);
    // SAFETY: the places are writable.
    unsafe { sys::cuDevicePrimaryCtxGetState(device, &mut flags, &mut is_active) }
        .result()
        .during(during)?;
    if is_active != 0 {
        let primary = CudaContext::new(ordinal).during(during)?;
        if primary.cu_ctx() == context {
            return Ok(primary);
        }
    }
    // SAFETY: the caller vouches for the context, and the device is its own. It would be destroyed
    // with the last reference, one of which is never dropped.
    let borrowed = unsafe { CudaContext::from_raw_context(ordinal, device, context) };
    let borrowed = borrowed.during(during)?;
    std::mem::forget(borrowed.clone());
    Ok(borrowed)
}

/// Checks the address of a tensor that must be there.
pub(crate) fn present(tensor: &'static str, pointer: u64, bytes: usize) -> Result<()> {
    if pointer == 0 {
        let reason = "its address is 0";
        return Err(Error::MissingTensor { tensor, reason });
    }
    absent_or(tensor, pointer, bytes)
}

/// Checks the address of a tensor that may be absent: a multiple of the size of its elements.
pub(crate) fn absent_or(tensor: &'static str, pointer: u64, bytes: usize) -> Result<()> {
    if pointer.is_multiple_of(bytes as u64) {
        return Ok(());
    }
    Err(Error::Misaligned { tensor, address: pointer, alignment: bytes })
}

impl Matrix {
    /// Of rows of `cols` elements without gaps.
    pub const fn dense(pointer: u64, cols: usize) -> Self {
        Self { pointer, stride: cols }
    }

    /// Checks a matrix that must be there, of rows of `cols` elements of `bytes` bytes.
    pub(crate) fn present(&self, tensor: &'static str, cols: usize, bytes: usize) -> Result<()> {
        present(tensor, self.pointer, bytes)?;
        check_stride(tensor, self.stride, cols)
    }
}
