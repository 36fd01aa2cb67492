//! Choosing the device: a GPU where there is one, the emulated device where there is none.
//!
//! A program calls [`select`] before anything else that opens the CUDA driver. Where the choice
//! falls on the emulator, its library is opened under the name of the driver. A later
//! `dlopen("libcuda.so")`, such as the one in cudarc, then finds it.
//!
//! ```no_run
//! use cuda_emulator::client::{Choice, Selected, select};
//!
//! match select(Choice::from_env()?)? {
//!     Selected::Cuda(cuda) => println!("{} through {}", cuda.device, cuda.library),
//!     Selected::Emulated(emulator) => println!("{}", emulator.device_name()),
//! }
//! # Ok::<(), cuda_emulator::client::SelectError>(())
//! ```

use std::ffi::{CStr, c_char};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use crate::driver::Status;
use crate::driver::extension::{ACCUMULATORS, LaunchFacts, Settings};
use crate::{Config, Counters, MeasuredLaunch};

mod library;

use library::Functions;

/// Which device a program asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// A GPU where a driver with a device is found, and the emulated device otherwise.
    #[default]
    Auto,
    /// A GPU.
    Cuda,
    /// The emulated device.
    Emulated,
}

impl Choice {
    /// The environment variable that [`Choice::from_env`] reads.
    pub const VARIABLE: &str = "CUDA_EMULATOR_DEVICE";

    /// The choice that `CUDA_EMULATOR_DEVICE` holds: `auto` (where unset), `cuda` or `emulated`.
    ///
    /// # Errors
    /// [`SelectError::UnknownChoice`] for any other word.
    pub fn from_env() -> Result<Self, SelectError> {
        match std::env::var(Self::VARIABLE) {
            Ok(word) if !word.is_empty() => word.parse(),
            _ => Ok(Self::Auto),
        }
    }
}

impl FromStr for Choice {
    type Err = SelectError;

    fn from_str(word: &str) -> Result<Self, SelectError> {
        match word.trim().to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda),
            "emulated" => Ok(Self::Emulated),
            _ => Err(SelectError::UnknownChoice { word: word.to_owned() }),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Cuda => "cuda",
            Self::Emulated => "emulated",
        })
    }
}

/// Why no device could be selected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// The word is not a choice.
    #[error("`{word}` is not one of auto, cuda and emulated")]
    UnknownChoice {
        /// The word.
        word: String,
    },
    /// No CUDA driver can be opened.
    #[error("no CUDA driver was found; tried {}", describe(.tried))]
    NoDriver {
        /// The names that were tried, each with the dynamic loader's message.
        tried: Vec<(String, String)>,
    },
    /// There is a CUDA driver, and it has no device.
    #[error("the CUDA driver {library} has no device: {reason}")]
    NoDevice {
        /// The driver's library.
        library: String,
        /// What the driver said.
        reason: String,
    },
    /// The emulator's library is in none of the places where it should be.
    #[error("the emulator's library was not found; looked for {}; {cure}", list(.searched))]
    LibraryNotFound {
        /// The places.
        searched: Vec<PathBuf>,
        /// What to do about it.
        cure: String,
    },
    /// The emulator's library cannot be opened, or is not what it should be.
    #[error("{} cannot be used: {reason}", .path.display())]
    LibraryUnusable {
        /// The library.
        path: PathBuf,
        /// What was wrong with it.
        reason: String,
    },
    /// Another CUDA driver is loaded already, so that later calls would not reach the emulator.
    #[error("the CUDA driver {library} is loaded already: select the device before its first use")]
    OtherDriverLoaded {
        /// The name under which it is loaded.
        library: String,
    },
    /// The emulator's settings in the environment are not valid.
    #[error("the emulated device could not be initialised: {reason}")]
    Initialise {
        /// What was wrong.
        reason: String,
    },
    /// The process runs on the other device already.
    #[error("`{asked}` was asked for and the process runs on {running} already")]
    AlreadySelected {
        /// What was asked for.
        asked: Choice,
        /// What was selected before.
        running: Choice,
    },
}

