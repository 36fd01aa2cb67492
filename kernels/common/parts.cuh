// Products that several CTAs share, each a part of K: the partial sums of a tile go through memory,
// and the CTA that arrives last adds them up in their order.
#pragma once

#include "common/mma.cuh"
#include "common/reduce.cuh"

template <typename MMA>
struct SplitSum {
    static constexpr int kFragments = MMA::kFragmentsM * MMA::kFragmentsN;
    // Of one CTA: each thread's accumulators, four at a time, beside those of its neighbours.
    static constexpr int kFloats = kFragments * 4 * kThreads;

    // Adds up what the `splits` CTAs of a tile have in `mma`, of its first `cols` columns; true in
    // all threads of the one that has the whole then. `partials` has kFloats for each of them.
    __device__ __forceinline__ static bool add(MMA& mma, float* partials, int split, int splits,
                                               int cols, u32* counter, unsigned char* shared) {
        if (splits == 1) return true;
        const int n0 = MMA::warp_n() * MMA::kWarpN;
        float4* const own = reinterpret_cast<float4*>(partials) + threadIdx.x;
        float4* const mine = own + split * (kFloats / 4);
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
            const float(&v)[4] = mma.acc[f / MMA::kFragmentsN][f % MMA::kFragmentsN];
            if (n0 + f % MMA::kFragmentsN * 8 < cols) {
                mine[f * kThreads] = make_float4(v[0], v[1], v[2], v[3]);
            }
        }
        if (!arrive_last(counter, splits, reinterpret_cast<u32*>(shared))) return false;
        mma.clear();
#pragma unroll 2
        for (int s = 0; s < splits; ++s) {
            const float4* const from = own + s * (kFloats / 4);
            float4 parts[kFragments];
#pragma unroll
            for (int f = 0; f < kFragments; ++f) {
                const bool inside = n0 + f % MMA::kFragmentsN * 8 < cols;
                parts[f] = inside ? __ldcg(from + f * kThreads) : make_float4(0, 0, 0, 0);
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
        return true;
    }
};
