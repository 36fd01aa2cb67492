//! The tiles of forward, of backward and of the plain products, in the order of the queue
//! (`kernels/common/schedule/tile_queue.cuh`), with what each of them does.

use std::ops::Range;

use fused_dora::ops::{backward, forward};
use fused_dora::{Norm, Tiles};

use super::devices::Device;
use super::launch::{Launch, Phase};
use super::named::Ways;
use crate::limits::layer::Case;

/// Sizes of the kernels, which a test compares with their sources.
const GROUP: usize = 8;
const GROUPS_IN_FLIGHT: usize = 2;
const CHUNKS_IN_FLIGHT: usize = 4;
const LOW_RANK_TOKENS: usize = 64;
const RANK_TILE: usize = 64;
const STRIP: usize = 128;
const LORA_A_FEATURES: usize = 64;
const THREADS: usize = 128;
/// Tokens of an iteration of the passes, and features of a k-step.
const STEP: usize = 32;
/// k-steps of W's product that are left to the last steps: those on their way.
const LAST_STEPS: usize = 2;
/// Strips that an iteration of the sum of P adds, and parts that one of the sum of H adds.
const STRIPS_AT_ONCE: f64 = 4.0;
const QUADS_AT_ONCE: usize = 4;
const PARTS_AT_ONCE: f64 = 2.0;
/// The sizes that the kernels state.
pub const SIZES: [(&str, &str, usize); 8] = [
    ("common/sizes.cuh", "kTileRowsPerGroup", GROUP),
    ("common/sizes.cuh", "kThreads", THREADS),
    ("forward/params.cuh", "kGroupsInFlight", GROUPS_IN_FLIGHT),
    ("forward/params.cuh", "kLowRankTokens", LOW_RANK_TOKENS),
    ("backward/params.cuh", "kChunksInFlight", CHUNKS_IN_FLIGHT),
    ("backward/params.cuh", "kRankTile", RANK_TILE),
    ("backward/params.cuh", "kStrip16Bit", STRIP),
    ("backward/params.cuh", "kLoraAFeatures", LORA_A_FEATURES),
];
/// Units of the parts of H's sums and of dA's chunks.
const H_UNIT: usize = 512;
const LORA_A_UNIT: usize = 128;

/// What is modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Forward,
    Backward,
}

impl Op {
    pub const ALL: [Self; 2] = [Self::Forward, Self::Backward];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
        }
    }

    /// What the names of its main product's ways begin with.
    const fn product(self) -> &'static str {
        match self {
            Self::Forward => "y",
            Self::Backward => "dX",
        }
    }
}

/// The modelled clocks of one layer on one device.
pub struct Model<'a> {
    pub device: Device,
    pub ways: &'a Ways,
    pub case: Case,
}

