// csrc/hopper/products.cuh without a GPU: boxes that arrive when it pleases the copy engine (copy_engine.h). A
// warpgroup's products (warpgroup.cuh) are made at once or, by chance, not before somebody waits for them.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include <cute/arch/cluster_sm90.hpp>

#include "copy_engine.h"
#include "hopper/conv_boxes.h"
#include "hopper/ring.cuh"
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

namespace cutlass::arch {

template <int>
void warpgroup_reg_alloc() {}
template <int>
void warpgroup_reg_dealloc() {}

}  // namespace cutlass::arch

struct CUtensorMap {
  const __half* data;
  lpkernels::hopper::TensorBox box;
};

namespace lpkernels::hopper {

struct ConvMaps {
  CUtensorMap x, weight;
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

// To a block of the cluster, where the box and the barrier have the places they have in this one. It comes as memory
// was when it was asked for or, by chance, as it is on arrival.
inline void send_box(int rank, const CUtensorMap& map, uint64_t* full, void* to, const std::array<int, 5>& at) {
  if (reinterpret_cast<uintptr_t>(to) % 1024 != 0) {
    emulated::fail("load_box: not aligned");
  }
  auto* place = emulated::place_in(static_cast<__half*>(to), rank);
  auto* barrier = emulated::place_in(reinterpret_cast<FullBarrier*>(full), rank);
  const auto early = emulated::chance() % 2 ? fetched(map, at) : std::vector<__half>{};
  emulated::send(emulated::current->block->cluster->blocks.at(rank), [=, &map] {
    const std::vector<__half> values = early.empty() ? fetched(map, at) : early;
    for (size_t i = 0; i < values.size(); ++i) {
      place[swizzled(i)] = values[i];
    }
    barrier->receive(static_cast<int>(values.size() * sizeof(__half)));
  });
}

inline void load_box(const CUtensorMap& map, uint64_t* full, void* to, const std::array<int, 5>& at) {
  send_box(static_cast<int>(cute::block_rank_in_cluster()), map, full, to, at);
}

template <int Blocks>
void load_box_for_all(const CUtensorMap& map, uint64_t* full, void* to, const std::array<int, 5>& at) {
  for (int rank = 0; rank < Blocks; ++rank) {
    send_box(rank, map, full, to, at);
  }
}

template <int BlockM_, int BlockN_, int Stages_, int Channels_ = 0>
struct ConvConfig {
  static constexpr int BlockM = BlockM_, BlockN = BlockN_, Stages = Stages_, Channels = Channels_;
  static constexpr bool Clusters = false;
  static constexpr int BlockK = kBoxChannels, StepK = 16, FullBoxes = Channels / BlockK;
  static constexpr int TailSteps = Channels % BlockK / StepK, Threads = 384, Outputs = BlockN;
  using Element = __half;
};

}  // namespace lpkernels::hopper
