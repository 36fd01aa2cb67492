// Tiles of B·A in the accuracy of f32, on tensor cores (common/tile/tf32.cuh).
#pragma once

#include "common/tile/tf32.cuh"

// The factors of the low-rank product.
struct Factors {
    Matrix<float> lora_a;      // A [r,I]
    Matrix<float> lora_b;      // B [O,r]
    int aligned_a, aligned_b;  // every row starts at a 16-byte boundary
};

template <typename PARAMS>
__device__ __forceinline__ Factors factors_of(const PARAMS& p) {
    return {Matrix<float>::dense(p.lora_a, p.rank, p.in_features),
            Matrix<float>::dense(p.lora_b, p.out_features, p.rank), p.aligned_a, p.aligned_b};
}

// How a tile is distributed over threads.
using LowRankMma = TileMma<float, kTile, kTile, kTf32Depth, 2, 2, Major::K, Major::K>;
using FactorTile = Tf32Tile<kTile>;  // rows of B, or columns of A, for 16 ranks

// Computes the tile (row0, col0) of B·A into `sum`. It writes a tile of each factor to shared memory
// first. `new_rows` and `new_cols` say whether B's rows and A's columns differ from the last call.
// NEAREST: sums over more ranks than a tile has are rounded to nearest, outside the tensor cores,
// which takes twice the registers.
template <bool NEAREST>
__device__ __forceinline__ void low_rank_tile(const Factors& f, FactorTile b, FactorTile a,
                                              LowRankMma& sum, int row0, int col0, bool new_rows,
                                              bool new_cols) {
    const int rank = f.lora_a.rows;
    sum.clear();
    for (int k0 = 0; k0 < rank; k0 += kTf32Depth) {
        if (k0 > 0) __syncthreads();  // the previous ranks have been read
        if (new_rows || rank > kTf32Depth) {
            split_tile<Major::K>(b, [&](int row, int k) {
                return load_chunk(f.aligned_b, f.lora_b, row0 + row, k0 + k);
            });
        }
        if (new_cols || rank > kTf32Depth) {
            split_tile<Major::MN>(a, [&](int col, int k) {
                return load_chunk(f.aligned_a, f.lora_a, k0 + k, col0 + col);
            });
        }
        __syncthreads();
        if constexpr (NEAREST) {
            LowRankMma part;
            part.clear();
            multiply_tf32_tiles(part, b, a);
            sum.add(part);
        } else {
            multiply_tf32_tiles(sum, b, a);
        }
    }
}

// g of four neighbours of a row: of columns (axis input), of the row, or 1 where there is none. The
// gains themselves are aligned; ALIGNED is of the matrix's rows.
template <bool ALIGNED>
__device__ __forceinline__ Quad<float> load_gains(const float* gain, bool on_input, int row,
                                                  int col, int cols) {
    if (gain && on_input) return load_quad<ALIGNED>(gain, col, cols);
    const float g = gain ? gain[row] : 1.0f;
    return {{g, g, g, g}};
}

// A tile of s·B·A in shared memory, where threads read it in any order.
struct LowRankTile {
    // Eight rows of accumulators, and four neighbours of a row, fall into different banks.
    static constexpr int kStride = kTile + 8;
    static constexpr int kBytes = kTile * kStride * sizeof(float);
    static_assert(kBytes >= 2 * FactorTile::kBytes, "the factors lie where the tile will");

    unsigned char* memory;

    __device__ __forceinline__ const float* at(int row, int col) const {
        return reinterpret_cast<const float*>(memory) + row * kStride + col;
    }

    // Computes the tile (row0, col0); begins and ends with a barrier.
    __device__ __forceinline__ void compute(const Factors& f, float scaling, int row0,
                                            int col0) const {
        const FactorTile b(memory), a(memory + FactorTile::kBytes);
        LowRankMma product;
        __syncthreads();
        low_rank_tile<false>(f, b, a, product, row0, col0, true, true);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < LowRankMma::kRows; ++i) {
#pragma unroll
            for (int j = 0; j < LowRankMma::kCols; j += 2) {
                struct __align__(8) Pair { float a, b; };
                float* to = const_cast<float*>(at(LowRankMma::row(i), LowRankMma::col(j)));
                *reinterpret_cast<Pair*>(to) = {scaling * product.at(i, j),
                                                scaling * product.at(i, j + 1)};
            }
        }
        __syncthreads();
    }
};
