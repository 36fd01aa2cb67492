//! Who knows of whose accesses: the order that barriers, fences and atomics make in a block.
//!
//! Every warp has a time, which advances where others may learn what it did, and remembers up to
//! which time of each other warp it has learned. Within a warp each lane remembers the same of the
//! others: lanes that run side by side are ordered by nothing but barriers, as far as the PTX
//! memory model goes. Warps learn from each other by barriers, and by a fence and then an access
//! that is not weak on one side, and an access of the same place that is not weak and then a fence
//! on the other; so do blocks, and what one has learned it passes on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

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

/// Up to which times something is known of the threads of a block: of all threads of a warp, and
/// of single ones further than that.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times {
    warps: Vec<u32>,
    threads: BTreeMap<u16, u32>,
}

impl Times {
    fn nothing(warps: usize) -> Self {
        Self { warps: vec![0; warps], threads: BTreeMap::new() }
    }

    fn join(&mut self, from: &Self) {
        join_times(&mut self.warps, &from.warps);
        from.threads.iter().for_each(|(&thread, &time)| self.learn(thread, time));
    }

    fn learn(&mut self, thread: u16, time: u32) {
        if !self.covers(thread, time) {
            self.threads.insert(thread, time);
        }
    }

    #[inline(always)]
    fn covers(&self, thread: u16, time: u32) -> bool {
        time <= self.warps[usize::from(thread) / LANES]
            || self.threads.get(&thread).is_some_and(|&known| time <= known)
    }

    fn is_empty(&self) -> bool {
        self.threads.is_empty() && self.warps.iter().all(|&time| time == 0)
    }
}

/// What was done before a message was left at a place, by blocks.
pub(crate) type Message = HashMap<u32, Times>;

fn join_times(into: &mut [u32], from: &[u32]) {
    into.iter_mut().zip(from).for_each(|(into, &from)| *into = (*into).max(from));
}

fn join_message(into: &mut Message, block: u32, times: &Times) {
    match into.get_mut(&block) {
        Some(known) => known.join(times),
        None => {
            into.insert(block, times.clone());
        }
    }
}

/// What a warp has learned: up to which times of its block, and of other blocks.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    own: Times,
    others: Option<Arc<Message>>,
}

impl Known {
    fn nothing(warps: usize) -> Self {
        Self { own: Times::nothing(warps), others: None }
    }

    fn clear(&mut self) {
        self.own.warps.fill(0);
        self.own.threads.clear();
        self.others = None;
    }

    fn is_nothing(&self) -> bool {
        self.own.is_empty() && self.others.is_none()
    }

    fn join(&mut self, from: &Self) {
        self.own.join(&from.own);
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
        join_message(message, block, &self.own);
        for (&block, times) in self.others.iter().flat_map(|others| others.iter()) {
            join_message(message, block, times);
        }
    }

    /// Takes in what was left at a place.
    fn take(&mut self, message: &Message, block: u32) {
        for (&other, times) in message {
            if other == block {
                self.own.join(times);
            } else {
                let others = Arc::make_mut(self.others.get_or_insert_default());
                join_message(others, other, times);
            }
        }
    }

    /// Whether it covers a time of a thread of another block.
    pub(crate) fn covers(&self, block: u32, thread: u16, time: u32) -> bool {
        let others = self.others.as_ref();
        let times = others.and_then(|others| others.get(&block));
        times.is_some_and(|times| times.covers(thread, time))
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
    /// What each warp had learned of others at its last fence.
    fenced: Vec<Known>,
    /// What each lane had done and learned of the lanes of its warp at its last fence.
    fenced_lanes: Vec<LaneTimes>,
    /// What each warp learns at its next fence.
    heard: Vec<Known>,
    /// What was left at places of shared memory, by host address.
    messages: HashMap<usize, Message>,
    /// By the place of a granule.
    observed: HashMap<usize, Observed>,
    /// What those know that arrived at each barrier: seen, fenced and heard.
    arrived: Vec<[Known; 3]>,
    /// Whether all warps know the same, except for the times of warps: nothing else was learned since
    /// a barrier at which all of them met. A barrier then passes on these times alone.
    level: bool,
    /// Barriers at which a warp has arrived that may know more than the others.
    full: Vec<bool>,
    now: u32,
}

impl Clocks {
    pub(crate) fn new(warps: usize, barriers: usize) -> Self {
        let known = || vec![Known::nothing(warps); warps];
        Self {
            seen: known(),
            lanes: vec![[[0; LANES]; LANES]; warps],
            fenced: known(),
            fenced_lanes: vec![[[0; LANES]; LANES]; warps],
            heard: known(),
            messages: HashMap::new(),
            observed: HashMap::new(),
            arrived: vec![std::array::from_fn(|_| Known::nothing(warps)); barriers],
            level: true,
            full: vec![false; barriers],
            now: 1,
        }
    }

    /// Forgets everything, for the next block.
    pub(crate) fn reset(&mut self) {
        for (warp, seen) in self.seen.iter_mut().enumerate() {
            seen.clear();
            seen.own.warps[warp] = 1;
        }
        self.lanes.fill([[0; LANES]; LANES]);
        self.fenced.iter_mut().for_each(Known::clear);
        self.fenced_lanes.fill([[0; LANES]; LANES]);
        self.heard.iter_mut().for_each(Known::clear);
        self.messages.clear();
        self.observed.clear();
        self.arrived.iter_mut().flatten().for_each(Known::clear);
        self.level = true;
        self.full.fill(false);
        self.now = 1;
    }

    /// The time of a warp.
    #[inline(always)]
    pub(crate) fn time(&self, warp: usize) -> u32 {
        self.seen[warp].own.warps[warp]
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
            self.seen[by.warp].own.covers(thread, clock)
        }
    }

