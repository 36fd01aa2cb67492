//! `norm_gradient`: what dA and dB lack where the norm is not a constant
//! (kernels/norm_gradient/sm80.cu).

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::prepared::Prepared;
use crate::device::{Kernel, Kernels, Launch, Needs, Regions, Split, Workspace};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::params::norm_gradient::{
    FINISH_FEATURES, FINISH_RANKS, GRAM_TILE, NormGradientParams, RANK_TILE, ROWS, STRIP_16_BIT,
    STRIP_F32,
};
use crate::spec::{DoraSpec, Norm, NormGrad};
use crate::tensor::{ElementType, Read, Tensors, Weight, Write, matrix, vector};

const NORM_GRADIENT: Kernel = Kernel::new("norm_gradient", "norm_gradient");
const FINISH: Kernel = Kernel::new("norm_gradient", "norm_gradient_finish");

/// Features and ranks of a CTA of the second launch.
const FINISH_TILE: [usize; 2] = [FINISH_FEATURES, FINISH_RANKS];

/// The partial sums of dB take a quarter of W's bytes at most, or this where that is more.
const LEAST_PARTIALS: usize = 4 << 20;

/// Inputs and outputs of [`Kernels::norm_gradient`], row-major and contiguous.
#[derive(Debug)]
pub struct NormGradient<'a> {
    /// W `[O, I]`, as given to `prepare`.
    pub weight: Weight<'a>,
    /// A `[r, I]`, f32, as given to `prepare`.
    pub lora_a: Read<'a>,
    /// B `[O, r]`, f32, as given to `prepare`.
    pub lora_b: Read<'a>,
    /// dm `[I]` or `[O]`, f32, of all the micro-batches since the last optimizer step.
    pub grad_magnitude: Read<'a>,
    /// dA `[r, I]`, f32, of the same micro-batches; read and written.
    pub grad_lora_a: Write<'a>,
    /// dB `[O, r]`, f32, of the same micro-batches; read and written.
    pub grad_lora_b: Write<'a>,
}

impl Kernels {
    /// Completes dA and dB where the spec asks for [`NormGrad::Exact`]: the backward holds c
    /// constant; this subtracts what flows through it. With k = dm·m/c² (0 where c = 0) along the
    /// norm's axis, dA −= s·Bᵀ(V∘k) and dB −= s·(V∘k)Aᵀ. It reads W once for each 64 ranks.
    ///
    /// Partial sums are in the workspace. Those of dB take about a quarter of W's bytes at most (or
    /// 4 MiB): W is taken in passes of some rows and up to 64 ranks, two launches each. That is one
    /// pass up to rank 16. At rank 64 it is one for a 16-bit layer of up to 1500×1500, and four for
    /// larger ones.
    ///
    /// To be called once per optimizer step, before the optimizer: the correction is linear in dm,
    /// so that of the accumulated dm is the sum of those of the micro-batches. dm itself, dX and db
    /// are exact already. c and g are those of `prepared`.
    ///
    /// Everything is computed in f32, whatever the dtype: error s·|k|·acc(O)·|B|ᵀ(|W| + s|B||A|)
    /// for dA and likewise for dB, with acc of [`crate::reference::bounds`], which has all terms.
    /// Formula: the chain rule through c = ‖V‖ of DoRA (arXiv:2402.09353) eq. 5.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::NoNormGradient`] if the spec's norm is detached or
    /// there is none, [`Error::Dtype`], [`Error::Shape`], [`Error::Misaligned`],
    /// [`Error::MissingTensor`], [`Error::NotPrepared`], [`Error::WorkspaceTooSmall`],
    /// [`Error::DeviceLimit`], [`Error::ContextMismatch`]. Afterwards [`Error::Driver`].
    pub fn norm_gradient(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared,
        workspace: &mut Workspace,
        mut io: NormGradient<'_>,
    ) -> Result<()> {
        check_spec(spec)?;
        let plan = Plan::new(spec, self.sm_count());
        let passes = plan.passes(spec);
        let mut t = Tensors::new(self.context(), stream, spec.dtype())?;
        for pass in &passes {
            pass.launches.iter().try_for_each(|launch| self.check_launch(launch))?;
        }
        let operands = prepared.read(&mut t, spec)?;
        let scratch = workspace.scratch(&mut t, plan.needs(), 0)?;
        let (inputs, outputs, ranks) = (spec.inputs(), spec.outputs(), spec.ranks());
        let f32 = ElementType::F32;
        let lora_a = t.read_as(f32, "lora_A", &io.lora_a, matrix(ranks, inputs))?;
        let lora_b = t.read_as(f32, "lora_B", &io.lora_b, matrix(outputs, ranks))?;
        let magnitudes = vector(spec.magnitudes());
        let grad_magnitude = t.read_as(f32, "grad_magnitude", &io.grad_magnitude, magnitudes)?;
        let grad_lora_a =
            t.write_as(f32, "grad_lora_A", &mut io.grad_lora_a, matrix(ranks, inputs))?;
        let grad_lora_b =
            t.write_as(f32, "grad_lora_B", &mut io.grad_lora_b, matrix(outputs, ranks))?;
        let mut params = NormGradientParams {
            weight: t.weight(&io.weight, spec)?,
            lora_a: lora_a.address,
            lora_b: lora_b.address,
            gain: operands.gain,
            norm: operands.norm,
            grad_magnitude: grad_magnitude.address,
            grad_lora_a: grad_lora_a.address,
            grad_lora_b: grad_lora_b.address,
            partial_a: scratch.region(plan.partial_a),
            partial_b: scratch.region(plan.partial_b),
            grams: scratch.region(plan.grams),
            scaling: spec.scaling(),
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            rank: spec.rank() as i32,
            padded_rank: spec.padded_rank() as i32,
            norm_on_input: i32::from(spec.norm() == Norm::Input),
            first_row: 0,
            last_row: 0,
            first_rank: 0,
            ranks: 0,
            is_last: 0,
            strips: plan.strips as i32,
            chunk: 0,
            chunks: 0,
            gram_chunks: plan.gram_chunks as i32,
            aligned: t.aligned(),
            aligned_a: lora_a.aligned.into(),
            aligned_b: lora_b.aligned.into(),
        };
        if spec.rank() == 0 {
            // There are no dA and dB.
            return Ok(());
        }
        for pass in &passes {
            pass.fill(spec, &mut params);
            for launch in &pass.launches {
                // SAFETY: the struct is the kernels', and each address in it was checked.
                unsafe { self.launch(stream, launch, &params) }?;
            }
        }
        Ok(())
    }
}

