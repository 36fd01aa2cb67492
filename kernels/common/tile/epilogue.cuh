// From accumulators to rows of memory: a warp tile goes through shared memory, 16 rows at a time, so
// that a lane has a 16-byte chunk of T's and neighbouring lanes have neighbouring chunks.
#pragma once

#include "common/tile/mma.cuh"

template <typename T, typename MMA>
struct Epilogue {
    static constexpr int kRows = 16;  // of one pass
    static constexpr int kLanesPerRow = MMA::kWarpN / kVector<T>;
    static constexpr int kRowsAtOnce = kWarpSize / kLanesPerRow;
    static_assert(kWarpSize % kLanesPerRow == 0, "a warp reads whole rows");

    // A row in shared memory is made of slots of four floats. Where a chunk is two of them, the
    // second ones lie apart: lanes that read slots of one kind, and those that write two slots of
    // each of four rows, then meet different banks.
    static constexpr int kSlots = MMA::kWarpN / 4;
    static constexpr bool kTwoSlots = kVector<T> == 8;
    static constexpr int kSecond = kSlots / 2 + 4;
    static constexpr int kRowSlots = kTwoSlots ? kSecond + kSlots / 2 + 1 : kSlots + 2;
    static constexpr int kWarpBytes = kRows * kRowSlots * kVectorBytes;
    static constexpr int kSharedBytes = kWarps * kWarpBytes;

    __device__ __forceinline__ static int slot(int index) {
        return kTwoSlots ? index / 2 + index % 2 * kSecond : index;
    }

    // This lane's first column within the CTA tile: the same in all rows.
    __device__ __forceinline__ static int col() {
        return MMA::warp_n() * MMA::kWarpN + MMA::lane() % kLanesPerRow * kVector<T>;
    }

    // Calls visit(row, values) for this lane's chunks, rows within the CTA tile and ascending.
    // `shared` holds kSharedBytes that nothing else uses until the CTA's next barrier.
    template <typename F>
    __device__ __forceinline__ static void for_each_row(MMA& mma, unsigned char* shared, F visit) {
        int thread = threadIdx.x;
        opaque(thread);  // computes addresses here: they would take registers through the main loop
        const int warp = thread / kWarpSize, lane = thread % kWarpSize;
        float* const rows = reinterpret_cast<float*>(shared + warp * kWarpBytes);
        const auto quad = [&](int row, int index) {
            return reinterpret_cast<float4*>(rows) + row * kRowSlots + slot(index);
        };
#pragma unroll
        for (int i = 0; i < MMA::kFragmentsM; ++i) {
#pragma unroll
            for (int j = 0; j < MMA::kFragmentsN; ++j) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float* target = reinterpret_cast<float*>(
                        quad(lane / 4 + half * 8, j * 2 + lane % 4 / 2));
                    *reinterpret_cast<float2*>(target + lane % 2 * 2) =
                        make_float2(mma.acc[i][j][half * 2], mma.acc[i][j][half * 2 + 1]);
                }
            }
            __syncwarp();
#pragma unroll
            for (int base = 0; base < kRows; base += kRowsAtOnce) {
                int row = base + lane / kLanesPerRow;
                opaque(row);  // one row address at a time: accumulators need the registers
                float values[kVector<T>];
#pragma unroll
                for (int e = 0; e < kVector<T>; e += 4) {
                    const float4 four =
                        *quad(row, lane % kLanesPerRow * (kVector<T> / 4) + e / 4);
                    values[e] = four.x;
                    values[e + 1] = four.y;
                    values[e + 2] = four.z;
                    values[e + 3] = four.w;
                }
                visit(MMA::warp_m(thread) * MMA::kWarpM + i * kRows + row, values);
            }
            __syncwarp();
        }
    }
};
