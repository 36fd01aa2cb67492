//! What a compiled kernel takes of a multiprocessor, as ptxas reports it to NVRTC's log.

use serde::{Deserialize, Serialize};

/// One kernel's resources on one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub kernel: String,
    /// Such as `sm_80`.
    pub architecture: String,
    /// 32-bit registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
    /// Local memory of a thread, including spilled registers.
    pub stack_bytes: u32,
    /// Bytes of registers that a thread stores to local memory, by instructions in the code.
    pub spill_store_bytes: u32,
    /// Bytes that it loads back.
    pub spill_load_bytes: u32,
}

/// The options of the build script, changed to make a device's own code and a report.
pub fn options(architecture: &str) -> [String; 3] {
    let architecture = format!("--gpu-architecture={architecture}");
    [architecture, "--std=c++17".to_owned(), "--ptxas-options=-v".to_owned()]
}

/// Reads ptxas's words: for each kernel a line with its name, one with stack and spills, and one
/// with registers and shared memory.
pub fn read_log(log: &str, architecture: &str) -> Vec<Resources> {
    let mut kernels: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            let architecture = architecture.to_owned();
            kernels.push(Resources { kernel, architecture, ..Resources::default() });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        let before = |words: &str| number_before(line, words);
        if let Some(bytes) = before(" bytes stack frame") {
            kernel.stack_bytes = bytes;
            kernel.spill_store_bytes = before(" bytes spill stores").unwrap_or(0);
            kernel.spill_load_bytes = before(" bytes spill loads").unwrap_or(0);
        }
        if let Some(registers) = before(" registers") {
            kernel.registers = registers;
            kernel.shared_bytes = before(" bytes smem").unwrap_or(0);
        }
    }
    kernels
}

/// The number that stands right before some words.
fn number_before(line: &str, words: &str) -> Option<u32> {
    let (before, _) = line.split_once(words)?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
