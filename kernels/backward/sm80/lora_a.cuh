// dA = Pᵀx, ∘g over its columns (axis input); with dropout in the adapter branch Pᵀ(x∘M). In f16, P
// has a factor 2ᵏ, which dA loses again (prepare/sm80.cu).
//
// CTAs add the sums over their chunks of T in turn.
#pragma once

#include "backward/params.cuh"
#include "common/tile/pipeline.cuh"
#include "common/schedule/reduce.cuh"

template <typename T>
struct LoraA {
    static constexpr int kTileM = kLoraARanks, kTileN = kLoraAFeatures;
    static constexpr int kTileK = kIsFloat<T> ? 16 : 32, kStages = 3;
    using Mma = TileMma<T, kTileM, kTileN, kTileK, 1, 4, Major::MN, Major::MN>;
    static constexpr int kStageBytes = Mma::TileA::kBytes + Mma::TileB::kBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes;
};

// A tile of ranks and of input features and a chunk of tokens, with their numbers.
struct LoraATile {
    int rank, col, cols, chunk, chunks;

    // Number `index` of the list.
    __device__ __forceinline__ LoraATile(const BackwardParams& p, int cols, int index)
        : cols(cols), chunks(ceil_div(p.tokens, p.lora_a_chunk)) {
        col = index % cols;
        chunk = index / cols % chunks;
        rank = index / cols / chunks;
    }
};

// One tile. P of its tokens must be complete.
template <bool DROPOUT, typename T>
__device__ __forceinline__ void lora_a_tile(const BackwardParams& p, unsigned char* shared,
                                            const LoraATile& at) {
    using Shape = LoraA<T>;
    using Mma = typename Shape::Mma;
    const int n0 = at.col * Shape::kTileN, m0 = at.rank * Shape::kTileM;
    const int begin = at.chunk * p.lora_a_chunk, end = min(p.tokens, begin + p.lora_a_chunk);
    const auto left = Matrix<T>::dense(p.p, end, p.padded_rank);
    const auto right = Matrix<T>::strided(p.x, end, p.in_features, p.x_stride);
    const Mask mask = DROPOUT ? p.dropout.mask() : Mask{};
    Mma mma;
    mma.clear();
    pipeline<Shape::kStages>(
        ceil_div(end - begin, Shape::kTileK),
        [&](int step, int stage) {
            unsigned char* memory = shared + stage * Shape::kStageBytes;
            const int t0 = begin + step * Shape::kTileK;
            copy_tile_async<true>(typename Mma::TileA(memory), left, t0, m0);
            const typename Mma::TileB tile_x(memory + Mma::TileA::kBytes);
            if constexpr (DROPOUT) {
                copy_tile_dropped(p.aligned, tile_x, right, mask, t0, n0);
            } else {
                copy_tile_async(p.aligned, tile_x, right, t0, n0);
            }
        },
        [&](int step, int stage) {
            unsigned char* memory = shared + stage * Shape::kStageBytes;
            mma.multiply(typename Mma::TileA(memory),
                         typename Mma::TileB(memory + Mma::TileA::kBytes), p.padded_rank - m0,
                         p.in_features - n0, end - begin - step * Shape::kTileK);
        });
    const Turn turn{p.lora_a_turns + at.rank * at.cols + at.col, at.chunk, at.chunks};
    turn.wait();
    float* const sums = p.sum_a + i64(at.rank * at.cols + at.col) * Shape::kTileM * Shape::kTileN;
    if (turn.add_tile(sums, mma, p.rank - m0, p.in_features - n0)) {
        const float unbalance = p.unbalance ? *p.unbalance : 1.0f;
#pragma unroll
        for (int j = 0; j < Mma::kCols; ++j) {
            const int col = n0 + Mma::col(j);
            if (col >= p.in_features) continue;
            const float factor = unbalance * (p.input_gain ? p.input_gain[col] : 1.0f);
#pragma unroll
            for (int i = 0; i < Mma::kRows; ++i) {
                const int row = m0 + Mma::row(i);
                if (row >= p.rank) continue;
                store_gradient(p.grad_lora_a + i64(row) * p.in_features + col,
                               factor * mma.at(i, j), p.accumulate);
            }
        }
    }
    turn.pass();
}
