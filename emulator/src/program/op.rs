//! The instructions of a program: registers resolved, modifiers decided.

use super::kernel::Param;
use super::lanes::{Bin32, Bin64, Compare, Logic, Tri32, Un32};
use super::operand::{P, Q, R, Source, Target, Test};
use super::scalar::Scalar;
use super::space::{Address, Window};
use super::watch::WatchedShuffle;
use crate::ptx::Type;

/// One instruction.
#[derive(Debug)]
pub(crate) struct Instruction {
    pub(crate) guard: Test,
    /// Whether it reads or writes a register that the sanitizer watches.
    pub(crate) watched: bool,
    pub(crate) op: Op,
}

/// What an instruction does.
#[derive(Debug)]
pub(crate) enum Op {
    Un32(Un32, R, R),
    Bin32(Bin32, R, R, R),
    Tri32(Tri32, R, R, R, R),
    Bin64(Bin64, Q, Q, Q),
    Copy64(Q, Q),
    /// Shifts of a 64-bit value by a 32-bit amount: left, right, right with sign.
    Shl64(Q, Q, R),
    Shr64 {
        signed: bool,
        d: Q,
        a: Q,
        b: R,
    },
    Fma64(Q, Q, Q, Q),
    MulWide {
        signed: bool,
        d: Q,
        a: R,
        b: R,
    },
    MadWide {
        signed: bool,
        d: Q,
        a: R,
        b: R,
        c: Q,
    },
    Extend {
        signed: bool,
        d: Q,
        a: R,
    },
    Truncate(R, Q),
    Pack64 {
        d: Q,
        low: R,
        high: R,
    },
    Unpack64 {
        low: Target,
        high: Target,
        a: Q,
    },
    Select32 {
        d: R,
        a: R,
        b: R,
        test: Test,
    },
    Select64 {
        d: Q,
        a: Q,
        b: Q,
        test: Test,
    },
    Compare32(Compare, P, R, R),
    Compare64(Compare, P, Q, Q),
    Logic(Logic, P, Test, Test),
    Scalar(Box<ScalarOp>),
    Carry(Box<CarryOp>),
    Clock(Clock, Target),
    Load(Box<Access>),
    Store(Box<Access>),
    /// Leaves [`DISCARDED`] bytes without a value.
    Discard(Address),
    Atomic(Box<AtomicOp>),
    Fence,
    Copy(Box<CopyOp>),
    CopyCommit,
    /// Waits until at most that many groups of the thread are pending.
    CopyWait(u32),
    CopyWaitAll,
    LoadMatrix(Box<MatricesOp>),
    StoreMatrix(Box<MatricesOp>),
    TransposeMatrix(R, R),
    Mma(Box<MmaOp>),
    Product(Box<ProductOp>),
    Shuffle(Box<ShuffleOp>),
    Collective(Box<CollectiveOp>),
    ActiveMask(R),
    Barrier(Box<BarrierOp>),
    Branch(u32),
    BranchIndexed(Box<IndexedBranch>),
    /// Whether a generic address lies in a window.
    IsSpace(Window, P, Q),
    Call(Box<CallOp>),
    /// Returns from the function of that number.
    Return(u32),
    StackAllocate(Box<StackAllocation>),
    /// A function of the device, and where the frame of the caller starts.
    Builtin(Builtin, Option<Q>),
    Exit,
    Trap,
    Nothing,
    /// Lets others run, which the thread may wait for.
    Sleep,
}

/// An operation that runs lane by lane.
#[derive(Debug)]
pub(crate) struct ScalarOp {
    pub(crate) scalar: Scalar,
    pub(crate) target: Target,
    /// The second result of `setp`, or the predicate of others.
    pub(crate) second: Target,
    pub(crate) sources: [Source; 4],
}

/// Memory ordering of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Weak,
    /// Relaxed or volatile: not a race with others that are not weak.
    Relaxed,
    Acquire,
    Release,
    AcquireRelease,
}

