//! A launch as events: CTAs on multiprocessors with two slots draw tiles from a list, and tiles
//! wait for each other as the kernels have them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::ops::Range;

/// CTAs that a multiprocessor holds.
const SLOTS: usize = 2;
/// How much longer latency-bound work takes beside a main tile, and a main tile beside such work:
/// estimates.
const SLOW_RUN: f64 = 1.1;
const SLOW_MAIN: f64 = 1.05;
/// Each stretch of work takes up to so much more or less. Without it, all slots of a wave end at
/// once, and the last tiles of a list spread over multiprocessors as on no GPU.
const JITTER: f64 = 0.03;
const SEEDS: [u64; 3] = [1, 2, 3];

/// What a tile does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Clocks that latencies bound.
    Run(f64),
    /// Clocks of tensor cores, as if alone on the multiprocessor.
    Main(f64),
    /// Waits until these events are complete.
    Wait(Range<usize>),
    /// Counts for an event.
    Signal(usize),
    /// Whoever arrives last of `of` at a counter runs `clocks` more, and counts for an event.
    Last { counter: usize, of: usize, clocks: f64, event: Option<usize> },
    /// Waits for its turn in a chain.
    Turn { chain: usize, number: usize },
    /// Passes the turn on.
    Pass(usize),
}

/// A launch: its tiles in the order of the list, and how many signals complete each event.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    pub tiles: Vec<Vec<Phase>>,
    pub expected: Vec<usize>,
}

impl Launch {
    /// Clocks until all tiles are done, as the mean over several seeds. Each of two main tiles on a
    /// multiprocessor takes `both` times as long as one alone.
    pub fn clocks(&self, multiprocessors: usize, both: f64) -> Result<f64, String> {
        let runs = SEEDS.map(|seed| self.run(multiprocessors, both, Some(seed)));
        let all = runs.into_iter().collect::<Result<Vec<f64>, String>>()?;
        Ok(all.iter().sum::<f64>() / all.len() as f64)
    }

    /// Clocks of one run. Without a seed, all work takes what it is said to take.
    pub fn run(&self, multiprocessors: usize, both: f64, seed: Option<u64>) -> Result<f64, String> {
        let mut run = Run {
            launch: self,
            both,
            random: seed,
            now: 0.0,
            next: 0,
            slots: vec![Slot::default(); multiprocessors * SLOTS],
            multiprocessors: vec![Multiprocessor::default(); multiprocessors],
            heap: BinaryHeap::new(),
            signals: vec![0; self.expected.len()],
            arrivals: HashMap::new(),
            turns: HashMap::new(),
            blocked: HashMap::new(),
            woken: Vec::new(),
        };
        run.all()
    }
}

/// What a slot is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Run,
    Main,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    /// The rest of its tile; none when the list is empty.
    phases: Option<VecDeque<Phase>>,
    kind: Option<Kind>,
    left: f64,
    speed: f64,
}

#[derive(Clone, Debug, Default)]
struct Multiprocessor {
    /// Changes of its slots. What was planned before the last one is void.
    version: u64,
    since: f64,
}

/// What blocked tiles wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Event(usize),
    Chain(usize),
}

/// A time of the heap.
#[derive(Clone, Copy, Debug, PartialEq)]
struct At(f64);

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

struct Run<'a> {
    launch: &'a Launch,
    both: f64,
    random: Option<u64>,
    now: f64,
    /// The next tile of the list.
    next: usize,
    /// The slots of the first multiprocessor, of the second, and so on.
    slots: Vec<Slot>,
    multiprocessors: Vec<Multiprocessor>,
    heap: BinaryHeap<Reverse<(At, u64, usize)>>,
    signals: Vec<usize>,
    arrivals: HashMap<usize, usize>,
    turns: HashMap<usize, usize>,
    blocked: HashMap<Key, Vec<usize>>,
    woken: Vec<usize>,
}

