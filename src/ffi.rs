//! The C API: the ops of [`raw`] behind `extern "C"` functions, for C and C++ programs
//! and whatever calls such. `include/fused_dora.h` declares them, and `examples/raw.c` trains a
//! layer with them.
//!
//! `cargo rustc --release --features ffi --crate-type cdylib` builds the library; `staticlib`
//! instead of `cdylib` builds one to be linked in.
//!
//! The caller owns the context, the streams and all device memory. A [`Kernels`] is opened once per
//! context, a [`Workspace`] for all layers of a stream, and a [`Layer`] for each; the ops then take
//! a structure of addresses. They run on the stream, allocate nothing on the device, and but for
//! the unmerge wait for nothing.
//!
//! # Errors
//! Every function that can fail returns a [`Status`], and leaves the text of the error, with its
//! numbers and the cure, to [`fused_dora_last_error`]. What can be told from handles and numbers is
//! checked before anything is launched; no panic crosses the border, and the thread's current
//! context is left as it was.
//!
//! # Safety
//! For all functions: a pointer of the host that is neither null nor misaligned is of what its type
//! says, for the duration of the call. A handle is one that its function opened and that is not
//! closed; it may be used by several threads at once, but closed by one alone. A stream is one of
//! the kernels' context, or null for its default stream. A device address other than 0 is of memory
//! of that context that holds, or has room for, what its structure says, valid until the stream has
//! run the op, and ordered on it against other uses; what is written overlaps with nothing else.

mod status;
mod types;

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::{CudaStream, result, sys};

use crate::error::{During, Error, Result};
use crate::raw::{self, WorkspaceSize};
use crate::spec::DoraSpec;

use status::{CurrentContext, Failure, entry, give, given, given_all};

pub use status::{Status, fused_dora_last_error};
pub use types::*;

/// The kernels, loaded into a context.
pub struct Kernels(Arc<crate::Kernels>);

/// Scratch memory, for all layers of a stream: its contents mean nothing between calls. Calls that
/// share one must be ordered.
pub struct Workspace {
    kernels: Arc<crate::Kernels>,
    raw: raw::Workspace,
}

/// A layer: its spec, and memory for what the ops need of its adapter.
pub struct Layer {
    kernels: Arc<crate::Kernels>,
    spec: DoraSpec,
    prepared: raw::Prepared,
    is_prepared: AtomicBool,
}

/// Opens the kernels on a CUcontext. The primary context, which the CUDA runtime and most libraries
/// use, is retained until all that was opened on it is closed; any other must live as long.
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
        crate::device::probe_driver()?;
        let _current = CurrentContext::keep();
        let open = || {
            // SAFETY: the caller vouches for the context.
            let context = unsafe { raw::borrow_context(context.cast()) }?;
            Ok(boxed(Kernels(Arc::new(crate::Kernels::load(&context)?))))
        };
        // SAFETY: the caller vouches for the place.
        unsafe { give("kernels", kernels, open) }
    })
}

/// Closes the kernels; null is left alone. Workspaces and layers that were opened of them keep what
/// they need.
///
/// # Safety
/// That of all functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_kernels_close(kernels: *mut Kernels) {
    // SAFETY: the caller vouches for the handle.
    unsafe { close(kernels) }
}

/// What a spec asks for in memory, and how its adapter lies in one buffer.
///
/// # Safety
/// That of all functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_sizes_of(spec: *const Spec, sizes: *mut Sizes) -> Status {
    entry(|| {
        // SAFETY: the caller vouches for the pointers.
        unsafe { give("sizes", sizes, || Ok(given("spec", spec)?.sizes()?)) }
    })
}

/// Bytes of the memory that a workspace needs for calls of up to `max_tokens` tokens, for any of
/// the specs.
///
/// # Safety
/// That of all functions; `specs` are `spec_count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_workspace_bytes(
    kernels: *const Kernels,
    specs: *const Spec,
    spec_count: usize,
    max_tokens: usize,
    bytes: *mut usize,
) -> Status {
    entry(|| {
        // SAFETY: the caller vouches for the pointers.
        unsafe {
            let Kernels(kernels) = given("kernels", kernels)?;
            give("bytes", bytes, || {
                let specs = checked(given_all("specs", specs, spec_count)?)?;
                Ok(crate::Workspace::bytes(kernels, &specs, max_tokens)?)
            })
        }
    })
}

