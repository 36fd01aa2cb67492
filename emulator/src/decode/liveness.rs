//! How many registers a thread needs at once: an estimate of what a compiler would use.

use std::collections::HashMap;

use super::functions::Function;
use crate::exec::RegisterClass;
use crate::exec::op::{Called, Instruction, Op, TRUE};
use crate::ptx::Type;

/// Reads and writes of the registers that the program names, by instruction.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Numbers of registers, by class and slot.
    numbers: HashMap<(RegisterClass, u16), usize>,
    places: Vec<(RegisterClass, u16)>,
    names: Vec<String>,
    open_reads: Vec<usize>,
    open_writes: Vec<usize>,
    reads: Vec<Vec<usize>>,
    writes: Vec<Vec<usize>>,
    guarded: Vec<bool>,
}

impl Flow {
    fn number(&mut self, ty: Type, slot: u16) -> usize {
        let class = match ty.bits() {
            1 => RegisterClass::Predicate,
            64 => RegisterClass::Double,
            _ => RegisterClass::Word,
        };
        let next = self.places.len();
        let number = *self.numbers.entry((class, slot)).or_insert(next);
        if number == next {
            self.places.push((class, slot));
            self.names.push(String::new());
        }
        number
    }

    /// Gives a register its name.
    pub(super) fn call(&mut self, ty: Type, slot: u16, name: &str) {
        let number = self.number(ty, slot);
        self.names[number] = name.to_owned();
    }

    pub(super) fn read(&mut self, ty: Type, slot: u16) {
        let number = self.number(ty, slot);
        self.open_reads.push(number);
    }

    pub(super) fn write(&mut self, ty: Type, slot: u16) {
        let number = self.number(ty, slot);
        self.open_writes.push(number);
    }

    /// Assigns what was read and written to the next instruction.
    pub(super) fn close(&mut self, guarded: bool) {
        self.reads.push(std::mem::take(&mut self.open_reads));
        self.writes.push(std::mem::take(&mut self.open_writes));
        self.guarded.push(guarded);
    }

    /// How many registers there are.
    pub(super) fn count(&self) -> usize {
        self.places.len()
    }

    /// The registers that an instruction reads, its guard among them.
    pub(super) fn reads(&self, at: usize) -> &[usize] {
        &self.reads[at]
    }

    /// The registers that an instruction writes.
    pub(super) fn writes(&self, at: usize) -> &[usize] {
        &self.writes[at]
    }

    /// Whether some threads may be switched off for an instruction.
    pub(super) fn is_guarded(&self, at: usize) -> bool {
        self.guarded[at]
    }

    pub(super) fn name(&self, register: usize) -> &str {
        &self.names[register]
    }

    pub(super) fn place(&self, register: usize) -> (RegisterClass, u16) {
        self.places[register]
    }

    /// Moves the first instructions to the end.
    pub(super) fn rotate_left(&mut self, count: usize) {
        self.reads.rotate_left(count);
        self.writes.rotate_left(count);
        self.guarded.rotate_left(count);
    }

    /// The most registers that are live at once.
    pub(super) fn most_live(&self, code: &[Instruction], functions: &[Function]) -> u32 {
        let returns = return_places(code, functions.len());
        let words = self.places.len().div_ceil(64).max(1);
        let mut live = vec![0_u64; words * (code.len() + 1)];
        let mut set = vec![0_u64; words];
        let mut changed = true;
        while changed {
            changed = false;
            for at in (0..code.len()).rev() {
                set.fill(0);
                let mut merge = |from: usize| {
                    let from = live[words * from..].iter();
                    set.iter_mut().zip(from).for_each(|(into, from)| *into |= from);
                };
                let guarded = code[at].guard.predicate != TRUE;
                match &code[at].op {
                    Op::Branch(target) => {
                        merge(*target as usize);
                        if guarded {
                            merge(at + 1);
                        }
                    }
                    Op::BranchIndexed(branch) => {
                        branch.targets.iter().for_each(|&target| merge(target as usize));
                        merge(at + 1);
                    }
                    Op::Call(call) => {
                        match call.callee {
                            Called::Function(number) => {
                                merge(functions[number as usize].entry as usize);
                            }
                            Called::Pointer(_) => {
                                functions.iter().for_each(|f| merge(f.entry as usize));
                            }
                        }
                        if guarded {
                            merge(at + 1);
                        }
                    }
                    Op::Return(number) => {
                        returns[*number as usize].iter().for_each(|&place| merge(place));
                        if guarded {
                            merge(at + 1);
                        }
                    }
                    Op::Exit if !guarded => {}
                    _ => merge(at + 1),
                }
                if !self.guarded[at] {
                    // Threads that are switched off keep the old value.
                    self.writes[at].iter().for_each(|&n| set[n / 64] &= !(1 << (n % 64)));
                }
                self.reads[at].iter().for_each(|&n| set[n / 64] |= 1 << (n % 64));
                let old = &mut live[words * at..words * (at + 1)];
                if set != old {
                    old.copy_from_slice(&set);
                    changed = true;
                }
            }
        }
        live.chunks(words).map(|set| self.width(set)).max().unwrap_or(0)
    }

    /// The 32-bit registers that a set takes.
    fn width(&self, set: &[u64]) -> u32 {
        let mut count = 0;
        for (at, word) in set.iter().enumerate() {
            let mut word = *word;
            while word != 0 {
                count += match self.places[64 * at + word.trailing_zeros() as usize].0 {
                    RegisterClass::Predicate => 0,
                    RegisterClass::Word => 1,
                    RegisterClass::Double => 2,
                };
                word &= word - 1;
            }
        }
        count
    }
}

/// Where each function may return to.
fn return_places(code: &[Instruction], functions: usize) -> Vec<Vec<usize>> {
    let mut places = vec![Vec::new(); functions];
    for (at, instruction) in code.iter().enumerate() {
        let Op::Call(call) = &instruction.op else { continue };
        match call.callee {
            Called::Function(number) => places[number as usize].push(at + 1),
            Called::Pointer(_) => places.iter_mut().for_each(|places| places.push(at + 1)),
        }
    }
    places
}
