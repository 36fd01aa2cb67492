//! Functions that the emulated device does not support, and that its attributes deny.
//!
//! Bindings reach them, so that a program that tries gets an error that it can handle.

use std::ffi::{c_int, c_void};

use super::entry::initialised;
use super::status::Status;

macro_rules! refused {
    ($reason:literal: $($name:ident($($argument:ident: $kind:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $kind),*) -> Status {
            $(let _ = $argument;)*
            initialised(stringify!($name), |_| Err(Status::NOT_SUPPORTED.because($reason)))
        }
    )*};
}

refused! {
    "the emulated device has no managed memory":
    cuMemAllocManaged(address: *mut u64, bytes: usize, flags: u32);
    cuMemPrefetchAsync(address: u64, bytes: usize, device: c_int, stream: u64);
    cuMemAdvise(address: u64, bytes: usize, advice: u32, device: c_int);
    cuStreamAttachMemAsync(stream: u64, address: u64, bytes: usize, flags: u32);
}

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Location {
    kind: u32,
    id: c_int,
}

refused! {
    "the emulated device has no managed memory":
    cuMemPrefetchAsync_v2(address: u64, bytes: usize, to: Location, flags: u32, stream: u64);
    cuMemAdvise_v2(address: u64, bytes: usize, advice: u32, location: Location);
}

refused! {
    "the emulated device shares no memory with other interfaces":
    cuImportExternalMemory(memory: *mut u64, description: *const c_void);
    cuExternalMemoryGetMappedBuffer(address: *mut u64, memory: u64, buffer: *const c_void);
    cuDestroyExternalMemory(memory: u64);
}
