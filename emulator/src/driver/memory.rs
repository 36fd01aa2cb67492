//! Device memory: allocation and release, at once or in a stream.

use super::entry::{Out, in_context, set_optional};
use super::queue::Operation;
use super::state::{Allocation, Driver, Origin};
use super::status::{Failure, Result, Status};

impl Driver {
    /// Bytes that all contexts together have allocated.
    fn memory_in_use(&self) -> u64 {
        self.contexts.iter().map(|(_, context)| context.device.memory_in_use()).sum()
    }

    /// Allocates device memory in a context.
    pub(super) fn allocate(&mut self, context: u64, bytes: u64, origin: Origin) -> Result<u64> {
        let total = self.platform()?.profile.total_memory;
        let free = total.saturating_sub(self.memory_in_use());
        let entry = self.context_mut(context)?;
        let address = (bytes <= free).then(|| entry.device.alloc(bytes)).flatten();
        let Some(address) = address else {
            let reason = format!("{bytes} bytes were asked for and {free} are free");
            return Err(Status::OUT_OF_MEMORY.because(reason));
        };
        entry.allocations.insert(address, Allocation { bytes, origin, doomed: false });
        Ok(address)
    }

    /// The allocation that starts at an address and that a program may free.
    fn freeable(&self, context: u64, address: u64) -> Result<Allocation> {
        match self.context(context)?.allocations.get(&address) {
            Some(allocation) if !allocation.doomed && allocation.is_owned() => Ok(*allocation),
            Some(allocation) if allocation.doomed => {
                let reason =
                    format!("the memory at {address:#x} was given to cuMemFreeAsync before");
                Err(Status::INVALID_VALUE.because(reason))
            }
            _ => Err(not_allocated(address)),
        }
    }

    /// Frees device memory, in its turn of a stream or at once.
    pub(super) fn release(&mut self, context: u64, address: u64) -> Result {
        let entry = self.context_mut(context)?;
        let Some(allocation) = entry.allocations.remove(&address) else {
            return Err(not_allocated(address));
        };
        let freed = entry.device.free(address);
        if let Origin::Pool(pool) = allocation.origin
            && let Some(pool) = self.pools.get_mut(pool)
        {
            pool.give_back(allocation.bytes);
        }
        freed.map_err(|error| Status::INVALID_VALUE.because(error.to_string()))
    }

    /// Frees at once what nothing uses any more: all work of the context runs before.
    fn free_now(&mut self, context: u64, address: u64) -> Result {
        if address == 0 {
            return Ok(());
        }
        self.refuse_unsafe_call()?;
        self.freeable(context, address)?;
        self.drain_context(context);
        self.count_synchronisation();
        self.check_sticky(context)?;
        self.release(context, address)
    }

    /// Frees memory in the order of a stream.
    fn free_in_stream(&mut self, context: u64, address: u64, stream: u64) -> Result {
        if address == 0 {
            return Ok(());
        }
        self.freeable(context, address)?;
        let what = "memory was freed";
        self.refuse_in_capture(stream, Status::STREAM_CAPTURE_UNSUPPORTED, what)?;
        if let Some(allocation) = self.context_mut(context)?.allocations.get_mut(&address) {
            allocation.doomed = true;
        }
        self.submit(stream, Operation::Free(address))
    }
}

impl Allocation {
    /// Whether the program owns the memory: the variables of a module are not its to free.
    fn is_owned(&self) -> bool {
        !matches!(self.origin, Origin::Variable(_))
    }

    /// Whether the end of the context finds the memory forgotten.
    pub(super) fn is_leak_at_end(&self) -> bool {
        self.is_owned()
    }
}

fn not_allocated(address: u64) -> Failure {
    let reason = format!("{address:#x} is not the start of an allocation of this context");
    Status::INVALID_VALUE.because(reason)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Status {
    in_context("cuMemAlloc_v2", |driver, context| {
        // SAFETY: `address` is null or writable, by the convention of the driver API.
        let address = unsafe { Out::new(address) }?;
        if bytes == 0 {
            return Err(Status::INVALID_VALUE.because("an allocation of no bytes"));
        }
        driver.refuse_unsafe_call()?;
        address.set(driver.allocate(context, bytes as u64, Origin::Plain)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocPitch_v2(
    address: *mut u64,
    pitch: *mut usize,
    width: usize,
    height: usize,
    element: u32,
) -> Status {
    in_context("cuMemAllocPitch_v2", |driver, context| {
        /// Rows start at multiples of this.
        const ROW_ALIGNMENT: usize = 512;
        // SAFETY: both are null or writable, by the convention of the driver API.
        let (address, pitch) = unsafe { (Out::new(address)?, Out::new(pitch)?) };
        if width == 0 || height == 0 || !matches!(element, 4 | 8 | 16) {
            let reason = format!("{height} rows of {width} bytes with elements of {element} bytes");
            return Err(Status::INVALID_VALUE.because(reason));
        }
        driver.refuse_unsafe_call()?;
        let row = width.checked_next_multiple_of(ROW_ALIGNMENT);
        let bytes = row.and_then(|row| row.checked_mul(height));
        let (Some(row), Some(bytes)) = (row, bytes) else {
            let reason = format!("{height} rows of {width} bytes are more than memory holds");
            return Err(Status::OUT_OF_MEMORY.because(reason));
        };
        address.set(driver.allocate(context, bytes as u64, Origin::Plain)?);
        pitch.set(row);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> Status {
    in_context("cuMemFree_v2", |driver, context| driver.free_now(context, address))
}

/// An allocation of no bytes is the null address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: u64) -> Status {
    in_context("cuMemAllocAsync", |driver, context| {
        // SAFETY: `address` is null or writable, by the convention of the driver API.
        let address = unsafe { Out::new(address) }?;
        let pool = driver.context(context)?.default_pool;
        address.set(driver.allocate_from_pool(context, pool, bytes as u64, stream)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeAsync(address: u64, stream: u64) -> Status {
    in_context("cuMemFreeAsync", |driver, context| {
        driver.require_pools()?;
        let stream = driver.stream(context, stream)?;
        driver.free_in_stream(context, address, stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    in_context("cuMemGetInfo_v2", |driver, _| {
        // SAFETY: both are null or writable, by the convention of the driver API.
        let (free, total) = unsafe { (Out::new(free)?, Out::new(total)?) };
        let all = driver.platform()?.profile.total_memory;
        total.set(all as usize);
        free.set(all.saturating_sub(driver.memory_in_use()) as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetAddressRange_v2(
    base: *mut u64,
    size: *mut usize,
    address: u64,
) -> Status {
    in_context("cuMemGetAddressRange_v2", |driver, context| {
        // SAFETY: both are null or writable, by the convention of the driver API.
        let (base, size) = unsafe { (Out::optional(base)?, Out::optional(size)?) };
        let Some((start, allocation)) = driver.context(context)?.allocation_at(address) else {
            let reason = format!("{address:#x} is not in device memory of this context");
            return Err(Status::NOT_FOUND.because(reason));
        };
        set_optional(base, start);
        set_optional(size, allocation.bytes as usize);
        Ok(())
    })
}
