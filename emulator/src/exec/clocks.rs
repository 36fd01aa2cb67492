//! Who knows of whose accesses: the order that barriers, fences and atomics make in a block.
//!
//! Every warp has a time, which advances where others may learn what it did, and remembers up to
//! which time of each other warp it has learned. Within a warp each lane remembers the same of the
//! others: lanes that run side by side are ordered by nothing but barriers, as far as the PTX
//! memory model goes. Warps learn from each other by barriers, and by a fence and then an access
//! that is not weak on one side, and an access of the same place that is not weak and then a fence
//! on the other; so do blocks, and what one has learned it passes on.

use std::collections::HashMap;
use std::sync::Arc;

use super::context::lanes;
use super::lanes::LANES;

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

/// Times of the warps of a block.
type Times = Vec<u32>;

/// What was done before a message was left at a place, by blocks: the times of their warps.
pub(crate) type Message = HashMap<u32, Times>;

fn join_times(into: &mut [u32], from: &[u32]) {
    into.iter_mut().zip(from).for_each(|(into, &from)| *into = (*into).max(from));
}

fn join_message(into: &mut Message, block: u32, times: &[u32]) {
    match into.get_mut(&block) {
        Some(known) => join_times(known, times),
        None => {
            into.insert(block, times.to_vec());
        }
    }
}

/// What a warp has learned: up to which times of the warps of its block, and of other blocks.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    warps: Times,
    others: Option<Arc<Message>>,
}

impl Known {
    fn nothing(warps: usize) -> Self {
        Self { warps: vec![0; warps], others: None }
    }

    fn clear(&mut self) {
        self.warps.fill(0);
        self.others = None;
    }

    fn join(&mut self, from: &Self) {
        join_times(&mut self.warps, &from.warps);
        match (&mut self.others, &from.others) {
            (_, None) => {}
            (None, Some(theirs)) => self.others = Some(theirs.clone()),
            (Some(ours), Some(theirs)) if Arc::ptr_eq(ours, theirs) => {}
            (Some(ours), Some(theirs)) => {
                let ours = Arc::make_mut(ours);
                theirs.iter().for_each(|(&block, times)| join_message(ours, block, times));
            }
        }
    }

    /// Leaves it at a place.
    pub(crate) fn leave(&self, message: &mut Message, block: u32) {
        join_message(message, block, &self.warps);
        for (&block, times) in self.others.iter().flat_map(|others| others.iter()) {
            join_message(message, block, times);
        }
    }

    /// Takes in what was left at a place.
    fn take(&mut self, message: &Message, block: u32) {
        for (&other, times) in message {
            if other == block {
                join_times(&mut self.warps, times);
            } else {
                let others = Arc::make_mut(self.others.get_or_insert_default());
                join_message(others, other, times);
            }
        }
    }

    /// Whether it covers a time of a warp of another block.
    pub(crate) fn covers(&self, block: u32, warp: usize, clock: u32) -> bool {
        let others = self.others.as_ref();
        others.and_then(|others| others.get(&block)).is_some_and(|times| clock <= times[warp])
    }
}

/// Up to which time of each other lane of its warp a lane has learned, by lanes.
type LaneTimes = [[u32; LANES]; LANES];

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

/// The clocks of a block.
pub(crate) struct Clocks {
    /// What each warp has learned; its own time at its own index.
    seen: Vec<Known>,
    lanes: Vec<LaneTimes>,
    /// What each warp had learned and done at its last fence.
    fenced: Vec<Known>,
    /// What each warp learns at its next fence.
    heard: Vec<Known>,
    /// What was left at places of shared memory, by host address.
    messages: HashMap<usize, Message>,
    /// By the place of a granule.
    observed: HashMap<usize, Observed>,
    /// What those know that arrived at each barrier: seen, fenced and heard.
    arrived: Vec<[Known; 3]>,
    now: u32,
}

impl Clocks {
    pub(crate) fn new(warps: usize, barriers: usize) -> Self {
        let known = || vec![Known::nothing(warps); warps];
        Self {
            seen: known(),
            lanes: vec![[[0; LANES]; LANES]; warps],
            fenced: known(),
            heard: known(),
            messages: HashMap::new(),
            observed: HashMap::new(),
            arrived: vec![std::array::from_fn(|_| Known::nothing(warps)); barriers],
            now: 1,
        }
    }

    /// Forgets everything, for the next block.
    pub(crate) fn reset(&mut self) {
        for (warp, seen) in self.seen.iter_mut().enumerate() {
            seen.clear();
            seen.warps[warp] = 1;
        }
        self.lanes.fill([[0; LANES]; LANES]);
        self.fenced.iter_mut().for_each(Known::clear);
        self.heard.iter_mut().for_each(Known::clear);
        self.messages.clear();
        self.observed.clear();
        self.arrived.iter_mut().flatten().for_each(Known::clear);
        self.now = 1;
    }

