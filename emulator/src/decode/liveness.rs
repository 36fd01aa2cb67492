//! How many registers a thread needs at once: an estimate of what a compiler would use.

use std::collections::HashMap;

use super::carry::{Key, Moves};
use super::set::Set;
use crate::program::{Called, DeviceFunction, Instruction, Op, RegisterClass, TRUE};
use crate::ptx::Type;

/// Reads and writes of the registers that the program names, by instruction.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Numbers of registers, by class and slot.
    numbers: HashMap<(RegisterClass, u16), usize>,
    places: Vec<(RegisterClass, u16)>,
    /// The bits that each has.
    widths: Vec<u32>,
    names: Vec<String>,
    open_reads: Vec<usize>,
    open_writes: Vec<usize>,
    open_moves: Option<Moves>,
    reads: Vec<Vec<usize>>,
    writes: Vec<Vec<usize>>,
    /// What instructions move that consist of several operations.
    moves: HashMap<usize, Moves>,
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
            self.widths.push(ty.bits());
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

    /// Says what the instruction that is decoded moves: it needs none of it to be written.
    pub(super) fn moves(&mut self, moves: Moves) {
        self.open_moves = Some(moves);
    }

    /// Assigns what was read and written to the next instruction.
    pub(super) fn close(&mut self, guarded: bool) {
        if let Some(moves) = self.open_moves.take() {
            self.moves.insert(self.reads.len(), moves);
        }
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

    /// What an instruction moves that said so.
    pub(super) fn moves_at(&self, at: usize) -> Option<&Moves> {
        self.moves.get(&at)
    }

    /// The number of a register that the program names.
    pub(super) fn known(&self, register: Key) -> Option<usize> {
        self.numbers.get(&register).copied()
    }

    /// The bits that a register has.
    pub(super) fn bits(&self, register: usize) -> u64 {
        u64::MAX >> (64 - self.widths[register])
    }

    pub(super) fn name(&self, register: usize) -> &str {
        &self.names[register]
    }

    pub(super) fn place(&self, register: usize) -> (RegisterClass, u16) {
        self.places[register]
    }

    /// Whether the program names what is at each of `count` places of a class.
    pub(super) fn named(&self, class: RegisterClass, count: usize) -> Vec<bool> {
        let mut named = vec![false; count];
        let places = self.places.iter().filter(|place| place.0 == class);
        places.for_each(|&(_, slot)| named[usize::from(slot)] = true);
        named
    }

    /// Moves the first instructions to the end.
    pub(super) fn rotate_left(&mut self, count: usize) {
        self.reads.rotate_left(count);
        self.writes.rotate_left(count);
        self.guarded.rotate_left(count);
        let length = self.reads.len();
        let moves = std::mem::take(&mut self.moves).into_iter();
        self.moves = moves.map(|(at, moves)| ((at + length - count) % length, moves)).collect();
    }

    /// The most registers that are live at once.
    pub(super) fn most_live(&self, code: &[Instruction], functions: &[DeviceFunction]) -> u32 {
        let next: Vec<_> =
            code.iter().enumerate().map(|(at, _)| next(code, functions, at)).collect();
        // What is live is kept where control may come from elsewhere than the line before.
        let none = Set::none_of(self.count());
        let mut live: HashMap<usize, Set> =
            next.iter().flatten().flatten().map(|&at| (at, none.clone())).collect();
        let [words, doubles] =
            [RegisterClass::Word, RegisterClass::Double].map(|class| self.all_of(class));
        // A register of 64 bits takes two.
        let width = |set: &Set| set.count_in(&words) + 2 * set.count_in(&doubles);
        let (mut most, mut changed) = (0, true);
        while changed {
            changed = false;
            let (mut set, mut live_width) = (none.clone(), 0);
            for at in (0..code.len()).rev() {
                if let Some(next) = &next[at] {
                    set.clear();
                    next.iter().for_each(|from| set.add(&live[from]));
                    live_width = width(&set);
                }
                if !self.guarded[at] {
                    // Threads that are switched off keep the old value.
                    for &n in &self.writes[at] {
                        live_width -= if set.has(n) { self.width_of(n) } else { 0 };
                        set.remove(n);
                    }
                }
                for &n in &self.reads[at] {
                    live_width += if set.has(n) { 0 } else { self.width_of(n) };
                    set.insert(n);
                }
                most = most.max(live_width);
                if let Some(old) = live.get_mut(&at).filter(|old| **old != set) {
                    old.clone_from(&set);
                    changed = true;
                }
            }
        }
        most
    }

    /// The 32-bit registers that one register takes.
    fn width_of(&self, register: usize) -> u32 {
        match self.places[register].0 {
            RegisterClass::Predicate => 0,
            RegisterClass::Word => 1,
            RegisterClass::Double => 2,
        }
    }

    /// The set of all registers of a class.
    fn all_of(&self, class: RegisterClass) -> Set {
        let mut set = Set::none_of(self.count());
        let places = self.places.iter().enumerate().filter(|(_, place)| place.0 == class);
        places.for_each(|(register, _)| set.insert(register));
        set
    }
}

/// Where control goes from an instruction, unless it goes on behind it.
pub(super) fn next(
    code: &[Instruction],
    functions: &[DeviceFunction],
    at: usize,
) -> Option<Vec<usize>> {
    let instruction = &code[at];
    let mut next: Vec<usize> = match &instruction.op {
        Op::Branch(target) => vec![*target as usize],
        Op::BranchIndexed(branch) => branch.targets.iter().map(|&at| at as usize).collect(),
        Op::Call(call) => match call.callee {
            Called::Function(number) => vec![functions[number as usize].entry as usize],
            Called::Pointer(_) => functions.iter().map(|f| f.entry as usize).collect(),
        },
        Op::Return(number) => return_places(code, *number),
        Op::Exit => Vec::new(),
        _ => return None,
    };
    let guarded = instruction.guard.predicate != TRUE;
    if guarded || matches!(instruction.op, Op::BranchIndexed(_)) {
        next.push(at + 1);
    }
    Some(next)
}

/// Where a function may return to.
fn return_places(code: &[Instruction], function: u32) -> Vec<usize> {
    let calls = code.iter().enumerate().filter(|(_, instruction)| match &instruction.op {
        Op::Call(call) => match call.callee {
            Called::Function(number) => number == function,
            Called::Pointer(_) => true,
        },
        _ => false,
    });
    calls.map(|(at, _)| at + 1).collect()
}
