// backward_input: the gradients that need P, in two launches.
//
//   backward_input          D = G·W + P·A,   dX = D∘g (axis input) or D
//                           axis input: dm = (Σ_t x∘D)/c
//   backward_input_lora_a   dA = Pᵀx, ∘g over its columns (axis input)
//
// G is dY, or dY∘g rounded to T (axis output); P = dY·(sB) or dY·(g∘sB), from backward_adapter.
// With dropout (mask M, see dropout.cuh), in the adapter branch: D = G·W + (P·A)∘M,
// dA = Pᵀ(x∘M). PEFT's form, axis output, G = dY∘(g − 1): D = dY·W + (G·W + P·A)∘M.
// Shapes, row-major: G [T,O]; W [O,I]; P [T,R]; a [R,I]; x, dX [T,I] of T; dm [I], dA [r,I] f32;
// R = rank padded to 16. dX is written with `=`; dm and dA with `=`, or with `+=` where `accumulate`
// is set. dm = 0 where c = 0. Rows of G, x and dX may lie further apart than they are long.
// Launch: backward_input: grid ⌈T/128⌉·⌈I/128⌉; backward_input_lora_a: grid (⌈I/64⌉, ⌈R/64⌉, chunks
// of T); block 128. Sums over T are partial per CTA and added in order by the last one to arrive.
// Formulas: chain rule on forward.cu with c constant: DoRA (arXiv:2402.09353) §4.3.

#include "common/dropout.cuh"
#include "common/epilogue.cuh"
#include "common/gemm.cuh"
#include "common/reduce.cuh"

struct TileIndex { static constexpr int kGroup = 8; int m, n; __device__ __forceinline__ TileIndex(int index, int tiles_m, int tiles_n) { const int group = index / (kGroup * tiles_n), first = group * kGroup; const int height = min(kGroup, tiles_m - first); const int within = index - group * kGroup * tiles_n; m = first + within % height; n = within / height; } };

struct BackwardInputParams {
    const void* grad;       // what meets W: G, or dY with PEFT's dropout
    const void* dropped_grad;  // G, with PEFT's dropout, else null
    const void* weight;
    const void* p;
    const void* a;
    const void* x;
    const float* gain;      // axis input only, else null
    const float* norm;      // likewise
    void* grad_input;       // null: not wanted (axis input still needs dm)
    float* grad_lora_a;
    float* grad_magnitude;  // axis input only, else null
    float* partial_m;       // [⌈T/128⌉, I]
    float* partial_a;       // [chunks, R, I]
    u32* tile_counters;     // backward_input: [⌈I/128⌉]
    u32* lora_a_counters;   // backward_input_lora_a: [⌈I/64⌉ · ⌈R/64⌉]
    Dropout dropout;
    int tokens, in_features, out_features, rank, padded_rank;
    int grad_stride, x_stride, grad_input_stride;
    int chunk;              // tokens per CTA of backward_input_lora_a
    int aligned;            // every row of every operand starts at a 16-byte boundary
    int accumulate;         // dm and dA are added to what is there
};

// ---- dX and dm --------------------------------------------------------------------------------

template <typename T>
using Gemm = MainGemm<T, Major::MN>;

// D of one tile.
template <bool ALIGNED, bool DROPOUT, typename T>
__device__ __forceinline__ void input_gradient(const BackwardInputParams& p,
                                               typename Gemm<T>::Mma& mma, unsigned char* shared,
                                               int m0, int n0) {
    // Pass 0 of two is the adapter's branch, which the mask is for.
    const auto products = [&](int pass, bool low) -> Product<T> {
        if (low && DROPOUT && pass == 1) return {};
        if (low) {
            return {Matrix<T>::dense(p.p, p.tokens, p.padded_rank),
                    Matrix<T>::dense(p.a, p.padded_rank, p.in_features)};
        }
        const bool dropped = DROPOUT && pass == 0;
        const int features = dropped && !p.dropped_grad ? 0 : p.out_features;
        return {Matrix<T>::strided(dropped ? p.dropped_grad : p.grad, p.tokens, features,
                                   dropped ? p.out_features : p.grad_stride),
                Matrix<T>::dense(p.weight, p.out_features, p.in_features)};
    };
    mma.clear();
#pragma unroll 1  // one copy of the main loop
    for (int pass = 0; pass < (DROPOUT ? 2 : 1); ++pass) {
        Gemm<T>::template accumulate<ALIGNED>(mma, shared, products, pass, m0, n0, [] {});
        if (DROPOUT && pass == 0) drop_accumulators(mma, p.dropout, m0, n0);
    }
}

