//! Picks the form of an operation that runs over all lanes at once, where there is one.

use super::decoder::Decoder;
use crate::program::*;
use crate::ptx::Type;

impl Decoder<'_> {
    /// Appends an arithmetic operation.
    pub(super) fn emit_scalar(
        &mut self,
        scalar: Scalar,
        target: Target,
        second: Target,
        sources: [Source; 4],
    ) {
        let op = match (second, target) {
            (Target::Nowhere, target) => lower(&scalar, target, sources),
            _ => None,
        };
        let scalar = || Op::Scalar(Box::new(ScalarOp { scalar, target, second, sources }));
        self.emit(op.unwrap_or_else(scalar));
    }
}

/// The form over all lanes.
fn lower(scalar: &Scalar, target: Target, sources: [Source; 4]) -> Option<Op> {
    let [a, b, c, _] = sources;
    match *scalar {
        Scalar::Integer(op, ty) => match (target, a) {
            (Target::R(d, _), Source::R(a)) => integer32(op, ty, d, a, b, c),
            (Target::Q(d), _) => integer64(op, ty, d, a, b, c),
            _ => None,
        },
        Scalar::Float(op, mode) => float(op, mode, target, a, b, c),
        Scalar::SetPredicate(comparison) => compare(comparison, target, a, b),
        Scalar::Select => {
            let Source::P(test) = c else { return None };
            match (target, a, b) {
                (Target::R(d, _), Source::R(a), Source::R(b)) => {
                    Some(Op::Select32 { d, a, b, test })
                }
                (Target::Q(d), Source::Q(a), Source::Q(b)) => Some(Op::Select64 { d, a, b, test }),
                _ => None,
            }
        }
        Scalar::Convert(op) => convert(op, target, a, b),
        _ => None,
    }
}

fn integer32(op: Integer, ty: Type, d: R, a: R, b: Source, c: Source) -> Option<Op> {
    // Values of fewer bits are zero-extended, which these keep.
    match op {
        Integer::Copy => return Some(Op::Un32(Un32::Copy, d, a)),
        Integer::And | Integer::Or | Integer::Xor => {
            let Source::R(b) = b else { return None };
            let op = match op {
                Integer::And => Bin32::And,
                Integer::Or => Bin32::Or,
                _ => Bin32::Xor,
            };
            return Some(Op::Bin32(op, d, a, b));
        }
        _ if ty.bits() != 32 => return None,
        Integer::Not => return Some(Op::Un32(Un32::Not, d, a)),
        Integer::Neg => return Some(Op::Un32(Un32::NegS, d, a)),
        Integer::Abs if ty.is_signed() => return Some(Op::Un32(Un32::AbsS, d, a)),
        Integer::Popc => return Some(Op::Un32(Un32::Popc, d, a)),
        _ => {}
    }
    let Source::R(b) = b else { return None };
    let signed = ty.is_signed();
    let by_sign = |signed_op, unsigned_op| if signed { signed_op } else { unsigned_op };
    let two = match op {
        Integer::Add => Some(Bin32::Add),
        Integer::Sub => Some(Bin32::Sub),
        Integer::MulLow => Some(Bin32::Mul),
        Integer::MulHigh => Some(by_sign(Bin32::MulHiS, Bin32::MulHiU)),
        Integer::Min => Some(by_sign(Bin32::MinS, Bin32::MinU)),
        Integer::Max => Some(by_sign(Bin32::MaxS, Bin32::MaxU)),
        Integer::Shl => Some(Bin32::Shl),
        Integer::Shr => Some(by_sign(Bin32::ShrS, Bin32::ShrU)),
        _ => None,
    };
    if let Some(op) = two {
        return Some(Op::Bin32(op, d, a, b));
    }
    let Source::R(c) = c else { return None };
    let op = match op {
        Integer::MadLow => Tri32::Mad,
        Integer::Lop3(table) => Tri32::Lop3(table),
        Integer::FunnelLeft { clamp: false } => Tri32::ShfLeftWrap,
        Integer::FunnelLeft { clamp: true } => Tri32::ShfLeftClamp,
        Integer::FunnelRight { clamp: false } => Tri32::ShfRightWrap,
        Integer::FunnelRight { clamp: true } => Tri32::ShfRightClamp,
        Integer::Extract if !signed => Tri32::BfeU,
        Integer::Permute(Permute::Index) => Tri32::Prmt,
        _ => return None,
    };
    Some(Op::Tri32(op, d, a, b, c))
}

