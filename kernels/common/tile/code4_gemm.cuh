// The main loop on a W of 4-bit codes: decodes a k-step's tile of W while the tensor cores work on
// the one before.
//
// A thread copies the 16 bytes that it decodes itself, 32 codes of a row that share a scale, so that
// they need no barrier on their way. For each 32 codes it makes a table of the 16 numbers that these
// codes can stand for, rounded as W is, in eight registers: four of high bytes and four of low bytes.
// PRMT then looks up four bytes at a time.
#pragma once

#include "common/tile/pipeline.cuh"
#include "common/tile/weight.cuh"

// Eight elements of 16 bits.
struct Decoded {
    u32 words[4];
};

// What the codes of one block stand for.
template <typename T, bool FP4>
struct CodeTable {
    u32 high[4], low[4];

    __device__ __forceinline__ explicit CodeTable(float scale) {
        const auto number = [&](int code) {
            const float of_one = kCodes4[FP4][code];
            // Products that the compiler would not leave out.
            return of_one == 1.0f    ? scale
                   : of_one == -1.0f ? -scale
                                     : __fmul_rn(of_one, scale);
        };
        const auto pair = [&](int code) {
            return cvt_pair<T>(number(code), number(code + 1));
        };
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const u32 first = pair(4 * i), second = pair(4 * i + 2);
            high[i] = prmt(first, second, 0x7531);
            low[i] = prmt(first, second, 0x6420);
        }
    }

    // Four bytes: `index` has the codes' low three bits as nibbles, `is_upper` all ones in the bytes
    // of codes from 8 on.
    __device__ __forceinline__ static u32 look_up(const u32 (&table)[4], u32 index, u32 is_upper) {
        const u32 lower = prmt(table[0], table[1], index), upper = prmt(table[2], table[3], index);
        return (is_upper & upper) | (~is_upper & lower);
    }

    // Eight neighbours, from the four bytes that hold their codes, the even ones in high halves.
    __device__ __forceinline__ Decoded decode(u32 codes) const {
        const u32 index = codes & 0x77777777u, shifted = codes << 4;
        Decoded out;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            // The sign of each code's nibble, over a byte each.
            const u32 is_upper = prmt(shifted, codes, half == 0 ? 0xd9c8 : 0xfbea);
            const u32 of_half = index >> (16 * half);
            const u32 highs = look_up(high, of_half, is_upper);
            const u32 lows = look_up(low, of_half, is_upper);
            out.words[2 * half] = prmt(lows, highs, 0x4051);
            out.words[2 * half + 1] = prmt(lows, highs, 0x6273);
        }
        return out;
    }
};

// The scales of the codes that a thread decodes, k-step after k-step. Each load has a k-step's time.
struct ScaleStream {
    i64 ahead;    // the first code of the k-step whose scale is loaded next
    int step;
    float inner;  // of the next k-step: its scale, or nested what its scale's code stands for
    float outer;  // nested: the scale of 256 blocks
    u32 code;     // nested: of the k-step after that

    __device__ __forceinline__ ScaleStream(const WeightData& data, i64 first, int step)
        : ahead(first), step(step), outer(0.0f), code(0) {
        if (data.outer_scales) code = load_code(data);
        load(data, true);
    }

    // The scale of the next k-step, and the loads for those that follow; `more`: there is one after
    // `ahead`. Beyond the last the loads repeat.
    __device__ __forceinline__ float next(const WeightData& data, bool more) {
        float scale = inner;
        if (data.outer_scales) scale = __fadd_rn(__fmul_rn(inner, outer), data.scale_offset);
        load(data, more);
        return scale;
    }

private:
    __device__ __forceinline__ void load(const WeightData& data, bool more) {
        constexpr int kNestedShift = 8;
        const i64 block = ahead >> data.block_shift;
        if (more) ahead += step;
        if (data.outer_scales) {
            inner = data.scale_map[code];
            outer = data.outer_scales[block >> kNestedShift];
            code = load_code(data);
        } else {
            inner = static_cast<const float*>(data.scales)[block];
        }
    }
    __device__ __forceinline__ u32 load_code(const WeightData& data) const {
        return static_cast<const unsigned char*>(data.scales)[ahead >> data.block_shift];
    }
};

// C += A·W over all whole k-steps. There must be three or more. GEMM is a MainGemm.
template <typename GEMM, typename T, Major B_MAJOR, bool FP4>
struct Code4Gemm {
    using Mma = typename GEMM::Mma;
    using TileA = typename GEMM::TileA;
    using TileB = typename GEMM::TileB;
    using Fragments = typename GEMM::FragmentsOfStep;
    static constexpr int kCodes = 32;                        // of a thread and k-step
    static constexpr int kStages = 3;                        // of A, and of codes on their way
    static constexpr int kCodesBytes = kThreads * kCodes / 2;
    // A stage of A begins this many times as far on as one of codes.
    static constexpr int kTimes = TileA::kBytes / kCodesBytes;
    static_assert(kTimes * kCodesBytes == TileA::kBytes, "one offset does for both");
    static constexpr int kWeightOffset = kStages * TileA::kBytes;
    static constexpr int kCodesOffset = kWeightOffset + 2 * TileB::kBytes;
    static_assert(TileB::kRows * TileB::kCols == kThreads * kCodes, "a thread decodes 32 codes");
    static_assert(kCodesOffset + kStages * kCodesBytes <= GEMM::kSharedBytes, "it fits");