// dm of the tile's columns from this lane's sums of x∘D over its rows: partial per CTA, and added
// up by the last CTA of a column of tiles.
template <typename T>
__device__ __forceinline__ void magnitude_gradient(const BackwardInputParams& p,
                                                   float (&sums)[kVector<T>], TileIndex tile,
                                                   unsigned char* shared) {
    using Mma = typename Gemm<T>::Mma;
    using Output = Epilogue<T, Mma>;
    constexpr int kTileN = Gemm<T>::kTileN;
    static_assert(kTileN == kThreads, "one thread per column");
    const int tiles_m = ceil_div(p.tokens, Gemm<T>::kTileM);
    float(*across)[kTileN] = reinterpret_cast<float(*)[kTileN]>(shared);
    __syncthreads();  // the epilogue is over
#pragma unroll
    for (int e = 0; e < kVector<T>; ++e) {
#pragma unroll
        for (int mask = Output::kLanesPerRow; mask < kWarpSize; mask *= 2) {
            sums[e] += shfl_xor(sums[e], mask);
        }
        if (Mma::lane() < Output::kLanesPerRow) across[Mma::warp_m()][Output::col() + e] = sums[e];
    }
    __syncthreads();
    const int col = tile.n * kTileN + threadIdx.x;
    if (col < p.in_features) {
        p.partial_m[i64(tile.m) * p.in_features + col] =
            across[0][threadIdx.x] + across[1][threadIdx.x];
    }
    u32* flag = reinterpret_cast<u32*>(shared);  // written behind a barrier of arrive_last
    if (!arrive_last(p.tile_counters + tile.n, tiles_m, flag)) return;
    if (col < p.in_features) {
        const float sum = ordered_sum(p.partial_m + col, tiles_m, p.in_features);
        store_gradient(p.grad_magnitude + col, p.norm[col] > 0.0f ? sum / p.norm[col] : 0.0f,
                       p.accumulate);
    }
}

template <bool ALIGNED, bool DROPOUT, typename T>
__device__ __forceinline__ void backward_input(const BackwardInputParams& p,
                                               unsigned char* shared) {
    using Output = Epilogue<T, typename Gemm<T>::Mma>;
    const TileIndex tile(blockIdx.x, ceil_div(p.tokens, Gemm<T>::kTileM),
                         ceil_div(p.in_features, Gemm<T>::kTileN));
    const int m0 = tile.m * Gemm<T>::kTileM, n0 = tile.n * Gemm<T>::kTileN;
    typename Gemm<T>::Mma mma;
    input_gradient<ALIGNED, DROPOUT, T>(p, mma, shared, m0, n0);

    const auto x = Matrix<T>::strided(p.x, p.tokens, p.in_features, p.x_stride);
    const int col = n0 + Output::col();
    float gain[kVector<T>], sums[kVector<T>];
#pragma unroll
    for (int e = 0; e < kVector<T>; ++e) {
        gain[e] = p.gain && col + e < p.in_features ? p.gain[col + e] : 1.0f;
        sums[e] = 0.0f;
    }
    Output::for_each_row(mma, shared, [&](int row, const float(&d)[kVector<T>]) {
        if (p.grad_magnitude) {
            const Vector<T> inputs = load_chunk<ALIGNED>(x, m0 + row, col);
#pragma unroll
            for (int e = 0; e < kVector<T>; ++e) {
                if (m0 + row < p.tokens) sums[e] = fmaf(to_float(inputs.values[e]), d[e], sums[e]);
            }
        }
        if (p.grad_input) {
            Vector<T> out;
#pragma unroll
            for (int e = 0; e < kVector<T>; ++e) out.values[e] = from_float<T>(gain[e] * d[e]);
            store_chunk<ALIGNED>(static_cast<T*>(p.grad_input), p.tokens, p.in_features,
                                 p.grad_input_stride, m0 + row, col, out);
        }
    });
    if (p.grad_magnitude) magnitude_gradient<T>(p, sums, tile, shared);
}

// ---- dA ---------------------------------------------------------------------------------------

template <typename T>
struct LoraA {
    static constexpr int kTileM = 64, kTileN = 64, kTileK = kIsFloat<T> ? 16 : 32, kStages = 3;
    using Mma = TileMma<T, kTileM, kTileN, kTileK, 1, 4, Major::MN, Major::MN>;
    static constexpr int kStageBytes = Mma::TileA::kBytes + Mma::TileB::kBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes;
};

