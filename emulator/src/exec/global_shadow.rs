//! What the sanitizer knows of global memory during a launch: who last touched it.
//!
//! Within a block the clocks of its warps order accesses. Blocks are ordered by what one publishes,
//! a fence and then an access that is not weak, and what another learns later, an access that is
//! not weak and then a fence. Where the two happened in that order they count as one that heard of
//! the other, whatever the places were: a race may be missed for it, and none is made up.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::lanes::LANES;
use super::shadow::{GRANULE, Touch};

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
}

/// The last write to a granule and the last read of it.
#[derive(Clone, Copy, Default)]
struct Granule {
    write: Trace,
    read: Trace,
}

/// When something was published, and what: the times of the block's warps.
type Published = (u32, Vec<u32>);
type Pages = HashMap<u64, Box<[Granule; PAGE_GRANULES]>>;

/// The shadow of global memory, shared by the blocks of a launch.
pub(crate) struct GlobalShadow {
    pages: Vec<Mutex<Pages>>,
    /// What each block published and when: the times of its warps.
    published: Mutex<HashMap<u32, Vec<Published>>>,
    now: AtomicU32,
}

/// Holds the part of the shadow that was used last.
#[derive(Default)]
pub(crate) struct Held<'a> {
    pages: Option<(usize, MutexGuard<'a, Pages>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GlobalShadow {
    pub(crate) fn new() -> Self {
        Self {
            pages: (0..SHARDS).map(|_| Mutex::default()).collect(),
            published: Mutex::default(),
            now: AtomicU32::new(0),
        }
    }

    /// A block publishes what its warps did until these times.
    pub(crate) fn publish(&self, block: u32, times: &[u32]) {
        let mut published = lock(&self.published);
        let list = published.entry(block).or_default();
        if list.last().is_none_or(|(_, last)| last != times) {
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            list.push((now, times.to_vec()));
        }
    }

    /// What was published before now, as a time.
    pub(crate) fn now(&self) -> u32 {
        self.now.load(Ordering::SeqCst)
    }

    /// Whether an access of another block was published until a time.
    fn was_published(&self, trace: &Trace, until: u32) -> bool {
        let published = lock(&self.published);
        let list = published.get(&trace.block).map_or(&[][..], Vec::as_slice);
        let known = list.iter().take_while(|(time, _)| *time <= until);
        known.into_iter().any(|(_, times)| trace.clock <= times[trace.warp()])
    }

    /// Whether an earlier access races with a new one. `seen` is what the new one's warp has
    /// learned: the times of its block's warps, and when it last learned of other blocks.
    fn races(&self, trace: &Trace, block: u32, bytes: u8, by: Touch, seen: &[u32]) -> bool {
        if trace.clock == 0 || trace.bytes & bytes == 0 || trace.strong && by.strong {
            return false;
        }
        if trace.block == block {
            return trace.warp() != by.warp && trace.clock > seen[trace.warp()];
        }
        !self.was_published(trace, seen[seen.len() - 1])
    }

    /// Notes an access to some bytes of a granule, or finds the one that it races with and whether
    /// that was a write.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn note<'a>(
        &'a self,
        held: &mut Held<'a>,
        block: u32,
        address: u64,
        bytes: u8,
        writes: bool,
        by: Touch,
        seen: &[u32],
    ) -> Result<(), (Trace, bool)> {
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
        if self.races(&granule.write, block, bytes, by, seen) {
            return Err((granule.write, true));
        }
        if writes && self.races(&granule.read, block, bytes, by, seen) {
            return Err((granule.read, false));
        }
        // An atomic update is of no interest as a read: what races with it races with its write.
        let last = if writes { &mut granule.write } else { &mut granule.read };
        let clock = seen[by.warp];
        let same = last.block == block && last.clock == clock && last.warp() == by.warp;
        *last = Trace {
            block,
            clock,
            pc: by.pc,
            thread: (by.warp * LANES + by.lane) as u16,
            bytes: if same { last.bytes | bytes } else { bytes },
            strong: by.strong && (!same || last.strong),
        };
        Ok(())
    }
}
