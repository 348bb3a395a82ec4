// CuTe's view of a cluster without a GPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "copy_engine.h"

namespace cute {

inline uint32_t cluster_size() {
  return emulated::current->block->cluster->blocks.size();
}
inline uint32_t block_rank_in_cluster() {
  return blockIdx.x % cluster_size();
}
inline Index cluster_id_in_grid() {
  return {blockIdx.x / cluster_size(), blockIdx.y, blockIdx.z};
}
inline Index cluster_grid_dims() {
  return {gridDim.x / cluster_size(), gridDim.y, gridDim.z};
}

// Of the kernel's threads; what they sent before has arrived when they have met.
inline void cluster_sync() {
  emulated::Cluster& cluster = *emulated::current->block->cluster;
  const auto awaits = [](const emulated::Block& block) { return !emulated::on_its_way[&block].empty(); };
  while (std::any_of(cluster.blocks.begin(), cluster.blocks.end(), awaits)) {
    emulated::yield();
  }
  cluster.barrier.expected = static_cast<int>(cluster.blocks.size()) * emulated::current->block->threads();
  emulated::sync(cluster.barrier);
}

}  // namespace cute
