// Dropout masks from a counter: the same in forward and backward, and never in memory.
//
// Element (row, column) is kept where its 16 bits of Philox4x32-10 (Salmon, Moraes, Dror, Shaw:
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011) reach the threshold; the key is the seed,
// the counter (column/8, row), whose 128 bits serve eight columns. What is kept is scaled by
// 1/(1 − threshold/2¹⁶).
#pragma once

#include "common/dora/seed.cuh"
#include "common/tile/tile.cuh"

// A mask M: its seed, as of this launch.
struct Mask {
    u64 seed;
    u32 threshold;  // of 2¹⁶; 0 keeps everything
    float scale;
};

// The same as Rust passes it.
struct Dropout {
    Seed seed;
    u32 threshold;
    float scale;

    __device__ __forceinline__ Mask mask() const { return {seed.now(), threshold, scale}; }
};

constexpr int kDropoutGroup = 8;  // columns of one counter

struct Philox { u32 words[4]; };

__device__ __forceinline__ Philox philox(u64 seed, u32 counter0, u32 counter1) {
    constexpr u32 kMultiplier0 = 0xd2511f53u, kMultiplier1 = 0xcd9e8d57u;
    constexpr u32 kWeyl0 = 0x9e3779b9u, kWeyl1 = 0xbb67ae85u;
    constexpr int kRounds = 10;
    u32 c0 = counter0, c1 = counter1, c2 = 0, c3 = 0;
    u32 key0 = u32(seed), key1 = u32(seed >> 32);
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
        const u32 low0 = kMultiplier0 * c0, high0 = __umulhi(kMultiplier0, c0);
        const u32 low1 = kMultiplier1 * c2, high1 = __umulhi(kMultiplier1, c2);
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += kWeyl0;
        key1 += kWeyl1;
    }
    return {{c0, c1, c2, c3}};
}

// The factor of a column, whose 16 bits are in `bits` (two columns, the even one below).
__device__ __forceinline__ float dropout_factor(const Mask& mask, u32 bits, int col) {
    const u32 own = col % 2 ? bits >> 16 : bits & 0xffffu;
    return own >= mask.threshold ? mask.scale : 0.0f;
}

// x∘mask of one chunk that starts at a multiple of its length, rounded to T.
template <typename T>
__device__ __forceinline__ Vector<T> drop(const Mask& mask, const Vector<T>& chunk, int row, int col) {
    const Philox random = philox(mask.seed, col / kDropoutGroup, row);
    Vector<T> out;
#pragma unroll
    for (int e = 0; e < kVector<T>; ++e) {
        const int within = kVector<T> == kDropoutGroup ? e : col % kDropoutGroup + e;
        const u32 low = within < 2 ? random.words[0] : random.words[1];
        const u32 high = within < 6 ? random.words[2] : random.words[3];
        const float factor = dropout_factor(mask, within < 4 ? low : high, within);
        out.values[e] = from_float<T>(to_float(chunk.values[e]) * factor);
    }
    return out;
}

// One tile of source∘mask into shared memory.
template <typename TILE, typename T>
__device__ __forceinline__ void copy_tile_dropped(bool aligned, TILE tile,
                                                  const Matrix<T>& source, const Mask& mask,
                                                  int row0, int col0) {
    for_each_chunk<true, TILE>([&](int r, int c) {
        const int row = row0 + r, col = col0 + c * kVector<T>;
        *reinterpret_cast<Vector<T>*>(tile.chunk(r, c)) =
            drop<T>(mask, load_chunk(aligned, source, row, col), row, col);
    });
}

// Which of a counter's eight columns are kept, a bit each.
__device__ __forceinline__ u32 kept(const Mask& mask, const Philox& random) {
    u32 bits = 0;
#pragma unroll
    for (int e = 0; e < kDropoutGroup; ++e) {
        const u32 own = e % 2 ? random.words[e / 2] >> 16 : random.words[e / 2] & 0xffffu;
        bits |= u32(own >= mask.threshold) << e;
    }
    return bits;
}

// acc ∘= mask, for the accumulators of a tile at (m0, n0). The four lanes that share a row take the
// counters in turns, and the bits wait in a few registers: no loop over them is unrolled, which
// would spill the accumulators.
template <typename MMA>
__device__ __forceinline__ void drop_accumulators(MMA& mma, const Dropout& dropout, int m0,
                                                  int n0) {
    constexpr int kLanes = 4, kTurns = MMA::kFragmentsN / kLanes, kWords = MMA::kRows / 2;
    static_assert(MMA::kFragmentsN == 2 * kLanes, "a row of the warp tile is 16 bits of a lane");
    int thread = threadIdx.x;
    opaque(thread);  // computes what follows here: it would take registers through the loops before
    const int lane = thread % kLanes, first = thread % kWarpSize - lane;
    const int group = (n0 + MMA::warp_n(thread) * MMA::kWarpN) / kDropoutGroup;
    const int row = m0 + MMA::warp_m(thread) * MMA::kWarpM + thread % kWarpSize / 4;
    const Mask mask = dropout.mask();
    u32 keep[kWords] = {};
#pragma unroll 1
    for (int i = 0; i < MMA::kRows; ++i) {
        u32 own = 0, bits = 0;
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            const Philox random = philox(mask.seed, group + turn * kLanes + lane, row + i * 8);
            own |= kept(mask, random) << (turn * kDropoutGroup);
        }
#pragma unroll
        for (int other = 0; other < kLanes; ++other) {
            const u32 theirs = shfl(own, first + other) >> (2 * lane);
#pragma unroll
            for (int turn = 0; turn < kTurns; ++turn) {
                bits |= (theirs >> (turn * kDropoutGroup) & 3) << (2 * (turn * kLanes + other));
            }
        }
#pragma unroll
        for (int w = kWords - 1; w > 0; --w) keep[w] = keep[w] << 16 | keep[w - 1] >> 16;
        keep[0] = keep[0] << 16 | bits;
    }
#pragma unroll
    for (int i = 0; i < MMA::kRows; ++i) {
        const int from_last = MMA::kRows - 1 - i;
        const u32 bits = keep[from_last / 2] >> (from_last % 2 * 16);
#pragma unroll
        for (int j = 0; j < MMA::kCols; ++j) {
            mma.at(i, j) = bits >> j & 1 ? mma.at(i, j) * mask.scale : 0.0f;
        }
    }
}
