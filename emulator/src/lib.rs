//! A CUDA device in software.
//!
//! [`Device`] holds global memory, loads modules of PTX text and runs their kernels on the CPU. It
//! is strict: an instruction, modifier or directive that it does not know refuses the module, and
//! an access outside of an allocation, a misaligned address, a missing lane or a barrier that
//! cannot complete stops the launch with a [`Fault`] that names the kernel, the source line, the
//! thread and the address. What a program leaves undefined (fresh memory, fresh registers, the
//! destination of an asynchronous copy that nothing waited for) holds a poison that reads as NaN.
//!
//! Its sanitizer, which is on unless [`Config::sanitizer`] says otherwise, makes faults of reads of
//! memory (global, shared, local) and uses of registers that nothing wrote, of races within and
//! between blocks, and of asynchronous copies that nothing waited for. [`Config::seed`] draws other
//! schedules, [`Config::accumulator`] and [`Config::jitter`] other roundings: a program that is
//! right is right under all of them.
//!
//! With [`Config::measure`] it counts what a profiler would: instructions by class, sectors, bytes
//! of device memory, bank conflicts. It says nothing about time: a device profile gives limits and
//! capabilities, not speed.

pub mod client;
mod config;
pub mod counters;
mod decode;
mod device;
pub mod driver;
mod exec;
pub mod fault;
mod heap;
mod launch;
pub mod memory;
mod module;
pub mod profile;
mod program;
mod ptx;

pub use config::{Accumulator, Config};
pub use counters::{ByClass, Counters, InstructionClass, MeasuredLaunch};
pub use decode::{Form, Needs, Slot, supported_forms};
pub use device::Device;
pub use fault::{Fault, FaultKind};
pub use launch::{InvalidLaunch, Launch, LaunchError};
pub use memory::MemoryError;
pub use module::{EntryPoint, Module, ModuleError};
pub use profile::Profile;
pub use program::Param;
