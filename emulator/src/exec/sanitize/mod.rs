//! The sanitizer's eyes: every access of a warp to memory passes here, where the device has it on.
//!
//! A read of bytes that nothing wrote is a fault, and so is an access that races with an earlier
//! one, and a store of different values by lanes of one warp to one address.

pub(crate) mod clocks;
pub(crate) mod global;
mod granules;
mod registers;
pub(crate) mod shared;
mod times;

use std::sync::MutexGuard;

use self::clocks::Touch;
use self::global::{GlobalAccess, GlobalConflict, Held};
use self::shared::{Conflict, Finding, Kind, Row};
use crate::exec::alu::lanes::LANES;
use crate::exec::context::*;
use crate::exec::memory::access::{Pointers, read_byte};
use crate::exec::warp::Warp;
use crate::fault::FaultKind;
use crate::memory::{Allocation, WRITTEN, find};
use crate::program::{
    Access, Address, Atomic, AtomicOp, LOCAL_WINDOW, Order, SHARED_WINDOW, Space,
};

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Read,
    Write,
    /// Reads and writes at once.
    Update,
    /// Starts an asynchronous write.
    Issue,
    /// Writes no value in particular.
    Discard,
}

/// An access of some lanes.
#[derive(Clone, Copy)]
pub(crate) struct Deeds<'a> {
    pub(crate) deed: Deed,
    pub(crate) address: &'a Address,
    /// Bytes of each lane.
    pub(crate) bytes: usize,
    pub(crate) mask: u32,
    pub(crate) order: Order,
    /// The store, where it is one.
    pub(crate) store: Option<&'a Access>,
}

/// Whether a generic address is one of shared memory.
fn in_shared_window(address: u64) -> bool {
    (SHARED_WINDOW..LOCAL_WINDOW).contains(&address)
}

impl Warp {
    /// Looks at a load.
    #[inline(never)]
    pub(crate) fn look_at_load(
        &mut self,
        machine: &mut Machine,
        access: &Access,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        let bytes = access.bytes as usize * access.targets.len();
        let (address, order) = (&access.address, access.order);
        let (deed, store) = (Deed::Read, None);
        self.look(machine, Deeds { deed, address, bytes, mask, order, store })
    }

    /// Looks at a store.
    #[inline(never)]
    pub(crate) fn look_at_store(
        &mut self,
        machine: &mut Machine,
        access: &Access,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        let bytes = access.bytes as usize * access.sources.len();
        let (address, order) = (&access.address, access.order);
        let store = Some(access);
        self.look(machine, Deeds { deed: Deed::Write, address, bytes, mask, order, store })?;
        if matches!(address.space, Space::Local | Space::Param) {
            return Ok(());
        }
        self.look_for_disagreement(access, bytes, mask)
    }

    /// Looks at an atomic instruction.
    pub(crate) fn look_at_atomic(
        &mut self,
        machine: &mut Machine,
        op: &AtomicOp,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        let deed = if op.atomic == Atomic::Exchange { Deed::Write } else { Deed::Update };
        let (bytes, address, order) = (op.ty.bytes() as usize, &op.address, op.order);
        self.look(machine, Deeds { deed, address, bytes, mask, order, store: None })
    }

