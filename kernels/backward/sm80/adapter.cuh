// One read of dY: P = dY·(sB) or dY·(g∘sB), dB = s·(g∘)dYᵀH, db = Σ_t dY, and for axis output
// G = dY∘g and dm = (Σ_t dY∘z)/c.
//
// A tile is a chunk of tokens and a strip of features. The CTA that arrives last adds up the strips'
// partial P in order. CTAs add their chunks' shares of dB, db and dm in turn.
// z is computed from y, unless that would magnify y's rounding: where |g| is tiny, or the bias hides
// g·z, it is computed again as x·Wᵀ + H·(sB)ᵀ. dm = 0 where c = 0.
// With PEFT's dropout (see forward/sm80.cu), axis output: G = dY∘(g − 1), and `forward` has kept z.
#pragma once

#include "backward/params.cuh"
#include "backward/sm80/recomputed_z.cuh"
#include "common/tile/pipeline.cuh"
#include "common/schedule/reduce.cuh"

template <typename T>
struct Adapter {
    static constexpr int kStrip = kIsFloat<T> ? kStripF32 : kStrip16Bit;
    static constexpr int kTokens = kIsFloat<T> ? 16 : 32;  // of a tile
    static constexpr int kStages = 2;
    static constexpr int kWarpsP = kTokens / 16;
    // P tile = dY tile · gsb strip;  dB strip += (dY tile)ᵀ · H tile: one dY tile, read both ways.
    using MmaP = TileMma<T, kTokens, kRankTile, kStrip, kWarpsP, 4 / kWarpsP, Major::K, Major::MN>;
    using MmaB = TileMma<T, kStrip, kRankTile, kTokens, 4, 1, Major::MN, Major::MN>;
    using TileGrad = typename MmaP::TileA;
    using TileH = typename MmaB::TileB;
    using TileGsb = typename MmaP::TileB;
    static_assert(TileGrad::kRows == MmaB::TileA::kRows && TileGrad::kCols == MmaB::TileA::kCols,
                  "both products read the same dY tile");
    static constexpr int kStageBytes = TileGrad::kBytes + TileH::kBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes + TileGsb::kBytes;
    static_assert(kStrip <= kThreads, "one thread per column of the strip");
};

// A strip of features, a chunk of tokens and a tile of ranks, with the numbers of strips and ranks.
struct AdapterTile {
    int strip, strips, chunk, rank, ranks;
};

// Sums over the CTA's tokens, of one feature.
struct ColumnSums {
    float bias = 0.0f;       // Σ dY
    float magnitude = 0.0f;  // Σ dY·(y − b), then Σ dY·z
    float stored = 0.0f;     // Σ |dY·y|
    float kept = 0.0f;       // Σ |dY·(y − b)|

    __device__ __forceinline__ void add(float dy) { bias += dy; }
    // Without a bias, z comes from y wherever |g| is not tiny.
    __device__ __forceinline__ void add(float dy, float y) {
        add(dy);
        magnitude = fmaf(dy, y, magnitude);
    }
    __device__ __forceinline__ void add(float dy, float y, float b) {
        const float without = y - b;
        add(dy);
        magnitude = fmaf(dy, without, magnitude);
        stored += fabsf(dy * y);
        kept += fabsf(dy * without);
    }

    // Whether z = (y − b)/g would magnify y's rounding too far.
    __device__ __forceinline__ bool needs_recomputed_z(float gain) const {
        constexpr float kTinyGain = 1.0f / 64, kMostMagnified = 8.0f;
        return fabsf(gain) < kTinyGain || stored > kMostMagnified * kept;
    }
};

// The elementwise work on dY: sums over columns, and G = dY∘g (dY∘(g − 1) with PEFT's dropout). A
// thread has a column of chunks.
template <typename T>
struct Elementwise {
    using Tile = typename Adapter<T>::TileGrad;
    static constexpr int kRowsAtOnce = kThreads / Tile::kChunks;
    static_assert(kThreads % Tile::kChunks == 0, "a thread keeps to its column of chunks");

    ColumnSums sums[kVector<T>];
    float gain[kVector<T>], bias[kVector<T>];
    int col;
    bool has_bias;

