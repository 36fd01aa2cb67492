//! The codes that the driver returns for wrong arguments, handles and moments.

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult, CUresult::*};
use cudarc::driver::{CudaContext, result};

use crate::support::{SCALE, SPECIAL, code, context, emulator, kernel};

/// A plain allocation that is freed at the end.
struct Memory {
    _context: Arc<CudaContext>,
    address: u64,
}

impl Memory {
    fn new(bytes: usize) -> Self {
        let context = context();
        let mut address = 0;
        // SAFETY: the result has a place.
        let status = unsafe { sys::cuMemAlloc_v2(&mut address, bytes) };
        assert_eq!(status, CUDA_SUCCESS);
        Self { _context: context, address }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the driver checks the address.
        assert_eq!(unsafe { sys::cuMemFree_v2(self.address) }, CUDA_SUCCESS);
    }
}

/// Calls a driver function with arguments that it must find wrong before it uses them.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: the pointers among the arguments are null or lead to what the function expects;
        // all else is for the driver to check.
        unsafe { sys::$function($($argument),*) }
    };
}

#[test]
fn a_thread_without_a_context_gets_nothing() {
    let _context = context();
    let thread = std::thread::spawn(|| {
        let mut address = 0;
        call!(cuMemAlloc_v2(&mut address, 16))
    });
    assert_eq!(thread.join().unwrap(), CUDA_ERROR_INVALID_CONTEXT);
    assert!(emulator().last_error().is_some());
}

