//! `backward_input`: dX, dm (axis input) and dA, in two launches (kernels/backward_input.cu).

use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceRepr};

use crate::backward::{Backward, Gradients, zero};
use crate::backward_adapter::Carried;
use crate::error::Result;
use crate::forward::{MAIN_TILE, are_aligned};
use crate::kernels::{Entry, Kernels, THREADS};
use crate::prepare::{Prepared, optional};
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
    tokens: i32,
    in_features: i32,
    out_features: i32,
    rank: i32,
    padded_rank: i32,
    chunk: i32,
    aligned: i32,
    accumulate: i32,
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
    /// and m is not on the input.
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
        let tokens = io.tokens;
        workspace.check_backward(spec, tokens)?;
        self.check_backward_input::<E>(spec, workspace, tokens)?;
        let plan = Plan::new(spec, tokens, self.sm_count());
        let scratch = workspace.reserve(stream, plan.needs(), tokens, None)?;
        let on_input = spec.norm() == Norm::Input;
        if tokens == 0 {
            if io.gradients == Gradients::Accumulate {
                return Ok(());
            }
            zero(stream, &mut io.grad_lora_a)?;
            return match &mut io.grad_magnitude {
                Some(grad) if on_input => zero(stream, grad),
                _ => Ok(()),
            };
        }

        let region = |offset: usize| scratch.regions + offset as u64;
        let (grad_output, _guard) = io.grad_output.device_ptr(stream);
        let grad = match spec.norm() {
            Norm::Output => region(plan.carried.scaled_grad),
            Norm::None | Norm::Input => grad_output,
        };
        let (weight, _guard) = io.weight.device_ptr(stream);
        let (x, _guard) = io.x.device_ptr(stream);
        let (a, _guard) = prepared.a.device_ptr(stream);
        let (gain, _guard) = prepared.gain.device_ptr(stream);
        let (norm, _guard) = prepared.norm.device_ptr(stream);
        let (grad_lora_a, _guard) = io.grad_lora_a.device_ptr_mut(stream);
        let (grad_input, _grad_input) =
            io.grad_input.as_mut().map_or((0, None), |dx| optional(dx.device_ptr_mut(stream)));
        let (grad_magnitude, _grad_magnitude) = match &mut io.grad_magnitude {
            Some(grad) if on_input => optional(grad.device_ptr_mut(stream)),
            _ => (0, None),
        };
        let p = region(plan.carried.p);
        let row_lengths = [spec.in_features(), spec.out_features(), spec.padded_rank()];
        let pointers = [grad, weight, p, a, x, grad_input];
        let params = BackwardInputParams {
            grad,
            weight,
            p,
            a,
            x,
            gain: if on_input { gain } else { 0 },
            norm: if on_input { norm } else { 0 },
            grad_input,
            grad_lora_a,
            grad_magnitude,
            partial_m: region(plan.partial_m),
            partial_a: region(plan.partial_a),
            tile_counters: scratch.counters,
            lora_a_counters: scratch.counters + (plan.tiles[1] * size_of::<u32>()) as u64,
            tokens: tokens as i32,
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            rank: spec.rank() as i32,
            padded_rank: spec.padded_rank() as i32,
            chunk: plan.split.len as i32,
            aligned: i32::from(are_aligned::<E>(&row_lengths, &pointers)),
            accumulate: io.gradients.accumulate(),
        };
        // SAFETY: the struct is the kernels'; each buffer was checked against the shape that they
        // access, and its guard orders these launches on the stream.
        unsafe {
            if grad_input != 0 || on_input {
                self.launch(stream, Entry::BackwardInput, E::DTYPE, plan.grid(), &params)?;
            }
            self.launch(stream, Entry::BackwardInputLoraA, E::DTYPE, plan.lora_a_grid(), &params)
        }
    }

    /// The device's limits for both launches, and the workspace.
    pub(crate) fn check_backward_input<E: Element>(
        &self,
        spec: &DoraSpec,
        workspace: &Workspace,
        tokens: usize,
    ) -> Result<()> {
        self.check_buffer(workspace.buffer())?;
        let plan = Plan::new(spec, tokens, self.sm_count());
        workspace.check(plan.needs(), tokens)?;
        self.check_grid(Entry::BackwardInput, E::DTYPE, plan.grid())?;
        self.check_grid(Entry::BackwardInputLoraA, E::DTYPE, plan.lora_a_grid())
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
