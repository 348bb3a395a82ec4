// csrc/hopper/products.cuh without a GPU. Boxes arrive when it pleases the block's copy engine, a warp of its own, some
// of them as memory was when they were asked for and some as it is then. A warpgroup's products are made at once or,
// by chance, not before somebody waits for them. Boxes are not swizzled.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>

#include "convnext/device.cuh"
#include "hopper/conv_boxes.h"

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

inline std::mt19937 chance(1);

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

namespace cute {

struct GMMA {
  enum class ScaleOut { Zero, One };
};
template <int Value>
using Int = std::integral_constant<int, Value>;
template <class Map>
void prefetch_tma_descriptor(const Map*) {}

}  // namespace cute

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

template <int Stages, int Producers>
struct RingBarriers {
  alignas(8) uint64_t full[Stages];
  alignas(8) uint64_t empty[Stages];

  void init() {
    for (int stage = 0; stage < Stages; ++stage) {
      reinterpret_cast<FullBarrier&>(full[stage]).init(Producers);
      reinterpret_cast<EmptyBarrier&>(empty[stage]).init(2);
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
    if (threadIdx.x % 128 == 0) {
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
  __half* to;
  FullBarrier* full;
  std::vector<__half> values;  // as they were when it was asked for; empty: as they are on arrival
};
inline std::map<const emulated::Block*, std::vector<BoxOnItsWay>> boxes_of;

inline void load_box(const CUtensorMap& map, uint64_t* full, __half* to, const std::array<int, 5>& at) {
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
      std::copy(values.begin(), values.end(), box.to);
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
  static_assert(BlockM == 128);

  struct Mma {
    cute::GMMA::ScaleOut accumulate_;
  };
  struct Accumulator {
    float sums[BlockN / 2];
    float& operator()(int i) { return sums[i]; }
    float operator()(int i) const { return sums[i]; }
  };
};

// Products of a warpgroup, of which each thread has its own sums.
struct Products {
  const __half *x, *weight;
  int columns;
  std::array<float*, 128> sums;

  void make() const {
    const auto floats = [](const __half* from, int rows) {
      return std::vector<float>(from, from + rows * kBoxChannels);
    };
    const std::vector<float> a = floats(x, 64), b = floats(weight, columns);
    for (int row = 0; row < 64; ++row) {
      for (int column = 0; column < columns; ++column) {
        float sum = 0.f;
        for (int k = 0; k < kBoxChannels; ++k) {
          sum += a[row * kBoxChannels + k] * b[column * kBoxChannels + k];
        }
        const int thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
        sums[thread][column / 8 * 4 + row % 16 / 8 * 2 + column % 2] += sum;
      }
    }
  }
};

struct Warpgroup {
  emulated::Barrier barrier{128};
  std::deque<Products> waiting;
  std::array<int, 128> issued{};
  int made = 0;

  void make_next() {
    waiting.front().make();
    waiting.pop_front();
    ++made;
  }
};
inline std::map<std::pair<const emulated::Block*, int>, Warpgroup> warpgroups;

inline Warpgroup& own_warpgroup() {
  return warpgroups[{emulated::current->block, static_cast<int>(threadIdx.x / 128)}];
}

template <class Config, int Steps, class Accumulator>
void issue_products(__half* x_rows, __half* weight_rows, int thread, typename Config::Mma&, Accumulator& acc) {
  static_assert(Steps * Config::StepK == kBoxChannels);
  Warpgroup& own = own_warpgroup();
  const int lane = thread % 128;
  const size_t place = own.issued[lane]++ - own.made;
  if (place == own.waiting.size()) {
    own.waiting.push_back({x_rows + thread / 128 * 64 * kBoxChannels, weight_rows, Config::BlockN, {}});
  }
  own.waiting.at(place).sums[lane] = acc.sums;
  emulated::sync(own.barrier);
  if (lane == 0 && emulated::chance() % 2) {
    while (own.made < own.issued[0]) {
      own.make_next();
    }
  }
}

// Until all but the last `Pending` groups of this thread are made.
template <int Pending>
void warpgroup_wait() {
  Warpgroup& own = own_warpgroup();
  while (own.made < own.issued[threadIdx.x % 128] - Pending) {
    own.make_next();
  }
}

}  // namespace lpkernels::hopper

namespace cute {

template <class Accumulator>
void clear(Accumulator& acc) {
  std::fill(std::begin(acc.sums), std::end(acc.sums), 0.f);
}
template <class Accumulator>
void warpgroup_fence_operand(Accumulator&) {}
using lpkernels::hopper::warpgroup_wait;

}  // namespace cute
