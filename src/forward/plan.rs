//! How the forward of one layer is cut into tiles, what it keeps in the workspace, and the kernel's
//! parameters.

use super::are_aligned;
use crate::dropout::KernelDropout;
use crate::f32_math::F32Math;
use crate::kernels::Entry;
use crate::params::forward::{ForwardParams, GROUPS_IN_FLIGHT, LOW_RANK_RANKS, LOW_RANK_TOKENS};
use crate::raw;
use crate::spec::{DoraSpec, Norm};
use crate::tiles::{GROUP, PARTIAL, SMALL, Tiles, Tiling, partial_floats};
use crate::workspace::{Needs, Parts, Regions, Split, board_counters};

/// Tokens and ranks of one tile of H.
const LOW_RANK_TILE: [usize; 2] = [LOW_RANK_TOKENS, LOW_RANK_RANKS];

/// The least length of a part of the sums of H.
const LOW_RANK_PART: usize = 512;

/// What a call asks for besides the shapes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Masked {
    pub(super) dropout: bool,
    /// The dropout is PEFT's.
    pub(super) peft: bool,
}

/// The tiles for one spec and number of tokens, and the regions of the workspace, as offsets.
pub(super) struct Plan {
    tiles: Tiles,
    masked: Masked,
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
    pub(super) fn new(spec: &DoraSpec, tokens: usize, tiling: Tiling, masked: Masked) -> Self {
        let (inputs, outputs) = (spec.in_features(), spec.out_features());
        let tiles = tiling.choose(tokens, outputs, masked.dropout);
        let rank_tiles = spec.padded_rank().div_ceil(LOW_RANK_TILE[1]);
        // Any call for norm axis output may ask for PEFT's dropout.
        let writes_inputs = [spec.norm() != Norm::None, spec.norm() == Norm::Output];
        let also_xs = spec.norm() == Norm::Input || masked.peft;
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
            masked,
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
                board_counters(tokens.div_ceil(SMALL[0] * GROUP)),
                rows * rank_tiles,
                outputs.div_ceil(SMALL[1]),
            ],
        }
    }

    pub(super) fn needs(&self) -> Needs {
        Needs { counters: self.counters.iter().sum(), bytes: self.bytes }
    }

    pub(super) fn entry(&self) -> Entry {
        match (self.masked, self.tiles, self.splits) {
            (Masked { peft: true, .. }, ..) => Entry::ForwardPeftDropout,
            (Masked { dropout: true, .. }, ..) => Entry::ForwardDropout,
            (_, Tiles::Large, false) => Entry::Forward,
            (_, Tiles::Large, true) => Entry::ForwardTf32x3,
            (_, Tiles::Medium, false) => Entry::ForwardMedium,
            (_, Tiles::Medium, true) => Entry::ForwardMediumTf32x3,
            (_, Tiles::Small, _) => Entry::ForwardSmall,
        }
    }

    /// A CTA for each part of a tile of H and of y.
    pub(super) fn grid(&self, spec: &DoraSpec, tokens: usize) -> [usize; 3] {
        let low_rank = tokens.div_ceil(LOW_RANK_TILE[0]) * self.low_rank_tiles;
        let [rows, columns] = self.tiles.extent();
        let parts = if self.tiles == Tiles::Small { self.z_parts.count } else { 1 };
        let main =
            tokens.div_ceil(rows).saturating_mul(spec.out_features().div_ceil(columns) * parts);
        [low_rank.saturating_mul(self.h_parts.count).saturating_add(main), 1, 1]
    }

    pub(super) fn params(
        &self,
        spec: &DoraSpec,
        prepared: &raw::Prepared,
        scratch: &Parts,
        io: &raw::Forward,
    ) -> ForwardParams {
        let peft = self.masked.peft;
        let only_if = |needed: bool, pointer| if needed { pointer } else { 0 };
        let region = |offset: usize| scratch.regions + offset as u64;
        let mut next = scratch.counters;
        let [board, h_counters, z_counters] = self.counters.map(|count| {
            let first = next;
            next += (count * size_of::<u32>()) as u64;
            first
        });
        let rows =
            [spec.in_features(), spec.padded_rank(), spec.out_features(), io.x.stride, io.y.stride];
        let pointers = [io.x.pointer, io.weight, prepared.a, prepared.sb, io.h, io.y.pointer];
        ForwardParams {
            x: io.x.pointer,
            weight: io.weight,
            a: prepared.a,
            sb: prepared.sb,
            bias: io.bias,
            gain: if spec.norm() == Norm::None { 0 } else { prepared.gain },
            x_scaled: only_if(spec.norm() == Norm::Input || peft, region(self.xs)),
            x_kept_out: only_if(peft, region(self.rest)),
            h: io.h,
            z: io.z,
            y: io.y.pointer,
            partial_h: region(self.partial_h),
            partial_z: region(self.partial_z),
            queue: board,
            h_counters,
            z_counters,
            seed: io.seed,
            dropout: io.dropout.map_or(KernelDropout::default(), |dropout| dropout.kernel()),
            low_rank_tiles: self.low_rank_tiles as i32,
            h_split_k: self.h_parts.count as i32,
            h_chunk: self.h_parts.len as i32,
            z_split_k: self.z_parts.count as i32,
            z_chunk: self.z_parts.len as i32,
            tokens: io.tokens as i32,
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            padded_rank: spec.padded_rank() as i32,
            x_stride: io.x.stride as i32,
            y_stride: io.y.stride as i32,
            gain_on_input: i32::from(spec.norm() == Norm::Input),
            aligned: i32::from(are_aligned(spec.dtype(), &rows, &pointers)),
            ..Default::default()
        }
    }
}

/// Into how many parts the sums of H are cut, which decides how often they are added up: for counts
/// that are told for other shapes.
#[doc(hidden)]
pub fn parts_of_h(spec: &DoraSpec, tokens: usize, sm_count: usize, tiles: Tiles) -> usize {
    let tiling = Tiling { sm_count, forced: Some(tiles), f32_math: F32Math::Fma };
    Plan::new(spec, tokens, tiling, Masked { dropout: false, peft: false }).h_parts.count
}

/// For any call of up to so many tokens, with dropout or without.
pub(crate) fn needs(spec: &DoraSpec, tokens: usize, tiling: Tiling) -> Needs {
    Plan::new(spec, tokens, tiling, Masked { dropout: false, peft: false }).needs()
}
