//! Moves, conversions between types, and conversions between address spaces.

use super::carry;
use super::decoder::{Decoder, NONE, Result, SINK};
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

impl Decoder<'_> {
    pub(super) fn mov(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        self.count(instruction, &[2])?;
        let length = modifiers.pick(&[("v2", 2), ("v4", 4)]);
        let ty = self.required_type(modifiers)?;
        let [d, a] = &instruction.operands[..] else { return Ok(()) };
        if let Some(length) = length {
            return match (d, a) {
                (Operand::Vector(to), Operand::Vector(from))
                    if to.len() == length && from.len() == length =>
                {
                    self.move_vector(to, from, ty)
                }
                _ => self.fail(format!("two vectors of {length} elements are expected")),
            };
        }
        let vector = matches!((d, a), (Operand::Vector(_), _) | (_, Operand::Vector(_)));
        if vector && !matches!(ty, Type::B16 | Type::B32 | Type::B64) {
            return self.fail("packing and unpacking is for .b16, .b32 and .b64");
        }
        match (d, a) {
            (Operand::Vector(parts), whole) => self.unpack(parts, whole, ty),
            (whole, Operand::Vector(parts)) => self.pack(whole, parts, ty),
            _ if ty == Type::Pred => {
                let a = self.test(a)?;
                let never = Test { predicate: FALSE, negated: false };
                if let Target::P(d) = self.target(d, ty)? {
                    self.emit(Op::Logic(Logic::Or, d, a, never));
                }
                Ok(())
            }
            (d, Operand::Name(name)) if clock(name).is_some() => {
                let target = self.target(d, ty)?;
                let (clock, bits) = clock(name).unwrap_or((Clock::Cycles, 32));
                if bits != ty.bits() || !ty.is_integer() {
                    return self.fail(format!("`{name}` has {bits} bits"));
                }
                self.emit(Op::Clock(clock, target));
                Ok(())
            }
            (d, a) => {
                let a = self.moved(a, ty)?;
                let d = self.target(d, ty)?;
                let scalar = Scalar::Integer(Integer::Copy, ty);
                self.emit_scalar(scalar, d, Target::Nowhere, [a, NONE, NONE, NONE]);
                Ok(())
            }
        }
    }

    /// Moves the elements of a vector, some of which may be those of the other.
    fn move_vector(&mut self, to: &[Operand], from: &[Operand], ty: Type) -> Result<()> {
        let mut sources = Vec::new();
        for operand in from {
            sources.push(self.source(operand, ty)?);
        }
        let mut targets = Vec::new();
        for operand in to {
            targets.push(self.target(operand, ty)?);
        }
        self.flow.moves(carry::copied(&targets, &sources));
        let copy = Scalar::Integer(Integer::Copy, ty);
        let mut copies = Vec::new();
        for source in sources {
            let (into, again) = match source {
                Source::Q(_) => {
                    let q = self.new_q();
                    (Target::Q(q), Source::Q(q))
                }
                _ => {
                    let r = self.new_temporary();
                    (Target::R(r, 32), Source::R(r))
                }
            };
            self.emit_scalar(copy, into, Target::Nowhere, [source, NONE, NONE, NONE]);
            copies.push(again);
        }
        for (target, source) in targets.into_iter().zip(copies) {
            self.emit_scalar(copy, target, Target::Nowhere, [source, NONE, NONE, NONE]);
        }
        Ok(())
    }

    /// `mov.b64 d, {low, high}` and its kin.
    fn pack(&mut self, whole: &Operand, parts: &[Operand], ty: Type) -> Result<()> {
        let part = part_type(ty, parts.len());
        let Some(part) = part else {
            return self.fail(format!("{} parts do not make up {} bits", parts.len(), ty.bits()));
        };
        let mut sources = Vec::new();
        for operand in parts {
            let Source::R(r) = self.source(operand, part)? else {
                return self.fail("a part has the wrong width");
            };
            sources.push(r);
        }
        let target = self.target(whole, ty)?;
        self.flow.moves(carry::packed(target, &sources, part.bits()));
        match (part.bits(), &sources[..], target) {
            (32, &[low, high], Target::Q(d)) => self.emit(Op::Pack64 { d, low, high }),
            (16, &[low, high], Target::R(d, 32)) => {
                self.emit(Op::Bin32(Bin32::PackHalves, d, low, high));
            }
            (16, &[a, b, c, d], Target::Q(whole)) => {
                let (low, high) = (self.new_r(), self.new_r());
                self.emit(Op::Bin32(Bin32::PackHalves, low, a, b));
                self.emit(Op::Bin32(Bin32::PackHalves, high, c, d));
                self.emit(Op::Pack64 { d: whole, low, high });
            }
            (8, bytes, Target::R(d, _)) => self.pack_bytes(d, bytes),
            _ => return self.fail("this packing is not supported"),
        }
        Ok(())
    }

    fn pack_bytes(&mut self, d: R, bytes: &[R]) {
        let sum = self.new_r();
        for (index, &byte) in bytes.iter().enumerate() {
            let shift = self.constant32(8 * index as u32);
            if index == 0 {
                let mask = self.constant32(0xff);
                self.emit(Op::Bin32(Bin32::And, sum, byte, mask));
            } else {
                let shifted = self.new_r();
                let mask = self.constant32(0xff << (8 * index));
                self.emit(Op::Bin32(Bin32::Shl, shifted, byte, shift));
                self.emit(Op::Bin32(Bin32::And, shifted, shifted, mask));
                self.emit(Op::Bin32(Bin32::Or, sum, sum, shifted));
            }
        }
        self.emit(Op::Un32(Un32::Copy, d, sum));
    }

    /// `mov.b64 {low, high}, a` and its kin.
    fn unpack(&mut self, parts: &[Operand], whole: &Operand, ty: Type) -> Result<()> {
        let part = part_type(ty, parts.len());
        let Some(part) = part else {
            return self.fail(format!("{} parts do not make up {} bits", parts.len(), ty.bits()));
        };
        let source = self.source(whole, ty)?;
        let mut targets = Vec::new();
        for operand in parts {
            targets.push(self.optional_target(operand, part)?);
        }
        self.flow.moves(carry::unpacked(&targets, source, part.bits()));
        match (part.bits(), &targets[..], source) {
            (32, &[low, high], Source::Q(a)) => self.emit(Op::Unpack64 { low, high, a }),
            (16, &[low, high], Source::R(a)) => self.unpack_halves(low, high, a),
            (16, &[first, second, third, fourth], Source::Q(a)) => {
                let (low, high) = (self.new_r(), self.new_r());
                let (to_low, to_high) = (Target::R(low, 32), Target::R(high, 32));
                self.emit(Op::Unpack64 { low: to_low, high: to_high, a });
                self.unpack_halves(first, second, low);
                self.unpack_halves(third, fourth, high);
            }
            (8, targets, Source::R(a)) => {
                // The whole may be one of the parts.
                let copy = self.new_r();
                self.emit(Op::Un32(Un32::Copy, copy, a));
                let length = self.constant32(8);
                for (index, target) in targets.iter().enumerate() {
                    if let Target::R(d, _) = *target {
                        let position = self.constant32(8 * index as u32);
                        self.emit(Op::Tri32(Tri32::BfeU, d, copy, position, length));
                    }
                }
            }
            _ => return self.fail("this unpacking is not supported"),
        }
        Ok(())
    }

    fn unpack_halves(&mut self, low: Target, high: Target, a: R) {
        let copy = self.new_r();
        self.emit(Op::Un32(Un32::Copy, copy, a));
        if let Target::R(d, _) = low {
            self.emit(Op::Un32(Un32::Low16, d, copy));
        }
        if let Target::R(d, _) = high {
            self.emit(Op::Un32(Un32::High16, d, copy));
        }
    }

    pub(super) fn cvt(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let to_integer = modifiers.pick(&[
            ("rni", Rounding::Nearest),
            ("rzi", Rounding::Zero),
            ("rmi", Rounding::Down),
            ("rpi", Rounding::Up),
        ]);
        let away = modifiers.take("rna").then_some(Rounding::NearestAway);
        let rounding = to_integer.or(away).or_else(|| modifiers.rounding());
        let (flush, saturate) = (modifiers.take("ftz"), modifiers.take("sat"));
        let (relu, finite) = (modifiers.take("relu"), modifiers.take("satfinite"));
        let (to, from) = (self.required_type(modifiers)?, self.required_type(modifiers)?);
        let pair = matches!(to, Type::F16x2 | Type::Bf16x2 | Type::E4m3x2 | Type::E5m2x2);
        let pairs = pair && from == Type::F32;
        // Conversions of the newer formats take no wider registers.
        let newer = |ty: Type| ty.is_float() && !matches!(ty, Type::F16 | Type::F32 | Type::F64);
        let exact = newer(to) || newer(from);
        self.count(instruction, if pairs { &[3] } else { &[2] })?;
        let mut sources = [NONE; 4];
        for (source, operand) in sources.iter_mut().zip(&instruction.operands[1..]) {
            *source = match operand {
                Operand::Name(name) if Special::by_name(name).is_some() && to.is_integer() => {
                    self.moved(operand, from)?
                }
                operand if exact => self.source(operand, from)?,
                operand => self.wide_source(operand, from)?,
            };
        }
        let target = match exact {
            true => self.target(&instruction.operands[0], to)?,
            false => self.wide_target(&instruction.operands[0], to)?,
        };
        let convert = Convert {
            to,
            from,
            rounding: rounding.unwrap_or(Rounding::Nearest),
            integral: to_integer.is_some() && to.is_float(),
            flush,
            saturate,
            relu,
            finite,
        };
        self.emit_scalar(Scalar::Convert(convert), target, Target::Nowhere, sources);
        Ok(())
    }

    /// `cvt.pack`: two numbers, held within a type, below the lower bits of a third operand.
    pub(super) fn cvt_pack(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let narrow = modifiers.pick(&[
            ("u16", (16, false)),
            ("s16", (16, true)),
            ("u8", (8, false)),
            ("s8", (8, true)),
            ("u4", (4, false)),
            ("s4", (4, true)),
            ("u2", (2, false)),
            ("s2", (2, true)),
        ]);
        let Some((bits, signed)) = narrow else { return self.fail("the narrow type is missing") };
        modifiers.drop_all(|_| true);
        let types = [Type::S32, Type::S32, Type::B32];
        let count = if bits == 16 { 2 } else { 3 };
        let op = Integer::Pack { bits, signed };
        self.emit_integer(instruction, op, Type::U32, &types[..count], Type::B32)
    }

    /// Conversions between a state space's addresses and generic ones.
    pub(super) fn cvta(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        self.count(instruction, &[2])?;
        let to_space = modifiers.take("to");
        let start = modifiers.pick(&WINDOWS).unwrap_or(0);
        let ty = self.required_type(modifiers)?;
        let a = self.moved(&instruction.operands[1], ty)?;
        let target = self.target(&instruction.operands[0], ty)?;
        let start = Source::Q(self.constant64(start));
        let op = if to_space { Integer::Sub } else { Integer::Add };
        let scalar = Scalar::Integer(op, Type::U64);
        self.emit_scalar(scalar, target, Target::Nowhere, [a, start, NONE, NONE]);
        Ok(())
    }

    pub(super) fn is_space(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        self.count(instruction, &[2])?;
        let window = modifiers.pick(&[
            ("global", Window::Global),
            ("const", Window::Constant),
            ("shared", Window::Shared),
            ("shared::cta", Window::Shared),
            ("local", Window::Local),
            ("param", Window::Param),
            ("param::entry", Window::Param),
        ]);
        let Some(window) = window else { return self.fail("`isspacep` needs a state space") };
        let a = self.source(&instruction.operands[1], Type::U64)?;
        if let (Target::P(d), Source::Q(a)) =
            (self.target(&instruction.operands[0], Type::Pred)?, a)
        {
            self.emit(Op::IsSpace(window, d, a));
        }
        Ok(())
    }

    fn new_r(&mut self) -> R {
        // Named after nothing, so that no other instruction can reach it.
        let r = self.new_temporary();
        debug_assert_ne!(r, SINK);
        r
    }
}

