//! What the sanitizer knows of global memory during a launch: who last touched it, and what blocks
//! left for each other there.
//!
//! A granule holds its last write, and its last reads by two warps; what does not fit is
//! forgotten, so that a race may be missed, and none is made up. Granules of one line that are
//! only ever accessed together are noted once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::clocks::{Clocks, Touch};
use super::granules::{GRANULE, LINE, LINE_GRANULES, WHOLE, part};
use super::times::Message;
use crate::exec::alu::lanes::LANES;
use crate::memory::{Allocation, Table, WRITTEN};

/// Bytes of a page, whose notes are made at once.
const PAGE: usize = 4096;
const PAGE_LINES: usize = PAGE / LINE;
/// Bytes of a region, which is locked at once.
const REGION: usize = 16 * PAGE;

/// An access to a granule.
#[derive(Clone, Copy, Default)]
pub(crate) struct Trace {
    pub(crate) block: u32,
    /// The time of its warp; 0 where there was no access.
    clock: u32,
    pub(crate) pc: u32,
    thread: u16,
    bytes: u8,
    strong: bool,
}

impl Trace {
    #[inline(always)]
    fn new(access: GlobalAccess, clock: u32, bytes: u8) -> Self {
        let GlobalAccess { block, by, .. } = access;
        Self { block, clock, pc: by.pc, thread: by.thread(), bytes, strong: by.strong }
    }

    pub(crate) fn thread(&self) -> u32 {
        u32::from(self.thread)
    }

    fn warp(&self) -> usize {
        usize::from(self.thread) / LANES
    }

    fn is_of(&self, block: u32, by: Touch) -> bool {
        self.block == block && self.warp() == by.warp
    }
}

/// The last accesses to a granule.
#[derive(Clone, Copy, Default)]
struct Notes {
    write: Trace,
    read: Trace,
    /// The last read by another warp than the last one's.
    other_read: Trace,
}

/// Notes of the granules of a line.
type Granules = [Notes; LINE_GRANULES];

/// The notes of a page.
pub(crate) struct Page {
    /// Whether every byte of it is known to have been written to.
    pub(crate) is_written: bool,
    /// Whether the launch has written to a line as a whole.
    is_changed: bool,
    /// The last accesses to each line as a whole.
    writes: [Trace; PAGE_LINES],
    reads: [Trace; PAGE_LINES],
    other_reads: [Trace; PAGE_LINES],
    /// Lines that have notes for each granule, a bit each.
    split: [u64; PAGE_LINES / 64],
    granules: Vec<Granules>,
}

impl Page {
    /// A page that nobody has accessed; `written` is what is known of its bytes.
    fn new(written: &[AtomicU8]) -> Box<Self> {
        Box::new(Self {
            is_written: written.iter().all(|byte| byte.load(Ordering::Relaxed) == WRITTEN),
            is_changed: false,
            writes: [Trace::default(); PAGE_LINES],
            reads: [Trace::default(); PAGE_LINES],
            other_reads: [Trace::default(); PAGE_LINES],
            split: [0; PAGE_LINES / 64],
            granules: Vec::new(),
        })
    }

    #[inline(always)]
    fn is_split(&self, line: usize) -> bool {
        self.split[line / 64] >> (line % 64) & 1 != 0
    }

    /// The notes of each granule of a line.
    fn granules(&mut self, line: usize) -> &mut Granules {
        if self.granules.is_empty() {
            self.granules.resize(PAGE_LINES, Granules::default());
        }
        if !self.is_split(line) {
            self.split[line / 64] |= 1 << (line % 64);
            self.granules[line] = [self.line(line); LINE_GRANULES];
        }
        &mut self.granules[line]
    }

    /// The notes of a line as a whole.
    fn line(&self, line: usize) -> Notes {
        let (write, read) = (self.writes[line], self.reads[line]);
        Notes { write, read, other_read: self.other_reads[line] }
    }

