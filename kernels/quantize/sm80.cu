// quantize: W packed to codes and scales, and dequantize: W back from them.
//
//   NF4, FP4    absmax = max|w| of a block of the flattened W, code = cut(w·(1/absmax))
//   nested      offset = mean(absmax), nested_absmax = max|absmax − offset| of 256 blocks,
//               code = place in the map of (absmax − offset)·(1/nested_absmax)
//   int8        SCB = max|f16(w)| of a row, q = rint(f16(w)·(127/SCB)), 0 if SCB is 0
//   fp8         scale = max|w|/448 of a region, 1 if that is 0; q = e4m3(w/scale)
//   dequantize  W = round_T(round_S(formula)), see common/tile/packed_weight.cuh
//
// Shapes, row-major: W [O,I] of T; everything else as its checkpoint has it (docs/qdora.md). All
// outputs `=`. Divisions and reciprocals are rounded to nearest: the host (src/quant) and every GPU
// give the same bits. bitsandbytes' CUDA kernels approximate them. A block of zeros has
// 1/absmax = ∞ and the code of NaN, which is 0.
// Launch: block 128. quantize_code4: a warp per block of W. quantize_regions: a CTA per row or
// region. quantize_largest: some CTAs, whose last one finishes. quantize_mean, quantize_scales: a
// CTA per 256 blocks. dequantize: CTAs (x: rows, y: columns) of chunks.
// Formats: bitsandbytes (github.com/bitsandbytes-foundation/bitsandbytes), QLoRA
// (arXiv:2305.14314), e4m3 (arXiv:2209.05433).

#ifndef FUSED_DORA_PACKED
#error "these kernels are about packed weights alone"
#endif

#include "common/schedule/reduce.cuh"
#include "quantize/params.cuh"

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) v = fmaxf(v, shfl_xor(v, mask));
    return v;
}

// The largest of the CTA's, in every thread. `across` is a float per warp.
__device__ __forceinline__ float block_max(float v, float* across) {
    v = warp_max(v);
    __syncthreads();  // the previous one has been read
    if (threadIdx.x % kWarpSize == 0) across[threadIdx.x / kWarpSize] = v;
    __syncthreads();
    v = across[0];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) v = fmaxf(v, across[warp]);
    return v;
}

// The cuts of 4-bit codes, in registers.
struct Cuts {
    bool is_nf4;
    float nf4[15];

    __device__ __forceinline__ explicit Cuts(Packing packing) : is_nf4(packing == Packing::kNf4) {
#pragma unroll
        for (int i = 0; i < 15; ++i) nf4[i] = (kCodes4[0][i] + kCodes4[0][i + 1]) * 0.5f;
    }

    // NaN is above no cut.
    __device__ __forceinline__ u32 code(float v) const {
        u32 above = 0;
        if (is_nf4) {
#pragma unroll
            for (int i = 0; i < 15; ++i) above += v > nf4[i];
            return above;
        }
        // bitsandbytes' cuts, which are not the middles of its code, and the codes between them.
        constexpr float kCuts[7] = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f,
                                    0.4166667f,  0.583333f,  0.8333333f};
        constexpr u32 kBySize = 0x32547610u;
#pragma unroll
        for (int i = 0; i < 7; ++i) above += fabsf(v) > kCuts[i];
        return (kBySize >> 4 * above & 7) + (v < 0.0f ? 8 : 0);
    }
};

template <typename T>
__device__ __forceinline__ void quantize_code4(const QuantizeParams& p) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const T* source = static_cast<const T*>(p.source);
    const i64 count = i64(p.rows) * p.cols, length = i64(1) << p.block_shift;
    const Cuts cuts(p.packing);
    const i64 step = i64(gridDim.x) * kWarps * length;
    for (i64 first = (i64(blockIdx.x) * kWarps + warp) * length; first < count; first += step) {
        const i64 end = min(first + length, count);
        float most = 0.0f;
        for (i64 e = first + lane; e < end; e += kWarpSize) {
            most = fmaxf(most, fabsf(to_float(source[e])));
        }
        most = warp_max(most);
        if (lane == 0) p.scales[first >> p.block_shift] = most;
        const float factor = __frcp_rn(most);
        // A byte: two elements. What is not there is 0.
        for (i64 e = first + 2 * lane; e < end; e += 2 * kWarpSize) {
            const float low = e + 1 < end ? to_float(source[e + 1]) : 0.0f;
            const u32 high_code = cuts.code(__fmul_rn(to_float(source[e]), factor));
            p.codes[e / 2] = high_code << 4 | cuts.code(__fmul_rn(low, factor));
        }
    }
}

