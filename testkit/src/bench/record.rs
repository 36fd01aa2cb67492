//! What the benches write to `target/bench`, and the report reads.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The phase of an op that is compared with nothing.
pub const ALONE: &str = "alone";
/// The phase of both directions of one micro-batch.
pub const MICRO_BATCH: &str = "forward and backward";
/// The name of the fused layer among those that it is compared with.
pub const FUSED: &str = "fused";
/// The fused layer where it is to be compared with others that hold the norm constant.
pub const FUSED_DETACHED: &str = "fused, norm detached";

/// The machine's description, next to the results in a report's folder.
pub const MACHINE_FILE: &str = "machine.json";

/// All that one bench measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Its name: that of its file in `benches/`.
    pub bench: String,
    pub device: String,
    /// Whether the device is software: then there are counts, and no times.
    pub emulated: bool,
    /// What the layers of separate ops take matrix products from.
    pub products: Option<String>,
    pub peaks: Option<Peaks>,
    /// What there was no time for, in words.
    #[serde(default)]
    pub left_out: Vec<String>,
    pub records: Vec<Record>,
}

/// A GPU's published limits, by its own clocks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peaks {
    /// Of device memory.
    pub bytes_per_second: f64,
    /// Of products in 16 bit with f32 sums, and of f32.
    pub flop_per_second: [f64; 2],
}

/// One layer in one way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`FUSED`], or what the fused layer is compared with.
    pub contender: String,
    /// [`ALONE`], or the part of a training step that is compared.
    pub phase: String,
    pub dtype: String,
    pub norm: String,
    pub tokens: usize,
    pub in_features: usize,
    pub out_features: usize,
    pub rank: usize,
    /// Whether its launches were captured as a CUDA graph, and the graph launched.
    #[serde(default)]
    pub graph: bool,
    /// Of the fused op, part by part.
    pub work: Vec<Work>,
    /// On a GPU.
    pub time: Option<Time>,
    /// In the rounds of the time.
    #[serde(default)]
    pub clocks: Option<Clocks>,
    /// On the emulated device.
    pub counts: Option<Counts>,
}

/// What an op cannot do without: inputs and outputs once, and two operations per multiply-add.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    pub bytes: u64,
    pub flop: u64,
}

/// Between CUDA events.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Time {
    pub median_us: f64,
    /// A quarter of the samples are below the first, and above the second.
    pub quartiles_us: [f64; 2],
    pub samples: usize,
}

/// What the GPU did while something was timed, read after each round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Clocks {
    /// The lowest, the median and the highest clock of the multiprocessors.
    pub sm_mhz: [f64; 3],
    /// The median.
    pub watts: f64,
    /// Why the driver held clocks down, each reason once: NVML's names.
    pub throttled: Vec<String>,
}

/// What the emulated device counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub launches: u64,
    /// Bytes that device memory moves, once per launch.
    pub dram_bytes: u64,
    /// Bytes between multiprocessors and the L2 cache.
    pub l2_bytes: u64,
    /// Tensor-core products of 16×8×16.
    pub mma: u64,
}

impl Counts {
    /// Operations of the tensor-core products; those of tf32 are half as deep, and count as whole.
    pub fn flop(&self) -> u64 {
        4096 * self.mma
    }
}

impl Time {
    /// The median and the quartiles of some samples in seconds; `None` if there are none.
    pub fn new(mut seconds: Vec<f64>) -> Option<Self> {
        seconds.sort_by(f64::total_cmp);
        let last = seconds.len().checked_sub(1)?;
        // Between the two samples that the share lies between.
        let at = |share: f64| {
            let place = share * last as f64;
            let (low, high) = (seconds[place.floor() as usize], seconds[place.ceil() as usize]);
            1e6 * (low + (high - low) * place.fract())
        };
        let samples = seconds.len();
        Some(Self { median_us: at(0.5), quartiles_us: [at(0.25), at(0.75)], samples })
    }
}

impl Clocks {
    /// All of it, in words.
    pub fn line(&self) -> String {
        let Self { sm_mhz: [least, median, most], watts, throttled } = self;
        let mut line = format!("SM clock {median:.0} MHz ({least:.0}–{most:.0}), {watts:.0} W");
        if !throttled.is_empty() {
            line += &format!(", held back by {}", throttled.join(", "));
        }
        line
    }
}

