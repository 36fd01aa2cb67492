// Tiles in shared memory: a swizzled layout, and copies of ragged global tiles into it.
#pragma once

#include "common/ptx/sm80.cuh"

// A row-major matrix in global memory, its rows `stride` elements apart.
template <typename T>
struct Matrix {
    const T* data;
    int rows, cols, stride;

    __device__ __forceinline__ static Matrix dense(const void* data, int rows, int cols) {
        return {static_cast<const T*>(data), rows, cols, cols};
    }
    __device__ __forceinline__ static Matrix strided(const void* data, int rows, int cols,
                                                     int stride) {
        return {static_cast<const T*>(data), rows, cols, stride};
    }
    // Member by member, so that both stay in registers.
    __device__ __forceinline__ static Matrix select(bool first, const Matrix& a, const Matrix& b) {
        return {first ? a.data : b.data, first ? a.rows : b.rows, first ? a.cols : b.cols,
                first ? a.stride : b.stride};
    }
    __device__ __forceinline__ const T* at(int row, int col) const {
        return data + i64(row) * stride + col;
    }
};

// ROWS×COLS elements of T in shared memory, rows of 16-byte chunks. The chunk index is XORed with
// the row, so that the eight rows of one ldmatrix, or of one column access, fall into different
// banks whatever the row's length. SPREAD: neighbouring rows are XORed with values that lie so far
// apart, so that as many neighbouring chunks of fewer rows fall into different banks.
template <typename T, int ROWS, int COLS, int SPREAD = 1>
struct SharedTile {
    static constexpr int kRows = ROWS, kCols = COLS;
    static constexpr int kChunks = COLS / kVector<T>;
    static constexpr int kRowBytes = COLS * sizeof(T), kBytes = ROWS * kRowBytes;
    static_assert(COLS % kVector<T> == 0, "a row is a whole number of 16-byte chunks");
    static_assert((kChunks & (kChunks - 1)) == 0, "the XOR needs a power of two of chunks per row");
    // Rows per 128-byte bank line, as a shift: short rows share a line and one XOR value.
    static constexpr int kRowShift = kChunks >= 8 ? 0 : kChunks == 4 ? 1 : kChunks == 2 ? 2 : 3;
    static constexpr int kMask = (kChunks < 8 ? kChunks : 8) / SPREAD - 1;

    T* data;

    __device__ __forceinline__ explicit SharedTile(void* memory) : data(static_cast<T*>(memory)) {}

    __device__ __forceinline__ T* chunk(int row, int chunk) const {
        return data + row * COLS + ((chunk ^ ((row >> kRowShift) & kMask) * SPREAD) * kVector<T>);
    }
    __device__ __forceinline__ T* at(int row, int col) const {
        return chunk(row, col / kVector<T>) + col % kVector<T>;
    }
};

// One chunk of `source` at (row, col), zero where it lies outside. ALIGNED: rows start at 16-byte
// boundaries, so a chunk is wholly inside or wholly outside.
template <bool ALIGNED, typename T>
__device__ __forceinline__ Vector<T> load_chunk(const Matrix<T>& source, int row, int col) {
    Vector<T> out = {};
    if (row >= source.rows) return out;
    if (ALIGNED) {
        if (col < source.cols) out = *reinterpret_cast<const Vector<T>*>(source.at(row, col));
    } else {
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
            if (col + e < source.cols) out.values[e] = *source.at(row, col + e);
        }
    }
    return out;
}

// The same where ALIGNED is not worth a copy of the kernel.
template <typename T>
__device__ __forceinline__ Vector<T> load_chunk(bool aligned, const Matrix<T>& source, int row,
                                                int col) {
    return aligned ? load_chunk<true>(source, row, col) : load_chunk<false>(source, row, col);
}

// Stores one chunk of row-major `destination`, its rows `stride` elements apart.
template <bool ALIGNED, typename T>
__device__ __forceinline__ void store_chunk(T* destination, int rows, int cols, int stride,
                                            int row, int col, const Vector<T>& chunk) {
    if (row >= rows) return;
    T* target = destination + i64(row) * stride + col;
    if (ALIGNED) {
        if (col < cols) *reinterpret_cast<Vector<T>*>(target) = chunk;
    } else {
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
            if (col + e < cols) target[e] = chunk.values[e];
        }
    }
}

// The same where ALIGNED is not worth a copy of the kernel.
template <typename T>
__device__ __forceinline__ void store_chunk(bool aligned, T* destination, int rows, int cols,
                                            int stride, int row, int col,
                                            const Vector<T>& chunk) {
    if (aligned) {
        store_chunk<true>(destination, rows, cols, stride, row, col, chunk);
    } else {
        store_chunk<false>(destination, rows, cols, stride, row, col, chunk);
    }
}

