//! `forward`: the adapted linear layer in two launches (kernels/forward.cu).

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr};

use crate::error::Result;
use crate::kernels::{Entry, Kernels, THREADS};
use crate::prepare::{Prepared, optional};
use crate::spec::{DoraSpec, Element, Norm, check_len};
use crate::workspace::{Needs, Regions, Workspace};

/// Tokens and ranks of one tile of H (LowRank in the kernel).
const LOW_RANK_TILE: [usize; 2] = [64, 64];

/// Tokens and output features of one tile of y (MainGemm in the kernels).
pub(crate) const MAIN_TILE: [usize; 2] = [128, 128];

/// The kernel's ForwardParams.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct ForwardParams {
    x: u64,
    weight: u64,
    a: u64,
    sb: u64,
    bias: u64,
    gain: u64,
    xs: u64,
    h: u64,
    y: u64,
    seed: u64,
    tokens: i32,
    in_features: i32,
    out_features: i32,
    padded_rank: i32,
    gain_on_input: i32,
    aligned: i32,
}

// SAFETY: a C struct of plain values, laid out as the kernel declares it.
unsafe impl DeviceRepr for ForwardParams {}

/// `forward_geometry` of the kernel file.
#[doc(hidden)]
pub const GEOMETRY: [usize; 6] = [
    LOW_RANK_TILE[0],
    LOW_RANK_TILE[1],
    MAIN_TILE[0],
    MAIN_TILE[1],
    THREADS as usize,
    size_of::<ForwardParams>(),
];

/// Inputs and outputs of [`Kernels::forward`], row-major and contiguous.
#[derive(Debug)]
pub struct Forward<'a, E> {
    /// T, the number of tokens; may be 0.
    pub tokens: usize,
    /// x `[T, I]`.
    pub x: CudaView<'a, E>,
    /// W `[O, I]`, as given to `prepare`.
    pub weight: CudaView<'a, E>,
    /// b `[O]`: a frozen one, or [`Prepared::bias`].
    pub bias: Option<CudaView<'a, E>>,
    /// Seed of the stochastic rounding of x∘g (norm axis input in 16 bit; otherwise unused). Use
    /// another one each step; the same one gives the same bits.
    pub seed: u64,
    /// y `[T, O]`, written.
    pub y: CudaViewMut<'a, E>,
    /// H = (x∘g)·Aᵀ or x·Aᵀ, `[T, R]`, written: keep it for the backward.
    pub h: CudaViewMut<'a, E>,
}

impl Kernels {
    /// The adapted linear layer: y = (x∘g)·Vᵀ + b (norm axis input), g∘(x·Vᵀ) + b (output), or
    /// x·Vᵀ + b (plain LoRA), with V = W + s·B·A never formed. Two launches; one for rank 0, unless
    /// the norm axis is the input.
    ///
    /// Error, elementwise against float64: ε|y| + 64u(1 + I/4096)·|g|(|x||W|ᵀ) + ε·s|g|(|x||A|ᵀ)|B|ᵀ
    /// with u = 2⁻²⁴ and ε = 2⁻⁸ (bf16) or 2⁻¹¹ (f16), and 2ε|x∘g||V|ᵀ more for the stochastic
    /// rounding of norm axis input; [`crate::reference::bounds`] has all terms.
    /// Formula: DoRA (arXiv:2402.09353) §4.1, factored.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::Dtype`], [`Error::Shape`], [`Error::NotPrepared`],
    /// [`Error::WorkspaceTooSmall`], [`Error::DeviceLimit`], [`Error::ContextMismatch`],
    /// [`Error::InvalidSpec`] for too many tokens. Afterwards [`Error::Driver`].
    ///
    /// [`Error::Dtype`]: crate::Error::Dtype
    /// [`Error::Shape`]: crate::Error::Shape
    /// [`Error::NotPrepared`]: crate::Error::NotPrepared
    /// [`Error::WorkspaceTooSmall`]: crate::Error::WorkspaceTooSmall
    /// [`Error::DeviceLimit`]: crate::Error::DeviceLimit
    /// [`Error::ContextMismatch`]: crate::Error::ContextMismatch
    /// [`Error::InvalidSpec`]: crate::Error::InvalidSpec
    /// [`Error::Driver`]: crate::Error::Driver
    pub fn forward<E: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared<E>,
        workspace: &mut Workspace,
        mut io: Forward<'_, E>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        prepared.check(self, spec)?;
        self.check_buffer(workspace.buffer())?;
        spec.check_tokens(io.tokens)?;
        check(spec, &io)?;
        self.check_buffer(&io.x)?;
        self.check_buffer(&io.weight)?;
        self.check_buffer(&io.y)?;
        self.check_buffer(&io.h)?;
        io.bias.as_ref().map_or(Ok(()), |bias| self.check_buffer(bias))?;
        let tokens = io.tokens;
        // The launch for H is also the one that writes x∘g.
        let rank_tiles = spec.padded_rank().div_ceil(LOW_RANK_TILE[1]);
        let rank_tiles = rank_tiles.max(usize::from(spec.norm() == Norm::Input));
        let low_rank_grid = [tokens.div_ceil(LOW_RANK_TILE[0]), rank_tiles, 1];
        let main_tiles = tokens
            .div_ceil(MAIN_TILE[0])
            .saturating_mul(spec.out_features().div_ceil(MAIN_TILE[1]));
        self.check_grid(Entry::ForwardLowRank, E::DTYPE, low_rank_grid)?;
        self.check_grid(Entry::Forward, E::DTYPE, [main_tiles, 1, 1])?;
        let scratch = workspace.reserve(stream, needs(spec, tokens), tokens, None)?;
        if tokens == 0 {
            return Ok(());
        }

