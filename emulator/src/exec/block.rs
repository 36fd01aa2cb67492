//! A block: its warps, its barriers, and the order in which warps run.

use std::sync::atomic::Ordering;

use crate::counters::Counters;
use crate::exec::context::*;
use crate::exec::measure::Measure;
use crate::exec::sanitize::shared::Shadow;
use crate::exec::schedule::Random;
use crate::exec::warp::{Pause, Warp};
use crate::fault::{Fault, FaultKind};
use crate::program::{BarrierKind, BarrierOp, Op, Target};

const BARRIERS: usize = 16;
const WARP_THREADS: u32 = 32;
/// Instructions that a warp runs before the next one of its block.
const WARP_QUANTUM: u64 = 1 << 14;
/// The same where the schedule has a seed: at least this, and up to [`WARP_QUANTUM`].
const LEAST_WARP_QUANTUM: u64 = 1 << 6;

/// Where a warp stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// At a barrier, by the place of the instruction.
    At(u32, u8),
    Done,
}

/// One of the barriers that a block has.
#[derive(Clone, Copy, Debug, Default)]
struct Barrier {
    /// Threads that have arrived, in whole warps.
    arrived: u32,
    /// Threads that must arrive; `None` for all of the block.
    expected: Option<u32>,
    /// Threads for which the predicate held.
    count: u32,
    /// Threads with a predicate.
    tested: u32,
}

/// A block that runs.
pub(crate) struct Block {
    /// Position in the grid, x fastest.
    pub(crate) number: u64,
    pub(crate) index: [u32; 3],
    shared: Shared,
    warps: Vec<Warp>,
    states: Vec<State>,
    order: Vec<usize>,
    next: usize,
    /// Instructions that a warp runs before the next one.
    quantum: u64,
    barriers: [Barrier; BARRIERS],
    /// What this block and those before it did, where it is measured.
    pub(crate) measure: Option<Box<Measure>>,
}

/// What became of a block after a turn.
pub(crate) enum Turn {
    Done,
    More,
}

impl Block {
    /// A block with nothing set; `start` makes it ready.
    pub(crate) fn new(context: &Context) -> Self {
        let threads: u32 = context.block.iter().product();
        let warps = threads.div_ceil(WARP_THREADS) as usize;
        let bytes = context.shared_bytes as usize;
        let shadow = context.config.sanitizer.then(|| Shadow::new(bytes, warps, BARRIERS));
        Self {
            number: 0,
            index: [0; 3],
            shared: Shared::new(context, shadow),
            warps: (0..warps).map(|_| Warp::new()).collect(),
            states: vec![State::Ready; warps],
            order: (0..warps).collect(),
            next: 0,
            quantum: WARP_QUANTUM,
            barriers: [Barrier::default(); BARRIERS],
            measure: context.config.measure.then(|| Measure::new(context.kernel)),
        }
    }

    /// Makes it the block of that number, at the kernel's start.
    pub(crate) fn start(&mut self, context: &Context, number: u64) {
        let [width, height, _] = context.grid.map(u64::from);
        self.number = number;
        self.index = [
            (number % width) as u32,
            (number / width % height) as u32,
            (number / width / height) as u32,
        ];
        self.shared.reset(number as u32);
        for (index, warp) in self.warps.iter_mut().enumerate() {
            warp.reset(context, self.index, index as u32);
        }
        self.states.fill(State::Ready);
        self.barriers = [Barrier::default(); BARRIERS];
        self.next = 0;
        self.order.iter_mut().enumerate().for_each(|(at, warp)| *warp = at);
        self.quantum = WARP_QUANTUM;
        if let Some(mut random) = Random::new(context.config.seed, number) {
            random.shuffle(&mut self.order);
            self.quantum = LEAST_WARP_QUANTUM << random.below(9);
        }
    }

