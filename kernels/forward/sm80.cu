// forward: the adapted linear layer.
//
//   x_scaled = x∘g (norm axis input) or x;   H = x_scaled·Aᵀ
//   z = x_scaled·Wᵀ + H·(sB)ᵀ
//   y = z + b (axis input, and plain LoRA)   or   g∘z + b (axis output)
//
// Shapes, row-major: x [T,I], W [O,I], A [R,I] and sB [O,R] packed with R = rank padded to 16,
// g [I] or [O] f32, b [O], x_scaled [T,I], H [T,R], y [T,O]. All outputs are written with `=`. The
// row strides of x and y may be larger than their rows.
// dtypes: bf16 and f16 (tensor cores, f32 accumulation), f32 (FMA units, or tensor cores through
// split_tf32.cuh).
// With dropout (mask M: 0 or 1/(1−p) for each element of x, see dropout.cuh):
//   adapter branch   H = (x_scaled∘M)·Aᵀ, the rest as above
//   PEFT's form, axis output:   xd = x∘M, u = x − xd;   H = xd·Aᵀ;   z = xd·Wᵀ + H·(sB)ᵀ, kept;
//                               y = u·Wᵀ + g∘z + b
// x∘g is rounded stochastically. Round-to-nearest would return x for |g−1| below half an ulp, and
// the magnitude would not train.
// Launch: block 128, and one CTA for each tile of
//   low_rank.cuh            H and x_scaled: 64 tokens, 64 ranks, a chunk of I
//   output.cuh              y: 128 or 64 tokens, 128 features
//   output_few_tokens.cuh   y of up to 64 tokens: 64 features, a chunk of I
// CTAs take tiles in the order of tile_queue.cuh.
// Formulas: DoRA (arXiv:2402.09353) §4.1, factored so that W' is never formed.

#include "forward/sm80/low_rank.cuh"
#include "forward/sm80/output.cuh"
#include "forward/sm80/output_few_tokens.cuh"

// ---- tiles in their order ---------------------------------------------------------------------

template <bool DROPOUT, typename T, typename OUTPUT>
__device__ __forceinline__ void forward(const ForwardParams& p, unsigned char* shared) {
    constexpr int kTokens = LowRank<T>::kTileM;
    constexpr int kRowsPerGroup = TileOrder::kGroup * OUTPUT::kTileM / kTokens;
    const int columns = p.low_rank_tiles * p.h_split_k;
    // Computed where it is needed: the accumulators need the registers.
    const auto tile_order = [&] {
        int tokens = p.tokens;
        opaque(tokens);
        return TileOrder(ceil_div(tokens, OUTPUT::kTileM), OUTPUT::columns(p),
                         ceil_div(tokens, kTokens), kRowsPerGroup, columns);
    };
    const TileOrder order = tile_order();
    const TileQueue queue(p.queue, order.groups);
    const bool alone = columns == 0;
    const auto tile =
        order.at(alone ? blockIdx.x : next_tile(queue, reinterpret_cast<u32*>(shared)));
    const auto wait = [&](int group) {
        const TileOrder order = tile_order();
        wait_for(TileQueue(p.queue, order.groups), group, group + 1, order.producers_of(group));
    };
    if (tile.kind == TileOrder::Tile::kProducer) {
        // The group that used the same memory for partial sums must have added them up.
        if (tile.group >= kGroupsInFlight) wait(tile.group - kGroupsInFlight);
        const int row = tile.index / columns, column = tile.index % columns;
        const int col = column / p.h_split_k;
        const int slot =
            (tile.group % kGroupsInFlight * kRowsPerGroup + row) * p.low_rank_tiles + col;
        low_rank_tile<DROPOUT, T>(p, shared, {tile.group * kRowsPerGroup + row, col,
                                              column % p.h_split_k, slot});
        signal(queue, tile.group);
    } else {
        OUTPUT::run(p, shared, order.consumer_m(tile), order.consumer_n(tile), [&] {
            if (!alone) wait(tile.group);
        });
    }
    if (!alone) retire(TileQueue(p.queue, tile_order().groups), reinterpret_cast<u32*>(shared));
}

// ---- entry points -----------------------------------------------------------------------------

// Two CTAs per multiprocessor: with more, ptxas would give some kernels too few registers.
#define FUSED_DORA_FORWARD_ENTRY(NAME, DROPOUT, T, ...)                                         \
    extern "C" __global__ void __launch_bounds__(kThreads, 2)                                   \
        forward_##NAME(const __grid_constant__ ForwardParams p) {                               \
        using Output = __VA_ARGS__;                                                             \
        static_assert(LowRank<T>::kSharedBytes <= Output::kSharedBytes, "H fits with y");        \
        __shared__ __align__(128) unsigned char shared[Output::kSharedBytes];                   \
        forward<DROPOUT, T, Output>(p, shared);                                                 \
    }

#define FUSED_DORA_FORWARD(NAME, T)                                                             \
    FUSED_DORA_FORWARD_ENTRY(NAME, false, T, OutputTile<T, kLargeTokens>)                       \
    FUSED_DORA_FORWARD_ENTRY(medium_##NAME, false, T, OutputTile<T, kMediumTokens>)             \
    FUSED_DORA_FORWARD_ENTRY(few_tokens_##NAME, false, T, OutputTileFewTokens<T>)               \
    FUSED_DORA_FORWARD_ENTRY(dropout_##NAME, true, T, OutputTile<T, kLargeTokens>)              \
    FUSED_DORA_FORWARD_ENTRY(peft_dropout_##NAME, true, T, OutputTilePeft<T>)                   \
    FUSED_DORA_IF_##NAME##_IS_f32(FUSED_DORA_FORWARD_TF32X3)

#define FUSED_DORA_FORWARD_TF32X3                                                               \
    FUSED_DORA_FORWARD_ENTRY(tf32x3_f32, false, f32,                                            \
                             OutputTile<f32, kLargeTokens, Math::kTf32x3>)                      \
    FUSED_DORA_FORWARD_ENTRY(medium_tf32x3_f32, false, f32,                                     \
                             OutputTile<f32, kMediumTokens, Math::kTf32x3>)

FUSED_DORA_ENTRIES(FUSED_DORA_FORWARD)
