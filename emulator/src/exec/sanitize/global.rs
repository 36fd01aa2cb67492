//! What the sanitizer knows of global memory during a launch: who last touched it, and what blocks
//! left for each other there.
//!
//! A granule holds its last write, and its last reads by two warps; what does not fit is
//! forgotten, so that a race may be missed, and none is made up.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::clocks::{Clocks, Known, Message, Touch};
use super::shared::GRANULE;
use crate::exec::alu::lanes::LANES;

const PAGE_GRANULES: usize = 128;
const PAGE_BYTES: u64 = (PAGE_GRANULES * GRANULE) as u64;
const SHARDS: usize = 64;

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
struct Granule {
    write: Trace,
    read: Trace,
    /// The last read by another warp than the last one's.
    other_read: Trace,
}

/// Mixes the bits of a page's number.
#[derive(Default)]
struct PageHasher(u64);

impl Hasher for PageHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Page = [Granule; PAGE_GRANULES];
/// Pages by their numbers, with the places of their granules.
type Pages = HashMap<u64, usize, BuildHasherDefault<PageHasher>>;

/// Pages that are kept together.
#[derive(Default)]
struct Shard {
    places: Pages,
    pages: Vec<Box<Page>>,
}

impl Shard {
    fn place(&mut self, page: u64) -> usize {
        *self.places.entry(page).or_insert_with(|| {
            self.pages.push(Box::new([Granule::default(); PAGE_GRANULES]));
            self.pages.len() - 1
        })
    }
}

/// The shadow of global memory, shared by the blocks of a launch.
pub(crate) struct GlobalShadow {
    shards: Vec<Mutex<Shard>>,
    /// What was left at places, by host address.
    messages: Mutex<HashMap<usize, Message>>,
    /// Held from where an access that is not weak is noted until it was carried out, so that they
    /// are noted in the order in which they happen.
    strong: Mutex<()>,
}

/// Holds the part of the shadow that was used last, and knows the page in it.
#[derive(Default)]
pub(crate) struct Held<'a> {
    shard: Option<(usize, MutexGuard<'a, Shard>)>,
    page: Option<(u64, usize)>,
}

impl<'a> Held<'a> {
    /// The granules of a page.
    #[inline(always)]
    fn page(&mut self, global: &'a GlobalShadow, number: u64) -> Option<&mut Page> {
        let index = number as usize % SHARDS;
        if self.shard.as_ref().is_none_or(|(at, _)| *at != index) {
            // The other one is let go first: two threads would wait for each other.
            (self.shard, self.page) = (None, None);
            self.shard = Some((index, lock(&global.shards[index])));
        }
        let (_, shard) = self.shard.as_mut()?;
        let place = match self.page {
            Some((known, place)) if known == number => place,
            _ => shard.place(number),
        };
        self.page = Some((number, place));
        shard.pages.get_mut(place).map(|page| &mut **page)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new access, within one page.
#[derive(Clone, Copy)]
pub(crate) struct GlobalAccess {
    pub(crate) block: u32,
    pub(crate) address: u64,
    /// Its length in granules, begun ones included.
    pub(crate) granules: usize,
    /// The bytes of each granule, as a mask.
    pub(crate) bytes: u8,
    pub(crate) writes: bool,
    pub(crate) by: Touch,
}

/// An earlier access that a new one races with.
pub(crate) struct GlobalConflict {
    pub(crate) other: Trace,
    pub(crate) wrote: bool,
    /// Where the bytes are that both touch.
    pub(crate) address: u64,
}

impl GlobalShadow {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            messages: Mutex::default(),
            strong: Mutex::default(),
        }
    }

