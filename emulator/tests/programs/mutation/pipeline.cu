// out[c] = Σ over rows of in[row][c], with two rows on the way at a time: cp.async into two stages
// of shared memory, 16 bytes at a time where rows start at 16-byte boundaries. Columns pass through
// shared memory in reverse, so that every thread reads what another one fetched. The row after the
// last is fetched as zeros, and the epilogue reuses its stage.
// Grid: ceil(cols / 256); block: 64.

#include "ptx.cuh"

constexpr int kThreads = 64, kVector = 4, kCols = kThreads * kVector;

// Starts the copy of kVector values; `left` of them are inside.
__device__ __forceinline__ void fetch(float* to, const float* from, int left, bool aligned) {
    if (aligned) {                                //~ alignment: if (true) {
        cp_async_16(to, from, left > 0 ? 16 : 0);  //~ bounds: cp_async_16(to, from, 16);
    } else {
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
            //~ bounds: cp_async_4(to + e, from + e, 4);
            cp_async_4(to + e, from + e, e < left ? 4 : 0);
        }
    }
}

extern "C" __global__ void column_sums(const float* in, float* out, int rows, int cols,
                                       int aligned) {
    __shared__ __align__(16) float stage[2][kCols];
    const int own = threadIdx.x * kVector, other = kCols - kVector - own;
    const int col = blockIdx.x * kCols + own;
    float sum[kVector] = {};  //~ init: float sum[kVector];
    fetch(&stage[0][own], in + col, cols - col, aligned);
    cp_async_commit_group();  //~ commit
    for (int row = 0; row < rows; ++row) {
        const int next = row + 1;
        const int left = next < rows ? cols - col : 0;  //~ bounds: const int left = cols - col;
        fetch(&stage[next % 2][own], in + next * cols + col, left, aligned);
        cp_async_commit_group();   //~ commit
        cp_async_wait_group<1>();  //~ wait //~ wait: cp_async_wait_group<2>();
        __syncthreads();           //~ barrier
#pragma unroll
        for (int e = 0; e < kVector; ++e) sum[e] += stage[row % 2][other + e];
        __syncthreads();  //~ barrier
    }
    cp_async_wait_group<0>();  //~ wait //~ wait: cp_async_wait_group<1>();
    float* last = stage[rows % 2];
#pragma unroll
    for (int e = 0; e < kVector; ++e) last[own + e] = sum[e];
    __syncthreads();  //~ barrier
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
        const float value = last[other + e];
        if (col + e < cols) out[col + e] = value;  //~ bounds: out[col + e] = value;
    }
}

// The same for 32 columns by one warp, whose lanes read what they fetched themselves.
// Grid: 1; block: 32.

extern "C" __global__ void few_column_sums(const float* in, float* out, int rows) {
    __shared__ float stage[2][32];
    const int lane = threadIdx.x;
    float sum = 0.0f;  //~ init: float sum;
    cp_async_4(&stage[0][lane], in + lane, 4);
    cp_async_commit_group();  //~ commit
    for (int row = 0; row < rows; ++row) {
        const int next = row + 1;
        const int bytes = next < rows ? 4 : 0;  //~ bounds: const int bytes = 4;
        cp_async_4(&stage[next % 2][lane], in + next * 32 + lane, bytes);
        cp_async_commit_group();   //~ commit
        cp_async_wait_group<1>();  //~ wait //~ wait: cp_async_wait_group<2>();
        sum += stage[row % 2][lane];
    }
    cp_async_wait_group<0>();  //~ wait //~ wait: cp_async_wait_group<1>();
    stage[rows % 2][lane] = sum;
    __syncwarp();  //~ warp barrier
    out[lane] = stage[rows % 2][31 - lane];
}
