//! Decoded programs: what the decoder makes of PTX, and the executor runs.

mod class;
mod kernel;
mod lanes;
mod op;
mod operand;
mod registers;
mod scalar;
mod space;
mod special;
mod watch;

pub use self::kernel::Param;
pub(crate) use self::kernel::{
    DeviceFunction, Kernel, Place, SavedRegisters, SharedVariable, SourceText,
};
pub(crate) use self::lanes::*;
pub(crate) use self::op::*;
pub(crate) use self::operand::*;
pub(crate) use self::registers::{Named, Use};
pub(crate) use self::scalar::*;
pub(crate) use self::space::*;
pub(crate) use self::special::Special;
pub(crate) use self::watch::{
    Part, RegisterClass, Watch, WatchedInstruction, WatchedRegister, WatchedShuffle,
};
