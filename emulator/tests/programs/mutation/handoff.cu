// Running sums along blocks: out[b] = in[b] + out[b − 1] mirrored, where each block waits for the
// flag of the one before it. Once with acquire and release, once with fences and volatile accesses.
// Grid: any, cooperative; block: 64. The flags are 0 before.

#include "ptx.cuh"

constexpr int kThreads = 64;

extern "C" __global__ void acquire_release(const int* in, int* out, int* flags) {
    const int b = blockIdx.x, t = threadIdx.x;
    int carry = 0;  //~ init: int carry;
    if (b > 0) {
        //~ atomic
        //~ atomic: while (t == 0 && load_acquire(&flags[0]) == 0) {}
        //~ fence: while (t == 0 && load_relaxed(&flags[b - 1]) == 0) {}
        while (t == 0 && load_acquire(&flags[b - 1]) == 0) {}
        __syncthreads();  //~ barrier
        carry = out[(b - 1) * kThreads + kThreads - 1 - t];
    }
    out[b * kThreads + t] = carry + in[b * kThreads + t];
    __syncthreads();  //~ barrier
    //~ atomic
    //~ fence: if (t == 0) store_relaxed(&flags[b], 1);
    if (t == 0) store_release(&flags[b], 1);
}

extern "C" __global__ void fences(const int* in, int* out, int* flags) {
    const int b = blockIdx.x, t = threadIdx.x;
    int carry = 0;  //~ init: int carry;
    if (b > 0) {
        const volatile int* flag = &flags[b - 1];  //~ atomic: const int* flag = &flags[b - 1];
        while (t == 0 && *flag == 0) {}            //~ atomic
        __threadfence();                           //~ fence
        __syncthreads();                           //~ barrier
        carry = out[(b - 1) * kThreads + kThreads - 1 - t];
    }
    out[b * kThreads + t] = carry + in[b * kThreads + t];
    __syncthreads();  //~ barrier
    if (t == 0) {
        __threadfence();  //~ fence
        //~ atomic: flags[b] = 1;
        atomicExch(&flags[b], 1);  //~ atomic
    }
}

// The same along the warps of a block, through shared memory.
// Grid: 1; block: a multiple of 32 up to 128.

extern "C" __global__ void warps(const int* in, int* out) {
    __shared__ int sums[4][32], flags[4];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane == 0) flags[warp] = 0;  //~ init
    __syncthreads();                 //~ barrier
    int carry = 0;                   //~ init: int carry;
    if (warp > 0) {
        //~ atomic: const int* flag = &flags[warp - 1];
        const volatile int* flag = &flags[warp - 1];
        while (lane == 0 && *flag == 0) {}  //~ atomic
        __threadfence_block();              //~ fence
        __syncwarp();                       //~ warp barrier
        carry = sums[warp - 1][31 - lane];
    }
    sums[warp][lane] = carry + in[threadIdx.x];
    __syncwarp();  //~ warp barrier
    if (lane == 0) {
        __threadfence_block();  //~ fence
        atomicExch(&flags[warp], 1);  //~ atomic: flags[warp] = 1;
    }
    out[threadIdx.x] = sums[warp][lane];
}
