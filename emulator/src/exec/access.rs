//! Loads and stores: from device addresses to host memory, checked lane by lane.
//!
//! Memory that blocks share is read and written through relaxed atomics, which are plain moves on
//! the host: programs that race are then wrong, but not undefined behaviour here.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use super::context::*;
use super::lanes::{self, LANES, V32, V64};
use super::op::{Access, Address, Order, Source, Space, Target};
use super::scalar::signed;
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::memory::{GLOBAL_END, find};

/// Host addresses, one per lane; those of lanes outside of the mask are dangling.
pub(crate) type Pointers = [*mut u8; LANES];

/// What an instruction does at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    Read,
    Write,
    /// Reads constant memory.
    ReadConstant,
}

/// A word that is moved at once.
trait Word: Copy {
    /// # Safety
    /// The pointer is aligned and points to memory that is valid for reads.
    unsafe fn load(pointer: *mut u8) -> u64;
    /// # Safety
    /// The pointer is aligned and points to memory that is valid for writes.
    unsafe fn store(pointer: *mut u8, value: u64);
}

macro_rules! word {
    ($int:ty, $atomic:ty) => {
        impl Word for $int {
            #[inline(always)]
            unsafe fn load(pointer: *mut u8) -> u64 {
                // SAFETY: passed on to the caller; atomics allow others to write meanwhile.
                u64::from(unsafe { <$atomic>::from_ptr(pointer.cast()) }.load(Ordering::Relaxed))
            }
            #[inline(always)]
            unsafe fn store(pointer: *mut u8, value: u64) {
                // SAFETY: as above.
                unsafe { <$atomic>::from_ptr(pointer.cast()) }
                    .store(value as $int, Ordering::Relaxed);
            }
        }
    };
}
word!(u8, AtomicU8);
word!(u16, AtomicU16);
word!(u32, AtomicU32);
word!(u64, AtomicU64);

impl Warp {
    /// The addresses of all lanes.
    pub(crate) fn addresses(&self, machine: &Machine, address: &Address) -> V64 {
        let wide = machine.context.wide;
        match address.base {
            Source::R(base) => lanes::addresses32(wide, &self.r[base as usize], address.offset),
            Source::Q(base) => lanes::addresses64(wide, &self.q[base as usize], address.offset),
            Source::P(_) => V64([0; LANES]),
        }
    }

