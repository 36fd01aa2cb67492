// prepare: what the other ops need of an adapter. One launch for each change of A, B or m.
//
//   V = W + s·B·A,   c = ‖V‖ over the norm axis,   g = m/c (0 where c = 0)
//   a = A, sb = s·B, gsb = g∘(s·B) (axis output), rounded to T, rank zero-padded to R
//   packed_bias = b rounded to T, where the bias is trained
//   f16: gsb·2ᵏ, and for P and D balanced_sb = s·B·2ᵏ (no gsb) and balanced_a = A·2⁻ᵏ
//
// Shapes, row-major: W [O,I] of T; A [r,I], B [O,r], m, b [O] f32; c, g f32 [I] (axis input) or [O]
// (axis output); a [R,I], sb and gsb [O,R] of T. With `magnitude_out` instead of m, m = c is
// written: a fresh adapter, for which g = 1 exactly. All outputs are written with `=`. Rank 0: V = W.
// If W is one of several shards that a norm sums over, one launch writes the shard's Σ V² to c. When
// the shards' sums have been added up, another launch computes c, g and gsb.
// The norm is direct: the kernel forms a tile of B·A in tensor-core accumulators, adds W, squares,
// and sums in f32. Tensor cores truncate their sums, an error of about 2⁻²³. It would show in a
// feature where W and s·B·A nearly cancel: the kernel sums such a feature again, in twice the
// precision of f32.
// f16 has no normal numbers below 2⁻¹⁴, where B is after the first steps. `prepare_balance_f16` takes
// k from the largest |s·B| first: grid as many CTAs as there are 2048 elements of B, block 128.
// Launch: grid (strips of 64 along the norm's feature, splits of the summed one), block 128. The
// last split of a strip adds the partial sums in order. Without a norm (plain LoRA) it only packs.
// Formulas: DoRA (arXiv:2402.09353) eq. 5.

#include "common/dora/low_rank.cuh"
#include "common/schedule/reduce.cuh"
#include "common/tile/pipeline.cuh"
#include "prepare/params.cuh"

template <typename T>
struct Shared {
    static constexpr int kStages = kIsFloat<T> ? 2 : 3;
    using WeightTile = SharedTile<T, kStrip, kStrip>;
    static constexpr int kBytes = kStages * WeightTile::kBytes + 2 * FactorTile::kBytes;

    unsigned char* memory;

    __device__ __forceinline__ WeightTile weight(int stage) const {
        return WeightTile(memory + stage * WeightTile::kBytes);
    }
    __device__ __forceinline__ FactorTile b() const { return FactorTile(weight(kStages).data); }
    __device__ __forceinline__ FactorTile a() const {
        return FactorTile(b().data + FactorTile::kRows * FactorTile::kCols);
    }
};

__device__ __forceinline__ Balance balance_of(const PrepareParams& p) {
    return p.balance ? *p.balance : Balance{1.0f, 1.0f};
}

// Takes k from the largest |s·B|, in all CTAs of a launch of its own.
__device__ __forceinline__ void find_balance(const PrepareParams& p) {
    __shared__ u32 across[kWarps];
    u32 largest = 0;  // the bits of an f32 that is not negative are ordered like the numbers
    const i64 count = i64(p.out_features) * p.rank, stride = i64(gridDim.x) * kThreads;
#pragma unroll 4
    for (i64 i = i64(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
        largest = max(largest, __float_as_uint(fabsf(p.lora_b[i])));
    }
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
        largest = max(largest, shfl_xor(largest, mask));
    }
    if (threadIdx.x % kWarpSize == 0) across[threadIdx.x / kWarpSize] = largest;
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll
        for (int warp = 1; warp < kWarps; ++warp) largest = max(largest, across[warp]);
        atomicMax(p.balance_words, largest);
    }
    if (!arrive_last(p.balance_words + 1, gridDim.x, across) || threadIdx.x != 0) return;
    constexpr int kBias = 127, kMantissa = 23;
    const float sb = fabsf(p.scaling * __uint_as_float(atomicExch(p.balance_words, 0)));
    const int exponent = int(__float_as_uint(sb) >> kMantissa) - kBias;
    const int k = sb == 0.0f ? 0 : min(max(-kBalancedTo - exponent, 0), kMostBalance);
    *p.balance = {__uint_as_float(u32(kBias + k) << kMantissa),
                  __uint_as_float(u32(kBias - k) << kMantissa)};
}

