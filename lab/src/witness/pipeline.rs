//! An in-order model of the warps of one scheduler on a way through code: stall counts,
//! scoreboards, groups of asynchronous copies, issue intervals of pipes, and stated latencies.

use super::code::Instruction;
use super::latencies::{
    ALU, ATOMIC, Latencies, MATRIX_LOAD, OTHER, SHARED_LOAD, SHUFFLE, SOURCES_READ, SPECIAL,
};

/// Idle clocks from which a wait for global memory counts.
pub const EXPOSED: f64 = 100.0;
/// Idle clocks below which it is not reported.
const NOTICED: f64 = 20.0;
/// Issue clocks between a load and its first use below which nothing was put in between.
pub const HASTY: u32 = 32;
/// Times that a way is run to see what is steady.
const ITERATIONS: usize = 12;
/// Clocks by which each further warp starts later.
const OUT_OF_STEP: f64 = 37.0;
/// Bytes of a cache line, as a shift.
const LINE: u32 = 7;
/// Groups of copies that can matter.
const GROUPS: usize = 9;

/// Where asynchronous copies come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    L2,
    Dram,
}

/// A wait for a global load of the same iteration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wait {
    /// Clocks in which the warp could have issued.
    pub idle: f64,
    /// The load and what waits for it, as places in the way.
    pub load: usize,
    pub user: usize,
    /// Issue clocks between them.
    pub between: u32,
}

/// What the model says of a way.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Clocks of an iteration with one warp on the scheduler, and until each of two is through.
    pub one: f64,
    pub two: f64,
    /// All waits for global loads of the same iteration.
    pub waits: Vec<Wait>,
    /// Idle clocks of waits for asynchronous copies.
    pub copies: f64,
}

impl Timing {
    /// The waits that expose memory's latency.
    pub fn exposed(&self) -> usize {
        self.waits.iter().filter(|wait| wait.idle >= EXPOSED).count()
    }

    /// The loads with nothing between them and their first use. It needs no latencies.
    pub fn hasty(&self) -> usize {
        self.waits.iter().filter(|wait| wait.between < HASTY).count()
    }
}

/// Runs a way in a loop.
pub fn time(way: &[&Instruction], latencies: &Latencies, copies: Copies) -> Timing {
    let steps: Vec<Step> = way.iter().map(|i| Step::new(i, latencies)).collect();
    let model = Model { steps: &steps, latencies, copies };
    let steady = |warps: usize| {
        let (few, blamed) = model.run(warps, ITERATIONS);
        let (many, _) = model.run(warps, 2 * ITERATIONS);
        ((many - few) / ITERATIONS as f64, blamed)
    };
    let (one, blamed) = steady(1);
    let mut timing = Timing { one, two: steady(2).0, waits: Vec::new(), copies: 0.0 };
    for (user, idle, (lap, load)) in blamed {
        let producer = way[load];
        if matches!(producer.op(), "LDGDEPBAR" | "LDGSTS") {
            timing.copies += idle;
        } else if producer.is_global_load()
            && lap == ITERATIONS - 1
            && load < user
            && idle >= NOTICED
        {
            let between = way[load..user].iter().map(|i| i.control.issue()).sum();
            timing.waits.push(Wait { idle, load, user, between });
        }
    }
    timing
}

/// Clocks of issue alone.
pub fn issue(way: &[&Instruction]) -> u32 {
    way.iter().map(|i| i.control.issue()).sum()
}

#[derive(Clone, Copy, Debug)]
enum Unit {
    Tensor,
    Memory,
    Fma,
    Special,
    Alu,
}

/// What an instruction does beyond occupying its pipe.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    /// Its result is there after so many clocks.
    Result(f64),
    /// A load of a line of memory, which the first load of it brings after so many clocks.
    Load {
        line: Line,
        cold: f64,
    },
    Copy,
    Commit,
    /// Waits until no more than so many groups of copies are on their way.
    Await(usize),
}

/// A line, as code can tell: the address's text, its 128 bytes, and its base register.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Line {
    /// The place of the first load with the same text.
    text: u64,
    number: i64,
    base: Option<u32>,
}

/// An instruction, prepared for the model.
struct Step {
    control: super::control::Control,
    unit: Option<Unit>,
    interval: f64,
    /// Clocks of issue.
    stall: f64,
    action: Action,
    writes: Vec<u32>,
}

