//! Mutants that cannot be distinguished from the kernels as they stand, each with the reason.

use fused_dora_mutants::{Survivor, Why};

/// Of predicates that only save work.
const SKIPS: &str = "It skips products with zeros, or into accumulators that nothing stores.";

/// Of sums of whole fragments.
const NOT_TAKEN: &str = "The sums of fragments beyond the matrix have room, and nobody takes them.";

/// Of threads that have no column of a strip.
const BEYOND_STRIP: &str = "The sums of threads beyond the strip are not used.";

/// Of stores by one lane of several.
const SAME_IN_LANES: &str =
    "After the butterfly every lane has the same number, and they all store it.";

/// Of waits by one thread of several.
const ALL_WAIT: &str = "All threads wait then, behind the barrier or before it.";

/// Of addresses of copies that copy nothing.
const NOTHING_READ: &str = "Of a chunk outside no byte is read, wherever its address points.";

const fn survivor(
    file: &'static str,
    scope: &'static str,
    change: [&'static str; 2],
    nth: usize,
    why: Why,
) -> Survivor {
    let [code, becomes] = change;
    Survivor { file, scope, code, becomes, nth, why }
}

/// All of them; the test fails where one is found after all, or no longer exists.
pub const SURVIVORS: &[Survivor] = &[
    survivor(
        "adamw/sm80.cu",
        "for_each_vector",
        ["at >= part.len", "false"],
        0,
        Why::Equivalent(
            "It only ends early: from there on `count` is at most 0, and no element is visited.",
        ),
    ),
    survivor(
        "backward/sm80/adapter.cuh",
        "needs_recomputed_z",
        ["fabsf(gain) < kTinyGain", "true"],
        0,
        Why::Equivalent(
            "Computing z again is always right: the shortcut through y only saves time.",
        ),
    ),
    survivor(
        "backward/sm80/adapter.cuh",
        "of_column",
        ["threadIdx.x < Tile::kCols", "true"],
        0,
        Why::Equivalent("Threads beyond the strip own no column: nothing takes their sums."),
    ),
    survivor(
        "backward/sm80/adapter.cuh",
        "adapter_tile",
        ["p.aligned", "true"],
        0,
        Why::Equivalent(
            "What `prepare` packs has rows of 32 bytes and more, and `Prepared` starts at multiples of \
             256: raw addresses alone may lie elsewhere.",
        ),
    ),
    survivor(
        "backward/sm80/adapter.cuh",
        "adapter_tile",
        ["at.rank == 0", "true"],
        0,
        Why::Equivalent("The other tiles of ranks then load what they do not use."),
    ),
    survivor(
        "backward/sm80/adapter.cuh",
        "adapter_tile",
        ["at.rank == 0", "true"],
        2,
        Why::Equivalent("The other tiles of ranks have sums of zero, which nothing takes."),
    ),
    survivor(
        "backward/sm80/input.cuh",
        "magnitude_gradient",
        ["Mma::lane() < Output::kLanesPerRow", "true"],
        0,
        Why::Equivalent(SAME_IN_LANES),
    ),
    survivor(
        "common/tile/gemm.cuh",
        "accumulate_by",
        ["whole >= kStages", "false"],
        0,
        Why::Equivalent("The loop for all shapes computes the same, and takes longer."),
    ),
    survivor(
        "common/tile/mma.cuh",
        "multiply",
        ["warp_m() * kWarpM >= rows", "false"],
        0,
        Why::Equivalent(SKIPS),
    ),
    survivor(
        "common/tile/mma.cuh",
        "multiply",
        ["warp_n() * kWarpN >= cols", "false"],
        0,
        Why::Equivalent(SKIPS),
    ),
    survivor("common/tile/mma.cuh", "multiply", ["k0 >= k", "false"], 0, Why::Equivalent(SKIPS)),
    survivor(
        "common/tile/mma.cuh",
        "multiply_tensor",
        ["n >= cols", "false"],
        0,
        Why::Equivalent(SKIPS),
    ),
    survivor(
        "common/tile/mma.cuh",
        "multiply_tensor",
        ["m0 + i * 16 >= rows", "false"],
        0,
        Why::Equivalent(SKIPS),
    ),
    survivor(
        "common/tile/mma.cuh",
        "multiply_fma",
        ["n0 + j * 4 >= cols", "false"],
        0,
        Why::Equivalent(SKIPS),
    ),
    survivor(
        "common/tile/mma.cuh",
        "multiply_fma",
        ["m0 + i * 8 >= rows", "false"],
        0,
        Why::Equivalent(SKIPS),
    ),
    survivor(
        "common/tile/mma.cuh",
        "for_each_fragment",
        ["warp_m() * kWarpM + i * 16 < rows", "true"],
        0,
        Why::Equivalent(NOT_TAKEN),
    ),
    survivor(
        "common/tile/mma.cuh",
        "for_each_fragment",
        ["warp_n() * kWarpN + j * 8 < cols", "true"],
        0,
        Why::Equivalent(NOT_TAKEN),
    ),
    survivor(
        "forward/sm80/low_rank.cuh",
        "low_rank_tile",
        ["min(p.in_features, begin + p.h_chunk)", "(begin + p.h_chunk)"],
        0,
        Why::Equivalent("Beyond the last feature tiles hold zeros: the last part adds nothing."),
    ),
    survivor(
        "common/tile/code4_gemm.cuh",
        "start_copies",
        ["step < steps", "true"],
        0,
        Why::Equivalent("A stage beyond the last step gets zeros, which no step reads."),
    ),
    survivor(
        "common/tile/pipeline.cuh",
        "pipeline",
        ["s < steps", "true"],
        0,
        Why::Equivalent("A stage beyond the last step gets zeros, which no step reads."),
    ),
    survivor(
        "backward/sm80/input_few_tokens.cuh",
        "run",
        ["min(p.out_features, begin + p.d_chunk)", "(begin + p.d_chunk)"],
        0,
        Why::Equivalent("Beyond the last feature tiles hold zeros: the last part adds nothing."),
    ),
    survivor(
        "common/tile/gemm_few_tokens.cuh",
        "accumulate",
        ["s < steps", "true"],
        0,
        Why::Equivalent("A stage beyond the last step gets weights that no step reads."),
    ),
    survivor(
        "common/tile/pipeline.cuh",
        "pipeline",
        ["ahead < steps", "true"],
        0,
        Why::Equivalent("A stage beyond the last step gets zeros, which no step reads."),
    ),
    survivor(
        "common/tile/pipeline.cuh",
        "pipeline",
        ["cp_async_wait_group<0>();", ";"],
        0,
        Why::Equivalent(
            "The last step has waited for the last group that holds a copy: later ones are empty.",
        ),
    ),
    survivor(
        "common/tile/gemm.cuh",
        "accumulate_by",
        ["Mma::warp_m() * Mma::kWarpM < rows", "true"],
        0,
        Why::Equivalent(SKIPS),
    ),
    survivor(
        "common/tile/gemm.cuh",
        "accumulate_by",
        ["Mma::warp_n() * Mma::kWarpN < cols", "true"],
        0,
        Why::Equivalent(SKIPS),
    ),
    survivor(
        "common/schedule/tile_queue.cuh",
        "wait_for",
        ["threadIdx.x == 0", "true"],
        0,
        Why::Equivalent(ALL_WAIT),
    ),
    survivor(
        "common/schedule/reduce.cuh",
        "wait",
        ["threadIdx.x == 0", "true"],
        0,
        Why::Equivalent(ALL_WAIT),
    ),
    survivor(
        "common/schedule/reduce.cuh",
        "block_sum",
        ["threadIdx.x % kWarpSize == 0", "true"],
        0,
        Why::Equivalent(SAME_IN_LANES),
    ),
    survivor(
        "decompose/sm80.cu",
        "strip_moments",
        [
            "min(ON_INPUT ? p.out_features : p.in_features, first + p.split_tiles * kTile)",
            "(first + p.split_tiles * kTile)",
        ],
        0,
        Why::Equivalent("Tiles beyond the matrix are zeros, and add nothing to the moments."),
    ),
    survivor(
        "common/tile/tile.cuh",
        "copy_tile_async",
        ["min(row, source.rows - 1)", "(row)"],
        0,
        Why::Equivalent(NOTHING_READ),
    ),
    survivor(
        "common/tile/tile.cuh",
        "copy_tile_async",
        ["min(col, source.cols - kVector<T>)", "(col)"],
        0,
        Why::Equivalent(NOTHING_READ),
    ),
    survivor(
        "common/tile/tile.cuh",
        "for_each_chunk",
        ["index < kTotal", "true"],
        0,
        Why::Equivalent(
            "Every tile has a multiple of kThreads chunks: the condition before it is true.",
        ),
    ),
    survivor(
        "decompose/sm80.cu",
        "strip_moments",
        ["lane < kQuads", "true"],
        0,
        Why::Equivalent(SAME_IN_LANES),
    ),
    survivor(
        "decompose/sm80.cu",
        "strip_moments",
        ["c == 0", "true"],
        0,
        Why::Equivalent(SAME_IN_LANES),
    ),
    survivor(
        "decompose/sm80.cu",
        "finish_feature",
        ["direction = 0.0;", "direction;"],
        0,
        Why::Equivalent("The caller's variable holds 0 already."),
    ),
    survivor(
        "norm_gradient/sm80.cu",
        "contract_weight",
        ["i * kTf32Depth >= ranks", "false"],
        0,
        Why::Equivalent(SKIPS),
    ),
    survivor(
        "norm_gradient/sm80.cu",
        "gram",
        ["min(side.features, begin + length)", "(begin + length)"],
        0,
        Why::Equivalent("Features beyond the last are loaded as zeros, and add nothing."),
    ),
    survivor(
        "common/dora/dropout.cuh",
        "drop_accumulators",
        ["keep[kWords] = {};", "keep[kWords];"],
        0,
        Why::Equivalent("The turns shift all of it out again."),
    ),
    survivor(
        "prepare/sm80.cu",
        "find_balance",
        ["threadIdx.x % kWarpSize == 0", "true"],
        0,
        Why::Equivalent("After the butterfly every lane has the same maximum."),
    ),
    survivor(
        "prepare/sm80.cu",
        "find_balance",
        ["threadIdx.x == 0", "true"],
        0,
        Why::Equivalent("It does not matter how often a maximum is taken."),
    ),
    survivor(
        "prepare/sm80.cu",
        "find_balance",
        ["max(-kBalancedTo - exponent, 0)", "(-kBalancedTo - exponent)"],
        0,
        Why::Equivalent("Large adapters are scaled down then, which is exact, too."),
    ),
    survivor(
        "backward/sm80/adapter.cuh",
        "magnitude_sum",
        ["threadIdx.x < Adapter<T>::kStrip", "true"],
        0,
        Why::Equivalent(BEYOND_STRIP),
    ),
    survivor(
        "backward/sm80/recomputed_z.cuh",
        "sum",
        ["Mma::lane() < 4", "true"],
        0,
        Why::Equivalent(SAME_IN_LANES),
    ),
    survivor(
        "backward/sm80/recomputed_z.cuh",
        "sum",
        ["threadIdx.x < STRIP", "true"],
        0,
        Why::Equivalent(BEYOND_STRIP),
    ),
    survivor(
        "prepare/sm80.cu",
        "square_sums",
        ["LowRankMma::lane() < 4", "true"],
        0,
        Why::Equivalent(SAME_IN_LANES),
    ),
    survivor(
        "prepare/sm80.cu",
        "square_sums",
        ["LowRankMma::lane() % 4 == 0", "true"],
        0,
        Why::Equivalent(SAME_IN_LANES),
    ),
    survivor(
        "quantize/sm80.cu",
        "block_max",
        ["threadIdx.x % kWarpSize == 0", "true"],
        0,
        Why::Equivalent(SAME_IN_LANES),
    ),
    survivor(
        "quantize/sm80.cu",
        "quantize_code4",
        ["lane == 0", "true"],
        0,
        Why::Equivalent(SAME_IN_LANES),
    ),
];
