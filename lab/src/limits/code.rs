//! What the main loops of forward and dX are made of, and that no kernel touches local memory.

use std::collections::BTreeMap;

use super::line::{Group, Limit, Line};
use super::sass::{Code, Mix, read};
use crate::compile::Compiled;
use fused_dora_cuda_tools::Tool;

/// The kernels whose main loops must meet limits, on this architecture.
const KERNELS: [&str; 4] = ["forward_bf16", "forward_f16", "backward_bf16", "backward_f16"];
/// Those that multiply f32 matrices as tf32 ones: in a k-step of eight, 32 16×8 tiles take three
/// products, four additions each, and 32 factors are split.
const SPLIT_KERNELS: [&str; 2] = ["forward_tf32x3_f32", "backward_tf32x3_f32"];
pub const ARCHITECTURE: &str = "sm_80";

const LEAST_ALIGNED: f64 = 0.48;
const LEAST_RAGGED: f64 = 0.43;
const LEAST_SPLIT: f64 = 0.26;
const MOST_LDSM_PER_HMMA: f64 = 0.25;

/// One main loop, for the table.
pub struct Loop {
    pub kernel: String,
    pub architecture: String,
    pub mix: Mix,
}

/// Disassembles all files for `sm_80`, and those with the main kernels for the others.
pub fn disassemble(
    nvdisasm: &Tool,
    compiled: &[Compiled],
    done: impl Fn(),
) -> Result<Vec<(String, Code)>, String> {
    let mut codes = Vec::new();
    for file in compiled {
        let main = file.dtype == Some("bf16")
            && file.resources.iter().any(|r| KERNELS.contains(&r.kernel.as_str()));
        if file.architecture == ARCHITECTURE || main {
            let output = nvdisasm.run(&["--print-code"], &file.cubin)?;
            let found = read(&String::from_utf8_lossy(&output.stdout));
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

/// The lines. `ragged` is how many times the instructions of a whole tile a ragged one executes, by
/// the kernel's name without its dtype.
pub fn lines(
    codes: &[(String, Code)],
    loops: &[Loop],
    ragged: &BTreeMap<String, f64>,
) -> Result<Vec<Line>, String> {
    let group = Group::MachineCode;
    let mut lines = Vec::new();
    let is_there = |kernel: &&str| loops.iter().any(|l| l.kernel == *kernel);
    for kernel in KERNELS.into_iter().filter(is_there) {
        let aligned = loops
            .iter()
            .filter(|l| l.kernel == kernel && l.architecture == ARCHITECTURE)
            .map(|l| l.mix)
            // Without asynchronous copies: the path for rows that are not aligned.
            .find(|mix| mix.ldgsts > 0)
            .unwrap_or_default();
        let share = aligned.hmma_share();
        let what = format!("{kernel}: HMMA of the main loop's instructions");
        lines.push(Line::new(group, what, share, Limit::AtLeast(LEAST_ALIGNED)));
        let name = kernel.rsplit_once('_').map_or(kernel, |(name, _dtype)| name);
        let times =
            ragged.get(name).ok_or_else(|| format!("{name}: no ragged tile was counted"))?;
        let what = format!("{kernel}: the same over {times:.3}, the instructions of ragged tiles");
        lines.push(Line::new(group, what, share / times, Limit::AtLeast(LEAST_RAGGED)));
        let what = format!("{kernel}: LDSM per HMMA of the main loop");
        let most = Limit::AtMost(MOST_LDSM_PER_HMMA);
        lines.push(Line::new(group, what, aligned.ldsm_per_hmma(), most));
        let what = format!("{kernel}: global accesses of the main loop other than of 16 bytes");
        lines.push(Line::new(group, what, aligned.narrow as f64, Limit::AtMost(0.0)));
    }
    let of_architecture = || codes.iter().filter(|(name, _)| name == ARCHITECTURE);
    for (_, code) in of_architecture() {
        if SPLIT_KERNELS.contains(&code.kernel.as_str()) {
            let share = code.main_loops().first().map_or(0.0, Mix::hmma_share);
            let what = format!("{}: HMMA of the instructions of a k-step", code.kernel);
            lines.push(Line::new(group, what, share, Limit::AtLeast(LEAST_SPLIT)));
        }
    }
    let local = of_architecture().map(|(_, code)| code.mix().local).sum::<usize>();
    let what = format!("LDL and STL in all {} kernels", of_architecture().count());
    lines.push(Line::new(group, what, local as f64, Limit::AtMost(0.0)));
    Ok(lines)
}
