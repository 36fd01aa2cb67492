//! What the sanitizer knows of a block's shared memory: what was written to it, and who last
//! touched it.
//!
//! An access that an earlier one of another thread is not ordered before (see [`Clocks`]), one of
//! them a write and one of them weak, races with it.
//!
//! Memory is observed in granules of 4 bytes. A granule holds its last write, and its last readers
//! with the bytes that all of them read; what does not fit is forgotten, so that a race may be
//! missed where threads share a granule byte by byte, and none is made up.

use super::clocks::{Clocks, Touch};
use crate::exec::alu::lanes::LANES;

/// Bytes that are observed together.
pub(crate) const GRANULE: usize = 4;

/// An earlier access that a new one races with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conflict {
    pub(crate) warp: usize,
    pub(crate) lane: Option<usize>,
    /// The place of the instruction, where it is still known.
    pub(crate) pc: Option<u32>,
    pub(crate) wrote: bool,
}

/// Why a read is at fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Finding {
    /// The bytes, a bit each, that nothing wrote, and those that a copy is on the way to.
    Unwritten {
        missing: u8,
        pending: u8,
    },
    Race(Conflict),
}

/// The last accesses to a granule. Bytes are bits of a mask.
#[derive(Clone, Copy, Default)]
struct Granule {
    /// The writer's time; 0 where nothing was written.
    write_clock: u32,
    write_pc: u32,
    write_thread: u16,
    write_bytes: u8,
    write_strong: bool,
    /// Bytes that hold what was written.
    written: u8,
    /// Bytes that an asynchronous copy is on the way to.
    pending: u8,
    read_bytes: u8,
    read_strong: bool,
    read_clock: u32,
    read_pc: u32,
    /// Warps that read at that time, a bit each.
    read_warps: u32,
    /// Lanes of the warp that read last, a bit each.
    read_lanes: u32,
    /// The thread that read last.
    read_thread: u16,
}

impl Granule {
    #[inline(always)]
    fn check_written(&self, bytes: u8) -> Result<(), Finding> {
        let missing = bytes & !self.written;
        match missing {
            0 => Ok(()),
            _ => Err(Finding::Unwritten { missing, pending: missing & self.pending }),
        }
    }
}

/// The shadow of a block's shared memory, and the clocks of its warps.
pub(crate) struct Shadow {
    granules: Vec<Granule>,
    pub(crate) clocks: Clocks,
}

impl Shadow {
    pub(crate) fn new(bytes: usize, warps: usize, barriers: usize) -> Self {
        let granules = vec![Granule::default(); bytes.div_ceil(GRANULE)];
        Self { granules, clocks: Clocks::new(warps, barriers) }
    }

    /// Forgets everything, for the next block.
    pub(crate) fn reset(&mut self) {
        self.granules.fill(Granule::default());
        self.clocks.reset();
    }

    /// A write that this access races with.
    #[inline(always)]
    fn write_conflict(&self, index: usize, bytes: u8, by: Touch) -> Option<Conflict> {
        let granule = &self.granules[index];
        let Granule { write_clock: clock, write_thread: thread, .. } = *granule;
        if granule.write_bytes & bytes == 0
            || self.clocks.knows(by, thread, clock)
            || granule.write_strong && by.strong
        {
            return None;
        }
        let (warp, lane) = (usize::from(thread) / LANES, usize::from(thread) % LANES);
        // Lanes of one instruction that write the same: what differs is found elsewhere.
        let together = warp == by.warp && granule.write_pc == by.pc;
        let same_time = clock == self.clocks.time(by.warp);
        let observed =
            || granule.write_strong && self.clocks.observed(index, by, SAME_BLOCK, thread, clock);
        if together && same_time || observed() {
            return None;
        }
        Some(Conflict { warp, lane: Some(lane), pc: Some(granule.write_pc), wrote: true })
    }

    /// A read that this write races with.
    #[inline(always)]
    fn read_conflict(&self, index: usize, bytes: u8, by: Touch) -> Option<Conflict> {
        let granule = &self.granules[index];
        if granule.read_bytes & bytes == 0 || granule.read_strong && by.strong {
            return None;
        }
        let clock = granule.read_clock;
        let last = usize::from(granule.read_thread);
        if last / LANES == by.warp {
            let unknown = self.clocks.unknown_lanes(by, granule.read_lanes, clock);
            if unknown != 0 {
                let lane = Some(unknown.trailing_zeros() as usize);
                let pc = Some(granule.read_pc);
                return Some(Conflict { warp: by.warp, lane, pc, wrote: false });
            }
        }
        let mut others = granule.read_warps & !(1 << by.warp);
        while others != 0 {
            let warp = others.trailing_zeros() as usize;
            others &= others - 1;
            if !self.clocks.knows(by, (warp * LANES) as u16, clock) {
                let is_last = last / LANES == warp;
                let lane = is_last.then_some(last % LANES);
                let pc = is_last.then_some(granule.read_pc);
                return Some(Conflict { warp, lane, pc, wrote: false });
            }
        }
        None
    }

