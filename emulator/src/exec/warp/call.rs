//! Jumps whose target differs by lane: indexed branches, calls, and returns; and the stack that
//! calls need.

use super::{Part, Warp};
use crate::exec::alu::lanes::LANES;
use crate::exec::context::*;
use crate::fault::FaultKind;
use crate::memory::{POISON, find};
use crate::program::*;

/// A call that a thread has to return from.
#[derive(Debug)]
pub(crate) struct Call {
    /// The place of the call.
    pc: u32,
    /// The registers of the function as they were, where it may have been active already.
    saved: Vec<u64>,
}

impl Warp {
    /// Sends the lanes of a mask to a place each; those that are switched off go on.
    fn disperse(&mut self, pc: u32, active: u32, mask: u32, places: &[u32; LANES]) {
        let current = self.current;
        self.parts[current].pc = pc + 1;
        self.parts[current].mask = active & !mask;
        let mut left = mask;
        while left != 0 {
            let place = places[left.trailing_zeros() as usize];
            let same = lanes(left).filter(|&lane| places[lane] == place);
            let same = same.fold(0, |all, lane| all | 1 << lane);
            left &= !same;
            if self.parts[current].mask == 0 {
                self.parts[current].pc = place;
                self.parts[current].mask = same;
            } else {
                self.parts.push(Part::at(place, same));
            }
        }
    }

    /// Executes an indexed branch.
    pub(crate) fn branch_indexed(
        &mut self,
        branch: &IndexedBranch,
        pc: u32,
        active: u32,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        let indices = &self.r[branch.index as usize].0;
        let mut places = [0; LANES];
        for lane in lanes(mask) {
            let Some(&target) = branch.targets.get(indices[lane] as usize) else {
                let (index, count) = (indices[lane], branch.targets.len());
                let detail = format!("index {index} of {count} branch targets");
                return Err(Stop::lane(FaultKind::IllegalOperand, lane as u32, detail));
            };
            places[lane] = target;
        }
        self.disperse(pc, active, mask, &places);
        Ok(())
    }

    /// Executes a call.
    pub(crate) fn call(
        &mut self,
        machine: &mut Machine,
        call: &CallOp,
        pc: u32,
        active: u32,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        let context = machine.context;
        let mut places = [0; LANES];
        for lane in lanes(mask) {
            let function = match call.callee {
                Called::Function(number) => &context.kernel.functions[number as usize],
                Called::Pointer(pointer) => self.pointed_at(context, call, pointer, lane)?,
            };
            self.enter(context, call, function, pc, lane)?;
            places[lane] = function.entry;
        }
        self.disperse(pc, active, mask, &places);
        Ok(())
    }

