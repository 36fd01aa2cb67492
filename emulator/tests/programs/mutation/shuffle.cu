// out[w] = the sum of warp w's values; the last warp has fewer than 32.
// Grid: 1; block: n rounded up to 32.

extern "C" __global__ void warp_sums(const int* in, int* out, int n) {
    const int i = threadIdx.x, lane = i % 32;
    const unsigned all = 0xffffffffu;
    const unsigned members = __ballot_sync(all, i < n);  //~ mask: const unsigned members = all;
    const int count = __popc(members);
    if (i >= n) return;  //~ bounds
    int sum = in[i];
    for (int offset = 16; offset > 0; offset /= 2) {
        const int other = __shfl_down_sync(members, sum, offset);
        if (lane + offset < count) sum += other;  //~ bounds: sum += other;
    }
    if (lane == 0) out[i / 32] = sum;  //~ bounds: out[i / 32] = sum;
}

// Even lanes get the sum over the warp's even lanes, odd ones the largest of the odd ones.
// Grid: 1; block: a multiple of 32.

extern "C" __global__ void even_and_odd(const int* in, int* out) {
    const unsigned even = 0x55555555u, odd = 0xaaaaaaaau, all = 0xffffffffu;
    int value = in[threadIdx.x];
    if (threadIdx.x % 2 == 0) {
        for (int step = 2; step < 32; step *= 2) {
            //~ mask: value += __shfl_xor_sync(all, value, step);
            value += __shfl_xor_sync(even, value, step);
        }
    } else {
        for (int step = 2; step < 32; step *= 2) {
            //~ mask: value = max(value, __shfl_xor_sync(all, value, step));
            value = max(value, __shfl_xor_sync(odd, value, step));
        }
    }
    __syncwarp(all);
    out[threadIdx.x] = value;
}
