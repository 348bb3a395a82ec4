// Goes through the tiles of some images as the Hopper kernels with sums over an image do (csrc/hopper/image_tile.h).
// Arguments: images, height, width. Prints the tiles of an image, and for every pixel of a tile that lies in an image:
// image, h, w, its warpgroup's image (grn_loop.cuh), the row of sums it is added to (column_squares.cuh).
#include <cstdio>
#include <cstdlib>

#include "hopper/image_tile.h"

using namespace lpkernels::hopper;

int main(int count, char** arguments) {
  if (count != 4) {
    return 2;
  }
  ConvShape shape{.batch = 1,
                  .depth = std::atoi(arguments[1]),
                  .height = std::atoi(arguments[2]),
                  .width = std::atoi(arguments[3]),
                  .channels = 64,
                  .outputs = 32,
                  .taps_d = 1,
                  .taps_h = 1,
                  .taps_w = 1};
  set_image_tile(shape);
  if (shape.tile_w * shape.tile_h * shape.tile_d != kImageTile) {
    return 3;
  }
  std::printf("%d\n", tiles_of_image(shape));
  for (int tile = 0; tile < tiles(shape); ++tile) {
    const ConvBlock block = block_at(shape, 0, tile, 0, 0);
    for (int row = 0; row < kImageTile; ++row) {
      const Pixel at = pixel_at(shape, block, row);
      if (!inside(shape, at)) {
        continue;
      }
      const int warp = row / 16, part = warp / (8 / shape.tile_d);
      const int of_warpgroup = std::min(block.d + part, shape.depth - 1);
      const int sums = (block.d + part) * tiles_of_image(shape) + tile_in_image(shape, block);
      std::printf("%d %d %d %d %d\n", at.d, at.h, at.w, of_warpgroup, sums);
    }
  }
}