// Four neighbours of a row: one access where rows start at multiples of four elements.
template <typename T>
struct __align__(4 * sizeof(T)) Quad {
    T values[4];
};

// Elements col..col+3 of a row of `cols`, zero beyond its end.
template <bool ALIGNED, typename T>
__device__ __forceinline__ Quad<T> load_quad(const T* row, int col, int cols) {
    if (ALIGNED) return *reinterpret_cast<const Quad<T>*>(row + col);
    Quad<T> out = {};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        if (col + e < cols) out.values[e] = row[col + e];
    }
    return out;
}

template <bool ALIGNED, typename T>
__device__ __forceinline__ Quad<T> load_quad(const Matrix<T>& source, int row, int col) {
    return load_quad<ALIGNED>(source.at(row, 0), col, source.cols);
}

// The same where ALIGNED is not worth a copy of the kernel.
template <typename T>
__device__ __forceinline__ Quad<T> load_quad(bool aligned, const T* row, int col, int cols) {
    return aligned && col + 3 < cols ? load_quad<true>(row, col, cols)
                                     : load_quad<false>(row, col, cols);
}

template <bool ALIGNED, typename T>
__device__ __forceinline__ void store_quad(T* row, int col, int cols, const Quad<T>& quad) {
    if constexpr (ALIGNED && kIsFloat<T>) {
        st_global_v4(row + col, quad.values);
    } else if constexpr (ALIGNED) {
        const u16 bits[4] = {quad.values[0].bits, quad.values[1].bits, quad.values[2].bits,
                             quad.values[3].bits};
        st_global_v4(reinterpret_cast<u16*>(row + col), bits);
    } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            if (col + e < cols) row[col + e] = quad.values[e];
        }
    }
}

// The same where ALIGNED is not worth a copy of the kernel.
template <typename T>
__device__ __forceinline__ void store_quad(bool aligned, T* row, int col, int cols,
                                           const Quad<T>& quad) {
    if (aligned && col + 3 < cols) {
        store_quad<true>(row, col, cols, quad);
    } else {
        store_quad<false>(row, col, cols, quad);
    }
}

// Calls visit(row, chunk) for this thread's share of a tile's chunks. Unrolled where ALIGNED; the
// element-by-element path stays a loop, for the sake of its size.
template <bool ALIGNED, typename TILE, typename F>
__device__ __forceinline__ void for_each_chunk(F visit, int thread = threadIdx.x) {
    constexpr int kTotal = TILE::kRows * TILE::kChunks;
    constexpr int kUnroll = ALIGNED ? ceil_div(kTotal, kThreads) : 1;
#pragma unroll kUnroll
    for (int base = 0; base < kTotal; base += kThreads) {
        const int index = base + thread;
        if (kTotal % kThreads == 0 || index < kTotal) {
            visit(index / TILE::kChunks, index % TILE::kChunks);
        }
    }
}

// Starts the copy of source[row0.., col0..] into `tile`, zero outside the matrix. The data are
// there after the caller's wait for the group and a barrier.
template <bool ALIGNED, typename TILE, typename T>
__device__ __forceinline__ void copy_tile_async(TILE tile, const Matrix<T>& source, int row0,
                                                int col0, int thread = threadIdx.x) {
    for_each_chunk<ALIGNED, TILE>([&](int r, int c) {
        const int row = row0 + r, col = col0 + c * kVector<T>;
        if (ALIGNED) {
            // Of a chunk outside no byte is read; an address inside spares a branch.
            const bool inside = row < source.rows && col < source.cols;
            cp_async_16(tile.chunk(r, c),
                        source.at(min(row, source.rows - 1), min(col, source.cols - kVector<T>)),
                        inside ? kVectorBytes : 0);
        } else {
            *reinterpret_cast<Vector<T>*>(tile.chunk(r, c)) =
                load_chunk<ALIGNED>(source, row, col);
        }
    }, thread);
}

// The same where ALIGNED is not worth a copy of the kernel.
template <typename TILE, typename T>
__device__ __forceinline__ void copy_tile_async(bool aligned, TILE tile, const Matrix<T>& source,
                                                int row0, int col0, int thread = threadIdx.x) {
    if (aligned) {
        copy_tile_async<true>(tile, source, row0, col0, thread);
    } else {
        copy_tile_async<false>(tile, source, row0, col0, thread);
    }
}
