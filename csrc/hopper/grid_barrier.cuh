// Where the blocks of a cooperative launch wait for each other while most of their threads go on: one thread of each
// block meets the others, for those that synchronise with it before and after.
#pragma once

#include <cooperative_groups.h>

namespace lpkernels::hopper {

// What this thread saw written to global memory before is there for the others after, and theirs for this one. The
// counter is the launch's own, as the driver hands it out: its highest bit flips when all have come, the others are
// then zero again.
__device__ inline void meet_other_blocks() {
  constexpr unsigned kFlips = 1u << 31;
  unsigned* counter = &cooperative_groups::details::get_grid_workspace()->barrier;
  const unsigned step = blockIdx.x == 0 ? kFlips - (gridDim.x - 1) : 1;
  unsigned before, now;
  asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(step) : "memory");
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
  } while (((before ^ now) & kFlips) == 0);
}

// Between what threads have written to global memory and copies of it by TMA, which goes there by another way: by who
// wrote, before that is made known, and by who asks for the copy, once it knows.
__device__ inline void fence_copies() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

}  // namespace lpkernels::hopper
