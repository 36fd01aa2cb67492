//! The GPUs of the model: their limits, which the emulator has, and their speeds, which it has not.

use cuda_emulator::profile::{self, Profile};
use serde::Serialize;

/// A figure and where it is published.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cited {
    pub value: f64,
    pub source: &'static str,
}

const fn cited(value: f64, source: &'static str) -> Cited {
    Cited { value, source }
}

/// A GPU's limits and peak rates.
#[derive(Clone, Copy, Debug)]
pub struct Gpu {
    pub name: &'static str,
    /// What its code is compiled for.
    pub architecture: &'static str,
    /// Multiprocessors, clock, and what a multiprocessor holds.
    pub limits: Profile,
    /// bf16 operations with f32 accumulation that `mma.sync` reaches, per second.
    pub tensor: Cited,
    /// Bytes that the L2 cache delivers per second.
    pub l2: Cited,
    /// Bytes that device memory moves per second.
    pub dram: Cited,
}

/// Instructions that a multiprocessor issues per clock, one by each of its four schedulers.
pub const ISSUE_PER_CLOCK: Cited =
    cited(4.0, "CUDA C++ Programming Guide, compute capabilities 8.x and 9.0, \"Architecture\"");

/// Passes over the 32 banks of 4 bytes that a multiprocessor makes per clock.
pub const WAVEFRONTS_PER_CLOCK: Cited =
    cited(1.0, "CUDA C++ Programming Guide, compute capability 5.x and later, \"Shared Memory\"");

/// What a launch costs behind another one in a stream: 3.8 µs for each kernel of 2.9 µs.
pub const LAUNCH_SECONDS: Cited = cited(
    0.9e-6,
    "NVIDIA Technical Blog, \"Getting Started with CUDA Graphs\" (measured on a V100)",
);

const A100_PAPER: &str = "NVIDIA A100 Tensor Core GPU Architecture (white paper)";
const HOPPER_BENCHMARK: &str =
    "Luo et al., Benchmarking and Dissecting the Nvidia Hopper GPU Architecture, arXiv:2402.13499";

/// The clocks are the limits' own: the highest that the driver reports.
pub const GPUS: [Gpu; 4] = [
    Gpu {
        name: "A100",
        architecture: "sm_80",
        limits: profile::A100,
        tensor: cited(
            312e12,
            "NVIDIA A100 white paper, table 4 (BF16 with FP32 accumulate, dense)",
        ),
        // 5120 bytes per clock.
        l2: cited(5120.0 * 1.41e9, A100_PAPER),
        dram: cited(1555e9, "NVIDIA A100 white paper, table 4 (40 GB, HBM2)"),
    },
    Gpu {
        name: "RTX 4090",
        architecture: "sm_89",
        limits: profile::RTX4090,
        tensor: cited(
            165.2e12,
            "NVIDIA Ada GPU Architecture white paper, appendix A (BF16, FP32 accumulate, dense)",
        ),
        // NVIDIA publishes none: 1945.6 bytes per clock, by cp.async.
        l2: cited(
            1945.6 * 2.52e9,
            "github.com/smallscientist1/cuda_microbenchmark, analysis_RTX4090.md (measured)",
        ),
        dram: cited(1008e9, "NVIDIA Ada GPU Architecture white paper, appendix A"),
    },
    Gpu {
        name: "RTX 5090",
        architecture: "sm_120",
        limits: profile::RTX5090,
        tensor: cited(
            209.5e12,
            "NVIDIA RTX Blackwell GPU Architecture white paper, appendix A (BF16, FP32 accumulate, \
             dense)",
        ),
        // NVIDIA publishes none: as many bytes per clock and multiprocessor as of the RTX 4090.
        l2: cited(
            1945.6 * 170.0 / 128.0 * 2.407e9,
            "the RTX 4090's, by the number of multiprocessors (an assumption)",
        ),
        dram: cited(1792e9, "NVIDIA RTX Blackwell GPU Architecture white paper, appendix A"),
    },
    Gpu {
        name: "H100",
        architecture: "sm_90",
        limits: profile::H100,
        // 989.4 TFLOP/s with wgmma (NVIDIA H100 white paper, dense). mma.sync reaches
        // 62.9 % of that on average.
        tensor: cited(0.629 * 989.4e12, HOPPER_BENCHMARK),
        // NVIDIA publishes none: 4472.3 bytes per clock (table V, H800, the same chip).
        l2: cited(4472.3 * 1.98e9, HOPPER_BENCHMARK),
        dram: cited(3.35e12, "NVIDIA H100 data sheet (SXM)"),
    },
];

impl Gpu {
    /// The GPU of that name, in any case and without spaces: such as `a100` or `rtx5090`.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        let plain = |name: &str| name.replace(' ', "").to_ascii_lowercase();
        GPUS.iter().find(|gpu| plain(gpu.name) == plain(name))
    }

    /// Clocks of all multiprocessors per second.
    pub fn clocks(&self) -> f64 {
        f64::from(self.limits.sm_count) * f64::from(self.limits.clock_khz) * 1e3
    }
}
