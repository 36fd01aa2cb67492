//! The lines of the report: what was counted, and the limit that it must keep.

use serde::{Deserialize, Serialize};

/// The limit that a number must meet.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    AtMost(f64),
    AtLeast(f64),
    /// Must not get worse than it is. The goal is not reached.
    Toward {
        goal: f64,
        most: f64,
    },
    /// Shown for comparison.
    None,
}

/// One number, and whether it keeps its limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub group: Group,
    /// What is counted.
    pub what: String,
    pub value: f64,
    pub limit: Limit,
    pub holds: bool,
}

/// Where the numbers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    Resources,
    MachineCode,
    Counters,
    Scaling,
    Bounds,
    Latency,
    Launches,
}

impl Group {
    pub const ALL: [Self; 7] = [
        Self::Launches,
        Self::Latency,
        Self::Resources,
        Self::MachineCode,
        Self::Counters,
        Self::Scaling,
        Self::Bounds,
    ];

    pub const fn title(self) -> &'static str {
        match self {
            Self::Resources => "Registers, spills and occupancy",
            Self::MachineCode => "Machine code of the main loops",
            Self::Counters => "Counts of a step",
            Self::Scaling => "Counts scale",
            Self::Bounds => "Modelled bounds",
            Self::Latency => "Waits for global memory",
            Self::Launches => "Modelled time of a launch",
        }
    }

    /// Where the numbers come from.
    pub const fn source(self) -> &'static str {
        match self {
            Self::Resources => {
                "Counted: what ptxas reports when it assembles the PTX that ships for each \
                 architecture, and the blocks of 128 threads that a multiprocessor holds by the \
                 rules of cuda_occupancy.h. f16 is compiled for sm_80 only, because its code \
                 differs from that of bf16 only in the kind of its instructions."
            }
            Self::MachineCode => {
                "Counted: instructions of the loops, as nvdisasm prints them. The candidates are \
                 the innermost loops with at least half as many HMMA as the loop with most. The \
                 main loop is the candidate with the largest share of HMMA and asynchronous \
                 copies. The others finish K, add the low-rank product, read dY for the adapter, \
                 or move rows that do not start at 16-byte boundaries. For ragged tiles, this \
                 share is divided by how many times more instructions the emulated device \
                 executes in launches of as many ragged tiles."
            }
            Self::Counters => {
                "Counted: what the emulated device executed of the kernels' PTX. DRAM bytes are \
                 the sectors that a launch touches, once per launch. A tensor that two launches \
                 of an op touch counts twice. Partial sums that a kernel adds up and then \
                 discards from the L2 cache (`discard.global.L2`) do not count. If they did, the \
                 lines of 64 tokens would be 0.06 larger, and the others at most 0.01. L2 and \
                 DRAM bytes of 8192 tokens are scaled counts (below)."
            }
            Self::Scaling => {
                "Counted on small layers. The counts are fitted as products of the numbers of \
                 tiles along T, O and I and of chunks of T, and compared with the counts of a \
                 larger layer. The number is the largest relative error over all launches and \
                 counters."
            }
            Self::Bounds => {
                "Modelled, not measured. The time of a launch is the largest of its tensor, \
                 issue, shared memory, L2, DRAM and launch times, from the scaled counts and \
                 published peak rates. The number is the sum over the launches of forward and \
                 backward, divided by that of the same kernels without adapter and norm (forward \
                 and dX). The model assumes that DRAM rereads W for each group of 8 rows of \
                 tiles, x (or dY) for each wave of CTAs if a group's rows exceed half of the L2 \
                 cache and for each further tile of ranks, and partial sums that are not \
                 discarded. A ratio is below 1 where adapter tiles fill a last wave that plain \
                 tiles leave nearly empty, as 2048 tiles do on 170 multiprocessors."
            }
            Self::Latency => {
                "Modelled from machine code: an in-order model runs the way through a loop that a \
                 layer of whole tiles takes, by stall counts, scoreboards, issue intervals and \
                 stated latencies (`lab/src/witness/latencies.rs`). A wait is exposed if a global \
                 load of the same iteration leaves the warp idle for 100 clocks or more; loads in \
                 flight together count once. A load is hasty if its first use stands less than 32 \
                 issue clocks behind it, which needs no latencies. The number is the largest of \
                 all modelled architectures. The goals are 0 in main loops and 1 in passes. Lines \
                 that miss them are listed, and the command prints the others, too. Other lines \
                 show that control fields are decoded right: no register is read before its load \
                 was waited for, for example."
            }
            Self::Launches => {
                "Modelled, not measured. CTAs draw the tiles of a launch in the order of the \
                 queue, two on a multiprocessor, and tiles wait for each other as the kernels have \
                 them. Their clocks come from the in-order model. The number is the time of a \
                 launch over that of the same kernel without adapter and norm, 4096×4096 in bf16, \
                 as the mean of three runs in which work takes up to 3 % more or less. The goals \
                 are 1.07 on A100 and 1.03 on RTX 4090 and 5090 at T = 8192 and r = 16, 1.10 at \
                 T = 2048 and at r = 64, and 1.25 at T = 512. Lines that miss them are listed: \
                 they may not get worse. The command prints the others, too."
            }
        }
    }
}

impl Line {
    pub fn new(group: Group, what: impl Into<String>, value: f64, limit: Limit) -> Self {
        let holds = match limit {
            Limit::AtMost(most) => value <= most,
            Limit::AtLeast(least) => value >= least,
            Limit::Toward { most, .. } => value <= most,
            Limit::None => true,
        };
        Self { group, what: what.into(), value, limit, holds }
    }

    /// The number as it is printed.
    pub fn shown(&self) -> String {
        number(self.value)
    }

    /// The limit as it is printed.
    pub fn limit_shown(&self) -> String {
        match self.limit {
            Limit::AtMost(most) => format!("≤ {}", number(most)),
            Limit::AtLeast(least) => format!("≥ {}", number(least)),
            Limit::Toward { goal, most } => format!("≤ {}; goal {}", number(most), number(goal)),
            Limit::None => String::new(),
        }
    }

    pub fn verdict(&self) -> &'static str {
        match (self.limit, self.holds) {
            (Limit::None, _) => "",
            (Limit::Toward { goal, .. }, true) if self.value <= goal => "ok, goal reached",
            (Limit::Toward { .. }, true) => "ok, goal not reached",
            (_, true) => "ok",
            (_, false) => "FAILS",
        }
    }
}

/// As many decimals as distinguish a number from its limit.
fn number(value: f64) -> String {
    if value == value.trunc() { format!("{value}") } else { format!("{value:.4}") }
}
