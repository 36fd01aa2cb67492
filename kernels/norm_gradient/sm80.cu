// norm_gradient: the part of the gradients of A and B that flows through the norm, from the
// accumulated dm, in passes of two launches.
//
//   k = dm·m/c² = dm·g/c (0 where c = 0);   V∘k: k times the columns (axis input) or rows (output)
//   dA −= s·Bᵀ(V∘k)        Bᵀ(V∘k) = (B'ᵀW + s·(B'ᵀB)·A)∘k       B' = k∘B where k is per row
//   dB −= s·(V∘k)Aᵀ        (V∘k)Aᵀ = k∘(W·A'ᵀ + s·B·(A·A'ᵀ))     A' = A∘k where k is per column
//
// k stands in each product once: in B' or A', where its axis is summed over, or else outside.
//   norm_gradient          partial sums of B'ᵀW and W·A'ᵀ from one read of W, of B'ᵀB and of A·A'ᵀ
//   norm_gradient_finish   their sums, the low-rank terms, dA and dB
//
// A pass is for up to 64 ranks and for some rows of W, so that the partial sums take little memory.
// The first pass also makes B'ᵀB and A·A'ᵀ, of all ranks. dB's rows are complete after the pass of
// these rows, and dA after that of the last rows, which adds the low-rank term.
//
// Shapes, row-major: W [O,I] of T; A, dA [r,I], B, dB [O,r], dm, g, c f32; R = rank padded to 16.
// dA and dB are read and written (`−=`). Everything is computed in f32: W enters the tensor cores
// exactly (an f32 as two tf32), A' and B' as two tf32, and long sums are added outside.
// Launch: norm_gradient: grid (strips of I, then, in the first pass, tiles of B'ᵀB and A·A'ᵀ; chunks
// of the pass's rows); norm_gradient_finish: grid (⌈I/64⌉ + ⌈rows/64⌉, ranks/16); block 128.
// Formulas: the chain rule through c = ‖V‖ in DoRA (arXiv:2402.09353) eq. 5, which its §4.3 leaves
// out.

#include "common/schedule/reduce.cuh"
#include "common/tile/pipeline.cuh"
#include "common/tile/tf32.cuh"
#include "norm_gradient/params.cuh"

__device__ __forceinline__ float k_of(const NormGradientParams& p, int feature) {
    const float c = p.norm[feature];
    return c > 0.0f ? p.grad_magnitude[feature] * p.gain[feature] / c : 0.0f;
}

// A or B, seen as [features, ranks]: what is the same for both.
struct Side {
    const float* data;
    int features;
    i64 feature_stride, rank_stride;
    bool has_k;  // the norm's axis

    __device__ __forceinline__ static Side a(const NormGradientParams& p) {
        return {p.lora_a, p.in_features, 1, p.in_features, p.norm_on_input != 0};
    }
    __device__ __forceinline__ static Side b(const NormGradientParams& p) {
        return {p.lora_b, p.out_features, p.rank, 1, p.norm_on_input == 0};
    }
    __device__ __forceinline__ i64 at(int feature, int k) const {
        return feature * feature_stride + k * rank_stride;
    }
    // k of a feature on the norm's axis, 1 on the other.
    __device__ __forceinline__ float factor(const NormGradientParams& p, int feature) const {
        return has_k && feature < features ? k_of(p, feature) : 1.0f;
    }
};

template <typename F>
__device__ __forceinline__ Vector<float> times(Vector<float> v, F factor) {
#pragma unroll
    for (int e = 0; e < kVector<float>; ++e) v.values[e] *= factor(e);
    return v;
}

// ---- B'ᵀW and W·A'ᵀ ---------------------------------------------------------------------------

template <typename T>
struct Shared {
    static constexpr int kStrip = kIsFloat<T> ? kStripF32 : kStrip16Bit;
    static constexpr int kRows = ::kRows;
    static constexpr int kStages = 3;
    using WeightTile = SharedTile<T, kRows, kStrip>;
    // Ranks by k-steps, of every 16 columns or rows of W.
    using FactorA = Tf32Tile<kStrip>;
    using FactorB = Tf32Tile<kRows>;
    static constexpr int kFactorBytes = FactorA::kBytes + FactorB::kBytes;
    static constexpr int kBytes = kStages * (WeightTile::kBytes + kRows * sizeof(float)) +
                                  kFactorBytes + kStrip * sizeof(float);