    fn pointed_at<'c>(
        &self,
        context: &Context<'c>,
        call: &CallOp,
        pointer: Q,
        lane: usize,
    ) -> Result<&'c DeviceFunction, Box<Stop>> {
        let address = self.q[pointer as usize].0[lane];
        let found = context.kernel.functions.iter().find(|f| f.address == address);
        let Some(function) = found else {
            let detail = "no function of the module has this address";
            return Err(Stop::at(FaultKind::IllegalOperand, lane, address, detail));
        };
        if function.formals != call.formals {
            let name = &function.name;
            let detail = format!("`{name}` has other results or parameters than the call");
            return Err(Stop::at(FaultKind::IllegalOperand, lane, address, detail));
        }
        Ok(function)
    }

    /// Puts a frame on the stack of one thread, with the arguments in it.
    fn enter(
        &mut self,
        context: &Context,
        call: &CallOp,
        function: &DeviceFunction,
        pc: u32,
        lane: usize,
    ) -> Result<(), Box<Stop>> {
        let stack = context.kernel.stack as usize;
        let frame = self.q[stack].0[lane];
        self.take(context, lane, frame, u64::from(function.frame_bytes))?;
        let from = self.frame(call.frame, lane);
        for (passed, formal) in &call.arguments {
            let to = self.local(context, lane, frame + formal.offset as u64);
            match *passed {
                Passed::Local(offset) => {
                    let from = self.local(context, lane, from + u64::from(offset));
                    // SAFETY: the variable lies in the caller's frame and the formal in the new
                    // one, both within the thread's local memory.
                    unsafe { to.copy_from(from, formal.size) };
                    self.local_is_copied(from, to, formal.size);
                }
                Passed::Value(source) => {
                    let bytes = self.get(source, lane).to_le_bytes();
                    // SAFETY: the formal has 1, 2, 4 or 8 bytes of the new frame.
                    unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), formal.size) };
                    self.local_is_written(to, formal.size);
                }
            }
        }
        let saved = function.saved.as_ref().map_or_else(Vec::new, |saved| self.save(saved, lane));
        self.calls[lane].push(Call { pc, saved });
        self.q[function.frame as usize].0[lane] = frame;
        Ok(())
    }

    /// Executes a return from a function.
    pub(crate) fn leave(
        &mut self,
        machine: &Machine,
        function: u32,
        pc: u32,
        active: u32,
        mask: u32,
    ) {
        let context = machine.context;
        let function = &context.kernel.functions[function as usize];
        let mut places = [0; LANES];
        for lane in lanes(mask) {
            let Some(Call { pc, saved }) = self.calls[lane].pop() else { continue };
            let frame = self.q[function.frame as usize].0[lane];
            self.q[context.kernel.stack as usize].0[lane] = frame;
            if let Some(registers) = &function.saved {
                self.restore(registers, &saved, lane);
            }
            if let Op::Call(call) = &context.kernel.code[pc as usize].op {
                self.receive(context, call, frame, lane);
            }
            places[lane] = pc + 1;
        }
        self.disperse(pc, active, mask, &places);
    }

    fn receive(&mut self, context: &Context, call: &CallOp, frame: u64, lane: usize) {
        let caller = self.frame(call.frame, lane);
        for (received, formal) in &call.results {
            let from = self.local(context, lane, frame + formal.offset as u64);
            match *received {
                Received::Local(offset) => {
                    let to = self.local(context, lane, caller + u64::from(offset));
                    // SAFETY: the result lies in the frame that was left and the variable in the
                    // caller's, both within the thread's local memory.
                    unsafe { to.copy_from(from, formal.size) };
                    self.local_is_copied(from, to, formal.size);
                }
                Received::Value(target) => {
                    let mut bytes = [0; 8];
                    // SAFETY: the result has 1, 2, 4 or 8 bytes of the frame that was left.
                    unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), formal.size) };
                    self.put(target, lane, u64::from_le_bytes(bytes));
                }
            }
        }
    }

    /// Takes bytes of one thread's stack, and fills them with poison.
    fn take(
        &mut self,
        context: &Context,
        lane: usize,
        start: u64,
        bytes: u64,
    ) -> Result<(), Box<Stop>> {
        let end = LOCAL_BASE + u64::from(context.local_bytes);
        if start < LOCAL_BASE || start.checked_add(bytes).is_none_or(|after| after > end) {
            let left = end.saturating_sub(start);
            let detail = format!(
                "{bytes} bytes are needed and {left} are left of the \
                 thread's {} (CU_LIMIT_STACK_SIZE)",
                context.local_bytes
            );
            return Err(Stop::lane(FaultKind::StackOverflow, lane as u32, detail));
        }
        let fresh = self.local(context, lane, start);
        // SAFETY: these bytes lie within the thread's local memory.
        unsafe { fresh.write_bytes(POISON, bytes as usize) };
        self.local_is_fresh(fresh, bytes as usize);
        self.q[context.kernel.stack as usize].0[lane] = start + bytes;
        Ok(())
    }

    /// Executes `alloca`.
    pub(crate) fn allocate(
        &mut self,
        machine: &Machine,
        allocation: &StackAllocation,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        for lane in lanes(mask) {
            let size = self.q[allocation.size as usize].0[lane];
            let free = self.q[allocation.stack as usize].0[lane];
            let start = free.saturating_add(allocation.align - 1) & !(allocation.align - 1);
            self.take(machine.context, lane, start, size)?;
            self.q[allocation.pointer as usize].0[lane] = start;
        }
        Ok(())
    }

    /// Where a frame starts in the local memory of one thread.
    pub(crate) fn frame(&self, frame: Option<Q>, lane: usize) -> u64 {
        frame.map_or(LOCAL_BASE, |frame| self.q[frame as usize].0[lane])
    }

    /// Host address of a place in the local memory of one thread.
    fn local(&mut self, context: &Context, lane: usize, address: u64) -> *mut u8 {
        let start = self.local.as_mut_ptr().cast::<u8>();
        let offset = lane * context.local_stride() + (address - LOCAL_BASE) as usize;
        start.wrapping_add(offset)
    }

    fn save(&self, registers: &SavedRegisters, lane: usize) -> Vec<u64> {
        let r = self.r[registers.r.clone()].iter().map(|r| u64::from(r.0[lane]));
        let q = self.q[registers.q.clone()].iter().map(|q| q.0[lane]);
        let p = self.p[registers.p.clone()].iter().map(|p| u64::from(p >> lane & 1));
        r.chain(q).chain(p).collect()
    }

    fn restore(&mut self, registers: &SavedRegisters, saved: &[u64], lane: usize) {
        let mut saved = saved.iter();
        let mut next = || saved.next().copied().unwrap_or_default();
        self.r[registers.r.clone()].iter_mut().for_each(|r| r.0[lane] = next() as u32);
        self.q[registers.q.clone()].iter_mut().for_each(|q| q.0[lane] = next());
        for p in &mut self.p[registers.p.clone()] {
            *p = *p & !(1 << lane) | (next() as u32 & 1) << lane;
        }
    }

    /// Whether a generic address lies in a window, for each lane.
    pub(crate) fn is_space(&mut self, machine: &Machine, window: Window, d: P, a: Q, mask: u32) {
        let table = &machine.context.table;
        let of = |address: u64| match address {
            LOCAL_WINDOW.. => (address - LOCAL_WINDOW < WINDOW_BYTES).then_some(Window::Local),
            SHARED_WINDOW.. => (address - SHARED_WINDOW < WINDOW_BYTES).then_some(Window::Shared),
            PARAM_WINDOW.. => (address - PARAM_WINDOW < WINDOW_BYTES).then_some(Window::Param),
            _ => {
                let constant = find(table, address, 0).is_some_and(|at| table[at].constant);
                Some(if constant { Window::Constant } else { Window::Global })
            }
        };
        let addresses = &self.q[a as usize].0;
        let bits = lanes(mask)
            .filter(|&lane| of(addresses[lane]) == Some(window))
            .fold(0, |bits, lane| bits | 1 << lane);
        self.put_bits(d, bits, mask);
    }
}