fn integer64(op: Integer, ty: Type, d: Q, a: Source, b: Source, c: Source) -> Option<Op> {
    let signed = ty.is_signed();
    match (op, a, b) {
        (Integer::Copy, Source::Q(a), _) => Some(Op::Copy64(d, a)),
        (Integer::MulWide, Source::R(a), Source::R(b)) if ty.bits() == 32 => {
            Some(Op::MulWide { signed, d, a, b })
        }
        (Integer::MadWide, Source::R(a), Source::R(b)) if ty.bits() == 32 => {
            let Source::Q(c) = c else { return None };
            Some(Op::MadWide { signed, d, a, b, c })
        }
        (Integer::Shl, Source::Q(a), Source::R(b)) => Some(Op::Shl64(d, a, b)),
        (Integer::Shr, Source::Q(a), Source::R(b)) => Some(Op::Shr64 { signed, d, a, b }),
        (_, Source::Q(a), Source::Q(b)) => {
            let op = match op {
                Integer::Add => Bin64::Add,
                Integer::Sub => Bin64::Sub,
                Integer::MulLow => Bin64::Mul,
                Integer::And => Bin64::And,
                Integer::Or => Bin64::Or,
                Integer::Xor => Bin64::Xor,
                _ => return None,
            };
            Some(Op::Bin64(op, d, a, b))
        }
        _ => None,
    }
}

fn float(
    op: Float,
    mode: FloatMode,
    target: Target,
    a: Source,
    b: Source,
    c: Source,
) -> Option<Op> {
    let plain = FloatMode {
        ty: mode.ty,
        rounding: Rounding::Nearest,
        flush: false,
        saturate: false,
        relu: false,
        nan: false,
        xorsign: false,
    };
    if let (Float::Exp2, Target::R(d, _), Source::R(a)) = (op, target, a)
        && mode == (FloatMode { ty: Type::F32, flush: true, ..plain })
    {
        return Some(Op::Un32(Un32::Exp2Flush, d, a));
    }
    if mode != plain {
        return None;
    }
    match (mode.ty, target, a, b, c) {
        (Type::F32, Target::R(d, _), Source::R(a), b, c) => {
            let one = match op {
                Float::Neg => Some(Un32::NegF),
                Float::Abs => Some(Un32::AbsF),
                Float::Reciprocal => Some(Un32::Reciprocal),
                Float::SquareRoot => Some(Un32::SquareRoot),
                Float::ReciprocalRoot => Some(Un32::ReciprocalRoot),
                Float::Exp2 => Some(Un32::Exp2),
                Float::Log2 => Some(Un32::Log2),
                Float::Tanh => Some(Un32::Tanh),
                _ => None,
            };
            if let Some(op) = one {
                return Some(Op::Un32(op, d, a));
            }
            let Source::R(b) = b else { return None };
            if let (Float::Fma, Source::R(c)) = (op, c) {
                return Some(Op::Tri32(Tri32::FmaF, d, a, b, c));
            }
            let op = match op {
                Float::Add => Bin32::AddF,
                Float::Sub => Bin32::SubF,
                Float::Mul => Bin32::MulF,
                Float::Div => Bin32::DivF,
                Float::Min => Bin32::MinF,
                Float::Max => Bin32::MaxF,
                _ => return None,
            };
            Some(Op::Bin32(op, d, a, b))
        }
        (Type::F64, Target::Q(d), Source::Q(a), Source::Q(b), c) => {
            if let (Float::Fma, Source::Q(c)) = (op, c) {
                return Some(Op::Fma64(d, a, b, c));
            }
            let op = match op {
                Float::Add => Bin64::AddF,
                Float::Sub => Bin64::SubF,
                Float::Mul => Bin64::MulF,
                _ => return None,
            };
            Some(Op::Bin64(op, d, a, b))
        }
        _ => None,
    }
}