    /// Notes a read of some bytes of a granule.
    #[inline(always)]
    pub(crate) fn read(&mut self, index: usize, bytes: u8, by: Touch) -> Result<(), Finding> {
        if let Some(conflict) = self.write_conflict(index, bytes, by) {
            return Err(Finding::Race(conflict));
        }
        self.granules[index].check_written(bytes)?;
        if by.strong {
            self.observe(index, bytes, by);
        }
        let clock = self.clocks.time(by.warp);
        let granule = &mut self.granules[index];
        let (me, lane) = (1 << by.warp, 1 << by.lane);
        let common = granule.read_bytes & bytes;
        let again = usize::from(granule.read_thread) / LANES == by.warp;
        if granule.read_clock != clock || common == 0 && granule.read_warps != me {
            granule.read_clock = clock;
            granule.read_warps = me;
            granule.read_bytes = bytes;
            granule.read_strong = by.strong;
            granule.read_lanes = lane;
        } else if granule.read_warps == me {
            granule.read_bytes |= bytes;
            granule.read_strong &= by.strong;
            granule.read_lanes |= lane;
        } else {
            // Only bytes that all of the readers read are kept.
            granule.read_warps |= me;
            granule.read_bytes = common;
            granule.read_strong &= by.strong;
            granule.read_lanes = if again { granule.read_lanes | lane } else { lane };
        }
        granule.read_pc = by.pc;
        granule.read_thread = by.thread();
        Ok(())
    }

    /// Notes a write of some bytes of a granule.
    #[inline(always)]
    pub(crate) fn write(&mut self, index: usize, bytes: u8, by: Touch) -> Result<(), Finding> {
        let conflict = self.write_conflict(index, bytes, by);
        if let Some(conflict) = conflict.or_else(|| self.read_conflict(index, bytes, by)) {
            return Err(Finding::Race(conflict));
        }
        self.complete(index, bytes, by);
        Ok(())
    }

    /// Notes an atomic update of some bytes of a granule. As a read it is of no interest: whoever
    /// races with it, races with the write as well.
    pub(crate) fn update(&mut self, index: usize, bytes: u8, by: Touch) -> Result<(), Finding> {
        self.granules[index].check_written(bytes)?;
        self.write(index, bytes, by)
    }

    /// Notes a write without looking for races: the end of an asynchronous copy.
    #[inline(always)]
    pub(crate) fn complete(&mut self, index: usize, bytes: u8, by: Touch) {
        let clock = self.clocks.time(by.warp);
        let granule = &mut self.granules[index];
        if granule.write_clock == clock && granule.write_thread == by.thread() {
            granule.write_bytes |= bytes;
            granule.write_strong &= by.strong;
        } else {
            granule.write_bytes = bytes;
            granule.write_strong = by.strong;
        }
        granule.write_clock = clock;
        granule.write_pc = by.pc;
        granule.write_thread = by.thread();
        granule.written |= bytes;
        granule.pending &= !bytes;
    }

    /// Notes that an asynchronous copy to some bytes of a granule was issued: from now on until it
    /// ends they hold nothing.
    #[inline(always)]
    pub(crate) fn issue(&mut self, index: usize, bytes: u8, by: Touch) -> Result<(), Finding> {
        self.write(index, bytes, by)?;
        let granule = &mut self.granules[index];
        granule.written &= !bytes;
        granule.pending |= bytes;
        Ok(())
    }

    #[cold]
    fn observe(&mut self, index: usize, bytes: u8, by: Touch) {
        let granule = self.granules[index];
        if granule.write_strong && granule.write_bytes & bytes != 0 {
            let (thread, clock) = (granule.write_thread, granule.write_clock);
            self.clocks.observe(index, by.warp, SAME_BLOCK, thread, clock);
        }
    }
}

/// Shared memory is one block's: what it observes has no block. Places in shared memory are small
/// numbers, which no place in global memory is.
const SAME_BLOCK: u32 = u32::MAX;
