// The main GEMM of forward and dX: tiles of C of 128×128, 64×64 per warp, two CTAs per
// multiprocessor; or of 64×128, where that fills the device better.
#pragma once

#include "common/tile/pipeline.cuh"
#include "common/tile/split_tf32.cuh"

// One of the products that a tile adds up: A·B, A with K contiguous.
template <typename T>
struct Product {
    Matrix<T> a, b;

    __device__ __forceinline__ static Product select(bool first, const Product& x,
                                                     const Product& y) {
        return {Matrix<T>::select(first, x.a, y.a), Matrix<T>::select(first, x.b, y.b)};
    }
};

// This thread's share of the copies of an operand's tiles: a fixed column of chunks, every
// kRowsApart-th row, and an offset that runs along K. Rows and columns beyond the matrix repeat its
// last ones: they only reach elements of C that are not stored.
template <typename T, typename TILE, Major MAJOR>
struct TileCopy {
    static constexpr int kRowsApart = kThreads / TILE::kChunks;
    static constexpr int kCount = TILE::kRows / kRowsApart;
    static_assert(kThreads % TILE::kChunks == 0 && TILE::kRows % kRowsApart == 0,
                  "all threads copy as much");
    static_assert(((kRowsApart >> TILE::kRowShift) & TILE::kMask) == 0,
                  "the swizzle is the same in all rows of a thread");
    // Along K-contiguous rows, or down rows, which may be far.
    using Offset = Select<MAJOR == Major::K, int, i64>;

    const T* from[kCount];
    Offset offset, step;
    u32 to;

    __device__ __forceinline__ TileCopy(const Matrix<T>& source, int first, TILE tile,
                                        int thread) {
        const int row = thread / TILE::kChunks, chunk = thread % TILE::kChunks;
        to = shared_address(tile.chunk(row, chunk));
        offset = 0;
        step = MAJOR == Major::K ? Offset(TILE::kCols) : Offset(TILE::kRows) * source.stride;
        const int col = chunk * kVector<T>;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const int r = row + i * kRowsApart;
            from[i] = MAJOR == Major::K
                          ? source.at(min(first + r, source.rows - 1), col)
                          : source.at(r, min(first + col, source.cols - kVector<T>));
        }
    }

    // Starts the copy of the next k-step's tile into the stage that begins at byte `stage`.
    __device__ __forceinline__ void start(u32 stage) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            cp_async_16(to + stage + i * kRowsApart * TILE::kRowBytes, from[i] + offset);
        }
        offset += step;
        opaque(offset);  // otherwise the compiler keeps and increments a 64-bit address per copy
    }
};

// What one 16-deep step of the tensor cores reads, in registers.
template <typename T, typename MMA, Major B_MAJOR>
struct Fragments {
    using TileA = typename MMA::TileA;
    using TileB = typename MMA::TileB;
    static constexpr int kPairsN = MMA::kFragmentsN / 2;
    static_assert(TileA::kCols == 2 * MMA::kStepK, "a stage is two steps deep");

    // Where this lane's rows lie in a stage.
    struct Addresses {
        u32 a[2], b[B_MAJOR == Major::K ? 2 : kPairsN];

        __device__ __forceinline__ Addresses(TileA tile_a, TileB tile_b, int thread) {
            const int matrix = thread % kWarpSize / 8, line = thread % 8;
            const int m = MMA::warp_m(thread) * MMA::kWarpM + (matrix % 2) * 8 + line;
            const int n = MMA::warp_n(thread) * MMA::kWarpN;
#pragma unroll
            for (int step = 0; step < 2; ++step) {
                a[step] = shared_address(tile_a.chunk(m, step * 2 + matrix / 2));
                if constexpr (B_MAJOR == Major::K) {
                    b[step] = shared_address(
                        tile_b.chunk(n + (matrix / 2) * 8 + line, step * 2 + matrix % 2));
                }
            }
            if constexpr (B_MAJOR == Major::MN) {
#pragma unroll
                for (int j = 0; j < kPairsN; ++j) {
                    b[j] = shared_address(
                        tile_b.chunk((matrix % 2) * 8 + line, n / kVector<T> + j * 2 + matrix / 2));
                }
            }
        }
    };