fn compare(comparison: Comparison, target: Target, a: Source, b: Source) -> Option<Op> {
    let Comparison { relation, ty, flush, combine } = comparison;
    let Target::P(d) = target else { return None };
    if flush || combine.is_some() {
        return None;
    }
    let float = ty == Type::F32;
    if !float && (ty.is_float() || ty.bits() < 32) {
        return None;
    }
    let pick = |f, s, u| {
        if float {
            f
        } else if ty.is_signed() {
            s
        } else {
            u
        }
    };
    let op = match relation {
        Relation::Eq => pick(Compare::EqF, Compare::Eq, Compare::Eq),
        Relation::Ne => pick(Compare::NeF, Compare::Ne, Compare::Ne),
        Relation::Lt => pick(Compare::LtF, Compare::LtS, Compare::LtU),
        Relation::Le => pick(Compare::LeF, Compare::LeS, Compare::LeU),
        Relation::Gt => pick(Compare::GtF, Compare::GtS, Compare::GtU),
        Relation::Ge => pick(Compare::GeF, Compare::GeS, Compare::GeU),
        Relation::EqU => Compare::EqUF,
        Relation::NeU => Compare::NeUF,
        Relation::LtU => Compare::LtUF,
        Relation::LeU => Compare::LeUF,
        Relation::GtU => Compare::GtUF,
        Relation::GeU => Compare::GeUF,
        Relation::Num | Relation::Nan => return None,
    };
    match (a, b) {
        (Source::R(a), Source::R(b)) => Some(Op::Compare32(op, d, a, b)),
        (Source::Q(a), Source::Q(b)) => Some(Op::Compare64(op, d, a, b)),
        _ => None,
    }
}

fn convert(op: Convert, target: Target, a: Source, b: Source) -> Option<Op> {
    let Convert { to, from, rounding, integral, flush, saturate, relu, finite } = op;
    if integral || flush || saturate || relu || finite || rounding != Rounding::Nearest {
        return None;
    }
    let whole = |ty: Type| ty.is_integer();
    match (target, a) {
        (Target::Q(d), Source::R(a)) if whole(to) && whole(from) && from.bits() == 32 => {
            Some(Op::Extend { signed: from.is_signed(), d, a })
        }
        (Target::R(d, 32), Source::Q(a)) if whole(to) && whole(from) && to.bits() == 32 => {
            Some(Op::Truncate(d, a))
        }
        (Target::R(d, bits), Source::R(a)) => {
            if let (Type::F16x2 | Type::Bf16x2, Type::F32, Source::R(b)) = (to, from, b) {
                let op = if to == Type::F16x2 { Bin32::PackF16 } else { Bin32::PackBf16 };
                return Some(Op::Bin32(op, d, a, b));
            }
            let op = match (to, from) {
                (Type::F32, Type::S32) => Un32::SignedToF,
                (Type::F32, Type::U32) => Un32::UnsignedToF,
                (Type::F32, Type::Bf16) => Un32::Bf16ToF,
                (Type::F32, Type::F16) => Un32::F16ToF,
                (Type::Bf16, Type::F32) => Un32::FToBf16,
                (Type::F16, Type::F32) => Un32::FToF16,
                (Type::U32 | Type::S32, Type::S16) if bits == 32 => Un32::Signed16,
                (Type::U32 | Type::S32, Type::U16) if bits == 32 => Un32::Low16,
                (Type::U16 | Type::S16, Type::U32 | Type::S32) if bits == 16 => Un32::Low16,
                _ => return None,
            };
            Some(Op::Un32(op, d, a))
        }
        _ => None,
    }
}
