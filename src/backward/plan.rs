//! How the backward of one layer is cut into tiles, what it keeps in the workspace, and the
//! kernel's parameters.

use crate::dropout::KernelDropout;
use crate::f32_math::F32Math;
use crate::forward::are_aligned;
use crate::kernels::Entry;
use crate::params::backward::{
    BackwardParams, CHUNKS_IN_FLIGHT, LORA_A_FEATURES, LORA_A_RANKS, RANK_TILE, STRIP_16_BIT,
    STRIP_F32,
};
use crate::raw;
use crate::spec::{DoraSpec, Dtype, Norm};
use crate::tiles::{SMALL, Tiles, Tiling, partial_floats};
use crate::workspace::{Needs, Parts, Regions, Split, board_counters};

/// Tokens of a chunk of dY: few where there are few strips, so that tiles fill the device.
const LEAST_CHUNK: usize = 64;
const MOST_CHUNK: usize = 256;
const TOKENS_PER_STRIP: usize = 8;

/// Ranks and input features of one tile of dA.
const LORA_A_TILE: [usize; 2] = [LORA_A_RANKS, LORA_A_FEATURES];

/// A tile of dA takes at least this many tokens (a multiple of the kernel's k-steps).
const LORA_A_CHUNK: usize = 128;

/// What a call asks for besides the shapes: the tiles that there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// dX.
    pub(crate) grad_input: bool,
    /// db.
    pub(crate) grad_bias: bool,
}

/// The tiles for one spec and number of tokens, and the regions of the workspace, as offsets.
pub(super) struct Plan {
    tiles: Tiles,
    dropout: bool,
    /// Products are three tf32 ones.
    splits: bool,
    /// Tokens of a chunk of dY.
    chunk: usize,
    chunks: usize,
    strips: usize,
    rank_tiles: usize,
    /// Of the sums of D with small tiles.
    d_parts: Split,
    lora_a_tiles: [usize; 2],
    lora_a_split: Split,
    p: usize,
    scaled_grad: usize,
    partial_p: usize,
    sum_b: usize,
    sum_bias: usize,
    sum_m: usize,
    sum_a: usize,
    partial_d: usize,
    bytes: usize,
    counters: [usize; 5],
}

impl Plan {
    pub(super) fn new(spec: &DoraSpec, tokens: usize, tiling: Tiling, dropout: bool) -> Self {
        let (inputs, outputs) = (spec.in_features(), spec.out_features());
        let tiles = tiling.choose(tokens, inputs, dropout);
        let (rank, bytes) = (spec.padded_rank(), spec.dtype().bytes());
        let strip = if spec.dtype() == Dtype::F32 { STRIP_F32 } else { STRIP_16_BIT };
        let strips = outputs.div_ceil(strip);
        // db and dm are there for rank 0, too.
        let rank_tiles = rank.div_ceil(RANK_TILE).max(1);
        let chunk = (TOKENS_PER_STRIP * strips * rank_tiles).clamp(LEAST_CHUNK, MOST_CHUNK);
        let chunk = chunk.next_power_of_two();
        let chunks = tokens.div_ceil(chunk);
        let d_parts = tiling.parts(outputs, inputs);
        let lora_a_tiles = [rank.div_ceil(LORA_A_TILE[0]), inputs.div_ceil(LORA_A_TILE[1])];
        let lora_a_ctas = lora_a_tiles[0].saturating_mul(lora_a_tiles[1]);
        let lora_a_split = Split::new(tokens, LORA_A_CHUNK, lora_a_ctas, tiling.sm_count);

        let mut regions = Regions::default();
        let mut matrix =
            |rows: usize, cols: usize, size| regions.take(rows.saturating_mul(cols), size);
        let single = size_of::<f32>();
        let p = matrix(tokens, rank, bytes);
        let width_of_g = if spec.norm() == Norm::Output { outputs } else { 0 };
        let scaled_grad = matrix(tokens, width_of_g, bytes);
        let ring = chunks.min(CHUNKS_IN_FLIGHT).saturating_mul(strips);
        let partial_p = matrix(ring.saturating_mul(chunk), rank, single);
        let sum_b = matrix(outputs, rank, single);
        let sum_bias = matrix(1, outputs, single);
        let sum_m = match spec.norm() {
            Norm::None => matrix(0, 0, single),
            Norm::Input => matrix(tokens.div_ceil(SMALL[0]), inputs, single),
            Norm::Output => matrix(1, outputs, single),
        };
        let sum_a = matrix(rank, inputs, single);
        let partial_d = matrix(1, partial_floats(inputs, &d_parts), single);
        Self {
            tiles,
            dropout,
            splits: tiling.splits(spec.dtype()),
            chunk,
            chunks,
            strips,
            rank_tiles,
            d_parts,
            lora_a_tiles,
            lora_a_split,
            p,
            scaled_grad,
            partial_p,
            sum_b,
            sum_bias,
            sum_m,
            sum_a,
            partial_d,
            bytes: regions.bytes(),
            counters: [
                board_counters(chunks),
                rank_tiles * chunks,
                rank_tiles * strips,
                inputs.div_ceil(SMALL[1]),
                lora_a_ctas,
            ],
        }
    }

