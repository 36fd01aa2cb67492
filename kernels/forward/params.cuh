// What all tiles of `forward` read, and the sizes that Rust plans with.
#pragma once

#include "common/dora/dropout.cuh"
#include "common/schedule/tile_queue.cuh"
#include "common/tile/weight.cuh"

// Tokens and ranks of a tile of H.
constexpr int kLowRankTokens = 64, kLowRankRanks = 64;

// Groups whose partial sums of H are in memory at once: few, so that they stay in L2.
constexpr int kGroupsInFlight = 2;

struct ForwardParams {
    const void* x;
    WeightData weight;
    const void* a;
    const void* sb;
    const void* bias;   // null: no bias
    const float* gain;  // null: g ≡ 1
    void* x_scaled;           // x∘g (axis input) or xd (PEFT's dropout), else null
    void* x_kept_out;         // u (PEFT's dropout), else null
    void* h;
    void* z;            // PEFT's dropout, else null
    void* y;
    float* partial_h;   // partial sums of the tiles of H, for kGroupsInFlight groups; split_k.cuh
    float* partial_z;   // of the tiles of y; few tokens only
    u32* queue;         // 2 + groups
    u32* h_counters;    // [⌈T/64⌉, ⌈R/64⌉]
    u32* z_counters;    // [⌈O/64⌉]; few tokens only
    Seed seed;          // of the stochastic rounding
    Dropout dropout;
    int low_rank_tiles;  // columns of tiles of H; 0: there is neither H nor x_scaled
    int h_split_k;        // of x·Aᵀ over I, h_chunk features each but the last
    int h_chunk;
    int z_split_k;        // of x·Wᵀ over I, z_chunk features each but the last; few tokens only
    int z_chunk;
    int tokens, in_features, out_features, padded_rank;
    int x_stride, y_stride;
    int gain_on_input;  // the norm axis
    int aligned;        // every row of every operand starts at a 16-byte boundary

    __device__ __forceinline__ bool scales_output() const { return gain && !gain_on_input; }

    // The factor of W and A: x, or what the tiles of H computed from it.
    template <typename T>
    __device__ __forceinline__ Matrix<T> inputs() const {
        return Matrix<T>::strided(x_scaled ? x_scaled : x, tokens, in_features,
                                  x_scaled ? in_features : x_stride);
    }
    template <typename T>
    __device__ __forceinline__ Weight<T> weights() const {
        return Weight<T>::of(weight, out_features, in_features);
    }
    template <typename T>
    __device__ __forceinline__ Matrix<T> hidden() const {
        return Matrix<T>::dense(h, tokens, padded_rank);
    }
    template <typename T>
    __device__ __forceinline__ Matrix<T> lora_b() const {
        return Matrix<T>::dense(sb, out_features, padded_rank);
    }
};

// Features' factors and summands, for COUNT columns of y from `col` on.
template <typename T, int COUNT>
struct Columns {
    float gain[COUNT], bias[COUNT];

    __device__ __forceinline__ Columns(const ForwardParams& p, const void* bias_or_null, int col) {
        const T* b = static_cast<const T*>(bias_or_null);
#pragma unroll
        for (int e = 0; e < COUNT; ++e) {
            const bool inside = col + e < p.out_features;
            gain[e] = p.scales_output() && inside ? p.gain[col + e] : 1.0f;
            bias[e] = b && inside ? to_float(b[col + e]) : 0.0f;
        }
    }
};