/// Opens a workspace in memory of the caller: `bytes` at the device address `memory`, a multiple of
/// 256, which it needs until it is closed. Sets what has to be zero, on the stream, and loads the
/// kernels that train the specs.
///
/// # Safety
/// That of all functions; `specs` are `spec_count`, and nothing else uses the memory.
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
    entry(|| {
        // SAFETY: the caller vouches for the pointers.
        unsafe {
            let Kernels(kernels) = given("kernels", kernels)?;
            let _current = CurrentContext::keep();
            give("workspace", workspace, || {
                let specs = checked(given_all("specs", specs, spec_count)?)?;
                let size = WorkspaceSize::new(kernels, &specs, max_tokens)?;
                check_memory("the workspace", memory, (size.bytes, bytes))?;
                zero(kernels, stream, memory, size.counter_bytes)?;
                let raw = raw::Workspace { pointer: memory, size };
                Ok(boxed(Workspace { kernels: kernels.clone(), raw }))
            })
        }
    })
}

/// Closes a workspace; null is left alone. Its memory can be freed when the streams are through.
///
/// # Safety
/// That of all functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_workspace_close(workspace: *mut Workspace) {
    // SAFETY: the caller vouches for the handle.
    unsafe { close(workspace) }
}

/// Opens a layer. What the ops need of its adapter is kept in memory of the caller: `bytes` at the
/// device address `memory`, a multiple of 256, which the layer needs until it is closed;
/// `fused_dora_sizes_of` tells how many.
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
    entry(|| {
        // SAFETY: the caller vouches for the pointers.
        unsafe {
            let Kernels(kernels) = given("kernels", kernels)?;
            give("layer", layer, || {
                let given = given("spec", spec)?;
                let (spec, trains_bias) = (given.spec()?, given.trains_bias()?);
                let needed = raw::Prepared::bytes(&spec, trains_bias);
                check_memory("the layer's memory", memory, (needed, bytes))?;
                Ok(boxed(Layer {
                    kernels: kernels.clone(),
                    spec,
                    prepared: raw::Prepared::within(memory, &spec, trains_bias),
                    is_prepared: AtomicBool::new(false),
                }))
            })
        }
    })
}

/// Closes a layer; null is left alone. Its memory can be freed when the streams are through.
///
/// # Safety
/// That of all functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_layer_close(layer: *mut Layer) {
    // SAFETY: the caller vouches for the handle.
    unsafe { close(layer) }
}

/// The norms, the gains and the packed operands of an adapter, to be computed again after each
/// change of A, B, m or b: one launch.
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
    entry(|| {
        // SAFETY: the caller vouches for the pointers.
        let (op, io) = unsafe { (Op::new(layer, workspace, stream)?, given("io", io)?) };
        let Layer { kernels, spec, prepared, .. } = op.layer;
        op.layer.check_bias(io.bias)?;
        // SAFETY: the caller vouches for the addresses.
        unsafe { kernels.prepare_raw(&op.stream, spec, op.workspace, prepared, &io.raw()) }?;
        op.layer.is_prepared.store(true, Ordering::Release);
        Ok(())
    })
}

/// y, and H for the backward: one launch.
///
/// # Safety
/// That of all functions; A, B, m and b are as they were when they were prepared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_forward(
    layer: *const Layer,
    workspace: *const Workspace,
    stream: *mut c_void,
    io: *const ForwardIo,
) -> Status {
    entry(|| {
        // SAFETY: the caller vouches for the pointers.
        let (op, io) = unsafe { (Op::prepared(layer, workspace, stream)?, given("io", io)?) };
        let Layer { kernels, spec, prepared, .. } = op.layer;
        let io = raw::Forward { bias: op.layer.bias(io.bias)?, ..io.raw()? };
        // SAFETY: the caller vouches for the addresses.
        Ok(unsafe { kernels.forward_raw(&op.stream, spec, prepared, op.workspace, &io) }?)
    })
}