    /// Keeps other accesses to global memory that are not weak away until this one was carried out.
    pub(crate) fn one_at_a_time<'a>(
        &self,
        machine: &Machine<'a>,
        space: Space,
        order: Order,
    ) -> Option<MutexGuard<'a, ()>> {
        let global = machine.context.global_shadow.as_ref();
        let shared = order == Order::Weak || !matches!(space, Space::Global | Space::Generic);
        global.filter(|_| !shared).map(|global| global.one_at_a_time())
    }

    /// Looks at an access; `self.pointers` holds where each lane's is.
    pub(crate) fn look(&mut self, machine: &mut Machine, deeds: Deeds) -> Result<(), Box<Stop>> {
        let Deeds { deed, address, bytes, mask, order, .. } = deeds;
        match address.space {
            Space::Param => return Ok(()),
            Space::Local => {
                return lanes(mask).try_for_each(|lane| self.look_at_local(machine, deeds, lane));
            }
            _ => {}
        }
        if order != Order::Weak && deed != Deed::Read {
            self.tell(machine, deeds);
        }
        if address.space == Space::Shared {
            return self.look_at_shared(machine, deeds);
        }
        let context = machine.context;
        let inside = |at: usize, pointer: *mut u8| {
            let allocation = context.table.get(at)?;
            let offset = pointer.addr().wrapping_sub(allocation.host().addr());
            ((offset as u64) < allocation.bytes).then_some((at, offset))
        };
        let (mut at, mut in_shared) = (self.last_allocation, 0);
        let mut held = Held::default();
        for lane in lanes(mask) {
            let pointer = self.pointers[lane];
            let mut place = inside(at, pointer);
            if place.is_none() {
                let address = self.address(address, lane);
                if in_shared_window(address) {
                    in_shared |= 1 << lane;
                } else if address >= LOCAL_WINDOW {
                    self.look_at_local(machine, deeds, lane)?;
                } else {
                    let found = find(&context.table, address, bytes as u64);
                    place = found.and_then(|at| inside(at, pointer));
                }
            }
            let Some((found, offset)) = place else { continue };
            at = found;
            self.look_at_global(machine, &mut held, deeds, lane, (at, offset))?;
        }
        if in_shared != 0 {
            return self.look_at_shared(machine, Deeds { mask: in_shared, ..deeds });
        }
        Ok(())
    }

    /// Records what others learn from accesses that are not weak, before these are carried out.
    fn tell(&self, machine: &mut Machine, deeds: Deeds) {
        let (context, warp) = (machine.context, self.index as usize);
        let Some(shadow) = machine.shared.shadow() else { return };
        let clocks = &mut shadow.clocks;
        let releases = matches!(deeds.order, Order::Release | Order::AcquireRelease);
        for lane in lanes(deeds.mask) {
            let Some(word) = clocks.word(warp, lane, releases) else { continue };
            let place = self.pointers[lane].addr();
            if self.is_shared(deeds.address, lane) {
                clocks.tell(place, word);
            } else if let Some(global) = &context.global_shadow {
                global.tell(place, &word);
            }
        }
        if releases {
            clocks.has_released(warp);
        }
    }

    /// Notes what lanes learn by accesses that are not weak; after they were carried out.
    pub(crate) fn hear(&self, machine: &mut Machine, address: &Address, order: Order, mask: u32) {
        let (context, warp) = (machine.context, self.index as usize);
        let Some(shadow) = machine.shared.shadow() else { return };
        let clocks = &mut shadow.clocks;
        for lane in lanes(mask) {
            let place = self.pointers[lane].addr();
            if self.is_shared(address, lane) {
                clocks.hear(warp, lane, place);
            } else if let Some(global) = &context.global_shadow
                && let Some(message) = global.message(place)
            {
                clocks.hear_message(warp, lane, place, message);
            }
        }
        if matches!(order, Order::Acquire | Order::AcquireRelease) {
            clocks.acquire(warp, mask);
        }
    }

    fn is_shared(&self, address: &Address, lane: usize) -> bool {
        match address.space {
            Space::Shared => true,
            Space::Generic => in_shared_window(self.address(address, lane)),
            _ => false,
        }
    }

    /// Looks at an access of a lane to global memory: at what was written there, and for races.
    #[inline(always)]
    fn look_at_global<'a>(
        &self,
        machine: &mut Machine<'a>,
        held: &mut Held<'a>,
        deeds: Deeds,
        lane: usize,
        (at, offset): (usize, usize),
    ) -> Result<(), Box<Stop>> {
        let (context, block) = (machine.context, machine.block);
        let allocation = &context.table[at];
        let Some(written) = allocation.shadow() else { return Ok(()) };
        let (deed, bytes) = (deeds.deed, deeds.bytes);
        let written = written.wrapping_add(offset);
        let mut page = match &context.global_shadow {
            Some(global) if !allocation.constant => held.page(global, allocation, at, offset),
            _ => None,
        };
        let is_written = page.as_ref().is_some_and(|page| page.is_written);
        if !is_written && !matches!(deed, Deed::Write | Deed::Discard) {
            // SAFETY: the access lies within the allocation, and so does its shadow's.
            let missing = unsafe { unwritten(written, bytes) };
            if missing > 0 {
                return Err(never_written(allocation, deeds, lane, offset, missing));
            }
        }
        if deed == Deed::Discard {
            // SAFETY: as above.
            unsafe { mark(written, bytes, 0) };
            page.iter_mut().for_each(|page| page.is_written = false);
        } else if !is_written && deed != Deed::Read {
            // SAFETY: as above.
            unsafe { mark(written, bytes, WRITTEN) };
        }
        let (Some(page), Some(shadow)) = (page, machine.shared.shadow()) else { return Ok(()) };
        let strong = deeds.order != Order::Weak;
        let by = Touch { warp: self.index as usize, lane, pc: machine.pc, strong };
        let writes = deed != Deed::Read;
        let access = GlobalAccess { block, allocation: at, offset, bytes, writes, by };
        let Err(conflict) = page.note(&mut shadow.clocks, access) else { return Ok(()) };
        let GlobalConflict { other, wrote, offset } = conflict;
        let same = wrote && self.stores_what_is_there(deeds, lane);
        if same && context.config.same_value_writes {
            return Ok(());
        }
        let address = allocation.base + offset as u64;
        let (thread, pc) = (Ok(other.thread()), Some(other.pc));
        let other = Other { block: other.block, thread, pc, wrote, same };
        Err(race(context, block, deeds, lane, address, other))
    }

    /// Whether a lane stores the bytes that are there already.
    #[cold]
    fn stores_what_is_there(&self, deeds: Deeds, lane: usize) -> bool {
        let Some(store) = deeds.store else { return false };
        let width = store.bytes as usize;
        store.sources.iter().enumerate().all(|(index, &source)| {
            let new = self.get(source, lane).to_le_bytes();
            let start = self.pointers[lane].wrapping_add(index * width);
            // SAFETY: the access was found to lie within memory that the launch keeps.
            (0..width).all(|at| unsafe { read_byte(start.wrapping_add(at)) } == new[at])
        })
    }

    /// The place of an address in local memory among those of the warp.
    fn local_offset(&self, pointer: *mut u8) -> usize {
        pointer.addr() - self.local.as_ptr().addr()
    }

    /// Notes a write to local memory by other than a store.
    pub(crate) fn local_is_written(&mut self, pointer: *mut u8, bytes: usize) {
        self.set_local_shadow(pointer, bytes, WRITTEN);
    }

    /// Notes that local memory holds nothing yet.
    pub(crate) fn local_is_fresh(&mut self, pointer: *mut u8, bytes: usize) {
        self.set_local_shadow(pointer, bytes, 0);
    }

    fn set_local_shadow(&mut self, pointer: *mut u8, bytes: usize, value: u8) {
        let start = self.local_offset(pointer);
        if let Some(shadow) = self.local_shadow.get_mut(start..start + bytes) {
            shadow.fill(value);
        }
    }

    /// Notes a copy within local memory.
    pub(crate) fn local_is_copied(&mut self, from: *mut u8, to: *mut u8, bytes: usize) {
        let (from, to) = (self.local_offset(from), self.local_offset(to));
        if from.max(to) + bytes <= self.local_shadow.len() {
            self.local_shadow.copy_within(from..from + bytes, to);
        }
    }

    /// Looks for reads of local memory that the thread has not written.
    #[cold]
    fn look_at_local(
        &mut self,
        machine: &Machine,
        deeds: Deeds,
        lane: usize,
    ) -> Result<(), Box<Stop>> {
        let start = self.local_offset(self.pointers[lane]);
        let Some(shadow) = self.local_shadow.get_mut(start..start + deeds.bytes) else {
            return Ok(());
        };
        if deeds.deed != Deed::Write {
            // Compilers copy the padding of a structure, of less than 8 bytes, along with the
            // members next to it.
            let unwritten = |part: &&[u8]| part.iter().all(|&byte| byte != WRITTEN);
            let missing: usize = shadow.chunks(8).filter(unwritten).map(<[u8]>::len).sum();
            if missing > 0 {
                let offset = start - lane * machine.context.local_stride();
                let detail = format!(
                    "{missing} of the {} bytes were never written: byte {offset} of the {} bytes \
                     of the thread's local memory",
                    deeds.bytes, machine.context.local_bytes
                );
                let address = self.address(deeds.address, lane);
                return Err(Stop::at(FaultKind::UninitializedRead, lane, address, detail));
            }
        }
        if deeds.deed != Deed::Read {
            shadow.fill(WRITTEN);
        }
        Ok(())
    }

    /// Looks at an access of lanes to shared memory.
    fn look_at_shared(&self, machine: &mut Machine, deeds: Deeds) -> Result<(), Box<Stop>> {
        let start = machine.shared.host().addr();
        let Some(shadow) = machine.shared.shadow() else { return Ok(()) };
        let Deeds { deed, bytes, mut mask, order, .. } = deeds;
        let offsets = self.pointers.map(|pointer| pointer.addr().wrapping_sub(start) as u32);
        let (warp, strong) = (self.index as usize, order != Order::Weak);
        while mask != 0 {
            let row = Row { warp, pc: machine.pc, strong, mask, bytes, offsets: &offsets };
            let result = match deed {
                Deed::Read => shadow.read(row),
                Deed::Write | Deed::Discard => shadow.write(row, Kind::Write),
                Deed::Issue => shadow.write(row, Kind::Issue),
                Deed::Update => shadow.write(row, Kind::Update),
            };
            let Err((lane, finding)) = result else { break };
            let wrote = matches!(finding, Finding::Race(Conflict { wrote: true, .. }));
            let same = wrote && self.stores_what_is_there(deeds, lane);
            if !same || !machine.context.config.same_value_writes {
                return Err(self.report(machine, deeds, lane, finding, same));
            }
            // The lanes behind it are still to be looked at.
            mask &= !(u32::MAX >> (LANES - 1 - lane));
        }
        Ok(())
    }

    #[cold]
    fn report(
        &self,
        machine: &mut Machine,
        deeds: Deeds,
        lane: usize,
        finding: Finding,
        same: bool,
    ) -> Box<Stop> {
        let (_, length, host) = machine.shared.region();
        let offset = self.pointers[lane].addr() - host.addr();
        let place = format!("byte {offset} of {length} of shared memory");
        let address = self.address(deeds.address, lane);
        match finding {
            Finding::Unwritten { missing, pending } => {
                let count = missing.count_ones();
                let why = match pending {
                    0 => "were never written",
                    _ => "are the destination of an asynchronous copy that was not waited for",
                };
                let detail = format!("{count} of the bytes {why}: {place}");
                Stop::at(FaultKind::UninitializedRead, lane, address, detail)
            }
            Finding::Race(Conflict { warp, lane: other, pc, wrote }) => {
                let number = other.map(|lane| (warp * LANES + lane) as u32);
                let (block, thread) = (machine.block, number.ok_or(warp));
                let other = Other { block, thread, pc, wrote, same };
                race(machine.context, block, deeds, lane, address, other)
            }
        }
    }

    /// Looks for lanes that store different values to one address in one instruction.
    fn look_for_disagreement(
        &self,
        access: &Access,
        bytes: usize,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        if ascending(&self.pointers, mask, bytes) {
            return Ok(());
        }
        let bits = 8 * access.bytes;
        for lane in lanes(mask) {
            for other in lanes(mask & ((1 << lane) - 1)) {
                if self.pointers[lane] != self.pointers[other] {
                    continue;
                }
                let differs = access.sources.iter().any(|&source| {
                    let differing = self.get(source, lane) ^ self.get(source, other);
                    differing << (64 - bits) != 0
                });
                if differs {
                    let detail = format!(
                        "lanes {other} and {lane} of the warp store different values in one \
                         instruction"
                    );
                    let address = self.address(&access.address, lane);
                    return Err(Stop::at(FaultKind::Race, lane, address, detail));
                }
            }
        }
        Ok(())
    }
}

