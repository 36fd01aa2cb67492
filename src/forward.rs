//! `forward`: the adapted linear layer in one launch (kernels/forward.cu).

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr};

use crate::dropout::{Dropout, KernelDropout};
use crate::error::{Error, Result};
use crate::kernels::{Entry, Kernels, THREADS};
use crate::prepare::{Prepared, optional};
use crate::raw::{self, absent_or, present};
use crate::rows::{MatrixView, MatrixViewMut};
use crate::spec::{DoraSpec, Dtype, Element, Norm, check_len};
use crate::workspace::{Needs, Regions, Workspace, board_counters};

/// Tokens and ranks of one tile of H (LowRank in the kernel).
const LOW_RANK_TILE: [usize; 2] = [64, 64];

/// Tokens and output features of one tile of y (MainGemm in the kernels).
pub(crate) const MAIN_TILE: [usize; 2] = [128, 128];

/// Rows of main tiles that are done together (TileOrder::kGroup in the kernels).
pub(crate) const MAIN_TILE_GROUP: usize = 8;

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
    rest: u64,
    h: u64,
    z: u64,
    y: u64,
    board: u64,
    seed: u64,
    dropout: KernelDropout,
    low_rank_tiles: i32,
    tokens: i32,
    in_features: i32,
    out_features: i32,
    padded_rank: i32,
    x_stride: i32,
    y_stride: i32,
    gain_on_input: i32,
    aligned: i32,
    _padding: i32,
}

// SAFETY: a C struct of plain values, laid out as the kernel declares it.
unsafe impl DeviceRepr for ForwardParams {}

/// `forward_geometry` of the kernel file.
#[doc(hidden)]
pub const GEOMETRY: [usize; 7] = [
    LOW_RANK_TILE[0],
    LOW_RANK_TILE[1],
    MAIN_TILE[0],
    MAIN_TILE[1],
    MAIN_TILE_GROUP,
    THREADS as usize,
    size_of::<ForwardParams>(),
];

/// Inputs and outputs of [`Kernels::forward`], row-major.
#[derive(Debug)]
pub struct Forward<'a, E> {
    /// T, the number of tokens; may be 0.
    pub tokens: usize,
    /// x `[T, I]`.
    pub x: MatrixView<'a, E>,
    /// W `[O, I]`, as given to `prepare`.
    pub weight: CudaView<'a, E>,
    /// b `[O]`: a frozen one, or [`Prepared::bias`].
    pub bias: Option<CudaView<'a, E>>,
    /// Seed of the stochastic rounding of x∘g (norm axis input in 16 bit; otherwise unused). Use
    /// another one each step; the same one gives the same bits.
    pub seed: u64,
    /// Dropout of x, in training.
    pub dropout: Option<Dropout>,
    /// z `[T, O]`, written, for PEFT's dropout with norm axis output only: keep it for the backward.
    pub z: Option<CudaViewMut<'a, E>>,
    /// y `[T, O]`, written.
    pub y: MatrixViewMut<'a, E>,
    /// H = (x∘g)·Aᵀ or x·Aᵀ, `[T, R]`, written: keep it for the backward.
    pub h: CudaViewMut<'a, E>,
}

impl Kernels {
    /// The adapted linear layer: y = (x∘g)·Vᵀ + b (norm axis input), g∘(x·Vᵀ) + b (output), or
    /// x·Vᵀ + b (plain LoRA), with V = W + s·B·A never formed. One launch.
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
        self.check_buffer(&io.x.view)?;
        self.check_buffer(&io.weight)?;
        self.check_buffer(&io.y.view)?;
        self.check_buffer(&io.h)?;
        io.bias.as_ref().map_or(Ok(()), |bias| self.check_buffer(bias))?;
        io.z.as_ref().map_or(Ok(()), |z| self.check_buffer(z))?;
        self.check_forward(spec, io.tokens, io.dropout.as_ref())?;
        workspace.size().check(needs(spec, io.tokens), io.tokens)?;