impl Model<'_> {
    /// Clocks of an op, and of its plain product alone.
    pub fn clocks(&self, op: Op) -> Result<(f64, f64), String> {
        let launch = match op {
            Op::Forward => self.forward()?,
            Op::Backward => self.backward()?,
        };
        let fused = launch.clocks(self.device.multiprocessors(), self.both(op)?)?;
        Ok((fused, self.plain_clocks(op)?))
    }

    /// Clocks of an op's plain product.
    pub fn plain_clocks(&self, op: Op) -> Result<f64, String> {
        self.plain(op)?.clocks(self.device.multiprocessors(), self.both(op)?)
    }

    /// Microseconds of so many clocks.
    pub fn microseconds(&self, clocks: f64) -> f64 {
        clocks / self.device.ghz / 1e3
    }

    /// How much longer each of two main tiles takes than one alone.
    fn both(&self, op: Op) -> Result<f64, String> {
        let main = self.ways.timing(&self.main_name(op, "main loop"))?;
        let [two, one] = [main.two / self.device.share, main.one / self.device.alone];
        Ok((two / one).max(1.0))
    }

    fn tiles(&self, op: Op) -> Tiles {
        let features = self.columns(op);
        Tiles::chosen(self.case.tokens, features, self.device.multiprocessors())
    }

    /// Features of an op's product, and those that it sums over.
    fn columns(&self, op: Op) -> usize {
        match op {
            Op::Forward => self.case.outputs,
            Op::Backward => self.case.inputs,
        }
    }

    fn summed(&self, op: Op) -> usize {
        match op {
            Op::Forward => self.case.inputs,
            Op::Backward => self.case.outputs,
        }
    }

    fn main_name(&self, op: Op, loop_name: &str) -> String {
        let medium = if self.tiles(op) == Tiles::Medium { " medium" } else { "" };
        format!("{}{medium}: {loop_name}", op.product())
    }

    fn one(&self, name: &str) -> Result<f64, String> {
        Ok(self.ways.timing(name)?.one)
    }

    /// Clocks outside the loops: estimates, of the stated latencies.
    fn fill(&self) -> f64 {
        self.ways.latencies.dram + 250.0
    }

    fn draw(&self) -> f64 {
        1.3 * self.ways.latencies.l2 + 4.0 * self.ways.latencies.bar + 200.0
    }

    fn fence(&self) -> f64 {
        self.ways.latencies.membar + self.ways.latencies.bar
    }

    fn arrive(&self) -> f64 {
        let l = &self.ways.latencies;
        2.0 * l.membar + 1.3 * l.l2 + 3.0 * l.bar
    }

    /// A main tile. It waits for `events`, before its first step or before its last ones. Without
    /// events the launch has no queue.
    fn main(
        &self,
        op: Op,
        rank: usize,
        events: Option<Range<usize>>,
        first: bool,
    ) -> Result<Vec<Phase>, String> {
        /// Results of a tile through shared memory to global memory.
        const EPILOGUE: f64 = 1200.0;
        let main = self.one(&self.main_name(op, "main loop"))?;
        let last = self.one(&self.main_name(op, "last steps"))?;
        let queued = if events.is_some() { 1.0 } else { 0.0 };
        let steps = self.summed(op).div_ceil(STEP).saturating_sub(LAST_STEPS) as f64;
        let last_steps = (LAST_STEPS + rank.div_ceil(STEP)) as f64;
        let mut phases = vec![
            Phase::Run(self.fill() + queued * self.draw()),
            Phase::Main(steps * main / self.device.alone),
            Phase::Main(last_steps * last / self.device.alone),
            Phase::Run(EPILOGUE + queued * self.arrive()),
        ];
        if let Some(events) = events {
            phases.insert(if first { 1 } else { 2 }, Phase::Wait(events));
        }
        Ok(phases)
    }

    fn plain(&self, op: Op) -> Result<Launch, String> {
        let [m, n] = self.tiles(op).extent();
        let tiles = self.case.tokens.div_ceil(m) * self.columns(op).div_ceil(n);
        Ok(Launch { tiles: vec![self.main(op, 0, None, false)?; tiles], expected: Vec::new() })
    }

    fn axis(&self) -> &'static str {
        if self.case.norm == Norm::Input { "input" } else { "output" }
    }

    fn spec(&self) -> Result<fused_dora::DoraSpec, String> {
        self.case.spec().map_err(|error| error.to_string())
    }

    fn forward(&self) -> Result<Launch, String> {
        let Case { tokens, inputs, rank, norm, .. } = self.case;
        let tiles = self.tiles(Op::Forward);
        let [m, n] = tiles.extent();
        let (rows, columns) = (tokens.div_ceil(m), self.case.outputs.div_ceil(n));
        let groups = rows.div_ceil(GROUP);
        let (per_group, all_rows) = (GROUP * m / LOW_RANK_TOKENS, tokens.div_ceil(LOW_RANK_TOKENS));
        let ranks = rank.div_ceil(RANK_TILE);
        let parts =
            forward::parts_of_h(&self.spec()?, tokens, self.device.multiprocessors(), tiles);
        let length = inputs.div_ceil(parts).next_multiple_of(H_UNIT);
        let step = self.one(&format!("H tile, {} axis, r={rank}", self.axis()))?;
        let add = parts as f64 / PARTS_AT_ONCE * self.one("H, two parts of a sum")? + 300.0;
        let rows_of = |group: usize| {
            if group + 1 < groups { per_group } else { all_rows - (groups - 1) * per_group }
        };
        let work = self.fill() + length.div_ceil(STEP) as f64 * step;
        let work = work + if parts > 1 { self.arrive() } else { 0.0 };
        let producers = |group: usize| {
            let tile = move |(row, part): (usize, usize)| {
                let mut phases = vec![Phase::Run(self.draw())];
                if let Some(earlier) = group.checked_sub(GROUPS_IN_FLIGHT) {
                    phases.push(Phase::Wait(earlier..earlier + 1));
                }
                let counter = ((group * per_group) + row) * ranks + part / parts;
                phases.extend([
                    Phase::Run(work),
                    Phase::Last { counter, of: parts, clocks: add, event: None },
                    Phase::Run(self.fence()),
                    Phase::Signal(group),
                    Phase::Run(self.arrive()),
                ]);
                phases
            };
            let pairs =
                (0..rows_of(group)).flat_map(|row| (0..ranks * parts).map(move |p| (row, p)));
            pairs.map(tile).collect::<Vec<_>>()
        };
        let consumers = |group: usize| {
            let count = GROUP.min(rows - group * GROUP) * columns;
            let tile = self.main(Op::Forward, rank, Some(group..group + 1), norm == Norm::Input)?;
            Ok(vec![tile; count])
        };
        let tiles = listed(groups, producers, consumers)?;
        Ok(Launch { tiles, expected: (0..groups).map(|g| rows_of(g) * ranks * parts).collect() })
    }

    fn backward(&self) -> Result<Launch, String> {
        let Case { tokens, inputs, outputs, rank, norm, .. } = self.case;
        let [m, n] = self.tiles(Op::Backward).extent();
        let (rows, columns) = (tokens.div_ceil(m), inputs.div_ceil(n));
        let (groups, strips, ranks) =
            (rows.div_ceil(GROUP), outputs.div_ceil(STRIP), rank.div_ceil(RANK_TILE));
        let [chunks, parts] =
            backward::chunks(&self.spec()?, tokens, self.device.multiprocessors());
        let chunk = tokens.div_ceil(chunks).next_power_of_two();
        let per_group = GROUP * m / chunk;
        let tokens_of = |c: usize| chunk.min(tokens - c * chunk);
        let step = self.one(&format!("dY pass, {} axis, r={rank}", self.axis()))?;
        let sum_of_p = strips as f64 / STRIPS_AT_ONCE * self.one("P of 4 strips")? + 60.0;
        let [sums, turn] = [self.one("column sums")?, self.one("dB's turn")?];
        let finish = |c: usize| {
            let quads = rank.min(RANK_TILE) / 4;
            (tokens_of(c) * quads).div_ceil(QUADS_AT_ONCE * THREADS) as f64 * sum_of_p
                + self.fence()
        };
        let producer = |c: usize, r: usize, strip: usize| {
            let steps = tokens_of(c).div_ceil(STEP) as f64;
            let mut phases = vec![Phase::Run(self.draw())];
            if let Some(earlier) = c.checked_sub(CHUNKS_IN_FLIGHT) {
                phases.push(Phase::Wait(earlier..earlier + 1));
            }
            let (counter, chain) = (c * ranks + r, r * strips + strip);
            phases.extend([
                Phase::Run(self.fill() + steps * step + self.arrive()),
                Phase::Last { counter, of: strips, clocks: finish(c), event: Some(c) },
                Phase::Run(if r == 0 { sums } else { 0.0 }),
                Phase::Turn { chain, number: c },
                Phase::Run(turn),
                Phase::Pass(chain),
                Phase::Run(self.arrive()),
            ]);
            phases
        };
        let producers = |group: usize| {
            let first = group * per_group;
            let end = if group + 1 == groups { chunks } else { first + per_group };
            let all = (first..end).flat_map(|c| {
                (0..ranks).flat_map(move |r| (0..strips).map(move |strip| (c, r, strip)))
            });
            all.map(|(c, r, strip)| producer(c, r, strip)).collect::<Vec<_>>()
        };
        let consumers = |group: usize| {
            let height = GROUP.min(rows - group * GROUP);
            let tile = |index: usize| {
                let row = group * GROUP + index % height;
                let events = row * m / chunk..((row + 1) * m).div_ceil(chunk).min(chunks);
                self.main(Op::Backward, rank, Some(events), norm == Norm::Output)
            };
            (0..height * columns).map(tile).collect::<Result<Vec<_>, _>>()
        };
        let mut tiles = listed(groups, producers, consumers)?;
        let columns = inputs.div_ceil(LORA_A_FEATURES);
        let length = tokens.div_ceil(parts).next_multiple_of(LORA_A_UNIT);
        let step = self.one(&format!("dA, r={rank}"))?;
        let turn = self.one("dA's turn")?;
        for r in 0..ranks {
            for part in 0..parts {
                for column in 0..columns {
                    let (first, end) = (part * length, tokens.min((part + 1) * length));
                    let steps = (end - first).div_ceil(STEP) as f64;
                    // Behind dB's chains.
                    let chain = ranks * strips + r * columns + column;
                    tiles.push(vec![
                        Phase::Run(self.draw()),
                        Phase::Wait(first / chunk..end.div_ceil(chunk)),
                        Phase::Run(self.fill() + steps * step),
                        Phase::Turn { chain, number: part },
                        Phase::Run(turn),
                        Phase::Pass(chain),
                        Phase::Run(self.arrive()),
                    ]);
                }
            }
        }
        Ok(Launch { tiles, expected: vec![ranks; chunks] })
    }
}

/// producers(0), producers(1), consumers(0), producers(2), consumers(1), …
fn listed(
    groups: usize,
    producers: impl Fn(usize) -> Vec<Vec<Phase>>,
    consumers: impl Fn(usize) -> Result<Vec<Vec<Phase>>, String>,
) -> Result<Vec<Vec<Phase>>, String> {
    let mut tiles = producers(0);
    for group in 0..groups {
        if group + 1 < groups {
            tiles.extend(producers(group + 1));
        }
        tiles.extend(consumers(group)?);
    }
    Ok(tiles)
}
