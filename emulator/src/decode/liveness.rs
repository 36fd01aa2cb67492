//! How many registers a thread needs at once: an estimate of what a compiler would use.

use std::collections::HashMap;

use super::functions::Function;
use crate::exec::op::{Called, Instruction, Op, TRUE};
use crate::ptx::Type;

/// Reads and writes of the registers that the program names, by instruction.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Numbers of registers, by width class and slot.
    numbers: HashMap<(bool, u16), usize>,
    /// 32-bit registers that each takes.
    widths: Vec<u32>,
    open_reads: Vec<usize>,
    open_writes: Vec<usize>,
    reads: Vec<Vec<usize>>,
    writes: Vec<Vec<usize>>,
}

impl Flow {
    fn number(&mut self, ty: Type, slot: u16) -> Option<usize> {
        let width = match ty.bits() {
            1 => return None,
            64 => 2,
            _ => 1,
        };
        let next = self.widths.len();
        let number = *self.numbers.entry((width == 2, slot)).or_insert(next);
        if number == next {
            self.widths.push(width);
        }
        Some(number)
    }

    pub(super) fn read(&mut self, ty: Type, slot: u16) {
        let number = self.number(ty, slot);
        self.open_reads.extend(number);
    }

    pub(super) fn write(&mut self, ty: Type, slot: u16) {
        let number = self.number(ty, slot);
        self.open_writes.extend(number);
    }

    /// Assigns what was read and written to the next instruction.
    pub(super) fn close(&mut self, guarded: bool) {
        let writes = std::mem::take(&mut self.open_writes);
        if guarded {
            // Threads that are switched off keep the old value.
            self.open_reads.extend(&writes);
        }
        self.reads.push(std::mem::take(&mut self.open_reads));
        self.writes.push(writes);
    }

    /// Moves the first instructions to the end.
    pub(super) fn rotate_left(&mut self, count: usize) {
        self.reads.rotate_left(count);
        self.writes.rotate_left(count);
    }

    /// The most registers that are live at once.
    pub(super) fn most_live(&self, code: &[Instruction], functions: &[Function]) -> u32 {
        let returns = return_places(code, functions.len());
        let words = self.widths.len().div_ceil(64).max(1);
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
                self.writes[at].iter().for_each(|&n| set[n / 64] &= !(1 << (n % 64)));
                self.reads[at].iter().for_each(|&n| set[n / 64] |= 1 << (n % 64));
                let old = &mut live[words * at..words * (at + 1)];
                if set != old {
                    old.copy_from_slice(&set);
                    changed = true;
                }
            }
        }
        live.chunks(words).map(|set| self.count(set)).max().unwrap_or(0)
    }

    /// The 32-bit registers that a set takes.
    fn count(&self, set: &[u64]) -> u32 {
        let mut count = 0;
        for (at, word) in set.iter().enumerate() {
            let mut word = *word;
            while word != 0 {
                count += self.widths[64 * at + word.trailing_zeros() as usize];
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
