// backward_adapter: everything that one read of dY gives, in one launch.
//
//   P  = dY·(sB) (axis input, plain LoRA)   or   dY·(g∘sB) (axis output)
//   dB = s·dYᵀH   or   s·g∘(dYᵀH) (axis output)          db = Σ_t dY
//   axis output:  G = dY∘g, rounded to T, for dX;   dm = (Σ_t dY∘z)/c,   z = (y − b)/g
//
// Shapes, row-major: dY, y, G [T,O]; gsb [O,R] (sb where there is no g on the output); H, P [T,R];
// dB [O,r], db, dm [O] f32; R = rank padded to 16. G and P are written with `=`; dB, db and dm with
// `=`, or with `+=` where `accumulate` is set. Rows of dY, y and x may lie further apart than they
// are long.
// z comes back from y unless that would magnify y's rounding: where |g| is tiny, or the bias hides
// g·z, it is computed again as x·Wᵀ + H·(sB)ᵀ. dm = 0 where c = 0.
// With PEFT's dropout (see forward.cu), axis output: G = dY∘(g − 1), and z is kept by the forward.
// Launch: grid (strips of O, chunks of T, ⌈R/64⌉), block 128. A CTA goes through its chunk in tiles
// of T; partial P (over strips) and dB, db, dm (over chunks) are summed in order by the CTAs that
// arrive last.
// Formulas: chain rule on forward.cu with c constant: DoRA (arXiv:2402.09353) §4.3.

#include "common/pipeline.cuh"
#include "common/reduce.cuh"

struct BackwardAdapterParams {
    const void* grad_output;
    const void* output;     // y; axis output only; z itself with PEFT's dropout
    const void* x;          // for z of features with a tiny g; axis output only
    const void* weight;     // likewise
    const void* bias;       // null: no bias
    const void* h;
    const void* sb;
    const void* gsb;        // what dY is contracted with: g∘sB, or sB
    const float* gain;      // axis output only, else null
    const float* norm;      // likewise
    void* scaled_grad;      // G; likewise
    void* p;
    float* grad_lora_b;
    float* grad_magnitude;  // axis output only, else null
    float* grad_bias;       // null: not wanted
    float* partial_p;       // [strips, T, R]
    float* partial_b;       // [chunks, O, R]
    float* partial_bias;    // [chunks, O]
    float* partial_m;       // [chunks, O]
    u32* chunk_counters;    // [chunks · ⌈R/64⌉]
    u32* strip_counters;    // [strips · ⌈R/64⌉]
    float scaling;
    int tokens, in_features, out_features, rank, padded_rank;
    int grad_stride, output_stride, x_stride;
    int chunk;              // tokens per chunk, a multiple of the tile
    int peft_dropout;       // PEFT's dropout
    int aligned;            // every row of every operand starts at a 16-byte boundary
    int accumulate;         // dB, db and dm are added to what is there
};

constexpr int kRankTile = 64;

template <typename T>
struct Adapter {
    static constexpr int kStrip = kIsFloat<T> ? 64 : 128;  // output features of a CTA
    static constexpr int kTokens = kIsFloat<T> ? 16 : 32;  // tokens of a tile
    static constexpr int kStages = 2;
    static constexpr int kWarpsP = kTokens / 16;
    // P tile = dY tile · gsb strip;  dB strip += (dY tile)ᵀ · H tile: one dY tile, read both ways.
    using MmaP = TileMma<T, kTokens, kRankTile, kStrip, kWarpsP, 4 / kWarpsP, Major::K, Major::MN>;
    using MmaB = TileMma<T, kStrip, kRankTile, kTokens, 4, 1, Major::MN, Major::MN>;
    using TileGrad = typename MmaP::TileA;
    using TileH = typename MmaB::TileB;
    using TileGsb = typename MmaP::TileB;
    static_assert(TileGrad::kRows == MmaB::TileA::kRows && TileGrad::kCols == MmaB::TileA::kCols,
                  "both products read the same dY tile");
    static constexpr int kStageBytes = TileGrad::kBytes + TileH::kBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes + TileGsb::kBytes;
    static_assert(kStrip <= kThreads, "one thread per column of the strip");
};

