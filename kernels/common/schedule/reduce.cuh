// Reductions in a fixed order: the same inputs give the same bits, whatever the schedule. Either the
// CTA that arrives last adds up partial sums in index order, or CTAs add to a sum in turn.
#pragma once

#include "common/ptx/sm80.cuh"

// True in every thread of the CTA that arrives last of `expected` at `counter`; that CTA sees all
// that the others wrote before. `counter` must be 0 before the first arrival and is 0 again after
// the last. `flag` is one word of shared memory that nothing else uses during the call.
__device__ __forceinline__ bool arrive_last(u32* counter, u32 expected, u32* flag) {
    __syncthreads();
    if (threadIdx.x == 0) {
        fence_acq_rel();
        const bool is_last = atomicAdd(counter, 1) == expected - 1;
        fence_acq_rel();
        if (is_last) *counter = 0;  // after the fence: ordered behind every arrival
        *flag = is_last;
    }
    __syncthreads();
    const bool last = *flag;
    __syncthreads();
    return last;
}

// Waits until another CTA has brought `counter` to `value`, or beyond. This thread then calls
// fence_acq_rel().
__device__ __forceinline__ void wait_until(const u32* counter, u32 value) {
    constexpr u32 kNanoseconds = 64;
    while (ld_relaxed(counter) < value) nanosleep(kNanoseconds);
}

// One of `count` CTAs that add to a sum, number after number. Number n must have begun before n + 1
// waits for it. `counter` is 0 before the first and after the last.
struct Turn {
    u32* counter;
    int number, count;

    __device__ __forceinline__ void wait() const {
        if (threadIdx.x == 0) {
            wait_until(counter, number);
            fence_acq_rel();
        }
        __syncthreads();
    }
    __device__ __forceinline__ void pass() const {
        __syncthreads();
        if (threadIdx.x == 0) {
            fence_acq_rel();
            atomicExch(counter, number + 1 < count ? number + 1 : 0);
        }
    }

    // Between wait() and pass(): adds what is at `sums` to a tile's accumulators, and stores the sum
    // there unless this is the last CTA. Whether it is: then the accumulators hold the whole. `sums`
    // has room for all fragments of a tile; those beyond `rows` and `cols` are left alone. All loads
    // are on their way before the first sum is needed.
    template <typename MMA>
    __device__ __forceinline__ bool add_tile(float* sums, MMA& mma, int rows, int cols) const {
        float4* const own = reinterpret_cast<float4*>(sums) + threadIdx.x;
        if (number > 0) {
            float4 before[MMA::kFragmentsM * MMA::kFragmentsN];
            mma.for_each_fragment(rows, cols, [&](float(&)[4], int index) {
                before[index] = __ldcg(own + index * kThreads);
            });
            mma.for_each_fragment(rows, cols, [&](float(&acc)[4], int index) {
                acc[0] += before[index].x;
                acc[1] += before[index].y;
                acc[2] += before[index].z;
                acc[3] += before[index].w;
            });
        }
        const bool is_last = number + 1 == count;
        if (!is_last) {
            mma.for_each_fragment(rows, cols, [&](float(&acc)[4], int index) {
                own[index * kThreads] = make_float4(acc[0], acc[1], acc[2], acc[3]);
            });
        }
        return is_last;
    }

    // Between wait() and pass(): adds `value` to what is at `sum`, and calls finish() with the whole
    // in the last CTA. Bypasses the first-level cache, which may hold what was there before.
    template <typename F>
    __device__ __forceinline__ void add(float* sum, float value, F finish) const {
        const float so_far = number == 0 ? value : __ldcg(sum) + value;
        if (number + 1 < count) {
            *sum = so_far;
        } else {
            finish(so_far);
        }
    }
};

// Σ over p of partials[p·stride], in order of p. Bypasses the first-level cache, which may hold
// what was there before the other CTAs wrote.
template <typename T>
__device__ __forceinline__ T ordered_sum(const T* partials, int count, i64 stride) {
    T sum = 0;
    for (int p = 0; p < count; ++p) sum += __ldcg(partials + p * stride);
    return sum;
}

// Σ of `v` over the CTA, in every thread, always in the same order. `across` is one double per warp
// that nothing else uses during the call.
__device__ __forceinline__ double block_sum(double v, double* across) {
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) v += shfl_xor(v, mask);
    __syncthreads();  // the previous sum has been read
    if (threadIdx.x % kWarpSize == 0) across[threadIdx.x / kWarpSize] = v;
    __syncthreads();
    double sum = 0.0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += across[warp];
    return sum;
}

// A finished gradient: `=`, or `+=` where micro-batches accumulate.
__device__ __forceinline__ void store_gradient(float* out, float value, int accumulate) {
    *out = accumulate ? *out + value : value;
}
