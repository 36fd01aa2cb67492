//! Asynchronous copies from global to shared memory.
//!
//! A copy is carried out as late as the program allows: until the thread that issued it waits for
//! its group, the destination holds poison. A kernel that forgets a wait therefore reads NaN.

use std::collections::VecDeque;

use super::access::{Intent, copy_words, count, prefetch, read_byte};
use crate::exec::alu::lanes::LANES;
use crate::exec::context::*;
use crate::exec::sanitize::clocks::Touch;
use crate::exec::sanitize::{Deed, Deeds};
use crate::exec::warp::Warp;
use crate::fault::FaultKind;
use crate::memory::POISON;
use crate::program::{CopyOp, Order, Space};

/// The copies that the threads of a warp issued in one instruction.
struct Pending {
    mask: u32,
    /// The place of the instruction.
    pc: u32,
    bytes: usize,
    /// Host address of the source.
    from: [*mut u8; LANES],
    /// Bytes to read; the rest of the destination becomes zero.
    read: [u8; LANES],
    /// Offset of the destination in the block's shared memory.
    to: [u32; LANES],
    /// The group of its thread that a copy belongs to.
    group: [u32; LANES],
}

/// The copies of a warp that are not carried out.
#[derive(Default)]
pub(crate) struct Copies {
    pending: VecDeque<Pending>,
    /// Groups that each thread has committed.
    committed: [u32; LANES],
}

// SAFETY: the pointers lead into allocations that the launch keeps alive, and are read atomically.
unsafe impl Send for Copies {}

impl Copies {
    pub(crate) fn reset(&mut self) {
        self.pending.clear();
        self.committed = [0; LANES];
    }

    /// Closes the open group of each thread of the mask.
    pub(crate) fn commit(&mut self, mask: u32) {
        lanes(mask).for_each(|lane| self.committed[lane] += 1);
    }

    /// Carries out all but the newest `left` groups of each thread of the mask.
    pub(crate) fn wait(&mut self, machine: &mut Machine, warp: u32, mask: u32, left: u32) {
        let committed = self.committed;
        let due = |lane: usize, group| group < committed[lane].saturating_sub(left);
        self.carry_out(machine, warp, mask, due);
    }

    /// A thread of the mask that has issued a copy which is still under way, and where it did.
    pub(crate) fn under_way(&self, mask: u32) -> Option<(u32, u32)> {
        let pending = self.pending.iter().find(|pending| pending.mask & mask != 0)?;
        Some(((pending.mask & mask).trailing_zeros(), pending.pc))
    }

    /// Carries out all copies of each thread of the mask, committed or not.
    pub(crate) fn wait_all(&mut self, machine: &mut Machine, warp: u32, mask: u32) {
        self.carry_out(machine, warp, mask, |_, _| true);
    }

    fn carry_out(
        &mut self,
        machine: &mut Machine,
        warp: u32,
        mask: u32,
        due: impl Fn(usize, u32) -> bool,
    ) {
        if self.pending.is_empty() {
            return;
        }
        let shared = machine.shared.host();
        for pending in &mut self.pending {
            let mut ends = 0;
            for lane in 0..LANES {
                ends |= u32::from(due(lane, pending.group[lane])) << lane;
            }
            let ends = ends & pending.mask & mask;
            pending.mask &= !ends;
            if let Some(shadow) = machine.shared.shadow() {
                for lane in lanes(ends) {
                    let by = Touch { warp: warp as usize, lane, pc: pending.pc, strong: false };
                    shadow.complete(pending.to[lane] as usize, pending.bytes, by);
                }
            }
            for lane in lanes(ends) {
                let to = shared.wrapping_add(pending.to[lane] as usize);
                let (from, read) = (pending.from[lane], usize::from(pending.read[lane]));
                // SAFETY: source and destination were checked when the copy was issued; the
                // launch keeps the source's allocation, and the block its shared memory.
                unsafe {
                    if read == pending.bytes {
                        copy_words(from, to, read);
                    } else {
                        to.write_bytes(0, pending.bytes);
                        for at in 0..read {
                            to.wrapping_add(at).write(read_byte(from.wrapping_add(at)));
                        }
                    }
                }
            }
        }
        while self.pending.front().is_some_and(|front| front.mask == 0) {
            self.pending.pop_front();
        }
        if self.pending.iter().any(|pending| pending.mask == 0) {
            self.pending.retain(|pending| pending.mask != 0);
        }
    }
}

