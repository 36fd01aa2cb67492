//! Integer, floating-point, logic and comparison instructions.

use super::decoder::{CARRY, Decoder, Result};
use super::exists;
use super::modifiers::Modifiers;
use crate::exec::op::*;
use crate::exec::{
    Comparison, Float, FloatMode, FloatTest, Integer, Permute, Relation, Rounding, Scalar,
    rounds_double,
};
use crate::ptx::{Instruction, Operand, Type};

const NONE: Source = Source::P(Test { predicate: FALSE, negated: false });

/// The half of a product that an instruction keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Low,
    High,
    Wide,
}

impl Decoder<'_> {
    /// Decodes an arithmetic instruction; `false` if it is none.
    pub(super) fn arithmetic(
        &mut self,
        instruction: &Instruction,
        modifiers: &mut Modifiers,
    ) -> Result<bool> {
        match instruction.opcode.as_str() {
            "add" | "sub" | "mul" | "fma" | "mad" | "div" | "neg" | "abs" | "min" | "max"
            | "addc" | "subc" | "madc" => self.add_and_multiply(instruction, modifiers)?,
            "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" | "copysign"
            | "testp" => self.function(instruction, modifiers)?,
            "rem" | "sad" | "mul24" | "mad24" | "popc" | "clz" | "bfind" | "brev" | "bfe"
            | "bfi" | "bmsk" | "shl" | "shr" | "shf" | "lop3" | "prmt" | "dp4a" | "dp2a"
            | "cnot" => self.bits(instruction, modifiers)?,
            "and" | "or" | "xor" | "not" => self.logic(instruction, modifiers)?,
            "setp" | "set" => self.compare(instruction, modifiers)?,
            "selp" => {
                self.count(instruction, &[4])?;
                let ty = self.required_type(modifiers)?;
                let [d, a, b, p] = &instruction.operands[..] else { return Ok(true) };
                let (a, b) = (self.source(a, ty)?, self.source(b, ty)?);
                let test = self.test(p)?;
                let d = self.target(d, ty)?;
                self.emit_scalar(Scalar::Select, d, Target::Nowhere, [a, b, Source::P(test), NONE]);
            }
            "slct" => {
                self.count(instruction, &[4])?;
                let flush = modifiers.take("ftz");
                let (ty, by) = (self.required_type(modifiers)?, self.required_type(modifiers)?);
                if !matches!(by, Type::S32 | Type::F32) {
                    return self.fail("`slct` selects by .s32 or .f32");
                }
                let [d, a, b, c] = &instruction.operands[..] else { return Ok(true) };
                let sources = [self.source(a, ty)?, self.source(b, ty)?, self.source(c, by)?, NONE];
                let d = self.target(d, ty)?;
                let scalar = Scalar::SelectBySign { float: by == Type::F32, flush };
                self.emit_scalar(scalar, d, Target::Nowhere, sources);
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
    fn operands(
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

    fn integer(
        &mut self,
        instruction: &Instruction,
        op: Integer,
        ty: Type,
        types: &[Type],
        target: Type,
    ) -> Result<()> {
        if !exists::integer(op, ty) {
            return self.fail(format!("`{}` does not exist for {ty:?}", instruction.opcode));
        }
        let (target, sources) = self.operands(&instruction.operands, types, target)?;
        self.emit_scalar(Scalar::Integer(op, ty), target, Target::Nowhere, sources);
        Ok(())
    }

    fn float(
        &mut self,
        instruction: &Instruction,
        op: Float,
        mode: FloatMode,
        count: usize,
        approximate: bool,
    ) -> Result<()> {
        if !exists::float(op, mode) {
            let (opcode, ty) = (&instruction.opcode, mode.ty);
            return self.fail(format!("`{opcode}` does not exist for {ty:?} in this form"));
        }
        let types = [mode.ty; 3];
        let (target, sources) = self.operands(&instruction.operands, &types[..count], mode.ty)?;
        if mode.ty == Type::F64 && !rounds_double(op, mode.rounding) {
            return self.fail("directed rounding of f64 is supported for sums only");
        }
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
            relu: ty.is_half() && modifiers.take("relu"),
            nan: false,
            xorsign: false,
        }
    }

    fn add_and_multiply(
        &mut self,
        instruction: &Instruction,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let opcode = instruction.opcode.as_str();
        let carry = modifiers.take("cc");
        let part = modifiers.pick(&[("lo", Part::Low), ("hi", Part::High), ("wide", Part::Wide)]);
        let ty = self.required_type(modifiers)?;
        if carry || matches!(opcode, "addc" | "subc" | "madc") {
            return self.carrying(instruction, carry, part, ty);
        }
        if matches!(ty, Type::U16x2 | Type::S16x2) {
            let op = match opcode {
                "add" => Integer::AddPacked,
                "min" => Integer::MinPacked,
                "max" => Integer::MaxPacked,
                _ => return self.fail(format!("`{opcode}` of packed integers is not supported")),
            };
            return self.integer(instruction, op, ty, &[ty; 2], ty);
        }
        if ty.is_float() {
            if part.is_some() {
                return self.fail(format!("`{opcode}` of {ty:?} has no low or high half"));
            }
            return self.float_arithmetic(instruction, modifiers, ty);
        }
        let saturate = modifiers.take("sat");
        if saturate && (ty != Type::S32 || !matches!(opcode, "add" | "sub" | "mad")) {
            return self.fail("`.sat` of integers is for `add`, `sub` and `mad.hi` of .s32");
        }
        let wide = match ty {
            Type::U16 => Type::U32,
            Type::S16 => Type::S32,
            Type::U32 => Type::U64,
            _ => Type::S64,
        };
        let (op, count) = match (opcode, part) {
            ("add", None) if saturate => (Integer::AddSaturate, 2),
            ("sub", None) if saturate => (Integer::SubSaturate, 2),
            ("add", None) => (Integer::Add, 2),
            ("sub", None) => (Integer::Sub, 2),
            ("mul", Some(Part::Low)) => (Integer::MulLow, 2),
            ("mul", Some(Part::High)) => (Integer::MulHigh, 2),
            ("mul", Some(Part::Wide)) if ty.bits() < 64 => {
                return self.integer(instruction, Integer::MulWide, ty, &[ty; 2], wide);
            }
            ("mad", Some(Part::Low)) => (Integer::MadLow, 3),
            ("mad", Some(Part::High)) if saturate => (Integer::MadHighSaturate, 3),
            ("mad", Some(Part::High)) => (Integer::MadHigh, 3),
            ("mad", Some(Part::Wide)) if ty.bits() < 64 => {
                return self.integer(instruction, Integer::MadWide, ty, &[ty, ty, wide], wide);
            }
            ("div", None) => (Integer::Div, 2),
            ("min", None) => (Integer::Min, 2),
            ("max", None) => (Integer::Max, 2),
            ("neg", None) => (Integer::Neg, 1),
            ("abs", None) => (Integer::Abs, 1),
            _ => return self.fail(format!("`{opcode}` does not exist in this form")),
        };
        self.integer(instruction, op, ty, &[ty; 3][..count], ty)
    }

    fn float_arithmetic(
        &mut self,
        instruction: &Instruction,
        modifiers: &mut Modifiers,
        ty: Type,
    ) -> Result<()> {
        let mut mode = self.float_mode(modifiers, ty);
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
            name => {
                mode.nan = modifiers.take("NaN");
                mode.xorsign = modifiers.take("xorsign");
                if mode.xorsign && !modifiers.take("abs") {
                    return self.fail("`.xorsign` needs `.abs`");
                }
                (if name == "min" { Float::Min } else { Float::Max }, 2)
            }
        };
        self.float(instruction, op, mode, count, approximate)
    }

    fn carrying(
        &mut self,
        instruction: &Instruction,
        writes: bool,
        part: Option<Part>,
        ty: Type,
    ) -> Result<()> {
        let opcode = instruction.opcode.as_str();
        if ty.is_float() || ty.bits() < 32 {
            return self.fail("carries are for integers of 32 and 64 bits");
        }
        let (kind, count) = match (opcode, part) {
            ("add" | "addc", None) => (CarryKind::Add, 2),
            ("sub" | "subc", None) => (CarryKind::Sub, 2),
            ("mad" | "madc", Some(Part::Low)) => (CarryKind::MadLow, 3),
            ("mad" | "madc", Some(Part::High)) => (CarryKind::MadHigh(ty.is_signed()), 3),
            _ => return self.fail(format!("`{opcode}` does not exist in this form")),
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

    fn function(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
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
        if !ty.is_float() {
            return self.fail(format!("`{opcode}` is for floating-point types"));
        }
        let mode = self.float_mode(modifiers, ty);
        let approximate = modifiers.take("approx");
        let op = match opcode {
            "testp" => {
                let Some(test) = test else { return self.fail("`testp` needs a class") };
                let types = [ty];
                let (target, sources) = self.operands(&instruction.operands, &types, Type::Pred)?;
                let scalar = Scalar::Float(Float::Test(test), mode);
                self.emit_scalar(scalar, target, Target::Nowhere, sources);
                return Ok(());
            }
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
        if !approximate && !matches!(op, Float::Reciprocal | Float::SquareRoot) {
            return self.fail(format!("`{opcode}` exists as an approximation only"));
        }
        self.float(instruction, op, mode, 1, approximate)
    }

    fn bits(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
        let opcode = instruction.opcode.as_str();
        let u32s = Type::U32;
        match opcode {
            "shf" => return self.funnel(instruction, modifiers),
            "lop3" => return self.lop3(instruction, modifiers),
            "prmt" => {
                let mode = modifiers.pick(&[
                    ("f4e", Permute::ForwardFour),
                    ("b4e", Permute::BackwardFour),
                    ("rc8", Permute::Replicate),
                    ("ecl", Permute::EdgeLeft),
                    ("ecr", Permute::EdgeRight),
                    ("rc16", Permute::ReplicateHalf),
                ]);
                let op = Integer::Permute(mode.unwrap_or(Permute::Index));
                let ty = self.required_type(modifiers)?;
                return self.integer(instruction, op, ty, &[ty; 3], ty);
            }
            "dp4a" | "dp2a" => {
                let high = modifiers.pick(&[("lo", false), ("hi", true)]);
                let (a, b) = (self.required_type(modifiers)?, self.required_type(modifiers)?);
                if [a, b].iter().any(|ty| !matches!(ty, Type::U32 | Type::S32)) {
                    return self.fail(format!("`{opcode}` is for .u32 and .s32"));
                }
                let (a_signed, b_signed) = (a.is_signed(), b.is_signed());
                let op = match (opcode, high) {
                    ("dp4a", None) => Integer::Dot4 { a_signed, b_signed },
                    ("dp2a", Some(high)) => Integer::Dot2 { a_signed, b_signed, high },
                    _ => return self.fail(format!("`{opcode}` does not exist in this form")),
                };
                return self.integer(instruction, op, u32s, &[u32s; 3], u32s);
            }
            _ => {}
        }
        let shift = modifiers.take("shiftamt");
        let high = modifiers.pick(&[("lo", false), ("hi", true)]);
        let clamp = modifiers.pick(&[("clamp", true), ("wrap", false)]);
        let ty = self.required_type(modifiers)?;
        let (op, types, target): (_, &[Type], _) = match (opcode, high, clamp, shift) {
            ("rem", None, None, false) => (Integer::Rem, &[ty; 2], ty),
            ("sad", None, None, false) => (Integer::Sad, &[ty; 3], ty),
            ("mul24", Some(false), None, false) => (Integer::Mul24Low, &[ty; 2], ty),
            ("mul24", Some(true), None, false) => (Integer::Mul24High, &[ty; 2], ty),
            ("mad24", Some(false), None, false) => (Integer::Mad24Low, &[ty; 3], ty),
            ("mad24", Some(true), None, false) => (Integer::Mad24High, &[ty; 3], ty),
            ("popc", None, None, false) => (Integer::Popc, &[ty], u32s),
            ("clz", None, None, false) => (Integer::LeadingZeros, &[ty], u32s),
            ("bfind", None, None, shift) => (Integer::Find { shift }, &[ty], u32s),
            ("brev", None, None, false) => (Integer::Reverse, &[ty], ty),
            ("bfe", None, None, false) => (Integer::Extract, &[ty, u32s, u32s], ty),
            ("bfi", None, None, false) => (Integer::Insert, &[ty, ty, u32s, u32s], ty),
            ("bmsk", None, Some(clamp), false) => (Integer::Mask { clamp }, &[ty; 2], ty),
            ("shl", None, None, false) => (Integer::Shl, &[ty, u32s], ty),
            ("shr", None, None, false) => (Integer::Shr, &[ty, u32s], ty),
            ("cnot", None, None, false) => (Integer::IsZero, &[ty], ty),
            _ => return self.fail(format!("`{opcode}` does not exist in this form")),
        };
        self.integer(instruction, op, ty, types, target)
    }

    fn funnel(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
        let left = modifiers.pick(&[("l", true), ("r", false)]);
        let clamp = modifiers.pick(&[("clamp", true), ("wrap", false)]);
        let ty = self.required_type(modifiers)?;
        let (Some(left), Some(clamp)) = (left, clamp) else {
            return self.fail("`shf` needs a direction and a mode");
        };
        let op = match left {
            true => Integer::FunnelLeft { clamp },
            false => Integer::FunnelRight { clamp },
        };
        self.integer(instruction, op, ty, &[ty; 3], ty)
    }

    fn lop3(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
        let ty = self.required_type(modifiers)?;
        if ty != Type::B32 {
            return self.fail("`lop3` is for .b32");
        }
        let Some((Operand::Integer(table @ 0..=255), operands)) = instruction.operands.split_last()
        else {
            return self.fail("`lop3` needs a table from 0 to 255");
        };
        let (target, sources) = self.operands(operands, &[ty; 3], ty)?;
        let op = Integer::Lop3(*table as u8);
        self.emit_scalar(Scalar::Integer(op, ty), target, Target::Nowhere, sources);
        Ok(())
    }

    fn logic(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
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

    fn predicate_logic(&mut self, instruction: &Instruction) -> Result<()> {
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

    fn compare(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
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
        let only_float = matches!(
            relation,
            Relation::EqU
                | Relation::NeU
                | Relation::LtU
                | Relation::LeU
                | Relation::GtU
                | Relation::GeU
                | Relation::Num
                | Relation::Nan
        );
        if (only_float && !ty.is_float()) || !exists::comparison(ty) {
            return self.fail("this comparison of this type is not supported");
        }
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
                let (p, q) = (self.target(p, Type::Pred)?, self.target(q, Type::Pred)?);
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
