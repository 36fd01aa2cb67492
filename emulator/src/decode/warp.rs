//! Instructions that the threads of a warp or of a block execute together.

use super::decoder::{Decoder, Result, SINK};
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

impl Decoder<'_> {
    pub(super) fn transpose_matrix(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        modifiers.drop_all(|_| true);
        self.count(instruction, &[2])?;
        let a = self.r(&instruction.operands[1])?;
        let d = self.r_target(&instruction.operands[0])?;
        self.emit(Op::TransposeMatrix(d, a));
        Ok(())
    }

    pub(super) fn active_mask(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        self.count(instruction, &[1])?;
        modifiers.ty();
        let d = self.r_target(&instruction.operands[0])?;
        self.emit(Op::ActiveMask(d));
        Ok(())
    }

    pub(super) fn elect(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let operands = &instruction.operands;
        self.count(instruction, &[2])?;
        modifiers.take("sync");
        let Operand::Pair(d, p) = &operands[0] else {
            return self.fail("`elect` writes a register and a predicate");
        };
        let members = self.word(&operands[1])?;
        let target = self.optional_target(d, Type::B32)?;
        let Target::P(elected) = self.target(p, Type::Pred)? else {
            return self.fail("`elect` writes a predicate");
        };
        self.collective(Collective::Elect { target, elected }, members);
        Ok(())
    }

    fn collective(&mut self, collective: Collective, members: R) {
        self.emit(Op::Collective(Box::new(CollectiveOp { collective, members })));
    }

    /// The registers of a fragment, in braces.
    fn registers(
        &mut self,
        operand: &Operand,
        count: usize,
        ty: Type,
        target: bool,
    ) -> Result<[R; 4]> {
        let Operand::Vector(elements) = operand else {
            return self.fail("registers in braces are expected");
        };
        if elements.len() != count {
            return self.fail(format!("{} registers where {count} are needed", elements.len()));
        }
        let mut registers = [SINK; 4];
        for (register, element) in registers.iter_mut().zip(elements) {
            *register = match (target, element) {
                (true, Operand::Sink) => SINK,
                (true, element) => match self.target(element, ty)? {
                    Target::R(r, _) => r,
                    _ => return self.fail("a 32-bit register is expected as the destination"),
                },
                (false, element) => match self.source(element, ty)? {
                    Source::R(r) => r,
                    _ => return self.fail("a 32-bit operand is expected"),
                },
            };
        }
        Ok(registers)
    }

    pub(super) fn mma(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let layout = |name: &str| matches!(name, "sync" | "aligned" | "row" | "col");
        let order = |name| instruction.modifiers.iter().position(|modifier| modifier == name);
        if order("row") > order("col") {
            return self.fail("`mma` takes A by rows and B by columns");
        }
        modifiers.drop_all(layout);
        let k = modifiers.pick(&[("m16n8k4", 4), ("m16n8k8", 8), ("m16n8k16", 16)]).unwrap_or(16);
        let mut types = [Type::B8; 4];
        for ty in &mut types {
            *ty = self.required_type(modifiers)?;
        }
        self.count(instruction, &[4])?;
        let half_result = types[0] == Type::F16;
        let (element, packed) = match types[1] {
            Type::Bf16 => (Element::Bf16, Type::Bf16x2),
            Type::F16 => (Element::F16, Type::F16x2),
            _ => (Element::Tf32, Type::B32),
        };
        // A has 16 rows of k elements over 32 lanes, B half as many.
        let per_register = if element == Element::Tf32 { 1 } else { 2 };
        let a_count = 16 * k / 32 / per_register;
        let c_count = if half_result { 2 } else { 4 };
        let operands = &instruction.operands;
        let sum = if half_result { Type::F16x2 } else { Type::F32 };
        let a = self.registers(&operands[1], a_count, packed, false)?;
        let b = self.registers(&operands[2], a_count / 2, packed, false)?;
        let c = self.registers(&operands[3], c_count, sum, false)?;
        let d = self.registers(&operands[0], c_count, sum, true)?;
        let b = [b[0], b[1]];
        self.emit(Op::Mma(Box::new(MmaOp { element, k, half_result, a, b, c, d })));
        Ok(())
    }

    /// `ldmatrix` and `stmatrix`.
    pub(super) fn move_matrices(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        store: bool,
    ) -> Result<()> {
        let count = modifiers.pick(&[("x1", 1), ("x2", 2), ("x4", 4)]).unwrap_or(1);
        let transposed = modifiers.take("trans");
        let shared = modifiers.take("shared") || modifiers.take("shared::cta");
        modifiers.drop_all(|_| true);
        self.count(instruction, &[2])?;
        let space = if shared { Space::Shared } else { Space::Generic };
        let (at, registers) = if store { (0, 1) } else { (1, 0) };
        let address = self.address(&instruction.operands[at], space)?;
        let registers =
            self.registers(&instruction.operands[registers], count, Type::B32, !store)?;
        let registers = registers[..count].to_vec();
        let op = Box::new(MatricesOp { address, transposed, registers });
        self.emit(if store { Op::StoreMatrix(op) } else { Op::LoadMatrix(op) });
        Ok(())
    }

    pub(super) fn shuffle(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        modifiers.take("sync");
        let mode = modifiers.pick(&[
            ("up", ShuffleMode::Up),
            ("down", ShuffleMode::Down),
            ("bfly", ShuffleMode::Butterfly),
            ("idx", ShuffleMode::Index),
        ]);
        let Some(mode) = mode else { return self.fail("`shfl` needs a mode") };
        modifiers.ty();
        self.count(instruction, &[5])?;
        let operands = &instruction.operands;
        let (value, lane) = (self.r(&operands[1])?, self.word(&operands[2])?);
        let (clamp, members) = (self.word(&operands[3])?, self.word(&operands[4])?);
        let (Target::R(target, _), in_range) = self.pair(&operands[0])? else {
            return self.fail("`shfl` needs a register to write");
        };
        self.emit(Op::Shuffle(Box::new(ShuffleOp {
            mode,
            target,
            in_range,
            value,
            lane,
            clamp,
            members,
            watched: None,
        })));
        Ok(())
    }

    /// A destination with an optional predicate: `d` or `d|p`.
    fn pair(&mut self, operand: &Operand) -> Result<(Target, Target)> {
        match operand {
            Operand::Pair(d, p) => {
                let d = self.optional_target(d, Type::B32)?;
                Ok((d, self.optional_target(p, Type::Pred)?))
            }
            d => Ok((self.target(d, Type::B32)?, Target::Nowhere)),
        }
    }

    pub(super) fn vote(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        modifiers.take("sync");
        let vote = modifiers.pick(&[
            ("all", Vote::All),
            ("any", Vote::Any),
            ("uni", Vote::Uniform),
            ("ballot", Vote::Ballot),
        ]);
        let Some(vote) = vote else { return self.fail("`vote` needs a mode") };
        let ty = self.required_type(modifiers)?;
        self.count(instruction, &[3])?;
        let test = self.test(&instruction.operands[1])?;
        let members = self.word(&instruction.operands[2])?;
        let target = self.target(&instruction.operands[0], ty)?;
        self.collective(Collective::Vote { vote, target, test }, members);
        Ok(())
    }

    pub(super) fn match_values(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let all = modifiers.take("all");
        modifiers.drop_all(|name| matches!(name, "any" | "sync"));
        let ty = self.required_type(modifiers)?;
        self.count(instruction, &[3])?;
        let value = self.source(&instruction.operands[1], ty)?;
        let members = self.word(&instruction.operands[2])?;
        let (target, p) = self.pair(&instruction.operands[0])?;
        if !all && matches!(instruction.operands[0], Operand::Pair(..)) {
            return self.fail("`match.any` writes no predicate");
        }
        let collective = match (all, target) {
            (true, target) => Collective::MatchAll { target, all: p, value },
            (false, Target::R(target, _)) => Collective::MatchAny { target, value },
            _ => return self.fail("`match` needs a register to write"),
        };
        self.collective(collective, members);
        Ok(())
    }

    pub(super) fn redux(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        modifiers.take("sync");
        // Of unsigned and of signed values.
        let redux = modifiers.pick(&[
            ("add", [Redux::Add, Redux::Add]),
            ("min", [Redux::MinU, Redux::MinS]),
            ("max", [Redux::MaxU, Redux::MaxS]),
            ("and", [Redux::And, Redux::And]),
            ("or", [Redux::Or, Redux::Or]),
            ("xor", [Redux::Xor, Redux::Xor]),
        ]);
        let signed = self.required_type(modifiers)?.is_signed();
        let Some(redux) = redux.map(|pair| pair[usize::from(signed)]) else {
            return self.fail("`redux` needs an operation");
        };
        self.count(instruction, &[3])?;
        let value = self.word(&instruction.operands[1])?;
        let members = self.word(&instruction.operands[2])?;
        let target = self.r_target(&instruction.operands[0])?;
        self.collective(Collective::Redux { redux, target, value }, members);
        Ok(())
    }

    /// Barriers of a block, which all lanes of a warp reach together if they are `.aligned`, as
    /// `bar` always is; and barriers of a warp.
    pub(super) fn barrier(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        always_aligned: bool,
    ) -> Result<()> {
        let operands = &instruction.operands;
        if modifiers.take("warp") {
            modifiers.take("sync");
            self.count(instruction, &[1])?;
            let members = self.word(&operands[0])?;
            self.collective(Collective::Barrier, members);
            return Ok(());
        }
        modifiers.take("cta");
        let aligned = modifiers.take("aligned") || always_aligned;
        let always = Test { predicate: FALSE, negated: true };
        if modifiers.take("red") {
            let reduction = modifiers.pick(&[("popc", 0), ("and", 1), ("or", 2)]);
            modifiers.ty();
            self.count(instruction, &[3, 4])?;
            let id = self.word(&operands[1])?;
            let threads = if operands.len() == 4 { Some(self.word(&operands[2])?) } else { None };
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
        let id = self.word(&operands[0])?;
        let threads = match operands.get(1) {
            Some(threads) => Some(self.word(threads)?),
            None => None,
        };
        if kind == BarrierKind::Arrive && threads.is_none() {
            return self.fail("an arrival needs a thread count");
        }
        self.emit(Op::Barrier(Box::new(BarrierOp { kind, aligned, id, threads, test: always })));
        Ok(())
    }
}
