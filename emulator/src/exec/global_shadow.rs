//! What the sanitizer knows of global memory during a launch: who last touched it, and what blocks
//! left for each other there.
//!
//! A granule holds its last write, and its last reads by two warps; what does not fit is
//! forgotten, so that a race may be missed, and none is made up.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::clocks::{Clocks, Known, Message, Touch};
use super::lanes::LANES;
use super::shadow::GRANULE;

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

type Pages = HashMap<u64, Box<[Granule; PAGE_GRANULES]>>;

/// The shadow of global memory, shared by the blocks of a launch.
pub(crate) struct GlobalShadow {
    pages: Vec<Mutex<Pages>>,
    /// What was left at places, by host address.
    messages: Mutex<HashMap<usize, Message>>,
    /// Held from where an access that is not weak is noted until it was carried out, so that they
    /// are noted in the order in which they happen.
    strong: Mutex<()>,
}

/// Holds the part of the shadow that was used last.
#[derive(Default)]
pub(crate) struct Held<'a> {
    pages: Option<(usize, MutexGuard<'a, Pages>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new access to some bytes of a granule.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    pub(crate) block: u32,
    pub(crate) address: u64,
    pub(crate) bytes: u8,
    pub(crate) writes: bool,
    pub(crate) by: Touch,
}

impl GlobalShadow {
    pub(crate) fn new() -> Self {
        Self {
            pages: (0..SHARDS).map(|_| Mutex::default()).collect(),
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

    /// Notes an access to some bytes of a granule, or finds the one that it races with and whether
    /// that was a write.
    pub(crate) fn note<'a>(
        &'a self,
        held: &mut Held<'a>,
        clocks: &mut Clocks,
        access: Access,
    ) -> Result<(), (Trace, bool)> {
        let Access { block, address, bytes, writes, by } = access;
        let page = address / PAGE_BYTES;
        let shard = page as usize % SHARDS;
        if held.pages.as_ref().is_none_or(|(at, _)| *at != shard) {
            // The other one is let go first: two threads would wait for each other.
            held.pages = None;
            held.pages = Some((shard, lock(&self.pages[shard])));
        }
        let Some((_, pages)) = &mut held.pages else { return Ok(()) };
        let page =
            pages.entry(page).or_insert_with(|| Box::new([Granule::default(); PAGE_GRANULES]));
        let granule = &mut page[(address % PAGE_BYTES) as usize / GRANULE];
        if races(&granule.write, clocks, access) {
            return Err((granule.write, true));
        }
        if writes {
            for read in [granule.read, granule.other_read] {
                if races(&read, clocks, access) {
                    return Err((read, false));
                }
            }
        }
        let observes = by.strong && granule.write.strong && granule.write.bytes & bytes != 0;
        if observes && !granule.write.is_of(block, by) {
            let Trace { block, thread, clock, .. } = granule.write;
            clocks.observe(place(address), by.warp, block, thread, clock);
        }
        if !writes && !granule.read.is_of(block, by) {
            granule.other_read = granule.read;
        }
        // An atomic update is of no interest as a read: what races with it races with its write.
        let last = if writes { &mut granule.write } else { &mut granule.read };
        let clock = clocks.time(by.warp);
        let same = last.is_of(block, by) && last.clock == clock && last.thread == by.thread();
        *last = Trace {
            block,
            clock,
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
fn races(trace: &Trace, clocks: &Clocks, access: Access) -> bool {
    let Access { block, address, bytes, by, .. } = access;
    if trace.clock == 0 || trace.bytes & bytes == 0 || trace.strong && by.strong {
        return false;
    }
    let ordered = if trace.block == block {
        // Lanes of one instruction that write the same: what differs is found elsewhere.
        let together = trace.pc == by.pc && trace.warp() == by.warp;
        let same_time = || trace.clock == clocks.time(by.warp);
        clocks.knows(by, trace.thread, trace.clock) || together && same_time()
    } else {
        clocks.seen(by.warp).covers(trace.block, trace.warp(), trace.clock)
    };
    let observed = || clocks.observed(place(address), by, trace.block, trace.thread, trace.clock);
    !(ordered || trace.strong && observed())
}
