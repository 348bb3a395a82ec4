// Where a block of a Hopper convolution has what in its shared memory: the loop's stages, what the cluster's other
// blocks send, the epilogue's own.
#pragma once

#include <algorithm>
#include <cstddef>

namespace lpkernels::hopper {

constexpr int kMostSharedBytes = 232448;  // 227 KB, a block's

// Shared memory for an epilogue. Only where a block has a single tile, not shared, may it write over the stages.
struct EpilogueMemory {
  unsigned char *stages, *own, *received;  // received: what the cluster's other blocks send
};

// Whether the blocks of a cluster can share a tile's sum.
template <class Loop, class Epilogue>
constexpr bool kShares = Loop::Config::Clusters && Epilogue::kClusters;

// Where a block's shared memory has what: the loop's storage, then the epilogue's own.
template <class Loop, class Epilogue, bool Shares = kShares<Loop, Epilogue>>
struct BlockMemory {
  using Config = typename Loop::Config;
  using Storage = typename Loop::Storage;
  static constexpr size_t kBytes = sizeof(Storage) + Epilogue::template own_bytes<Config>();
  static_assert(Epilogue::template staged_bytes<Config>() <= sizeof(Storage));

  __device__ static EpilogueMemory of(unsigned char* memory, bool) {
    return {memory, memory + sizeof(Storage), nullptr};
  }
};

// A block that shares its tile does with fewer stages, and has in place of the last of them, and beyond, first what it
// receives: a sender need not know whether the receiver's boxes were all multiplied.
template <class Loop, class Epilogue>
struct BlockMemory<Loop, Epilogue, true> {
  using Config = typename Loop::Config;
  using Alone = BlockMemory<Loop, Epilogue, false>;

  static constexpr size_t received(int stages) {
    return sizeof(typename Loop::Storage) - (Config::Stages - stages) * sizeof(typename Loop::Stage);
  }
  static constexpr size_t own(int stages) { return received(stages) + Epilogue::template Sums<Config>::bytes(); }
  static constexpr size_t bytes(int stages) { return own(stages) + Epilogue::template shared_own_bytes<Config>(); }
  static constexpr int stages() {
    int count = Config::Stages;
    while (count > 2 && bytes(count) > kMostSharedBytes) {
      --count;
    }
    return count;
  }
  static constexpr int kStages = stages();
  static constexpr size_t kBytes = std::max(Alone::kBytes, bytes(kStages));

  __device__ static EpilogueMemory of(unsigned char* memory, bool shared) {
    return shared ? EpilogueMemory{memory, memory + own(kStages), memory + received(kStages)}
                  : Alone::of(memory, false);
  }
};

template <class Loop, class Epilogue>
constexpr int shared_bytes() {
  static_assert(BlockMemory<Loop, Epilogue>::kBytes <= kMostSharedBytes);
  return static_cast<int>(BlockMemory<Loop, Epilogue>::kBytes);
}

}  // namespace lpkernels::hopper
