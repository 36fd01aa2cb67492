//! Page-locked host memory: streams copy from and to it without the host waiting.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_void;

use super::copy::HostRange;
use super::entry::{Out, in_context, initialised};
use super::state::Driver;
use super::status::{Result, Status};

const PAGE: usize = 4096;
/// `CU_MEMHOSTALLOC_*`: portable, device map, write combined.
const ALLOCATION_FLAGS: u32 = 7;
const FLAG_DEVICE_MAP: u32 = 2;
/// `CU_MEMHOSTREGISTER_*`: portable, device map, I/O memory, read-only.
const REGISTRATION_FLAGS: u32 = 15;
const FLAG_IO_MEMORY: u32 = 4;

/// Host memory that the driver knows.
pub(super) struct HostAllocation {
    pub(super) bytes: usize,
    pub(super) context: u64,
    flags: u32,
    /// How to free it, where the driver allocated it.
    layout: Option<Layout>,
}

impl Driver {
    /// The page-locked memory that holds an address, with its start.
    pub(super) fn host_at(&self, address: usize) -> Option<(usize, &HostAllocation)> {
        let (&start, allocation) = self.host.range(..=address).next_back()?;
        (address - start < allocation.bytes).then_some((start, allocation))
    }

    /// Whether a range is page-locked as a whole.
    pub(super) fn is_pinned(&self, range: HostRange) -> bool {
        self.host_at(range.address).is_some_and(|(start, allocation)| {
            range.bytes <= allocation.bytes - (range.address - start)
        })
    }

    fn allocate_host(&mut self, context: u64, bytes: usize, flags: u32) -> Result<*mut c_void> {
        if bytes == 0 || flags & !ALLOCATION_FLAGS != 0 {
            let reason = format!("{bytes} bytes with flags {flags:#x}");
            return Err(Status::INVALID_VALUE.because(reason));
        }
        self.refuse_unsafe_call()?;
        let layout = Layout::from_size_align(bytes, PAGE)
            .map_err(|_| Status::OUT_OF_MEMORY.because(format!("{bytes} bytes of host memory")))?;
        // SAFETY: the layout has a size other than zero.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            return Err(Status::OUT_OF_MEMORY.because(format!("{bytes} bytes of host memory")));
        }
        let allocation = HostAllocation { bytes, context, flags, layout: Some(layout) };
        self.host.insert(memory as usize, allocation);
        Ok(memory.cast())
    }

    fn free_host(&mut self, address: usize) -> Result {
        match self.host.get(&address).map(|allocation| allocation.layout) {
            Some(Some(layout)) => {
                self.refuse_unsafe_call()?;
                self.drain_all();
                self.host.remove(&address);
                // SAFETY: allocated with this layout, freed once as the table shows, and no queued
                // copy refers to it any more.
                unsafe { dealloc(address as *mut u8, layout) };
                Ok(())
            }
            _ => {
                let reason = format!("{address:#x} is not the start of host memory of the driver");
                Err(Status::INVALID_VALUE.because(reason))
            }
        }
    }

    fn register_host(&mut self, context: u64, address: usize, bytes: usize, flags: u32) -> Result {
        if address == 0 || bytes == 0 || flags & !REGISTRATION_FLAGS != 0 {
            let reason = format!("{bytes} bytes at {address:#x} with flags {flags:#x}");
            return Err(Status::INVALID_VALUE.because(reason));
        }
        if flags & (FLAG_DEVICE_MAP | FLAG_IO_MEMORY) != 0 {
            let reason = "kernels of the emulated device cannot access host memory";
            return Err(Status::NOT_SUPPORTED.because(reason));
        }
        let Some(end) = address.checked_add(bytes) else {
            let reason = format!("{bytes} bytes at {address:#x} end beyond all memory");
            return Err(Status::INVALID_VALUE.because(reason));
        };
        let before_end = self.host.range(..end).next_back();
        if before_end.is_some_and(|(&start, known)| start + known.bytes > address) {
            return Err(Status::HOST_MEMORY_ALREADY_REGISTERED.into());
        }
        self.host.insert(address, HostAllocation { bytes, context, flags, layout: None });
        Ok(())
    }

    fn unregister_host(&mut self, address: usize) -> Result {
        if self.host.get(&address).is_none_or(|known| known.layout.is_some()) {
            return Err(Status::HOST_MEMORY_NOT_REGISTERED.into());
        }
        self.refuse_unsafe_call()?;
        self.drain_all();
        self.host.remove(&address);
        Ok(())
    }
}

/// Mapping is accepted, as portable programs ask for it; the device address cannot be had.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(
    address: *mut *mut c_void,
    bytes: usize,
    flags: u32,
) -> Status {
    in_context("cuMemHostAlloc", |driver, context| {
        // SAFETY: `address` is null or writable, by the convention of the driver API.
        let address = unsafe { Out::new(address) }?;
        address.set(driver.allocate_host(context, bytes, flags)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(address: *mut *mut c_void, bytes: usize) -> Status {
    in_context("cuMemAllocHost_v2", |driver, context| {
        // SAFETY: `address` is null or writable, by the convention of the driver API.
        let address = unsafe { Out::new(address) }?;
        address.set(driver.allocate_host(context, bytes, 0)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(address: *mut c_void) -> Status {
    initialised("cuMemFreeHost", |driver| driver.free_host(address as usize))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostRegister_v2(
    address: *mut c_void,
    bytes: usize,
    flags: u32,
) -> Status {
    in_context("cuMemHostRegister_v2", |driver, context| {
        driver.register_host(context, address as usize, bytes, flags)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostUnregister(address: *mut c_void) -> Status {
    in_context("cuMemHostUnregister", |driver, _| driver.unregister_host(address as usize))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostGetFlags(flags: *mut u32, address: *mut c_void) -> Status {
    in_context("cuMemHostGetFlags", |driver, _| {
        // SAFETY: `flags` is null or writable, by the convention of the driver API.
        let flags = unsafe { Out::new(flags) }?;
        let known = driver.host_at(address as usize).map(|(_, allocation)| allocation.flags);
        flags.set(known.ok_or_else(|| {
            Status::INVALID_VALUE.because(format!("{address:?} is not page-locked memory"))
        })?);
        Ok(())
    })
}

/// Kernels of the emulated device cannot access host memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostGetDevicePointer_v2(
    _device_address: *mut u64,
    _address: *mut c_void,
    _flags: u32,
) -> Status {
    in_context("cuMemHostGetDevicePointer_v2", |_, _| {
        let reason = "kernels of the emulated device cannot access host memory";
        Err(Status::NOT_SUPPORTED.because(reason))
    })
}