    __device__ __forceinline__ Elementwise(const BackwardParams& p, int o0)
        : col(o0 + threadIdx.x % Tile::kChunks * kVector<T>), has_bias(p.bias && !p.peft_dropout) {
        const T* b = has_bias ? static_cast<const T*>(p.bias) : nullptr;
        const float less = p.peft_dropout ? 1.0f : 0.0f;
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
            const bool inside = p.output_gain && col + e < p.out_features;
            gain[e] = inside ? p.output_gain[col + e] - less : 0.0f;
            bias[e] = inside && b ? to_float(b[col + e]) : 0.0f;
        }
    }

    // This thread's chunks of y, of one tile.
    static constexpr int kChunks = Tile::kRows / kRowsAtOnce;
    using Output = Words[kChunks];

    // Starts the loads of y of one tile from token t0 to `end`.
    __device__ __forceinline__ void load(const BackwardParams& p, Output& out, int t0,
                                         int end) const {
        if (!p.output_gain) return;
        const auto y = Matrix<T>::strided(p.output, end, p.out_features, p.output_stride);
        const int row = t0 + threadIdx.x / Tile::kChunks;
        if (p.aligned) {
#pragma unroll
            for (int i = 0; i < kChunks; ++i) {
                const int at = row + i * kRowsAtOnce;
                out[i] = {};
                if (at < end && col < p.out_features) {
                    const auto words = *reinterpret_cast<const uint4*>(y.at(at, col));
                    out[i] = {{words.x, words.y, words.z, words.w}};
                }
            }
        } else {
#pragma unroll
            for (int i = 0; i < kChunks; ++i) {
                out[i] = Words::of(load_chunk<false>(y, row + i * kRowsAtOnce, col));
            }
        }
    }

    // The rows of one tile from token t0 to `end`.
    __device__ __forceinline__ void add(const BackwardParams& p, Tile grad, const Output& y,
                                        int t0, int end) {
        if (!p.output_gain) {
            for_each_row(grad, [&](int, Vector<T> dy) {
#pragma unroll
                for (int e = 0; e < kVector<T>; ++e) sums[e].add(to_float(dy.values[e]));
            });
        } else if (has_bias) {
            add_scaled<true>(p, grad, y, t0, end);
        } else {
            add_scaled<false>(p, grad, y, t0, end);
        }
    }

    template <bool BIAS>
    __device__ __forceinline__ void add_scaled(const BackwardParams& p, Tile grad, const Output& y,
                                               int t0, int end) {
        for_each_row(grad, [&](int i, Vector<T> dy) {
            Vector<T> scaled;
#pragma unroll
            for (int e = 0; e < kVector<T>; ++e) {
                const float v = to_float(dy.values[e]), out = to_float(y[i].template element<T>(e));
                if constexpr (BIAS) {
                    sums[e].add(v, out, bias[e]);
                } else {
                    sums[e].add(v, out);
                }
                scaled.values[e] = from_float<T>(v * gain[e]);
            }
            const int row = t0 + threadIdx.x / Tile::kChunks + i * kRowsAtOnce;
            store_chunk(p.aligned, static_cast<T*>(p.scaled_grad), end, p.out_features,
                        p.out_features, row, col, scaled);
        });
    }

    // Calls visit(i, dY) for this thread's chunks of a tile.
    template <typename F>
    __device__ __forceinline__ static void for_each_row(Tile grad, F visit) {
#pragma unroll
        for (int i = 0; i < kChunks; ++i) {
            const int r = threadIdx.x / Tile::kChunks + i * kRowsAtOnce;
            visit(i, *reinterpret_cast<const Vector<T>*>(
                         grad.chunk(r, threadIdx.x % Tile::kChunks)));
        }
    }

    // The sums of the strip's column of this thread's number. `shared` is free before, and again after
    // the next barrier.
    __device__ __forceinline__ ColumnSums of_column(unsigned char* shared) const {
        // For each warp and kind of sum, one row of chunks per element of a chunk. The padding keeps
        // writers and readers in different banks.
        constexpr int kRow = Tile::kChunks + 4, kKinds = 4, kPlane = kVector<T> * kRow + 16;
        float(*const planes)[kKinds][kPlane] = reinterpret_cast<float(*)[kKinds][kPlane]>(shared);
        static_assert(2 * Tile::kChunks == kWarpSize, "a warp has two rows of chunks");
        static_assert(sizeof(float) * kWarps * kKinds * kPlane <= Adapter<T>::kSharedBytes,
                      "they fit");
        const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
        const int chunk = lane % Tile::kChunks, half = lane / Tile::kChunks;
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
            const float kinds[] = {sums[e].bias, sums[e].magnitude, sums[e].stored, sums[e].kept};
#pragma unroll
            for (int k = 0; k < kKinds; k += 2) {
                // Each half of the warp stores one of two kinds, of both rows.
                const float own = half ? kinds[k + 1] : kinds[k];
                const float others = half ? kinds[k] : kinds[k + 1];
                planes[warp][k + half][e * kRow + chunk] =
                    own + shfl_xor(others, Tile::kChunks);
            }
        }
        __syncthreads();
        ColumnSums sum;
        if (threadIdx.x < Tile::kCols) {
            const int at = threadIdx.x % kVector<T> * kRow + threadIdx.x / kVector<T>;
#pragma unroll
            for (int w = 0; w < kWarps; ++w) {
                sum.bias += planes[w][0][at];
                sum.magnitude += planes[w][1][at];
                sum.stored += planes[w][2][at];
                sum.kept += planes[w][3][at];
            }
        }
        return sum;
    }
};

