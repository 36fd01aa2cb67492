// What both launches of `norm_gradient` read, and the sizes that Rust plans with.
#pragma once

#include "common/tile/weight.cuh"

// Columns of W that a CTA takes, in 16 bit and in f32, and rows of a tile.
constexpr int kStrip16Bit = 128, kStripF32 = 64;
constexpr int kRows = 32;

constexpr int kRankTile = 64;     // ranks of a CTA
constexpr int kGramTile = 32;     // ranks along both sides of a tile of a Gram matrix
// Features and ranks of a CTA of the second launch.
constexpr int kFinishFeatures = 64, kFinishRanks = 16;

struct NormGradientParams {
    WeightData weight;
    const float* lora_a;
    const float* lora_b;
    const float* gain;            // g
    const float* norm;            // c
    const float* grad_magnitude;  // dm
    float* grad_lora_a;
    float* grad_lora_b;
    float* partial_a;             // B'ᵀW of the pass: [chunks, ranks, I]
    float* partial_b;             // W·A'ᵀ of the pass: [strips, rows, ranks]
    float* grams;                 // B'ᵀB, then A·A'ᵀ: each [gram_chunks, R, R]
    float scaling;
    int in_features, out_features, rank, padded_rank;
    int norm_on_input;            // the norm axis
    int first_row, last_row;      // of W in this pass: the first, and the one after the last
    int first_rank, ranks;        // of this pass, padded: up to kRankTile
    int is_last;                  // whether the pass has the last rows of W
    int strips;
    int chunk;                    // rows of W per CTA, a multiple of the tile
    int chunks;
    int gram_chunks;
    int aligned;                  // every row of W starts at a 16-byte boundary
    int aligned_a;                // likewise of A
    int aligned_b;                // likewise of B
};
