// What `quantize` and `dequantize` read, and the sizes that Rust plans with.
#pragma once

#include "common/tile/weight.cuh"

using Byte = unsigned char;

constexpr int kNestedBlock = 256;  // scales of 4-bit blocks that share an f32

struct QuantizeParams {
    const void* source;     // W [O,I]
    Byte* codes;            // packed elements
    float* scales;          // one per block or region; of nested ones before they are packed
    Byte* nested_codes;     // one per block
    float* nested_absmax;   // one per 256 blocks
    const float* map;       // nested: 256 numbers, ascending
    float* mean;            // nested: the offset, computed; null: it is `offset`
    double* sums;           // nested: of 256 scales each
    float* largest;         // [CTAs], of all of W
    u32* counter;
    i64 scale_count;        // nested: of blocks
    float offset;
    Packing packing;
    int rows, cols;
    int block_shift;        // 4 bits: log₂ of the elements of a block of the flattened W
    int region_rows, region_cols;  // int8, fp8: what shares a scale
    int one_scale;          // fp8: the scale of all of W is known
};

struct DequantizeParams {
    WeightData weight;
    void* target;           // W [O,I]
    int rows, cols;
    int aligned;            // rows are whole chunks of 16 bytes of T, each of one scale
};
