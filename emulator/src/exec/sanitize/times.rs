//! Up to which times something is known of the threads of blocks. What does not change is shared.

use std::sync::Arc;

use crate::exec::alu::lanes::LANES;

/// The most warps of a block.
pub(crate) const MOST_WARPS: usize = 32;

/// What is known of the threads of a block: of all threads of a warp, and of single ones beyond
/// that.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times {
    pub(crate) warps: [u32; MOST_WARPS],
    /// Sorted by thread; only times that those of the warps do not cover.
    threads: Vec<(u16, u32)>,
}

impl Times {
    /// Takes in what another has.
    fn join(&mut self, from: &Self) {
        self.warps.iter_mut().zip(&from.warps).for_each(|(into, &from)| *into = from.max(*into));
        from.threads.iter().for_each(|&(thread, time)| self.learn(thread, time));
        let warps = &self.warps;
        self.threads.retain(|&(thread, time)| time > warps[usize::from(thread) / LANES]);
    }

    /// Takes in a time of one thread.
    pub(crate) fn learn(&mut self, thread: u16, time: u32) {
        if time <= self.warps[usize::from(thread) / LANES] {
            return;
        }
        match self.threads.binary_search_by_key(&thread, |&(thread, _)| thread) {
            Ok(at) => self.threads[at].1 = self.threads[at].1.max(time),
            Err(at) => self.threads.insert(at, (thread, time)),
        }
    }

    /// The time up to which a thread is known.
    pub(crate) fn of(&self, thread: u16) -> u32 {
        let at = self.threads.binary_search_by_key(&thread, |&(thread, _)| thread);
        at.map_or(self.warps[usize::from(thread) / LANES], |at| self.threads[at].1)
    }

    #[inline(always)]
    pub(crate) fn covers(&self, thread: u16, time: u32) -> bool {
        time <= self.warps[usize::from(thread) / LANES]
            || !self.threads.is_empty() && time <= self.of(thread)
    }

    /// Whether it has all that another has.
    fn includes(&self, other: &Self) -> bool {
        self.warps.iter().zip(&other.warps).all(|(own, other)| own >= other)
            && other.threads.iter().all(|&(thread, time)| self.covers(thread, time))
    }
}

/// What was done in a block.
type Entry = (u32, Arc<Times>);

/// What was done before a message was left at a place, by blocks, sorted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message(Option<Arc<Vec<Entry>>>);

impl Message {
    fn entries(&self) -> &[Entry] {
        self.0.as_ref().map_or(&[], |entries| &entries[..])
    }

    /// What it says of a block.
    pub(crate) fn of(&self, block: u32) -> Option<&Arc<Times>> {
        let entries = self.entries();
        let at = entries.binary_search_by_key(&block, |&(block, _)| block).ok()?;
        Some(&entries[at].1)
    }

    /// The same with more of a block.
    pub(crate) fn with(&self, block: u32, times: &Arc<Times>) -> Self {
        let mut message = self.clone();
        message.add(block, times);
        message
    }

    fn add(&mut self, block: u32, times: &Arc<Times>) {
        let entries = Arc::make_mut(self.0.get_or_insert_default());
        match entries.binary_search_by_key(&block, |&(block, _)| block) {
            Ok(at) => join_shared(&mut entries[at].1, times),
            Err(at) => entries.insert(at, (block, times.clone())),
        }
    }

    /// Whether it says all that another says.
    fn includes(&self, other: &Self) -> bool {
        let same = match (&self.0, &other.0) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (_, None) => true,
            (None, Some(other)) => return other.is_empty(),
        };
        let mut own = self.entries().iter();
        let has = |(block, times): &Entry| {
            own.by_ref()
                .find(|entry| entry.0 >= *block)
                .filter(|entry| entry.0 == *block)
                .is_some_and(|entry| Arc::ptr_eq(&entry.1, times) || entry.1.includes(times))
        };
        same || other.entries().iter().all(has)
    }

    /// Takes in what another says.
    pub(crate) fn join(&mut self, from: &Self) {
        if self.includes(from) {
            return;
        }
        if from.includes(self) {
            *self = from.clone();
            return;
        }
        from.entries().iter().for_each(|(block, times)| self.add(*block, times));
    }
}

fn join_shared(into: &mut Arc<Times>, from: &Arc<Times>) {
    if Arc::ptr_eq(into, from) || into.includes(from) {
        return;
    }
    if from.includes(into) {
        *into = from.clone();
    } else {
        Arc::make_mut(into).join(from);
    }
}

/// What a warp has learned: up to which times of its block, and of other blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) own: Times,
    /// What it says of the warp's own block is no more than `own` does.
    pub(crate) others: Message,
}

impl Known {
    pub(crate) fn join(&mut self, from: &Self) {
        self.own.join(&from.own);
        self.others.join(&from.others);
    }

    /// Takes in what was left at a place, as a warp of a block.
    pub(crate) fn take(&mut self, message: &Message, block: u32) {
        if let Some(own) = message.of(block) {
            self.own.join(own);
        }
        self.others.join(message);
    }

    /// Whether it covers a time of a thread of another block.
    pub(crate) fn covers(&self, block: u32, thread: u16, time: u32) -> bool {
        self.others.of(block).is_some_and(|times| times.covers(thread, time))
    }
}
