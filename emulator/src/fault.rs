//! Faults: what stops a launch, and where it happened.

use std::fmt;

/// What went wrong in a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside of every allocation, or across the end of one.
    OutOfBounds,
    /// An access to an allocation that was freed.
    UseAfterFree,
    /// Calls or allocations on the stack that need more than `CU_LIMIT_STACK_SIZE`.
    StackOverflow,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// An access that its state space does not allow, such as a store to constant memory.
    IllegalAccess,
    /// Threads wait at barriers that can no longer complete.
    BarrierDeadlock,
    /// An aligned barrier that not all threads of the warp execute, or a misused barrier.
    DivergentBarrier,
    /// A warp-wide operation that named lanes do not execute.
    MissingLanes,
    /// An operand that the instruction does not allow.
    IllegalOperand,
    /// The kernel executed more instructions than the watchdog allows.
    Timeout,
    /// The kernel executed `trap` or `brkpt`.
    Trap,
    /// A device-side assertion failed.
    Assertion,
    /// A read of memory that nothing wrote. Found by the sanitizer.
    UninitializedRead,
    /// A use of a register that nothing wrote. Found by the sanitizer.
    UninitializedRegister,
    /// A thread that exits before the end of an asynchronous copy that it issued. Found by the
    /// sanitizer.
    UnawaitedCopy,
    /// Two accesses to the same memory, one of them a write, that nothing orders. Found by the
    /// sanitizer.
    Race,
}

impl FaultKind {
    /// The kind in words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::OutOfBounds => "access out of bounds",
            Self::UseAfterFree => "use after free",
            Self::StackOverflow => "stack overflow",
            Self::Misaligned => "misaligned access",
            Self::IllegalAccess => "illegal access",
            Self::BarrierDeadlock => "barrier deadlock",
            Self::DivergentBarrier => "divergent barrier",
            Self::MissingLanes => "missing lanes",
            Self::IllegalOperand => "illegal operand",
            Self::Timeout => "watchdog timeout",
            Self::Trap => "trap",
            Self::Assertion => "assertion failed",
            Self::UninitializedRead => "read of uninitialised memory",
            Self::UninitializedRegister => "use of an uninitialised register",
            Self::UnawaitedCopy => "asynchronous copy never waited for",
            Self::Race => "race",
        }
    }
}

/// A fault of a kernel and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What went wrong.
    pub kind: FaultKind,
    /// The kernel's name.
    pub kernel: String,
    /// The instruction as the module writes it.
    pub instruction: String,
    /// The CUDA source file and line, where the module has line information.
    pub source: Option<(String, u32)>,
    /// The line in the PTX text, from 1.
    pub ptx_line: u32,
    /// The block's index in the grid.
    pub block: [u32; 3],
    /// The thread's index in the block, where one thread is to blame.
    pub thread: Option<[u32; 3]>,
    /// The address, where there is one.
    pub address: Option<u64>,
    /// What was wrong, with the numbers; for an address, the nearest allocation.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "{} in kernel `{}`", self.kind.describe(), self.kernel)?;
        if let Some((file, line)) = &self.source {
            write!(f, " at {file}:{line}")?;
        }
        write!(f, " (PTX line {}: `{}`), block ({x}, {y}, {z})", self.ptx_line, self.instruction)?;
        if let Some([x, y, z]) = self.thread {
            write!(f, ", thread ({x}, {y}, {z})")?;
        }
        if let Some(address) = self.address {
            write!(f, ", address {address:#x}")?;
        }
        write!(f, ": {}", self.detail)
    }
}

impl std::error::Error for Fault {}
