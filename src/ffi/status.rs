//! What the functions return, what they leave to be read of a failure, and the border itself.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use cudarc::driver::sys;

use crate::error::Error;

/// Whether a function did what it was asked. All checks come before any launch: unless the status
/// is `FUSED_DORA_STATUS_DRIVER` or `FUSED_DORA_STATUS_PANIC`, an op that failed has touched no
/// device memory. `fused_dora_last_error` has the numbers, and the cure.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done, or on its way on the stream.
    Ok = 0,
    /// A pointer of the host is null, or not aligned for what it points to.
    NullArgument,
    /// A defect of the library.
    Panic,
    /// A layer that cannot exist, or a setting that makes no sense.
    InvalidSpec,
    /// Memory of the wrong size.
    Shape,
    /// Rows that overlap, or lie too far apart.
    Stride,
    /// A device address that no element can have.
    Misaligned,
    /// Buffers of another dtype than the spec's.
    Dtype,
    /// A tensor that is needed has the address 0.
    MissingTensor,
    /// A tensor was given that this kind of layer does not have.
    UnexpectedTensor,
    /// A gradient through the norm of a layer that has none.
    NoNormGradient,
    /// An op before `fused_dora_prepare`.
    NotPrepared,
    /// A workspace made for less.
    WorkspaceTooSmall,
    /// An unmerge where a gain is 0.
    LostFeature,
    /// An adapter that does not fit its layer.
    Adapter,
    /// A launch larger than the device allows.
    DeviceLimit,
    /// A GPU before Ampere.
    UnsupportedArchitecture,
    /// The library was built without NVRTC, and holds no kernels.
    KernelsNotBuilt,
    /// No CUDA driver.
    DriverMissing,
    /// A device that is not there.
    NoDevice,
    /// A driver older than the NVRTC that compiled the kernels.
    PtxTooNew,
    /// Handles of different CUDA contexts.
    ContextMismatch,
    /// The CUDA driver reported an error, perhaps of an earlier launch.
    Driver,
    /// Ranks that disagree in a sum over them. No function of this interface makes one yet.
    Ranks,
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
        }
    }
}

/// Why a function failed.
pub(super) struct Failure {
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
    pub(super) fn null(argument: &'static str) -> Self {
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
        let message = format!("a defect of fused-dora: {text}");
        Self { status: Status::Panic, message }
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// What went wrong in the last call of this thread that failed, with its numbers and what to do
/// about it; empty if none has. Valid until the thread's next call that fails, or its end.
#[unsafe(no_mangle)]
pub extern "C" fn fused_dora_last_error() -> *const c_char {
    // A thread that is ending has nothing any more.
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Runs what a function does. Nothing unwinds to the caller, a failure is kept to be read, and the
/// thread's current context is what it was.
pub(super) fn entry(work: impl FnOnce() -> Result<(), Failure>) -> Status {
    let result = catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|payload| Err(Failure::panic(payload.as_ref())));
    let Err(Failure { status, message }) = result else { return Status::Ok };
    // A C string ends at the first NUL.
    let message = CString::new(message.replace('\0', "?")).unwrap_or_default();
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = message);
    status
}

/// Puts the thread's current context back when it is dropped. There is to be a driver.
pub(super) struct CurrentContext(sys::CUcontext);

impl CurrentContext {
    pub(super) fn keep() -> Self {
        let mut context = null_mut();
        // SAFETY: the place is writable. Where the driver is not initialised, it stays null.
        let _ = unsafe { sys::cuCtxGetCurrent(&mut context) };
        Self(context)
    }
}

impl Drop for CurrentContext {
    fn drop(&mut self) {
        // SAFETY: the context was current a call ago. There is nobody to tell of an error.
        let _ = unsafe { sys::cuCtxSetCurrent(self.0) };
    }
}

/// What a pointer of the caller points to.
///
/// # Safety
/// Unless it is null or not aligned, the pointer is that of a `T`, which stays as it is for as long
/// as the result is used.
pub(super) unsafe fn given<'a, T>(
    argument: &'static str,
    pointer: *const T,
) -> Result<&'a T, Failure> {
    check(argument, pointer)?;
    // SAFETY: it is neither null nor out of alignment; for the rest, the caller vouches.
    Ok(unsafe { &*pointer })
}

/// As [`given`], `count` of them; of none, the pointer does not matter.
///
/// # Safety
/// That of [`given`].
pub(super) unsafe fn given_all<'a, T>(
    argument: &'static str,
    pointer: *const T,
    count: usize,
) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    check(argument, pointer)?;
    // SAFETY: it is neither null nor out of alignment; for the rest, the caller vouches.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// Writes a result.
///
/// # Safety
/// Unless it is null or not aligned, the place is writable.
pub(super) unsafe fn give<T>(
    argument: &'static str,
    place: *mut T,
    value: impl FnOnce() -> Result<T, Failure>,
) -> Result<(), Failure> {
    check(argument, place)?;
    let value = value()?;
    // SAFETY: it is neither null nor out of alignment; for the rest, the caller vouches.
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
        assert_eq!(last_error(), "a defect of fused-dora: number 7");
        assert_eq!(entry(|| Ok(())), Status::Ok);
        assert_eq!(last_error(), "a defect of fused-dora: number 7");
    }

    #[test]
    fn each_thread_has_its_own_last_error() {
        assert_eq!(entry(|| Err(Failure::null("io"))), Status::NullArgument);
        std::thread::spawn(|| assert_eq!(last_error(), "")).join().expect("the other thread");
        assert_eq!(last_error(), "io is null: give its address");
    }
}
