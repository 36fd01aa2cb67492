// What `prepare` reads, and the sizes that Rust plans with.
#pragma once

#include "common/tile/weight.cuh"

constexpr int kStrip = kTile;  // features whose norm one CTA computes; also a tile's depth

// The part of the work that a launch does: all of it, or for a shard what comes before or after the
// sum of Σ V² over the shards.
enum class Part : int { kWhole, kSquares, kGains };

struct PrepareParams {
    WeightData weight;
    const float* lora_a;
    const float* lora_b;
    const float* magnitude;  // m, or null where magnitude_out is given
    float* magnitude_out;
    const float* bias;       // null: the bias is frozen, or there is none
    float* norm;             // c; for a shard Σ V², written, and then that of all shards, read
    float* gain;             // g
    void* a;
    void* sb;
    void* gsb;               // axis output only, else null
    void* packed_bias;
    float* partials;         // [splits, features of the norm]
    u32* counters;           // one per strip
    float scaling;
    int in_features, out_features, rank, padded_rank;
    int norm_on_input;       // the norm axis
    int has_norm;            // 0: plain LoRA
    int split_tiles;         // tiles of 64 per split
    int aligned;             // every row of W starts at a 16-byte boundary
    int aligned_a;           // likewise of A
    int aligned_b;           // likewise of B
    Part part;
};