/// A load or a store.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) address: Address,
    /// Bytes of one element.
    pub(crate) bytes: u32,
    /// Whether a narrow element is sign-extended.
    pub(crate) signed: bool,
    pub(crate) order: Order,
    /// Whether the memory must be constant memory.
    pub(crate) constant: bool,
    /// Registers that a load writes.
    pub(crate) targets: Vec<Target>,
    /// Registers that a store reads.
    pub(crate) sources: Vec<Source>,
}

/// What an atomic instruction does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
    Increment,
    Decrement,
}

/// An atomic instruction.
#[derive(Debug)]
pub(crate) struct AtomicOp {
    pub(crate) atomic: Atomic,
    pub(crate) ty: Type,
    pub(crate) order: Order,
    pub(crate) address: Address,
    /// What the address must be a multiple of: the size of the vector that this starts, if it does.
    pub(crate) align: u32,
    pub(crate) target: Target,
    pub(crate) sources: [Source; 2],
}

/// An asynchronous copy from global to shared memory.
#[derive(Debug)]
pub(crate) struct CopyOp {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: u32,
    /// The register that holds how many bytes to read.
    pub(crate) read: Option<R>,
    /// The predicate under which the source is ignored.
    pub(crate) ignore: Test,
}

/// Elements of a matrix operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Bf16,
    F16,
    Tf32,
}

/// A matrix multiply-accumulate of 16 rows and 8 columns.
#[derive(Debug)]
pub(crate) struct MmaOp {
    pub(crate) element: Element,
    /// Length of the contraction.
    pub(crate) k: usize,
    /// Whether the accumulator and the result are f16.
    pub(crate) half_result: bool,
    pub(crate) a: [R; 4],
    pub(crate) b: [R; 2],
    pub(crate) c: [R; 4],
    pub(crate) d: [R; 4],
}

/// Elements of the factors of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Integers of that many bits.
    Integer {
        bits: u32,
        signed: bool,
    },
    E4m3,
    E5m2,
    F16,
    Bf16,
    Tf32,
    F64,
}

impl Cell {
    /// The bits of one element.
    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Integer { bits, .. } => bits,
            Self::E4m3 | Self::E5m2 => 8,
            Self::F16 | Self::Bf16 => 16,
            Self::Tf32 => 32,
            Self::F64 => 64,
        }
    }
}

/// How a product is added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sum {
    Integer {
        saturate: bool,
    },
    /// The number of bits that are set in both, or in one of both.
    CountAnd,
    CountXor,
    F16,
    F32,
    F64,
}

/// A matrix multiply-accumulate of other elements or shapes than those of [`MmaOp`].
#[derive(Debug)]
pub(crate) struct ProductOp {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Length of the contraction.
    pub(crate) k: usize,
    /// Whether fragments hold their matrices in order, as those of `wmma` do here.
    pub(crate) in_order: bool,
    pub(crate) cells: [Cell; 2],
    pub(crate) sum: Sum,
    /// Whether C is packed f16.
    pub(crate) half_addend: bool,
    pub(crate) a: Vec<Source>,
    pub(crate) b: Vec<Source>,
    pub(crate) c: Vec<Source>,
    pub(crate) d: Vec<Target>,
}

/// A load or a store of 8x8 matrices of 16-bit elements.
#[derive(Debug)]
pub(crate) struct MatricesOp {
    pub(crate) address: Address,
    pub(crate) transposed: bool,
    pub(crate) registers: Vec<R>,
}

/// Which lane a shuffle reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

/// A shuffle.
#[derive(Debug)]
pub(crate) struct ShuffleOp {
    pub(crate) mode: ShuffleMode,
    pub(crate) target: R,
    pub(crate) in_range: Target,
    pub(crate) value: R,
    pub(crate) lane: R,
    pub(crate) clamp: R,
    pub(crate) members: R,
    /// Where the result or what it comes from is watched.
    pub(crate) watched: Option<WatchedShuffle>,
}

