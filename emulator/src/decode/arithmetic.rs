//! Integer and floating-point arithmetic.

use super::decoder::{CARRY, Decoder, NONE, Result};
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

/// The half of a product that an instruction keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ProductPart {
    Low,
    High,
    Wide,
}

impl Decoder<'_> {
    /// Decodes an arithmetic instruction; `false` if it is none.
    pub(super) fn arithmetic(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<bool> {
        match instruction.opcode.as_str() {
            "add" | "sub" | "mul" | "fma" | "mad" | "div" | "neg" | "abs" | "min" | "max"
            | "addc" | "subc" | "madc" => self.add_and_multiply(instruction, modifiers)?,
            "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" | "copysign"
            | "testp" => self.float_function(instruction, modifiers)?,
            "rem" | "sad" | "mul24" | "mad24" | "dp4a" | "dp2a" => {
                self.other_integers(instruction, modifiers)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

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

    pub(super) fn integer(
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

    fn float(
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

    /// The modifiers of floating-point arithmetic, of which the opcode allows some.
    fn float_mode(&mut self, modifiers: &mut Modifiers, ty: Type) -> FloatMode {
        FloatMode {
            ty,
            rounding: modifiers.rounding().unwrap_or(Rounding::Nearest),
            flush: modifiers.take("ftz"),
            saturate: modifiers.take("sat"),
            relu: modifiers.take("relu"),
            nan: modifiers.take("NaN"),
            // `.xorsign` comes with `.abs`, and `.abs` with nothing else.
            xorsign: modifiers.take("xorsign") && modifiers.take("abs"),
        }
    }

    fn add_and_multiply(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let opcode = instruction.opcode.as_str();
        let carry = modifiers.take("cc");
        let part = modifiers.pick(&[
            ("lo", ProductPart::Low),
            ("hi", ProductPart::High),
            ("wide", ProductPart::Wide),
        ]);
        let ty = self.required_type(modifiers)?;
        if carry || matches!(opcode, "addc" | "subc" | "madc") {
            return self.carrying(instruction, carry, part, ty);
        }
        if ty.is_float() {
            return self.float_arithmetic(instruction, modifiers, ty);
        }
        let saturate = modifiers.take("sat");
        let relu = modifiers.take("relu");
        let wide = match ty {
            Type::U16 => Type::U32,
            Type::S16 => Type::S32,
            Type::U32 => Type::U64,
            _ => Type::S64,
        };
        let packed = matches!(ty, Type::U16x2 | Type::S16x2);
        let (op, count) = match (opcode, part) {
            ("add", _) if packed => (Integer::AddPacked, 2),
            ("min", _) if packed => (Integer::MinPacked { relu }, 2),
            ("max", _) if packed => (Integer::MaxPacked { relu }, 2),
            ("add", _) if saturate => (Integer::AddSaturate, 2),
            ("sub", _) if saturate => (Integer::SubSaturate, 2),
            ("add", _) => (Integer::Add, 2),
            ("sub", _) => (Integer::Sub, 2),
            ("mul", Some(ProductPart::Low)) => (Integer::MulLow, 2),
            ("mul", Some(ProductPart::High)) => (Integer::MulHigh, 2),
            ("mul", _) => return self.integer(instruction, Integer::MulWide, ty, &[ty; 2], wide),
            ("mad", Some(ProductPart::Low)) => (Integer::MadLow, 3),
            ("mad", Some(ProductPart::High)) if saturate => (Integer::MadHighSaturate, 3),
            ("mad", Some(ProductPart::High)) => (Integer::MadHigh, 3),
            ("mad", _) => {
                return self.integer(instruction, Integer::MadWide, ty, &[ty, ty, wide], wide);
            }
            ("div", _) => (Integer::Div, 2),
            ("min", _) if relu => (Integer::MinRelu, 2),
            ("max", _) if relu => (Integer::MaxRelu, 2),
            ("min", _) => (Integer::Min, 2),
            ("max", _) => (Integer::Max, 2),
            ("neg", _) => (Integer::Neg, 1),
            _ => (Integer::Abs, 1),
        };
        self.integer(instruction, op, ty, &[ty; 3][..count], ty)
    }

    fn float_arithmetic(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        ty: Type,
    ) -> Result<()> {
        let mode = self.float_mode(modifiers, ty);
        let mut approximate = false;
        let (op, count) = match instruction.opcode.as_str() {
            "add" => (Float::Add, 2),
            "sub" => (Float::Sub, 2),
            "mul" => (Float::Mul, 2),
            "fma" | "mad" => (Float::Fma, 3),
            "div" if modifiers.take("approx") => {
                approximate = true;
                (Float::DivApprox, 2)
            }
            "div" => {
                approximate = modifiers.take("full");
                (Float::Div, 2)
            }
            "neg" => (Float::Neg, 1),
            "abs" => (Float::Abs, 1),
            "min" => (Float::Min, 2),
            _ => (Float::Max, 2),
        };
        self.float(instruction, op, mode, count, approximate)
    }

    fn carrying(
        &mut self,
        instruction: &InstructionTree,
        writes: bool,
        part: Option<ProductPart>,
        ty: Type,
    ) -> Result<()> {
        let opcode = instruction.opcode.as_str();
        let (kind, count) = match (opcode, part) {
            ("add" | "addc", _) => (CarryKind::Add, 2),
            ("sub" | "subc", _) => (CarryKind::Sub, 2),
            (_, Some(ProductPart::High)) => (CarryKind::MadHigh(ty.is_signed()), 3),
            _ => (CarryKind::MadLow, 3),
        };
        let (target, [a, b, c, _]) = self.operands(&instruction.operands, &[ty; 3][..count], ty)?;
        self.emit(Op::Carry(Box::new(CarryOp {
            bits: ty.bits(),
            kind,
            reads: opcode.ends_with('c'),
            writes,
            flag: CARRY,
            target,
            sources: [a, b, c],
        })));
        Ok(())
    }

    fn float_function(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let opcode = instruction.opcode.as_str();
        let test = modifiers.pick(&[
            ("finite", FloatTest::Finite),
            ("infinite", FloatTest::Infinite),
            ("number", FloatTest::Number),
            ("notanumber", FloatTest::NotANumber),
            ("normal", FloatTest::Normal),
            ("subnormal", FloatTest::Subnormal),
        ]);
        let ty = self.required_type(modifiers)?;
        let mode = self.float_mode(modifiers, ty);
        let approximate = modifiers.take("approx");
        if let Some(test) = test {
            let (target, sources) = self.operands(&instruction.operands, &[ty], Type::Pred)?;
            let scalar = Scalar::Float(Float::Test(test), mode);
            self.emit_scalar(scalar, target, Target::Nowhere, sources);
            return Ok(());
        }
        let op = match opcode {
            "copysign" => return self.float(instruction, Float::Copysign, mode, 2, false),
            "rcp" if approximate && ty == Type::F64 => Float::ReciprocalUpper,
            "rcp" => Float::Reciprocal,
            "sqrt" => Float::SquareRoot,
            "rsqrt" if mode.flush && ty == Type::F64 => Float::ReciprocalRootUpper,
            "rsqrt" => Float::ReciprocalRoot,
            "sin" => Float::Sin,
            "cos" => Float::Cos,
            "lg2" => Float::Log2,
            "ex2" => Float::Exp2,
            _ => Float::Tanh,
        };
        self.float(instruction, op, mode, 1, approximate)
    }

    fn other_integers(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let opcode = instruction.opcode.as_str();
        let high = modifiers.pick(&[("lo", false), ("hi", true)]).unwrap_or(false);
        let saturate = modifiers.take("sat");
        let ty = self.required_type(modifiers)?;
        let (op, count) = match opcode {
            "dp4a" | "dp2a" => {
                let b_signed = self.required_type(modifiers)?.is_signed();
                let a_signed = ty.is_signed();
                let op = match opcode {
                    "dp4a" => Integer::Dot4 { a_signed, b_signed },
                    _ => Integer::Dot2 { a_signed, b_signed, high },
                };
                let u32s = Type::U32;
                return self.integer(instruction, op, u32s, &[u32s; 3], u32s);
            }
            "rem" => (Integer::Rem, 2),
            "sad" => (Integer::Sad, 3),
            "mul24" if high => (Integer::Mul24High, 2),
            "mul24" => (Integer::Mul24Low, 2),
            _ if saturate => (Integer::Mad24HighSaturate, 3),
            _ if high => (Integer::Mad24High, 3),
            _ => (Integer::Mad24Low, 3),
        };
        self.integer(instruction, op, ty, &[ty; 3][..count], ty)
    }
}