// Writes what does not wait for g: all CTAs share the elements.
template <typename T>
__device__ __forceinline__ void pack(const PrepareParams& p) {
    const i64 cta = i64(blockIdx.y) * gridDim.x + blockIdx.x;
    const i64 first = cta * kThreads + threadIdx.x;
    const i64 stride = i64(gridDim.x) * gridDim.y * kThreads;
    const Balance balance = balance_of(p);
    T* a = static_cast<T*>(p.a);
    T* balanced_a = static_cast<T*>(p.balanced_a);
    for (i64 i = first; i < i64(p.padded_rank) * p.in_features; i += stride) {
        const float value = i < i64(p.rank) * p.in_features ? p.lora_a[i] : 0.0f;
        a[i] = from_float<T>(value);
        if (balanced_a) balanced_a[i] = from_float<T>(balance.down * value);
    }
    T* sb = static_cast<T*>(p.sb);
    T* balanced_sb = static_cast<T*>(p.balanced_sb);
    for (i64 i = first; i < i64(p.out_features) * p.padded_rank; i += stride) {
        const i64 row = i / p.padded_rank;
        const int k = int(i % p.padded_rank);
        const float value = k < p.rank ? p.scaling * p.lora_b[row * p.rank + k] : 0.0f;
        sb[i] = from_float<T>(value);
        if (balanced_sb) balanced_sb[i] = from_float<T>(balance.up * value);
    }
    if (!p.bias) return;
    T* bias = static_cast<T*>(p.packed_bias);
    for (i64 i = first; i < p.out_features; i += stride) bias[i] = from_float<T>(p.bias[i]);
}

// Σ V² and Σ W² over the CTA's split, for the strip's features.
struct SquareSums {
    float v[2][kStrip], w[2][kStrip];  // of the warps that hold the same features
};

template <bool ON_INPUT, typename T>
__device__ __forceinline__ void square_sums(const PrepareParams& p, const Shared<T>& shared,
                                            int first, int end, SquareSums& sums) {
    constexpr int kFeatures = ON_INPUT ? LowRankMma::kCols : LowRankMma::kRows;
    const auto weight = Weight<T>::of(p.weight, p.out_features, p.in_features);
    const int strip0 = blockIdx.x * kStrip;
    const auto row0 = [&](int step) { return ON_INPUT ? first + step * kStrip : strip0; };
    const auto col0 = [&](int step) { return ON_INPUT ? strip0 : first + step * kStrip; };
    float of_v[kFeatures] = {}, of_w[kFeatures] = {};
    pipeline<Shared<T>::kStages>(
        ceil_div(end - first, kStrip),
        [&](int step, int stage) {
            copy_tile_async(p.aligned, shared.weight(stage), weight, row0(step), col0(step));
        },
        [&](int step, int stage) {
            LowRankMma product;
            low_rank_tile<true>(factors_of(p), shared.b(), shared.a(), product, row0(step), col0(step),
                          ON_INPUT || step == 0, !ON_INPUT || step == 0);
#pragma unroll
            for (int i = 0; i < LowRankMma::kRows; ++i) {
#pragma unroll
                for (int j = 0; j < LowRankMma::kCols; j += 2) {
                    struct __align__(2 * sizeof(T)) Pair { T values[2]; };
                    const Pair pair = *reinterpret_cast<const Pair*>(
                        shared.weight(stage).at(LowRankMma::row(i), LowRankMma::col(j)));
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const int feature = ON_INPUT ? j + e : i;
                        const float w = to_float(pair.values[e]);  // zero outside, like B·A
                        const float v = fmaf(p.scaling, product.at(i, j + e), w);
                        of_v[feature] = fmaf(v, v, of_v[feature]);
                        of_w[feature] = fmaf(w, w, of_w[feature]);
                    }
                }
            }
        });
    // Lanes that hold the same features: those of one column, or those of one row.
    constexpr int kFirst = ON_INPUT ? 4 : 1, kLast = ON_INPUT ? 16 : 2;
    const bool writes = ON_INPUT ? LowRankMma::lane() < 4 : LowRankMma::lane() % 4 == 0;
    const int half = ON_INPUT ? LowRankMma::warp_m() : LowRankMma::warp_n();
