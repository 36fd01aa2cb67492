//! Which registers a thread may use before it writes to them, on some path through the kernel.
//! Only those are watched while the kernel runs.

use std::collections::{BTreeMap, HashMap};

use super::carry::{self, Key};
use super::liveness::Flow;
use super::set::Set;
use crate::program::{
    DeviceFunction, Instruction, Op, Part, RegisterClass, TRUE, Test, Un32, Watch,
    WatchedInstruction, WatchedRegister, WatchedShuffle,
};

/// What happens to registers in an instruction, by their numbers in the flow.
struct Step {
    /// The predicate of the guard.
    guard: Option<usize>,
    /// Read, and needed as a whole.
    uses: Vec<usize>,
    /// Written, with the parts that go there.
    writes: Vec<(usize, Vec<Part<usize>>)>,
    /// Written with what other lanes hold, which may not be there.
    foreign: Option<Foreign>,
}

/// What a shuffle moves.
struct Foreign {
    target: usize,
    value: Option<usize>,
    /// Whether the members are all lanes, as a constant says.
    all: bool,
}

/// The values of registers that hold one and the same in all threads.
struct Constants(HashMap<Key, u64>);

impl Constants {
    /// Constants of the program, and the registers that nothing else is moved to.
    fn find(flow: &Flow, code: &[Instruction], given: HashMap<Key, u64>) -> Self {
        let mut found: HashMap<usize, Option<u64>> = HashMap::new();
        for (at, instruction) in code.iter().enumerate() {
            let value = match instruction.op {
                Op::Un32(Un32::Copy, _, a) => given.get(&(RegisterClass::Word, a)),
                Op::Copy64(_, a) => given.get(&(RegisterClass::Double, a)),
                _ => None,
            };
            for &write in flow.writes(at) {
                let known = found.entry(write).or_insert(value.copied());
                if *known != value.copied() {
                    *known = None;
                }
            }
        }
        let found = found.into_iter().filter_map(|(at, value)| Some((flow.place(at), value?)));
        Self(found.chain(given).collect())
    }

    fn value(&self, register: Key) -> Option<u64> {
        self.0.get(&register).copied()
    }
}

impl Step {
    fn of(flow: &Flow, instruction: &Instruction, at: usize, constants: &Constants) -> Self {
        let Test { predicate, .. } = instruction.guard;
        let guard = flow.known((RegisterClass::Predicate, predicate)).filter(|_| predicate != TRUE);
        let mut uses: Vec<usize> = flow.reads(at).to_vec();
        uses.retain(|&read| Some(read) != guard);
        let written = flow.writes(at);
        let plain = |uses| {
            let writes = written.iter().map(|&write| (write, Vec::new())).collect();
            Self { guard, uses, writes, foreign: None }
        };
        if let Op::Shuffle(shuffle) = &instruction.op {
            let known = |slot| flow.known((RegisterClass::Word, slot));
            let needed = [shuffle.lane, shuffle.clamp, shuffle.members].map(known);
            let value = known(shuffle.value);
            uses.retain(|&read| Some(read) != value || needed.contains(&Some(read)));
            let Some(target) = known(shuffle.target) else { return plain(uses) };
            let members = constants.value((RegisterClass::Word, shuffle.members));
            let all = members == Some(u32::MAX.into());
            let mut step = plain(uses);
            step.writes.retain(|&(write, _)| write != target);
            step.foreign = Some(Foreign { target, value, all });
            return step;
        }
        let derived = || carry::moves(&instruction.op, &|register| constants.value(register));
        let moves = flow.moves_at(at).cloned().or_else(derived);
        let to: Option<Vec<usize>> =
            moves.iter().flatten().map(|(register, _)| flow.known(*register)).collect();
        // Where the operation is one of several, the others need all that the first one reads.
        let (Some(moves), Some(to)) = (moves, to.filter(|to| to == written)) else {
            return plain(uses);
        };
        // Besides what it moves, it reads predicates.
        uses.retain(|&read| flow.place(read).0 == RegisterClass::Predicate);
        let parts = |parts: Vec<Part<Key>>| {
            parts.iter().filter_map(|part| Some(part.with(flow.known(part.from)?))).collect()
        };
        let writes = to.into_iter().zip(moves).map(|(at, (_, from))| (at, parts(from))).collect();
        Self { guard, uses, writes, foreign: None }
    }

    /// The registers that it reads.
    fn reads(&self) -> impl Iterator<Item = usize> {
        let parts = self.writes.iter().flat_map(|(_, parts)| parts).map(|part| part.from);
        let foreign = self.foreign.iter().filter_map(|foreign| foreign.value);
        self.guard.into_iter().chain(self.uses.iter().copied()).chain(parts).chain(foreign)
    }

