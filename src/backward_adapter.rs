//! `backward_adapter`: P, dB, db and dm (axis output) from one read of dY
//! (kernels/backward_adapter.cu).

use std::sync::Arc;

use cudarc::driver::{CudaStream, DeviceRepr};

use crate::backward::{Backward, Gradients, zero};
use crate::error::Result;
use crate::forward::are_aligned;
use crate::kernels::{Entry, Kernels, THREADS};
use crate::prepare::Prepared;
use crate::raw;
use crate::spec::{DoraSpec, Dtype, Element, Norm};
use crate::workspace::{Needs, Regions, Split, Workspace};

/// Output features of a CTA and tokens of a tile, in 16 bit and in f32 (Adapter in the kernel).
const TILE_16_BIT: [usize; 2] = [128, 32];
const TILE_F32: [usize; 2] = [64, 16];

/// Ranks of a CTA (kRankTile).
const RANK_TILE: usize = 64;

/// The kernel's BackwardAdapterParams.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct BackwardAdapterParams {
    grad_output: u64,
    output: u64,
    x: u64,
    weight: u64,
    bias: u64,
    h: u64,
    sb: u64,
    gsb: u64,
    gain: u64,
    norm: u64,
    scaled_grad: u64,
    p: u64,
    grad_lora_b: u64,
    grad_magnitude: u64,
    grad_bias: u64,
    partial_p: u64,
    partial_b: u64,
    partial_bias: u64,
    partial_m: u64,
    chunk_counters: u64,
    strip_counters: u64,
    scaling: f32,
    tokens: i32,
    in_features: i32,
    out_features: i32,
    rank: i32,
    padded_rank: i32,
    grad_stride: i32,
    output_stride: i32,
    x_stride: i32,
    chunk: i32,
    peft_dropout: i32,
    aligned: i32,
    accumulate: i32,
    _padding: i32,
}

// SAFETY: a C struct of plain values, laid out as the kernel declares it.
unsafe impl DeviceRepr for BackwardAdapterParams {}

/// `backward_adapter_geometry` of the kernel file.
#[doc(hidden)]
pub const GEOMETRY: [usize; 7] = [
    TILE_16_BIT[0],
    TILE_16_BIT[1],
    TILE_F32[0],
    TILE_F32[1],
    RANK_TILE,
    THREADS as usize,
    size_of::<BackwardAdapterParams>(),
];

impl Kernels {
    /// The gradients that need dY but not W: dB = s·(g∘)dYᵀH, db = Σ_t dY, for norm axis output
    /// dm = (Σ_t dY∘z)/c with z = x·Vᵀ taken from y, and P = dY·(g∘)(sB), which stays in the
    /// workspace for [`Kernels::backward_input`]. One launch, one read of dY.
    ///
    /// Formulas: the chain rule on the forward; c constant as in DoRA (arXiv:2402.09353) §4.3.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::Dtype`], [`Error::Shape`], [`Error::NotPrepared`],
    /// [`Error::MissingTensor`], [`Error::UnexpectedTensor`], [`Error::WorkspaceTooSmall`],
    /// [`Error::DeviceLimit`], [`Error::ContextMismatch`], [`Error::InvalidSpec`] for too many tokens.
    /// Afterwards [`Error::Driver`].
    ///
    /// [`Error::Dtype`]: crate::Error::Dtype
    /// [`Error::Shape`]: crate::Error::Shape
    /// [`Error::NotPrepared`]: crate::Error::NotPrepared
    /// [`Error::MissingTensor`]: crate::Error::MissingTensor
    /// [`Error::UnexpectedTensor`]: crate::Error::UnexpectedTensor
    /// [`Error::WorkspaceTooSmall`]: crate::Error::WorkspaceTooSmall
    /// [`Error::DeviceLimit`]: crate::Error::DeviceLimit
    /// [`Error::ContextMismatch`]: crate::Error::ContextMismatch
    /// [`Error::InvalidSpec`]: crate::Error::InvalidSpec
    /// [`Error::Driver`]: crate::Error::Driver
    pub fn backward_adapter<E: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared<E>,
        workspace: &mut Workspace,
        io: &mut Backward<'_, E>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        prepared.check(self, spec)?;
        self.check_buffer(workspace.buffer())?;
        io.check(self, spec)?;
        let plan = Plan::new(spec, io.tokens, self.sm_count());
        self.check_grid(Entry::BackwardAdapter, E::DTYPE, plan.grid())?;
        workspace.size().check(plan.needs(), io.tokens)?;

