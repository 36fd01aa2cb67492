//! Functions: what a program can ask about a kernel and set for it.

use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::Mutex;

use crate::{EntryPoint, Profile};

use super::entry::{Out, in_context};
use super::module::LoadedFunction;
use super::state::{self, Driver};
use super::status::{Result, Status};

/// `CU_FUNC_CACHE_PREFER_EQUAL`, the greatest cache preference.
pub(super) const CACHE_PREFER_EQUAL: u32 = 3;

/// `CU_FUNC_ATTRIBUTE_*`.
const MAX_THREADS_PER_BLOCK: c_int = 0;
const SHARED_SIZE: c_int = 1;
const CONST_SIZE: c_int = 2;
const LOCAL_SIZE: c_int = 3;
const NUM_REGS: c_int = 4;
const PTX_VERSION: c_int = 5;
const BINARY_VERSION: c_int = 6;
const CACHE_MODE_CA: c_int = 7;
const MAX_DYNAMIC_SHARED: c_int = 8;
const CARVEOUT: c_int = 9;
const CLUSTER_MUST_BE_SET: c_int = 10;
const CLUSTER_POLICY: c_int = 15;

/// The most registers that one thread can have.
const MAX_REGISTERS: u32 = 255;
/// Registers are given to warps in units of this.
const REGISTER_UNIT: u32 = 256;
/// A compiler rounds the registers of a thread up to a multiple of this.
const REGISTER_STEP: u32 = 8;

/// Names of functions that were handed out: a program may keep them for as long as it runs.
static NAMES: Mutex<Vec<&'static CStr>> = Mutex::new(Vec::new());

/// Registers of a thread as a compiler for the device would have to give them: no more than a
/// thread can have, nor than a block of the declared size leaves to each of its threads.
pub(super) fn registers(function: &EntryPoint, profile: &Profile) -> u32 {
    let declared = function.max_threads().min(profile.max_threads_per_block);
    let mut most = MAX_REGISTERS;
    if function.kernel.thread_limit.is_some() {
        let warps = declared.div_ceil(profile.warp_size).max(1);
        let threads = warps * profile.warp_size;
        most = most.min(profile.registers_per_block / threads / REGISTER_STEP * REGISTER_STEP);
    }
    function.register_estimate().next_multiple_of(REGISTER_STEP).clamp(REGISTER_STEP, most)
}

/// Registers that one warp takes from its multiprocessor.
pub(super) fn registers_per_warp(function: &EntryPoint, profile: &Profile) -> u32 {
    (registers(function, profile) * profile.warp_size).next_multiple_of(REGISTER_UNIT)
}

/// The most threads that a block of the function can have.
pub(super) fn thread_limit(function: &EntryPoint, profile: &Profile) -> u32 {
    let declared = function.max_threads().min(profile.max_threads_per_block);
    let warps = profile.registers_per_block / registers_per_warp(function, profile);
    declared.min(warps * profile.warp_size)
}

impl Driver {
    /// A live function.
    pub(super) fn function(&self, handle: u64) -> Result<&LoadedFunction> {
        self.functions.get(handle).ok_or_else(|| state::stale(handle, "function"))
    }

    /// The most dynamic shared memory that a function may be allowed.
    fn dynamic_shared_most(&self, function: &LoadedFunction) -> Result<u32> {
        let device = self.platform()?.profile.shared_per_block_optin;
        Ok(device.saturating_sub(function.function.static_shared()))
    }

    fn function_attribute(&self, handle: u64, attribute: c_int) -> Result<i64> {
        let entry = self.function(handle)?;
        let function = &entry.function;
        let profile = &self.platform()?.profile;
        let (major, minor) = profile.compute_capability;
        Ok(match attribute {
            MAX_THREADS_PER_BLOCK => thread_limit(function, profile).into(),
            SHARED_SIZE => function.static_shared().into(),
            CONST_SIZE => function.const_bytes().into(),
            LOCAL_SIZE => function.local_bytes().into(),
            NUM_REGS => registers(function, profile).into(),
            PTX_VERSION => function.ptx_version().into(),
            BINARY_VERSION => (major * 10 + minor).into(),
            CACHE_MODE_CA => 0,
            MAX_DYNAMIC_SHARED => entry.dynamic_shared_limit.into(),
            CARVEOUT => entry.carveout.into(),
            CLUSTER_MUST_BE_SET..=CLUSTER_POLICY => 0,
            _ => {
                let reason = format!("{attribute} is not a function attribute");
                return Err(Status::INVALID_VALUE.because(reason));
            }
        })
    }

