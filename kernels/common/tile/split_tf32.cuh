// Products of f32 tiles in the accuracy of f32, on tensor cores (common/tile/tf32.cuh). Tiles lie in
// shared memory as they do for the FMA units; factors are split in registers.
//
// Tensor cores cut their sums where FMA units round to nearest, which would add up along K: they
// sum eight products at a time, from zero, and the FMA units add that to the accumulators. (So do
// Ootomo and Yokota: "Recovering single precision accuracy from Tensor Cores while surpassing the
// FP32 theoretical peak performance", arXiv:2203.03341.)
//
// Factors from 2^-114 on are split to within 2^-22 of themselves, smaller ones to within 2^-136. An
// infinity, a NaN, or a number that rounds to infinity makes a sum that is not finite.
#pragma once

#include "common/tile/tf32.cuh"

template <typename MMA, Major B_MAJOR>
struct SplitProduct {
    using TileA = typename MMA::TileA;
    using TileB = typename MMA::TileB;
    static constexpr int kFragmentsM = MMA::kFragmentsM, kFragmentsN = MMA::kFragmentsN;

    // acc += A·B over whole tiles.
    __device__ __forceinline__ static void add(MMA& mma, TileA a, TileB b, int thread) {
        const Addresses at(a, b, thread);
#pragma unroll 1  // or else fragments of all steps would be in registers
        for (int step = 0; step < TileA::kCols / kTf32Step; ++step) {
            Tf32A fragments[kFragmentsM];
#pragma unroll
            for (int i = 0; i < kFragmentsM; ++i) fragments[i] = at.load_a(step, i);
#pragma unroll
            for (int j = 0; j < kFragmentsN; ++j) {
                const Tf32B fragment = at.load_b(step, j);
                float sums[kFragmentsM][4] = {};
#pragma unroll
                for (int i = 0; i < kFragmentsM; ++i) {
                    multiply_tf32<false>(sums[i], fragments[i], fragment);
                }
#pragma unroll
                for (int i = 0; i < kFragmentsM; ++i) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) mma.acc[i][j][e] += sums[i][e];
                }
            }
        }
    }

private:
    // Where this lane's parts of fragments lie: those of A in chunks of four k-steps, which
    // ldmatrix hands out to a row's lanes, and of B the same k-steps, element by element.
    struct Addresses {
        static constexpr u32 kChunk = kVectorBytes, kChunksOfStep = kTf32Step / kVector<float>;
        static constexpr u32 kLine = 8 * kChunk;  // what the swizzle permutes
        static_assert(TileA::kRowBytes == 4 * kChunk, "other chunks differ in bits of the address");
        static_assert(B_MAJOR == Major::MN || TileB::kRowBytes == 4 * kChunk, "and those of B");

        u32 a, b;

        __device__ __forceinline__ Addresses(TileA tile_a, TileB tile_b, int thread) {
            const int lane = thread % kWarpSize, matrix = lane / 8, line = lane % 8;
            const int m = MMA::warp_m(thread) * MMA::kWarpM + matrix % 2 * 8 + line;
            const int n = MMA::warp_n(thread) * MMA::kWarpN + lane / 4, k = lane % 4;
            a = shared_address(tile_a.chunk(m, matrix / 2));
            b = shared_address(B_MAJOR == Major::K ? tile_b.at(n, k) : tile_b.at(k, n));
        }

        // Rows 16i.. and the k-steps 8·step.. of the warp's tile.
        __device__ __forceinline__ Tf32A load_a(int step, int i) const {
            u32 words[4];
            ldmatrix_x4(words, (a ^ step * kChunksOfStep * kChunk) + i * 16 * TileA::kRowBytes);
            Tf32A out;
#pragma unroll
            for (int e = 0; e < 4; ++e) out.set(e, split_tf32(__uint_as_float(words[e])));
            return out;
        }

        // Columns 8j.. and the k-steps 8·step.. of the warp's tile.
        __device__ __forceinline__ Tf32B load_b(int step, int j) const {
            Tf32B out;
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int chunk = step * kChunksOfStep + e;
                const u32 column = j * 2 * kChunk;
                const u32 from = B_MAJOR == Major::K
                                     ? (b ^ chunk * kChunk) + j * 8 * TileB::kRowBytes
                                     : (b ^ column % kLine) + column / kLine * kLine +
                                           chunk * 4 * TileB::kRowBytes;
                out.set(e, split_tf32(ld_shared(from)));
            }
            return out;
        }
    };
};