    /// Notes an access, or finds the one that it races with.
    #[inline(always)]
    pub(crate) fn note(
        &mut self,
        clocks: &mut Clocks,
        access: GlobalAccess,
    ) -> Result<(), GlobalConflict> {
        let GlobalAccess { mut offset, bytes, by, writes, .. } = access;
        let time = clocks.time(by.warp);
        let end = offset + bytes;
        if !bytes.is_multiple_of(LINE) || !offset.is_multiple_of(LINE) || by.strong {
            let mask = part(offset, bytes);
            while offset < end {
                let notes = &mut self.granules(offset % PAGE / LINE)[offset % LINE / GRANULE];
                notes.note(clocks, time, mask, GlobalAccess { offset, ..access })?;
                offset = (offset / GRANULE + 1) * GRANULE;
            }
            return Ok(());
        }
        while offset < end {
            let line = offset % PAGE / LINE;
            if !self.is_changed && !writes && !self.is_split(line) {
                // Nothing to race with.
                let read = &mut self.reads[line];
                if read.clock != 0 && !read.is_of(access.block, by) {
                    self.other_reads[line] = *read;
                }
                *read = Trace::new(access, time, WHOLE);
            } else {
                self.note_line(clocks, time, line, GlobalAccess { offset, ..access })?;
            }
            offset += LINE;
        }
        Ok(())
    }

    /// Notes an access to a line as a whole.
    fn note_line(
        &mut self,
        clocks: &mut Clocks,
        time: u32,
        line: usize,
        access: GlobalAccess,
    ) -> Result<(), GlobalConflict> {
        if self.is_split(line) {
            for granule in 0..LINE_GRANULES {
                let offset = access.offset + granule * GRANULE;
                let notes = &mut self.granules[line][granule];
                notes.note(clocks, time, WHOLE, GlobalAccess { offset, ..access })?;
            }
            return Ok(());
        }
        self.is_changed |= access.writes;
        let mut notes = self.line(line);
        notes.note(clocks, time, WHOLE, access)?;
        (self.writes[line], self.reads[line]) = (notes.write, notes.read);
        self.other_reads[line] = notes.other_read;
        Ok(())
    }
}

/// The notes of a region.
type Region = [Option<Box<Page>>; REGION / PAGE];
/// The regions of an allocation.
type Regions = Box<[Mutex<Region>]>;

/// The shadow of global memory, shared by the blocks of a launch.
pub(crate) struct GlobalShadow {
    /// By the allocations of the launch; those that something touched.
    allocations: Vec<OnceLock<Regions>>,
    /// What was left at places, by host address.
    messages: Mutex<HashMap<usize, Message>>,
    /// Held from where an access that is not weak is noted until it was carried out, so that they
    /// are noted in the order in which they happen.
    strong: Mutex<()>,
}

/// Holds the region that was used last.
#[derive(Default)]
pub(crate) struct Held<'a> {
    region: Option<((usize, usize), MutexGuard<'a, Region>)>,
}

