//! Logic, shifts, bits, bytes, comparisons and selections.

use super::decoder::{Decoder, NONE, Result};
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

impl Decoder<'_> {
    /// Operations on values of one type, and then on 32-bit numbers.
    pub(super) fn integer_by_words(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        op: Integer,
        values: usize,
        words: usize,
    ) -> Result<()> {
        let ty = self.required_type(modifiers)?;
        let mut types = [Type::U32; 4];
        types[..values].fill(ty);
        self.emit_integer(instruction, op, ty, &types[..values + words], ty)
    }

    /// Numbers of bits.
    pub(super) fn count_bits(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        ops: &[Integer],
    ) -> Result<()> {
        let ty = self.required_type(modifiers)?;
        let op = modifiers.of_opcode(ops);
        self.emit_integer(instruction, op, ty, &[ty], Type::U32)
    }

    pub(super) fn find(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let shift = modifiers.take("shiftamt");
        let ty = self.required_type(modifiers)?;
        self.emit_integer(instruction, Integer::Find { shift }, ty, &[ty], Type::U32)
    }

    pub(super) fn find_set(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let ty = self.required_type(modifiers)?;
        let types = [ty, Type::U32, Type::S32];
        self.emit_integer(instruction, Integer::FindSet, ty, &types, ty)
    }

    /// `szext`: sign or zero extension.
    pub(super) fn extend(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let clamp = clamps(modifiers);
        self.integer_by_words(instruction, modifiers, Integer::SignOrZeroExtend { clamp }, 1, 1)
    }

    pub(super) fn mask(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let clamp = clamps(modifiers);
        self.integer(instruction, modifiers, &[Integer::Mask { clamp }], 2)
    }

    pub(super) fn funnel_shift(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let clamp = clamps(modifiers);
        let (left, right) = (Integer::FunnelLeft { clamp }, Integer::FunnelRight { clamp });
        let op = modifiers.pick(&[("l", left), ("r", right)]).unwrap_or(right);
        self.integer(instruction, modifiers, &[op], 3)
    }

    pub(super) fn permute(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let permute = modifiers.pick(&[
            ("f4e", Permute::ForwardFour),
            ("b4e", Permute::BackwardFour),
            ("rc8", Permute::Replicate),
            ("ecl", Permute::EdgeLeft),
            ("ecr", Permute::EdgeRight),
            ("rc16", Permute::ReplicateHalf),
        ]);
        let op = Integer::Permute(permute.unwrap_or(Permute::Index));
        self.integer(instruction, modifiers, &[op], 3)
    }

    /// `lop3 d, a, b, c, table`, or `lop3.op d|p, a, b, c, table, q`. The predicate p is whether the
    /// result is not zero, combined with q.
    pub(super) fn lop3(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let combine = modifiers.pick(&[("and", Logic::And), ("or", Logic::Or)]);
        let ty = self.required_type(modifiers)?;
        self.count(instruction, if combine.is_some() { &[6] } else { &[5] })?;
        let operands = &instruction.operands;
        let Operand::Integer(table @ 0..=255) = operands[4] else {
            return self.fail("`lop3` needs a table from 0 to 255");
        };
        let (d, second) = match (&operands[0], combine) {
            (Operand::Pair(d, p), Some(_)) => (&**d, Some(&**p)),
            (d, None) => (d, None),
            _ => {
                return self
                    .fail("`lop3` with a logic operation writes a register and a predicate");
            }
        };
        let mut sources = [NONE; 4];
        for (source, operand) in sources.iter_mut().zip(&operands[1..4]) {
            *source = self.source(operand, ty)?;
        }
        let op = Integer::Lop3(table as u8);
        let (Some(combine), Some(p)) = (combine, second) else {
            let target = self.target(d, ty)?;
            self.emit_scalar(Scalar::Integer(op, ty), target, Target::Nowhere, sources);
            return Ok(());
        };
        // The predicate that goes in may be the one that comes out.
        let with = self.test(&operands[5])?;
        let result = self.new_temporary();
        let whole = Target::R(result, 32);
        self.emit_scalar(Scalar::Integer(op, ty), whole, Target::Nowhere, sources);
        let not_zero = Comparison {
            relation: Relation::Ne,
            ty: Type::U32,
            flush: false,
            combine: Some(combine),
        };
        let zero = Source::R(self.constant32(0));
        let sources = [Source::R(result), zero, Source::P(with), NONE];
        let p = self.target(p, Type::Pred)?;
        self.emit_scalar(Scalar::SetPredicate(not_zero), p, Target::Nowhere, sources);
        if let Target::R(d, _) = self.optional_target(d, ty)? {
            self.emit(Op::Un32(Un32::Copy, d, result));
        }
        Ok(())
    }

    /// `and`, `or` and `xor`, of integers or of predicates.
    pub(super) fn bitwise(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        ops: &[Integer],
        logic: &[Logic],
    ) -> Result<()> {
        let (op, logic) = (modifiers.of_opcode(ops), modifiers.of_opcode(logic));
        let ty = self.required_type(modifiers)?;
        if ty != Type::Pred {
            return self.emit_integer(instruction, op, ty, &[ty; 2], ty);
        }
        self.count(instruction, &[3])?;
        let a = self.test(&instruction.operands[1])?;
        let b = self.test(&instruction.operands[2])?;
        self.emit_logic(&instruction.operands[0], logic, a, b)
    }

    /// `not`, of an integer or of a predicate.
    pub(super) fn invert(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let ty = self.required_type(modifiers)?;
        if ty != Type::Pred {
            return self.emit_integer(instruction, Integer::Not, ty, &[ty], ty);
        }
        self.count(instruction, &[2])?;
        let a = self.test(&instruction.operands[1])?;
        let (a, never) =
            (Test { negated: !a.negated, ..a }, Test { predicate: FALSE, negated: false });
        self.emit_logic(&instruction.operands[0], Logic::Or, a, never)
    }

    fn emit_logic(&mut self, target: &Operand, logic: Logic, a: Test, b: Test) -> Result<()> {
        if let Target::P(d) = self.target(target, Type::Pred)? {
            self.emit(Op::Logic(logic, d, a, b));
        }
        Ok(())
    }

    pub(super) fn select(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        self.count(instruction, &[4])?;
        let ty = self.required_type(modifiers)?;
        let [d, a, b, p] = &instruction.operands[..] else { return Ok(()) };
        let (a, b) = (self.source(a, ty)?, self.source(b, ty)?);
        let test = self.test(p)?;
        let d = self.target(d, ty)?;
        self.emit_scalar(Scalar::Select, d, Target::Nowhere, [a, b, Source::P(test), NONE]);
        Ok(())
    }

    pub(super) fn select_by_sign(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        self.count(instruction, &[4])?;
        let flush = modifiers.take("ftz");
        let (ty, by) = (self.required_type(modifiers)?, self.required_type(modifiers)?);
        let (d, sources) = self.operands(&instruction.operands, &[ty, ty, by], ty)?;
        let scalar = Scalar::SelectBySign { float: by == Type::F32, flush };
        self.emit_scalar(scalar, d, Target::Nowhere, sources);
        Ok(())
    }

    /// `set`, which writes a value, or `setp`, which writes predicates.
    pub(super) fn compare(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        sets: bool,
    ) -> Result<()> {
        let combine =
            modifiers.pick(&[("and", Logic::And), ("or", Logic::Or), ("xor", Logic::Xor)]);
        let relation = modifiers.pick(&[
            ("eq", Relation::Eq),
            ("ne", Relation::Ne),
            ("lt", Relation::Lt),
            ("le", Relation::Le),
            ("gt", Relation::Gt),
            ("ge", Relation::Ge),
            ("lo", Relation::Lt),
            ("ls", Relation::Le),
            ("hi", Relation::Gt),
            ("hs", Relation::Ge),
            ("equ", Relation::EqU),
            ("neu", Relation::NeU),
            ("ltu", Relation::LtU),
            ("leu", Relation::LeU),
            ("gtu", Relation::GtU),
            ("geu", Relation::GeU),
            ("num", Relation::Num),
            ("nan", Relation::Nan),
        ]);
        let Some(relation) = relation else {
            return self.fail(format!("`{}` needs a comparison", instruction.opcode));
        };
        let flush = modifiers.take("ftz");
        self.count(instruction, if combine.is_some() { &[4] } else { &[3] })?;
        let to = if sets { Some(self.required_type(modifiers)?) } else { None };
        let ty = self.required_type(modifiers)?;
        let operands = &instruction.operands;
        let mut sources =
            [self.source(&operands[1], ty)?, self.source(&operands[2], ty)?, NONE, NONE];
        if let Some(third) = operands.get(3) {
            sources[2] = Source::P(self.test(third)?);
        }
        let comparison = Comparison { relation, ty, flush, combine };
        let (scalar, target, second) = match (to, &operands[0]) {
            (Some(to), d) => (Scalar::Set(comparison, to), self.target(d, to)?, Target::Nowhere),
            (None, Operand::Pair(p, q)) => {
                if matches!(ty, Type::F16 | Type::Bf16) {
                    return self.fail("a comparison of single 16-bit values has one result");
                }
                let p = self.optional_target(p, Type::Pred)?;
                let q = self.optional_target(q, Type::Pred)?;
                (Scalar::SetPredicate(comparison), p, q)
            }
            (None, p) => {
                let p = self.target(p, Type::Pred)?;
                (Scalar::SetPredicate(comparison), p, Target::Nowhere)
            }
        };
        self.emit_scalar(scalar, target, second, sources);
        Ok(())
    }
}

/// Whether positions and lengths beyond the width clamp; or else they wrap.
pub(super) fn clamps(modifiers: &mut Modifiers) -> bool {
    modifiers.pick(&[("clamp", true), ("wrap", false)]).unwrap_or(false)
}
