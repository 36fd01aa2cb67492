//! What a step does, against what it must do.

use std::collections::BTreeMap;
use std::error::Error;

use cuda_emulator::MeasuredLaunch;
use fused_dora::{DoraSpec, Norm, Tiles};

use super::layer::{Case, Device};
use super::line::{Group, Limit, Line};
use super::scale::{Amounts, Law, MAIN};
use crate::work::{Kernel, compulsory, compulsory_of_op, least_mma};

/// The layer whose step is counted.
const COUNTED: [usize; 3] = [2048, 1024, 1024];
/// The layer that counts are scaled to: (T, I, O).
pub const SCALED: [usize; 3] = [8192, 4096, 4096];
pub const RANK: usize = 16;
pub const NORMS: [Norm; 2] = [Norm::Output, Norm::Input];

const MOST_CONFLICTS: f64 = 0.02;
const MOST_DRAM: f64 = 1.02;
const MOST_L2: f64 = 1.05;

/// Layers of few tokens, counted as they are: T, and I and O.
const FEW: [usize; 2] = [1, 64];
const FEATURES: usize = 4096;

/// What is launched for forward and for backward, in however many launches.
const OPS: [&str; 2] = ["forward", "backward"];

fn is_of(kernel: Kernel, op: &str) -> bool {
    kernel.op().starts_with(op)
}

/// Bytes of an element of x, W and y.
const ELEMENT: u64 = 2;

pub fn axis(norm: Norm) -> &'static str {
    match norm {
        Norm::None => "no norm",
        Norm::Input => "norm axis input",
        Norm::Output => "norm axis output",
    }
}

/// The lines of one norm axis, whose counts `law` scales.
pub fn lines(device: &Device, law: &Law) -> Result<Vec<Line>, Box<dyn Error>> {
    let group = Group::Counters;
    let norm = law.norm;
    let [tokens, inputs, outputs] = COUNTED;
    let case = Case { tokens, inputs, outputs, rank: law.rank, norm };
    let spec = case.spec()?;
    let step = device.step(&case, true)?;
    let about = format!("{}, T={tokens} I={inputs} O={outputs} r={}", axis(norm), law.rank);
    let mut lines = Vec::new();

    let excess = |launches: &[&MeasuredLaunch]| {
        let sum =
            |count: fn(&MeasuredLaunch) -> u64| launches.iter().map(|l| count(l)).sum::<u64>();
        let least = sum(|l| l.counters.least_shared_wavefronts);
        let all = sum(|l| l.counters.shared_wavefronts);
        (all - least) as f64 / least.max(1) as f64
    };
    for launch in step.all() {
        let kernel = Kernel::of_entry(&launch.kernel).map_or("", Kernel::name);
        if MAIN.contains(&kernel) {
            let what = format!("{kernel} ({about}): shared-memory wavefronts beyond the fewest");
            lines.push(Line::new(group, what, excess(&[launch]), Limit::AtMost(MOST_CONFLICTS)));
        }
    }
    let all: Vec<_> = step.all().collect();
    let what = format!(
        "prepare, forward, backward and norm_gradient ({about}): shared-memory wavefronts beyond \
         the fewest"
    );
    lines.push(Line::new(group, what, excess(&all), Limit::AtMost(MOST_CONFLICTS)));

    for op in OPS {
        let of_op = |l: &&MeasuredLaunch| Kernel::of_entry(&l.kernel).is_some_and(|k| is_of(k, op));
        let mma: u64 = step.all().filter(of_op).map(|l| l.counters.mma).sum();
        let kernels = Kernel::ALL.into_iter().filter(|&kernel| is_of(kernel, op));
        let least: u64 = kernels.map(|kernel| least_mma(kernel, &spec, tokens)).sum();
        let what = format!("{op} ({about}): mma over the fewest");
        let value = mma as f64 / least.max(1) as f64;
        lines.push(Line::new(group, what, value, Limit::AtMost(1.0)));
    }

    let [tokens, inputs, outputs] = SCALED;
    let case = Case { tokens, inputs, outputs, rank: law.rank, norm };
    let spec = case.spec()?;
    let about = format!("{}, T={tokens} I={inputs} O={outputs} r={}", axis(norm), law.rank);
    let scaled = law.predict(SCALED, device.sm_count())?;
    for op in OPS {
        let sum = |bytes: fn(&Amounts) -> u64| -> f64 {
            let of_op = scaled.iter().filter(|(kernel, _)| is_of(*kernel, op));
            of_op.map(|(_, amounts)| bytes(amounts) as f64).sum()
        };
        let value = sum(Amounts::l2_bytes) / implied_l2(op, &spec, tokens) as f64;
        let what = format!("{op} ({about}): L2 bytes over those that tiles imply");
        lines.push(Line::new(group, what, value, Limit::AtMost(MOST_L2)));

        let (intermediate, named) = intermediate(op, &spec, tokens);
        let kernels = Kernel::ALL.into_iter().filter(|&kernel| is_of(kernel, op));
        let tensors: Vec<_> = kernels.map(|kernel| compulsory(kernel, &spec, tokens)).collect();
        let must = compulsory_of_op(tensors.iter().map(Vec::as_slice)) + intermediate;
        let what = format!("{op} ({about}): DRAM bytes over inputs and outputs once{named}");
        let value =
            (sum(Amounts::dram_bytes_read) + sum(Amounts::dram_bytes_written)) / must as f64;
        lines.push(Line::new(group, what, value, Limit::AtMost(MOST_DRAM)));
    }
    Ok(lines)
}

