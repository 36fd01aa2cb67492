//! Modelled bounds: how long each resource of a GPU is busy at least, by what a launch counted.
//!
//! A bound is a lower limit at the published peak rates. It is no measurement, and no prediction:
//! latencies, dependencies and what misses the L2 cache twice come on top. The bound of
//! issue counts instructions of the PTX text. A compiler for a device merges some of them, and the
//! bound may be high by as much.

use serde::{Deserialize, Serialize};

use crate::gpu::{Gpu, ISSUE_PER_CLOCK, LAUNCH_SECONDS, WAVEFRONTS_PER_CLOCK};

/// Operations of one `mma.m16n8k16`.
const MMA_OPERATIONS: f64 = 2.0 * 16.0 * 8.0 * 16.0;

/// What a launch asks of a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    pub blocks: u64,
    /// `mma.m16n8k16`.
    pub mma: u64,
    /// PTX warp instructions.
    pub instructions: u64,
    /// Passes over the banks of shared memory.
    pub wavefronts: u64,
    /// Bytes between the multiprocessors and the L2 cache, where nothing hits the L1 cache.
    pub l2_bytes: u64,
    /// Bytes between the L2 cache and device memory, each once.
    pub dram_bytes: u64,
}

/// What can be the narrowest place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    Tensor,
    Issue,
    Shared,
    L2,
    Dram,
    Launch,
}

impl Resource {
    pub const ALL: [Self; 6] =
        [Self::Tensor, Self::Issue, Self::Shared, Self::L2, Self::Dram, Self::Launch];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Tensor => "tensor cores",
            Self::Issue => "issue",
            Self::Shared => "shared memory",
            Self::L2 => "L2 cache",
            Self::Dram => "device memory",
            Self::Launch => "launch",
        }
    }
}

/// The time that each resource is busy at least, in µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    pub tensor: f64,
    pub issue: f64,
    pub shared: f64,
    pub l2: f64,
    pub dram: f64,
    pub launch: f64,
}

impl Bounds {
    /// The bounds of a launch on a GPU.
    pub fn new(gpu: &Gpu, demand: &Demand) -> Self {
        let seconds = |amount: u64, per_second: f64| amount as f64 / per_second;
        let busy = busy_share(demand.blocks, gpu.limits.sm_count.into());
        // What every multiprocessor has of its own, those with a block count.
        let clocks = gpu.clocks() * busy;
        let micro = 1e6;
        Self {
            tensor: micro * seconds(demand.mma, gpu.tensor.value * busy / MMA_OPERATIONS),
            issue: micro * seconds(demand.instructions, clocks * ISSUE_PER_CLOCK.value),
            shared: micro * seconds(demand.wavefronts, clocks * WAVEFRONTS_PER_CLOCK.value),
            l2: micro * seconds(demand.l2_bytes, gpu.l2.value),
            dram: micro * seconds(demand.dram_bytes, gpu.dram.value),
            launch: micro * LAUNCH_SECONDS.value,
        }
    }

    pub fn of(&self, resource: Resource) -> f64 {
        match resource {
            Resource::Tensor => self.tensor,
            Resource::Issue => self.issue,
            Resource::Shared => self.shared,
            Resource::L2 => self.l2,
            Resource::Dram => self.dram,
            Resource::Launch => self.launch,
        }
    }

    /// The resource that is busy longest, which bounds the launch.
    pub fn binding(&self) -> Resource {
        let longer = |a: Resource, b: Resource| if self.of(b) > self.of(a) { b } else { a };
        Resource::ALL.into_iter().reduce(longer).unwrap_or(Resource::Launch)
    }

    /// The launch's bound, in µs.
    pub fn bound(&self) -> f64 {
        self.of(self.binding())
    }
}

/// The share of the multiprocessors' time that blocks of equal work can use: the busiest one has
/// as many as the mean, rounded up.
fn busy_share(blocks: u64, multiprocessors: u64) -> f64 {
    let most = blocks.div_ceil(multiprocessors).max(1);
    (blocks.max(1) as f64 / (most * multiprocessors) as f64).min(1.0)
}