impl Record {
    /// The layer, in words.
    pub fn layer(&self) -> String {
        let Self { dtype, norm, tokens, in_features, out_features, rank, .. } = self;
        format!("{dtype} norm={norm} T={tokens} I={in_features} O={out_features} r={rank}")
    }

    /// Whether it is the same layer in the same phase, launched in the same way.
    pub fn compares_with(&self, other: &Self) -> bool {
        let same_way = self.graph == other.graph;
        same_way && self.phase == other.phase && self.layer() == other.layer()
    }

    /// The phase, and how it was launched.
    pub fn phase_and_way(&self) -> String {
        format!("{}{}", self.phase, if self.graph { ", as a graph" } else { "" })
    }

    /// The work of all parts.
    pub fn total(&self) -> Work {
        let add = |sum: Work, part: &Work| Work {
            bytes: sum.bytes + part.bytes,
            flop: sum.flop + part.flop,
        };
        self.work.iter().fold(Work::default(), add)
    }

    /// The least time that the parts take one after the other at a GPU's peaks, in µs.
    pub fn bound_us(&self, peaks: &Peaks) -> Option<f64> {
        let [half, single] = peaks.flop_per_second;
        let flop_per_second = if self.dtype == "f32" { single } else { half };
        let bound = |part: &Work| {
            let moved = part.bytes as f64 / peaks.bytes_per_second;
            moved.max(part.flop as f64 / flop_per_second)
        };
        let bound: f64 = self.work.iter().map(bound).sum();
        (bound > 0.0).then_some(1e6 * bound)
    }

    /// time | rate | share of the bound | ratio to `baseline`: what of it is known.
    pub fn line(&self, peaks: Option<&Peaks>, baseline: Option<&Self>) -> String {
        let Some(time) = self.time else { return String::new() };
        let Work { bytes, flop } = self.total();
        let mut parts = vec![format!("{:.1} µs", time.median_us)];
        if self.contender == FUSED {
            if bytes > 0 {
                parts.push(format!("{:.0} GB/s", bytes as f64 / time.median_us / 1e3));
            }
            if flop > 0 {
                parts.push(format!("{:.1} TFLOP/s", flop as f64 / time.median_us / 1e6));
            }
            if let Some(bound) = peaks.and_then(|peaks| self.bound_us(peaks)) {
                parts.push(format!("{:.0} % of the bound", 100.0 * bound / time.median_us));
            }
        }
        if let Some((baseline, other)) = baseline.and_then(|b| Some((b, b.time?))) {
            let ratio = time.median_us / other.median_us;
            parts.push(format!("{ratio:.3} × {}", baseline.contender));
        }
        parts.join(" | ")
    }
}

impl Results {
    /// Writes `<bench>.json` into a folder, which is made if it is not there.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
        let path = folder.join(format!("{}.json", self.bench));
        fs::create_dir_all(folder)
            .map_err(|error| format!("{} cannot be created: {error}", folder.display()))?;
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
        Ok(path)
    }

    /// Reads all results of a folder, in the order of their files' names.
    pub fn read_all(folder: &Path) -> Result<Vec<Self>, Box<dyn Error>> {
        let entries = fs::read_dir(folder).map_err(|error| {
            let cure = "run `cargo bench` first";
            format!("{} cannot be read: {error}; {cure}", folder.display())
        })?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| {
            path.extension().is_some_and(|extension| extension == "json")
                && path.file_name().is_some_and(|name| name != MACHINE_FILE)
        });
        paths.sort();
        let read = |path: &PathBuf| {
            let text = fs::read_to_string(path)
                .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
            serde_json::from_str(&text)
                .map_err(|error| format!("{} is not of a bench: {error}", path.display()).into())
        };
        paths.iter().map(read).collect()
    }
}

/// Where Cargo builds into, which holds this program.
pub fn target_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let marked = |folder: &&Path| folder.join("CACHEDIR.TAG").is_file();
    program.ancestors().find(marked).map_or_else(|| PathBuf::from("target"), Path::to_owned)
}

/// Where the benches leave their results.
pub fn folder() -> PathBuf {
    target_folder().join("bench")
}