impl Step {
    fn new(i: &Instruction, latencies: &Latencies) -> Self {
        let op = i.op();
        let special = match op {
            "MUFU" | "I2F" | "F2I" | "FCHK" | "POPC" | "I2I" | "F2F" | "BREV" | "FLO" => {
                Some(SPECIAL)
            }
            "LDS" | "LDC" | "BMOV" => Some(SHARED_LOAD),
            "LDSM" => Some(MATRIX_LOAD),
            "SHFL" | "S2R" | "S2UR" => Some(SHUFFLE),
            "R2UR" | "VOTEU" => Some(ALU),
            "LDL" => Some(latencies.l1),
            _ => None,
        };
        let (unit, interval) = match op {
            "HMMA" => (Some(Unit::Tensor), latencies.hmma_interval),
            "LDG" | "STG" | "LD" | "ST" | "LDS" | "STS" | "LDSM" | "LDGSTS" | "ATOMG" | "ATOM"
            | "RED" | "SHFL" | "CCTL" | "MEMBAR" | "LDL" | "STL" | "ATOMS" => {
                let wide = matches!(op, "LDSM" | "LDGSTS") || i.has("128");
                (Some(Unit::Memory), if wide { 4.0 } else { 2.0 })
            }
            "FFMA" | "FMUL" | "FADD" | "IMAD" => (Some(Unit::Fma), latencies.fma_interval),
            _ if special.is_some() => (Some(Unit::Special), if op == "MUFU" { 8.0 } else { 4.0 }),
            _ if op.starts_with('U') => (None, 1.0),
            _ => (Some(Unit::Alu), ALU),
        };
        let stall = f64::from(i.control.issue());
        let stall = match op {
            "BAR" => stall.max(latencies.bar),
            "MEMBAR" => stall.max(latencies.membar),
            _ => stall,
        };
        let action = match op {
            // It reads what other blocks wrote.
            "LDG" | "LD" if i.has("STRONG") => Action::Result(latencies.l2),
            "LDG" | "LD" => {
                let (text, base, offset) = i.address().unwrap_or(("", None, 0));
                let line = Line { text: hash(text), number: offset >> LINE, base };
                // Narrow loads are of vectors such as the gains, which the L2 cache keeps.
                Action::Load {
                    line,
                    cold: if i.has("128") { latencies.dram } else { latencies.l2 },
                }
            }
            "ATOMG" | "ATOM" | "RED" => Action::Result(latencies.l2 * ATOMIC),
            "MEMBAR" => Action::Result(latencies.membar),
            "LDGSTS" => Action::Copy,
            "LDGDEPBAR" => Action::Commit,
            "DEPBAR" => Action::Await(groups_left(i).unwrap_or(0)),
            _ => Action::Result(special.unwrap_or(OTHER)),
        };
        let writes = i.registers().0;
        Self { control: i.control, unit, interval, stall, action, writes }
    }
}

/// The count of `DEPBAR.LE SB0, 0x1`.
fn groups_left(i: &Instruction) -> Option<usize> {
    let [_, count, ..] = i.arguments()[..] else { return None };
    match count.strip_prefix("0x") {
        Some(digits) => usize::from_str_radix(digits, 16).ok(),
        None => count.parse().ok(),
    }
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// An iteration and a place in the way.
type Place = (usize, usize);

#[derive(Default)]
struct Warp {
    issued: usize,
    free: f64,
    /// Of each scoreboard: when it is released, and by what.
    scoreboards: [Vec<(f64, Place)>; 8],
    /// When the last copy so far lands.
    copies: f64,
    groups: Vec<(f64, Place)>,
    /// Lines of the L1 cache, and when they arrive.
    lines: Vec<(Line, f64)>,
}

/// When an instruction can issue, and what it waits for.
struct Ready {
    at: f64,
    blamed: Option<Place>,
}

struct Model<'a> {
    steps: &'a [Step],
    latencies: &'a Latencies,
    copies: Copies,
}

