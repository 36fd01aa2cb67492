// Two warps produce rounds of 64 values in two buffers, and two other warps add them up: barriers
// 1 and 2 say that a buffer is full, 3 and 4 that it is empty.
// Grid: 1; block: 128.

#include "ptx.cuh"

constexpr int kThreads = 128, kHalf = kThreads / 2;

extern "C" __global__ void producer_consumer(const int* in, int* out, int rounds) {
    __shared__ int buffer[2][kHalf];
    const int t = threadIdx.x % kHalf;
    if (threadIdx.x < kHalf) {
        for (int round = 0; round < rounds; ++round) {
            const int full = 1 + round % 2, empty = 3 + round % 2;
            if (round >= 2) bar_sync(empty, kThreads);  //~ named barrier
            buffer[round % 2][t] = in[round * kHalf + t];
            bar_arrive(full, kThreads);  //~ named barrier
        }
    } else {
        int sum = 0;  //~ init: int sum;
        for (int round = 0; round < rounds; ++round) {
            const int full = 1 + round % 2, empty = 3 + round % 2;
            bar_sync(full, kThreads);  //~ named barrier
            sum += buffer[round % 2][kHalf - 1 - t];
            if (round + 2 < rounds) bar_arrive(empty, kThreads);  //~ named barrier
        }
        out[t] = sum;
    }
}

// Each half of the block rotates its own values, with a barrier of its own.
// Grid: 1; block: 128.

extern "C" __global__ void halves(const int* in, int* out, int rounds) {
    __shared__ int box[2][kHalf];
    const int t = threadIdx.x % kHalf, half = threadIdx.x / kHalf;
    int value = in[threadIdx.x];
    for (int round = 0; round < rounds + half; ++round) {
        box[half][t] = value;
        bar_sync(1 + half, kHalf);  //~ named barrier //~ named barrier: bar_sync(1, kHalf);
        value = box[half][(t + 33) % kHalf];
        bar_sync(1 + half, kHalf);  //~ named barrier //~ named barrier: bar_sync(1, kHalf);
    }
    out[threadIdx.x] = value;
}
