//! What differs from GPU to GPU and from run to run, as settings of the emulated device.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cuda_emulator::client::{self, Choice, Selected};
use cuda_emulator::{Accumulator, Config};
use rand::Rng;
use rand::rngs::StdRng;

use crate::device::{self, Device};

/// One way in which a device may schedule, add and approximate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The order of blocks and warps; 0 is the natural one.
    pub seed: u64,
    /// How tensor cores add.
    pub accumulator: Accumulator,
    /// Whether approximate instructions err as far as PTX allows.
    pub jitter: bool,
}

impl Setting {
    /// The emulated device's defaults.
    pub const DEFAULT: Self = Self { seed: 0, accumulator: Accumulator::Sequential, jitter: false };

    /// The settings under which every op runs in each gate.
    pub const LIST: [Self; 3] = [
        Self::DEFAULT,
        Self { seed: 1, accumulator: Accumulator::ExactF64, jitter: true },
        Self { seed: 2, accumulator: Accumulator::AlignedTruncate, jitter: false },
    ];

    /// Any setting.
    pub fn random(random: &mut StdRng) -> Self {
        let accumulators =
            [Accumulator::Sequential, Accumulator::ExactF64, Accumulator::AlignedTruncate];
        Self {
            seed: random.random(),
            accumulator: accumulators[random.random_range(0..accumulators.len())],
            jitter: random.random(),
        }
    }

    /// The setting, with all else at its default.
    pub fn config(self) -> Config {
        let Self { seed, accumulator, jitter } = self;
        Config { seed, accumulator, jitter, ..Config::default() }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, accumulator, jitter } = self;
        write!(f, "schedule {seed}, tensor-core sums {accumulator:?}, jitter {jitter}")
    }
}

/// A process has one emulated device with one set of counters, and it is configured while no context
/// is open.
static DEVICE: Mutex<()> = Mutex::new(());

/// Waits until no other test has the device for itself.
pub fn alone() -> MutexGuard<'static, ()> {
    DEVICE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the device of this run with a configuration, and closes it after `visit`. Calls wait for
/// one another. A GPU has no configuration, and is used as it is.
///
/// # Panics
/// Where there is no device, or where a context is open that was not opened here.
pub fn on_device<T>(config: &Config, visit: impl FnOnce(&Device) -> T) -> T {
    let _alone = alone();
    let choice = Choice::from_env().expect("a choice");
    if let Selected::Emulated(emulator) = client::select(choice).expect("a device") {
        emulator.configure(config).unwrap_or_else(|status| {
            panic!("the emulated device cannot be configured: {}", status.name())
        });
    }
    visit(&device::open_choice(Some(choice)).expect("a device"))
}
