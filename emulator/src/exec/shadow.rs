//! What the sanitizer knows of a block's shared memory: what was written to it, and who last
//! touched it.
//!
//! Accesses are ordered by the warps that make them: those of one warp count as ordered, those of
//! two warps are ordered by barriers, and by a fence and an access that is not weak on each side.
//! Every warp has a clock, which advances where others may learn what it did, and remembers up to
//! which time of each other warp it has learned. An access that an earlier one of another warp is
//! not ordered before, one of them a write and one of them weak, races with it.
//!
//! Memory is observed in granules of 4 bytes. A granule holds its last write, and its last readers
//! with the bytes that all of them read; what does not fit is forgotten, so that a race may be
//! missed where warps share a granule byte by byte, and none is made up.

use std::collections::HashMap;

use super::lanes::LANES;

/// Bytes that are observed together.
pub(crate) const GRANULE: usize = 4;

/// An access of a lane to bytes of one granule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touch {
    pub(crate) warp: usize,
    pub(crate) lane: usize,
    /// The place of the instruction.
    pub(crate) pc: u32,
    /// Whether it is atomic, volatile or otherwise not weak.
    pub(crate) strong: bool,
}

/// An earlier access that a new one races with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conflict {
    pub(crate) warp: usize,
    /// The lane and the place of the instruction, where they are still known.
    pub(crate) known: Option<(usize, u32)>,
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
    /// The writer's clock; 0 where nothing was written.
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
    /// Warps that read at that clock, a bit each.
    read_warps: u32,
    /// The thread that read last.
    read_thread: u16,
}

impl Granule {
    fn writer(&self) -> usize {
        usize::from(self.write_thread) / LANES
    }

    #[inline(always)]
    fn check_written(&self, bytes: u8) -> Result<(), Finding> {
        let missing = bytes & !self.written;
        match missing {
            0 => Ok(()),
            _ => Err(Finding::Unwritten { missing, pending: missing & self.pending }),
        }
    }
}

/// What a warp has learned of the times of all warps of its block, and after them, when it last
/// learned what other blocks did.
type Clock = Vec<u32>;

fn join(into: &mut [u32], from: &[u32]) {
    into.iter_mut().zip(from).for_each(|(into, &from)| *into = (*into).max(from));
}

/// The shadow of a block's shared memory, and its warps' clocks.
pub(crate) struct Shadow {
    granules: Vec<Granule>,
    /// What each warp has learned; its own time at its own index.
    seen: Vec<Clock>,
    /// What each warp had learned and done at its last fence.
    fenced: Vec<Clock>,
    /// What each warp learns at its next fence.
    heard: Vec<Clock>,
    /// What was published at a place, by its host address.
    published: HashMap<usize, Clock>,
    /// What those know that arrived at each barrier: seen, fenced and heard.
    arrived: Vec<[Clock; 3]>,
    now: u32,
}

impl Shadow {
    pub(crate) fn new(bytes: usize, warps: usize, barriers: usize) -> Self {
        Self {
            granules: vec![Granule::default(); bytes.div_ceil(GRANULE)],
            seen: vec![vec![0; warps + 1]; warps],
            fenced: vec![vec![0; warps + 1]; warps],
            heard: vec![vec![0; warps + 1]; warps],
            published: HashMap::new(),
            arrived: vec![std::array::from_fn(|_| vec![0; warps + 1]); barriers],
            now: 1,
        }
    }

    /// Forgets everything, for the next block.
    pub(crate) fn reset(&mut self) {
        self.granules.fill(Granule::default());
        for (warp, seen) in self.seen.iter_mut().enumerate() {
            seen.fill(0);
            seen[warp] = 1;
        }
        self.fenced.iter_mut().for_each(|clock| clock.fill(0));
        self.heard.iter_mut().for_each(|clock| clock.fill(0));
        self.published.clear();
        self.arrived.iter_mut().flatten().for_each(|clock| clock.fill(0));
        self.now = 1;
    }

    /// A write that this access races with.
    #[inline(always)]
    fn write_conflict(&self, granule: &Granule, bytes: u8, by: Touch) -> Option<Conflict> {
        let writer = granule.writer();
        let ordered = granule.write_bytes & bytes == 0
            || writer == by.warp
            || granule.write_clock <= self.seen[by.warp][writer]
            || granule.write_strong && by.strong;
        let lane = usize::from(granule.write_thread) % LANES;
        (!ordered).then_some(Conflict {
            warp: writer,
            known: Some((lane, granule.write_pc)),
            wrote: true,
        })
    }

    /// A read that this write races with.
    #[inline(always)]
    fn read_conflict(&self, granule: &Granule, bytes: u8, by: Touch) -> Option<Conflict> {
        let mut others = granule.read_warps & !(1 << by.warp);
        if granule.read_bytes & bytes == 0 || granule.read_strong && by.strong {
            return None;
        }
        while others != 0 {
            let warp = others.trailing_zeros() as usize;
            others &= others - 1;
            if granule.read_clock > self.seen[by.warp][warp] {
                let thread = usize::from(granule.read_thread);
                let known = (thread / LANES == warp).then_some((thread % LANES, granule.read_pc));
                return Some(Conflict { warp, known, wrote: false });
            }
        }
        None
    }