    /// The time of a warp.
    #[inline(always)]
    pub(crate) fn time(&self, warp: usize) -> u32 {
        self.seen[warp].warps[warp]
    }

    /// What a warp has learned.
    pub(crate) fn seen(&self, warp: usize) -> &Known {
        &self.seen[warp]
    }

    /// Whether a thread of the block has learned what another did at a time.
    #[inline(always)]
    pub(crate) fn knows(&self, by: Touch, thread: u16, clock: u32) -> bool {
        let (warp, lane) = (usize::from(thread) / LANES, usize::from(thread) % LANES);
        if warp == by.warp {
            lane == by.lane || clock <= self.lanes[warp][by.lane][lane]
        } else {
            clock <= self.seen[by.warp].warps[warp]
        }
    }

    /// Lanes of the thread's warp, of those in the mask, whose doings at a time it does not know.
    #[inline(always)]
    pub(crate) fn unknown_lanes(&self, by: Touch, mask: u32, clock: u32) -> u32 {
        let times = &self.lanes[by.warp][by.lane];
        let others = mask & !(1 << by.lane);
        lanes(others).filter(|&lane| clock > times[lane]).fold(0, |all, lane| all | 1 << lane)
    }

    /// A warp's later accesses are told from its earlier ones.
    fn advance(&mut self, warp: usize) {
        self.now += 1;
        self.seen[warp].warps[warp] = self.now;
    }

    /// Lanes of a warp meet at a warp barrier.
    pub(crate) fn meet(&mut self, warp: usize, mask: u32) {
        let now = self.time(warp);
        let times = &mut self.lanes[warp];
        let mut all = [0; LANES];
        lanes(mask).for_each(|lane| join_times(&mut all, &times[lane]));
        lanes(mask).for_each(|lane| all[lane] = now);
        lanes(mask).for_each(|lane| times[lane] = all);
        self.advance(warp);
    }

    /// A warp arrives at a barrier of the block; `waits` is false where it goes on at once.
    pub(crate) fn arrive(&mut self, warp: usize, barrier: usize, waits: bool) {
        let known = [&self.seen[warp], &self.fenced[warp], &self.heard[warp]];
        self.arrived[barrier].iter_mut().zip(known).for_each(|(all, known)| all.join(known));
        if !waits {
            self.advance(warp);
        }
    }

    /// A barrier of the block lets the warps go on that wait there.
    pub(crate) fn release(&mut self, barrier: usize, waiting: impl Iterator<Item = usize>) {
        self.now += 1;
        for warp in waiting {
            let before = self.time(warp);
            let [seen, fenced, heard] = &self.arrived[barrier];
            self.seen[warp].join(seen);
            self.fenced[warp].join(fenced);
            self.heard[warp].join(heard);
            self.seen[warp].warps[warp] = self.now;
            self.lanes[warp] = [[before; LANES]; LANES];
        }
        self.arrived[barrier].iter_mut().for_each(Known::clear);
    }

    /// A warp executes a fence.
    pub(crate) fn fence(&mut self, warp: usize) {
        let own = self.time(warp);
        self.seen[warp].join(&self.heard[warp]);
        self.seen[warp].warps[warp] = own;
        // What lanes left for others of their warp orders those, too.
        let met = self.heard[warp].warps[warp];
        if met > 0 {
            let times = self.lanes[warp].iter_mut().flatten();
            times.for_each(|time| *time = (*time).max(met));
        }
        self.fenced[warp].join(&self.seen[warp]);
        self.advance(warp);
    }

    /// What a warp may tell others: what it and those that it met at barriers did before their
    /// fences.
    pub(crate) fn fenced(&self, warp: usize) -> Option<&Known> {
        let fenced = &self.fenced[warp];
        fenced.warps.iter().any(|&time| time != 0).then_some(fenced)
    }

    /// A warp writes to a place in shared memory by other than a weak access: who reads it there
    /// learns what the warp did before its last fence.
    pub(crate) fn tell(&mut self, warp: usize, block: u32, place: usize) {
        let Some(fenced) = self.fenced(warp) else { return };
        let fenced = fenced.clone();
        fenced.leave(self.messages.entry(place).or_default(), block);
    }

    /// A warp reads a place in shared memory by other than a weak access.
    pub(crate) fn hear(&mut self, warp: usize, block: u32, place: usize) {
        if let Some(message) = self.messages.get(&place) {
            self.heard[warp].take(message, block);
        }
    }

    /// A warp reads a place in global memory, at which that was left, by other than a weak access.
    pub(crate) fn hear_message(&mut self, warp: usize, block: u32, message: &Message) {
        self.heard[warp].take(message, block);
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
            same && (o.reader == by.warp || o.at <= self.seen[by.warp].warps[o.reader])
        })
    }
}
