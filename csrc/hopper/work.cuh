// What a block of a Hopper convolution works on, one piece after the other, and how its warps wait for each other.
#pragma once

#include <cutlass/arch/barrier.h>
#include <cute/arch/cluster_sm90.hpp>

#include "hopper/conv_shape.h"

namespace lpkernels::hopper {

// Syncs the two multiplying warpgroups alone.
__device__ inline void sync_consumers() {
  cutlass::arch::NamedBarrier::sync(256, 1);
}

// Syncs them with the two warps that fetch what belongs to outputs.
__device__ inline void sync_values() {
  cutlass::arch::NamedBarrier::sync(256 + 64, 2);
}

// The pieces of work of this block, one after the other.
template <class Config>
struct Work {
  const ConvShape& shape;
  int rank, stride, end, index;
  ConvBlock block;

  __device__ explicit Work(const ConvShape& shape)
      : shape(shape),
        rank(static_cast<int>(cute::block_rank_in_cluster())),
        stride(static_cast<int>(cute::cluster_grid_dims().x)),
        end(shape.by_columns.value * shape.by_tiles.value * shape.phases()),
        index(static_cast<int>(cute::cluster_id_in_grid().x)),
        block(block_of(shape, Config::Outputs, index, rank)) {}

  __device__ bool last() const { return index + stride >= end; }

  // To the next piece, if there is one.
  __device__ bool next() {
    if (last()) {
      return false;
    }
    index += stride;
    const ConvBlock before = block;
    block = block_of(shape, Config::Outputs, index, rank);
    block.first = false;
    block.fresh = block.n != before.n || block.b != before.b;
    block.turn = before.turn ^ static_cast<int>(block.fresh);
    return true;
  }
};

}  // namespace lpkernels::hopper
