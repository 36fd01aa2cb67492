// The kLargest largest values of each thread's column, sorted, in an array in local memory; 0
// where a column has fewer. Columns are as long as `lengths` says.
// Grid: ceil(cols / 32); block: 32.

constexpr int kLargest = 5;

extern "C" __global__ void largest(const int* in, const int* lengths, int* out, int cols) {
    const int col = blockIdx.x * 32 + threadIdx.x;
    if (col >= cols) return;  //~ bounds
    int best[kLargest];
    for (int k = 0; k < kLargest; ++k) best[k] = 0;  //~ init
    const int rows = lengths[col];
    for (int row = 0; row < rows; ++row) {
        const int value = in[row * cols + col];
        int at = kLargest;
        //~ bounds: while (best[at - 1] < value) {
        while (at > 0 && best[at - 1] < value) {
            if (at < kLargest) best[at] = best[at - 1];  //~ bounds: best[at] = best[at - 1];
            --at;
        }
        if (at < kLargest) best[at] = value;  //~ bounds: best[at] = value;
    }
    for (int k = 0; k < kLargest; ++k) out[k * cols + col] = best[k];
}

// How often each of kClasses classes occurs in a thread's values, read by a dynamic index.
// Grid: 1; block: 32.

constexpr int kClasses = 6;

extern "C" __global__ void classes(const int* in, const int* wanted, int* out, int rows) {
    int counts[kClasses] = {};  //~ init: int counts[kClasses];
    for (int row = 0; row < rows; ++row) ++counts[in[row * 32 + threadIdx.x]];
    out[threadIdx.x] = counts[wanted[threadIdx.x]];
}
