// Seeds of random numbers.
#pragma once

#include "common/ptx/types.cuh"

// A seed of the host's, which the launch combines with a counter on the device where there is one:
// replays of a captured graph then draw other numbers. A counter of 0 leaves the seed as it is.
struct Seed {
    u64 value;
    const u64* counter;  // null: there is none

    __device__ __forceinline__ u64 now() const {
        constexpr u64 kWeyl = 0x9e3779b97f4a7c15ull;  // odd: no two counters give one seed
        return counter ? value + kWeyl * *counter : value;
    }
};
