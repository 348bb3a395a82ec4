// The boxes that a convolution's blocks load: what TMA is told of x and of the weight, and where each step's box
// begins. StepOrder and the origins work out once what all steps share: a producer has a few hundred cycles for a step.
#pragma once

#include <array>
#include <cstdint>

#include "hopper/conv_shape.h"

namespace lpkernels::hopper {

// A box of a tensor in elements, innermost dimension first; the innermost stride is one. Of `box` elements along a
// dimension every `every`-th is taken.
struct TensorBox {
  std::array<uint64_t, 5> sizes;
  std::array<uint64_t, 4> strides;
  std::array<uint32_t, 5> box;
  std::array<uint32_t, 5> every = {1, 1, 1, 1, 1};
};

// The tile's pixels, 64 channels of each.
inline TensorBox pixel_box(int64_t pixel_stride, const ConvShape& shape) {
  const uint64_t every = shape.stride_of_x(), p = pixel_stride;
  const uint64_t w = shape.width * every, h = shape.height * every, d = shape.depth;
  const auto size = [](uint64_t value) { return static_cast<uint32_t>(value); };
  return {{static_cast<uint64_t>(shape.channels), w, h, d, static_cast<uint64_t>(shape.batch)},
          {p, p * w, p * w * h, p * w * h * d},
          {kBoxChannels, size(shape.tile_w * every), size(shape.tile_h * every), size(shape.tile_d), 1},
          {1, size(every), size(every), 1, 1}};
}

// block_n rows of the weight, 64 elements of each; `row`: all elements of one. Permuted:
// column 8 j + 2 q + e of a product lies in thread q of a quad, so the box takes rows in an order that gives the thread
// group / 4 neighbouring outputs: column 8 (J i_max + i) + 2 q + e is output group J + (group / 4) q + 2 i + e.
inline TensorBox rows_box(uint64_t row, const ConvShape& shape, int block_n) {
  const uint64_t rows = static_cast<uint64_t>(shape.phases()) * shape.outputs, group = shape.group;
  const auto size = [](uint64_t value) { return static_cast<uint32_t>(value); };
  if (!shape.permuted) {
    return {{row, rows, 1, 1, 1}, {row, row, row, row}, {kBoxChannels, size(block_n), 1, 1, 1}};
  }
  return {{row, 2, 4, group / 8, rows / group},
          {row, group / 4 * row, 2 * row, group * row},
          {kBoxChannels, 2, 4, size(group / 8), size(block_n / group)}};
}

// A row is the taps of an output, one after the other: 64 channels of one tap.
inline TensorBox weight_box(const ConvShape& shape, int block_n) {
  return rows_box(static_cast<uint64_t>(shape.taps_d) * shape.taps_h * shape.taps_w * shape.channels, shape, block_n);
}

// Where the box of a step begins in x: channel, w, h, d, b.
struct PixelOrigin {
  int c, w, h, d, b;

  LPKERNELS_HOST_DEVICE PixelOrigin(const ConvShape& shape, const ConvBlock& block)
      : c(block.c),
        w(block.w * shape.stride_of_x() + axis_taps(shape, shape.taps_w, block.phase_w).first),
        h(block.h * shape.stride_of_x() + axis_taps(shape, shape.taps_h, block.phase_h).first),
        d(block.d - shape.taps_d / 2),
        b(block.b) {}

  LPKERNELS_HOST_DEVICE std::array<int, 5> at(const KStep& k) const {
    return {c + k.box * kBoxChannels, w + k.w, h + k.h, d + k.d, b};
  }
};

// Where the box of a step begins in the weight.
struct WeightOrigin {
  int channels, taps_h, taps_w, first, row;
  bool permuted;

  LPKERNELS_HOST_DEVICE WeightOrigin(const ConvShape& shape, const ConvBlock& block)
      : channels(shape.channels),
        taps_h(shape.taps_h),
        taps_w(shape.taps_w),
        first(axis_taps(shape, taps_h, block.phase_h).stored * taps_w + axis_taps(shape, taps_w, block.phase_w).stored),
        row(shape.permuted ? block.weight_row / shape.group : block.weight_row),
        permuted(shape.permuted) {}

  LPKERNELS_HOST_DEVICE std::array<int, 5> at(const KStep& k) const {
    const int tap = first + (k.d * taps_h + k.h) * taps_w + k.w, c = tap * channels + k.box * kBoxChannels;
    return permuted ? std::array<int, 5>{c, 0, 0, 0, row} : std::array<int, 5>{c, row, 0, 0, 0};
  }
};

}  // namespace lpkernels::hopper