    /// Runs warps, each until it waits, exits or has had its share, for about `quantum`
    /// instructions altogether.
    pub(crate) fn turn(
        &mut self,
        context: &Context,
        counters: &mut Counters,
        quantum: u64,
    ) -> Result<Turn, Box<Fault>> {
        let end = counters.instructions + quantum;
        // Warps in a row that sleep; once they are all, what they wait for is another block's.
        let mut asleep = 0;
        while counters.instructions < end {
            if self.states.iter().all(|&state| state == State::Done) {
                return Ok(Turn::Done);
            }
            let ready = (0..self.order.len())
                .map(|ahead| (self.next + ahead) % self.order.len())
                .find(|&at| self.states[self.order[at]] == State::Ready);
            let Some(at) = ready else { return Err(self.deadlock(context)) };
            let warp = self.order[at];
            self.next = at;
            let (shared, block) = (&mut self.shared, self.number as u32);
            let measure = self.measure.as_deref_mut();
            let mut machine = Machine { context, shared, counters, measure, pc: 0, block };
            let effects = context.effects.load(Ordering::SeqCst);
            let result = self.warps[warp].run(&mut machine, self.quantum);
            let pause = result.map_err(|stop| self.fault(context, warp, *stop))?;
            if self.warps[warp].has_run(pause, effects) {
                context.effects.fetch_add(1, Ordering::SeqCst);
            }
            // A loop without end may pause at nothing but its barriers.
            if !matches!(pause, Pause::Done) && self.warps[warp].ran > context.config.watchdog {
                return Err(self.timeout(context, warp));
            }
            match pause {
                Pause::Done => {
                    self.states[warp] = State::Done;
                    self.release(context);
                    self.next = at + 1;
                }
                Pause::Quantum => self.next = at + 1,
                Pause::Sleep => {
                    self.next = at + 1;
                    asleep += 1;
                    let ready = self.states.iter().filter(|&&state| state == State::Ready);
                    if asleep >= ready.count() {
                        return Ok(Turn::More);
                    }
                    continue;
                }
                Pause::Barrier(pc) => {
                    self.arrive(context, counters, warp, pc)?;
                    self.next = if self.states[warp] == State::Ready { at } else { at + 1 };
                }
            }
            asleep = 0;
        }
        Ok(Turn::More)
    }

    /// Whether all of its warps that are not done do the same again and again, or wait for those
    /// that do, since the launch has had that many effects.
    pub(crate) fn is_stuck(&self, effects: u64) -> bool {
        self.states.iter().zip(&self.warps).all(|(state, warp)| match state {
            State::Ready => warp.spin.stuck() == Some(effects),
            State::At(..) | State::Done => true,
        })
    }

    /// The report of a loop that nothing can end.
    pub(crate) fn endless(&self, context: &Context) -> Box<Fault> {
        let detail = format!(
            "nothing can end this loop: every warp that has not exited waits at a barrier or does \
             the same again and again, and changes nothing that another reads; {}",
            self.describe(context)
        );
        let warp = self.states.iter().position(|&state| state == State::Ready).unwrap_or(0);
        self.fault(context, warp, *Stop::new(FaultKind::Timeout, detail))
    }

    /// A warp arrives at a barrier.
    fn arrive(
        &mut self,
        context: &Context,
        counters: &mut Counters,
        warp: usize,
        pc: u32,
    ) -> Result<(), Box<Fault>> {
        let Op::Barrier(op) = &context.kernel.code[pc as usize].op else { return Ok(()) };
        counters.barriers += 1;
        let (id, expected) = match self.operands(op, warp) {
            Ok(operands) => operands,
            Err(stop) => return Err(self.fault(context, warp, *stop)),
        };
        let barrier = &mut self.barriers[id as usize];
        if barrier.arrived > 0 && barrier.expected != expected {
            let say = |expected: Option<u32>| {
                expected.map_or("all threads".to_owned(), |threads| format!("{threads} threads"))
            };
            let detail = format!(
                "barrier {id} is for {} here and for {} where others arrived",
                say(expected),
                say(barrier.expected)
            );
            let stop = Stop::new(FaultKind::DivergentBarrier, detail);
            return Err(self.fault(context, warp, *stop));
        }
        barrier.expected = expected;
        barrier.arrived += WARP_THREADS;
        let live = self.warps[warp].live();
        barrier.tested += live.count_ones();
        barrier.count += (self.warps[warp].test(op.test) & live).count_ones();
        if let Some(shadow) = self.shared.shadow() {
            shadow.clocks.arrive(warp, id as usize, op.kind != BarrierKind::Arrive);
        }
        if op.kind == BarrierKind::Arrive {
            self.warps[warp].pass_barrier();
        } else {
            self.states[warp] = State::At(pc, id);
        }
        self.release(context);
        Ok(())
    }

    /// The barrier's number and thread count, the same in all threads of a warp.
    fn operands(&self, op: &BarrierOp, warp: usize) -> Result<(u8, Option<u32>), Box<Stop>> {
        let warp = &self.warps[warp];
        let uniform = |register: u16, what: &str| {
            let values = &warp.r[register as usize].0;
            let mut live = lanes(warp.live());
            let first = values[live.next().unwrap_or(0)];
            match live.find(|&lane| values[lane] != first) {
                None => Ok(first),
                Some(lane) => Err(Stop::lane(
                    FaultKind::IllegalOperand,
                    lane as u32,
                    format!("the {what} is {} here and {first} in other lanes", values[lane]),
                )),
            }
        };
        let id = uniform(op.id, "barrier")?;
        if id as usize >= BARRIERS {
            let detail = format!("barrier {id} of {BARRIERS}");
            return Err(Stop::new(FaultKind::IllegalOperand, detail));
        }
        let Some(threads) = op.threads else { return Ok((id as u8, None)) };
        let threads = uniform(threads, "thread count")?;
        let most = self.warps.len() as u32 * WARP_THREADS;
        if threads == 0 || !threads.is_multiple_of(WARP_THREADS) || threads > most {
            let detail = format!(
                "a barrier for {threads} threads: the count must be a multiple of {WARP_THREADS}, \
                 not zero and at most the block's {most}"
            );
            return Err(Stop::new(FaultKind::IllegalOperand, detail));
        }
        Ok((id as u8, Some(threads)))
    }

