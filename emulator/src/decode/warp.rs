//! Instructions that the threads of a warp or of a block execute together.

use super::decoder::{Decoder, Result};
use super::modifiers::Modifiers;
use crate::exec::op::*;
use crate::ptx::{Instruction, Operand, Type};

impl Decoder<'_> {
    /// Decodes a warp-wide instruction or a barrier; `false` if it is none.
    pub(super) fn warp(
        &mut self,
        instruction: &Instruction,
        modifiers: &mut Modifiers,
    ) -> Result<bool> {
        let operands = &instruction.operands;
        match instruction.opcode.as_str() {
            "mma" => self.mma(instruction, modifiers)?,
            "ldmatrix" => self.load_matrix(instruction, modifiers)?,
            "shfl" => self.shuffle(instruction, modifiers)?,
            "vote" => self.vote(instruction, modifiers)?,
            "match" => self.match_values(instruction, modifiers)?,
            "redux" => self.redux(instruction, modifiers)?,
            "activemask" => {
                self.count(instruction, &[1])?;
                modifiers.ty();
                let d = self.r_target(&operands[0])?;
                self.emit(Op::ActiveMask(d));
            }
            "elect" => {
                self.count(instruction, &[2])?;
                self.require(modifiers, "sync")?;
                let Operand::Pair(d, p) = &operands[0] else {
                    return self.fail("`elect` writes a register and a predicate");
                };
                let members = self.r(&operands[1])?;
                let target = self.target(d, Type::B32)?;
                let Target::P(elected) = self.target(p, Type::Pred)? else {
                    return self.fail("`elect` writes a predicate");
                };
                self.collective(Collective::Elect { target, elected }, members);
            }
            "bar" | "barrier" => self.barrier(instruction, modifiers)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn require(&mut self, modifiers: &mut Modifiers, name: &str) -> Result<()> {
        if modifiers.take(name) {
            return Ok(());
        }
        self.fail(format!("the instruction needs `.{name}`"))
    }

    fn collective(&mut self, collective: Collective, members: R) {
        self.emit(Op::Collective(Box::new(CollectiveOp { collective, members })));
    }

    fn registers(&mut self, operand: &Operand, count: usize, target: bool) -> Result<[R; 4]> {
        let elements = match operand {
            Operand::Vector(elements) => &elements[..],
            single => std::slice::from_ref(single),
        };
        if elements.len() != count {
            return self.fail(format!("{} registers where {count} are needed", elements.len()));
        }
        let mut registers = [super::decoder::SINK; 4];
        for (register, element) in registers.iter_mut().zip(elements) {
            *register = if target { self.r_target(element)? } else { self.r(element)? };
        }
        Ok(registers)
    }

    fn mma(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
        self.require(modifiers, "sync")?;
        self.require(modifiers, "aligned")?;
        let k = modifiers.pick(&[("m16n8k4", 4), ("m16n8k8", 8), ("m16n8k16", 16)]);
        let Some(k) = k else { return self.fail("this shape of `mma` is not supported") };
        self.require(modifiers, "row")?;
        self.require(modifiers, "col")?;
        let at = |layout| instruction.modifiers.iter().position(|modifier| modifier == layout);
        if at("row") > at("col") {
            return self.fail("`mma` takes A by rows and B by columns");
        }
        let mut types = [Type::B8; 4];
        for ty in &mut types {
            *ty = self.required_type(modifiers)?;
        }
        self.count(instruction, &[4])?;
        let (element, half_result) = match (types, k) {
            ([Type::F32, Type::Bf16, Type::Bf16, Type::F32], 8 | 16) => (Element::Bf16, false),
            ([Type::F32, Type::F16, Type::F16, Type::F32], 8 | 16) => (Element::F16, false),
            ([Type::F16, Type::F16, Type::F16, Type::F16], 8 | 16) => (Element::F16, true),
            ([Type::F32, Type::Tf32, Type::Tf32, Type::F32], 4 | 8) => (Element::Tf32, false),
            _ => return self.fail("this combination of types and shape of `mma` is not supported"),
        };
        // A has 16 rows of k elements over 32 lanes, B half as many.
        let per_register = if element == Element::Tf32 { 1 } else { 2 };
        let a_count = 16 * k / 32 / per_register;
        let c_count = if half_result { 2 } else { 4 };
        let operands = &instruction.operands;
        let a = self.registers(&operands[1], a_count, false)?;
        let b = self.registers(&operands[2], a_count / 2, false)?;
        let c = self.registers(&operands[3], c_count, false)?;
        let d = self.registers(&operands[0], c_count, true)?;
        let b = [b[0], b[1]];
        self.emit(Op::Mma(Box::new(MmaOp { element, k, half_result, a, b, c, d })));
        Ok(())
    }

    fn load_matrix(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
        for name in ["sync", "aligned", "m8n8"] {
            self.require(modifiers, name)?;
        }
        let Some(count) = modifiers.pick(&[("x1", 1), ("x2", 2), ("x4", 4)]) else {
            return self.fail("`ldmatrix` loads 1, 2 or 4 matrices");
        };
        let transposed = modifiers.take("trans");
        let shared = modifiers.take("shared") || modifiers.take("shared::cta");
        if self.required_type(modifiers)? != Type::B16 {
            return self.fail("`ldmatrix` is supported for .b16");
        }
        self.count(instruction, &[2])?;
        let space = if shared { Space::Shared } else { Space::Generic };
        let address = self.address(&instruction.operands[1], space)?;
        let targets = self.registers(&instruction.operands[0], count, true)?[..count].to_vec();
        self.emit(Op::LoadMatrix(Box::new(LoadMatrixOp { address, transposed, targets })));
        Ok(())
    }

    fn shuffle(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
        self.require(modifiers, "sync")?;
        let mode = modifiers.pick(&[
            ("up", ShuffleMode::Up),
            ("down", ShuffleMode::Down),
            ("bfly", ShuffleMode::Butterfly),
            ("idx", ShuffleMode::Index),
        ]);
        let Some(mode) = mode else { return self.fail("`shfl` needs a mode") };
        self.require(modifiers, "b32")?;
        self.count(instruction, &[5])?;
        let operands = &instruction.operands;
        let (value, lane) = (self.r(&operands[1])?, self.r(&operands[2])?);
        let (clamp, members) = (self.r(&operands[3])?, self.r(&operands[4])?);
        let (target, in_range) = self.pair(&operands[0])?;
        self.emit(Op::Shuffle(Box::new(ShuffleOp {
            mode,
            target,
            in_range,
            value,
            lane,
            clamp,
            members,
        })));
        Ok(())
    }

    /// A destination with an optional predicate: `d` or `d|p`.
    fn pair(&mut self, operand: &Operand) -> Result<(R, Target)> {
        match operand {
            Operand::Pair(d, p) => Ok((self.r_target(d)?, self.target(p, Type::Pred)?)),
            d => Ok((self.r_target(d)?, Target::Nowhere)),
        }
    }

    fn vote(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
        self.require(modifiers, "sync")?;
        let vote = modifiers.pick(&[
            ("all", Vote::All),
            ("any", Vote::Any),
            ("uni", Vote::Uniform),
            ("ballot", Vote::Ballot),
        ]);
        let Some(vote) = vote else { return self.fail("`vote` needs a mode") };
        let ty = self.required_type(modifiers)?;
        if ty != if vote == Vote::Ballot { Type::B32 } else { Type::Pred } {
            return self.fail("the type of `vote` does not fit its mode");
        }
        self.count(instruction, &[3])?;
        let test = self.test(&instruction.operands[1])?;
        let members = self.r(&instruction.operands[2])?;
        let target = self.target(&instruction.operands[0], ty)?;
        self.collective(Collective::Vote { vote, target, test }, members);
        Ok(())
    }

    fn match_values(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
        let Some(all) = modifiers.pick(&[("all", true), ("any", false)]) else {
            return self.fail("`match` needs a mode");
        };
        self.require(modifiers, "sync")?;
        let ty = self.required_type(modifiers)?;
        self.count(instruction, &[3])?;
        let value = self.source(&instruction.operands[1], ty)?;
        let members = self.r(&instruction.operands[2])?;
        let (target, p) = self.pair(&instruction.operands[0])?;
        let collective = match all {
            true => Collective::MatchAll { target, all: p, value },
            false => Collective::MatchAny { target, value },
        };
        self.collective(collective, members);
        Ok(())
    }

    fn redux(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
        self.require(modifiers, "sync")?;
        let name = modifiers.pick(&[
            ("add", 0),
            ("min", 1),
            ("max", 2),
            ("and", 3),
            ("or", 4),
            ("xor", 5),
        ]);
        let ty = self.required_type(modifiers)?;
        let redux = match (name, ty) {
            (Some(0), Type::U32 | Type::S32) => Redux::Add,
            (Some(1), Type::U32) => Redux::MinU,
            (Some(1), Type::S32) => Redux::MinS,
            (Some(2), Type::U32) => Redux::MaxU,
            (Some(2), Type::S32) => Redux::MaxS,
            (Some(3), Type::B32) => Redux::And,
            (Some(4), Type::B32) => Redux::Or,
            (Some(5), Type::B32) => Redux::Xor,
            _ => return self.fail("this form of `redux` is not supported"),
        };
        self.count(instruction, &[3])?;
        let value = self.r(&instruction.operands[1])?;
        let members = self.r(&instruction.operands[2])?;
        let target = self.r_target(&instruction.operands[0])?;
        self.collective(Collective::Redux { redux, target, value }, members);
        Ok(())
    }

    fn barrier(&mut self, instruction: &Instruction, modifiers: &mut Modifiers) -> Result<()> {
        let operands = &instruction.operands;
        if modifiers.take("warp") {
            self.require(modifiers, "sync")?;
            self.count(instruction, &[1])?;
            let members = self.r(&operands[0])?;
            self.collective(Collective::Barrier, members);
            return Ok(());
        }
        modifiers.take("cta");
        // `bar` is `barrier.aligned`.
        let aligned = modifiers.take("aligned") || instruction.opcode == "bar";
        let always = Test { predicate: FALSE, negated: true };
        if modifiers.take("red") {
            let reduction = modifiers.pick(&[("popc", 0), ("and", 1), ("or", 2)]);
            modifiers.ty();
            self.count(instruction, &[3, 4])?;
            let id = self.r(&operands[1])?;
            let threads = if operands.len() == 4 { Some(self.r(&operands[2])?) } else { None };
            let test = self.test(&operands[operands.len() - 1])?;
            let kind = match reduction {
                Some(0) => BarrierKind::Count(self.r_target(&operands[0])?),
                Some(which) => match (self.target(&operands[0], Type::Pred)?, which) {
                    (Target::P(p), 1) => BarrierKind::All(p),
                    (Target::P(p), _) => BarrierKind::Any(p),
                    _ => return self.fail("the reduction needs a predicate to write"),
                },
                None => return self.fail("the reduction of the barrier is unknown"),
            };
            self.emit(Op::Barrier(Box::new(BarrierOp { kind, aligned, id, threads, test })));
            return Ok(());
        }
        let kind = modifiers.pick(&[("sync", BarrierKind::Sync), ("arrive", BarrierKind::Arrive)]);
        let Some(kind) = kind else { return self.fail("this form of barrier is not supported") };
        self.count(instruction, &[1, 2])?;
        let id = self.r(&operands[0])?;
        let threads = match operands.get(1) {
            Some(threads) => Some(self.r(threads)?),
            None => None,
        };
        if kind == BarrierKind::Arrive && threads.is_none() {
            return self.fail("an arrival needs a thread count");
        }
        self.emit(Op::Barrier(Box::new(BarrierOp { kind, aligned, id, threads, test: always })));
        Ok(())
    }
}
