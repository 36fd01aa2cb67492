//! State spaces: where each one starts, and its generic addresses.

use super::operand::Source;

/// Where shared memory starts in its state space: beyond what the system takes of every block.
pub(crate) const SHARED_BASE: u64 = 1024;
/// Where local memory starts in its state space.
pub(crate) const LOCAL_BASE: u64 = 256;
/// Where kernel parameters start in their state space.
pub(crate) const PARAM_BASE: u64 = 256;
/// Generic addresses of the parameter space.
pub(crate) const PARAM_WINDOW: u64 = 0x7d00_0000_0000;
/// Generic addresses of the shared space.
pub(crate) const SHARED_WINDOW: u64 = 0x7e00_0000_0000;
/// Generic addresses of the local space.
pub(crate) const LOCAL_WINDOW: u64 = 0x7f00_0000_0000;
/// Length of a window.
pub(crate) const WINDOW_BYTES: u64 = 1 << 32;
/// What pointers to functions hold: the first, and the distance between them.
pub(crate) const FUNCTION_BASE: u64 = 0x1_0000;
pub(crate) const FUNCTION_STEP: u64 = 16;

/// State spaces of accesses; constant memory is global memory that kernels only read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

/// What a generic address may point into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    Global,
    Constant,
    Shared,
    Local,
    Param,
}

/// An address: a register and an offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) space: Space,
    pub(crate) base: Source,
    pub(crate) offset: i64,
}

/// Bytes that a discard takes.
pub(crate) const DISCARDED: u32 = 128;
