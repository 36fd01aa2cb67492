// A few rounds in which every block adds twice the next block's values to its own; all blocks meet
// between rounds.
// Grid: any, cooperative; block: kThreads. `arrived` is 0 before.

constexpr int kThreads = 64;

__device__ __forceinline__ void meet(unsigned* arrived, unsigned expected) {
    __syncthreads();  //~ barrier
    if (threadIdx.x == 0) {
        __threadfence();        //~ fence
        atomicAdd(arrived, 1);  //~ atomic: *arrived += 1;
        //~ atomic
        //~ atomic: while (*arrived < expected) {}
        while (*static_cast<volatile unsigned*>(arrived) < expected) {}
        __threadfence();  //~ fence
    }
    __syncthreads();  //~ barrier
}

extern "C" __global__ void diffuse(const int* in, int* scratch, int* out, unsigned* arrived,
                                   int rounds) {
    const int count = gridDim.x * kThreads, own = blockIdx.x * kThreads + threadIdx.x;
    int value = in[own];
    for (int round = 0; round < rounds; ++round) {
        int* exchange = scratch + round % 2 * count;
        exchange[own] = value;
        meet(arrived, (round + 1) * gridDim.x);  //~ barrier
        value += 2 * exchange[(own + kThreads) % count];
    }
    out[own] = value;
}
