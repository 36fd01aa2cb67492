//! Operands: registers, constants and addresses, with the widths that their types ask for.

use super::decoder::{Decoder, Register, Result, SINK, Symbol};
use crate::exec::op::{Op, R, Source, Target, Test};
use crate::exec::{LOCAL_BASE, PARAM_BASE, SHARED_BASE, Special};
use crate::ptx::{Instruction, Operand, Type};

impl Decoder<'_> {
    /// The address of a symbol plus an offset, in its own state space.
    pub(super) fn address_of(&mut self, symbol: &Symbol, offset: i64, ty: Type) -> Result<Source> {
        let offset = offset as u64;
        let value = match symbol {
            Symbol::Global(address) => *address,
            Symbol::Shared(at) => SHARED_BASE.wrapping_add(*at),
            Symbol::Local(at) => LOCAL_BASE + u64::from(*at),
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

    /// A source operand of exactly the type's width.
    pub(super) fn source(&mut self, operand: &Operand, ty: Type) -> Result<Source> {
        let source = self.any_source(operand, ty)?;
        let bits = match (source, operand) {
            (Source::P(_), _) => 1,
            (Source::Q(_), _) => 64,
            (Source::R(_), Operand::Name(name)) if !name.contains('.') => {
                let fits =
                    self.register_bits(name).is_none_or(|bits| bits == ty.bits()) || ty.bits() == 8;
                if fits { ty.bits() } else { 0 }
            }
            (Source::R(_), _) => ty.bits().min(32),
        };
        if bits == ty.bits() {
            return Ok(source);
        }
        self.fail(format!("an operand does not have the {} bits of its type", ty.bits()))
    }

    fn register_bits(&self, name: &str) -> Option<u32> {
        self.own_scopes().iter().rev().find_map(|scope| match scope.symbols.get(name) {
            Some(Symbol::Register(register)) => Some(register.ty.bits()),
            _ => None,
        })
    }

    /// A source operand whose register may be wider than the type.
    pub(super) fn any_source(&mut self, operand: &Operand, ty: Type) -> Result<Source> {
        match operand {
            Operand::Name(name) => {
                if let Some(special) = Special::by_name(name) {
                    let slot = self.special(special);
                    if ty.bits() == 64 {
                        let wide = self.new_q();
                        self.emit_always(Op::Extend { signed: false, d: wide, a: slot });
                        return Ok(Source::Q(wide));
                    }
                    return Ok(Source::R(slot));
                }
                match self.symbol(name)? {
                    Symbol::Register(register) => Ok(self.read(register)),
                    symbol => self.address_of(&symbol, 0, ty),
                }
            }
            Operand::SymbolPlus(name, offset) => {
                let symbol = self.symbol(name)?;
                self.address_of(&symbol, *offset, ty)
            }
            Operand::Integer(value) if ty == Type::F64 || ty == Type::F32 => {
                // Bits of a float are written as 0f or 0d; a plain integer is its value.
                let value = *value as i64 as f64;
                let bits =
                    if ty == Type::F64 { value.to_bits() } else { (value as f32).to_bits().into() };
                Ok(self.constant(bits, ty))
            }
            Operand::Integer(value) => Ok(self.constant(*value, ty)),
            Operand::Single(bits) if ty.bits() == 64 => {
                Ok(self.constant(f64::from(f32::from_bits(*bits)).to_bits(), ty))
            }
            Operand::Single(bits) => Ok(self.constant(u64::from(*bits), ty)),
            Operand::Double(bits) if ty.bits() == 64 => Ok(self.constant(*bits, ty)),
            Operand::Double(bits) => {
                let value = f64::from_bits(*bits) as f32;
                Ok(self.constant(u64::from(value.to_bits()), ty))
            }
            Operand::Not(name) => match self.any_source(&Operand::Name(name.clone()), ty)? {
                Source::P(test) => Ok(Source::P(Test { negated: !test.negated, ..test })),
                _ => self.fail(format!("`{name}` is not a predicate")),
            },
            _ => self.fail("a register or a constant is expected here"),
        }
    }

    fn emit_always(&mut self, op: Op) {
        let guard = self.guard;
        self.always();
        self.emit(op);
        self.guard = guard;
    }

    fn read(&mut self, register: Register) -> Source {
        let slot = register.slot.unwrap_or(SINK);
        self.flow.read(register.ty, slot);
        match register.ty.bits() {
            1 => Source::P(Test { predicate: slot, negated: false }),
            64 => Source::Q(slot),
            _ => Source::R(slot),
        }
    }

    /// A destination of any width.
    pub(super) fn any_target(&mut self, operand: &Operand) -> Result<Target> {
        let name = match operand {
            Operand::Sink => return Ok(Target::Nowhere),
            Operand::Name(name) => name,
            _ => return self.fail("a register is expected as the destination"),
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

    /// A destination of exactly the type's width.
    pub(super) fn target(&mut self, operand: &Operand, ty: Type) -> Result<Target> {
        let target = self.any_target(operand)?;
        let bits = match target {
            Target::R(_, bits) => u32::from(bits),
            Target::Q(_) => 64,
            Target::P(_) => 1,
            Target::Nowhere => return Ok(Target::Nowhere),
        };
        if bits == ty.bits() {
            return Ok(target);
        }
        self.fail(format!("the destination has {bits} bits where its type has {}", ty.bits()))
    }

    /// A 32-bit source register.
    pub(super) fn r(&mut self, operand: &Operand) -> Result<R> {
        match self.source(operand, Type::B32)? {
            Source::R(r) => Ok(r),
            _ => self.fail("a 32-bit operand is expected"),
        }
    }

    /// A 32-bit destination register.
    pub(super) fn r_target(&mut self, operand: &Operand) -> Result<R> {
        match self.target(operand, Type::B32)? {
            Target::R(r, _) => Ok(r),
            _ => Ok(SINK),
        }
    }

    /// A predicate operand.
    pub(super) fn test(&mut self, operand: &Operand) -> Result<Test> {
        match self.source(operand, Type::Pred)? {
            Source::P(test) => Ok(test),
            _ => self.fail("a predicate is expected"),
        }
    }

    /// Checks the number of operands.
    pub(super) fn count(&self, instruction: &Instruction, counts: &[usize]) -> Result<()> {
        let found = instruction.operands.len();
        if counts.contains(&found) {
            return Ok(());
        }
        self.fail(format!("`{}` does not take {found} operands", instruction.opcode))
    }
}
