// What all tiles of `backward` read, and the sizes that Rust plans with.
#pragma once

#include "common/dora/dropout.cuh"
#include "common/schedule/tile_queue.cuh"
#include "common/schedule/reduce.cuh"
#include "common/tile/weight.cuh"

// Output features of a strip of dY, in 16 bit and in f32.
constexpr int kStrip16Bit = 128, kStripF32 = 64;

// Ranks of a tile of P and dB.
constexpr int kRankTile = 64;

// Chunks of dY whose partial P are in memory at once: few, so that they stay in L2.
constexpr int kChunksInFlight = 4;

// Ranks and input features of a tile of dA.
constexpr int kLoraARanks = 64, kLoraAFeatures = 64;

struct BackwardParams {
    const void* grad_output;    // dY
    const void* output;         // y, or z with PEFT's dropout; axis output only
    const void* x;
    WeightData weight;
    const void* bias;           // null: no bias
    const void* h;
    const void* a;
    const void* sb;
    const void* gsb;            // what dY is contracted with: g∘sB, or sB; in f16 times 2ᵏ
    const float* unbalance;     // 2⁻ᵏ, f16 only: A is A·2⁻ᵏ there, and P is P·2ᵏ; else null
    const float* input_gain;    // g; axis input only, else null
    const float* output_gain;   // g; axis output only, else null
    const float* norm;          // c
    void* scaled_grad;          // G; axis output only, else null
    void* p;
    void* grad_input;           // null: not wanted (axis input still needs dm)
    float* grad_lora_a;
    float* grad_lora_b;
    float* grad_magnitude;
    float* grad_bias;           // null: not wanted
    float* partial_p;           // [kChunksInFlight, strips, chunk, R]
    float* sum_b;               // [⌈R/64⌉, strips] tiles of dB
    float* sum_bias;            // [O]
    float* sum_m;               // [O] (axis output), or partial sums [⌈T/64⌉, I] (axis input)
    float* sum_a;               // [⌈R/64⌉, ⌈I/64⌉] tiles of dA
    float* partial_d;           // partial sums of the tiles of D; few tokens only
    u32* queue;                 // 2 + chunks
    u32* chunk_counters;        // [⌈R/64⌉, chunks]
    u32* strip_turns;           // [⌈R/64⌉, strips]
    u32* column_counters;       // [⌈I/64⌉]
    u32* lora_a_turns;          // [⌈R/64⌉, ⌈I/64⌉]
    Dropout dropout;
    float scaling;
    int tokens, in_features, out_features, rank, padded_rank;
    int grad_stride, output_stride, x_stride, grad_input_stride;
    int adapter_tiles;          // of a chunk: strips · ⌈R/64⌉, or 0: nothing to do
    int input_tiles;            // columns of tiles of D, or 0: neither dX nor dm to compute
    int d_split_k;               // of G·W over O, d_chunk features each but the last; few tokens only
    int d_chunk;
    int chunk;                  // tokens of a tile of the adapter's, a divisor of a group's
    int lora_a_chunk;           // tokens of a tile of dA
    int peft_dropout;           // PEFT's dropout
    int aligned;                // every row of every operand starts at a 16-byte boundary
    int accumulate;             // dA, dB, dm and db are added to what the buffers hold

    // Chunks of dY. Computed at each call, because a register for it is not worth it.
    __device__ __forceinline__ int chunks() const {
        int each = chunk;
        opaque(each);
        return ceil_div(tokens, each);
    }

    // dY∘g is an operand of its own.
    __device__ __forceinline__ bool scales_grad() const { return scaled_grad != nullptr; }

    // The factor of W: G, or dY.
    template <typename T>
    __device__ __forceinline__ Matrix<T> gradients() const {
        return scales_grad() ? Matrix<T>::dense(scaled_grad, tokens, out_features)
                             : Matrix<T>::strided(grad_output, tokens, out_features, grad_stride);
    }
    template <typename T>
    __device__ __forceinline__ Weight<T> weights() const {
        return Weight<T>::of(weight, out_features, in_features);
    }
    template <typename T>
    __device__ __forceinline__ Matrix<T> projected() const {
        return Matrix<T>::dense(p, tokens, padded_rank);
    }
    template <typename T>
    __device__ __forceinline__ Matrix<T> lora_a() const {
        return Matrix<T>::dense(a, padded_rank, in_features);
    }

    // dm of one feature from its sum of x∘D or dY∘z; 0 where c = 0.
    __device__ __forceinline__ void store_magnitude(int feature, float sum) const {
        const float c = norm[feature];
        store_gradient(grad_magnitude + feature, c > 0.0f ? sum / c : 0.0f, accumulate);
    }
};
