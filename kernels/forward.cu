// forward: the adapted linear layer.
//
//   xs = x∘g (norm axis input) or x;   H = xs·Aᵀ
//   z = xs·Wᵀ + H·(sB)ᵀ
//   y = z + b (axis input, and plain LoRA)   or   g∘z + b (axis output)
//
// Shapes, row-major: x [T,I], W [O,I], A [R,I] and sB [O,R] packed with R = rank padded to 16,
// g [I] or [O] f32, b [O], xs [T,I], H [T,R], y [T,O]. All outputs are written with `=`. Rows of x
// and y may lie further apart than they are long.
// dtypes: bf16 and f16 (tensor cores, f32 accumulation), f32 (FMA, or y of forward_tf32x3 on tensor
// cores as sums of tf32 numbers).
// With dropout (mask M: 0 or 1/(1−p) per element of x, see dropout.cuh):
//   adapter branch   H = (xs∘M)·Aᵀ, the rest as above
//   PEFT's form, axis output:   xd = x∘M, u = x − xd;   H = xd·Aᵀ;   z = xd·Wᵀ + H·(sB)ᵀ, kept;
//                               y = u·Wᵀ + g∘z + b
// x∘g is rounded stochastically: round-to-nearest would return x for |g−1| below half an ulp, and
// the magnitude would not train.
// Launch: grid ⌈T/64⌉·⌈R/64⌉ tiles of H and xs, and ⌈T/128⌉·⌈O/128⌉ of y (see order.cuh); block 128.
// Formulas: DoRA (arXiv:2402.09353) §4.1, factored so that W' is never formed.

#include "common/dropout.cuh"
#include "common/epilogue.cuh"
#include "common/gemm.cuh"
#include "common/order.cuh"
#include "common/round.cuh"

struct ForwardParams {
    const void* x;
    const void* weight;
    const void* a;
    const void* sb;
    const void* bias;   // null: no bias
    const float* gain;  // null: g ≡ 1
    void* xs;           // x∘g (axis input) or xd (PEFT's dropout), else null
    void* rest;         // u (PEFT's dropout), else null
    void* h;
    void* z;            // PEFT's dropout, else null
    void* y;
    u32* board;         // 2 + ⌈T/1024⌉ counters
    u64 seed;
    Dropout dropout;
    int low_rank_tiles;  // columns of tiles of H; 0: neither H nor xs to compute
    int tokens, in_features, out_features, padded_rank;
    int x_stride, y_stride;
    int gain_on_input;  // the norm axis
    int aligned;        // every row of every operand starts at a 16-byte boundary
};

// ---- H = xs·Aᵀ, and xs -------------------------------------------------------------------------

template <typename T>
struct LowRank {
    static constexpr int kTileM = 64, kTileN = 64, kTileK = kIsFloat<T> ? 16 : 32, kStages = 3;
    using Mma = TileMma<T, kTileM, kTileN, kTileK, 4, 1, Major::K, Major::K>;
    static constexpr int kStageBytes = Mma::TileA::kBytes + Mma::TileB::kBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes;
};

// One tile of x, times g, rounded stochastically, into shared memory and (where `xs` is not null)
// into xs.
template <typename T, typename TILE>
__device__ __forceinline__ void scale_tile(bool aligned, TILE tile, const Matrix<T>& x,
                                           const float* gain, u64 seed, const Dropout* dropout,
                                           T* xs, int row0, int col0) {
    for_each_chunk<true, TILE>([&](int r, int c) {
        const int row = row0 + r, col = col0 + c * kVector<T>;
        Vector<T> chunk = load_chunk(aligned, x, row, col);
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
            const float g = col + e < x.cols ? gain[col + e] : 0.0f;
            chunk.values[e] =
                round_stochastic<T>(to_float(chunk.values[e]) * g, hash(seed, row, col + e));
        }
        if (xs) store_chunk(aligned, xs, x.rows, x.cols, x.cols, row, col, chunk);
        if (dropout) chunk = drop<T>(*dropout, chunk, row, col);
        *reinterpret_cast<Vector<T>*>(tile.chunk(r, c)) = chunk;
    });
}