    u32 a[MMA::kFragmentsM][4], b[kPairsN][4];

    template <int STEP>
    __device__ __forceinline__ void load(const Addresses& at, u32 stage) {
        constexpr int kApart = 16;  // rows of one ldmatrix
#pragma unroll
        for (int i = 0; i < MMA::kFragmentsM; ++i) {
            ldmatrix_x4(a[i], at.a[STEP] + stage + i * kApart * TileA::kRowBytes);
        }
#pragma unroll
        for (int j = 0; j < kPairsN; ++j) {
            if constexpr (B_MAJOR == Major::K) {
                ldmatrix_x4(b[j], at.b[STEP] + stage + j * kApart * TileB::kRowBytes);
            } else {
                ldmatrix_x4_trans(b[j], at.b[j] + stage + STEP * kApart * TileB::kRowBytes);
            }
        }
    }

    __device__ __forceinline__ void multiply(MMA& mma) const {
#pragma unroll
        for (int i = 0; i < MMA::kFragmentsM; ++i) {
#pragma unroll
            for (int j = 0; j < kPairsN; ++j) {
                mma_m16n8k16<T>(mma.acc[i][2 * j], a[i], b[j][0], b[j][1]);
                mma_m16n8k16<T>(mma.acc[i][2 * j + 1], a[i], b[j][2], b[j][3]);
            }
        }
    }
};

// What multiplies: tensor cores in 16 bit and FMA units in f32 (kDirect), or tensor cores that take
// an f32 as a sum of two tf32 numbers (common/tile/split_tf32.cuh).
enum class Math { kDirect, kTf32x3 };

template <typename T, Major B_MAJOR, int TILE_M, Math MATH>
struct MainGemm {
    static_assert(MATH == Math::kDirect || kIsFloat<T>, "16-bit types need no splitting");
    static constexpr int kTileM = TILE_M, kTileN = kFeatures, kTileK = kIsFloat<T> ? 16 : 32;
    static constexpr int kStages = 3;
    using Mma = TileMma<T, kTileM, kTileN, kTileK, 2, 2, Major::K, B_MAJOR>;
    using TileA = typename Mma::TileA;
    using TileB = typename Mma::TileB;
    static constexpr int kStageBytes = TileA::kBytes + TileB::kBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes;

    __device__ __forceinline__ static TileA tile_a(unsigned char* shared, int stage) {
        return TileA(shared + stage * kStageBytes);
    }
    __device__ __forceinline__ static TileB tile_b(unsigned char* shared, int stage) {
        return TileB(shared + stage * kStageBytes + TileA::kBytes);
    }

