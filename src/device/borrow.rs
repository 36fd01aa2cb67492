//! Contexts of other libraries.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use super::open::probe_driver;
use crate::error::{During, Error, Result};

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