/// The earlier access of a race.
struct Other {
    block: u32,
    /// The thread, or only its warp.
    thread: Result<u32, usize>,
    pc: Option<u32>,
    wrote: bool,
    /// Whether it wrote what the later access writes.
    same: bool,
}

/// The report of a race.
#[cold]
fn race(
    context: &Context,
    block: u32,
    deeds: Deeds,
    lane: usize,
    address: u64,
    other: Other,
) -> Box<Stop> {
    let did = |wrote: bool| if wrote { "write" } else { "read" };
    let mut who = match other.thread {
        Ok(thread) => {
            let [x, y, z] = context.thread(thread);
            format!("thread ({x}, {y}, {z})")
        }
        Err(warp) => format!("a thread of warp {warp}"),
    };
    if other.block != block {
        let [width, height, _] = context.grid;
        let [x, y] = [other.block % width, other.block / width % height];
        let z = other.block / width / height;
        who = format!("{who} of block ({x}, {y}, {z})");
    }
    if let Some(pc) = other.pc {
        let (place, instruction) = (context.kernel.where_is(pc), context.kernel.text_at(pc));
        who = format!("{who} at {place}, `{instruction}`,");
    }
    let order = match other.block == block {
        true => "a barrier",
        false => "fences and atomics",
    };
    let (this, that) = (did(deeds.deed != Deed::Read), did(other.wrote));
    let mut detail = format!("this {this} and the {that} by {who} are not ordered by {order}");
    if other.same {
        detail += "; both write the same value, which CUDA_EMULATOR_SAME_VALUE_WRITES=1 allows";
    }
    Stop::at(FaultKind::Race, lane, address, detail)
}

