//! Sizes, pitches and ranges of memory that do not fit, and launches beyond what a device takes.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUresult, CUresult::*};

use crate::support::{SCALE, SPECIAL, context, kernel};

/// Calls a driver function with arguments that it must find wrong before it uses them.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: the pointers among the arguments are null or lead to what the function expects;
        // all else is for the driver to check.
        unsafe { sys::$function($($argument),*) }
    };
}

fn allocate(bytes: usize) -> u64 {
    let mut address = 0;
    assert_eq!(call!(cuMemAlloc_v2(&mut address, bytes)), CUDA_SUCCESS);
    address
}

#[test]
fn rectangles_that_are_filled() {
    let _context = context();
    let there = allocate(64);
    let fill =
        |address, pitch, width, height| call!(cuMemsetD2D8_v2(address, pitch, 1, width, height));
    assert_eq!(fill(there, 16, 16, 4), CUDA_SUCCESS);
    assert_eq!(fill(there, 16, 0, 4), CUDA_SUCCESS);
    assert_eq!(fill(there, 0, 64, 1), CUDA_SUCCESS);
    for (pitch, width, height) in [
        (16, 16, 5),
        (16, 17, 2),
        (0, 1, 2),
        (1, 1, 65),
        (16, 1, usize::MAX),
        (16, 1, 1 << 59),
        (usize::MAX, 1, 2),
        (usize::MAX, usize::MAX, 1),
        (1 << 40, 1, 1 << 40),
    ] {
        let status = fill(there, pitch, width, height);
        assert_eq!(status, CUDA_ERROR_INVALID_VALUE, "{height} rows of {width} with {pitch}");
    }
    assert_eq!(call!(cuMemsetD2D32_v2(there, 16, 1, usize::MAX / 2, 1)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemsetD2D32_v2(there, 18, 1, 2, 2)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemsetD32_v2(there, 1, usize::MAX / 2)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemFree_v2(there)), CUDA_SUCCESS);
}

/// A copy of two rows of four bytes within the device.
fn rectangle(there: u64) -> sys::CUDA_MEMCPY2D {
    sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        srcHost: std::ptr::null(),
        srcDevice: there,
        srcArray: null_mut(),
        srcPitch: 8,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: null_mut(),
        dstDevice: there + 32,
        dstArray: null_mut(),
        dstPitch: 8,
        WidthInBytes: 4,
        Height: 2,
    }
}

#[test]
fn rectangles_that_are_copied() {
    let _context = context();
    let there = allocate(64);
    let copy = |change: fn(&mut sys::CUDA_MEMCPY2D)| {
        let mut area = rectangle(there);
        change(&mut area);
        call!(cuMemcpy2D_v2(&area))
    };
    assert_eq!(copy(|_| ()), CUDA_SUCCESS);
    assert_eq!(copy(|area| area.srcXInBytes = 4), CUDA_SUCCESS);
    assert_eq!(copy(|area| area.Height = 0), CUDA_SUCCESS);
    let wrong: [fn(&mut sys::CUDA_MEMCPY2D); 9] = [
        |area| area.srcPitch = 3,
        |area| area.srcXInBytes = 5,
        |area| area.srcXInBytes = usize::MAX,
        |area| area.dstY = 4,
        |area| area.dstY = usize::MAX,
        |area| area.dstPitch = 1 << 31,
        |area| area.Height = usize::MAX,
        |area| area.dstDevice = 16,
        |area| area.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_HOST,
    ];
    for (at, change) in wrong.into_iter().enumerate() {
        assert_eq!(copy(change), CUDA_ERROR_INVALID_VALUE, "change {at}");
    }
    let array = sys::CUmemorytype::CU_MEMORYTYPE_ARRAY;
    let mut area = rectangle(there);
    area.srcMemoryType = array;
    assert_eq!(call!(cuMemcpy2D_v2(&area)), CUDA_ERROR_NOT_SUPPORTED);
    assert_eq!(call!(cuMemFree_v2(there)), CUDA_SUCCESS);
}