// The sum of 256 blocks' scales, and with the last one their mean.
__device__ __forceinline__ void quantize_mean(const QuantizeParams& p, double* across, u32* flag) {
    double sum = 0.0;
#pragma unroll
    for (int half = 0; half < kNestedBlock; half += kThreads) {
        const i64 block = i64(blockIdx.x) * kNestedBlock + half + threadIdx.x;
        if (block < p.scale_count) sum += p.scales[block];
    }
    sum = block_sum(sum, across);
    if (threadIdx.x == 0) p.sums[blockIdx.x] = sum;
    if (!arrive_last(p.counter, gridDim.x, flag)) return;
    if (threadIdx.x == 0) {
        *p.mean = float(ordered_sum(p.sums, gridDim.x, 1) / double(p.scale_count));
    }
}

// The place of a number from −1 to 1 in the map, as bitsandbytes searches it.
__device__ __forceinline__ u32 place_in_map(const float* map, float v) {
    int pivot = 127, above = 255, below = 0;
#pragma unroll
    for (int step = 64; step > 0; step /= 2) {
        if (v > map[pivot]) {
            below = pivot;
            pivot += step;
        } else {
            above = pivot;
            pivot -= step;
        }
    }
    const float here = map[pivot];
    if (v > here) return v > __fmul_rn(map[above] + here, 0.5f) ? above : pivot;
    return v < __fmul_rn(map[below] + here, 0.5f) ? below : pivot;
}

__device__ __forceinline__ void quantize_scales(const QuantizeParams& p, float* across) {
    const float offset = p.mean ? *p.mean : p.offset;
    constexpr int kPerThread = kNestedBlock / kThreads;
    const i64 first = i64(blockIdx.x) * kNestedBlock + threadIdx.x;
    float rest[kPerThread], most = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
        const i64 block = first + i * kThreads;
        rest[i] = block < p.scale_count ? p.scales[block] - offset : 0.0f;
        most = fmaxf(most, fabsf(rest[i]));
    }
    most = block_max(most, across);
    if (threadIdx.x == 0) p.nested_absmax[blockIdx.x] = most;
    const float factor = __frcp_rn(most);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
        const i64 block = first + i * kThreads;
        if (block < p.scale_count) {
            p.nested_codes[block] = place_in_map(p.map, __fmul_rn(rest[i], factor));
        }
    }
}

constexpr float kMaxFp8 = 448.0f;

__device__ __forceinline__ float fp8_scale(float most) {
    return most == 0.0f ? 1.0f : __fdiv_rn(most, kMaxFp8);
}

// The fp8 e4m3 code nearest to a finite number, ties to even; beyond ±448, that of ±448.
__device__ __forceinline__ u32 fp8_code(float v) {
    const float size = fminf(fabsf(v), kMaxFp8);
    const int exponent = max(int(__float_as_uint(size) >> 23) - 127, -6);
    // A power of two has eight units of the last place.
    const float unit = __uint_as_float(u32(3 - exponent + 127) << 23);
    const int units = __float2int_rn(__fmul_rn(size, unit));
    return (__float_as_uint(v) >> 24 & 0x80) | (8 * (exponent + 6) + units);
}

// Largest magnitude of all of W, and the scale of it.
template <typename T>
__device__ __forceinline__ void quantize_largest(const QuantizeParams& p, float* across,
                                                 u32* flag) {
    const T* source = static_cast<const T*>(p.source);
    const i64 count = i64(p.rows) * p.cols, step = i64(gridDim.x) * kThreads;
    float most = 0.0f;
    for (i64 e = i64(blockIdx.x) * kThreads + threadIdx.x; e < count; e += step) {
        most = fmaxf(most, fabsf(to_float(source[e])));
    }
    most = block_max(most, across);
    if (threadIdx.x == 0) p.largest[blockIdx.x] = most;
    if (!arrive_last(p.counter, gridDim.x, flag)) return;
    for (int cta = threadIdx.x; cta < int(gridDim.x); cta += kThreads) {
        most = fmaxf(most, __ldcg(p.largest + cta));
    }
    most = block_max(most, across);
    if (threadIdx.x == 0) p.scales[0] = fp8_scale(most);
}