// Per-column sums of one feature over the CTA's tokens.
struct ColumnSums {
    float bias = 0.0f;       // Σ dY
    float magnitude = 0.0f;  // Σ dY·(y − b), then Σ dY·z
    float stored = 0.0f;     // Σ |dY·y|
    float kept = 0.0f;       // Σ |dY·(y − b)|

    // Whether z = (y − b)/g would magnify y's rounding too far.
    __device__ __forceinline__ bool needs_recomputed_z(float gain) const {
        constexpr float kTinyGain = 1.0f / 64, kMostMagnified = 8.0f;
        return fabsf(gain) < kTinyGain || stored > kMostMagnified * kept;
    }
};

// Adds this thread's column of one tile.
template <typename T>
__device__ __forceinline__ void add_columns(const BackwardAdapterParams& p,
                                            typename Adapter<T>::TileGrad grad, int t0, int rows,
                                            int col, float bias, ColumnSums& sums) {
    const T* y = static_cast<const T*>(p.output) + i64(t0) * p.output_stride + col;
    for (int t = 0; t < rows; ++t) {
        const float dy = to_float(*grad.at(t, threadIdx.x));
        sums.bias += dy;
        if (p.grad_magnitude) {
            const float stored = to_float(y[i64(t) * p.output_stride]), kept = stored - bias;
            sums.magnitude = fmaf(dy, kept, sums.magnitude);
            sums.stored += fabsf(dy * stored);
            sums.kept += fabsf(dy * kept);
        }
    }
}

// G = dY∘g of one tile, or dY∘(g − 1).
template <bool ALIGNED, typename T>
__device__ __forceinline__ void store_scaled(const BackwardAdapterParams& p,
                                             typename Adapter<T>::TileGrad grad, int t0, int end,
                                             int col0) {
    const float less = p.peft_dropout ? 1.0f : 0.0f;
    for_each_chunk<ALIGNED, typename Adapter<T>::TileGrad>([&](int r, int c) {
        const int col = col0 + c * kVector<T>;
        Vector<T> chunk = *reinterpret_cast<const Vector<T>*>(grad.chunk(r, c));
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
            const float g = col + e < p.out_features ? p.gain[col + e] - less : 0.0f;
            chunk.values[e] = from_float<T>(to_float(chunk.values[e]) * g);
        }
        store_chunk<ALIGNED>(static_cast<T*>(p.scaled_grad), end, p.out_features, p.out_features,
                             t0 + r, col, chunk);
    });
}

// Σ_t dY·z of one feature over [begin, end) with z computed again, by all warps of the CTA: each
// takes every fourth token. `across` holds one word per warp.
template <typename T>
__device__ __forceinline__ float recomputed_sum(const BackwardAdapterParams& p, int feature,
                                                int begin, int end, float* across) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const T* w = static_cast<const T*>(p.weight) + i64(feature) * p.in_features;
    const T* sb = static_cast<const T*>(p.sb) + i64(feature) * p.padded_rank;
    float sum = 0.0f;
    for (int t = begin + warp; t < end; t += kWarps) {
        const T* x = static_cast<const T*>(p.x) + i64(t) * p.x_stride;
        const T* h = static_cast<const T*>(p.h) + i64(t) * p.padded_rank;
        float z = 0.0f;
        for (int j = lane; j < p.in_features; j += kWarpSize) {
            z = fmaf(to_float(x[j]), to_float(w[j]), z);
        }
        for (int k = lane; k < p.padded_rank; k += kWarpSize) {
            z = fmaf(to_float(h[k]), to_float(sb[k]), z);
        }
#pragma unroll
        for (int mask = kWarpSize / 2; mask > 0; mask /= 2) z += shfl_xor(z, mask);
        const T dy = static_cast<const T*>(p.grad_output)[i64(t) * p.grad_stride + feature];
        sum = fmaf(to_float(dy), z, sum);
    }
    __syncthreads();
    if (lane == 0) across[warp] = sum;
    __syncthreads();
    return across[0] + across[1] + across[2] + across[3];
}

