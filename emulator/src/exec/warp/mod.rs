//! A warp: its registers, its divergent parts, and the loop that runs them.
//!
//! Threads of a warp that took different ways are kept as a list of parts, each a place and a mask.
//! The part at the lowest place runs first, and parts that meet are merged. A part that has run for
//! long while others could run gives way, so that threads that wait for each other make progress.

mod builtin;
mod call;
mod collective;
mod execute;
mod print;
mod special;
mod spin;

use self::call::Call;
use self::spin::Spin;
use crate::exec::alu::lanes::{self, LANES, V32, V64, Wide};
use crate::exec::context::*;
use crate::exec::memory::access::Pointers;
use crate::exec::memory::copy::Copies;
use crate::fault::FaultKind;
use crate::program::*;

/// Instructions that a part runs before it gives way to the others of its warp.
const PART_QUANTUM: u32 = 4096;
/// Instructions that the watchdog takes a sleep for.
const SLEEP: u64 = 256;

/// Threads of a warp at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    /// Whether it waits at a warp-wide instruction for threads that are elsewhere.
    pub(crate) waiting: bool,
    /// Instructions run while others could.
    ran: u32,
}

impl Part {
    pub(crate) fn at(pc: u32, mask: u32) -> Self {
        Self { pc, mask, waiting: false, ran: 0 }
    }
}

/// Why a warp stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// All threads are at a barrier of the block; the place of its first part.
    Barrier(u32),
    /// The budget is used up.
    Quantum,
    /// All threads that could run are asleep: they may wait for others.
    Sleep,
    /// All threads have exited.
    Done,
}

/// What the loop does after an instruction.
pub(crate) enum Next {
    /// The following instruction.
    Step,
    /// Picks a part anew.
    Reselect,
    /// The part stays where it is until others join it.
    Wait,
    /// The following instruction, after others have run.
    Sleep,
    Pause(Pause),
}

/// A warp.
pub(crate) struct Warp {
    pub(crate) r: Vec<V32>,
    pub(crate) q: Vec<V64>,
    pub(crate) p: Vec<u32>,
    pub(crate) parts: Vec<Part>,
    /// Lanes that have a thread.
    pub(crate) present: u32,
    /// Lanes whose thread has exited.
    pub(crate) exited: u32,
    pub(crate) index: u32,
    pub(crate) copies: Copies,
    pub(crate) local: Vec<u128>,
    /// Which bytes of it were written to, where the sanitizer is on.
    pub(crate) local_shadow: Vec<u8>,
    /// Bits of watched registers that nothing wrote, by the registers' numbers in the watch.
    pub(crate) unwritten: Vec<[u64; LANES]>,
    /// Calls that each lane has to return from.
    pub(crate) calls: [Vec<Call>; LANES],
    pub(crate) last_allocation: usize,
    /// Host addresses of the access that runs.
    pub(crate) pointers: Pointers,
    /// Warp instructions run.
    pub(crate) ran: u64,
    /// How often it has read a clock.
    pub(crate) readings: u64,
    pub(crate) current: usize,
    pub(crate) spin: Spin,
}

impl Warp {
    /// A warp with nothing set; `reset` makes it ready.
    pub(crate) fn new() -> Self {
        Self {
            r: Vec::new(),
            q: Vec::new(),
            p: Vec::new(),
            parts: Vec::new(),
            present: 0,
            exited: 0,
            index: 0,
            copies: Copies::default(),
            local: Vec::new(),
            local_shadow: Vec::new(),
            unwritten: Vec::new(),
            calls: [const { Vec::new() }; LANES],
            last_allocation: 0,
            pointers: [std::ptr::null_mut(); LANES],
            ran: 0,
            readings: 0,
            current: 0,
            spin: Spin::default(),
        }
    }