// Σ_t dY·z from Σ_t dY·(y − b), or where that is not good enough from z computed again.
template <typename T>
__device__ __forceinline__ void magnitude_sum(const BackwardParams& p, int o0, int begin, int end,
                                              unsigned char* shared, ColumnSums& sums) {
    using Recomputed = RecomputedZ<T, Adapter<T>::kStrip>;
    static_assert(Recomputed::kSharedBytes <= Adapter<T>::kSharedBytes, "its tiles fit");
    const int col = o0 + threadIdx.x;
    const bool owns_column = threadIdx.x < Adapter<T>::kStrip && col < p.out_features;
    const float gain = owns_column ? p.output_gain[col] : 1.0f;
    const bool recompute =
        owns_column && p.norm[col] > 0.0f && sums.needs_recomputed_z(gain);
    sums.magnitude /= gain;
    if (!__syncthreads_or(recompute)) return;
    const float sum = Recomputed::sum(p, o0, begin, end, shared);
    if (recompute) sums.magnitude = sum;
}

// P of this chunk of tokens, from the partial sums of all strips, which are added up in order. A thread
// takes four groups of four neighbours at a time: sixteen loads are on their way together.
template <typename T>
__device__ __forceinline__ void finish_p(const BackwardParams& p, const AdapterTile& at,
                                         const float* partial_p) {
    constexpr int kAtOnce = 4;
    const int k0 = at.rank * kRankTile, ranks = min(kRankTile, p.padded_rank - k0);
    const int begin = at.chunk * p.chunk, tokens = min(p.tokens, begin + p.chunk) - begin;
    const int quads = ranks / 4, total = tokens * quads;
    const i64 plane = i64(p.chunk) * p.padded_rank;
    const auto offset = [&](int i) {
        return i64(i / quads) * p.padded_rank + k0 + i % quads * 4;
    };
    for (int first = threadIdx.x; first < total; first += kAtOnce * kThreads) {
        const float* from[kAtOnce];
        float4 sums[kAtOnce];
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
            from[n] = partial_p + offset(min(first + n * kThreads, total - 1));
            sums[n] = make_float4(0, 0, 0, 0);
        }
#pragma unroll 4
        for (int strip = 0; strip < at.strips; ++strip) {
#pragma unroll
            for (int n = 0; n < kAtOnce; ++n) {
                const float4 part =
                    __ldcg(reinterpret_cast<const float4*>(from[n] + strip * plane));
                sums[n] = make_float4(sums[n].x + part.x, sums[n].y + part.y,
                                      sums[n].z + part.z, sums[n].w + part.w);
            }
        }
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
            const int i = first + n * kThreads;
            if (i >= total) continue;
            const float4 sum = sums[n];
            T* const to = static_cast<T*>(p.p) + i64(begin) * p.padded_rank + offset(i);
            store_quad<true>(to, 0, 4,
                             Quad<T>{{from_float<T>(sum.x), from_float<T>(sum.y),
                                      from_float<T>(sum.z), from_float<T>(sum.w)}});
        }
    }
}

// dB, db and dm of this strip of features: this chunk's share is added in its turn.
template <typename T>
__device__ __forceinline__ void add_strip(const BackwardParams& p, const AdapterTile& at,
                                          typename Adapter<T>::MmaB& grad_b,
                                          const ColumnSums& sums) {
    using MmaB = typename Adapter<T>::MmaB;
    const int o0 = at.strip * Adapter<T>::kStrip, k0 = at.rank * kRankTile;
    const Turn turn{p.strip_turns + at.rank * at.strips + at.strip, at.chunk, p.chunks()};
    turn.wait();
    constexpr int kTile = Adapter<T>::kStrip * kRankTile;
    float* const sum_b = p.sum_b + i64(at.rank * at.strips + at.strip) * kTile;
    if (turn.add_tile(sum_b, grad_b, p.out_features - o0, p.rank - k0)) {
#pragma unroll
        for (int i = 0; i < MmaB::kRows; ++i) {
            const int row = o0 + MmaB::row(i);
            if (row >= p.out_features) continue;
            const float factor = p.scaling * (p.output_gain ? p.output_gain[row] : 1.0f);
#pragma unroll
            for (int j = 0; j < MmaB::kCols; ++j) {
                const int k = k0 + MmaB::col(j);
                if (k >= p.rank) continue;
                store_gradient(p.grad_lora_b + i64(row) * p.rank + k, factor * grad_b.at(i, j),
                               p.accumulate);
            }
        }
    }
    const int col = o0 + threadIdx.x;
    if (at.rank == 0 && threadIdx.x < Adapter<T>::kStrip && col < p.out_features) {
        if (p.grad_bias) {
            turn.add(p.sum_bias + col, sums.bias, [&](float sum) {
                store_gradient(p.grad_bias + col, sum, p.accumulate);
            });
        }
        if (p.output_gain) {
            turn.add(p.sum_m + col, sums.magnitude,
                     [&](float sum) { p.store_magnitude(col, sum); });
        }
    }
    turn.pass();
}

