//! The C API of fused-dora: its ops on tensors by address, behind `extern "C"` functions. C and C++
//! programs can call them, and so can any language with a C interface. `include/fused_dora.h`
//! declares the functions, and `examples/raw.c` trains a layer with them.
//!
//! `cargo build --release -p fused-dora-capi` builds a shared library and a static one.
//!
//! The caller owns the context, the streams and all device memory. It opens [`Kernels`] once per
//! context, a [`Workspace`] once per stream, and a [`Layer`] for each layer; the ops then take a
//! structure of addresses. They run on the stream and allocate nothing on the device. Only the
//! unmerge waits for the stream.
//!
//! # Errors
//! Every function that can fail returns a [`Status`]. [`fused_dora_last_error`] returns the text of
//! the error, with its numbers and the remedy. What handles and numbers show is checked before
//! anything is launched. No panic crosses the border, and each call leaves the thread's current
//! context as it was.
//!
//! # Safety
//! For all functions:
//! - A host pointer that is neither null nor misaligned points to what its type says during the
//!   call.
//! - A handle comes from the function that opens it, and is not closed. Several threads may use it
//!   at once, but only one may close it.
//! - A stream is one of the kernels' context, or null for the default stream.
//! - A device address other than 0 is of memory in that context. The memory holds, or has room for,
//!   what its structure says. It stays valid until the stream has run the op, other uses of it are
//!   ordered against the stream, and nothing else overlaps with what the op writes.

mod arguments;
mod status;
mod types;
mod weight;

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use fused_dora::cudarc::driver::{CudaStream, sys};
use fused_dora::{DoraSpec, Error, Result, borrow_context, probe_driver};

use arguments::parts;
use status::{CurrentContext, Failure, entry, give, given, given_all};

pub use status::{Status, fused_dora_last_error};
pub use types::*;

/// The kernels, loaded into a context.
pub struct Kernels(Arc<fused_dora::Kernels>);

/// Scratch memory that all layers of a stream share. It holds nothing between calls. Calls that
/// share a workspace must be ordered on the device.
pub struct Workspace {
    kernels: Arc<fused_dora::Kernels>,
    workspace: Mutex<fused_dora::Workspace>,
}

/// A layer: its spec, and memory for what the ops need of its adapter.
pub struct Layer {
    kernels: Arc<fused_dora::Kernels>,
    trains_bias: bool,
    layer: RwLock<fused_dora::Layer>,
}

/// Opens the kernels in a CUcontext. A primary context, which the CUDA runtime and most libraries
/// use, is retained until everything that was opened in it is closed. Any other context must live
/// until then.
///
/// # Safety
/// That of all functions; `context` is a CUDA context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_kernels_open(
    context: *mut c_void,
    kernels: *mut *mut Kernels,
) -> Status {
    entry(|| {
        if context.is_null() {
            return Err(Failure::null("context"));
        }
        probe_driver()?;
        let _current = CurrentContext::keep();
        let open = || {
            // SAFETY: the caller vouches for the context.
            let context = unsafe { borrow_context(context.cast()) }?;
            Ok(boxed(Kernels(Arc::new(fused_dora::Kernels::load(&context)?))))
        };
        // SAFETY: the caller vouches for the place.
        unsafe { give("kernels", kernels, open) }
    })
}

/// Closes the kernels; does nothing for null. Workspaces and layers that were opened with them keep
/// what they need.
///
/// # Safety
/// That of all functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_kernels_close(kernels: *mut Kernels) {
    // SAFETY: the caller vouches for the handle.
    unsafe { close(kernels) }
}

/// The memory that a spec needs, and how its adapter lies in one buffer.
///
/// # Safety
/// That of all functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_sizes_of(spec: *const Spec, sizes: *mut Sizes) -> Status {
    // SAFETY: the caller vouches for the pointers.
    entry(|| unsafe { give("sizes", sizes, || Ok(given("spec", spec)?.sizes()?)) })
}

/// Bytes of memory that a workspace needs for calls of up to `max_tokens` tokens, for any of the
/// specs.
///
/// # Safety
/// That of all functions; `specs` points to `spec_count` specs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_workspace_bytes(
    kernels: *const Kernels,
    specs: *const Spec,
    spec_count: usize,
    max_tokens: usize,
    bytes: *mut usize,
) -> Status {
    // SAFETY: the caller vouches for the pointers.
    entry(|| unsafe {
        let Kernels(kernels) = given("kernels", kernels)?;
        give("bytes", bytes, || {
            let specs = checked(given_all("specs", specs, spec_count)?)?;
            Ok(fused_dora::Workspace::bytes(kernels, &specs, max_tokens)?)
        })
    })
}

