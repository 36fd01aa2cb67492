//! Places of registers. PTX gives nearly every value a register of its own, and a kernel names
//! thousands. Here registers that are never needed at once share a place. The registers of a warp
//! then fit into the caches of the host.
//!
//! A register that may be read before it is written to shares its place with no other one from the
//! start of the kernel to its last use. It still holds poison until it is written to.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::liveness::next;
use super::set::Set;
use crate::program::{Instruction, Named, TRUE, Use};

/// New places, by old ones.
pub(super) struct Places {
    pub(super) r: Vec<u16>,
    pub(super) q: Vec<u16>,
    /// How many there are now.
    pub(super) r_count: usize,
    pub(super) q_count: usize,
}

/// What an instruction does with registers, which are numbered: first those of 32 bits, then those
/// of 64.
struct Uses {
    /// Where the uses of each instruction start, and where the last one's end.
    starts: Vec<usize>,
    uses: Vec<(usize, Use)>,
}

impl Uses {
    /// `None` if the code has calls: functions keep registers for those that call them.
    fn new(code: &mut [Instruction], r_count: usize) -> Option<Self> {
        let (mut starts, mut uses) = (vec![0], Vec::new());
        for instruction in code {
            let known = instruction.op.registers(&mut |register, how| {
                uses.push(match register {
                    Named::R(r) => (usize::from(*r), how),
                    Named::Q(q) => (r_count + usize::from(*q), how),
                });
            });
            if !known {
                return None;
            }
            starts.push(uses.len());
        }
        Some(Self { starts, uses })
    }

    fn of(&self, at: usize) -> &[(usize, Use)] {
        &self.uses[self.starts[at]..self.starts[at + 1]]
    }
}

/// Finds places for the registers that the program names; the others keep theirs to themselves.
/// `None` if all have to stay where they are.
pub(super) fn allocate(
    code: &mut [Instruction],
    named: &[Vec<bool>; 2],
    entry: usize,
) -> Option<Places> {
    let [r_named, q_named] = named;
    let (r_count, count) = (r_named.len(), r_named.len() + q_named.len());
    let uses = Uses::new(code, r_count)?;
    let ranges = ranges(code, &uses, count, entry);
    let mut places = Places { r: Vec::new(), q: Vec::new(), r_count: 0, q_count: 0 };
    (places.r, places.r_count) = share(r_named, &ranges[..r_count]);
    (places.q, places.q_count) = share(q_named, &ranges[r_count..]);
    for instruction in code {
        instruction.op.registers(&mut |register, _| match register {
            Named::R(r) => *r = places.r[usize::from(*r)],
            Named::Q(q) => *q = places.q[usize::from(*q)],
        });
    }
    Some(places)
}

/// The first and the last instruction between which each register is needed.
fn ranges(
    code: &[Instruction],
    uses: &Uses,
    count: usize,
    entry: usize,
) -> Vec<Option<(usize, usize)>> {
    let none = Set::none_of(count);
    let next: Vec<_> = (0..code.len()).map(|at| next(code, &[], at)).collect();
    // What is needed is kept where control may come from elsewhere than the line before.
    let targets = next.iter().flatten().flatten().copied().chain([entry]);
    let mut needed: BTreeMap<usize, Set> = targets.map(|at| (at, none.clone())).collect();
    let before = |at: usize, set: &mut Set| {
        // Threads that are switched off keep the old value.
        if code[at].guard.predicate == TRUE && !code[at].guard.negated {
            let writes = uses.of(at).iter().filter(|(_, how)| *how == Use::Write);
            writes.for_each(|&(register, _)| set.remove(register));
        }
        let reads = uses.of(at).iter().filter(|(_, how)| *how == Use::Read);
        reads.for_each(|&(register, _)| set.insert(register));
    };
    let after = |at: usize, needed: &BTreeMap<usize, Set>, set: &mut Set| {
        if let Some(next) = &next[at] {
            set.clear();
            next.iter().filter_map(|from| needed.get(from)).for_each(|from| set.add(from));
        }
    };
    let mut changed = true;
    while changed {
        changed = false;
        let mut set = none.clone();
        for at in (0..code.len()).rev() {
            after(at, &needed, &mut set);
            before(at, &mut set);
            if let Some(old) = needed.get_mut(&at).filter(|old| **old != set) {
                *old = set.clone();
                changed = true;
            }
        }
    }
    let mut ranges = vec![None; count];
    let mut include = |register: usize, at: usize| {
        let (first, last) = ranges[register].unwrap_or((at, at));
        ranges[register] = Some((at.min(first), at.max(last)));
    };
    let mut set = none;
    for at in (0..code.len()).rev() {
        if next[at].is_some() {
            after(at, &needed, &mut set);
            set.for_each(|register| include(register, at));
        }
        uses.of(at).iter().for_each(|&(register, _)| include(register, at));
        if let Some(set) = needed.get(&at) {
            set.for_each(|register| include(register, at));
        }
    }
    // The instructions of the kernel start at its entry.
    if let Some(set) = needed.get(&entry) {
        set.for_each(|register| include(register, 0));
    }
    ranges
}

/// Gives registers places that they share where their ranges allow it, and counts the places.
fn share(named: &[bool], ranges: &[Option<(usize, usize)>]) -> (Vec<u16>, usize) {
    let mut places = vec![0; named.len()];
    let mut count = 0_u16;
    let mut new_place = || {
        count += 1;
        count - 1
    };
    for (register, _) in named.iter().enumerate().filter(|(_, named)| !**named) {
        places[register] = new_place();
    }
    let mut waiting: Vec<(usize, usize, usize)> = (0..named.len())
        .filter(|&register| named[register])
        .filter_map(|register| ranges[register].map(|(first, last)| (first, last, register)))
        .collect();
    waiting.sort_unstable();
    let mut taken: BinaryHeap<Reverse<(usize, u16)>> = BinaryHeap::new();
    let mut free = Vec::new();
    for (first, last, register) in waiting {
        while let Some(&Reverse((end, place))) = taken.peek()
            && end < first
        {
            taken.pop();
            free.push(place);
        }
        let place = free.pop().unwrap_or_else(&mut new_place);
        places[register] = place;
        taken.push(Reverse((last, place)));
    }
    (places, usize::from(count))
}
