//! What the sanitizer knows of a block's shared memory: what was written to it, and who last
//! touched it.
//!
//! An access that an earlier one of another thread is not ordered before (see [`Clocks`]), one of
//! them a write and one of them weak, races with it.
//!
//! Memory is observed in granules of 4 bytes. A granule holds its last write, and its last readers
//! with the bytes that all of them read; what does not fit is forgotten, so that a race may be
//! missed, and none is made up.
//!
//! Most accesses follow a barrier of the whole block that follows whatever they could race with.
//! For those one look at a [`Line`] is enough. Reads are noted in a log, which becomes notes of
//! granules only when something that was read since such a barrier is written.

use super::clocks::{Clocks, Touch};
use super::granules::{GRANULE, LINE, LINE_GRANULES, WHOLE, part};
use crate::exec::alu::lanes::LANES;
use crate::exec::context::lanes;

/// Reads that the log holds before they are noted after all.
const MOST_LOGGED: usize = 256;
/// No time: later than any.
const NEVER: u32 = u32::MAX;

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

/// Four granules.
#[derive(Clone, Copy)]
struct Line {
    /// When it was last written to.
    written: u32,
    /// The same where every byte holds what was written; else [`NEVER`].
    readable: u32,
    /// When it was last read.
    read: u32,
}

const UNTOUCHED: Line = Line { written: 0, readable: NEVER, read: 0 };

/// The last write to a granule. Bytes are bits of a mask.
#[derive(Clone, Copy, Default)]
struct Write {
    /// The writer's time; 0 where nothing was written.
    clock: u32,
    pc: u32,
    thread: u16,
    bytes: u8,
    strong: bool,
    /// Bytes that hold what was written.
    written: u8,
    /// Bytes that an asynchronous copy is on the way to.
    pending: u8,
}

/// The last reads of a granule.
#[derive(Clone, Copy, Default)]
struct Read {
    clock: u32,
    pc: u32,
    /// Warps that read at that time, a bit each.
    warps: u32,
    /// Lanes of the warp that read last, a bit each, by the byte that they read.
    lanes: [u32; GRANULE],
    /// The thread that read last.
    thread: u16,
    bytes: u8,
    strong: bool,
}

/// A weak read by lanes of a warp.
struct Logged {
    warp: usize,
    pc: u32,
    clock: u32,
    mask: u32,
    bytes: usize,
    offsets: [u32; LANES],
}

/// An access of lanes of a warp.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) warp: usize,
    pub(crate) pc: u32,
    pub(crate) strong: bool,
    pub(crate) mask: u32,
    /// Bytes of each lane.
    pub(crate) bytes: usize,
    /// Where each lane's bytes are.
    pub(crate) offsets: &'a [u32; LANES],
}

impl Row<'_> {
    fn by(&self, lane: usize) -> Touch {
        Touch { warp: self.warp, lane, pc: self.pc, strong: self.strong }
    }
}

/// What a write does to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Write,
    /// Reads and writes at once.
    Update,
    /// Starts an asynchronous copy: from now on until it ends they hold nothing.
    Issue,
}

/// The granules that an access touches.
#[inline(always)]
fn granules(offset: usize, bytes: usize) -> std::ops::Range<usize> {
    let first = offset / GRANULE;
    first..first + bytes.div_ceil(GRANULE)
}

/// The lines that an access touches.
#[inline(always)]
fn touched(offset: usize, bytes: usize) -> std::ops::Range<usize> {
    offset / LINE..(offset + bytes - 1) / LINE + 1
}

/// The shadow of a block's shared memory, and the clocks of its warps.
pub(crate) struct Shadow {
    lines: Vec<Line>,
    writes: Vec<Write>,
    reads: Vec<Read>,
    log: Vec<Logged>,
    pub(crate) clocks: Clocks,
}

impl Shadow {
    pub(crate) fn new(bytes: usize, warps: usize, barriers: usize) -> Self {
        let lines = bytes.div_ceil(LINE);
        Self {
            lines: vec![UNTOUCHED; lines],
            writes: vec![Write::default(); lines * LINE_GRANULES],
            reads: vec![Read::default(); lines * LINE_GRANULES],
            log: Vec::new(),
            clocks: Clocks::new(warps, barriers),
        }
    }

    /// Forgets everything, for the next block.
    pub(crate) fn reset(&mut self, block: u32) {
        self.lines.fill(UNTOUCHED);
        self.writes.fill(Write::default());
        self.reads.fill(Read::default());
        self.log.clear();
        self.clocks.reset(block);
    }

    /// A barrier lets the warps go on that wait there; `all` is whether no other warp of the block
    /// will do anything more.
    pub(crate) fn release(
        &mut self,
        barrier: usize,
        waiting: impl Iterator<Item = usize>,
        all: bool,
    ) {
        self.clocks.release(barrier, waiting, all);
        if all {
            // Whatever is written from now on comes after these reads.
            self.log.clear();
        }
    }

