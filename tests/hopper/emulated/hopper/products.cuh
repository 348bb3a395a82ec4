// csrc/hopper/products.cuh without a GPU. Boxes arrive when it pleases the block's copy engine, a warp of its own, some
// of them as memory was when they were asked for and some as it is then. A warpgroup's products (warpgroup.cuh) are
// made at once or, by chance, not before somebody waits for them.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <utility>

#include "convnext/device.cuh"
#include "hopper/conv_boxes.h"
#include "hopper/warpgroup.cuh"

#define __forceinline__ inline
#define CUTLASS_PRAGMA_UNROLL
#define CUTLASS_PRAGMA_NO_UNROLL

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
using std::fmaf;
using std::fmaxf;

namespace emulated {

// Of named barriers, each block's.
inline std::map<std::pair<const Block*, int>, Barrier> named;

inline Barrier& named_barrier(int threads, int id) {
  Barrier& barrier = named[{current->block, id}];
  barrier.expected = threads;
  return barrier;
}

}  // namespace emulated

namespace cutlass::arch {

struct NamedBarrier {
  static void sync(int threads, int id) { emulated::sync(emulated::named_barrier(threads, id)); }
  static void arrive(int threads, int id) { emulated::named_barrier(threads, id).arrive(); }
};

template <int>
void warpgroup_reg_alloc() {}
template <int>
void warpgroup_reg_dealloc() {}
inline void fence_barrier_init() {}

}  // namespace cutlass::arch

struct CUtensorMap {
  const __half* data;
  lpkernels::hopper::TensorBox box;
};

namespace lpkernels::hopper {

struct ConvMaps {
  CUtensorMap x, weight;
};

// An mbarrier, in its eight bytes.
struct FullBarrier {
  uint16_t count, left;
  uint32_t phase : 1;
  int32_t bytes : 31;

  void init(int arrivals) { *this = {static_cast<uint16_t>(arrivals), static_cast<uint16_t>(arrivals), 0, 0}; }
  void arrive() {
    if (left-- == 0) {
      emulated::fail("more arrivals at a barrier than it waits for");
    }
    complete();
  }
  void arrive_and_expect_tx(int expected) {
    bytes += expected;
    arrive();
  }
  void receive(int count) {
    bytes -= count;
    complete();
  }
  void wait(uint32_t parity) const {
    while (phase == parity) {
      emulated::yield();
    }
  }

 private:
  void complete() {
    if (left == 0 && bytes == 0) {
      left = count;
      phase ^= 1;
    }
  }
};
static_assert(sizeof(FullBarrier) == sizeof(uint64_t));
using EmptyBarrier = FullBarrier;

template <int Stages, int Producers, int Consumers = 2>
struct RingBarriers {
  alignas(8) uint64_t full[Stages];
  alignas(8) uint64_t empty[Stages];

  void init() {
    for (int stage = 0; stage < Stages; ++stage) {
      reinterpret_cast<FullBarrier&>(full[stage]).init(Producers);
      reinterpret_cast<EmptyBarrier&>(empty[stage]).init(Consumers);
    }
  }
  uint64_t* begin_fill(int stage, uint32_t phase, int bytes) {
    wait_empty(stage, phase);
    reinterpret_cast<FullBarrier&>(full[stage]).arrive_and_expect_tx(bytes);
    return &full[stage];
  }
  void wait_empty(int stage, uint32_t phase) { reinterpret_cast<EmptyBarrier&>(empty[stage]).wait(phase ^ 1); }
  void wait_full(int stage, uint32_t phase) { reinterpret_cast<FullBarrier&>(full[stage]).wait(phase); }
  void release(int stage) {
    if (threadIdx.x % (256 / Consumers) == 0) {
      reinterpret_cast<EmptyBarrier&>(empty[stage]).arrive();
    }
  }
};

template <int Stages>
struct StageCursor {
  int stage = 0;
  uint32_t phase = 0;

  void advance() {
    if (++stage == Stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// What TMA puts into a box at `origin`: zeros outside the tensor.
inline std::vector<__half> fetched(const CUtensorMap& map, const std::array<int, 5>& origin) {
  const TensorBox& box = map.box;
  size_t count = 1;
  for (const uint32_t size : box.box) {
    count *= size;
  }
  std::vector<__half> values(count);
  for (size_t place = 0; place < count; ++place) {
    size_t rest = place;
    int64_t offset = 0;
    bool inside = true;
    for (int dim = 0; dim < 5; ++dim) {
      const int64_t at = origin[dim] + static_cast<int64_t>(rest % box.box[dim]);
      rest /= box.box[dim];
      inside = inside && at >= 0 && at < static_cast<int64_t>(box.sizes[dim]);
      offset += at * (dim == 0 ? 1 : static_cast<int64_t>(box.strides[dim - 1]));
    }
    values[place] = inside ? map.data[offset] : static_cast<__half>(0.f);
  }
  return values;
}

struct BoxOnItsWay {
  const CUtensorMap* map;
  std::array<int, 5> origin;
  void* to;
  FullBarrier* full;
  std::vector<__half> values;  // as they were when it was asked for; empty: as they are on arrival
};
inline std::map<const emulated::Block*, std::vector<BoxOnItsWay>> boxes_of;

inline void load_box(const CUtensorMap& map, uint64_t* full, void* to, const std::array<int, 5>& at) {
  if (reinterpret_cast<uintptr_t>(to) % 1024 != 0) {
    emulated::fail("load_box: not aligned");
  }
  boxes_of[emulated::current->block].push_back({&map, at, to, reinterpret_cast<FullBarrier*>(full),
                                                emulated::chance() % 2 ? fetched(map, at) : std::vector<__half>{}});
}

// The copy engine: the last thread of a block that runs.
inline void bring_boxes() {
  emulated::Block& block = *emulated::current->block;
  auto& boxes = boxes_of[&block];
  while (block.left > 1 || !boxes.empty()) {
    if (!boxes.empty() && emulated::chance() % 4 == 0) {
      std::swap(boxes[emulated::chance() % boxes.size()], boxes.back());
      const BoxOnItsWay box = std::move(boxes.back());
      boxes.pop_back();
      const std::vector<__half> values = box.values.empty() ? fetched(*box.map, box.origin) : box.values;
      for (size_t i = 0; i < values.size(); ++i) {
        static_cast<__half*>(box.to)[swizzled(i)] = values[i];
      }
      box.full->receive(static_cast<int>(values.size() * sizeof(__half)));
    }
    emulated::yield();
  }
}

template <int BlockM_, int BlockN_, int Stages_, int Channels_ = 0>
struct ConvConfig {
  static constexpr int BlockM = BlockM_, BlockN = BlockN_, Stages = Stages_, Channels = Channels_;
  static constexpr bool Clusters = false;
  static constexpr int BlockK = kBoxChannels, StepK = 16, FullBoxes = Channels / BlockK;
  static constexpr int TailSteps = Channels % BlockK / StepK, Threads = 384;
  using Element = __half;
};

}  // namespace lpkernels::hopper
