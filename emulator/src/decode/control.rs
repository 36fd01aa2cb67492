//! Branches, calls, and the order in which the groups of instructions are tried.

use super::decoder::{Decoder, Result};
use super::modifiers::Modifiers;
use crate::program::*;
use crate::ptx::{InstructionTree, Operand, Type};

impl<'a> Decoder<'a> {
    /// Decodes one instruction; what takes a modifier removes it.
    pub(super) fn instruction(
        &mut self,
        instruction: &'a InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let known = self.arithmetic(instruction, modifiers)?
            || self.logic(instruction, modifiers)?
            || self.memory(instruction, modifiers)?
            || self.synchronising(instruction, modifiers)?
            || self.conversion(instruction, modifiers)?
            || self.warp(instruction, modifiers)?
            || self.control(instruction, modifiers)?;
        if known {
            Ok(())
        } else {
            self.fail(format!("unknown instruction `{}`", instruction.opcode))
        }
    }

    fn control(
        &mut self,
        instruction: &'a InstructionTree,
        modifiers: &mut Modifiers,
    ) -> Result<bool> {
        let operands = &instruction.operands;
        match instruction.opcode.as_str() {
            "bra" => {
                modifiers.take("uni");
                self.count(instruction, &[1])?;
                let label = self.label(&operands[0])?;
                self.emit(Op::Branch(label));
            }
            "brx" => {
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
            }
            "call" => {
                modifiers.take("uni");
                self.call(instruction)?;
            }
            "ret" => {
                modifiers.take("uni");
                self.leave();
            }
            "exit" => self.emit(Op::Exit),
            "trap" | "brkpt" => self.emit(Op::Trap),
            "nanosleep" => {
                modifiers.ty();
                self.count(instruction, &[1])?;
                self.word(&operands[0])?;
                self.emit(Op::Sleep);
            }
            // The kernels before this one are complete when it starts, and its memory is visible.
            "griddepcontrol" => {
                modifiers.drop_all(|_| true);
                self.emit(Op::Nothing);
            }
            "pmevent" => {
                modifiers.take("mask");
                self.count(instruction, &[1])?;
                let Operand::Integer(0..=0xffff) = operands[0] else {
                    return self.fail("`pmevent` takes a constant of 16 bits");
                };
                self.emit(Op::Nothing);
            }
            "stacksave" => {
                modifiers.ty();
                self.count(instruction, &[1])?;
                let stack = self.stack_pointer();
                if let Target::Q(d) = self.target(&operands[0], Type::U64)? {
                    self.emit(Op::Copy64(d, stack));
                }
            }
            "stackrestore" => {
                modifiers.ty();
                self.count(instruction, &[1])?;
                let stack = self.stack_pointer();
                if let Source::Q(a) = self.source(&operands[0], Type::U64)? {
                    self.emit(Op::Copy64(stack, a));
                }
            }
            "alloca" => {
                modifiers.ty();
                self.allocate(instruction)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
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
    fn allocate(&mut self, instruction: &InstructionTree) -> Result<()> {
        const LEAST: u64 = 8;
        const MOST: u64 = 1 << 23;
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