/// Opens a workspace in memory of the caller: `bytes` at the device address `memory`, a multiple of
/// 256. The workspace needs the memory until it is closed. The function zeroes the counters in it,
/// on the stream, and loads the kernels that train the specs.
///
/// # Safety
/// That of all functions; `specs` points to `spec_count` specs, and nothing else uses the memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_workspace_open(
    kernels: *const Kernels,
    specs: *const Spec,
    spec_count: usize,
    max_tokens: usize,
    memory: u64,
    bytes: usize,
    stream: *mut c_void,
    workspace: *mut *mut Workspace,
) -> Status {
    // SAFETY: the caller vouches for the pointers and the memory.
    entry(|| unsafe {
        let Kernels(kernels) = given("kernels", kernels)?;
        let _current = CurrentContext::keep();
        give("workspace", workspace, || {
            let specs = checked(given_all("specs", specs, spec_count)?)?;
            let stream = wrap(kernels, stream);
            let workspace = fused_dora::Workspace::at_address(
                kernels, &stream, &specs, max_tokens, memory, bytes,
            );
            let workspace = workspace.map_err(|error| ask(error, "fused_dora_workspace_bytes"))?;
            Ok(boxed(Workspace { kernels: kernels.clone(), workspace: Mutex::new(workspace) }))
        })
    })
}

/// Closes a workspace; does nothing for null. You can free its memory when the streams have run all
/// calls that use it.
///
/// # Safety
/// That of all functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_workspace_close(workspace: *mut Workspace) {
    // SAFETY: the caller vouches for the handle.
    unsafe { close(workspace) }
}

/// Opens a layer. It keeps what the ops need of its adapter in memory of the caller: `bytes` at the
/// device address `memory`, a multiple of 256. The layer needs the memory until it is closed.
/// `fused_dora_sizes_of` returns the number of bytes.
///
/// # Safety
/// That of all functions; nothing else uses the memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_layer_open(
    kernels: *const Kernels,
    spec: *const Spec,
    memory: u64,
    bytes: usize,
    layer: *mut *mut Layer,
) -> Status {
    // SAFETY: the caller vouches for the pointers and the memory.
    entry(|| unsafe {
        let Kernels(kernels) = given("kernels", kernels)?;
        give("layer", layer, || {
            let spec = given("spec", spec)?;
            let trains_bias = spec.trains_bias()?;
            let layer = fused_dora::Layer::at_address(&spec.spec()?, memory, bytes);
            let layer = layer.map_err(|error| ask(error, "fused_dora_sizes_of"))?;
            Ok(boxed(Layer { kernels: kernels.clone(), trains_bias, layer: RwLock::new(layer) }))
        })
    })
}

/// Closes a layer; does nothing for null. You can free its memory when the streams have run all
/// calls that use it.
///
/// # Safety
/// That of all functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_layer_close(layer: *mut Layer) {
    // SAFETY: the caller vouches for the handle.
    unsafe { close(layer) }
}

/// Computes the norms, the gains and the packed operands of an adapter, in one launch. Call it
/// again after each change of A, B, m or b.
///
/// # Safety
/// That of all functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_prepare(
    layer: *const Layer,
    workspace: *const Workspace,
    stream: *mut c_void,
    io: *const PrepareIo,
) -> Status {
    // SAFETY: the caller vouches for the handles and the addresses.
    entry(|| unsafe {
        let (mut call, io) = (Call::new(layer, workspace, stream)?, given("io", io)?);
        let mut layer = call.layer.write();
        let io = io.arguments(layer.spec(), call.layer.trains_bias)?;
        Ok(layer.prepare(&call.layer.kernels, &call.stream, &mut call.workspace, io)?)
    })
}

/// Computes y, and H for the backward, in one launch.
///
/// # Safety
/// That of all functions; A, B, m and b have not changed since `fused_dora_prepare`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_forward(
    layer: *const Layer,
    workspace: *const Workspace,
    stream: *mut c_void,
    io: *const ForwardIo,
) -> Status {
    // SAFETY: the caller vouches for the handles and the addresses.
    entry(|| unsafe {
        let (mut call, io) = (Call::new(layer, workspace, stream)?, given("io", io)?);
        let layer = call.layer.read();
        let io = io.arguments(layer.spec())?;
        call.layer.check_bias(&layer)?;
        Ok(layer.forward(&call.layer.kernels, &call.stream, &mut call.workspace, io)?)
    })
}

/// Computes all gradients, in one launch. It treats the norm as a constant.
///
/// # Safety
/// That of all functions; A, B, m and b have not changed since `fused_dora_prepare`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_backward(
    layer: *const Layer,
    workspace: *const Workspace,
    stream: *mut c_void,
    io: *const BackwardIo,
) -> Status {
    // SAFETY: the caller vouches for the handles and the addresses.
    entry(|| unsafe {
        let (mut call, io) = (Call::new(layer, workspace, stream)?, given("io", io)?);
        let layer = call.layer.read();
        let io = io.arguments(layer.spec())?;
        call.layer.check_bias(&layer)?;
        Ok(layer.backward(&call.layer.kernels, &call.stream, &mut call.workspace, io)?)
    })
}