#pragma unroll
    for (int f = 0; f < kFeatures; ++f) {
#pragma unroll
        for (int mask = kFirst; mask <= kLast; mask *= 2) {
            of_v[f] += shfl_xor(of_v[f], mask);
            of_w[f] += shfl_xor(of_w[f], mask);
        }
        const int feature = ON_INPUT ? LowRankMma::col(f) : LowRankMma::row(f);
        if (writes) {
            sums.v[half][feature] = of_v[f];
            sums.w[half][feature] = of_w[f];
        }
    }
    __syncthreads();
}

// An element of V with B·A in twice the precision of f32: what rounding the products and the sums
// loses is added up separately (T. Ogita, S. Rump, S. Oishi, Accurate sum and dot product, 2005).
__device__ __forceinline__ float careful_value(const PrepareParams& p, float w, int row, int col) {
    float sum = 0.0f, lost = 0.0f;
    for (int k = 0; k < p.rank; ++k) {
        const float b = p.lora_b[i64(row) * p.rank + k];
        const float a = p.lora_a[i64(k) * p.in_features + col];
        const float product = __fmul_rn(b, a);
        const float next = __fadd_rn(sum, product), added = __fsub_rn(next, sum);
        const float lost_sum = __fsub_rn(sum, __fsub_rn(next, added));
        lost += fmaf(b, a, -product) + __fadd_rn(lost_sum, __fsub_rn(product, added));
        sum = next;
    }
    const float scaled = __fmul_rn(p.scaling, sum);
    return __fadd_rn(w, scaled) + fmaf(p.scaling, lost, fmaf(p.scaling, sum, -scaled));
}

// Σ V² of one feature over [begin, end) of the summed axis.
template <typename T>
__device__ __noinline__ float careful_square_sum(const PrepareParams& p, int feature, int begin,
                                                 int end) {
    const auto weight = Weight<T>::of(p.weight, p.out_features, p.in_features);
    float squares = 0.0f;
    for (int along = begin; along < end; ++along) {
        const int row = p.norm_on_input ? along : feature;
        const int col = p.norm_on_input ? feature : along;
        const float v = careful_value(p, to_float(load_element(weight, row, col)), row, col);
        squares = fmaf(v, v, squares);
    }
    return squares;
}

