// prepare: what the other ops need of an adapter, once per change of A, B or m, in one launch.
//
//   V = W + s·B·A,   c = ‖V‖ over the norm axis,   g = m/c (0 where c = 0)
//   a = A, sb = s·B, gsb = g∘(s·B) (axis output), rounded to T, rank zero-padded to R
//   packed_bias = b rounded to T, where the bias is trained
//
// Shapes, row-major: W [O,I] of T; A [r,I], B [O,r], m, b [O] f32; c, g f32 [I] (axis input) or [O]
// (axis output); a [R,I], sb and gsb [O,R] of T. With `magnitude_out` instead of m, m = c is
// written: a fresh adapter, for which g = 1 exactly. All outputs are written with `=`. Rank 0: V = W.
// The norm is direct: a tile of s·B·A in tensor-core accumulators (common/low_rank.cuh), W added,
// squared, summed in f32. Where V nearly cancels, its elements keep an error of about 2⁻²³ of the
// terms that cancel.
// Launch: grid (strips of 64 along the norm's feature, splits of the summed one), block 128. The
// last split of a strip adds the partial sums in order. Without a norm (plain LoRA) it only packs.
// Formulas: DoRA (arXiv:2402.09353) eq. 5.

#include "common/low_rank.cuh"
#include "common/reduce.cuh"

struct PrepareParams {
    const void* weight;
    const float* lora_a;
    const float* lora_b;
    const float* magnitude;  // m, or null where magnitude_out is given
    float* magnitude_out;
    const float* bias;       // null: the bias is frozen, or there is none
    float* norm;             // c
    float* gain;             // g
    void* a;
    void* sb;
    void* gsb;               // axis output only, else null
    void* packed_bias;
    float* partials;         // [splits, features of the norm]
    u32* counters;           // one per strip
    float scaling;
    int in_features, out_features, rank, padded_rank;
    int norm_on_input;       // the norm axis
    int has_norm;            // 0: plain LoRA
    int split_tiles;         // tiles of 64 per split
};

constexpr int kStrip = kTile;  // features whose norm one CTA computes; also a tile's depth

using Mma = LowRankMma;

// Writes a, sb and the bias, which do not wait for g: all CTAs share the elements.
template <typename T>
__device__ __forceinline__ void pack(const PrepareParams& p) {
    const i64 cta = i64(blockIdx.y) * gridDim.x + blockIdx.x;
    const i64 first = cta * kThreads + threadIdx.x;
    const i64 stride = i64(gridDim.x) * gridDim.y * kThreads;
    T* a = static_cast<T*>(p.a);
    for (i64 i = first; i < i64(p.padded_rank) * p.in_features; i += stride) {
        a[i] = from_float<T>(i < i64(p.rank) * p.in_features ? p.lora_a[i] : 0.0f);
    }
    T* sb = static_cast<T*>(p.sb);
    for (i64 i = first; i < i64(p.out_features) * p.padded_rank; i += stride) {
        const i64 row = i / p.padded_rank;
        const int k = int(i % p.padded_rank);
        sb[i] = from_float<T>(k < p.rank ? p.scaling * p.lora_b[row * p.rank + k] : 0.0f);
    }
    if (!p.bias) return;
    T* bias = static_cast<T*>(p.packed_bias);
    for (i64 i = first; i < p.out_features; i += stride) bias[i] = from_float<T>(p.bias[i]);
}

