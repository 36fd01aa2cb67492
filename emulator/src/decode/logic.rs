//! Logic, shifts, bits, bytes, comparisons and selections.

use super::decoder::{Decoder, NONE, Result};
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

impl Decoder<'_> {
    /// Decodes a logic instruction; `false` if it is none.
    pub(super) fn logic(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<bool> {
        match instruction.opcode.as_str() {
            "popc" | "clz" | "bfind" | "brev" | "bfe" | "bfi" | "bmsk" | "szext" | "fns"
            | "shl" | "shr" | "shf" | "cnot" | "prmt" => self.bits(instruction, modifiers)?,
            "lop3" => self.lop3(instruction, modifiers)?,
            "and" | "or" | "xor" | "not" => self.bitwise(instruction, modifiers)?,
            "setp" | "set" => self.compare(instruction, modifiers)?,
            "selp" => self.select(instruction, modifiers)?,
            "slct" => self.select_by_sign(instruction, modifiers)?,
            opcode => {
                let Some((op, bytes)) = video(opcode) else { return Ok(false) };
                self.video(instruction, modifiers, op, bytes)?;
            }
        }
        Ok(true)
    }

    fn bits(&mut self, instruction: &InstructionTree, modifiers: &mut Modifiers) -> Result<()> {
        let permute = modifiers.pick(&[
            ("f4e", Permute::ForwardFour),
            ("b4e", Permute::BackwardFour),
            ("rc8", Permute::Replicate),
            ("ecl", Permute::EdgeLeft),
            ("ecr", Permute::EdgeRight),
            ("rc16", Permute::ReplicateHalf),
        ]);
        let shift = modifiers.take("shiftamt");
        let left = modifiers.pick(&[("l", true), ("r", false)]).unwrap_or(false);
        let clamp = modifiers.pick(&[("clamp", true), ("wrap", false)]).unwrap_or(false);
        let ty = self.required_type(modifiers)?;
        let u32s = Type::U32;
        let (op, types, target): (_, &[Type], _) = match instruction.opcode.as_str() {
            "popc" => (Integer::Popc, &[ty], u32s),
            "clz" => (Integer::LeadingZeros, &[ty], u32s),
            "bfind" => (Integer::Find { shift }, &[ty], u32s),
            "brev" => (Integer::Reverse, &[ty], ty),
            "bfe" => (Integer::Extract, &[ty, u32s, u32s], ty),
            "bfi" => (Integer::Insert, &[ty, ty, u32s, u32s], ty),
            "bmsk" => (Integer::Mask { clamp }, &[ty; 2], ty),
            "szext" => (Integer::SignOrZeroExtend { clamp }, &[ty, u32s], ty),
            "fns" => (Integer::FindSet, &[ty, u32s, Type::S32], ty),
            "shl" => (Integer::Shl, &[ty, u32s], ty),
            "shr" => (Integer::Shr, &[ty, u32s], ty),
            "shf" if left => (Integer::FunnelLeft { clamp }, &[ty; 3], ty),
            "shf" => (Integer::FunnelRight { clamp }, &[ty; 3], ty),
            "cnot" => (Integer::IsZero, &[ty], ty),
            _ => (Integer::Permute(permute.unwrap_or(Permute::Index)), &[ty; 3], ty),
        };
        self.integer(instruction, op, ty, types, target)
    }

    /// `lop3 d, a, b, c, table`, or `lop3.op d|p, a, b, c, table, q`, where p tells of the result
    /// whether it is not zero, combined with q.
    fn lop3(&mut self, instruction: &InstructionTree, modifiers: &mut Modifiers) -> Result<()> {
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

    fn bitwise(&mut self, instruction: &InstructionTree, modifiers: &mut Modifiers) -> Result<()> {
        let opcode = instruction.opcode.as_str();
        let ty = self.required_type(modifiers)?;
        if ty == Type::Pred {
            return self.predicate_logic(instruction);
        }
        match opcode {
            "and" => self.integer(instruction, Integer::And, ty, &[ty; 2], ty),
            "or" => self.integer(instruction, Integer::Or, ty, &[ty; 2], ty),
            "xor" => self.integer(instruction, Integer::Xor, ty, &[ty; 2], ty),
            _ => self.integer(instruction, Integer::Not, ty, &[ty], ty),
        }
    }

    fn predicate_logic(&mut self, instruction: &InstructionTree) -> Result<()> {
        let not = instruction.opcode == "not";
        self.count(instruction, if not { &[2] } else { &[3] })?;
        let a = self.test(&instruction.operands[1])?;
        let (logic, a, b) = match instruction.opcode.as_str() {
            "not" => (
                Logic::Or,
                Test { negated: !a.negated, ..a },
                Test { predicate: FALSE, negated: false },
            ),
            name => {
                let logic = match name {
                    "and" => Logic::And,
                    "or" => Logic::Or,
                    _ => Logic::Xor,
                };
                (logic, a, self.test(&instruction.operands[2])?)
            }
        };
        if let Target::P(d) = self.target(&instruction.operands[0], Type::Pred)? {
            self.emit(Op::Logic(logic, d, a, b));
        }
        Ok(())
    }

    fn select(&mut self, instruction: &InstructionTree, modifiers: &mut Modifiers) -> Result<()> {
        self.count(instruction, &[4])?;
        let ty = self.required_type(modifiers)?;
        let [d, a, b, p] = &instruction.operands[..] else { return Ok(()) };
        let (a, b) = (self.source(a, ty)?, self.source(b, ty)?);
        let test = self.test(p)?;
        let d = self.target(d, ty)?;
        self.emit_scalar(Scalar::Select, d, Target::Nowhere, [a, b, Source::P(test), NONE]);
        Ok(())
    }

    fn select_by_sign(
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

    fn compare(&mut self, instruction: &InstructionTree, modifiers: &mut Modifiers) -> Result<()> {
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
        let to = match instruction.opcode.as_str() {
            "set" => Some(self.required_type(modifiers)?),
            _ => None,
        };
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

    /// Two or four operations side by side in 32 bits, stored over the last operand or added to it.
    fn video(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        op: Video,
        bytes: bool,
    ) -> Result<()> {
        let (saturate, accumulate) = (modifiers.take("sat"), modifiers.take("add"));
        let [d, a, b] = [(); 3].map(|()| modifiers.ty().unwrap_or(Type::U32));
        let u32s = Type::U32;
        let (target, sources) = self.operands(&instruction.operands, &[u32s; 3], u32s)?;
        if instruction.operands[1..].iter().any(|o| matches!(o, Operand::Integer(_))) {
            return self.fail("constants are not supported here");
        }
        let signs = [d, a, b].map(Type::is_signed);
        let scalar = Scalar::Video { op, bytes, signs, saturate, accumulate };
        self.emit_scalar(scalar, target, Target::Nowhere, sources);
        Ok(())
    }
}

/// A video instruction's operation, and whether it works on bytes.
fn video(opcode: &str) -> Option<(Video, bool)> {
    let (name, bytes) = match (opcode.strip_suffix('2'), opcode.strip_suffix('4')) {
        (Some(name), _) => (name, false),
        (_, Some(name)) => (name, true),
        _ => return None,
    };
    let op = match name {
        "vadd" => Video::Add,
        "vsub" => Video::Sub,
        "vavrg" => Video::Average,
        "vabsdiff" => Video::Difference,
        "vmin" => Video::Min,
        "vmax" => Video::Max,
        _ => return None,
    };
    Some((op, bytes))
}
