//! nvdisasm, NVIDIA's disassembler: where it is looked for, and how it is run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The environment variable that names an nvdisasm.
pub const ENV_PROGRAM: &str = "FUSED_DORA_NVDISASM";

/// The program's file name.
pub const NAME: &str = if cfg!(windows) { "nvdisasm.exe" } else { "nvdisasm" };

/// Where NVIDIA's Python wheel keeps it.
pub const WHEEL_FOLDER: &str = "nvidia/cu13/bin";

/// An nvdisasm that runs.
pub struct Nvdisasm {
    /// The program's file.
    pub path: PathBuf,
    /// Such as `13.0.85`.
    pub version: String,
}

impl Nvdisasm {
    /// The first that runs: that of the environment variable, else one of `PATH`, of a CUDA
    /// toolkit, or `fetched` (where `cargo xtask limits` unpacks NVIDIA's wheel).
    ///
    /// # Errors
    /// What was tried, and the remedy.
    pub fn find(fetched: Option<&Path>) -> Result<Self, String> {
        let variable =
            |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let candidates = match variable(ENV_PROGRAM) {
            // Named by hand: no other is a fair substitute.
            Some(path) => vec![path],
            None => {
                let toolkits = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(variable);
                let toolkits = toolkits.map(|root| root.join("bin").join(NAME));
                let fetched = fetched.map(|folder| folder.join(WHEEL_FOLDER).join(NAME));
                [PathBuf::from(NAME)].into_iter().chain(toolkits).chain(fetched).collect()
            }
        };
        let mut tried = Vec::new();
        for path in candidates {
            match run(Command::new(&path).arg("--version")) {
                Ok(text) => {
                    let mut words = text.split_whitespace();
                    let version = words.find_map(|word| word.strip_prefix('V')).unwrap_or("?");
                    let version = version.to_owned();
                    return Ok(Self { path, version });
                }
                Err(reason) => tried.push(format!("{} ({reason})", path.display())),
            }
        }
        Err(format!(
            "no nvdisasm found (run `cargo xtask limits`, or set {ENV_PROGRAM}); tried: {}",
            tried.join("; ")
        ))
    }

    /// The text of a file of device code.
    ///
    /// # Errors
    /// nvdisasm's own words.
    pub fn disassemble(&self, cubin: &Path) -> Result<String, String> {
        let mut command = Command::new(&self.path);
        run(command.arg("--print-code").arg(cubin))
            .map_err(|error| format!("nvdisasm {}: {error}", cubin.display()))
    }
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

/// The folder of that name under a target directory, found from any path below that directory.
pub fn fetched_folder(below_target: &Path) -> Option<PathBuf> {
    let folders = below_target.ancestors().map(|folder| folder.join("nvdisasm"));
    folders.into_iter().find(|folder| fs::metadata(folder).is_ok_and(|found| found.is_dir()))
}