    unsigned char* memory;

    __device__ __forceinline__ WeightTile weight(int stage) const {
        return WeightTile(memory + stage * WeightTile::kBytes);
    }
    __device__ __forceinline__ FactorA a() const { return FactorA(weight(kStages).data); }
    __device__ __forceinline__ FactorB b() const {
        return FactorB(a().data + FactorA::kRows * FactorA::kCols);
    }
    // k of the strip's columns, and of the rows of each stage; ones off the norm's axis.
    __device__ __forceinline__ float* k_of_columns() const {
        return reinterpret_cast<float*>(b().data + FactorB::kRows * FactorB::kCols);
    }
    __device__ __forceinline__ float* k_of_rows(int stage) const {
        return k_of_columns() + kStrip + stage * kRows;
    }
};

// The 16×16 elements at (m0, k0) of a tile of W, or of its transpose, as two fragments.
template <bool TRANSPOSED, typename T, int ROWS, int COLS>
__device__ __forceinline__ void load_weight(SharedTile<T, ROWS, COLS> tile, int m0, int k0,
                                            Tf32A (&out)[2]) {
    const int lane = threadIdx.x % kWarpSize;
    if constexpr (kIsFloat<T>) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int m = m0 + lane / 4 + 8 * (i % 2);
            const int k = k0 + i / 4 * 8 + lane % 4 * 2 + i / 2 % 2;
            out[i / 4].set(i % 4, split_tf32(TRANSPOSED ? *tile.at(k, m) : *tile.at(m, k)));
        }
    } else {
        const int matrix = lane / 8, line = lane % 8;
        u32 pairs[4];
        if constexpr (TRANSPOSED) {
            ldmatrix_x4_trans(pairs, tile.at(k0 + matrix / 2 * 8 + line, m0 + matrix % 2 * 8));
        } else {
            ldmatrix_x4(pairs, tile.at(m0 + matrix % 2 * 8 + line, k0 + matrix / 2 * 8));
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            out[i / 2].big[i % 2] = __float_as_uint(to_float(T{u16(pairs[i])}));
            out[i / 2].big[i % 2 + 2] = __float_as_uint(to_float(T{u16(pairs[i] >> 16)}));
        }
    }
}

// W·A'ᵀ of one tile of W, for 16 ranks: each warp 16 rows by 8 ranks.
template <typename T>
__device__ __forceinline__ void multiply_rows(const NormGradientParams& p, const Shared<T>& shared,
                                              int stage, int row0, int end, int rank0) {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    const int m0 = warp / 2 * 16, n0 = warp % 2 * 8;
    float sum[4] = {};
#pragma unroll
    for (int k0 = 0; k0 < Shared<T>::kStrip; k0 += kTf32Depth) {
        Tf32A w[2];
        load_weight<false>(shared.weight(stage), m0, k0, w);
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            multiply_tf32<!kIsFloat<T>>(sum, w[step], load_tf32_b(shared.a(), k0 + n0, step));
        }
    }
    const int rows = p.last_row - p.first_row;
    float* partial = p.partial_b + i64(blockIdx.x) * rows * p.ranks;
    const int row = row0 - p.first_row + m0 + lane / 4;
    const int k = rank0 - p.first_rank + n0 + lane % 4 * 2;
    store_pair<true>(partial, end - p.first_row, p.ranks, p.ranks, row, k, sum[0], sum[1]);
    store_pair<true>(partial, end - p.first_row, p.ranks, p.ranks, row + 8, k, sum[2], sum[3]);
}

// B'ᵀW of one strip, for 16 ranks: each warp a quarter of the columns.
template <typename T>
struct ColumnSums {
    static constexpr int kColumns = Shared<T>::kStrip / 4, kFragments = kColumns / 16;
    float values[kFragments][2][4];

