//! How the backward of one layer is cut into tiles on compute capability 8.0 and later, and what it
//! keeps in the workspace.

use super::Wanted;
use crate::device::{
    F32Math, Kernel, Launch, Needs, Regions, Scratch, Split, Tiles, Tiling, queue_counters,
};
use crate::dropout::DropoutMode;
use crate::dtype::Dtype;
use crate::ops::tiles::{SMALL, partial_floats};
use crate::params::backward::{
    BackwardParams, CHUNKS_IN_FLIGHT, LORA_A_FEATURES, LORA_A_RANKS, RANK_TILE, STRIP_16_BIT,
    STRIP_F32,
};
use crate::spec::{DoraSpec, Norm};

/// Tokens of a chunk of dY: few where there are few strips, so that tiles fill the device.
const LEAST_CHUNK: usize = 64;
const MOST_CHUNK: usize = 256;
const TOKENS_PER_STRIP: usize = 8;

/// Ranks and input features of one tile of dA.
const LORA_A_TILE: [usize; 2] = [LORA_A_RANKS, LORA_A_FEATURES];

/// A tile of dA takes at least this many tokens (a multiple of the kernel's k-steps).
const LORA_A_CHUNK: usize = 128;

const LARGE_TILES: Kernel = Kernel::new("backward", "backward");
const MEDIUM_TILES: Kernel = Kernel::new("backward", "backward_medium");
const LARGE_TF32X3: Kernel = Kernel::new("backward", "backward_tf32x3");
const MEDIUM_TF32X3: Kernel = Kernel::new("backward", "backward_medium_tf32x3");
const FEW_TOKENS: Kernel = Kernel::new("backward", "backward_few_tokens");
const DROPOUT: Kernel = Kernel::new("backward", "backward_dropout");

/// The kernels of calls of up to so many tokens without dropout.
pub(super) fn kernels(
    spec: &DoraSpec,
    max_tokens: usize,
    tiling: Tiling,
) -> impl Iterator<Item = Kernel> {
    let splits = tiling.splits(spec.dtype());
    let tiles = tiling.chosen(max_tokens, spec.in_features()).into_iter();
    tiles.map(move |tiles| kernel(DropoutMode::None, tiles, splits))
}

/// The kernel of calls with dropout.
pub(super) fn dropout_kernel(dropout: DropoutMode) -> Kernel {
    kernel(dropout, Tiles::Large, false)
}

fn kernel(dropout: DropoutMode, tiles: Tiles, splits: bool) -> Kernel {
    match (dropout, tiles, splits) {
        (DropoutMode::Adapter | DropoutMode::Peft, ..) => DROPOUT,
        (_, Tiles::Large, false) => LARGE_TILES,
        (_, Tiles::Large, true) => LARGE_TF32X3,
        (_, Tiles::Medium, false) => MEDIUM_TILES,
        (_, Tiles::Medium, true) => MEDIUM_TF32X3,
        (_, Tiles::Small, _) => FEW_TOKENS,
    }
}

/// The tiles for one spec and number of tokens, and the regions of the workspace, as offsets.
pub(super) struct Plan {
    tiles: Tiles,
    dropout: DropoutMode,
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
    pub(super) fn new(
        spec: &DoraSpec,
        tokens: usize,
        tiling: Tiling,
        dropout: DropoutMode,
    ) -> Self {
        let (inputs, outputs) = (spec.in_features(), spec.out_features());
        let tiles = tiling.choose(tokens, inputs, dropout != DropoutMode::None);
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
        // Whole tiles: CTAs add them in turn as their registers hold them.
        let sum_b = matrix(strips * strip, rank_tiles * RANK_TILE, single);
        let sum_bias = matrix(1, outputs, single);
        let sum_m = match spec.norm() {
            Norm::None => matrix(0, 0, single),
            Norm::Input => matrix(tokens.div_ceil(SMALL[0]), inputs, single),
            Norm::Output => matrix(1, outputs, single),
        };
        let sum_a =
            matrix(lora_a_tiles[0] * LORA_A_TILE[0], lora_a_tiles[1] * LORA_A_TILE[1], single);
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
                queue_counters(chunks),
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

    /// A CTA for each tile; none where there is nothing to compute.
    pub(super) fn launch(&self, spec: &DoraSpec, tokens: usize, wanted: Wanted) -> Launch {
        let adapter = self.chunks.saturating_mul(self.adapter_tiles(spec, wanted));
        let rows = tokens.div_ceil(self.tiles.extent()[0]);
        let input = rows.saturating_mul(self.input_tiles(spec, wanted));
        let [ranks, columns] = self.lora_a_tiles;
        let lora_a = ranks.saturating_mul(columns).saturating_mul(self.lora_a_split.count);
        let ctas = adapter.saturating_add(input).saturating_add(lora_a);
        Launch::new(kernel(self.dropout, self.tiles, self.splits), spec.variant(), [ctas, 1, 1])
    }

    /// What follows from the plan, of the kernel's parameters.
    pub(super) fn params(
        &self,
        spec: &DoraSpec,
        wanted: Wanted,
        mut scratch: Scratch,
    ) -> BackwardParams {
        let on_output = spec.norm() == Norm::Output;
        let [queue, chunk_counters, strip_turns, column_counters, lora_a_turns] =
            self.counters.map(|count| scratch.counters(count));
        BackwardParams {
            scaled_grad: if on_output { scratch.region(self.scaled_grad) } else { 0 },
            p: scratch.region(self.p),
            partial_p: scratch.region(self.partial_p),
            sum_b: scratch.region(self.sum_b),
            sum_bias: scratch.region(self.sum_bias),
            sum_m: scratch.region(self.sum_m),
            sum_a: scratch.region(self.sum_a),
            partial_d: scratch.region(self.partial_d),
            queue,
            chunk_counters,
            strip_turns,
            column_counters,
            lora_a_turns,
            adapter_tiles: self.adapter_tiles(spec, wanted) as i32,
            input_tiles: self.input_tiles(spec, wanted) as i32,
            d_split_k: self.d_parts.count as i32,
            d_chunk: self.d_parts.len as i32,
            chunk: self.chunk as i32,
            lora_a_chunk: self.lora_a_split.len as i32,
            ..BackwardParams::default()
        }
    }
}

/// Into how many chunks of tokens dY and the sums of dA are cut, which decides how often they are
/// summed up. Exposed so that measured counts can be scaled to other shapes.
#[doc(hidden)]
pub fn chunks(spec: &DoraSpec, tokens: usize, sm_count: usize) -> [usize; 2] {
    let tiling = Tiling { sm_count, forced: None, f32_math: F32Math::Fma };
    let plan = Plan::new(spec, tokens, tiling, DropoutMode::None);
    [plan.chunks, plan.lora_a_split.count]
}
