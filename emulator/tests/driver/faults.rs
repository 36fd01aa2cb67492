//! Kernels that go wrong: the error stays with the context until the context ends.

use std::sync::Arc;

use cudarc::driver::sys::CUresult::{self, *};
use cudarc::driver::{CudaContext, CudaStream, DriverError, LaunchConfig, PushKernelArg};

use crate::support::{SPECIAL, code, context, emulator, kernel};

const ONE: LaunchConfig =
    LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };

/// Stores a word at an address that may be anything.
fn store(context: &Arc<CudaContext>, stream: &CudaStream, address: u64) -> CUresult {
    let store = kernel(context, SPECIAL, "store");
    let mut launch = stream.launch_builder(&store);
    launch.arg(&address).arg(&1u32);
    // SAFETY: the emulated device checks every access.
    code(unsafe { launch.launch(ONE) })
}

/// Expects that the error is found when the device is awaited, and stays.
fn expect_sticky(context: &Arc<CudaContext>, stream: &Arc<CudaStream>, expected: CUresult) {
    assert_eq!(code(stream.synchronize()), expected);
    assert_eq!(code(context.synchronize()), expected);
    assert_eq!(code(stream.alloc_zeros::<u8>(16)), expected);
    assert_eq!(code(context.load_module(cudarc::nvrtc::Ptx::from_src(SPECIAL))), expected);
}

/// Expects that a fresh context works.
fn expect_recovery() -> Result<(), DriverError> {
    let context = context();
    let stream = context.default_stream();
    assert_eq!(stream.clone_dtoh(&stream.clone_htod(&[3u8; 4])?)?, [3; 4]);
    Ok(())
}

#[test]
fn a_stray_store_is_an_illegal_address() -> Result<(), DriverError> {
    let context = context();
    let stream = context.default_stream();
    let memory = stream.alloc_zeros::<u32>(4)?;
    let address = {
        use cudarc::driver::DevicePtr;
        memory.device_ptr(&stream).0
    };
    assert_eq!(store(&context, &stream, address + 16), CUDA_SUCCESS);
    expect_sticky(&context, &stream, CUDA_ERROR_ILLEGAL_ADDRESS);
    let report = emulator().last_fault().expect("a report");
    assert!(report.contains("store"), "{report}");
    assert!(report.contains(&format!("{:#x}", address + 16)), "{report}");
    // Every call that fails for it says what went wrong first.
    let error = emulator().last_error().expect("an error");
    assert!(error.contains("earlier kernel or copy") && error.contains(&report), "{error}");
    drop(memory);
    drop((stream, context));
    expect_recovery()
}

#[test]
fn a_crooked_store_is_a_misaligned_address() -> Result<(), DriverError> {
    let context = context();
    let stream = context.default_stream();
    let memory = stream.alloc_zeros::<u32>(4)?;
    let address = {
        use cudarc::driver::DevicePtr;
        memory.device_ptr(&stream).0
    };
    assert_eq!(store(&context, &stream, address + 2), CUDA_SUCCESS);
    expect_sticky(&context, &stream, CUDA_ERROR_MISALIGNED_ADDRESS);
    drop(memory);
    drop((stream, context));
    expect_recovery()
}

#[test]
fn freed_memory_is_an_illegal_address() -> Result<(), DriverError> {
    let context = context();
    let stream = context.default_stream();
    let memory = stream.alloc_zeros::<u32>(4)?;
    let address = {
        use cudarc::driver::DevicePtr;
        memory.device_ptr(&stream).0
    };
    drop(memory);
    assert_eq!(store(&context, &stream, address), CUDA_SUCCESS);
    expect_sticky(&context, &stream, CUDA_ERROR_ILLEGAL_ADDRESS);
    drop((stream, context));
    expect_recovery()
}