// One tile.
template <typename T>
__device__ __forceinline__ void adapter_tile(const BackwardParams& p, const TileQueue& queue,
                                             unsigned char* shared, const AdapterTile& at) {
    using Shape = Adapter<T>;
    using MmaP = typename Shape::MmaP;
    using MmaB = typename Shape::MmaB;
    const int o0 = at.strip * Shape::kStrip, k0 = at.rank * kRankTile;
    const int begin = at.chunk * p.chunk, end = min(p.tokens, begin + p.chunk);
    const int columns = p.out_features - o0, ranks = p.padded_rank - k0;
    // Rows end with the chunk, so that a tile never reaches into the next one.
    const auto grad = Matrix<T>::strided(p.grad_output, end, p.out_features, p.grad_stride);
    const auto h = Matrix<T>::dense(p.h, end, p.padded_rank);
    const auto gsb = Matrix<T>::dense(p.gsb, p.out_features, p.padded_rank);
    const i64 plane = i64(p.chunk) * p.padded_rank;
    float* const partial_p = p.partial_p + at.chunk % kChunksInFlight * at.strips * plane;
    const typename Shape::TileGsb tile_gsb(shared + Shape::kStages * Shape::kStageBytes);
    const auto tile_grad = [&](int stage) {
        return typename Shape::TileGrad(shared + stage * Shape::kStageBytes);
    };
    const auto tile_h = [&](int stage) {
        return typename Shape::TileH(shared + stage * Shape::kStageBytes +
                                     Shape::TileGrad::kBytes);
    };
    const int earlier = at.chunk - kChunksInFlight;  // it used the same memory for partial P
    if (at.chunk >= kChunksInFlight) wait_for(queue, earlier, earlier + 1, at.ranks);
    copy_tile_async(p.aligned, tile_gsb, gsb, o0, k0);  // lands with the first stage

    Elementwise<T> elementwise(p, o0);
    MmaB grad_b;
    grad_b.clear();
    pipeline<Shape::kStages>(
        ceil_div(end - begin, Shape::kTokens),
        [&](int step, int stage) {
            const int t0 = begin + step * Shape::kTokens;
            copy_tile_async(p.aligned, tile_grad(stage), grad, t0, o0);
            copy_tile_async(p.aligned, tile_h(stage), h, t0, k0);
        },
        [&](int step, int stage) {
            const int t0 = step * Shape::kTokens;
            typename Elementwise<T>::Output y;
            if (at.rank == 0) elementwise.load(p, y, begin + t0, end);
            MmaP product;
            product.clear();
            product.multiply(tile_grad(stage), tile_gsb, end - begin - t0, ranks, columns);
            grad_b.multiply(typename MmaB::TileA(tile_grad(stage).data), tile_h(stage), columns,
                            ranks, end - begin - t0);
#pragma unroll
            for (int i = 0; i < MmaP::kRows; ++i) {
#pragma unroll
                for (int j = 0; j < MmaP::kCols; j += 2) {
                    store_pair<true>(partial_p + at.strip * plane, end - begin, p.padded_rank,
                                     p.padded_rank, t0 + MmaP::row(i), k0 + MmaP::col(j),
                                     product.at(i, j), product.at(i, j + 1));
                }
            }
            if (at.rank == 0) elementwise.add(p, tile_grad(stage), y, begin + t0, end);
        });

    u32* flag = reinterpret_cast<u32*>(shared);
    if (arrive_last(p.chunk_counters + at.rank * p.chunks() + at.chunk, at.strips, flag)) {
        finish_p<T>(p, at, partial_p);
        signal(queue, at.chunk);
    }
    ColumnSums sums;
    if (at.rank == 0) {
        sums = elementwise.of_column(shared);
        if (p.output_gain && !p.peft_dropout) {
            magnitude_sum<T>(p, o0, begin, end, shared, sums);
        }
    }
    add_strip<T>(p, at, grad_b, sums);
}
