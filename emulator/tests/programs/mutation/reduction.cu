// out[b] = the sum of block b's chunk of `in`: registers first, then a tree in shared memory.
// Grid: ceil(n / (kThreads * kItems)); block: kThreads.

constexpr int kThreads = 128, kItems = 3;

extern "C" __global__ void reduce(const float* in, float* out, int n) {
    __shared__ float partial[kThreads];
    const int t = threadIdx.x;
    float sum = 0.0f;  //~ init: float sum;
    for (int item = 0; item < kItems; ++item) {
        const int i = (blockIdx.x * kItems + item) * kThreads + t;
        if (i < n) sum += in[i];  //~ bounds: sum += in[i];
    }
    partial[t] = sum;
    __syncthreads();  //~ barrier
    for (int half = kThreads / 2; half > 0; half /= 2) {
        //~ bounds: partial[t] += partial[t + half];
        if (t < half) partial[t] += partial[t + half];
        __syncthreads();  //~ barrier
    }
    if (t == 0) out[blockIdx.x] = partial[0];  //~ bounds: out[blockIdx.x] = partial[0];
}
