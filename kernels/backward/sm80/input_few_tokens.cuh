// dX for few tokens, and dm of axis input: a tile has 64 input features and all tokens, and is split
// over the output features.
#pragma once

#include "backward/params.cuh"
#include "common/tile/gemm_few_tokens.cuh"

template <typename T>
struct InputTileFewTokens {
    using Gemm = GemmFewTokens<T, Major::MN>;
    using Mma = typename Gemm::Mma;
    using Sum = typename Gemm::Sum;
    static constexpr int kTileM = Gemm::kTileN, kSharedBytes = Gemm::kSharedBytes;

    // One part of a tile; `wait()` returns when P and G are complete.
    template <typename WAIT>
    __device__ __forceinline__ static void run(const BackwardParams& p, unsigned char* shared, int,
                                               int column, WAIT wait) {
        const int tile = column / p.d_split_k, split = column % p.d_split_k;
        const int n0 = tile * Gemm::kTileM;
        const int begin = split * p.d_chunk, end = min(p.out_features, begin + p.d_chunk);
        Mma mma;
        mma.clear();
        Gemm::accumulate(p.aligned, mma, shared, p.weights<T>(),
                         p.gradients<T>(), n0, begin, end, [&] {
                             if (p.scales_grad()) wait();  // otherwise below, for P
                         });
        if (!Sum::add(mma, p.partial_d + i64(tile) * p.d_split_k * Sum::kFloats, split, p.d_split_k,
                      p.tokens, p.column_counters + tile, shared)) {
            return;
        }
        Gemm::accumulate(p.aligned, mma, shared, p.lora_a<T>(), p.projected<T>(), n0, 0,
                         p.padded_rank, [&] {
                             if (!p.scales_grad()) wait();
                         });
        const int col = n0 + Gemm::quad();
        float gain[4], sums[4] = {};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            gain[e] = p.input_gain && col + e < p.in_features ? p.input_gain[col + e] : 1.0f;
        }
        Gemm::for_each_quad(mma, shared, p.tokens, [&](int token, const Quad<float>& d) {
            if (p.input_gain) {
                const T* x = static_cast<const T*>(p.x) + i64(token) * p.x_stride;
                const Quad<T> inputs = load_quad(p.aligned, x, col, p.in_features);
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    sums[e] = fmaf(to_float(inputs.values[e]), d.values[e], sums[e]);
                }
            }
            if (p.grad_input) {
                Quad<T> out;
#pragma unroll
                for (int e = 0; e < 4; ++e) out.values[e] = from_float<T>(gain[e] * d.values[e]);
                store_quad(p.aligned,
                           static_cast<T*>(p.grad_input) + i64(token) * p.grad_input_stride, col,
                           p.in_features, out);
            }
        });
        if (p.input_gain) magnitude_gradient(p, sums, n0, shared);
    }

private:
    // dm of the tile's features from this thread's sums of x∘D over every eighth token.
    __device__ __forceinline__ static void magnitude_gradient(const BackwardParams& p,
                                                              const float (&sums)[4], int n0,
                                                              unsigned char* shared) {
        constexpr int kShares = kThreads / Gemm::kQuads;
        float(*across)[Gemm::kTileM] = reinterpret_cast<float(*)[Gemm::kTileM]>(shared);
        __syncthreads();  // the tile in shared memory has been read
#pragma unroll
        for (int e = 0; e < 4; ++e) across[threadIdx.x / Gemm::kQuads][Gemm::quad() + e] = sums[e];
        __syncthreads();
        const int col = n0 + threadIdx.x;
        if (threadIdx.x >= Gemm::kTileM || col >= p.in_features) return;
        float sum = 0.0f;
#pragma unroll
        for (int share = 0; share < kShares; ++share) sum += across[share][threadIdx.x];
        p.store_magnitude(col, sum);
    }
};
