// Scalar types and conversions, without CUDA headers: each conversion is one PTX instruction.
#pragma once

#include "common/sizes.cuh"

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

struct bf16 { u16 bits; };
struct f16 { u16 bits; };
using f32 = float;

static_assert(sizeof(bf16) == 2 && sizeof(f16) == 2, "16-bit types are loaded as 16-bit words");

// The entry points of a kernel file: MACRO(name, type) for the dtype FUSED_DORA_DTYPE, or for every
// dtype if that is not defined.
#ifdef FUSED_DORA_DTYPE
#define FUSED_DORA_ENTRIES(MACRO) FUSED_DORA_ENTRIES_OF(MACRO, FUSED_DORA_DTYPE)
#define FUSED_DORA_ENTRIES_OF(MACRO, T) MACRO(T, T)
#else
#define FUSED_DORA_ENTRIES(MACRO) MACRO(bf16, bf16) MACRO(f16, f16) MACRO(f32, f32)
#endif

// Entry points that only f32 has.
#define FUSED_DORA_IF_bf16_IS_f32(ENTRY)
#define FUSED_DORA_IF_f16_IS_f32(ENTRY)
#define FUSED_DORA_IF_f32_IS_f32(ENTRY) ENTRY

// Entry points that only f16 has.
#define FUSED_DORA_IF_bf16_IS_f16(ENTRY)
#define FUSED_DORA_IF_f16_IS_f16(ENTRY) ENTRY
#define FUSED_DORA_IF_f32_IS_f16(ENTRY)

constexpr int kWarpSize = 32;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kVectorBytes = 16;

template <typename T>
constexpr int kVector = kVectorBytes / sizeof(T);  // elements in one 16-byte access

template <typename T>
constexpr bool kIsFloat = sizeof(T) == 4;

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) { return __uint_as_float(u32(v.bits) << 16); }
__device__ __forceinline__ float to_float(f16 v) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v.bits));
    return out;
}

// Round to nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) { return v; }
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float v) {
    bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
    return out;
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float v) {
    f16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
    return out;
}

// 16 bytes of T, moved as one access.
template <typename T>
struct __align__(kVectorBytes) Vector {
    T values[kVector<T>];
};

// A vector as the words of one 16-byte load: what is not unpacked before it has come.
struct Words {
    u32 values[4];

    template <typename T>
    __device__ __forceinline__ static Words of(const Vector<T>& vector) {
        Words out;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (kIsFloat<T>) {
                out.values[i] = __float_as_uint(vector.values[i]);
            } else {
                const u32 high = vector.values[2 * i + 1].bits;
                out.values[i] = vector.values[2 * i].bits | high << 16;
            }
        }
        return out;
    }
    // Element `e` of the vector.
    template <typename T>
    __device__ __forceinline__ T element(int e) const {
        if constexpr (kIsFloat<T>) {
            return __uint_as_float(values[e]);
        } else {
            return {u16(values[e / 2] >> (e % 2 * 16))};
        }
    }
};

// FIRST where CHOICE, else SECOND.
template <bool CHOICE, typename FIRST, typename SECOND>
struct Selected { using Type = FIRST; };
template <typename FIRST, typename SECOND>
struct Selected<false, FIRST, SECOND> { using Type = SECOND; };
template <bool CHOICE, typename FIRST, typename SECOND>
using Select = typename Selected<CHOICE, FIRST, SECOND>::Type;

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