    /// Lanes of the thread's warp, of those in the mask, whose doings at a time it does not know.
    #[inline(always)]
    pub(crate) fn unknown_lanes(&self, by: Touch, mask: u32, clock: u32) -> u32 {
        let times = &self.lanes[by.warp][by.lane];
        let others = mask & !(1 << by.lane);
        lanes(others).filter(|&lane| clock > times[lane]).fold(0, |all, lane| all | 1 << lane)
    }

    /// Separates a warp's later accesses from its earlier ones.
    fn advance(&mut self, warp: usize) {
        self.now += 1;
        self.seen[warp].own.warps[warp] = self.now;
    }

    /// Lanes of a warp meet at a warp barrier.
    pub(crate) fn meet(&mut self, warp: usize, mask: u32) {
        self.level = false;
        let now = self.time(warp);
        for times in [&mut self.lanes[warp], &mut self.fenced_lanes[warp]] {
            let mut all = [0; LANES];
            lanes(mask).for_each(|lane| join_times(&mut all, &times[lane]));
            lanes(mask).for_each(|lane| times[lane] = all);
        }
        for lane in lanes(mask) {
            lanes(mask).for_each(|other| self.lanes[warp][lane][other] = now);
        }
        self.advance(warp);
    }

    /// A warp arrives at a barrier of the block; `waits` is false where it goes on at once.
    pub(crate) fn arrive(&mut self, warp: usize, barrier: usize, waits: bool) {
        let [seen, fenced, heard] = &mut self.arrived[barrier];
        if self.level {
            join_times(&mut seen.own.warps, &self.seen[warp].own.warps);
        } else {
            self.full[barrier] = true;
            seen.join(&self.seen[warp]);
            fenced.join(&self.fenced[warp]);
            for (lane, times) in self.fenced_lanes[warp].iter().enumerate() {
                fenced.own.learn((warp * LANES + lane) as u16, times[lane]);
            }
            heard.join(&self.heard[warp]);
        }
        if !waits {
            self.advance(warp);
        }
    }

    /// A barrier of the block lets the warps go on that wait there.
    pub(crate) fn release(&mut self, barrier: usize, waiting: impl Iterator<Item = usize>) {
        self.now += 1;
        let is_full = std::mem::take(&mut self.full[barrier]);
        let mut met = 0;
        for warp in waiting {
            let before = self.time(warp);
            let [seen, fenced, heard] = &self.arrived[barrier];
            if is_full {
                self.seen[warp].join(seen);
                self.fenced[warp].join(fenced);
                self.heard[warp].join(heard);
            } else {
                join_times(&mut self.seen[warp].own.warps, &seen.own.warps);
            }
            self.seen[warp].own.warps[warp] = self.now;
            self.lanes[warp] = [[before; LANES]; LANES];
            met += 1;
        }
        if is_full {
            self.level = met == self.seen.len();
            self.arrived[barrier].iter_mut().for_each(Known::clear);
        } else {
            self.arrived[barrier][0].own.warps.fill(0);
        }
    }

    /// Lanes of a warp execute a fence.
    pub(crate) fn fence(&mut self, warp: usize, mask: u32) {
        self.level = false;
        let own = self.time(warp);
        self.seen[warp].join(&self.heard[warp]);
        self.seen[warp].own.warps[warp] = own;
        // What lanes left for others of their warp orders those, too.
        let heard = &self.heard[warp].own;
        for lane in 0..LANES {
            let thread = (warp * LANES + lane) as u16;
            let met = heard.threads.get(&thread).copied().unwrap_or(0).max(heard.warps[warp]);
            let times = self.lanes[warp].iter_mut();
            times.for_each(|times| times[lane] = times[lane].max(met));
        }
        for lane in lanes(mask) {
            let mut times = self.lanes[warp][lane];
            times[lane] = own;
            join_times(&mut self.fenced_lanes[warp][lane], &times);
        }
        // Of its own warp each lane knows what it knows.
        let before = self.fenced[warp].own.warps[warp];
        self.fenced[warp].join(&self.seen[warp]);
        self.fenced[warp].own.warps[warp] = before;
        self.advance(warp);
    }

    /// What others may learn from a lane: what it, and those that it met at barriers, did before
    /// their fences.
    pub(crate) fn fenced(&self, warp: usize, lane: usize) -> Option<Known> {
        let mut fenced = self.fenced[warp].clone();
        for (other, &time) in self.fenced_lanes[warp][lane].iter().enumerate() {
            fenced.own.learn((warp * LANES + other) as u16, time);
        }
        (!fenced.is_nothing()).then_some(fenced)
    }

    /// A lane writes to a place in shared memory by other than a weak access: who reads it there
    /// learns what the lane did before its last fence.
    pub(crate) fn tell(&mut self, warp: usize, lane: usize, block: u32, place: usize) {
        if let Some(fenced) = self.fenced(warp, lane) {
            fenced.leave(self.messages.entry(place).or_default(), block);
        }
    }

    /// A warp reads a place in shared memory by other than a weak access.
    pub(crate) fn hear(&mut self, warp: usize, block: u32, place: usize) {
        if let Some(message) = self.messages.get(&place) {
            self.level = false;
            self.heard[warp].take(message, block);
        }
    }

    /// A warp reads a place in global memory, at which that was left, by other than a weak access.
    pub(crate) fn hear_message(&mut self, warp: usize, block: u32, message: &Message) {
        self.level = false;
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
            same && (o.reader == by.warp || o.at <= self.seen[by.warp].own.warps[o.reader])
        })
    }
}
