//! What the main kernels wait for, and how long their launches take, by the witness for latency.

use std::collections::BTreeMap;
use std::error::Error;

use fused_dora::Norm;
use fused_dora_cuda_tools::Tool;
use fused_dora_testkit::workspace;
use serde::{Deserialize, Serialize};

use super::counters::{NORMS, RANK};
use super::layer::Case;
use super::line::{Group, Limit, Line};
use crate::compile::Compiled;
use crate::witness::check::Checked;
use crate::witness::code::{Kernel, NVDISASM_OPTIONS, read};
use crate::witness::devices::{Device, PUBLISHED};
use crate::witness::latencies::Latencies;
use crate::witness::named::{RANKS, Role, Ways, time_all};
use crate::witness::tiles::{Model, Op};

/// Goals of exposed waits in an iteration.
const MOST_MAIN: f64 = 0.0;
const MOST_PASS: f64 = 1.0;

/// Ways that do not reach their goal, and the exposed waits that they may have until they do. Take
/// a row out when its kernel is better.
const WAITS_NOT_REACHED: [(&str, f64); 0] = [];

/// Hasty loads that ways have today, and may not have more of. All others have none.
const HASTY: [(&str, f64); 2] = [("P of 4 strips", 1.0), ("H, two parts of a sum", 1.0)];

/// Waits that a CTA exposes once, today: they may not become more.
const ONCE: [(&str, f64); 3] = [("column sums", 0.0), ("dB's turn", 12.0), ("dA's turn", 5.0)];

/// Waits for a scoreboard that nothing sets, of all waits: compilers leave some.
const MOST_UNSET: f64 = 0.06;

/// Layers that are modelled, square, in bf16.
pub const FEATURES: usize = 4096;
pub const TOKENS: [usize; 3] = [512, 2048, 8192];
/// The ranges are those of this layer: latencies by these factors, and the tensor cores' share.
const RANGE: (usize, usize) = (8192, RANK);
const LATENCY_RANGE: [f64; 2] = [0.8, 1.25];
const SHARE_RANGE: [f64; 2] = [0.95, 1.05];
/// How much a ratio may exceed its present value, which rounding and another compiler change.
const SLACK: f64 = 0.005;

/// Goals of the time over the own plain kernel.
fn goal(gpu: &str, tokens: usize, rank: usize) -> Option<f64> {
    match (gpu, tokens, rank) {
        ("A100", 8192, RANK) => Some(1.07),
        ("RTX 4090" | "RTX 5090", 8192, RANK) => Some(1.03),
        // No goal is named for it.
        ("H100", 8192, RANK) => None,
        (_, 512, _) => Some(1.25),
        _ => Some(1.10),
    }
}

/// Ratios of layers that do not reach their goal with all four, or have no goal: forward and
/// backward, norm axis output and input of each. Those above the goal may not get worse. Take
/// numbers down when kernels get better, and rows out when all four reach the goal.
const PRESENT: [(&str, usize, usize, [f64; 4]); 14] = [
    ("A100", 8192, 16, [1.051, 1.072, 1.098, 1.083]),
    ("A100", 512, 64, [0.871, 1.218, 1.481, 1.001]),
    ("A100", 2048, 64, [1.086, 1.103, 1.059, 1.061]),
    ("A100", 8192, 64, [1.078, 1.098, 1.158, 1.133]),
    ("RTX 4090", 8192, 16, [1.018, 1.021, 1.032, 1.030]),
    ("RTX 4090", 512, 64, [1.032, 1.126, 1.276, 1.038]),
    ("RTX 4090", 2048, 64, [1.039, 1.052, 1.101, 1.091]),
    ("RTX 5090", 512, 64, [1.033, 1.150, 1.313, 1.038]),
    ("H100", 512, 16, [1.060, 1.338, 1.463, 1.078]),
    ("H100", 2048, 16, [1.091, 1.121, 1.209, 1.183]),
    ("H100", 8192, 16, [1.055, 1.081, 1.120, 1.108]),
    ("H100", 512, 64, [1.083, 1.424, 1.920, 1.137]),
    ("H100", 2048, 64, [1.127, 1.158, 1.364, 1.342]),
    ("H100", 8192, 64, [1.088, 1.116, 1.184, 1.150]),
];

