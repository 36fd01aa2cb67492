//! `cargo xtask gpu-report`: the folder of `gpu-bundle`, run on this machine's GPU.

use std::error::Error as _;
use std::ffi::{c_char, c_int};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use libloading::Library;

use crate::Failure;
use crate::gpu_bundle::{CUBINS, Options, gpu_bundle};
use crate::steps::{run, target_folder, workspace};

/// The names of the CUDA driver's library.
const DRIVERS: &[&str] =
    if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };

/// What distinguishes the library of the emulated device from a driver.
const EMULATOR: &[u8] = b"cudaEmulatorInterface";

/// The minutes that the folder may run.
const MINUTES: &str = "30";

/// Builds the folder of `gpu-bundle`, and runs it on the first GPU.
pub(crate) fn gpu_report() -> Result<(), Failure> {
    let gpu = gpu(DRIVERS)?;
    println!("{gpu}");
    let (out, glibc) = (target_folder().join("gpu-report"), None);
    let options = Options { out, glibc, cubins: CUBINS.to_owned() };
    gpu_bundle(&options)?;
    let results = workspace().join("benches/results").join(folder_name(&gpu, today()));
    let mut script = Command::new("bash");
    script.arg(options.out.join("run.sh")).args(["--minutes", MINUTES, "--out"]).arg(&results);
    run("run.sh", &mut script)?;
    println!("==> {}: please look it over, and commit it", results.display());
    Ok(())
}

/// The name of the first GPU behind the first of the drivers that there is.
fn gpu(drivers: &[&str]) -> Result<String, Failure> {
    let mut tried = Vec::new();
    for &name in drivers {
        // SAFETY: the CUDA driver's initialisers have no preconditions.
        let found = match unsafe { Library::new(name) } {
            Err(error) => Err(reason(&error)),
            Ok(driver) => first_device(&driver).map_err(|reason| format!("{name}: {reason}")),
        };
        match found {
            Ok(device) => return Ok(device),
            Err(reason) => tried.push(reason),
        }
    }
    Err(Failure::new(format!(
        "gpu-report measures a GPU, and there is none here ({}): run it on a machine with an \
         NVIDIA GPU of compute capability 8.0 or later and its driver; without one, `cargo bench` \
         counts on the emulated device",
        tried.join("; ")
    )))
}

/// The dynamic loader's own words, which the error's message leaves to its source.
fn reason(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| source.to_string())
}

fn first_device(driver: &Library) -> Result<String, String> {
    type Init = unsafe extern "C" fn(u32) -> c_int;
    type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
    type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    // SAFETY: the symbol is not called.
    if unsafe { driver.get::<Init>(EMULATOR) }.is_ok() {
        return Err("it is the emulated device's library".to_owned());
    }
    let missing = |error: libloading::Error| reason(&error);
    let (mut count, mut name) = (0, [0_u8; 256]);
    // SAFETY: the signatures are those of cuda.h, and the results have places of the sizes passed.
    let (init, counted, named) = unsafe {
        let init: Init = *driver.get(b"cuInit").map_err(missing)?;
        let get_count: Count = *driver.get(b"cuDeviceGetCount").map_err(missing)?;
        let get_name: Name = *driver.get(b"cuDeviceGetName").map_err(missing)?;
        let init = init(0);
        let counted = if init == 0 { get_count(&mut count) } else { 0 };
        let any = init == 0 && counted == 0 && count > 0;
        let length = name.len() as c_int;
        let named = if any { get_name(name.as_mut_ptr().cast(), length, 0) } else { 0 };
        (init, counted, named)
    };
    for (call, code) in
        [("cuInit", init), ("cuDeviceGetCount", counted), ("cuDeviceGetName", named)]
    {
        if code != 0 {
            return Err(format!("{call} returned {code}"));
        }
    }
    if count < 1 {
        return Err("the driver has no device".to_owned());
    }
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// `nvidia-rtx-4090-2026-01-31` of a GPU's name and a date.
fn folder_name(gpu: &str, [year, month, day]: [u64; 3]) -> String {
    let lower = gpu.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let name = words.collect::<Vec<_>>().join("-");
    format!("{name}-{year:04}-{month:02}-{day:02}")
}

/// Year, month and day, in UTC.
fn today() -> [u64; 3] {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    date(since.as_secs() / (24 * 60 * 60))
}

/// The date so many days after 1970-01-01.
fn date(days: u64) -> [u64; 3] {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in months {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    [year, month, left + 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_is_refused() {
        let failure = gpu(&["libcuda-of-no-machine.so"]).expect_err("no such library");
        assert_eq!(failure.code, 1);
        for expected in ["libcuda-of-no-machine.so", "there is none here", "cargo bench"] {
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
    }

    #[test]
    fn folders_are_named_by_gpu_and_day() {
        let name = folder_name("NVIDIA A100-SXM4-80GB (MIG 1g)", [2026, 3, 9]);
        assert_eq!(name, "nvidia-a100-sxm4-80gb-mig-1g-2026-03-09");
    }

    #[test]
    fn days_become_dates() {
        for (days, expected) in [
            (0, [1970, 1, 1]),
            (58, [1970, 2, 28]),
            (59, [1970, 3, 1]),
            (11_016, [2000, 2, 29]),
            (11_017, [2000, 3, 1]),
            (19_722, [2023, 12, 31]),
            (20_513, [2026, 3, 1]),
        ] {
            assert_eq!(date(days), expected, "{days}");
        }
    }
}