fn check_spec(spec: &DoraSpec) -> Result<()> {
    let reason = match (spec.norm(), spec.norm_grad()) {
        (Norm::None, _) => "plain LoRA has no norm: do not call norm_gradient",
        (_, NormGrad::Detached) => {
            "the spec's norm is detached: make the spec with NormGrad::Exact, or do not call \
             norm_gradient"
        }
        (_, NormGrad::Exact) => return Ok(()),
    };
    Err(Error::NoNormGradient { reason })
}

/// How W is taken for one spec, and the regions of the workspace.
struct Plan {
    strips: usize,
    /// Rows and ranks of a pass.
    rows: usize,
    ranks: usize,
    sm_count: usize,
    gram_chunks: usize,
    partial_a: usize,
    partial_b: usize,
    grams: usize,
    bytes: usize,
}

/// Some rows of W and some ranks.
struct Pass {
    rows: Range<usize>,
    ranks: Range<usize>,
    split: Split,
    launches: [Launch; 2],
}

impl Plan {
    fn new(spec: &DoraSpec, sm_count: usize) -> Self {
        let strip = if spec.dtype() == Dtype::F32 { STRIP_F32 } else { STRIP_16_BIT };
        let (inputs, outputs, rank) = (spec.in_features(), spec.out_features(), spec.padded_rank());
        let strips = inputs.div_ceil(strip);
        let ranks = rank.min(RANK_TILE);
        let weight = inputs.saturating_mul(outputs).saturating_mul(spec.dtype().bytes());
        let most = (weight / 4).max(LEAST_PARTIALS);
        let partials = (strips * ranks * size_of::<f32>()).saturating_mul(outputs);
        // Not two passes for what an incomplete strip adds.
        let passes = partials.div_ceil(most + most / 8).max(1);
        let rows = outputs.div_ceil(passes).next_multiple_of(ROWS);
        let split = Split::new(rows.min(outputs), ROWS, strips, sm_count);
        let mut regions = Regions::default();
        let mut partial = |count: usize, rows: usize, cols: usize| {
            regions.take((count * rows).saturating_mul(cols), size_of::<f32>())
        };
        let partial_a = partial(split.capacity, ranks, inputs);
        let partial_b = partial(strips, ranks, rows.min(outputs));
        let grams = partial(2 * split.count, rank, rank);
        let gram_chunks = split.count;
        let bytes = regions.bytes();
        Self { strips, rows, ranks, sm_count, gram_chunks, partial_a, partial_b, grams, bytes }
    }