    __device__ __forceinline__ static int column0() { return threadIdx.x / kWarpSize * kColumns; }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < kFragments * 8; ++i) values[i / 8][i / 4 % 2][i % 4] = 0.0f;
    }

    __device__ __forceinline__ void add_tile(const Shared<T>& shared, int stage) {
        ColumnSums part;
        part.clear();
#pragma unroll
        for (int k0 = 0; k0 < Shared<T>::kRows; k0 += kTf32Depth) {
#pragma unroll
            for (int m = 0; m < kFragments; ++m) {
                Tf32A w[2];
                load_weight<true>(shared.weight(stage), column0() + 16 * m, k0, w);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int n = i / 2, step = i % 2;
                    multiply_tf32<!kIsFloat<T>>(part.values[m][n], w[step],
                                                load_tf32_b(shared.b(), k0 + 8 * n, step));
                }
            }
        }
#pragma unroll
        for (int i = 0; i < kFragments * 8; ++i) {
            values[i / 8][i / 4 % 2][i % 4] += part.values[i / 8][i / 4 % 2][i % 4];
        }
    }

    __device__ __forceinline__ void store(const NormGradientParams& p, int col0, int rank0) const {
        const int lane = threadIdx.x % kWarpSize;
        float* partial = p.partial_a + i64(blockIdx.y) * p.ranks * p.in_features;
#pragma unroll
        for (int i = 0; i < kFragments * 8; ++i) {
            const int col = col0 + column0() + i / 8 * 16 + lane / 4 + i % 4 / 2 * 8;
            const int k = rank0 - p.first_rank + i / 4 % 2 * 8 + lane % 4 * 2 + i % 2;
            if (col < p.in_features) {
                partial[i64(k) * p.in_features + col] = values[i / 8][i / 4 % 2][i % 4];
            }
        }
    }
};

template <typename T>
__device__ __forceinline__ void contract_weight(const NormGradientParams& p,
                                                const Shared<T>& shared) {
    constexpr int kSteps = kRankTile / kTf32Depth;
    const int col0 = blockIdx.x * Shared<T>::kStrip, rank0 = p.first_rank, ranks = p.ranks;
    const int begin = p.first_row + blockIdx.y * p.chunk, end = min(p.last_row, begin + p.chunk);
    // Rows end with the chunk, so that a tile never reaches into the next one.
    const auto weight = Weight<T>::of(p.weight, end, p.in_features);
    const auto lora_a = Matrix<float>::dense(p.lora_a, p.rank, p.in_features);
    const auto lora_b = Matrix<float>::dense(p.lora_b, end, p.rank);
    if (threadIdx.x < Shared<T>::kStrip) {
        shared.k_of_columns()[threadIdx.x] = Side::a(p).factor(p, col0 + threadIdx.x);
    }
    ColumnSums<T> sums[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) sums[i].clear();
    pipeline<Shared<T>::kStages>(
        ceil_div(end - begin, Shared<T>::kRows),
        [&](int step, int stage) {
            const int row0 = begin + step * Shared<T>::kRows;
            copy_tile_async(p.aligned, shared.weight(stage), weight, row0, col0);
            if (threadIdx.x < Shared<T>::kRows) {
                shared.k_of_rows(stage)[threadIdx.x] = Side::b(p).factor(p, row0 + threadIdx.x);
            }
        },
        [&](int step, int stage) {
            const int row0 = begin + step * Shared<T>::kRows;
#pragma unroll
            for (int i = 0; i < kSteps; ++i) {
                if (i * kTf32Depth >= ranks) break;
                const int k0 = rank0 + i * kTf32Depth;
                if (i > 0) __syncthreads();  // the previous ranks have been read
                if (step == 0 || ranks > kTf32Depth) {
                    split_tile<Major::K>(shared.a(), [&](u32 line, u32 along) {
                        const u32 col = line / kTf32Depth * kTf32Depth + along;
                        const u32 k = k0 + line % kTf32Depth;
                        return times(load_chunk(p.aligned_a, lora_a, k, col0 + col),
                                     [&](int e) { return shared.k_of_columns()[col + e]; });
                    });
                }
                split_tile<Major::MN>(shared.b(), [&](u32 line, u32 along) {
                    const u32 row = line / kTf32Depth * kTf32Depth + along;
                    const u32 k = k0 + line % kTf32Depth;
                    return times(load_chunk(p.aligned_b, lora_b, row0 + row, k),
                                 [&](int) { return shared.k_of_rows(stage)[row]; });
                });
                __syncthreads();
                multiply_rows(p, shared, stage, row0, end, k0);
                sums[i].add_tile(shared, stage);
            }
        });
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
        if (i * kTf32Depth < ranks) sums[i].store(p, col0, rank0 + i * kTf32Depth);
    }
}