/// Adds the gradient through the norm to dA and dB, in two launches. Call it once per optimizer
/// step, for specs with `FUSED_DORA_NORM_GRAD_EXACT`.
///
/// # Safety
/// That of all functions; A, B, m and b have not changed since `fused_dora_prepare`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_norm_gradient(
    layer: *const Layer,
    workspace: *const Workspace,
    stream: *mut c_void,
    io: *const NormGradientIo,
) -> Status {
    // SAFETY: the caller vouches for the handles and the addresses.
    entry(|| unsafe {
        let (mut call, io) = (Call::new(layer, workspace, stream)?, given("io", io)?);
        let (layer, kernels) = (call.layer.read(), &call.layer.kernels);
        let (spec, prepared) = (layer.spec(), layer.prepared());
        let io = io.arguments(spec)?;
        Ok(kernels.norm_gradient(&call.stream, spec, prepared, &mut call.workspace, io)?)
    })
}

/// Computes the norm of a gradient, for clipping, in one launch per 64 parts.
///
/// # Safety
/// That of all functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_gradient_norm(
    kernels: *const Kernels,
    workspace: *const Workspace,
    stream: *mut c_void,
    io: *const GradientNormIo,
) -> Status {
    // SAFETY: the caller vouches for the handles and the addresses.
    entry(|| unsafe {
        let Kernels(kernels) = given("kernels", kernels)?;
        let (workspace, io) = (given("workspace", workspace)?, given("io", io)?);
        let _current = CurrentContext::keep();
        let mut workspace = workspace.of(kernels)?;
        let (parts, stream) = (parts(io.parts, io.part_count)?, wrap(kernels, stream));
        Ok(kernels.gradient_norm(&stream, &mut workspace, io.arguments(&parts))?)
    })
}

/// One step of AdamW over a buffer of parameters, of one adapter or of several, in one launch per
/// 64 parts.
///
/// # Safety
/// That of all functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_adamw(
    kernels: *const Kernels,
    stream: *mut c_void,
    io: *const AdamwIo,
) -> Status {
    // SAFETY: the caller vouches for the handles and the addresses.
    entry(|| unsafe {
        let (Kernels(kernels), io) = (given("kernels", kernels)?, given("io", io)?);
        let _current = CurrentContext::keep();
        let (parts, stream) = (parts(io.parts, io.part_count)?, wrap(kernels, stream));
        Ok(kernels.adamw(&stream, &io.config(), io.arguments(&parts)?)?)
    })
}

/// Computes the adapted weight W', for export, in one launch.
///
/// # Safety
/// That of all functions; A, B and m have not changed since `fused_dora_prepare`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_merge(
    layer: *const Layer,
    workspace: *const Workspace,
    stream: *mut c_void,
    io: *const MergeIo,
) -> Status {
    // SAFETY: the caller vouches for the handles and the addresses.
    entry(|| unsafe {
        let (mut call, io) = (Call::new(layer, workspace, stream)?, given("io", io)?);
        let (layer, kernels) = (call.layer.read(), &call.layer.kernels);
        let (spec, prepared) = (layer.spec(), layer.prepared());
        let io = io.arguments(spec)?;
        Ok(kernels.merge(&call.stream, spec, prepared, &mut call.workspace, io)?)
    })
}

/// Computes the weight W from which W' was made. Waits for the stream, because it reads the gains
/// back.
///
/// # Safety
/// That of all functions; A, B and m are those from which W' was made, and have not changed since
/// `fused_dora_prepare`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_unmerge(
    layer: *const Layer,
    workspace: *const Workspace,
    stream: *mut c_void,
    io: *const UnmergeIo,
) -> Status {
    // SAFETY: the caller vouches for the handles and the addresses.
    entry(|| unsafe {
        let (mut call, io) = (Call::new(layer, workspace, stream)?, given("io", io)?);
        let (layer, kernels) = (call.layer.read(), &call.layer.kernels);
        let (spec, prepared) = (layer.spec(), layer.prepared());
        let io = io.arguments(spec)?;
        Ok(kernels.unmerge(&call.stream, spec, prepared, &mut call.workspace, io)?)
    })
}