        let (prepared, _guards) = prepared.lend(stream);
        let left_behind = Some((*spec, io.tokens));
        let (scratch, _guard) = workspace.lend(stream, left_behind);
        let (raw, _guards) = io.lend(stream, spec);
        // SAFETY: each buffer was checked against its shape, and its guard orders the launch on the
        // stream.
        unsafe { self.backward_adapter_raw(stream, spec, &prepared, &scratch, &raw) }
    }

    /// [`Kernels::backward_adapter`] on device addresses; P stays in the workspace.
    ///
    /// # Safety
    /// As for [`Kernels::backward_raw`].
    ///
    /// # Errors
    /// Those of [`Kernels::forward_raw`].
    pub unsafe fn backward_adapter_raw(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &raw::Prepared,
        workspace: &raw::Workspace,
        io: &raw::Backward,
    ) -> Result<()> {
        self.check_stream(stream)?;
        let peft = io.check(spec)?;
        prepared.check(spec)?;
        let (tokens, dtype) = (io.tokens, spec.dtype());
        let plan = Plan::new(spec, tokens, self.sm_count());
        self.check_grid(Entry::BackwardAdapter, dtype, plan.grid())?;
        let scratch = workspace.parts(plan.needs(), tokens)?;
        let on_output = spec.norm() == Norm::Output;
        let only_on_output = |pointer| if on_output { pointer } else { 0 };
        let grad_magnitude = only_on_output(io.grad_magnitude);
        if tokens == 0 {
            if io.gradients == Gradients::Accumulate {
                return Ok(());
            }
            // SAFETY: the caller vouches for the addresses.
            return unsafe {
                zero(stream, io.grad_lora_b, spec.out_features() * spec.rank())?;
                zero(stream, io.grad_bias, spec.out_features())?;
                zero(stream, grad_magnitude, spec.out_features())
            };
        }

        let region = |offset: usize| scratch.regions + offset as u64;
        let gsb = prepared.contracted(spec);
        let row_lengths = [spec.out_features(), io.grad_output.stride, spec.padded_rank()];
        let params = BackwardAdapterParams {
            grad_output: io.grad_output.pointer,
            output: if peft { io.z } else { only_on_output(io.output.pointer) },
            x: io.x.pointer,
            weight: io.weight,
            bias: io.bias,
            h: io.h,
            sb: prepared.sb,
            gsb,
            gain: only_on_output(prepared.gain),
            norm: only_on_output(prepared.norm),
            scaled_grad: only_on_output(region(plan.carried.scaled_grad)),
            p: region(plan.carried.p),
            grad_lora_b: io.grad_lora_b,
            grad_magnitude,
            grad_bias: io.grad_bias,
            partial_p: region(plan.partial_p),
            partial_b: region(plan.partial_b),
            partial_bias: region(plan.partial_bias),
            partial_m: region(plan.partial_m),
            chunk_counters: scratch.counters,
            strip_counters: scratch.counters + (plan.chunk_counters() * size_of::<u32>()) as u64,
            scaling: spec.scaling(),
            tokens: tokens as i32,
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            rank: spec.rank() as i32,
            padded_rank: spec.padded_rank() as i32,
            grad_stride: io.grad_output.stride as i32,
            output_stride: if peft { spec.out_features() } else { io.output.stride } as i32,
            x_stride: io.x.stride as i32,
            chunk: plan.split.len as i32,
            peft_dropout: i32::from(peft),
            aligned: i32::from(are_aligned(
                dtype,
                &row_lengths,
                &[io.grad_output.pointer, io.h, gsb],
            )),
            accumulate: io.gradients.accumulate(),
            _padding: 0,
        };
        // SAFETY: the struct is the kernel's; the caller vouches for the addresses.
        unsafe { self.launch(stream, Entry::BackwardAdapter, dtype, plan.grid(), &params) }
    }
}

/// What the workspace carries from `backward_adapter` to `backward_input`, as region offsets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Carried {
    /// P `[T, R]`.
    pub(crate) p: usize,
    /// G = dY∘g `[T, O]`; norm axis output only.
    pub(crate) scaled_grad: usize,
}

impl Carried {
    /// Reserves the carried regions, which come first.
    pub(crate) fn new(regions: &mut Regions, spec: &DoraSpec, tokens: usize) -> Self {
        let bytes = spec.dtype().bytes();
        let p = regions.take(tokens.saturating_mul(spec.padded_rank()), bytes);
        let width = if spec.norm() == Norm::Output { spec.out_features() } else { 0 };
        Self { p, scaled_grad: regions.take(tokens.saturating_mul(width), bytes) }
    }
}

/// The launch for one spec and number of tokens.
struct Plan {
    strips: usize,
    split: Split,
    rank_tiles: usize,
    carried: Carried,
    partial_p: usize,
    partial_b: usize,
    partial_bias: usize,
    partial_m: usize,
    bytes: usize,
}

impl Plan {
    fn new(spec: &DoraSpec, tokens: usize, sm_count: usize) -> Self {
        let [strip, tile] = if spec.dtype() == Dtype::F32 { TILE_F32 } else { TILE_16_BIT };
        let (features, rank) = (spec.out_features(), spec.padded_rank());
        let strips = features.div_ceil(strip);
        // db and dm need a launch for rank 0, too.
        let rank_tiles = rank.div_ceil(RANK_TILE).max(1);
        let split = Split::new(tokens, tile, strips * rank_tiles, sm_count);
        let mut regions = Regions::default();
        let carried = Carried::new(&mut regions, spec, tokens);
        let mut partial =
            |rows: usize, cols: usize| regions.take(rows.saturating_mul(cols), size_of::<f32>());
        let partial_p = partial(strips * tokens, rank);
        let partial_b = partial(split.capacity * features, rank);
        let partial_bias = partial(split.capacity, features);
        let partial_m = partial(split.capacity, features);
        let bytes = regions.bytes();
        Self {
            strips,
            split,
            rank_tiles,
            carried,
            partial_p,
            partial_b,
            partial_bias,
            partial_m,
            bytes,
        }
    }

    fn grid(&self) -> [usize; 3] {
        [self.strips, self.split.count, self.rank_tiles]
    }

    fn chunk_counters(&self) -> usize {
        self.split.capacity * self.rank_tiles
    }

    fn needs(&self) -> Needs {
        let counters = self.chunk_counters() + self.strips * self.rank_tiles;
        Needs { counters, bytes: self.bytes }
    }
}

pub(crate) fn needs(spec: &DoraSpec, tokens: usize, sm_count: usize) -> Needs {
    Plan::new(spec, tokens, sm_count).needs()
}

/// Chunks of T that its partial sums of dB, db and dm come from.
pub(crate) fn chunks(spec: &DoraSpec, tokens: usize, sm_count: usize) -> usize {
    Plan::new(spec, tokens, sm_count).split.count
}
