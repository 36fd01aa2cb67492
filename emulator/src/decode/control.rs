//! Branches, calls, and the order in which the groups of instructions are tried.

use std::collections::HashMap;

use super::decoder::{Decoder, Result, Symbol};
use super::modifiers::Modifiers;
use super::opcodes::OPCODES;
use crate::exec::op::*;
use crate::ptx::{FunctionTree, Instruction, Operand, Type};

impl<'a> Decoder<'a> {
    /// Decodes one instruction; what takes a modifier removes it.
    pub(super) fn instruction(
        &mut self,
        instruction: &'a Instruction,
        modifiers: &mut Modifiers,
    ) -> Result<()> {
        let known = OPCODES.contains(&instruction.opcode.as_str())
            && (self.arithmetic(instruction, modifiers)?
                || self.memory(instruction, modifiers)?
                || self.conversion(instruction, modifiers)?
                || self.warp(instruction, modifiers)?
                || self.control(instruction, modifiers)?);
        if known {
            Ok(())
        } else {
            self.fail(format!("unknown instruction `{}`", instruction.opcode))
        }
    }

    fn control(&mut self, instruction: &'a Instruction, modifiers: &mut Modifiers) -> Result<bool> {
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
                if !modifiers.take("idx") {
                    return self.fail("only `brx.idx` is supported");
                }
                self.count(instruction, &[2])?;
                let index = self.r(&operands[0])?;
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
                match self.frames.last().and_then(|frame| frame.after) {
                    Some(after) => self.emit(Op::Branch(after as u32)),
                    None => self.emit(Op::Exit),
                }
            }
            "exit" => self.emit(Op::Exit),
            "trap" | "brkpt" => self.emit(Op::Trap),
            "nanosleep" => {
                modifiers.ty();
                self.count(instruction, &[1])?;
                self.r(&operands[0])?;
                self.emit(Op::Nothing);
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

    /// A call: device functions are expanded in place.
    fn call(&mut self, instruction: &'a Instruction) -> Result<()> {
        type Call<'o> = (&'o [Operand], &'o String, &'o [Operand]);
        let (returns, name, arguments): Call<'_> = match &instruction.operands[..] {
            [Operand::Name(name)] => (&[], name, &[]),
            [Operand::Name(name), Operand::List(arguments)] => (&[], name, arguments),
            [Operand::List(returns), Operand::Name(name)] => (returns, name, &[]),
            [Operand::List(returns), Operand::Name(name), Operand::List(arguments)] => {
                (returns, name, arguments)
            }
            _ => return self.fail("this form of call is not supported"),
        };
        let tree = self.tree;
        let named = || tree.functions.iter().filter(|f| !f.is_kernel && f.name == *name);
        let Some(function) = named().find(|f| f.body.is_some()).or_else(|| named().next()) else {
            return self.fail(format!("calls through registers are not supported: `{name}`"));
        };
        if self.frames.iter().any(|frame| frame.name == *name) {
            return self.fail(format!("recursion is not supported: `{name}`"));
        }
        let places = self.call_places(function, returns, arguments)?;
        let after = self.new_label();
        if self.guard.predicate != TRUE {
            self.guard.negated = !self.guard.negated;
            self.emit(Op::Branch(after as u32));
            self.always();
        }
        match &function.body {
            Some(body) => {
                let formals = function.returns.iter().chain(&function.params);
                let symbols: HashMap<_, _> = formals
                    .map(|formal| formal.name.clone())
                    .zip(places.into_iter().map(Symbol::Local))
                    .collect();
                self.enter(name, symbols, after);
                self.body(body)?;
                self.leave();
            }
            None => self.builtin(name, &places)?,
        }
        self.place_label(after);
        Ok(())
    }

    /// Where in local memory the results and the arguments of a call lie.
    fn call_places(
        &mut self,
        function: &FunctionTree,
        returns: &[Operand],
        arguments: &[Operand],
    ) -> Result<Vec<u32>> {
        if returns.len() != function.returns.len() || arguments.len() != function.params.len() {
            return self.fail(format!("the call does not fit `{}`", function.name));
        }
        let mut places = Vec::new();
        for operand in returns.iter().chain(arguments) {
            let Operand::Name(name) = operand else {
                return self.fail("only .param variables can be passed");
            };
            match self.symbol(name)? {
                Symbol::Local(offset) => places.push(offset),
                _ => return self.fail(format!("`{name}` is not a .param variable of the caller")),
            }
        }
        Ok(places)
    }

    fn builtin(&mut self, name: &str, places: &[u32]) -> Result<()> {
        let builtin = match (name, places) {
            ("vprintf", &[result, format, arguments]) => {
                Builtin::Print { format, arguments, result: Some(result) }
            }
            ("__assertfail", &[message, file, line, function, _]) => {
                Builtin::AssertFail { message, file, line, function }
            }
            _ => return self.fail(format!("the function `{name}` has no body")),
        };
        self.emit(Op::Builtin(Box::new(builtin)));
        Ok(())
    }

    /// A 32-bit register for an intermediate value.
    pub(super) fn new_temporary(&mut self) -> R {
        self.new_slot(Type::B32)
    }
}
