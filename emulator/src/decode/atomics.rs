//! Atomics, fences and asynchronous copies.

use super::decoder::{Decoder, Result};
use super::memory::{SCOPES, SPACES, elements, is_hint};
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

impl Decoder<'_> {
    /// Fences. The form says how far and how strongly; the emulator's fences are the strongest.
    pub(super) fn fence(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        self.count(instruction, &[0])?;
        modifiers.drop_all(|_| true);
        self.emit(Op::Fence);
        Ok(())
    }

    /// An atomic, with or without a result.
    pub(super) fn atomic(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
        returns: bool,
    ) -> Result<()> {
        let order = modifiers.pick(&[
            ("relaxed", Order::Relaxed),
            ("acquire", Order::Acquire),
            ("release", Order::Release),
            ("acq_rel", Order::AcquireRelease),
        ]);
        let order = order.unwrap_or(Order::Relaxed);
        modifiers.pick(&SCOPES);
        let space = modifiers.pick(&SPACES).flatten().unwrap_or(Space::Generic);
        let atomic = modifiers.pick(&[
            ("add", Atomic::Add),
            ("min", Atomic::Min),
            ("max", Atomic::Max),
            ("and", Atomic::And),
            ("or", Atomic::Or),
            ("xor", Atomic::Xor),
            ("exch", Atomic::Exchange),
            ("cas", Atomic::CompareAndSwap),
            ("inc", Atomic::Increment),
            ("dec", Atomic::Decrement),
        ]);
        let Some(atomic) = atomic else { return self.fail("unknown atomic operation") };
        modifiers.take("noftz");
        let vector = modifiers.pick(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1);
        let swaps = usize::from(atomic == Atomic::CompareAndSwap);
        let first = usize::from(returns);
        self.cache_policy(instruction, modifiers, 2 + first + swaps)?;
        let ty = self.required_type(modifiers)?;
        let (bytes, operands) = (ty.bytes(), &instruction.operands);
        if vector * bytes > 16 {
            return self.fail(format!("an atomic of {} bytes does not exist", vector * bytes));
        }
        let address = self.address(&operands[first], space)?;
        let mut sources = self.atomic_elements(&operands[first + 1], ty, vector)?;
        let mut targets = vec![Target::Nowhere; vector as usize];
        if returns && operands[0] != Operand::Sink {
            let into = elements(&operands[0]);
            if into.len() != targets.len() {
                return self.fail(format!("{} results of {vector} elements", into.len()));
            }
            for (target, operand) in targets.iter_mut().zip(into) {
                *target = self.optional_target(operand, ty)?;
            }
        }
        let c = if swaps == 1 { Some(self.source(&operands[first + 2], ty)?) } else { None };
        for (at, (b, target)) in sources.drain(..).zip(targets).enumerate() {
            let offset = address.offset.wrapping_add(at as i64 * i64::from(bytes));
            self.emit(Op::Atomic(Box::new(AtomicOp {
                atomic,
                ty,
                order,
                address: Address { offset, ..address },
                align: if at == 0 { vector * bytes } else { bytes },
                target,
                sources: [b, c.unwrap_or(b)],
            })));
        }
        Ok(())
    }

    /// The operands of an atomic. Elements of a vector are copied first: the results of some may go
    /// where others come from.
    fn atomic_elements(&mut self, operand: &Operand, ty: Type, vector: u32) -> Result<Vec<Source>> {
        let from = elements(operand);
        if from.len() != vector as usize {
            return self.fail(format!("{} operands for {vector} elements", from.len()));
        }
        let mut sources = Vec::new();
        for operand in from {
            let source = self.source(operand, ty)?;
            sources.push(match source {
                Source::R(a) if vector > 1 => {
                    let copy = self.new_temporary();
                    self.emit(Op::Un32(Un32::Copy, copy, a));
                    Source::R(copy)
                }
                source => source,
            });
        }
        Ok(sources)
    }

    /// `cp.async` and what waits for it.
    pub(super) fn copy(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        modifiers.take("async");
        let operands = &instruction.operands;
        if modifiers.take("commit_group") {
            self.count(instruction, &[0])?;
            self.emit(Op::CopyCommit);
            return Ok(());
        }
        if modifiers.take("wait_all") {
            self.count(instruction, &[0])?;
            self.emit(Op::CopyWaitAll);
            return Ok(());
        }
        if modifiers.take("wait_group") {
            self.count(instruction, &[1])?;
            let Operand::Integer(groups) = operands[0] else {
                return self.fail("`cp.async.wait_group` needs a constant");
            };
            self.emit(Op::CopyWait(u32::try_from(groups).unwrap_or(u32::MAX)));
            return Ok(());
        }
        let all_levels = modifiers.take("ca");
        let policy = modifiers.take("L2::cache_hint");
        let spaces = |name: &str| matches!(name, "shared" | "shared::cta" | "global");
        modifiers.drop_all(|name| is_hint(name) || spaces(name));
        let operands = match (policy, operands.split_last()) {
            (true, Some((policy, operands))) => {
                self.source(policy, Type::U64)?;
                operands
            }
            _ => &operands[..],
        };
        if !(3..=4).contains(&operands.len()) {
            return self.fail("`cp.async` takes two addresses, a size and what to read");
        }
        let to = self.address(&operands[0], Space::Shared)?;
        let from = self.address(&operands[1], Space::Global)?;
        let Operand::Integer(bytes @ (4 | 8 | 16)) = operands[2] else {
            return self.fail("`cp.async` copies 4, 8 or 16 bytes");
        };
        if !all_levels && bytes != 16 {
            return self.fail("`cp.async.cg` copies 16 bytes");
        }
        let mut copy = CopyOp {
            to,
            from,
            bytes: bytes as u32,
            read: None,
            ignore: Test { predicate: FALSE, negated: false },
        };
        if let Some(last) = operands.get(3) {
            match self.register(last)? {
                Some(Type::Pred) => copy.ignore = self.test(last)?,
                _ => copy.read = Some(self.r(last)?),
            }
        }
        self.emit(Op::Copy(Box::new(copy)));
        Ok(())
    }
}
