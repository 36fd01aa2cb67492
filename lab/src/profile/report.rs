//! The profile as data: what is printed, drawn and written as JSON.

use std::collections::BTreeMap;

use cuda_emulator::{Counters, InstructionClass, MeasuredLaunch};
use fused_dora::{DoraSpec, Norm};
use serde::{Deserialize, Serialize};

use crate::gpu::Gpu;
use crate::model::{Bounds, Demand};
use crate::occupancy::Occupancy;
use crate::resources::Resources;
use crate::work::{Kernel, Tensor, compulsory, least_mma};

/// Bytes of a sector.
const SECTOR: u64 = 32;

/// What the figures are, and are not: it goes with every form of the profile.
pub const NOTE: &str = "Counts are those of an emulated device, which executes the kernels' PTX. \
     Bounds are modelled from them and from published peak rates of the GPUs; nothing here is a \
     measured time.";

/// Everything that a run found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub note: String,
    /// The device that launches were planned for: its number of multiprocessors settles splits.
    pub counted_on: String,
    pub dtype: String,
    /// NVRTC's version; ptxas is a part of it.
    pub nvrtc: String,
    pub gpus: Vec<GpuFigures>,
    pub launches: Vec<Launch>,
    pub resources: Vec<Resources>,
}

/// The constants of a GPU's model, with their sources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuFigures {
    pub name: String,
    pub architecture: String,
    pub multiprocessors: u32,
    pub clock_khz: u32,
    pub tensor_operations_per_second: Figure,
    pub l2_bytes_per_second: Figure,
    pub dram_bytes_per_second: Figure,
    pub instructions_per_clock: Figure,
    pub wavefronts_per_clock: Figure,
    pub launch_seconds: Figure,
}

/// A published figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub value: f64,
    pub source: String,
}

/// One launch of one op on one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    pub layer: Layer,
    pub kernel: Kernel,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
    pub counts: Counts,
    pub compulsory: Vec<Tensor>,
    pub least_mma: u64,
    pub on_gpus: Vec<OnGpu>,
}

/// The layer and its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub tokens: usize,
    pub in_features: usize,
    pub out_features: usize,
    pub rank: usize,
    pub norm: NormAxis,
}

/// The norm axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormAxis {
    None,
    Input,
    Output,
}

/// What was counted of a launch. Instructions are PTX warp instructions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub instructions: u64,
    pub by_class: BTreeMap<String, u64>,
    pub mma: u64,
    pub global_loads: u64,
    pub global_stores: u64,
    pub sectors_read: u64,
    pub least_sectors_read: u64,
    pub sectors_written: u64,
    pub least_sectors_written: u64,
    pub dram_bytes_read: u64,
    pub dram_bytes_written: u64,
    pub dram_sectors_read: u64,
    pub dram_sectors_written: u64,
    pub shared_wavefronts: u64,
    pub least_shared_wavefronts: u64,
    pub local_requests: u64,
    pub atomics: u64,
    pub barriers: u64,
}

/// What the model says of a launch on a GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OnGpu {
    pub gpu: String,
    pub registers: u32,
    pub occupancy: Occupancy,
    /// Of the launch as it is, in µs.
    pub bounds: Bounds,
    /// Of its compulsory bytes and its least products alone, in µs: what no cut of the work can
    /// beat.
    pub floor: Bounds,
}

impl From<Norm> for NormAxis {
    fn from(norm: Norm) -> Self {
        match norm {
            Norm::None => Self::None,
            Norm::Input => Self::Input,
            Norm::Output => Self::Output,
        }
    }
}

impl Layer {
    /// As `T=64 I=128 O=256 r=8`.
    pub fn shape(&self) -> String {
        let Self { tokens, in_features, out_features, rank, .. } = self;
        format!("T={tokens} I={in_features} O={out_features} r={rank}")
    }
}

impl NormAxis {
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Input => "input",
            Self::Output => "output",
        }
    }
}

impl From<&Counters> for Counts {
    fn from(counters: &Counters) -> Self {
        let class = |(class, count): (InstructionClass, u64)| (class.name().to_owned(), count);
        let by_class = counters.by_class.iter().filter(|entry| entry.1 > 0).map(class).collect();
        Self {
            instructions: counters.instructions,
            by_class,
            mma: counters.mma,
            global_loads: counters.global_loads,
            global_stores: counters.global_stores,
            sectors_read: counters.sectors_read,
            least_sectors_read: counters.least_sectors_read,
            sectors_written: counters.sectors_written,
            least_sectors_written: counters.least_sectors_written,
            dram_bytes_read: counters.dram_bytes_read,
            dram_bytes_written: counters.dram_bytes_written,
            dram_sectors_read: counters.dram_sectors_read,
            dram_sectors_written: counters.dram_sectors_written,
            shared_wavefronts: counters.shared_wavefronts,
            least_shared_wavefronts: counters.least_shared_wavefronts,
            local_requests: counters.local_requests,
            atomics: counters.atomics,
            barriers: counters.barriers,
        }
    }
}

