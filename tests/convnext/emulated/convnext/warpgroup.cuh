// csrc/convnext/warpgroup.cuh without a GPU. Of every other warp the tensor cores read at once, of the others not
// before somebody waits for them.
#pragma once

#include <array>
#include <numeric>

#include "convnext/device.cuh"

namespace lpkernels::convnext {

constexpr int kWarpgroup = 128;

struct Operand {
  const char* first;
  int rows, depth;  // rows of vectors of 8 k, or k of vectors of 8 rows, else 0; neither in a box

  Operand at(int vectors) const { return {first + 16 * vectors, rows, depth}; }
  std::array<float, 16> row(int row) const {
    const emulated::Block& block = *emulated::current->block;
    auto* memory = reinterpret_cast<char*>(const_cast<uint4*>(block.memory.data()));
    const auto begin = static_cast<size_t>(first - memory);
    const bool in_box = rows == 0 && depth == 0;
    if (in_box && (begin % 1024 % 32 != 0 || begin % 1024 >= 128)) {
      emulated::fail("an operand that is not 16 k of the first of eight rows of a box");
    }
    const auto half_at = [&](size_t place) {
      const int rank = blockIdx.x % block.cluster->blocks.size();
      return static_cast<float>(*emulated::place_in(reinterpret_cast<__half*>(memory + place), rank));
    };
    std::array<float, 16> values;
    for (int k = 0; k < 16; ++k) {
      if (in_box) {
        const size_t place = begin + 128 * row + 2 * k;
        values[k] = half_at(place ^ (place >> 3 & 0x70));
      } else {
        values[k] = half_at(begin + (depth > 0 ? 16 * (row / 8 * depth + k) + 2 * (row % 8)
                                               : 16 * (k / 8 * rows + row) + 2 * (k % 8)));
      }
    }
    return values;
  }
};

inline int uniform(int value) {
  return value;
}

inline Operand operand_in_box(const void* first) {
  return {static_cast<const char*>(first), 0, 0};
}

inline Operand operand_of_vectors(const void* first, int rows) {
  if (reinterpret_cast<uintptr_t>(first) % 16 != 0 || rows % 8 != 0) {
    emulated::fail("operand_of_vectors: not aligned, or not in eights");
  }
  return {static_cast<const char*>(first), rows, 0};
}

inline Operand operand_of_columns(const void* first, int depth) {
  if (reinterpret_cast<uintptr_t>(first) % 16 != 0 || depth % 8 != 0) {
    emulated::fail("operand_of_columns: not aligned, or not in eights");
  }
  return {static_cast<const char*>(first), 0, depth};
}

inline void begin_products() {
  if (!emulated::current->products.empty()) {
    emulated::fail("products that nobody has waited for");
  }
}

template <int N, bool Columns>
void add_product(float (&sums)[N / 2], Operand a, Operand b, bool first) {
  if (Columns != (b.depth > 0)) {
    emulated::fail("an operand in another order");
  }
  const auto multiply = [&sums, a, b, first] {
    const int warp = threadIdx.x % kWarpgroup / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const std::array<float, 16> a_rows[2] = {a.row(16 * warp + g), a.row(16 * warp + g + 8)};
    for (int i = 0; i < N / 2; ++i) {
      const auto &a_row = a_rows[i / 2 % 2], b_row = b.row(i / 4 * 8 + 2 * t + i % 2);
      sums[i] = std::inner_product(a_row.begin(), a_row.end(), b_row.begin(), first ? 0.f : sums[i]);
    }
  };
  if (threadIdx.x / 32 % 2 == 0) {
    multiply();
  } else {
    emulated::current->products.push_back(multiply);
  }
}

template <int Count>
void finish_products(float (&)[Count]) {
  emulated::yield();
  for (const auto& product : emulated::current->products) {
    product();
  }
  emulated::current->products.clear();
}

}  // namespace lpkernels::convnext