fn describe(tried: &[(String, String)]) -> String {
    let lines: Vec<String> = tried.iter().map(|(name, why)| format!("{name} ({why})")).collect();
    lines.join(", ")
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}

/// The device that a process runs on.
#[derive(Clone, Debug)]
pub enum Selected {
    /// A GPU.
    Cuda(Cuda),
    /// The emulated device.
    Emulated(Emulator),
}

impl Selected {
    /// The handle to the emulator, where it is the device.
    pub fn emulator(&self) -> Option<&Emulator> {
        match self {
            Self::Cuda(_) => None,
            Self::Emulated(emulator) => Some(emulator),
        }
    }

    fn choice(&self) -> Choice {
        match self {
            Self::Cuda(_) => Choice::Cuda,
            Self::Emulated(_) => Choice::Emulated,
        }
    }
}

/// A CUDA driver with at least one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cuda {
    /// The name under which the driver's library was opened.
    pub library: String,
    /// How many devices there are.
    pub devices: usize,
    /// The name of the first device.
    pub device: String,
}

/// What the process has selected: a driver cannot be exchanged once it is in use.
static SELECTED: Mutex<Option<Selected>> = Mutex::new(None);

/// Selects the device of this process. Call it before anything else opens the CUDA driver; later
/// calls return the same device.
///
/// # Errors
/// See [`SelectError`].
pub fn select(choice: Choice) -> Result<Selected, SelectError> {
    let mut selected = SELECTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = selected.as_ref() {
        let running = known.choice();
        return if choice == Choice::Auto || choice == running {
            Ok(known.clone())
        } else {
            Err(SelectError::AlreadySelected { asked: choice, running })
        };
    }
    // A driver that is loaded now was loaded by someone else; looking for one may leave it loaded.
    let others = library::check_no_other_driver();
    let emulated = || others.and_then(|()| emulator()).map(Selected::Emulated);
    let found = match choice {
        Choice::Cuda => Selected::Cuda(library::cuda()?),
        Choice::Emulated => emulated()?,
        Choice::Auto => match library::cuda() {
            Ok(found) => Selected::Cuda(found),
            Err(_) => emulated()?,
        },
    };
    Ok(selected.insert(found).clone())
}

fn emulator() -> Result<Emulator, SelectError> {
    let emulator = Emulator { functions: library::emulator()? };
    // SAFETY: `cuInit` takes any flags.
    let status = unsafe { (emulator.functions.init)(0) };
    if status != Status::SUCCESS {
        let reason = emulator.last_error().unwrap_or_else(|| status.name().to_owned());
        return Err(SelectError::Initialise { reason });
    }
    Ok(emulator)
}

/// The emulated device, as a test or a tool sees it.
#[derive(Clone, Copy, Debug)]
pub struct Emulator {
    functions: Functions,
}