        let (x, _guard) = io.x.device_ptr(stream);
        let (weight, _guard) = io.weight.device_ptr(stream);
        let (bias, _bias) =
            io.bias.as_ref().map_or((0, None), |bias| optional(bias.device_ptr(stream)));
        let (a, _guard) = prepared.a.device_ptr(stream);
        let (sb, _guard) = prepared.sb.device_ptr(stream);
        let (gain, _guard) = prepared.gain.device_ptr(stream);
        let (h, _guard) = io.h.device_ptr_mut(stream);
        let (y, _guard) = io.y.device_ptr_mut(stream);
        let xs = if spec.norm() == Norm::Input { scratch.regions } else { 0 };
        let rows = [spec.in_features(), spec.padded_rank(), spec.out_features()];
        let params = ForwardParams {
            x,
            weight,
            a,
            sb,
            bias,
            gain: if spec.norm() == Norm::None { 0 } else { gain },
            xs,
            h,
            y,
            seed: io.seed,
            tokens: tokens as i32,
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            padded_rank: spec.padded_rank() as i32,
            gain_on_input: i32::from(spec.norm() == Norm::Input),
            aligned: i32::from(are_aligned::<E>(&rows, &[x, weight, a, sb, h, y])),
        };
        // SAFETY: the struct is the kernels'; each buffer was checked against the shape that they
        // access, and its guard orders these launches on the stream.
        unsafe {
            if rank_tiles > 0 {
                self.launch(stream, Entry::ForwardLowRank, E::DTYPE, low_rank_grid, &params)?;
            }
            self.launch(stream, Entry::Forward, E::DTYPE, [main_tiles, 1, 1], &params)
        }
    }
}

/// Whether rows of these lengths at these addresses all start at 16-byte boundaries: then kernels
/// move 16 bytes at a time.
pub(crate) fn are_aligned<E: Element>(row_lengths: &[usize], pointers: &[u64]) -> bool {
    const VECTOR_BYTES: usize = 16;
    row_lengths.iter().all(|len| (len * size_of::<E>()).is_multiple_of(VECTOR_BYTES))
        && pointers.iter().all(|pointer| pointer.is_multiple_of(VECTOR_BYTES as u64))
}

fn check<E>(spec: &DoraSpec, io: &Forward<'_, E>) -> Result<()> {
    let tokens = ("T", io.tokens);
    let (inputs, outputs) = (("I", spec.in_features()), ("O", spec.out_features()));
    check_len("x", io.x.len(), tokens, inputs)?;
    check_len("weight", io.weight.len(), outputs, inputs)?;
    if let Some(bias) = &io.bias {
        check_len("bias", bias.len(), ("1", 1), outputs)?;
    }
    check_len("y", io.y.len(), tokens, outputs)?;
    check_len("h", io.h.len(), tokens, ("R", spec.padded_rank()))
}

/// x∘g of norm axis input.
pub(crate) fn needs(spec: &DoraSpec, tokens: usize) -> Needs {
    let mut regions = Regions::default();
    if spec.norm() == Norm::Input {
        regions.take(tokens.saturating_mul(spec.in_features()), spec.dtype().bytes());
    }
    Needs { counters: 0, bytes: regions.bytes() }
}
