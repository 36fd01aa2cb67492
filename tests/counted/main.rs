//! Launches, copies and allocations, counted by the emulated device. The counters are the process's:
//! these tests have a process of their own, and wait for one another.

mod launches;
mod linear;

use std::sync::{Mutex, MutexGuard, PoisonError};

static COUNTERS: Mutex<()> = Mutex::new(());

/// Waits until no other test counts.
fn alone() -> MutexGuard<'static, ()> {
    COUNTERS.lock().unwrap_or_else(PoisonError::into_inner)
}
