//! What the functions return, the text of the last failure, and the border that no panic crosses.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use fused_dora::Error;
use fused_dora::cudarc::driver::sys;

/// Whether a function succeeded. An op makes all checks before it launches anything: unless the
/// status is `FUSED_DORA_STATUS_DRIVER` or `FUSED_DORA_STATUS_PANIC`, an op that failed has not
/// touched device memory. `fused_dora_last_error` returns the text, with the numbers and the
/// remedy.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Success: done, or queued on the stream.
    Ok = 0,
    /// A host pointer is null, or not aligned for what it points to.
    NullArgument,
    /// A bug in the library.
    Panic,
    /// A layer that cannot exist, or a setting that makes no sense.
    InvalidSpec,
    /// A part of a packed weight has the wrong length.
    Shape,
    /// Rows that overlap, or lie too far apart.
    Stride,
    /// A device address that is not a multiple of what it must be.
    Misaligned,
    /// A tensor of another dtype than the spec's. No function of this interface returns it.
    Dtype,
    /// A tensor that the op needs has address 0.
    MissingTensor,
    /// A tensor was given that this kind of layer does not have.
    UnexpectedTensor,
    /// `fused_dora_norm_gradient` for a layer whose gradients do not flow through a norm.
    NoNormGradient,
    /// An op before `fused_dora_prepare`.
    NotPrepared,
    /// A workspace that was opened for smaller layers or fewer tokens.
    WorkspaceTooSmall,
    /// An unmerge where a gain is 0.
    LostFeature,
    /// An adapter that does not fit its layer. No function of this interface returns it.
    Adapter,
    /// A launch that is larger than the device allows.
    DeviceLimit,
    /// A GPU before Ampere.
    UnsupportedArchitecture,
    /// The library was built without NVRTC and holds no kernels.
    KernelsNotBuilt,
    /// No CUDA driver.
    DriverMissing,
    /// A device that does not exist.
    NoDevice,
    /// A driver that is older than the NVRTC that compiled the kernels.
    PtxTooNew,
    /// Handles of different CUDA contexts.
    ContextMismatch,
    /// The CUDA driver reported an error, perhaps of an earlier launch.
    Driver,
    /// Ranks that disagree in a sum over them. No function of this interface returns it.
    Ranks,
    /// Memory for a layer or a workspace that has too few bytes.
    MemoryTooSmall,
    /// A step without an active adapter. No function of this interface returns it.
    NoActiveAdapter,
    /// A packed weight where the spec says a dense one, or the other way round, or another kind.
    WeightFormat,
}

impl Status {
    fn of(error: &Error) -> Self {
        match error {
            Error::InvalidSpec { .. } => Self::InvalidSpec,
            Error::Shape { .. } => Self::Shape,
            Error::Stride { .. } => Self::Stride,
            Error::Misaligned { .. } => Self::Misaligned,
            Error::Dtype { .. } => Self::Dtype,
            Error::MissingTensor { .. } => Self::MissingTensor,
            Error::UnexpectedTensor { .. } => Self::UnexpectedTensor,
            Error::NoNormGradient { .. } => Self::NoNormGradient,
            Error::NotPrepared { .. } => Self::NotPrepared,
            Error::WorkspaceTooSmall { .. } => Self::WorkspaceTooSmall,
            Error::LostFeature { .. } => Self::LostFeature,
            Error::Adapter { .. } => Self::Adapter,
            Error::DeviceLimit { .. } => Self::DeviceLimit,
            Error::UnsupportedArchitecture { .. } => Self::UnsupportedArchitecture,
            Error::KernelsNotBuilt => Self::KernelsNotBuilt,
            Error::DriverMissing { .. } => Self::DriverMissing,
            Error::NoDevice { .. } => Self::NoDevice,
            Error::PtxTooNew { .. } => Self::PtxTooNew,
            Error::ContextMismatch => Self::ContextMismatch,
            Error::Driver { .. } => Self::Driver,
            Error::Ranks { .. } => Self::Ranks,
            Error::MemoryTooSmall { .. } => Self::MemoryTooSmall,
            Error::NoActiveAdapter { .. } => Self::NoActiveAdapter,
            Error::WeightFormat { .. } => Self::WeightFormat,
            // `Error` may grow, and a test finds each variant that is not listed here.
            _ => Self::Panic,
        }
    }
}

/// Why a function failed.
pub(crate) struct Failure {
    status: Status,
    message: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { status: Status::of(&error), message: error.to_string() }
    }
}