impl Emulator {
    /// What was counted since the process began or [`Emulator::reset_counters`] was called. Work
    /// that waits in streams runs before.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        // SAFETY: the place is writable, and the library has the same idea of the structure, as its
        // interface number says.
        let status = unsafe { (self.functions.get_counters)(&mut counters) };
        debug_assert_eq!(status, Status::SUCCESS);
        counters
    }

    /// What was measured of each launch since the process began or [`Emulator::reset_counters`] was
    /// called, in order; nothing unless [`Config::measure`] is set. Work that waits in streams runs
    /// before.
    pub fn launches(&self) -> Vec<MeasuredLaunch> {
        let launch = |index| {
            let mut facts = LaunchFacts::default();
            // SAFETY: the place is writable, the library has the same idea of the structure, as its
            // interface number says, and the buffer has as many bytes as the call says.
            let kernel = self.text(|buffer, size| unsafe {
                (self.functions.get_launch)(index, &mut facts, buffer, size)
            })?;
            let LaunchFacts { grid, block, static_shared, dynamic_shared, counters } = facts;
            Some(MeasuredLaunch { kernel, grid, block, static_shared, dynamic_shared, counters })
        };
        (0..).map_while(launch).collect()
    }

    /// Lets the counters start from zero, and forgets the launches that were measured. Work that
    /// waits in streams runs before.
    pub fn reset_counters(&self) {
        // SAFETY: the function takes nothing.
        unsafe { (self.functions.reset_counters)() };
    }

    /// The report of the latest fault: kernel, source line, block, thread, address.
    pub fn last_fault(&self) -> Option<String> {
        // SAFETY: the buffer has as many bytes as the call says.
        self.text(|buffer, size| unsafe { (self.functions.last_fault)(buffer, size) })
    }

    /// Why the latest failing driver call failed.
    pub fn last_error(&self) -> Option<String> {
        // SAFETY: the buffer has as many bytes as the call says.
        self.text(|buffer, size| unsafe { (self.functions.last_error)(buffer, size) })
    }

    /// The name of the emulated device.
    pub fn device_name(&self) -> String {
        // SAFETY: the buffer has as many bytes as the call says.
        self.text(|buffer, size| unsafe { (self.functions.device_name)(buffer, size) })
            .unwrap_or_default()
    }

    /// Ends every context and frees all device memory: for tests that start from nothing. Handles
    /// and device addresses from before are void.
    pub fn reset(&self) {
        // SAFETY: the function takes nothing.
        unsafe { (self.functions.reset)() };
    }

    /// Sets what contexts to come are made with: threads, accumulator, jitter, seed, watchdog,
    /// sanitizer, writes of the same value and measuring.
    ///
    /// # Errors
    /// `CUDA_ERROR_ILLEGAL_STATE` where there is a context already.
    pub fn configure(&self, config: &Config) -> Result<(), Status> {
        let accumulator = ACCUMULATORS.iter().find(|entry| entry.1 == config.accumulator);
        let settings = Settings {
            threads: config.threads as u64,
            seed: config.seed,
            has_seed: 1,
            accumulator: accumulator.map_or(0, |entry| entry.0),
            watchdog: config.watchdog,
            sanitizer: 1 + u32::from(config.sanitizer),
            jitter: 1 + u32::from(config.jitter),
            measure: 1 + u32::from(config.measure),
            same_value_writes: 1 + u32::from(config.same_value_writes),
        };
        // SAFETY: the settings are readable, and the library has the same idea of the structure.
        match unsafe { (self.functions.set_config)(&settings) } {
            Status::SUCCESS => Ok(()),
            status => Err(status),
        }
    }

    /// Lets there be `count` devices, 1 to 8, all alike: each with memory and contexts of its own.
    /// A process starts with as many as `CUDA_EMULATOR_DEVICE_COUNT` says, or one.
    ///
    /// # Errors
    /// `CUDA_ERROR_ILLEGAL_STATE` where there is a context already, unless there are as many;
    /// `CUDA_ERROR_INVALID_VALUE` for another number.
    pub fn set_devices(&self, count: usize) -> Result<(), Status> {
        // SAFETY: the function takes any number.
        match unsafe { (self.functions.set_devices)(count) } {
            Status::SUCCESS => Ok(()),
            status => Err(status),
        }
    }

    /// The text that a function of the library writes into a buffer of a given size. The function
    /// returns the length of the text.
    fn text(&self, mut write: impl FnMut(*mut c_char, usize) -> usize) -> Option<String> {
        let mut buffer = vec![0u8; 256];
        loop {
            let length = write(buffer.as_mut_ptr().cast(), buffer.len());
            if length < buffer.len() {
                let text = CStr::from_bytes_until_nul(&buffer).ok()?.to_string_lossy();
                return (!text.is_empty()).then(|| text.into_owned());
            }
            buffer.resize(length + 1, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for choice in [Choice::Auto, Choice::Cuda, Choice::Emulated] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "gpu".parse::<Choice>().unwrap_err();
        assert_eq!(error, SelectError::UnknownChoice { word: "gpu".to_owned() });
    }
}