    pub(super) fn needs(&self) -> Needs {
        Needs { counters: self.counters.iter().sum(), bytes: self.bytes }
    }

    /// Tiles of one chunk of dY; none where nothing is taken from it.
    fn adapter_tiles(&self, spec: &DoraSpec, wanted: Wanted) -> usize {
        let needed = spec.rank() > 0 || wanted.grad_bias || spec.norm() == Norm::Output;
        if needed { self.strips * self.rank_tiles } else { 0 }
    }

    /// Columns of tiles of D, or of their parts; none where neither dX nor dm is taken from it.
    fn input_tiles(&self, spec: &DoraSpec, wanted: Wanted) -> usize {
        let needed = wanted.grad_input || spec.norm() == Norm::Input;
        let parts = if self.tiles == Tiles::Small { self.d_parts.count } else { 1 };
        if needed { spec.in_features().div_ceil(self.tiles.extent()[1]) * parts } else { 0 }
    }

    pub(super) fn entry(&self) -> Entry {
        match (self.dropout, self.tiles, self.splits) {
            (true, ..) => Entry::BackwardDropout,
            (_, Tiles::Large, false) => Entry::Backward,
            (_, Tiles::Large, true) => Entry::BackwardTf32x3,
            (_, Tiles::Medium, false) => Entry::BackwardMedium,
            (_, Tiles::Medium, true) => Entry::BackwardMediumTf32x3,
            (_, Tiles::Small, _) => Entry::BackwardSmall,
        }
    }

    /// A CTA for each tile; none where there is nothing to compute.
    pub(super) fn grid(&self, spec: &DoraSpec, tokens: usize, wanted: Wanted) -> [usize; 3] {
        let adapter = self.chunks.saturating_mul(self.adapter_tiles(spec, wanted));
        let rows = tokens.div_ceil(self.tiles.extent()[0]);
        let input = rows.saturating_mul(self.input_tiles(spec, wanted));
        let [ranks, columns] = self.lora_a_tiles;
        let lora_a = ranks.saturating_mul(columns).saturating_mul(self.lora_a_split.count);
        [adapter.saturating_add(input).saturating_add(lora_a), 1, 1]
    }

