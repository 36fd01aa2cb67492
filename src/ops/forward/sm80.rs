//! How the forward of one layer is cut into tiles on compute capability 8.0 and later, and what it
//! keeps in the workspace.

use crate::device::{
    F32Math, Kernel, Launch, Needs, Regions, Scratch, Split, Tiles, Tiling, queue_counters,
};
use crate::dropout::DropoutMode;
use crate::ops::tiles::{GROUP, PARTIAL, SMALL, partial_floats};
use crate::params::forward::{ForwardParams, GROUPS_IN_FLIGHT, LOW_RANK_RANKS, LOW_RANK_TOKENS};
use crate::spec::{DoraSpec, Norm};

/// Tokens and ranks of one tile of H.
const LOW_RANK_TILE: [usize; 2] = [LOW_RANK_TOKENS, LOW_RANK_RANKS];

/// The least length of a part of the sums of H.
const LOW_RANK_PART: usize = 512;

const LARGE_TILES: Kernel = Kernel::new("forward", "forward");
const MEDIUM_TILES: Kernel = Kernel::new("forward", "forward_medium");
const LARGE_TF32X3: Kernel = Kernel::new("forward", "forward_tf32x3");
const MEDIUM_TF32X3: Kernel = Kernel::new("forward", "forward_medium_tf32x3");
const FEW_TOKENS: Kernel = Kernel::new("forward", "forward_few_tokens");
const DROPOUT: Kernel = Kernel::new("forward", "forward_dropout");
const PEFT_DROPOUT: Kernel = Kernel::new("forward", "forward_peft_dropout");

/// The kernels of calls of up to so many tokens without dropout.
pub(super) fn kernels(
    spec: &DoraSpec,
    max_tokens: usize,
    tiling: Tiling,
) -> impl Iterator<Item = Kernel> {
    let splits = tiling.splits(spec.dtype());
    let tiles = tiling.chosen(max_tokens, spec.out_features()).into_iter();
    tiles.map(move |tiles| kernel(DropoutMode::None, tiles, splits))
}

/// The kernel of calls with dropout.
pub(super) fn dropout_kernel(dropout: DropoutMode) -> Kernel {
    kernel(dropout, Tiles::Large, false)
}

