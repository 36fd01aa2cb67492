//! The emulated device through unmodified cudarc: what programs do when all goes well.

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUevent_flags};
use cudarc::driver::{CudaContext, DriverError, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use crate::support::{SCALE, SPECIAL, context, emulator, kernel};

type Outcome = Result<(), DriverError>;

#[test]
fn the_device_says_that_it_is_emulated() -> Outcome {
    let context = context();
    assert!(context.name()?.starts_with("Emulated"), "{}", context.name()?);
    assert_eq!(CudaContext::device_count()?, 1);
    assert_eq!(context.compute_capability()?, (8, 0));
    assert_eq!(emulator().device_name(), "Emulated A100");
    Ok(())
}

#[test]
fn attributes_follow_the_profile() -> Outcome {
    let context = context();
    let attribute = |which| context.attribute(which);
    assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?, 108);
    assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE)?, 32);
    assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?, 1024);
    assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z)?, 64);
    assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?, 65535);
    let optin = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    assert_eq!(attribute(optin)?, 163 << 10);
    assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)?, 1);
    assert!(context.has_async_alloc());
    assert_eq!(context.total_mem()?, 40 << 30);
    Ok(())
}

#[test]
fn memory_goes_there_and_back() -> Outcome {
    let stream = context().default_stream();
    let there: Vec<u32> = (0..1000).collect();
    let device = stream.clone_htod(&there)?;
    let mut other = stream.alloc_zeros::<u32>(1000)?;
    assert_eq!(stream.clone_dtoh(&other)?, [0; 1000]);
    stream.memcpy_dtod(&device.slice(500..), &mut other.slice_mut(..500))?;
    let back = stream.clone_dtoh(&other)?;
    assert_eq!(back[..500], there[500..]);
    assert_eq!(back[500..], [0; 500]);
    stream.synchronize()
}

#[test]
fn memory_in_use_is_reported() -> Outcome {
    let context = context();
    let (_, total) = context.mem_get_info()?;
    assert_eq!(total, context.total_mem()?);
    let stream = context.new_stream()?;
    let held = stream.alloc_zeros::<u8>(1 << 20)?;
    let (free, _) = context.mem_get_info()?;
    assert!(free <= total - (1 << 20), "{free} of {total} bytes are free");
    drop(held);
    stream.synchronize()
}

#[test]
fn an_allocation_of_nothing_is_null() -> Outcome {
    let stream = context().default_stream();
    let nothing = stream.null::<f32>()?;
    assert_eq!(nothing.len(), 0);
    assert_eq!(stream.clone_dtoh(&nothing)?, []);
    Ok(())
}

#[test]
fn pinned_memory_is_copied_in_order() -> Outcome {
    let context = context();
    let stream = context.new_stream()?;
    // SAFETY: the emulated driver returns zeroed memory; it is written before it is read.
    let mut pinned = unsafe { context.alloc_pinned::<u16>(64) }?;
    pinned.as_mut_slice()?.copy_from_slice(&[7; 64]);
    let mut device = stream.alloc_zeros::<u16>(64)?;
    stream.memcpy_htod(&pinned, &mut device)?;
    assert_eq!(stream.clone_dtoh(&device)?, [7; 64]);
    Ok(())
}

