//! What the main loops of forward and dX are made of, and that no kernel touches local memory.

use std::path::Path;

use super::compile::Compiled;
use super::line::{Group, Limit, Line};
use super::nvdisasm::Nvdisasm;
use super::sass::{Code, Mix, read};

/// The kernels whose main loops are held to limits, on this architecture.
const KERNELS: [&str; 4] =
    ["forward_bf16", "forward_f16", "backward_input_bf16", "backward_input_f16"];
const ARCHITECTURE: &str = "sm_80";

const LEAST_ALIGNED: f64 = 0.48;
const LEAST_RAGGED: f64 = 0.43;
const MOST_LDSM_PER_HMMA: f64 = 0.25;

/// One main loop, for the table.
pub struct Loop {
    pub kernel: String,
    pub architecture: String,
    pub mix: Mix,
}

/// Disassembles all files for `sm_80`, and those with the main kernels for the others.
pub fn disassemble(
    nvdisasm: &Nvdisasm,
    compiled: &[Compiled],
    done: impl Fn(),
) -> Result<Vec<(String, Code)>, String> {
    let mut codes = Vec::new();
    for file in compiled {
        let main = file.dtype == Some("bf16")
            && file.resources.iter().any(|r| KERNELS.contains(&r.kernel.as_str()));
        if file.architecture == ARCHITECTURE || main {
            let text = nvdisasm.disassemble(Path::new(&file.cubin))?;
            let found = read(&text);
            if found.len() != file.resources.len() {
                return Err(format!(
                    "{} for {}: ptxas reports {} kernels and nvdisasm prints {}",
                    file.file,
                    file.architecture,
                    file.resources.len(),
                    found.len()
                ));
            }
            codes.extend(found.into_iter().map(|code| (file.architecture.to_owned(), code)));
        }
        done();
    }
    Ok(codes)
}

/// All main loops of the main kernels.
pub fn loops(codes: &[(String, Code)]) -> Vec<Loop> {
    let mut loops = Vec::new();
    for (architecture, code) in codes {
        if KERNELS.contains(&code.kernel.as_str()) {
            loops.extend(code.main_loops().into_iter().map(|mix| Loop {
                kernel: code.kernel.clone(),
                architecture: architecture.clone(),
                mix,
            }));
        }
    }
    let place = |l: &Loop| {
        let architecture = l.architecture.clone();
        (architecture.len(), architecture, KERNELS.iter().position(|known| *known == l.kernel))
    };
    loops.sort_by_key(place);
    loops
}

/// The lines.
pub fn lines(codes: &[(String, Code)], loops: &[Loop]) -> Vec<Line> {
    let group = Group::MachineCode;
    let mut lines = Vec::new();
    for kernel in KERNELS {
        let of_kernel: Vec<Mix> = loops
            .iter()
            .filter(|l| l.kernel == kernel && l.architecture == ARCHITECTURE)
            .map(|l| l.mix)
            // Without asynchronous copies: the path for rows that are not aligned.
            .filter(|mix| mix.ldgsts > 0)
            .collect();
        let aligned = of_kernel.first().copied().unwrap_or_default();
        let share = |mix: &Mix| mix.hmma_share();
        let what = format!("{kernel}: HMMA of the aligned loop's instructions");
        lines.push(Line::new(group, what, share(&aligned), Limit::AtLeast(LEAST_ALIGNED)));
        let (what, ragged) = match of_kernel.last() {
            Some(last) if of_kernel.len() > 1 => ("HMMA of the ragged loop's", *last),
            _ => ("HMMA of the ragged loop's (the aligned one)", aligned),
        };
        let what = format!("{kernel}: {what} instructions");
        lines.push(Line::new(group, what, share(&ragged), Limit::AtLeast(LEAST_RAGGED)));
        let most = of_kernel.iter().map(Mix::ldsm_per_hmma).fold(0.0, f64::max);
        let what = format!("{kernel}: LDSM per HMMA");
        lines.push(Line::new(group, what, most, Limit::AtMost(MOST_LDSM_PER_HMMA)));
        let what = format!("{kernel}: global accesses of the aligned loop other than of 16 bytes");
        lines.push(Line::new(group, what, aligned.narrow as f64, Limit::AtMost(0.0)));
    }
    let of_architecture = || codes.iter().filter(|(name, _)| name == ARCHITECTURE);
    let local = of_architecture().map(|(_, code)| code.mix().local).sum::<usize>();
    let what = format!("LDL and STL in all {} kernels", of_architecture().count());
    lines.push(Line::new(group, what, local as f64, Limit::AtMost(0.0)));
    lines
}
