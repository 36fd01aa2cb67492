// backward: all gradients of the adapted linear layer, the norm c held constant.
//
//   adapter.cuh   P = dY·(sB) or dY·(g∘sB);  dB = s·(g∘)dYᵀH;  db = Σ_t dY
//                 axis output: G = dY∘g rounded to T, else dY;  dm = (Σ_t dY∘z)/c
//   input*.cuh    D = G·W + P·A;  dX = D∘g (axis input) or D
//                 axis input: dm = (Σ_t x∘D)/c
//   lora_a.cuh    dA = Pᵀx, ∘g over its columns (axis input)
//
// Shapes, row-major: dY, y, z, G [T,O]; x, dX [T,I]; W [O,I]; H, P [T,R]; A [R,I], sB, g∘sB [O,R] of
// T; dA [r,I], dB [O,r], dm [I] or [O], db [O] f32; R = rank padded to 16. dX is written with `=`,
// the parameters' gradients with `=`, or with `+=` if `accumulate` is set. The row strides of dY, y,
// x and dX may be larger than their rows.
// Launch: block 128, and one CTA for each tile of
//   adapter.cuh            dY: a chunk of tokens, a strip of features
//   input.cuh              dX: 128 or 64 tokens, 128 features
//   input_few_tokens.cuh   dX of up to 64 tokens: 64 features, a chunk of O
//   lora_a.cuh             dA: 64 ranks, 64 features, a chunk of tokens
// CTAs take tiles in the order of tile_queue.cuh.
// Formulas: chain rule on forward/sm80.cu with c constant: DoRA (arXiv:2402.09353) §4.3.

#include "backward/sm80/adapter.cuh"
#include "backward/sm80/input.cuh"
#include "backward/sm80/input_few_tokens.cuh"
#include "backward/sm80/lora_a.cuh"

template <bool DROPOUT, typename T, typename INPUT>
__device__ __forceinline__ void backward(const BackwardParams& p, unsigned char* shared) {
    constexpr int kTileM = INPUT::kTileM, kGroupTokens = TileOrder::kGroup * kTileM;
    const int rows_per_group = kGroupTokens / p.chunk;
    const TileOrder order(ceil_div(p.tokens, kTileM), p.input_tiles, p.chunks(), rows_per_group,
                          p.adapter_tiles);
    const TileQueue queue(p.queue, p.chunks());
    const int strips = ceil_div(p.out_features, Adapter<T>::kStrip);
    const bool alone = p.adapter_tiles == 0;
    const auto tile =
        order.at(alone ? blockIdx.x : next_tile(queue, reinterpret_cast<u32*>(shared)));
    const int ranks = alone ? 1 : p.adapter_tiles / strips;
    // P and G of tokens [begin, end): an event for each chunk of them.
    const auto wait = [&](int begin, int end) {
        if (!alone) wait_for(queue, begin / p.chunk, ceil_div(end, p.chunk), ranks);
    };
    if (tile.kind == TileOrder::Tile::kProducer) {
        const int chunk = tile.group * rows_per_group + tile.index / p.adapter_tiles;
        const int within = tile.index % p.adapter_tiles;
        const AdapterTile at{within % strips, strips, chunk, within / strips, ranks};
        adapter_tile<T>(p, queue, shared, at);
    } else if (tile.kind == TileOrder::Tile::kConsumer) {
        const int row = order.consumer_m(tile);
        INPUT::run(p, shared, row, order.consumer_n(tile),
                   [&] { wait(row * kTileM, (row + 1) * kTileM); });
    } else {
        const LoraATile at(p, ceil_div(p.in_features, LoraA<T>::kTileN), tile.index);
        wait(at.chunk * p.lora_a_chunk, (at.chunk + 1) * p.lora_a_chunk);
        lora_a_tile<DROPOUT, T>(p, shared, at);
    }
    if (!alone) retire(TileQueue(p.queue, p.chunks()), reinterpret_cast<u32*>(shared));
}

#define FUSED_DORA_BACKWARD_ENTRY(NAME, DROPOUT, T, ...)                                        \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        backward_##NAME(const __grid_constant__ BackwardParams p) {                             \
        using Input = __VA_ARGS__;                                                              \
        constexpr int kBytes = larger(Input::kSharedBytes, Adapter<T>::kSharedBytes);           \
        static_assert(LoraA<T>::kSharedBytes <= kBytes, "dA fits in the memory");               \
        __shared__ __align__(128) unsigned char shared[kBytes];                                 \
        backward<DROPOUT, T, Input>(p, shared);                                                 \
    }

#define FUSED_DORA_BACKWARD(NAME, T)                                                            \
    FUSED_DORA_BACKWARD_ENTRY(NAME, false, T, InputTile<T, kLargeTokens, false>)                \
    FUSED_DORA_BACKWARD_ENTRY(medium_##NAME, false, T, InputTile<T, kMediumTokens, false>)      \
    FUSED_DORA_BACKWARD_ENTRY(few_tokens_##NAME, false, T, InputTileFewTokens<T>)               \
    FUSED_DORA_BACKWARD_ENTRY(dropout_##NAME, true, T, InputTile<T, kLargeTokens, true>)        \
    FUSED_DORA_IF_##NAME##_IS_f32(FUSED_DORA_BACKWARD_TF32X3)

#define FUSED_DORA_BACKWARD_TF32X3                                                              \
    FUSED_DORA_BACKWARD_ENTRY(tf32x3_f32, false, f32,                                           \
                              InputTile<f32, kLargeTokens, false, Math::kTf32x3>)               \
    FUSED_DORA_BACKWARD_ENTRY(medium_tf32x3_f32, false, f32,                                    \
                              InputTile<f32, kMediumTokens, false, Math::kTf32x3>)

FUSED_DORA_ENTRIES(FUSED_DORA_BACKWARD)
