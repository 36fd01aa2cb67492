// What all tiles of the backward read.
#pragma once

#include "common/dropout.cuh"
#include "common/order.cuh"

// Chunks of dY whose partial P are in memory at once: few, so that they stay in L2.
constexpr int kRing = 4;

struct BackwardParams {
    const void* grad_output;    // dY
    const void* output;         // y, or z with PEFT's dropout; axis output only
    const void* x;
    const void* weight;
    const void* bias;           // null: no bias
    const void* h;
    const void* a;
    const void* sb;
    const void* gsb;            // what dY is contracted with: g∘sB, or sB
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
    float* partial_p;           // [kRing, strips, chunk, R]
    float* sum_b;               // [O, R]
    float* sum_bias;            // [O]
    float* sum_m;               // [O] (axis output), or partial sums [⌈T/128⌉, I] (axis input)
    float* sum_a;               // [R, I]
    u32* board;                 // 2 + chunks
    u32* chunk_counters;        // [⌈R/64⌉, chunks]
    u32* strip_turns;           // [⌈R/64⌉, strips]
    u32* column_counters;       // [⌈I/128⌉]
    u32* lora_a_turns;          // [⌈R/64⌉, ⌈I/64⌉]
    Dropout dropout;
    float scaling;
    int tokens, in_features, out_features, rank, padded_rank;
    int grad_stride, output_stride, x_stride, grad_input_stride;
    int adapter_tiles;          // of a chunk: strips · ⌈R/64⌉, or 0: nothing to do
    int input_tiles;            // columns of tiles of D, or 0: neither dX nor dm to compute
    int chunk;                  // tokens of a tile of the adapter's, a divisor of a group's
    int lora_a_chunk;           // tokens of a tile of dA
    int peft_dropout;           // PEFT's dropout
    int aligned;                // every row of every operand starts at a 16-byte boundary
    int accumulate;             // dA, dB, dm and db are added to what is there

    // dY∘g is an operand of its own.
    __device__ __forceinline__ bool scales_grad() const { return scaled_grad != nullptr; }
};
