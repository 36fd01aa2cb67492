//! `norm_gradient`: what dA and dB lack where the norm is not a constant
//! (kernels/norm_gradient/sm80.cu).

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};

use crate::error::{Error, Result};
use crate::forward::are_aligned;
use crate::kernels::{Entry, Kernels};
use crate::params::norm_gradient::{
    FINISH_FEATURES, FINISH_RANKS, GRAM_TILE, NormGradientParams, RANK_TILE, ROWS, STRIP_16_BIT,
    STRIP_F32,
};
use crate::prepare::{Prepared, check_magnitude_len};
use crate::raw;
use crate::spec::{DoraSpec, Dtype, Element, Norm, NormGrad, check_len};
use crate::workspace::{Needs, Regions, Split, Workspace};

const FINISH_TILE: [usize; 2] = [FINISH_FEATURES, FINISH_RANKS];

/// Inputs and outputs of [`Kernels::norm_gradient`], row-major and contiguous.
#[derive(Debug)]
pub struct NormGradient<'a, E> {
    /// W `[O, I]`, as given to `prepare`.
    pub weight: CudaView<'a, E>,
    /// A `[r, I]`, as given to `prepare`.
    pub lora_a: CudaView<'a, f32>,
    /// B `[O, r]`, as given to `prepare`.
    pub lora_b: CudaView<'a, f32>,
    /// dm `[I]` or `[O]`, of all the micro-batches since the last optimizer step.
    pub grad_magnitude: CudaView<'a, f32>,
    /// dA `[r, I]`, of the same micro-batches; read and written.
    pub grad_lora_a: CudaViewMut<'a, f32>,
    /// dB `[O, r]`, of the same micro-batches; read and written.
    pub grad_lora_b: CudaViewMut<'a, f32>,
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
    /// there is none, [`Error::Dtype`], [`Error::Shape`], [`Error::NotPrepared`],
    /// [`Error::WorkspaceTooSmall`], [`Error::DeviceLimit`], [`Error::ContextMismatch`]. Afterwards
    /// [`Error::Driver`].
    pub fn norm_gradient<E: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared<E>,
        workspace: &mut Workspace,
        mut io: NormGradient<'_, E>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        check_spec(spec)?;
        prepared.check(self, spec)?;
        self.check_buffer(workspace.buffer())?;
        io.check(self, spec)?;
        let plan = Plan::new(spec, self.sm_count());
        self.check_grid(Entry::NormGradient, E::DTYPE, plan.grid())?;
        self.check_grid(Entry::NormGradientFinish, E::DTYPE, plan.finish_grid(spec))?;
        workspace.size().check(plan.needs(), 0)?;

        let (scratch, _guard) = workspace.lend(stream);
        let (prepared, _guards) = prepared.lend(stream);
        let (weight, _guard) = io.weight.device_ptr(stream);
        let (lora_a, _guard) = io.lora_a.device_ptr(stream);
        let (lora_b, _guard) = io.lora_b.device_ptr(stream);
        let (grad_magnitude, _guard) = io.grad_magnitude.device_ptr(stream);
        let (grad_lora_a, _guard) = io.grad_lora_a.device_ptr_mut(stream);
        let (grad_lora_b, _guard) = io.grad_lora_b.device_ptr_mut(stream);
        let raw =
            raw::NormGradient { weight, lora_a, lora_b, grad_magnitude, grad_lora_a, grad_lora_b };
        // SAFETY: each buffer was checked against its shape, and its guard orders the launches on
        // the stream.
        unsafe { self.norm_gradient_raw(stream, spec, &prepared, &scratch, &raw) }
    }

    /// [`Kernels::norm_gradient`] on device addresses.
    ///
    /// # Safety
    /// As for [`Kernels::forward_raw`], with what [`raw::NormGradient`] says.
    ///
    /// # Errors
    /// [`Error::NoNormGradient`], and those of [`Kernels::forward_raw`].
    pub unsafe fn norm_gradient_raw(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &raw::Prepared,
        workspace: &raw::Workspace,
        io: &raw::NormGradient,
    ) -> Result<()> {
        self.check_stream(stream)?;
        check_spec(spec)?;
        prepared.check(spec)?;
        if spec.rank() == 0 {
            // There are no dA and dB.
            return Ok(());
        }
        io.check(spec)?;
        let dtype = spec.dtype();
        let plan = Plan::new(spec, self.sm_count());
        let finish_grid = plan.finish_grid(spec);
        self.check_grid(Entry::NormGradient, dtype, plan.grid())?;
        self.check_grid(Entry::NormGradientFinish, dtype, finish_grid)?;
        let scratch = workspace.parts(plan.needs(), 0)?;
        let region = |offset: usize| scratch.regions + offset as u64;
        let params = NormGradientParams {
            weight: io.weight,
            lora_a: io.lora_a,
            lora_b: io.lora_b,
            gain: prepared.gain,
            norm: prepared.norm,
            grad_magnitude: io.grad_magnitude,
            grad_lora_a: io.grad_lora_a,
            grad_lora_b: io.grad_lora_b,
            partial_a: region(plan.partial_a),
            partial_b: region(plan.partial_b),
            grams: region(plan.grams),
            scaling: spec.scaling(),
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            rank: spec.rank() as i32,
            padded_rank: spec.padded_rank() as i32,
            norm_on_input: i32::from(spec.norm() == Norm::Input),
            strips: plan.strips as i32,
            chunk: plan.split.len as i32,
            chunks: plan.split.count as i32,
            aligned: i32::from(are_aligned(dtype, &[spec.in_features()], &[io.weight])),
            aligned_a: i32::from(are_aligned(Dtype::F32, &[spec.in_features()], &[io.lora_a])),
            aligned_b: i32::from(are_aligned(Dtype::F32, &[spec.rank()], &[io.lora_b])),
        };
        // SAFETY: the struct is the kernels'; the caller vouches for the addresses.
        unsafe {
            self.launch(stream, Entry::NormGradient, dtype, plan.grid(), &params)?;
            self.launch(stream, Entry::NormGradientFinish, dtype, finish_grid, &params)
        }
    }
}

