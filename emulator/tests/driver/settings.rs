//! The settings in the environment. They hold for a whole process, so that every test here runs
//! itself again in a process of its own.

use std::process::{Command, Output};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{CudaContext, DriverError, LaunchConfig, PushKernelArg};

use crate::support::{SPECIAL, code, context, emulator, kernel};
use cuda_emulator::client::{Choice, SelectError, select};

const INNER: &str = "CUDA_EMULATOR_TEST_INNER";

/// Runs `body` in a process of its own with these variables, in which the test calls this again.
fn with(name: &str, variables: &[(&str, &str)], body: impl FnOnce()) -> Option<Output> {
    if std::env::var_os(INNER).is_some() {
        body();
        return None;
    }
    let program = std::env::current_exe().expect("the test's own path");
    let output = Command::new(program)
        .args(["--exact", &format!("settings::{name}"), "--nocapture"])
        .env(INNER, "1")
        .envs(variables.iter().copied())
        .output()
        .expect("the test runs again");
    let report = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}");
    assert!(report.contains("1 passed"), "{report}");
    Some(output)
}

fn copies_work() -> Result<(), DriverError> {
    let stream = context().default_stream();
    let mut device = stream.clone_htod(&[1u64, 2, 3])?;
    assert_eq!(stream.clone_dtoh(&device)?, [1, 2, 3]);
    stream.memset_zeros(&mut device)?;
    assert_eq!(stream.clone_dtoh(&device)?, [0; 3]);
    drop(device);
    stream.synchronize()
}

#[test]
fn without_memory_pools() {
    with("without_memory_pools", &[("CUDA_EMULATOR_MEMORY_POOLS", "0")], || {
        let context = context();
        assert!(!context.has_async_alloc());
        copies_work().unwrap();
        let mut address = 0;
        // SAFETY: the result has a place.
        let status = unsafe { sys::cuMemAllocAsync(&mut address, 16, std::ptr::null_mut()) };
        assert_eq!(status, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    });
}

#[test]
fn with_memory_pools() {
    with("with_memory_pools", &[("CUDA_EMULATOR_MEMORY_POOLS", "1")], || {
        assert!(context().has_async_alloc());
        copies_work().unwrap();
    });
}

#[test]
fn another_profile() {
    with("another_profile", &[("CUDA_EMULATOR_PROFILE", "H100")], || {
        let context = context();
        assert_eq!(context.compute_capability().unwrap(), (9, 0));
        let attribute = Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        assert_eq!(context.attribute(attribute).unwrap(), 132);
        assert_eq!(emulator().device_name(), "Emulated H100");
    });
}

#[test]
fn several_devices() {
    with("several_devices", &[("CUDA_EMULATOR_DEVICE_COUNT", "3")], || {
        emulator();
        assert_eq!(CudaContext::device_count(), Ok(3));
        assert_eq!(CudaContext::new(2).map(|context| context.ordinal()), Ok(2));
    });
}

#[test]
fn more_devices_than_there_can_be() {
    let variables = [("CUDA_EMULATOR_DEVICE_COUNT", "9")];
    with("more_devices_than_there_can_be", &variables, || {
        let error = select(Choice::Emulated).unwrap_err().to_string();
        assert!(error.contains("9 devices"), "{error}");
    });
}

#[test]
fn an_unknown_profile() {
    let output = with("an_unknown_profile", &[("CUDA_EMULATOR_PROFILE", "z80")], || {
        match select(Choice::Emulated) {
            Err(SelectError::Initialise { reason }) => {
                assert!(reason.contains("z80"), "{reason}")
            }
            other => panic!("{other:?}"),
        }
    });
    if let Some(output) = output {
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains("CUDA_EMULATOR_PROFILE=z80"), "{message}");
    }
}

#[test]
fn an_explicit_path_to_nothing() {
    let variables = [("CUDA_EMULATOR_LIBRARY", "/nonexistent/libcuda_emulator.so")];
    with("an_explicit_path_to_nothing", &variables, || match select(Choice::Emulated) {
        Err(SelectError::LibraryNotFound { searched, cure }) => {
            assert_eq!(searched.len(), 1);
            assert!(cure.contains("CUDA_EMULATOR_LIBRARY"), "{cure}");
        }
        other => panic!("{other:?}"),
    });
}

#[test]
fn the_choice_of_the_environment() {
    with("the_choice_of_the_environment", &[("CUDA_EMULATOR_DEVICE", "emulated")], || {
        let choice = Choice::from_env().unwrap();
        assert_eq!(choice, Choice::Emulated);
        let selected = select(choice).unwrap();
        assert!(selected.emulator().is_some());
        assert!(select(Choice::Auto).unwrap().emulator().is_some());
        let error = select(Choice::Cuda).unwrap_err();
        assert!(matches!(error, SelectError::AlreadySelected { .. }), "{error}");
    });
}

