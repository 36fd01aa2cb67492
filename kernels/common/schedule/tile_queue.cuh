// A queue of tiles in one launch. Tiles may wait for other tiles.
//
// Each CTA takes the next tile of a list, and a tile waits only for tiles before it. CTAs that run
// have taken those already. Therefore there is no deadlock, however few CTAs the device holds.
//
// The consumer tiles are those of the main product. They come in groups of kGroup rows of tiles,
// whose operands stay in L2. Each group waits for its producer tiles, which compute H or P for the
// same tokens. The list has the producers of a group ahead of the consumers of the group before, so
// that memory-bound producer tiles overlap compute-bound consumer tiles:
//   producers(0), producers(1), consumers(0), producers(2), consumers(1), …
#pragma once

#include "common/schedule/reduce.cuh"

// The counters that all CTAs share. They are all zero between launches.
struct TileQueue {
    u32* next;     // the next number
    u32* retired;  // CTAs that are done
    u32* ready;    // for each event: the producer tiles that are done
    int events;

    __device__ __forceinline__ TileQueue(u32* counters, int events)
        : next(counters), retired(counters + 1), ready(counters + 2), events(events) {}
};

// The number of this CTA's tile. `word` is a word of shared memory that nothing else uses during
// the call.
__device__ __forceinline__ int next_tile(const TileQueue& queue, u32* word) {
    if (threadIdx.x == 0) *word = atomicAdd(queue.next, 1);
    __syncthreads();
    const int number = *word;
    __syncthreads();
    return number;
}

// Signals that this CTA has completed a producer tile of an event. CTAs that wait for the event see
// what its threads wrote.
__device__ __forceinline__ void signal(const TileQueue& queue, int event) {
    __syncthreads();
    if (threadIdx.x == 0) {
        fence_acq_rel();
        atomicAdd(queue.ready + event, 1);
    }
}

// Waits until each existing event in [first, end) has `expected` completed producer tiles, and makes
// what they wrote visible.
__device__ __forceinline__ void wait_for(const TileQueue& queue, int first, int end, u32 expected) {
    if (threadIdx.x == 0) {
        for (int event = first; event < end; ++event) {
            if (event < queue.events) wait_until(queue.ready + event, expected);
        }
        fence_acq_rel();
    }
    __syncthreads();
}

// Leaves the queue. The last CTA to leave clears it. `flag` is a word of shared memory.
__device__ __forceinline__ void retire(const TileQueue& queue, u32* flag) {
    if (!arrive_last(queue.retired, gridDim.x, flag)) return;
    if (threadIdx.x == 0) *queue.next = 0;
    for (int event = threadIdx.x; event < queue.events; event += kThreads) {
        queue.ready[event] = 0;
    }
}

struct TileOrder {
    static constexpr int kGroup = kTileRowsPerGroup;

    int tiles_m, tiles_n;           // rows and columns of consumer tiles
    int producers, producers_last;  // producer tiles of a group, and of the last group
    int groups;

    // A tile of the list: a producer or a consumer of a group, or one behind all groups.
    struct Tile {
        enum Kind { kProducer, kConsumer, kBeyond } kind;
        int group, index;
    };

    // There are tiles_m × tiles_n consumer tiles and producer_rows × producer_cols producer tiles.
    // A group has `rows_per_group` rows of producer tiles.
    __device__ __forceinline__ TileOrder(int tiles_m, int tiles_n, int producer_rows,
                                         int rows_per_group, int producer_cols)
        : tiles_m(tiles_m), tiles_n(tiles_n), groups(ceil_div(tiles_m, kGroup)) {
        producers = groups > 1 ? rows_per_group * producer_cols : 0;
        producers_last = producer_rows * producer_cols - (groups - 1) * producers;
    }

    __device__ __forceinline__ int producers_of(int group) const {
        return group >= groups ? 0 : group == groups - 1 ? producers_last : producers;
    }
    __device__ __forceinline__ int consumer_rows(int group) const {
        return min(kGroup, tiles_m - group * kGroup);
    }

    __device__ __forceinline__ Tile at(int number) const {
        if (number < producers_of(0)) return {Tile::kProducer, 0, number};
        number -= producers_of(0);
        // Then come rounds: the producers of the next group, the consumers of this one. All rounds
        // except the last two have the same size.
        const int round = producers + kGroup * tiles_n;
        const int skipped = groups > 2 ? min(number / round, groups - 2) : 0;
        number -= skipped * round;
        for (int group = skipped; group < groups; ++group) {
            const int next = producers_of(group + 1), own = consumer_rows(group) * tiles_n;
            if (number < next) return {Tile::kProducer, group + 1, number};
            number -= next;
            if (number < own) return {Tile::kConsumer, group, number};
            number -= own;
        }
        return {Tile::kBeyond, 0, number};
    }

    // Row and column of a consumer tile. Tiles go down the rows of their group first, because those
    // share columns of B.
    __device__ __forceinline__ int consumer_m(const Tile& tile) const {
        return tile.group * kGroup + tile.index % consumer_rows(tile.group);
    }
    __device__ __forceinline__ int consumer_n(const Tile& tile) const {
        return tile.index / consumer_rows(tile.group);
    }
};
