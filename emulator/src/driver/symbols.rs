//! The driver functions by name: what `cuGetProcAddress` finds.

use std::ffi::{c_char, c_int, c_void};

use super::entry::{Out, bare, read_name, set_optional};
use super::status::{Result, Status};
use super::{
    capture, context, copy, copy_2d, device, event, extension, fill, function, graph, host, init,
    launch, memory, module, occupancy, pointer, pool, refused, status, stream, tensor_map,
};

/// `CU_GET_PROC_ADDRESS_*`: how a symbol was found.
const FOUND: u32 = 0;
const SYMBOL_NOT_FOUND: u32 = 1;
/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`.
const FLAG_PER_THREAD_STREAM: u64 = 2;
const FLAGS: u64 = 3;

macro_rules! symbols {
    ($($module:ident: $($name:ident)*;)*) => {
        /// Every driver function, by its name in the library, with the modules that have them.
        #[cfg(test)]
        const MODULES: &[(&str, &[&str])] =
            &[$((stringify!($module), &[$(stringify!($name)),*]),)*];

        fn address(name: &str) -> Option<*mut c_void> {
            match name {
                $($(stringify!($name) => Some($module::$name as *const () as *mut c_void),)*)*
                "cuGetProcAddress" => Some(cuGetProcAddress as *const () as *mut c_void),
                "cuGetProcAddress_v2" => Some(cuGetProcAddress_v2 as *const () as *mut c_void),
                _ => None,
            }
        }
    };
}

symbols! {
    capture:
        cuStreamBeginCapture_v2 cuStreamEndCapture cuStreamIsCapturing
        cuStreamGetCaptureInfo cuStreamGetCaptureInfo_v2 cuStreamGetCaptureInfo_v3
        cuThreadExchangeStreamCaptureMode;
    context:
        cuDevicePrimaryCtxRetain cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxReset_v2
        cuDevicePrimaryCtxSetFlags_v2 cuDevicePrimaryCtxGetState cuCtxCreate_v2
        cuCtxCreate_v3 cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxGetCurrent cuCtxSetCurrent
        cuCtxPushCurrent_v2 cuCtxPopCurrent_v2 cuCtxSynchronize cuCtxGetDevice
        cuCtxGetFlags cuCtxSetFlags cuCtxGetApiVersion cuCtxGetId cuCtxGetLimit
        cuCtxSetLimit cuCtxGetCacheConfig cuCtxSetCacheConfig;
    copy:
        cuMemcpyHtoD_v2 cuMemcpyDtoH_v2 cuMemcpyDtoD_v2 cuMemcpy cuMemcpyHtoDAsync_v2
        cuMemcpyDtoHAsync_v2 cuMemcpyDtoDAsync_v2 cuMemcpyAsync cuMemcpyPeerAsync
        cuMemcpyPeer;
    copy_2d:
        cuMemcpy2DAsync_v2 cuMemcpy2DUnaligned_v2 cuMemcpy2D_v2;
    device:
        cuDeviceGet cuDeviceGetCount cuDeviceGetName cuDeviceTotalMem_v2
        cuDeviceGetAttribute cuDeviceGetUuid cuDeviceGetUuid_v2 cuDeviceGetPCIBusId
        cuDeviceComputeCapability cuDeviceCanAccessPeer;
    event:
        cuEventCreate cuEventDestroy_v2 cuEventRecord cuEventRecordWithFlags cuEventQuery
        cuEventSynchronize cuEventElapsedTime cuEventElapsedTime_v2 cuStreamWaitEvent
        cuCtxRecordEvent cuCtxWaitEvent;
    extension:
        cudaEmulatorInterface cudaEmulatorGetCounters cudaEmulatorResetCounters
        cudaEmulatorLastFault cudaEmulatorLastError cudaEmulatorDeviceName
        cudaEmulatorReset cudaEmulatorSetConfig;
    fill:
        cuMemsetD8_v2 cuMemsetD16_v2 cuMemsetD32_v2 cuMemsetD8Async cuMemsetD16Async
        cuMemsetD32Async cuMemsetD2D8_v2 cuMemsetD2D8Async cuMemsetD2D16_v2
        cuMemsetD2D16Async cuMemsetD2D32_v2 cuMemsetD2D32Async;
    function:
        cuFuncGetAttribute cuFuncSetAttribute cuFuncSetCacheConfig cuFuncGetModule
        cuFuncGetName cuFuncGetParamInfo;
    graph:
        cuGraphInstantiateWithFlags cuGraphInstantiate_v2 cuGraphLaunch cuGraphUpload
        cuGraphExecDestroy cuGraphDestroy cuGraphGetNodes cuGraphNodeGetDependencies
        cuGraphNodeGetType;
    host:
        cuMemHostAlloc cuMemAllocHost_v2 cuMemFreeHost cuMemHostRegister_v2
        cuMemHostUnregister cuMemHostGetFlags cuMemHostGetDevicePointer_v2;
    init:
        cuInit cuDriverGetVersion cuGetExportTable cuProfilerStart cuProfilerStop;
    launch:
        cuLaunchKernel cuLaunchCooperativeKernel cuLaunchKernelEx;
    memory:
        cuMemAlloc_v2 cuMemAllocPitch_v2 cuMemFree_v2 cuMemAllocAsync cuMemFreeAsync
        cuMemGetInfo_v2 cuMemGetAddressRange_v2;
    module:
        cuModuleLoadData cuModuleLoadDataEx cuModuleLoadFatBinary cuModuleLoad
        cuModuleUnload cuModuleGetFunction cuModuleGetGlobal_v2 cuModuleGetFunctionCount
        cuModuleGetLoadingMode;
    occupancy:
        cuOccupancyMaxActiveBlocksPerMultiprocessor
        cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags
        cuOccupancyMaxPotentialBlockSize cuOccupancyMaxPotentialBlockSizeWithFlags
        cuOccupancyAvailableDynamicSMemPerBlock cuOccupancyMaxActiveClusters
        cuOccupancyMaxPotentialClusterSize;
    pointer:
        cuPointerGetAttribute cuPointerGetAttributes;
    pool:
        cuMemPoolCreate cuMemPoolDestroy cuMemPoolTrimTo cuMemPoolGetAttribute
        cuMemPoolSetAttribute cuMemAllocFromPoolAsync cuDeviceGetDefaultMemPool
        cuDeviceGetMemPool;
    refused:
        cuDestroyExternalMemory cuExternalMemoryGetMappedBuffer cuImportExternalMemory cuMemAdvise
        cuMemAdvise_v2 cuMemAllocManaged cuMemPrefetchAsync cuMemPrefetchAsync_v2
        cuStreamAttachMemAsync;
    status:
        cuGetErrorName cuGetErrorString;
    stream:
        cuStreamCreate cuStreamCreateWithPriority cuStreamDestroy_v2 cuStreamSynchronize
        cuStreamQuery cuStreamGetPriority cuStreamGetFlags cuStreamGetId cuStreamGetCtx
        cuCtxGetStreamPriorityRange cuLaunchHostFunc;
    tensor_map:
        cuTensorMapEncodeTiled;
}

/// The name in the library of a function that has kept its name and changed its form.
fn form_of(name: &str, version: c_int) -> Option<&'static str> {
    Some(match (name, version) {
        ("cuCtxCreate", 13000..) => "cuCtxCreate_v4",
        ("cuCtxCreate", _) => "cuCtxCreate_v2",
        ("cuStreamGetCaptureInfo", 13000..) => "cuStreamGetCaptureInfo_v3",
        ("cuStreamGetCaptureInfo", 11030..) => "cuStreamGetCaptureInfo_v2",
        ("cuStreamGetCaptureInfo", _) => "cuStreamGetCaptureInfo",
        ("cuGraphInstantiate", 12000..) => "cuGraphInstantiateWithFlags",
        ("cuGraphInstantiate", _) => "cuGraphInstantiate_v2",
        ("cuGetProcAddress", 12000..) => "cuGetProcAddress_v2",
        ("cuGetProcAddress", _) => "cuGetProcAddress",
        _ => return None,
    })
}

/// Finds the form of a function that programs of a CUDA version mean by its plain name.
fn find(name: &str, version: c_int) -> Option<*mut c_void> {
    if let Some(form) = form_of(name, version) {
        return address(form);
    }
    ["_v3", "_v2", ""].iter().find_map(|suffix| address(&format!("{name}{suffix}")))
}

/// # Safety
/// As for `cuGetProcAddress_v2`.
unsafe fn look_up(
    symbol: *const c_char,
    function: *mut *mut c_void,
    version: c_int,
    flags: u64,
    status: *mut u32,
) -> Result {
    // SAFETY: each is null or writable, and the name null or a text, as the caller promises.
    let (function, status, name) =
        unsafe { (Out::new(function)?, Out::optional(status)?, read_name(symbol)?) };
    if flags & !FLAGS != 0 {
        return Err(Status::INVALID_VALUE.because(format!("{flags:#x} has unknown flags")));
    }
    let found = match flags & FLAG_PER_THREAD_STREAM {
        0 => find(name, version),
        _ => address(&format!("{name}_ptsz")),
    };
    function.set(found.unwrap_or(std::ptr::null_mut()));
    set_optional(status, if found.is_some() { FOUND } else { SYMBOL_NOT_FOUND });
    match found {
        Some(_) => Ok(()),
        None => Err(Status::NOT_FOUND.because(format!("the emulator has no function `{name}`"))),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress_v2(
    symbol: *const c_char,
    function: *mut *mut c_void,
    version: c_int,
    flags: u64,
    status: *mut u32,
) -> Status {
    bare("cuGetProcAddress_v2", || {
        // SAFETY: passed on from the caller.
        unsafe { look_up(symbol, function, version, flags, status) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress(
    symbol: *const c_char,
    function: *mut *mut c_void,
    version: c_int,
    flags: u64,
) -> Status {
    bare("cuGetProcAddress", || {
        // SAFETY: passed on from the caller.
        unsafe { look_up(symbol, function, version, flags, std::ptr::null_mut()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found() {
        let names: Vec<&str> = MODULES.iter().flat_map(|module| module.1).copied().collect();
        assert!(names.len() > 100);
        for name in names {
            assert!(address(name).is_some(), "{name}");
        }
    }

    /// Functions that the header for C programs leaves out: those that are refused, and earlier or
    /// later forms of others.
    const NOT_DECLARED: [&str; 7] = [
        "cuCtxCreate_v3",
        "cuCtxCreate_v4",
        "cuDeviceGetUuid",
        "cuEventElapsedTime_v2",
        "cuGraphInstantiate_v2",
        "cuStreamGetCaptureInfo",
        "cuStreamGetCaptureInfo_v3",
    ];

    #[test]
    fn the_header_declares_the_functions() {
        let header = include_str!("../../include/cuda.h");
        for (module, names) in MODULES {
            for name in *names {
                let left_out = matches!(*module, "extension" | "refused");
                let declared = header.contains(&format!("CUresult {name}("));
                assert_eq!(declared, !left_out && !NOT_DECLARED.contains(name), "{name}");
            }
        }
    }

    #[test]
    fn plain_names_mean_the_form_of_the_version() {
        assert_eq!(find("cuMemAlloc", 12000), address("cuMemAlloc_v2"));
        assert_eq!(find("cuCtxCreate", 12000), address("cuCtxCreate_v2"));
        assert_eq!(find("cuCtxCreate", 13000), address("cuCtxCreate_v4"));
        assert_eq!(find("cuInit", 13000), address("cuInit"));
        assert_eq!(find("cuNoSuchFunction", 13000), None);
    }
}
