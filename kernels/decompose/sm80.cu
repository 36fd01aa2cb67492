// decompose: how far a weight has moved, in magnitude and in direction.
//
//   ΔM = mean over n of |‖t_n‖ − ‖w_n‖|,   ΔD = mean over n of 1 − cos(t_n, w_n)
//
// with w_n, t_n the columns (axis input) or rows (axis output) of W and of W + D, where
//   D = W_t − W for two dense weights, or (g − 1)∘W + g∘(s·B·A) for an adapter: W_t is not formed.
// Shapes, row-major: W, W_t [O,I] of any two dtypes; A [r,I], B [O,r], g [I] or [O] f32; the result
// [2] f64, ΔM and ΔD, `=`. A feature without a direction, w_n or t_n being 0, adds 0 to ΔD.
// Nothing cancels: with a = Σw², b = Σw·d and e = Σd² of a feature, all in f64 except s·B·A,
//   ‖t‖² = a + 2b + e,   ‖t‖ − ‖w‖ = (2b + e)/(‖t‖ + ‖w‖),
//   sin² = (e − b²/a)/‖t‖²,   1 − cos = sin²/(1 + cos).
// Launch: grid (strips of 64 features, splits of the summed axis), block 128. The last split of a
// strip completes its features, the last strip the means, each in order.
// Formulas: DoRA (arXiv:2402.09353) §3.2, eqs. 3 and 4.

#include "common/dora/low_rank.cuh"
#include "common/schedule/reduce.cuh"
#include "decompose/params.cuh"

constexpr int kQuads = kTile / 4;             // of a row of a tile
constexpr int kRowStep = kThreads / kQuads;   // rows that a CTA visits at a time
constexpr int kSteps = kTile / kRowStep;

struct Moments {
    double of[kMoments] = {};

    __device__ __forceinline__ void add(double w, double d) {
        of[0] = fma(w, w, of[0]);
        of[1] = fma(w, d, of[1]);
        of[2] = fma(d, d, of[2]);
    }
};

// Four neighbours of W and of D.
struct Change {
    double w[4], d[4];
};

// MATRIX: Weight<T>, or a Matrix.
template <typename MATRIX>
__device__ __forceinline__ void load_doubles(bool aligned, const MATRIX& matrix, int row, int col,
                                             double (&out)[4]) {
    const auto quad = aligned ? load_quad<true>(matrix, row, col)
                              : load_quad<false>(matrix, row, col);
#pragma unroll
    for (int e = 0; e < 4; ++e) out[e] = to_float(quad.values[e]);
}

template <typename T>
__device__ __forceinline__ Matrix<T> changed_of(const DecomposeParams& p) {
    return Matrix<T>::dense(p.changed, p.out_features, p.in_features);
}

// W and D at (row0 + r, col0 + c), zero beyond the matrix.
template <typename T>
__device__ __forceinline__ Change load_change(const DecomposeParams& p,
                                              const LowRankTile& low_rank, int row0, int col0,
                                              int r, int c) {
    const int row = row0 + r, col = col0 + c;
    Change change = {};
    if (row >= p.out_features || col >= p.in_features) return change;
    load_doubles(p.aligned, Weight<T>::of(p.weight, p.out_features, p.in_features), row, col,
                 change.w);
    if (p.changed) {
        // The dtype of W_t is chosen here, that of W by the entry point.
        switch (p.changed_dtype) {
            case 0: load_doubles(p.aligned, changed_of<bf16>(p), row, col, change.d); break;
            case 1: load_doubles(p.aligned, changed_of<f16>(p), row, col, change.d); break;
            default: load_doubles(p.aligned, changed_of<float>(p), row, col, change.d);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) change.d[e] -= change.w[e];
        return change;
    }
    const Quad<float> gains =
        p.aligned ? load_gains<true>(p.gain, p.gain_on_input, row, col, p.in_features)
                  : load_gains<false>(p.gain, p.gain_on_input, row, col, p.in_features);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        const double g = gains.values[e];
        change.d[e] = fma(g - 1.0, change.w[e], g * *low_rank.at(r, c + e));
    }
    return change;
}

