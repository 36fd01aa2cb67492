//! What the emulator offers in addition to the driver API: counters, fault reports, settings.
//!
//! These functions are exported with C names, so that any program can find them in the library.
//! Rust programs reach them through [`crate::client::Emulator`].

use std::ffi::c_char;

use crate::{Accumulator, Config, Counters, MeasuredLaunch};

use super::entry::{Out, entry, last_failure, peek, read, write_text};
use super::init::config_from_environment;
use super::state::{Context, Driver, Primary};
use super::status::{Result, Status};

/// What a program and the library must agree on before they exchange structures: the version of
/// this crate and the sizes of [`LaunchFacts`], which holds [`Counters`], and of [`Settings`].
pub(crate) const INTERFACE: u64 = {
    let version = env!("CARGO_PKG_VERSION").as_bytes();
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut index = 0;
    while index < version.len() {
        hash = (hash ^ version[index] as u64).wrapping_mul(0x0100_0000_01b3);
        index += 1;
    }
    hash ^ (size_of::<LaunchFacts>() as u64) << 16 ^ size_of::<Settings>() as u64
};

/// Settings for the contexts to come; a zero leaves what is set.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settings {
    /// Threads of the host that run blocks.
    pub(crate) threads: u64,
    /// Seed of the warp order; `has_seed` says whether it counts.
    pub(crate) seed: u64,
    pub(crate) has_seed: u32,
    /// 1, 2 or 3: sequential, exact, truncate.
    pub(crate) accumulator: u32,
    /// Warp instructions after which a block is taken for stuck.
    pub(crate) watchdog: u64,
    /// 1 or 2: without or with the sanitizer.
    pub(crate) sanitizer: u32,
    /// 1 or 2: approximations as exact as can be, or with errors.
    pub(crate) jitter: u32,
    /// 1 or 2: without or with measuring.
    pub(crate) measure: u32,
    /// 1 or 2: without or with races of writes of one value.
    pub(crate) same_value_writes: u32,
}

/// What was measured of one launch, without the kernel's name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LaunchFacts {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) static_shared: u32,
    pub(crate) dynamic_shared: u32,
    pub(crate) counters: Counters,
}

/// So many devices have addresses of their own.
pub(super) const MOST_DEVICES: usize = 8;

/// The numbers of the accumulators in [`Settings`].
pub(crate) const ACCUMULATORS: [(u32, Accumulator); 3] =
    [(1, Accumulator::Sequential), (2, Accumulator::ExactF64), (3, Accumulator::AlignedTruncate)];

impl Driver {
    /// Notes that the host waited for the device.
    pub(super) fn count_synchronisation(&mut self) {
        self.counted.synchronizations += 1;
    }

    /// Keeps what a context counted beyond its end.
    pub(super) fn retire(&mut self, context: &Context) {
        self.counted += context.device.counters();
        self.launches.extend(context.device.take_launches());
    }

    /// What was measured of the launches so far, those that wait in streams included.
    fn launches(&mut self) -> &mut Vec<MeasuredLaunch> {
        self.drain_all();
        for (_, context) in self.contexts.iter() {
            self.launches.extend(context.device.take_launches());
        }
        &mut self.launches
    }

    fn counters(&mut self) -> Counters {
        self.drain_all();
        let mut total = self.counted;
        for (_, context) in self.contexts.iter() {
            total += context.device.counters();
        }
        total
    }

    fn configure(&mut self, settings: Settings) -> Result {
        if self.contexts.iter().next().is_some() {
            let reason = "settings hold for contexts to come, and there is one already";
            return Err(Status::ILLEGAL_STATE.because(reason));
        }
        let mut config: Config = match self.config {
            Some(config) => config,
            None => config_from_environment()?,
        };
        if let Ok(threads @ 1..) = usize::try_from(settings.threads) {
            config.threads = threads;
        }
        if settings.has_seed != 0 {
            config.seed = settings.seed;
        }
        if settings.watchdog != 0 {
            config.watchdog = settings.watchdog;
        }
        if settings.sanitizer != 0 {
            config.sanitizer = settings.sanitizer == 2;
        }
        if settings.jitter != 0 {
            config.jitter = settings.jitter == 2;
        }
        if settings.measure != 0 {
            config.measure = settings.measure == 2;
        }
        if settings.same_value_writes != 0 {
            config.same_value_writes = settings.same_value_writes == 2;
        }
        if settings.accumulator != 0 {
            let known = ACCUMULATORS.iter().find(|entry| entry.0 == settings.accumulator);
            config.accumulator = known.map(|entry| entry.1).ok_or_else(|| {
                let reason = format!("{} is not an accumulator", settings.accumulator);
                Status::INVALID_VALUE.because(reason)
            })?;
        }
        self.config = Some(config);
        Ok(())
    }

