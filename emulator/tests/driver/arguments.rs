//! Wrong arguments, function by function: null pointers, handles of other kinds and of objects that
//! are gone, values that do not exist, and objects of another context.

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUresult, CUresult::*};

use crate::support::{SCALE, context};

/// Calls a driver function with arguments that it must find wrong before it uses them.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: the pointers among the arguments are null or lead to what the function expects;
        // all else is for the driver to check.
        unsafe { sys::$function($($argument),*) }
    };
}

/// Checks that calls return a code, and names those that do not.
macro_rules! all_return {
    ($code:expr; $($function:ident($($argument:expr),* $(,)?);)*) => {
        $(assert_eq!(call!($function($($argument),*)), $code, stringify!($function));)*
    };
}

/// One object of each kind, in a context.
struct Objects {
    _context: Arc<CudaContext>,
    stream: sys::CUstream,
    event: sys::CUevent,
    module: sys::CUmodule,
    function: sys::CUfunction,
    memory: u64,
}

impl Objects {
    fn new() -> Self {
        let context = context();
        let (mut stream, mut event, mut memory) = (null_mut(), null_mut(), 0);
        let (mut module, mut function) = (null_mut(), null_mut());
        let text = CString::new(SCALE).expect("a text without NUL");
        assert_eq!(call!(cuStreamCreate(&mut stream, 1)), CUDA_SUCCESS);
        assert_eq!(call!(cuEventCreate(&mut event, 0)), CUDA_SUCCESS);
        assert_eq!(call!(cuModuleLoadData(&mut module, text.as_ptr().cast())), CUDA_SUCCESS);
        let name = c"scale".as_ptr();
        assert_eq!(call!(cuModuleGetFunction(&mut function, module, name)), CUDA_SUCCESS);
        assert_eq!(call!(cuMemAlloc_v2(&mut memory, 256)), CUDA_SUCCESS);
        Self { _context: context, stream, event, module, function, memory }
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        assert_eq!(call!(cuStreamDestroy_v2(self.stream)), CUDA_SUCCESS);
        assert_eq!(call!(cuEventDestroy_v2(self.event)), CUDA_SUCCESS);
        assert_eq!(call!(cuModuleUnload(self.module)), CUDA_SUCCESS);
        assert_eq!(call!(cuMemFree_v2(self.memory)), CUDA_SUCCESS);
    }
}

const WARP_SIZE: sys::CUdevice_attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE;
const STACK: sys::CUlimit = sys::CUlimit::CU_LIMIT_STACK_SIZE;
const REGISTERS: sys::CUfunction_attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS;
const MEMORY_TYPE: sys::CUpointer_attribute =
    sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;

