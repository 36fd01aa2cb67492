//! Modules: PTX text that is loaded, and the functions and variables in it.
//!
//! Only PTX text is taken. Machine code (a cubin, or a fatbin that holds some) is refused as code
//! for another device. What is wrong with a text goes into the caller's error log.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;

use crate::{EntryPoint, Module, ModuleError};

use super::entry::{Out, in_context, read_name, set_optional, write_text};
use super::state::{self, Allocation, Driver, Origin};
use super::status::{Failure, Result, Status};

/// A module of a context.
pub(super) struct LoadedModule {
    pub(super) context: u64,
    module: Arc<Module>,
    /// The handles of the functions that were asked for.
    functions: BTreeMap<String, u64>,
}

/// A function of a loaded module.
pub(super) struct LoadedFunction {
    pub(super) context: u64,
    pub(super) module: u64,
    pub(super) function: Arc<EntryPoint>,
    /// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
    pub(super) dynamic_shared_limit: u32,
    /// The preferred share of shared memory in percent, or -1.
    pub(super) carveout: i32,
    pub(super) cache_config: u32,
}

/// The first bytes of an ELF file, and of NVIDIA's fat binaries and their wrapper.
const ELF: [u8; 4] = *b"\x7fELF";
const FATBIN: [u8; 4] = [0x50, 0xed, 0x55, 0xba];
const FATBIN_WRAPPER: [u8; 4] = [0xb1, 0x43, 0x62, 0x46];

/// `CU_JIT_*` options that say something about the log buffers.
const JIT_WALL_TIME: u32 = 2;
const JIT_INFO_LOG: u32 = 3;
const JIT_INFO_LOG_SIZE: u32 = 4;
const JIT_ERROR_LOG: u32 = 5;
const JIT_ERROR_LOG_SIZE: u32 = 6;

impl Driver {
    fn module(&mut self, handle: u64) -> Result<&mut LoadedModule> {
        self.modules.get_mut(handle).ok_or_else(|| state::stale(handle, "module"))
    }

    fn load_module(&mut self, context: u64, image: &[u8]) -> Result<u64> {
        self.refuse_unsafe_call()?;
        let text = std::str::from_utf8(image)
            .map_err(|_| Status::INVALID_IMAGE.because("the image is neither PTX nor code"))?;
        let device = Arc::clone(&self.context(context)?.device);
        let module = device.load_module(text).map_err(|error| refused(&error))?;
        Ok(self.modules.insert(LoadedModule { context, module, functions: BTreeMap::new() }))
    }

    fn unload_module(&mut self, context: u64, handle: u64) -> Result {
        let owner = self.module(handle)?.context;
        if owner != context {
            let reason = "the module belongs to a context that is not current";
            return Err(Status::INVALID_CONTEXT.because(reason));
        }
        self.refuse_unsafe_call()?;
        self.drain_context(context);
        self.functions.retain(|function| function.module != handle);
        if let Some(entry) = self.modules.remove(handle) {
            let context = self.context_mut(context)?;
            context.device.unload_module(&entry.module);
            let own = Origin::Variable(handle);
            context.allocations.retain(|_, allocation| allocation.origin != own);
        }
        Ok(())
    }

    fn module_function(&mut self, handle: u64, name: &str) -> Result<u64> {
        let entry = self.module(handle)?;
        if let Some(&known) = entry.functions.get(name) {
            return Ok(known);
        }
        let Some(function) = entry.module.function(name) else {
            let names = entry.module.function_names().join(", ");
            let reason = format!("the module has no kernel `{name}`; it has: {names}");
            return Err(Status::NOT_FOUND.because(reason));
        };
        let context = entry.context;
        let default_limit = self.platform()?.profile.shared_per_block;
        let handle_of_function = self.functions.insert(LoadedFunction {
            context,
            module: handle,
            dynamic_shared_limit: default_limit.saturating_sub(function.static_shared()),
            function,
            carveout: -1,
            cache_config: 0,
        });
        self.module(handle)?.functions.insert(name.to_owned(), handle_of_function);
        Ok(handle_of_function)
    }