/// The report of a read of bytes that nothing wrote.
#[cold]
fn never_written(
    allocation: &Allocation,
    deeds: Deeds,
    lane: usize,
    offset: usize,
    missing: usize,
) -> Box<Stop> {
    let (base, size, bytes) = (allocation.base, allocation.bytes, deeds.bytes);
    let detail = format!(
        "{missing} of the {bytes} bytes were never written: byte {offset} of the {size}-byte \
         allocation at {base:#x}"
    );
    Stop::at(FaultKind::UninitializedRead, lane, base + offset as u64, detail)
}

/// Whether every lane's bytes lie behind those of the lanes before it.
fn ascending(pointers: &Pointers, mask: u32, bytes: usize) -> bool {
    let mut end = 0;
    lanes(mask).all(|lane| {
        let start = pointers[lane].addr();
        let behind = start >= end;
        end = start + bytes;
        behind
    })
}

/// Counts the bytes that were not written to.
///
/// # Safety
/// The shadow is valid for reads of that many bytes.
#[inline(always)]
unsafe fn unwritten(shadow: *mut u8, bytes: usize) -> usize {
    use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};
    const ALL: u32 = u32::from_ne_bytes([WRITTEN; 4]);
    if bytes.is_multiple_of(4) && shadow.addr().is_multiple_of(4) {
        let words = (0..bytes / 4).map(|at| {
            // SAFETY: passed on to the caller; blocks may write meanwhile, so it is atomic.
            unsafe { AtomicU32::from_ptr(shadow.cast::<u32>().wrapping_add(at)) }.load(Relaxed)
        });
        if words.fold(ALL, |all, word| all & word) == ALL {
            return 0;
        }
    }
    let byte = |at: usize| {
        // SAFETY: as above.
        unsafe { AtomicU8::from_ptr(shadow.wrapping_add(at)) }.load(Relaxed)
    };
    (0..bytes).filter(|&at| byte(at) != WRITTEN).count()
}

/// Notes that bytes were written to, or that they have no value.
///
/// # Safety
/// The shadow is valid for writes of that many bytes.
#[inline(always)]
unsafe fn mark(shadow: *mut u8, bytes: usize, value: u8) {
    use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};
    if bytes.is_multiple_of(4) && shadow.addr().is_multiple_of(4) {
        for at in 0..bytes / 4 {
            // SAFETY: passed on to the caller; blocks may read meanwhile, so it is atomic.
            let word = unsafe { AtomicU32::from_ptr(shadow.cast::<u32>().wrapping_add(at)) };
            word.store(u32::from_ne_bytes([value; 4]), Relaxed);
        }
        return;
    }
    for at in 0..bytes {
        // SAFETY: as above.
        unsafe { AtomicU8::from_ptr(shadow.wrapping_add(at)) }.store(value, Relaxed);
    }
}