template <bool ALIGNED, bool DROPOUT, typename T>
__device__ __forceinline__ void lora_a_partials(const BackwardInputParams& p,
                                                unsigned char* shared) {
    using Shape = LoraA<T>;
    using Mma = typename Shape::Mma;
    const int n0 = blockIdx.x * Shape::kTileN, m0 = blockIdx.y * Shape::kTileM;
    const int begin = blockIdx.z * p.chunk, end = min(p.tokens, begin + p.chunk);
    const auto left = Matrix<T>::dense(p.p, end, p.padded_rank);
    const auto right = Matrix<T>::strided(p.x, end, p.in_features, p.x_stride);
    const int ranks = p.padded_rank - m0;
    Mma mma;
    mma.clear();
    pipeline<Shape::kStages>(
        ceil_div(end - begin, Shape::kTileK),
        [&](int step, int stage) {
            unsigned char* memory = shared + stage * Shape::kStageBytes;
            const int t0 = begin + step * Shape::kTileK;
            copy_tile_async<ALIGNED>(typename Mma::TileA(memory), left, t0, m0);
            const typename Mma::TileB tile_x(memory + Mma::TileA::kBytes);
            if constexpr (DROPOUT) {
                copy_tile_dropped<ALIGNED>(tile_x, right, p.dropout, t0, n0);
            } else {
                copy_tile_async<ALIGNED>(tile_x, right, t0, n0);
            }
        },
        [&](int step, int stage) {
            unsigned char* memory = shared + stage * Shape::kStageBytes;
            mma.multiply(typename Mma::TileA(memory),
                         typename Mma::TileB(memory + Mma::TileA::kBytes), ranks,
                         p.in_features - n0, end - begin - step * Shape::kTileK);
        });
    float* partial = p.partial_a + i64(blockIdx.z) * p.padded_rank * p.in_features;
#pragma unroll
    for (int i = 0; i < Mma::kRows; ++i) {
#pragma unroll
        for (int j = 0; j < Mma::kCols; j += 2) {
            store_pair<ALIGNED>(partial, p.padded_rank, p.in_features, p.in_features,
                                m0 + Mma::row(i), n0 + Mma::col(j), mma.at(i, j),
                                mma.at(i, j + 1));
        }
    }
}

template <bool DROPOUT, typename T>
__device__ __forceinline__ void backward_lora_a(const BackwardInputParams& p,
                                                unsigned char* shared) {
    using Shape = LoraA<T>;
    p.aligned ? lora_a_partials<true, DROPOUT, T>(p, shared)
              : lora_a_partials<false, DROPOUT, T>(p, shared);
    u32* counter = p.lora_a_counters + blockIdx.y * gridDim.x + blockIdx.x;
    if (!arrive_last(counter, gridDim.z, reinterpret_cast<u32*>(shared))) return;
    const int n0 = blockIdx.x * Shape::kTileN, m0 = blockIdx.y * Shape::kTileM;
    const int ranks = min(Shape::kTileM, p.rank - m0);
    for (int i = threadIdx.x; i < ranks * Shape::kTileN; i += kThreads) {
        const int col = n0 + i % Shape::kTileN;
        if (col >= p.in_features) continue;
        const i64 at = i64(m0 + i / Shape::kTileN) * p.in_features + col;
        const float sum =
            ordered_sum(p.partial_a + at, gridDim.z, i64(p.padded_rank) * p.in_features);
        store_gradient(p.grad_lora_a + at, p.gain ? p.gain[col] * sum : sum, p.accumulate);
    }
}

// Mirrored in src/backward_input.rs; a test compares them.
extern "C" __constant__ int backward_input_geometry[] = {
    Gemm<bf16>::kTileM, Gemm<bf16>::kTileN, LoraA<bf16>::kTileM, LoraA<bf16>::kTileN,
    kThreads,           sizeof(BackwardInputParams)};

#define FUSED_DORA_BACKWARD_INPUT_ENTRIES(NAME, DROPOUT, T)                                     \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        backward_input_##NAME(const __grid_constant__ BackwardInputParams p) {                  \
        __shared__ __align__(128) unsigned char shared[Gemm<T>::kSharedBytes];                  \
        p.aligned ? backward_input<true, DROPOUT, T>(p, shared)                                 \
                  : backward_input<false, DROPOUT, T>(p, shared);                               \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        backward_input_lora_a_##NAME(const __grid_constant__ BackwardInputParams p) {           \
        __shared__ __align__(128) unsigned char shared[LoraA<T>::kSharedBytes];                 \
        backward_lora_a<DROPOUT, T>(p, shared);                                                 \
    }

#define FUSED_DORA_BACKWARD_INPUT(NAME, T)                                                      \
    FUSED_DORA_BACKWARD_INPUT_ENTRIES(NAME, false, T)                                           \
    FUSED_DORA_BACKWARD_INPUT_ENTRIES(dropout_##NAME, true, T)

FUSED_DORA_ENTRIES(FUSED_DORA_BACKWARD_INPUT)
