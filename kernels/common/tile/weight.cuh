// How the kernels read W. One compilation has one format of W, `Weight<T>`, and reads it by
//
//   Weight<T>::of(data, rows, cols)    W [O,I], or its first rows
//   rows, cols                         members
//   TileCopy<Weight<T>, TILE, MAJOR>   copies whole tiles, in the main loop
//   copy_tile_async                    starts the copy of a ragged tile, zero outside the matrix
//   select(dense, other, weight)       a dense matrix or W, for copy_tile_async
//   load_quad, load_element            four neighbours of a row, and one element, as T
#pragma once

#include "common/tile/tile_copy.cuh"

// Where W is, as Rust passes it.
struct WeightData {
    const void* elements;  // row-major [O,I] of T
};

// Elements of T, row after row.
template <typename T>
struct DenseWeight : Matrix<T> {
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
