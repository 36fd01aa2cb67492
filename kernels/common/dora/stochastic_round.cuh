// Stochastic rounding to 16 bits: up or down with the probability that makes it right on average,
// from a hash of (seed, row, column), so that a run can be repeated. Representable values come
// back unchanged. f32 is not rounded.
#pragma once

#include "common/ptx/types.cuh"

// A bijective mixer of 32 bits (xor-shift, odd multiply, twice).
__device__ __forceinline__ u32 mix(u32 x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// The bits of an element are mix(key of its row ^ its column).
__device__ __forceinline__ u32 row_key(u64 seed, u32 row) {
    return mix(row ^ mix(u32(seed) ^ mix(u32(seed >> 32))));
}

template <typename T>
__device__ __forceinline__ T round_stochastic(float v, u32 random);

template <>
__device__ __forceinline__ float round_stochastic<float>(float v, u32) { return v; }

// bf16 is the upper half of an f32: add a uniform 16-bit number below the cut and truncate. Infinity
// stays what it is; `v` is a product, and a NaN of its upper half alone.
template <>
__device__ __forceinline__ bf16 round_stochastic<bf16>(float v, u32 random) {
    u32 bits = __float_as_uint(v);
    if (v == v) bits += random & 0xffffu;
    return {u16(bits >> 16)};
}

// f16: add a uniform fraction of the spacing at v and round toward zero. The spacing is 2⁻¹⁰ of
// v's power of two, and 2⁻²⁴ among the subnormals.
template <>
__device__ __forceinline__ f16 round_stochastic<f16>(float v, u32 random) {
    constexpr float kMax = 65504.0f, kSpacing = 1.0f / 1024, kMinSpacing = 1.0f / (1 << 24);
    const float magnitude = fabsf(v);
    const float power = __uint_as_float(__float_as_uint(magnitude) & 0x7f800000u);
    const float fraction = float(random & 0x1fffu) / 8192.0f;
    const float moved = magnitude + fmaxf(power * kSpacing, kMinSpacing) * fraction;
    u16 rounded;
    asm("cvt.rz.f16.f32 %0, %1;" : "=h"(rounded) : "f"(moved));
    rounded |= u16((__float_as_uint(v) >> 16) & 0x8000u);
    const u16 nearest = from_float<f16>(v).bits;  // overflow, infinite or NaN
    return {magnitude < kMax ? rounded : nearest};
}
