// What csrc/hopper uses of CuTe, without a GPU: products of a warpgroup, of 64 rows in its registers with columns in
// shared memory. Operands are read when a product is made, which may be as late as somebody waits for it; now and then
// a warpgroup falls far behind.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <type_traits>
#include <vector>

#include "copy_engine.h"

namespace lpkernels::hopper {

// Where the element lies that is number `index` of a box of rows of 64 halves: in the swizzle of 128 bytes.
inline size_t swizzled(size_t index) {
  return index ^ (index >> 6 & 7) << 3;
}

struct Product {
  const __half* columns;  // a box
  int count, slice;       // of 16 channels
  std::array<const __half*, 128> rows;
  std::array<float*, 128> sums;

  void make() const {
    for (int row = 0; row < 64; ++row) {
      const int first = row / 16 * 32 + row % 8 * 4, upper = row % 16 / 8;
      float x[16];
      for (int k = 0; k < 16; ++k) {
        x[k] = rows[first + k % 8 / 2][2 * (upper + k / 8 * 2) + k % 2];
      }
      for (int column = 0; column < count; ++column) {
        float sum = 0.f;
        for (int k = 0; k < 16; ++k) {
          sum += x[k] * static_cast<float>(columns[swizzled(64 * column + 16 * slice + k)]);
        }
        sums[first + column % 8 / 2][column / 8 * 4 + upper * 2 + column % 2] += sum;
      }
    }
  }
};

struct Warpgroup {
  emulated::Barrier barrier{128};
  std::deque<Product> waiting;
  std::array<int, 128> issued{}, committed{};
  std::vector<int> ends;  // of groups: how many products were issued then
  int made = 0;

  void make_until(int count) {
    for (; made < count; ++made) {
      waiting.front().make();
      waiting.pop_front();
    }
  }
};
inline std::map<std::pair<const emulated::Block*, int>, Warpgroup> warpgroups;

inline Warpgroup& own_warpgroup() {
  return warpgroups[{emulated::current->block, static_cast<int>(threadIdx.x / 128)}];
}

}  // namespace lpkernels::hopper

namespace cute {

template <int Value>
using Int = std::integral_constant<int, Value>;
using _1 = Int<1>;
using _2 = Int<2>;
using _128 = Int<128>;
template <class...>
struct Shape {};
template <class>
struct Layout {};
constexpr struct Underscore {
} _{};

namespace GMMA {

enum class ScaleOut { Zero, One };
enum class Major { K };
template <class>
struct Layout_K_SW128_Atom {};
template <class, class, class, class Tile, Major, Major>
Tile rs_op_selector() {
  return {};
}

}  // namespace GMMA

// Boxes of weights, one for each stage.
template <int Rows, int Columns>
struct Boxes {};
template <class Atom, int Rows, int Columns, int Stages>
Boxes<Rows, Columns> tile_to_shape(Atom, Shape<Int<Rows>, Int<Columns>, Int<Stages>>) {
  return {};
}

// 16 channels of a box.
struct Columns {
  const __half* box;
  int slice;
};

template <int Rows, int Size>
struct SharedBoxes {
  const __half* first;

  Columns operator()(Underscore, Underscore, int slice, int stage) const {
    return {first + Rows * Size * stage, slice};
  }
};

template <class T>
T* make_smem_ptr(T* pointer) {
  return pointer;
}
template <int Rows, int Columns>
SharedBoxes<Rows, Columns> make_tensor(const __half* first, Boxes<Rows, Columns>) {
  return {first};
}

// A thread's part of 64 rows by 16 channels.
template <class Element>
struct Rows {
  Element values[8];

  Element* data() { return values; }
  const Element* operator()(Underscore, Underscore, int) const { return values; }
};
template <class Element, class Values>
Rows<Element> make_tensor(Values) {
  return {};
}

template <int Count>
struct Sums {
  float values[Count / 2];

  float& operator()(int i) { return values[i]; }
  const float& operator()(int i) const { return values[i]; }
};

template <int Count>
struct TiledMma {
  GMMA::ScaleOut accumulate_;

  const TiledMma& get_thread_slice(int) const { return *this; }
  template <class Weights>
  Weights partition_fragment_B(const Weights& weights) const {
    return weights;
  }
};
template <int Count, int Size, class Warpgroups>
TiledMma<Count> make_tiled_mma(Shape<_128, Int<Count>, Int<Size>>, Warpgroups) {
  return {};
}
template <int Count>
Sums<Count> partition_fragment_C(TiledMma<Count>, Shape<_128, Int<Count>>) {
  return {};
}

template <int Count>
constexpr int size(const Sums<Count>&) {
  return Count / 2;
}
template <int Count>
void clear(Sums<Count>& sums) {
  std::fill(std::begin(sums.values), std::end(sums.values), 0.f);
}
template <class Operand>
void warpgroup_fence_operand(Operand&) {}
template <class Map>
void prefetch_tma_descriptor(const Map*) {}

inline uint32_t cast_smem_ptr_to_uint(const void* pointer) {
  const auto* memory = reinterpret_cast<const char*>(emulated::current->block->memory.data());
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - memory);
}

inline void warpgroup_arrive() {}

template <int Count>
void gemm(const TiledMma<Count>& mma, const __half* rows, const Columns& columns, Sums<Count>& sums) {
  if (mma.accumulate_ != GMMA::ScaleOut::One) {
    emulated::fail("gemm: sums that begin anew");
  }
  lpkernels::hopper::Warpgroup& own = lpkernels::hopper::own_warpgroup();
  const int lane = threadIdx.x % 128;
  const size_t place = own.issued[lane]++ - own.made;
  if (place == own.waiting.size()) {
    own.waiting.push_back({columns.box, Count, columns.slice, {}, {}});
  }
  own.waiting.at(place).rows[lane] = rows;
  own.waiting.at(place).sums[lane] = sums.values;
}

inline void warpgroup_commit_batch() {
  lpkernels::hopper::Warpgroup& own = lpkernels::hopper::own_warpgroup();
  const int lane = threadIdx.x % 128;
  ++own.committed[lane];
  if (lane == 0) {
    own.ends.push_back(own.issued[lane]);
    for (int rounds = emulated::chance() % 16 == 0 ? 100 : 0; rounds > 0; --rounds) {
      emulated::yield();
    }
  }
  emulated::sync(own.barrier);
  if (lane == 0 && emulated::chance() % 2) {
    own.make_until(own.ends.back());
  }
}

// Until all but the last `Pending` groups of this thread are made.
template <int Pending>
void warpgroup_wait() {
  lpkernels::hopper::Warpgroup& own = lpkernels::hopper::own_warpgroup();
  const int groups = own.committed[threadIdx.x % 128] - Pending;
  if (groups > 0) {
    own.make_until(own.ends[groups - 1]);
  }
}

}  // namespace cute
