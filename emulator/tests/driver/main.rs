//! The emulated driver: through unmodified cudarc, from C, and through the example `run_ptx`.
//!
//! All tests of one process share its one device, and some of them count calls, break the context
//! or change the number of devices. Whoever asks `support` for the device therefore has it alone
//! until the thread of the test ends.

mod arguments;
#[cfg(unix)]
mod c_program;
mod counters;
mod devices;
mod faults;
mod graph;
mod limits;
mod memory;
mod misuse;
mod programs;
mod ranges;
mod run_ptx;
mod settings;
mod support;