    /// For each 64 ranks, all rows in order.
    fn passes(&self, spec: &DoraSpec) -> Vec<Pass> {
        let (outputs, rank) = (spec.out_features(), spec.padded_rank());
        let mut passes = Vec::new();
        for first_rank in (0..rank).step_by(self.ranks.max(1)) {
            for first_row in (0..outputs).step_by(self.rows) {
                let rows = first_row..outputs.min(first_row + self.rows);
                let ranks = first_rank..rank.min(first_rank + self.ranks);
                let split = Split::new(rows.len(), ROWS, self.strips, self.sm_count);
                let grams = if passes.is_empty() { 2 * rank.div_ceil(GRAM_TILE).pow(2) } else { 0 };
                let sums = [self.strips + grams, split.count, 1];
                let [features, of_ranks] = FINISH_TILE;
                let tiles = spec.in_features().div_ceil(features) + rows.len().div_ceil(features);
                let finish = [tiles, ranks.len().div_ceil(of_ranks), 1];
                let launches = [
                    Launch::new(NORM_GRADIENT, spec.variant(), sums),
                    Launch::new(FINISH, spec.variant(), finish),
                ];
                passes.push(Pass { rows, ranks, split, launches });
            }
        }
        passes
    }

    fn needs(&self) -> Needs {
        Needs { counters: 0, bytes: self.bytes }
    }
}

impl Pass {
    fn fill(&self, spec: &DoraSpec, params: &mut NormGradientParams) {
        params.first_row = self.rows.start as i32;
        params.last_row = self.rows.end as i32;
        params.first_rank = self.ranks.start as i32;
        params.ranks = self.ranks.len() as i32;
        params.is_last = i32::from(self.rows.end == spec.out_features());
        params.chunk = self.split.len as i32;
        params.chunks = self.split.count as i32;
    }
}

/// Nothing where the norm is detached.
pub(super) fn needs(spec: &DoraSpec, sm_count: usize) -> Needs {
    match spec.norm_grad() {
        NormGrad::Detached => Needs { counters: 0, bytes: 0 },
        NormGrad::Exact => Plan::new(spec, sm_count).needs(),
    }
}

/// The kernels that train a layer of the spec.
pub(super) const fn kernels(spec: &DoraSpec) -> &'static [Kernel] {
    match spec.norm_grad() {
        NormGrad::Exact => &[NORM_GRADIENT, FINISH],
        NormGrad::Detached => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Scaling;

    fn spec(inputs: usize, outputs: usize, rank: usize, dtype: Dtype) -> DoraSpec {
        let scaling = Scaling::Value(1.0);
        DoraSpec::new(inputs, outputs, rank, scaling, Norm::Input, NormGrad::Exact, dtype)
            .expect("a layer")
    }

    /// Every row with every rank once, in order, in regions that hold what a pass stores.
    #[test]
    fn passes_cover_the_weight() {
        for dtype in [Dtype::Bf16, Dtype::F32] {
            for [inputs, outputs, rank] in
                [[8, 1, 1], [70, 33, 200], [4096, 4096, 16], [4000, 4097, 64], [512, 9000, 100]]
            {
                let spec = spec(inputs, outputs, rank, dtype);
                let plan = Plan::new(&spec, 108);
                let passes = plan.passes(&spec);
                let mut covered = Vec::new();
                for pass in &passes {
                    let [rows, ranks] = [pass.rows.len(), pass.ranks.len()];
                    assert!(pass.split.count * pass.split.len >= rows, "{spec:?}");
                    assert_eq!(pass.launches[0].grid[1], pass.split.count);
                    let needs = pass.split.count * ranks * inputs * size_of::<f32>();
                    assert!(needs <= plan.partial_b - plan.partial_a, "{spec:?}");
                    let needs = plan.strips * ranks * rows * size_of::<f32>();
                    assert!(needs <= plan.grams - plan.partial_b, "{spec:?}");
                    covered.push((pass.ranks.clone(), pass.rows.clone()));
                }
                let padded = spec.padded_rank();
                let ranks: usize = covered.iter().map(|(_, rows)| rows.len()).sum();
                assert_eq!(ranks, outputs * padded.div_ceil(RANK_TILE), "{spec:?}");
                for pair in covered.windows(2) {
                    let ((ranks, rows), (next_ranks, next_rows)) = (&pair[0], &pair[1]);
                    if next_rows.start == 0 {
                        assert_eq!((rows.end, ranks.end), (outputs, next_ranks.start));
                    } else {
                        assert_eq!((rows.end, ranks), (next_rows.start, next_ranks));
                    }
                }
            }
        }
    }

    /// No rank and no layer needs temporaries of the weight's size.
    #[test]
    fn partial_sums_are_bounded() {
        for rank in [16, 64, 256, 1024] {
            for [inputs, outputs] in [[4096, 14336], [8192, 152_064], [14336, 4096]] {
                let spec = spec(inputs, outputs, rank, Dtype::Bf16);
                let weight = 2 * inputs * outputs;
                let plan = Plan::new(&spec, 132);
                assert!(
                    plan.grams < weight / 4 + weight / 32 + (20 << 20),
                    "{rank}: {}",
                    plan.grams
                );
                let passes = plan.passes(&spec).len();
                assert_eq!(passes, rank.div_ceil(RANK_TILE) * if rank > 16 { 4 } else { 1 });
            }
        }
    }
}
