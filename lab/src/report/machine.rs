//! The machine that the results are of.

use std::fs;
use std::process::Command;

use fused_dora::cudarc::driver::sys;
use fused_dora::open_device;
use serde::{Deserialize, Serialize};

/// The commit that a folder of executables was built from.
const ENV_COMMIT: &str = "FUSED_DORA_COMMIT";

/// What it is, as far as it reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub device: String,
    /// The version of NVIDIA's driver.
    pub driver: Option<String>,
    /// The newest CUDA version that the driver supports.
    pub cuda: Option<String>,
    pub cpu: Option<String>,
    pub os: Option<String>,
    /// The commit that was measured, and whether files differed from it.
    pub commit: Option<String>,
}

impl Machine {
    /// This one.
    pub fn here(device: &str, emulated: bool) -> Self {
        let of_gpu = |value: fn() -> Option<String>| if emulated { None } else { value() };
        Self {
            device: device.to_owned(),
            driver: of_gpu(driver),
            cuda: of_gpu(cuda),
            cpu: cpu(),
            os: os(),
            commit: commit(),
        }
    }

    /// What is known, each with its name.
    pub fn facts(&self) -> Vec<(&'static str, &str)> {
        let known = [
            ("driver", &self.driver),
            ("CUDA", &self.cuda),
            ("processor", &self.cpu),
            ("operating system", &self.os),
            ("commit", &self.commit),
        ];
        let known = known.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        [("device", self.device.as_str())].into_iter().chain(known).collect()
    }
}

fn driver() -> Option<String> {
    let query = ["--query-gpu=driver_version", "--format=csv,noheader", "--id=0"];
    output("nvidia-smi", &query)
}

fn cuda() -> Option<String> {
    // Without a driver, cudarc would panic.
    open_device(0).ok()?;
    let mut version = 0;
    // SAFETY: the pointer is valid for the call.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().ok()?;
    Some(format!("{}.{}", version / 1000, version % 1000 / 10))
}

fn cpu() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let models = text.lines().filter_map(|line| line.strip_prefix("model name"));
    let mut models = models.filter_map(|rest| Some(rest.split_once(':')?.1.trim()));
    let name = models.next()?;
    Some(format!("{name}, {} threads", 1 + models.count()))
}

fn os() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    let name = name.trim_matches('"').to_owned();
    match output("uname", &["-sr"]) {
        Some(kernel) => Some(format!("{name}, {kernel}")),
        None => Some(name),
    }
}

/// As the environment has it, where the report is made away from the repository.
fn commit() -> Option<String> {
    if let Ok(commit) = std::env::var(ENV_COMMIT) {
        return Some(commit).filter(|commit| !commit.is_empty());
    }
    let commit = output("git", &["rev-parse", "HEAD"])?;
    let changed = output("git", &["status", "--porcelain", "--untracked-files=no"]).is_some();
    Some(if changed { format!("{commit} with changes") } else { commit })
}

/// What a program prints, if it succeeds and prints something.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let folder = env!("CARGO_MANIFEST_DIR");
    let output = Command::new(program).args(arguments).current_dir(folder).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
