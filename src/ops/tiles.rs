//! How the products with W, y of the forward and dX of the backward, are cut into tiles.

use crate::device::{F32Math, Split, Tiles, Tiling};
use crate::dtype::Dtype;
use crate::params::common;

/// Tokens and features of each kind's tile.
pub(crate) const LARGE: [usize; 2] = [common::LARGE_TOKENS, common::FEATURES];
pub(crate) const MEDIUM: [usize; 2] = [common::MEDIUM_TOKENS, common::FEATURES];
pub(crate) const SMALL: [usize; 2] = [common::FEW_TOKENS, common::FEW_TOKENS_FEATURES];

/// Rows of tiles that are done together.
pub(crate) const GROUP: usize = common::TILE_ROWS_PER_GROUP;

/// Floats of the partial sums of a part of a tile of [`SMALL`].
pub(crate) const PARTIAL: usize = SMALL[0] * SMALL[1];

/// The least length of a part of a sum.
const PART: usize = 128;

impl Tiles {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Large, Self::Medium, Self::Small];

    /// Whether they can do a call: dropout is left to large ones, and small ones hold all tokens.
    pub fn can(self, tokens: usize, dropout: bool) -> bool {
        match self {
            Self::Large => true,
            Self::Medium => !dropout,
            Self::Small => !dropout && tokens <= SMALL[0],
        }
    }

    /// Tokens and features of one.
    pub const fn extent(self) -> [usize; 2] {
        match self {
            Self::Large => LARGE,
            Self::Medium => MEDIUM,
            Self::Small => SMALL,
        }
    }

    /// What a product of so many tokens and features is cut into on a device with so many
    /// multiprocessors. Exposed so that launches can be modelled without a device.
    #[doc(hidden)]
    pub fn chosen(tokens: usize, features: usize, sm_count: usize) -> Self {
        let tiling = Tiling { sm_count, forced: None, f32_math: F32Math::Fma };
        tiling.choose(tokens, features, false)
    }

    /// Instructions of a warp's k-step, 64 and 32 of them products of tensor cores: what a tile
    /// takes, against the others, while a multiprocessor has work.
    const fn cost(self) -> usize {
        match self {
            Self::Large => 124,
            Self::Medium => 82,
            // They read W once, and are taken wherever they can be.
            Self::Small => 0,
        }
    }
}

impl Tiling {
    /// The tiles of a product of so many tokens and features: small ones where they can be, and
    /// else those whose last wave over the multiprocessors ends first.
    pub(crate) fn choose(&self, tokens: usize, features: usize, dropout: bool) -> Tiles {
        if let Some(forced) = self.forced.filter(|tiles| tiles.can(tokens, dropout)) {
            return forced;
        }
        let time = |tiles: &Tiles| {
            let [rows, columns] = tiles.extent();
            let count = tokens.div_ceil(rows).saturating_mul(features.div_ceil(columns));
            count.div_ceil(self.sm_count.max(1)).saturating_mul(tiles.cost())
        };
        let can = |tiles: &Tiles| tiles.can(tokens, dropout);
        Tiles::ALL.into_iter().filter(can).min_by_key(time).unwrap_or(Tiles::Large)
    }

    /// The tiles of products of so many features and up to `max_tokens` tokens, without dropout.
    pub(crate) fn chosen(&self, max_tokens: usize, features: usize) -> Vec<Tiles> {
        // The choice changes at whole tiles only, and no more where there are very many of them.
        const MOST: usize = 1 << 20;
        let mut chosen = Vec::new();
        for tokens in (1..=max_tokens.min(MOST)).step_by(MEDIUM[0]) {
            let tiles = self.choose(tokens, features, false);
            if !chosen.contains(&tiles) {
                chosen.push(tiles);
            }
            if chosen.len() == Tiles::ALL.len() {
                break;
            }
        }
        chosen
    }

    /// Whether the products of a dtype are three tf32 ones: small tiles and those with dropout are
    /// left to FMA units.
    pub(crate) fn splits(&self, dtype: Dtype) -> bool {
        dtype == Dtype::F32 && self.f32_math == F32Math::Tf32x3
    }

    /// The parts of the sums, over `summed` features, of small tiles of `features` features: one for
    /// each multiprocessor. Each has 16 KiB on their way, and all of them 1.7 MiB (A100) or 2.1 MiB
    /// (H100), against the 1 to 2.3 MB that DRAM delivers within 0.7 µs; more parts would only
    /// move more partial sums.
    pub(crate) fn parts(&self, summed: usize, features: usize) -> Split {
        // Of the two waves that a split aims at.
        Split::new(summed, PART, 2 * features.div_ceil(SMALL[1]), self.sm_count)
    }
}

/// Floats of all partial sums of small tiles; a sum of one part needs none.
pub(crate) fn partial_floats(features: usize, parts: &Split) -> usize {
    let count = if parts.count > 1 { parts.count } else { 0 };
    features.div_ceil(SMALL[1]).saturating_mul(count).saturating_mul(PARTIAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_follow_from_waves() {
        let a100 = Tiling { sm_count: 108, forced: None, f32_math: F32Math::Fma };
        let h100 = Tiling { sm_count: 132, ..a100 };
        for (tiling, tokens, features, tiles) in [
            (a100, 1, 4096, Tiles::Small),
            (a100, 64, 28672, Tiles::Small),
            (a100, 65, 4096, Tiles::Medium),
            // 64 large tiles, or 128 medium ones in two waves.
            (a100, 256, 4096, Tiles::Large),
            // 128 large tiles in two waves, or 256 medium ones in three shorter ones.
            (a100, 512, 4096, Tiles::Medium),
            (h100, 512, 4096, Tiles::Large),
            (a100, 8192, 4096, Tiles::Large),
        ] {
            assert_eq!(tiling.choose(tokens, features, false), tiles, "{tokens} × {features}");
            assert_eq!(tiling.choose(tokens, features, true), Tiles::Large);
        }
    }

    /// Those that any number of tokens up to the most chooses, and no others.
    #[test]
    fn all_chosen_tiles_are_found() {
        let free = Tiling { sm_count: 108, forced: None, f32_math: F32Math::Fma };
        let forced = Tiling { forced: Some(Tiles::Small), ..free };
        for (tiling, features) in [(free, 4096), (free, 64), (free, 28672), (forced, 4096)] {
            let mut each = Vec::new();
            assert_eq!(tiling.chosen(0, features), []);
            for tokens in 1..3000 {
                let tiles = tiling.choose(tokens, features, false);
                if !each.contains(&tiles) {
                    each.push(tiles);
                }
                assert_eq!(tiling.chosen(tokens, features), each, "{tokens} × {features}");
            }
        }
    }

    #[test]
    fn forced_tiles_are_taken_where_they_can_be() {
        let free = Tiling { sm_count: 108, forced: None, f32_math: F32Math::Fma };
        for forced in Tiles::ALL {
            let tiling = Tiling { forced: Some(forced), ..free };
            assert_eq!(tiling.choose(64, 4096, false), forced);
            assert_eq!(tiling.choose(64, 4096, true), Tiles::Large);
        }
        let tiling = Tiling { forced: Some(Tiles::Small), ..free };
        assert_eq!(tiling.choose(65, 4096, false), Tiles::Medium);
    }
}