fn kernel(dropout: DropoutMode, tiles: Tiles, splits: bool) -> Kernel {
    match (dropout, tiles, splits) {
        (DropoutMode::Peft, ..) => PEFT_DROPOUT,
        (DropoutMode::Adapter, ..) => DROPOUT,
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
    norm: Norm,
    /// Products are three tf32 ones.
    splits: bool,
    /// Columns of tiles of H; the first one also writes x∘g, or x∘M, where there is one.
    low_rank_tiles: usize,
    /// Of the sums of H, and of those of z with small tiles.
    h_parts: Split,
    z_parts: Split,
    xs: usize,
    rest: usize,
    partial_h: usize,
    partial_z: usize,
    bytes: usize,
    /// Of the board, of tiles of H and of small tiles of y.
    counters: [usize; 3],
}

impl Plan {
    pub(super) fn new(
        spec: &DoraSpec,
        tokens: usize,
        tiling: Tiling,
        dropout: DropoutMode,
    ) -> Self {
        let (inputs, outputs) = (spec.in_features(), spec.out_features());
        let tiles = tiling.choose(tokens, outputs, dropout != DropoutMode::None);
        let rank_tiles = spec.padded_rank().div_ceil(LOW_RANK_TILE[1]);
        // Any call for norm axis output may ask for PEFT's dropout.
        let writes_inputs = [spec.norm() != Norm::None, spec.norm() == Norm::Output];
        let also_xs = spec.norm() == Norm::Input || dropout == DropoutMode::Peft;
        let low_rank_tiles = rank_tiles.max(usize::from(also_xs));

        // Tiles of H of a group, which others of the group wait for, fill the device.
        let most_rows = |tiles: Tiles| GROUP * tiles.extent()[0] / LOW_RANK_TILE[0];
        let h_parts = |rows: usize| {
            Split::new(inputs, LOW_RANK_PART, rows * low_rank_tiles.max(1), tiling.sm_count)
        };
        let rows = tokens.div_ceil(LOW_RANK_TILE[0]);
        // Of any number of tokens, so that a workspace for some does for fewer.
        let partials = (1..=most_rows(Tiles::Large))
            .map(|rows| (rows, h_parts(rows).count))
            .filter(|&(_, parts)| parts > 1)
            .map(|(rows, parts)| GROUPS_IN_FLIGHT * rows * parts * rank_tiles * PARTIAL);
        let z_parts = tiling.parts(inputs, outputs);

        let mut regions = Regions::default();
        let single = size_of::<f32>();
        let elements = tokens.saturating_mul(inputs);
        let [xs, rest] = writes_inputs
            .map(|needed| regions.take(if needed { elements } else { 0 }, spec.dtype().bytes()));
        let partial_h = regions.take(partials.max().unwrap_or(0), single);
        let partial_z = regions.take(partial_floats(outputs, &z_parts), single);
        Self {
            tiles,
            dropout,
            norm: spec.norm(),
            splits: tiling.splits(spec.dtype()),
            low_rank_tiles,
            h_parts: h_parts(rows.clamp(1, most_rows(tiles))),
            z_parts,
            xs,
            rest,
            partial_h,
            partial_z,
            bytes: regions.bytes(),
            counters: [
                queue_counters(tokens.div_ceil(SMALL[0] * GROUP)),
                rows * rank_tiles,
                outputs.div_ceil(SMALL[1]),
            ],
        }
    }

    pub(super) fn needs(&self) -> Needs {
        Needs { counters: self.counters.iter().sum(), bytes: self.bytes }
    }

    /// A CTA for each part of a tile of H and of y.
    pub(super) fn launch(&self, spec: &DoraSpec, tokens: usize) -> Launch {
        let low_rank = tokens.div_ceil(LOW_RANK_TILE[0]) * self.low_rank_tiles;
        let [rows, columns] = self.tiles.extent();
        let parts = if self.tiles == Tiles::Small { self.z_parts.count } else { 1 };
        let main =
            tokens.div_ceil(rows).saturating_mul(spec.out_features().div_ceil(columns) * parts);
        let ctas = low_rank.saturating_mul(self.h_parts.count).saturating_add(main);
        Launch::new(kernel(self.dropout, self.tiles, self.splits), spec.variant(), [ctas, 1, 1])
    }

    /// What follows from the plan, of the kernel's parameters.
    pub(super) fn params(&self, mut scratch: Scratch) -> ForwardParams {
        let is_peft = self.dropout == DropoutMode::Peft;
        let region_if = |needed: bool, offset| if needed { scratch.region(offset) } else { 0 };
        let (x_scaled, x_kept_out) = (
            region_if(self.norm == Norm::Input || is_peft, self.xs),
            region_if(is_peft, self.rest),
        );
        let [queue, h_counters, z_counters] = self.counters.map(|count| scratch.counters(count));
        ForwardParams {
            x_scaled,
            x_kept_out,
            partial_h: scratch.region(self.partial_h),
            partial_z: scratch.region(self.partial_z),
            queue,
            h_counters,
            z_counters,
            low_rank_tiles: self.low_rank_tiles as i32,
            h_split_k: self.h_parts.count as i32,
            h_chunk: self.h_parts.len as i32,
            z_split_k: self.z_parts.count as i32,
            z_chunk: self.z_parts.len as i32,
            ..ForwardParams::default()
        }
    }
}

/// Into how many parts the sums of H are cut, which decides how often they are added up. Exposed so
/// that measured counts can be scaled to other shapes.
#[doc(hidden)]
pub fn parts_of_h(spec: &DoraSpec, tokens: usize, sm_count: usize, tiles: Tiles) -> usize {
    let tiling = Tiling { sm_count, forced: Some(tiles), f32_math: F32Math::Fma };
    Plan::new(spec, tokens, tiling, DropoutMode::None).h_parts.count
}