/// All gradients, the norm held constant: one launch.
///
/// # Safety
/// That of all functions; A, B, m and b are as they were when they were prepared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_backward(
    layer: *const Layer,
    workspace: *const Workspace,
    stream: *mut c_void,
    io: *const BackwardIo,
) -> Status {
    entry(|| {
        // SAFETY: the caller vouches for the pointers.
        let (op, io) = unsafe { (Op::prepared(layer, workspace, stream)?, given("io", io)?) };
        let Layer { kernels, spec, prepared, .. } = op.layer;
        let io = raw::Backward { bias: op.layer.bias(io.bias)?, ..io.raw()? };
        // SAFETY: the caller vouches for the addresses.
        Ok(unsafe { kernels.backward_raw(&op.stream, spec, prepared, op.workspace, &io) }?)
    })
}

/// What flows through the norm, taken off dA and dB: two launches, once per optimizer step, for
/// specs with `FUSED_DORA_NORM_GRAD_EXACT`.
///
/// # Safety
/// That of all functions; A, B, m and b are as they were when they were prepared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_norm_gradient(
    layer: *const Layer,
    workspace: *const Workspace,
    stream: *mut c_void,
    io: *const NormGradientIo,
) -> Status {
    entry(|| {
        // SAFETY: the caller vouches for the pointers.
        let (op, io) = unsafe { (Op::prepared(layer, workspace, stream)?, given("io", io)?) };
        let (Layer { kernels, spec, prepared, .. }, io) = (op.layer, io.raw());
        // SAFETY: the caller vouches for the addresses.
        Ok(unsafe { kernels.norm_gradient_raw(&op.stream, spec, prepared, op.workspace, &io) }?)
    })
}

/// The norm of a gradient, for clipping: one launch per 64 parts.
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
    entry(|| {
        // SAFETY: the caller vouches for the pointers.
        let (Kernels(kernels), workspace, io) = unsafe {
            (given("kernels", kernels)?, given("workspace", workspace)?, given("io", io)?)
        };
        let _current = CurrentContext::keep();
        workspace.check(kernels)?;
        // SAFETY: as above.
        let (parts, stream) =
            unsafe { (types::parts(io.parts, io.part_count)?, wrap(kernels, stream)) };
        let &GradientNormIo { len, gradients, norm, .. } = io;
        let io = raw::GradientNorm { parts: &parts, len, gradients, norm };
        // SAFETY: the caller vouches for the addresses.
        Ok(unsafe { kernels.gradient_norm_raw(&stream, &workspace.raw, &io) }?)
    })
}

/// One step of AdamW over a buffer of parameters, of one adapter or of many: one launch per 64
/// parts.
///
/// # Safety
/// That of all functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_adamw(
    kernels: *const Kernels,
    stream: *mut c_void,
    io: *const AdamwIo,
) -> Status {
    entry(|| {
        // SAFETY: the caller vouches for the pointers.
        let (Kernels(kernels), io) = unsafe { (given("kernels", kernels)?, given("io", io)?) };
        let _current = CurrentContext::keep();
        // SAFETY: as above.
        let (parts, stream) =
            unsafe { (types::parts(io.parts, io.part_count)?, wrap(kernels, stream)) };
        // SAFETY: the caller vouches for the addresses.
        Ok(unsafe { kernels.adamw_raw(&stream, &io.config(), &io.raw(&parts)) }?)
    })
}

/// The adapted weight W', for export: one launch.
///
/// # Safety
/// That of all functions; A, B and m are as they were when they were prepared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_merge(
    layer: *const Layer,
    workspace: *const Workspace,
    stream: *mut c_void,
    io: *const MergeIo,
) -> Status {
    entry(|| {
        // SAFETY: the caller vouches for the pointers.
        let (op, io) = unsafe { (Op::prepared(layer, workspace, stream)?, given("io", io)?) };
        let (Layer { kernels, spec, prepared, .. }, io) = (op.layer, io.raw()?);
        // SAFETY: the caller vouches for the addresses.
        Ok(unsafe { kernels.merge_raw(&op.stream, spec, prepared, op.workspace, &io) }?)
    })
}

