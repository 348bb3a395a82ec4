// What is on its way to a block's shared memory: it arrives when it pleases the block's copy engine, the first thread
// of a warp that the kernel does not have.
#pragma once

#include <functional>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "convnext/emulator.h"

namespace emulated {

constexpr int kEngineThreads = 32;

inline std::mt19937 chance(1);
inline std::map<const Block*, std::vector<std::function<void()>>> on_its_way;

inline void send(const Block& to, std::function<void()> arrive) {
  if (to.left == 0) {
    fail("something sent to a block that has left");
  }
  on_its_way[&to].push_back(std::move(arrive));
}

// The copy engine, until the other threads have left.
inline void bring_all() {
  const Block& block = *current->block;
  auto& waiting = on_its_way[&block];
  while (block.left > 1) {
    if (!waiting.empty() && chance() % 4 == 0) {
      std::swap(waiting[chance() % waiting.size()], waiting.back());
      const auto arrive = std::move(waiting.back());
      waiting.pop_back();
      arrive();
    }
    yield();
  }
  if (!waiting.empty()) {
    fail("a block has left before all that was on its way to it has arrived");
  }
}

// A thread of a kernel of `threads`, or of the block's copy engine; run(shared memory). The blocks that are `late` in
// their cluster begin after the others.
template <class Run>
void run_thread(int threads, unsigned late, Run&& run) {
  Block& block = *current->block;
  block.barrier.expected = threads;
  if (static_cast<int>(threadIdx.x) >= threads) {
    return static_cast<int>(threadIdx.x) == threads ? bring_all() : void();
  }
  for (int rounds = blockIdx.x % block.cluster->blocks.size() == late ? 100 : 0; rounds > 0; --rounds) {
    yield();
  }
  run(reinterpret_cast<unsigned char*>(block.memory.data()));
}

}  // namespace emulated