    /// Makes it warp `index` of a block, at the kernel's start.
    pub(crate) fn reset(&mut self, context: &Context, block: [u32; 3], index: u32) {
        let kernel = context.kernel;
        self.r.clear();
        self.r.resize(kernel.r_count, V32([u32::MAX; LANES]));
        self.q.clear();
        self.q.resize(kernel.q_count, V64([u64::MAX; LANES]));
        self.p.clear();
        self.p.resize(kernel.p_count, 0xaaaa_aaaa);
        self.p[TRUE as usize] = u32::MAX;
        self.p[FALSE as usize] = 0;
        for &(value, slot) in &kernel.constants32 {
            self.r[slot as usize] = V32([value; LANES]);
        }
        for &(value, slot) in &kernel.constants64 {
            self.q[slot as usize] = V64([value; LANES]);
        }
        let [x, y, z] = context.block;
        let threads = x * y * z;
        let first = index * LANES as u32;
        self.present = u32::MAX >> (LANES as u32 - (threads - first).min(LANES as u32));
        self.exited = 0;
        self.index = index;
        self.ran = 0;
        self.current = 0;
        self.spin = Spin::default();
        for &(special, slot) in &kernel.specials {
            let mut values = [0; LANES];
            for (lane, value) in values.iter_mut().enumerate() {
                *value = special::value(special, context, block, first + lane as u32);
            }
            self.r[slot as usize] = V32(values);
        }
        self.parts.clear();
        self.parts.push(Part::at(kernel.entry, self.present));
        self.calls.iter_mut().for_each(Vec::clear);
        self.copies.reset();
        self.local.clear();
        self.local.resize(context.local_stride() * LANES / 16, u128::MAX);
        self.local_shadow.clear();
        self.unwritten.clear();
        if context.config.sanitizer {
            self.local_shadow.resize(context.local_stride() * LANES, 0);
            let watched = kernel.watch.registers.iter();
            self.unwritten.extend(watched.map(|register| [register.bits; LANES]));
        }
        self.last_allocation = 0;
    }

    /// Threads that have not exited.
    pub(crate) fn live(&self) -> u32 {
        self.present & !self.exited
    }

    /// The place of the part that ran last.
    pub(crate) fn current_pc(&self) -> u32 {
        self.parts.get(self.current).or(self.parts.first()).map_or(0, |part| part.pc)
    }

    /// The value of a source in one lane.
    #[inline(always)]
    pub(crate) fn get(&self, source: Source, lane: usize) -> u64 {
        match source {
            Source::R(r) => u64::from(self.r[r as usize].0[lane]),
            Source::Q(q) => self.q[q as usize].0[lane],
            Source::P(test) => u64::from(self.test(test) >> lane & 1),
        }
    }

    /// What a target holds in one lane.
    pub(crate) fn held(&self, target: Target, lane: usize) -> u64 {
        match target {
            Target::R(r, _) => u64::from(self.r[r as usize].0[lane]),
            Target::Q(q) => self.q[q as usize].0[lane],
            Target::P(p) => u64::from(self.p[p as usize] >> lane & 1),
            Target::Nowhere => 0,
        }
    }

    /// Writes a target in one lane.
    #[inline(always)]
    pub(crate) fn put(&mut self, target: Target, lane: usize, value: u64) {
        match target {
            Target::R(r, 32) => self.r[r as usize].0[lane] = value as u32,
            Target::R(r, bits) => self.r[r as usize].0[lane] = value as u32 & ((1 << bits) - 1),
            Target::Q(q) => self.q[q as usize].0[lane] = value,
            Target::P(p) => {
                let bit = 1 << lane;
                let predicate = &mut self.p[p as usize];
                *predicate = *predicate & !bit | if value != 0 { bit } else { 0 };
            }
            Target::Nowhere => {}
        }
    }

    /// Writes a register in the lanes of a mask.
    #[inline(always)]
    pub(crate) fn put32(&mut self, wide: Wide, d: R, values: &V32, mask: u32) {
        lanes::put32(wide, &mut self.r[d as usize], values, mask);
    }

    /// Writes a register in the lanes of a mask.
    #[inline(always)]
    pub(crate) fn put64(&mut self, wide: Wide, d: Q, values: &V64, mask: u32) {
        lanes::put64(wide, &mut self.q[d as usize], values, mask);
    }

    /// Writes a predicate in the lanes of a mask.
    #[inline(always)]
    pub(crate) fn put_bits(&mut self, p: P, bits: u32, mask: u32) {
        let p = &mut self.p[p as usize];
        *p = *p & !mask | bits & mask;
    }

    /// The lanes for which a test holds.
    #[inline(always)]
    pub(crate) fn test(&self, test: Test) -> u32 {
        let bits = self.p[test.predicate as usize];
        if test.negated { !bits } else { bits }
    }

