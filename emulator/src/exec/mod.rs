//! Running kernels: a launch is checked, and its blocks are run by the host's threads.
// A lane is an index into several registers at once.
#![allow(clippy::needless_range_loop)]

mod alu;
mod block;
mod context;
mod measure;
mod memory;
mod sanitize;
mod schedule;
mod warp;
mod workspace;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::alu::lanes::Wide;
use self::block::{Block, Turn};
use self::context::Context;
use self::measure::Traffic;
use self::sanitize::global::GlobalShadow;
use self::schedule::BlockOrder;
use self::workspace::Workspace;
use crate::config::Config;
use crate::counters::Counters;
use crate::fault::Fault;
use crate::heap::Heap;
use crate::launch::{Launch, LaunchError};
use crate::memory::Memory;
use crate::profile::Profile;
use crate::program::Kernel;

/// Instructions that a block runs before its host thread starts the next one as well.
const BLOCK_QUANTUM: u64 = 1 << 21;
/// The same where all blocks of the grid are resident and may wait for each other.
const COOPERATIVE_QUANTUM: u64 = 1 << 17;

/// How long a thread of the host rests whose blocks all wait.
const NAP: Duration = Duration::from_micros(20);

/// What a launch runs on.
pub(crate) struct Hardware<'a> {
    pub(crate) profile: &'a Profile,
    pub(crate) config: Config,
    pub(crate) memory: &'a Memory,
    pub(crate) heap: &'a Heap,
    /// Bytes that recursive calls and `alloca` may take of a thread's stack.
    pub(crate) stack_limit: u32,
}

/// Runs a launch to its end; the counts are those of its kernel.
pub(crate) fn launch(
    hardware: &Hardware,
    kernel: &Kernel,
    launch: &Launch,
) -> (Counters, Result<(), LaunchError>) {
    if let Err(invalid) = launch.check(kernel, hardware.profile) {
        return (Counters::default(), Err(invalid.into()));
    }
    let workspace = match Workspace::new(hardware.memory, kernel, launch) {
        Ok(workspace) => workspace,
        Err(invalid) => return (Counters::default(), Err(invalid.into())),
    };
    let (counters, fault) = run(hardware, kernel, launch, workspace.address);
    (counters, fault.map_or(Ok(()), |fault| Err(fault.into())))
}

fn run(
    hardware: &Hardware,
    kernel: &Kernel,
    launch: &Launch,
    workspace: u64,
) -> (Counters, Option<Fault>) {
    static LAUNCHES: AtomicU64 = AtomicU64::new(1);
    let config = hardware.config;
    let words = launch.params.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        AtomicU64::new(u64::from_le_bytes(word))
    });
    let table = hardware.memory.table();
    let global_shadow = config.sanitizer.then(|| GlobalShadow::new(&table));
    let context = Context {
        kernel,
        traffic: config.measure.then(|| Traffic::new(&table)),
        table,
        memory: hardware.memory,
        heap: hardware.heap,
        param_words: words.collect(),
        param_bytes: launch.params.len(),
        grid: launch.grid,
        block: launch.block,
        shared_bytes: kernel.dynamic_start + launch.dynamic_shared,
        dynamic_shared: launch.dynamic_shared,
        local_bytes: kernel.local_bytes + if kernel.grows { hardware.stack_limit } else { 0 },
        config,
        sm_count: hardware.profile.sm_count,
        launch: LAUNCHES.fetch_add(1, Ordering::Relaxed),
        workspace,
        wide: Wide::detect(),
        stop: AtomicBool::new(false),
        effects: AtomicU64::new(0),
        fault: Mutex::new(None),
        global_shadow,
    };
    let blocks: u64 = launch.grid.iter().map(|&size| u64::from(size)).product();
    let workers = config.threads.max(1).min(usize::try_from(blocks).unwrap_or(usize::MAX));
    let order = BlockOrder::new(config.seed, blocks);
    let grid = Grid {
        next: AtomicU64::new(0),
        blocks,
        order,
        cooperative: launch.cooperative,
        stuck: Mutex::new(Stuck { workers, effects: 0, at: Vec::new() }),
    };
    let number = AtomicUsize::new(0);
    let work = || worker(&context, &grid, number.fetch_add(1, Ordering::Relaxed));
    let counters = if workers == 1 {
        work()
    } else {
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
            let mut counters = work();
            for other in others {
                match other.join() {
                    Ok(counted) => counters += counted,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            counters
        })
    };
    let mut counters = counters;
    if let Some(traffic) = &context.traffic {
        traffic.add_to(&mut counters);
    }
    let fault = context.fault.into_inner().unwrap_or_else(PoisonError::into_inner);
    (counters, fault.map(|(_, fault)| fault))
}