impl<'a> Held<'a> {
    /// The notes of the page that holds an offset of an allocation, which has that number in the
    /// launch's table.
    #[inline(always)]
    pub(crate) fn page(
        &mut self,
        global: &'a GlobalShadow,
        allocation: &Allocation,
        number: usize,
        offset: usize,
    ) -> Option<&mut Page> {
        let place = (number, offset / REGION);
        if self.region.as_ref().is_none_or(|(at, _)| *at != place) {
            // The other one is let go first: two threads would wait for each other.
            self.region = None;
            let regions = || {
                let count = allocation.bytes.div_ceil(REGION as u64);
                (0..count).map(|_| Mutex::default()).collect()
            };
            let regions: &Regions = global.allocations.get(number)?.get_or_init(regions);
            self.region = Some((place, lock(regions.get(place.1)?)));
        }
        let (_, region) = self.region.as_mut()?;
        let page = &mut region[offset % REGION / PAGE];
        if page.is_none() {
            let start = offset / PAGE * PAGE;
            let length = (allocation.bytes as usize - start).min(PAGE);
            let written = allocation.shadow()?.wrapping_add(start);
            // SAFETY: the shadow is as long as the allocation; all accesses to it are atomic.
            let written = unsafe { std::slice::from_raw_parts(written.cast(), length) };
            *page = Some(Page::new(written));
        }
        page.as_deref_mut()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new access.
#[derive(Clone, Copy)]
pub(crate) struct GlobalAccess {
    pub(crate) block: u32,
    /// The allocation's number in the launch's table.
    pub(crate) allocation: usize,
    /// Where in it the access starts.
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
    pub(crate) writes: bool,
    pub(crate) by: Touch,
}

/// An earlier access that a new one races with.
pub(crate) struct GlobalConflict {
    pub(crate) other: Trace,
    pub(crate) wrote: bool,
    /// Where in the allocation the bytes are that both touch.
    pub(crate) offset: usize,
}

impl GlobalShadow {
    pub(crate) fn new(table: &Table) -> Self {
        Self {
            allocations: table.iter().map(|_| OnceLock::new()).collect(),
            messages: Mutex::default(),
            strong: Mutex::default(),
        }
    }

    /// To be held while an access that is not weak is noted and carried out.
    pub(crate) fn one_at_a_time(&self) -> MutexGuard<'_, ()> {
        lock(&self.strong)
    }

    /// A lane writes to a place by other than a weak access.
    pub(crate) fn tell(&self, place: usize, word: &Message) {
        lock(&self.messages).entry(place).or_default().join(word);
    }

    /// What was left at a place.
    pub(crate) fn message(&self, place: usize) -> Option<Message> {
        lock(&self.messages).get(&place).cloned()
    }

    /// Forgets the accesses to a part of an allocation that is given out anew: who gave it back was
    /// done with it.
    pub(crate) fn forget(&self, allocation: usize, offset: usize, bytes: usize) {
        let Some(regions) = self.allocations.get(allocation).and_then(OnceLock::get) else {
            return;
        };
        for granule in offset / GRANULE..(offset + bytes).div_ceil(GRANULE) {
            let at = granule * GRANULE;
            let Some(region) = regions.get(at / REGION) else { return };
            if let Some(page) = &mut lock(region)[at % REGION / PAGE] {
                page.is_written = false;
                let granules = page.granules(at % PAGE / LINE);
                granules[granule % LINE_GRANULES] = Notes::default();
            }
        }
    }
}

impl Notes {
    /// Notes an access to bytes.
    #[inline(always)]
    fn note(
        &mut self,
        clocks: &mut Clocks,
        time: u32,
        bytes: u8,
        access: GlobalAccess,
    ) -> Result<(), GlobalConflict> {
        let GlobalAccess { block, offset, writes, by, .. } = access;
        let races = |trace: &Trace| races(trace, clocks, bytes, access);
        let conflict = |other, wrote| Err(GlobalConflict { other, wrote, offset });
        if self.write.clock != 0 && races(&self.write) {
            return conflict(self.write, true);
        }
        if writes {
            for read in [self.read, self.other_read] {
                if read.clock != 0 && races(&read) {
                    return conflict(read, false);
                }
            }
        }
        let observes = by.strong && self.write.strong && self.write.bytes & bytes != 0;
        if observes && !self.write.is_of(block, by) {
            let Trace { block, thread, clock, .. } = self.write;
            clocks.observe(place(access), by.warp, block, thread, clock);
        }
        if !writes && !self.read.is_of(block, by) {
            self.other_read = self.read;
        }
        // An atomic update is of no interest as a read: what races with it races with its write.
        let last = if writes { &mut self.write } else { &mut self.read };
        let same = last.is_of(block, by) && last.clock == time && last.thread == by.thread();
        let bytes = if same { last.bytes | bytes } else { bytes };
        let strong = by.strong && (!same || last.strong);
        *last = Trace { strong, ..Trace::new(access, time, bytes) };
        Ok(())
    }
}

/// The place of a granule among those that clocks observe: no place in shared memory.
fn place(access: GlobalAccess) -> usize {
    ((access.allocation + 1) << 40) | (access.offset / GRANULE)
}

/// Whether an earlier access races with a new one, one of which is a write.
#[inline(never)]
fn races(trace: &Trace, clocks: &Clocks, bytes: u8, access: GlobalAccess) -> bool {
    let GlobalAccess { block, by, .. } = access;
    if trace.bytes & bytes == 0 || trace.strong && by.strong {
        return false;
    }
    let ordered = if trace.block == block {
        // Lanes of one instruction that write the same: what differs is found elsewhere.
        let together = trace.pc == by.pc && trace.warp() == by.warp;
        let same_time = || trace.clock == clocks.time(by.warp);
        clocks.knows(by, trace.thread, trace.clock) || together && same_time()
    } else {
        clocks.seen(by.warp).covers(trace.block, trace.thread, trace.clock)
    };
    let observed = || clocks.observed(place(access), by, trace.block, trace.thread, trace.clock);
    !(ordered || trace.strong && observed())
}
