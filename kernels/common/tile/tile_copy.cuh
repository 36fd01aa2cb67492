// Copies of whole tiles, as the main loop makes them: nothing is tested or computed again per k-step.
#pragma once

#include "common/tile/mma.cuh"

// This thread's share of the copies of an operand's tiles: a fixed column of chunks, every
// kRowsApart-th row, and an offset that runs along K. Rows and columns beyond the matrix repeat its
// last ones: they only reach elements of C that are not stored.
template <typename SOURCE, typename TILE, Major MAJOR>
struct TileCopy;

template <typename T, typename TILE, Major MAJOR>
struct TileCopy<Matrix<T>, TILE, MAJOR> {
    static constexpr int kRowsApart = kThreads / TILE::kChunks;
    static constexpr int kCount = TILE::kRows / kRowsApart;
    static_assert(kThreads % TILE::kChunks == 0 && TILE::kRows % kRowsApart == 0,
                  "all threads copy as much");
    static_assert(((kRowsApart >> TILE::kRowShift) & TILE::kMask) == 0,
                  "the swizzle is the same in all rows of a thread");
    // Along K-contiguous rows, or down rows, which may be far.
    using Offset = Select<MAJOR == Major::K, int, i64>;

    const T* from[kCount];
    Offset offset, step;
    u32 to;

    __device__ __forceinline__ TileCopy(const Matrix<T>& source, int first, TILE tile,
                                        int thread) {
        const int row = thread / TILE::kChunks, chunk = thread % TILE::kChunks;
        to = shared_address(tile.chunk(row, chunk));
        offset = 0;
        step = MAJOR == Major::K ? Offset(TILE::kCols) : Offset(TILE::kRows) * source.stride;
        const int col = chunk * kVector<T>;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const int r = row + i * kRowsApart;
            from[i] = MAJOR == Major::K
                          ? source.at(min(first + r, source.rows - 1), col)
                          : source.at(r, min(first + col, source.cols - kVector<T>));
        }
    }

    // Starts the copy of the next k-step's tile into the stage that begins at byte `stage`.
    __device__ __forceinline__ void start(u32 stage) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            cp_async_16(to + stage + i * kRowsApart * TILE::kRowBytes, from[i] + offset);
        }
        offset += step;
        opaque(offset);  // otherwise the compiler keeps and increments a 64-bit address per copy
    }
};
