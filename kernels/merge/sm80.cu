// merge: the adapted weight W', and back from it.
//
//   merge     W' = V∘g = W + Δ,   Δ = (g − 1)∘W + g∘(s·B·A)
//   unmerge   W = W'/g − s·B·A
//
// g acts on columns (axis input) or rows (axis output); plain LoRA has g ≡ 1.
// Shapes, row-major: W, W' [O,I] of any two dtypes; A [r,I], B [O,r], g [I] or [O] f32. Everything
// is computed in f32 and rounded once to the target's dtype, `=`. Source and target may be the same.
// The kernel computes Δ separately, which shows what rounding to the target's dtype does to it: over
// all elements, with E = W'(rounded) − (W + Δ), `report` gets ΣΔ², ΣE² and ΣE·Δ (`=`).
// Launch: a few CTAs per multiprocessor, each with every n-th tile of 64×64; block 128. Sums are f32
// within a tile and f64 beyond, partial per CTA, and added in order by the last CTA to arrive.
// Formula: DoRA (arXiv:2402.09353) eq. 5.

#include "common/dora/low_rank.cuh"
#include "common/schedule/reduce.cuh"
#include "merge/params.cuh"

struct Sums {
    float of[kSums] = {};
};

template <typename OUT>
__device__ __forceinline__ OUT merge_element(float w, float low_rank, float g, Sums& sums) {
    const float delta = fmaf(g - 1.0f, w, g * low_rank);
    const float sum = w + delta;
    const OUT rounded = from_float<OUT>(sum);
    // What the sum itself lost (D. Knuth, TAOCP 2, 4.2.2, theorem B).
    const float added = sum - w;
    const float lost = (w - (sum - added)) + (delta - added);
    const float error = (to_float(rounded) - sum) - lost;
    sums.of[0] = fmaf(delta, delta, sums.of[0]);
    sums.of[1] = fmaf(error, error, sums.of[1]);
    sums.of[2] = fmaf(error, delta, sums.of[2]);
    return rounded;
}

// One tile of the target, from one of the source and of s·B·A.
template <bool UNMERGE, bool ALIGNED, typename OUT, typename SOURCE>
__device__ __forceinline__ void convert_tile(const MergeParams& p, const SOURCE& source,
                                             const LowRankTile& low_rank, int row0, int col0,
                                             Sums& sums) {
    constexpr int kQuads = kTile / 4, kRows = kThreads / kQuads;  // of a row; at a time
    const int c = threadIdx.x % kQuads * 4, col = col0 + c;
    if (col >= p.in_features) return;
    const int rows = min(kTile, p.out_features - row0);
    for (int r = threadIdx.x / kQuads; r < rows; r += kRows) {
        const i64 at = i64(row0 + r) * p.in_features;
        const auto in = load_quad<ALIGNED>(source, row0 + r, col);
        const Quad<float> gains =
            load_gains<ALIGNED>(p.gain, p.gain_on_input, row0 + r, col, p.in_features);
        Quad<OUT> out;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const float w = to_float(in.values[e]), ba = *low_rank.at(r, c + e);
            const float g = gains.values[e];
            if constexpr (UNMERGE) {
                out.values[e] = from_float<OUT>(w / g - ba);
            } else {
                out.values[e] = merge_element<OUT>(w, ba, g, sums);
            }
        }
        store_quad<ALIGNED>(static_cast<OUT*>(p.target) + at, col, p.in_features, out);
    }
}

// W; to be unmerged: W'.
template <bool UNMERGE, typename T, typename MERGED>
__device__ __forceinline__ auto source_of(const MergeParams& p) {
    if constexpr (UNMERGE) {
        return Matrix<MERGED>::dense(p.weight.elements, p.out_features, p.in_features);
    } else {
        return Weight<T>::of(p.weight, p.out_features, p.in_features);
    }
}

template <bool UNMERGE, typename T, typename MERGED>
__device__ __forceinline__ void convert_tile(const MergeParams& p, const LowRankTile& low_rank,
                                             int row0, int col0, Sums& sums) {
    using OUT = Select<UNMERGE, T, MERGED>;
    const auto source = source_of<UNMERGE, T, MERGED>(p);
    p.aligned ? convert_tile<UNMERGE, true, OUT>(p, source, low_rank, row0, col0, sums)
              : convert_tile<UNMERGE, false, OUT>(p, source, low_rank, row0, col0, sums);
}

// All tiles of this CTA; the sums over them, partial and then complete.
template <bool UNMERGE, typename T>
__device__ __forceinline__ void convert(const MergeParams& p, unsigned char* shared) {
    const Factors factors = factors_of(p);
    const LowRankTile low_rank{shared};
    const int tiles_n = ceil_div(p.in_features, kTile);
    const i64 tiles = i64(tiles_n) * ceil_div(p.out_features, kTile);
    double totals[kSums] = {};
    for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int row0 = int(tile / tiles_n) * kTile, col0 = int(tile % tiles_n) * kTile;
        low_rank.compute(factors, p.scaling, row0, col0);
        Sums sums;
        // The dtype of W' is chosen here, that of W by the entry point.
        switch (p.merged_dtype) {
            case 0: convert_tile<UNMERGE, T, bf16>(p, low_rank, row0, col0, sums); break;
            case 1: convert_tile<UNMERGE, T, f16>(p, low_rank, row0, col0, sums); break;
            default: convert_tile<UNMERGE, T, float>(p, low_rank, row0, col0, sums);
        }
#pragma unroll
        for (int i = 0; i < kSums; ++i) totals[i] += double(sums.of[i]);
    }
    if (UNMERGE || !p.report) return;
    double* across = reinterpret_cast<double*>(shared);
    u32* flag = reinterpret_cast<u32*>(across + kWarps);
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
        const double sum = block_sum(totals[i], across);
        if (threadIdx.x == 0) p.partials[i64(blockIdx.x) * kSums + i] = sum;
    }
    if (!arrive_last(p.counter, gridDim.x, flag)) return;
    if (threadIdx.x < kSums) {
        p.report[threadIdx.x] = ordered_sum(p.partials + threadIdx.x, gridDim.x, kSums);
    }
}

#define FUSED_DORA_MERGE(NAME, T)                                                               \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        merge_##NAME(const __grid_constant__ MergeParams p) {                                   \
        __shared__ __align__(128) unsigned char shared[LowRankTile::kBytes];                    \
        convert<false, T>(p, shared);                                                           \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        unmerge_##NAME(const __grid_constant__ MergeParams p) {                                 \
        __shared__ __align__(128) unsigned char shared[LowRankTile::kBytes];                    \
        convert<true, T>(p, shared);                                                            \
    }

FUSED_DORA_ENTRIES(FUSED_DORA_MERGE)
