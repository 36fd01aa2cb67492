// What a LoRA or DoRA layer of separate ops launches besides its matrix products: elementwise ops,
// reductions and copies, each as fast as memory allows, so that fused kernels are compared with
// good ones.
//
//   scale, add, multiply      out = s·a, a + b, a∘b         pack       f32 → T
//   multiply_columns, _rows   out[i,j] = a[i,j]·v[j], a[i,j]·v[i]
//   eye, add_transposed       out = 1 [n, n]; out[i,j] = a[i,j] + b[j,i]
//   sum_columns, sum_rows     out[j] = Σ_i a[i,j], out[i] = Σ_j a[i,j]
//   norm_columns, norm_rows   the same of squares, and its root
//   divide, add_vectors, shift   out = a/b (0 where b = 0), a + b, a + s, of f32 vectors
//
// and what a library's matrix product does in itself, and the crate's own GEMM does not:
//
//   product_scale, product_scaled_add           out = s·a, a + s·b
//   product_unpack, product_unpack_transposed   out = s·a, s·aᵀ, as f32
//   product_transpose                           out = aᵀ
//
// and what a bench clears the L2 cache with, by reads alone: written lines would have to be written
// back while the next launch is timed:
//
//   read_all                  reads a, and writes its sum where that is not finite
//
// T is bf16, f16 or f32; sums, v and s are f32. Matrices are dense and row-major, every dimension
// is a multiple of 8, and every thread moves 8 elements by 16-byte accesses.
// Launch: block 128; grids in elementwise.rs.

#include "common/schedule/reduce.cuh"

constexpr int kElements = 8;             // of a thread
constexpr int kTransposeTile = 64;       // rows and columns of a tile that is transposed
constexpr int kStrip = kWarpSize * kElements;  // columns that a CTA sums
static_assert(kThreads % kWarpSize == 0, "whole warps");
static_assert(kTransposeTile % kElements == 0, "whole vectors");

// ---- helpers ----------------------------------------------------------------------------------

template <typename T>
__device__ __forceinline__ void load(float (&v)[kElements], const T* from) {
#pragma unroll
    for (int i = 0; i < kElements; i += kVector<T>) {
        const Vector<T> vector = *reinterpret_cast<const Vector<T>*>(from + i);
#pragma unroll
        for (int j = 0; j < kVector<T>; ++j) v[i + j] = to_float(vector.values[j]);
    }
}

template <typename T>
__device__ __forceinline__ void store(T* to, const float (&v)[kElements]) {
#pragma unroll
    for (int i = 0; i < kElements; i += kVector<T>) {
        Vector<T> vector;
#pragma unroll
        for (int j = 0; j < kVector<T>; ++j) vector.values[j] = from_float<T>(v[i + j]);
        *reinterpret_cast<Vector<T>*>(to + i) = vector;
    }
}

// The first of this thread's elements.
__device__ __forceinline__ i64 first_element() {
    return (i64(blockIdx.x) * kThreads + threadIdx.x) * kElements;
}

// out = f(a), elementwise.
template <typename T, typename U, typename F>
__device__ __forceinline__ void map(const T* a, U* out, i64 n, F f) {
    const i64 at = first_element();
    if (at >= n) return;
    float v[kElements];
    load(v, a + at);
#pragma unroll
    for (int i = 0; i < kElements; ++i) v[i] = f(v[i]);
    store(out + at, v);
}

// out = f(a, b), elementwise.
template <typename T, typename F>
__device__ __forceinline__ void zip(const T* a, const T* b, T* out, i64 n, F f) {
    const i64 at = first_element();
    if (at >= n) return;
    float v[kElements], w[kElements];
    load(v, a + at);
    load(w, b + at);
#pragma unroll
    for (int i = 0; i < kElements; ++i) v[i] = f(v[i], w[i]);
    store(out + at, v);
}

// out = a times the factor of each column, or of each row.
template <bool OF_COLUMN, typename T>
__device__ __forceinline__ void multiply_along(const T* a, const float* factors, T* out, i64 n,
                                               int cols) {
    const i64 at = first_element();
    if (at >= n) return;
    const i64 row = at / cols, col = at - row * cols;
    float v[kElements], w[kElements];
    load(v, a + at);
    if (OF_COLUMN) load(w, factors + col);
    const float of_row = OF_COLUMN ? 0.0f : factors[row];
#pragma unroll
    for (int i = 0; i < kElements; ++i) v[i] *= OF_COLUMN ? w[i] : of_row;
    store(out + at, v);
}

