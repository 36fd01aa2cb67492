// Products of f32 matrices on tensor cores: each factor is a sum of two tf32 numbers, whose
// products mma.sync.m16n8k8 takes exactly and adds in f32. Two of them miss at most 2⁻²² of an f32;
// a bf16 or an f16 is one.
//
// Factors are split once, on their way into shared memory. The accumulators are distributed as
// those of TileMma.
#pragma once

#include "common/tile/mma.cuh"

// big + small.
struct Tf32 { u32 big, small; };

constexpr u32 kTf32Bits = 0xffffe000u;  // of an f32's

// The nearest tf32 number: what cvt.rna.tf32.f32 makes of a finite number, without its test for
// infinities.
__device__ __forceinline__ u32 round_tf32(float v) {
    constexpr u32 kHalfStep = 0x1000u;
    return (__float_as_uint(v) + kHalfStep) & kTf32Bits;
}

// The small part is cut, not rounded: a NaN that rounding would turn into a number stays one.
__device__ __forceinline__ Tf32 split_tf32(float v) {
    const u32 big = round_tf32(v);
    return {big, __float_as_uint(v - __uint_as_float(big)) & kTf32Bits};
}

constexpr int kTf32Depth = 16;  // k-steps of a tile
constexpr int kTf32Step = 8;    // k-steps of one product

// ROWS rows (of M) or columns (of N), each with its k-steps: 128 bytes. Chunks of 16 bytes lie where
// an XOR with the row puts them, such that neither eight neighbouring rows, which fragments take
// together, nor every fourth of 32, which a warp splits together, meet in a bank.
template <int ROWS>
struct Tf32Tile {
    static constexpr int kRows = ROWS, kCols = kTf32Depth;
    static constexpr int kBytes = ROWS * kTf32Depth * sizeof(Tf32);
    static_assert(kTf32Depth * sizeof(Tf32) == 128, "a row is once through all banks");

    Tf32* data;

    __device__ __forceinline__ explicit Tf32Tile(void* memory) : data(static_cast<Tf32*>(memory)) {}

    __device__ __forceinline__ Tf32* chunk(int row, int chunk) const {
        const int place = chunk ^ ((row ^ (row >> 3 & 3)) & 7);
        return data + row * kTf32Depth + place * kVector<Tf32>;
    }
    __device__ __forceinline__ Tf32* at(int row, int col) const {
        return chunk(row, col / kVector<Tf32>) + col % kVector<Tf32>;
    }
};

// A fragment takes k-steps 2q and 2q + 1 of each eight in lane q of a row, as 16-bit fragments do:
// those of both eights lie side by side, where a warp reads them without bank conflicts.
__device__ __forceinline__ u32 tf32_column(u32 k) { return k % 8 / 2 * 4 + k / 8 * 2 + k % 2; }

// Splits a tile. LINES says along which of its dimensions memory runs; load(row, k) gives the four
// elements from there on along it.
template <Major LINES, int ROWS, typename F>
__device__ __forceinline__ void split_tile(Tf32Tile<ROWS> tile, F load) {
    constexpr u32 kWidth = kVector<float>;
    constexpr u32 kLine = (LINES == Major::K ? kTf32Depth : ROWS) / kWidth;
    constexpr u32 kLines = kThreads / kLine, kVectors = ROWS * kTf32Depth / kWidth;
    static_assert(kThreads % kLine == 0 && kVectors % kThreads == 0, "whole lines at a time");
    constexpr u32 kNeighbours = LINES == Major::K ? 2 : 1;  // in the tile, too
    const u32 thread = threadIdx.x;
    __builtin_assume(thread < kThreads);  // then most of the indices are constants
#pragma unroll
    for (u32 i = 0; i < kVectors / kThreads; ++i) {
        const u32 line = thread / kLine + i * kLines, along = thread % kLine * kWidth;
        const u32 row = LINES == Major::K ? line : along, k = LINES == Major::K ? along : line;
        const Vector<float> from = load(row, k);
#pragma unroll
        for (u32 e = 0; e < kWidth; e += kNeighbours) {
            if constexpr (LINES == Major::K) {
                *reinterpret_cast<Vector<Tf32>*>(tile.at(row, tf32_column(k + e))) = {
                    {split_tf32(from.values[e]), split_tf32(from.values[e + 1])}};
            } else {
                *tile.at(row + e, tf32_column(k)) = split_tf32(from.values[e]);
            }
        }
    }
}