// One tile of xd = x∘M into shared memory, and (where `xs` is not null) into xs, with u = x − xd
// into `rest`.
template <typename T, typename TILE>
__device__ __forceinline__ void split_tile(bool aligned, TILE tile, const Matrix<T>& x,
                                           const Dropout& dropout, T* xs, T* rest, int row0,
                                           int col0) {
    for_each_chunk<true, TILE>([&](int r, int c) {
        const int row = row0 + r, col = col0 + c * kVector<T>;
        const Vector<T> chunk = load_chunk(aligned, x, row, col);
        const Vector<T> dropped = drop<T>(dropout, chunk, row, col);
        *reinterpret_cast<Vector<T>*>(tile.chunk(r, c)) = dropped;
        if (!xs) return;
        Vector<T> left;
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
            left.values[e] =
                from_float<T>(to_float(chunk.values[e]) - to_float(dropped.values[e]));
        }
        store_chunk(aligned, xs, x.rows, x.cols, x.cols, row, col, dropped);
        store_chunk(aligned, rest, x.rows, x.cols, x.cols, row, col, left);
    });
}

template <bool DROPOUT, typename T>
__device__ __forceinline__ void low_rank(const ForwardParams& p, unsigned char* shared, int row,
                                         int col) {
    using Shape = LowRank<T>;
    using Mma = typename Shape::Mma;
    const auto x = Matrix<T>::strided(p.x, p.tokens, p.in_features, p.x_stride);
    const auto a = Matrix<T>::dense(p.a, p.padded_rank, p.in_features);
    const int m0 = row * Shape::kTileM, n0 = col * Shape::kTileN;
    // Every column of tiles computes xs; the first one writes it.
    T* const xs = col == 0 ? static_cast<T*>(p.xs) : nullptr;
    Mma mma;
    mma.clear();
    pipeline<Shape::kStages>(
        ceil_div(p.in_features, Shape::kTileK),
        [&](int step, int stage) {
            unsigned char* memory = shared + stage * Shape::kStageBytes;
            const typename Mma::TileA tile_x(memory);
            const typename Mma::TileB tile_a(memory + Mma::TileA::kBytes);
            const int k0 = step * Shape::kTileK;
            if (p.gain && p.gain_on_input) {
                scale_tile(p.aligned, tile_x, x, p.gain, p.seed,
                           DROPOUT ? &p.dropout : nullptr, xs, m0, k0);
            } else if constexpr (DROPOUT) {
                split_tile(p.aligned, tile_x, x, p.dropout, xs, static_cast<T*>(p.rest), m0, k0);
            } else {
                copy_tile_async(p.aligned, tile_x, x, m0, k0);
            }
            copy_tile_async(p.aligned, tile_a, a, n0, k0);
        },
        [&](int, int stage) {
            unsigned char* memory = shared + stage * Shape::kStageBytes;
            mma.multiply(typename Mma::TileA(memory),
                         typename Mma::TileB(memory + Mma::TileA::kBytes), p.tokens - m0,
                         p.padded_rank - n0, Shape::kTileK);
        });
#pragma unroll
    for (int i = 0; i < Mma::kRows; ++i) {
#pragma unroll
        for (int j = 0; j < Mma::kCols; j += 2) {
            store_pair(p.aligned, static_cast<T*>(p.h), p.tokens, p.padded_rank, p.padded_rank,
                       m0 + Mma::row(i), n0 + Mma::col(j), mma.at(i, j), mma.at(i, j + 1));
        }
    }
}

// ---- y ----------------------------------------------------------------------------------------

template <typename T>
__device__ __forceinline__ Matrix<T> weight(const ForwardParams& p) {
    return Matrix<T>::dense(p.weight, p.out_features, p.in_features);
}

