//! Stated latencies and issue intervals, in clocks of a multiprocessor.

/// What the in-order model knows of an architecture.
#[derive(Clone, Copy, Debug)]
pub struct Latencies {
    pub architecture: &'static str,
    /// A load that hits the L1 cache, the L2 cache, and one that device memory answers under load.
    pub l1: f64,
    pub l2: f64,
    pub dram: f64,
    /// Between two m16n8k16 products with f32 sums on one of the four partitions of a
    /// multiprocessor. Stall counts keep their results' latency.
    pub hmma_interval: f64,
    /// Between two f32 instructions of a warp.
    pub fma_interval: f64,
    /// A fence for the whole device, and a barrier of a block.
    pub membar: f64,
    pub bar: f64,
}

/// Of all architectures.
pub const SHARED_LOAD: f64 = 30.0;
pub const MATRIX_LOAD: f64 = 33.0;
pub const SPECIAL: f64 = 18.0;
pub const SHUFFLE: f64 = 24.0;
pub const ALU: f64 = 2.0;
/// Until a memory instruction has read its registers.
pub const SOURCES_READ: f64 = 12.0;
/// What else has a write barrier.
pub const OTHER: f64 = 20.0;
/// Of an atomic, against a load that hits the L2 cache.
pub const ATOMIC: f64 = 1.3;

/// Latencies of the caches and of idle device memory: github.com/markdewing/AI_kernels, latency
/// (measured: A100 39, 210 and 550 clocks, RTX 4090 40, 296 and 636, H100 40, 291 and 700, RTX 5090
/// 44, 360 and 936). L2 is the mean of both halves on A100, and device memory is taken as 50 to 100
/// clocks slower under load. HMMA: published rates (white papers; on H100 62.9 % of wgmma's,
/// arXiv:2402.13499). `membar` and `bar` are estimates.
const A100: Latencies = Latencies {
    architecture: "sm_80",
    l1: 39.0,
    l2: 270.0,
    dram: 650.0,
    hmma_interval: 8.0,
    fma_interval: 2.0,
    membar: 700.0,
    bar: 25.0,
};
const GEFORCE: Latencies = Latencies { hmma_interval: 32.0, fma_interval: 1.0, ..A100 };

const ALL: [Latencies; 4] = [
    A100,
    Latencies { architecture: "sm_89", l1: 40.0, l2: 296.0, dram: 700.0, ..GEFORCE },
    Latencies {
        architecture: "sm_90",
        l1: 40.0,
        l2: 291.0,
        dram: 750.0,
        hmma_interval: 6.4,
        fma_interval: 1.0,
        ..A100
    },
    Latencies { architecture: "sm_120", l1: 44.0, l2: 360.0, dram: 1000.0, ..GEFORCE },
];

impl Latencies {
    /// Those of an architecture such as `sm_80`.
    pub fn of(architecture: &str) -> Result<Self, String> {
        let found = ALL.into_iter().find(|known| known.architecture == architecture);
        found.ok_or_else(|| format!("{architecture}: its latencies are not stated (latencies.rs)"))
    }

    /// The same with memory that answers in `times` the clocks.
    pub fn slower(self, times: f64) -> Self {
        let [l2, dram, membar] = [self.l2, self.dram, self.membar].map(|clocks| clocks * times);
        Self { l2, dram, membar, ..self }
    }
}
