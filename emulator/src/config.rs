//! The settings of an emulated device.

/// Settings of a device that no real one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Threads of the host that run blocks. One makes a launch deterministic to the last bit, even
    /// where its blocks race with atomics.
    pub threads: usize,
    /// How matrix instructions add.
    pub accumulator: Accumulator,
    /// Whether approximate instructions err as far as the instruction set lets them, instead of
    /// being as exact as their type allows.
    pub jitter: bool,
    /// The schedule: another than 0 permutes the order of blocks and that of the warps of a block,
    /// and lets warps give way to each other more often.
    pub seed: u64,
    /// Instructions of a warp after which its block is taken for stuck. A loop that nothing can end
    /// is found without it.
    pub watchdog: u64,
    /// The newest PTX version that modules may have: (major, minor).
    pub ptx_version: (u32, u32),
    /// Whether reads of memory and registers that nothing wrote, races, and copies that nothing
    /// waited for are faults. It costs time.
    pub sanitizer: bool,
    /// Whether the sanitizer lets two plain writes of the same bytes race, such as those that set a
    /// flag.
    pub same_value_writes: bool,
    /// Whether launches are measured: the counters that say so, and a record of every launch. It
    /// costs time, and memory for each launch until
    /// [`Device::take_launches`](crate::Device::take_launches).
    pub measure: bool,
}

impl Default for Config {
    /// Takes the number of threads from `CUDA_EMULATOR_THREADS`, or else one per processor, and the
    /// watchdog from `CUDA_EMULATOR_WATCHDOG`; the sanitizer is on unless
    /// `CUDA_EMULATOR_SANITIZER` is 0; `CUDA_EMULATOR_SAME_VALUE_WRITES` and
    /// `CUDA_EMULATOR_MEASURE` are off unless they are 1.
    fn default() -> Self {
        let is_on =
            |variable| std::env::var(variable).is_ok_and(|value: String| value.trim() == "1");
        let number = |variable| {
            let value = std::env::var(variable).ok()?;
            value.trim().parse::<u64>().ok().filter(|&number| number > 0)
        };
        let threads = number("CUDA_EMULATOR_THREADS")
            .and_then(|threads| usize::try_from(threads).ok())
            .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
            .unwrap_or(1);
        Self {
            threads,
            accumulator: Accumulator::default(),
            jitter: false,
            seed: 0,
            watchdog: number("CUDA_EMULATOR_WATCHDOG").unwrap_or(1 << 32),
            ptx_version: (9, 5),
            sanitizer: std::env::var("CUDA_EMULATOR_SANITIZER")
                .map_or(true, |value| value.trim() != "0"),
            same_value_writes: is_on("CUDA_EMULATOR_SAME_VALUE_WRITES"),
            measure: is_on("CUDA_EMULATOR_MEASURE"),
        }
    }
}

/// How a matrix instruction adds up its products. Tensor cores do not add as IEEE 754 would, and
/// differ by chip: numeric tests should pass under each of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accumulator {
    /// One fused multiply-add in f32 after the other, in the order of k.
    #[default]
    Sequential,
    /// Products and sums in f64, rounded to f32 once.
    ExactF64,
    /// Blocks of products aligned to the largest exponent, truncated and added as integers.
    AlignedTruncate,
}