    /// Notes a read by lanes of a warp; or whose read is at fault, and why.
    pub(crate) fn read(&mut self, row: Row) -> Result<(), (usize, Finding)> {
        let (floor, clock) = (self.clocks.floor(), self.clocks.time(row.warp));
        let mut rest = 0;
        for lane in lanes(row.mask) {
            let offset = row.offsets[lane] as usize;
            for line in &mut self.lines[touched(offset, row.bytes)] {
                rest |= u32::from(line.readable > floor) << lane;
                line.read = clock;
            }
        }
        for lane in lanes(rest) {
            self.look_at_read(row, lane).map_err(|finding| (lane, finding))?;
        }
        if row.strong {
            self.note_log();
            for lane in lanes(row.mask) {
                self.note_read(row.offsets[lane] as usize, row.bytes, row.by(lane), clock);
            }
            return Ok(());
        }
        if self.log.len() == MOST_LOGGED {
            self.note_log();
        }
        let Row { warp, pc, mask, bytes, offsets, .. } = row;
        self.log.push(Logged { warp, pc, clock, mask, bytes, offsets: *offsets });
        Ok(())
    }

    /// Looks at the granules that a lane reads.
    fn look_at_read(&mut self, row: Row, lane: usize) -> Result<(), Finding> {
        let (offset, by) = (row.offsets[lane] as usize, row.by(lane));
        let bytes = part(offset, row.bytes);
        for index in granules(offset, row.bytes) {
            if let Some(conflict) = self.write_conflict(index, bytes, by) {
                return Err(Finding::Race(conflict));
            }
            self.check_written(index, bytes)?;
            if by.strong {
                self.observe(index, bytes, by);
            }
        }
        Ok(())
    }

    fn check_written(&self, index: usize, bytes: u8) -> Result<(), Finding> {
        let Write { written, pending, .. } = self.writes[index];
        match bytes & !written {
            0 => Ok(()),
            missing => Err(Finding::Unwritten { missing, pending: missing & pending }),
        }
    }

    /// Notes a write by lanes of a warp; or whose write is at fault, and why.
    pub(crate) fn write(&mut self, row: Row, kind: Kind) -> Result<(), (usize, Finding)> {
        let (floor, clock) = (self.clocks.floor(), self.clocks.time(row.warp));
        for lane in lanes(row.mask) {
            let (offset, by) = (row.offsets[lane] as usize, row.by(lane));
            let lines = touched(offset, row.bytes);
            let settled =
                self.lines[lines].iter().all(|line| line.written <= floor && line.read <= floor);
            if !settled || kind == Kind::Update {
                self.look_at_write(row, lane, kind).map_err(|finding| (lane, finding))?;
            }
            self.note_write(offset, row.bytes, by, clock);
            if kind == Kind::Issue {
                self.empty(offset, row.bytes);
            }
        }
        Ok(())
    }

    /// Looks at the granules that a lane writes to.
    fn look_at_write(&mut self, row: Row, lane: usize, kind: Kind) -> Result<(), Finding> {
        let (offset, by) = (row.offsets[lane] as usize, row.by(lane));
        let (floor, bytes) = (self.clocks.floor(), part(offset, row.bytes));
        if self.lines[touched(offset, row.bytes)].iter().any(|line| line.read > floor) {
            self.note_log();
        }
        for index in granules(offset, row.bytes) {
            if kind == Kind::Update {
                self.check_written(index, bytes)?;
            }
            let conflict = self.write_conflict(index, bytes, by);
            if let Some(conflict) = conflict.or_else(|| self.read_conflict(index, bytes, by)) {
                return Err(Finding::Race(conflict));
            }
        }
        Ok(())
    }

    /// Whether a write is of the same instruction as an access, for all that is known.
    fn is_together(&self, write: &Write, by: Touch) -> bool {
        usize::from(write.thread) / LANES == by.warp
            && write.pc == by.pc
            && write.clock == self.clocks.time(by.warp)
    }

    /// A write that this access races with.
    fn write_conflict(&self, index: usize, bytes: u8, by: Touch) -> Option<Conflict> {
        let write = &self.writes[index];
        let Write { clock, thread, .. } = *write;
        if write.bytes & bytes == 0
            || self.clocks.knows(by, thread, clock)
            || write.strong && by.strong
        {
            return None;
        }
        let observed =
            || write.strong && self.clocks.observed(index, by, SAME_BLOCK, thread, clock);
        // Lanes of one instruction that write the same: what differs is found elsewhere.
        if self.is_together(write, by) || observed() {
            return None;
        }
        let (warp, lane) = (usize::from(thread) / LANES, usize::from(thread) % LANES);
        Some(Conflict { warp, lane: Some(lane), pc: Some(write.pc), wrote: true })
    }

