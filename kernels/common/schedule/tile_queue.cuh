// One launch for tiles that wait for others: all CTAs draw numbers, tiles are begun in the order of
// a list, and a tile waits only for earlier ones. Those have been drawn by CTAs that run, so there
// is no deadlock, however few CTAs the device holds at once.
//
// The main tiles of a matrix product come in groups of kGroup rows of tiles, whose operands stay in
// L2, and each group waits for small tiles over the same rows (H, or P). The small tiles are listed
// a group ahead, so that they run beside main tiles, which they leave the memory to:
//   small(0), small(1), main(0), small(2), main(1), …
#pragma once

#include "common/schedule/reduce.cuh"

// What CTAs tell each other, all zero between launches.
struct TileQueue {
    u32* next;   // the next number
    u32* left;   // CTAs that are done
    u32* ready;  // per event, such as a group's: small tiles that are done
    int events;

    __device__ __forceinline__ TileQueue(u32* counters, int events)
        : next(counters), left(counters + 1), ready(counters + 2), events(events) {}
};

// This CTA's number. `word` is one of shared memory, which nothing else uses meanwhile.
__device__ __forceinline__ int next_tile(const TileQueue& queue, u32* word) {
    if (threadIdx.x == 0) *word = atomicAdd(queue.next, 1);
    __syncthreads();
    const int number = *word;
    __syncthreads();
    return number;
}

// Tells that this CTA has done a small tile of an event: all that its threads wrote is there.
__device__ __forceinline__ void signal(const TileQueue& queue, int event) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(queue.ready + event, 1);
}

// Waits until `expected` small tiles of each event in [first, end) that there is are done, and sees
// what they wrote.
__device__ __forceinline__ void wait_for(const TileQueue& queue, int first, int end, u32 expected) {
    if (threadIdx.x == 0) {
        for (int event = first; event < end; ++event) {
            if (event < queue.events) wait_until(queue.ready + event, expected);
        }
    }
    __syncthreads();
}

// This CTA is done. The last one clears the queue. `flag` is one word of shared memory.
__device__ __forceinline__ void retire(const TileQueue& queue, u32* flag) {
    if (!arrive_last(queue.left, gridDim.x, flag)) return;
    if (threadIdx.x == 0) *queue.next = 0;
    for (int event = threadIdx.x; event < queue.events; event += kThreads) {
        queue.ready[event] = 0;
    }
}

struct TileOrder {
    static constexpr int kGroup = kTileRowsPerGroup;

    int tiles_m, tiles_n;    // main tiles
    int small, producers_last;   // small tiles of a group, and of the last one
    int groups;

    // A tile of the list: one of its group's small ones, or of its main ones; or one beyond them.
    struct Tile {
        enum Kind { kProducer, kConsumer, kBeyond } kind;
        int group, index;
    };

    // Main tiles in `tiles_m` rows and `tiles_n` columns; small tiles in `small_rows` rows, of which
    // `rows_per_group` belong to a group, and `small_cols` columns.
    __device__ __forceinline__ TileOrder(int tiles_m, int tiles_n, int small_rows,
                                         int rows_per_group, int small_cols)
        : tiles_m(tiles_m), tiles_n(tiles_n), groups(ceil_div(tiles_m, kGroup)) {
        small = groups > 1 ? rows_per_group * small_cols : 0;
        producers_last = small_rows * small_cols - (groups - 1) * small;
    }

    __device__ __forceinline__ int producers_of(int group) const {
        return group >= groups ? 0 : group == groups - 1 ? producers_last : small;
    }
    __device__ __forceinline__ int consumer_rows(int group) const {
        return min(kGroup, tiles_m - group * kGroup);
    }

    __device__ __forceinline__ Tile at(int number) const {
        if (number < producers_of(0)) return {Tile::kProducer, 0, number};
        number -= producers_of(0);
        // Then rounds of a group's main tiles behind the next one's small ones; all but the last two
        // are of one size.
        const int round = small + kGroup * tiles_n;
        const int skipped = groups > 2 ? min(number / round, groups - 2) : 0;
        number -= skipped * round;
        for (int group = skipped; group < groups; ++group) {
            const int next = producers_of(group + 1), mains = consumer_rows(group) * tiles_n;
            if (number < next) return {Tile::kProducer, group + 1, number};
            number -= next;
            if (number < mains) return {Tile::kConsumer, group, number};
            number -= mains;
        }
        return {Tile::kBeyond, 0, number};
    }

    // Row and column of a group's main tile: down the rows first, so that they share columns of B.
    __device__ __forceinline__ int consumer_m(const Tile& tile) const {
        return tile.group * kGroup + tile.index % consumer_rows(tile.group);
    }
    __device__ __forceinline__ int consumer_n(const Tile& tile) const {
        return tile.index / consumer_rows(tile.group);
    }
};
