//! Opening a device without a panic where there is no driver.

use std::error::Error as _;
use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, sys};
use libloading::Library;

use crate::error::{During, Error, Result};

const DRIVER_NAMES: [&str; 2] =
    if cfg!(windows) { ["nvcuda.dll", "cuda.dll"] } else { ["libcuda.so", "libcuda.so.1"] };

/// Opens CUDA device `ordinal` and retains its primary context.
///
/// cudarc panics when there is no driver library at all; this function looks for one first.
///
/// # Errors
/// [`Error::DriverMissing`] with what was tried, [`Error::NoDevice`] with the number of devices,
/// or the driver's own error.
pub fn open_device(ordinal: usize) -> Result<Arc<CudaContext>> {
    probe_driver()?;
    let no_device = |count| Error::NoDevice { ordinal, count };
    match CudaContext::device_count() {
        Ok(count) if ordinal < count.max(0) as usize => {
            CudaContext::new(ordinal).during("opening the device")
        }
        Ok(count) => Err(no_device(count.max(0) as usize)),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err(no_device(0)),
        Err(source) => Err(Error::Driver { during: "initialising the driver", source }),
    }
}

/// Checks that a CUDA driver library can be opened. Without one, cudarc's functions panic: call this
/// function before the first of them, unless [`open_device`] or [`borrow_context`] does.
///
/// [`borrow_context`]: crate::borrow_context
///
/// # Errors
/// [`Error::DriverMissing`] with what was tried.
pub fn probe_driver() -> Result<()> {
    let mut tried = Vec::new();
    for name in DRIVER_NAMES {
        // SAFETY: opening the CUDA driver runs its initialisers, which have no preconditions.
        match unsafe { Library::new(name) } {
            Ok(driver) => {
                // The driver must not be unloaded and loaded again within a process.
                std::mem::forget(driver);
                return Ok(());
            }
            Err(error) => {
                // The loader's own words are the error's source.
                let reason = error.source().map_or_else(|| error.to_string(), |s| s.to_string());
                tried.push(format!("{name}: {reason}"));
            }
        }
    }
    Err(Error::DriverMissing { tried })
}
