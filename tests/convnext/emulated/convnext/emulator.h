// Runs kernels thread by thread, as fibers in an order of chance: fresh shared memory holds NaN, and warps, blocks and
// clusters meet where the GPU's do.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <source_location>
#include <vector>

#include "convnext/cuda_values.h"

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

namespace emulated {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

inline int rounds_of_waiting = 0;  // of all threads, since one has arrived anywhere

struct Barrier {
  int expected, arrived = 0, generation = 0;

  int arrive() {
    rounds_of_waiting = 0;
    const int awaited = generation;
    if (++arrived == expected) {
      arrived = 0;
      ++generation;
    }
    return awaited;
  }
};

struct Warp {
  Barrier barrier{32};
  uint32_t slots[32][6];
};

// Shared memory lies where a swizzle of 1024 bytes begins.
template <class T>
struct SharedAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{1024};

  T* allocate(size_t count) { return static_cast<T*>(operator new(count * sizeof(T), kAlignment)); }
  void deallocate(T* memory, size_t) { operator delete(memory, kAlignment); }
  bool operator==(const SharedAllocator&) const { return true; }
};
using SharedMemory = std::vector<uint4, SharedAllocator<uint4>>;

struct Cluster;

struct Block {
  Index index;
  Barrier barrier;
  std::vector<Warp> warps;
  SharedMemory memory;
  Cluster* cluster;
  int left;          // threads that run
  unsigned met = 0;  // the line of __syncthreads where the first of those that wait does
  Barrier barriers[16]{};

  int threads() const { return barrier.expected; }
};

struct Copy {
  void* to;
  uint4 value;
};

struct Fiber {
  Index thread;
  Block* block;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open;
  std::vector<std::function<void()>> products;  // that tensor cores have not done yet
  int awaited = -1;                             // of the cluster's barrier
  bool done = false;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
};

// Bytes that are still to come; not known before `expect_bytes`. Above them a bit that changes when all are there.
constexpr uint64_t kNotKnown = uint64_t{1} << 40, kTurn = uint64_t{1} << 63;

inline void count(uint64_t& arrivals, uint64_t bytes) {
  rounds_of_waiting = 0;
  if ((arrivals & ~kTurn) < bytes) {
    fail("more bytes than expected");
  }
  arrivals -= bytes;
  if ((arrivals & ~kTurn) == 0) {
    arrivals = (arrivals ^ kTurn) | kNotKnown;
  }
}

// Bytes on their way between blocks.
struct Sent {
  const Block *from, *to;
  char* target;
  const char* source;
  size_t bytes;
  uint64_t* arrivals;
};

struct Cluster {
  Barrier barrier;
  std::vector<Block> blocks;
  std::vector<Sent> sent;

  // What was sent arrives, read only now; now and then, so that others run on meanwhile.
  void deliver(std::mt19937& random) {
    if (sent.empty() || random() % 8 != 0) {
      return;
    }
    std::swap(sent[random() % sent.size()], sent.back());
    const Sent& last = sent.back();
    if (last.from->left == 0 || last.to->left == 0) {
      fail("a block has left before what it sent, or was sent, has arrived");
    }
    std::memcpy(last.target, last.source, last.bytes);
    count(*last.arrivals, last.bytes);
    sent.pop_back();
  }
};

inline Index grid;
inline Fiber* current;
inline ucontext_t scheduler;
inline const std::function<void()>* body;

inline void yield() {
  swapcontext(&current->context, &scheduler);
}

inline void wait(const Barrier& barrier, int awaited) {
  while (barrier.generation == awaited) {
    yield();
  }
}

inline void sync(Barrier& barrier) {
  wait(barrier, barrier.arrive());
}

inline void run_fiber() {
  (*body)();
  current->done = true;
  --current->block->left;
  yield();
}

constexpr int kPatience = 1000;  // rounds

// Until all are done.
inline void run(std::vector<std::unique_ptr<Cluster>>& clusters, std::vector<std::unique_ptr<Fiber>>& fibers,
                std::mt19937& random) {
  const auto travels = [](const auto& cluster) { return !cluster->sent.empty(); };
  while (!fibers.empty() || std::any_of(clusters.begin(), clusters.end(), travels)) {
    if (++rounds_of_waiting == kPatience) {
      fail("all threads wait, and nothing arrives");
    }
    std::shuffle(fibers.begin(), fibers.end(), random);
    for (auto& fiber : fibers) {
      current = fiber.get();
      swapcontext(&scheduler, &current->context);
    }
    for (auto& cluster : clusters) {
      cluster->deliver(random);
    }
    std::erase_if(fibers, [](const auto& fiber) { return fiber->done; });
  }
}

