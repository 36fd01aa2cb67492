// dX = D or D∘g (axis input), with D = G·W + P·A, and for axis input dm = (Σ_t x∘D)/c.
//
// With dropout in the adapter branch D = G·W + (P·A)∘M; with PEFT's form, G = dY∘(g − 1),
// D = dY·W + (G·W + P·A)∘M. dm = 0 where c = 0.
#pragma once

#include "backward/params.cuh"
#include "common/tile/epilogue.cuh"
#include "common/tile/gemm.cuh"
#include "common/schedule/reduce.cuh"

// Tiles of TILE_M tokens and 128 input features; with dropout in two passes.
template <typename T, int TILE_M, bool DROPOUT, Math MATH = Math::kDirect>
struct InputTile {
    using Gemm = MainGemm<T, Major::MN, TILE_M, MATH>;
    using Mma = typename Gemm::Mma;
    using Output = Epilogue<T, Mma>;
    static constexpr int kTileM = TILE_M, kTileN = Gemm::kTileN;
    static constexpr int kSharedBytes = Gemm::kSharedBytes;

    // One tile; `wait()` returns when P and G of its tokens are complete.
    template <typename WAIT>
    __device__ __forceinline__ static void run(const BackwardParams& p, unsigned char* shared,
                                               int row, int column, WAIT wait) {
        const int m0 = row * kTileM, n0 = column * kTileN;
        // Without G the tile waits for P alone, which it needs last.
        const bool first = DROPOUT || p.scales_grad();
        if (first) wait();
        Mma mma;
        input_gradient(p, mma, shared, m0, n0, [&] {
            if (!first) wait();
        });
        const auto x = Matrix<T>::strided(p.x, p.tokens, p.in_features, p.x_stride);
        const int col = n0 + Output::col();
        float gain[kVector<T>], sums[kVector<T>];
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
            gain[e] = p.input_gain && col + e < p.in_features ? p.input_gain[col + e] : 1.0f;
            sums[e] = 0.0f;
        }
        Output::for_each_row(mma, shared, [&](int row, const float(&d)[kVector<T>]) {
            if (p.input_gain) {
                const Vector<T> inputs = load_chunk(p.aligned, x, m0 + row, col);
#pragma unroll
                for (int e = 0; e < kVector<T>; ++e) {
                    sums[e] = fmaf(to_float(inputs.values[e]), d[e], sums[e]);
                }
            }
            if (p.grad_input) {
                Vector<T> out;
#pragma unroll
                for (int e = 0; e < kVector<T>; ++e) out.values[e] = from_float<T>(gain[e] * d[e]);
                store_chunk(p.aligned, static_cast<T*>(p.grad_input), p.tokens, p.in_features,
                            p.grad_input_stride, m0 + row, col, out);
            }
        });
        if (p.input_gain) magnitude_gradient(p, sums, m0, n0, shared);
    }

private:
    // D of one tile.
    template <typename WAIT>
    __device__ __forceinline__ static void input_gradient(const BackwardParams& p, Mma& mma,
                                                          unsigned char* shared, int m0, int n0,
                                                          WAIT wait) {
        // Pass 0 of two is the adapter's branch, which the mask is for.
        const auto low = [&](int pass) -> LowRankProduct<T> {
            if (DROPOUT && pass == 1) return {};
            return {p.projected<T>(), p.lora_a<T>()};
        };
        // What meets W: G; dY where that is not scaled; both in turn with PEFT's dropout.
        const auto main = [&](int pass) -> MainProduct<T> {
            const bool dropped = DROPOUT && pass == 0;
            const int features = dropped && !p.peft_dropout ? 0 : p.out_features;
            const bool scaled = p.scales_grad() && (dropped || !p.peft_dropout);
            return {Matrix<T>::strided(scaled ? p.scaled_grad : p.grad_output, p.tokens, features,
                                       scaled ? p.out_features : p.grad_stride),
                    p.weights<T>()};
        };
        mma.clear();
#pragma unroll 1  // one copy of the main loop
        for (int pass = 0; pass < (DROPOUT ? 2 : 1); ++pass) {
            Gemm::accumulate(p.aligned, mma, shared, main, low, pass, m0, n0, wait);
            if (DROPOUT && pass == 0) drop_accumulators(mma, p.dropout, m0, n0);
        }
    }

    // dm of the tile's columns from this lane's sums of x∘D over its rows: partial per CTA, and
    // added up by the last CTA of a column of tiles.
    __device__ __forceinline__ static void magnitude_gradient(const BackwardParams& p,
                                                              float (&sums)[kVector<T>], int m0,
                                                              int n0, unsigned char* shared) {
        static_assert(kTileN == kThreads, "one thread per column");
        opaque(m0);  // recomputes the tile's row and column from these: that saves registers
        opaque(n0);
        const int tiles_m = ceil_div(p.tokens, kTileM);
        float(*across)[kTileN] = reinterpret_cast<float(*)[kTileN]>(shared);
        __syncthreads();  // the epilogue is over
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
#pragma unroll
            for (int mask = Output::kLanesPerRow; mask < kWarpSize; mask *= 2) {
                sums[e] += shfl_xor(sums[e], mask);
            }
            if (Mma::lane() < Output::kLanesPerRow) {
                across[Mma::warp_m()][Output::col() + e] = sums[e];
            }
        }
        __syncthreads();
        const int col = n0 + threadIdx.x;
        if (col < p.in_features) {
            p.sum_m[i64(m0 / kTileM) * p.in_features + col] =
                across[0][threadIdx.x] + across[1][threadIdx.x];
        }
        u32* flag = reinterpret_cast<u32*>(shared);  // written behind a barrier of arrive_last
        if (!arrive_last(p.column_counters + n0 / kTileN, tiles_m, flag)) return;
        if (col < p.in_features) {
            p.store_magnitude(col, ordered_sum(p.sum_m + col, tiles_m, p.in_features));
        }
    }
};