#[test]
fn without_a_driver_the_emulator_is_selected() {
    with("without_a_driver_the_emulator_is_selected", &[], || match select(Choice::Cuda) {
        Err(SelectError::NoDriver { tried }) => {
            assert!(!tried.is_empty());
            assert!(select(Choice::Auto).unwrap().emulator().is_some());
        }
        // This machine has a driver: it wins, or has no device and does not.
        Ok(_) => assert!(select(Choice::Auto).unwrap().emulator().is_none()),
        Err(SelectError::NoDevice { .. }) => {
            assert!(select(Choice::Auto).unwrap().emulator().is_some());
        }
        Err(error) => panic!("{error}"),
    });
}

/// Launches a store, and reads the word in a stream that does not wait for it.
fn store_and_read_unawaited() -> Result<u32, DriverError> {
    let context = context();
    // SAFETY: the missing wait is the point.
    unsafe { context.disable_event_tracking() };
    let (writer, reader) = (context.new_stream()?, context.new_stream()?);
    let mut memory = writer.alloc_zeros::<u32>(1)?;
    writer.synchronize()?;
    let store = kernel(&context, SPECIAL, "store");
    let mut launch = writer.launch_builder(&store);
    launch.arg(&mut memory).arg(&5u32);
    let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the kernel stores one word.
    unsafe { launch.launch(shape) }?;
    Ok(reader.clone_dtoh(&memory)?[0])
}

#[test]
fn eager_streams() {
    with("eager_streams", &[("CUDA_EMULATOR_STREAMS", "eager")], || {
        assert_eq!(store_and_read_unawaited(), Ok(5));
    });
}

#[test]
fn lazy_streams() {
    with("lazy_streams", &[("CUDA_EMULATOR_STREAMS", "lazy")], || {
        assert_eq!(store_and_read_unawaited(), Ok(0));
    });
}

#[test]
fn blocking_launches() {
    with("blocking_launches", &[("CUDA_LAUNCH_BLOCKING", "1")], || {
        let context = context();
        let stream = context.default_stream();
        let give_up = kernel(&context, SPECIAL, "give_up");
        let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the kernel takes nothing.
        let launched = unsafe { stream.launch_builder(&give_up).launch(shape) };
        assert_eq!(code(launched), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    });
}

#[test]
fn a_configuration_precedes_the_first_context() {
    with("a_configuration_precedes_the_first_context", &[], || {
        let emulator = emulator();
        let config = cuda_emulator::Config { threads: 1, seed: 7, ..Default::default() };
        emulator.configure(&config).unwrap();
        let context = context();
        let status = emulator.configure(&config).unwrap_err();
        assert_eq!(status.name(), "CUDA_ERROR_ILLEGAL_STATE");
        drop(context);
    });
}

/// Launches a store of one word, twice, and checks what was measured.
fn launches_are_measured() {
    let emulator = emulator();
    let context = context();
    let stream = context.default_stream();
    let mut memory = stream.alloc_zeros::<u32>(1).unwrap();
    emulator.reset_counters();
    assert_eq!(emulator.launches(), []);
    let store = kernel(&context, SPECIAL, "store");
    for blocks in [1, 3] {
        let mut launch = stream.launch_builder(&store);
        launch.arg(&mut memory).arg(&5u32);
        let (grid_dim, block_dim) = ((blocks, 1, 1), (32, 2, 1));
        // SAFETY: the kernel stores one word.
        unsafe { launch.launch(LaunchConfig { grid_dim, block_dim, shared_mem_bytes: 64 }) }
            .unwrap();
    }
    let launches = emulator.launches();
    assert_eq!(launches.len(), 2);
    for (launch, blocks) in launches.iter().zip([1, 3]) {
        assert_eq!(launch.kernel, "store");
        assert_eq!([launch.grid, launch.block], [[blocks, 1, 1], [32, 2, 1]]);
        assert_eq!([launch.static_shared, launch.dynamic_shared], [0, 64]);
        let counters = launch.counters;
        let stores = u64::from(2 * blocks);
        assert_eq!([counters.global_stores, counters.sectors_written], [stores; 2]);
        assert_eq!([counters.dram_bytes_written, counters.dram_sectors_written], [4, 1]);
        assert_eq!(counters.by_class.total(), counters.instructions);
    }
    // What the process did is the sum.
    let (all, [first, second]) = (emulator.counters(), [0, 1].map(|at| launches[at].counters));
    assert_eq!(all.dram_bytes_written, 8);
    assert_eq!(all.instructions, first.instructions + second.instructions);
    assert_eq!(emulator.launches(), launches);
    // They outlive their context.
    drop((memory, stream, store, context));
    assert_eq!(emulator.launches(), launches);
    emulator.reset_counters();
    assert_eq!(emulator.launches(), []);
}

#[test]
fn measuring_by_the_environment() {
    // All threads store to one word.
    let variables = [("CUDA_EMULATOR_MEASURE", "1"), ("CUDA_EMULATOR_SANITIZER", "0")];
    with("measuring_by_the_environment", &variables, launches_are_measured);
}

#[test]
fn measuring_by_configuration() {
    with("measuring_by_configuration", &[], || {
        let config =
            cuda_emulator::Config { measure: true, sanitizer: false, ..Default::default() };
        emulator().configure(&config).unwrap();
        launches_are_measured();
    });
}