    // This thread's codes: a row of the tile, or a quarter of one.
    static constexpr int kPieces = TileB::kCols / kCodes;
    static constexpr int kChunks = kCodes / kVector<T>;

    template <typename PRODUCT>
    __device__ __forceinline__ static void accumulate(Mma& mma, unsigned char* shared,
                                                      const PRODUCT& main, int m0, int n0,
                                                      int whole, int thread) {
        const PackedWeight<T>& weight = main.b;
        const int row = thread / kPieces, piece = thread % kPieces;
        // Beyond the matrix its last rows and columns: they only reach what is not stored.
        const i64 first = B_MAJOR == Major::K
                              ? i64(min(n0 + row, weight.rows - 1)) * weight.cols
                              : i64(row) * weight.cols +
                                    min(n0 + piece * kCodes, weight.cols - kCodes);
        const int step = B_MAJOR == Major::K ? TileB::kCols : TileB::kRows * weight.cols;
        const unsigned char* codes =
            static_cast<const unsigned char*>(weight.data.elements) + first / 2;
        const u32 own = shared_address(shared + kCodesOffset) + thread * (kCodes / 2);
        // Into the stage that begins where A's has this offset.
        const auto start_codes = [&](u32 of_a) {
            cp_async_16(own + of_a / kTimes, codes);
            codes += step / 2;
        };
        // Of four neighbouring pieces, two write their chunks in another order: else they would meet
        // in a bank.
        const int turn = kPieces > 1 ? piece & 2 : 0;
        const TileB tile(shared + kWeightOffset);
        u32 to[kChunks];
#pragma unroll
        for (int i = 0; i < kChunks; ++i) {
            to[i] = shared_address(tile.chunk(row, piece * kChunks + (i ^ turn)));
        }
        ScaleStream scales(weight.data, first, step);
        const auto decode = [&](u32 of_a, u32 stage, bool more) {
            u32 q[4];
            ld_shared_v4(q, own + of_a / kTimes);
            const CodeTable<T, FP4> table(scales.next(weight.data, more));
#pragma unroll
            for (int i = 0; i < kChunks; ++i) {
                st_shared_v4(to[i] + stage, table.decode(turn ? q[i ^ 2] : q[i]).words);
            }
        };
        TileCopy<Matrix<T>, TileA, Major::K> copy_a(main.a, m0, TileA(shared), thread);

        // The codes run a k-step ahead of A.
        start_codes(0);
        start_codes(TileA::kBytes);
        copy_a.start(0);
        cp_async_commit_group();
        start_codes(2 * TileA::kBytes);
        copy_a.start(TileA::kBytes);
        cp_async_commit_group();
        cp_async_wait_group<1>();
        decode(0, 0, true);
        __syncthreads();
        const typename Fragments::Addresses at(TileA(shared), tile, thread);
        Fragments even, odd;
        even.template load<0>(at, 0, 0);
        constexpr u32 kEnd = kStages * TileA::kBytes;
        u32 oldest = kEnd - TileA::kBytes, current = 0, next = TileA::kBytes, stage = 0;
#pragma unroll 1
        for (int left = whole - 1; left > 0; --left) {
            // A thread's own codes are there since it waited; the stage was read before the barrier.
            decode(next, stage ^ TileB::kBytes, left > 2);
            if (left > 1) copy_a.start(oldest);
            if (left > 2) start_codes(current);  // this thread has decoded what is there
            cp_async_commit_group();
            even.multiply(mma);
            odd.template load<1>(at, current, stage);
            cp_async_wait_group<1>();
            __syncthreads();  // the next k-step's tiles are there; this one's have been read
            stage ^= TileB::kBytes;
            even.template load<0>(at, next, stage);
            odd.multiply(mma);
            oldest = current;
            current = next;
            next = next + TileA::kBytes == kEnd ? 0 : next + TileA::kBytes;
        }
        odd.template load<1>(at, current, stage);
        even.multiply(mma);
        odd.multiply(mma);
        __syncthreads();  // the shared memory may be reused
    }
};

template <typename GEMM, Major B_MAJOR, typename T>
__device__ __forceinline__ bool accumulate_ahead(typename GEMM::Mma& mma, unsigned char* shared,
                                                 const Product<T, PackedWeight<T>>& main, int m0,
                                                 int n0, int whole, int thread) {
    if (!main.b.is_decoded_ahead()) return false;
    if (main.b.data.packing == Packing::kFp4) {
        Code4Gemm<GEMM, T, B_MAJOR, true>::accumulate(mma, shared, main, m0, n0, whole, thread);
    } else {
        Code4Gemm<GEMM, T, B_MAJOR, false>::accumulate(mma, shared, main, m0, n0, whole, thread);
    }
    return true;
}

template <int STAGES, typename FILL>
__device__ __forceinline__ void start_copies(int steps, FILL fill, int first) {
#pragma unroll 1  // one copy of what decodes
    for (int step = first; step < first + STAGES - 1; ++step) {
        if (step < steps) fill(step, step % STAGES);
        cp_async_commit_group();
    }
}