template <typename T>
__device__ __forceinline__ Product<T> low_rank_product(const ForwardParams& p) {
    return {Matrix<T>::dense(p.h, p.tokens, p.padded_rank),
            Matrix<T>::dense(p.sb, p.out_features, p.padded_rank)};
}

// One feature's factor and summand, for the chunk of columns that begins at `col`.
template <typename T>
struct Columns {
    float gain[kVector<T>], bias[kVector<T>];

    __device__ __forceinline__ Columns(const ForwardParams& p, const void* bias_or_null, int col) {
        const T* b = static_cast<const T*>(bias_or_null);
        const bool scaled = p.gain && !p.gain_on_input;
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
            const bool inside = col + e < p.out_features;
            gain[e] = scaled && inside ? p.gain[col + e] : 1.0f;
            bias[e] = b && inside ? to_float(b[col + e]) : 0.0f;
        }
    }
};

template <Math MATH, typename T, typename WAIT>
__device__ __forceinline__ void output_tile(const ForwardParams& p, unsigned char* shared, int m0,
                                            int n0, WAIT wait) {
    using Gemm = MainGemm<T, Major::K, MATH>;
    using Output = Epilogue<T, typename Gemm::Mma>;
    const auto products = [&](int, bool low) {
        const auto x = Matrix<T>::strided(p.xs ? p.xs : p.x, p.tokens, p.in_features,
                                          p.xs ? p.in_features : p.x_stride);
        return low ? low_rank_product<T>(p) : Product<T>{x, weight<T>(p)};
    };
    typename Gemm::Mma mma;
    mma.clear();
    Gemm::accumulate(p.aligned, mma, shared, products, 0, m0, n0, wait);

    const int col = n0 + Output::col();
    const Columns<T> columns(p, p.bias, col);
    Output::for_each_row(mma, shared, [&](int row, const float (&z)[kVector<T>]) {
        Vector<T> y;
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
            y.values[e] = from_float<T>(fmaf(columns.gain[e], z[e], columns.bias[e]));
        }
        store_chunk(p.aligned, static_cast<T*>(p.y), p.tokens, p.out_features, p.y_stride,
                    m0 + row, col, y);
    });
}

// y of PEFT's dropout, and z.
template <typename T>
__device__ __forceinline__ void output_tile_peft(const ForwardParams& p, unsigned char* shared,
                                                 int m0, int n0) {
    using Gemm = MainGemm<T, Major::K>;
    using Mma = typename Gemm::Mma;
    using Output = Epilogue<T, Mma>;
    const int col = n0 + Output::col();
    const auto products = [&](int pass, bool low) {
        if (low) return pass == 0 ? low_rank_product<T>(p) : Product<T>{};
        const auto part = Matrix<T>::dense(pass == 0 ? p.xs : p.rest, p.tokens, p.in_features);
        return Product<T>{part, weight<T>(p)};
    };
    Mma mma;
    mma.clear();
#pragma unroll 1  // one copy of the main loop
    for (int pass = 0; pass < 2; ++pass) {
        Gemm::accumulate(p.aligned, mma, shared, products, pass, m0, n0, [] {});
        T* const to = static_cast<T*>(pass == 0 ? p.z : p.y);
        const int stride = pass == 0 ? p.out_features : p.y_stride;
        const Columns<T> columns(p, pass == 0 ? nullptr : p.bias, col);
        Output::for_each_row(mma, shared, [&](int row, const float(&values)[kVector<T>]) {
            Vector<T> out;
#pragma unroll
            for (int e = 0; e < kVector<T>; ++e) {
                out.values[e] = from_float<T>(values[e] + columns.bias[e]);
            }
            store_chunk(p.aligned, to, p.tokens, p.out_features, stride, m0 + row, col, out);
        });
        if (pass == 1) break;
        __syncthreads();
        int first = n0;
        forget(first);
#pragma unroll
        for (int j = 0; j < Mma::kCols; ++j) {
            const int feature = first + Mma::col(j);
            const float g = feature < p.out_features ? p.gain[feature] : 0.0f;
#pragma unroll
            for (int i = 0; i < Mma::kRows; ++i) mma.at(i, j) *= g;
        }
    }
}

