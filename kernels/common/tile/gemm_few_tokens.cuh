// The main GEMM for few tokens, which takes the time to read W. Features are M and tokens are N: one
// warp reads each element of W once and multiplies it with all tokens. K is split into chunks until
// the CTAs fill the device.
#pragma once

#include "common/schedule/split_k.cuh"
#include "common/tile/pipeline.cuh"
#include "common/tile/weight.cuh"

template <typename T, Major WEIGHT_MAJOR>
struct GemmFewTokens {
    static constexpr int kTileM = kFewTokensFeatures, kTileN = kFewTokens;
    static constexpr int kTileK = kIsFloat<T> ? 32 : 64, kStages = 3;
    using Mma = TileMma<T, kTileM, kTileN, kTileK, 4, 1, WEIGHT_MAJOR, Major::K>;
    using TileW = typename Mma::TileA;
    using TileX = typename Mma::TileB;
    static constexpr int kStageBytes = TileW::kBytes + TileX::kBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes;
    using Sum = SplitK<Mma>;
    static_assert(Sum::kFloats == kTileM * kTileN, "Rust reserves a float per element of a tile");

    // mma += weights[m0.., begin..end)·tokens[.., begin..end)ᵀ, where K is the dimension of `weights`
    // that WEIGHT_MAJOR says; they are W, or the low-rank product's dense operand. `tokens` need not
    // be there before `wait()` has returned: the first copies of weights are on their way then.
    template <typename WEIGHTS, typename WAIT>
    __device__ __forceinline__ static void accumulate(bool aligned, Mma& mma,
                                                      unsigned char* shared,
                                                      const WEIGHTS& weights,
                                                      const Matrix<T>& tokens, int m0, int begin,
                                                      int end, WAIT wait) {
        const auto tile_w = [&](int stage) { return TileW(shared + stage * kStageBytes); };
        const auto tile_x = [&](int stage) {
            return TileX(shared + stage * kStageBytes + TileW::kBytes);
        };
        const auto copy_weights = [&](int step, int stage) {
            const int k0 = begin + step * kTileK;
            if constexpr (WEIGHT_MAJOR == Major::K) {
                copy_tile_async(aligned, tile_w(stage), weights, m0, k0);
            } else {
                copy_tile_async(aligned, tile_w(stage), weights, k0, m0);
            }
        };
        const int steps = ceil_div(end - begin, kTileK);
#pragma unroll
        for (int s = 0; s < kStages - 1; ++s) {
            if (s < steps) copy_weights(s, s);
        }
        wait();
        const int features = (WEIGHT_MAJOR == Major::K ? weights.rows : weights.cols) - m0;
        pipeline<kStages>(
            steps,
            [&](int step, int stage) {
                if (step >= kStages - 1) copy_weights(step, stage);
                copy_tile_async(aligned, tile_x(stage), tokens, 0, begin + step * kTileK);
            },
            [&](int step, int stage) {
                mma.multiply(tile_w(stage), tile_x(stage), features, tokens.rows,
                             end - begin - step * kTileK);
            });
    }

    // Calls visit(token, feature, values) for this thread's quads of features of the tile, tokens
    // ascending. The feature is the same in all of them.
    template <typename F>
    __device__ __forceinline__ static void for_each_quad(Mma& mma, unsigned char* shared,
                                                         int tokens, F visit) {
        // Lanes of a fragment are four pairs of tokens and eight features: all in different banks.
        constexpr int kRow = kTileM + 4;
        static_assert(sizeof(float) * kRow * kTileN <= kSharedBytes, "the tile fits");
        float* const tile = reinterpret_cast<float*>(shared);
#pragma unroll
        for (int j = 0; j < Mma::kCols; ++j) {
            if (Mma::col(j) >= tokens) continue;
#pragma unroll
            for (int i = 0; i < Mma::kRows; ++i) {
                tile[Mma::col(j) * kRow + Mma::row(i)] = mma.at(i, j);
            }
        }
        __syncthreads();
        const int feature = quad();
        for (int token = threadIdx.x / kQuads; token < tokens; token += kThreads / kQuads) {
            visit(token, *reinterpret_cast<const Quad<float>*>(tile + token * kRow + feature));
        }
    }

    static constexpr int kQuads = kTileM / 4;

    // This thread's first feature of the four within the tile.
    __device__ __forceinline__ static int quad() { return threadIdx.x % kQuads * 4; }
};
