// What `decompose` reads, and the sizes that Rust plans with.
#pragma once

#include "common/tile/weight.cuh"

constexpr int kMoments = 3;  // a, b, e

struct DecomposeParams {
    WeightData weight;
    const void* changed;     // W_t; null: the adapter's
    const float* lora_a;
    const float* lora_b;
    const float* gain;       // null: g ≡ 1
    double* result;
    double* partials;        // [splits, features, kMoments]
    double* strip_sums;      // [strips, 2]
    u32* strip_counters;     // one per strip
    u32* counter;
    float scaling;
    int in_features, out_features, rank;
    int gain_on_input;       // the adapter's norm axis
    int on_input;            // the axis of the result
    int changed_dtype;       // of W_t: 0 bf16, 1 f16, 2 f32
    int split_tiles;         // tiles of 64 per split
    int aligned;             // rows of the weights start at multiples of four elements
    int aligned_a;           // every row of A starts at a 16-byte boundary
    int aligned_b;           // likewise of B
};