// Calls visit(row, col, v) for every 8 elements of the rows of aᵀ that are this thread's, where the
// CTA takes one tile of a [rows, cols].
template <typename T, typename F>
__device__ __forceinline__ void for_each_transposed(const T* a, int rows, int cols, F visit) {
    __shared__ float tile[kTransposeTile][kTransposeTile + 1];
    const int top = blockIdx.y * kTransposeTile, left = blockIdx.x * kTransposeTile;
    constexpr int kVectors = kTransposeTile / kElements;
#pragma unroll
    for (int i = threadIdx.x; i < kTransposeTile * kVectors; i += kThreads) {
        const int row = i / kVectors, col = i % kVectors * kElements;
        if (top + row >= rows || left + col >= cols) continue;
        float v[kElements];
        load(v, a + i64(top + row) * cols + left + col);
#pragma unroll
        for (int j = 0; j < kElements; ++j) tile[row][col + j] = v[j];
    }
    __syncthreads();
#pragma unroll
    for (int i = threadIdx.x; i < kTransposeTile * kVectors; i += kThreads) {
        const int col = i / kVectors, row = i % kVectors * kElements;
        if (top + row >= rows || left + col >= cols) continue;
        float v[kElements];
#pragma unroll
        for (int j = 0; j < kElements; ++j) v[j] = tile[row + j][col];
        visit(left + col, top + row, v);
    }
}

template <bool SQUARED>
__device__ __forceinline__ float term(float v) {
    return SQUARED ? v * v : v;
}
template <bool SQUARED>
__device__ __forceinline__ float finished(float sum) {
    return SQUARED ? sqrtf(sum) : sum;
}

// ---- the kernel templates ---------------------------------------------------------------------

// A warp per row.
template <bool SQUARED, typename T>
__device__ __forceinline__ void reduce_rows(const T* a, float* out, int rows, int cols) {
    const int row = blockIdx.x * kWarps + threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    if (row >= rows) return;
    float sum = 0.0f;
#pragma unroll 4
    for (int col = lane * kElements; col < cols; col += kStrip) {
        float v[kElements];
        load(v, a + i64(row) * cols + col);
#pragma unroll
        for (int i = 0; i < kElements; ++i) sum += term<SQUARED>(v[i]);
    }
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) sum += shfl_xor(sum, mask);
    if (lane == 0) out[row] = finished<SQUARED>(sum);
}

