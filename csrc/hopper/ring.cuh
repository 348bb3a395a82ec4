// A ring of stages in shared memory: who fills them, who empties them, and which is next.
#pragma once

#include <cstdint>

#include <cutlass/arch/barrier.h>

namespace lpkernels::hopper {

using FullBarrier = cutlass::arch::ClusterTransactionBarrier;
using EmptyBarrier = cutlass::arch::ClusterBarrier;

// The barriers of a ring of Stages boxes: filled by the copy engine on the word of Producers threads, emptied by the
// two multiplying warpgroups or, where their warps read boxes themselves, by eight warps.
template <int Stages, int Producers, int Consumers = 2>
struct RingBarriers {
  alignas(8) uint64_t full[Stages];
  alignas(8) uint64_t empty[Stages];

  __device__ void init() {
    for (int stage = 0; stage < Stages; ++stage) {
      reinterpret_cast<FullBarrier&>(full[stage]).init(Producers);
      reinterpret_cast<EmptyBarrier&>(empty[stage]).init(Consumers);
    }
  }
  // Waits until the stage is free and announces `bytes`; returns the barrier for the copies.
  __device__ uint64_t* begin_fill(int stage, uint32_t phase, int bytes) {
    wait_empty(stage, phase);
    reinterpret_cast<FullBarrier&>(full[stage]).arrive_and_expect_tx(bytes);
    return &full[stage];
  }
  __device__ void wait_empty(int stage, uint32_t phase) {
    reinterpret_cast<EmptyBarrier&>(empty[stage]).wait(phase ^ 1);
  }
  __device__ void wait_full(int stage, uint32_t phase) { reinterpret_cast<FullBarrier&>(full[stage]).wait(phase); }
  // As release, in all Blocks blocks of the cluster, each of which has the stage's boxes.
  template <int Blocks>
  __device__ void release_in_cluster(int stage) {
    if constexpr (Blocks == 1) {
      return release(stage);
    }
    const uint32_t block = threadIdx.x % (256 * Blocks / Consumers);
    reinterpret_cast<EmptyBarrier&>(empty[stage]).arrive(block, block < Blocks);
  }
  // Called by all threads of a warpgroup whose products from the stage are done, or of a warp that has read it.
  __device__ void release(int stage) {
    if (threadIdx.x % (256 / Consumers) == 0) {
      reinterpret_cast<EmptyBarrier&>(empty[stage]).arrive();
    }
  }
};

// Which stage is next, and the parity of its barriers' current phase. Fewer: perhaps not all stages are in use.
template <int Stages, bool Fewer = false>
struct StageCursor {
  int stage = 0;
  uint32_t phase = 0;
  int used = Stages;

  __device__ void advance() {
    if (++stage == (Fewer ? used : Stages)) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace lpkernels::hopper
