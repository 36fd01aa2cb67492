// What `adamw` and `gradient_norm` read, and the sizes that Rust plans with.
#pragma once

#include "common/ptx/types.cuh"

constexpr int kMaxParts = 64;    // of one launch
constexpr int kChunk = 1024;     // elements of a CTA's share of a part

// Elements start..start+len of the buffers; their first chunk is the CTA of that index.
struct Part {
    i64 start, len;
    u32 first_chunk;
    float learning_rate_factor;
    float weight_decay;
};

struct Parts {
    Part part[kMaxParts];
    u32 count, chunks;

    // The part that a chunk belongs to: the last that starts no later.
    __device__ __forceinline__ const Part& of_chunk(u32 chunk) const {
        u32 first = 0;
#pragma unroll
        for (u32 step = kMaxParts / 2; step > 0; step /= 2) {
            if (first + step < count && part[first + step].first_chunk <= chunk) first += step;
        }
        return part[first];
    }
};
static_assert((kMaxParts & (kMaxParts - 1)) == 0, "the search halves its steps");

struct AdamWParams {
    float* parameters;
    const float* gradients;
    float* exp_avg;
    float* exp_avg_sq;
    const float* norm;         // null: gradients are not clipped
    const float* schedule;     // learning rate and t; null: those below
    u64* counter;              // null: nothing counts the steps
    float learning_rate;
    float correction;          // 1/(1 − β1ᵗ)
    float correction_sq;       // 1/√(1 − β2ᵗ)
    float rate, rate_sq;       // 1 − β1, 1 − β2
    float log_beta1, log_beta2;
    float epsilon;
    float max_norm;
    int aligned;               // the four buffers start at 16-byte boundaries
    Parts parts;
};

struct GradientNormParams {
    const float* gradients;
    float* norm;
    double* partials;          // one per CTA
    u32* counter;
    int first, last;           // whether this is the call's first launch, and its last
    int aligned;
    Parts parts;
};