// ---- B'ᵀB and A·A'ᵀ ---------------------------------------------------------------------------

// One tile of a Gram matrix over one chunk of features: G[l, k] = Σ_f x(f, l)·x(f, k)·k(f).
template <typename T>
__device__ __forceinline__ void gram(const NormGradientParams& p, unsigned char* memory, int tile) {
    using Tile = Tf32Tile<kGramTile>;
    using Mma = TileMma<float, kGramTile, kGramTile, kTf32Depth, 2, 2, Major::K, Major::K>;
    static_assert(2 * Tile::kBytes <= Shared<T>::kBytes, "both factors fit");
    const int tiles = ceil_div(p.padded_rank, kGramTile);
    const bool of_b = tile < tiles * tiles;
    const Side side = of_b ? Side::b(p) : Side::a(p);
    const int l0 = tile / tiles % tiles * kGramTile, k0 = tile % tiles * kGramTile;
    const int length = ceil_div(ceil_div(side.features, p.gram_chunks), kTf32Depth) * kTf32Depth;
    const int begin = blockIdx.y * length, end = min(side.features, begin + length);
    const Tile left(memory), right(memory + Tile::kBytes);
    Mma sum;
    sum.clear();
    for (int f0 = begin; f0 < end; f0 += kTf32Depth) {
        __syncthreads();  // the previous features have been read
        if (of_b) {
            const auto x = Matrix<float>::dense(p.lora_b, p.out_features, p.rank);
            const auto at = [&](int k, int f) { return load_chunk(p.aligned_b, x, f0 + f, k); };
            split_tile<Major::MN>(left, [&](int l, int f) { return at(l0 + l, f); });
            split_tile<Major::MN>(right, [&](int k, int f) {
                const float factor = side.factor(p, f0 + f);
                return times(at(k0 + k, f), [&](int) { return factor; });
            });
        } else {
            const auto x = Matrix<float>::dense(p.lora_a, p.rank, p.in_features);
            const auto at = [&](int k, int f) { return load_chunk(p.aligned_a, x, k, f0 + f); };
            split_tile<Major::K>(left, [&](int l, int f) { return at(l0 + l, f); });
            split_tile<Major::K>(right, [&](int k, int f) {
                return times(at(k0 + k, f), [&](int e) { return side.factor(p, f0 + f + e); });
            });
        }
        __syncthreads();
        Mma part;
        part.clear();
        multiply_tf32_tiles(part, left, right);
        sum.add(part);
    }
    const i64 size = i64(p.padded_rank) * p.padded_rank;
    float* out = p.grams + ((of_b ? 0 : p.gram_chunks) + blockIdx.y) * size;
#pragma unroll
    for (int i = 0; i < Mma::kRows; ++i) {
#pragma unroll
        for (int j = 0; j < Mma::kCols; j += 2) {
            store_pair<true>(out, p.padded_rank, p.padded_rank, p.padded_rank, l0 + Mma::row(i),
                             k0 + Mma::col(j), sum.at(i, j), sum.at(i, j + 1));
        }
    }
}

// ---- dA and dB --------------------------------------------------------------------------------

