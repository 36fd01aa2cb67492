//! No spills, and the occupancy that the design names.

use std::collections::BTreeMap;

use cuda_emulator::profile::{self, Profile};

use super::line::{Group, Limit, Line};
use crate::compile::Compiled;
use crate::occupancy::Occupancy;

/// The architectures that code is compiled for, and the limits of a GPU of each.
pub const ARCHITECTURES: [(&str, Profile); 5] = [
    ("sm_80", profile::A100),
    // CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
    ("sm_86", Profile { max_blocks_per_sm: 16, ..profile::RTX4090 }),
    ("sm_89", profile::RTX4090),
    ("sm_90", profile::H100),
    ("sm_120", profile::RTX4090),
];

/// Threads of every kernel's block.
const THREADS: u32 = 128;

/// The fewest blocks of 128 threads on a multiprocessor, on all architectures and for all dtypes:
/// two for the products with 64×64 accumulators a warp, whose latency three or more stages of
/// asynchronous copies hide, and for what else is bound by registers; four for sums of partial
/// products, and eight for what only streams.
const DESIGN: [(&str, u32); 22] = [
    ("prepare", 2),
    ("prepare_balance", 8),
    ("forward", 2),
    ("forward_medium", 2),
    ("forward_tf32x3", 2),
    ("forward_medium_tf32x3", 2),
    ("forward_few_tokens", 2),
    ("forward_dropout", 2),
    ("forward_peft_dropout", 2),
    ("backward", 2),
    ("backward_medium", 2),
    ("backward_tf32x3", 2),
    ("backward_medium_tf32x3", 2),
    ("backward_few_tokens", 2),
    ("backward_dropout", 2),
    ("norm_gradient", 2),
    ("norm_gradient_finish", 4),
    ("gradient_norm", 8),
    ("adamw", 8),
    ("merge", 2),
    ("unmerge", 2),
    ("decompose", 2),
];

/// That nothing is spilled; `of` begins the lines.
pub fn spills(
    compiled: &[Compiled],
    architectures: &[&str],
    of: &str,
) -> Result<Vec<Line>, String> {
    let mut lines = Vec::new();
    for architecture in architectures {
        let of_architecture = compiled.iter().filter(|file| file.architecture == *architecture);
        let kernels: Vec<_> = of_architecture.flat_map(|file| &file.resources).collect();
        let bytes = |r: &crate::resources::Resources| {
            r.stack_bytes + r.spill_store_bytes + r.spill_load_bytes
        };
        let worst = kernels.iter().max_by_key(|r| bytes(r)).ok_or("no kernel was compiled")?;
        let mut what =
            format!("{of}{architecture}: bytes of stack and spills, most of {}", kernels.len());
        if bytes(worst) > 0 {
            what += &format!(" kernels ({})", worst.kernel);
        } else {
            what += " kernels";
        }
        lines.push(Line::new(Group::Resources, what, bytes(worst).into(), Limit::AtMost(0.0)));
    }
    Ok(lines)
}

/// The lines. `dynamic` is the shared memory that launches of a kernel of that name ask for.
pub fn lines(
    compiled: &[Compiled],
    architectures: &[&str],
    dynamic: &BTreeMap<String, u32>,
) -> Result<Vec<Line>, String> {
    let mut lines = spills(compiled, architectures, "")?;
    let group = Group::Resources;

    let mut fewest: BTreeMap<&str, (u32, String)> = BTreeMap::new();
    for file in compiled {
        let device = ARCHITECTURES.iter().find(|known| known.0 == file.architecture);
        let (_, device) = device.ok_or("an architecture without limits")?;
        for r in &file.resources {
            let name = r.kernel.rsplit_once('_').map_or(r.kernel.as_str(), |(name, _)| name);
            let shared = r.shared_bytes + dynamic.get(name).copied().unwrap_or(0);
            let blocks = Occupancy::new(device, THREADS, r.registers, shared).blocks();
            let about = format!("{} on {}, {} registers", r.kernel, r.architecture, r.registers);
            let entry = fewest.entry(name).or_insert((u32::MAX, String::new()));
            if blocks < entry.0 {
                *entry = (blocks, about);
            }
        }
    }
    for name in fewest.keys() {
        if DESIGN.iter().all(|(known, _)| known != name) {
            return Err(format!(
                "{name}: the design names no occupancy of it (DESIGN in ptxas.rs)"
            ));
        }
    }
    for (name, least) in DESIGN {
        // One that is gone needs no occupancy.
        let Some((blocks, about)) = fewest.get(name) else { continue };
        let what = format!("{name}: blocks per multiprocessor, fewest ({about})");
        lines.push(Line::new(group, what, (*blocks).into(), Limit::AtLeast(least.into())));
    }
    Ok(lines)
}