inline Barrier all_blocks;  // of a cooperative grid

// Runs kernel(p) on a grid whose blocks along x form clusters; a cluster's threads run together, a cooperative grid's.
template <class Kernel, class Parameters>
void launch(Kernel kernel, Index blocks, int threads, size_t shared_bytes, int cluster_size, const Parameters& p,
            bool cooperative = false) {
  grid = blocks;
  const std::function<void()> call = [&] { kernel(p); };
  body = &call;
  std::mt19937 random(0);
  const unsigned count = blocks.x * blocks.y * blocks.z;
  all_blocks = {static_cast<int>(count)};
  std::vector<std::unique_ptr<Cluster>> clusters;
  std::vector<std::unique_ptr<Fiber>> fibers;
  for (unsigned first = 0; first < count; first += cluster_size) {
    clusters.push_back(std::make_unique<Cluster>(Cluster{{cluster_size * threads}, {}, {}}));
    Cluster& cluster = *clusters.back();
    for (int rank = 0; rank < cluster_size; ++rank) {
      const unsigned i = first + rank;
      cluster.blocks.push_back({{i % blocks.x, i / blocks.x % blocks.y, i / blocks.x / blocks.y},
                                {threads},
                                std::vector<Warp>(threads / 32),
                                SharedMemory(shared_bytes / 16, uint4{~0u, ~0u, ~0u, ~0u}),
                                nullptr,
                                threads});
    }
    for (Block& block : cluster.blocks) {
      block.cluster = &cluster;
      for (int thread = 0; thread < threads; ++thread) {
        constexpr size_t kStack = 64 << 10;
        auto fiber = std::make_unique<Fiber>();
        fiber->thread.x = thread;
        fiber->block = &block;
        fiber->stack = std::make_unique_for_overwrite<char[]>(kStack);
        getcontext(&fiber->context);
        fiber->context.uc_stack.ss_sp = fiber->stack.get();
        fiber->context.uc_stack.ss_size = kStack;
        makecontext(&fiber->context, &run_fiber, 0);
        fibers.push_back(std::move(fiber));
      }
    }
    if (!cooperative || first + cluster_size >= count) {
      run(clusters, fibers, random);
      clusters.clear();
    }
  }
}

// All lanes of the current warp get each other's words: result[lane].
template <int Words>
const uint32_t (*exchange(const uint32_t (&words)[Words]))[6] {
  Warp& warp = current->block->warps[current->thread.x / 32];
  sync(warp.barrier);  // the values before have been read
  std::copy_n(words, Words, warp.slots[current->thread.x % 32]);
  sync(warp.barrier);
  return warp.slots;
}

inline __half half_of(uint32_t pair, int i) {
  __half2 halves;
  std::memcpy(&halves, &pair, sizeof(pair));
  return i == 0 ? halves.x : halves.y;
}

template <class T>
T* place_in(T* own, int rank) {
  Block& block = *current->block;
  const auto offset = reinterpret_cast<const char*>(own) - reinterpret_cast<const char*>(block.memory.data());
  auto& memory = block.cluster->blocks.at(rank).memory;
  if (offset < 0 || offset + sizeof(T) > memory.size() * sizeof(uint4) || offset % sizeof(T) != 0) {
    fail("an address outside of shared memory");
  }
  return reinterpret_cast<T*>(reinterpret_cast<char*>(memory.data()) + offset);
}

}  // namespace emulated

#define threadIdx (emulated::current->thread)
#define blockIdx (emulated::current->block->index)
#define gridDim (emulated::grid)

inline void __syncthreads(std::source_location here = std::source_location::current()) {
  emulated::Block& block = *emulated::current->block;
  if (block.barrier.arrived == 0) {
    block.met = here.line();
  } else if (block.met != here.line()) {
    emulated::fail("threads of a block meet at different places");
  }
  emulated::sync(block.barrier);
}

inline void __syncwarp() {
  emulated::sync(emulated::current->block->warps[emulated::current->thread.x / 32].barrier);
}

inline bool __all_sync(unsigned, bool v) {
  const auto* lanes = emulated::exchange({static_cast<uint32_t>(v)});
  return std::all_of(lanes, lanes + 32, [](const auto& words) { return words[0] != 0; });
}

inline float __shfl_xor_sync(unsigned, float v, int lanes) {
  uint32_t word[1];
  std::memcpy(word, &v, sizeof(v));
  std::memcpy(&v, emulated::exchange(word)[threadIdx.x % 32 ^ lanes], sizeof(v));
  return v;
}