#[test]
fn a_trap_is_a_failed_launch() -> Result<(), DriverError> {
    let context = context();
    let stream = context.default_stream();
    let give_up = kernel(&context, SPECIAL, "give_up");
    // SAFETY: the kernel takes nothing.
    unsafe { stream.launch_builder(&give_up).launch(ONE) }?;
    expect_sticky(&context, &stream, CUDA_ERROR_LAUNCH_FAILED);
    drop(give_up);
    drop((stream, context));
    expect_recovery()
}

#[test]
fn a_missing_wait_shows() -> Result<(), DriverError> {
    let context = context();
    // SAFETY: the missing wait is the point.
    unsafe { context.disable_event_tracking() };
    let (writer, reader) = (context.new_stream()?, context.new_stream()?);
    let mut memory = writer.alloc_zeros::<u32>(4)?;
    writer.synchronize()?;
    let store = kernel(&context, SPECIAL, "store");
    let mut launch = writer.launch_builder(&store);
    launch.arg(&mut memory).arg(&77u32);
    // SAFETY: the kernel stores one word.
    unsafe { launch.launch(ONE) }?;
    // The reader does not wait for the writer, which therefore has not run yet.
    assert_eq!(reader.clone_dtoh(&memory)?[0], 0);
    reader.join(&writer)?;
    assert_eq!(reader.clone_dtoh(&memory)?[0], 77);
    Ok(())
}

/// An event of a whole context comes after the work of all its streams, and work may wait for it.
#[test]
fn an_event_marks_what_a_context_was_given() -> Result<(), DriverError> {
    use cudarc::driver::sys;
    let context = context();
    // SAFETY: the events of the test order what must be in order.
    unsafe { context.disable_event_tracking() };
    let (writer, reader) = (context.new_stream()?, context.new_stream()?);
    let mut memory = writer.alloc_zeros::<u32>(4)?;
    writer.synchronize()?;
    let event = context.new_event(None)?;
    let store = kernel(&context, SPECIAL, "store");
    let mut launch = writer.launch_builder(&store);
    launch.arg(&mut memory).arg(&77u32);
    // SAFETY: the kernel stores one word.
    unsafe { launch.launch(ONE) }?;
    let (own, event) = (context.cu_ctx(), event.cu_event());
    // SAFETY: both are live, or null where the driver must find it.
    let record = |context| unsafe { sys::cuCtxRecordEvent(context, event) };
    assert_eq!(record(std::ptr::null_mut()), CUDA_ERROR_INVALID_CONTEXT);
    assert_eq!(record(own), CUDA_SUCCESS);
    // SAFETY: as above.
    let query = || unsafe { sys::cuEventQuery(event) };
    assert_eq!(query(), CUDA_ERROR_NOT_READY);
    // SAFETY: as above.
    assert_eq!(unsafe { sys::cuCtxWaitEvent(own, event) }, CUDA_SUCCESS);
    assert_eq!(query(), CUDA_SUCCESS);
    assert_eq!(reader.clone_dtoh(&memory)?[0], 77);
    // A stream that is captured refuses both.
    use sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    for records in [true, false] {
        writer.begin_capture(CU_STREAM_CAPTURE_MODE_RELAXED)?;
        // SAFETY: as above.
        let wait = || unsafe { sys::cuCtxWaitEvent(own, event) };
        let status = if records { record(own) } else { wait() };
        assert_eq!(status, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream is live and the graph has a place.
        let ended = unsafe { sys::cuStreamEndCapture(writer.cu_stream(), &mut graph) };
        assert_eq!(ended, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
    Ok(())
}

#[test]
fn reset_ends_everything() -> Result<(), DriverError> {
    let emulator = emulator();
    let context = context();
    let stream = context.default_stream();
    let memory = stream.alloc_zeros::<u8>(64)?;
    emulator.reset();
    assert_eq!(code(stream.synchronize()), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    // Their handles are void: nothing is left to release.
    std::mem::forget((memory, stream, context));
    expect_recovery()
}
