// Tiles of 128 pixels of which either half lies in one image, for sums over an image and numbers that belong to one.
#pragma once

#include "hopper/conv_shape.h"

namespace lpkernels::hopper {

constexpr int kImageTile = 128;

// Of a shape whose images lie along its depth: a tile has 128 pixels of an image, or 64 of each of two.
inline void set_image_tile(ConvShape& shape) {
  const auto covering = [](int size) { return 1 << log2_of(size); };
  shape.tile_w = std::min(kImageTile, covering(shape.width));
  const int least = std::max(kImageTile / 2 / shape.tile_w, 1), most = kImageTile / shape.tile_w;
  shape.tile_h = std::clamp(covering(shape.height), least, most);
  shape.tile_d = kImageTile / (shape.tile_w * shape.tile_h);
  complete(shape, kImageTile);
}

// Tiles that an image has a part in.
LPKERNELS_HOST_DEVICE int tiles_of_image(const ConvShape& shape) {
  return shape.tiles_h * shape.tiles_w;
}

// Which of them a block has, of each of its images.
LPKERNELS_HOST_DEVICE int tile_in_image(const ConvShape& shape, const ConvBlock& block) {
  return block.tile - (block.d >> (shape.tile_d - 1)) * tiles_of_image(shape);  // tile_d is 1 or 2
}

// Where vector `vector` of 8 channels of a row lies in a box of rows of 128 bytes, counted from the row's first.
constexpr int kRowVectors = kBoxChannels / 8;

LPKERNELS_HOST_DEVICE int swizzled(int row, int vector) {
  return vector ^ (row % kRowVectors);
}

}  // namespace lpkernels::hopper
