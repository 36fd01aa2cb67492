//! What kind of memory an address belongs to.

use std::ffi::{c_int, c_void};

use super::entry::{Out, in_context};
use super::state::{Driver, Origin};
use super::status::{Result, Status};

/// `CU_POINTER_ATTRIBUTE_*`.
const CONTEXT: u32 = 1;
const MEMORY_TYPE: u32 = 2;
const DEVICE_POINTER: u32 = 3;
const HOST_POINTER: u32 = 4;
const SYNC_MEMOPS: u32 = 6;
const BUFFER_ID: u32 = 7;
const IS_MANAGED: u32 = 8;
const DEVICE_ORDINAL: u32 = 9;
const IS_IPC_CAPABLE: u32 = 10;
const RANGE_START: u32 = 11;
const RANGE_SIZE: u32 = 12;
const MAPPED: u32 = 13;
const ALLOWED_HANDLE_TYPES: u32 = 14;
const IS_RDMA_CAPABLE: u32 = 15;
const ACCESS_FLAGS: u32 = 16;
const MEMPOOL_HANDLE: u32 = 17;

/// `CU_MEMORYTYPE_*`.
const MEMORY_HOST: u32 = 1;
const MEMORY_DEVICE: u32 = 2;
/// `CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE`.
const ACCESS_READ_WRITE: u64 = 3;

/// What the driver knows about an address.
struct Known {
    context: u64,
    memory: u32,
    start: u64,
    bytes: u64,
    pool: u64,
}

impl Driver {
    fn know(&self, address: u64) -> Option<Known> {
        for (&context, entry) in self.contexts.iter() {
            if let Some((start, allocation)) = entry.allocation_at(address) {
                let pool = match allocation.origin {
                    Origin::Pool(pool) => pool,
                    _ => 0,
                };
                let bytes = allocation.bytes;
                return Some(Known { context, memory: MEMORY_DEVICE, start, bytes, pool });
            }
        }
        let (start, host) = self.host_at(address as usize)?;
        let (start, bytes) = (start as u64, host.bytes as u64);
        Some(Known { context: host.context, memory: MEMORY_HOST, start, bytes, pool: 0 })
    }

    /// Writes one attribute of an address.
    ///
    /// # Safety
    /// `data` is null or a place for the attribute's type.
    unsafe fn pointer_attribute(&self, data: *mut c_void, which: u32, address: u64) -> Result {
        let unknown = || {
            let reason = format!("{address:#x} is neither device nor page-locked host memory");
            Status::INVALID_VALUE.because(reason)
        };
        let known = self.know(address).ok_or_else(unknown)?;
        let of_type = |memory: u32| {
            if known.memory == memory { Ok(()) } else { Err(Status::INVALID_VALUE) }
        };
        let flag = |value: bool| -> Result {
            // SAFETY: a place for a C++ bool, as the caller promises.
            unsafe { Out::new(data.cast::<u8>()) }?.set(value.into());
            Ok(())
        };
        let int = |value: u32| -> Result {
            // SAFETY: a place for an int, as the caller promises.
            unsafe { Out::new(data.cast::<u32>()) }?.set(value);
            Ok(())
        };
        let wide = |value: u64| -> Result {
            // SAFETY: a place for a 64-bit value or pointer, as the caller promises.
            unsafe { Out::new(data.cast::<u64>()) }?.set(value);
            Ok(())
        };
        match which {
            CONTEXT => wide(known.context),
            MEMORY_TYPE => int(known.memory),
            DEVICE_POINTER => {
                of_type(MEMORY_DEVICE)?;
                wide(address)
            }
            HOST_POINTER => {
                of_type(MEMORY_HOST)?;
                wide(address)
            }
            BUFFER_ID | RANGE_START => wide(known.start),
            RANGE_SIZE => wide(known.bytes),
            DEVICE_ORDINAL => int(self.context(known.context)?.ordinal as u32),
            MAPPED => int(u32::from(known.memory == MEMORY_DEVICE)),
            SYNC_MEMOPS | IS_MANAGED | IS_IPC_CAPABLE | IS_RDMA_CAPABLE => flag(false),
            ALLOWED_HANDLE_TYPES => wide(0),
            ACCESS_FLAGS => int(ACCESS_READ_WRITE as u32),
            MEMPOOL_HANDLE => wide(known.pool),
            _ => Err(Status::INVALID_VALUE.because(format!("{which} is not a pointer attribute"))),
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuPointerGetAttribute(
    data: *mut c_void,
    attribute: u32,
    address: u64,
) -> Status {
    in_context("cuPointerGetAttribute", |driver, _| {
        // SAFETY: null or a place for the attribute, by the convention of the driver API.
        unsafe { driver.pointer_attribute(data, attribute, address) }
    })
}

/// Attributes of an address that the driver does not know are null, as the driver API says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuPointerGetAttributes(
    count: u32,
    attributes: *const u32,
    data: *const *mut c_void,
    address: u64,
) -> Status {
    in_context("cuPointerGetAttributes", |driver, _| {
        if count == 0 || attributes.is_null() || data.is_null() {
            return Err(Status::INVALID_VALUE.because("no attributes were asked for"));
        }
        for index in 0..count as usize {
            // SAFETY: both lists have `count` entries, by the convention of the driver API.
            let (which, place) = unsafe { (*attributes.add(index), *data.add(index)) };
            // SAFETY: as for `cuPointerGetAttribute`.
            if let Err(error) = unsafe { driver.pointer_attribute(place, which, address) } {
                if driver.know(address).is_some() {
                    return Err(error);
                }
                // SAFETY: every attribute takes at least the space of an int; those of one byte are
                // known to be false and are not written wider.
                unsafe { write_nothing(place, which) }?;
            }
        }
        Ok(())
    })
}

/// Writes the value that stands for no knowledge.
///
/// # Safety
/// `data` is null or a place for the attribute's type.
unsafe fn write_nothing(data: *mut c_void, which: u32) -> Result {
    match which {
        SYNC_MEMOPS | IS_MANAGED | IS_IPC_CAPABLE | IS_RDMA_CAPABLE => {
            // SAFETY: the caller's promise.
            unsafe { Out::new(data.cast::<u8>()) }?.set(0);
        }
        MEMORY_TYPE | MAPPED | ACCESS_FLAGS => {
            // SAFETY: the caller's promise.
            unsafe { Out::new(data.cast::<u32>()) }?.set(0);
        }
        DEVICE_ORDINAL => {
            // SAFETY: the caller's promise.
            unsafe { Out::new(data.cast::<c_int>()) }?.set(-2);
        }
        _ => {
            // SAFETY: the caller's promise.
            unsafe { Out::new(data.cast::<u64>()) }?.set(0);
        }
    }
    Ok(())
}