    /// Notes a read of some bytes of a granule.
    #[inline(always)]
    pub(crate) fn read(&mut self, index: usize, bytes: u8, by: Touch) -> Result<(), Finding> {
        let granule = self.granules[index];
        if let Some(conflict) = self.write_conflict(&granule, bytes, by) {
            return Err(Finding::Race(conflict));
        }
        granule.check_written(bytes)?;
        let clock = self.seen[by.warp][by.warp];
        let granule = &mut self.granules[index];
        let me = 1 << by.warp;
        let common = granule.read_bytes & bytes;
        if granule.read_clock != clock || common == 0 && granule.read_warps != me {
            granule.read_clock = clock;
            granule.read_warps = me;
            granule.read_bytes = bytes;
            granule.read_strong = by.strong;
        } else if granule.read_warps == me {
            granule.read_bytes |= bytes;
            granule.read_strong &= by.strong;
        } else {
            // Only bytes that all of the readers read are kept.
            granule.read_warps |= me;
            granule.read_bytes = common;
            granule.read_strong &= by.strong;
        }
        granule.read_pc = by.pc;
        granule.read_thread = (by.warp * LANES + by.lane) as u16;
        Ok(())
    }

    /// Notes a write of some bytes of a granule.
    #[inline(always)]
    pub(crate) fn write(&mut self, index: usize, bytes: u8, by: Touch) -> Result<(), Finding> {
        let granule = &self.granules[index];
        let conflict = self.write_conflict(granule, bytes, by);
        if let Some(conflict) = conflict.or_else(|| self.read_conflict(granule, bytes, by)) {
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
        let clock = self.seen[by.warp][by.warp];
        let granule = &mut self.granules[index];
        if granule.write_clock == clock && granule.writer() == by.warp {
            granule.write_bytes |= bytes;
            granule.write_strong &= by.strong;
        } else {
            granule.write_bytes = bytes;
            granule.write_strong = by.strong;
        }
        granule.write_clock = clock;
        granule.write_pc = by.pc;
        granule.write_thread = (by.warp * LANES + by.lane) as u16;
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

    /// A warp's later accesses are told from its earlier ones.
    fn advance(&mut self, warp: usize) {
        self.now += 1;
        self.seen[warp][warp] = self.now;
    }

    /// A warp arrives at a barrier; `waits` is false where it goes on at once.
    pub(crate) fn arrive(&mut self, warp: usize, barrier: usize, waits: bool) {
        let known = [&self.seen[warp], &self.fenced[warp], &self.heard[warp]];
        self.arrived[barrier].iter_mut().zip(known).for_each(|(all, known)| join(all, known));
        if !waits {
            self.advance(warp);
        }
    }

    /// A barrier lets the warps go on that wait there.
    pub(crate) fn release(&mut self, barrier: usize, waiting: impl Iterator<Item = usize>) {
        self.now += 1;
        for warp in waiting {
            let [seen, fenced, heard] = &self.arrived[barrier];
            join(&mut self.seen[warp], seen);
            join(&mut self.fenced[warp], fenced);
            join(&mut self.heard[warp], heard);
            self.seen[warp][warp] = self.now;
        }
        self.arrived[barrier].iter_mut().for_each(|clock| clock.fill(0));
    }

    /// A warp executes a fence.
    pub(crate) fn fence(&mut self, warp: usize) {
        let own = self.seen[warp][warp];
        join(&mut self.seen[warp], &self.heard[warp]);
        self.seen[warp][warp] = own;
        join(&mut self.fenced[warp], &self.seen[warp]);
        self.advance(warp);
    }

    /// What a warp has learned: the times of its block's warps, and when it last learned of other
    /// blocks.
    pub(crate) fn seen(&self, warp: usize) -> &[u32] {
        &self.seen[warp]
    }

    /// What a warp may publish: what it and those that it met at barriers did before their fences.
    pub(crate) fn fenced(&self, warp: usize) -> Option<&[u32]> {
        let fenced = &self.fenced[warp];
        fenced.iter().any(|&time| time != 0).then_some(fenced)
    }

    /// A warp writes to a place by other than a weak access: who reads it there learns what the
    /// warp did before its last fence.
    pub(crate) fn publish(&mut self, warp: usize, place: usize) {
        let fenced = &self.fenced[warp];
        let clock = self.published.entry(place).or_insert_with(|| vec![0; fenced.len()]);
        join(clock, fenced);
    }

    /// A warp reads a place by other than a weak access.
    pub(crate) fn hear(&mut self, warp: usize, place: usize) {
        if let Some(clock) = self.published.get(&place) {
            join(&mut self.heard[warp], clock);
        }
    }

    /// A warp may have learned what other blocks published until a time.
    pub(crate) fn hear_blocks(&mut self, warp: usize, time: u32) {
        if let Some(last) = self.heard[warp].last_mut() {
            *last = time.max(*last);
        }
    }
}