/// The weight W that W' was made of. Waits for the stream: the gains are read back.
///
/// # Safety
/// That of all functions; A, B and m are as they were when W' was made, and prepared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_dora_unmerge(
    layer: *const Layer,
    workspace: *const Workspace,
    stream: *mut c_void,
    io: *const UnmergeIo,
) -> Status {
    entry(|| {
        // SAFETY: the caller vouches for the pointers.
        let (op, io) = unsafe { (Op::prepared(layer, workspace, stream)?, given("io", io)?) };
        let (Layer { kernels, spec, prepared, .. }, io) = (op.layer, io.raw()?);
        // SAFETY: the caller vouches for the addresses.
        Ok(unsafe { kernels.unmerge_raw(&op.stream, spec, prepared, op.workspace, &io) }?)
    })
}

/// What the ops of a layer have in common.
struct Op<'a> {
    layer: &'a Layer,
    workspace: &'a raw::Workspace,
    stream: Arc<CudaStream>,
    _current: CurrentContext,
}

impl<'a> Op<'a> {
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
        workspace.check(&layer.kernels)?;
        // SAFETY: the caller vouches for the stream.
        let stream = unsafe { wrap(&layer.kernels, stream) };
        Ok(Self { layer, workspace: &workspace.raw, stream, _current: CurrentContext::keep() })
    }

    /// An op on what was prepared.
    ///
    /// # Safety
    /// That of [`Op::new`].
    unsafe fn prepared(
        layer: *const Layer,
        workspace: *const Workspace,
        stream: *mut c_void,
    ) -> Result<Self, Failure> {
        // SAFETY: passed on to the caller.
        let op = unsafe { Self::new(layer, workspace, stream) }?;
        match op.layer.is_prepared.load(Ordering::Acquire) {
            true => Ok(op),
            false => Err(Error::NotPrepared { problem: "have not been computed yet" }.into()),
        }
    }
}

impl Workspace {
    /// Whether it is of the kernels' context.
    fn check(&self, kernels: &crate::Kernels) -> Result<()> {
        match self.kernels.context().cu_ctx() == kernels.context().cu_ctx() {
            true => Ok(()),
            false => Err(Error::ContextMismatch),
        }
    }
}

impl Layer {
    fn trains_bias(&self) -> bool {
        self.prepared.bias != 0
    }

    /// Whether the bias to be prepared is there just if it is trained.
    fn check_bias(&self, given: u64) -> Result<()> {
        let tensor = "bias";
        match (self.trains_bias(), given != 0) {
            (true, false) => {
                let reason = "the spec says that it is trained";
                Err(Error::MissingTensor { tensor, reason })
            }
            (false, true) => {
                let reason = "the spec says that it is not trained, and the forward takes it";
                Err(Error::UnexpectedTensor { tensor, reason })
            }
            _ => Ok(()),
        }
    }

    /// The bias that forward and backward use: the trained one, or else the one given.
    fn bias(&self, given: u64) -> Result<u64> {
        match (self.trains_bias(), given) {
            (true, 0) => Ok(self.prepared.bias),
            (true, _) => {
                let reason = "the trained one, which was prepared, is used";
                Err(Error::UnexpectedTensor { tensor: "bias", reason })
            }
            (false, given) => Ok(given),
        }
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
    // The status would have nobody to go to: what it may tell of is a driver that is gone.
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
unsafe fn wrap(kernels: &crate::Kernels, stream: *mut c_void) -> Arc<CudaStream> {
    // SAFETY: passed on to the caller.
    unsafe { kernels.context().wrap_borrowed_stream(stream.cast::<sys::CUstream_st>()) }
}

/// Whether memory of the caller is there, aligned, and large enough.
fn check_memory(
    tensor: &'static str,
    pointer: u64,
    (expected, found): (usize, usize),
) -> Result<()> {
    if expected > found {
        let shape = "what it was opened for, in bytes,".to_owned();
        return Err(Error::Shape { tensor, shape, expected, found });
    }
    if expected == 0 {
        return Ok(());
    }
    raw::present(tensor, pointer, crate::workspace::ALIGNMENT)
}

/// Sets bytes to zero, on the stream.
///
/// # Safety
/// They are there, and the stream is one of the kernels' context.
unsafe fn zero(
    kernels: &crate::Kernels,
    stream: *mut c_void,
    memory: u64,
    bytes: usize,
) -> Result<()> {
    let during = "zeroing the workspace's counters";
    kernels.context().bind_to_thread().during(during)?;
    // SAFETY: passed on to the caller.
    unsafe { result::memset_d8_async(memory, 0, bytes, stream.cast()) }.during(during)
}
