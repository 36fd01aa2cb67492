//! Branches, what stops or delays a thread, and the stack.

use super::decoder::{Decoder, Result};
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

impl Decoder<'_> {
    pub(super) fn branch(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        modifiers.take("uni");
        self.count(instruction, &[1])?;
        let label = self.label(&instruction.operands[0])?;
        self.emit(Op::Branch(label));
        Ok(())
    }

    pub(super) fn branch_indexed(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let operands = &instruction.operands;
        modifiers.take("uni");
        modifiers.take("idx");
        self.count(instruction, &[2])?;
        let index = self.word(&operands[0])?;
        let Operand::Name(list) = &operands[1] else {
            return self.fail("the name of a list of targets is expected");
        };
        let Some(names) = self.find_targets(list) else {
            return self.fail(format!("unknown list of branch targets `{list}`"));
        };
        let mut targets = Vec::new();
        for name in names {
            targets.push(self.label(&Operand::Name(name))?);
        }
        self.emit(Op::BranchIndexed(Box::new(IndexedBranch { index, targets })));
        Ok(())
    }

    pub(super) fn ret(&mut self, _: &InstructionTree, modifiers: &mut Modifiers) -> Result<()> {
        modifiers.take("uni");
        self.leave();
        Ok(())
    }

    pub(super) fn exit(&mut self, _: &InstructionTree, _: &mut Modifiers) -> Result<()> {
        self.emit(Op::Exit);
        Ok(())
    }

    pub(super) fn trap(&mut self, _: &InstructionTree, _: &mut Modifiers) -> Result<()> {
        self.emit(Op::Trap);
        Ok(())
    }

    pub(super) fn sleep(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        modifiers.ty();
        self.count(instruction, &[1])?;
        self.word(&instruction.operands[0])?;
        self.emit(Op::Sleep);
        Ok(())
    }

    /// `griddepcontrol`: all earlier kernels are complete, and their writes are visible.
    pub(super) fn nothing(&mut self, _: &InstructionTree, modifiers: &mut Modifiers) -> Result<()> {
        modifiers.drop_all(|_| true);
        self.emit(Op::Nothing);
        Ok(())
    }

    /// `applypriority`, which changes nothing but time.
    pub(super) fn priority(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        modifiers.drop_all(|_| true);
        self.count(instruction, &[2])?;
        if instruction.operands[1] != Operand::Integer(DISCARDED.into()) {
            return self.fail(format!("the only size that has a priority is {DISCARDED}"));
        }
        self.address(&instruction.operands[0], Space::Global)?;
        self.emit(Op::Nothing);
        Ok(())
    }

    pub(super) fn event(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        modifiers.take("mask");
        self.count(instruction, &[1])?;
        let Operand::Integer(0..=0xffff) = instruction.operands[0] else {
            return self.fail("`pmevent` takes a constant of 16 bits");
        };
        self.emit(Op::Nothing);
        Ok(())
    }

    pub(super) fn save_stack(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        modifiers.ty();
        self.count(instruction, &[1])?;
        let stack = self.stack_pointer();
        if let Target::Q(d) = self.target(&instruction.operands[0], Type::U64)? {
            self.emit(Op::Copy64(d, stack));
        }
        Ok(())
    }

    pub(super) fn restore_stack(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        modifiers.ty();
        self.count(instruction, &[1])?;
        let stack = self.stack_pointer();
        if let Source::Q(a) = self.source(&instruction.operands[0], Type::U64)? {
            self.emit(Op::Copy64(stack, a));
        }
        Ok(())
    }

    /// The number of a label; it becomes a place when the kernel is complete.
    fn label(&mut self, operand: &Operand) -> Result<u32> {
        let Operand::Name(name) = operand else { return self.fail("a label is expected") };
        match self.find_label(name) {
            Some(label) => Ok(label as u32),
            None => self.fail(format!("unknown label `{name}`")),
        }
    }

    /// `alloca pointer, size, alignment`: takes more of the stack until the function returns.
    pub(super) fn allocate(
        &mut self,
        instruction: &InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        const LEAST: u64 = 8;
        const MOST: u64 = 1 << 23;
        modifiers.ty();
        self.count(instruction, &[2, 3])?;
        let operands = &instruction.operands;
        let align = match operands.get(2) {
            None => LEAST,
            Some(Operand::Integer(align)) if align.is_power_of_two() && *align <= MOST => {
                (*align).max(LEAST)
            }
            _ => return self.fail(format!("the alignment must be a power of two up to {MOST}")),
        };
        let size = self.source(&operands[1], Type::U64)?;
        let target = self.target(&operands[0], Type::U64)?;
        let current = self.current;
        self.bodies[current].allocates = true;
        let stack = self.stack_pointer();
        if let (Source::Q(size), Target::Q(pointer)) = (size, target) {
            self.emit(Op::StackAllocate(Box::new(StackAllocation { pointer, size, align, stack })));
        }
        Ok(())
    }

    /// A 32-bit register for an intermediate value.
    pub(super) fn new_temporary(&mut self) -> R {
        self.new_slot(Type::B32)
    }
}
