//! Integer and floating-point arithmetic.

use super::decoder::{CARRY, Decoder, NONE, Result};
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

impl Decoder<'_> {
    pub(super) fn required_type(&mut self, modifiers: &mut Modifiers) -> Result<Type> {
        match modifiers.ty() {
            Some(ty) => Ok(ty),
            None => self.fail("the instruction needs a type"),
        }
    }

    /// Decodes the operands after the first as sources, and the first as the target.
    pub(super) fn operands(
        &mut self,
        operands: &[Operand],
        types: &[Type],
        target: Type,
    ) -> Result<(Target, [Source; 4])> {
        if operands.len() != types.len() + 1 {
            return self.fail(format!(
                "the instruction takes {} operands, not {}",
                types.len() + 1,
                operands.len()
            ));
        }
        let mut sources = [NONE; 4];
        for ((source, operand), ty) in sources.iter_mut().zip(&operands[1..]).zip(types) {
            *source = self.source(operand, *ty)?;
        }
        Ok((self.target(&operands[0], target)?, sources))
    }

    /// Appends an integer operation whose operands have types of their own.
    pub(super) fn emit_integer(
        &mut self,
        instruction: &InstructionTree,
        op: Integer,
        ty: Type,
        types: &[Type],
        target: Type,
    ) -> Result<()> {
        let (target, sources) = self.operands(&instruction.operands, types, target)?;
        self.emit_scalar(Scalar::Integer(op, ty), target, Target::Nowhere, sources);
        Ok(())
    }

    /// Integer operations on `count` values of one type.
    pub(super) fn integer(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        ops: &[Integer],
        count: usize,
    ) -> Result<()> {
        // The operation says these already.
        modifiers.drop_all(|modifier| matches!(modifier, "hi" | "sat"));
        let ty = self.required_type(modifiers)?;
        let op = modifiers.of_opcode(ops);
        self.emit_integer(instruction, op, ty, &[ty; 4][..count], ty)
    }

    /// `.relu`, of single integers or of packed ones.
    pub(super) fn integer_or_packed(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        single: Integer,
        packed: Integer,
    ) -> Result<()> {
        modifiers.take("relu");
        let ty = self.required_type(modifiers)?;
        let op = if matches!(ty, Type::U16x2 | Type::S16x2) { packed } else { single };
        self.emit_integer(instruction, op, ty, &[ty; 2], ty)
    }

    /// `.lo` or `.hi`: the half of a product that is kept.
    pub(super) fn half_product(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        [low, high]: [Integer; 2],
        count: usize,
    ) -> Result<()> {
        let op = modifiers.pick(&[("lo", low), ("hi", high)]).unwrap_or(low);
        let ty = self.required_type(modifiers)?;
        self.emit_integer(instruction, op, ty, &[ty; 3][..count], ty)
    }

    /// `.wide`: a product of twice the width, perhaps plus a value of that width.
    pub(super) fn wide_product(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        op: Integer,
        count: usize,
    ) -> Result<()> {
        modifiers.take("wide");
        let ty = self.required_type(modifiers)?;
        let wide = match ty {
            Type::U16 => Type::U32,
            Type::S16 => Type::S32,
            Type::U32 => Type::U64,
            _ => Type::S64,
        };
        self.emit_integer(instruction, op, ty, &[ty, ty, wide][..count], wide)
    }

    pub(super) fn dot_four(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let [a_signed, b_signed] = self.signs(modifiers)?;
        let u32s = Type::U32;
        let op = Integer::Dot4 { a_signed, b_signed };
        self.emit_integer(instruction, op, u32s, &[u32s; 3], u32s)
    }

    pub(super) fn dot_two(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let high = modifiers.pick(&[("lo", false), ("hi", true)]).unwrap_or(false);
        let [a_signed, b_signed] = self.signs(modifiers)?;
        let u32s = Type::U32;
        let op = Integer::Dot2 { a_signed, b_signed, high };
        self.emit_integer(instruction, op, u32s, &[u32s; 3], u32s)
    }

    /// Whether each of two types is signed.
    fn signs(&mut self, modifiers: &mut Modifiers) -> Result<[bool; 2]> {
        let (a, b) = (self.required_type(modifiers)?, self.required_type(modifiers)?);
        Ok([a.is_signed(), b.is_signed()])
    }

    /// Sums that read or write the carry flag.
    pub(super) fn carry(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        kinds: &[CarryKind],
        reads: bool,
    ) -> Result<()> {
        let writes = modifiers.take("cc");
        let kind = modifiers.of_opcode(kinds);
        let ty = self.required_type(modifiers)?;
        self.emit_carry(instruction, kind, [reads, writes], ty, 2)
    }

    /// Products whose sum reads or writes the carry flag.
    pub(super) fn carry_product(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        reads: bool,
    ) -> Result<()> {
        let writes = modifiers.take("cc");
        let high = modifiers.pick(&[("lo", false), ("hi", true)]).unwrap_or(false);
        let ty = self.required_type(modifiers)?;
        let kind = if high { CarryKind::MadHigh(ty.is_signed()) } else { CarryKind::MadLow };
        self.emit_carry(instruction, kind, [reads, writes], ty, 3)
    }

    fn emit_carry(
        &mut self,
        instruction: &InstructionTree,
        kind: CarryKind,
        [reads, writes]: [bool; 2],
        ty: Type,
        count: usize,
    ) -> Result<()> {
        let (target, [a, b, c, _]) = self.operands(&instruction.operands, &[ty; 3][..count], ty)?;
        self.emit(Op::Carry(Box::new(CarryOp {
            bits: ty.bits(),
            kind,
            reads,
            writes,
            flag: CARRY,
            target,
            sources: [a, b, c],
        })));
        Ok(())
    }

    fn emit_float(
        &mut self,
        instruction: &InstructionTree,
        op: Float,
        mode: FloatMode,
        count: usize,
        approximate: bool,
    ) -> Result<()> {
        let types = [mode.ty; 3];
        let (target, sources) = self.operands(&instruction.operands, &types[..count], mode.ty)?;
        let scalar = match approximate && self.jitter {
            true => Scalar::Approximate(op, mode),
            false => Scalar::Float(op, mode),
        };
        self.emit_scalar(scalar, target, Target::Nowhere, sources);
        Ok(())
    }

    /// The type and the modifiers of floating-point arithmetic. The form allows some of them.
    fn float_mode(&mut self, modifiers: &mut Modifiers) -> Result<FloatMode> {
        Ok(FloatMode {
            ty: self.required_type(modifiers)?,
            rounding: modifiers.rounding().unwrap_or(Rounding::Nearest),
            flush: modifiers.take("ftz"),
            saturate: modifiers.take("sat"),
            relu: modifiers.take("relu"),
            nan: modifiers.take("NaN"),
            // `.xorsign` comes with `.abs`, and `.abs` with nothing else.
            xorsign: modifiers.take("xorsign") && modifiers.take("abs"),
        })
    }

    /// Floating-point operations on `count` values of one type.
    pub(super) fn float(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        ops: &[Float],
        count: usize,
    ) -> Result<()> {
        let op = modifiers.of_opcode(ops);
        let approximate = modifiers.take("approx");
        let mode = self.float_mode(modifiers)?;
        self.emit_float(instruction, op, mode, count, approximate)
    }

    /// Divisions that may have an error: `.approx` in a range, `.full` in all of it.
    pub(super) fn divide_roughly(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let ops = [("approx", Float::DivApprox), ("full", Float::Div)];
        let op = modifiers.pick(&ops).unwrap_or(Float::Div);
        let mode = self.float_mode(modifiers)?;
        self.emit_float(instruction, op, mode, 2, true)
    }

    pub(super) fn reciprocal_root(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        modifiers.take("approx");
        let mode = self.float_mode(modifiers)?;
        let upper = mode.flush && mode.ty == Type::F64;
        let op = if upper { Float::ReciprocalRootUpper } else { Float::ReciprocalRoot };
        self.emit_float(instruction, op, mode, 1, true)
    }

    /// Tests of a value's class.
    pub(super) fn classify(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let test = modifiers.pick(&[
            ("finite", FloatTest::Finite),
            ("infinite", FloatTest::Infinite),
            ("number", FloatTest::Number),
            ("notanumber", FloatTest::NotANumber),
            ("normal", FloatTest::Normal),
            ("subnormal", FloatTest::Subnormal),
        ]);
        let Some(test) = test else { return self.fail("the test of a class is missing") };
        let mode = self.float_mode(modifiers)?;
        let (target, sources) = self.operands(&instruction.operands, &[mode.ty], Type::Pred)?;
        let scalar = Scalar::Float(Float::Test(test), mode);
        self.emit_scalar(scalar, target, Target::Nowhere, sources);
        Ok(())
    }
}
