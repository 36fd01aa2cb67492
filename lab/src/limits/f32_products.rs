//! f32 products: three of tf32 numbers on tensor cores, next to FMAs.

use std::error::Error;

use cuda_emulator::MeasuredLaunch;
use fused_dora::{F32Math, Norm};

use super::layer::{Case, Device};
use super::line::{Group, Limit, Line};

/// The plain layer that is counted, so that all is the main product.
const COUNTED: Case = Case { tokens: 256, inputs: 1024, outputs: 1024, rank: 0, norm: Norm::None };

const MOST_CONFLICTS: f64 = 0.02;

/// Products of a 16×8×8 tile: of both factors' two parts, except both small ones.
const PRODUCTS: usize = 3;

/// The lines.
pub fn lines(device: &Device) -> Result<Vec<Line>, Box<dyn Error>> {
    let step = device.f32_step(&COUNTED, F32Math::Tf32x3)?;
    let mut lines = Vec::new();
    for (op, launches) in [("forward", &step.forward), ("backward", &step.backward)] {
        let counts = &only(op, launches)?.counters;
        let Case { tokens, inputs, outputs, .. } = COUNTED;
        let mut line = |what: &str, value, limit| {
            let what = format!("{op} (f32 as tf32, T={tokens} I={inputs} O={outputs} r=0): {what}");
            lines.push(Line::new(Group::Counters, what, value, Limit::AtMost(limit)));
        };
        let least = counts.least_shared_wavefronts;
        let excess = (counts.shared_wavefronts - least) as f64 / least.max(1) as f64;
        line("shared-memory wavefronts beyond the fewest", excess, MOST_CONFLICTS);
        let least = PRODUCTS * tokens * inputs * outputs / (16 * 8 * 8);
        line("mma over the fewest", counts.mma as f64 / least as f64, 1.0);
    }
    Ok(lines)
}

fn only<'a>(op: &str, launches: &'a [MeasuredLaunch]) -> Result<&'a MeasuredLaunch, String> {
    match launches {
        [launch] => Ok(launch),
        _ => Err(format!("{op}: {} launches instead of one", launches.len())),
    }
}
