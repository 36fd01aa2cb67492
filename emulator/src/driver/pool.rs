//! Memory pools: allocation in the order of a stream.
//!
//! An allocation exists from the call on, and a release takes effect in its turn of the stream. The
//! pools keep their books, and hand nothing back and forth: memory that is freed is gone, so that
//! its use after that is found.

use std::ffi::{c_int, c_void};

use super::entry::{Out, in_context, initialised, read};
use super::state::{self, Driver, Origin};
use super::status::{Result, Status};

/// `CU_MEMPOOL_ATTR_*`.
const ATTRIBUTE_REUSE_FOLLOW_EVENTS: u32 = 1;
const ATTRIBUTE_REUSE_INTERNAL: u32 = 3;
const ATTRIBUTE_RELEASE_THRESHOLD: u32 = 4;
const ATTRIBUTE_RESERVED_CURRENT: u32 = 5;
const ATTRIBUTE_RESERVED_HIGH: u32 = 6;
const ATTRIBUTE_USED_CURRENT: u32 = 7;
const ATTRIBUTE_USED_HIGH: u32 = 8;

/// A memory pool of a context.
pub(super) struct Pool {
    pub(super) context: u64,
    /// The three attributes about reuse, as a program set them.
    reuse: [c_int; 3],
    release_threshold: u64,
    used: u64,
    used_high: u64,
}

impl Pool {
    /// An empty pool.
    pub(super) fn new(context: u64) -> Self {
        Self { context, reuse: [1; 3], release_threshold: 0, used: 0, used_high: 0 }
    }

    fn take(&mut self, bytes: u64) {
        self.used += bytes;
        self.used_high = self.used_high.max(self.used);
    }

    /// Notes that an allocation was freed.
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.used -= bytes;
    }
}

impl Driver {
    /// Fails where the device was set up without memory pools.
    pub(super) fn require_pools(&self) -> Result {
        if self.platform()?.memory_pools {
            return Ok(());
        }
        let reason = "the device was set up without memory pools (CUDA_EMULATOR_MEMORY_POOLS=0)";
        Err(Status::NOT_SUPPORTED.because(reason))
    }

    fn pool(&mut self, handle: u64) -> Result<&mut Pool> {
        self.require_pools()?;
        self.pools.get_mut(handle).ok_or_else(|| state::stale(handle, "memory pool"))
    }

    /// Allocates from a pool for a stream.
    pub(super) fn allocate_from_pool(
        &mut self,
        context: u64,
        pool: u64,
        bytes: u64,
        stream: u64,
    ) -> Result<u64> {
        self.pool(pool)?;
        let stream = self.stream(context, stream)?;
        let what = "memory was allocated";
        self.refuse_in_capture(stream, Status::STREAM_CAPTURE_UNSUPPORTED, what)?;
        if bytes == 0 {
            return Ok(0);
        }
        let address = self.allocate(context, bytes, Origin::Pool(pool))?;
        self.pool(pool)?.take(bytes);
        Ok(address)
    }

    /// The default pool of the current context where that is of the device, and of the device's
    /// primary context elsewhere.
    fn device_pool(&self, device: c_int) -> Result<u64> {
        let ordinal = self.device(device)?;
        self.require_pools()?;
        let current = self.current_context().and_then(|context| self.context(context));
        if let Ok(context) = current
            && context.ordinal == ordinal
        {
            return Ok(context.default_pool);
        }
        let handle = self.primaries[ordinal].handle.ok_or_else(|| {
            Status::INVALID_CONTEXT.because(format!("device {device} has no context"))
        })?;
        Ok(self.context(handle)?.default_pool)
    }
}

/// The head of `CUmemPoolProps`; what follows differs by version and is not looked at.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PoolProperties {
    allocation_type: u32,
    handle_types: u32,
    location_type: u32,
    location: c_int,
}

/// `CU_MEM_ALLOCATION_TYPE_PINNED` and `CU_MEM_LOCATION_TYPE_DEVICE`.
const ALLOCATION_TYPE_PINNED: u32 = 1;
const LOCATION_TYPE_DEVICE: u32 = 1;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolCreate(
    pool: *mut u64,
    properties: *const PoolProperties,
) -> Status {
    in_context("cuMemPoolCreate", |driver, context| {
        // SAFETY: null or writable, and null or readable, by the convention of the driver API.
        let (pool, properties) = unsafe { (Out::new(pool)?, read(properties)?) };
        driver.require_pools()?;
        if properties.handle_types != 0 {
            return Err(Status::NOT_SUPPORTED.because("pools cannot be shared between processes"));
        }
        if properties.allocation_type != ALLOCATION_TYPE_PINNED
            || properties.location_type != LOCATION_TYPE_DEVICE
        {
            return Err(Status::INVALID_VALUE.because("a pool holds pinned memory of a device"));
        }
        if driver.device(properties.location)? != driver.context(context)?.ordinal {
            return Err(Status::NOT_SUPPORTED.because("a pool is of the current context's device"));
        }
        pool.set(driver.pools.insert(Pool::new(context)));
        Ok(())
    })
}

