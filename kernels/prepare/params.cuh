// What `prepare` reads, and the sizes that Rust plans with.
#pragma once

#include "common/tile/weight.cuh"

constexpr int kStrip = kTile;  // features whose norm one CTA computes; also a tile's depth

// The part of the work that a launch does: all of it, or for a shard what comes before or after the
// sum of Σ V² over the shards.
enum class Part : int { kWhole, kSquares, kGains };

// The power of two by which f16 scales what gradients are taken through, so that small adapters stay
// normal numbers there: gsb·2ᵏ and A·2⁻ᵏ.
struct Balance {
    float up, down;  // 2ᵏ and 2⁻ᵏ
};

// The largest |s·B|·2ᵏ is at least 2⁻⁶, like a weight: P is then about as large as dX.
constexpr int kBalancedTo = 6;    // −log₂ of it
constexpr int kMostBalance = 40;  // k is at least 0, and at most this

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
    void* gsb;               // axis output, else null; in f16 times 2ᵏ
    void* balanced_a;        // A·2⁻ᵏ in f16, else null
    void* balanced_sb;       // f16 without gsb: s·B·2ᵏ; else null
    Balance* balance;        // f16 only, else null
    u32* balance_words;      // two: the largest |B| so far, and the CTAs that have looked
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