    /// A read that this write races with.
    fn read_conflict(&self, index: usize, bytes: u8, by: Touch) -> Option<Conflict> {
        let read = &self.reads[index];
        let clock = read.clock;
        if read.bytes & bytes == 0 || clock <= self.clocks.floor() || read.strong && by.strong {
            return None;
        }
        let last = usize::from(read.thread);
        if last / LANES == by.warp {
            let readers = read.lanes.iter().enumerate();
            let readers = readers.filter(|&(byte, _)| bytes >> byte & 1 != 0);
            let readers = readers.fold(0, |all, (_, lanes)| all | lanes);
            let unknown = self.clocks.unknown_lanes(by, readers, clock);
            if unknown != 0 {
                let lane = Some(unknown.trailing_zeros() as usize);
                return Some(Conflict { warp: by.warp, lane, pc: Some(read.pc), wrote: false });
            }
        }
        let mut others = read.warps & !(1 << by.warp);
        while others != 0 {
            let warp = others.trailing_zeros() as usize;
            others &= others - 1;
            if !self.clocks.knows(by, (warp * LANES) as u16, clock) {
                let is_last = last / LANES == warp;
                let lane = is_last.then_some(last % LANES);
                let pc = is_last.then_some(read.pc);
                return Some(Conflict { warp, lane, pc, wrote: false });
            }
        }
        None
    }

    /// Notes the reads of the log.
    #[cold]
    fn note_log(&mut self) {
        let mut log = std::mem::take(&mut self.log);
        for Logged { warp, pc, clock, mask, bytes, offsets } in log.drain(..) {
            for lane in lanes(mask) {
                let by = Touch { warp, lane, pc, strong: false };
                self.note_read(offsets[lane] as usize, bytes, by, clock);
            }
        }
        self.log = log;
    }

    fn note_read(&mut self, offset: usize, bytes: usize, by: Touch, clock: u32) {
        let mask = part(offset, bytes);
        for read in &mut self.reads[granules(offset, bytes)] {
            read.note(mask, by, clock);
        }
    }

    fn note_write(&mut self, offset: usize, bytes: usize, by: Touch, clock: u32) {
        let mask = part(offset, bytes);
        for write in &mut self.writes[granules(offset, bytes)] {
            if write.clock == clock && write.thread == by.thread() {
                write.bytes |= mask;
                write.strong &= by.strong;
            } else {
                write.bytes = mask;
                write.strong = by.strong;
            }
            write.clock = clock;
            write.pc = by.pc;
            write.thread = by.thread();
            write.written |= mask;
            write.pending &= !mask;
        }
        for index in touched(offset, bytes) {
            let writes = &self.writes[LINE_GRANULES * index..LINE_GRANULES * (index + 1)];
            let whole = writes.iter().all(|write| write.written == WHOLE);
            let line = &mut self.lines[index];
            line.written = line.written.max(clock);
            line.readable = if whole { line.written } else { NEVER };
        }
    }

    /// Notes that bytes hold nothing until a copy to them ends.
    fn empty(&mut self, offset: usize, bytes: usize) {
        let mask = part(offset, bytes);
        for write in &mut self.writes[granules(offset, bytes)] {
            write.written &= !mask;
            write.pending |= mask;
        }
        self.lines[touched(offset, bytes)].iter_mut().for_each(|line| line.readable = NEVER);
    }

    /// Notes that an asynchronous copy of a lane has ended.
    pub(crate) fn complete(&mut self, offset: usize, bytes: usize, by: Touch) {
        let clock = self.clocks.time(by.warp);
        self.note_write(offset, bytes, by, clock);
    }

    #[cold]
    fn observe(&mut self, index: usize, bytes: u8, by: Touch) {
        let write = self.writes[index];
        if write.strong && write.bytes & bytes != 0 {
            self.clocks.observe(index, by.warp, SAME_BLOCK, write.thread, write.clock);
        }
    }
}

impl Read {
    /// Notes a read of some bytes.
    fn note(&mut self, bytes: u8, by: Touch, clock: u32) {
        let me = 1 << by.warp;
        let common = self.bytes & bytes;
        let again = usize::from(self.thread) / LANES == by.warp;
        if self.clock != clock || common == 0 && self.warps != me {
            *self = Self { clock, warps: me, bytes, strong: by.strong, ..Self::default() };
        } else if self.warps == me {
            self.bytes |= bytes;
            self.strong &= by.strong;
        } else {
            // Only bytes that all of the readers read are kept.
            self.warps |= me;
            self.bytes = common;
            self.strong &= by.strong;
            self.lanes = if again { self.lanes } else { [0; GRANULE] };
        }
        for (byte, lanes) in self.lanes.iter_mut().enumerate() {
            *lanes |= u32::from(bytes >> byte & 1) << by.lane;
        }
        self.pc = by.pc;
        self.thread = by.thread();
    }
}

/// Shared memory is one block's: what it observes has no block. Places in shared memory are small
/// numbers, which no place in global memory is.
const SAME_BLOCK: u32 = u32::MAX;