impl Run<'_> {
    fn all(&mut self) -> Result<f64, String> {
        // One CTA on each multiprocessor first.
        for slot in 0..SLOTS {
            for multiprocessor in 0..self.multiprocessors.len() {
                self.advance(multiprocessor * SLOTS + slot);
            }
        }
        for multiprocessor in 0..self.multiprocessors.len() {
            self.plan(multiprocessor);
        }
        loop {
            while let Some(slot) = self.woken.pop() {
                self.settle(slot / SLOTS);
                self.advance(slot);
                self.plan(slot / SLOTS);
            }
            let Some(Reverse((at, version, slot))) = self.heap.pop() else { break };
            if self.multiprocessors[slot / SLOTS].version != version {
                continue;
            }
            self.now = at.0;
            self.settle(slot / SLOTS);
            (self.slots[slot].left, self.slots[slot].kind) = (0.0, None);
            self.advance(slot);
            self.plan(slot / SLOTS);
        }
        match self.slots.iter().filter(|slot| slot.phases.is_some()).count() {
            0 if self.next == self.launch.tiles.len() => Ok(self.now),
            waiting => Err(format!("{waiting} tiles of the modelled launch wait for ever")),
        }
    }

    /// Takes off what was done since the last change.
    fn settle(&mut self, multiprocessor: usize) {
        let passed = self.now - self.multiprocessors[multiprocessor].since;
        for slot in &mut self.slots[multiprocessor * SLOTS..][..SLOTS] {
            slot.left -= passed * slot.speed;
        }
        self.multiprocessors[multiprocessor].since = self.now;
    }

    /// Plans when the slots of a multiprocessor are done.
    fn plan(&mut self, multiprocessor: usize) {
        let first = multiprocessor * SLOTS;
        self.multiprocessors[multiprocessor].version += 1;
        for number in 0..SLOTS {
            let other = self.slots[first + SLOTS - 1 - number].kind;
            let slot = &mut self.slots[first + number];
            slot.speed = match (slot.kind, other) {
                (None, _) => 0.0,
                (Some(Kind::Main), Some(Kind::Main)) => 1.0 / self.both,
                (Some(Kind::Main), Some(Kind::Run)) => 1.0 / SLOW_MAIN,
                (Some(Kind::Run), Some(Kind::Main)) => 1.0 / SLOW_RUN,
                _ => 1.0,
            };
            if slot.speed > 0.0 {
                let at = At(self.now + slot.left.max(0.0) / slot.speed);
                let version = self.multiprocessors[multiprocessor].version;
                self.heap.push(Reverse((at, version, first + number)));
            }
        }
    }

    /// Goes on with a slot's tile until something takes time or must be waited for, or the list is
    /// empty.
    fn advance(&mut self, slot: usize) {
        loop {
            let Some(phase) = self.slots[slot].phases.as_mut().and_then(VecDeque::pop_front) else {
                let tile = self.launch.tiles.get(self.next);
                self.slots[slot].phases = tile.map(|tile| tile.iter().cloned().collect());
                if tile.is_none() {
                    return;
                }
                self.next += 1;
                continue;
            };
            match phase {
                Phase::Run(clocks) if clocks > 0.0 => return self.work(slot, Kind::Run, clocks),
                Phase::Main(clocks) if clocks > 0.0 => return self.work(slot, Kind::Main, clocks),
                Phase::Run(_) | Phase::Main(_) => {}
                Phase::Wait(ref events) => {
                    let is_open =
                        |&event: &usize| self.signals[event] < self.launch.expected[event];
                    if let Some(event) = events.clone().find(is_open) {
                        return self.block(slot, Key::Event(event), phase);
                    }
                }
                Phase::Signal(event) => self.signal(event),
                Phase::Last { counter, of, clocks, event } => {
                    let arrived = self.arrivals.entry(counter).or_default();
                    *arrived += 1;
                    if *arrived == of {
                        let phases = self.slots[slot].phases.get_or_insert_default();
                        if let Some(event) = event {
                            phases.push_front(Phase::Signal(event));
                        }
                        phases.push_front(Phase::Run(clocks));
                    }
                }
                Phase::Turn { chain, number } => {
                    if *self.turns.entry(chain).or_default() < number {
                        return self.block(slot, Key::Chain(chain), phase);
                    }
                }
                Phase::Pass(chain) => {
                    *self.turns.entry(chain).or_default() += 1;
                    self.wake(Key::Chain(chain));
                }
            }
        }
    }

    fn work(&mut self, slot: usize, kind: Kind, clocks: f64) {
        let varied = match &mut self.random {
            Some(state) => clocks * (1.0 + JITTER * (2.0 * uniform(state) - 1.0)),
            None => clocks,
        };
        (self.slots[slot].left, self.slots[slot].kind) = (varied, Some(kind));
    }

    fn block(&mut self, slot: usize, key: Key, phase: Phase) {
        self.slots[slot].kind = None;
        self.slots[slot].phases.get_or_insert_default().push_front(phase);
        self.blocked.entry(key).or_default().push(slot);
    }

    fn signal(&mut self, event: usize) {
        self.signals[event] += 1;
        if self.signals[event] >= self.launch.expected[event] {
            self.wake(Key::Event(event));
        }
    }

    fn wake(&mut self, key: Key) {
        self.woken.extend(self.blocked.remove(&key).unwrap_or_default());
    }
}

/// The next number of [0, 1): SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom
/// Number Generators").
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ z >> 31) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clocks(tiles: Vec<Vec<Phase>>, expected: Vec<usize>) -> f64 {
        Launch { tiles, expected }.run(1, 1.8, None).unwrap()
    }

    #[track_caller]
    fn assert_near(clocks: f64, wanted: f64) {
        assert!((clocks - wanted).abs() < 1e-6, "{clocks} instead of {wanted}");
    }

    #[test]
    fn main_tiles_share_a_multiprocessor() {
        for (count, wanted) in [(1, 100.0), (2, 180.0), (3, 280.0)] {
            assert_near(clocks(vec![vec![Phase::Main(100.0)]; count], vec![]), wanted);
        }
        assert_near(clocks(vec![vec![Phase::Run(100.0)]; 3], vec![]), 200.0);
        let both = vec![vec![Phase::Run(110.0)], vec![Phase::Main(100.0)]];
        assert_near(clocks(both, vec![]), 105.0 + 110.0 - 105.0 / 1.1);
    }

    #[test]
    fn tiles_wait_for_each_other() {
        let pair = vec![
            vec![Phase::Run(50.0), Phase::Signal(0)],
            vec![Phase::Wait(0..1), Phase::Run(7.0)],
        ];
        assert_near(clocks(pair, vec![1]), 57.0);
        let turn =
            |number| vec![Phase::Turn { chain: 0, number }, Phase::Run(10.0), Phase::Pass(0)];
        assert_near(clocks((0..4).map(turn).collect(), vec![]), 40.0);
        let last = Phase::Last { counter: 0, of: 2, clocks: 100.0, event: Some(0) };
        let mut tiles: Vec<_> =
            [3.0, 4.0].map(|clocks| vec![Phase::Run(clocks), last.clone()]).into();
        tiles.push(vec![Phase::Wait(0..1), Phase::Run(1.0)]);
        assert_near(clocks(tiles, vec![1]), 105.0);
    }

    #[test]
    fn a_tile_that_waits_for_ever_is_reported() {
        let launch = Launch { tiles: vec![vec![Phase::Wait(0..1)]], expected: vec![1] };
        let error = launch.run(2, 1.8, None).unwrap_err();
        assert!(error.contains("1 tiles"), "{error}");
    }
}
