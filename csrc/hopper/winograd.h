// Three taps along h as products that two neighbouring rows of y share: four instead of six (Winograd's F(2, 3)).
//
// Rows r and r + 1 of y see four rows of x, u0 .. u3, and the taps w0 .. w2. Their half sum s and half difference d are
//   s = (u1 + u2) (w0 + w1 + w2)/2 + ...
//   d = (u2 - u1) (w0 - w1 + w2)/2 + ...
// and what these leave, with y[r] = s + d and y[r + 1] = s - d,
//   y[r]     += (u0 - u2) w0
//   y[r + 1] += (u3 - u1) w2
// Either all four products of 16 channels are made together, each with a sum of its own, or the sums are kept as s and
// d or as y, whichever the products at hand add to: a step adds its products of one kind, turns the sums into the
// other, and adds the others, the next step begins with those; the last ends with y. Plain arithmetic for host and
// device, as conv_shape.h.
#pragma once

#include "hopper/conv_boxes.h"

namespace lpkernels::hopper {

constexpr int kWinogradTaps = 3;                                     // in h and in w
constexpr int kWinogradProducts = 4;                                 // for two rows
constexpr int kWinogradSlice = 16;                                   // channels of a product
constexpr int kWinogradTileH = 4, kWinogradTileW = 64;               // of y: two rows for each multiplying warpgroup
constexpr int kWinogradBoxH = 6, kWinogradBoxW = 72;                 // of x: with its halo, in whole swizzle atoms
constexpr int kWinogradRowBytes = kWinogradBoxW * 2 * kBoxChannels;  // of a box

// A step is up to 64 channels of a depth: `slices` of 16, multiplied with all nine taps. There is a group of products
// for every tap in w and slice: of each kind two, one for each of its sums.
LPKERNELS_HOST_DEVICE constexpr int winograd_groups(int slices) {
  return kWinogradTaps * slices;
}

// The weight's tiles of a step, 64 deep. Together: one for each group, w0, w2, half sum, half difference. Else two
// groups of a kind each, the last perhaps one.
LPKERNELS_HOST_DEVICE constexpr int winograd_tiles(int slices, bool together) {
  return together ? winograd_groups(slices) : 2 * ceil_div(winograd_groups(slices), 2);
}

// Tiles of a depth.
LPKERNELS_HOST_DEVICE constexpr int winograd_depth_tiles(int channels, bool together) {
  return channels / kBoxChannels * winograd_tiles(4, together) +
         winograd_tiles(channels % kBoxChannels / kWinogradSlice, together);
}

// Whether a step begins with products of taps, and ends with those of half sums.
LPKERNELS_HOST_DEVICE constexpr bool winograd_taps_first(int steps, int step) {
  return (steps - step) % 2 == 0;
}

inline void set_winograd_tile(ConvShape& shape) {
  shape.tile_w = kWinogradTileW;
  shape.tile_h = kWinogradTileH;
  shape.tile_d = 1;
  complete(shape, kWinogradTileH * kWinogradTileW);
}

// The tile's rows and pixels with their halo, 64 channels of each.
inline TensorBox winograd_box(int64_t pixel_stride, const ConvShape& shape) {
  TensorBox box = pixel_box(pixel_stride, shape);
  box.box[1] = kWinogradBoxW;
  box.box[2] = kWinogradBoxH;
  return box;
}

// Where TMA puts 8 channels, `chunk` of 2 of the first 16, of a pixel in a row of a box.
LPKERNELS_HOST_DEVICE constexpr uint32_t winograd_chunk(int pixel, int chunk) {
  return pixel * 128 + ((chunk ^ pixel % 8) << 4);
}

// The same of slice k, in row `row` of the box.
LPKERNELS_HOST_DEVICE constexpr uint32_t winograd_place(uint32_t chunk, int k, int row) {
  return (chunk ^ k << 5) + row * kWinogradRowBytes;
}

// The tile's row of pixels that row m of a warpgroup's product number `sum` has.
LPKERNELS_HOST_DEVICE constexpr int winograd_row(int warpgroup, int sum) {
  return 2 * warpgroup + sum;
}

// Half sum and half difference into the rows of y that they make, and back: each in the place of one, for there are
// registers for no more.
LPKERNELS_HOST_DEVICE void rows_of_half_sums(float& first, float& second) {
  first += second;
  second = first - 2.f * second;
}

LPKERNELS_HOST_DEVICE void half_sums_of_rows(float& first, float& second) {
  first = 0.5f * (first + second);
  second = first - second;
}

}  // namespace lpkernels::hopper