/// A way on one architecture, for the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wait {
    pub way: String,
    pub architecture: String,
    pub instructions: usize,
    pub products: usize,
    pub exposed: usize,
    pub hasty: usize,
    /// Clocks of an iteration with one warp on the scheduler, and until each of two is through.
    pub one: f64,
    pub two: f64,
}

/// A launch, modelled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Modelled {
    pub gpu: String,
    pub op: String,
    pub norm_axis: String,
    pub tokens: usize,
    pub rank: usize,
    /// Microseconds of the launch, and of its plain kernel.
    pub fused: f64,
    pub plain: f64,
    pub ratio: f64,
    /// The least and the largest ratio, for other latencies and shares.
    pub range: Option<[f64; 2]>,
}

/// A square product of 16-bit matrices with f32 sums, with published rates in TFLOP/s.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Product {
    pub gpu: String,
    pub size: usize,
    /// The modelled rate of the plain kernel of forward.
    pub modelled: f64,
    /// A published rate of a kernel that `mma.sync` was written into by hand, and one of cuBLAS.
    pub by_hand: Option<f64>,
    pub cublas: f64,
}

/// The lines and the tables.
#[derive(Default)]
pub struct Evidence {
    pub lines: Vec<Line>,
    pub waits: Vec<Wait>,
    pub launches: Vec<Modelled>,
    pub products: Vec<Product>,
}

/// The code of the main kernels for one device.
struct Code {
    device: Device,
    forward: Vec<Kernel>,
    backward: Vec<Kernel>,
}

impl Code {
    fn read(device: Device, nvdisasm: &Tool, compiled: &[Compiled]) -> Result<Self, String> {
        let architecture = device.gpu.architecture;
        let kernels = |op: &str| {
            let wanted = |file: &&Compiled| {
                file.architecture == architecture
                    && file.dtype == Some("bf16")
                    && file.file.split('/').next() == Some(op)
            };
            let file = compiled.iter().find(wanted);
            let file = file.ok_or_else(|| format!("{op} was not compiled for {architecture}"))?;
            let output = nvdisasm.run(&NVDISASM_OPTIONS, &file.cubin)?;
            read(&String::from_utf8_lossy(&output.stdout))
        };
        Ok(Self { device, forward: kernels("forward")?, backward: kernels("backward")? })
    }

    fn time(&self, latencies: Latencies) -> Result<Ways, String> {
        time_all(&self.forward, &self.backward, &workspace().join("kernels"), latencies)
    }
}

/// All of it, for the modelled GPUs whose architecture is compiled for.
pub fn collect(
    nvdisasm: &Tool,
    compiled: &[Compiled],
    architectures: &[&str],
    mut done: impl FnMut(),
) -> Result<Evidence, Box<dyn Error>> {
    let mut evidence = Evidence::default();
    let mut all = Vec::new();
    for device in Device::all()? {
        if architectures.contains(&device.gpu.architecture) {
            let code = Code::read(device, nvdisasm, compiled)?;
            let ways = code.time(Latencies::of(device.gpu.architecture)?)?;
            evidence.lines.extend(checks(&code));
            evidence.waits.extend(waits(&ways));
            evidence.launches.extend(launches(&code, &ways)?);
            evidence.products.extend(products(&code, &ways)?);
            all.push(ways);
        }
        done();
    }
    evidence.lines.extend(exposed(&all)?);
    evidence.lines.extend(ratios(&evidence.launches));
    Ok(evidence)
}

