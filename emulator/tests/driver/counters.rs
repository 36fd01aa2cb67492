//! What the emulator counts while a program runs.

use cudarc::driver::{DriverError, LaunchConfig};

use crate::support::{SPECIAL, context, emulator, kernel};

#[test]
fn calls_are_counted() -> Result<(), DriverError> {
    let emulator = emulator();
    let context = context();
    let stream = context.default_stream();
    let nothing = kernel(&context, SPECIAL, "nothing");
    emulator.reset_counters();
    assert_eq!(emulator.counters(), Default::default());

    let device = stream.clone_htod(&[1u32; 16])?;
    let mut other = stream.alloc_zeros::<u32>(16)?;
    stream.memcpy_dtod(&device, &mut other)?;
    let shape = LaunchConfig { grid_dim: (2, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the kernel takes nothing.
    unsafe { stream.launch_builder(&nothing).launch(shape) }?;
    let counters = emulator.counters();
    assert_eq!(counters.allocations, 2);
    assert_eq!(counters.copies_htod, 1);
    assert_eq!(counters.copies_dtod, 1);
    assert_eq!(counters.memsets, 1);
    assert_eq!(counters.launches, 1);
    assert_eq!(counters.synchronizations, 0);
    // Two blocks of two warps execute `ret`.
    assert_eq!(counters.instructions, 4);

    assert_eq!(stream.clone_dtoh(&other)?, [1; 16]);
    drop((device, other));
    stream.synchronize()?;
    let counters = emulator.counters();
    assert_eq!(counters.copies_dtoh, 1);
    assert_eq!(counters.frees, 2);
    // The copy to memory that is not page-locked, and the call.
    assert_eq!(counters.synchronizations, 2);
    Ok(())
}
