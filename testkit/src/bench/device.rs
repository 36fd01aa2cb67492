//! The device that a bench runs on, and how work on it is counted.

use std::sync::Arc;

use cuda_emulator::Config;
use cuda_emulator::client::{Choice, Emulator, select};
use fused_dora::cudarc::driver::CudaStream;
use fused_dora::cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use fused_dora::{Kernels, open_device};

use super::Outcome;
use super::record::{Counts, Peaks};

/// Bytes of a sector, in which the emulated device counts traffic.
const SECTOR: u64 = 32;

/// What the kernels' names begin with that help the own GEMM.
const HELPER: &str = "product_";
/// Of those the one that adds a matrix to the product: half of what it reads is that matrix, which
/// a library's product would read, too.
const ADDING_HELPER: &str = "product_scaled_add";

/// Operations per clock of a multiprocessor: of tensor cores in 16 bit with f32 sums (dense), and
/// of the FMA units. From NVIDIA's white papers on the A100 (GA100), GA102, Ada, H100, and RTX
/// Blackwell, and its data sheets of HGX B200 and B300: peak rates over multiprocessors and boost
/// clock. For 11.0 (Jetson Thor) and 12.1 (GB10) none is published: a bench prints no share of a
/// peak there.
const OPERATIONS_PER_CLOCK: [((i32, i32), [f64; 2]); 7] = [
    ((8, 0), [2048.0, 128.0]),
    ((8, 6), [512.0, 256.0]),
    ((8, 9), [512.0, 256.0]),
    ((9, 0), [4096.0, 256.0]),
    ((10, 0), [8192.0, 256.0]),
    ((10, 3), [8192.0, 256.0]),
    ((12, 0), [512.0, 256.0]),
];

/// A GPU, or the emulated device.
pub struct Device {
    pub kernels: Arc<Kernels>,
    pub stream: Arc<CudaStream>,
    pub name: String,
    emulator: Option<Emulator>,
}

impl Device {
    /// Opens what `CUDA_EMULATOR_DEVICE` asks for: by default a GPU where there is one.
    pub fn open() -> Outcome<Self> {
        let selected = select(Choice::from_env()?)?;
        let emulator = selected.emulator().copied();
        if let Some(emulator) = emulator {
            // The tests look for mistakes; here they would only take time.
            let config = Config { measure: true, sanitizer: false, ..Config::default() };
            emulator.configure(&config).map_err(|status| status.name())?;
        }
        let context = open_device(0)?;
        // SAFETY: all work of a bench is on one stream, which orders it.
        unsafe { context.disable_event_tracking() };
        let kernels = Arc::new(Kernels::load(&context)?);
        let stream = context.new_stream()?;
        Ok(Self { kernels, stream, name: context.name()?, emulator })
    }

    /// Whether it is software, whose times say nothing about a GPU's.
    pub fn is_emulated(&self) -> bool {
        self.emulator.is_some()
    }

    /// Batches of a layer: on a GPU each run takes another.
    pub fn batches(&self) -> usize {
        if self.is_emulated() { 1 } else { 2 }
    }

    /// What the emulated device counts of some work, without the launches in which the own GEMM
    /// does what a library's products do in themselves; `None` on a GPU.
    pub fn count(&self, work: impl FnOnce() -> Outcome) -> Outcome<Option<Counts>> {
        let Some(emulator) = &self.emulator else { return Ok(None) };
        self.stream.synchronize()?;
        emulator.reset_counters();
        let explained = |error: Box<dyn std::error::Error>| match emulator.last_fault() {
            Some(fault) => format!("{error}\n{fault}").into(),
            None => error,
        };
        work().and_then(|()| Ok(self.stream.synchronize()?)).map_err(explained)?;
        let mut counted = emulator.counters();
        let launches = emulator.launches().into_iter();
        for helper in launches.filter(|launch| launch.kernel.starts_with(HELPER)) {
            counted = counted - helper.counters;
            counted.launches -= 1;
            if helper.kernel.starts_with(ADDING_HELPER) {
                counted.dram_sectors_read += helper.counters.dram_sectors_read / 2;
                counted.sectors_read += helper.counters.sectors_read / 2;
            }
        }
        Ok(Some(Counts {
            launches: counted.launches,
            dram_bytes: SECTOR * (counted.dram_sectors_read + counted.dram_sectors_written),
            l2_bytes: SECTOR * (counted.sectors_read + counted.sectors_written),
            mma: counted.mma,
        }))
    }

    /// The GPU's peaks by its highest clocks; `None` for the emulated device and unknown GPUs.
    pub fn peaks(&self) -> Outcome<Option<Peaks>> {
        let context = self.stream.context();
        let capability = context.compute_capability()?;
        let known = OPERATIONS_PER_CLOCK.iter().find(|(known, _)| *known == capability);
        let Some((_, operations)) = known.filter(|_| !self.is_emulated()) else {
            return Ok(None);
        };
        let attribute = |which| Outcome::Ok(f64::from(context.attribute(which)?));
        let kilohertz = attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let memory_kilohertz = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
        let bus_bits = attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
        if [kilohertz, memory_kilohertz, bus_bits].contains(&0.0) {
            return Ok(None);
        }
        Ok(Some(Peaks {
            // Two transfers per clock.
            bytes_per_second: 2.0 * memory_kilohertz * 1e3 * bus_bits / 8.0,
            flop_per_second: operations.map(|each| each * multiprocessors * kilohertz * 1e3),
        }))
    }
}
