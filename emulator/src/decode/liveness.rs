//! How many registers a thread needs at once: an estimate of what a compiler would use.

use std::collections::HashMap;

use crate::exec::op::{Instruction, Op};
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

    /// The most registers that are live at once.
    pub(super) fn most_live(&self, code: &[Instruction]) -> u32 {
        let words = self.widths.len().div_ceil(64);
        let mut live = vec![vec![0_u64; words]; code.len() + 1];
        loop {
            let mut changed = false;
            let mut most = 0;
            for at in (0..code.len()).rev() {
                let mut set = vec![0; words];
                let mut merge = |from: usize| {
                    if let Some(from) = live.get(from) {
                        set.iter_mut().zip(from).for_each(|(into, from)| *into |= from);
                    }
                };
                let guarded = code[at].guard.predicate != crate::exec::op::TRUE;
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
                    Op::Exit if !guarded => {}
                    _ => merge(at + 1),
                }
                self.writes[at].iter().for_each(|&n| set[n / 64] &= !(1 << (n % 64)));
                self.reads[at].iter().for_each(|&n| set[n / 64] |= 1 << (n % 64));
                let count: u32 = (0..self.widths.len())
                    .filter(|&n| set[n / 64] >> (n % 64) & 1 != 0)
                    .map(|n| self.widths[n])
                    .sum();
                most = most.max(count);
                if set != live[at] {
                    live[at] = set;
                    changed = true;
                }
            }
            if !changed {
                return most;
            }
        }
    }
}
