//! Who knows of whose accesses: the order that barriers, fences and atomics make in a block.
//!
//! Every warp has a time, which advances where others may learn what it did, and remembers up to
//! which time of each other warp it has learned. Within a warp each lane remembers the same of the
//! others: lanes that run side by side are ordered by nothing but barriers, as far as the PTX
//! memory model goes. Warps learn from each other by barriers. They also learn by a fence and then
//! an access that is not weak, both of one thread, on one side, and by an access of the same place
//! that is not weak and then a fence, both of one thread, on the other; so do blocks. What one has
//! learned it passes on.

use std::collections::HashMap;
use std::sync::Arc;

use super::times::{Known, Message, Times};
use crate::exec::alu::lanes::LANES;
use crate::exec::context::lanes;

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

impl Touch {
    /// The thread's number in its block.
    pub(crate) fn thread(self) -> u16 {
        (self.warp * LANES + self.lane) as u16
    }
}

/// Up to which time of each other lane of its warp a lane has learned, by lanes.
type LaneTimes = [[u32; LANES]; LANES];

/// What others learn from a lane that has executed a fence: of its block, and of others.
#[derive(Clone, Debug)]
struct Fenced {
    own: Arc<Times>,
    others: Message,
    /// Both, once they were left at a place.
    word: Option<Message>,
}

/// What a lane has read at a place that others left word at, before a fence.
#[derive(Clone, Debug)]
struct Heard {
    lane: usize,
    place: usize,
    message: Message,
}

/// A write that is not weak and that a warp has read: whatever the reader does later with the same
/// place comes after it.
#[derive(Clone, Copy, Debug)]
struct Observed {
    block: u32,
    thread: u16,
    clock: u32,
    reader: usize,
    at: u32,
}

/// What the clocks have of a warp.
#[derive(Clone)]
struct WarpClock {
    /// What it has learned; its own time at its own index.
    seen: Known,
    /// Up to this time all of its lanes know of each other.
    met: u32,
    /// What single lanes know beyond that.
    lanes: Box<LaneTimes>,
    /// What each lane had done and learned at its last fence.
    fenced: [Option<Fenced>; LANES],
    /// What lanes learn at their next fences.
    heard: Vec<Heard>,
}

impl WarpClock {
    /// The time up to which a lane knows another one of its warp.
    #[inline(always)]
    fn known(&self, lane: usize, of: usize) -> u32 {
        self.lanes[lane][of].max(self.met)
    }
}

/// The clocks of a block.
pub(crate) struct Clocks {
    /// The block, by its position in the grid.
    block: u32,
    warps: Vec<WarpClock>,
    /// What was left at places of shared memory, by host address.
    messages: HashMap<usize, Message>,
    /// By the place of a granule.
    observed: HashMap<usize, Observed>,
    /// What those know that arrived at each barrier.
    arrived: Vec<Known>,
    /// Up to this time every thread knows of every access: all met at a barrier then.
    floor: u32,
    now: u32,
}

impl Clocks {
    pub(crate) fn new(warps: usize, barriers: usize) -> Self {
        let warp = WarpClock {
            seen: Known::default(),
            met: 0,
            lanes: Box::new([[0; LANES]; LANES]),
            fenced: [const { None }; LANES],
            heard: Vec::new(),
        };
        Self {
            block: 0,
            warps: vec![warp; warps],
            messages: HashMap::new(),
            observed: HashMap::new(),
            arrived: vec![Known::default(); barriers],
            floor: 0,
            now: 1,
        }
    }

    /// Forgets everything, for the next block.
    pub(crate) fn reset(&mut self, block: u32) {
        self.block = block;
        for (index, warp) in self.warps.iter_mut().enumerate() {
            warp.seen = Known::default();
            warp.seen.own.warps[index] = 1;
            warp.met = 0;
            *warp.lanes = [[0; LANES]; LANES];
            warp.fenced.fill(None);
            warp.heard.clear();
        }
        self.messages.clear();
        self.observed.clear();
        self.arrived.fill(Known::default());
        (self.floor, self.now) = (0, 1);
    }

