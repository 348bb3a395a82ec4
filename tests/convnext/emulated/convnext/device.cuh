// csrc/convnext/device.cuh without a GPU, for kernels that emulator.h runs. Copies to shared memory arrive as late as
// they may.
#pragma once

#include "convnext/emulator.h"

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

inline uint32_t transposed(uint32_t m) {
  const auto* lanes = emulated::exchange({m});
  const int row = threadIdx.x % 32 / 4, pair = threadIdx.x % 4;
  const auto at = [&](int column) { return emulated::half_of(lanes[4 * column + row / 2][0], row % 2); };
  const __half2 halves{at(2 * pair), at(2 * pair + 1)};
  uint32_t result;
  std::memcpy(&result, &halves, sizeof(result));
  return result;
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
  void arrive() const { emulated::all_blocks.arrive(); }
  void wait(int meeting) const {
    while (emulated::all_blocks.generation <= meeting) {
      emulated::yield();
    }
  }
};

template <class Words>
Words load_words(const Words* from) {
  emulated::yield();
  return *from;
}

template <class Words>
void store_words(void* to, Words v) {
  emulated::rounds_of_waiting = 0;
  std::memcpy(to, &v, sizeof(v));
}

template <int Barrier, int Threads>
void meet() {
  emulated::Barrier& barrier = emulated::current->block->barriers[Barrier];
  barrier.expected = Threads;
  emulated::sync(barrier);
}

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

// Matrices (rows, columns) one behind the other, and the rows of a box: of 64 columns, swizzled, or of others.
struct BoxMap {
  const __half* from;
  int columns, rows, matrices, box_rows, box_columns = 64;
};

inline void load_box(void* to, const BoxMap& map, int column, int row, int matrix, uint64_t* arrivals) {
  const int vectors = map.box_columns / 8;
  const auto place = [&](int n, int i) { return vectors == 8 ? n * vectors + (i ^ n % vectors) : n * vectors + i; };
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || matrix >= map.matrices) {
    emulated::fail("load_box: not aligned, or no such matrix");
  }
  const int rank = blockIdx.x % emulated::current->block->cluster->blocks.size();
  for (int n = 0; n < map.box_rows; ++n) {
    for (int i = 0; i < vectors; ++i) {
      uint4 vector{0, 0, 0, 0};
      const int k = column + 8 * i;
      if (row + n < map.rows && k < map.columns) {
        std::memcpy(&vector, map.from + (size_t{1} * matrix * map.rows + row + n) * map.columns + k, sizeof(vector));
      }
      *emulated::place_in(static_cast<uint4*>(to) + place(n, i), rank) = vector;
    }
  }
  emulated::count(*arrivals, 16 * vectors * map.box_rows);
}

inline void prefetch_box(const BoxMap& map, int, int, int matrix) {
  if (matrix >= map.matrices) {
    emulated::fail("prefetch_box: no such matrix");
  }
}

inline void copy_bulk(void* to, const void* from, int bytes, uint64_t* arrivals) {
  if (bytes <= 0 || bytes % 16 != 0 || reinterpret_cast<uintptr_t>(to) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    emulated::fail("copy_bulk: not aligned");
  }
  std::memcpy(to, from, bytes);
  emulated::count(*arrivals, bytes);
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