#[test]
fn results_need_a_place() {
    let o = Objects::new();
    let name = c"scale".as_ptr();
    let (mut number, mut bytes) = (0, 0);
    all_return! { CUDA_ERROR_INVALID_VALUE;
        cuDriverGetVersion(null_mut());
        cuGetErrorName(CUDA_SUCCESS, null_mut());
        cuGetErrorString(CUDA_SUCCESS, null_mut());
        cuDeviceGet(null_mut(), 0);
        cuDeviceGetCount(null_mut());
        cuDeviceGetName(null_mut(), 10, 0);
        cuDeviceTotalMem_v2(null_mut(), 0);
        cuDeviceGetAttribute(null_mut(), WARP_SIZE, 0);
        cuDeviceGetUuid_v2(null_mut(), 0);
        cuDeviceGetPCIBusId(null_mut(), 10, 0);
        cuDeviceCanAccessPeer(null_mut(), 0, 0);
        cuDevicePrimaryCtxRetain(null_mut(), 0);
        cuDevicePrimaryCtxGetState(0, null_mut(), &mut number);
        cuCtxGetCurrent(null_mut());
        cuCtxGetDevice(null_mut());
        cuCtxGetFlags(null_mut());
        cuCtxGetApiVersion(null_mut(), null_mut());
        cuCtxGetLimit(null_mut(), STACK);
        cuCtxGetCacheConfig(null_mut());
        cuModuleLoadData(null_mut(), name.cast());
        cuModuleLoad(null_mut(), name);
        cuModuleGetFunction(null_mut(), o.module, name);
        cuFuncGetAttribute(null_mut(), REGISTERS, o.function);
        cuFuncGetModule(null_mut(), o.function);
        cuOccupancyMaxActiveBlocksPerMultiprocessor(null_mut(), o.function, 32, 0);
        cuOccupancyMaxPotentialBlockSize(null_mut(), &mut number, o.function, None, 0, 0);
        cuOccupancyAvailableDynamicSMemPerBlock(null_mut(), o.function, 1, 32);
        cuMemAlloc_v2(null_mut(), 16);
        cuMemAllocPitch_v2(null_mut(), &mut bytes, 16, 16, 4);
        cuMemAllocAsync(null_mut(), 16, o.stream);
        cuMemGetInfo_v2(null_mut(), &mut bytes);
        cuMemGetInfo_v2(&mut bytes, null_mut());
        cuMemHostAlloc(null_mut(), 16, 0);
        cuMemAllocHost_v2(null_mut(), 16);
        cuMemHostGetFlags(null_mut(), name.cast_mut().cast());
        cuPointerGetAttribute(null_mut(), MEMORY_TYPE, o.memory);
        cuStreamCreate(null_mut(), 0);
        cuStreamCreateWithPriority(null_mut(), 0, 0);
        cuStreamGetPriority(o.stream, null_mut());
        cuStreamGetFlags(o.stream, null_mut());
        cuStreamGetCtx(o.stream, null_mut());
        cuStreamIsCapturing(o.stream, null_mut());
        cuStreamEndCapture(o.stream, null_mut());
        cuThreadExchangeStreamCaptureMode(null_mut());
        cuEventCreate(null_mut(), 0);
        cuDeviceGetDefaultMemPool(null_mut(), 0);
    }
    // Where a result is not wanted, none is given.
    all_return! { CUDA_SUCCESS;
        cuModuleGetGlobal_v2(null_mut(), null_mut(), o.module, c"launches".as_ptr());
        cuMemGetAddressRange_v2(null_mut(), null_mut(), o.memory);
        cuCtxGetStreamPriorityRange(null_mut(), null_mut());
    }
}

#[test]
fn texts_structures_and_lists_are_needed() {
    let o = Objects::new();
    let (mut function, mut module, mut address) = (null_mut(), null_mut(), 0);
    let mut bytes = 0;
    let unknown = -1_i32 as u32;
    all_return! { CUDA_ERROR_INVALID_VALUE;
        cuModuleGetFunction(&mut function, o.module, null());
        cuModuleGetGlobal_v2(&mut address, &mut bytes, o.module, null());
        cuModuleLoad(&mut module, null());
        cuModuleLoadData(&mut module, null());
        cuModuleLoadDataEx(&mut module, null(), 0, null_mut(), null_mut());
        cuModuleLoadDataEx(&mut module, c"".as_ptr().cast(), 1, null_mut(), null_mut());
        cuMemcpy2D_v2(null());
        cuMemcpy2DAsync_v2(null(), o.stream);
        cuLaunchKernelEx(null(), o.function, null_mut(), null_mut());
        cuLaunchHostFunc(o.stream, None, null_mut());
        cuPointerGetAttributes(1, null_mut(), null_mut(), o.memory);
        cuCtxSetFlags(unknown);
        cuDevicePrimaryCtxSetFlags_v2(0, 7);
        cuStreamCreate(&mut null_mut(), 2);
        cuEventCreate(&mut null_mut(), 4);
        cuEventRecordWithFlags(o.event, o.stream, 2);
        cuStreamWaitEvent(o.stream, o.event, 4);
        cuMemHostAlloc(&mut null_mut(), 16, 8);
        cuMemHostAlloc(&mut null_mut(), 0, 0);
        cuMemAllocPitch_v2(&mut address, &mut bytes, 16, 16, 3);
        cuMemAllocPitch_v2(&mut address, &mut bytes, 0, 16, 4);
    }
    assert_eq!(call!(cuEventCreate(&mut null_mut(), 6)), CUDA_ERROR_NOT_SUPPORTED);
    assert_eq!(call!(cuEventRecordWithFlags(o.event, o.stream, 1)), CUDA_ERROR_NOT_SUPPORTED);
    let status = call!(cuModuleGetFunction(&mut function, o.module, c"\xff".as_ptr()));
    assert_eq!(status, CUDA_ERROR_INVALID_VALUE);
    let huge = call!(cuMemAllocPitch_v2(&mut address, &mut bytes, usize::MAX / 2, 16, 4));
    assert_eq!(huge, CUDA_ERROR_OUT_OF_MEMORY);
}

