//! Opening a device: a GPU, or the emulated one.

use std::error::Error;
use std::sync::Arc;

use cuda_emulator::Counters;
use cuda_emulator::client::{self, Selected};
use fused_dora::cudarc::driver::CudaContext;
use fused_dora::open_device;

pub use cuda_emulator::client::Choice;

/// An opened device.
pub struct Device {
    /// Its primary context.
    pub context: Arc<CudaContext>,
    /// What it calls itself.
    pub name: String,
    /// Which of the two kinds it is.
    selected: Selected,
}

/// The context of the device that `CUDA_EMULATOR_DEVICE` names: by default a GPU where there is
/// one, and the emulated device elsewhere.
pub fn open() -> Result<Arc<CudaContext>, Box<dyn Error>> {
    Ok(open_choice(None)?.context)
}

/// Opens the first device of the kind asked for; of the kind that [`open`] takes if none is.
pub fn open_choice(choice: Option<Choice>) -> Result<Device, Box<dyn Error>> {
    let selected = client::select(choice.map_or_else(Choice::from_env, Ok)?)?;
    let context = open_device(0)?;
    let name = context.name()?;
    Ok(Device { context, name, selected })
}

/// Opens `count` devices of the kind asked for: as many of the emulated one as that, or GPUs.
pub fn open_several(choice: Choice, count: usize) -> Result<Vec<Device>, Box<dyn Error>> {
    let selected = client::select(choice)?;
    if let Selected::Emulated(emulator) = &selected {
        let failed = || emulator.last_error().unwrap_or_default();
        emulator.set_devices(count).map_err(|_| failed())?;
    }
    let open = |ordinal| {
        let context = open_device(ordinal)?;
        let name = context.name()?;
        Ok(Device { context, name, selected: selected.clone() })
    };
    (0..count).map(open).collect()
}

/// Whether this run repeats the tests under another schedule than the usual one, as
/// `CUDA_EMULATOR_SEED` asks for; then it says why a test is not among them.
pub fn is_repeated(why: &str) -> bool {
    let repeated = std::env::var_os("CUDA_EMULATOR_SEED").is_some();
    if repeated {
        println!("{why}: CUDA_EMULATOR_SEED must be unset");
    }
    repeated
}

impl Device {
    /// Whether it is software, whose times say nothing about a GPU.
    pub fn is_emulated(&self) -> bool {
        self.selected.emulator().is_some()
    }

    /// What happened so far, where the device counts it.
    pub fn counters(&self) -> Option<Counters> {
        self.selected.emulator().map(|emulator| emulator.counters())
    }

    /// Kernels launched so far, where the device counts them.
    pub fn launches(&self) -> Option<u64> {
        self.counters().map(|counters| counters.launches)
    }

    /// `error`, and what the emulated device knows about it: the kernel, the line, the address.
    pub fn explained(&self, error: impl Into<Box<dyn Error>>) -> Box<dyn Error> {
        let error = error.into();
        let report = self
            .selected
            .emulator()
            .and_then(|emulator| emulator.last_fault().or_else(|| emulator.last_error()));
        match report {
            Some(report) => format!("{error}\n{report}").into(),
            None => error,
        }
    }
}
