// out[c] = Σ over rows of in[row][c]: every block sums kRows rows, and the block that arrives last
// adds the partial sums up. `counter` is 0 before and after.
// Grid: ceil(rows / kRows); block: kCols.

constexpr int kCols = 64, kRows = 5;

extern "C" __global__ void column_sums(const float* in, float* partial, unsigned* counter,
                                       float* out, int rows) {
    __shared__ bool last;
    const int t = threadIdx.x;
    float sum = 0.0f;  //~ init: float sum;
    for (int r = 0; r < kRows; ++r) {
        const int row = blockIdx.x * kRows + r;
        if (row < rows) sum += in[row * kCols + t];  //~ bounds: sum += in[row * kCols + t];
    }
    partial[blockIdx.x * kCols + t] = sum;
    __syncthreads();  //~ barrier
    if (t == 0) {  //~ bounds: {
        __threadfence();  //~ fence
        //~ atomic: last = (*counter)++ == gridDim.x - 1;
        last = atomicAdd(counter, 1) == gridDim.x - 1;
        __threadfence();  //~ fence
    }
    __syncthreads();  //~ barrier
    if (!last) return;  //~ bounds
    float total = 0.0f;  //~ init: float total;
    for (unsigned b = 0; b < gridDim.x; ++b) total += partial[b * kCols + t];
    out[t] = total;
    if (t == 0) *counter = 0;  //~ reset
}
