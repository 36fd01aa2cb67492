//! The class of an instruction, for the counts of a profile.

use super::lanes::{Bin32, Bin64, Tri32, Un32};
use super::op::{Access, Op};
use super::scalar::{Float, Integer, Scalar};
use super::space::Space;
use crate::counters::InstructionClass as Class;

impl Op {
    /// The class that a profile counts the instruction in.
    pub(crate) fn class(&self) -> Class {
        match self {
            Op::Un32(op, ..) => unary(*op),
            Op::Bin32(op, ..) => binary(*op),
            Op::Tri32(Tri32::FmaF, ..) | Op::Fma64(..) => Class::Float,
            Op::Bin64(Bin64::AddF | Bin64::SubF | Bin64::MulF, ..) => Class::Float,
            Op::Tri32(..)
            | Op::Bin64(..)
            | Op::Shl64(..)
            | Op::Shr64 { .. }
            | Op::MulWide { .. }
            | Op::MadWide { .. }
            | Op::Carry(_) => Class::Integer,
            Op::Extend { .. } | Op::Truncate(..) => Class::Conversion,
            Op::Copy64(..)
            | Op::Pack64 { .. }
            | Op::Unpack64 { .. }
            | Op::Select32 { .. }
            | Op::Select64 { .. }
            | Op::Compare32(..)
            | Op::Compare64(..)
            | Op::Logic(..)
            | Op::IsSpace(..)
            | Op::TransposeMatrix(..)
            | Op::StackAllocate(_)
            | Op::Clock(..)
            | Op::ActiveMask(_) => Class::Move,
            Op::Scalar(op) => scalar(&op.scalar),
            Op::Load(access) => by_space(access, Class::SharedLoad, Class::GlobalLoad),
            Op::Store(access) => by_space(access, Class::SharedStore, Class::GlobalStore),
            Op::Atomic(_) => Class::Atomic,
            Op::Copy(_) | Op::CopyCommit | Op::CopyWait(_) | Op::CopyWaitAll => Class::AsyncCopy,
            Op::LoadMatrix(_) => Class::LoadMatrix,
            Op::StoreMatrix(_) => Class::SharedStore,
            Op::Mma(_) | Op::Product(_) => Class::Tensor,
            Op::Shuffle(_) | Op::Collective(_) => Class::Collective,
            Op::Barrier(_) | Op::Fence => Class::Barrier,
            Op::Branch(_)
            | Op::BranchIndexed(_)
            | Op::Call(_)
            | Op::Return(_)
            | Op::Builtin(..)
            | Op::Exit
            | Op::Trap
            | Op::Discard(_)
            | Op::Nothing
            | Op::Sleep => Class::Control,
        }
    }
}

fn by_space(access: &Access, shared: Class, global: Class) -> Class {
    match access.address.space {
        Space::Global if access.constant => Class::Constant,
        Space::Param => Class::Constant,
        Space::Local => Class::Local,
        Space::Shared => shared,
        Space::Global | Space::Generic => global,
    }
}

fn unary(op: Un32) -> Class {
    match op {
        Un32::Copy | Un32::Low16 | Un32::High16 => Class::Move,
        Un32::Not | Un32::NegS | Un32::AbsS | Un32::Popc => Class::Integer,
        Un32::NegF | Un32::AbsF => Class::Float,
        Un32::Signed16
        | Un32::SignedToF
        | Un32::UnsignedToF
        | Un32::Bf16ToF
        | Un32::F16ToF
        | Un32::FToBf16
        | Un32::FToF16 => Class::Conversion,
        Un32::Reciprocal
        | Un32::SquareRoot
        | Un32::ReciprocalRoot
        | Un32::Exp2
        | Un32::Exp2Flush
        | Un32::Log2
        | Un32::Tanh => Class::Special,
    }
}

fn binary(op: Bin32) -> Class {
    match op {
        Bin32::AddF | Bin32::SubF | Bin32::MulF | Bin32::MinF | Bin32::MaxF => Class::Float,
        Bin32::DivF => Class::Special,
        Bin32::PackHalves => Class::Move,
        Bin32::PackBf16 | Bin32::PackF16 => Class::Conversion,
        _ => Class::Integer,
    }
}

fn scalar(op: &Scalar) -> Class {
    match op {
        Scalar::Integer(Integer::Copy, _) => Class::Move,
        Scalar::Integer(Integer::Pack { .. }, _) => Class::Conversion,
        Scalar::Integer(..)
        | Scalar::Video { .. }
        | Scalar::VideoPart { .. }
        | Scalar::VideoProduct { .. } => Class::Integer,
        Scalar::Float(op, _) => match op {
            Float::Add
            | Float::Sub
            | Float::Mul
            | Float::Fma
            | Float::Abs
            | Float::Neg
            | Float::Min
            | Float::Max
            | Float::Copysign => Class::Float,
            Float::Test(_) => Class::Move,
            _ => Class::Special,
        },
        Scalar::SetPredicate(_)
        | Scalar::Set(..)
        | Scalar::Select
        | Scalar::SelectBySign { .. } => Class::Move,
        Scalar::Approximate(..) => Class::Special,
        Scalar::Convert(_) => Class::Conversion,
    }
}
