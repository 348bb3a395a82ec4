// Seven taps along h as products that two neighbouring rows of y share: 10 instead of 14 (Winograd's F(2, 3), twice).
//
// Rows r and r + 1 of y see eight rows of x, u0 .. u7, and the taps w0 .. w6. Their half sum s and half difference d
// are
//   s = (u1 + u2) (w0 + w1 + w2)/2 + (u4 + u5) (w3 + w4 + w5)/2 + ...
//   d = (u2 - u1) (w0 - w1 + w2)/2 + (u5 - u4) (w3 - w4 + w5)/2 + ...
// and what these leave, with y[r] = s + d and y[r + 1] = s - d,
//   y[r]     += (u0 - u2) w0 + (u3 - u5) w3 + u6 w6
//   y[r + 1] += (u3 - u1) w2 + (u6 - u4) w5 + u7 w6
// The sums are kept as s and d or as y, whichever the products at hand add to: a step adds its products of one kind,
// turns the sums into the other, and adds the others, the next step begins with those. Plain arithmetic for host and
// device, as conv_shape.h.
#pragma once

#include "hopper/winograd.h"

namespace lpkernels::hopper {

constexpr int kPairTaps = 7;                                // in d and in h
constexpr int kPairChannels = 144;                          // two boxes of 64, and 16 left over
constexpr int kPairColumns = 160;                           // of the product
constexpr int kPairTileH = 4, kPairTileW = 64;              // of y: two rows for each multiplying warpgroup
constexpr int kPairBoxRows = 2;                             // of x, in a box
constexpr int kPairBoxes = 5;                               // of a step: the rows of a tile and of its taps
constexpr int kHalfSumTiles = 4, kTapTiles = 5;             // of a step's weights
constexpr int kStepTiles = kHalfSumTiles + kTapTiles;       // of 64 channels by all columns
constexpr int kLeftOverSteps = 2;                           // of 16 channels of four taps in d, then of three
constexpr int kFullSteps = 2 * kPairTaps;                   // of 64 channels of one
constexpr int kPairSteps = kLeftOverSteps + kFullSteps;     // even: the sums begin and end as y
constexpr int kPairWeights = kPairSteps * kStepTiles * 64;  // of a column

// A step's x: 64 channels of a depth, or 16 of four. Its products are made 16 channels after 16.
struct PairStep {
  int channel, d;  // where it begins
  bool left_over;
};

LPKERNELS_HOST_DEVICE constexpr PairStep pair_step(int step) {
  if (step < kLeftOverSteps) {
    return {kPairChannels / 64 * 64, 4 * step, true};
  }
  step -= kLeftOverSteps;
  return {step % 2 * 64, step / 2, false};
}

// A step's products of 16 channels: four, but for the last taps in d.
LPKERNELS_HOST_DEVICE constexpr int pair_products(int step) {
  return step == kLeftOverSteps - 1 ? 3 : 4;
}

enum class PairKind { kHalfSums, kTaps, kLastTap };

// Two products of 16 channels, one for each of the two sums: x[0] and x[1] are made of rows u[row] and following.
//   kHalfSums  u[row] + u[row + 1],  u[row + 1] - u[row]
//   kTaps      u[row] - u[row + 2],  u[row + 3] - u[row + 1]
//   kLastTap   u[row],               u[row + 1]
struct PairGroup {
  PairKind kind;
  int row, k;                 // 16 channels k of the step
  std::array<int, 2> weight;  // 16 channels of the weight tile for each product
  bool opens, closes;         // the first and the last that multiply with that tile
};

LPKERNELS_HOST_DEVICE constexpr int pair_groups(bool taps, int products) {
  return (taps ? 3 : 2) * products;
}

// Group i of a step's half sums or taps. A tile has two weights for 32 channels, or w6 for 64.
LPKERNELS_HOST_DEVICE constexpr PairGroup pair_group(bool taps, int products, int i) {
  const int pair = i / products, k = i % products;
  const bool last = k == products - 1;
  if (pair == 2) {
    return {PairKind::kLastTap, 6, k, {k, k}, k == 0, last};
  }
  return {taps ? PairKind::kTaps : PairKind::kHalfSums,
          3 * pair + (taps ? 0 : 1),
          k,
          {k % 2, 2 + k % 2},
          k % 2 == 0,
          k % 2 == 1 || last};
}

inline void set_pair_tile(ConvShape& shape) {
  shape.tile_w = kPairTileW;
  shape.tile_h = kPairTileH;
  shape.tile_d = 1;
  complete(shape, kPairTileH * kPairTileW);
}

// Two rows of x: 64 channels, or 16 of four depths.
inline TensorBox pair_box(const ConvShape& shape, bool left_over) {
  TensorBox box = pixel_box(shape.channels, shape);
  box.box = {left_over ? 16U : 64U, kPairTileW, kPairBoxRows, left_over ? 4U : 1U, 1};
  return box;
}

LPKERNELS_HOST_DEVICE std::array<int, 5> pair_box_at(const ConvBlock& block, const PairStep& step, int box) {
  return {step.channel, block.w, block.h - kPairTaps / 2 + kPairBoxRows * box, block.d + step.d - kPairTaps / 2,
          block.b};
}

// Where TMA puts 8 channels, `chunk` of 2 of the first 16, of a pixel of a box: a row of 64 channels is swizzled by 128
// bytes, one of 16 by 32.
LPKERNELS_HOST_DEVICE constexpr uint32_t pair_chunk(bool left_over, int pixel, int chunk) {
  return left_over ? pixel * 32 + ((chunk ^ pixel / 4 % 2) << 4) : pixel * 128 + ((chunk ^ pixel % 8) << 4);
}

// The same of 16 channels k, in a row of the box.
LPKERNELS_HOST_DEVICE constexpr uint32_t pair_place(bool left_over, uint32_t chunk, int k, int row) {
  const int line = left_over ? kPairBoxRows * k + row : row;
  return (left_over ? chunk : chunk ^ k << 5) + line * kPairTileW * (left_over ? 32 : 128);
}

// The weight is (columns, tiles in the order of their use, 64). A block loads half a tile's columns for both of a
// cluster.
inline TensorBox pair_weight_box() {
  const uint64_t row = kPairWeights;
  return {{row, kPairColumns, 1, 1, 1}, {row, row, row, row}, {64, kPairColumns / 2, 1, 1, 1}};
}

// Row of y, counted from the tile's, that a warpgroup's sum belongs to.
LPKERNELS_HOST_DEVICE constexpr int pair_row(int warpgroup, int sum) {
  return 2 * warpgroup + sum;
}

}  // namespace lpkernels::hopper
