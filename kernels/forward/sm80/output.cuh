// y = z + b or g∘z + b, with z = x_scaled·Wᵀ + H·(sB)ᵀ. With PEFT's dropout also z: see
// forward/sm80.cu.
#pragma once

#include "common/tile/epilogue.cuh"
#include "common/tile/gemm.cuh"
#include "forward/params.cuh"

// Tiles of TILE_M tokens and 128 output features.
template <typename T, int TILE_M, Math MATH = Math::kDirect>
struct OutputTile {
    using Gemm = MainGemm<T, Major::K, TILE_M, MATH>;
    using Mma = typename Gemm::Mma;
    using Output = Epilogue<T, Mma>;
    static constexpr int kTileM = TILE_M, kSharedBytes = Gemm::kSharedBytes;

    __device__ __forceinline__ static int columns(const ForwardParams& p) {
        return ceil_div(p.out_features, Gemm::kTileN);
    }

    // One tile; `wait()` returns when x_scaled and H are complete.
    template <typename WAIT>
    __device__ __forceinline__ static void run(const ForwardParams& p, unsigned char* shared,
                                               int row, int column, WAIT wait) {
        const int m0 = row * kTileM, n0 = column * Gemm::kTileN;
        const auto main = [&](int) { return MainProduct<T>{p.inputs<T>(), p.weights<T>()}; };
        const auto low = [&](int) { return LowRankProduct<T>{p.hidden<T>(), p.lora_b<T>()}; };
        if (p.x_scaled) wait();  // without x_scaled the tile waits for H, which it needs last
        Mma mma;
        mma.clear();
        Gemm::accumulate(p.aligned, mma, shared, main, low, 0, m0, n0, [&] {
            if (!p.x_scaled) wait();
        });
        const int col = n0 + Output::col();
        const Columns<T, kVector<T>> columns(p, p.bias, col);
        Output::for_each_row(mma, shared, [&](int row, const float(&z)[kVector<T>]) {
            Vector<T> y;
#pragma unroll
            for (int e = 0; e < kVector<T>; ++e) {
                y.values[e] = from_float<T>(fmaf(columns.gain[e], z[e], columns.bias[e]));
            }
            store_chunk(p.aligned, static_cast<T*>(p.y), p.tokens, p.out_features, p.y_stride,
                        m0 + row, col, y);
        });
    }
};

// y with PEFT's dropout, and z.
template <typename T>
struct OutputTilePeft : OutputTile<T, kLargeTokens> {
    using Base = OutputTile<T, kLargeTokens>;
    using typename Base::Gemm;
    using typename Base::Mma;
    using typename Base::Output;

    template <typename WAIT>
    __device__ __forceinline__ static void run(const ForwardParams& p, unsigned char* shared,
                                               int row, int column, WAIT wait) {
        const int m0 = row * Gemm::kTileM, n0 = column * Gemm::kTileN;
        const int col = n0 + Output::col();
        const auto main = [&](int pass) {
            const auto part = Matrix<T>::dense(pass == 0 ? p.x_scaled : p.x_kept_out, p.tokens,
                                               p.in_features);
            return MainProduct<T>{part, p.weights<T>()};
        };
        const auto low = [&](int pass) {
            return pass == 0 ? LowRankProduct<T>{p.hidden<T>(), p.lora_b<T>()}
                             : LowRankProduct<T>{};
        };
        wait();
        Mma mma;
        mma.clear();
#pragma unroll 1  // one copy of the main loop
        for (int pass = 0; pass < 2; ++pass) {
            Gemm::accumulate(p.aligned, mma, shared, main, low, pass, m0, n0, [] {});
            T* const to = static_cast<T*>(pass == 0 ? p.z : p.y);
            const int stride = pass == 0 ? p.out_features : p.y_stride;
            const Columns<T, kVector<T>> columns(p, pass == 0 ? nullptr : p.bias, col);
            Output::for_each_row(mma, shared, [&](int row, const float(&values)[kVector<T>]) {
                Vector<T> out;
#pragma unroll
                for (int e = 0; e < kVector<T>; ++e) {
                    out.values[e] = from_float<T>(values[e] + columns.bias[e]);
                }
                store_chunk(p.aligned, to, p.tokens, p.out_features, stride, m0 + row, col, out);
            });
            if (pass == 1) break;
            __syncthreads();
            int first = n0;
            opaque(first);
#pragma unroll
            for (int j = 0; j < Mma::kCols; ++j) {
                const int feature = first + Mma::col(j);
                const float g = feature < p.out_features ? p.gain[feature] : 0.0f;
#pragma unroll
                for (int i = 0; i < Mma::kRows; ++i) mma.at(i, j) *= g;
            }
        }
    }
};