#[test]
fn a_kernel_runs() -> Outcome {
    let context = context();
    let stream = context.default_stream();
    let scale = kernel(&context, SCALE, "scale");
    let x: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let x = stream.clone_htod(&x)?;
    let mut out = stream.alloc_zeros::<f32>(1000)?;
    let shape = LaunchConfig { grid_dim: (4, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
    let mut launch = stream.launch_builder(&scale);
    launch.arg(&mut out).arg(&x).arg(&2.5f32).arg(&1000u32);
    // SAFETY: the arguments are those of the kernel, and it checks its bounds.
    unsafe { launch.launch(shape) }?;
    let out = stream.clone_dtoh(&out)?;
    assert!(out.iter().enumerate().all(|(i, &value)| value == 2.5 * i as f32));
    Ok(())
}

#[test]
fn streams_wait_for_each_other_by_events() -> Outcome {
    let context = context();
    let first = context.new_stream()?;
    let second = context.new_stream()?;
    let scale = kernel(&context, SCALE, "scale");
    let x = first.clone_htod(&vec![1.0f32; 256])?;
    let mut y = first.alloc_zeros::<f32>(256)?;
    let mut z = first.alloc_zeros::<f32>(256)?;
    let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
    let mut launch = first.launch_builder(&scale);
    launch.arg(&mut y).arg(&x).arg(&3.0f32).arg(&256u32);
    // SAFETY: the arguments are those of the kernel, and it checks its bounds.
    unsafe { launch.launch(shape) }?;
    second.join(&first)?;
    let mut launch = second.launch_builder(&scale);
    launch.arg(&mut z).arg(&y).arg(&5.0f32).arg(&256u32);
    // SAFETY: as above.
    unsafe { launch.launch(shape) }?;
    assert_eq!(second.clone_dtoh(&z)?, [15.0; 256]);
    Ok(())
}

#[test]
fn events_measure_the_time_of_the_emulator() -> Outcome {
    let context = context();
    let stream = context.new_stream()?;
    let timed = Some(CUevent_flags::CU_EVENT_DEFAULT);
    let start = stream.record_event(timed)?;
    let memory = stream.alloc_zeros::<u8>(1 << 20)?;
    let end = stream.record_event(timed)?;
    let milliseconds = start.elapsed_ms(&end)?;
    assert!((0.0..60e3).contains(&milliseconds), "{milliseconds} ms");
    assert!(end.is_complete());
    drop(memory);
    Ok(())
}

#[test]
fn a_query_comes_to_an_end() -> Outcome {
    let context = context();
    let stream = context.new_stream()?;
    let memory = stream.alloc_zeros::<u8>(16)?;
    let event = stream.record_event(None)?;
    let mut queries = 0;
    while !event.try_is_complete()? {
        queries += 1;
        assert!(queries < 100, "the event does not complete");
    }
    drop(memory);
    Ok(())
}

#[test]
fn variables_of_a_module_are_memory() -> Outcome {
    let context = context();
    let stream = context.default_stream();
    let module = context.load_module(Ptx::from_src(SCALE))?;
    let mut variable = module.get_global("launches", &stream)?;
    assert_eq!(variable.len(), 4);
    stream.memcpy_htod(&[1u8, 2, 3, 4], &mut variable)?;
    assert_eq!(stream.clone_dtoh(&variable)?, [1, 2, 3, 4]);
    Ok(())
}

#[test]
fn dynamic_shared_memory_reaches_the_opt_in_limit() -> Outcome {
    let context = context();
    let stream = context.default_stream();
    let echo = kernel(&context, SPECIAL, "shared_echo");
    let most = 163 << 10;
    let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    assert_eq!(echo.get_attribute(which)?, 48 << 10);
    echo.set_attribute(which, most)?;
    assert_eq!(echo.get_attribute(which)?, most);
    let mut out = stream.alloc_zeros::<u32>(128)?;
    let shape =
        LaunchConfig { grid_dim: (1, 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: most as u32 };
    let mut launch = stream.launch_builder(&echo);
    launch.arg(&mut out);
    // SAFETY: the argument is that of the kernel, and the memory has room for the block.
    unsafe { launch.launch(shape) }?;
    let expected: Vec<u32> = (0..128).collect();
    assert_eq!(stream.clone_dtoh(&out)?, expected);
    Ok(())
}

#[test]
fn occupancy_follows_shared_memory_and_threads() -> Outcome {
    let context = context();
    let nothing = kernel(&context, SPECIAL, "nothing");
    let blocks = |threads, shared| {
        nothing.occupancy_max_active_blocks_per_multiprocessor(threads, shared, None)
    };
    assert_eq!(blocks(1024, 0)?, 2);
    assert_eq!(blocks(256, 0)?, 8);
    assert_eq!(blocks(32, 0)?, 32);
    // 48 KiB and the reserved KiB fit three times into 164 KiB.
    assert_eq!(blocks(32, 48 << 10)?, 3);
    // More than the function is allowed to use.
    assert_eq!(blocks(32, 100 << 10)?, 0);
    let room = nothing.occupancy_available_dynamic_smem_per_block(2, 1024)?;
    assert_eq!(room, (164 / 2 - 1) << 10);
    extern "C" fn none(_threads: std::ffi::c_int) -> usize {
        0
    }
    let (grid, block) = nothing.occupancy_max_potential_block_size(none, 0, 0, None)?;
    assert_eq!((grid, block), (2 * 108, 1024));
    Ok(())
}

#[test]
fn function_attributes_say_what_the_text_says() -> Outcome {
    let context = context();
    let scale = kernel(&context, SCALE, "scale");
    assert_eq!(scale.max_threads_per_block()?, 256);
    assert_eq!(scale.shared_size_bytes()?, 0);
    assert_eq!(scale.ptx_version()?, 80);
    assert_eq!(scale.binary_version()?, 80);
    assert!((1..=255).contains(&scale.num_regs()?));
    Ok(())
}

#[test]
fn a_cooperative_launch_runs() -> Outcome {
    let context = context();
    let stream = context.default_stream();
    let store = kernel(&context, SPECIAL, "store");
    let mut out = stream.alloc_zeros::<u32>(1)?;
    let mut launch = stream.launch_builder(&store);
    launch.arg(&mut out).arg(&9u32);
    let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the arguments are those of the kernel; it stores one word.
    unsafe { launch.launch_cooperative(shape) }?;
    assert_eq!(stream.clone_dtoh(&out)?, [9]);
    Ok(())
}

#[test]
fn host_functions_run_in_their_turn() -> Outcome {
    unsafe extern "C" fn copy(argument: *mut std::ffi::c_void) {
        // SAFETY: the test passes a pair of words, which it leaves alone until then.
        let pair = unsafe { &mut *argument.cast::<[u32; 2]>() };
        pair[1] = pair[0];
    }
    let context = context();
    let stream = context.new_stream()?;
    let mut pair = [5u32, 0];
    let argument = (&raw mut pair).cast();
    // SAFETY: the function takes such a pair, which lives until the stream is synchronised.
    unsafe {
        cudarc::driver::result::stream::launch_host_function(stream.cu_stream(), copy, argument)
    }?;
    stream.synchronize()?;
    assert_eq!(pair, [5, 5]);
    Ok(())
}