// ---- tiles in their order ---------------------------------------------------------------------

enum class Drop { kNone, kAdapter, kPeft };

template <Drop DROP, Math MATH, typename T>
__device__ __forceinline__ void forward(const ForwardParams& p, unsigned char* shared) {
    using Gemm = MainGemm<T, Major::K>;
    constexpr int kRowsPerGroup = TileOrder::kGroup * Gemm::kTileM / LowRank<T>::kTileM;
    const TileOrder order(ceil_div(p.tokens, Gemm::kTileM), ceil_div(p.out_features, Gemm::kTileN),
                          ceil_div(p.tokens, LowRank<T>::kTileM), kRowsPerGroup,
                          p.low_rank_tiles);
    const Board board(p.board, order.groups);
    const bool alone = p.low_rank_tiles == 0;
    const auto tile = order.at(alone ? blockIdx.x : draw(board, reinterpret_cast<u32*>(shared)));
    if (tile.kind == TileOrder::Tile::kSmall) {
        const int row = tile.group * kRowsPerGroup + tile.index / p.low_rank_tiles;
        low_rank<DROP != Drop::kNone, T>(p, shared, row, tile.index % p.low_rank_tiles);
        announce(board, tile.group);
    } else {
        const int m0 = order.main_m(tile) * Gemm::kTileM, n0 = order.main_n(tile) * Gemm::kTileN;
        const auto wait_if = [&](bool needed) {
            if (needed) await(board, tile.group, tile.group + 1, order.small_of(tile.group));
        };
        wait_if(p.xs);  // or for H alone, which is needed last
        if constexpr (DROP == Drop::kPeft) {
            output_tile_peft<T>(p, shared, m0, n0);
        } else {
            output_tile<MATH, T>(p, shared, m0, n0, [&] { wait_if(!alone && !p.xs); });
        }
    }
    if (!alone) leave(board, reinterpret_cast<u32*>(shared));
}

// ---- entry points -----------------------------------------------------------------------------

// Mirrored in src/forward.rs; a test compares them.
extern "C" __constant__ int forward_geometry[] = {
    LowRank<bf16>::kTileM, LowRank<bf16>::kTileN, MainGemm<bf16, Major::K>::kTileM,
    MainGemm<bf16, Major::K>::kTileN, TileOrder::kGroup, kThreads, sizeof(ForwardParams)};

#define FUSED_DORA_FORWARD_ENTRY(NAME, DROP, MATH, T)                                           \
    extern "C" __global__ void __launch_bounds__(kThreads)                                      \
        forward_##NAME(const __grid_constant__ ForwardParams p) {                               \
        __shared__ __align__(128) unsigned char shared[MainGemm<T, Major::K>::kSharedBytes];    \
        forward<DROP, MATH, T>(p, shared);                                                      \
    }

#define FUSED_DORA_FORWARD(NAME, T)                                                             \
    FUSED_DORA_FORWARD_ENTRY(NAME, Drop::kNone, Math::kDirect, T)                               \
    FUSED_DORA_FORWARD_ENTRY(dropout_##NAME, Drop::kAdapter, Math::kDirect, T)                  \
    FUSED_DORA_FORWARD_ENTRY(peft_dropout_##NAME, Drop::kPeft, Math::kDirect, T)                \
    FUSED_DORA_IF_##NAME##_IS_f32(                                                              \
        FUSED_DORA_FORWARD_ENTRY(tf32x3_##NAME, Drop::kNone, Math::kTf32x3, T))

FUSED_DORA_ENTRIES(FUSED_DORA_FORWARD)
