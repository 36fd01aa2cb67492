// The main loop that every product here shares: a ring of shared-memory stages, filled by
// cp.async ahead of the tensor cores.
#pragma once

#include "common/mma.cuh"

// For step = 0..steps-1: fill(step, stage) starts the copies, and once they have landed
// consume(step, stage) may read them. Ends with a barrier: the stages may then be reused.
template <int STAGES, typename FILL, typename CONSUME>
__device__ __forceinline__ void pipeline(int steps, FILL fill, CONSUME consume) {
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < steps) fill(s, s);
        cp_async_commit_group();
    }
    for (int step = 0; step < steps; ++step) {
        cp_async_wait_group<STAGES - 2>();
        __syncthreads();  // the data of this step are there; the oldest stage is free
        const int ahead = step + STAGES - 1;
        if (ahead < steps) fill(ahead, ahead % STAGES);
        cp_async_commit_group();
        consume(step, step % STAGES);
    }
    cp_async_wait_group<0>();
    __syncthreads();
}

// The main GEMM of forward and dX: C = A·B over K, then the low-rank product as the last k-steps
// into the same accumulators.
template <typename T, Major B_MAJOR>
struct MainGemm {
    static constexpr int kTileM = 128, kTileN = 128, kTileK = kIsFloat<T> ? 16 : 32;
    static constexpr int kStages = 3;
    using Mma = TileMma<T, kTileM, kTileN, kTileK, 2, 2, Major::K, B_MAJOR>;
    using TileA = typename Mma::TileA;
    using TileB = typename Mma::TileB;
    static constexpr int kStageBytes = TileA::kBytes + TileB::kBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes;

    // `a` and `low_a` hold K contiguous; B as B_MAJOR says. Tile (m0, n0) of C.
    template <bool ALIGNED>
    __device__ __forceinline__ static void run(Mma& mma, unsigned char* shared,
                                               const Matrix<T>& a, const Matrix<T>& b,
                                               const Matrix<T>& low_a, const Matrix<T>& low_b,
                                               int m0, int n0) {
        const int main_steps = ceil_div(a.cols, kTileK);
        const int steps = main_steps + ceil_div(low_a.cols, kTileK);
        const int rows = a.rows - m0, cols = (B_MAJOR == Major::K ? b.rows : b.cols) - n0;
        const auto tile_a = [&](int stage) { return TileA(shared + stage * kStageBytes); };
        const auto tile_b = [&](int stage) {
            return TileB(shared + stage * kStageBytes + TileA::kBytes);
        };
        mma.clear();
        pipeline<kStages>(
            steps,
            [&](int step, int stage) {
                const bool low = step >= main_steps;
                const auto from_a = Matrix<T>::select(low, low_a, a);
                const auto from_b = Matrix<T>::select(low, low_b, b);
                const int k0 = (low ? step - main_steps : step) * kTileK;
                copy_tile_async<ALIGNED>(tile_a(stage), from_a, m0, k0);
                if constexpr (B_MAJOR == Major::K) {
                    copy_tile_async<ALIGNED>(tile_b(stage), from_b, n0, k0);
                } else {
                    copy_tile_async<ALIGNED>(tile_b(stage), from_b, k0, n0);
                }
            },
            [&](int step, int stage) {
                const bool low = step >= main_steps;
                const int k = low ? low_a.cols - (step - main_steps) * kTileK : kTileK;
                // A warp tile beyond the matrix has nothing to add; inside, no test per fragment.
                if (Mma::warp_m() * Mma::kWarpM < rows && Mma::warp_n() * Mma::kWarpN < cols) {
                    mma.multiply(tile_a(stage), tile_b(stage), kTileM, kTileN, k);
                }
            });
    }
};

// One of the products that a GEMM of several adds up: A·B, with B as B_MAJOR says.
template <typename T>
struct Product {
    Matrix<T> a, b;

    __device__ __forceinline__ static Product select(bool first, const Product& x,
                                                     const Product& y) {
        return {Matrix<T>::select(first, x.a, y.a), Matrix<T>::select(first, x.b, y.b)};
    }
};

// The main GEMM where something happens to the accumulators on the way: C = the sum of three
// products, any of which may be empty (0 columns of A), with between(1) called before the second
// and between(2) before the third.
template <typename T, Major B_MAJOR>
struct StagedGemm {
    using Gemm = MainGemm<T, B_MAJOR>;
    using Mma = typename Gemm::Mma;

    template <bool ALIGNED, typename BETWEEN>
    __device__ __forceinline__ static void run(Mma& mma, unsigned char* shared,
                                               const Product<T>& first, const Product<T>& second,
                                               const Product<T>& third, int m0, int n0,
                                               BETWEEN between) {
        constexpr int kTileK = Gemm::kTileK;
        const int to_second = ceil_div(first.a.cols, kTileK);
        const int to_third = to_second + ceil_div(second.a.cols, kTileK);
        const int steps = to_third + ceil_div(third.a.cols, kTileK);
        const auto tile_a = [&](int stage) {
            return typename Gemm::TileA(shared + stage * Gemm::kStageBytes);
        };
        const auto tile_b = [&](int stage) {
            return typename Gemm::TileB(shared + stage * Gemm::kStageBytes + Gemm::TileA::kBytes);
        };
        mma.clear();
        pipeline<Gemm::kStages>(
            steps,
            [&](int step, int stage) {
                const auto later = Product<T>::select(step < to_third, second, third);
                const auto from = Product<T>::select(step < to_second, first, later);
                const int start =
                    step < to_second ? 0 : step < to_third ? to_second : to_third;
                const int k0 = (step - start) * kTileK;
                copy_tile_async<ALIGNED>(tile_a(stage), from.a, m0, k0);
                if constexpr (B_MAJOR == Major::K) {
                    copy_tile_async<ALIGNED>(tile_b(stage), from.b, n0, k0);
                } else {
                    copy_tile_async<ALIGNED>(tile_b(stage), from.b, k0, n0);
                }
            },
            [&](int step, int stage) {
                if (step == to_second) between(1);
                if (step == to_third) between(2);
                mma.multiply(tile_a(stage), tile_b(stage), Gemm::kTileM, Gemm::kTileN, kTileK);
            });
        if (steps == to_second) between(1);
        if (steps == to_third) between(2);
    }
};

// Tile `index` of a grid of tiles, in groups of kGroup tile rows whose operands stay in L2.
struct TileIndex {
    static constexpr int kGroup = 8;
    int m, n;

    __device__ __forceinline__ TileIndex(int index, int tiles_m, int tiles_n) {
        const int group = index / (kGroup * tiles_n), first = group * kGroup;
        const int height = min(kGroup, tiles_m - first);
        const int within = index - group * kGroup * tiles_n;
        m = first + within % height;
        n = within / height;
    }
};

// Stores two neighbouring columns of row-major `c`, its rows `stride` elements apart, as one access
// where PAIRED (an even number of columns, rows that start at even elements).
template <bool PAIRED, typename T>
__device__ __forceinline__ void store_pair(T* c, int rows, int cols, int stride, int row, int col,
                                           float v0, float v1) {
    if (row >= rows || col >= cols) return;
    struct __align__(2 * sizeof(T)) Pair { T a, b; };
    T* target = c + i64(row) * stride + col;
    if (PAIRED) {
        *reinterpret_cast<Pair*>(target) = {from_float<T>(v0), from_float<T>(v1)};
    } else {
        target[0] = from_float<T>(v0);
        if (col + 1 < cols) target[1] = from_float<T>(v1);
    }
}
