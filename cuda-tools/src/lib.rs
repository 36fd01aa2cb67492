//! NVIDIA's command-line tools: where they are looked for, and how they are run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A tool, and where it comes from.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// The program's name.
    pub name: &'static str,
    /// The environment variable that names its file.
    pub variable: &'static str,
    /// NVIDIA's Python wheel that has it, as pip takes it.
    pub wheel: &'static str,
    /// Where the wheel keeps it.
    wheel_folder: &'static str,
}

/// The assembler, which makes a device's own code of PTX: that of the CUDA version whose NVRTC
/// compiles the kernels.
pub const PTXAS: Kind = Kind {
    name: "ptxas",
    variable: "FUSED_DORA_PTXAS",
    wheel: "nvidia-cuda-nvcc-cu12>=12.9,<13",
    wheel_folder: "nvidia/cuda_nvcc/bin",
};

/// The disassembler.
pub const NVDISASM: Kind = Kind {
    name: "nvdisasm",
    variable: "FUSED_DORA_NVDISASM",
    wheel: "nvidia-cuda-nvdisasm>=13,<14",
    wheel_folder: "nvidia/cu13/bin",
};

/// A tool that runs.
#[derive(Debug, Clone)]
pub struct Tool {
    kind: Kind,
    /// The program's file.
    pub path: PathBuf,
    /// Such as `13.0.85`.
    pub version: String,
}

impl Kind {
    /// The folder that its wheel is unpacked to.
    pub fn folder(&self, target: &Path) -> PathBuf {
        target.join(self.name)
    }

    /// The program's file in that folder.
    pub fn fetched(&self, target: &Path) -> PathBuf {
        self.folder(target).join(self.wheel_folder).join(self.file_name())
    }

    /// The first that runs: that of the environment variable, else one of `PATH`, of a CUDA
    /// toolkit, or the one that `cargo xtask limits` fetched to a target folder, which is looked for
    /// from a path below it.
    ///
    /// # Errors
    /// What was tried, and the remedy.
    pub fn find(&self, below_target: &Path) -> Result<Tool, String> {
        let variable =
            |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let candidates = match variable(self.variable) {
            // Named by hand: no other is a fair substitute.
            Some(path) => vec![path],
            None => {
                let toolkits = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(variable);
                let toolkits = toolkits.map(|root| root.join("bin").join(self.file_name()));
                let fetched = below_target.ancestors().map(|folder| self.fetched(folder));
                let fetched = fetched.filter(|path| path.is_file());
                [PathBuf::from(self.file_name())]
                    .into_iter()
                    .chain(toolkits)
                    .chain(fetched)
                    .collect()
            }
        };
        let mut tried = Vec::new();
        for path in candidates {
            match run(Command::new(&path).arg("--version")) {
                Ok(output) => {
                    let text = String::from_utf8_lossy(&output.stdout);
                    let mut words = text.split_whitespace();
                    let version = words.find_map(|word| word.strip_prefix('V')).unwrap_or("?");
                    let version = version.to_owned();
                    return Ok(Tool { kind: *self, path, version });
                }
                Err(reason) => tried.push(format!("{} ({reason})", path.display())),
            }
        }
        Err(format!(
            "no {} found (run `cargo xtask limits`, or set {}); tried: {}",
            self.name,
            self.variable,
            tried.join("; ")
        ))
    }

    fn file_name(&self) -> String {
        format!("{}{}", self.name, std::env::consts::EXE_SUFFIX)
    }
}

impl Tool {
    /// Runs the tool on one file.
    ///
    /// # Errors
    /// The tool's own words.
    pub fn run(&self, arguments: &[&str], file: &Path) -> Result<Output, String> {
        run(Command::new(&self.path).args(arguments).arg(file))
            .map_err(|error| format!("{} {}: {error}", self.kind.name, file.display()))
    }
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}
