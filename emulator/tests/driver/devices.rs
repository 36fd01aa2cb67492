//! Several devices in one process: what each has for itself, and what goes between them.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult::*};
use cudarc::driver::{CudaContext, DevicePtr, DriverError, LaunchConfig, PushKernelArg};

use crate::support::{SPECIAL, code, emulator, kernel};
use cuda_emulator::driver::Status;

macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: the pointers among the arguments lead to what the function expects.
        unsafe { sys::$function($($argument),*) }
    };
}

const ONE: LaunchConfig =
    LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };

/// Leaves the process with one device, as other tests expect it.
struct OneDevice;

impl Drop for OneDevice {
    fn drop(&mut self) {
        // A context that is still there is the failure of the test, which reports it itself.
        let _ = emulator().set_devices(1);
    }
}

/// The primary contexts of two devices.
fn two() -> [Arc<CudaContext>; 2] {
    emulator().set_devices(2).expect("no context is there yet");
    [0, 1].map(|ordinal| CudaContext::new(ordinal).expect("a context"))
}

#[test]
fn their_number_is_settled_before_there_is_a_context() {
    let _later = OneDevice;
    let emulator = emulator();
    assert_eq!(emulator.set_devices(0), Err(Status::INVALID_VALUE));
    assert_eq!(emulator.set_devices(9), Err(Status::INVALID_VALUE));
    let contexts = two();
    assert_eq!(CudaContext::device_count().expect("a number"), 2);
    assert_eq!(code(CudaContext::new(2)), CUDA_ERROR_INVALID_DEVICE);
    assert_eq!(emulator.set_devices(3), Err(Status::ILLEGAL_STATE));
    assert_eq!(emulator.set_devices(2), Ok(()));
    drop(contexts);
    assert_eq!(emulator.set_devices(1), Ok(()));
    assert_eq!(code(CudaContext::new(1)), CUDA_ERROR_INVALID_DEVICE);
}

#[test]
fn each_says_which_it_is() -> Result<(), DriverError> {
    let _later = OneDevice;
    let contexts = two();
    assert_ne!(contexts[0].uuid()?.bytes, contexts[1].uuid()?.bytes);
    for (ordinal, context) in contexts.iter().enumerate() {
        context.bind_to_thread()?;
        let (mut device, mut pools) = (-1, [std::ptr::null_mut(); 2]);
        assert_eq!(call!(cuCtxGetDevice(&mut device)), CUDA_SUCCESS);
        assert_eq!(device, ordinal as i32);
        let stream = context.default_stream();
        let memory = stream.alloc_zeros::<u32>(1)?;
        let ordinal_of = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
        let (address, _guard) = memory.device_ptr(&stream);
        let place = (&raw mut device).cast();
        assert_eq!(call!(cuPointerGetAttribute(place, ordinal_of, address)), CUDA_SUCCESS);
        assert_eq!(device, ordinal as i32);
        for (other, pool) in pools.iter_mut().enumerate() {
            assert_eq!(call!(cuDeviceGetDefaultMemPool(pool, other as i32)), CUDA_SUCCESS);
        }
        assert_ne!(pools[0], pools[1]);
    }
    Ok(())
}

#[test]
fn memory_and_errors_are_their_own() -> Result<(), DriverError> {
    let _later = OneDevice;
    let [first, second] = two();
    let (home, stream) = (first.default_stream(), second.default_stream());
    let memory = home.clone_htod(&[7u32])?;
    let store = kernel(&second, SPECIAL, "store");
    let address = memory.device_ptr(&home).0;
    let mut launch = stream.launch_builder(&store);
    launch.arg(&address).arg(&1u32);
    // SAFETY: the emulated device checks every access.
    assert_eq!(code(unsafe { launch.launch(ONE) }), CUDA_SUCCESS);
    assert_eq!(code(stream.synchronize()), CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(home.clone_dtoh(&memory)?, [7]);
    home.synchronize()
}

#[test]
fn threads_drive_one_each() {
    let _later = OneDevice;
    let sums = std::thread::scope(|scope| {
        two()
            .map(|context| {
                scope.spawn(move || -> Result<u64, DriverError> {
                    let stream = context.new_stream()?;
                    let mut sum = 0;
                    for step in 0..20u64 {
                        let memory = stream.clone_htod(&[step, context.ordinal() as u64])?;
                        sum += stream.clone_dtoh(&memory)?.iter().sum::<u64>();
                    }
                    Ok(sum)
                })
            })
            .map(|thread| thread.join().expect("no panic").expect("no fault"))
    });
    assert_eq!(sums, [190, 210]);
}

#[test]
fn copies_go_between_them() -> Result<(), DriverError> {
    let _later = OneDevice;
    let contexts = two();
    let streams = contexts.each_ref().map(|context| context.default_stream());
    let from = streams[0].clone_htod(&[1u32, 2, 3])?;
    let to = streams[1].alloc_zeros::<u32>(3)?;
    let (source, target) = (from.device_ptr(&streams[0]).0, to.device_ptr(&streams[1]).0);
    assert_ne!(source, target);
    let [first, second] = contexts.each_ref().map(|context| context.cu_ctx());
    assert_eq!(call!(cuMemcpyPeer(target, second, source, first, 12)), CUDA_SUCCESS);
    assert_eq!(streams[1].clone_dtoh(&to)?, [1, 2, 3]);
    Ok(())
}
