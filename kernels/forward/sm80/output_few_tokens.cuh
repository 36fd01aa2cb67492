// y for few tokens: a tile has 64 output features and all tokens, and is split over the input
// features.
#pragma once

#include "common/tile/gemm_few_tokens.cuh"
#include "forward/params.cuh"

template <typename T>
struct OutputTileFewTokens {
    using Gemm = GemmFewTokens<T, Major::K>;
    using Mma = typename Gemm::Mma;
    using Sum = typename Gemm::Sum;
    static constexpr int kTileM = Gemm::kTileN, kSharedBytes = Gemm::kSharedBytes;

    __device__ __forceinline__ static int columns(const ForwardParams& p) {
        return ceil_div(p.out_features, Gemm::kTileM) * p.z_split_k;
    }

    // One part of a tile; `wait()` returns when x_scaled and H are complete.
    template <typename WAIT>
    __device__ __forceinline__ static void run(const ForwardParams& p, unsigned char* shared, int,
                                               int column, WAIT wait) {
        const int tile = column / p.z_split_k, split = column % p.z_split_k;
        const int n0 = tile * Gemm::kTileM;
        const int begin = split * p.z_chunk, end = min(p.in_features, begin + p.z_chunk);
        Mma mma;
        mma.clear();
        Gemm::accumulate(p.aligned, mma, shared, p.weights<T>(), p.inputs<T>(), n0, begin, end, [&] {
            if (p.x_scaled) wait();  // otherwise below, for H alone
        });
        if (!Sum::add(mma, p.partial_z + i64(tile) * p.z_split_k * Sum::kFloats, split, p.z_split_k,
                      p.tokens, p.z_counters + tile, shared)) {
            return;
        }
        Gemm::accumulate(p.aligned, mma, shared, p.lora_b<T>(), p.hidden<T>(), n0, 0, p.padded_rank,
                         [&] { if (!p.x_scaled) wait(); });
        const int col = n0 + Gemm::quad();
        const Columns<T, 4> columns(p, p.bias, col);
        Gemm::for_each_quad(mma, shared, p.tokens, [&](int token, const Quad<float>& z) {
            Quad<T> y;
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                y.values[e] = from_float<T>(fmaf(columns.gain[e], z.values[e], columns.bias[e]));
            }
            store_quad(p.aligned, static_cast<T*>(p.y) + i64(token) * p.y_stride, col,
                       p.out_features, y);
        });
    }
};