impl Model<'_> {
    /// Runs `warps` warps through so many iterations. Returns when the last one is done, and what
    /// the instructions of the first warp's last iteration waited for, and how long.
    fn run(&self, warps: usize, iterations: usize) -> (f64, Vec<(usize, f64, Place)>) {
        let mut group: Vec<Warp> =
            (0..warps).map(|n| Warp { free: n as f64 * OUT_OF_STEP, ..Warp::default() }).collect();
        let total = self.steps.len() * iterations;
        let (mut pipes, mut issue, mut last) = ([0.0_f64; 5], 0.0_f64, 0);
        let mut waits = Vec::new();
        loop {
            // The warp that can issue first; of two, the one that did not issue last.
            let mut choice: Option<(f64, bool, usize, Ready)> = None;
            for (number, warp) in group.iter().enumerate().filter(|(_, warp)| warp.issued < total) {
                let step = &self.steps[warp.issued % self.steps.len()];
                let ready = warp.ready(step);
                let pipe = step.unit.map_or(0.0, |unit| pipes[unit as usize]);
                let start = ready.at.max(issue).max(pipe);
                let key = (start, number == last);
                if choice.as_ref().is_none_or(|c| key < (c.0, c.1)) {
                    choice = Some((start, number == last, number, ready));
                }
            }
            let Some((start, _, number, ready)) = choice else { break };
            last = number;
            let warp = &mut group[number];
            let (lap, at) = (warp.issued / self.steps.len(), warp.issued % self.steps.len());
            let idle = ready.at - warp.free;
            if let Some(blamed) = ready.blamed
                && number == 0
                && lap == iterations - 1
                && idle > 0.0
            {
                waits.push((at, idle, blamed));
            }
            let step = &self.steps[at];
            if let Some(unit) = step.unit {
                pipes[unit as usize] = start + step.interval;
            }
            issue = start + 1.0;
            self.issue(warp, step, start, (lap, at));
        }
        (group.iter().map(|warp| warp.free).fold(0.0, f64::max), waits)
    }

    /// What changes for the warp when an instruction issues.
    fn issue(&self, warp: &mut Warp, step: &Step, start: f64, place: Place) {
        if place.1 == 0 {
            warp.lines.clear();
        }
        for scoreboard in step.control.waits() {
            warp.scoreboards[usize::from(scoreboard)].clear();
        }
        // Another address is another line.
        let moved = |line: &Line| {
            line.base.is_some_and(|base| step.writes.iter().any(|&r| base == r || base + 1 == r))
        };
        warp.lines.retain(|(line, _)| !moved(line));
        let done = match step.action {
            Action::Result(clocks) => start + clocks,
            Action::Load { line, cold } if step.control.write.is_some() => {
                match warp.lines.iter().find(|(known, _)| *known == line) {
                    Some((_, arrives)) => start + self.latencies.l1.max(arrives - start + 2.0),
                    None => {
                        warp.lines.push((line, start + cold));
                        start + cold
                    }
                }
            }
            Action::Load { .. } | Action::Await(_) => start + OTHER,
            Action::Copy => {
                let clocks = match self.copies {
                    Copies::L2 => self.latencies.l2,
                    Copies::Dram => self.latencies.dram,
                };
                warp.copies = warp.copies.max(start + clocks);
                start + OTHER
            }
            Action::Commit => {
                if warp.groups.len() == GROUPS {
                    warp.groups.remove(0);
                }
                warp.groups.push((warp.copies, place));
                start
            }
        };
        if let Some(scoreboard) = step.control.write.filter(|_| step.action != Action::Commit) {
            warp.scoreboards[usize::from(scoreboard)].push((done, place));
        }
        if let Some(scoreboard) = step.control.read {
            warp.scoreboards[usize::from(scoreboard)].push((start + SOURCES_READ, place));
        }
        warp.free = start + step.stall;
        warp.issued += 1;
    }
}

impl Warp {
    fn ready(&self, step: &Step) -> Ready {
        let mut ready = Ready { at: self.free, blamed: None };
        let mut wait = |&(done, place): &(f64, Place)| {
            if done > ready.at {
                ready = Ready { at: done, blamed: Some(place) };
            }
        };
        for scoreboard in step.control.waits() {
            self.scoreboards[usize::from(scoreboard)].iter().for_each(&mut wait);
        }
        if let Action::Await(left) = step.action
            && let Some(groups) = self.groups.len().checked_sub(left)
        {
            self.groups[..groups].last().into_iter().for_each(&mut wait);
        }
        ready
    }
}