    /// Host addresses of `bytes` bytes for each lane of the mask, or the fault of the first lane
    /// that may not have them.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn translate(
        &mut self,
        machine: &mut Machine,
        space: Space,
        addresses: &V64,
        bytes: u32,
        alignment: u32,
        intent: Intent,
        mask: u32,
    ) -> Result<Pointers, Box<Stop>> {
        let (bytes, alignment) = (u64::from(bytes), u64::from(alignment));
        let wide = machine.context.wide;
        let region = match space {
            Space::Global | Space::Generic => {
                let table = &machine.context.table;
                table.get(self.last_allocation).and_then(|allocation| {
                    let allowed = match intent {
                        Intent::Read => true,
                        Intent::Write => !allocation.constant,
                        Intent::ReadConstant => allocation.constant,
                    };
                    allowed.then_some((allocation.base, allocation.bytes, allocation.host()))
                })
            }
            Space::Shared => Some((SHARED_BASE, machine.shared.len(), machine.shared.host())),
            Space::Local => {
                let length = u64::from(machine.context.kernel.local_bytes);
                Some((LOCAL_BASE, length, self.local.as_mut_ptr().cast()))
            }
            Space::Param => {
                let length = machine.context.param_bytes as u64;
                (intent != Intent::Write).then(|| (PARAM_BASE, length, machine.context.params()))
            }
        };
        let stride = match space {
            Space::Local => machine.context.kernel.local_stride(),
            _ => 0,
        };
        let mut pointers = [std::ptr::null_mut(); LANES];
        if let Some((base, length, host)) = region
            && let Some(last) = length.checked_sub(bytes)
            && lanes::within(wide, addresses, mask, base, last, alignment)
        {
            for lane in 0..LANES {
                let offset = addresses.0[lane].wrapping_sub(base) as usize;
                pointers[lane] = host.wrapping_add(lane * stride).wrapping_add(offset);
            }
            return Ok(pointers);
        }
        for lane in lanes(mask) {
            let address = addresses.0[lane];
            pointers[lane] =
                self.translate_lane(machine, space, address, bytes, alignment, intent, lane)?;
        }
        Ok(pointers)
    }

    /// Host address of `bytes` bytes for one lane.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn translate_lane(
        &mut self,
        machine: &mut Machine,
        space: Space,
        address: u64,
        bytes: u64,
        alignment: u64,
        intent: Intent,
        lane: usize,
    ) -> Result<*mut u8, Box<Stop>> {
        if address & (alignment - 1) != 0 {
            let detail = format!("{bytes} bytes need an address that is a multiple of {alignment}");
            return Err(Stop::at(FaultKind::Misaligned, lane, address, detail));
        }
        let window = |start: u64| address.checked_sub(start).filter(|&o| o < WINDOW_BYTES);
        if space == Space::Generic {
            if let Some(offset) = window(SHARED_WINDOW) {
                return self.plain(machine, Space::Shared, offset, bytes, intent, lane);
            }
            if let Some(offset) = window(LOCAL_WINDOW) {
                return self.plain(machine, Space::Local, offset, bytes, intent, lane);
            }
            if let Some(offset) = window(PARAM_WINDOW) {
                return self.plain(machine, Space::Param, offset, bytes, intent, lane);
            }
            return self.plain(machine, Space::Global, address, bytes, intent, lane);
        }
        self.plain(machine, space, address, bytes, intent, lane)
    }

    fn plain(
        &mut self,
        machine: &mut Machine,
        space: Space,
        address: u64,
        bytes: u64,
        intent: Intent,
        lane: usize,
    ) -> Result<*mut u8, Box<Stop>> {
        let (name, base, length, host) = match space {
            Space::Shared => {
                ("shared", SHARED_BASE, machine.shared.len(), machine.shared.host())
            }
            Space::Local => {
                let length = u64::from(machine.context.kernel.local_bytes);
                let host = self.local.as_mut_ptr().cast::<u8>();
                let stride = machine.context.kernel.local_stride();
                ("local", LOCAL_BASE, length, host.wrapping_add(lane * stride))
            }
            Space::Param => {
                if intent == Intent::Write {
                    let detail = "kernel parameters cannot be written";
                    return Err(Stop::at(FaultKind::IllegalAccess, lane, address, detail));
                }
                let length = machine.context.param_bytes as u64;
                ("parameter", PARAM_BASE, length, machine.context.params())
            }
            Space::Global | Space::Generic => {
                return self.global(machine, address, bytes, intent, lane);
            }
        };
        let offset = address.wrapping_sub(base);
        if offset <= length && bytes <= length - offset {
            return Ok(host.wrapping_add(offset as usize));
        }
        let detail = if address < base {
            format!("{bytes} bytes before the {length} bytes of {name} memory")
        } else {
            let past = offset.saturating_sub(length);
            format!(
                "{bytes} bytes at offset {offset}, {past} bytes past the end of the {length} bytes \
                 of {name} memory"
            )
        };
        Err(Stop::at(FaultKind::OutOfBounds, lane, address, detail))
    }

    fn global(
        &mut self,
        machine: &mut Machine,
        address: u64,
        bytes: u64,
        intent: Intent,
        lane: usize,
    ) -> Result<*mut u8, Box<Stop>> {
        let table = &machine.context.table;
        let Some(at) = find(table, address, bytes) else {
            let memory = machine.context.memory;
            let (kind, detail) = match address {
                0 => (FaultKind::OutOfBounds, "the null address".to_owned()),
                _ if memory.was_freed(address) => {
                    (FaultKind::UseAfterFree, memory.describe(address, bytes))
                }
                _ if address >= GLOBAL_END => {
                    (FaultKind::OutOfBounds, "outside of global memory".to_owned())
                }
                _ => (FaultKind::OutOfBounds, memory.describe(address, bytes)),
            };
            return Err(Stop::at(kind, lane, address, format!("{bytes} bytes: {detail}")));
        };
        let allocation = &table[at];
        let refused = match intent {
            Intent::Read => None,
            Intent::Write => allocation.constant.then_some("constant memory cannot be written"),
            Intent::ReadConstant => (!allocation.constant).then_some("not in constant memory"),
        };
        if let Some(detail) = refused {
            return Err(Stop::at(FaultKind::IllegalAccess, lane, address, detail));
        }
        self.last_allocation = at;
        Ok(allocation.host().wrapping_add((address - allocation.base) as usize))
    }

    /// Executes a load.
    pub(crate) fn load(
        &mut self,
        machine: &mut Machine,
        access: &Access,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        let bytes = access.bytes * access.targets.len() as u32;
        let addresses = self.addresses(machine, &access.address);
        let space = access.address.space;
        let intent = if access.constant { Intent::ReadConstant } else { Intent::Read };
        let pointers = self.translate(machine, space, &addresses, bytes, bytes, intent, mask)?;
        count(machine, space, bytes, mask, Intent::Read);
        // SAFETY: `translate` checked alignment and bounds of every lane of the mask.
        unsafe {
            match access.bytes {
                1 => self.gather::<u8>(machine, access, &pointers, mask),
                2 => self.gather::<u16>(machine, access, &pointers, mask),
                4 => self.gather::<u32>(machine, access, &pointers, mask),
                _ => self.gather::<u64>(machine, access, &pointers, mask),
            }
        }
        if access.order == Order::Acquire {
            fence(Ordering::SeqCst);
        }
        Ok(())
    }

    /// # Safety
    /// The pointers of the mask's lanes are valid for reads of all elements of the access.
    unsafe fn gather<W: Word>(
        &mut self,
        machine: &Machine,
        access: &Access,
        pointers: &Pointers,
        mask: u32,
    ) {
        let wide = machine.context.wide;
        for (index, &target) in access.targets.iter().enumerate() {
            let offset = index * size_of::<W>();
            // SAFETY: passed on to the caller.
            let read = |lane: usize| unsafe { W::load(pointers[lane].wrapping_add(offset)) };
            match target {
                Target::R(d, 32) if !access.signed || access.bytes == 4 => {
                    let mut values = V32([0; LANES]);
                    if mask == u32::MAX {
                        for lane in 0..LANES {
                            values.0[lane] = read(lane) as u32;
                        }
                    } else {
                        lanes(mask).for_each(|lane| values.0[lane] = read(lane) as u32);
                    }
                    self.put32(wide, d, &values, mask);
                }
                _ => {
                    let bits = 8 * access.bytes;
                    let extend =
                        |v: u64| if access.signed { signed(v, bits) as u64 } else { v };
                    lanes(mask).for_each(|lane| self.put(target, lane, extend(read(lane))));
                }
            }
        }
    }

    /// Executes a store.
    pub(crate) fn store(
        &mut self,
        machine: &mut Machine,
        access: &Access,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        let bytes = access.bytes * access.sources.len() as u32;
        let addresses = self.addresses(machine, &access.address);
        let space = access.address.space;
        let intent = Intent::Write;
        let pointers = self.translate(machine, space, &addresses, bytes, bytes, intent, mask)?;
        count(machine, space, bytes, mask, Intent::Write);
        if access.order == Order::Release {
            fence(Ordering::SeqCst);
        }
        // SAFETY: `translate` checked alignment and bounds of every lane of the mask.
        unsafe {
            match access.bytes {
                1 => self.scatter::<u8>(access, &pointers, mask),
                2 => self.scatter::<u16>(access, &pointers, mask),
                4 => self.scatter::<u32>(access, &pointers, mask),
                _ => self.scatter::<u64>(access, &pointers, mask),
            }
        }
        Ok(())
    }

    /// # Safety
    /// The pointers of the mask's lanes are valid for writes of all elements of the access.
    unsafe fn scatter<W: Word>(&mut self, access: &Access, pointers: &Pointers, mask: u32) {
        for (index, &source) in access.sources.iter().enumerate() {
            let offset = index * size_of::<W>();
            for lane in lanes(mask) {
                let value = self.get(source, lane);
                // SAFETY: passed on to the caller.
                unsafe { W::store(pointers[lane].wrapping_add(offset), value) };
            }
        }
    }
}