    pub(super) fn params(
        &self,
        spec: &DoraSpec,
        prepared: &raw::Prepared,
        scratch: &Parts,
        io: &raw::Backward,
        peft: bool,
    ) -> BackwardParams {
        let wanted = io.wanted();
        let only = |norm, pointer| if spec.norm() == norm { pointer } else { 0 };
        let region = |offset: usize| scratch.regions + offset as u64;
        let mut next = scratch.counters;
        let [board, chunk_counters, strip_turns, column_counters, lora_a_turns] =
            self.counters.map(|count| {
                let first = next;
                next += (count * size_of::<u32>()) as u64;
                first
            });
        let (inputs, outputs) = (spec.in_features(), spec.out_features());
        let output = match (spec.norm(), peft) {
            (Norm::Output, true) => raw::Matrix::dense(io.z, outputs),
            (Norm::Output, false) => io.output,
            _ => raw::Matrix::dense(0, outputs),
        };
        let gsb = prepared.contracted(spec);
        let row_lengths = [
            inputs,
            outputs,
            spec.padded_rank(),
            io.grad_output.stride,
            output.stride,
            io.x.stride,
            io.grad_input.stride,
        ];
        let pointers = [
            io.grad_output.pointer,
            output.pointer,
            io.x.pointer,
            io.weight,
            io.h,
            prepared.a,
            gsb,
            io.grad_input.pointer,
        ];
        BackwardParams {
            grad_output: io.grad_output.pointer,
            output: output.pointer,
            x: io.x.pointer,
            weight: io.weight,
            bias: io.bias,
            h: io.h,
            a: prepared.a,
            sb: prepared.sb,
            gsb,
            input_gain: only(Norm::Input, prepared.gain),
            output_gain: only(Norm::Output, prepared.gain),
            norm: prepared.norm,
            scaled_grad: only(Norm::Output, region(self.scaled_grad)),
            p: region(self.p),
            grad_input: io.grad_input.pointer,
            grad_lora_a: io.grad_lora_a,
            grad_lora_b: io.grad_lora_b,
            grad_magnitude: io.grad_magnitude,
            grad_bias: io.grad_bias,
            partial_p: region(self.partial_p),
            sum_b: region(self.sum_b),
            sum_bias: region(self.sum_bias),
            sum_m: region(self.sum_m),
            sum_a: region(self.sum_a),
            partial_d: region(self.partial_d),
            queue: board,
            chunk_counters,
            strip_turns,
            column_counters,
            lora_a_turns,
            dropout: io.dropout.map_or(KernelDropout::default(), |dropout| dropout.kernel()),
            scaling: spec.scaling(),
            tokens: io.tokens as i32,
            in_features: inputs as i32,
            out_features: outputs as i32,
            rank: spec.rank() as i32,
            padded_rank: spec.padded_rank() as i32,
            grad_stride: io.grad_output.stride as i32,
            output_stride: output.stride as i32,
            x_stride: io.x.stride as i32,
            grad_input_stride: io.grad_input.stride as i32,
            adapter_tiles: self.adapter_tiles(spec, wanted) as i32,
            input_tiles: self.input_tiles(spec, wanted) as i32,
            d_split_k: self.d_parts.count as i32,
            d_chunk: self.d_parts.len as i32,
            chunk: self.chunk as i32,
            lora_a_chunk: self.lora_a_split.len as i32,
            peft_dropout: i32::from(peft),
            aligned: i32::from(are_aligned(spec.dtype(), &row_lengths, &pointers)),
            accumulate: io.gradients.accumulate(),
            ..Default::default()
        }
    }
}

/// Into how many chunks of tokens dY and the sums of dA are cut, which decides how often they are
/// summed up: for counts that are told for other shapes.
#[doc(hidden)]
pub fn chunks(spec: &DoraSpec, tokens: usize, sm_count: usize) -> [usize; 2] {
    let tiling = Tiling { sm_count, forced: None, f32_math: F32Math::Fma };
    let plan = Plan::new(spec, tokens, tiling, false);
    [plan.chunks, plan.lora_a_split.count]
}

/// For any call of up to so many tokens, with dropout or without.
pub(crate) fn needs(spec: &DoraSpec, tokens: usize, tiling: Tiling) -> Needs {
    Plan::new(spec, tokens, tiling, false).needs()
}
