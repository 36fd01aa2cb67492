//! Contexts: the primary ones and those that programs create, and which one is current.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_int;
use std::sync::Arc;

use crate::Device;

use super::entry::{Out, in_context, initialised, read};
use super::pool::Pool;
use super::queue::{Ordering, Stream};
use super::state::{self, Context, Driver};
use super::status::{Result, Status};

/// All context flags that exist.
const FLAGS: u32 = 0xff;
/// The scheduling flags. At most one may be set.
const FLAGS_SCHEDULE: u32 = 7;

/// The context version that `cuCtxGetApiVersion` reports.
const API_VERSION: u32 = 3020;

/// What the local memory of a thread can hold besides a kernel's own variables.
const MOST_STACK: u32 = 512 << 10;

const LIMIT_STACK: u32 = 0;
const LIMIT_HEAP: u32 = 2;

/// Limits of a fresh context: `CU_LIMIT_*` and its value in bytes or counts.
const LIMITS: &[(u32, usize)] = &[
    (LIMIT_STACK, 1024),
    (1, 1 << 20), // printf buffer
    (LIMIT_HEAP, 8 << 20),
    (4, 2048), // pending launches from the device
    (5, 64),   // L2 fetch granularity
    (6, 0),    // persisting L2 cache
];

impl Driver {
    fn new_context(&mut self, flags: u32, ordinal: usize) -> Result<Context> {
        let profile = self.platform()?.profile;
        let config = self.config.unwrap_or_default();
        Ok(Context {
            device: Arc::new(Device::numbered(profile, config, ordinal as u32)),
            ordinal,
            flags,
            cache_config: 0,
            limits: LIMITS.iter().copied().collect(),
            sticky: None,
            allocations: BTreeMap::new(),
            legacy: 0,
            per_thread: HashMap::new(),
            default_pool: 0,
            gather: None,
        })
    }

    /// Gives a fresh context its default stream and its default memory pool.
    fn furnish(&mut self, context: u64) -> Result {
        let legacy = self.streams.insert(Stream::new(context, Ordering::Legacy, 0, 0));
        let default_pool = self.pools.insert(Pool::new(context));
        let entry = self.context_mut(context)?;
        entry.legacy = legacy;
        entry.default_pool = default_pool;
        Ok(())
    }

    fn create_context(&mut self, flags: u32, device: c_int) -> Result<u64> {
        let ordinal = self.device(device)?;
        check_flags(flags)?;
        let context = self.new_context(flags, ordinal)?;
        let handle = self.contexts.insert(context);
        self.furnish(handle)?;
        state::push_current(handle);
        Ok(handle)
    }

    fn retain_primary(&mut self, ordinal: usize) -> Result<u64> {
        let handle = match self.primaries[ordinal].handle {
            Some(handle) => handle,
            None => self.contexts.reserve(),
        };
        self.primaries[ordinal].handle = Some(handle);
        if self.contexts.get(handle).is_none() {
            let context = self.new_context(self.primaries[ordinal].flags, ordinal)?;
            self.contexts.revive(handle, context);
            self.furnish(handle)?;
        }
        self.primaries[ordinal].users += 1;
        Ok(handle)
    }

    fn release_primary(&mut self, ordinal: usize) -> Result {
        let primary = &mut self.primaries[ordinal];
        if primary.users == 0 {
            let reason = "the primary context was not retained";
            return Err(Status::INVALID_CONTEXT.because(reason));
        }
        primary.users -= 1;
        if primary.users == 0
            && let Some(handle) = primary.handle
        {
            self.destroy_context(handle);
        }
        Ok(())
    }

    /// Runs what waits in a context, reports what it leaves behind and removes all that is its own.
    pub(super) fn destroy_context(&mut self, handle: u64) {
        self.drain_context(handle);
        let Some(context) = self.contexts.remove(handle) else {
            return;
        };
        self.retire(&context);
        self.report_leaks(&context);
        let captures: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.context == handle)
            .filter_map(|(_, stream)| stream.capture)
            .collect();
        for capture in captures {
            self.abandon_capture(capture);
        }
        self.streams.retain(|stream| stream.context != handle);
        self.events.retain(|event| event.context != handle);
        self.functions.retain(|function| function.context != handle);
        self.modules.retain(|module| module.context != handle);
        self.graphs.retain(|graph| graph.context != handle);
        let graphs = &self.graphs;
        self.nodes.retain(|name| graphs.get(name.graph).is_some());
        self.execs.retain(|exec| exec.context != handle);
        self.pools.retain(|pool| pool.context != handle);
    }

    /// Says what memory a context still held; a context with a failed kernel is excused.
    fn report_leaks(&self, context: &Context) {
        let leaked: Vec<u64> = context
            .allocations
            .values()
            .filter(|allocation| allocation.is_leak_at_end())
            .map(|allocation| allocation.bytes)
            .collect();
        if leaked.is_empty() || context.sticky.is_some() {
            return;
        }
        eprintln!(
            "cuda-emulator: a context ended with {} allocations that were not freed ({} bytes)",
            leaked.len(),
            leaked.iter().sum::<u64>()
        );
    }
}

