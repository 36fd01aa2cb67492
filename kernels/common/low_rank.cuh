// Tiles of s·B·A in the accuracy of f32, on tensor cores.
//
// A and s·B enter as sums of three bf16, which carry an f32's 24 bits: an element errs by about 2⁻²³
// of the terms that it is the sum of.
#pragma once

#include "common/mma.cuh"

constexpr int kTile = 64;      // rows and columns of a tile
constexpr int kRankStep = 16;  // ranks staged at a time
constexpr int kParts = 3;      // bf16 summands per f32

// The factors of the low-rank product, f32 and row-major.
struct Factors {
    const float* lora_a;  // A [r,I]
    const float* lora_b;  // B [O,r]
    float scaling;        // s
    int in_features, out_features, rank;
};

// g of four neighbours of a row: of columns (axis input), of the row, or 1 where there is none. The
// gains themselves are aligned; ALIGNED is of the matrix's rows.
template <bool ALIGNED>
__device__ __forceinline__ Quad<float> load_gains(const float* gain, bool on_input, int row,
                                                  int col, int cols) {
    if (gain && on_input) return load_quad<ALIGNED>(gain, col, cols);
    const float g = gain ? gain[row] : 1.0f;
    return {{g, g, g, g}};
}

using LowRankMma = TileMma<bf16, kTile, kTile, kRankStep, 2, 2, Major::K, Major::MN>;
constexpr int kLowRankBytes = kParts * (LowRankMma::TileA::kBytes + LowRankMma::TileB::kBytes);

// v = parts[0] + parts[1] + parts[2] up to 2⁻²⁴ of v.
__device__ __forceinline__ void split(float v, bf16 (&parts)[kParts]) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
        parts[i] = from_float<bf16>(v);
        v -= to_float(parts[i]);
    }
}

// The tile (row0, col0) of s·B·A into `mma`: the products of parts whose orders add up to < kParts.
// `shared` is kLowRankBytes, and free again after the caller's next barrier.
__device__ __forceinline__ void low_rank_tile(const Factors& f, LowRankMma& mma,
                                              unsigned char* shared, int row0, int col0) {
    using Mma = LowRankMma;
    const auto tile_b = [&](int part) { return Mma::TileA(shared + part * Mma::TileA::kBytes); };
    const auto tile_a = [&](int part) {
        return Mma::TileB(shared + kParts * Mma::TileA::kBytes + part * Mma::TileB::kBytes);
    };
    mma.clear();
    for (int k0 = 0; k0 < f.rank; k0 += kRankStep) {
        __syncthreads();  // the previous step has been read
        for (int index = threadIdx.x; index < kTile * kRankStep; index += kThreads) {
            bf16 parts[kParts];
            {
                const int r = index / kRankStep, k = index % kRankStep, row = row0 + r;
                const bool inside = row < f.out_features && k0 + k < f.rank;
                split(inside ? f.scaling * f.lora_b[i64(row) * f.rank + k0 + k] : 0.0f, parts);
#pragma unroll
                for (int i = 0; i < kParts; ++i) *tile_b(i).at(r, k) = parts[i];
            }
            {
                const int k = index / kTile, c = index % kTile, col = col0 + c;
                const bool inside = k0 + k < f.rank && col < f.in_features;
                split(inside ? f.lora_a[i64(k0 + k) * f.in_features + col] : 0.0f, parts);
#pragma unroll
                for (int i = 0; i < kParts; ++i) *tile_a(i).at(k, c) = parts[i];
            }
        }
        __syncthreads();
        // Smallest products first.
#pragma unroll
        for (int order = kParts - 1; order >= 0; --order) {
#pragma unroll
            for (int i = 0; i <= order; ++i) {
                mma.multiply(tile_b(i), tile_a(order - i), kTile, kTile, kRankStep);
            }
        }
    }
}

// A tile of s·B·A in shared memory, where threads read it in any order.
struct LowRankTile {
    // Eight rows of accumulators, and four neighbours of a row, fall into different banks.
    static constexpr int kStride = kTile + 8;
    static constexpr int kBytes = kTile * kStride * sizeof(float);
    static_assert(kBytes >= kLowRankBytes, "the factors' parts lie where the tile will");

    unsigned char* memory;

    __device__ __forceinline__ const float* at(int row, int col) const {
        return reinterpret_cast<const float*>(memory) + row * kStride + col;
    }

    // Computes the tile (row0, col0); begins and ends with a barrier.
    __device__ __forceinline__ void compute(const Factors& f, int row0, int col0) const {
        LowRankMma mma;
        __syncthreads();
        low_rank_tile(f, mma, memory, row0, col0);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < LowRankMma::kRows; ++i) {
#pragma unroll
            for (int j = 0; j < LowRankMma::kCols; j += 2) {
                struct __align__(8) Pair { float a, b; };
                float* to = const_cast<float*>(at(LowRankMma::row(i), LowRankMma::col(j)));
                *reinterpret_cast<Pair*>(to) = {mma.at(i, j), mma.at(i, j + 1)};
            }
        }
        __syncthreads();
    }
};
