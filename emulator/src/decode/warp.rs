//! Instructions that the threads of a warp or of a block execute together.

use super::decoder::{Decoder, Result};
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

impl Decoder<'_> {
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