// The moments of the strip's features over this CTA's split, into totals.
template <bool ON_INPUT, typename T>
__device__ __forceinline__ void strip_moments(const DecomposeParams& p, unsigned char* shared,
                                              double (&totals)[kTile][kMoments]) {
    // A thread has four columns of every eighth row: four features, or eight.
    constexpr int kFeatures = ON_INPUT ? 4 : kSteps, kUnroll = ON_INPUT ? 1 : kSteps;
    const Factors factors = factors_of(p);
    const LowRankTile low_rank{shared};
    const int first = blockIdx.y * p.split_tiles * kTile;
    const int end = min(ON_INPUT ? p.out_features : p.in_features, first + p.split_tiles * kTile);
    const int r0 = threadIdx.x / kQuads, c = threadIdx.x % kQuads * 4;
    Moments moments[kFeatures];
    for (int along = first; along < end; along += kTile) {
        const int row0 = ON_INPUT ? along : blockIdx.x * kTile;
        const int col0 = ON_INPUT ? blockIdx.x * kTile : along;
        if (!p.changed) low_rank.compute(factors, p.scaling, row0, col0);
#pragma unroll kUnroll
        for (int i = 0; i < kSteps; ++i) {
            const Change change = load_change<T>(p, low_rank, row0, col0, r0 + i * kRowStep, c);
#pragma unroll
            for (int e = 0; e < 4; ++e) moments[ON_INPUT ? e : i].add(change.w[e], change.d[e]);
        }
    }
    // Lanes that hold the same features: those of one column, or those of one row.
    constexpr int kFirst = ON_INPUT ? kQuads : 1, kLast = ON_INPUT ? kWarpSize / 2 : kQuads / 2;
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    double(*across)[kTile][kMoments] = reinterpret_cast<double(*)[kTile][kMoments]>(shared);
    __syncthreads();
#pragma unroll
    for (int f = 0; f < kFeatures; ++f) {
#pragma unroll
        for (int m = 0; m < kMoments; ++m) {
            double sum = moments[f].of[m];
#pragma unroll
            for (int mask = kFirst; mask <= kLast; mask *= 2) sum += shfl_xor(sum, mask);
            if (ON_INPUT && lane < kQuads) across[warp][c + f][m] = sum;
            if (!ON_INPUT && c == 0) totals[r0 + f * kRowStep][m] = sum;
        }
    }
    __syncthreads();
    if (ON_INPUT && threadIdx.x < kTile) {
#pragma unroll
        for (int m = 0; m < kMoments; ++m) {
            double sum = 0.0;
            for (int w = 0; w < kWarps; ++w) sum += across[w][threadIdx.x][m];
            totals[threadIdx.x][m] = sum;
        }
    }
}

// 0 for what rounding made negative; NaN stays, which fmax would drop.
__device__ __forceinline__ double not_negative(double v) { return v < 0.0 ? 0.0 : v; }

// |‖t‖ − ‖w‖| and 1 − cos of one feature.
__device__ __forceinline__ void finish_feature(double a, double b, double e, double& magnitude,
                                               double& direction) {
    const double square = not_negative(a + (2.0 * b + e));
    const double norm_w = sqrt(a), norm_t = sqrt(square), both = norm_w + norm_t;
    magnitude = both == 0.0 ? 0.0 : fabs((2.0 * b + e) / both);
    direction = 0.0;
    if (a == 0.0 || square == 0.0) return;
    const double cosine = (a + b) / (norm_w * norm_t);
    const double sine_square = not_negative(e - b / a * b) / square;
    direction = cosine > 0.0 ? sine_square / (1.0 + cosine) : 1.0 - cosine;
}

template <typename T>
__device__ __forceinline__ void decompose(const DecomposeParams& p, unsigned char* shared,
                                          double (&totals)[kTile][kMoments], u32* flag) {
    const int features = p.on_input ? p.in_features : p.out_features;
    const int feature = blockIdx.x * kTile + threadIdx.x;
    const bool owns = threadIdx.x < kTile && feature < features;
    p.on_input ? strip_moments<true, T>(p, shared, totals)
               : strip_moments<false, T>(p, shared, totals);
    const i64 stride = i64(features) * kMoments;
    if (owns) {
        double* partial = p.partials + blockIdx.y * stride + i64(feature) * kMoments;
#pragma unroll
        for (int m = 0; m < kMoments; ++m) partial[m] = totals[threadIdx.x][m];
    }
    if (!arrive_last(p.strip_counters + blockIdx.x, gridDim.y, flag)) return;

    double magnitude = 0.0, direction = 0.0;
    if (owns) {
        const double* partial = p.partials + i64(feature) * kMoments;
        finish_feature(ordered_sum(partial, gridDim.y, stride),
                       ordered_sum(partial + 1, gridDim.y, stride),
                       ordered_sum(partial + 2, gridDim.y, stride), magnitude, direction);
    }
    double* across = reinterpret_cast<double*>(shared);
    magnitude = block_sum(magnitude, across);
    direction = block_sum(direction, across);
    if (threadIdx.x == 0) {
        p.strip_sums[2 * blockIdx.x] = magnitude;
        p.strip_sums[2 * blockIdx.x + 1] = direction;
    }
    if (!arrive_last(p.counter, gridDim.x, flag)) return;
    if (threadIdx.x < 2) {
        p.result[threadIdx.x] = ordered_sum(p.strip_sums + threadIdx.x, gridDim.x, 2) / features;
    }
}

#define FUSED_DORA_DECOMPOSE(NAME, T)                                                           \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        decompose_##NAME(const __grid_constant__ DecomposeParams p) {                           \
        __shared__ __align__(128) unsigned char shared[LowRankTile::kBytes];                    \
        __shared__ double totals[kTile][kMoments];                                              \
        __shared__ u32 flag;                                                                    \
        static_assert(LowRankTile::kBytes >= kWarps * sizeof(totals), "a copy per warp fits");  \
        decompose<T>(p, shared, totals, &flag);                                                 \
    }

FUSED_DORA_ENTRIES(FUSED_DORA_DECOMPOSE)
