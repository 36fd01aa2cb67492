//! How counts grow with a layer: fitted on small layers, evaluated for large ones.
//!
//! Every count of a launch is a sum over its CTAs of what a CTA does once and for each of its
//! steps, so it is linear in the number of tiles along each of T, O and I that the launch goes
//! through, and where it cuts T or a sum into chunks, in the number of chunks. Compilers unroll ordered sums
//! by four: tiles are taken in fours.

use std::collections::BTreeMap;
use std::error::Error;

use cuda_emulator::MeasuredLaunch;
use fused_dora::ops::{backward, forward};
use fused_dora::{Norm, Tiles};

use super::layer::{Case, Device};
use crate::work::Kernel;

/// Features and tokens of one step of the fit: the side of a tile of the main product.
const UNIT: usize = 128;

/// The launches with the main products: those of a plain layer, which has nothing to train.
pub const MAIN: [&str; 2] = ["forward", "backward"];

/// Ranks of a tile of the skinny products.
pub const RANK_TILE: usize = 64;

/// Layers along all three axes: whole groups of tile rows of the main products, and numbers of
/// chunks of T that do not follow from T. (T, I, O).
pub const FITTED: [[usize; 3]; 17] = [
    [2048, 512, 512],
    [4096, 512, 512],
    [2048, 1024, 512],
    [4096, 1024, 512],
    [2048, 512, 1024],
    [4096, 512, 1024],
    [2048, 1024, 1024],
    [4096, 1024, 1024],
    [3072, 512, 512],
    [3072, 1024, 1024],
    [2048, 1280, 512],
    [4096, 1280, 512],
    [2048, 2048, 512],
    [4096, 2048, 512],
    [4096, 512, 1536],
    [2048, 512, 2048],
    [2048, 512, 4096],
];

/// A larger layer, whose counts must be as predicted: (T, I, O).
pub const PROOF: [usize; 3] = [5120, 1792, 1536];

/// What is counted of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amounts([f64; Amounts::LEN]);

impl Amounts {
    const LEN: usize = 8;
    const NAMES: [&str; Self::LEN] = [
        "blocks",
        "instructions",
        "mma",
        "shared-memory wavefronts",
        "sectors read",
        "sectors written",
        "DRAM sectors read",
        "DRAM sectors written",
    ];

    fn of(launch: &MeasuredLaunch) -> Self {
        let c = &launch.counters;
        let blocks = launch.grid.iter().map(|&extent| u64::from(extent)).product();
        Self(
            [
                blocks,
                c.instructions,
                c.mma,
                c.shared_wavefronts,
                c.sectors_read,
                c.sectors_written,
                c.dram_sectors_read,
                c.dram_sectors_written,
            ]
            .map(|count: u64| count as f64),
        )
    }

    pub fn blocks(&self) -> u64 {
        self.0[0].round() as u64
    }

    pub fn instructions(&self) -> u64 {
        self.0[1].round() as u64
    }

    pub fn mma(&self) -> u64 {
        self.0[2].round() as u64
    }

    pub fn wavefronts(&self) -> u64 {
        self.0[3].round() as u64
    }

    pub fn l2_bytes(&self) -> u64 {
        SECTOR * (self.0[4] + self.0[5]).round() as u64
    }

    pub fn dram_bytes_read(&self) -> u64 {
        SECTOR * self.0[6].round() as u64
    }

    pub fn dram_bytes_written(&self) -> u64 {
        SECTOR * self.0[7].round() as u64
    }
}

const SECTOR: u64 = 32;

/// The launches of forward and backward of one kind of layer, and how their counts grow.
pub struct Law {
    pub rank: usize,
    pub norm: Norm,
    kernels: BTreeMap<Kernel, [Vec<f64>; Amounts::LEN]>,
}

impl Law {
    /// Counts the small layers and fits them.
    pub fn fit(
        device: &Device,
        rank: usize,
        norm: Norm,
        done: impl Fn(),
    ) -> Result<Self, Box<dyn Error>> {
        let mut rows: BTreeMap<Kernel, Vec<(Vec<f64>, Amounts)>> = BTreeMap::new();
        for [tokens, inputs, outputs] in FITTED {
            let case = Case { tokens, inputs, outputs, rank, norm };
            for (kernel, amounts) in counted(device, &case)? {
                let terms = terms(kernel, &case, device.sm_count())?;
                rows.entry(kernel).or_default().push((terms, amounts));
            }
            done();
        }
        let mut kernels = BTreeMap::new();
        for (kernel, rows) in rows {
            if rows.len() != FITTED.len() {
                return Err(format!("{}: not launched for every layer", kernel.name()).into());
            }
            let fit = |amount: usize| {
                let rows: Vec<_> =
                    rows.iter().map(|(terms, a)| (terms.clone(), a.0[amount])).collect();
                solve(rows)
            };
            let fits = std::array::from_fn(fit);
            kernels.insert(kernel, fits);
        }
        Ok(Self { rank, norm, kernels })
    }

