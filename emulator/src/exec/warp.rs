//! A warp: its registers, its divergent parts, and the loop that runs them.
//!
//! Threads of a warp that took different ways are kept as a list of parts, each a place and a mask.
//! The part at the lowest place runs first, and parts that meet are merged. A part that has run for
//! long while others could run gives way, so that threads that wait for each other make progress.

use super::context::*;
use super::lanes::{self, LANES, V32, V64, Wide};
use super::op::*;
use super::scalar::evaluate;
use super::copy::Copies;
use crate::fault::FaultKind;

/// Instructions that a part runs before it gives way to the others of its warp.
const PART_QUANTUM: u32 = 4096;

/// Threads of a warp at one place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    /// Whether it waits at a warp-wide instruction for threads that are elsewhere.
    pub(crate) waiting: bool,
    /// Instructions run while others could.
    ran: u32,
}

/// Why a warp stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// All threads are at a barrier of the block; the place of its first part.
    Barrier(u32),
    /// The budget is used up.
    Quantum,
    /// All threads have exited.
    Done,
}

/// What the loop does after an instruction.
enum Next {
    /// The following instruction.
    Step,
    /// Picks a part anew.
    Reselect,
    /// The part stays where it is until others join it.
    Wait,
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
    pub(crate) last_allocation: usize,
    /// Warp instructions run.
    pub(crate) ran: u64,
    current: usize,
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
            last_allocation: 0,
            ran: 0,
            current: 0,
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
        for &(special, slot) in &kernel.specials {
            let mut values = [0; LANES];
            for (lane, value) in values.iter_mut().enumerate() {
                *value = special.value(context, block, first + lane as u32);
            }
            self.r[slot as usize] = V32(values);
        }
        self.parts.clear();
        self.parts.push(Part { pc: 0, mask: self.present, waiting: false, ran: 0 });
        self.copies.reset();
        self.local.clear();
        self.local.resize(kernel.local_stride() * LANES / 16, u128::MAX);
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
        let d = &mut self.r[d as usize];
        *d = if mask == u32::MAX { *values } else { lanes::select32(wide, mask, values, d) };
    }

    /// Writes a register in the lanes of a mask.
    #[inline(always)]
    pub(crate) fn put64(&mut self, wide: Wide, d: Q, values: &V64, mask: u32) {
        let d = &mut self.q[d as usize];
        *d = if mask == u32::MAX { *values } else { lanes::select64(wide, mask, values, d) };
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
        let mut left = quantum;
        let pause = loop {
            if left == 0 {
                break None;
            }
            left -= 1;
            let instruction = &code[pc as usize];
            let mask = active & self.test(instruction.guard);
            let next = match &instruction.op {
                Op::Branch(target) => {
                    if mask == 0 {
                        Next::Step
                    } else if mask == active {
                        pc = *target;
                        if alone {
                            continue;
                        }
                        break None;
                    } else {
                        self.parts[at].mask = active & !mask;
                        self.parts.push(Part { pc: *target, mask, waiting: false, ran: 0 });
                        pc += 1;
                        break None;
                    }
                }
                Op::Exit if mask == 0 => Next::Step,
                Op::Exit => {
                    self.exit(machine, at, mask);
                    if active == mask {
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
                    return Ok((quantum - left, None));
                }
                Next::Wait => {
                    self.parts[at].waiting = true;
                    break None;
                }
                Next::Pause(pause) => break Some(pause),
            }
        };
        self.parts[at].pc = pc;
        Ok((quantum - left, pause))
    }

    /// Ends threads; what waits for them is looked at again.
    fn exit(&mut self, machine: &mut Machine, at: usize, mask: u32) {
        self.exited |= mask;
        self.copies.wait_all(machine, mask);
        self.parts[at].mask &= !mask;
        if self.parts[at].mask == 0 {
            self.parts.swap_remove(at);
        }
        self.parts.iter_mut().for_each(|part| part.waiting = false);
    }

    /// Whether all lanes that an instruction needs are here; if not, the part waits.
    fn gathered(&self, needed: u32, mask: u32) -> bool {
        needed & !self.exited & !mask == 0
    }

    /// Executes one instruction other than a plain branch or an exit.
    #[inline(always)]
    fn execute(
        &mut self,
        machine: &mut Machine,
        op: &Op,
        pc: u32,
        active: u32,
        mask: u32,
    ) -> Result<Next, Box<Stop>> {
        let wide = machine.context.wide;
        match *op {
            Op::Un32(op, d, a) => {
                let value = lanes::un32(wide, op, &self.r[a as usize]);
                self.put32(wide, d, &value, mask);
            }
            Op::Bin32(op, d, a, b) => {
                let value = lanes::bin32(wide, op, &self.r[a as usize], &self.r[b as usize]);
                self.put32(wide, d, &value, mask);
            }
            Op::Tri32(op, d, a, b, c) => {
                let (a, b) = (&self.r[a as usize], &self.r[b as usize]);
                let value = lanes::tri32(wide, op, a, b, &self.r[c as usize]);
                self.put32(wide, d, &value, mask);
            }
            Op::Bin64(op, d, a, b) => {
                let value = lanes::bin64(wide, op, &self.q[a as usize], &self.q[b as usize]);
                self.put64(wide, d, &value, mask);
            }
            Op::Copy64(d, a) => {
                let value = self.q[a as usize];
                self.put64(wide, d, &value, mask);
            }
            Op::Shl64(d, a, b) => {
                let value = lanes::shl64(wide, &self.q[a as usize], &self.r[b as usize]);
                self.put64(wide, d, &value, mask);
            }
            Op::Shr64 { signed, d, a, b } => {
                let value = lanes::shr64(wide, signed, &self.q[a as usize], &self.r[b as usize]);
                self.put64(wide, d, &value, mask);
            }
            Op::Fma64(d, a, b, c) => {
                let (a, b) = (&self.q[a as usize], &self.q[b as usize]);
                let value = lanes::fma64(wide, a, b, &self.q[c as usize]);
                self.put64(wide, d, &value, mask);
            }
            Op::MulWide { signed, d, a, b } => {
                let (a, b) = (&self.r[a as usize], &self.r[b as usize]);
                let value = lanes::mul_wide(wide, signed, a, b);
                self.put64(wide, d, &value, mask);
            }
            Op::MadWide { signed, d, a, b, c } => {
                let (a, b) = (&self.r[a as usize], &self.r[b as usize]);
                let value = lanes::mad_wide(wide, signed, a, b, &self.q[c as usize]);
                self.put64(wide, d, &value, mask);
            }
            Op::Extend { signed, d, a } => {
                let value = lanes::extend(wide, signed, &self.r[a as usize]);
                self.put64(wide, d, &value, mask);
            }
            Op::Truncate(d, a) => {
                let value = lanes::truncate(wide, 0, &self.q[a as usize]);
                self.put32(wide, d, &value, mask);
            }
            Op::Pack64 { d, low, high } => {
                let value = lanes::pack64(wide, &self.r[low as usize], &self.r[high as usize]);
                self.put64(wide, d, &value, mask);
            }
            Op::Unpack64 { low, high, a } => {
                for (shift, target) in [(0, low), (32, high)] {
                    if let Target::R(d, _) = target {
                        let value = lanes::truncate(wide, shift, &self.q[a as usize]);
                        self.put32(wide, d, &value, mask);
                    }
                }
            }
            Op::Select32 { d, a, b, test } => {
                let bits = self.test(test);
                let (a, b) = (&self.r[a as usize], &self.r[b as usize]);
                let value = lanes::select32(wide, bits, a, b);
                self.put32(wide, d, &value, mask);
            }
            Op::Select64 { d, a, b, test } => {
                let bits = self.test(test);
                let (a, b) = (&self.q[a as usize], &self.q[b as usize]);
                let value = lanes::select64(wide, bits, a, b);
                self.put64(wide, d, &value, mask);
            }
            Op::Compare32(op, d, a, b) => {
                let bits = lanes::compare32(wide, op, &self.r[a as usize], &self.r[b as usize]);
                self.put_bits(d, bits, mask);
            }
            Op::Compare64(op, d, a, b) => {
                let bits = lanes::compare64(wide, op, &self.q[a as usize], &self.q[b as usize]);
                self.put_bits(d, bits, mask);
            }
            Op::Logic(logic, d, a, b) => {
                let (a, b) = (self.test(a), self.test(b));
                let bits = match logic {
                    Logic::And => a & b,
                    Logic::Or => a | b,
                    Logic::Xor => a ^ b,
                };
                self.put_bits(d, bits, mask);
            }
            Op::Load(ref access) if mask != 0 => self.load(machine, access, mask)?,
            Op::Store(ref access) if mask != 0 => self.store(machine, access, mask)?,
            Op::Load(_) | Op::Store(_) | Op::Nothing => {}
            Op::Mma(ref mma) => {
                if !self.all_here(op, mask)? {
                    return Ok(Next::Wait);
                }
                self.mma(machine, mma);
            }
            Op::LoadMatrix(ref load) => {
                if !self.all_here(op, mask)? {
                    return Ok(Next::Wait);
                }
                self.load_matrix(machine, load)?;
            }
            Op::Copy(ref copy) if mask != 0 => self.copy_async(machine, copy, mask)?,
            Op::Copy(_) => {}
            Op::CopyCommit => self.copies.commit(mask),
            Op::CopyWait(pending) => self.copies.wait(machine, mask, pending),
            Op::CopyWaitAll => self.copies.wait_all(machine, mask),
            _ => return self.execute_rare(machine, op, pc, active, mask),
        }
        Ok(Next::Step)
    }

    /// Whether all 32 threads are at an instruction that needs them all.
    fn all_here(&self, _op: &Op, mask: u32) -> Result<bool, Box<Stop>> {
        if mask == u32::MAX {
            return Ok(true);
        }
        if self.live() != u32::MAX {
            let detail = format!(
                "it needs all 32 threads of the warp; lanes {} have exited or never were",
                lanes_of(!self.live())
            );
            return Err(Stop::new(FaultKind::MissingLanes, detail));
        }
        Ok(false)
    }

    #[inline(never)]
    fn execute_rare(
        &mut self,
        machine: &mut Machine,
        op: &Op,
        pc: u32,
        active: u32,
        mask: u32,
    ) -> Result<Next, Box<Stop>> {
        match op {
            Op::Scalar(op) => self.scalar(op, mask),
            Op::Carry(op) => self.carry(op, mask),
            Op::Clock(clock, target) => self.clock(machine, *clock, *target, mask),
            Op::Atomic(atomic) if mask != 0 => self.atomic(machine, atomic, mask)?,
            Op::Fence => std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst),
            Op::Shuffle(shuffle) if mask != 0 => {
                if !self.members_here(shuffle.members, mask)? {
                    return Ok(Next::Wait);
                }
                self.shuffle(machine, shuffle, mask);
            }
            Op::Collective(op) if mask != 0 => {
                if !self.members_here(op.members, mask)? {
                    let barrier = matches!(op.collective, Collective::Barrier);
                    if barrier && self.meet_at_warp_barrier(machine, op, pc, mask) {
                        return Ok(Next::Reselect);
                    }
                    return Ok(Next::Wait);
                }
                self.collective(op, mask);
            }
            Op::ActiveMask(d) => {
                let wide = machine.context.wide;
                self.put32(wide, *d, &V32([mask; LANES]), mask);
            }
            Op::Barrier(barrier) if mask != 0 => {
                if mask == self.live() {
                    return Ok(Next::Pause(Pause::Barrier(pc)));
                }
                if mask != active && barrier.aligned {
                    let detail = format!(
                        "lanes {} are switched off by its predicate",
                        lanes_of(active & !mask)
                    );
                    return Err(Stop::new(FaultKind::DivergentBarrier, detail));
                }
                if mask != active {
                    // The lanes that are switched off go on without the others.
                    let current = self.current;
                    self.parts[current] = Part { pc, mask, waiting: true, ran: 0 };
                    let mask = active & !mask;
                    self.parts.push(Part { pc: pc + 1, mask, waiting: false, ran: 0 });
                    return Ok(Next::Reselect);
                }
                return Ok(Next::Wait);
            }
            Op::BranchIndexed(branch) if mask != 0 => {
                self.branch_indexed(branch, pc, active, mask)?;
                return Ok(Next::Reselect);
            }
            Op::Builtin(builtin) if mask != 0 => self.builtin(machine, builtin, mask)?,
            Op::Trap if mask != 0 => {
                let lane = mask.trailing_zeros();
                return Err(Stop::lane(FaultKind::Trap, lane, "the kernel executed a trap"));
            }
            // Memory and warp-wide instructions that every lane is switched off for.
            _ => {}
        }
        Ok(Next::Step)
    }

    /// Whether the members that a register names are all here.
    fn members_here(&self, members: R, mask: u32) -> Result<bool, Box<Stop>> {
        let named = &self.r[members as usize].0;
        let first = lanes(mask).next().unwrap_or(0);
        let members = named[first];
        if let Some(lane) = lanes(mask).find(|&lane| named[lane] != members) {
            let detail = format!("it names {:#010x} where lane {first} names {members:#010x}", named[lane]);
            return Err(Stop::lane(FaultKind::IllegalOperand, lane as u32, detail));
        }
        if mask & !members != 0 {
            let outside = mask & !members;
            let detail = format!(
                "lanes {} execute it but are not among its members {members:#010x}",
                lanes_of(outside)
            );
            return Err(Stop::lane(FaultKind::MissingLanes, outside.trailing_zeros(), detail));
        }
        Ok(self.gathered(members & self.present, mask))
    }

    /// Lets the members of a warp barrier meet that reached it at different places.
    fn meet_at_warp_barrier(
        &mut self,
        machine: &Machine,
        op: &CollectiveOp,
        pc: u32,
        mask: u32,
    ) -> bool {
        let code = &machine.context.kernel.code;
        let members = self.r[op.members as usize].0[mask.trailing_zeros() as usize];
        let at_barrier = |warp: &Self, part: &Part| {
            let Op::Collective(other) = &code[part.pc as usize].op else { return false };
            let lane = part.mask.trailing_zeros() as usize;
            part.waiting
                && matches!(other.collective, Collective::Barrier)
                && warp.r[other.members as usize].0[lane] == members
        };
        let waiting: Vec<usize> = (0..self.parts.len())
            .filter(|&at| at_barrier(self, &self.parts[at]))
            .collect();
        let here = waiting.iter().fold(mask, |all, &at| all | self.parts[at].mask);
        if !self.gathered(members & self.present, here) {
            return false;
        }
        for at in waiting {
            self.parts[at].waiting = false;
            self.parts[at].pc += 1;
        }
        let current = self.current;
        self.parts[current].pc = pc + 1;
        true
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
                let place = machine.context.kernel.place(other.pc);
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

    fn scalar(&mut self, op: &ScalarOp, mask: u32) {
        for lane in lanes(mask) {
            let sources = op.sources.map(|source| self.get(source, lane));
            let (value, second) = evaluate(&op.scalar, sources);
            self.put(op.target, lane, value);
            self.put(op.second, lane, u64::from(second));
        }
    }

    fn carry(&mut self, op: &CarryOp, mask: u32) {
        let low = |value: u128| value & (u128::MAX >> (128 - op.bits));
        for lane in lanes(mask) {
            let [a, b, c] = op.sources.map(|source| self.get(source, lane));
            let carry = u128::from(op.reads && self.p[op.flag as usize] >> lane & 1 != 0);
            let (unsigned_a, unsigned_b) = (low(u128::from(a)), low(u128::from(b)));
            let (value, out) = match op.kind {
                CarryKind::Sub => {
                    let taken = unsigned_b + carry;
                    (unsigned_a.wrapping_sub(taken), taken > unsigned_a)
                }
                kind => {
                    let product = unsigned_a.wrapping_mul(unsigned_b);
                    let (first, second) = match kind {
                        CarryKind::MadLow => (low(product), c),
                        CarryKind::MadHigh(false) => (product >> op.bits, c),
                        CarryKind::MadHigh(true) => {
                            let wide = |v| i128::from(super::scalar::signed(v, op.bits));
                            (low((wide(a) * wide(b) >> op.bits) as u128), c)
                        }
                        _ => (unsigned_a, b),
                    };
                    let sum = first + low(u128::from(second)) + carry;
                    (sum, sum >> op.bits != 0)
                }
            };
            self.put(op.target, lane, low(value) as u64);
            if op.writes {
                self.put(Target::P(op.flag), lane, u64::from(out));
            }
        }
    }

    fn clock(&mut self, machine: &Machine, clock: Clock, target: Target, mask: u32) {
        // Time in a kernel is what the warp has executed: the emulator knows no other.
        let cycles = self.ran + machine.counters.instructions;
        let value = match clock {
            Clock::Cycles | Clock::Nanoseconds => cycles,
            Clock::CyclesHigh => cycles >> 32,
        };
        lanes(mask).for_each(|lane| self.put(target, lane, value));
    }

    fn branch_indexed(
        &mut self,
        branch: &IndexedBranch,
        pc: u32,
        active: u32,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        let current = self.current;
        let mut stay = active & !mask;
        let indices = self.r[branch.index as usize].0;
        let mut left = mask;
        let mut first = None;
        while left != 0 {
            let lane = left.trailing_zeros() as usize;
            let index = indices[lane];
            let same = lanes(left).filter(|&l| indices[l] == index).fold(0, |all, l| all | 1 << l);
            left &= !same;
            let Some(&target) = branch.targets.get(index as usize) else {
                let detail = format!("index {index} of {} branch targets", branch.targets.len());
                return Err(Stop::lane(FaultKind::IllegalOperand, lane as u32, detail));
            };
            if stay == 0 && left == 0 && first.is_none() {
                first = Some(target);
                stay = same;
            } else {
                self.parts.push(Part { pc: target, mask: same, waiting: false, ran: 0 });
            }
        }
        self.parts[current].pc = first.unwrap_or(pc + 1);
        self.parts[current].mask = stay;
        if stay == 0 {
            self.parts.swap_remove(current);
        }
        Ok(())
    }

    /// Moves all parts past the barrier that released them.
    pub(crate) fn pass_barrier(&mut self) {
        for part in &mut self.parts {
            part.pc += 1;
            part.waiting = false;
        }
    }
}