    /// The time of a warp.
    #[inline(always)]
    pub(crate) fn time(&self, warp: usize) -> u32 {
        self.warps[warp].seen.own.warps[warp]
    }

    /// Up to this time every thread of the block knows of every access.
    #[inline(always)]
    pub(crate) fn floor(&self) -> u32 {
        self.floor
    }

    /// What a warp has learned.
    pub(crate) fn seen(&self, warp: usize) -> &Known {
        &self.warps[warp].seen
    }

    /// Whether a thread of the block has learned what another did at a time.
    #[inline(always)]
    pub(crate) fn knows(&self, by: Touch, thread: u16, clock: u32) -> bool {
        if clock <= self.floor {
            return true;
        }
        let (warp, lane) = (usize::from(thread) / LANES, usize::from(thread) % LANES);
        let own = &self.warps[by.warp];
        if warp == by.warp {
            lane == by.lane || clock <= own.known(by.lane, lane)
        } else {
            own.seen.own.covers(thread, clock)
        }
    }

    /// Lanes of the thread's warp, of those in the mask, whose doings at a time it does not know.
    #[inline(always)]
    pub(crate) fn unknown_lanes(&self, by: Touch, mask: u32, clock: u32) -> u32 {
        let own = &self.warps[by.warp];
        if clock <= own.met {
            return 0;
        }
        let others = lanes(mask & !(1 << by.lane));
        others.filter(|&lane| clock > own.lanes[by.lane][lane]).fold(0, |all, lane| all | 1 << lane)
    }

    /// Separates a warp's later accesses from its earlier ones.
    fn advance(&mut self, warp: usize) {
        self.now += 1;
        self.warps[warp].seen.own.warps[warp] = self.now;
    }

    /// Lanes of a warp meet at a warp barrier; `present` are all that it has.
    pub(crate) fn meet(&mut self, warp: usize, mask: u32, present: u32) {
        let now = self.time(warp);
        let own = &mut self.warps[warp];
        if mask == present {
            own.met = now;
        } else {
            let mut all = [own.met; LANES];
            for lane in lanes(mask) {
                all.iter_mut().zip(&own.lanes[lane]).for_each(|(all, &time)| *all = time.max(*all));
            }
            lanes(mask).for_each(|lane| all[lane] = now);
            lanes(mask).for_each(|lane| own.lanes[lane] = all);
        }
        self.advance(warp);
    }

    /// A warp arrives at a barrier of the block; `waits` is false where it goes on at once.
    pub(crate) fn arrive(&mut self, warp: usize, barrier: usize, waits: bool) {
        self.arrived[barrier].join(&self.warps[warp].seen);
        if !waits {
            self.advance(warp);
        }
    }

    /// A barrier of the block lets the warps go on that wait there; `all` is whether no other warp
    /// of the block will do anything more.
    pub(crate) fn release(
        &mut self,
        barrier: usize,
        waiting: impl Iterator<Item = usize>,
        all: bool,
    ) {
        let arrived = std::mem::take(&mut self.arrived[barrier]);
        if all {
            self.floor = self.now;
        }
        self.now += 1;
        for warp in waiting {
            let before = self.time(warp);
            // All that it knew it has brought along.
            let own = &mut self.warps[warp];
            own.seen = arrived.clone();
            own.seen.own.warps[warp] = self.now;
            own.met = before;
        }
    }

    /// Lanes of a warp execute a fence.
    pub(crate) fn fence(&mut self, warp: usize, mask: u32) {
        self.acquire(warp, mask);
        self.release_fence(warp, mask);
    }

