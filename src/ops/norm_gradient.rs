//! `norm_gradient`: what dA and dB lack where the norm is not a constant
//! (kernels/norm_gradient/sm80.cu).

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
    /// norm's axis, dA −= s·Bᵀ(V∘k) and dB −= s·(V∘k)Aᵀ, in two launches and one read of W (for
    /// ranks up to 64; one more for each 64 beyond).
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
        let launches = plan.launches(spec);
        let mut t = Tensors::new(self.context(), stream, spec.dtype())?;
        launches.iter().try_for_each(|launch| self.check_launch(launch))?;
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
        let params = NormGradientParams {
            weight: t.weight("weight", &io.weight, matrix(outputs, inputs))?,
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
            strips: plan.strips as i32,
            chunk: plan.split.len as i32,
            chunks: plan.split.count as i32,
            aligned: t.aligned(),
            aligned_a: lora_a.aligned.into(),
            aligned_b: lora_b.aligned.into(),
        };
        if spec.rank() == 0 {
            // There are no dA and dB.
            return Ok(());
        }
        for launch in &launches {
            // SAFETY: the struct is the kernels', and each address in it was checked.
            unsafe { self.launch(stream, launch, &params) }?;
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

/// The launches for one spec.
struct Plan {
    strips: usize,
    split: Split,
    rank_tiles: usize,
    gram_tiles: usize,
    partial_a: usize,
    partial_b: usize,
    grams: usize,
    bytes: usize,
}

impl Plan {
    fn new(spec: &DoraSpec, sm_count: usize) -> Self {
        let strip = if spec.dtype() == Dtype::F32 { STRIP_F32 } else { STRIP_16_BIT };
        let rank = spec.padded_rank();
        let strips = spec.in_features().div_ceil(strip);
        let rank_tiles = rank.div_ceil(RANK_TILE);
        let split = Split::new(spec.out_features(), ROWS, strips * rank_tiles, sm_count);
        let mut regions = Regions::default();
        let mut partial = |count: usize, rows: usize, cols: usize| {
            regions.take((count * rows).saturating_mul(cols), size_of::<f32>())
        };
        let partial_a = partial(split.count, rank, spec.in_features());
        let partial_b = partial(strips, rank, spec.out_features());
        let grams = partial(2 * split.count, rank, rank);
        let gram_tiles = 2 * rank.div_ceil(GRAM_TILE).pow(2);
        let bytes = regions.bytes();
        Self { strips, split, rank_tiles, gram_tiles, partial_a, partial_b, grams, bytes }
    }

    fn launches(&self, spec: &DoraSpec) -> [Launch; 2] {
        let sums = [self.strips + self.gram_tiles, self.split.count, self.rank_tiles];
        [
            Launch::new(NORM_GRADIENT, spec.dtype(), sums),
            Launch::new(FINISH, spec.dtype(), self.finish_grid(spec)),
        ]
    }

    fn finish_grid(&self, spec: &DoraSpec) -> [usize; 3] {
        let [features, ranks] = FINISH_TILE;
        let tiles = spec.in_features().div_ceil(features) + spec.out_features().div_ceil(features);
        [tiles, spec.padded_rank().div_ceil(ranks), 1]
    }

    fn needs(&self) -> Needs {
        Needs { counters: 0, bytes: self.bytes }
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
