//! Fused DoRA over the plain linear layer, by modelled bounds.

use fused_dora::Norm;
use serde::{Deserialize, Serialize};

use super::counters::{NORMS, RANK, axis};
use super::layer::Case;
use super::line::{Group, Limit, Line};
use super::scale::{Amounts, Law, RANK_TILE};
use crate::gpu::{GPUS, Gpu};
use crate::model::{Bounds, Demand};
use crate::work::{Kernel, compulsory};

pub const TOKENS: usize = 8192;

/// (O, I).
const SHAPES: [[usize; 2]; 5] =
    [[4096, 4096], [14336, 4096], [4096, 14336], [8192, 8192], [28672, 8192]];

/// The projections of a Llama-3-8B decoder layer, as (O, I): q, k, v, o, gate, up, down.
const LLAMA: [[usize; 2]; 7] = [
    [4096, 4096],
    [1024, 4096],
    [1024, 4096],
    [4096, 4096],
    [14336, 4096],
    [14336, 4096],
    [4096, 14336],
];

const MOST: f64 = 1.06;
/// The GPUs whose average over the layer must meet it.
const HELD: [&str; 2] = ["A100", "RTX 4090"];

/// Rows of tiles that TileOrder of the main products takes together, and the rows of a tile.
const GROUP: usize = 8;
const TILE: usize = 128;
/// CTAs of a main product that a multiprocessor holds.
const RESIDENT: usize = 2;
const ELEMENT: u64 = 2;

/// One ratio to plain forward and dX.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    pub gpu: String,
    pub outputs: usize,
    pub inputs: usize,
    pub rank: usize,
    pub norm_axis: String,
    /// Bounds of forward and backward in µs, and of plain forward and dX.
    pub fused: f64,
    pub plain: f64,
    pub ratio: f64,
}

/// The bounds by which layers are compared.
pub struct Model<'a> {
    pub plain: &'a Law,
    /// One for each rank and norm axis.
    pub fused: &'a [Law],
}

impl Model<'_> {
    fn law(&self, rank: usize, norm: Norm) -> Result<&Law, String> {
        let law = self.fused.iter().find(|law| law.rank == rank && law.norm == norm);
        law.ok_or_else(|| format!("no counts for rank {rank}, {}", axis(norm)))
    }

    /// All ratios of single layers.
    pub fn ratios(&self, ranks: &[usize]) -> Result<Vec<Ratio>, String> {
        let mut ratios = Vec::new();
        for [outputs, inputs] in SHAPES {
            for norm in NORMS {
                for gpu in &GPUS {
                    for &rank in ranks {
                        let shape = [TOKENS, inputs, outputs];
                        let fused = time(self.law(rank, norm)?, shape, gpu)?;
                        let plain = time(self.plain, shape, gpu)?;
                        ratios.push(Ratio {
                            gpu: gpu.name.to_owned(),
                            outputs,
                            inputs,
                            rank,
                            norm_axis: axis(norm).to_owned(),
                            fused,
                            plain,
                            ratio: fused / plain,
                        });
                    }
                }
            }
        }
        Ok(ratios)
    }

    /// The lines: all projections of a decoder layer together.
    pub fn lines(&self) -> Result<Vec<Line>, String> {
        let mut lines = Vec::new();
        for gpu in &GPUS {
            for norm in NORMS {
                let law = self.law(RANK, norm)?;
                let total = |law: &Law| -> Result<f64, String> {
                    LLAMA.iter().map(|&[o, i]| time(law, [TOKENS, i, o], gpu)).sum()
                };
                let what = format!(
                    "{}, {}: forward + backward over plain, seven projections of Llama-3-8B, \
                     T={TOKENS} r={RANK}",
                    gpu.name,
                    axis(norm)
                );
                let held = HELD.contains(&gpu.name);
                let limit = if held { Limit::AtMost(MOST) } else { Limit::None };
                lines.push(Line::new(Group::Bounds, what, total(law)? / total(self.plain)?, limit));
            }
        }
        Ok(lines)
    }
}

/// The bounds of all launches of forward and backward together, in µs.
fn time(law: &Law, shape: [usize; 3], gpu: &Gpu) -> Result<f64, String> {
    let sm_count = gpu.limits.sm_count as usize;
    let launches = law.predict(shape, sm_count).map_err(|error| error.to_string())?;
    let mut total = 0.0;
    for (kernel, amounts) in &launches {
        let dram_bytes = dram_bytes(*kernel, amounts, law, shape, gpu)?;
        let demand = Demand {
            blocks: amounts.blocks(),
            mma: amounts.mma(),
            instructions: amounts.instructions(),
            wavefronts: amounts.wavefronts(),
            l2_bytes: amounts.l2_bytes(),
            dram_bytes,
        };
        total += Bounds::new(gpu, &demand).bound();
    }
    Ok(total)
}

/// What device memory moves at most: what is counted once, and again what the L2 cache need not
/// have kept.
fn dram_bytes(
    kernel: Kernel,
    amounts: &Amounts,
    law: &Law,
    [tokens, inputs, outputs]: [usize; 3],
    gpu: &Gpu,
) -> Result<u64, String> {
    let case = Case { tokens, inputs, outputs, rank: law.rank, norm: law.norm };
    let spec = case.spec().map_err(|error| error.to_string())?;
    let matrix = |rows: usize, columns: usize| rows as u64 * columns as u64 * ELEMENT;
    let again = |passes: usize| passes.saturating_sub(1) as u64;
    let rank_tiles = spec.padded_rank().div_ceil(RANK_TILE);
    // The main products: W for each group, and the group's rows for each wave of its tiles.
    let product = |depth: usize, columns: usize| {
        let groups = tokens.div_ceil(GROUP * TILE);
        let kept = 2 * matrix(GROUP * TILE, depth) <= u64::from(gpu.limits.l2_bytes);
        let resident = RESIDENT * gpu.limits.sm_count as usize;
        let waves = if kept { 1 } else { (GROUP * columns.div_ceil(TILE)).div_ceil(resident) };
        again(groups) * matrix(inputs, outputs) + again(waves) * matrix(tokens, depth)
    };
    let of_ranks = |features: usize| again(rank_tiles) * matrix(tokens, features);
    let reread = match kernel.name() {
        "forward" => product(inputs, outputs) + of_ranks(inputs),
        "backward" => {
            // Norm axis input reads x for dm, and for dA when all of dX is done.
            let x_again = if law.norm == Norm::Input { matrix(tokens, inputs) } else { 0 };
            product(outputs, inputs) + of_ranks(outputs) + of_ranks(inputs) + x_again
        }
        other => return Err(format!("{other}: not of forward or backward")),
    };
    // Partial sums that are not discarded, and what a launch hands on to itself: written beyond the
    // outputs.
    let tensors = compulsory(kernel, &spec, tokens);
    let outputs = tensors.iter().filter(|tensor| tensor.written).map(|tensor| tensor.bytes);
    let written = outputs.sum::<u64>();
    let partial = amounts.dram_bytes_written().saturating_sub(written);
    Ok(amounts.dram_bytes_read() + amounts.dram_bytes_written() + reread + partial)
}