        let (prepared, _guards) = prepared.lend(stream);
        let (scratch, _guard) = workspace.lend(stream);
        let (x_stride, y_stride) =
            (io.x.stride(spec.in_features()), io.y.stride(spec.out_features()));
        let (x, _guard) = io.x.view.device_ptr(stream);
        let (weight, _guard) = io.weight.device_ptr(stream);
        let (bias, _bias) =
            io.bias.as_ref().map_or((0, None), |bias| optional(bias.device_ptr(stream)));
        let (h, _guard) = io.h.device_ptr_mut(stream);
        let (z, _z) = io.z.as_mut().map_or((0, None), |z| optional(z.device_ptr_mut(stream)));
        let (y, _guard) = io.y.view.device_ptr_mut(stream);
        let raw = raw::Forward {
            tokens: io.tokens,
            x: raw::Matrix { pointer: x, stride: x_stride },
            weight,
            bias,
            seed: io.seed,
            dropout: io.dropout,
            z,
            y: raw::Matrix { pointer: y, stride: y_stride },
            h,
        };
        // SAFETY: each buffer was checked against its shape, and its guard orders the launches on
        // the stream.
        unsafe { self.forward_raw(stream, spec, &prepared, &scratch, &raw) }
    }

    /// [`Kernels::forward`] on device addresses.
    ///
    /// # Safety
    /// Every address that is not 0 is one of the kernels' context, of memory that holds what
    /// [`raw::Forward`] says, valid until the stream has run the launches, and ordered on it against
    /// other uses; what is written overlaps with nothing else. `prepared` was left by
    /// [`Kernels::prepare_raw`] for this spec and the adapter as it is.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::MissingTensor`], [`Error::Misaligned`],
    /// [`Error::Stride`], [`Error::WorkspaceTooSmall`], [`Error::DeviceLimit`],
    /// [`Error::ContextMismatch`], [`Error::InvalidSpec`] for too many tokens. Afterwards
    /// [`Error::Driver`].
    ///
    /// [`Error::MissingTensor`]: crate::Error::MissingTensor
    /// [`Error::Misaligned`]: crate::Error::Misaligned
    /// [`Error::Stride`]: crate::Error::Stride
    /// [`Error::WorkspaceTooSmall`]: crate::Error::WorkspaceTooSmall
    /// [`Error::DeviceLimit`]: crate::Error::DeviceLimit
    /// [`Error::ContextMismatch`]: crate::Error::ContextMismatch
    /// [`Error::InvalidSpec`]: crate::Error::InvalidSpec
    /// [`Error::Driver`]: crate::Error::Driver
    pub unsafe fn forward_raw(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &raw::Prepared,
        workspace: &raw::Workspace,
        io: &raw::Forward,
    ) -> Result<()> {
        self.check_stream(stream)?;
        spec.check_tokens(io.tokens)?;
        let tokens = io.tokens;
        let grid = self.check_forward(spec, tokens, io.dropout.as_ref())?;
        let scratch = workspace.parts(needs(spec, tokens), tokens)?;
        if tokens == 0 {
            return Ok(());
        }
        let peft = check_raw(spec, prepared, io)?;
        let dtype = spec.dtype();
        let [xs, rest] = Inputs::new(spec, tokens).offsets.map(|at| scratch.regions + at as u64);
        let only_if = |needed: bool, pointer| if needed { pointer } else { 0 };
        let rows =
            [spec.in_features(), spec.padded_rank(), spec.out_features(), io.x.stride, io.y.stride];
        let pointers = [io.x.pointer, io.weight, prepared.a, prepared.sb, io.h, io.y.pointer];
        let params = ForwardParams {
            x: io.x.pointer,
            weight: io.weight,
            a: prepared.a,
            sb: prepared.sb,
            bias: io.bias,
            gain: if spec.norm() == Norm::None { 0 } else { prepared.gain },
            xs: only_if(spec.norm() == Norm::Input || peft, xs),
            rest: only_if(peft, rest),
            h: io.h,
            z: io.z,
            y: io.y.pointer,
            board: scratch.counters,
            seed: io.seed,
            dropout: io.dropout.map_or(KernelDropout::default(), |dropout| dropout.kernel()),
            low_rank_tiles: low_rank_tiles(spec, peft) as i32,
            tokens: tokens as i32,
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            padded_rank: spec.padded_rank() as i32,
            x_stride: io.x.stride as i32,
            y_stride: io.y.stride as i32,
            gain_on_input: i32::from(spec.norm() == Norm::Input),
            aligned: i32::from(are_aligned(dtype, &rows, &pointers)),
            _padding: 0,
        };
        let entry = self.forward_entry(dtype, io.dropout.as_ref(), peft);
        // SAFETY: the struct is the kernel's; the caller vouches for the addresses.
        unsafe { self.launch(stream, entry, dtype, grid, &params) }
    }

    /// The grid, within the device's limits: a CTA for each tile of H and of y.
    fn check_forward(
        &self,
        spec: &DoraSpec,
        tokens: usize,
        dropout: Option<&Dropout>,
    ) -> Result<[usize; 3]> {
        let peft = Dropout::check(dropout, spec)?;
        let low_rank = tokens.div_ceil(LOW_RANK_TILE[0]) * low_rank_tiles(spec, peft);
        let main = tokens
            .div_ceil(MAIN_TILE[0])
            .saturating_mul(spec.out_features().div_ceil(MAIN_TILE[1]));
        let grid = [low_rank.saturating_add(main), 1, 1];
        let entry = self.forward_entry(spec.dtype(), dropout, peft);
        self.check_grid(entry, spec.dtype(), grid)?;
        Ok(grid)
    }

    fn forward_entry(&self, dtype: Dtype, dropout: Option<&Dropout>, peft: bool) -> Entry {
        match (dropout, peft) {
            (_, true) => Entry::ForwardPeftDropout,
            (Some(_), false) => Entry::ForwardDropout,
            (None, false) => self.by_math(dtype, Entry::Forward, Entry::ForwardTf32x3),
        }
    }
}