    /// Releases the barriers at which all have arrived.
    fn release(&mut self, context: &Context) {
        let live = self.states.iter().filter(|&&state| state != State::Done).count() as u32;
        for id in 0..BARRIERS {
            let barrier = self.barriers[id];
            let expected = barrier.expected.unwrap_or(live * WARP_THREADS);
            if barrier.arrived == 0 || barrier.arrived < expected {
                continue;
            }
            self.barriers[id] = Barrier::default();
            if let Some(shadow) = self.shared.shadow() {
                let states = || self.states.iter().enumerate();
                if barrier.expected.is_none() {
                    // A thread that has exited counts as one that arrived.
                    let exited = states().filter(|(_, state)| **state == State::Done);
                    exited.for_each(|(warp, _)| shadow.clocks.arrive(warp, id, true));
                }
                let here =
                    |state: &State| matches!(state, State::At(_, at) if usize::from(*at) == id);
                let waiting = states().filter(|(_, state)| here(state)).map(|(warp, _)| warp);
                let all = states().all(|(_, state)| here(state) || *state == State::Done);
                shadow.release(id, waiting, all);
            }
            for warp in 0..self.warps.len() {
                let State::At(pc, at) = self.states[warp] else { continue };
                if usize::from(at) != id {
                    continue;
                }
                self.states[warp] = State::Ready;
                if let Op::Barrier(op) = &context.kernel.code[pc as usize].op {
                    let warp = &mut self.warps[warp];
                    let (target, value) = match op.kind {
                        BarrierKind::Count(d) => (Target::R(d, 32), barrier.count),
                        BarrierKind::All(p) => {
                            (Target::P(p), u32::from(barrier.count == barrier.tested))
                        }
                        BarrierKind::Any(p) => (Target::P(p), u32::from(barrier.count > 0)),
                        BarrierKind::Sync | BarrierKind::Arrive => (Target::Nowhere, 0),
                    };
                    warp.put_all(target, u64::from(value), warp.live());
                    warp.pass_barrier();
                }
            }
        }
    }

    /// Where every warp stands, in words.
    fn describe(&self, context: &Context) -> String {
        let warps = self.states.iter().zip(&self.warps).map(|(state, warp)| {
            let index = warp.index;
            match state {
                State::Done => format!("warp {index} has exited"),
                State::At(pc, id) => {
                    format!("warp {index} waits at barrier {id}, {}", context.kernel.where_is(*pc))
                }
                State::Ready => {
                    let place = context.kernel.where_is(warp.current_pc());
                    format!("warp {index} is at {place}")
                }
            }
        });
        let barriers = self.barriers.iter().enumerate().filter(|(_, b)| b.arrived > 0);
        let barriers = barriers.map(|(id, barrier)| {
            let arrived = barrier.arrived;
            match barrier.expected {
                Some(expected) => format!("barrier {id} has {arrived} of {expected} threads"),
                None => format!("barrier {id} has {arrived} threads and is for all"),
            }
        });
        warps.chain(barriers).collect::<Vec<_>>().join("; ")
    }

    fn deadlock(&self, context: &Context) -> Box<Fault> {
        let waiting = self.states.iter().position(|state| matches!(state, State::At(..)));
        let warp = waiting.unwrap_or(0);
        let detail = format!("no warp can go on: {}", self.describe(context));
        self.fault(context, warp, *Stop::new(FaultKind::BarrierDeadlock, detail))
    }

    fn timeout(&self, context: &Context, warp: usize) -> Box<Fault> {
        let detail = format!(
            "the warp ran more than {} instructions: {}",
            context.config.watchdog,
            self.describe(context)
        );
        self.fault(context, warp, *Stop::new(FaultKind::Timeout, detail))
    }

    /// A fault of the instruction at which a warp stands.
    fn fault(&self, context: &Context, warp: usize, stop: Stop) -> Box<Fault> {
        let warp = &self.warps[warp];
        let kernel = context.kernel;
        let pc = warp.current_pc();
        let thread = stop.lane.map(|lane| context.thread(warp.index * WARP_THREADS + lane));
        Box::new(Fault {
            kind: stop.kind,
            kernel: kernel.name.clone(),
            instruction: kernel.text_at(pc),
            source: kernel.source_at(pc),
            ptx_line: kernel.ptx_line(pc),
            block: self.index,
            thread,
            address: stop.address,
            detail: stop.detail,
        })
    }
}