template <typename T>
__device__ __forceinline__ void quantize_regions(const QuantizeParams& p, float* across) {
    const T* source = static_cast<const T*>(p.source);
    const bool is_int8 = p.packing == Packing::kInt8;
    const auto element = [&](i64 at) {
        const float v = to_float(source[at]);
        return is_int8 ? to_float(from_float<f16>(v)) : v;
    };
    const int regions_n = ceil_div(p.cols, p.region_cols);
    const i64 regions = i64(regions_n) * ceil_div(p.rows, p.region_rows);
    for (i64 region = blockIdx.x; region < regions; region += gridDim.x) {
        const int row0 = int(region / regions_n) * p.region_rows;
        const int col0 = int(region % regions_n) * p.region_cols;
        const int last_row = min(row0 + p.region_rows, p.rows);
        const int last_col = min(col0 + p.region_cols, p.cols);
        float scale;
        if (p.one_scale) {
            scale = p.scales[0];
        } else {
            float most = 0.0f;
            for (int row = row0; row < last_row; ++row) {
                for (int col = col0 + threadIdx.x; col < last_col; col += kThreads) {
                    most = fmaxf(most, fabsf(element(i64(row) * p.cols + col)));
                }
            }
            most = block_max(most, across);
            scale = is_int8 ? most : fp8_scale(most);
            if (threadIdx.x == 0) p.scales[region] = scale;
        }
        const float factor = scale == 0.0f ? 0.0f : __fdiv_rn(127.0f, scale);
        for (int row = row0; row < last_row; ++row) {
            for (int col = col0 + threadIdx.x; col < last_col; col += kThreads) {
                const i64 at = i64(row) * p.cols + col;
                const float v = element(at);
                p.codes[at] = is_int8 ? u32(__float2int_rn(__fmul_rn(v, factor)))
                                      : fp8_code(__fdiv_rn(v, scale));
            }
        }
    }
}

template <typename T>
__device__ __forceinline__ void dequantize(const DequantizeParams& p) {
    const auto weight = Weight<T>::of(p.weight, p.rows, p.cols);
    T* const target = static_cast<T*>(p.target);
    const int step = gridDim.y * kThreads * kVector<T>;
    for (int row = blockIdx.x; row < p.rows; row += gridDim.x) {
        for (int col = (blockIdx.y * kThreads + threadIdx.x) * kVector<T>; col < p.cols;
             col += step) {
            const Vector<T> chunk = p.aligned ? load_chunk<true>(weight, row, col)
                                              : load_chunk<false>(weight, row, col);
            store_chunk(p.aligned, target, p.rows, p.cols, p.cols, row, col, chunk);
        }
    }
}

#define FUSED_DORA_QUANTIZE(NAME, T)                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        quantize_code4_##NAME(const __grid_constant__ QuantizeParams p) {                       \
        quantize_code4<T>(p);                                                                   \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        quantize_mean_##NAME(const __grid_constant__ QuantizeParams p) {                        \
        __shared__ double across[kWarps];                                                       \
        __shared__ u32 flag;                                                                    \
        quantize_mean(p, across, &flag);                                                        \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        quantize_scales_##NAME(const __grid_constant__ QuantizeParams p) {                      \
        __shared__ float across[kWarps];                                                        \
        quantize_scales(p, across);                                                             \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        quantize_largest_##NAME(const __grid_constant__ QuantizeParams p) {                     \
        __shared__ float across[kWarps];                                                        \
        __shared__ u32 flag;                                                                    \
        quantize_largest<T>(p, across, &flag);                                                  \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(kThreads, 8)                                   \
        quantize_regions_##NAME(const __grid_constant__ QuantizeParams p) {                     \
        __shared__ float across[kWarps];                                                        \
        quantize_regions<T>(p, across);                                                         \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        dequantize_##NAME(const __grid_constant__ DequantizeParams p) {                         \
        dequantize<T>(p);                                                                       \
    }

FUSED_DORA_ENTRIES(FUSED_DORA_QUANTIZE)
