// What the walks through the Hopper convolutions share: the boxes of TMA, and the numbers of a case.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "hopper/conv_boxes.h"

namespace lpkernels::hopper {

// What TMA puts into place `i` of the box at `origin`: zero outside the tensor.
inline float fetch(const std::vector<float>& data, const TensorBox& box, const std::array<int, 5>& origin, size_t i) {
  int64_t offset = 0;
  for (int dim = 0; dim < 5; ++dim) {
    const uint32_t taken = (box.box[dim] + box.every[dim] - 1) / box.every[dim];
    const int64_t at = origin[dim] + static_cast<int64_t>(i % taken * box.every[dim]);
    i /= taken;
    if (at < 0 || at >= static_cast<int64_t>(box.sizes[dim])) {
      return 0.f;
    }
    offset += at * (dim == 0 ? 1 : static_cast<int64_t>(box.strides[dim - 1]));
  }
  return data.at(offset);
}

// A box whose rows are `lines` times 16 bytes, swizzled: those bytes' number takes what counts lines of 128 bytes.
inline std::vector<float> fetch_all(const std::vector<float>& data, const TensorBox& box,
                                    const std::array<int, 5>& origin, size_t lines = 1) {
  std::vector<float> all(size_t{1} * box.box[0] * box.box[1] * box.box[2] * box.box[3]);
  for (size_t i = 0; i < all.size(); ++i) {
    all[i ^ i / 64 % lines * 8] = fetch(data, box, origin, i);
  }
  return all;
}

inline std::vector<float> read(size_t count) {
  std::vector<float> data(count);
  for (float& value : data) {
    if (std::scanf("%f", &value) != 1) {
      std::exit(2);
    }
  }
  return data;
}

}  // namespace lpkernels::hopper