/// What a vote asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// Reductions over a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Redux {
    Add,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
}

/// What lanes of a warp do together, besides shuffles.
#[derive(Debug)]
pub(crate) enum Collective {
    Vote { vote: Vote, target: Target, test: Test },
    MatchAny { target: R, value: Source },
    MatchAll { target: Target, all: Target, value: Source },
    Redux { redux: Redux, target: R, value: R },
    Elect { target: Target, elected: P },
    Barrier,
}

/// A collective and the register that names its members.
#[derive(Debug)]
pub(crate) struct CollectiveOp {
    pub(crate) collective: Collective,
    pub(crate) members: R,
}

/// What a barrier of the block does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Sync,
    Arrive,
    /// Waits, and counts the threads whose predicate holds.
    Count(R),
    /// Waits, and reports whether the predicate holds for all threads.
    All(P),
    /// Waits, and reports whether the predicate holds for any thread.
    Any(P),
}

/// A barrier of the block.
#[derive(Debug)]
pub(crate) struct BarrierOp {
    pub(crate) kind: BarrierKind,
    pub(crate) aligned: bool,
    pub(crate) id: R,
    pub(crate) threads: Option<R>,
    pub(crate) test: Test,
}

/// Arithmetic with the carry flag.
#[derive(Debug)]
pub(crate) struct CarryOp {
    /// The type's width: 32 or 64 bits.
    pub(crate) bits: u32,
    pub(crate) kind: CarryKind,
    /// Whether the carry is added or subtracted.
    pub(crate) reads: bool,
    /// Whether the carry is written.
    pub(crate) writes: bool,
    /// The predicate that is the carry flag.
    pub(crate) flag: P,
    pub(crate) target: Target,
    pub(crate) sources: [Source; 3],
}

/// What is added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CarryKind {
    Add,
    Sub,
    /// The low half of a product, plus the third source.
    MadLow,
    /// The high half of a product, plus the third source; signed or not.
    MadHigh(bool),
}

/// Registers that change while a warp runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    Cycles,
    CyclesHigh,
    Nanoseconds,
}

/// A branch to one of a list of places.
#[derive(Debug)]
pub(crate) struct IndexedBranch {
    pub(crate) index: R,
    pub(crate) targets: Vec<u32>,
}

/// Functions that the device provides; operands are offsets in the frame of the caller.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Builtin {
    /// `vprintf(format, arguments)`.
    Print { format: u32, arguments: u32, result: u32 },
    /// `__assertfail(message, file, line, function, char size)`.
    AssertFail { message: u32, file: u32, line: u32, function: u32 },
    /// `malloc(bytes)`.
    Allocate { bytes: u32, result: u32 },
    /// `free(pointer)`.
    Free { pointer: u32 },
}

/// What a call calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Called {
    /// A function of the kernel, by number.
    Function(u32),
    /// The function that a register points at.
    Pointer(Q),
}

/// What a call passes: a variable by its offset in the caller's frame, or a value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Passed {
    Local(u32),
    Value(Source),
}

/// Where a result goes: to a variable in the caller's frame, or to a register.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Received {
    Local(u32),
    Value(Target),
}

/// A call of a device function.
#[derive(Debug)]
pub(crate) struct CallOp {
    pub(crate) callee: Called,
    /// Where the frame of the caller starts; that of the kernel is at the start of local memory.
    pub(crate) frame: Option<Q>,
    /// What goes where in the frame of the function.
    pub(crate) arguments: Vec<(Passed, Param)>,
    pub(crate) results: Vec<(Received, Param)>,
    /// Results and parameters that the caller takes the function to have.
    pub(crate) formals: Vec<Param>,
}

/// Memory that a function takes of the stack until it returns.
#[derive(Debug)]
pub(crate) struct StackAllocation {
    pub(crate) pointer: Q,
    pub(crate) size: Q,
    pub(crate) align: u64,
    /// Where the free part of the stack starts.
    pub(crate) stack: Q,
}