/// Counts an access.
pub(crate) fn count(
    machine: &mut Machine,
    space: Space,
    bytes: u32,
    mask: u32,
    intent: Intent,
) {
    let bytes = u64::from(bytes) * u64::from(mask.count_ones());
    match space {
        Space::Global | Space::Generic => {
            machine.counters.global_requests += 1;
            match intent {
                Intent::Write => machine.counters.global_bytes_written += bytes,
                _ => machine.counters.global_bytes_read += bytes,
            }
        }
        Space::Shared => machine.counters.shared_requests += 1,
        Space::Local | Space::Param => {}
    }
}

/// Reads a byte of memory that blocks share.
///
/// # Safety
/// The pointer is valid for reads.
pub(crate) unsafe fn read_byte(pointer: *mut u8) -> u8 {
    // SAFETY: passed on to the caller.
    unsafe { u8::load(pointer) as u8 }
}

/// Copies aligned words out of memory that blocks share.
///
/// # Safety
/// `from` is valid for reads of `bytes` bytes and a multiple of 4; `to` for writes; `bytes` is a
/// multiple of 4.
pub(crate) unsafe fn copy_words(from: *mut u8, to: *mut u8, bytes: usize) {
    for at in (0..bytes).step_by(4) {
        // SAFETY: passed on to the caller.
        unsafe { u32::store(to.wrapping_add(at), u32::load(from.wrapping_add(at))) };
    }
}