/// Packs a W in the format of a spec, in up to three launches. Of the spec only I, O, the dtype and the
/// format count.
///
/// # Safety
/// That of all functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_quantize(
    kernels: *const Kernels,
    workspace: *const Workspace,
    stream: *mut c_void,
    spec: *const Spec,
    io: *const QuantizeIo,
) -> Status {
    // SAFETY: the caller vouches for the handles and the addresses.
    entry(|| unsafe {
        let Kernels(kernels) = given("kernels", kernels)?;
        let (workspace, spec) = (given("workspace", workspace)?, given("spec", spec)?.spec()?);
        let io = given("io", io)?.arguments(&spec)?;
        let _current = CurrentContext::keep();
        let mut workspace = workspace.of(kernels)?;
        Ok(kernels.quantize(&wrap(kernels, stream), &spec, &mut workspace, io)?)
    })
}

/// Unpacks a W to the dtype of a spec, in one launch. The other ops decode a packed W themselves.
///
/// # Safety
/// That of all functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_dequantize(
    kernels: *const Kernels,
    stream: *mut c_void,
    spec: *const Spec,
    io: *const DequantizeIo,
) -> Status {
    // SAFETY: the caller vouches for the handles and the addresses.
    entry(|| unsafe {
        let (Kernels(kernels), spec) = (given("kernels", kernels)?, given("spec", spec)?.spec()?);
        let io = given("io", io)?.arguments(&spec)?;
        let _current = CurrentContext::keep();
        Ok(kernels.dequantize(&wrap(kernels, stream), &spec, io)?)
    })
}

/// What the calls of a layer's ops have in common.
struct Call<'a> {
    layer: &'a Layer,
    workspace: MutexGuard<'a, fused_dora::Workspace>,
    stream: Arc<CudaStream>,
    _current: CurrentContext,
}

impl<'a> Call<'a> {
    /// # Safety
    /// The handles are open, and the stream is one of their context.
    unsafe fn new(
        layer: *const Layer,
        workspace: *const Workspace,
        stream: *mut c_void,
    ) -> Result<Self, Failure> {
        // SAFETY: the caller vouches for the handles.
        let (layer, workspace): (&'a Layer, &'a Workspace) =
            unsafe { (given("layer", layer)?, given("workspace", workspace)?) };
        let workspace = workspace.of(&layer.kernels)?;
        let current = CurrentContext::keep();
        // SAFETY: the caller vouches for the stream.
        let stream = unsafe { wrap(&layer.kernels, stream) };
        Ok(Self { layer, workspace, stream, _current: current })
    }
}

impl Workspace {
    /// The workspace, for an op of these kernels, if it is of their context.
    fn of(&self, kernels: &fused_dora::Kernels) -> Result<MutexGuard<'_, fused_dora::Workspace>> {
        if self.kernels.context().cu_ctx() != kernels.context().cu_ctx() {
            return Err(Error::ContextMismatch);
        }
        // A panic leaves the workspace as it was: its contents are on the device.
        Ok(self.workspace.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Layer {
    /// Whether a trained bias has been prepared. A plain linear layer needs nothing else prepared, and
    /// the ops cannot see that it trains one.
    fn check_bias(&self, layer: &fused_dora::Layer) -> Result<(), fused_dora::Error> {
        match self.trains_bias && !layer.prepared().has_bias() {
            true => Err(fused_dora::Error::NotPrepared { problem: "have not been computed yet" }),
            false => Ok(()),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, fused_dora::Layer> {
        self.layer.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layer, to be prepared. After a panic it is as prepared as it says itself.
    fn write(&self) -> RwLockWriteGuard<'_, fused_dora::Layer> {
        self.layer.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn boxed<T>(handle: T) -> *mut T {
    Box::into_raw(Box::new(handle))
}

/// # Safety
/// The handle is null, or open.
unsafe fn close<T>(handle: *mut T) {
    if handle.is_null() {
        return;
    }
    // Nobody could use the status. A failure here means that the driver is gone.
    let _ = entry(|| {
        let _current = CurrentContext::keep();
        // SAFETY: the caller vouches for the handle, which was boxed.
        drop(unsafe { Box::from_raw(handle) });
        Ok(())
    });
}

fn checked(specs: &[Spec]) -> Result<Vec<DoraSpec>> {
    specs.iter().map(Spec::spec).collect()
}

/// The caller's stream.
///
/// # Safety
/// It is one of the kernels' context, and outlives the result.
unsafe fn wrap(kernels: &fused_dora::Kernels, stream: *mut c_void) -> Arc<CudaStream> {
    // SAFETY: the caller vouches for the stream.
    unsafe { kernels.context().wrap_borrowed_stream(stream.cast::<sys::CUstream_st>()) }
}

/// The error of memory that is too small, with the C function that returns the size.
fn ask(error: Error, size_from: &'static str) -> Error {
    match error {
        Error::MemoryTooSmall { memory, available, needed, .. } => {
            Error::MemoryTooSmall { memory, available, needed, size_from }
        }
        error => error,
    }
}