// A CTA sums `chunk` rows of a strip of columns; the last of a strip adds the chunks up.
template <bool SQUARED, typename T>
__device__ __forceinline__ void reduce_columns(const T* a, float* out, float* partials,
                                               u32* counters, int rows, int cols, int chunk) {
    __shared__ float sums[kWarps][kStrip];
    __shared__ u32 flag;
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    const int left = blockIdx.x * kStrip, col = left + lane * kElements;
    const int first = blockIdx.y * chunk, end = min(rows, first + chunk);
    float sum[kElements] = {};
    if (col < cols) {
#pragma unroll 4
        for (int row = first + warp; row < end; row += kWarps) {
            float v[kElements];
            load(v, a + i64(row) * cols + col);
#pragma unroll
            for (int i = 0; i < kElements; ++i) sum[i] += term<SQUARED>(v[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < kElements; ++i) sums[warp][lane * kElements + i] = sum[i];
    __syncthreads();
    for (int i = threadIdx.x; i < kStrip && left + i < cols; i += kThreads) {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) total += sums[w][i];
        partials[i64(blockIdx.y) * cols + left + i] = total;
    }
    if (!arrive_last(counters + blockIdx.x, gridDim.y, &flag)) return;
    for (int i = threadIdx.x; i < kStrip && left + i < cols; i += kThreads) {
        out[left + i] = finished<SQUARED>(ordered_sum(partials + left + i, gridDim.y, cols));
    }
}

// ---- entry points -----------------------------------------------------------------------------

#define ELEMENTWISE_ENTRIES(name, T)                                                             \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        scale_##name(const T* a, T* out, i64 n, float s) {                                       \
        map(a, out, n, [=](float v) { return s * v; });                                          \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        product_scale_##name(const T* a, T* out, i64 n, float s) {                               \
        map(a, out, n, [=](float v) { return s * v; });                                          \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        add_##name(const T* a, const T* b, T* out, i64 n) {                                      \
        zip(a, b, out, n, [](float v, float w) { return v + w; });                               \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        product_scaled_add_##name(const T* a, const T* b, T* out, i64 n, float s) {              \
        zip(a, b, out, n, [=](float v, float w) { return fmaf(s, w, v); });                      \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        multiply_##name(const T* a, const T* b, T* out, i64 n) {                                 \
        zip(a, b, out, n, [](float v, float w) { return v * w; });                               \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        pack_##name(const float* a, T* out, i64 n) {                                             \
        map(a, out, n, [](float v) { return v; });                                               \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        product_unpack_##name(const T* a, float* out, i64 n, float s) {                          \
        map(a, out, n, [=](float v) { return s * v; });                                          \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        multiply_columns_##name(const T* a, const float* v, T* out, i64 n, int cols) {           \
        multiply_along<true>(a, v, out, n, cols);                                                \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        multiply_rows_##name(const T* a, const float* v, T* out, i64 n, int cols) {              \
        multiply_along<false>(a, v, out, n, cols);                                               \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads) eye_##name(T* out, int n) {           \
        const i64 at = first_element();                                                          \
        if (at >= i64(n) * n) return;                                                            \
        const int row = int(at / n), col = int(at % n);                                          \
        float v[kElements];                                                                      \
        for (int i = 0; i < kElements; ++i) v[i] = col + i == row ? 1.0f : 0.0f;                 \
        store(out + at, v);                                                                      \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        product_transpose_##name(const T* a, T* out, int rows, int cols) {                       \
        for_each_transposed(a, rows, cols, [=](int row, int col, float(&v)[kElements]) {         \
            store(out + i64(row) * rows + col, v);                                               \
        });                                                                                      \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        product_unpack_transposed_##name(const T* a, float* out, int rows, int cols, float s) {  \
        for_each_transposed(a, rows, cols, [=](int row, int col, float(&v)[kElements]) {         \
            for (int i = 0; i < kElements; ++i) v[i] *= s;                                       \
            store(out + i64(row) * rows + col, v);                                               \
        });                                                                                      \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        add_transposed_##name(const T* a, const T* b, T* out, int rows, int cols) {              \
        for_each_transposed(b, rows, cols, [=](int row, int col, float(&v)[kElements]) {         \
            float w[kElements];                                                                  \
            load(w, a + i64(row) * rows + col);                                                  \
            for (int i = 0; i < kElements; ++i) v[i] += w[i];                                    \
            store(out + i64(row) * rows + col, v);                                               \
        });                                                                                      \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        sum_rows_##name(const T* a, float* out, int rows, int cols) {                            \
        reduce_rows<false>(a, out, rows, cols);                                                  \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        norm_rows_##name(const T* a, float* out, int rows, int cols) {                           \
        reduce_rows<true>(a, out, rows, cols);                                                   \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        sum_columns_##name(const T* a, float* out, float* partials, u32* counters, int rows,     \
                           int cols, int chunk) {                                                \
        reduce_columns<false>(a, out, partials, counters, rows, cols, chunk);                    \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                       \
        norm_columns_##name(const T* a, float* out, float* partials, u32* counters, int rows,    \
                            int cols, int chunk) {                                               \
        reduce_columns<true>(a, out, partials, counters, rows, cols, chunk);                     \
    }

FUSED_DORA_ENTRIES(ELEMENTWISE_ENTRIES)

extern "C" __global__ void __launch_bounds__(kThreads)
    divide(const float* a, const float* b, float* out, i64 n) {
    zip(a, b, out, n, [](float v, float w) { return w == 0.0f ? 0.0f : v / w; });
}
extern "C" __global__ void __launch_bounds__(kThreads)
    add_vectors(const float* a, const float* b, float* out, i64 n) {
    zip(a, b, out, n, [](float v, float w) { return v + w; });
}
extern "C" __global__ void __launch_bounds__(kThreads)
    shift(const float* a, float* out, i64 n, float s) {
    map(a, out, n, [=](float v) { return v + s; });
}
extern "C" __global__ void __launch_bounds__(kThreads)
    read_all(const float* a, float* out, i64 n) {
    const i64 stride = i64(gridDim.x) * kThreads * kVector<float>;
    float sum = 0.0f;
    for (i64 at = (i64(blockIdx.x) * kThreads + threadIdx.x) * kVector<float>; at < n; at += stride) {
        const Vector<float> vector = *reinterpret_cast<const Vector<float>*>(a + at);
#pragma unroll
        for (int i = 0; i < kVector<float>; ++i) sum += vector.values[i];
    }
    if (!isfinite(sum)) *out = sum;
}
