// A packed W, decoded where it is read: W = round_T(round_S(formula in f32)).
//
// Codes lie as their checkpoints have them, and are decoded from global memory, a chunk at a time.
// Formats: bitsandbytes (github.com/bitsandbytes-foundation/bitsandbytes) for 4 bits and int8; e4m3
// (arXiv:2209.05433).
#pragma once

#include "common/tile/tile_copy.cuh"

// What the codes of 4 bits stand for: NF4 (arXiv:2305.14314, appendix E), then bitsandbytes' FP4.
__constant__ constexpr float kCodes4[2][16] = {
    {-1.0f, -0.69619280099868774f, -0.52507305145263672f, -0.39491748809814453f,
     -0.28444138169288635f, -0.18477343022823334f, -0.091050036251544952f, 0.0f,
     0.079580299556255341f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
     0.44070982933044434f, 0.56261700391769409f, 0.72295683622360229f, 1.0f},
    {0.0f, 0.0052083334885537624f, 0.66666668653488159f, 1.0f, 0.3333333432674408f, 0.5f,
     0.1666666716337204f, 0.25f, 0.0f, -0.0052083334885537624f, -0.66666668653488159f, -1.0f,
     -0.3333333432674408f, -0.5f, -0.1666666716337204f, -0.25f},
};

// The rounding to T.
template <typename T>
constexpr Rounding kRoundingTo = Rounding::kNone;
template <>
constexpr Rounding kRoundingTo<bf16> = Rounding::kBf16;
template <>
constexpr Rounding kRoundingTo<f16> = Rounding::kF16;

// W, row after row of the flattened matrix.
template <typename T>
struct PackedWeight {
    static constexpr bool kPacked = true;
    WeightData data;
    int rows, cols;

    __device__ __forceinline__ static PackedWeight of(const WeightData& data, int rows, int cols) {
        return {data, rows, cols};
    }

    // An element from its code and its scale.
    __device__ __forceinline__ T value(u32 code, float scale) const {
        float v;
        if (data.packing == Packing::kInt8) {
            v = __fmul_rn(__fmul_rn(float(int(code << 24) >> 24), scale), 0.007874015718698502f);
        } else if (data.packing == Packing::kFp8) {
            // The bits of an f32 that is 2⁻¹²⁰ of the number, subnormals included.
            constexpr float kPower = 1.329227995784916e36f;  // 2¹²⁰
            const u32 bits = u32(int(code << 24) >> 4) & 0x87f00000u;
            v = __fmul_rn(__fmul_rn(__uint_as_float(bits), kPower), scale);
        } else {
            v = __fmul_rn(kCodes4[data.packing == Packing::kFp4][code], scale);
        }
        if (data.rounding == Rounding::kBf16) v = to_float(from_float<bf16>(v));
        if (data.rounding == Rounding::kF16) v = to_float(from_float<f16>(v));
        return from_float<T>(v);
    }

    __device__ __forceinline__ bool is_code4() const {
        return data.packing == Packing::kNf4 || data.packing == Packing::kFp4;
    }

    // Whether code4_gemm.cuh takes it: 16 bytes of codes are in one block, and are rounded once.
    __device__ __forceinline__ bool is_decoded_ahead() const {
        const bool is_rounded_once =
            data.rounding == Rounding::kNone || data.rounding == kRoundingTo<T>;
        const bool is_aligned = cols % 32 == 0 && reinterpret_cast<u64>(data.elements) % 16 == 0;
        return is_code4() && is_rounded_once && is_aligned;
    }

    __device__ __forceinline__ float scale(int row, int col) const {
        i64 at = row;
        if (is_code4()) {
            at = (i64(row) * cols + col) >> data.block_shift;
        } else if (data.packing == Packing::kFp8) {
            at = i64(row / data.scale_rows) * ceil_div(cols, data.scale_cols) +
                 col / data.scale_cols;
        }
        if (!data.outer_scales) return static_cast<const float*>(data.scales)[at];
        constexpr int kNestedShift = 8;
        const int code = static_cast<const unsigned char*>(data.scales)[at];
        return __fadd_rn(
            __fmul_rn(data.scale_map[code], data.outer_scales[at >> kNestedShift]),
            data.scale_offset);
    }

    __device__ __forceinline__ T element(int row, int col) const {
        const i64 flat = i64(row) * cols + col;
        const auto codes = static_cast<const unsigned char*>(data.elements);
        // The even element of two is in the high half.
        const u32 code = is_code4() ? codes[flat / 2] >> (flat % 2 ? 0 : 4) & 15 : codes[flat];
        return value(code, scale(row, col));
    }

