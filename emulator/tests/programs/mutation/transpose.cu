// out = inᵀ for a row-major matrix, by tiles in shared memory. A block takes several tiles.
// Grid: any; block: 256.

constexpr int kTile = 32, kLines = 8;

extern "C" __global__ void transpose(const float* in, float* out, int rows, int cols) {
    __shared__ float tile[kTile][kTile + 1];
    const int x = threadIdx.x % kTile;
    const int across = (cols + kTile - 1) / kTile, down = (rows + kTile - 1) / kTile;
    for (int index = blockIdx.x; index < across * down; index += gridDim.x) {
        const int row0 = index / across * kTile, col0 = index % across * kTile;
        for (int y = threadIdx.x / kTile; y < kTile; y += kLines) {
            const int row = row0 + y, col = col0 + x;
            //~ bounds: if (col < cols) tile[y][x] = in[row * cols + col];
            //~ bounds: if (row < rows) tile[y][x] = in[row * cols + col];
            if (row < rows && col < cols) tile[y][x] = in[row * cols + col];
        }
        __syncthreads();  //~ barrier
        for (int y = threadIdx.x / kTile; y < kTile; y += kLines) {
            const int row = row0 + x, col = col0 + y;
            //~ bounds: if (col < cols) out[col * rows + row] = tile[x][y];
            //~ bounds: if (row < rows) out[col * rows + row] = tile[x][y];
            if (row < rows && col < cols) out[col * rows + row] = tile[x][y];
        }
        __syncthreads();  //~ barrier
    }
}