/// The blocks of a launch, as the threads of the host share them.
struct Grid {
    next: AtomicU64,
    blocks: u64,
    order: BlockOrder,
    cooperative: bool,
    stuck: Mutex<Stuck>,
}

impl Grid {
    fn some_left(&self) -> bool {
        self.next.load(Ordering::SeqCst) < self.blocks
    }

    /// The next block to start. A start is an effect: it is counted first, so that whoever finds
    /// none left also finds it counted.
    fn draw(&self, context: &Context) -> Option<u64> {
        if !self.some_left() {
            return None;
        }
        context.effects.fetch_add(1, Ordering::SeqCst);
        let turn = self.next.fetch_add(1, Ordering::SeqCst);
        (turn < self.blocks).then(|| self.order.at(turn))
    }

    fn stuck(&self) -> MutexGuard<'_, Stuck> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Threads of the host all of whose blocks do the same again and again.
struct Stuck {
    /// Threads that have blocks.
    workers: usize,
    /// How many effects the launch has had, since which none changed.
    effects: u64,
    at: Vec<usize>,
}

impl Stuck {
    /// Notes a thread; whether they all are.
    fn note(&mut self, effects: u64, worker: usize) -> bool {
        if self.effects != effects {
            (self.effects, self.at) = (effects, Vec::new());
        }
        if !self.at.contains(&worker) {
            self.at.push(worker);
        }
        self.at.len() == self.workers
    }
}

/// Runs blocks until there are no more.
///
/// A thread of the host runs one block after the other. A block that does not end within its turn
/// may wait for a later one. The thread then starts the next block and runs both in turn.
fn worker(context: &Context, grid: &Grid, number: usize) -> Counters {
    let mut counters = Counters::default();
    let mut running: VecDeque<Block> = VecDeque::new();
    let mut spare = Vec::new();
    let cooperative = grid.cooperative;
    let quantum = if cooperative { COOPERATIVE_QUANTUM } else { BLOCK_QUANTUM };
    let most = if cooperative { usize::MAX } else { 64 };
    let fail = |number: u64, fault: Fault| {
        context.stop.store(true, Ordering::Relaxed);
        let mut first = context.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|(other, _)| *other > number) {
            *first = Some((number, fault));
        }
    };
    let (mut start, mut needed) = (true, false);
    while !context.stop.load(Ordering::Relaxed) {
        while needed || start && running.len() < most {
            let Some(next) = grid.draw(context) else { break };
            let mut block = spare.pop().unwrap_or_else(|| Block::new(context));
            block.start(context, next);
            running.push_front(block);
            (start, needed) = (cooperative, false);
        }
        let Some(mut block) = running.pop_front() else { break };
        match block.turn(context, &mut counters, quantum) {
            Ok(Turn::Done) => {
                start = true;
                spare.push(block);
            }
            Ok(Turn::More) => {
                start = true;
                running.push_back(block);
                let effects = context.effects.load(Ordering::SeqCst);
                let is_stuck = running.iter().all(|block| block.is_stuck(effects));
                let all_are = is_stuck && grid.stuck().note(effects, number);
                // They may wait for a block that has not started.
                needed = all_are && grid.some_left();
                if all_are && !needed && context.effects.load(Ordering::SeqCst) == effects {
                    let first = running.iter().min_by_key(|block| block.number);
                    first.into_iter().for_each(|b| fail(b.number, *b.endless(context)));
                } else if is_stuck && !needed {
                    // What all of them wait for is a block of another thread.
                    std::thread::sleep(NAP);
                }
            }
            Err(fault) => fail(block.number, *fault),
        }
    }
    grid.stuck().workers -= 1;
    for measure in running.iter().chain(&spare).filter_map(|block| block.measure.as_deref()) {
        counters += measure.counters(context.kernel);
    }
    counters
}