/// That the decoder is right.
fn checks(code: &Code) -> [Line; 2] {
    let kernels = code.forward.iter().chain(&code.backward);
    let sum = kernels.clone().map(Checked::new).fold(Checked::default(), Checked::and);
    let about = format!(
        "{}, {} kernels, {} instructions",
        code.device.gpu.architecture,
        kernels.count(),
        sum.instructions
    );
    let wrong = sum.early + sum.beyond + sum.odd_syncs;
    let what = format!(
        "{about}: registers that are read before their load was waited for, scoreboards that there \
         are not, and joins that are elsewhere"
    );
    let unset = sum.unset as f64 / sum.waits.max(1) as f64;
    let share = format!("{about}: waits for a scoreboard that nothing sets, of {}", sum.waits);
    [
        Line::new(Group::Latency, what, wrong as f64, Limit::AtMost(0.0)),
        Line::new(Group::Latency, share, unset, Limit::AtMost(MOST_UNSET)),
    ]
}

fn waits(ways: &Ways) -> Vec<Wait> {
    let wait = |named: &crate::witness::named::Named| Wait {
        way: named.name.clone(),
        architecture: ways.latencies.architecture.to_owned(),
        instructions: named.instructions,
        products: named.products,
        exposed: named.timing.exposed(),
        hasty: named.timing.hasty(),
        one: named.timing.one,
        two: named.timing.two,
    };
    ways.all.iter().map(wait).collect()
}

/// The lines of waits, each the worst of all architectures.
fn exposed(all: &[Ways]) -> Result<Vec<Line>, String> {
    let mut lines = Vec::new();
    let Some(first) = all.first() else { return Ok(lines) };
    let is_known = |row: &&(&str, f64)| first.all.iter().any(|named| named.name == row.0);
    let mut rows = WAITS_NOT_REACHED.iter().chain(&HASTY).chain(&ONCE);
    if let Some((name, _)) = rows.find(|row| !is_known(row)) {
        return Err(format!("{name}: a limit in latency.rs names it, and no way has this name"));
    }
    for named in &first.all {
        let timings: Vec<_> =
            all.iter().map(|ways| ways.timing(&named.name)).collect::<Result<_, _>>()?;
        let name = &named.name;
        let of = |table: &[(&str, f64)]| table.iter().find(|row| row.0 == name).map(|row| row.1);
        let goal = match named.role {
            Role::Main => MOST_MAIN,
            Role::Pass => MOST_PASS,
            Role::Once => of(&ONCE).ok_or_else(|| format!("{name}: no limit of its waits"))?,
        };
        let limit = match of(&WAITS_NOT_REACHED) {
            Some(most) => Limit::Toward { goal, most },
            None => Limit::AtMost(goal),
        };
        let most = |count: fn(&crate::witness::pipeline::Timing) -> usize| {
            timings.iter().map(|timing| count(timing)).max().unwrap_or(0) as f64
        };
        let exposed = most(|timing| timing.exposed());
        lines.push(Line::new(Group::Latency, format!("{name}: exposed waits"), exposed, limit));
        if named.role != Role::Once {
            let limit = Limit::AtMost(of(&HASTY).unwrap_or(0.0));
            let hasty = most(|timing| timing.hasty());
            lines.push(Line::new(Group::Latency, format!("{name}: hasty loads"), hasty, limit));
        }
    }
    Ok(lines)
}

/// All launches of a device.
fn launches(code: &Code, ways: &Ways) -> Result<Vec<Modelled>, String> {
    let mut others = Vec::new();
    for times in LATENCY_RANGE {
        others.push((code.device, code.time(ways.latencies.slower(times))?));
    }
    for times in SHARE_RANGE {
        others.push((code.device.faster(times), ways.clone()));
    }
    let mut launches = Vec::new();
    for rank in RANKS {
        for tokens in TOKENS {
            for op in Op::ALL {
                for norm in NORMS {
                    let case = Case { tokens, inputs: FEATURES, outputs: FEATURES, rank, norm };
                    let model = Model { device: code.device, ways, case };
                    let (fused, plain) = model.clocks(op)?;
                    let ratio = fused / plain;
                    let range = if (tokens, rank) == RANGE {
                        let mut range = [ratio, ratio];
                        for (device, ways) in &others {
                            let (fused, plain) =
                                Model { device: *device, ways, case }.clocks(op)?;
                            range = [range[0].min(fused / plain), range[1].max(fused / plain)];
                        }
                        Some(range)
                    } else {
                        None
                    };
                    launches.push(Modelled {
                        gpu: code.device.gpu.name.to_owned(),
                        op: op.name().to_owned(),
                        norm_axis: name(norm).to_owned(),
                        tokens,
                        rank,
                        fused: model.microseconds(fused),
                        plain: model.microseconds(plain),
                        ratio,
                        range,
                    });
                }
            }
        }
    }
    Ok(launches)
}

