// H = x_scaled·Aᵀ, and x_scaled itself: x∘g rounded stochastically (axis input), or xd = x∘M with
// x_kept_out = u = x − xd (PEFT's dropout).
//
// A CTA computes a tile over a chunk of the input features. The last CTA of a tile adds up the
// partial sums.
#pragma once

#include "common/schedule/split_k.cuh"
#include "common/tile/pipeline.cuh"
#include "common/dora/stochastic_round.cuh"
#include "forward/params.cuh"

template <typename T>
struct LowRank {
    static constexpr int kTileM = kLowRankTokens, kTileN = kLowRankRanks;
    static constexpr int kTileK = kIsFloat<T> ? 16 : 32, kStages = 3;
    using Mma = TileMma<T, kTileM, kTileN, kTileK, 4, 1, Major::K, Major::K>;
    static constexpr int kStageBytes = Mma::TileA::kBytes + Mma::TileB::kBytes;
    static constexpr int kGainBytes = kTileK * sizeof(float);
    static constexpr int kSharedBytes = kStages * (kStageBytes + kGainBytes);
    using Sum = SplitK<Mma>;
    static_assert(Sum::kFloats == kTileM * kTileN, "Rust reserves a float per element of a tile");
};

// A tile of H, the part of its sum, and the slot for its partial sums.
struct LowRankTile {
    int row, col, split, slot;
};

// The gains of a tile's columns, in shared memory. All threads read what a few have copied.
template <typename T>
struct GainTile {
    static constexpr int kCols = LowRank<T>::kTileK;

    float* data;

    // Starts the copies of the gains from `col` on, zero beyond the last of `cols`. All gains start at
    // a 16-byte boundary.
    __device__ __forceinline__ void copy_async(const float* gain, int col, int cols) const {
        if (threadIdx.x >= kCols / 4) return;
        const int own = threadIdx.x * 4, left = min(max(cols - col - own, 0), 4);
        cp_async_16(data + own, gain + (left > 0 ? col + own : 0), left * int(sizeof(float)));
    }
    __device__ __forceinline__ Quad<float> quad(int col) const {
        const float4 four = *reinterpret_cast<const float4*>(data + col);
        return {{four.x, four.y, four.z, four.w}};
    }
};

// One tile of x in shared memory, times g, rounded stochastically: in place, and into x_scaled unless
// that is null. Each thread changes the chunks that it copied.
template <typename T, typename TILE>
__device__ __forceinline__ void scale_tile(bool aligned, TILE tile, const Matrix<T>& x,
                                           GainTile<T> gains, u64 seed, const Mask* mask,
                                           T* x_scaled, int row0, int col0) {
    for_each_chunk<true, TILE>([&](int r, int c) {
        const int row = row0 + r, col = col0 + c * kVector<T>;
        Vector<T>* const place = reinterpret_cast<Vector<T>*>(tile.chunk(r, c));
        Vector<T> chunk = *place;
        const u32 key = row_key(seed, row) ^ col;  // of the chunk: col is a multiple of its length
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
            const float g = gains.quad(c * kVector<T> + e / 4 * 4).values[e % 4];
            chunk.values[e] = round_stochastic<T>(to_float(chunk.values[e]) * g, mix(key ^ e));
        }
        if (x_scaled) store_chunk(aligned, x_scaled, x.rows, x.cols, x.cols, row, col, chunk);
        if (mask) chunk = drop<T>(*mask, chunk, row, col);
        *place = chunk;
    });
}

// One tile of x in shared memory becomes xd = x∘M, in place. Unless x_scaled is null, xd also goes to
// x_scaled and u = x − xd to x_kept_out. Each thread changes the chunks that it copied.
template <typename T, typename TILE>
__device__ __forceinline__ void split_tile(bool aligned, TILE tile, const Matrix<T>& x,
                                           const Mask& mask, T* x_scaled, T* x_kept_out,
                                           int row0, int col0) {
    for_each_chunk<true, TILE>([&](int r, int c) {
        const int row = row0 + r, col = col0 + c * kVector<T>;
        Vector<T>* const place = reinterpret_cast<Vector<T>*>(tile.chunk(r, c));
        const Vector<T> chunk = *place;
        const Vector<T> dropped = drop<T>(mask, chunk, row, col);
        *place = dropped;
        if (!x_scaled) return;
        Vector<T> left;
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
            left.values[e] =
                from_float<T>(to_float(chunk.values[e]) - to_float(dropped.values[e]));
        }
        store_chunk(aligned, x_scaled, x.rows, x.cols, x.cols, row, col, dropped);
        store_chunk(aligned, x_kept_out, x.rows, x.cols, x.cols, row, col, left);
    });
}