    /// Merges parts that met, and picks the one to run.
    fn select(&mut self) -> Option<usize> {
        let mut at = 0;
        while at < self.parts.len() {
            let mut other = at + 1;
            while other < self.parts.len() {
                if self.parts[other].pc == self.parts[at].pc {
                    let joined = self.parts.swap_remove(other);
                    self.parts[at].mask |= joined.mask;
                    self.parts[at].waiting = false;
                    self.parts[at].ran = self.parts[at].ran.min(joined.ran);
                } else {
                    other += 1;
                }
            }
            at += 1;
        }
        for _ in 0..2 {
            let ready = self.parts.iter().enumerate();
            let ready = ready.filter(|(_, part)| !part.waiting && part.ran < PART_QUANTUM);
            if let Some((at, _)) = ready.min_by_key(|(_, part)| part.pc) {
                return Some(at);
            }
            self.parts.iter_mut().for_each(|part| part.ran = 0);
        }
        None
    }

    /// Runs until all threads are at a barrier or have exited, or the budget is used up.
    pub(crate) fn run(
        &mut self,
        machine: &mut Machine,
        mut budget: u64,
    ) -> Result<Pause, Box<Stop>> {
        loop {
            if self.parts.is_empty() {
                return Ok(Pause::Done);
            }
            let Some(at) = self.select() else { return self.stuck(machine) };
            self.current = at;
            let alone = self.parts.len() == 1;
            let pc = self.parts[at].pc;
            let others = self.parts.iter().map(|part| part.pc);
            let limit = others.filter(|&other| other > pc).min().unwrap_or(u32::MAX);
            let quantum = if alone { budget } else { budget.min(u64::from(PART_QUANTUM)) };
            let (ran, pause) = self.run_part(machine, at, limit, quantum)?;
            self.ran += ran;
            machine.counters.instructions += ran;
            budget -= ran;
            if let Some(part) = self.parts.get_mut(at).filter(|_| !alone) {
                part.ran = part.ran.saturating_add(ran as u32);
            }
            if let Some(pause) = pause {
                return Ok(pause);
            }
            if budget == 0 {
                return Ok(Pause::Quantum);
            }
        }
    }

    /// Runs one part up to a place, a branch that splits it, or the end of the quantum.
    fn run_part(
        &mut self,
        machine: &mut Machine,
        at: usize,
        limit: u32,
        quantum: u64,
    ) -> Result<(u64, Option<Pause>), Box<Stop>> {
        let context = machine.context;
        let code = &context.kernel.code[..];
        let alone = self.parts.len() == 1;
        let active = self.parts[at].mask;
        let mut pc = self.parts[at].pc;
        machine.enter(pc);
        let mut left = quantum;
        let pause = loop {
            if left == 0 {
                break None;
            }
            left -= 1;
            let instruction = &code[pc as usize];
            let mask = active & self.test(instruction.guard);
            if instruction.watched
                && let Err(stop) = self.watch(machine, pc, active, mask)
            {
                self.parts[at].pc = pc;
                return Err(stop);
            }
            let next = match &instruction.op {
                Op::Branch(target) => {
                    if mask == 0 {
                        Next::Step
                    } else if mask == active {
                        machine.leave(pc + 1);
                        if *target <= pc && self.spin.turns() {
                            let pause = self.sleep(at, *target);
                            return Ok((quantum - left, pause));
                        }
                        pc = *target;
                        machine.enter(pc);
                        if alone {
                            continue;
                        }
                        break None;
                    } else {
                        self.parts[at].mask = active & !mask;
                        self.parts.push(Part::at(*target, mask));
                        pc += 1;
                        break None;
                    }
                }
                Op::Exit if mask == 0 => Next::Step,
                Op::Exit => {
                    if let Err(stop) = self.exit(machine, at, mask) {
                        self.parts[at].pc = pc;
                        return Err(stop);
                    }
                    if active == mask {
                        machine.leave(pc + 1);
                        return Ok((quantum - left, None));
                    }
                    pc += 1;
                    break None;
                }
                op => match self.execute(machine, op, pc, active, mask) {
                    Ok(next) => next,
                    Err(stop) => {
                        self.parts[at].pc = pc;
                        return Err(stop);
                    }
                },
            };
            match next {
                Next::Step => {
                    pc += 1;
                    if pc >= limit {
                        break None;
                    }
                }
                Next::Reselect => {
                    // The instruction placed the parts itself.
                    machine.leave(pc + 1);
                    return Ok((quantum - left, None));
                }
                Next::Wait => {
                    machine.leave(pc + 1);
                    self.parts[at].waiting = true;
                    self.parts[at].pc = pc;
                    return Ok((quantum - left, None));
                }
                Next::Sleep => {
                    machine.leave(pc + 1);
                    let pause = self.sleep(at, pc + 1);
                    return Ok((quantum - left, pause));
                }
                Next::Pause(pause) => {
                    machine.leave(pc + 1);
                    self.parts[at].pc = pc;
                    return Ok((quantum - left, Some(pause)));
                }
            }
        };
        machine.leave(pc);
        self.parts[at].pc = pc;
        Ok((quantum - left, pause))
    }