    fn set_function_attribute(&mut self, handle: u64, attribute: c_int, value: c_int) -> Result {
        let most = self.dynamic_shared_most(self.function(handle)?)?;
        let Some(entry) = self.functions.get_mut(handle) else {
            return Err(state::stale(handle, "function"));
        };
        match attribute {
            MAX_DYNAMIC_SHARED => {
                let bytes = u32::try_from(value).ok().filter(|&bytes| bytes <= most);
                entry.dynamic_shared_limit = bytes.ok_or_else(|| {
                    let name = entry.function.name();
                    let reason = format!(
                        "{value} bytes of dynamic shared memory; `{name}` can have 0 to {most}"
                    );
                    Status::INVALID_VALUE.because(reason)
                })?;
                Ok(())
            }
            CARVEOUT if (-1..=100).contains(&value) => {
                entry.carveout = value;
                Ok(())
            }
            CLUSTER_MUST_BE_SET..=CLUSTER_POLICY => {
                Err(Status::NOT_SUPPORTED.because("clusters of blocks are not supported"))
            }
            _ => {
                let reason = format!("attribute {attribute} cannot be set to {value}");
                Err(Status::INVALID_VALUE.because(reason))
            }
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(
    value: *mut c_int,
    attribute: c_int,
    function: u64,
) -> Status {
    in_context("cuFuncGetAttribute", |driver, _| {
        // SAFETY: `value` is null or writable, by the convention of the driver API.
        let value = unsafe { Out::new(value) }?;
        let known = driver.function_attribute(function, attribute)?;
        value.set(c_int::try_from(known).unwrap_or(c_int::MAX));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(
    function: u64,
    attribute: c_int,
    value: c_int,
) -> Status {
    in_context("cuFuncSetAttribute", |driver, _| {
        driver.set_function_attribute(function, attribute, value)
    })
}

/// A preference, which has no effect on what a kernel computes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetCacheConfig(function: u64, config: u32) -> Status {
    in_context("cuFuncSetCacheConfig", |driver, _| {
        if config > CACHE_PREFER_EQUAL {
            let reason = format!("{config} is not a cache preference");
            return Err(Status::INVALID_VALUE.because(reason));
        }
        match driver.functions.get_mut(function) {
            Some(entry) => {
                entry.cache_config = config;
                Ok(())
            }
            None => Err(state::stale(function, "function")),
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetModule(module: *mut u64, function: u64) -> Status {
    in_context("cuFuncGetModule", |driver, _| {
        // SAFETY: `module` is null or writable, by the convention of the driver API.
        let module = unsafe { Out::new(module) }?;
        module.set(driver.function(function)?.module);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetName(name: *mut *const c_char, function: u64) -> Status {
    in_context("cuFuncGetName", |driver, _| {
        // SAFETY: `name` is null or writable, by the convention of the driver API.
        let name = unsafe { Out::new(name) }?;
        let text = driver.function(function)?.function.name();
        let mut names = NAMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = names.iter().copied().find(|known| known.to_bytes() == text.as_bytes());
        let known = match known {
            Some(known) => known,
            None => {
                let owned = CString::new(text).map_err(|_| Status::UNKNOWN)?;
                let leaked: &'static CStr = Box::leak(owned.into_boxed_c_str());
                names.push(leaked);
                leaked
            }
        };
        name.set(known.as_ptr());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetParamInfo(
    function: u64,
    index: usize,
    offset: *mut usize,
    size: *mut usize,
) -> Status {
    in_context("cuFuncGetParamInfo", |driver, _| {
        // SAFETY: both are null or writable, by the convention of the driver API.
        let (offset, size) = unsafe { (Out::new(offset)?, Out::optional(size)?) };
        let parameters = driver.function(function)?.function.params();
        let Some(parameter) = parameters.get(index) else {
            let reason = format!("parameter {index} of {}", parameters.len());
            return Err(Status::INVALID_VALUE.because(reason));
        };
        offset.set(parameter.offset);
        super::entry::set_optional(size, parameter.size);
        Ok(())
    })
}
