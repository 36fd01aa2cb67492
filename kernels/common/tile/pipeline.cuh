// The main loop that every product here shares: a ring of shared-memory stages, filled by
// cp.async ahead of the tensor cores.
#pragma once

#include "common/tile/mma.cuh"

// For step = first..steps-1: fill(step, stage) starts the copies, and once they have landed
// consume(step, stage) may read them. In between, land(step, stage) may change what the same thread
// copied. Where `first` is not 0, or with STARTED, the copies of STAGES − 1 steps from there have been
// started, a group each. Ends with a barrier: the stages may then be reused.
template <int STAGES, bool STARTED = false, typename FILL, typename LAND, typename CONSUME>
__device__ __forceinline__ void pipeline(int steps, FILL fill, LAND land, CONSUME consume,
                                         int first = 0) {
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (STARTED || first > 0) break;
        if (s < steps) fill(s, s);
        cp_async_commit_group();
    }
    for (int step = first; step < steps; ++step) {
        cp_async_wait_group<STAGES - 2>();
        land(step, step % STAGES);
        __syncthreads();  // the data of this step are there; the oldest stage is free
        const int ahead = step + STAGES - 1;
        if (ahead < steps) fill(ahead, ahead % STAGES);
        cp_async_commit_group();
        consume(step, step % STAGES);
    }
    cp_async_wait_group<0>();
    __syncthreads();
}

// The same where nothing changes what was copied.
template <int STAGES, bool STARTED = false, typename FILL, typename CONSUME>
__device__ __forceinline__ void pipeline(int steps, FILL fill, CONSUME consume, int first = 0) {
    pipeline<STAGES, STARTED>(steps, fill, [](int, int) {}, consume, first);
}

// Stores two neighbouring columns of row-major `c`, which has an even number of them and rows `stride`
// elements apart, as one access where PAIRED (rows that start at even elements).
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
        target[1] = from_float<T>(v1);
    }
}

// The same where PAIRED is not worth a copy of the kernel.
template <typename T>
__device__ __forceinline__ void store_pair(bool paired, T* c, int rows, int cols, int stride,
                                           int row, int col, float v0, float v1) {
    if (paired) {
        store_pair<true>(c, rows, cols, stride, row, col, v0, v1);
    } else {
        store_pair<false>(c, rows, cols, stride, row, col, v0, v1);
    }
}