/// The lines of few tokens, whose products go by W's bytes.
pub fn few_tokens(device: &Device, norm: Norm) -> Result<Vec<Line>, Box<dyn Error>> {
    let group = Group::Counters;
    let mut lines = Vec::new();
    for tokens in FEW {
        let (inputs, outputs) = (FEATURES, FEATURES);
        let case = Case { tokens, inputs, outputs, rank: RANK, norm };
        let spec = case.spec()?;
        let step = device.step_as_picked(&case)?;
        for (op, launches) in OPS.into_iter().zip([&step.forward, &step.backward]) {
            let about =
                format!("{op} ({}, T={tokens} I={inputs} O={outputs} r={RANK})", axis(norm));
            let [launch] = launches.as_slice() else {
                return Err(format!("{about}: {} launches", launches.len()).into());
            };
            let kernel = Kernel::of_entry(&launch.kernel).ok_or("no such kernel is known")?;
            let c = &launch.counters;
            let mma = c.mma as f64 / least_mma(kernel, &spec, tokens) as f64;
            let what = format!("{about}: mma over the fewest");
            lines.push(Line::new(group, what, mma, Limit::AtMost(1.0)));

            let tensors = compulsory(kernel, &spec, tokens);
            let (intermediate, named) = intermediate(op, &spec, tokens);
            let must = compulsory_of_op([tensors.as_slice()].into_iter()) + intermediate;
            let dram = 32 * (c.dram_sectors_read + c.dram_sectors_written);
            let what = format!("{about}: DRAM bytes over inputs and outputs once{named}");
            let over = dram as f64 / must as f64;
            lines.push(Line::new(group, what, over, Limit::AtMost(MOST_DRAM)));
        }
    }
    Ok(lines)
}

/// Bytes of the tensors other than its inputs and outputs that the design lets an op write once.
/// (H is an output: the backward reads it.)
pub fn intermediate(op: &str, spec: &DoraSpec, tokens: usize) -> (u64, &'static str) {
    let matrix = |features: usize| tokens as u64 * features as u64 * ELEMENT;
    match (op, spec.norm()) {
        ("forward", Norm::Input) => (matrix(spec.in_features()), ", and x∘g once"),
        ("backward", Norm::Output) => {
            let g_and_p = spec.out_features() + spec.padded_rank();
            (matrix(g_and_p), ", and G and P once")
        }
        ("backward", _) => (matrix(spec.padded_rank()), ", and P once"),
        _ => (0, ""),
    }
}

/// Bytes between the multiprocessors and L2. The main product reads both operands' sides of each
/// tile at every k-step. The skinny products and the epilogue read and write their tensors once.
fn implied_l2(op: &str, spec: &DoraSpec, tokens: usize) -> u64 {
    let [tile_m, tile_n] = Tiles::Large.extent().map(|extent| extent as u64);
    let (t, i, o) = (tokens as u64, spec.in_features() as u64, spec.out_features() as u64);
    let ranks = spec.padded_rank() as u64;
    let (columns, depth) = if op == "forward" { (o, i) } else { (i, o) };
    let tiles = t.div_ceil(tile_m) * columns.div_ceil(tile_n);
    let operands = tiles * (tile_m + tile_n) * (depth + ranks) * ELEMENT;
    // x for H, and y; dY for P and dB, x for dA, and dX.
    let beside = if op == "forward" { i + o } else { o + 2 * i };
    // x∘g; y for dm and G; x for dm.
    let of_norm = match (op, spec.norm()) {
        (_, Norm::None) | ("forward", Norm::Output) => 0,
        (_, Norm::Input) => i,
        (_, Norm::Output) => 2 * o,
    };
    operands + t * (beside + of_norm) * ELEMENT
}

/// How many times the instructions of whole tiles ragged ones execute, by the main products' names:
/// as many tiles and k-steps of a plain layer, with T, I and O that are multiples of 8 alone.
pub fn ragged(device: &Device) -> Result<BTreeMap<String, f64>, Box<dyn Error>> {
    let count = |[tokens, inputs, outputs]: [usize; 3]| -> Result<_, Box<dyn Error>> {
        let step =
            device.step(&Case { tokens, inputs, outputs, rank: 0, norm: Norm::None }, false)?;
        let launches = step.forward.iter().chain(&step.backward);
        let of_main = launches.filter_map(|launch| {
            let kernel = Kernel::of_entry(&launch.kernel)?.name();
            MAIN.contains(&kernel).then(|| (kernel.to_owned(), launch.counters.instructions as f64))
        });
        Ok(of_main.collect::<BTreeMap<_, _>>())
    };
    let mut times = count([1016, 1000, 1000])?;
    for (kernel, whole) in count([1024, 1024, 1024])? {
        times.entry(kernel).and_modify(|ragged| *ragged /= whole);
    }
    Ok(times)
}
