// Σ_t dY·z with z = x·Wᵀ + H·(sB)ᵀ computed again, for a strip of features and a chunk of tokens.
//
// The CTA computes z for some tokens at a time, in the accumulators of a tile.
#pragma once

#include "backward/params.cuh"
#include "common/tile/pipeline.cuh"

template <typename T, int STRIP>
struct RecomputedZ {
    static constexpr int kTokens = kIsFloat<T> ? 16 : 32;
    static constexpr int kDepth = kIsFloat<T> ? 16 : 32, kStages = 3;
    using Mma = TileMma<T, kTokens, STRIP, kDepth, 1, kWarps, Major::K, Major::K>;
    static constexpr int kStageBytes = Mma::TileA::kBytes + Mma::TileB::kBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes;

    // The sum over the tokens [begin, end), of the feature o0 plus this thread's number, in each of
    // the first STRIP threads. `shared` is free before, and again after the next barrier.
    __device__ __forceinline__ static float sum(const BackwardParams& p, int o0, int begin, int end,
                                                unsigned char* shared) {
        const auto x = Matrix<T>::strided(p.x, end, p.in_features, p.x_stride);
        const auto h = Matrix<T>::dense(p.h, end, p.padded_rank);
        const auto sb = Matrix<T>::dense(p.sb, p.out_features, p.padded_rank);
        const auto grad = Matrix<T>::strided(p.grad_output, end, p.out_features, p.grad_stride);
        const auto tile_a = [&](int stage) {
            return typename Mma::TileA(shared + stage * kStageBytes);
        };
        const auto tile_b = [&](int stage) {
            return typename Mma::TileB(shared + stage * kStageBytes + Mma::TileA::kBytes);
        };
        const int of_w = ceil_div(p.in_features, kDepth);
        const int steps = of_w + ceil_div(p.padded_rank, kDepth);
        float sums[Mma::kCols] = {};
        for (int t0 = begin; t0 < end; t0 += kTokens) {
            Mma z;
            z.clear();
            pipeline<kStages>(
                steps,
                [&](int step, int stage) {
                    const bool low_rank = step >= of_w;
                    const int k0 = (low_rank ? step - of_w : step) * kDepth;
                    copy_tile_async(p.aligned, tile_a(stage), Matrix<T>::select(low_rank, h, x), t0,
                                    k0);
                    copy_tile_async(p.aligned, tile_b(stage),
                                    select(low_rank, sb, p.weights<T>()), o0, k0);
                },
                [&](int, int stage) {
                    z.multiply(tile_a(stage), tile_b(stage), end - t0, p.out_features - o0, kDepth);
                });
#pragma unroll
            for (int i = 0; i < Mma::kRows; ++i) {
#pragma unroll
                for (int j = 0; j < Mma::kCols; ++j) {
                    const int row = t0 + Mma::row(i), col = o0 + Mma::col(j);
                    if (row >= end || col >= p.out_features) continue;
                    sums[j] = fmaf(to_float(*grad.at(row, col)), z.at(i, j), sums[j]);
                }
            }
        }
        float* const columns = reinterpret_cast<float*>(shared);
#pragma unroll
        for (int j = 0; j < Mma::kCols; ++j) {
            // Lanes that have the same column.
#pragma unroll
            for (int mask = 4; mask < kWarpSize; mask *= 2) sums[j] += shfl_xor(sums[j], mask);
            if (Mma::lane() < 4) columns[Mma::col(j)] = sums[j];
        }
        __syncthreads();
        return threadIdx.x < STRIP ? columns[threadIdx.x] : 0.0f;
    }
};
