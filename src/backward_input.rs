//! `backward_input`: dX, dm (axis input) and dA, in two launches (kernels/backward_input.cu).

use std::sync::Arc;

use cudarc::driver::{CudaStream, DeviceRepr};

use crate::backward::{Backward, Gradients, zero};
use crate::backward_adapter::Carried;
use crate::dropout::{Dropout, KernelDropout};
use crate::error::Result;
use crate::forward::{MAIN_TILE, are_aligned};
use crate::kernels::{Entry, Kernels, THREADS};
use crate::prepare::Prepared;
use crate::raw::{self, WorkspaceSize};
use crate::spec::{DoraSpec, Element, Norm};
use crate::workspace::{Needs, Regions, Split, Workspace};

/// Ranks and input features of one tile of dA (LoraA in the kernel).
const LORA_A_TILE: [usize; 2] = [64, 64];

/// A CTA of dA takes at least this many tokens (a multiple of the kernel's k-steps).
const LORA_A_CHUNK: usize = 128;

/// The kernels' BackwardInputParams.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct BackwardInputParams {
    grad: u64,
    dropped_grad: u64,
    weight: u64,
    p: u64,
    a: u64,
    x: u64,
    gain: u64,
    norm: u64,
    grad_input: u64,
    grad_lora_a: u64,
    grad_magnitude: u64,
    partial_m: u64,
    partial_a: u64,
    tile_counters: u64,
    lora_a_counters: u64,
    dropout: KernelDropout,
    tokens: i32,
    in_features: i32,
    out_features: i32,
    rank: i32,
    padded_rank: i32,
    grad_stride: i32,
    x_stride: i32,
    grad_input_stride: i32,
    chunk: i32,
    aligned: i32,
    accumulate: i32,
    _padding: i32,
}

// SAFETY: a C struct of plain values, laid out as the kernels declare it.
unsafe impl DeviceRepr for BackwardInputParams {}

/// `backward_input_geometry` of the kernel file.
#[doc(hidden)]
pub const GEOMETRY: [usize; 6] = [
    MAIN_TILE[0],
    MAIN_TILE[1],
    LORA_A_TILE[0],
    LORA_A_TILE[1],
    THREADS as usize,
    size_of::<BackwardInputParams>(),
];

impl Kernels {
    /// The gradients that need P: dX = (G·W + P·A)(∘g), for norm axis input dm = (Σ_t x∘D)/c with
    /// D = dX before ∘g, and dA = (Pᵀx)(∘g). Two launches; only that of dA where dX is not wanted
    /// and m is not on the input, and without it for rank 0.
    ///
    /// To be called after [`Kernels::backward_adapter`] with the same tensors, with no other call
    /// on the workspace in between. Formulas: the chain rule on the forward; c constant as in DoRA
    /// (arXiv:2402.09353) §4.3.
    ///
    /// # Errors
    /// [`Error::BackwardOrder`], and those of [`Kernels::backward_adapter`].
    ///
    /// [`Error::BackwardOrder`]: crate::Error::BackwardOrder
    pub fn backward_input<E: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared<E>,
        workspace: &mut Workspace,
        io: &mut Backward<'_, E>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        prepared.check(self, spec)?;
        io.check(self, spec)?;
        workspace.check_backward(spec, io.tokens)?;
        self.check_buffer(workspace.buffer())?;
        self.check_backward_input(spec, &workspace.size(), io.tokens, io.dropout.as_ref())?;

