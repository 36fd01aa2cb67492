//! Atomic instructions, which are atomics of the host.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::access::Intent;
use crate::exec::alu::float;
use crate::exec::alu::lanes::LANES;
use crate::exec::alu::scalar::signed;
use crate::exec::context::*;
use crate::exec::warp::Warp;
use crate::fault::FaultKind;
use crate::program::{Atomic, AtomicOp, Float, FloatMode, Rounding, SHARED_WINDOW, Space};
use crate::ptx::Type;

impl Warp {
    /// Executes an atomic instruction, lane after lane.
    pub(crate) fn atomic(
        &mut self,
        machine: &mut Machine,
        op: &AtomicOp,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        let bytes = op.ty.bytes();
        let space = op.address.space;
        if op.align > bytes {
            let at = |&lane: &usize| self.address(&op.address, lane);
            let astray = |lane: &usize| at(lane) & u64::from(op.align - 1) != 0;
            if let Some(lane) = lanes(mask).find(astray) {
                let detail = format!("the vector's address must be a multiple of {}", op.align);
                return Err(Stop::at(FaultKind::Misaligned, lane, at(&lane), detail));
            }
        }
        self.translate(machine, &op.address, bytes, Intent::Write, mask)?;
        machine.counters.atomics += 1;
        self.measure_atomic(machine, op, mask);
        let _strong = self.one_at_a_time(machine, space, op.order);
        if machine.context.config.sanitizer {
            self.look_at_atomic(machine, op, mask)?;
        }
        let moved = u64::from(bytes) * u64::from(mask.count_ones());
        match space {
            Space::Shared => machine.counters.shared_requests += 1,
            _ => {
                machine.counters.global_requests += 1;
                machine.counters.global_bytes_read += moved;
                machine.counters.global_bytes_written += moved;
            }
        }
        let mut olds = [0; LANES];
        for lane in lanes(mask) {
            let operands = op.sources.map(|source| self.get(source, lane));
            let shared = space == Space::Shared
                || (space == Space::Generic && self.address(&op.address, lane) >= SHARED_WINDOW);
            let mut changes = false;
            let update = |old: u64| {
                let new = new_value(op, old, operands, shared);
                changes = new != old;
                new
            };
            // SAFETY: `translate` checked alignment and bounds; all accesses to memory that
            // blocks share are atomic.
            let old = unsafe {
                match bytes {
                    2 => u64::from(swap16(self.pointers[lane], update)),
                    4 => u64::from(swap32(self.pointers[lane], update)),
                    _ => swap64(self.pointers[lane], update),
                }
            };
            if changes {
                self.spin.has_effect();
            }
            olds[lane] = old;
            self.put(op.target, lane, old);
        }
        self.spin.has_read(machine.pc, lanes(mask).map(|lane| olds[lane]));
        if machine.context.config.sanitizer {
            self.hear(machine, &op.address, op.order, mask);
        }
        Ok(())
    }
}

macro_rules! swap {
    ($name:ident, $int:ty, $atomic:ty) => {
        /// # Safety
        /// The pointer is aligned and valid for reads and writes.
        unsafe fn $name(pointer: *mut u8, mut update: impl FnMut(u64) -> u64) -> $int {
            // SAFETY: passed on to the caller.
            let word = unsafe { <$atomic>::from_ptr(pointer.cast()) };
            let mut old = word.load(Ordering::Relaxed);
            loop {
                let new = update(u64::from(old)) as $int;
                match word.compare_exchange_weak(old, new, Ordering::SeqCst, Ordering::Relaxed) {
                    Ok(_) => return old,
                    Err(seen) => old = seen,
                }
            }
        }
    };
}
swap!(swap16, u16, AtomicU16);
swap!(swap32, u32, AtomicU32);
swap!(swap64, u64, AtomicU64);

fn new_value(op: &AtomicOp, old: u64, [b, c]: [u64; 2], shared: bool) -> u64 {
    let bits = op.ty.bits();
    let low = |value: u64| value << (64 - bits) >> (64 - bits);
    let is_signed = op.ty.is_signed();
    let less = |x: u64, y: u64| {
        if is_signed { signed(x, bits) < signed(y, bits) } else { low(x) < low(y) }
    };
    let float = |operation| {
        let mode = FloatMode {
            ty: op.ty,
            rounding: Rounding::Nearest,
            // In global memory f32 sums flush subnormals; in shared memory they do not.
            flush: op.ty == Type::F32 && !shared,
            saturate: false,
            relu: false,
            nan: false,
            xorsign: false,
        };
        float::evaluate(operation, mode, [old, b, 0, 0])
    };
    match op.atomic {
        Atomic::Add if op.ty.is_float() => float(Float::Add),
        Atomic::Min if op.ty.is_float() => float(Float::Min),
        Atomic::Max if op.ty.is_float() => float(Float::Max),
        Atomic::Add => old.wrapping_add(b),
        Atomic::Min if less(b, old) => b,
        Atomic::Max if less(old, b) => b,
        Atomic::Min | Atomic::Max => old,
        Atomic::And => old & b,
        Atomic::Or => old | b,
        Atomic::Xor => old ^ b,
        Atomic::Exchange => b,
        Atomic::CompareAndSwap if low(old) == low(b) => c,
        Atomic::CompareAndSwap => old,
        Atomic::Increment if low(old) >= low(b) => 0,
        Atomic::Increment => old + 1,
        Atomic::Decrement if low(old) == 0 || low(old) > low(b) => b,
        Atomic::Decrement => old - 1,
    }
}