template <bool ALIGNED, typename T>
__device__ __forceinline__ void adapter_partials(const BackwardAdapterParams& p,
                                                 unsigned char* shared) {
    using Shape = Adapter<T>;
    using MmaP = typename Shape::MmaP;
    using MmaB = typename Shape::MmaB;
    const int o0 = blockIdx.x * Shape::kStrip, k0 = blockIdx.z * kRankTile;
    const int begin = blockIdx.y * p.chunk, end = min(p.tokens, begin + p.chunk);
    const int columns = p.out_features - o0, ranks = p.padded_rank - k0;
    // Rows end with the chunk, so that a tile never reaches into the next one.
    const auto grad = Matrix<T>::strided(p.grad_output, end, p.out_features, p.grad_stride);
    const auto h = Matrix<T>::dense(p.h, end, p.padded_rank);
    const auto gsb = Matrix<T>::dense(p.gsb, p.out_features, p.padded_rank);
    const typename Shape::TileGsb tile_gsb(shared + Shape::kStages * Shape::kStageBytes);
    const auto tile_grad = [&](int stage) {
        return typename Shape::TileGrad(shared + stage * Shape::kStageBytes);
    };
    const auto tile_h = [&](int stage) {
        return typename Shape::TileH(shared + stage * Shape::kStageBytes +
                                     Shape::TileGrad::kBytes);
    };
    copy_tile_async<ALIGNED>(tile_gsb, gsb, o0, k0);  // lands with the first stage

    const int col = o0 + threadIdx.x;
    const bool owns_column =
        blockIdx.z == 0 && threadIdx.x < Shape::kStrip && col < p.out_features;
    // What of y is not z.
    const bool scaled = owns_column && p.gain && !p.peft_dropout;
    const float gain = scaled ? p.gain[col] : 1.0f;
    const float bias =
        scaled && p.bias ? to_float(static_cast<const T*>(p.bias)[col]) : 0.0f;
    ColumnSums sums;
    MmaB grad_b;
    grad_b.clear();
    pipeline<Shape::kStages>(
        ceil_div(end - begin, Shape::kTokens),
        [&](int step, int stage) {
            const int t0 = begin + step * Shape::kTokens;
            copy_tile_async<ALIGNED>(tile_grad(stage), grad, t0, o0);
            copy_tile_async<ALIGNED>(tile_h(stage), h, t0, k0);
        },
        [&](int step, int stage) {
            const int t0 = begin + step * Shape::kTokens;
            MmaP product;
            product.clear();
            product.multiply(tile_grad(stage), tile_gsb, end - t0, ranks, columns);
            grad_b.multiply(typename MmaB::TileA(tile_grad(stage).data), tile_h(stage), columns,
                            ranks, end - t0);
            float* partial = p.partial_p + i64(blockIdx.x) * p.tokens * p.padded_rank;
#pragma unroll
            for (int i = 0; i < MmaP::kRows; ++i) {
#pragma unroll
                for (int j = 0; j < MmaP::kCols; j += 2) {
                    store_pair<true>(partial, end, p.padded_rank, p.padded_rank,
                                     t0 + MmaP::row(i), k0 + MmaP::col(j), product.at(i, j),
                                     product.at(i, j + 1));
                }
            }
            if (owns_column) {
                add_columns<T>(p, tile_grad(stage), t0, min(Shape::kTokens, end - t0), col, bias,
                               sums);
            }
            if (p.scaled_grad && blockIdx.z == 0) {
                store_scaled<ALIGNED, T>(p, tile_grad(stage), t0, end, o0);
            }
        });

    float* partial_b = p.partial_b + i64(blockIdx.y) * p.out_features * p.padded_rank;
#pragma unroll
    for (int i = 0; i < MmaB::kRows; ++i) {
#pragma unroll
        for (int j = 0; j < MmaB::kCols; j += 2) {
            store_pair<true>(partial_b, p.out_features, p.padded_rank, p.padded_rank,
                             o0 + MmaB::row(i), k0 + MmaB::col(j), grad_b.at(i, j),
                             grad_b.at(i, j + 1));
        }
    }
    if (p.grad_magnitude && blockIdx.z == 0) {
        bool* recompute = reinterpret_cast<bool*>(shared + sizeof(float) * kThreads);
        recompute[threadIdx.x] =
            scaled && p.norm[col] > 0.0f && sums.needs_recomputed_z(gain);
        sums.magnitude /= gain;
        __syncthreads();
        for (int c = 0; c < Shape::kStrip; ++c) {
            if (!recompute[c]) continue;
            const float sum =
                recomputed_sum<T>(p, o0 + c, begin, end, reinterpret_cast<float*>(shared));
            if (threadIdx.x == c) sums.magnitude = sum;
        }
    }
    if (owns_column) {
        const i64 at = i64(blockIdx.y) * p.out_features + col;
        p.partial_bias[at] = sums.bias;
        if (p.grad_magnitude) p.partial_m[at] = sums.magnitude;
    }
}

