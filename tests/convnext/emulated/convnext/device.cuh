// csrc/convnext/device.cuh without a GPU: the kernels run thread by thread, as fibers in an order of chance. Copies to
// shared memory arrive as late as they may, fresh shared memory holds NaN, and warps and clusters meet where the GPU's
// do.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__

using __half = _Float16;
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint2 make_uint2(uint32_t x, uint32_t y) {
  return {x, y};
}
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  return {x, y, z, w};
}
inline float2 __half22float2(__half2 v) {
  return {static_cast<float>(v.x), static_cast<float>(v.y)};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {static_cast<__half>(x), static_cast<__half>(y)};
}
// The bytes of y:x that the four lowest digits of `which` name.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned which) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<unsigned>(bytes >> 8 * (which >> 4 * i & 7) & 0xff) << 8 * i;
  }
  return result;
}
inline float rsqrtf(float v) {
  return 1.f / std::sqrt(v);
}
using std::max;
using std::min;

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
  int left;  // threads that run

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
  int awaited = -1;  // of the cluster's barrier
  int met = -1;      // of the grid's
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
  all_blocks = {static_cast<int>(count) * threads};
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

inline void __syncthreads() {
  emulated::sync(emulated::current->block->barrier);
}

inline void __syncwarp() {
  emulated::sync(emulated::current->block->warps[emulated::current->thread.x / 32].barrier);
}

inline float __shfl_xor_sync(unsigned, float v, int lanes) {
  uint32_t word[1];
  std::memcpy(word, &v, sizeof(v));
  std::memcpy(&v, emulated::exchange(word)[threadIdx.x % 32 ^ lanes], sizeof(v));
  return v;
}

namespace lpkernels::convnext {

inline int thread_index() {
  return threadIdx.x;
}
inline int block_index() {
  return blockIdx.x;
}

template <class T>
T* worked_out(T* address) {
  return address;
}

inline void wait_for_kernel_before() {}
inline void let_next_kernel_start() {}

inline unsigned char* shared_memory() {
  return reinterpret_cast<unsigned char*>(emulated::current->block->memory.data());
}

inline uint32_t load_constant(const __half* from, bool exists) {
  uint32_t v = 0;
  if (exists) {
    std::memcpy(&v, from, sizeof(v));
  }
  return v;
}

inline float load_constant(const float* from, bool exists) {
  return exists ? *from : 0.f;
}

inline float4 load_constant(const float* from) {
  float4 v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline void copy_async(void* to, const void* from, bool exists) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || (exists && reinterpret_cast<uintptr_t>(from) % 16 != 0)) {
    emulated::fail("copy_async: not aligned");
  }
  uint4 value{0, 0, 0, 0};
  if (exists) {
    std::memcpy(&value, from, sizeof(value));
  }
  emulated::current->open.push_back(
      {emulated::place_in(static_cast<uint4*>(to), blockIdx.x % emulated::current->block->cluster->blocks.size()),
       value});
}

inline void commit_copies() {
  emulated::current->groups.push_back(std::move(emulated::current->open));
  emulated::current->open.clear();
}

template <int Pending>
void wait_for_copies() {
  auto& groups = emulated::current->groups;
  while (groups.size() > Pending) {
    for (const emulated::Copy& copy : groups.front()) {
      std::memcpy(copy.to, &copy.value, sizeof(copy.value));
    }
    groups.erase(groups.begin());
  }
}

inline void load_matrices(uint32_t (&m)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    emulated::fail("load_matrices: not aligned");
  }
  uint32_t words[2];
  std::memcpy(words, &row, sizeof(row));
  const auto* lanes = emulated::exchange(words);
  for (int i = 0; i < 4; ++i) {
    const char* from;
    std::memcpy(&from, lanes[8 * i + threadIdx.x % 32 / 4], sizeof(from));
    std::memcpy(m + i, from + threadIdx.x % 4 * 4, sizeof(m[i]));
  }
}

inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const auto* lanes = emulated::exchange({a[0], a[1], a[2], a[3], b0, b1});
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int upper = i / 2, column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int quad = k % 8 / 2, high = k / 8;
      d[i] += static_cast<float>(emulated::half_of(lanes[4 * g + quad][upper + 2 * high], k % 2)) *
              static_cast<float>(emulated::half_of(lanes[4 * column + quad][4 + high], k % 2));
    }
  }
}

inline void multiply_add_if(bool takes_part, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if (takes_part) {
    multiply_add(d, a, b0, b1);
  }
}

inline float approximate_reciprocal(float v) {
  return 1.f / v;
}
inline float approximate_root(float v) {
  return std::sqrt(v);
}
inline float approximate_exp2(float v) {
  return std::exp2(v);
}

inline void arrive_at_cluster() {
  emulated::current->awaited = emulated::current->block->cluster->barrier.arrive();
}
inline void wait_for_cluster() {
  emulated::wait(emulated::current->block->cluster->barrier, emulated::current->awaited);
}

struct GridBarrier {
  void arrive() {
    __syncthreads();
    emulated::current->met = emulated::all_blocks.arrive();
  }
  void wait() {
    emulated::wait(emulated::all_blocks, emulated::current->met);
    __syncthreads();
  }
};

inline void init_arrivals(uint64_t* arrivals) {
  *arrivals = emulated::kNotKnown;
}

inline void expect_bytes(uint64_t* arrivals, int bytes) {
  *arrivals += bytes;
  emulated::count(*arrivals, emulated::kNotKnown);
}

inline void wait_for_bytes(uint64_t* arrivals, int turn) {
  while (*arrivals / emulated::kTurn == static_cast<uint64_t>(turn & 1)) {
    emulated::yield();
  }
}

// Matrices (rows, columns) one behind the other, and the rows of a box.
struct BoxMap {
  const __half* from;
  int columns, rows, matrices, box_rows;
};

inline void load_box(void* to, const BoxMap& map, int column, int row, int matrix, uint64_t* arrivals) {
  constexpr int kVectors = 8;
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || matrix >= map.matrices) {
    emulated::fail("load_box: not aligned, or no such matrix");
  }
  const int rank = blockIdx.x % emulated::current->block->cluster->blocks.size();
  for (int n = 0; n < map.box_rows; ++n) {
    for (int i = 0; i < kVectors; ++i) {
      uint4 vector{0, 0, 0, 0};
      const int k = column + 8 * i;
      if (row + n < map.rows && k < map.columns) {
        std::memcpy(&vector, map.from + (size_t{1} * matrix * map.rows + row + n) * map.columns + k, sizeof(vector));
      }
      *emulated::place_in(static_cast<uint4*>(to) + n * kVectors + (i ^ n % kVectors), rank) = vector;
    }
  }
  emulated::count(*arrivals, 16 * kVectors * map.box_rows);
}

template <class T>
void send(T* own, T value, int rank, uint64_t* arrivals) {
  *emulated::place_in(own, rank) = value;
  emulated::count(*emulated::place_in(arrivals, rank), sizeof(T));
}

inline void publish_to_copies() {}

inline void send_bytes(void* to, const void* from, int bytes, int rank, uint64_t* arrivals) {
  if (bytes <= 0 || bytes % 16 != 0 || reinterpret_cast<uintptr_t>(to) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    emulated::fail("send_bytes: not aligned");
  }
  const emulated::Block& block = *emulated::current->block;
  const auto* own = reinterpret_cast<const char*>(block.memory.data());
  const char *source = static_cast<const char*>(from), *last = static_cast<char*>(to) + bytes - 1;
  if (source < own || source + bytes > own + block.memory.size() * sizeof(uint4)) {
    emulated::fail("send_bytes: an address outside of shared memory");
  }
  emulated::place_in(last, rank);
  block.cluster->sent.push_back({&block, &block.cluster->blocks[rank], emulated::place_in(static_cast<char*>(to), rank),
                                 source, static_cast<size_t>(bytes), emulated::place_in(arrivals, rank)});
}

}  // namespace lpkernels::convnext
