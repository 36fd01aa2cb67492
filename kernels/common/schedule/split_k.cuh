// Split-K: several CTAs compute a tile, each over a part of K. Partial sums go through the L2 cache.
// The CTA that arrives last adds them up in order and discards them from the cache.
#pragma once

#include "common/tile/mma.cuh"
#include "common/schedule/reduce.cuh"

template <typename MMA>
struct SplitK {
    static constexpr int kFragments = MMA::kFragmentsM * MMA::kFragmentsN;
    // Of one CTA: each warp's accumulators, four of each lane at a time.
    static constexpr int kFloats = kFragments * 4 * kThreads;

    // Adds up `mma` over the `splits` CTAs of a tile, for the first `cols` columns. Returns true in
    // all threads of the CTA that has the whole sum. `partials` has kFloats for each CTA and starts
    // at a multiple of 128 bytes.
    __device__ __forceinline__ static bool add(MMA& mma, float* partials, int split, int splits,
                                               int cols, u32* counter, unsigned char* shared) {
        if (splits == 1) return true;
        const int n0 = MMA::warp_n() * MMA::kWarpN, lane = threadIdx.x % 32;
        const auto inside = [&](int f) { return n0 + f % MMA::kFragmentsN * 8 < cols; };
        const int warp_start = threadIdx.x / 32 * kFragments * 32;
        float4* const warp = reinterpret_cast<float4*>(partials) + warp_start;
        float4* const mine = warp + split * (kFloats / 4) + lane;
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
            const float(&v)[4] = mma.acc[f / MMA::kFragmentsN][f % MMA::kFragmentsN];
            if (inside(f)) mine[f * 32] = make_float4(v[0], v[1], v[2], v[3]);
        }
        if (!arrive_last(counter, splits, reinterpret_cast<u32*>(shared))) return false;
        mma.clear();
#pragma unroll 2
        for (int s = 0; s < splits; ++s) {
            const float4* const from = warp + s * (kFloats / 4) + lane;
            float4 parts[kFragments];
#pragma unroll
            for (int f = 0; f < kFragments; ++f) {
                parts[f] = inside(f) ? __ldcg(from + f * 32) : make_float4(0, 0, 0, 0);
            }
#pragma unroll
            for (int f = 0; f < kFragments; ++f) {
                float(&sum)[4] = mma.acc[f / MMA::kFragmentsN][f % MMA::kFragmentsN];
                sum[0] += parts[f].x;
                sum[1] += parts[f].y;
                sum[2] += parts[f].z;
                sum[3] += parts[f].w;
            }
        }
        __syncwarp();  // all lanes have read
        constexpr int kLines = kFragments * 4;  // of 128 bytes, four for a fragment of all lanes
#pragma unroll 1
        for (int s = 0; s < splits; ++s) {
#pragma unroll
            for (int line = lane; line < kLines; line += 32) {
                if (inside(line / 4)) discard_l2(warp + s * (kFloats / 4) + line * 8);
            }
        }
        return true;
    }
};