fn check_flags(flags: u32) -> Result {
    if flags & !FLAGS != 0 || (flags & FLAGS_SCHEDULE).count_ones() > 1 {
        let reason = format!("{flags:#x} is not a set of context flags");
        return Err(Status::INVALID_VALUE.because(reason));
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut u64, device: c_int) -> Status {
    initialised("cuDevicePrimaryCtxRetain", |driver| {
        // SAFETY: `context` is null or writable, by the convention of the driver API.
        let context = unsafe { Out::new(context) }?;
        let ordinal = driver.device(device)?;
        context.set(driver.retain_primary(ordinal)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Status {
    initialised("cuDevicePrimaryCtxRelease_v2", |driver| {
        let ordinal = driver.device(device)?;
        driver.release_primary(ordinal)
    })
}

/// Ends the primary context whoever holds it; those who do must release it all the same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxReset_v2(device: c_int) -> Status {
    initialised("cuDevicePrimaryCtxReset_v2", |driver| {
        let ordinal = driver.device(device)?;
        if let Some(handle) = driver.primaries[ordinal].handle {
            driver.destroy_context(handle);
        }
        if driver.primaries[ordinal].users > 0 {
            driver.primaries[ordinal].users -= 1;
            driver.retain_primary(ordinal)?;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, flags: u32) -> Status {
    initialised("cuDevicePrimaryCtxSetFlags_v2", |driver| {
        let ordinal = driver.device(device)?;
        check_flags(flags)?;
        let primary = &mut driver.primaries[ordinal];
        primary.flags = flags;
        if let Some(context) = primary.handle.and_then(|it| driver.contexts.get_mut(it)) {
            context.flags = flags;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxGetState(
    device: c_int,
    flags: *mut u32,
    active: *mut c_int,
) -> Status {
    initialised("cuDevicePrimaryCtxGetState", |driver| {
        // SAFETY: both are null or writable, by the convention of the driver API.
        let (flags, active) = unsafe { (Out::new(flags)?, Out::new(active)?) };
        let primary = &driver.primaries[driver.device(device)?];
        flags.set(primary.flags);
        active.set(c_int::from(primary.users > 0));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxCreate_v2(context: *mut u64, flags: u32, device: c_int) -> Status {
    initialised("cuCtxCreate_v2", |driver| {
        // SAFETY: `context` is null or writable, by the convention of the driver API.
        let context = unsafe { Out::new(context) }?;
        context.set(driver.create_context(flags, device)?);
        Ok(())
    })
}

/// As `cuCtxCreate_v2`; an execution affinity is not supported.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxCreate_v3(
    context: *mut u64,
    affinities: *const u8,
    affinity_count: c_int,
    flags: u32,
    device: c_int,
) -> Status {
    initialised("cuCtxCreate_v3", |driver| {
        // SAFETY: `context` is null or writable, by the convention of the driver API.
        let context = unsafe { Out::new(context) }?;
        driver.device(device)?;
        if affinity_count != 0 || !affinities.is_null() {
            return Err(Status::UNSUPPORTED_EXEC_AFFINITY.into());
        }
        context.set(driver.create_context(flags, device)?);
        Ok(())
    })
}

/// The parameters of `cuCtxCreate_v4`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ContextParameters {
    affinities: *const u8,
    affinity_count: c_int,
    graphics: *const u8,
}

/// As `cuCtxCreate_v2`; neither an execution affinity nor a graphics queue is supported.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxCreate_v4(
    context: *mut u64,
    parameters: *const ContextParameters,
    flags: u32,
    device: c_int,
) -> Status {
    initialised("cuCtxCreate_v4", |driver| {
        // SAFETY: `context` is null or writable, by the convention of the driver API.
        let context = unsafe { Out::new(context) }?;
        driver.device(device)?;
        if !parameters.is_null() {
            // SAFETY: a readable structure, by the convention of the driver API.
            let parameters = unsafe { read(parameters) }?;
            if parameters.affinity_count != 0 || !parameters.affinities.is_null() {
                return Err(Status::UNSUPPORTED_EXEC_AFFINITY.into());
            }
            if !parameters.graphics.is_null() {
                let reason = "contexts cannot share a graphics queue";
                return Err(Status::NOT_SUPPORTED.because(reason));
            }
        }
        context.set(driver.create_context(flags, device)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxDestroy_v2(context: u64) -> Status {
    initialised("cuCtxDestroy_v2", |driver| {
        driver.context(context)?;
        if driver.primaries.iter().any(|primary| primary.handle == Some(context)) {
            let reason = "the primary context is released, not destroyed";
            return Err(Status::INVALID_CONTEXT.because(reason));
        }
        driver.destroy_context(context);
        if state::current_handle() == Some(context) {
            state::pop_current();
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut u64) -> Status {
    initialised("cuCtxGetCurrent", |_| {
        // SAFETY: `context` is null or writable, by the convention of the driver API.
        let context = unsafe { Out::new(context) }?;
        context.set(state::current_handle().unwrap_or(0));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(context: u64) -> Status {
    initialised("cuCtxSetCurrent", |driver| {
        if context != 0 {
            driver.context(context)?;
        }
        state::pop_current();
        if context != 0 {
            state::push_current(context);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxPushCurrent_v2(context: u64) -> Status {
    initialised("cuCtxPushCurrent_v2", |driver| {
        driver.context(context)?;
        state::push_current(context);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxPopCurrent_v2(context: *mut u64) -> Status {
    initialised("cuCtxPopCurrent_v2", |_| {
        // SAFETY: `context` is null or writable, by the convention of the driver API.
        let out = unsafe { Out::optional(context) }?;
        match state::pop_current() {
            Some(handle) => {
                super::entry::set_optional(out, handle);
                Ok(())
            }
            None => Err(Status::INVALID_CONTEXT.because("no context is current to this thread")),
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSynchronize() -> Status {
    in_context("cuCtxSynchronize", |driver, context| {
        driver.refuse_unsafe_call()?;
        driver.drain_context(context);
        driver.count_synchronisation();
        driver.check_sticky(context)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(device: *mut c_int) -> Status {
    in_context("cuCtxGetDevice", |driver, context| {
        // SAFETY: `device` is null or writable, by the convention of the driver API.
        let device = unsafe { Out::new(device) }?;
        device.set(driver.context(context)?.ordinal as c_int);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetFlags(flags: *mut u32) -> Status {
    in_context("cuCtxGetFlags", |driver, context| {
        // SAFETY: `flags` is null or writable, by the convention of the driver API.
        let flags = unsafe { Out::new(flags) }?;
        flags.set(driver.context(context)?.flags);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetFlags(flags: u32) -> Status {
    in_context("cuCtxSetFlags", |driver, context| {
        check_flags(flags)?;
        driver.context_mut(context)?.flags = flags;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetApiVersion(context: u64, version: *mut u32) -> Status {
    initialised("cuCtxGetApiVersion", |driver| {
        // SAFETY: `version` is null or writable, by the convention of the driver API.
        let version = unsafe { Out::new(version) }?;
        match context {
            0 => driver.current_context()?,
            handle => driver.context(handle).map(|_| handle)?,
        };
        version.set(API_VERSION);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetId(context: u64, id: *mut u64) -> Status {
    initialised("cuCtxGetId", |driver| {
        // SAFETY: `id` is null or writable, by the convention of the driver API.
        let id = unsafe { Out::new(id) }?;
        id.set(match context {
            0 => driver.current_context()?,
            handle => driver.context(handle).map(|_| handle)?,
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetLimit(value: *mut usize, limit: u32) -> Status {
    in_context("cuCtxGetLimit", |driver, context| {
        // SAFETY: `value` is null or writable, by the convention of the driver API.
        let value = unsafe { Out::new(value) }?;
        let limits = &driver.context(context)?.limits;
        value.set(*limits.get(&limit).ok_or(Status::UNSUPPORTED_LIMIT)?);
        Ok(())
    })
}

/// The stack and the heap of kernels get the size; the emulated device has no printf buffer and no
/// cache that it could bound, and keeps the value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetLimit(limit: u32, value: usize) -> Status {
    in_context("cuCtxSetLimit", |driver, context| {
        let context = driver.context_mut(context)?;
        let kept = context.limits.get_mut(&limit).ok_or(Status::UNSUPPORTED_LIMIT)?;
        match limit {
            LIMIT_STACK => match u32::try_from(value) {
                Ok(bytes @ 0..=MOST_STACK) => context.device.set_stack_limit(bytes),
                _ => {
                    let reason = format!("a thread's stack has at most {MOST_STACK} bytes");
                    return Err(Status::INVALID_VALUE.because(reason));
                }
            },
            LIMIT_HEAP if !context.device.set_heap_bytes(value as u64) => {
                let reason = "a module whose kernels allocate memory was loaded before";
                return Err(Status::INVALID_VALUE.because(reason));
            }
            _ => {}
        }
        *kept = value;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCacheConfig(config: *mut u32) -> Status {
    in_context("cuCtxGetCacheConfig", |driver, context| {
        // SAFETY: `config` is null or writable, by the convention of the driver API.
        let config = unsafe { Out::new(config) }?;
        config.set(driver.context(context)?.cache_config);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCacheConfig(config: u32) -> Status {
    in_context("cuCtxSetCacheConfig", |driver, context| {
        if config > super::function::CACHE_PREFER_EQUAL {
            let reason = format!("{config} is not a cache preference");
            return Err(Status::INVALID_VALUE.because(reason));
        }
        driver.context_mut(context)?.cache_config = config;
        Ok(())
    })
}
