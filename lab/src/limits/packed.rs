//! The kernels for packed weights: no spills, and main loops that decode ahead.

use fused_dora_cuda_tools::Tool;

use super::code::ARCHITECTURE;
use super::line::{Group, Limit, Line};
use super::ptxas;
use super::sass::read;
use crate::compile::Compiled;

/// The kernels whose main loop decodes 4 bits ahead of the tensor cores, in bf16, and the instructions of a
/// warp's k-step there: what they may be at most. Of large tiles the goal is [`GOAL`].
const KERNELS: [(&str, f64); 4] = [
    ("forward_bf16", 260.0),
    ("backward_bf16", 270.0),
    ("forward_medium_bf16", 222.0),
    ("backward_medium_bf16", 232.0),
];

/// On A100 a warp's 64 products of a k-step take 512 clocks of a scheduler's tensor cores, and two warps
/// share it: more instructions than this would be issued in more time than that.
const GOAL: f64 = 256.0;

/// The lines.
pub fn lines(
    nvdisasm: &Tool,
    compiled: &[Compiled],
    architectures: &[&str],
) -> Result<Vec<Line>, String> {
    let mut lines = ptxas::spills(compiled, architectures, "packed weights, ")?;
    let group = Group::MachineCode;
    for file in compiled
        .iter()
        .filter(|file| file.architecture == ARCHITECTURE && file.dtype == Some("bf16"))
    {
        let output = nvdisasm.run(&["--print-code"], &file.cubin)?;
        for code in read(&String::from_utf8_lossy(&output.stdout)) {
            let Some((kernel, most)) = KERNELS.iter().find(|known| known.0 == code.kernel) else {
                continue;
            };
            // One loop for NF4, and one for FP4.
            let loops = code.main_loops();
            let ahead: Vec<_> = loops.iter().filter(|mix| mix.decodes_ahead()).collect();
            let what = format!("packed weights, {kernel}: main loops that decode ahead");
            lines.push(Line::new(group, what, ahead.len() as f64, Limit::AtLeast(2.0)));
            let instructions = ahead.iter().map(|mix| mix.instructions).max().unwrap_or(usize::MAX);
            let what = format!("packed weights, {kernel}: instructions of a warp's k-step");
            let limit = match *most {
                most if most > GOAL => Limit::Toward { goal: GOAL, most },
                most => Limit::AtMost(most),
            };
            lines.push(Line::new(group, what, instructions as f64, limit));
            let narrow = ahead.iter().map(|mix| mix.narrow).max().unwrap_or(usize::MAX);
            let what = format!(
                "packed weights, {kernel}: global accesses of these loops other than of 16 bytes, \
                 which are scales"
            );
            lines.push(Line::new(group, what, narrow as f64, Limit::AtMost(3.0)));
        }
    }
    Ok(lines)
}
