//! Loads and stores: from device addresses to host memory, checked lane by lane.
//!
//! Memory that blocks share is read and written through relaxed atomics, which are plain moves on
//! the host: programs that race are then wrong, but not undefined behaviour here.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use crate::exec::alu::lanes::{self, LANES, Region};
use crate::exec::alu::scalar::signed;
use crate::exec::context::*;
use crate::exec::sanitize::{Deed, Deeds};
use crate::exec::warp::Warp;
use crate::fault::FaultKind;
use crate::memory::{GLOBAL_END, POISON, find};
use crate::program::{
    Access, Address, DISCARDED, LOCAL_BASE, LOCAL_WINDOW, Order, PARAM_BASE, PARAM_WINDOW,
    SHARED_WINDOW, Source, Space, Target, WINDOW_BYTES,
};

/// Host addresses, one per lane; those of lanes outside of the mask are dangling.
pub(crate) type Pointers = [*mut u8; LANES];

/// What a word holds that was discarded.
const NOTHING: u64 = u64::from_ne_bytes([POISON; 8]);

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
    /// The address of one lane.
    pub(crate) fn address(&self, address: &Address, lane: usize) -> u64 {
        self.get(address.base, lane).wrapping_add(address.offset as u64)
    }

    /// Finds host addresses of `bytes` aligned bytes for each lane of the mask, into
    /// `self.pointers`, or the fault of the first lane that may not have them.
    pub(crate) fn translate(
        &mut self,
        machine: &mut Machine,
        address: &Address,
        bytes: u32,
        intent: Intent,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        let space = address.space;
        if self.locate(machine, address, bytes, intent, mask) {
            return Ok(());
        }
        if matches!(space, Space::Global | Space::Generic) {
            // An access to another allocation than the last one.
            let first = self.address(address, mask.trailing_zeros() as usize % LANES);
            if let Some(at) = find(&machine.context.table, first, u64::from(bytes)) {
                self.last_allocation = at;
                if self.locate(machine, address, bytes, intent, mask) {
                    return Ok(());
                }
            }
        }
        let bytes = u64::from(bytes);
        for lane in lanes(mask) {
            let address = self.address(address, lane);
            self.pointers[lane] =
                self.translate_lane(machine, space, address, bytes, bytes, intent, lane)?;
        }
        Ok(())
    }

    /// The same, if all lanes have their bytes in one stretch of memory that is likely.
    #[inline(always)]
    fn locate(
        &mut self,
        machine: &mut Machine,
        address: &Address,
        bytes: u32,
        intent: Intent,
        mask: u32,
    ) -> bool {
        let (context, space) = (machine.context, address.space);
        let (base, length, host) = match space {
            Space::Shared => machine.shared.region(),
            Space::Global | Space::Generic => {
                let allowed = context.table.get(self.last_allocation).filter(|a| match intent {
                    Intent::Read => true,
                    Intent::Write => !a.constant,
                    Intent::ReadConstant => a.constant,
                });
                let none = (0, 0, std::ptr::null_mut());
                allowed.map_or(none, |a| (a.base, a.bytes, a.host()))
            }
            Space::Local => {
                let length = u64::from(context.local_bytes);
                (LOCAL_BASE, length, self.local.as_mut_ptr().cast())
            }
            Space::Param if intent == Intent::Write => (0, 0, std::ptr::null_mut()),
            Space::Param => (PARAM_BASE, context.param_bytes as u64, context.params()),
        };
        let Some(last) = length.checked_sub(u64::from(bytes)) else { return false };
        let region = Region { base, last, host };
        let (wide, offset, pointers) = (context.wide, address.offset, &mut self.pointers);
        let found = match address.base {
            Source::R(base) => {
                let base = &self.r[base as usize];
                lanes::locate32(wide, base, offset, mask, region, bytes, pointers)
            }
            Source::Q(base) => {
                let base = &self.q[base as usize];
                lanes::locate64(wide, base, offset, mask, region, bytes, pointers)
            }
            Source::P(_) => false,
        };
        if found && space == Space::Local {
            // Each thread has its own.
            let stride = context.local_stride();
            for (lane, pointer) in pointers.iter_mut().enumerate() {
                *pointer = pointer.wrapping_add(lane * stride);
            }
        }
        found
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
            let what = machine.context.kernel.alignment_at(space, address);
            let what = what.map_or(String::new(), |what| format!(": it is {what}"));
            let detail =
                format!("{bytes} bytes need an address that is a multiple of {alignment}{what}");
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
                let (base, length, host) = machine.shared.region();
                ("shared", base, length, host)
            }
            Space::Local => {
                let length = u64::from(machine.context.local_bytes);
                let host = self.local.as_mut_ptr().cast::<u8>();
                let stride = machine.context.local_stride();
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
        let space = access.address.space;
        let intent = if access.constant { Intent::ReadConstant } else { Intent::Read };
        self.translate(machine, &access.address, bytes, intent, mask)?;
        count(machine, space, bytes, mask, Intent::Read);
        self.measure(machine, &access.address, bytes, mask, intent);
        let _strong = self.one_at_a_time(machine, space, access.order);
        if machine.context.config.sanitizer {
            self.look_at_load(machine, access, mask)?;
        }
        // SAFETY: `translate` checked alignment and bounds of every lane of the mask.
        unsafe {
            match access.bytes {
                1 => self.gather::<u8>(access, mask),
                2 => self.gather::<u16>(access, mask),
                4 => self.gather::<u32>(access, mask),
                _ => self.gather::<u64>(access, mask),
            }
        }
        if access.order == Order::Acquire {
            fence(Ordering::SeqCst);
        }
        if access.order != Order::Weak {
            let targets = &access.targets;
            let values =
                targets.iter().flat_map(|&target| lanes(mask).map(move |lane| (target, lane)));
            let values: Vec<u64> = values.map(|(target, lane)| self.held(target, lane)).collect();
            self.spin.has_read(machine.pc, values.into_iter());
            if machine.context.config.sanitizer {
                self.hear(machine, &access.address, access.order, mask);
            }
        }
        Ok(())
    }

    /// # Safety
    /// The pointers of the mask's lanes are valid for reads of all elements of the access.
    unsafe fn gather<W: Word>(&mut self, access: &Access, mask: u32) {
        for (index, &target) in access.targets.iter().enumerate() {
            let offset = index * size_of::<W>();
            let pointers = &self.pointers;
            // SAFETY: passed on to the caller.
            let read = |lane: usize| unsafe { W::load(pick(pointers, lane).wrapping_add(offset)) };
            match target {
                Target::R(d, 32) if mask == u32::MAX && (!access.signed || access.bytes == 4) => {
                    let d = &mut self.r[d as usize].0;
                    for lane in 0..LANES {
                        d[lane] = read(lane) as u32;
                    }
                }
                Target::Q(d) if mask == u32::MAX && access.bytes == 8 => {
                    let d = &mut self.q[d as usize].0;
                    for lane in 0..LANES {
                        d[lane] = read(lane);
                    }
                }
                _ => {
                    let bits = 8 * access.bytes;
                    for lane in lanes(mask) {
                        // SAFETY: passed on to the caller.
                        let value = unsafe { W::load(self.pointers[lane].wrapping_add(offset)) };
                        let value = if access.signed { signed(value, bits) as u64 } else { value };
                        self.put(target, lane, value);
                    }
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
        let space = access.address.space;
        self.spin.has_effect();
        self.translate(machine, &access.address, bytes, Intent::Write, mask)?;
        count(machine, space, bytes, mask, Intent::Write);
        self.measure(machine, &access.address, bytes, mask, Intent::Write);
        let _strong = self.one_at_a_time(machine, space, access.order);
        if machine.context.config.sanitizer {
            self.look_at_store(machine, access, mask)?;
        }
        if access.order == Order::Release {
            fence(Ordering::SeqCst);
        }
        // SAFETY: `translate` checked alignment and bounds of every lane of the mask.
        unsafe {
            match access.bytes {
                1 => self.scatter::<u8>(access, mask),
                2 => self.scatter::<u16>(access, mask),
                4 => self.scatter::<u32>(access, mask),
                _ => self.scatter::<u64>(access, mask),
            }
        }
        Ok(())
    }

    /// Executes a discard: a weak write of no value in particular, which device memory is spared.
    pub(crate) fn discard(
        &mut self,
        machine: &mut Machine,
        address: &Address,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        self.spin.has_effect();
        self.translate(machine, address, DISCARDED, Intent::Write, mask)?;
        let at = |&lane: &usize| self.address(address, lane);
        if let Some(lane) = lanes(mask).find(|lane| at(lane) >= PARAM_WINDOW) {
            let detail = "only global memory can be discarded";
            return Err(Stop::at(FaultKind::IllegalAccess, lane, at(&lane), detail));
        }
        self.measure_discard(machine, address, mask);
        if machine.context.config.sanitizer {
            let (bytes, order) = (DISCARDED as usize, Order::Weak);
            self.look(
                machine,
                Deeds { deed: Deed::Discard, address, bytes, mask, order, store: None },
            )?;
        }
        for lane in lanes(mask) {
            for at in (0..DISCARDED as usize).step_by(size_of::<u64>()) {
                // SAFETY: `translate` found these bytes, at a multiple of how many they are.
                unsafe { u64::store(self.pointers[lane].wrapping_add(at), NOTHING) };
            }
        }
        Ok(())
    }

    /// # Safety
    /// The pointers of the mask's lanes are valid for writes of all elements of the access.
    unsafe fn scatter<W: Word>(&mut self, access: &Access, mask: u32) {
        for (index, &source) in access.sources.iter().enumerate() {
            let offset = index * size_of::<W>();
            match source {
                Source::R(a) if mask == u32::MAX => {
                    let a = &self.r[a as usize].0;
                    for lane in 0..LANES {
                        let to = pick(&self.pointers, lane).wrapping_add(offset);
                        // SAFETY: passed on to the caller.
                        unsafe { W::store(to, u64::from(a[lane])) };
                    }
                }
                _ => {
                    for lane in lanes(mask) {
                        let to = self.pointers[lane].wrapping_add(offset);
                        // SAFETY: passed on to the caller.
                        unsafe { W::store(to, self.get(source, lane)) };
                    }
                }
            }
        }
    }
}

/// The pointer of a lane. A volatile read, or the compiler adds offsets to all pointers as vectors,
/// which then have to go through the stack.
#[inline(always)]
fn pick(pointers: &Pointers, lane: usize) -> *mut u8 {
    // SAFETY: a reference to an initialised pointer.
    unsafe { std::ptr::from_ref(&pointers[lane]).read_volatile() }
}

/// Has the host's caches fetch what will be read soon.
#[inline(always)]
pub(crate) fn prefetch(pointer: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch may be of any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(pointer.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = pointer;
}

/// Counts an access.
pub(crate) fn count(machine: &mut Machine, space: Space, bytes: u32, mask: u32, intent: Intent) {
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

/// Copies 4, 8 or 16 bytes out of memory that blocks share.
///
/// # Safety
/// `from` is valid for reads and `to` for writes of that many bytes; both are multiples of it, or
/// of 8 where it is 16.
pub(crate) unsafe fn copy_words(from: *mut u8, to: *mut u8, bytes: usize) {
    // SAFETY: passed on to the caller.
    unsafe {
        match bytes {
            4 => u32::store(to, u32::load(from)),
            8 => u64::store(to, u64::load(from)),
            _ => {
                u64::store(to, u64::load(from));
                u64::store(to.wrapping_add(8), u64::load(from.wrapping_add(8)));
            }
        }
    }
}
