// Inclusive prefix sums of up to kThreads values, in place in shared memory.
// Grid: 1; block: kThreads.

constexpr int kThreads = 256;

extern "C" __global__ void prefix_sums(const int* in, int* out, int n) {
    __shared__ int sums[kThreads];
    const int t = threadIdx.x;
    //~ bounds: sums[t] = in[t];
    //~ init: if (t < n) sums[t] = in[t];
    sums[t] = t < n ? in[t] : 0;
    __syncthreads();  //~ barrier
    for (int step = 1; step < kThreads; step *= 2) {
        //~ bounds: const int before = sums[t - step];
        const int before = t >= step ? sums[t - step] : 0;
        __syncthreads();  //~ barrier
        sums[t] += before;
        __syncthreads();  //~ barrier
    }
    if (t < n) out[t] = sums[t];  //~ bounds: out[t] = sums[t];
}