// Σ V² over this CTA's split, for the strip's features: into sums[kStrip].
template <typename T>
__device__ __forceinline__ void square_sums(const PrepareParams& p, unsigned char* shared,
                                            float* sums) {
    const T* weight = static_cast<const T*>(p.weight);
    const Factors factors{p.lora_a,      p.lora_b,       p.scaling,
                          p.in_features, p.out_features, p.rank};
    const int summed = p.norm_on_input ? p.out_features : p.in_features;
    const int first = blockIdx.y * p.split_tiles * kStrip;
    const int end = min(summed, first + p.split_tiles * kStrip);
    float of_row[Mma::kRows] = {}, of_col[Mma::kCols] = {};
    for (int along = first; along < end; along += kStrip) {
        const int row0 = p.norm_on_input ? along : blockIdx.x * kStrip;
        const int col0 = p.norm_on_input ? blockIdx.x * kStrip : along;
        Mma mma;
        low_rank_tile(factors, mma, shared, row0, col0);
#pragma unroll
        for (int i = 0; i < Mma::kRows; ++i) {
            const int row = row0 + Mma::row(i);
            if (row >= p.out_features) continue;
#pragma unroll
            for (int j = 0; j < Mma::kCols; ++j) {
                const int col = col0 + Mma::col(j);
                if (col >= p.in_features) continue;
                const float v = to_float(weight[i64(row) * p.in_features + col]) + mma.at(i, j);
                of_row[i] = fmaf(v, v, of_row[i]);
                of_col[j] = fmaf(v, v, of_col[j]);
            }
        }
    }
    // Lanes that hold the same features, then the warps that do, in order.
    __syncthreads();
    float(*across)[kStrip] = reinterpret_cast<float(*)[kStrip]>(shared);
    if (p.norm_on_input) {
#pragma unroll
        for (int j = 0; j < Mma::kCols; ++j) {
            float sum = of_col[j];
            sum += shfl_xor(sum, 4);
            sum += shfl_xor(sum, 8);
            sum += shfl_xor(sum, 16);
            if (Mma::lane() < 4) across[Mma::warp_m()][Mma::col(j)] = sum;
        }
    } else {
#pragma unroll
        for (int i = 0; i < Mma::kRows; ++i) {
            float sum = of_row[i];
            sum += shfl_xor(sum, 1);
            sum += shfl_xor(sum, 2);
            if (Mma::lane() % 4 == 0) across[Mma::warp_n()][Mma::row(i)] = sum;
        }
    }
    __syncthreads();
    if (threadIdx.x < kStrip) sums[threadIdx.x] = across[0][threadIdx.x] + across[1][threadIdx.x];
    __syncthreads();
}

template <typename T>
__device__ __forceinline__ void prepare(const PrepareParams& p, unsigned char* shared,
                                        float* strip, u32* flag) {
    pack<T>(p);
    if (!p.has_norm) return;
    const int features = p.norm_on_input ? p.in_features : p.out_features;
    const int feature = blockIdx.x * kStrip + threadIdx.x;
    const bool owns = threadIdx.x < kStrip && feature < features;
    square_sums<T>(p, shared, strip);
    if (owns) p.partials[i64(blockIdx.y) * features + feature] = strip[threadIdx.x];
    if (!arrive_last(p.counters + blockIdx.x, gridDim.y, flag)) return;

    if (owns) {
        const float c = sqrtf(ordered_sum(p.partials + feature, gridDim.y, features));
        const float m = p.magnitude ? p.magnitude[feature] : c;
        const float g = c > 0.0f ? m / c : 0.0f;
        p.norm[feature] = c;
        p.gain[feature] = g;
        if (p.magnitude_out) p.magnitude_out[feature] = c;
        strip[threadIdx.x] = g;
    }
    if (!p.gsb) return;
    __syncthreads();
    T* gsb = static_cast<T*>(p.gsb);
    const int rows = min(kStrip, p.out_features - int(blockIdx.x) * kStrip);
    for (int i = threadIdx.x; i < rows * p.padded_rank; i += kThreads) {
        const int r = i / p.padded_rank, k = i % p.padded_rank;
        const i64 row = i64(blockIdx.x) * kStrip + r;
        const float b = k < p.rank ? p.scaling * p.lora_b[row * p.rank + k] : 0.0f;
        gsb[row * p.padded_rank + k] = from_float<T>(strip[r] * b);
    }
}

// Mirrored in src/prepare.rs; a test compares them.
extern "C" __constant__ int prepare_geometry[] = {kStrip, kThreads, sizeof(PrepareParams)};

#define FUSED_DORA_PREPARE(NAME, T)                                                             \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        prepare_##NAME(const __grid_constant__ PrepareParams p) {                               \
        __shared__ __align__(128) unsigned char shared[kLowRankBytes];                          \
        __shared__ float strip[kStrip];                                                         \
        __shared__ u32 flag;                                                                    \
        prepare<T>(p, shared, strip, &flag);                                                    \
    }

FUSED_DORA_PREPARE(bf16, bf16)
FUSED_DORA_PREPARE(f16, f16)
FUSED_DORA_PREPARE(f32, float)