    /// Lets others run before a part goes on at a place.
    fn sleep(&mut self, at: usize, pc: u32) -> Option<Pause> {
        self.ran += SLEEP;
        let part = &mut self.parts[at];
        (part.pc, part.ran) = (pc, PART_QUANTUM);
        let mut others = self.parts.iter().enumerate();
        let awake = others.any(|(other, part)| other != at && !part.waiting);
        (!awake).then_some(Pause::Sleep)
    }

    /// Ends threads; what waits for them is looked at again.
    fn exit(&mut self, machine: &mut Machine, at: usize, mask: u32) -> Result<(), Box<Stop>> {
        if let (true, Some((lane, pc))) =
            (machine.context.config.sanitizer, self.copies.under_way(mask))
        {
            let place = machine.context.kernel.where_is(pc);
            let detail = format!("the thread exits and has not waited for its copy at {place}");
            return Err(Stop::lane(FaultKind::UnawaitedCopy, lane, detail));
        }
        self.exited |= mask;
        self.copies.wait_all(machine, self.index, mask);
        self.parts[at].mask &= !mask;
        if self.parts[at].mask == 0 {
            self.parts.swap_remove(at);
        }
        self.parts.iter_mut().for_each(|part| part.waiting = false);
        Ok(())
    }

    /// Whether all lanes that an instruction needs are here; if not, the part waits.
    pub(crate) fn gathered(&self, needed: u32, mask: u32) -> bool {
        needed & !self.exited & !mask == 0
    }

    /// No part can run: either all threads are at one barrier of the block, or some are missing.
    fn stuck(&mut self, machine: &Machine) -> Result<Pause, Box<Stop>> {
        let code = &machine.context.kernel.code;
        let barrier = |part: &Part| match &code[part.pc as usize].op {
            Op::Barrier(barrier) => Some(barrier),
            _ => None,
        };
        let parts = &self.parts;
        if parts.iter().all(|part| barrier(part).is_some_and(|barrier| !barrier.aligned)) {
            return Ok(Pause::Barrier(parts[0].pc));
        }
        let at = (0..parts.len()).min_by_key(|&at| parts[at].pc).unwrap_or(0);
        let part = parts[at];
        let elsewhere: Vec<String> = parts
            .iter()
            .filter(|other| other.pc != part.pc)
            .map(|other| {
                let place = machine.context.kernel.ptx_line(other.pc);
                format!("lanes {} wait at PTX line {place}", lanes_of(other.mask))
            })
            .collect();
        let kind = match barrier(&part) {
            Some(_) => FaultKind::DivergentBarrier,
            None => FaultKind::MissingLanes,
        };
        let mut detail = format!(
            "lanes {} wait here for lanes that do not come (exited: {})",
            lanes_of(part.mask),
            lanes_of(self.exited)
        );
        if !elsewhere.is_empty() {
            detail = format!("{detail}; {}", elsewhere.join("; "));
        }
        self.current = at;
        Err(Stop::lane(kind, part.mask.trailing_zeros(), detail))
    }

    /// Moves all parts past the barrier that released them.
    pub(crate) fn pass_barrier(&mut self) {
        for part in &mut self.parts {
            part.pc += 1;
            part.waiting = false;
        }
    }
}
