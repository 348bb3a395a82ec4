// CUTLASS's barriers without a GPU: named ones, each block's, and those in shared memory.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "copy_engine.h"

namespace emulated {

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

// In its eight bytes.
struct ClusterTransactionBarrier {
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
  // At this one's place in another block of the cluster.
  void arrive(uint32_t rank, bool takes_part) {
    if (!takes_part) {
      return;
    }
    const emulated::Block& there = emulated::current->block->cluster->blocks.at(rank);
    auto* barrier = emulated::place_in(this, static_cast<int>(rank));
    if (&there == emulated::current->block) {
      return barrier->arrive();
    }
    emulated::send(there, [barrier] { barrier->arrive(); });
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
    emulated::rounds_of_waiting = 0;
    if (left == 0 && bytes == 0) {
      left = count;
      phase ^= 1;
    }
  }
};
static_assert(sizeof(ClusterTransactionBarrier) == sizeof(uint64_t));
using ClusterBarrier = ClusterTransactionBarrier;

inline void fence_barrier_init() {}

}  // namespace cutlass::arch