#[test]
fn devices_beyond_the_first_do_not_exist() {
    let _context = context();
    let mut value = 0;
    assert_eq!(call!(cuDeviceGet(&mut value, 1)), CUDA_ERROR_INVALID_DEVICE);
    assert_eq!(call!(cuDeviceGet(&mut value, -1)), CUDA_ERROR_INVALID_DEVICE);
    let which = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE;
    assert_eq!(call!(cuDeviceGetAttribute(&mut value, which, 3)), CUDA_ERROR_INVALID_DEVICE);
    assert_eq!(call!(cuDeviceGetAttribute(null_mut(), which, 0)), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn allocations_have_a_size_that_fits() {
    let _context = context();
    let mut address = 0;
    assert_eq!(call!(cuMemAlloc_v2(&mut address, 0)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemAlloc_v2(null_mut(), 16)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemAlloc_v2(&mut address, 41 << 30)), CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(call!(cuMemAlloc_v2(&mut address, usize::MAX)), CUDA_ERROR_OUT_OF_MEMORY);
}

#[test]
fn memory_is_freed_once_and_at_its_start() {
    let _context = context();
    let mut address = 0;
    assert_eq!(call!(cuMemAlloc_v2(&mut address, 64)), CUDA_SUCCESS);
    assert_eq!(call!(cuMemFree_v2(address + 16)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemFree_v2(address)), CUDA_SUCCESS);
    assert_eq!(call!(cuMemFree_v2(address)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemFree_v2(0)), CUDA_SUCCESS);

    assert_eq!(call!(cuMemAllocAsync(&mut address, 64, null_mut())), CUDA_SUCCESS);
    assert_eq!(call!(cuMemFreeAsync(address, null_mut())), CUDA_SUCCESS);
    assert_eq!(call!(cuMemFreeAsync(address, null_mut())), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemFree_v2(address)), CUDA_ERROR_INVALID_VALUE);
    let word = 0u32;
    let copy = call!(cuMemcpyHtoD_v2(address, (&raw const word).cast(), 4));
    assert_eq!(copy, CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn copies_stay_inside_of_allocations() {
    let memory = Memory::new(64);
    let mut host = [0u8; 128];
    let here = host.as_mut_ptr().cast::<c_void>();
    let there = memory.address;
    assert_eq!(call!(cuMemcpyHtoD_v2(there, here, 64)), CUDA_SUCCESS);
    assert_eq!(call!(cuMemcpyHtoD_v2(there, here, 65)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemcpyDtoH_v2(here, there + 60, 8)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemcpyDtoH_v2(null_mut(), there, 8)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemcpyHtoD_v2(there, null(), 8)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemcpyDtoD_v2(there, there + 32, 40)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemcpyDtoD_v2(0x1234, there, 4)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemcpyHtoD_v2(0x1234, null(), 0)), CUDA_SUCCESS);
    assert_eq!(call!(cuMemcpy(there, here as u64, 64)), CUDA_SUCCESS);
    assert_eq!(call!(cuMemcpy(here as u64, there, 64)), CUDA_SUCCESS);
}

#[test]
fn fills_are_aligned_and_stay_inside_of_allocations() {
    let memory = Memory::new(64);
    let there = memory.address;
    assert_eq!(call!(cuMemsetD32_v2(there, 1, 16)), CUDA_SUCCESS);
    assert_eq!(call!(cuMemsetD32_v2(there, 1, 17)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemsetD32_v2(there + 2, 1, 1)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemsetD16_v2(there + 1, 1, 1)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemsetD16_v2(there + 2, 0x0203, 1)), CUDA_SUCCESS);
    assert_eq!(call!(cuMemsetD8_v2(there + 3, 9, 61)), CUDA_SUCCESS);
    assert_eq!(call!(cuMemsetD8_v2(there + 3, 9, 62)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemsetD2D8_v2(there, 16, 5, 8, 4)), CUDA_SUCCESS);
    assert_eq!(call!(cuMemsetD2D8_v2(there, 16, 5, 17, 2)), CUDA_ERROR_INVALID_VALUE);
    let mut host = [0u8; 64];
    let here = host.as_mut_ptr().cast();
    assert_eq!(call!(cuMemcpyDtoH_v2(here, there, 64)), CUDA_SUCCESS);
    assert_eq!(host[..8], [5; 8]);
    assert_eq!(host[8..16], [9; 8]);
    assert_eq!(host[56..], [9; 8]);
}

#[test]
fn stale_and_foreign_handles_are_known() {
    let _context = context();
    let (mut stream, mut event) = (null_mut(), null_mut());
    assert_eq!(call!(cuStreamCreate(&mut stream, 1)), CUDA_SUCCESS);
    assert_eq!(call!(cuEventCreate(&mut event, 0)), CUDA_SUCCESS);
    // One kind in the place of the other.
    assert_eq!(call!(cuStreamSynchronize(event.cast())), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(call!(cuEventQuery(stream.cast())), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(call!(cuModuleUnload(stream.cast())), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(call!(cuCtxSetCurrent(stream.cast())), CUDA_ERROR_INVALID_CONTEXT);
    // After their end.
    assert_eq!(call!(cuEventRecord(event, stream)), CUDA_SUCCESS);
    assert_eq!(call!(cuStreamDestroy_v2(stream)), CUDA_SUCCESS);
    assert_eq!(call!(cuStreamDestroy_v2(stream)), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(call!(cuEventRecord(event, stream)), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(call!(cuEventQuery(event)), CUDA_SUCCESS);
    assert_eq!(call!(cuEventDestroy_v2(event)), CUDA_SUCCESS);
    assert_eq!(call!(cuEventDestroy_v2(event)), CUDA_ERROR_INVALID_HANDLE);
    // What never was one: an address, and the handles of default streams.
    let address = (&raw const stream) as *mut sys::CUstream_st;
    assert_eq!(call!(cuStreamSynchronize(address)), CUDA_ERROR_INVALID_HANDLE);
    for default in 0..=2usize {
        let default = default as *mut sys::CUstream_st;
        assert_eq!(call!(cuStreamSynchronize(default)), CUDA_SUCCESS);
        assert_eq!(call!(cuStreamDestroy_v2(default)), CUDA_ERROR_INVALID_HANDLE);
    }
    assert_eq!(call!(cuGraphDestroy(null_mut())), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(call!(cuGraphLaunch(null_mut(), null_mut())), CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn unknown_flags_are_refused() {
    let _context = context();
    let (mut stream, mut event) = (null_mut(), null_mut());
    assert_eq!(call!(cuStreamCreate(&mut stream, 8)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuEventCreate(&mut event, 64)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuInit(1)), CUDA_ERROR_INVALID_VALUE);
}

/// The time between two events; cudarc knows the function by a name that depends on the version.
fn elapsed(time: &mut f32, start: sys::CUevent, end: sys::CUevent) -> CUresult {
    // SAFETY: the driver checks the handles.
    match unsafe { result::event::elapsed(start, end) } {
        Ok(milliseconds) => {
            *time = milliseconds;
            CUDA_SUCCESS
        }
        Err(error) => error.0,
    }
}

/// Creates a context by the form of the function that newer bindings leave out.
fn create_context(context: &mut sys::CUcontext) -> CUresult {
    type Create = unsafe extern "C" fn(*mut sys::CUcontext, u32, sys::CUdevice) -> CUresult;
    // SAFETY: the function has this form, and the result a place.
    unsafe {
        let create = sys::culib().get::<Create>(b"cuCtxCreate_v2").expect("the function");
        create(context, 0, 0)
    }
}

#[test]
fn a_time_needs_two_recorded_events_with_timing() {
    let _context = context();
    let mut events = [null_mut(); 3];
    assert_eq!(call!(cuEventCreate(&mut events[0], 0)), CUDA_SUCCESS);
    assert_eq!(call!(cuEventCreate(&mut events[1], 0)), CUDA_SUCCESS);
    assert_eq!(call!(cuEventCreate(&mut events[2], 2)), CUDA_SUCCESS);
    let [start, end, untimed] = events;
    let mut time = 0.0;
    assert_eq!(elapsed(&mut time, start, end), CUDA_ERROR_INVALID_HANDLE);
    let mut stream = null_mut();
    assert_eq!(call!(cuStreamCreate(&mut stream, 1)), CUDA_SUCCESS);
    for event in events {
        assert_eq!(call!(cuEventRecord(event, stream)), CUDA_SUCCESS);
    }
    assert_eq!(elapsed(&mut time, start, end), CUDA_ERROR_NOT_READY);
    assert_eq!(call!(cuStreamSynchronize(stream)), CUDA_SUCCESS);
    assert_eq!(elapsed(&mut time, start, end), CUDA_SUCCESS);
    assert!(time >= 0.0);
    assert_eq!(elapsed(&mut time, end, start), CUDA_SUCCESS);
    assert!(time <= 0.0);
    assert_eq!(elapsed(&mut time, start, untimed), CUDA_ERROR_INVALID_HANDLE);
    for event in events {
        assert_eq!(call!(cuEventDestroy_v2(event)), CUDA_SUCCESS);
    }
    assert_eq!(call!(cuStreamDestroy_v2(stream)), CUDA_SUCCESS);
}

#[test]
fn a_destroyed_context_is_gone() {
    emulator();
    std::thread::spawn(|| {
        let mut context = null_mut();
        assert_eq!(create_context(&mut context), CUDA_SUCCESS);
        let mut address = 0;
        assert_eq!(call!(cuMemAlloc_v2(&mut address, 16)), CUDA_SUCCESS);
        assert_eq!(call!(cuMemFree_v2(address)), CUDA_SUCCESS);
        assert_eq!(call!(cuCtxPushCurrent_v2(context)), CUDA_SUCCESS);
        assert_eq!(call!(cuCtxDestroy_v2(context)), CUDA_SUCCESS);
        // It was current twice: once below.
        assert_eq!(call!(cuMemAlloc_v2(&mut address, 16)), CUDA_ERROR_CONTEXT_IS_DESTROYED);
        assert_eq!(call!(cuCtxDestroy_v2(context)), CUDA_ERROR_INVALID_CONTEXT);
        assert_eq!(call!(cuCtxSetCurrent(context)), CUDA_ERROR_INVALID_CONTEXT);
        assert_eq!(call!(cuCtxSetCurrent(null_mut())), CUDA_SUCCESS);
        assert_eq!(call!(cuMemAlloc_v2(&mut address, 16)), CUDA_ERROR_INVALID_CONTEXT);
    })
    .join()
    .unwrap();
}

#[test]
fn limits_that_the_device_lacks_are_refused() {
    let _context = context();
    let mut value = 0;
    let stack = sys::CUlimit::CU_LIMIT_STACK_SIZE;
    assert_eq!(call!(cuCtxSetLimit(stack, 4096)), CUDA_SUCCESS);
    assert_eq!(call!(cuCtxGetLimit(&mut value, stack)), CUDA_SUCCESS);
    assert_eq!(value, 4096);
    let depth = sys::CUlimit::CU_LIMIT_DEV_RUNTIME_SYNC_DEPTH;
    assert_eq!(call!(cuCtxGetLimit(&mut value, depth)), CUDA_ERROR_UNSUPPORTED_LIMIT);
}

#[test]
fn pointers_are_known_by_their_memory() {
    let memory = Memory::new(64);
    let mut kind = 0u32;
    let which = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    let place = (&raw mut kind).cast();
    assert_eq!(call!(cuPointerGetAttribute(place, which, memory.address + 63)), CUDA_SUCCESS);
    assert_eq!(kind, 2);
    let beyond = memory.address + 64;
    let status = call!(cuPointerGetAttribute(place, which, beyond));
    assert_eq!(status, CUDA_ERROR_INVALID_VALUE);
    let mut pinned = null_mut();
    assert_eq!(call!(cuMemHostAlloc(&mut pinned, 100, 0)), CUDA_SUCCESS);
    assert_eq!(call!(cuPointerGetAttribute(place, which, pinned as u64)), CUDA_SUCCESS);
    assert_eq!(kind, 1);
    assert_eq!(call!(cuMemFreeHost(pinned)), CUDA_SUCCESS);
    assert_eq!(call!(cuMemFreeHost(pinned)), CUDA_ERROR_INVALID_VALUE);
    let (mut base, mut size) = (0, 0);
    let status = call!(cuMemGetAddressRange_v2(&mut base, &mut size, memory.address + 9));
    assert_eq!((status, base, size), (CUDA_SUCCESS, memory.address, 64));
}

fn load(image: &[u8]) -> CUresult {
    let mut module = null_mut();
    let status = call!(cuModuleLoadData(&mut module, image.as_ptr().cast()));
    if status == CUDA_SUCCESS {
        assert_eq!(call!(cuModuleUnload(module)), CUDA_SUCCESS);
        assert_eq!(call!(cuModuleUnload(module)), CUDA_ERROR_INVALID_HANDLE);
    }
    status
}

#[test]
fn only_ptx_of_a_known_version_is_loaded() {
    let _context = context();
    let text = |text: &str| load(CString::new(text).unwrap().as_bytes_with_nul());
    assert_eq!(text(SCALE), CUDA_SUCCESS);
    assert_eq!(load(b"\x7fELF\x02\x01\x01\0"), CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_eq!(load(b"\x50\xed\x55\xba\x01\0"), CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_eq!(text(&SCALE.replace("8.0", "99.0")), CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    assert_eq!(text(&SCALE.replace("sm_80", "sm_90")), CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_eq!(text(&SCALE.replace("mul.f32", "mull.f32")), CUDA_ERROR_INVALID_PTX);
    assert_eq!(text("this is not PTX"), CUDA_ERROR_INVALID_IMAGE);
    assert_eq!(call!(cuModuleLoadData(null_mut(), null())), CUDA_ERROR_INVALID_VALUE);
    let mut module = null_mut();
    assert_eq!(call!(cuModuleLoadData(&mut module, null())), CUDA_ERROR_INVALID_VALUE);
    let path = c"/nonexistent/kernels.ptx";
    let status = call!(cuModuleLoad(&mut module, path.as_ptr()));
    assert_eq!(status, CUDA_ERROR_FILE_NOT_FOUND);
}

#[test]
fn what_is_wrong_with_a_text_is_in_the_log() {
    use sys::CUjit_option::*;
    let _context = context();
    let wrong = CString::new(SCALE.replace("mul.f32", "mull.f32")).unwrap();
    let mut log = [0u8; 512];
    let mut options = [CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
    let mut module = null_mut();
    let status = call!(cuModuleLoadDataEx(
        &mut module,
        wrong.as_ptr().cast(),
        2,
        options.as_mut_ptr(),
        values.as_mut_ptr(),
    ));
    assert_eq!(status, CUDA_ERROR_INVALID_PTX);
    let used = values[1] as usize;
    assert!((1..=log.len()).contains(&used), "{used} bytes were written");
    let message = std::str::from_utf8(&log[..used - 1]).unwrap();
    assert!(message.contains("mull"), "{message}");
    assert!(emulator().last_error().unwrap().contains("mull"));
}

#[test]
fn names_that_a_module_lacks_are_not_found() {
    let context = context();
    let module = context.load_module(cudarc::nvrtc::Ptx::from_src(SCALE)).unwrap();
    assert_eq!(code(module.load_function("scall")), CUDA_ERROR_NOT_FOUND);
    let stream = context.default_stream();
    assert_eq!(code(module.get_global("lunches", &stream)), CUDA_ERROR_NOT_FOUND);
}

/// Launches a kernel without parameters in the default stream.
fn launch(function: sys::CUfunction, grid: [u32; 3], block: [u32; 3], shared: u32) -> CUresult {
    let [gx, gy, gz] = grid;
    let [bx, by, bz] = block;
    let null = null_mut();
    call!(cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, null, null_mut(), null_mut()))
}

#[test]
fn launches_respect_the_limits() {
    let context = context();
    let nothing = kernel(&context, SPECIAL, "nothing");
    let function = nothing.cu_function();
    let one = [1; 3];
    assert_eq!(launch(function, one, one, 0), CUDA_SUCCESS);
    assert_eq!(launch(function, [0, 1, 1], one, 0), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(launch(function, [1, 65536, 1], one, 0), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(launch(function, one, [1, 0, 1], 0), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(launch(function, one, [1025, 1, 1], 0), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(launch(function, one, [1, 1, 65], 0), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(launch(function, one, [64, 64, 1], 0), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(launch(function, one, one, 48 << 10), CUDA_SUCCESS);
    assert_eq!(launch(function, one, one, (48 << 10) + 1), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(launch(null_mut(), one, one, 0), CUDA_ERROR_INVALID_HANDLE);
    let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let set = |bytes| call!(cuFuncSetAttribute(function, which, bytes));
    assert_eq!(set((163 << 10) + 1), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(set(-1), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(set(163 << 10), CUDA_SUCCESS);
    assert_eq!(launch(function, one, one, 163 << 10), CUDA_SUCCESS);
    let status = call!(cuLaunchCooperativeKernel(
        function,
        1 << 20,
        1,
        1,
        32,
        1,
        1,
        0,
        null_mut(),
        null_mut(),
    ));
    assert_eq!(status, CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    context.synchronize().unwrap();
}

#[test]
fn a_kernel_gets_no_more_threads_than_it_declares_and_all_its_parameters() {
    let context = context();
    let scale = kernel(&context, SCALE, "scale");
    let function = scale.cu_function();
    assert_eq!(launch(function, [1; 3], [257, 1, 1], 0), CUDA_ERROR_INVALID_VALUE);
    // Parameters are missing.
    assert_eq!(launch(function, [1; 3], [256, 1, 1], 0), CUDA_ERROR_INVALID_VALUE);
    let (mut offset, mut size) = (0, 0);
    assert_eq!(call!(cuFuncGetParamInfo(function, 3, &mut offset, &mut size)), CUDA_SUCCESS);
    assert_eq!((offset, size), (20, 4));
    let status = call!(cuFuncGetParamInfo(function, 4, &mut offset, &mut size));
    assert_eq!(status, CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn a_function_dies_with_its_module() {
    let context = context();
    let text = CString::new(SPECIAL).unwrap();
    let (mut module, mut function) = (null_mut(), null_mut());
    assert_eq!(call!(cuModuleLoadData(&mut module, text.as_ptr().cast())), CUDA_SUCCESS);
    let name = c"nothing".as_ptr();
    assert_eq!(call!(cuModuleGetFunction(&mut function, module, name)), CUDA_SUCCESS);
    assert_eq!(launch(function, [1; 3], [1; 3], 0), CUDA_SUCCESS);
    assert_eq!(call!(cuModuleUnload(module)), CUDA_SUCCESS);
    assert_eq!(launch(function, [1; 3], [1; 3], 0), CUDA_ERROR_INVALID_HANDLE);
    context.synchronize().unwrap();
}

#[test]
fn tables_of_functions_are_not_found() {
    let _context = context();
    let mut table = std::ptr::dangling();
    let id = sys::CUuuid { bytes: [7; 16] };
    assert_eq!(call!(cuGetExportTable(&mut table, &id)), CUDA_ERROR_NOT_FOUND);
    assert!(table.is_null());
    assert_eq!(call!(cuGetExportTable(null_mut(), &id)), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn tensor_maps_need_their_capability() {
    let _context = context();
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let (sizes, strides, tile, steps) = ([64, 8], [128], [32, 8], [1, 1]);
    let status = call!(cuTensorMapEncodeTiled(
        &mut map,
        sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        2,
        null_mut(),
        sizes.as_ptr(),
        strides.as_ptr(),
        tile.as_ptr(),
        steps.as_ptr(),
        sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
        sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
        sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    ));
    // The tests' device is older.
    assert_eq!(status, CUDA_ERROR_NOT_SUPPORTED);
    let reason = emulator().last_error().expect("a reason");
    assert!(reason.contains("compute capability 9.0"), "{reason}");
}
