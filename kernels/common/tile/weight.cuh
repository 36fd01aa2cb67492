// How the kernels read W. One compilation has one kind of W, `Weight<T>`: dense, or packed if
// FUSED_DORA_PACKED is defined. The kernels read it by
//
//   Weight<T>::of(data, rows, cols)    W [O,I], or its first rows
//   rows, cols                         members
//   TileCopy<Weight<T>, TILE, MAJOR>   copies whole tiles, in the main loop
//   copy_tile_async                    starts the copy of a ragged tile, zero outside the matrix
//   select(dense, other, weight)       a dense matrix or W, for copy_tile_async
//   load_quad, load_element            four neighbours of a row, and one element, as T
#pragma once

#include "common/tile/tile_copy.cuh"

// The formats of a packed W. Each is one formula in f32, rounded to the format's own dtype S and then
// to T.
enum class Packing : int {
    kNf4,   // bitsandbytes: code·absmax of the block
    kFp4,   // the same with another code
    kInt8,  // bitsandbytes: (q·SCB)/127 of the row
    kFp8,   // e4m3·scale
};

// The dtype S.
enum class Rounding : int { kNone, kBf16, kF16 };

// Where W is, as Rust passes it.
struct WeightData {
    const void* elements;       // row-major [O,I] of T, or the packed elements
    const void* scales;         // packed: f32; nested: a byte each
    const float* outer_scales;  // nested: one per 256 blocks; else null
    const float* scale_map;     // nested: 256 numbers
    float scale_offset;         // nested
    Packing packing;
    Rounding rounding;
    int block_shift;            // NF4, FP4: log₂ of the elements of a block of the flattened W
    int scale_rows, scale_cols; // fp8: of a block that shares a scale
};

// Elements of T, row after row.
template <typename T>
struct DenseWeight;

// The launch bounds of a kernel that needs more registers to decode W than ptxas gives it by itself,
// which aims at three CTAs.
#ifdef FUSED_DORA_PACKED
#define FUSED_DORA_DECODING_BOUNDS __launch_bounds__(kThreads, 2)
#else
#define FUSED_DORA_DECODING_BOUNDS __launch_bounds__(kThreads)
#endif

#ifdef FUSED_DORA_PACKED
#include "common/tile/packed_weight.cuh"
#else

template <typename T>
struct DenseWeight : Matrix<T> {
    static constexpr bool kPacked = false;
    __device__ __forceinline__ static DenseWeight of(const WeightData& data, int rows, int cols) {
        return {Matrix<T>::dense(data.elements, rows, cols)};
    }
};

template <typename T>
using Weight = DenseWeight<T>;

template <typename T, typename TILE, Major MAJOR>
struct TileCopy<DenseWeight<T>, TILE, MAJOR> : TileCopy<Matrix<T>, TILE, MAJOR> {
    using TileCopy<Matrix<T>, TILE, MAJOR>::TileCopy;
};

template <typename T>
__device__ __forceinline__ Matrix<T> select(bool dense, const Matrix<T>& other,
                                            const DenseWeight<T>& weight) {
    return Matrix<T>::select(dense, other, weight);
}

template <typename T>
__device__ __forceinline__ T load_element(const DenseWeight<T>& weight, int row, int col) {
    return *weight.at(row, col);
}

#endif