    /// Lanes learn what was left where they have read.
    pub(crate) fn acquire(&mut self, warp: usize, mask: u32) {
        let own = &mut self.warps[warp];
        if own.heard.is_empty() {
            return;
        }
        let time = own.seen.own.warps[warp];
        let all = std::mem::take(&mut own.heard).into_iter();
        let (heard, later): (Vec<_>, _) = all.partition(|heard| mask >> heard.lane & 1 != 0);
        own.heard = later;
        for Heard { lane, message, .. } in &heard {
            own.seen.take(message, self.block);
            // What lanes left for others of their warp orders those, too.
            if let Some(times) = message.of(self.block) {
                for (other, known) in own.lanes[*lane].iter_mut().enumerate() {
                    *known = times.of((warp * LANES + other) as u16).max(*known);
                }
            }
        }
        own.seen.own.warps[warp] = time;
    }

    /// What lanes did and learned before, others learn who read what these write from now on.
    fn release_fence(&mut self, warp: usize, mask: u32) {
        for lane in lanes(mask) {
            self.warps[warp].fenced[lane] = Some(self.fenced(warp, lane));
        }
        self.advance(warp);
    }

    /// What a lane has done and learned.
    fn fenced(&self, warp: usize, lane: usize) -> Fenced {
        let own = &self.warps[warp];
        let mut times = own.seen.own.clone();
        let now = times.warps[warp];
        times.warps[warp] = own.met;
        for (other, &known) in own.lanes[lane].iter().enumerate() {
            times.learn((warp * LANES + other) as u16, if other == lane { now } else { known });
        }
        Fenced { own: Arc::new(times), others: own.seen.others.clone(), word: None }
    }

    /// What others may learn from a write of a lane that is not weak: what the lane did and learned
    /// before its last fence. A write that releases is such a fence itself, for its place only.
    pub(crate) fn word(&mut self, warp: usize, lane: usize, releases: bool) -> Option<Message> {
        let block = self.block;
        if releases {
            let Fenced { own, others, .. } = self.fenced(warp, lane);
            return Some(others.with(block, &own));
        }
        let Fenced { own, others, word } = self.warps[warp].fenced[lane].as_mut()?;
        Some(word.get_or_insert_with(|| others.with(block, own)).clone())
    }

    /// Separates what a warp does after a write that releases from what it did before.
    pub(crate) fn has_released(&mut self, warp: usize) {
        self.advance(warp);
    }

    /// A lane writes to a place in shared memory by other than a weak access.
    pub(crate) fn tell(&mut self, place: usize, word: Message) {
        self.messages.entry(place).or_default().join(&word);
    }

    /// A lane reads a place in shared memory by other than a weak access.
    pub(crate) fn hear(&mut self, warp: usize, lane: usize, place: usize) {
        if let Some(message) = self.messages.get(&place) {
            let message = message.clone();
            self.hear_message(warp, lane, place, message);
        }
    }

    /// A lane reads a place at which that was left, by other than a weak access.
    pub(crate) fn hear_message(
        &mut self,
        warp: usize,
        lane: usize,
        place: usize,
        message: Message,
    ) {
        let heard = &mut self.warps[warp].heard;
        // What is left at a place only grows.
        match heard.iter_mut().find(|heard| (heard.lane, heard.place) == (lane, place)) {
            Some(heard) => heard.message = message,
            None => heard.push(Heard { lane, place, message }),
        }
    }

    /// A warp reads, by other than a weak access, what such an access wrote.
    pub(crate) fn observe(&mut self, place: usize, by: usize, block: u32, thread: u16, clock: u32) {
        let at = self.time(by);
        self.observed.insert(place, Observed { block, thread, clock, reader: by, at });
    }

    /// Whether a thread, or one that it has learned from, has read what such an access wrote.
    pub(crate) fn observed(
        &self,
        place: usize,
        by: Touch,
        block: u32,
        thread: u16,
        clock: u32,
    ) -> bool {
        self.observed.get(&place).is_some_and(|o| {
            let same = (o.block, o.thread, o.clock) == (block, thread, clock);
            same && (o.reader == by.warp || o.at <= self.seen(by.warp).own.warps[o.reader])
        })
    }
}
