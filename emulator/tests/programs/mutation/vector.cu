// y = a·x + y over n values, 16 bytes at a time where both start at a 16-byte boundary.
// Grid: ceil(n / (4 * block)).

extern "C" __global__ void axpy(const float* x, float* y, float a, int n, int aligned) {
    const int i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    //~ alignment: if (i + 3 < n) {
    //~ bounds: if (aligned && i < n) {
    if (aligned && i + 3 < n) {
        const float4 v = *reinterpret_cast<const float4*>(x + i);
        float4 w = *reinterpret_cast<const float4*>(y + i);
        w = {a * v.x + w.x, a * v.y + w.y, a * v.z + w.z, a * v.w + w.w};
        *reinterpret_cast<float4*>(y + i) = w;
        return;
    }
    for (int e = i; e < i + 4; ++e) {
        if (e < n) y[e] = a * x[e] + y[e];  //~ bounds: y[e] = a * x[e] + y[e];
    }
}

// Row sums of 32 columns, through shared memory rows that are read 16 bytes at a time.
// Grid: ceil(rows / 32); block: 32.

constexpr int kCols = 32;
constexpr int kPitch = kCols + 4;  //~ alignment: constexpr int kPitch = kCols + 1;

extern "C" __global__ void row_sums(const float* in, float* out, int rows) {
    __shared__ __align__(16) float tile[32 * kPitch];
    const int row0 = blockIdx.x * 32, row = row0 + threadIdx.x;
    for (int r = 0; r < 32 && row0 + r < rows; ++r) {
        tile[r * kPitch + threadIdx.x] = in[(row0 + r) * kCols + threadIdx.x];
    }
    __syncwarp();  //~ warp barrier
    if (row >= rows) return;  //~ bounds
    float sum = 0.0f;         //~ init: float sum;
    for (int c = 0; c < kCols; c += 4) {
        const float4 v = *reinterpret_cast<const float4*>(&tile[threadIdx.x * kPitch + c]);
        sum += v.x + v.y + v.z + v.w;
    }
    out[row] = sum;
}