#[test]
fn memory_of_the_host_is_registered_once() {
    let _context = context();
    let mut host = vec![0u8; 8192];
    let here = host.as_mut_ptr().cast::<c_void>();
    let register = |address, bytes| call!(cuMemHostRegister_v2(address, bytes, 0));
    assert_eq!(register(null_mut(), 16), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(register(here, 0), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(register(here, usize::MAX), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemHostRegister_v2(here, 16, 64)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(register(here, 4096), CUDA_SUCCESS);
    assert_eq!(
        register(here.wrapping_byte_add(100), 16),
        CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED
    );
    assert_eq!(call!(cuMemFreeHost(here)), CUDA_ERROR_INVALID_VALUE);
    let inside = here.wrapping_byte_add(1);
    assert_eq!(call!(cuMemHostUnregister(inside)), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    assert_eq!(call!(cuMemHostUnregister(here)), CUDA_SUCCESS);
    assert_eq!(call!(cuMemHostUnregister(here)), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

#[test]
fn pools_and_their_attributes() {
    use sys::CUmemPool_attribute as Attribute;
    let _context = context();
    let (mut pool, mut value) = (null_mut(), 5u64);
    let place = (&raw mut value).cast();
    assert_eq!(call!(cuDeviceGetDefaultMemPool(&mut pool, 1)), CUDA_ERROR_INVALID_DEVICE);
    assert_eq!(call!(cuDeviceGetDefaultMemPool(&mut pool, 0)), CUDA_SUCCESS);
    assert_eq!(call!(cuMemPoolDestroy(pool)), CUDA_ERROR_INVALID_VALUE);
    let high = Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    let current = Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
    assert_eq!(call!(cuMemPoolSetAttribute(pool, high, place)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemPoolSetAttribute(pool, current, place)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemPoolGetAttribute(pool, current, null_mut())), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemPoolGetAttribute(pool, current, place)), CUDA_SUCCESS);
    let mut own = null_mut();
    assert_eq!(call!(cuMemPoolCreate(&mut own, std::ptr::null())), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn launches_with_attributes_and_lists() {
    let context = context();
    let (nothing, scale) = (kernel(&context, SPECIAL, "nothing"), kernel(&context, SCALE, "scale"));
    let (nothing, scale) = (nothing.cu_function(), scale.cu_function());
    // SAFETY: a structure of numbers and null pointers.
    let mut configuration: sys::CUlaunchConfig = unsafe { std::mem::zeroed() };
    let launch = |configuration: &sys::CUlaunchConfig| {
        call!(cuLaunchKernelEx(configuration, nothing, null_mut(), null_mut()))
    };
    assert_eq!(launch(&configuration), CUDA_ERROR_INVALID_VALUE);
    (configuration.gridDimX, configuration.gridDimY, configuration.gridDimZ) = (1, 1, 1);
    (configuration.blockDimX, configuration.blockDimY, configuration.blockDimZ) = (1, 1, 1);
    assert_eq!(launch(&configuration), CUDA_SUCCESS);
    configuration.numAttrs = 1;
    assert_eq!(launch(&configuration), CUDA_ERROR_INVALID_VALUE);
    // SAFETY: as above.
    let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
    attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    configuration.attrs = &mut attribute;
    assert_eq!(launch(&configuration), CUDA_ERROR_NOT_SUPPORTED);

    let words = [0u64; 4];
    let run = |values: *mut *mut c_void, extra: *mut *mut c_void| -> CUresult {
        call!(cuLaunchKernel(scale, 1, 1, 1, 1, 1, 1, 0, null_mut(), values, extra))
    };
    let mut nulls = [null_mut(); 4];
    let mut size = 7usize;
    let image = words.as_ptr().cast_mut().cast::<c_void>();
    // Numbers that stand where a list of pointers has names.
    let name = std::ptr::without_provenance_mut::<c_void>;
    let (at, of, end) = (name(1), name(2), null_mut());
    let mut short = [at, image, of, (&raw mut size).cast(), end];
    let mut unknown = [name(9), image, end];
    let mut sizeless = [at, image, end];
    for (values, extra) in [
        (null_mut(), null_mut()),
        (nulls.as_mut_ptr(), null_mut()),
        (null_mut(), short.as_mut_ptr()),
        (null_mut(), unknown.as_mut_ptr()),
        (null_mut(), sizeless.as_mut_ptr()),
        (nulls.as_mut_ptr(), short.as_mut_ptr()),
    ] {
        assert_eq!(run(values, extra), CUDA_ERROR_INVALID_VALUE);
    }
    context.synchronize().expect("nothing ran that could fail");
}

#[test]
fn occupancy_of_impossible_blocks() {
    let context = context();
    let scale = kernel(&context, SCALE, "scale");
    let function = scale.cu_function();
    let (mut number, mut block, mut bytes) = (9, 9, 9usize);
    let active = |number: &mut i32, threads, shared| {
        call!(cuOccupancyMaxActiveBlocksPerMultiprocessor(number, function, threads, shared))
    };
    assert_eq!(active(&mut number, 0, 0), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(active(&mut number, -5, 0), CUDA_ERROR_INVALID_VALUE);
    assert_eq!((active(&mut number, 2048, 0), number), (CUDA_SUCCESS, 0));
    assert_eq!((active(&mut number, 32, 1 << 40), number), (CUDA_SUCCESS, 0));
    let status =
        call!(cuOccupancyMaxPotentialBlockSize(&mut number, &mut block, function, None, 0, -1));
    assert_eq!(status, CUDA_ERROR_INVALID_VALUE);
    let available = |bytes: &mut usize, blocks, threads| {
        call!(cuOccupancyAvailableDynamicSMemPerBlock(bytes, function, blocks, threads))
    };
    assert_eq!(available(&mut bytes, 0, 32), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(available(&mut bytes, 99, 1024), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(available(&mut bytes, 2, 256), CUDA_SUCCESS);
}

#[test]
fn a_kernel_that_gives_up_breaks_its_context_only() {
    let text = CString::new(SPECIAL).expect("a text without NUL");
    let _context = context();
    std::thread::spawn(move || {
        type Create = unsafe extern "C" fn(*mut sys::CUcontext, u32, sys::CUdevice) -> CUresult;
        let (mut own, mut module, mut function) = (null_mut(), null_mut(), null_mut());
        // SAFETY: the function has this form, and the result a place.
        let status = unsafe {
            let create = sys::culib().get::<Create>(b"cuCtxCreate_v2").expect("the function");
            create(&mut own, 0, 0)
        };
        assert_eq!(status, CUDA_SUCCESS);
        assert_eq!(call!(cuModuleLoadData(&mut module, text.as_ptr().cast())), CUDA_SUCCESS);
        let name = c"give_up".as_ptr();
        assert_eq!(call!(cuModuleGetFunction(&mut function, module, name)), CUDA_SUCCESS);
        let null = null_mut();
        let launched =
            call!(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, null, null_mut(), null_mut()));
        assert_eq!(launched, CUDA_SUCCESS);
        assert_eq!(call!(cuCtxSynchronize()), CUDA_ERROR_LAUNCH_FAILED);
        assert_eq!(call!(cuStreamSynchronize(null_mut())), CUDA_ERROR_LAUNCH_FAILED);
        assert_eq!(call!(cuMemAlloc_v2(&mut 0, 16)), CUDA_ERROR_LAUNCH_FAILED);
        assert_eq!(call!(cuModuleUnload(module)), CUDA_ERROR_LAUNCH_FAILED);
        assert_eq!(call!(cuCtxDestroy_v2(own)), CUDA_SUCCESS);
    })
    .join()
    .expect("the thread");
    let memory = allocate(16);
    assert_eq!(call!(cuMemFree_v2(memory)), CUDA_SUCCESS);
}