/// What every function returns for these handles.
fn functions_refuse(
    code: CUresult,
    stream: sys::CUstream,
    event: sys::CUevent,
    module: sys::CUmodule,
    function: sys::CUfunction,
    live: &Objects,
) {
    let (mut number, mut words, mut bytes, mut address) = (0, 0, 0, 0);
    let (name, null) = (c"scale".as_ptr(), null_mut());
    let mut graph = null_mut();
    let mut host = [0u8; 4];
    let here = host.as_mut_ptr().cast::<c_void>();
    let mut capturing = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    let relaxed = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    all_return! { code;
        cuStreamSynchronize(stream);
        cuStreamQuery(stream);
        cuStreamDestroy_v2(stream);
        cuStreamGetPriority(stream, &mut number);
        cuStreamGetFlags(stream, &mut words);
        cuStreamWaitEvent(stream, live.event, 0);
        cuStreamBeginCapture_v2(stream, relaxed);
        cuStreamEndCapture(stream, &mut graph);
        cuStreamIsCapturing(stream, &mut capturing);
        cuMemAllocAsync(&mut address, 16, stream);
        cuMemFreeAsync(live.memory, stream);
        cuMemcpyHtoDAsync_v2(live.memory, here, 4, stream);
        cuMemcpyDtoHAsync_v2(here, live.memory, 4, stream);
        cuMemcpyDtoDAsync_v2(live.memory, live.memory + 16, 4, stream);
        cuMemsetD8Async(live.memory, 0, 4, stream);
        cuMemsetD32Async(live.memory, 0, 1, stream);
        cuMemsetD2D8Async(live.memory, 4, 0, 4, 1, stream);
        cuEventRecord(live.event, stream);
        cuEventRecord(event, live.stream);
        cuEventQuery(event);
        cuEventSynchronize(event);
        cuEventDestroy_v2(event);
        cuStreamWaitEvent(live.stream, event, 0);
        cuModuleUnload(module);
        cuModuleGetFunction(&mut null_mut(), module, name);
        cuModuleGetGlobal_v2(&mut address, &mut bytes, module, name);
        cuFuncGetAttribute(&mut number, REGISTERS, function);
        cuFuncGetModule(&mut null_mut(), function);
        cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut number, function, 32, 0);
        cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, live.stream, null, null);
        cuLaunchCooperativeKernel(function, 1, 1, 1, 1, 1, 1, 0, live.stream, null);
    }
}

#[test]
fn handles_of_nothing_and_of_other_kinds() {
    let o = Objects::new();
    let wrong = CUDA_ERROR_INVALID_HANDLE;
    let (s, e) = (o.stream, o.event);
    functions_refuse(wrong, e.cast(), s.cast(), e.cast(), o.module.cast(), &o);
    functions_refuse(wrong, o.module.cast(), o.function.cast(), o.function.cast(), s.cast(), &o);
    let stray = 0x1000_usize;
    functions_refuse(wrong, stray as _, stray as _, stray as _, stray as _, &o);
    // Null is the default stream, and no other object.
    all_return! { wrong;
        cuEventQuery(null_mut());
        cuModuleUnload(null_mut());
        cuGraphLaunch(null_mut(), o.stream);
        cuGraphDestroy(o.stream.cast());
        cuGraphExecDestroy(o.event.cast());
        cuMemPoolDestroy(o.stream.cast());
    }
    let mut exec = null_mut();
    assert_eq!(call!(cuGraphInstantiateWithFlags(&mut exec, o.stream.cast(), 0)), wrong);
}

#[test]
fn handles_of_what_is_gone() {
    let live = Objects::new();
    let Objects { stream, event, module, function, .. } = Objects::new();
    functions_refuse(CUDA_ERROR_INVALID_HANDLE, stream, event, module, function, &live);
}

/// A context of its own, current to this thread. The test has the emulated device already.
fn create_context() -> sys::CUcontext {
    type Create = unsafe extern "C" fn(*mut sys::CUcontext, u32, sys::CUdevice) -> CUresult;
    let mut context = null_mut();
    // SAFETY: the function has this form, and the result a place.
    let status = unsafe {
        let create = sys::culib().get::<Create>(b"cuCtxCreate_v2").expect("the function");
        create(&mut context, 0, 0)
    };
    assert_eq!(status, CUDA_SUCCESS);
    context
}