// P of this chunk of tokens, from the partial sums of all strips.
template <typename T>
__device__ __forceinline__ void finish_p(const BackwardAdapterParams& p) {
    const int k0 = blockIdx.z * kRankTile, ranks = min(kRankTile, p.padded_rank - k0);
    const int begin = blockIdx.y * p.chunk, tokens = min(p.tokens, begin + p.chunk) - begin;
    for (int i = threadIdx.x; i < tokens * ranks; i += kThreads) {
        const i64 at = i64(begin + i / ranks) * p.padded_rank + k0 + i % ranks;
        static_cast<T*>(p.p)[at] = from_float<T>(
            ordered_sum(p.partial_p + at, gridDim.x, i64(p.tokens) * p.padded_rank));
    }
}

// dB, db and dm of this strip of features, from the partial sums of all chunks.
template <typename T>
__device__ __forceinline__ void finish_strip(const BackwardAdapterParams& p) {
    const int o0 = blockIdx.x * Adapter<T>::kStrip, k0 = blockIdx.z * kRankTile;
    const int features = min(Adapter<T>::kStrip, p.out_features - o0);
    const int ranks = min(kRankTile, p.rank - k0);
    for (int i = threadIdx.x; i < features * ranks; i += kThreads) {
        const i64 row = o0 + i / ranks;
        const int k = k0 + i % ranks;
        const float sum = ordered_sum(p.partial_b + row * p.padded_rank + k, gridDim.y,
                                      i64(p.out_features) * p.padded_rank);
        store_gradient(p.grad_lora_b + row * p.rank + k,
                       p.scaling * (p.gain ? p.gain[row] * sum : sum), p.accumulate);
    }
    if (blockIdx.z != 0 || threadIdx.x >= features) return;
    const int col = o0 + threadIdx.x;
    if (p.grad_bias) {
        store_gradient(p.grad_bias + col,
                       ordered_sum(p.partial_bias + col, gridDim.y, p.out_features),
                       p.accumulate);
    }
    if (p.grad_magnitude) {
        const float sum = ordered_sum(p.partial_m + col, gridDim.y, p.out_features);
        store_gradient(p.grad_magnitude + col, p.norm[col] > 0.0f ? sum / p.norm[col] : 0.0f,
                       p.accumulate);
    }
}

template <typename T>
__device__ __forceinline__ void backward_adapter(const BackwardAdapterParams& p,
                                                 unsigned char* shared) {
    p.aligned ? adapter_partials<true, T>(p, shared) : adapter_partials<false, T>(p, shared);
    u32* flag = reinterpret_cast<u32*>(shared);
    u32* chunk_counter = p.chunk_counters + blockIdx.z * gridDim.y + blockIdx.y;
    if (arrive_last(chunk_counter, gridDim.x, flag)) finish_p<T>(p);
    u32* strip_counter = p.strip_counters + blockIdx.z * gridDim.x + blockIdx.x;
    if (arrive_last(strip_counter, gridDim.y, flag)) finish_strip<T>(p);
}

// Mirrored in src/backward_adapter.rs; a test compares them.
extern "C" __constant__ int backward_adapter_geometry[] = {
    Adapter<bf16>::kStrip,  Adapter<bf16>::kTokens, Adapter<float>::kStrip,
    Adapter<float>::kTokens, kRankTile, kThreads, sizeof(BackwardAdapterParams)};

#define FUSED_DORA_BACKWARD_ADAPTER(NAME, T)                                                    \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        backward_adapter_##NAME(const __grid_constant__ BackwardAdapterParams p) {              \
        __shared__ __align__(128) unsigned char shared[Adapter<T>::kSharedBytes];               \
        backward_adapter<T>(p, shared);                                                         \
    }

FUSED_DORA_ENTRIES(FUSED_DORA_BACKWARD_ADAPTER)