    /// What is written after it, where `written` was before. Guarded writes leave the other threads
    /// with what they had.
    fn apply(&self, guarded: bool, written: &mut Set) {
        let holds = |parts: &[Part<usize>]| parts.iter().all(|part| written.has(part.from));
        let mut after: Vec<(usize, bool)> =
            self.writes.iter().map(|(write, parts)| (*write, holds(parts))).collect();
        after.extend(self.foreign.as_ref().map(|foreign| {
            (foreign.target, foreign.all && foreign.value.is_none_or(|value| written.has(value)))
        }));
        for (write, holds) in after {
            match holds {
                true if guarded => {}
                true => written.insert(write),
                false => written.remove(write),
            }
        }
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

/// Finds the registers to watch, and marks the instructions that read or write them.
pub(super) fn watch(
    flow: &Flow,
    code: &mut [Instruction],
    entry: u32,
    functions: &[DeviceFunction],
    constants: HashMap<Key, u64>,
) -> Watch {
    let count = flow.count();
    let constants = Constants::find(flow, code, constants);
    let step = |at: usize| Step::of(flow, &code[at], at, &constants);
    let steps: Vec<Step> = (0..code.len()).map(step).collect();
    let entries: Vec<usize> =
        functions.iter().map(|f| f.entry as usize).chain([entry as usize]).collect();
    let blocks = blocks(code, &entries);
    let none = Set::none_of(count);
    let all = Set::all_of(count);
    let mut before: BTreeMap<usize, Set> = blocks.keys().map(|&at| (at, all.clone())).collect();
    for entry in entries.into_iter().filter(|entry| blocks.contains_key(entry)) {
        before.insert(entry, none.clone());
    }
    let ends: Vec<usize> = blocks.keys().copied().skip(1).chain([code.len()]).collect();
    let ends: HashMap<usize, usize> = blocks.keys().copied().zip(ends).collect();
    let mut open: Vec<usize> = blocks.keys().copied().rev().collect();
    while let Some(start) = open.pop() {
        let mut written = before[&start].clone();
        (start..ends[&start]).for_each(|at| steps[at].apply(flow.is_guarded(at), &mut written));
        for next in &blocks[&start] {
            let changed = before.get_mut(next).is_some_and(|known| known.keep(&written));
            if changed && !open.contains(next) {
                open.push(*next);
            }
        }
    }
    let mut numbers: BTreeMap<usize, usize> = BTreeMap::new();
    for (start, written) in &mut before {
        for (step, at) in steps[*start..ends[start]].iter().zip(*start..) {
            // Formals have no names: calls write to them.
            let open = |read: &usize| !written.has(*read) && !flow.name(*read).is_empty();
            for read in step.reads().filter(open) {
                let next = numbers.len();
                numbers.entry(read).or_insert(next);
            }
            step.apply(flow.is_guarded(at), written);
        }
    }
    mark(flow, code, steps, &numbers)
}

/// The watch on some registers, which `numbers` gives numbers.
fn mark(
    flow: &Flow,
    code: &mut [Instruction],
    steps: Vec<Step>,
    numbers: &BTreeMap<usize, usize>,
) -> Watch {
    let mut watch = Watch::default();
    if numbers.is_empty() {
        return watch;
    }
    let mut registers: Vec<(usize, usize)> = numbers.iter().map(|(&at, &n)| (n, at)).collect();
    registers.sort_unstable();
    watch.registers = registers
        .into_iter()
        .map(|(_, at)| WatchedRegister { name: flow.name(at).to_owned(), bits: flow.bits(at) })
        .collect();
    let number = |register: usize| numbers.get(&register).copied();
    for ((at, instruction), step) in code.iter_mut().enumerate().zip(steps) {
        let parts = |parts: &[Part<usize>]| {
            parts.iter().filter_map(|part| Some(part.with(number(part.from)?))).collect()
        };
        let writes = step.writes.iter();
        let writes: Vec<_> =
            writes.filter_map(|(write, from)| Some((number(*write)?, parts(from)))).collect();
        let uses: Vec<usize> = step.uses.iter().filter_map(|&read| number(read)).collect();
        let guard = step.guard.and_then(number);
        if let (Op::Shuffle(shuffle), Some(foreign)) = (&mut instruction.op, &step.foreign) {
            shuffle.watched = number(foreign.target)
                .map(|target| WatchedShuffle { target, value: foreign.value.and_then(number) });
        }
        if guard.is_some() || !uses.is_empty() || !writes.is_empty() {
            instruction.watched = true;
            watch.instructions.insert(at as u32, WatchedInstruction { guard, uses, writes });
        }
    }
    watch
}
