//! Operands: registers, constants and addresses, with the widths that their types ask for.

use super::decoder::{Decoder, NONE, Result, SINK, Symbol};
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

impl Decoder<'_> {
    /// The address of a symbol plus an offset, in its own state space.
    pub(super) fn address_of(&mut self, symbol: &Symbol, offset: i64, ty: Type) -> Result<Source> {
        let offset = offset as u64;
        let value = match symbol {
            Symbol::Global(address) | Symbol::Constant(address) => *address,
            Symbol::Shared(at) => SHARED_BASE.wrapping_add(*at),
            Symbol::Local(at) => match self.frame {
                Some(frame) => return self.frame_address(frame, u64::from(*at), offset, ty),
                None => LOCAL_BASE + u64::from(*at),
            },
            Symbol::Function(address) => *address,
            Symbol::Param(at) => PARAM_BASE + at,
            Symbol::DynamicShared if ty.bits() == 64 => {
                let slot = self.new_q();
                self.dynamic64.push((slot, offset));
                return Ok(Source::Q(slot));
            }
            Symbol::DynamicShared => {
                let slot = self.new_slot(Type::B32);
                self.dynamic32.push((slot, offset));
                return Ok(Source::R(slot));
            }
            Symbol::Register(_) => return self.fail("a register has no address"),
        };
        let value = value.wrapping_add(offset);
        if ty.bits() < 64 && value > u64::from(u32::MAX) {
            return self.fail("the address does not fit into 32 bits");
        }
        Ok(self.constant(value, ty))
    }

    /// The address of a variable in the frame of a function.
    fn frame_address(&mut self, frame: Q, at: u64, offset: u64, ty: Type) -> Result<Source> {
        let (sum, by) = (self.new_q(), self.constant64(at.wrapping_add(offset)));
        self.emit_always(Op::Bin64(Bin64::Add, sum, frame, by));
        if ty.bits() == 64 {
            return Ok(Source::Q(sum));
        }
        let narrow = self.new_temporary();
        self.emit_always(Op::Truncate(narrow, sum));
        Ok(Source::R(narrow))
    }

    /// A source operand: a register of exactly the type's width and kind, or a constant.
    pub(super) fn source(&mut self, operand: &Operand, ty: Type) -> Result<Source> {
        if let Operand::SymbolPlus(name, offset) = operand
            && let Symbol::Register(register) = self.symbol(name)?
        {
            let register = register.ty;
            if !register.is_integer() || register.bits() != ty.bits() || !register.agrees(ty) {
                return self.mismatch(&Operand::Name(name.clone()), register, ty);
            }
            return self.increased(name, *offset, register);
        }
        match self.register(operand)? {
            Some(register) if register.bits() != ty.bits() || !register.agrees(ty) => {
                self.mismatch(operand, register, ty)
            }
            Some(_) => self.read(operand),
            None => self.constant_source(operand, ty),
        }
    }

    /// The sum of a register and a constant.
    fn increased(&mut self, name: &str, offset: i64, ty: Type) -> Result<Source> {
        let a = self.read(&Operand::Name(name.to_owned()))?;
        let b = self.constant(offset as u64, ty);
        let (target, sum) = match ty.bits() {
            64 => {
                let q = self.new_q();
                (Target::Q(q), Source::Q(q))
            }
            bits => {
                let r = self.new_temporary();
                (Target::R(r, bits as u8), Source::R(r))
            }
        };
        let add = Scalar::Integer(Integer::Add, ty);
        self.emit_scalar(add, target, Target::Nowhere, [a, b, NONE, NONE]);
        Ok(sum)
    }

    /// A source operand of an instruction that takes registers wider than its type.
    pub(super) fn wide_source(&mut self, operand: &Operand, ty: Type) -> Result<Source> {
        if matches!(operand, Operand::SymbolPlus(..)) {
            return self.source(operand, ty);
        }
        match self.register(operand)? {
            Some(register) if register.bits() < ty.bits() || !register.agrees(ty) => {
                self.mismatch(operand, register, ty)
            }
            Some(_) => self.read(operand),
            None => self.constant_source(operand, ty),
        }
    }

    /// A source operand that may also be a special register or the address of a variable.
    pub(super) fn moved(&mut self, operand: &Operand, ty: Type) -> Result<Source> {
        match operand {
            Operand::Name(name) => {
                if let Some(special) = Special::by_name(name) {
                    return self.special_source(name, special, ty);
                }
                match self.symbol(name)? {
                    Symbol::Register(_) => self.source(operand, ty),
                    symbol => self.address_of(&symbol, 0, ty),
                }
            }
            Operand::SymbolPlus(name, offset) => match self.symbol(name)? {
                Symbol::Register(_) => self.source(operand, ty),
                symbol => self.address_of(&symbol, *offset, ty),
            },
            _ => self.source(operand, ty),
        }
    }

    fn special_source(&mut self, name: &str, special: Special, ty: Type) -> Result<Source> {
        let fits = ty.is_integer() && (ty.bits() <= 32 || special == Special::Grid);
        if !fits {
            return self.fail(format!("`{name}` cannot be an operand of type {ty:?}"));
        }
        let slot = self.special(special);
        if ty.bits() < 64 {
            return Ok(Source::R(slot));
        }
        let wide = self.new_q();
        self.emit_always(Op::Extend { signed: false, d: wide, a: slot });
        Ok(Source::Q(wide))
    }

    fn constant_source(&mut self, operand: &Operand, ty: Type) -> Result<Source> {
        let bits = match (operand, ty) {
            (Operand::Integer(value), _) if ty.is_integer() || ty == Type::Pred => *value,
            (Operand::Single(bits), Type::F32 | Type::B32) => u64::from(*bits),
            (Operand::Single(bits), Type::F64) => f64::from(f32::from_bits(*bits)).to_bits(),
            (Operand::Double(bits), Type::F64 | Type::B64) => *bits,
            (Operand::Double(bits), Type::F32) => {
                u64::from((f64::from_bits(*bits) as f32).to_bits())
            }
            (Operand::Name(name) | Operand::SymbolPlus(name, _), _) => {
                return self.fail(match Special::by_name(name) {
                    Some(_) => format!("`{name}` has to be moved to a register first"),
                    None => format!("the address of `{name}` has to be moved to a register first"),
                });
            }
            (Operand::Integer(_) | Operand::Single(_) | Operand::Double(_), _) => {
                return self.fail(format!("this constant cannot be an operand of type {ty:?}"));
            }
            _ => return self.fail("a register or a constant is expected here"),
        };
        Ok(self.constant(bits, ty))
    }

    /// The type of a register that the program declared.
    pub(super) fn register(&mut self, operand: &Operand) -> Result<Option<Type>> {
        let (Operand::Name(name) | Operand::Not(name)) = operand else { return Ok(None) };
        if Special::by_name(name).is_some() {
            return Ok(None);
        }
        let ty = match self.symbol(name)? {
            Symbol::Register(register) => Some(register.ty),
            _ => None,
        };
        match (operand, ty) {
            (Operand::Name(_), ty) | (Operand::Not(_), ty @ Some(Type::Pred)) => Ok(ty),
            _ => self.fail(format!("`{name}` is not a predicate")),
        }
    }

    fn mismatch<T>(&self, operand: &Operand, register: Type, ty: Type) -> Result<T> {
        let name = match operand {
            Operand::Name(name) | Operand::Not(name) => name.as_str(),
            _ => "the operand",
        };
        self.fail(format!("`{name}` is {register:?}, which cannot be an operand of type {ty:?}"))
    }

    fn emit_always(&mut self, op: Op) {
        let guard = self.guard;
        self.always();
        self.emit(op);
        self.guard = guard;
    }

    /// The register of a name, read.
    fn read(&mut self, operand: &Operand) -> Result<Source> {
        let (name, negated) = match operand {
            Operand::Name(name) => (name, false),
            Operand::Not(name) => (name, true),
            _ => return self.fail("a register is expected here"),
        };
        let Symbol::Register(register) = self.symbol(name)? else {
            return self.fail(format!("`{name}` is not a register"));
        };
        let slot = register.slot.unwrap_or(SINK);
        self.flow.read(register.ty, slot);
        Ok(match register.ty.bits() {
            1 => Source::P(Test { predicate: slot, negated }),
            64 => Source::Q(slot),
            _ => Source::R(slot),
        })
    }

    /// The register of a name, written.
    fn written(&mut self, operand: &Operand) -> Result<Target> {
        let Operand::Name(name) = operand else {
            return self.fail("a register is expected as the destination");
        };
        let Symbol::Register(register) = self.symbol(name)? else {
            return self.fail(format!("`{name}` is not a register"));
        };
        let slot = register.slot.unwrap_or(SINK);
        self.flow.write(register.ty, slot);
        Ok(match register.ty.bits() {
            1 => Target::P(slot),
            64 => Target::Q(slot),
            bits => Target::R(slot, bits as u8),
        })
    }

    /// A destination of exactly the type's width, and of its kind.
    pub(super) fn target(&mut self, operand: &Operand, ty: Type) -> Result<Target> {
        match self.register(operand)? {
            Some(register) if register.bits() != ty.bits() || !register.agrees(ty) => {
                self.mismatch(operand, register, ty)
            }
            _ => self.written(operand),
        }
    }

    /// A destination of an instruction that takes registers wider than its type.
    pub(super) fn wide_target(&mut self, operand: &Operand, ty: Type) -> Result<Target> {
        match self.register(operand)? {
            Some(register) if register.bits() < ty.bits() || !register.agrees(ty) => {
                self.mismatch(operand, register, ty)
            }
            _ => self.written(operand),
        }
    }

    /// A destination that may be `_`.
    pub(super) fn optional_target(&mut self, operand: &Operand, ty: Type) -> Result<Target> {
        if *operand == Operand::Sink { Ok(Target::Nowhere) } else { self.target(operand, ty) }
    }

    /// A 32-bit source register.
    pub(super) fn r(&mut self, operand: &Operand) -> Result<R> {
        match self.source(operand, Type::B32)? {
            Source::R(r) => Ok(r),
            _ => self.fail("a 32-bit operand is expected"),
        }
    }

    /// A 32-bit integer.
    pub(super) fn word(&mut self, operand: &Operand) -> Result<R> {
        match self.source(operand, Type::U32)? {
            Source::R(r) => Ok(r),
            _ => self.fail("a 32-bit operand is expected"),
        }
    }

    /// A 32-bit destination register.
    pub(super) fn r_target(&mut self, operand: &Operand) -> Result<R> {
        match self.target(operand, Type::B32)? {
            Target::R(r, _) => Ok(r),
            _ => self.fail("a 32-bit register is expected as the destination"),
        }
    }

    /// Checks that the registers of a vector have one width.
    pub(super) fn same_widths(&mut self, elements: &[Operand]) -> Result<()> {
        let mut width = None;
        for element in elements {
            let Some(ty) = self.register(element)? else { continue };
            if width.replace(ty.bits()).is_some_and(|before| before != ty.bits()) {
                return self.fail("the registers of a vector must have one width");
            }
        }
        Ok(())
    }

    /// A predicate operand.
    pub(super) fn test(&mut self, operand: &Operand) -> Result<Test> {
        match self.source(operand, Type::Pred)? {
            Source::P(test) => Ok(test),
            _ => self.fail("a predicate is expected"),
        }
    }

    /// Checks the number of operands.
    pub(super) fn count(&self, instruction: &InstructionTree, counts: &[usize]) -> Result<()> {
        let found = instruction.operands.len();
        if counts.contains(&found) {
            return Ok(());
        }
        self.fail(format!("`{}` does not take {found} operands", instruction.opcode))
    }
}