impl raw::NormGradient {
    /// Checks what can be told from the numbers.
    fn check(&self, spec: &DoraSpec) -> Result<()> {
        let single = size_of::<f32>();
        raw::present("weight", self.weight, spec.dtype().bytes())?;
        raw::present("lora_A", self.lora_a, single)?;
        raw::present("lora_B", self.lora_b, single)?;
        raw::present("grad_magnitude", self.grad_magnitude, single)?;
        raw::present("grad_lora_A", self.grad_lora_a, single)?;
        raw::present("grad_lora_B", self.grad_lora_b, single)
    }
}

fn check_spec(spec: &DoraSpec) -> Result<()> {
    let reason = match (spec.norm(), spec.norm_grad()) {
        (Norm::None, _) => "plain LoRA has no norm: leave norm_gradient out",
        (_, NormGrad::Detached) => {
            "the spec's norm is detached: make the spec with NormGrad::Exact, or leave \
             norm_gradient out"
        }
        (_, NormGrad::Exact) => return Ok(()),
    };
    Err(Error::NoNormGradient { reason })
}

impl<E> NormGradient<'_, E> {
    fn check(&self, kernels: &Kernels, spec: &DoraSpec) -> Result<()> {
        let (inputs, outputs) = (("I", spec.in_features()), ("O", spec.out_features()));
        let rank = ("r", spec.rank());
        check_len("weight", self.weight.len(), outputs, inputs)?;
        check_len("lora_A", self.lora_a.len(), rank, inputs)?;
        check_len("lora_B", self.lora_b.len(), outputs, rank)?;
        check_magnitude_len("grad_magnitude", spec, self.grad_magnitude.len())?;
        check_len("grad_lora_A", self.grad_lora_a.len(), rank, inputs)?;
        check_len("grad_lora_B", self.grad_lora_b.len(), outputs, rank)?;
        kernels.check_buffer(&self.weight)?;
        for input in [&self.lora_a, &self.lora_b, &self.grad_magnitude] {
            kernels.check_buffer(input)?;
        }
        kernels.check_buffer(&self.grad_lora_a)?;
        kernels.check_buffer(&self.grad_lora_b)
    }
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

    fn grid(&self) -> [usize; 3] {
        [self.strips + self.gram_tiles, self.split.count, self.rank_tiles]
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
pub(crate) fn needs(spec: &DoraSpec, sm_count: usize) -> Needs {
    match spec.norm_grad() {
        NormGrad::Detached => Needs { counters: 0, bytes: 0 },
        NormGrad::Exact => Plan::new(spec, sm_count).needs(),
    }
}