template <bool DROPOUT, typename T>
__device__ __forceinline__ void low_rank_tile(const ForwardParams& p, unsigned char* shared,
                                              const LowRankTile& at) {
    using Shape = LowRank<T>;
    using Mma = typename Shape::Mma;
    const auto x = Matrix<T>::strided(p.x, p.tokens, p.in_features, p.x_stride);
    const auto a = Matrix<T>::dense(p.a, p.padded_rank, p.in_features);
    const int m0 = at.row * Shape::kTileM, n0 = at.col * Shape::kTileN;
    const int begin = at.split * p.h_chunk, end = min(p.in_features, begin + p.h_chunk);
    // Every column of tiles computes x_scaled; the first one writes it.
    T* const x_scaled = at.col == 0 ? static_cast<T*>(p.x_scaled) : nullptr;
    const bool scales_input = p.gain && p.gain_on_input;
    const u64 seed = p.seed.now();
    const Mask mask = DROPOUT ? p.dropout.mask() : Mask{};
    const auto tile_x = [&](int stage) {
        return typename Mma::TileA(shared + stage * Shape::kStageBytes);
    };
    const auto tile_a = [&](int stage) {
        return typename Mma::TileB(shared + stage * Shape::kStageBytes + Mma::TileA::kBytes);
    };
    const auto gains = [&](int stage) {
        unsigned char* const behind = shared + Shape::kStages * Shape::kStageBytes;
        return GainTile<T>{reinterpret_cast<float*>(behind + stage * Shape::kGainBytes)};
    };
    if (scales_input) {
        gains(0).copy_async(p.gain, begin, p.in_features);
        cp_async_commit_group();
        cp_async_wait_group<0>();
        __syncthreads();
    }
    Mma mma;
    mma.clear();
    pipeline<Shape::kStages>(
        ceil_div(end - begin, Shape::kTileK),
        [&](int step, int stage) {
            const int k0 = begin + step * Shape::kTileK;
            copy_tile_async(p.aligned, tile_x(stage), x, m0, k0);
            copy_tile_async(p.aligned, tile_a(stage), a, n0, k0);
            // All threads see what lands with a step from the next step on.
            if (scales_input) {
                gains((step + 1) % Shape::kStages)
                    .copy_async(p.gain, k0 + Shape::kTileK, p.in_features);
            }
        },
        [&](int step, int stage) {
            const int k0 = begin + step * Shape::kTileK;
            if (scales_input) {
                scale_tile(p.aligned, tile_x(stage), x, gains(stage), seed,
                           DROPOUT ? &mask : nullptr, x_scaled, m0, k0);
            } else if constexpr (DROPOUT) {
                split_tile(p.aligned, tile_x(stage), x, mask, x_scaled,
                           static_cast<T*>(p.x_kept_out), m0, k0);
            }
        },
        [&](int, int stage) {
            mma.multiply(tile_x(stage), tile_a(stage), p.tokens - m0, p.padded_rank - n0,
                         Shape::kTileK);
        });
    float* const partials = p.partial_h + i64(at.slot) * p.h_split_k * Shape::Sum::kFloats;
    if (p.padded_rank == 0 ||
        !Shape::Sum::add(mma, partials, at.split, p.h_split_k, p.padded_rank - n0,
                         p.h_counters + at.row * p.low_rank_tiles + at.col, shared)) {
        return;
    }
#pragma unroll
    for (int i = 0; i < Mma::kRows; ++i) {
#pragma unroll
        for (int j = 0; j < Mma::kCols; j += 2) {
            store_pair(p.aligned, static_cast<T*>(p.h), p.tokens, p.padded_rank, p.padded_rank,
                       m0 + Mma::row(i), n0 + Mma::col(j), mma.at(i, j), mma.at(i, j + 1));
        }
    }
}
