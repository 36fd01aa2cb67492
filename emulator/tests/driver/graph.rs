//! Stream capture and the replay of graphs.

use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode as Mode, CUstreamCaptureStatus};
use cudarc::driver::{DriverError, LaunchConfig, PushKernelArg};

use crate::support::{SCALE, code, context, kernel};

type Outcome = Result<(), DriverError>;

const LOCAL: Mode = Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
const NO_FLAGS: sys::CUgraphInstantiate_flags = sys::CUgraphInstantiate_flags(0);
const SHAPE: LaunchConfig =
    LaunchConfig { grid_dim: (1, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };

#[test]
fn a_graph_repeats_what_was_captured() -> Outcome {
    let context = context();
    // SAFETY: everything runs in one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream()?;
    let scale = kernel(&context, SCALE, "scale");
    let mut x = stream.clone_htod(&[1.0f32; 256])?;
    let mut y = stream.alloc_zeros::<f32>(256)?;

    stream.begin_capture(LOCAL)?;
    assert_eq!(stream.capture_status()?, CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    {
        // The factor is gone when the graph runs: its value was copied.
        let factor = 2.0f32;
        let mut launch = stream.launch_builder(&scale);
        launch.arg(&mut y).arg(&x).arg(&factor).arg(&256u32);
        // SAFETY: the arguments are those of the kernel, and it checks its bounds.
        unsafe { launch.launch(SHAPE) }?;
    }
    stream.memcpy_dtod(&y, &mut x)?;
    let graph = stream.end_capture(NO_FLAGS)?.expect("a graph");

    // Nothing has run so far.
    assert_eq!(stream.clone_dtoh(&x)?, [1.0; 256]);
    graph.upload()?;
    for _ in 0..3 {
        graph.launch()?;
    }
    assert_eq!(stream.clone_dtoh(&x)?, [8.0; 256]);

    let mut count = 0;
    // SAFETY: the handle is the graph's, and the count has a place.
    let status = unsafe { sys::cuGraphGetNodes(graph.cu_graph(), null_mut(), &mut count) };
    assert_eq!((status, count), (CUresult::CUDA_SUCCESS, 2));
    let mut nodes = [null_mut(); 2];
    let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
    // SAFETY: as above; the list has room for two.
    unsafe {
        sys::cuGraphGetNodes(graph.cu_graph(), nodes.as_mut_ptr(), &mut count).result()?;
        sys::cuGraphNodeGetType(nodes[0], &mut kind).result()?;
        assert_eq!(kind, sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL);
        sys::cuGraphNodeGetType(nodes[1], &mut kind).result()?;
    }
    assert_eq!(kind, sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEMCPY);
    Ok(())
}

#[test]
fn a_second_stream_joins_by_an_event() -> Outcome {
    let context = context();
    // SAFETY: the streams wait for each other by events.
    unsafe { context.disable_event_tracking() };
    let first = context.new_stream()?;
    let second = context.new_stream()?;
    let mut a = first.alloc_zeros::<u8>(16)?;
    let mut b = first.alloc_zeros::<u8>(16)?;
    context.synchronize()?;

    first.begin_capture(LOCAL)?;
    first.memset_zeros(&mut a)?;
    second.join(&first)?;
    second.memset_zeros(&mut b)?;
    first.join(&second)?;
    let graph = first.end_capture(NO_FLAGS)?.expect("a graph");
    assert_eq!(second.capture_status()?, CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE);

    first.memcpy_htod(&[1; 16], &mut a)?;
    first.memcpy_htod(&[1; 16], &mut b)?;
    graph.launch()?;
    assert_eq!(first.clone_dtoh(&a)?, [0; 16]);
    assert_eq!(first.clone_dtoh(&b)?, [0; 16]);
    Ok(())
}

#[test]
fn a_stream_that_is_not_joined_spoils_the_capture() -> Outcome {
    let context = context();
    // SAFETY: nothing runs.
    unsafe { context.disable_event_tracking() };
    let first = context.new_stream()?;
    let second = context.new_stream()?;
    let mut a = first.alloc_zeros::<u8>(16)?;
    context.synchronize()?;
    first.begin_capture(LOCAL)?;
    second.join(&first)?;
    second.memset_zeros(&mut a)?;
    let ended = first.end_capture(NO_FLAGS);
    assert_eq!(code(ended), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    // Both streams are free again.
    first.synchronize()?;
    second.synchronize()
}

#[test]
fn waiting_is_not_captured() -> Outcome {
    let context = context();
    let stream = context.new_stream()?;
    let status = |result| code::<()>(result);
    stream.begin_capture(LOCAL)?;
    let unsupported = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    assert_eq!(status(stream.synchronize()), unsupported);
    // The capture is spoilt.
    assert_eq!(
        stream.capture_status()?,
        CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED
    );
    let ended = code(stream.end_capture(NO_FLAGS));
    assert_eq!(ended, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    stream.synchronize()
}

#[test]
fn calls_that_disturb_a_capture_are_refused() -> Outcome {
    let context = context();
    let stream = context.new_stream()?;
    stream.begin_capture(LOCAL)?;
    let mut address = 0;
    // SAFETY: the result has a place.
    let status = unsafe { sys::cuMemAlloc_v2(&mut address, 16) };
    assert_eq!(status, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let ended = code(stream.end_capture(NO_FLAGS));
    assert_eq!(ended, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    Ok(())
}

#[test]
fn an_event_from_outside_is_not_awaited_in_a_capture() -> Outcome {
    let context = context();
    let stream = context.new_stream()?;
    let outside = context.new_stream()?;
    let event = outside.record_event(None)?;
    stream.begin_capture(LOCAL)?;
    assert_eq!(code(stream.wait(&event)), CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    let ended = code(stream.end_capture(NO_FLAGS));
    assert_eq!(ended, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    Ok(())
}

#[test]
fn an_event_of_a_capture_has_no_time_and_no_end() -> Outcome {
    let context = context();
    let stream = context.new_stream()?;
    stream.begin_capture(LOCAL)?;
    let event = context.new_event(None)?;
    event.record(&stream)?;
    assert_eq!(code(event.try_is_complete()), CUresult::CUDA_ERROR_CAPTURED_EVENT);
    assert_eq!(code(event.synchronize()), CUresult::CUDA_ERROR_CAPTURED_EVENT);
    let graph = stream.end_capture(NO_FLAGS)?.expect("a graph");
    graph.launch()?;
    stream.synchronize()
}

#[test]
fn the_default_stream_is_not_captured() {
    let context = context();
    let begun = context.default_stream().begin_capture(LOCAL);
    assert_eq!(code(begun), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
}

#[test]
fn flags_that_contradict_each_other_are_refused() -> Outcome {
    let context = context();
    let stream = context.new_stream()?;
    stream.begin_capture(LOCAL)?;
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH
        | sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH;
    assert_eq!(code(stream.end_capture(flags)), CUresult::CUDA_ERROR_INVALID_VALUE);
    Ok(())
}