#[test]
fn objects_of_another_context() {
    let o = Objects::new();
    let other = create_context();
    let (mut stream, mut event) = (null_mut(), null_mut());
    assert_eq!(call!(cuStreamCreate(&mut stream, 0)), CUDA_SUCCESS);
    assert_eq!(call!(cuEventCreate(&mut event, 0)), CUDA_SUCCESS);
    all_return! { CUDA_ERROR_INVALID_CONTEXT;
        cuStreamSynchronize(o.stream);
        cuStreamDestroy_v2(o.stream);
        cuModuleUnload(o.module);
        cuLaunchKernel(o.function, 1, 1, 1, 1, 1, 1, 0, stream, null_mut(), null_mut());
    }
    all_return! { CUDA_ERROR_INVALID_HANDLE;
        cuEventRecord(o.event, stream);
    }
    // Its memory is not that of this context, whose streams may wait for its events all the same.
    all_return! { CUDA_ERROR_INVALID_VALUE;
        cuMemFree_v2(o.memory);
        cuMemsetD8_v2(o.memory, 0, 4);
        cuMemcpyDtoD_v2(o.memory, o.memory, 4);
    }
    assert_eq!(call!(cuStreamWaitEvent(stream, o.event, 0)), CUDA_SUCCESS);
    let mut owner = null_mut();
    assert_eq!(call!(cuStreamGetCtx(o.stream, &mut owner)), CUDA_SUCCESS);
    assert_ne!(owner, other);
    assert_eq!(call!(cuCtxDestroy_v2(other)), CUDA_SUCCESS);
    // With a context goes what is in it.
    assert_eq!(call!(cuEventQuery(event)), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(call!(cuCtxSetCurrent(owner)), CUDA_SUCCESS);
    assert_eq!(call!(cuStreamSynchronize(stream)), CUDA_ERROR_INVALID_HANDLE);
    all_return! { CUDA_ERROR_INVALID_CONTEXT;
        cuCtxDestroy_v2(other);
        cuCtxSetCurrent(other);
        cuCtxPushCurrent_v2(other);
        cuCtxGetApiVersion(other, &mut 0);
        cuMemcpyPeer(o.memory, other, o.memory, owner, 4);
    }
}

#[test]
fn the_stack_of_contexts() {
    let _context = context();
    std::thread::spawn(|| {
        let (mut first, mut second) = (null_mut(), null_mut());
        assert_eq!(call!(cuCtxPopCurrent_v2(&mut first)), CUDA_ERROR_INVALID_CONTEXT);
        assert_eq!(call!(cuCtxPushCurrent_v2(null_mut())), CUDA_ERROR_INVALID_CONTEXT);
        let (one, two) = (create_context(), create_context());
        assert_eq!(call!(cuCtxGetCurrent(&mut second)), CUDA_SUCCESS);
        assert_eq!(second, two);
        assert_eq!(call!(cuCtxPopCurrent_v2(&mut second)), CUDA_SUCCESS);
        assert_eq!(call!(cuCtxPopCurrent_v2(&mut first)), CUDA_SUCCESS);
        assert_eq!((first, second), (one, two));
        assert_eq!(call!(cuCtxDestroy_v2(one)), CUDA_SUCCESS);
        assert_eq!(call!(cuCtxDestroy_v2(two)), CUDA_SUCCESS);
        assert_eq!(call!(cuCtxSynchronize()), CUDA_ERROR_INVALID_CONTEXT);
    })
    .join()
    .expect("the thread");
}

#[test]
fn the_primary_context_is_counted() {
    let _context = context();
    let mut handle = null_mut();
    assert_eq!(call!(cuDevicePrimaryCtxRetain(&mut handle, 1)), CUDA_ERROR_INVALID_DEVICE);
    assert_eq!(call!(cuDevicePrimaryCtxRetain(&mut handle, 0)), CUDA_SUCCESS);
    assert_eq!(call!(cuCtxDestroy_v2(handle)), CUDA_ERROR_INVALID_CONTEXT);
    assert_eq!(call!(cuDevicePrimaryCtxRelease_v2(0)), CUDA_SUCCESS);
    let (mut flags, mut active) = (0, 0);
    assert_eq!(call!(cuDevicePrimaryCtxGetState(0, &mut flags, &mut active)), CUDA_SUCCESS);
    assert_eq!(active, 1, "the test's own context holds it");
    assert_eq!(call!(cuDevicePrimaryCtxRelease_v2(2)), CUDA_ERROR_INVALID_DEVICE);
}