/// Columns of tiles of H; the first one also writes x∘g, or x∘M, where there is one.
fn low_rank_tiles(spec: &DoraSpec, peft: bool) -> usize {
    let also_xs = usize::from(spec.norm() == Norm::Input || peft);
    spec.padded_rank().div_ceil(LOW_RANK_TILE[1]).max(also_xs)
}

/// Checks what can be told from the numbers, and tells whether the dropout is PEFT's.
fn check_raw(spec: &DoraSpec, prepared: &raw::Prepared, io: &raw::Forward) -> Result<bool> {
    let peft = Dropout::check(io.dropout.as_ref(), spec)?;
    check_z(peft, io.z != 0)?;
    let bytes = spec.dtype().bytes();
    io.x.present("x", spec.in_features(), bytes)?;
    present("weight", io.weight, bytes)?;
    absent_or("bias", io.bias, bytes)?;
    io.y.present("y", spec.out_features(), bytes)?;
    if spec.rank() > 0 {
        present("h", io.h, bytes)?;
    }
    absent_or("z", io.z, bytes)?;
    prepared.check(spec)?;
    Ok(peft)
}

/// Checks that z is there if it is needed.
pub(crate) fn check_z(needed: bool, given: bool) -> Result<()> {
    let tensor = "z";
    match (needed, given) {
        (true, false) => {
            let reason = "PEFT's dropout keeps it from the forward to the backward";
            Err(Error::MissingTensor { tensor, reason })
        }
        (false, true) => {
            let reason = "only PEFT's dropout with norm axis output keeps it";
            Err(Error::UnexpectedTensor { tensor, reason })
        }
        _ => Ok(()),
    }
}

/// Whether rows of these lengths at these addresses all start at 16-byte boundaries: then kernels
/// move 16 bytes at a time.
pub(crate) fn are_aligned(dtype: Dtype, row_lengths: &[usize], pointers: &[u64]) -> bool {
    const VECTOR_BYTES: usize = 16;
    row_lengths.iter().all(|len| (len * dtype.bytes()).is_multiple_of(VECTOR_BYTES))
        && pointers.iter().all(|pointer| pointer.is_multiple_of(VECTOR_BYTES as u64))
}

fn check<E: Element>(spec: &DoraSpec, io: &Forward<'_, E>) -> Result<()> {
    let tokens = ("T", io.tokens);
    let (inputs, outputs) = (("I", spec.in_features()), ("O", spec.out_features()));
    io.x.check("x", tokens, inputs)?;
    check_len("weight", io.weight.len(), outputs, inputs)?;
    if let Some(bias) = &io.bias {
        check_len("bias", bias.len(), ("1", 1), outputs)?;
    }
    io.y.check("y", tokens, outputs)?;
    check_z(Dropout::check(io.dropout.as_ref(), spec)?, io.z.is_some())?;
    if let Some(z) = &io.z {
        check_len("z", z.len(), tokens, outputs)?;
    }
    check_len("h", io.h.len(), tokens, ("R", spec.padded_rank()))
}

/// What tiles of H leave to those of y: x∘g of norm axis input, or x∘M and x − x∘M of PEFT's
/// dropout, which any call for norm axis output may ask for.
struct Inputs {
    offsets: [usize; 2],
    bytes: usize,
}

impl Inputs {
    fn new(spec: &DoraSpec, tokens: usize) -> Self {
        let mut regions = Regions::default();
        let elements = tokens.saturating_mul(spec.in_features());
        let mut matrix =
            |needed| regions.take(if needed { elements } else { 0 }, spec.dtype().bytes());
        let offsets = [matrix(spec.norm() != Norm::None), matrix(spec.norm() == Norm::Output)];
        Self { offsets, bytes: regions.bytes() }
    }
}

pub(crate) fn needs(spec: &DoraSpec, tokens: usize) -> Needs {
    let groups = tokens.div_ceil(MAIN_TILE[0] * MAIN_TILE_GROUP);
    Needs { counters: board_counters(groups), bytes: Inputs::new(spec, tokens).bytes }
}
