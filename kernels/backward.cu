// backward: all gradients of the adapted linear layer, the norm c held constant.
//
//   adapter.cuh   P = dY·(sB) or dY·(g∘sB);  dB = s·(g∘)dYᵀH;  db = Σ_t dY
//                 axis output: G = dY∘g rounded to T, else dY;  dm = (Σ_t dY∘z)/c
//   input.cuh     D = G·W + P·A;  dX = D∘g (axis input) or D
//                 axis input: dm = (Σ_t x∘D)/c
//   lora_a.cuh    dA = Pᵀx, ∘g over its columns (axis input)
//
// Shapes, row-major: dY, y, z, G [T,O]; x, dX [T,I]; W [O,I]; H, P [T,R]; A [R,I], sB, g∘sB [O,R] of
// T; dA [r,I], dB [O,r], dm [I] or [O], db [O] f32; R = rank padded to 16. dX is written with `=`;
// the parameters' gradients with `=`, or with `+=` where `accumulate` is set. Rows of dY, y, x and
// dX may lie further apart than they are long.
// Launch: grid: tiles of dY (a chunk of tokens and a strip of features each), of dX (128×128), and
// of dA (64×64 and a chunk of tokens each), in the order of order.cuh; block 128.
// Formulas: chain rule on forward.cu with c constant: DoRA (arXiv:2402.09353) §4.3.

#include "backward/adapter.cuh"
#include "backward/input.cuh"
#include "backward/lora_a.cuh"

template <bool DROPOUT, Math MATH, typename T>
__device__ __forceinline__ void backward(const BackwardParams& p, unsigned char* shared) {
    constexpr int kTileM = InputGemm<T>::kTileM, kGroupTokens = TileOrder::kGroup * kTileM;
    const int rows_per_group = kGroupTokens / p.chunk, chunks = ceil_div(p.tokens, p.chunk);
    const TileOrder order(ceil_div(p.tokens, kTileM), p.input_tiles, chunks, rows_per_group,
                          p.adapter_tiles);
    const Board board(p.board, chunks);
    const int strips = ceil_div(p.out_features, Adapter<T>::kStrip);
    const bool alone = p.adapter_tiles == 0;
    const auto tile = order.at(alone ? blockIdx.x : draw(board, reinterpret_cast<u32*>(shared)));
    const int ranks = alone ? 1 : p.adapter_tiles / strips;
    // P and G of tokens [begin, end): an event for each chunk of them.
    const auto wait = [&](int begin, int end) {
        if (!alone) await(board, begin / p.chunk, ceil_div(end, p.chunk), ranks);
    };
    if (tile.kind == TileOrder::Tile::kSmall) {
        const int chunk = tile.group * rows_per_group + tile.index / p.adapter_tiles;
        const int within = tile.index % p.adapter_tiles;
        const AdapterTile at{within % strips, strips, chunk, chunks, within / strips, ranks};
        adapter_tile<T>(p, board, shared, at);
    } else if (tile.kind == TileOrder::Tile::kMain) {
        const int m0 = order.main_m(tile) * kTileM, n0 = order.main_n(tile) * InputGemm<T>::kTileN;
        const bool first = DROPOUT || p.scales_grad();  // or for P alone, which is needed last
        if (first) wait(m0, m0 + kTileM);
        input_tile<DROPOUT, MATH, T>(p, shared, m0, n0, [&] {
            if (!first) wait(m0, m0 + kTileM);
        });
    } else {
        const LoraATile at(p, ceil_div(p.in_features, LoraA<T>::kTileN), tile.index);
        wait(at.chunk * p.lora_a_chunk, (at.chunk + 1) * p.lora_a_chunk);
        lora_a_tile<DROPOUT, T>(p, shared, at);
    }
    if (!alone) leave(board, reinterpret_cast<u32*>(shared));
}

// Mirrored in src/backward/plan.rs; a test compares them.
extern "C" __constant__ int backward_geometry[] = {
    Adapter<bf16>::kStrip,   Adapter<float>::kStrip, Adapter<bf16>::kTokens, kRankTile, kRing,
    InputGemm<bf16>::kTileM, InputGemm<bf16>::kTileN, TileOrder::kGroup,     LoraA<bf16>::kTileM,
    LoraA<bf16>::kTileN,     kThreads,                sizeof(BackwardParams)};

#define FUSED_DORA_BACKWARD_ENTRY(NAME, DROPOUT, MATH, T)                                       \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        backward_##NAME(const __grid_constant__ BackwardParams p) {                             \
        __shared__ __align__(128) unsigned char shared[InputGemm<T>::kSharedBytes];             \
        static_assert(Adapter<T>::kSharedBytes <= InputGemm<T>::kSharedBytes, "it has room");   \
        backward<DROPOUT, MATH, T>(p, shared);                                                  \
    }

#define FUSED_DORA_BACKWARD(NAME, T)                                                            \
    FUSED_DORA_BACKWARD_ENTRY(NAME, false, Math::kDirect, T)                                    \
    FUSED_DORA_BACKWARD_ENTRY(dropout_##NAME, true, Math::kDirect, T)                           \
    FUSED_DORA_IF_##NAME##_IS_f32(                                                              \
        FUSED_DORA_BACKWARD_ENTRY(tf32x3_##NAME, false, Math::kTf32x3, T))

FUSED_DORA_ENTRIES(FUSED_DORA_BACKWARD)
