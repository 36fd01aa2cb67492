//! What a step does, against what it must do.

use std::error::Error;

use cuda_emulator::MeasuredLaunch;
use fused_dora::{DoraSpec, Norm, forward};

use super::layer::{Case, Device};
use super::line::{Group, Limit, Line};
use super::scale::{Amounts, Law};
use super::work::{Kernel, compulsory, compulsory_of_op, least_mma};

/// The layer whose step is counted.
const COUNTED: [usize; 3] = [2048, 1024, 1024];
/// The layer that counts are scaled to: (T, I, O).
pub const SCALED: [usize; 3] = [8192, 4096, 4096];
pub const RANK: usize = 16;
pub const NORMS: [Norm; 2] = [Norm::Output, Norm::Input];

const MOST_CONFLICTS: f64 = 0.02;
const MOST_DRAM: f64 = 1.02;
const MOST_L2: f64 = 1.05;

const MAIN: [Kernel; 2] = [Kernel::Forward, Kernel::BackwardInput];

/// An op of forward and backward, and what it computes, however many launches that takes.
const OPS: [(&str, &[Kernel]); 3] = [
    ("forward", &[Kernel::ForwardLowRank, Kernel::Forward]),
    ("backward_adapter", &[Kernel::BackwardAdapter]),
    ("backward_input", &[Kernel::BackwardInput, Kernel::BackwardInputLoraA]),
];

/// Bytes of an element of x, W and y.
const ELEMENT: u64 = 2;

pub fn axis(norm: Norm) -> &'static str {
    match norm {
        Norm::None => "no norm",
        Norm::Input => "norm axis input",
        Norm::Output => "norm axis output",
    }
}

/// The lines of one norm axis, of which `law` scales.
pub fn lines(device: &Device, law: &Law) -> Result<Vec<Line>, Box<dyn Error>> {
    let group = Group::Counters;
    let norm = law.norm;
    let [tokens, inputs, outputs] = COUNTED;
    let case = Case { tokens, inputs, outputs, rank: law.rank, norm };
    let spec = case.spec()?;
    let step = device.step(&case, true)?;
    let about = format!("{}, T={tokens} I={inputs} O={outputs} r={}", axis(norm), law.rank);
    let mut lines = Vec::new();

    let of_kernel = |kernel: Kernel| {
        let mut launches = step.all().filter(move |l| Kernel::of_entry(&l.kernel) == Some(kernel));
        launches.next().ok_or_else(|| format!("{} was not launched", kernel.name()))
    };
    let excess = |launches: &[&MeasuredLaunch]| {
        let sum =
            |count: fn(&MeasuredLaunch) -> u64| launches.iter().map(|l| count(l)).sum::<u64>();
        let least = sum(|l| l.counters.least_shared_wavefronts);
        let all = sum(|l| l.counters.shared_wavefronts);
        (all - least) as f64 / least.max(1) as f64
    };
    for kernel in MAIN {
        let what =
            format!("{} ({about}): shared-memory wavefronts beyond the fewest", kernel.name());
        let value = excess(&[of_kernel(kernel)?]);
        lines.push(Line::new(group, what, value, Limit::AtMost(MOST_CONFLICTS)));
    }
    let all: Vec<_> = step.all().collect();
    let what = format!(
        "prepare, forward, backward and norm_gradient ({about}): shared-memory wavefronts beyond \
         the fewest"
    );
    lines.push(Line::new(group, what, excess(&all), Limit::AtMost(MOST_CONFLICTS)));

    for (op, kernels) in OPS {
        let of_op =
            step.all().filter(|l| Kernel::of_entry(&l.kernel).is_some_and(|k| k.op() == op));
        let mma: u64 = of_op.map(|l| l.counters.mma).sum();
        let least: u64 = kernels.iter().map(|&kernel| least_mma(kernel, &spec, tokens)).sum();
        let what = format!("{op} ({about}): mma over the fewest");
        let value = mma as f64 / least.max(1) as f64;
        lines.push(Line::new(group, what, value, Limit::AtMost(1.0)));
    }

    let [tokens, inputs, outputs] = SCALED;
    let case = Case { tokens, inputs, outputs, rank: law.rank, norm };
    let spec = case.spec()?;
    let about = format!("{}, T={tokens} I={inputs} O={outputs} r={}", axis(norm), law.rank);
    let scaled = law.predict(SCALED, device.sm_count())?;
    for (kernel, amounts) in scaled.iter().filter(|(kernel, _)| MAIN.contains(kernel)) {
        let value = amounts.l2_bytes() as f64 / implied_l2(*kernel, &spec, tokens) as f64;
        let what = format!("{} ({about}): L2 bytes over those that tiles imply", kernel.name());
        lines.push(Line::new(group, what, value, Limit::AtMost(MOST_L2)));
    }
    for (op, kernels) in OPS {
        let of_op = scaled.iter().filter(|(kernel, _)| kernel.op() == op);
        let moved = |a: &Amounts| a.dram_bytes_read() + a.dram_bytes_written();
        let bytes: u64 = of_op.map(|(_, amounts)| moved(amounts)).sum();
        let (intermediate, named) = intermediate(op, &spec, tokens);
        let tensors: Vec<_> = kernels.iter().map(|&k| compulsory(k, &spec, tokens)).collect();
        let must = compulsory_of_op(tensors.iter().map(Vec::as_slice)) + intermediate;
        let what = format!("{op} ({about}): DRAM bytes over inputs and outputs once{named}");
        let value = bytes as f64 / must as f64;
        lines.push(Line::new(group, what, value, Limit::AtMost(MOST_DRAM)));
    }
    Ok(lines)
}

/// Bytes of the tensors beside its inputs and outputs that the design lets an op write once. (H and
/// P are outputs: the backward, and its second half, read them.)
pub fn intermediate(op: &str, spec: &DoraSpec, tokens: usize) -> (u64, &'static str) {
    let matrix = |features: usize| tokens as u64 * features as u64 * ELEMENT;
    match (op, spec.norm()) {
        ("forward", Norm::Input) => (matrix(spec.in_features()), ", and x∘g once"),
        ("backward_adapter", Norm::Output) => (matrix(spec.out_features()), ", and G once"),
        _ => (0, ""),
    }
}

/// Bytes between the multiprocessors and L2 of a main product: both operands' sides of each tile
/// at every k-step, and what the epilogue reads and writes of a tile.
fn implied_l2(kernel: Kernel, spec: &DoraSpec, tokens: usize) -> u64 {
    let [_, _, tile_m, tile_n, ..] = forward::GEOMETRY.map(|extent| extent as u64);
    let (t, i, o) = (tokens as u64, spec.in_features() as u64, spec.out_features() as u64);
    let ranks = spec.padded_rank() as u64;
    let on_input = spec.norm() == Norm::Input;
    let (rows, depth) = if kernel == Kernel::Forward { (o, i) } else { (i, o) };
    let tiles = t.div_ceil(tile_m) * rows.div_ceil(tile_n);
    let operands = tiles * (tile_m + tile_n) * (depth + ranks) * ELEMENT;
    // dm of norm axis input is a sum over x.
    let read = if on_input && kernel == Kernel::BackwardInput { t * i * ELEMENT } else { 0 };
    operands + t * rows * ELEMENT + read
}
