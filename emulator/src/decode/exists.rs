//! Which types and modifiers an arithmetic operation has.

use crate::exec::{Float, FloatMode, Integer, Rounding};
use crate::ptx::Type;

/// Whether the PTX ISA has an integer operation for a type.
pub(super) fn integer(op: Integer, ty: Type) -> bool {
    use Type::*;
    let whole = matches!(ty, U16 | U32 | U64 | S16 | S32 | S64);
    let bits = matches!(ty, B16 | B32 | B64);
    match op {
        Integer::Add
        | Integer::Sub
        | Integer::MulLow
        | Integer::MulHigh
        | Integer::MadLow
        | Integer::MadHigh
        | Integer::Div
        | Integer::Rem
        | Integer::Sad
        | Integer::Min
        | Integer::Max => whole,
        Integer::MulWide | Integer::MadWide => whole && ty.bits() < 64,
        Integer::Abs | Integer::Neg => matches!(ty, S16 | S32 | S64),
        Integer::AddSaturate | Integer::SubSaturate | Integer::MadHighSaturate => ty == S32,
        Integer::And | Integer::Or | Integer::Xor | Integer::Not => bits,
        Integer::IsZero | Integer::Shl => bits,
        Integer::Shr => bits || whole,
        Integer::FunnelLeft { .. } | Integer::FunnelRight { .. } => ty == B32,
        Integer::Lop3(_) | Integer::Permute(_) | Integer::Mask { .. } => ty == B32,
        Integer::Popc | Integer::LeadingZeros | Integer::Reverse | Integer::Insert => {
            matches!(ty, B32 | B64)
        }
        Integer::Find { .. } | Integer::Extract => matches!(ty, U32 | U64 | S32 | S64),
        Integer::Mul24Low | Integer::Mul24High | Integer::Mad24Low | Integer::Mad24High => {
            matches!(ty, U32 | S32)
        }
        Integer::Dot4 { .. } | Integer::Dot2 { .. } => ty == U32,
        Integer::MinPacked | Integer::MaxPacked | Integer::AddPacked => {
            matches!(ty, U16x2 | S16x2)
        }
        Integer::Copy => whole || bits || ty.is_float(),
    }
}

/// Whether the PTX ISA has a floating-point operation with a type and modifiers.
pub(super) fn float(op: Float, mode: FloatMode) -> bool {
    let arithmetic = matches!(op, Float::Add | Float::Sub | Float::Mul | Float::Fma);
    let divides = matches!(op, Float::Div | Float::Reciprocal | Float::SquareRoot);
    let picks = matches!(op, Float::Neg | Float::Abs | Float::Min | Float::Max);
    let upper = matches!(op, Float::ReciprocalUpper | Float::ReciprocalRootUpper);
    let transcendental =
        matches!(op, Float::Sin | Float::Cos | Float::Log2 | Float::Exp2 | Float::Tanh);
    let typed = match mode.ty {
        Type::F32 => !upper,
        Type::F64 => !transcendental && op != Float::DivApprox,
        ty if ty.is_half() => arithmetic || picks || matches!(op, Float::Exp2 | Float::Tanh),
        _ => false,
    };
    let rounded = mode.rounding == Rounding::Nearest
        || ((arithmetic || divides) && matches!(mode.ty, Type::F32 | Type::F64));
    let saturated =
        !mode.saturate || (arithmetic && matches!(mode.ty, Type::F32 | Type::F16 | Type::F16x2));
    let flushed = !mode.flush || mode.ty != Type::F64 || upper;
    let clamped = !mode.relu || op == Float::Fma;
    let picked = !(mode.nan || mode.xorsign) || mode.ty != Type::F64;
    typed && rounded && saturated && flushed && clamped && picked
}

/// Whether the PTX ISA compares values of a type.
pub(super) fn comparison(ty: Type) -> bool {
    let packed = matches!(ty, Type::F16x2 | Type::Bf16x2 | Type::U16x2 | Type::S16x2);
    ty.bits() >= 16 && !packed && ty != Type::Tf32
}