    /// What each launch of forward and backward of a layer counts, on a device of so many
    /// multiprocessors.
    pub fn predict(
        &self,
        [tokens, inputs, outputs]: [usize; 3],
        sm_count: usize,
    ) -> Result<Vec<(Kernel, Amounts)>, Box<dyn Error>> {
        let case = Case { tokens, inputs, outputs, rank: self.rank, norm: self.norm };
        let of_kernel = |(&kernel, fits): (&Kernel, &[Vec<f64>; Amounts::LEN])| {
            let terms = terms(kernel, &case, sm_count)?;
            let dot = |fit: &Vec<f64>| fit.iter().zip(&terms).map(|(a, b)| a * b).sum();
            Ok((kernel, Amounts(fits.each_ref().map(dot))))
        };
        self.kernels.iter().map(of_kernel).collect()
    }

    /// The largest relative error of a prediction, with the launch and the counter.
    pub fn worst_error(&self, device: &Device) -> Result<(f64, String), Box<dyn Error>> {
        let [tokens, inputs, outputs] = PROOF;
        let case = Case { tokens, inputs, outputs, rank: self.rank, norm: self.norm };
        let predicted = self.predict(PROOF, device.sm_count())?;
        let counted = counted(device, &case)?;
        let mut worst = (0.0, "exact".to_owned());
        for ((kernel, predicted), (known, counted)) in predicted.iter().zip(&counted) {
            if kernel != known {
                return Err(format!("{} instead of {}", known.name(), kernel.name()).into());
            }
            for (at, name) in Amounts::NAMES.iter().enumerate() {
                let (p, c) = (predicted.0[at].round(), counted.0[at]);
                let error = (p - c).abs() / c.max(1.0);
                if error > worst.0 {
                    worst = (error, format!("{} of {}: {p} for {c}", name, kernel.name()));
                }
            }
        }
        Ok(worst)
    }
}

/// The launches of forward and backward, in the kernels' order; of a plain layer, which has nothing
/// to train, those of forward and dX.
fn counted(device: &Device, case: &Case) -> Result<Vec<(Kernel, Amounts)>, Box<dyn Error>> {
    let step = device.step(case, false)?;
    let plain = case.rank == 0 && case.norm == Norm::None;
    let mut launches = Vec::new();
    for launch in step.forward.iter().chain(&step.backward) {
        let kernel = Kernel::of_entry(&launch.kernel)
            .ok_or_else(|| format!("{}: no such kernel is known", launch.kernel))?;
        if !plain || MAIN.contains(&kernel.name()) {
            launches.push((kernel, Amounts::of(launch)));
        }
    }
    launches.sort_by_key(|launch| launch.0);
    Ok(launches)
}

/// The products of tiles and chunks that a launch's counts are sums of.
fn terms(kernel: Kernel, case: &Case, sm_count: usize) -> Result<Vec<f64>, Box<dyn Error>> {
    let [t, i, o] =
        [case.tokens, case.inputs, case.outputs].map(|extent| extent as f64 / UNIT as f64);
    let spec = case.spec()?;
    // The sum of each of `left` times each of `right`.
    let product = |left: &[f64], right: &[f64]| -> Vec<f64> {
        left.iter().flat_map(|a| right.iter().map(move |b| a * b)).collect()
    };
    let [chunks, chunks_of_a] = backward::chunks(&spec, case.tokens, sm_count);
    let (c, a) = (chunks as f64, chunks_of_a as f64);
    let parts = forward::parts_of_h(&spec, case.tokens, sm_count, Tiles::Large) as f64;
    // A sum of H in one part has no partial ones.
    let partial = if parts > 1.0 { 1.0 } else { 0.0 };
    Ok(match kernel.name() {
        "forward" => {
            let of_tiles = product(&product(&[1.0, t], &[1.0, o]), &[1.0, i]);
            [of_tiles, product(&[1.0, t], &[parts, partial])].concat()
        }
        // A ring of chunks of T holds partial P: as many tokens as a chunk has, times a constant.
        "backward" => {
            vec![1.0, t, o, t * o, t * i, o * i, t * i * o, c, c * o, t / c * o, i, a * i]
        }
        other => return Err(format!("{other}: not of forward or backward").into()),
    })
}

/// The coefficients whose sums of products are the values, by elimination with the largest pivots.
/// A term that the rows cannot distinguish from those before it has none.
fn solve(mut rows: Vec<(Vec<f64>, f64)>) -> Vec<f64> {
    const NOTHING: f64 = 1e-6;
    let count = rows.first().map_or(0, |(terms, _)| terms.len());
    let mut coefficients = vec![0.0; count];
    let mut pivots: Vec<usize> = Vec::new();
    for column in 0..count {
        let from = pivots.len();
        let size = |row: &usize| rows[*row].0[column].abs();
        let pivot = (from..rows.len()).max_by(|a, b| size(a).total_cmp(&size(b)));
        let Some(pivot) = pivot.filter(|row| size(row) > NOTHING) else { continue };
        rows.swap(from, pivot);
        let (terms, value) = rows[from].clone();
        for (at, row) in rows.iter_mut().enumerate() {
            let factor = row.0[column] / terms[column];
            if at != from && factor != 0.0 {
                row.0.iter_mut().zip(&terms).for_each(|(a, b)| *a -= factor * b);
                row.1 -= factor * value;
            }
        }
        pivots.push(column);
    }
    for (row, column) in pivots.into_iter().enumerate() {
        coefficients[column] = rows[row].1 / rows[row].0[column];
    }
    coefficients
}
