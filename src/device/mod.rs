//! The device: contexts, the compiled kernels and their launches, and scratch memory. It knows no op.

mod arch;
mod borrow;
mod code;
mod kernels;
mod launch;
mod memory;
mod open;
mod tiling;
mod workspace;

pub(crate) use arch::Arch;
pub use borrow::borrow_context;
#[doc(hidden)]
pub use code::load_image;
pub use kernels::Kernels;
pub(crate) use launch::{Kernel, Launch, THREADS};
pub(crate) use memory::DeviceMemory;
pub use open::{open_device, probe_driver};
#[doc(hidden)]
pub use tiling::F32Math;
pub use tiling::Tiles;
pub(crate) use tiling::Tiling;
pub use workspace::Workspace;
pub(crate) use workspace::{Needs, Regions, Scratch, Split, WorkspaceSize, queue_counters};