template <int COUNT>
struct Tf32Fragment {
    u32 big[COUNT], small[COUNT];

    __device__ __forceinline__ void set(int i, Tf32 v) {
        big[i] = v.big;
        small[i] = v.small;
    }
};

using Tf32A = Tf32Fragment<4>;  // 16×8: rows l/4 + 8(i%2), k-steps 2(l%4) + i/2
using Tf32B = Tf32Fragment<2>;  // 8×8: k-steps 2(l%4) + i, columns l/4

// The fragment of rows m0.. and the k-steps 8·step.. of a tile.
template <int ROWS>
__device__ __forceinline__ Tf32A load_tf32_a(Tf32Tile<ROWS> tile, int m0, int step) {
    const int lane = threadIdx.x % kWarpSize;
    Tf32A out;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const Vector<Tf32> pair = *reinterpret_cast<const Vector<Tf32>*>(
            tile.chunk(m0 + lane / 4 + 8 * i, lane % 4 * 2 + step));
        out.set(i, pair.values[0]);
        out.set(i + 2, pair.values[1]);
    }
    return out;
}

// The fragment of columns n0.. and the k-steps 8·step.. of a tile.
template <int ROWS>
__device__ __forceinline__ Tf32B load_tf32_b(Tf32Tile<ROWS> tile, int n0, int step) {
    const int lane = threadIdx.x % kWarpSize;
    const Vector<Tf32> pair = *reinterpret_cast<const Vector<Tf32>*>(
        tile.chunk(n0 + lane / 4, lane % 4 * 2 + step));
    Tf32B out;
    out.set(0, pair.values[0]);
    out.set(1, pair.values[1]);
    return out;
}

// c += a·b; where A_EXACT, a has no small part.
template <bool A_EXACT>
__device__ __forceinline__ void multiply_tf32(float (&c)[4], const Tf32A& a, const Tf32B& b) {
    if (!A_EXACT) mma_m16n8k8_tf32(c, a.small, b.big);
    mma_m16n8k8_tf32(c, a.big, b.small);
    mma_m16n8k8_tf32(c, a.big, b.big);
}

// acc += a·bᵀ over one tile's k-steps, the rows of `a` and of `b` distributed as ACCUMULATORS (a
// TileMma) says.
template <typename ACCUMULATORS, int ROWS_A, int ROWS_B>
__device__ __forceinline__ void multiply_tf32_tiles(ACCUMULATORS& acc, Tf32Tile<ROWS_A> a,
                                                    Tf32Tile<ROWS_B> b) {
    const int m0 = ACCUMULATORS::warp_m() * ACCUMULATORS::kWarpM;
    const int n0 = ACCUMULATORS::warp_n() * ACCUMULATORS::kWarpN;
#pragma unroll
    for (int step = 0; step < kTf32Depth / kTf32Step; ++step) {
        Tf32A fragments_a[ACCUMULATORS::kFragmentsM];
#pragma unroll
        for (int i = 0; i < ACCUMULATORS::kFragmentsM; ++i) {
            fragments_a[i] = load_tf32_a(a, m0 + 16 * i, step);
        }
#pragma unroll
        for (int j = 0; j < ACCUMULATORS::kFragmentsN; ++j) {
            const Tf32B fragment_b = load_tf32_b(b, n0 + 8 * j, step);
#pragma unroll
            for (int i = 0; i < ACCUMULATORS::kFragmentsM; ++i) {
                multiply_tf32<false>(acc.acc[i][j], fragments_a[i], fragment_b);
            }
        }
    }
}
