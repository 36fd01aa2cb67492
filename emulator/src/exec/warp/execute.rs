//! What each instruction does to a warp; the frequent ones first.

use super::{Next, Part, Pause, Warp};
use crate::exec::alu::lanes::{self, LANES, V32};
use crate::exec::alu::scalar::evaluate;
use crate::exec::context::*;
use crate::fault::FaultKind;
use crate::program::*;

/// Lanes that execute a warp-wide instruction, by whether all that they name are there.
struct Groups {
    ready: Vec<u32>,
    waiting: u32,
}

impl Warp {
    /// Executes one instruction other than a plain branch or an exit.
    #[inline(always)]
    pub(crate) fn execute(
        &mut self,
        machine: &mut Machine,
        op: &Op,
        pc: u32,
        active: u32,
        mask: u32,
    ) -> Result<Next, Box<Stop>> {
        let wide = machine.context.wide;
        match *op {
            Op::Un32(op, d, a) => lanes::un32(wide, op, &mut self.r, d, a, mask),
            Op::Bin32(op, d, a, b) => lanes::bin32(wide, op, &mut self.r, d, a, b, mask),
            Op::Tri32(op, d, a, b, c) => {
                lanes::tri32(wide, op, &mut self.r, d, [a, b, c], mask);
            }
            Op::Bin64(op, d, a, b) => lanes::bin64(wide, op, &mut self.q, d, a, b, mask),
            Op::Copy64(d, a) => {
                let value = self.q[a as usize];
                self.put64(wide, d, &value, mask);
            }
            Op::Shl64(d, a, b) => {
                lanes::shl64(wide, &mut self.q, d, a, &self.r[b as usize], mask);
            }
            Op::Shr64 { signed, d, a, b } => {
                lanes::shr64(wide, signed, &mut self.q, d, a, &self.r[b as usize], mask);
            }
            Op::Fma64(d, a, b, c) => lanes::fma64(wide, &mut self.q, d, [a, b, c], mask),
            Op::MulWide { signed, d, a, b } => {
                let (a, b) = (&self.r[a as usize], &self.r[b as usize]);
                lanes::mul_wide(wide, signed, &mut self.q[d as usize], a, b, mask);
            }
            Op::MadWide { signed, d, a, b, c } => {
                let (a, b) = (&self.r[a as usize], &self.r[b as usize]);
                lanes::mad_wide(wide, signed, &mut self.q, d, c, a, b, mask);
            }
            Op::Extend { signed, d, a } => {
                lanes::extend(wide, signed, &mut self.q[d as usize], &self.r[a as usize], mask);
            }
            Op::Truncate(d, a) => {
                lanes::truncate(wide, 0, &mut self.r[d as usize], &self.q[a as usize], mask);
            }
            Op::Pack64 { d, low, high } => {
                let (low, high) = (&self.r[low as usize], &self.r[high as usize]);
                lanes::pack64(wide, &mut self.q[d as usize], low, high, mask);
            }
            Op::Unpack64 { low, high, a } => {
                for (shift, target) in [(0, low), (32, high)] {
                    if let Target::R(d, _) = target {
                        let (d, a) = (&mut self.r[d as usize], &self.q[a as usize]);
                        lanes::truncate(wide, shift, d, a, mask);
                    }
                }
            }
            Op::Select32 { d, a, b, test } => {
                let bits = self.test(test);
                lanes::select32(wide, bits, &mut self.r, d, a, b, mask);
            }
            Op::Select64 { d, a, b, test } => {
                let bits = self.test(test);
                lanes::select64(wide, bits, &mut self.q, d, a, b, mask);
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
            Op::Load(ref access) if mask != 0 => {
                machine.pc = pc;
                self.load(machine, access, mask)?;
            }
            Op::Store(ref access) if mask != 0 => {
                machine.pc = pc;
                self.store(machine, access, mask)?;
            }
            Op::Load(_) | Op::Store(_) | Op::Nothing => {}
            Op::Sleep if mask != 0 => return Ok(Next::Sleep),
            Op::Sleep => {}
            // Switched off for the whole part.
            Op::Mma(_)
            | Op::Product(_)
            | Op::LoadMatrix(_)
            | Op::StoreMatrix(_)
            | Op::TransposeMatrix(..)
                if mask == 0 => {}
            Op::Mma(ref mma) => {
                if !self.all_here(mask)? {
                    return Ok(Next::Wait);
                }
                self.mma(machine, mma);
            }
            Op::Product(ref product) => {
                if !self.all_here(mask)? {
                    return Ok(Next::Wait);
                }
                self.product(machine, product);
            }
            Op::LoadMatrix(ref load) => {
                if !self.all_here(mask)? {
                    return Ok(Next::Wait);
                }
                machine.pc = pc;
                self.load_matrix(machine, load)?;
            }
            Op::StoreMatrix(ref store) => {
                if !self.all_here(mask)? {
                    return Ok(Next::Wait);
                }
                machine.pc = pc;
                self.store_matrix(machine, store)?;
            }
            Op::TransposeMatrix(d, a) => {
                if !self.all_here(mask)? {
                    return Ok(Next::Wait);
                }
                self.transpose_matrix(d, a);
            }
            Op::Copy(ref copy) if mask != 0 => {
                machine.pc = pc;
                self.copy_async(machine, copy, mask)?;
            }
            Op::Copy(_) => {}
            Op::CopyCommit => {
                self.spin.has_effect();
                self.copies.commit(mask);
            }
            Op::CopyWait(pending) => {
                self.spin.has_effect();
                self.copies.wait(machine, self.index, mask, pending);
            }
            Op::CopyWaitAll => {
                self.spin.has_effect();
                self.copies.wait_all(machine, self.index, mask);
            }
            _ => return self.execute_rare(machine, op, pc, active, mask),
        }
        Ok(Next::Step)
    }

    /// Whether all 32 threads are at an instruction that needs them all.
    fn all_here(&self, mask: u32) -> Result<bool, Box<Stop>> {
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
            Op::Atomic(atomic) if mask != 0 => {
                machine.pc = pc;
                self.atomic(machine, atomic, mask)?;
            }
            Op::Discard(address) if mask != 0 => {
                machine.pc = pc;
                self.discard(machine, address, mask)?;
            }
            Op::Fence => {
                std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
                if let Some(shadow) = machine.shared.shadow().filter(|_| mask != 0) {
                    shadow.clocks.fence(self.index as usize, mask);
                }
            }
            Op::Shuffle(shuffle) if mask != 0 => {
                let groups = self.groups(shuffle.members, mask)?;
                let shuffle = |warp: &mut Self, machine: &mut Machine, group| {
                    warp.shuffle(machine, shuffle, group);
                };
                return Ok(self.together(machine, groups, pc, active, shuffle));
            }
            Op::Collective(op) if mask != 0 => {
                let groups = self.groups(op.members, mask)?;
                let is_barrier = matches!(op.collective, Collective::Barrier);
                if is_barrier
                    && groups.ready.is_empty()
                    && self.meet_at_warp_barrier(machine, op, pc, mask)
                {
                    return Ok(Next::Reselect);
                }
                let collective = |warp: &mut Self, machine: &mut Machine, group| {
                    warp.collective(op, group);
                    if is_barrier {
                        warp.meet(machine, group);
                    }
                };
                return Ok(self.together(machine, groups, pc, active, collective));
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
                    self.parts[current] = Part::at(pc, mask);
                    self.parts[current].waiting = true;
                    let mask = active & !mask;
                    self.parts.push(Part::at(pc + 1, mask));
                    return Ok(Next::Reselect);
                }
                return Ok(Next::Wait);
            }
            Op::BranchIndexed(branch) if mask != 0 => {
                self.branch_indexed(branch, pc, active, mask)?;
                return Ok(Next::Reselect);
            }
            Op::IsSpace(window, d, a) => self.is_space(machine, *window, *d, *a, mask),
            Op::Call(call) if mask != 0 => {
                self.spin.has_effect();
                self.call(machine, call, pc, active, mask)?;
                return Ok(Next::Reselect);
            }
            Op::Return(function) if mask != 0 => {
                self.spin.has_effect();
                self.leave(machine, *function, pc, active, mask);
                return Ok(Next::Reselect);
            }
            Op::StackAllocate(allocation) => {
                self.spin.has_effect();
                self.allocate(machine, allocation, mask)?;
            }
            Op::Builtin(builtin, frame) if mask != 0 => {
                self.spin.has_effect();
                self.builtin(machine, *builtin, *frame, mask)?;
            }
            Op::Trap if mask != 0 => {
                let lane = mask.trailing_zeros();
                return Err(Stop::lane(FaultKind::Trap, lane, "the kernel executed a trap"));
            }
            // Memory and warp-wide instructions that every lane is switched off for.
            _ => {}
        }
        Ok(Next::Step)
    }

    /// The lanes of a mask by the members that each names in a register: lanes that are converged
    /// may belong to several groups.
    fn groups(&self, members: R, mask: u32) -> Result<Groups, Box<Stop>> {
        let named = &self.r[members as usize].0;
        let mut groups = Groups { ready: Vec::new(), waiting: 0 };
        let mut left = mask;
        while left != 0 {
            let members = named[left.trailing_zeros() as usize];
            let group = lanes(left).filter(|&lane| named[lane] == members);
            let group = group.fold(0, |all, lane| all | 1 << lane);
            left &= !group;
            let outside = group & !members;
            if outside != 0 {
                let detail = format!(
                    "lanes {} execute it but are not among its members {members:#010x}",
                    lanes_of(outside)
                );
                return Err(Stop::lane(FaultKind::MissingLanes, outside.trailing_zeros(), detail));
            }
            if self.gathered(members & self.present, group) {
                groups.ready.push(group);
            } else {
                groups.waiting |= group;
            }
        }
        Ok(groups)
    }

    /// Executes an instruction for the groups that are complete; the others wait for their members.
    fn together(
        &mut self,
        machine: &mut Machine,
        groups: Groups,
        pc: u32,
        active: u32,
        execute: impl Fn(&mut Self, &mut Machine, u32),
    ) -> Next {
        let Groups { ready, waiting } = groups;
        if ready.is_empty() {
            return Next::Wait;
        }
        ready.into_iter().for_each(|group| execute(self, machine, group));
        if waiting == 0 {
            return Next::Step;
        }
        let current = self.current;
        self.parts[current] = Part::at(pc, waiting);
        self.parts[current].waiting = true;
        self.parts.push(Part::at(pc + 1, active & !waiting));
        Next::Reselect
    }

    /// Lets the members of a warp barrier meet that reached it at different places.
    fn meet_at_warp_barrier(
        &mut self,
        machine: &mut Machine,
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
        let waiting: Vec<usize> =
            (0..self.parts.len()).filter(|&at| at_barrier(self, &self.parts[at])).collect();
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
        self.meet(machine, here);
        true
    }

    /// Lanes have met at a warp barrier.
    fn meet(&self, machine: &mut Machine, mask: u32) {
        if let Some(shadow) = machine.shared.shadow() {
            shadow.clocks.meet(self.index as usize, mask, self.present);
        }
    }

    fn scalar(&mut self, op: &ScalarOp, mask: u32) {
        for lane in lanes(mask) {
            let sources = op.sources.map(|source| self.get(source, lane));
            let (value, second) = evaluate(&op.scalar, sources);
            self.put(op.target, lane, value);
            self.put(op.second, lane, u64::from(second));
        }
    }

    /// Sums whose carry is kept. A difference is the sum of the first and of what the second lacks
    /// of all ones: its carry says that nothing was borrowed. Subtractions that follow take it so,
    /// and additions see it, on which compilers count where they ask for the sign of a difference.
    fn carry(&mut self, op: &CarryOp, mask: u32) {
        let low = |value: u128| value & (u128::MAX >> (128 - op.bits));
        for lane in lanes(mask) {
            let [a, b, c] = op.sources.map(|source| self.get(source, lane));
            let carry = match op.reads {
                true => self.p[op.flag as usize] >> lane & 1 != 0,
                false => op.kind == CarryKind::Sub,
            };
            let (unsigned_a, unsigned_b) = (low(u128::from(a)), low(u128::from(b)));
            let product = unsigned_a.wrapping_mul(unsigned_b);
            let (first, second) = match op.kind {
                CarryKind::Add => (unsigned_a, b),
                CarryKind::Sub => (unsigned_a, !b),
                CarryKind::MadLow => (low(product), c),
                CarryKind::MadHigh(false) => (product >> op.bits, c),
                CarryKind::MadHigh(true) => {
                    let wide = |v| i128::from(crate::exec::alu::scalar::signed(v, op.bits));
                    (low(((wide(a) * wide(b)) >> op.bits) as u128), c)
                }
            };
            let value = first + low(u128::from(second)) + u128::from(carry);
            let out = value >> op.bits != 0;
            self.put(op.target, lane, low(value) as u64);
            if op.writes {
                self.put(Target::P(op.flag), lane, u64::from(out));
            }
        }
    }

    fn clock(&mut self, machine: &Machine, clock: Clock, target: Target, mask: u32) {
        // Time in a kernel is what the warp has executed: the emulator knows no other. That is
        // counted by turns, within which the clock advances whenever it is read.
        self.readings += 1;
        self.spin.has_effect();
        let cycles = self.ran + machine.counters.instructions + self.readings;
        let value = match clock {
            Clock::Cycles | Clock::Nanoseconds => cycles,
            Clock::CyclesHigh => cycles >> 32,
        };
        lanes(mask).for_each(|lane| self.put(target, lane, value));
    }
}
