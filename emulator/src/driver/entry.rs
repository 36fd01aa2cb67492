//! The border to C: how every driver function is entered and left.
//!
//! No panic crosses the border: it is caught here and becomes `CUDA_ERROR_UNKNOWN`. Every call that
//! fails leaves its reason, which `cudaEmulatorLastError` returns and which is printed when
//! `CUDA_EMULATOR_VERBOSE` is set.

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use super::state::{DRIVER, Driver};
use super::status::{Failure, Result, Status};

/// Why the latest failing call failed.
static LAST_FAILURE: Mutex<String> = Mutex::new(String::new());

thread_local! {
    /// Whether this thread runs a host function of a stream, which must not call the driver.
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// Runs a function that needs nothing of the driver's state.
pub(super) fn bare(name: &'static str, body: impl FnOnce() -> Result) -> Status {
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("a panic without a message");
        eprintln!("cuda-emulator: {name} stopped at an internal error: {message}");
        Err(Status::UNKNOWN.because(format!("internal error: {message}")))
    });
    match result {
        Ok(()) => Status::SUCCESS,
        Err(failure) => {
            note(name, &failure);
            failure.status
        }
    }
}

/// Runs a function on the driver's state, initialised or not.
pub(super) fn entry(name: &'static str, body: impl FnOnce(&mut Driver) -> Result) -> Status {
    bare(name, || {
        if IN_HOST_FUNCTION.get() {
            let reason = "a host function of a stream must not call the driver";
            return Err(Status::NOT_PERMITTED.because(reason));
        }
        let mut driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
        body(&mut driver)
    })
}

/// Reads something of the driver's state; nothing from within a host function of a stream, whose
/// caller holds the lock.
pub(super) fn peek(read: impl FnOnce(&Driver) -> String) -> String {
    if IN_HOST_FUNCTION.get() {
        return String::new();
    }
    read(&DRIVER.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs a function that needs an initialised driver.
pub(super) fn initialised(name: &'static str, body: impl FnOnce(&mut Driver) -> Result) -> Status {
    entry(name, |driver| {
        driver.platform()?;
        body(driver)
    })
}

/// Runs a function that needs a current context without a sticky error.
pub(super) fn in_context(
    name: &'static str,
    body: impl FnOnce(&mut Driver, u64) -> Result,
) -> Status {
    initialised(name, |driver| {
        let context = driver.current_context()?;
        driver.check_sticky(context)?;
        body(driver, context)
    })
}

/// Runs a host function of a stream; driver calls out of it are refused.
pub(super) fn run_host_function(body: impl FnOnce()) {
    IN_HOST_FUNCTION.set(true);
    body();
    IN_HOST_FUNCTION.set(false);
}

fn note(name: &'static str, failure: &Failure) {
    if failure.status == Status::NOT_READY {
        return;
    }
    let line = format!("{name}: {failure}");
    if std::env::var_os("CUDA_EMULATOR_VERBOSE").is_some_and(|value| value != "0") {
        eprintln!("cuda-emulator: {line}");
    }
    *LAST_FAILURE.lock().unwrap_or_else(PoisonError::into_inner) = line;
}

/// Why the latest failing call failed; empty before the first one.
pub(super) fn last_failure() -> String {
    LAST_FAILURE.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A place of the caller that takes a result.
#[derive(Clone, Copy)]
pub(super) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    /// Takes a pointer argument that must not be null.
    ///
    /// # Safety
    /// The pointer is null or may be written to during the call.
    pub(super) unsafe fn new(pointer: *mut T) -> Result<Self> {
        match NonNull::new(pointer) {
            Some(place) if pointer.is_aligned() => Ok(Self(place)),
            Some(_) => Err(Status::INVALID_VALUE.because("a result pointer is not aligned")),
            None => Err(Status::INVALID_VALUE.because("a result pointer is null")),
        }
    }

    /// Takes a pointer argument that may be null where the caller does not want the result.
    ///
    /// # Safety
    /// The pointer is null or may be written to during the call.
    pub(super) unsafe fn optional(pointer: *mut T) -> Result<Option<Self>> {
        if pointer.is_null() {
            return Ok(None);
        }
        // SAFETY: passed on from the caller.
        unsafe { Self::new(pointer) }.map(Some)
    }

    /// Writes the result.
    pub(super) fn set(self, value: T) {
        // SAFETY: whoever made this promised a writable place, and `new` checked its alignment.
        unsafe { self.0.as_ptr().write(value) }
    }
}

/// Writes a result that the caller may not want.
pub(super) fn set_optional<T>(out: Option<Out<T>>, value: T) {
    if let Some(out) = out {
        out.set(value);
    }
}

/// Reads a structure that the caller passes by address.
///
/// # Safety
/// The pointer is null or points to a readable, initialised `T`.
pub(super) unsafe fn read<T: Copy>(pointer: *const T) -> Result<T> {
    if pointer.is_null() || !pointer.is_aligned() {
        return Err(Status::INVALID_VALUE.because("a parameter structure is null or not aligned"));
    }
    // SAFETY: not null and aligned; the rest is the caller's promise.
    Ok(unsafe { pointer.read() })
}

/// Reads a name that the caller passes as a NUL-terminated string.
///
/// # Safety
/// The pointer is null or points to a NUL-terminated string.
pub(super) unsafe fn read_name<'a>(pointer: *const c_char) -> Result<&'a str> {
    if pointer.is_null() {
        return Err(Status::INVALID_VALUE.because("a name is null"));
    }
    // SAFETY: not null; the rest is the caller's promise.
    let name = unsafe { CStr::from_ptr(pointer) };
    name.to_str().map_err(|_| Status::INVALID_VALUE.because("a name is not UTF-8"))
}

/// Copies a text with its terminating NUL into a buffer, cut to fit; returns the text's length.
///
/// # Safety
/// The buffer is null or may be written to over `size` bytes.
pub(super) unsafe fn write_text(text: &str, buffer: *mut c_char, size: usize) -> usize {
    if !buffer.is_null() && size > 0 {
        let kept = text.len().min(size - 1);
        // SAFETY: `kept + 1 <= size` bytes fit into the buffer, which cannot overlap the text.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast(), kept);
            buffer.add(kept).write(0);
        }
    }
    text.len()
}
