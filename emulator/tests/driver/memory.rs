//! The less common ways to memory: pools, pitched memory, copies of rectangles and across contexts.

use std::ffi::c_void;
use std::ptr::null_mut;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUmemPool_attribute, CUresult::*};

use crate::support::{context, emulator};

/// Calls a driver function whose arguments are what it expects, or wrong in a way that it finds.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: the pointers among the arguments lead to what the function expects.
        unsafe { sys::$function($($argument),*) }
    };
}

#[test]
fn pools_keep_books() {
    let context = context();
    let mut pool = null_mut();
    assert_eq!(call!(cuDeviceGetDefaultMemPool(&mut pool, 0)), CUDA_SUCCESS);
    let mut current = null_mut();
    assert_eq!(call!(cuDeviceGetMemPool(&mut current, 0)), CUDA_SUCCESS);
    assert_eq!(pool, current);

    let mut threshold = u64::MAX;
    let which = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let place = (&raw mut threshold).cast::<c_void>();
    assert_eq!(call!(cuMemPoolSetAttribute(pool, which, place)), CUDA_SUCCESS);
    threshold = 0;
    assert_eq!(call!(cuMemPoolGetAttribute(pool, which, place)), CUDA_SUCCESS);
    assert_eq!(threshold, u64::MAX);

    let stream = context.new_stream().unwrap();
    let mut address = 0;
    let allocate = call!(cuMemAllocFromPoolAsync(&mut address, 4096, pool, stream.cu_stream()));
    assert_eq!(allocate, CUDA_SUCCESS);
    let mut used = 0u64;
    let which = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
    let place = (&raw mut used).cast::<c_void>();
    assert_eq!(call!(cuMemPoolGetAttribute(pool, which, place)), CUDA_SUCCESS);
    assert!(used >= 4096, "{used} bytes");
    assert_eq!(call!(cuMemPoolTrimTo(pool, 0)), CUDA_SUCCESS);
    assert_eq!(call!(cuMemFreeAsync(address, stream.cu_stream())), CUDA_SUCCESS);
    assert_eq!(call!(cuMemPoolDestroy(pool)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemPoolTrimTo(null_mut(), 0)), CUDA_ERROR_INVALID_HANDLE);
    stream.synchronize().unwrap();
}

#[test]
fn rectangles_are_copied_row_by_row() {
    const WIDTH: usize = 24;
    const HEIGHT: usize = 5;
    let context = context();
    let (mut address, mut pitch) = (0, 0);
    let allocate = call!(cuMemAllocPitch_v2(&mut address, &mut pitch, WIDTH, HEIGHT, 4));
    assert_eq!(allocate, CUDA_SUCCESS);
    assert!(pitch >= WIDTH && pitch.is_multiple_of(16), "a pitch of {pitch} bytes");
    let there: Vec<u8> = (0..(WIDTH * HEIGHT) as u8).collect();
    let mut back = vec![0u8; WIDTH * HEIGHT];

    let mut copy = sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: there.as_ptr().cast(),
        srcDevice: 0,
        srcArray: null_mut(),
        srcPitch: WIDTH,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: null_mut(),
        dstDevice: address,
        dstArray: null_mut(),
        dstPitch: pitch,
        WidthInBytes: WIDTH,
        Height: HEIGHT,
    };
    assert_eq!(call!(cuMemcpy2D_v2(&copy)), CUDA_SUCCESS);
    copy.Height = HEIGHT + 1;
    assert_eq!(call!(cuMemcpy2D_v2(&copy)), CUDA_ERROR_INVALID_VALUE);
    copy.Height = HEIGHT;
    copy.dstPitch = WIDTH - 1;
    assert_eq!(call!(cuMemcpy2D_v2(&copy)), CUDA_ERROR_INVALID_VALUE);

    // Back without the first row and column.
    copy.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_UNIFIED;
    copy.srcDevice = address;
    copy.srcPitch = pitch;
    copy.srcXInBytes = 1;
    copy.srcY = 1;
    copy.dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
    copy.dstHost = back.as_mut_ptr().cast();
    copy.dstPitch = WIDTH;
    copy.WidthInBytes = WIDTH - 1;
    copy.Height = HEIGHT - 1;
    let stream = context.new_stream().unwrap();
    assert_eq!(call!(cuMemcpy2DAsync_v2(&copy, stream.cu_stream())), CUDA_SUCCESS);
    for row in 0..HEIGHT - 1 {
        let expected = &there[(row + 1) * WIDTH + 1..][..WIDTH - 1];
        assert_eq!(&back[row * WIDTH..][..WIDTH - 1], expected, "row {row}");
    }
    assert_eq!(call!(cuMemFree_v2(address)), CUDA_SUCCESS);
}

