// What `merge` and `unmerge` read, and the sizes that Rust plans with.
#pragma once

#include "common/tile/weight.cuh"

constexpr int kSums = 3;  // ΣΔ², ΣE², ΣE·Δ

struct MergeParams {
    WeightData weight;       // W; `unmerge`: W', which is dense
    void* target;
    const float* lora_a;
    const float* lora_b;
    const float* gain;       // null: g ≡ 1
    double* report;          // null: not wanted
    double* partials;        // [CTAs, kSums]
    u32* counter;
    float scaling;
    int in_features, out_features, rank;
    int gain_on_input;       // the norm axis
    int merged_dtype;        // of W': 0 bf16, 1 f16, 2 f32
    int aligned;             // rows of source and target start at multiples of four elements
    int aligned_a;           // every row of A starts at a 16-byte boundary
    int aligned_b;           // likewise of B
};