    /// To be held while an access that is not weak is noted and carried out.
    pub(crate) fn one_at_a_time(&self) -> MutexGuard<'_, ()> {
        lock(&self.strong)
    }

    /// A warp of a block writes to a place by other than a weak access.
    pub(crate) fn tell(&self, block: u32, known: &Known, place: usize) {
        known.leave(lock(&self.messages).entry(place).or_default(), block);
    }

    /// A warp of a block reads a place by other than a weak access.
    pub(crate) fn hear(&self, clocks: &mut Clocks, warp: usize, block: u32, place: usize) {
        if let Some(message) = lock(&self.messages).get(&place) {
            clocks.hear_message(warp, block, message);
        }
    }

    /// Forgets the accesses to memory that is given out anew: who gave it back was done with it.
    pub(crate) fn forget(&self, address: u64, bytes: u64) {
        let (first, end) = (address / PAGE_BYTES, address.saturating_add(bytes));
        for number in first..end.div_ceil(PAGE_BYTES) {
            let mut shard = lock(&self.shards[number as usize % SHARDS]);
            let Some(&place) = shard.places.get(&number) else { continue };
            let granule =
                |address: u64| address.saturating_sub(number * PAGE_BYTES) as usize / GRANULE;
            let range = granule(address)..granule(end - 1).min(PAGE_GRANULES - 1) + 1;
            shard.pages[place][range].fill(Granule::default());
        }
    }

    /// Notes an access, or finds the one that it races with.
    pub(crate) fn note<'a>(
        &'a self,
        held: &mut Held<'a>,
        clocks: &mut Clocks,
        access: GlobalAccess,
    ) -> Result<(), GlobalConflict> {
        let Some(page) = held.page(self, access.address / PAGE_BYTES) else { return Ok(()) };
        let first = (access.address % PAGE_BYTES) as usize / GRANULE;
        let time = clocks.time(access.by.warp);
        for index in 0..access.granules {
            let Some(granule) = page.get_mut(first + index) else { break };
            let address = access.address + (index * GRANULE) as u64;
            granule.note(clocks, time, GlobalAccess { address, ..access })?;
        }
        Ok(())
    }
}

impl Granule {
    /// Notes an access to it.
    #[inline(always)]
    fn note(
        &mut self,
        clocks: &mut Clocks,
        time: u32,
        access: GlobalAccess,
    ) -> Result<(), GlobalConflict> {
        let GlobalAccess { block, address, bytes, writes, by, .. } = access;
        let conflict = |other, wrote| Err(GlobalConflict { other, wrote, address });
        if races(&self.write, clocks, access) {
            return conflict(self.write, true);
        }
        if writes {
            for read in [self.read, self.other_read] {
                if races(&read, clocks, access) {
                    return conflict(read, false);
                }
            }
        }
        let observes = by.strong && self.write.strong && self.write.bytes & bytes != 0;
        if observes && !self.write.is_of(block, by) {
            let Trace { block, thread, clock, .. } = self.write;
            clocks.observe(place(address), by.warp, block, thread, clock);
        }
        if !writes && !self.read.is_of(block, by) {
            self.other_read = self.read;
        }
        // An atomic update is of no interest as a read: what races with it races with its write.
        let last = if writes { &mut self.write } else { &mut self.read };
        let same = last.is_of(block, by) && last.clock == time && last.thread == by.thread();
        *last = Trace {
            block,
            clock: time,
            pc: by.pc,
            thread: by.thread(),
            bytes: if same { last.bytes | bytes } else { bytes },
            strong: by.strong && (!same || last.strong),
        };
        Ok(())
    }
}

/// The place of a granule among those that clocks observe.
fn place(address: u64) -> usize {
    (address / GRANULE as u64) as usize
}

/// Whether an earlier access races with a new one, one of which is a write.
#[inline(always)]
fn races(trace: &Trace, clocks: &Clocks, access: GlobalAccess) -> bool {
    let GlobalAccess { block, address, bytes, by, .. } = access;
    if trace.clock == 0 || trace.bytes & bytes == 0 || trace.strong && by.strong {
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
    let observed = || clocks.observed(place(address), by, trace.block, trace.thread, trace.clock);
    !(ordered || trace.strong && observed())
}