// grad(f, k) −= s·k(f)·(Σ partials + s·Σ_l x(f, l)·G[l, k]) for one tile, where x is A or B and G
// the other one's Gram matrix. dA gets the term with G in the last pass of its ranks.
__device__ __forceinline__ void finish(const NormGradientParams& p,
                                       float (*g)[kFinishRanks]) {
    constexpr int kOutputs = kFinishFeatures * kFinishRanks / kThreads;
    constexpr int kDepth = kFinishFeatures;  // ranks of G at a time
    const int tiles_a = ceil_div(p.in_features, kFinishFeatures);
    const bool of_a = blockIdx.x < tiles_a;
    const Side side = of_a ? Side::a(p) : Side::b(p);
    const int begin = of_a ? 0 : p.first_row, end = of_a ? p.in_features : p.last_row;
    const int f0 = begin + (of_a ? blockIdx.x : blockIdx.x - tiles_a) * kFinishFeatures;
    const int k0 = p.first_rank + blockIdx.y * kFinishRanks;
    // Neighbouring threads take neighbours in memory.
    const auto feature = [&](int i) {
        const int t = threadIdx.x;
        return f0 + (of_a ? t % kFinishFeatures : t / kFinishRanks + i * (kThreads / kFinishRanks));
    };
    const auto rank = [&](int i) {
        const int t = threadIdx.x;
        return of_a ? t / kFinishFeatures + i * (kThreads / kFinishFeatures) : t % kFinishRanks;
    };
    const i64 size = i64(p.padded_rank) * p.padded_rank;
    const float* grams = p.grams + (of_a ? 0 : p.gram_chunks) * size;
    const int depths = of_a && p.is_last == 0 ? 0 : p.rank;
    i64 x[kOutputs];
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) x[i] = side.at(min(feature(i), side.features - 1), 0);
    const float* row = side.data;
    float low_rank[kOutputs] = {};
    for (int l0 = 0; l0 < depths; l0 += kDepth) {
        const int depth = min(kDepth, depths - l0);
        __syncthreads();  // the previous ranks have been read
        for (int i = threadIdx.x; i < depth * kFinishRanks; i += kThreads) {
            const int l = i / kFinishRanks, k = i % kFinishRanks;
            g[l][k] = ordered_sum(grams + i64(l0 + l) * p.padded_rank + k0 + k, p.gram_chunks, size);
        }
        __syncthreads();
        for (int l = 0; l < depth; ++l) {
#pragma unroll
            for (int i = 0; i < kOutputs; ++i) {
                low_rank[i] = fmaf(row[x[i]], g[l][rank(i)], low_rank[i]);
            }
            row += side.rank_stride;
        }
    }
    float* grad = of_a ? p.grad_lora_a : p.grad_lora_b;
    const float* partials = of_a ? p.partial_a : p.partial_b;
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
        const int f = feature(i), k = k0 + rank(i);
        if (f >= end || k >= p.rank) continue;
        const int column = k - p.first_rank;
        const i64 at = of_a ? i64(column) * p.in_features + f : i64(f - begin) * p.ranks + column;
        const float sum = ordered_sum(partials + at, of_a ? p.chunks : p.strips,
                                      i64(end - begin) * p.ranks);
        float& out = grad[side.at(f, k)];
        out = fmaf(-p.scaling * side.factor(p, f), fmaf(p.scaling, low_rank[i], sum), out);
    }
}

template <typename T>
__device__ __forceinline__ void norm_gradient(const NormGradientParams& p, unsigned char* memory) {
    const int tile = int(blockIdx.x) - p.strips;
    tile >= 0 ? gram<T>(p, memory, tile) : contract_weight<T>(p, {memory});
}

#define FUSED_DORA_NORM_GRADIENT(NAME, T)                                                       \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        norm_gradient_##NAME(const __grid_constant__ NormGradientParams p) {                    \
        __shared__ __align__(128) unsigned char memory[Shared<T>::kBytes];                      \
        norm_gradient<T>(p, memory);                                                            \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        norm_gradient_finish_##NAME(const __grid_constant__ NormGradientParams p) {             \
        __shared__ float g[kFinishFeatures][kFinishRanks];                                      \
        finish(p, g);                                                                           \
    }

FUSED_DORA_ENTRIES(FUSED_DORA_NORM_GRADIENT)
