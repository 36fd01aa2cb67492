//! Which registers a thread may use before it writes to them, on some path through the kernel.
//! Only those are watched while the kernel runs.

use std::collections::{BTreeMap, HashMap};

use super::liveness::Flow;
use crate::program::{
    Bin32, DeviceFunction, Instruction, Integer, Op, Scalar, TRUE, Un32, Watch, WatchedInstruction,
    WatchedRead,
};

/// A set of registers, by their numbers.
#[derive(Clone, PartialEq)]
struct Set(Vec<u64>);

impl Set {
    fn has(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 != 0
    }

    fn insert(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn remove(&mut self, at: usize) {
        self.0[at / 64] &= !(1 << (at % 64));
    }

    /// Keeps what is in both, and returns whether anything went.
    fn keep(&mut self, other: &Self) -> bool {
        let before = self.clone();
        self.0.iter_mut().zip(&other.0).for_each(|(mine, other)| *mine &= other);
        *self != before
    }
}

/// Whether an instruction only moves values: what was never written to may be moved, as compilers
/// do where a value is not used afterwards.
fn moves(op: &Op) -> bool {
    match op {
        Op::Un32(Un32::Copy | Un32::Low16 | Un32::High16, ..)
        | Op::Bin32(Bin32::PackHalves, ..)
        | Op::Copy64(..)
        | Op::Pack64 { .. }
        | Op::Unpack64 { .. }
        | Op::Select32 { .. }
        | Op::Select64 { .. } => true,
        Op::Scalar(op) => {
            matches!(op.scalar, Scalar::Select | Scalar::Integer(Integer::Copy, _))
        }
        _ => false,
    }
}

/// The code as blocks without branches: where each starts, and those that may come next. A called
/// function has registers of its own: the call goes on behind it.
fn blocks(code: &[Instruction], entries: &[usize]) -> BTreeMap<usize, Vec<usize>> {
    let mut starts: BTreeMap<_, _> = entries.iter().map(|&entry| (entry, Vec::new())).collect();
    starts.insert(0, Vec::new());
    let targets = |op: &Op| match op {
        Op::Branch(target) => vec![*target as usize],
        Op::BranchIndexed(branch) => branch.targets.iter().map(|&target| target as usize).collect(),
        _ => Vec::new(),
    };
    for (at, instruction) in code.iter().enumerate() {
        let next = targets(&instruction.op);
        if !next.is_empty() || matches!(instruction.op, Op::Exit | Op::Return(_)) {
            next.into_iter().chain([at + 1]).for_each(|start| {
                starts.insert(start, Vec::new());
            });
        }
    }
    let places: Vec<usize> = starts.keys().copied().filter(|&start| start < code.len()).collect();
    starts.retain(|&start, _| start < code.len());
    for (index, &start) in places.iter().enumerate() {
        let end = places.get(index + 1).copied().unwrap_or(code.len());
        let last = &code[end - 1];
        let always = last.guard.predicate == TRUE && !last.guard.negated;
        let mut next = targets(&last.op);
        next.retain(|&target| target < code.len());
        let falls_through = !always || !matches!(last.op, Op::Branch(_) | Op::Exit | Op::Return(_));
        if falls_through && end < code.len() {
            next.push(end);
        }
        starts.insert(start, next);
    }
    starts
}

/// What is written after an instruction, where `written` was before.
fn step(flow: &Flow, code: &[Instruction], at: usize, written: &mut Set) {
    if flow.is_guarded(at) {
        return;
    }
    let holds = !moves(&code[at].op) || flow.reads(at).iter().all(|&read| written.has(read));
    for &write in flow.writes(at) {
        if holds {
            written.insert(write);
        } else {
            written.remove(write);
        }
    }
}

/// Finds the registers to watch, and marks the instructions that read or write them.
pub(super) fn watch(
    flow: &Flow,
    code: &mut [Instruction],
    entry: u32,
    functions: &[DeviceFunction],
) -> Watch {
    let count = flow.count();
    let entries: Vec<usize> =
        functions.iter().map(|f| f.entry as usize).chain([entry as usize]).collect();
    let blocks = blocks(code, &entries);
    let none = Set(vec![0; count.div_ceil(64)]);
    let all = Set(vec![u64::MAX; count.div_ceil(64)]);
    let mut before: BTreeMap<usize, Set> = blocks.keys().map(|&at| (at, all.clone())).collect();
    for entry in entries.into_iter().filter(|entry| blocks.contains_key(entry)) {
        before.insert(entry, none.clone());
    }
    let ends: Vec<usize> = blocks.keys().copied().skip(1).chain([code.len()]).collect();
    let ends: HashMap<usize, usize> = blocks.keys().copied().zip(ends).collect();
    let mut open: Vec<usize> = blocks.keys().copied().rev().collect();
    while let Some(start) = open.pop() {
        let mut written = before[&start].clone();
        (start..ends[&start]).for_each(|at| step(flow, code, at, &mut written));
        for next in &blocks[&start] {
            let changed = before.get_mut(next).is_some_and(|known| known.keep(&written));
            if changed && !open.contains(next) {
                open.push(*next);
            }
        }
    }
    let mut numbers: BTreeMap<usize, usize> = BTreeMap::new();
    for (start, written) in &mut before {
        for at in *start..ends[start] {
            // Formals have no names: calls write to them.
            let open = |read: &&usize| !written.has(**read) && !flow.name(**read).is_empty();
            for &read in flow.reads(at).iter().filter(open) {
                let next = numbers.len();
                numbers.entry(read).or_insert(next);
            }
            step(flow, code, at, written);
        }
    }
    mark(flow, code, &numbers)
}

/// The watch on some registers, which `numbers` gives numbers.
fn mark(flow: &Flow, code: &mut [Instruction], numbers: &BTreeMap<usize, usize>) -> Watch {
    let mut registers = vec![String::new(); numbers.len()];
    for (&register, &number) in numbers {
        registers[number] = flow.name(register).to_owned();
    }
    let mut watch = Watch { registers, instructions: HashMap::new() };
    if numbers.is_empty() {
        return watch;
    }
    for (at, instruction) in code.iter_mut().enumerate() {
        let reads: Vec<WatchedRead> = flow
            .reads(at)
            .iter()
            .filter_map(|read| {
                let (class, slot) = flow.place(*read);
                numbers.get(read).map(|&number| WatchedRead { number, class, slot })
            })
            .collect();
        let writes = flow.writes(at).iter().filter_map(|write| numbers.get(write).copied());
        let writes: Vec<usize> = writes.collect();
        if !reads.is_empty() || !writes.is_empty() {
            instruction.watched = true;
            let moves = moves(&instruction.op);
            watch.instructions.insert(at as u32, WatchedInstruction { reads, writes, moves });
        }
    }
    watch
}
