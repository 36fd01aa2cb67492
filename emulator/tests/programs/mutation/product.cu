// C = A·Bᵀ for row-major bf16 A [m, k] and B [n, k], C [m, n] f32 on tensor cores: a block has two
// warps, each with a tile of 16×8.
// Grid: (ceil(m / 16)) * ceil(n / 16); block: 64.

#include "ptx.cuh"

constexpr int kTile = 16;
constexpr int kPitch = kTile + 8;  //~ alignment: constexpr int kPitch = kTile + 4;

extern "C" __global__ void product(const u16* a, const u16* b, float* c, int m, int n, int k) {
    __shared__ __align__(16) u16 tile_a[kTile][kPitch], tile_b[kTile][kPitch];
    const int across = (n + kTile - 1) / kTile;
    const int m0 = blockIdx.x / across * kTile, n0 = blockIdx.x % across * kTile;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float acc[4] = {};  //~ init: float acc[4];
    for (int k0 = 0; k0 < k; k0 += kTile) {
        for (int i = threadIdx.x; i < kTile * kTile; i += 64) {
            const int r = i / kTile, c = i % kTile, row = m0 + r, col = n0 + r, depth = k0 + c;
            //~ bounds: tile_a[r][c] = depth < k ? a[row * k + depth] : 0;
            //~ bounds: tile_a[r][c] = row < m ? a[row * k + depth] : 0;
            //~ init: if (row < m && depth < k) tile_a[r][c] = a[row * k + depth];
            tile_a[r][c] = row < m && depth < k ? a[row * k + depth] : 0;
            //~ bounds: tile_b[r][c] = depth < k ? b[col * k + depth] : 0;
            //~ bounds: tile_b[r][c] = col < n ? b[col * k + depth] : 0;
            //~ init: if (col < n && depth < k) tile_b[r][c] = b[col * k + depth];
            tile_b[r][c] = col < n && depth < k ? b[col * k + depth] : 0;
        }
        __syncthreads();  //~ barrier
        u32 fragment_a[4], fragment_b[2];
        ldmatrix_x4(fragment_a, &tile_a[lane % 16][lane / 16 * 8]);
        ldmatrix_x2(fragment_b, &tile_b[warp * 8 + lane % 8][lane / 8 % 2 * 8]);
        mma_m16n8k16_bf16(acc, fragment_a, fragment_b);
        __syncthreads();  //~ barrier
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = m0 + lane / 4 + i / 2 * 8, col = n0 + warp * 8 + lane % 4 * 2 + i % 2;
        //~ bounds: if (col < n) c[row * n + col] = acc[i];
        //~ bounds: if (row < m) c[row * n + col] = acc[i];
        if (row < m && col < n) c[row * n + col] = acc[i];
    }
}