        let (prepared, _guards) = prepared.lend(stream);
        let (scratch, _guard) = workspace.lend(stream, None);
        let (raw, _guards) = io.lend(stream, spec);
        // SAFETY: each buffer was checked against its shape, and its guard orders the launches on
        // the stream; the workspace holds P.
        unsafe { self.backward_input_raw(stream, spec, &prepared, &scratch, &raw) }
    }

    /// [`Kernels::backward_input`] on device addresses.
    ///
    /// # Safety
    /// As for [`Kernels::backward_raw`]; the workspace is as [`Kernels::backward_adapter_raw`] left
    /// it for the same tensors.
    ///
    /// # Errors
    /// Those of [`Kernels::forward_raw`].
    pub unsafe fn backward_input_raw(
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
        self.check_backward_input(spec, &workspace.size, tokens, io.dropout.as_ref())?;
        let plan = Plan::new(spec, tokens, self.sm_count());
        let scratch = workspace.parts(plan.needs(), tokens)?;
        let on_input = spec.norm() == Norm::Input;
        let only_on_input = |pointer| if on_input { pointer } else { 0 };
        let grad_magnitude = only_on_input(io.grad_magnitude);
        if tokens == 0 {
            if io.gradients == Gradients::Accumulate {
                return Ok(());
            }
            // SAFETY: the caller vouches for the addresses.
            return unsafe {
                zero(stream, io.grad_lora_a, spec.rank() * spec.in_features())?;
                zero(stream, grad_magnitude, spec.in_features())
            };
        }

        let region = |offset: usize| scratch.regions + offset as u64;
        let scaled_grad = region(plan.carried.scaled_grad);
        let grad = match spec.norm() {
            Norm::Output if !peft => raw::Matrix::dense(scaled_grad, spec.out_features()),
            _ => io.grad_output,
        };
        let p = region(plan.carried.p);
        let row_lengths = [
            spec.in_features(),
            spec.out_features(),
            spec.padded_rank(),
            grad.stride,
            io.x.stride,
            io.grad_input.stride,
        ];
        let pointers =
            [grad.pointer, io.weight, p, prepared.a, io.x.pointer, io.grad_input.pointer];
        let params = BackwardInputParams {
            grad: grad.pointer,
            dropped_grad: if peft { scaled_grad } else { 0 },
            weight: io.weight,
            p,
            a: prepared.a,
            x: io.x.pointer,
            gain: only_on_input(prepared.gain),
            norm: only_on_input(prepared.norm),
            grad_input: io.grad_input.pointer,
            grad_lora_a: io.grad_lora_a,
            grad_magnitude,
            partial_m: region(plan.partial_m),
            partial_a: region(plan.partial_a),
            tile_counters: scratch.counters,
            lora_a_counters: scratch.counters + (plan.tiles[1] * size_of::<u32>()) as u64,
            dropout: io.dropout.map_or(KernelDropout::default(), |dropout| dropout.kernel()),
            tokens: tokens as i32,
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            rank: spec.rank() as i32,
            padded_rank: spec.padded_rank() as i32,
            grad_stride: grad.stride as i32,
            x_stride: io.x.stride as i32,
            grad_input_stride: io.grad_input.stride as i32,
            chunk: plan.split.len as i32,
            aligned: i32::from(are_aligned(dtype, &row_lengths, &pointers)),
            accumulate: io.gradients.accumulate(),
            _padding: 0,
        };
        let [input, lora_a] = entries(io.dropout.as_ref());
        // SAFETY: the struct is the kernels'; the caller vouches for the addresses.
        unsafe {
            if io.grad_input.pointer != 0 || on_input {
                self.launch(stream, input, dtype, plan.grid(), &params)?;
            }
            if spec.rank() == 0 {
                return Ok(());
            }
            self.launch(stream, lora_a, dtype, plan.lora_a_grid(), &params)
        }
    }

    /// The device's limits for both launches, and the workspace.
    pub(crate) fn check_backward_input(
        &self,
        spec: &DoraSpec,
        workspace: &WorkspaceSize,
        tokens: usize,
        dropout: Option<&Dropout>,
    ) -> Result<()> {
        let plan = Plan::new(spec, tokens, self.sm_count());
        workspace.check(plan.needs(), tokens)?;
        let [input, lora_a] = entries(dropout);
        self.check_grid(input, spec.dtype(), plan.grid())?;
        self.check_grid(lora_a, spec.dtype(), plan.lora_a_grid())
    }
}

/// The kernels of both launches.
fn entries(dropout: Option<&Dropout>) -> [Entry; 2] {
    match dropout {
        None => [Entry::BackwardInput, Entry::BackwardInputLoraA],
        Some(_) => [Entry::BackwardInputDropout, Entry::BackwardInputLoraADropout],
    }
}

/// The launches for one spec and number of tokens.
struct Plan {
    tiles: [usize; 2],
    lora_a_tiles: [usize; 2],
    split: Split,
    carried: Carried,
    partial_m: usize,
    partial_a: usize,
    bytes: usize,
}

impl Plan {
    fn new(spec: &DoraSpec, tokens: usize, sm_count: usize) -> Self {
        let (features, rank) = (spec.in_features(), spec.padded_rank());
        let tiles = [tokens.div_ceil(MAIN_TILE[0]), features.div_ceil(MAIN_TILE[1])];
        let lora_a_tiles = [rank.div_ceil(LORA_A_TILE[0]), features.div_ceil(LORA_A_TILE[1])];
        let ctas = lora_a_tiles[0].saturating_mul(lora_a_tiles[1]);
        let split = Split::new(tokens, LORA_A_CHUNK, ctas, sm_count);
        let mut regions = Regions::default();
        let carried = Carried::new(&mut regions, spec, tokens);
        let on_input = spec.norm() == Norm::Input;
        let rows_of_m = if on_input { tiles[0] } else { 0 };
        let partial_m = regions.take(rows_of_m.saturating_mul(features), size_of::<f32>());
        let partial_a =
            regions.take((split.capacity * rank).saturating_mul(features), size_of::<f32>());
        let bytes = regions.bytes();
        Self { tiles, lora_a_tiles, split, carried, partial_m, partial_a, bytes }
    }

    fn grid(&self) -> [usize; 3] {
        [self.tiles[0].saturating_mul(self.tiles[1]), 1, 1]
    }

    fn lora_a_grid(&self) -> [usize; 3] {
        [self.lora_a_tiles[1], self.lora_a_tiles[0], self.split.count]
    }

    fn needs(&self) -> Needs {
        let counters = self.tiles[1] + self.lora_a_tiles[0] * self.lora_a_tiles[1];
        Needs { counters, bytes: self.bytes }
    }
}

pub(crate) fn needs(spec: &DoraSpec, tokens: usize, sm_count: usize) -> Needs {
    Plan::new(spec, tokens, sm_count).needs()
}

/// Chunks of T that the partial sums of dA come from.
pub(crate) fn chunks(spec: &DoraSpec, tokens: usize, sm_count: usize) -> usize {
    Plan::new(spec, tokens, sm_count).split.count
}
