// Lanes of a warp exchange values through shared memory, in a pattern that shifts every round.
// Grid: 1; block: a multiple of 32 up to 128.

extern "C" __global__ void exchange(const int* in, int* out, int rounds) {
    __shared__ int box[4][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int value = in[threadIdx.x];
    for (int round = 0; round < rounds; ++round) {
        box[warp][lane] = value;
        __syncwarp();  //~ warp barrier
        value += box[warp][(lane + round + 1) % 32];
        __syncwarp();  //~ warp barrier
    }
    out[threadIdx.x] = value;
}

// Each warp's smallest value by a tree in shared memory, as reductions end.
// Grid: 1; block: a multiple of 32 up to 128.

extern "C" __global__ void smallest(const int* in, int* out) {
    __shared__ int box[4][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    box[warp][lane] = in[threadIdx.x];
    __syncwarp();  //~ warp barrier
    for (int half = 16; half > 0; half /= 2) {
        //~ bounds: box[warp][lane] = min(box[warp][lane], box[warp][lane + half]);
        if (lane < half) box[warp][lane] = min(box[warp][lane], box[warp][lane + half]);
        __syncwarp();  //~ warp barrier
    }
    if (lane == 0) out[warp] = box[warp][0];
}
