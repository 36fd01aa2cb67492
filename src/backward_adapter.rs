//! `backward_adapter`: P, dB, db and dm (axis output) from one read of dY
//! (kernels/backward_adapter.cu).

use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceRepr};

use crate::backward::{Backward, Gradients, zero};
use crate::error::Result;
use crate::forward::are_aligned;
use crate::kernels::{Entry, Kernels, THREADS};
use crate::prepare::{Prepared, optional};
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
    chunk: i32,
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
        let tokens = io.tokens;
        let plan = Plan::new(spec, tokens, self.sm_count());
        let grid = [plan.strips, plan.split.count, plan.rank_tiles];
        self.check_grid(Entry::BackwardAdapter, E::DTYPE, grid)?;
        let left_behind = Some((*spec, tokens));
        let scratch = workspace.reserve(stream, plan.needs(), tokens, left_behind)?;
        if tokens == 0 {
            if io.gradients == Gradients::Accumulate {
                return Ok(());
            }
            zero(stream, &mut io.grad_lora_b)?;
            if let Some(grad) = &mut io.grad_bias {
                zero(stream, grad)?;
            }
            return match (&mut io.grad_magnitude, spec.norm()) {
                (Some(grad), Norm::Output) => zero(stream, grad),
                _ => Ok(()),
            };
        }
        let on_output = spec.norm() == Norm::Output;

        let (grad_output, _guard) = io.grad_output.device_ptr(stream);
        let (x, _guard) = io.x.device_ptr(stream);
        let (weight, _guard) = io.weight.device_ptr(stream);
        let (h, _guard) = io.h.device_ptr(stream);
        let (output, _output) =
            io.output.as_ref().map_or((0, None), |y| optional(y.device_ptr(stream)));
        let (bias, _bias) = io.bias.as_ref().map_or((0, None), |b| optional(b.device_ptr(stream)));
        let (sb, _guard) = prepared.sb.device_ptr(stream);
        let (gsb, _guard) = prepared.gsb().device_ptr(stream);
        let (gain, _guard) = prepared.gain.device_ptr(stream);
        let (norm, _guard) = prepared.norm.device_ptr(stream);
        let (grad_lora_b, _guard) = io.grad_lora_b.device_ptr_mut(stream);
        let (grad_bias, _grad_bias) =
            io.grad_bias.as_mut().map_or((0, None), |grad| optional(grad.device_ptr_mut(stream)));
        let (grad_magnitude, _grad_magnitude) = match &mut io.grad_magnitude {
            Some(grad) if on_output => optional(grad.device_ptr_mut(stream)),
            _ => (0, None),
        };
        let only_on_output = |pointer| if on_output { pointer } else { 0 };
        let region = |offset: usize| scratch.regions + offset as u64;
        let row_lengths = [spec.out_features(), spec.padded_rank()];
        let params = BackwardAdapterParams {
            grad_output,
            output: only_on_output(output),
            x,
            weight,
            bias,
            h,
            sb,
            gsb,
            gain: only_on_output(gain),
            norm: only_on_output(norm),
            scaled_grad: only_on_output(region(plan.carried.scaled_grad)),
            p: region(plan.carried.p),
            grad_lora_b,
            grad_magnitude,
            grad_bias,
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
            chunk: plan.split.len as i32,
            aligned: i32::from(are_aligned::<E>(&row_lengths, &[grad_output, h, gsb])),
            accumulate: io.gradients.accumulate(),
            _padding: 0,
        };
        // SAFETY: the struct is the kernel's; each buffer was checked against the shape that it
        // accesses, and its guard orders this launch on the stream.
        unsafe { self.launch(stream, Entry::BackwardAdapter, E::DTYPE, grid, &params) }
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
        let rank_tiles = rank.div_ceil(RANK_TILE);
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