    fn module_variable(&mut self, handle: u64, name: &str) -> Result<(u64, u64)> {
        let entry = self.module(handle)?;
        let Some((address, bytes)) = entry.module.global(name) else {
            let reason = format!("the module has no variable `{name}`");
            return Err(Status::NOT_FOUND.because(reason));
        };
        let context = entry.context;
        let origin = Origin::Variable(handle);
        let allocation = Allocation { bytes, origin, doomed: false };
        self.context_mut(context)?.allocations.insert(address, allocation);
        Ok((address, bytes))
    }
}

/// The status for a module that the device refuses.
fn refused(error: &ModuleError) -> Failure {
    let status = match error {
        ModuleError::UnsupportedVersion { .. } => Status::UNSUPPORTED_PTX_VERSION,
        ModuleError::TargetTooNew { .. } => Status::NO_BINARY_FOR_GPU,
        ModuleError::OutOfMemory { .. } => Status::OUT_OF_MEMORY,
        ModuleError::NotPtx(_) => Status::INVALID_IMAGE,
        _ => Status::INVALID_PTX,
    };
    status.because(error.to_string())
}

/// The text of an image in memory. Its length is not given: a text ends with a NUL, and machine
/// code is recognised by its first bytes.
///
/// # Safety
/// The image is null, a NUL-terminated text, or machine code that starts with a known mark.
unsafe fn image_text<'a>(image: *const c_void) -> Result<&'a [u8]> {
    if image.is_null() {
        return Err(Status::INVALID_VALUE.because("the image is null"));
    }
    let bytes = image.cast::<u8>();
    for mark in [ELF, FATBIN, FATBIN_WRAPPER] {
        // SAFETY: the comparison stops at the first byte that differs, so that no byte behind the
        // NUL of a short text is read; no mark holds a NUL.
        let matches = (0..mark.len()).all(|index| unsafe { *bytes.add(index) } == mark[index]);
        if matches {
            let reason = "the image holds machine code; the emulated device takes PTX text only";
            return Err(Status::NO_BINARY_FOR_GPU.because(reason));
        }
    }
    // SAFETY: the image is a NUL-terminated text, as the caller promises.
    Ok(unsafe { CStr::from_ptr(image.cast()) }.to_bytes())
}

/// The log buffers among the options of `cuModuleLoadDataEx`.
#[derive(Default)]
struct Logs {
    info: Log,
    error: Log,
}

/// One log buffer, and the place of its size among the values.
#[derive(Default)]
struct Log {
    buffer: usize,
    size: usize,
    size_at: Option<usize>,
}

impl Logs {
    /// # Safety
    /// Both lists have `count` entries, or `count` is 0.
    unsafe fn read(count: u32, options: *const u32, values: *const usize) -> Result<Self> {
        let mut logs = Self::default();
        if count > 0 && (options.is_null() || values.is_null()) {
            return Err(Status::INVALID_VALUE.because("options without a list"));
        }
        for index in 0..count as usize {
            // SAFETY: within the lists, as the caller promises.
            let (option, value) = unsafe { (*options.add(index), *values.add(index)) };
            match option {
                JIT_INFO_LOG => logs.info.buffer = value,
                JIT_ERROR_LOG => logs.error.buffer = value,
                JIT_INFO_LOG_SIZE => (logs.info.size, logs.info.size_at) = (value, Some(index)),
                JIT_ERROR_LOG_SIZE => (logs.error.size, logs.error.size_at) = (value, Some(index)),
                _ => {}
            }
        }
        Ok(logs)
    }
}