/// Where the generic addresses of each space start.
const WINDOWS: [(&str, u64); 7] = [
    ("global", 0),
    ("const", 0),
    ("shared", SHARED_WINDOW),
    ("shared::cta", SHARED_WINDOW),
    ("local", LOCAL_WINDOW),
    ("param", PARAM_WINDOW),
    ("param::entry", PARAM_WINDOW),
];

/// The type of each of the equal parts of a type.
fn part_type(ty: Type, parts: usize) -> Option<Type> {
    match (ty.bits(), parts) {
        (64, 2) => Some(Type::B32),
        (64, 4) | (32, 2) => Some(Type::B16),
        (32, 4) | (16, 2) => Some(Type::B8),
        _ => None,
    }
}

/// Special registers that change while a thread runs.
fn clock(name: &str) -> Option<(Clock, u32)> {
    Some(match name {
        "%clock" => (Clock::Cycles, 32),
        "%clock_hi" => (Clock::CyclesHigh, 32),
        "%clock64" => (Clock::Cycles, 64),
        "%globaltimer" => (Clock::Nanoseconds, 64),
        "%globaltimer_lo" => (Clock::Nanoseconds, 32),
        "%globaltimer_hi" => (Clock::CyclesHigh, 32),
        _ => return None,
    })
}