    /// Lets there be as many devices, all of one profile.
    pub(super) fn provide_devices(&mut self, count: usize) -> Result {
        if count == self.primaries.len() {
            return Ok(());
        }
        if self.contexts.iter().next().is_some() {
            let reason = "devices come and go before there is a context, and there is one already";
            return Err(Status::ILLEGAL_STATE.because(reason));
        }
        if !(1..=MOST_DEVICES).contains(&count) {
            let reason = format!("{count} devices: there can be 1 to {MOST_DEVICES}");
            return Err(Status::INVALID_VALUE.because(reason));
        }
        self.primaries.resize(count, Primary::default());
        Ok(())
    }

    /// Ends every context and frees all memory.
    fn reset(&mut self) {
        let contexts: Vec<u64> = self.contexts.iter().map(|(&handle, _)| handle).collect();
        for context in contexts {
            self.destroy_context(context);
        }
        self.primaries.iter_mut().for_each(|primary| primary.users = 0);
        self.last_fault.clear();
    }
}

/// The number that shows whether a program and the library fit each other.
#[unsafe(no_mangle)]
pub extern "C" fn cudaEmulatorInterface() -> u64 {
    INTERFACE
}

/// Runs the work that waits in the streams, and writes what was counted since the process began or
/// the counters were reset.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEmulatorGetCounters(counters: *mut Counters) -> Status {
    entry("cudaEmulatorGetCounters", |driver| {
        // SAFETY: `counters` is null or writable, by the convention of the driver API.
        let counters = unsafe { Out::new(counters) }?;
        let now = driver.counters();
        counters.set(now - driver.counted_before);
        Ok(())
    })
}

/// Writes what was measured of a launch, by its place in the order of launches since the process
/// began or the counters were reset, and the kernel's name as `cudaEmulatorLastFault` does; returns
/// the length of the name, 0 behind the last launch. The work that waits in the streams runs
/// before.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cudaEmulatorGetLaunch(
    index: usize,
    facts: *mut LaunchFacts,
    name: *mut c_char,
    size: usize,
) -> usize {
    let mut length = 0;
    entry("cudaEmulatorGetLaunch", |driver| {
        // SAFETY: `facts` is null or writable, by the convention of the driver API.
        let facts = unsafe { Out::new(facts) }?;
        let Some(launch) = driver.launches().get(index) else { return Ok(()) };
        let MeasuredLaunch { ref kernel, grid, block, static_shared, dynamic_shared, counters } =
            *launch;
        facts.set(LaunchFacts { grid, block, static_shared, dynamic_shared, counters });
        // SAFETY: the buffer is null or has `size` bytes, by the convention of the driver API.
        length = unsafe { write_text(kernel, name, size) };
        Ok(())
    });
    length
}

/// Lets the counters start from zero, and forgets the launches that were measured, after running
/// the work that waits in the streams.
#[unsafe(no_mangle)]
pub extern "C" fn cudaEmulatorResetCounters() -> Status {
    entry("cudaEmulatorResetCounters", |driver| {
        driver.counted_before = driver.counters();
        driver.launches().clear();
        Ok(())
    })
}

/// Writes the report of the latest fault, cut to fit, and returns its whole length without the NUL;
/// 0 where nothing has failed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEmulatorLastFault(buffer: *mut c_char, size: usize) -> usize {
    let report = peek(|driver| driver.last_fault.clone());
    // SAFETY: the buffer is null or has `size` bytes, by the convention of the driver API.
    unsafe { write_text(&report, buffer, size) }
}

/// Writes why the latest failing driver call failed, as `cudaEmulatorLastFault` does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEmulatorLastError(buffer: *mut c_char, size: usize) -> usize {
    // SAFETY: the buffer is null or has `size` bytes, by the convention of the driver API.
    unsafe { write_text(&last_failure(), buffer, size) }
}

/// Writes the name of the device, as `cudaEmulatorLastFault` does; nothing before `cuInit`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEmulatorDeviceName(buffer: *mut c_char, size: usize) -> usize {
    let name = peek(|driver| {
        driver.platform().map_or(String::new(), |platform| platform.profile.name.to_owned())
    });
    // SAFETY: the buffer is null or has `size` bytes, by the convention of the driver API.
    unsafe { write_text(&name, buffer, size) }
}

/// Ends every context and frees all memory of the device. Handles and device addresses from before
/// are void; page-locked host memory stays.
#[unsafe(no_mangle)]
pub extern "C" fn cudaEmulatorReset() -> Status {
    entry("cudaEmulatorReset", |driver| {
        driver.reset();
        Ok(())
    })
}

/// Sets what contexts to come are made with. Fails where there is a context already.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cudaEmulatorSetConfig(settings: *const Settings) -> Status {
    entry("cudaEmulatorSetConfig", |driver| {
        // SAFETY: `settings` is null or readable, by the convention of the driver API.
        driver.configure(unsafe { read(settings) }?)
    })
}

/// Sets how many devices there are. Fails where there is a context already.
#[unsafe(no_mangle)]
pub extern "C" fn cudaEmulatorSetDevices(count: usize) -> Status {
    entry("cudaEmulatorSetDevices", |driver| {
        driver.platform()?;
        driver.provide_devices(count)
    })
}