    // A chunk of a row that is aligned: in one block, its codes one access.
    __device__ __forceinline__ Vector<T> chunk(int row, int col) const {
        constexpr int kCount = kVector<T>;
        const i64 flat = i64(row) * cols + col;
        const auto codes = static_cast<const unsigned char*>(data.elements);
        const float of_block = scale(row, col);
        Vector<T> out;
        if (is_code4()) {
            u32 word;
            if constexpr (kCount == 8) {
                word = *reinterpret_cast<const u32*>(codes + flat / 2);
            } else {
                word = *reinterpret_cast<const u16*>(codes + flat / 2);
            }
#pragma unroll
            for (int e = 0; e < kCount; ++e) {
                const int shift = e / 2 * 8 + (e % 2 ? 0 : 4);
                out.values[e] = value(word >> shift & 15, of_block);
            }
        } else {
            u32 words[kCount / 4];
#pragma unroll
            for (int w = 0; w < kCount / 4; ++w) {
                words[w] = reinterpret_cast<const u32*>(codes + flat)[w];
            }
#pragma unroll
            for (int e = 0; e < kCount; ++e) {
                out.values[e] = value(words[e / 4] >> (e % 4 * 8) & 255, of_block);
            }
        }
        return out;
    }
};

template <typename T>
using Weight = PackedWeight<T>;

template <typename T>
__device__ __forceinline__ T load_element(const PackedWeight<T>& weight, int row, int col) {
    return weight.element(row, col);
}

template <bool ALIGNED, typename T>
__device__ __forceinline__ Quad<T> load_quad(const PackedWeight<T>& weight, int row, int col) {
    Quad<T> out = {};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        if (col + e < weight.cols) out.values[e] = weight.element(row, col + e);
    }
    return out;
}

template <bool ALIGNED, typename T>
__device__ __forceinline__ Vector<T> load_chunk(const PackedWeight<T>& weight, int row, int col) {
    Vector<T> out = {};
    if (row >= weight.rows) return out;
    if (ALIGNED) {
        if (col < weight.cols) out = weight.chunk(row, col);
    } else {
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
            if (col + e < weight.cols) out.values[e] = weight.element(row, col + e);
        }
    }
    return out;
}

// A dense matrix or W.
template <typename T>
struct DenseOrPacked {
    bool is_dense;
    Matrix<T> dense;
    PackedWeight<T> packed;
};

template <typename T>
__device__ __forceinline__ DenseOrPacked<T> select(bool dense, const Matrix<T>& other,
                                                   const PackedWeight<T>& weight) {
    return {dense, other, weight};
}

// Decodes a tile into shared memory. The caller's barrier makes it visible.
template <typename TILE, typename T>
__device__ __forceinline__ void copy_tile_async(bool aligned, TILE tile,
                                                const PackedWeight<T>& source, int row0, int col0,
                                                int thread = threadIdx.x) {
    for_each_chunk<false, TILE>([&](int r, int c) {
        const int row = row0 + r, col = col0 + c * kVector<T>;
        *reinterpret_cast<Vector<T>*>(tile.chunk(r, c)) =
            aligned ? load_chunk<true>(source, row, col) : load_chunk<false>(source, row, col);
    }, thread);
}

template <typename TILE, typename T>
__device__ __forceinline__ void copy_tile_async(bool aligned, TILE tile,
                                                const DenseOrPacked<T>& source, int row0, int col0,
                                                int thread = threadIdx.x) {
    if (source.is_dense) {
        copy_tile_async(aligned, tile, source.dense, row0, col0, thread);
    } else {
        copy_tile_async(aligned, tile, source.packed, row0, col0, thread);
    }
}

// As of a Matrix: decodes the tiles of the main loop, one after the other.
template <typename T, typename TILE, Major MAJOR>
struct TileCopy<PackedWeight<T>, TILE, MAJOR> {
    PackedWeight<T> source;
    TILE tile;
    int first, k;
    int thread;

    __device__ __forceinline__ TileCopy(const PackedWeight<T>& source, int first, TILE tile,
                                        int thread)
        : source(source), tile(tile), first(first), k(0), thread(thread) {}

    // Decodes the next k-step's tile into the stage that begins at byte `stage`.
    __device__ __forceinline__ void start(u32 stage) {
        const TILE to(reinterpret_cast<unsigned char*>(tile.data) + stage);
        copy_tile_async(true, to, source, MAJOR == Major::K ? first : k,
                        MAJOR == Major::K ? k : first, thread);
        k += MAJOR == Major::K ? TILE::kCols : TILE::kRows;
    }
};