impl Counts {
    /// Bytes between the multiprocessors and the L2 cache.
    pub fn l2_bytes(&self) -> u64 {
        SECTOR * (self.sectors_read + self.sectors_written)
    }

    /// Bytes between the L2 cache and device memory, in whole sectors.
    pub fn dram_bytes(&self) -> u64 {
        SECTOR * (self.dram_sectors_read + self.dram_sectors_written)
    }
}

impl Launch {
    /// A launch of `spec` over `tokens` with what was measured of it.
    ///
    /// # Errors
    /// Where the kernel, or its resources for a GPU, are unknown.
    pub fn new(
        spec: &DoraSpec,
        tokens: usize,
        measured: &MeasuredLaunch,
        gpus: &[&Gpu],
        resources: &[Resources],
    ) -> Result<Self, String> {
        let entry = &measured.kernel;
        let kernel = Kernel::of_entry(entry)
            .ok_or_else(|| format!("{entry}: the profile knows no such kernel"))?;
        let counts = Counts::from(&measured.counters);
        let compulsory = compulsory(kernel, spec, tokens);
        let least_mma = least_mma(kernel, spec, tokens);
        let blocks = measured.grid.iter().map(|&extent| u64::from(extent)).product();
        let demand = Demand {
            blocks,
            mma: counts.mma,
            instructions: counts.instructions,
            wavefronts: counts.shared_wavefronts,
            l2_bytes: counts.l2_bytes(),
            dram_bytes: counts.dram_bytes(),
        };
        let shared_bytes = measured.static_shared + measured.dynamic_shared;
        let threads = measured.block.iter().product();
        let on_gpu = |gpu: &&Gpu| {
            let known = |r: &&Resources| &r.kernel == entry && r.architecture == gpu.architecture;
            let registers = resources.iter().find(known).map(|known| known.registers);
            let registers = registers
                .ok_or_else(|| format!("{entry}: no registers for {}", gpu.architecture))?;
            let whole_waves = u64::from(gpu.limits.sm_count);
            let bytes = compulsory.iter().map(|tensor| tensor.bytes).sum();
            let floor = Demand {
                blocks: whole_waves,
                mma: least_mma,
                dram_bytes: bytes,
                ..Demand::default()
            };
            Ok::<_, String>(OnGpu {
                gpu: gpu.name.to_owned(),
                registers,
                occupancy: Occupancy::new(&gpu.limits, threads, registers, shared_bytes),
                bounds: Bounds::new(gpu, &demand),
                floor: Bounds::new(gpu, &floor),
            })
        };
        let on_gpus = gpus.iter().map(on_gpu).collect::<Result<Vec<_>, _>>()?;
        let layer = Layer {
            tokens,
            in_features: spec.in_features(),
            out_features: spec.out_features(),
            rank: spec.rank(),
            norm: spec.norm().into(),
        };
        let MeasuredLaunch { grid, block, .. } = *measured;
        Ok(Self {
            layer,
            kernel,
            grid,
            block,
            shared_bytes,
            counts,
            compulsory,
            least_mma,
            on_gpus,
        })
    }

    /// The bytes that it must move.
    pub fn compulsory_bytes(&self) -> u64 {
        self.compulsory.iter().map(|tensor| tensor.bytes).sum()
    }
}

impl From<&Gpu> for GpuFigures {
    fn from(gpu: &Gpu) -> Self {
        let figure = |cited: crate::gpu::Cited| Figure {
            value: cited.value,
            source: cited.source.to_owned(),
        };
        Self {
            name: gpu.name.to_owned(),
            architecture: gpu.architecture.to_owned(),
            multiprocessors: gpu.limits.sm_count,
            clock_khz: gpu.limits.clock_khz,
            tensor_operations_per_second: figure(gpu.tensor),
            l2_bytes_per_second: figure(gpu.l2),
            dram_bytes_per_second: figure(gpu.dram),
            instructions_per_clock: figure(crate::gpu::ISSUE_PER_CLOCK),
            wavefronts_per_clock: figure(crate::gpu::WAVEFRONTS_PER_CLOCK),
            launch_seconds: figure(crate::gpu::LAUNCH_SECONDS),
        }
    }
}
