// counts[v] = how often v occurs in `in`: per block in shared memory, then added up.
// Grid: ceil(n / 128); block: 128. `clear` runs before, with one block of kBins.

constexpr int kBins = 48;

extern "C" __global__ void clear(unsigned* counts) {
    counts[threadIdx.x] = 0;  //~ init
}

extern "C" __global__ void histogram(const unsigned* in, unsigned* counts, int n) {
    __shared__ unsigned bins[kBins];
    const int t = threadIdx.x, i = blockIdx.x * 128 + t;
    if (t < kBins) bins[t] = 0;  //~ init //~ bounds: bins[t] = 0;
    __syncthreads();             //~ barrier
    //~ bounds: atomicAdd(&bins[in[i]], 1);
    //~ atomic: if (i < n) bins[in[i]] += 1;
    if (i < n) atomicAdd(&bins[in[i]], 1);
    __syncthreads();  //~ barrier
    //~ bounds: atomicAdd(&counts[t], bins[t]);
    //~ atomic: if (t < kBins) counts[t] += bins[t];
    if (t < kBins) atomicAdd(&counts[t], bins[t]);
}