#[test]
fn memory_goes_from_context_to_context() {
    type Create = unsafe extern "C" fn(*mut sys::CUcontext, u32, sys::CUdevice) -> sys::CUresult;
    emulator();
    std::thread::spawn(|| {
        let mut contexts = [null_mut(); 2];
        let mut addresses = [0; 2];
        for (context, address) in contexts.iter_mut().zip(&mut addresses) {
            // SAFETY: the function has this form, and the result a place.
            let created = unsafe {
                let create = sys::culib().get::<Create>(b"cuCtxCreate_v2").expect("the function");
                create(context, 0, 0)
            };
            assert_eq!(created, CUDA_SUCCESS);
            assert_eq!(call!(cuMemAlloc_v2(address, 8)), CUDA_SUCCESS);
        }
        // The second context is current: its memory is filled, and the first one's is not its own.
        let ([first, second], [there, here]) = (contexts, addresses);
        assert_eq!(call!(cuMemsetD8_v2(here, 6, 8)), CUDA_SUCCESS);
        assert_eq!(call!(cuMemcpyPeer(there, first, here, second, 8)), CUDA_SUCCESS);
        assert_eq!(call!(cuMemcpyPeer(there, first, here, second, 9)), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(call!(cuMemFree_v2(here)), CUDA_SUCCESS);
        assert_eq!(call!(cuCtxDestroy_v2(second)), CUDA_SUCCESS);
        let mut bytes = [0u8; 8];
        let place = bytes.as_mut_ptr().cast();
        assert_eq!(call!(cuMemcpyDtoH_v2(place, there, 8)), CUDA_SUCCESS);
        assert_eq!(bytes, [6; 8]);
        assert_eq!(call!(cuMemFree_v2(there)), CUDA_SUCCESS);
        assert_eq!(call!(cuCtxDestroy_v2(first)), CUDA_SUCCESS);
    })
    .join()
    .unwrap();
}

#[test]
fn registered_memory_is_page_locked() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let mut host = vec![1u8; 4096];
    let start = host.as_mut_ptr().cast::<c_void>();
    assert_eq!(call!(cuMemHostRegister_v2(start, 4096, 0)), CUDA_SUCCESS);
    let again = call!(cuMemHostRegister_v2(start.wrapping_byte_add(64), 64, 0));
    assert_eq!(again, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    let device = stream.alloc_zeros::<u8>(4096).unwrap();
    {
        use cudarc::driver::DevicePtr;
        let (address, _guard) = device.device_ptr(&stream);
        // The copy runs when the stream is awaited, and not before.
        let copy = call!(cuMemcpyDtoHAsync_v2(start, address, 4096, stream.cu_stream()));
        assert_eq!(copy, CUDA_SUCCESS);
    }
    assert_eq!(host[0], 1);
    stream.synchronize().unwrap();
    assert_eq!(host, [0; 4096]);
    assert_eq!(call!(cuMemHostUnregister(start)), CUDA_SUCCESS);
    let again = call!(cuMemHostUnregister(start));
    assert_eq!(again, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

#[test]
fn functions_are_found_by_name() {
    let _context = context();
    let mut function = null_mut();
    let mut status = sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    let name = c"cuMemAlloc".as_ptr();
    let found = call!(cuGetProcAddress_v2(name, &mut function, 12000, 0, &mut status));
    assert_eq!(found, CUDA_SUCCESS);
    assert_eq!(status, sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS);
    // SAFETY: the address is only compared.
    let exported = unsafe { sys::culib().get::<*mut c_void>(b"cuMemAlloc_v2").unwrap() };
    // SAFETY: as above: a symbol is as wide as a pointer.
    assert_eq!(function, unsafe { exported.try_as_raw_ptr().unwrap() });
    let name = c"cuNoSuchFunction".as_ptr();
    let found = call!(cuGetProcAddress_v2(name, &mut function, 12000, 0, &mut status));
    assert_eq!(found, CUDA_ERROR_NOT_FOUND);
    assert!(function.is_null());
}

#[test]
fn what_the_device_lacks_is_refused() {
    let _context = context();
    let flags = sys::CUmemAttach_flags::CU_MEM_ATTACH_GLOBAL;
    // SAFETY: the result is not used.
    let managed = unsafe { result::malloc_managed(16, flags) };
    assert_eq!(managed.unwrap_err().0, CUDA_ERROR_NOT_SUPPORTED);
}