    // Tile (m0, n0) += products(pass, false), and then products(pass, true) as the last k-steps: the
    // main product and the low-rank one, whose operands need not be there before `wait()` has
    // returned. Ends with a barrier: the shared memory may then be reused.
    template <typename PRODUCTS, typename WAIT>
    __device__ __forceinline__ static void accumulate(bool aligned, Mma& mma,
                                                      unsigned char* shared, PRODUCTS products,
                                                      int pass, int m0, int n0, WAIT wait) {
        constexpr bool kSplits = MATH == Math::kTf32x3;
        accumulate_by<kSplits>(aligned, mma, shared, products, pass, m0, n0, wait);
        if constexpr (kSplits) {
            // The sum overflowed or has a NaN: FMA units give the right result for such factors.
            if (!__syncthreads_or(!mma.is_finite())) return;
            mma.clear();
            accumulate_by<false>(aligned, mma, shared, products, pass, m0, n0, wait);
        }
    }

private:
    template <bool SPLITS, typename PRODUCTS, typename WAIT>
    __device__ __forceinline__ static void accumulate_by(bool aligned, Mma& mma,
                                                         unsigned char* shared, PRODUCTS products,
                                                         int pass, int m0, int n0, WAIT wait) {
        int first = 0, thread = threadIdx.x;
        // Computes addresses where they are needed: they would take registers through the loops.
        const auto opaque_addresses = [&] {
            opaque(pass);
            opaque(m0);
            opaque(n0);
            opaque(thread);
        };
        opaque_addresses();
        if constexpr (!kIsFloat<T>) {
            const auto main = products(pass, false);
            const int whole = main.a.cols / kTileK;
            if (aligned && whole >= kStages) {
                accumulate_whole(mma, shared, main, m0, n0, whole, thread);
                first = whole - (kStages - 1);
            }
            opaque_addresses();
        }
        wait();
        const auto main = products(pass, false), low = products(pass, true);
        const int main_steps = ceil_div(main.a.cols, kTileK);
        const int steps = main_steps + ceil_div(low.a.cols, kTileK);
        const auto fill = [&](int step, int stage) {
            if constexpr (SPLITS) opaque_addresses();
            const bool is_low = step >= main_steps;
            const auto from = [&] {
                if constexpr (SPLITS) {
                    return Product<T>::select(is_low, products(pass, true), products(pass, false));
                } else {
                    return Product<T>::select(is_low, low, main);
                }
            }();
            const int k0 = (is_low ? step - main_steps : step) * kTileK;
            copy_tile_async(aligned, tile_a(shared, stage), from.a, m0, k0, thread);
            if constexpr (B_MAJOR == Major::K) {
                copy_tile_async(aligned, tile_b(shared, stage), from.b, n0, k0, thread);
            } else {
                copy_tile_async(aligned, tile_b(shared, stage), from.b, k0, n0, thread);
            }
        };
        const auto either = Product<T>::select(main_steps > 0, main, low);
        const int rows = either.a.rows - m0;
        const int cols = (B_MAJOR == Major::K ? either.b.rows : either.b.cols) - n0;
        // A warp tile beyond the matrix has nothing to add; inside, no test per fragment.
        const bool inside =
            Mma::warp_m() * Mma::kWarpM < rows && Mma::warp_n() * Mma::kWarpN < cols;
        const auto consume = [&](int step, int stage) {
            const bool is_low = step >= main_steps;
            const int k =
                is_low ? low.a.cols - (step - main_steps) * kTileK : main.a.cols - step * kTileK;
            if (!inside) return;
            if constexpr (SPLITS) {
                opaque(thread);
                SplitProduct<Mma, B_MAJOR>::add(mma, tile_a(shared, stage), tile_b(shared, stage),
                                                thread);
            } else {
                mma.multiply(tile_a(shared, stage), tile_b(shared, stage), kTileM, kTileN, k);
            }
        };
        pipeline<kStages>(steps, fill, consume, first);
    }

    // The loop that takes the time: all whole k-steps of the main product, except the last
    // kStages − 1, whose copies have started when it ends. It loads the fragments of each 16-deep
    // step while the tensor cores work on the step before.
    __device__ __forceinline__ static void accumulate_whole(Mma& mma, unsigned char* shared,
                                                            const Product<T>& main, int m0,
                                                            int n0, int whole, int thread) {
        constexpr u32 kEnd = kStages * kStageBytes;
        TileCopy<T, TileA, Major::K> copy_a(main.a, m0, tile_a(shared, 0), thread);
        TileCopy<T, TileB, B_MAJOR> copy_b(main.b, n0, tile_b(shared, 0), thread);
#pragma unroll
        for (int s = 0; s < kStages - 1; ++s) {
            copy_a.start(s * kStageBytes);
            copy_b.start(s * kStageBytes);
            cp_async_commit_group();
        }
        cp_async_wait_group<kStages - 2>();
        __syncthreads();
        using Fragments = Fragments<T, Mma, B_MAJOR>;
        const typename Fragments::Addresses at(tile_a(shared, 0), tile_b(shared, 0), thread);
        Fragments even, odd;
        even.template load<0>(at, 0);
        u32 oldest = kEnd - kStageBytes, current = 0, next = kStageBytes;
#pragma unroll 1
        for (int left = whole - (kStages - 1); left > 0; --left) {
            odd.template load<1>(at, current);
            copy_a.start(oldest);
            copy_b.start(oldest);
            cp_async_commit_group();
            even.multiply(mma);
            cp_async_wait_group<kStages - 2>();
            __syncthreads();  // the next stage's data are there; this one has been read
            even.template load<0>(at, next);
            odd.multiply(mma);
            oldest = current;
            current = next;
            next = next + kStageBytes == kEnd ? 0 : next + kStageBytes;
        }
    }
};