// Σ V² of one feature over this CTA's split, into `partial`, by two threads: each owns a half of
// the sum, if it has to be taken again.
template <typename T>
__device__ __forceinline__ void strip_partials(const PrepareParams& p, const Shared<T>& shared,
                                               float* partial) {
    constexpr float kMostLeft = 1.0f / 16;  // of ‖W‖² where V cancels
    const int features = p.norm_on_input ? p.in_features : p.out_features;
    const int summed = p.norm_on_input ? p.out_features : p.in_features;
    const int first = blockIdx.y * p.split_tiles * kStrip;
    const int end = min(summed, first + p.split_tiles * kStrip);
    SquareSums& sums = *reinterpret_cast<SquareSums*>(shared.memory);  // where W's stages were
    p.norm_on_input ? square_sums<true>(p, shared, first, end, sums)
                    : square_sums<false>(p, shared, first, end, sums);
    const int f = threadIdx.x % kStrip, half = threadIdx.x / kStrip;
    const int feature = blockIdx.x * kStrip + f;
    const bool cancels =
        sums.v[0][f] + sums.v[1][f] < kMostLeft * (sums.w[0][f] + sums.w[1][f]);
    __syncthreads();  // both threads of a feature have looked
    if (cancels) {  // never beyond the last feature, where W is 0
        const int middle = (first + end) / 2;
        sums.v[half][f] = careful_square_sum<T>(p, feature, half == 0 ? first : middle,
                                                half == 0 ? middle : end);
    }
    __syncthreads();
    if (half == 0 && feature < features) partial[feature] = sums.v[0][f] + sums.v[1][f];
}

// c and g of the strip's features from Σ V², which are in c's place, and gsb.
template <typename T>
__device__ __forceinline__ void finish(const PrepareParams& p, const Shared<T>& shared, int feature,
                                       bool owns) {
    float* strip = reinterpret_cast<float*>(shared.memory);
    if (owns) {
        const float c = sqrtf(p.norm[feature]);
        const float m = p.magnitude ? p.magnitude[feature] : c;
        const float g = c > 0.0f ? m / c : 0.0f;
        p.norm[feature] = c;
        p.gain[feature] = g;
        if (p.magnitude_out) p.magnitude_out[feature] = c;
        strip[threadIdx.x] = g;
    }
    if (!p.gsb) return;
    const float up = balance_of(p).up;
    __syncthreads();
    T* gsb = static_cast<T*>(p.gsb);
    const int rows = min(kStrip, p.out_features - int(blockIdx.x) * kStrip);
    for (int i = threadIdx.x; i < rows * p.padded_rank; i += kThreads) {
        const int r = i / p.padded_rank, k = i % p.padded_rank;
        const i64 row = i64(blockIdx.x) * kStrip + r;
        const float b = k < p.rank ? p.scaling * p.lora_b[row * p.rank + k] : 0.0f;
        gsb[row * p.padded_rank + k] = from_float<T>(up * (strip[r] * b));
    }
}

template <typename T>
__device__ __forceinline__ void prepare(const PrepareParams& p, const Shared<T>& shared) {
    const int features = p.norm_on_input ? p.in_features : p.out_features;
    const int feature = blockIdx.x * kStrip + threadIdx.x;
    const bool owns = threadIdx.x < kStrip && feature < features;
    if (p.part == Part::kGains) return finish(p, shared, feature, owns);
    pack<T>(p);
    if (!p.has_norm) return;
    strip_partials(p, shared, p.partials + i64(blockIdx.y) * features);
    u32* flag = reinterpret_cast<u32*>(shared.memory);
    if (!arrive_last(p.counters + blockIdx.x, gridDim.y, flag)) return;
    if (owns) p.norm[feature] = ordered_sum(p.partials + feature, gridDim.y, features);
    if (p.part == Part::kWhole) finish(p, shared, feature, owns);
}

#define FUSED_DORA_PREPARE(NAME, T)                                                             \
    extern "C" __global__ void FUSED_DORA_DECODING_BOUNDS                                       \
        prepare_##NAME(const __grid_constant__ PrepareParams p) {                               \
        __shared__ __align__(128) unsigned char memory[Shared<T>::kBytes];                      \
        prepare<T>(p, {memory});                                                                \
    }                                                                                           \
    FUSED_DORA_IF_##NAME##_IS_f16(FUSED_DORA_PREPARE_BALANCE)

#define FUSED_DORA_PREPARE_BALANCE                                                              \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        prepare_balance_f16(const __grid_constant__ PrepareParams p) {                          \
        find_balance(p);                                                                        \
    }

FUSED_DORA_ENTRIES(FUSED_DORA_PREPARE)