impl Warp {
    /// Issues an asynchronous copy.
    pub(crate) fn copy_async(
        &mut self,
        machine: &mut Machine,
        op: &CopyOp,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        let bytes = op.bytes;
        self.spin.has_effect();
        self.translate(machine, &op.to, bytes, Intent::Write, mask)?;
        let to = self.pointers;
        let sanitizer = machine.context.config.sanitizer;
        let order = Order::Weak;
        if sanitizer {
            let (address, bytes) = (&op.to, bytes as usize);
            self.look(
                machine,
                Deeds { deed: Deed::Issue, address, bytes, mask, order, store: None },
            )?;
        }
        let ignored = self.test(op.ignore) & mask;
        let asked = op.read.map_or([bytes; LANES], |r| self.r[r as usize].0);
        let mut whole = ignored == 0 && asked == [bytes; LANES];
        let mut read = [bytes as u8; LANES];
        if !whole {
            for lane in lanes(mask) {
                let asked = asked[lane];
                if asked > bytes {
                    let detail =
                        format!("a source size of {asked} bytes exceeds the copy's {bytes}");
                    return Err(Stop::lane(FaultKind::IllegalOperand, lane as u32, detail));
                }
                read[lane] = if ignored >> lane & 1 != 0 { 0 } else { asked as u8 };
            }
            whole = lanes(mask).all(|lane| u32::from(read[lane]) == bytes);
        }
        if whole {
            self.translate(machine, &op.from, bytes, Intent::Read, mask)?;
        } else {
            for lane in lanes(mask).filter(|&lane| read[lane] > 0) {
                self.pointers[lane] = self.translate_lane(
                    machine,
                    Space::Global,
                    self.address(&op.from, lane),
                    u64::from(read[lane]),
                    u64::from(bytes),
                    Intent::Read,
                    lane,
                )?;
            }
        }
        let from = self.pointers;
        lanes(mask).for_each(|lane| prefetch(from[lane]));
        if sanitizer {
            let (deed, address) = (Deed::Read, &op.from);
            if whole {
                let bytes = bytes as usize;
                self.look(machine, Deeds { deed, address, bytes, mask, order, store: None })?;
            } else {
                for lane in lanes(mask).filter(|&lane| read[lane] > 0) {
                    let (bytes, mask) = (usize::from(read[lane]), 1 << lane);
                    self.look(machine, Deeds { deed, address, bytes, mask, order, store: None })?;
                }
            }
        }
        count(machine, Space::Global, 0, 0, Intent::Read);
        machine.counters.global_bytes_read += match whole {
            true => u64::from(bytes) * u64::from(mask.count_ones()),
            false => lanes(mask).map(|lane| u64::from(read[lane])).sum(),
        };
        count(machine, Space::Shared, bytes, mask, Intent::Write);
        self.measure_copy(machine, op, &read, mask);
        let shared = machine.shared.host();
        let offsets = to.map(|to| to.addr().wrapping_sub(shared.addr()) as u32);
        for lane in lanes(mask) {
            // SAFETY: `translate` found these bytes in the block's shared memory, aligned to 4 at
            // least; a constant length makes this a store and not a call.
            unsafe {
                match bytes {
                    4 => to[lane].write_bytes(POISON, 4),
                    8 => to[lane].write_bytes(POISON, 8),
                    _ => to[lane].write_bytes(POISON, 16),
                }
            }
        }
        let group = self.copies.committed;
        let (bytes, pc) = (bytes as usize, machine.pc);
        let pending = Pending { mask, pc, bytes, from, read, to: offsets, group };
        self.copies.pending.push_back(pending);
        Ok(())
    }
}
