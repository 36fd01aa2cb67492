// One CTA's matrix product on tiles in shared memory, accumulated in f32 registers.
//
// 16-bit types run on tensor cores (ldmatrix, mma.sync.m16n8k16); f32 runs on the FMA units with
// the same distribution of the accumulators over threads, so epilogues are written once:
// lane l of a warp holds rows l/4 + 8i and columns 2(l%4) + {0,1} + 8j of its warp tile.
#pragma once

#include "common/tile/tile.cuh"

// How an operand lies in memory: K contiguous, or its other dimension (M of A, N of B) contiguous.
enum class Major { K, MN };

template <typename T, int BM, int BN, int BK, int WARPS_M, int WARPS_N, Major A_MAJOR,
          Major B_MAJOR>
struct TileMma {
    static constexpr int kWarpM = BM / WARPS_M, kWarpN = BN / WARPS_N;
    static constexpr int kFragmentsM = kWarpM / 16, kFragmentsN = kWarpN / 8;
    static constexpr int kRows = 2 * kFragmentsM, kCols = 2 * kFragmentsN;  // per thread
    static constexpr int kStepK = 16;  // the depth of one mma
    static_assert(WARPS_M * WARPS_N * kWarpSize == kThreads, "one warp tile per warp");
    static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0 && BK % kStepK == 0,
                  "warp tiles are made of pairs of 16×8×16 products");

    using TileA = SharedTile<T, A_MAJOR == Major::K ? BM : BK, A_MAJOR == Major::K ? BK : BM>;
    // tf32 fragments of N-contiguous rows take two chunks of four rows.
    using TileB = SharedTile<T, B_MAJOR == Major::K ? BN : BK, B_MAJOR == Major::K ? BK : BN,
                             kIsFloat<T> && B_MAJOR == Major::MN ? 2 : 1>;

    float acc[kFragmentsM][kFragmentsN][4];

    __device__ __forceinline__ static int lane() { return threadIdx.x % kWarpSize; }
    __device__ __forceinline__ static int warp_m(int thread = threadIdx.x) {
        return thread / kWarpSize / WARPS_N;
    }
    __device__ __forceinline__ static int warp_n(int thread = threadIdx.x) {
        return thread / kWarpSize % WARPS_N;
    }
    __device__ __forceinline__ static int row(int i) {
        return warp_m() * kWarpM + i * 8 + lane() / 4;
    }
    __device__ __forceinline__ static int col(int j) {
        return warp_n() * kWarpN + (j / 2) * 8 + (lane() % 4) * 2 + j % 2;
    }
    __device__ __forceinline__ float& at(int i, int j) {
        return acc[i / 2][j / 2][(i % 2) * 2 + j % 2];
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < kCols; ++j) at(i, j) = 0.0f;
        }
    }

    __device__ __forceinline__ void add(TileMma& other) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < kCols; ++j) at(i, j) += other.at(i, j);
        }
    }

    // Calls visit(accumulators, index) for this thread's part of each 16×8 fragment that has elements
    // of the first `rows` and `cols`.
    template <typename F>
    __device__ __forceinline__ void for_each_fragment(int rows, int cols, F visit) {
#pragma unroll
        for (int i = 0; i < kFragmentsM; ++i) {
#pragma unroll
            for (int j = 0; j < kFragmentsN; ++j) {
                if (warp_m() * kWarpM + i * 16 < rows && warp_n() * kWarpN + j * 8 < cols) {
                    visit(acc[i][j], i * kFragmentsN + j);
                }
            }
        }
    }

    __device__ __forceinline__ bool is_finite() const {
        float zero = 0.0f;
#pragma unroll
        for (int i = 0; i < kFragmentsM; ++i) {
#pragma unroll
            for (int j = 0; j < kFragmentsN; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) zero = fmaf(acc[i][j][e], 0.0f, zero);
            }
        }
        return zero == 0.0f;
    }

    // acc += A·B over the tiles' first `k` (rounded up to 16) steps. Fragments that lie wholly
    // beyond `rows` or `cols` of the CTA tile are skipped; a constant limit costs nothing.
    __device__ __forceinline__ void multiply(TileA a, TileB b, int rows, int cols, int k) {
        if (warp_m() * kWarpM >= rows || warp_n() * kWarpN >= cols) return;
#pragma unroll
        for (int k0 = 0; k0 < BK; k0 += kStepK) {
            if (k0 >= k) break;
            if constexpr (kIsFloat<T>) {
                multiply_fma(a, b, rows, cols, k0);
            } else {
                multiply_tensor(a, b, rows, cols, k0);
            }
        }
    }

private:
    __device__ __forceinline__ void multiply_tensor(TileA a, TileB b, int rows, int cols, int k0) {
        const int m0 = warp_m() * kWarpM, n0 = warp_n() * kWarpN;
        const int matrix = lane() / 8, line = lane() % 8;  // ldmatrix: whose row this lane names
        u32 fragment_a[kFragmentsM][4];
#pragma unroll
        for (int i = 0; i < kFragmentsM; ++i) {
            const int m = m0 + i * 16;
            if constexpr (A_MAJOR == Major::K) {
                ldmatrix_x4(fragment_a[i],
                            a.at(m + (matrix % 2) * 8 + line, k0 + (matrix / 2) * 8));
            } else {
                ldmatrix_x4_trans(fragment_a[i],
                                  a.at(k0 + (matrix / 2) * 8 + line, m + (matrix % 2) * 8));
            }
        }
#pragma unroll
        for (int j = 0; j < kFragmentsN; j += 2) {
            const int n = n0 + j * 8;
            if (n >= cols) break;
            u32 fragment_b[4];
            if constexpr (B_MAJOR == Major::K) {
                ldmatrix_x4(fragment_b, b.at(n + (matrix / 2) * 8 + line, k0 + (matrix % 2) * 8));
            } else {
                ldmatrix_x4_trans(fragment_b,
                                  b.at(k0 + (matrix % 2) * 8 + line, n + (matrix / 2) * 8));
            }
#pragma unroll
            for (int i = 0; i < kFragmentsM; ++i) {
                if (m0 + i * 16 >= rows) break;
                mma_m16n8k16<T>(acc[i][j], fragment_a[i], fragment_b[0], fragment_b[1]);
                mma_m16n8k16<T>(acc[i][j + 1], fragment_a[i], fragment_b[2], fragment_b[3]);
            }
        }
    }

    __device__ __forceinline__ void multiply_fma(TileA a, TileB b, int rows, int cols, int k0) {
        const int m0 = warp_m() * kWarpM, n0 = warp_n() * kWarpN;
#pragma unroll 2
        for (int k = k0; k < k0 + kStepK; ++k) {
            float column[kRows];
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                column[i] = A_MAJOR == Major::K ? *a.at(row(i), k) : *a.at(k, row(i));
            }
#pragma unroll
            for (int j = 0; j < kCols; j += 2) {
                if (n0 + j * 4 >= cols) break;
                const float b0 = B_MAJOR == Major::K ? *b.at(col(j), k) : *b.at(k, col(j));
                const float b1 = B_MAJOR == Major::K ? *b.at(col(j + 1), k) : *b.at(k, col(j + 1));
#pragma unroll
                for (int i = 0; i < kRows; ++i) {
                    if (m0 + i * 8 >= rows) break;
                    at(i, j) = fmaf(column[i], b0, at(i, j));
                    at(i, j + 1) = fmaf(column[i], b1, at(i, j + 1));
                }
            }
        }
    }
};
