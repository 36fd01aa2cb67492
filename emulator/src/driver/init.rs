//! Initialisation and versions, and the environment variables that settle what is emulated.

use std::ffi::{c_int, c_void};

use crate::{Accumulator, Config, Profile};

use super::entry::{Out, bare, entry, initialised, read};
use super::state::{Driver, Platform};
use super::status::{Result, Status};

/// The device to emulate: `a100` (where unset), or another name of [`Profile::ALL`].
const PROFILE: &str = "CUDA_EMULATOR_PROFILE";
/// How many devices there are: a number from 1 (where unset) to 8.
const DEVICE_COUNT: &str = "CUDA_EMULATOR_DEVICE_COUNT";
/// Whether the device offers memory pools: `1` (where unset) or `0`.
const MEMORY_POOLS: &str = "CUDA_EMULATOR_MEMORY_POOLS";
/// When the work of streams runs: `lazy` (where unset) or `eager`.
const STREAMS: &str = "CUDA_EMULATOR_STREAMS";
/// How matrix instructions add: `sequential` (where unset), `exact` or `truncate`.
const ACCUMULATOR: &str = "CUDA_EMULATOR_ACCUMULATOR";
/// Whether reads of memory that nothing wrote, and races, are faults: `1` (where unset) or `0`.
const SANITIZER: &str = "CUDA_EMULATOR_SANITIZER";
/// Whether approximate instructions err as far as they may: `1` or `0` (where unset).
const JITTER: &str = "CUDA_EMULATOR_JITTER";
/// Whether plain writes of the same bytes may race: `1` or `0` (where unset).
const SAME_VALUE_WRITES: &str = "CUDA_EMULATOR_SAME_VALUE_WRITES";
/// Instructions of a warp after which its block is taken for stuck.
const WATCHDOG: &str = "CUDA_EMULATOR_WATCHDOG";
/// Whether launches are measured: `1` or `0` (where unset).
const MEASURE: &str = "CUDA_EMULATOR_MEASURE";
/// The order in which blocks and warps run: a number.
const SEED: &str = "CUDA_EMULATOR_SEED";
/// Whether every launch is awaited: CUDA's own variable, `1` or `0` (where unset).
const LAUNCH_BLOCKING: &str = "CUDA_LAUNCH_BLOCKING";

/// Reads one of the variables: the value of the word that it holds, or the first where it is unset.
fn choose<T: Copy>(variable: &str, choices: &[(&str, T)]) -> Result<T> {
    let Some(text) = std::env::var_os(variable).filter(|text| !text.is_empty()) else {
        return Ok(choices[0].1);
    };
    let text = text.to_string_lossy();
    let chosen = choices.iter().find(|(word, _)| text.trim().eq_ignore_ascii_case(word));
    chosen.map(|choice| choice.1).ok_or_else(|| {
        let words: Vec<&str> = choices.iter().map(|choice| choice.0).collect();
        let reason = format!("{variable}={text} is not one of {}", words.join(", "));
        eprintln!("cuda-emulator: {reason}");
        Status::INVALID_VALUE.because(reason)
    })
}

/// The configuration that the environment asks for.
pub(super) fn config_from_environment() -> Result<Config> {
    let accumulator = choose(
        ACCUMULATOR,
        &[
            ("sequential", Accumulator::Sequential),
            ("exact", Accumulator::ExactF64),
            ("truncate", Accumulator::AlignedTruncate),
        ],
    )?;
    let sanitizer = choose(SANITIZER, &[("1", true), ("0", false)])?;
    let jitter = choose(JITTER, &[("0", false), ("1", true)])?;
    let measure = choose(MEASURE, &[("0", false), ("1", true)])?;
    let same_value_writes = choose(SAME_VALUE_WRITES, &[("0", false), ("1", true)])?;
    let mut config =
        Config { accumulator, sanitizer, jitter, measure, same_value_writes, ..Config::default() };
    if let Some(watchdog) = number(WATCHDOG)? {
        config.watchdog = watchdog;
    }
    if let Some(seed) = number(SEED)? {
        config.seed = seed;
    }
    Ok(config)
}

/// Reads one of the variables that hold a number.
fn number(variable: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(variable) else { return Ok(None) };
    text.trim().parse().map(Some).map_err(|_| {
        let reason = format!("{variable}={text} is not a number");
        eprintln!("cuda-emulator: {reason}");
        Status::INVALID_VALUE.because(reason)
    })
}

impl Driver {
    fn initialise(&mut self) -> Result {
        if self.platform.is_some() {
            return Ok(());
        }
        let switch = [("0", false), ("1", true)];
        let platform = Platform {
            profile: choose(PROFILE, &Profile::ALL)?,
            memory_pools: choose(MEMORY_POOLS, &[("1", true), ("0", false)])?,
            lazy: choose(STREAMS, &[("lazy", true), ("eager", false)])?,
            launch_blocking: choose(LAUNCH_BLOCKING, &switch)?,
        };
        if self.config.is_none() {
            self.config = Some(config_from_environment()?);
        }
        self.provide_devices(number(DEVICE_COUNT)?.unwrap_or(1) as usize)?;
        self.platform = Some(platform);
        Ok(())
    }

    /// The CUDA version that goes with the newest PTX version the device takes: CUDA 13.n came with
    /// PTX 9.n.
    pub(super) fn cuda_version(&self) -> c_int {
        let (major, minor) = self.config.unwrap_or_default().ptx_version;
        ((major + 4) * 1000 + minor * 10) as c_int
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(flags: u32) -> Status {
    entry("cuInit", |driver| {
        if flags != 0 {
            return Err(Status::INVALID_VALUE.because(format!("the flags are {flags}, not 0")));
        }
        driver.initialise()
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Status {
    entry("cuDriverGetVersion", |driver| {
        // SAFETY: `version` is null or writable, by the convention of the driver API.
        let version = unsafe { Out::new(version) }?;
        version.set(driver.cuda_version());
        Ok(())
    })
}

/// The tables of functions that CUDA's own libraries ask for are not there. Those that ask go on
/// without them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetExportTable(
    table: *mut *const c_void,
    id: *const [u8; 16],
) -> Status {
    bare("cuGetExportTable", || {
        // SAFETY: `table` is null or writable and `id` null or readable, by the convention of the
        // driver API.
        let (table, id) = unsafe { (Out::new(table)?, read(id)?) };
        table.set(std::ptr::null());
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        Err(Status::NOT_FOUND.because(format!("the emulator has no table {id} of functions")))
    })
}

/// Profiling is accepted, as programs switch it around what they want to see; nothing is profiled.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuProfilerStart() -> Status {
    initialised("cuProfilerStart", |_| Ok(()))
}

/// See `cuProfilerStart`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuProfilerStop() -> Status {
    initialised("cuProfilerStop", |_| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::device::cuDeviceGetCount;
    use crate::driver::memory::cuMemAlloc_v2;

    #[test]
    fn nothing_works_before_the_driver_is_initialised() {
        let (mut count, mut address) = (0, 0);
        // SAFETY: the results have places.
        unsafe {
            assert_eq!(cuDeviceGetCount(&mut count), Status::NOT_INITIALIZED);
            assert_eq!(cuMemAlloc_v2(&mut address, 16), Status::NOT_INITIALIZED);
            assert_eq!(cuDriverGetVersion(&mut count), Status::SUCCESS);
        }
        assert!(count >= 13000, "{count}");
    }
}