impl Failure {
    /// An argument that is null.
    pub(crate) fn null(argument: &'static str) -> Self {
        let message = format!("{argument} is null: give its address");
        Self { status: Status::NullArgument, message }
    }

    fn unaligned(argument: &'static str, address: usize, alignment: usize) -> Self {
        let message = format!(
            "{argument} is at {address:#x}, which is not a multiple of {alignment} bytes: give the \
             address of such a structure"
        );
        Self { status: Status::NullArgument, message }
    }

    fn panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref().copied()).unwrap_or("no message");
        let message = format!("a bug in fused-dora: {text}");
        Self { status: Status::Panic, message }
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// The text of the last failure in this thread, with its numbers and the remedy; empty if no call
/// has failed. The text is valid until the next call that fails in this thread, or until the thread
/// ends.
#[unsafe(no_mangle)]
pub extern "C" fn fused_dora_last_error() -> *const c_char {
    // The text of a thread that is ending is gone.
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Runs a function's work. No panic unwinds to the caller, and the text of a failure is kept.
pub(crate) fn entry(work: impl FnOnce() -> Result<(), Failure>) -> Status {
    let result = catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|payload| Err(Failure::panic(payload.as_ref())));
    let Err(Failure { status, message }) = result else { return Status::Ok };
    // A C string ends at the first NUL.
    let message = CString::new(message.replace('\0', "?")).unwrap_or_default();
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = message);
    status
}

/// Restores the thread's current context when it is dropped. It needs a driver.
pub(crate) struct CurrentContext(sys::CUcontext);

impl CurrentContext {
    pub(crate) fn keep() -> Self {
        let mut context = null_mut();
        // SAFETY: the place is writable. It stays null if the driver is not initialised.
        let _ = unsafe { sys::cuCtxGetCurrent(&mut context) };
        Self(context)
    }
}

impl Drop for CurrentContext {
    fn drop(&mut self) {
        // SAFETY: the context was current before this call. Nobody could use the status.
        let _ = unsafe { sys::cuCtxSetCurrent(self.0) };
    }
}

/// What a pointer of the caller points to.
///
/// # Safety Unless it is null or misaligned, the pointer is of a `T` that does not change while the
/// result is used.
pub(crate) unsafe fn given<'a, T>(
    argument: &'static str,
    pointer: *const T,
) -> Result<&'a T, Failure> {
    check(argument, pointer)?;
    // SAFETY: the pointer is not null and not misaligned. The caller vouches for the rest.
    Ok(unsafe { &*pointer })
}

/// Like [`given`], for `count` of them. If there are none, any pointer is right.
///
/// # Safety
/// That of [`given`].
pub(crate) unsafe fn given_all<'a, T>(
    argument: &'static str,
    pointer: *const T,
    count: usize,
) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    check(argument, pointer)?;
    // SAFETY: the pointer is not null and not misaligned. The caller vouches for the rest.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// Writes a result.
///
/// # Safety
/// Unless it is null or misaligned, the place is writable.
pub(crate) unsafe fn give<T>(
    argument: &'static str,
    place: *mut T,
    value: impl FnOnce() -> Result<T, Failure>,
) -> Result<(), Failure> {
    check(argument, place)?;
    let value = value()?;
    // SAFETY: the pointer is not null and not misaligned. The caller vouches for the rest.
    unsafe { place.write(value) };
    Ok(())
}

fn check<T>(argument: &'static str, pointer: *const T) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::null(argument));
    }
    if !pointer.is_aligned() {
        return Err(Failure::unaligned(argument, pointer.addr(), align_of::<T>()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn last_error() -> String {
        // SAFETY: the text is valid until the next failure of this thread.
        let text = unsafe { CStr::from_ptr(fused_dora_last_error()) };
        text.to_str().expect("UTF-8").to_owned()
    }

    #[test]
    fn a_panic_stays_on_this_side() {
        let number = 7;
        assert_eq!(entry(|| panic!("number {number}")), Status::Panic);
        assert_eq!(last_error(), "a bug in fused-dora: number 7");
        assert_eq!(entry(|| Ok(())), Status::Ok);
        assert_eq!(last_error(), "a bug in fused-dora: number 7");
    }

    #[test]
    fn each_thread_has_its_own_last_error() {
        assert_eq!(entry(|| Err(Failure::null("io"))), Status::NullArgument);
        std::thread::spawn(|| assert_eq!(last_error(), "")).join().expect("the other thread");
        assert_eq!(last_error(), "io is null: give its address");
    }
}