/// What was allocated from the pool lives on until it is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolDestroy(pool: u64) -> Status {
    in_context("cuMemPoolDestroy", |driver, _| {
        let context = driver.pool(pool)?.context;
        if driver.context(context)?.default_pool == pool {
            let reason = "the default pool of a device cannot be destroyed";
            return Err(Status::INVALID_VALUE.because(reason));
        }
        driver.pools.remove(pool);
        Ok(())
    })
}

/// Pools hold no memory back, so there is nothing to trim: the handle is checked.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolTrimTo(pool: u64, _keep: usize) -> Status {
    in_context("cuMemPoolTrimTo", |driver, _| driver.pool(pool).map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolGetAttribute(
    pool: u64,
    attribute: u32,
    value: *mut c_void,
) -> Status {
    in_context("cuMemPoolGetAttribute", |driver, _| {
        let pool = driver.pool(pool)?;
        // SAFETY: a place for the attribute's type, by the convention of the driver API.
        let wide = unsafe { Out::new(value.cast::<u64>()) };
        match attribute {
            ATTRIBUTE_REUSE_FOLLOW_EVENTS..=ATTRIBUTE_REUSE_INTERNAL => {
                // SAFETY: as above.
                let narrow = unsafe { Out::new(value.cast::<c_int>()) }?;
                let index = attribute - ATTRIBUTE_REUSE_FOLLOW_EVENTS;
                narrow.set(pool.reuse[index as usize]);
            }
            ATTRIBUTE_RELEASE_THRESHOLD => wide?.set(pool.release_threshold),
            ATTRIBUTE_RESERVED_CURRENT | ATTRIBUTE_USED_CURRENT => wide?.set(pool.used),
            ATTRIBUTE_RESERVED_HIGH | ATTRIBUTE_USED_HIGH => wide?.set(pool.used_high),
            _ => {
                let reason = format!("{attribute} is not a pool attribute");
                return Err(Status::INVALID_VALUE.because(reason));
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolSetAttribute(
    pool: u64,
    attribute: u32,
    value: *mut c_void,
) -> Status {
    in_context("cuMemPoolSetAttribute", |driver, _| {
        let pool = driver.pool(pool)?;
        match attribute {
            ATTRIBUTE_REUSE_FOLLOW_EVENTS..=ATTRIBUTE_REUSE_INTERNAL => {
                let index = attribute - ATTRIBUTE_REUSE_FOLLOW_EVENTS;
                // SAFETY: a value of the attribute's type, by the convention of the driver API.
                pool.reuse[index as usize] = unsafe { read(value.cast::<c_int>()) }?;
            }
            ATTRIBUTE_RELEASE_THRESHOLD => {
                // SAFETY: as above.
                pool.release_threshold = unsafe { read(value.cast::<u64>()) }?;
            }
            ATTRIBUTE_RESERVED_HIGH | ATTRIBUTE_USED_HIGH => {
                // SAFETY: as above.
                if unsafe { read(value.cast::<u64>()) }? != 0 {
                    let reason = "a high-water mark can only be set to 0";
                    return Err(Status::INVALID_VALUE.because(reason));
                }
                pool.used_high = pool.used;
            }
            _ => {
                let reason = format!("{attribute} is not a pool attribute that can be set");
                return Err(Status::INVALID_VALUE.because(reason));
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocFromPoolAsync(
    address: *mut u64,
    bytes: usize,
    pool: u64,
    stream: u64,
) -> Status {
    in_context("cuMemAllocFromPoolAsync", |driver, context| {
        // SAFETY: `address` is null or writable, by the convention of the driver API.
        let address = unsafe { Out::new(address) }?;
        address.set(driver.allocate_from_pool(context, pool, bytes as u64, stream)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetDefaultMemPool(pool: *mut u64, device: c_int) -> Status {
    initialised("cuDeviceGetDefaultMemPool", |driver| {
        // SAFETY: `pool` is null or writable, by the convention of the driver API.
        let pool = unsafe { Out::new(pool) }?;
        pool.set(driver.device_pool(device)?);
        Ok(())
    })
}

/// The pool that `cuMemAllocAsync` takes from: the default pool always.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetMemPool(pool: *mut u64, device: c_int) -> Status {
    initialised("cuDeviceGetMemPool", |driver| {
        // SAFETY: `pool` is null or writable, by the convention of the driver API.
        let pool = unsafe { Out::new(pool) }?;
        pool.set(driver.device_pool(device)?);
        Ok(())
    })
}