impl Log {
    /// Writes the message, and how many bytes it takes in the place of the size.
    ///
    /// # Safety
    /// As for [`Logs::read`], and the buffer has as many bytes as its size says.
    unsafe fn write(&self, message: &str, values: *mut usize) {
        // The size is an unsigned int in the low half of the value.
        let size = self.size & u32::MAX as usize;
        // SAFETY: the caller's promise.
        let length = unsafe { write_text(message, self.buffer as *mut c_char, size) };
        if let Some(index) = self.size_at {
            let written = if message.is_empty() { 0 } else { (length + 1).min(size) };
            // SAFETY: the caller's promise.
            unsafe { *values.add(index) = written };
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut u64, image: *const c_void) -> Status {
    in_context("cuModuleLoadData", |driver, context| {
        // SAFETY: null or writable, and an image, by the convention of the driver API.
        let (module, text) = unsafe { (Out::new(module)?, image_text(image)?) };
        module.set(driver.load_module(context, text)?);
        Ok(())
    })
}

/// Options about code generation say nothing to an interpreter and are passed over; those about
/// logs are heeded.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut u64,
    image: *const c_void,
    option_count: u32,
    options: *const u32,
    values: *mut usize,
) -> Status {
    in_context("cuModuleLoadDataEx", |driver, context| {
        // SAFETY: `module` is null or writable, by the convention of the driver API.
        let module = unsafe { Out::new(module) }?;
        // SAFETY: the lists have `option_count` entries, by the convention of the driver API.
        let logs = unsafe { Logs::read(option_count, options, values) }?;
        // SAFETY: the image is one, by the convention of the driver API.
        let loaded =
            unsafe { image_text(image) }.and_then(|text| driver.load_module(context, text));
        let message = match &loaded {
            Ok(_) => String::new(),
            Err(failure) => failure.to_string(),
        };
        // SAFETY: the buffers have the sizes that the options say, by the same convention.
        unsafe {
            logs.info.write("", values);
            logs.error.write(&message, values);
        }
        zero_wall_time(option_count, options, values);
        module.set(loaded?);
        Ok(())
    })
}

/// The time that compilation took is an answer of the option itself: nothing is compiled.
fn zero_wall_time(count: u32, options: *const u32, values: *mut usize) {
    for index in 0..count as usize {
        // SAFETY: `Logs::read` has walked the same lists before.
        unsafe {
            if *options.add(index) == JIT_WALL_TIME {
                values.add(index).cast::<f32>().write(0.0);
            }
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadFatBinary(_module: *mut u64, _image: *const c_void) -> Status {
    in_context("cuModuleLoadFatBinary", |_, _| {
        let reason = "the emulated device takes PTX text only";
        Err(Status::NO_BINARY_FOR_GPU.because(reason))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoad(module: *mut u64, path: *const c_char) -> Status {
    in_context("cuModuleLoad", |driver, context| {
        // SAFETY: null or writable, and null or a text, by the convention of the driver API.
        let (module, path) = unsafe { (Out::new(module)?, read_name(path)?) };
        let mut image = std::fs::read(path)
            .map_err(|error| Status::FILE_NOT_FOUND.because(format!("{path}: {error}")))?;
        image.push(0);
        // SAFETY: the file's bytes with a NUL behind them.
        let text = unsafe { image_text(image.as_ptr().cast()) }?;
        module.set(driver.load_module(context, text)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: u64) -> Status {
    in_context("cuModuleUnload", |driver, context| driver.unload_module(context, module))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut u64,
    module: u64,
    name: *const c_char,
) -> Status {
    in_context("cuModuleGetFunction", |driver, _| {
        // SAFETY: null or writable, and null or a text, by the convention of the driver API.
        let (function, name) = unsafe { (Out::new(function)?, read_name(name)?) };
        function.set(driver.module_function(module, name)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetGlobal_v2(
    address: *mut u64,
    bytes: *mut usize,
    module: u64,
    name: *const c_char,
) -> Status {
    in_context("cuModuleGetGlobal_v2", |driver, _| {
        // SAFETY: null or writable, and null or a text, by the convention of the driver API.
        let (address, bytes, name) =
            unsafe { (Out::optional(address)?, Out::optional(bytes)?, read_name(name)?) };
        let (start, size) = driver.module_variable(module, name)?;
        set_optional(address, start);
        set_optional(bytes, size as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunctionCount(count: *mut u32, module: u64) -> Status {
    in_context("cuModuleGetFunctionCount", |driver, _| {
        // SAFETY: `count` is null or writable, by the convention of the driver API.
        let count = unsafe { Out::new(count) }?;
        count.set(driver.module(module)?.module.function_names().len() as u32);
        Ok(())
    })
}

/// Everything is loaded at once: `CU_MODULE_EAGER_LOADING`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetLoadingMode(mode: *mut u32) -> Status {
    in_context("cuModuleGetLoadingMode", |_, _| {
        // SAFETY: `mode` is null or writable, by the convention of the driver API.
        unsafe { Out::new(mode) }?.set(1);
        Ok(())
    })
}