/// The products that rates are published of.
fn products(code: &Code, ways: &Ways) -> Result<Vec<Product>, String> {
    let of_gpu = PUBLISHED.iter().filter(|row| row.0 == code.device.gpu.name);
    let product = |&(gpu, size, by_hand, cublas): &(&str, usize, Option<f64>, f64)| {
        let [tokens, inputs, outputs] = [size; 3];
        let case = Case { tokens, inputs, outputs, rank: 0, norm: Norm::None };
        let model = Model { device: code.device, ways, case };
        let microseconds = model.microseconds(model.plain_clocks(Op::Forward)?);
        let modelled = 2.0 * (size as f64).powi(3) / microseconds / 1e6;
        Ok(Product { gpu: gpu.to_owned(), size, modelled, by_hand, cublas })
    };
    of_gpu.map(product).collect()
}

fn name(norm: Norm) -> &'static str {
    if norm == Norm::Input { "input" } else { "output" }
}

/// The lines of ratios.
fn ratios(launches: &[Modelled]) -> Vec<Line> {
    let mut seen: BTreeMap<(&str, usize, usize), usize> = BTreeMap::new();
    let mut lines = Vec::new();
    for m in launches {
        // Forward and backward, with two axes each, in this order.
        let number = seen.entry((&m.gpu, m.tokens, m.rank)).or_default();
        let row = PRESENT.iter().find(|row| (row.0, row.1, row.2) == (&m.gpu, m.tokens, m.rank));
        let present = row.map(|row| row.3[*number] + SLACK);
        *number += 1;
        let limit = match (goal(&m.gpu, m.tokens, m.rank), present) {
            (Some(goal), Some(most)) if most > goal => Limit::Toward { goal, most },
            (Some(goal), _) => Limit::AtMost(goal),
            (None, Some(most)) => Limit::AtMost(most),
            (None, None) => Limit::None,
        };
        let what = format!(
            "{}: {}, norm axis {}, T={} r={}, over plain",
            m.gpu, m.op, m.norm_axis, m.tokens, m.rank
        );
        lines.push(Line::new(Group::Launches, what, m.ratio, limit));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_present_values_are_of_layers_that_are_modelled_and_miss_their_goal() {
        for (gpu, tokens, rank, present) in PRESENT {
            let about = format!("{gpu}, T={tokens} r={rank}");
            let devices = Device::all().unwrap();
            assert!(devices.iter().any(|device| device.gpu.name == gpu), "{about}");
            assert!(TOKENS.contains(&tokens) && RANKS.contains(&rank), "{about}");
            let misses = |goal: f64| present.iter().any(|&ratio| ratio > goal);
            assert!(goal(gpu, tokens, rank).is_none_or(misses), "{about}: take the row out");
        }
    }

    #[test]
    fn a_ratio_that_is_worse_than_today_fails_and_a_better_one_asks_to_tighten() {
        let forward = |ratio| {
            let [gpu, op, norm_axis] = ["A100", "forward", "output"].map(str::to_owned);
            let (tokens, rank) = (8192, RANK);
            let launch = Modelled {
                gpu,
                op,
                norm_axis,
                tokens,
                rank,
                fused: ratio,
                plain: 1.0,
                ratio,
                range: None,
            };
            // The second one is that of norm axis input, which misses its goal today.
            let lines = ratios(&[launch.clone(), launch]);
            lines.iter().map(|line| line.verdict().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(forward(1.06), ["ok", "ok, goal reached"]);
        assert_eq!(forward(1.075), ["FAILS", "ok, goal not reached"]);
        assert_eq!(forward(2.0), ["FAILS", "FAILS"]);
    }
}
