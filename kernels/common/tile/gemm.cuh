// The main GEMM of forward and dX: tiles of C of 128×128, 64×64 per warp, two CTAs per
// multiprocessor; or of 64×128, where that fills the device better.
#pragma once

#include "common/tile/pipeline.cuh"
#include "common/tile/split_tf32.cuh"
#include "common/tile/weight.cuh"

// One of the products that a tile adds up: A·B, A with K contiguous.
template <typename T, typename B>
struct Product {
    Matrix<T> a;
    B b;

    template <Major B_MAJOR>
    __device__ __forceinline__ int columns() const {
        return B_MAJOR == Major::K ? b.rows : b.cols;
    }
};

// The product with W, and the one with A or B.
template <typename T>
using MainProduct = Product<T, Weight<T>>;
template <typename T>
using LowRankProduct = Product<T, Matrix<T>>;

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

    // Of the stages that begin at these bytes.
    template <int STEP>
    __device__ __forceinline__ void load(const Addresses& at, u32 stage_a, u32 stage_b) {
        constexpr int kApart = 16;  // rows of one ldmatrix
#pragma unroll
        for (int i = 0; i < MMA::kFragmentsM; ++i) {
            ldmatrix_x4(a[i], at.a[STEP] + stage_a + i * kApart * TileA::kRowBytes);
        }
#pragma unroll
        for (int j = 0; j < kPairsN; ++j) {
            if constexpr (B_MAJOR == Major::K) {
                ldmatrix_x4(b[j], at.b[STEP] + stage_b + j * kApart * TileB::kRowBytes);
            } else {
                ldmatrix_x4_trans(b[j], at.b[j] + stage_b + STEP * kApart * TileB::kRowBytes);
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

// All whole k-steps of a product with a packed W, if it is such that its codes are decoded ahead, and
// the first copies of a loop that follows: common/tile/code4_gemm.cuh. A dense W has neither.
template <typename GEMM, Major B_MAJOR, typename T>
__device__ __forceinline__ bool accumulate_ahead(typename GEMM::Mma&, unsigned char*,
                                                 const Product<T, DenseWeight<T>>&, int, int, int,
                                                 int) {
    return false;
}
template <int STAGES, typename FILL>
__device__ __forceinline__ void start_copies(int steps, FILL fill, int first);

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
    using FragmentsOfStep = Fragments<T, Mma, B_MAJOR>;
    static constexpr int kStageBytes = TileA::kBytes + TileB::kBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes;

    __device__ __forceinline__ static TileA tile_a(unsigned char* shared, int stage) {
        return TileA(shared + stage * kStageBytes);
    }
    __device__ __forceinline__ static TileB tile_b(unsigned char* shared, int stage) {
        return TileB(shared + stage * kStageBytes + TileA::kBytes);
    }

    // Tile (m0, n0) += main_of(pass), a MainProduct, and then low_of(pass), a LowRankProduct, as the
    // last k-steps. The operands of that need not be there before `wait()` has returned. Ends with a
    // barrier: the shared memory may then be reused.
    template <typename MAIN, typename LOW, typename WAIT>
    __device__ __forceinline__ static void accumulate(bool aligned, Mma& mma,
                                                      unsigned char* shared, MAIN main_of,
                                                      LOW low_of, int pass, int m0, int n0,
                                                      WAIT wait) {
        constexpr bool kSplits = MATH == Math::kTf32x3;
        accumulate_by<kSplits>(aligned, mma, shared, main_of, low_of, pass, m0, n0, wait);
        if constexpr (kSplits) {
            // The sum overflowed or has a NaN: FMA units give the right result for such factors.
            if (!__syncthreads_or(!mma.is_finite())) return;
            mma.clear();
            accumulate_by<false>(aligned, mma, shared, main_of, low_of, pass, m0, n0, wait);
        }
    }

private:
    template <bool SPLITS, typename MAIN, typename LOW, typename WAIT>
    __device__ __forceinline__ static void accumulate_by(bool aligned, Mma& mma,
                                                         unsigned char* shared, MAIN main_of,
                                                         LOW low_of, int pass, int m0, int n0,
                                                         WAIT wait) {
        constexpr bool kPacked = Weight<T>::kPacked;
        int first = 0, thread = threadIdx.x;
        bool is_started = !kPacked;  // the copies of the first k-steps of the loop below, if any
        // Computes addresses where they are needed: they would take registers through the loops.
        const auto opaque_addresses = [&] {
            opaque(pass);
            opaque(m0);
            opaque(n0);
            opaque(thread);
        };
        opaque_addresses();
        if constexpr (!kIsFloat<T>) {
            const auto main = main_of(pass);
            const int whole = main.a.cols / kTileK;
            if (aligned && whole >= kStages) {
                if (accumulate_ahead<MainGemm, B_MAJOR>(mma, shared, main, m0, n0, whole,
                                                        thread)) {
                    first = whole;
                } else {
                    accumulate_whole(mma, shared, main, m0, n0, whole, thread);
                    first = whole - (kStages - 1);
                    is_started = true;
                }
            }
            opaque_addresses();
        }
        wait();
        const auto main = main_of(pass);
        const auto low = low_of(pass);
        const int main_steps = ceil_div(main.a.cols, kTileK);
        const int steps = main_steps + ceil_div(low.a.cols, kTileK);
        const auto fill = [&](int step, int stage) {
            if constexpr (SPLITS) opaque_addresses();
            const bool is_low = step >= main_steps;
            const auto copy = [&](const MainProduct<T>& main, const LowRankProduct<T>& low) {
                const auto a = Matrix<T>::select(is_low, low.a, main.a);
                const auto b = select(is_low, low.b, main.b);
                const int k0 = (is_low ? step - main_steps : step) * kTileK;
                copy_tile_async(aligned, tile_a(shared, stage), a, m0, k0, thread);
                if constexpr (B_MAJOR == Major::K) {
                    copy_tile_async(aligned, tile_b(shared, stage), b, n0, k0, thread);
                } else {
                    copy_tile_async(aligned, tile_b(shared, stage), b, k0, n0, thread);
                }
            };
            if constexpr (SPLITS) {
                copy(main_of(pass), low_of(pass));
            } else {
                copy(main, low);
            }
        };
        const bool has_main = main_steps > 0;
        const int rows = (has_main ? main.a.rows : low.a.rows) - m0;
        const int cols = (has_main ? main.template columns<B_MAJOR>()
                                   : low.template columns<B_MAJOR>()) - n0;
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
        if constexpr (kPacked) {
            if (!is_started) start_copies<kStages>(steps, fill, first);
        }
        pipeline<kStages, kPacked>(steps, fill, consume, first);
    }

    // The loop that takes the time: all whole k-steps of the main product, except the last
    // kStages − 1, whose copies have started when it ends. It loads the fragments of each 16-deep
    // step while the tensor cores work on the step before.
    __device__ __forceinline__ static void accumulate_whole(Mma& mma, unsigned char* shared,
                                                            const MainProduct<T>& main, int m0,
                                                            int n0, int whole, int thread) {
        constexpr u32 kEnd = kStages * kStageBytes;
        TileCopy<Matrix<T>, TileA, Major::K> copy_a(main.a, m0, tile_a(shared, 0), thread);
        TileCopy<Weight<T>, TileB, B_MAJOR> copy_b(main.b, n0, tile_b(shared, 0), thread);
#pragma unroll
        for (int s = 0; s < kStages - 1; ++s) {
            copy_a.start(s * kStageBytes);
            copy_b.start(s * kStageBytes);
            cp_async_commit_group();
        }
        cp_async_wait_group<kStages - 2>();
        __syncthreads();
        using Fragments = FragmentsOfStep;
        const typename Fragments::Addresses at(tile_a(shared, 0), tile_b(shared, 0), thread);
        Fragments even, odd;
        even.template load<0>(at, 0, 0);
        u32 oldest = kEnd - kStageBytes, current = 0, next = kStageBytes;
#pragma unroll 1
        for (int left = whole - (kStages - 1); left > 0; --left) {
            odd.template load<1>(at, current, current);
            copy_a.start(oldest);
            copy_b.start(oldest);
            cp_async_commit_group();
            even.multiply(mma);
            cp_async_wait_group<kStages - 2>();
            __syncthreads();  // the next stage's data are there; this one has been read
            even.template load<0>(at, next, next);
            odd.multiply(mma);
            oldest = current;
            current = next;
            next = next + kStageBytes == kEnd ? 0 : next + kStageBytes;
        }
    }
};

#ifdef FUSED_DORA_PACKED
#include "common/tile/code4_gemm.cuh"
#endif
