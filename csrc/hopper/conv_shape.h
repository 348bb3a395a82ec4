// The shape of a convolution, the part of it a block owns, and the order in which it walks through taps and channels:
// plain arithmetic, the same on host and device, which a test without a GPU walks through as the kernel does.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "common/divisor.h"
#include "common/host_device.h"

namespace lpkernels::hopper {

constexpr int kBoxChannels = 64;  // channels of one TMA box: rows of 128 bytes
constexpr int kLargestCluster = 8;

LPKERNELS_HOST_DEVICE constexpr int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

// Where h and w of y come from. An image enlarged 4 times and convolved with 3x3 taps takes 3 values per small pixel
// and axis: for the first, the two inner and the last of its 4 rows. On this grid of classes, 3 by 3 for each small
// pixel, upsample_conv stores it; a convolution of the enlarged image reads them with 10 taps for 4 rows, not 12.
enum class Grid {
  kSame,         // y has the pixels of x
  kFromClasses,  // x on the grid of classes, y enlarged 4 times: 4 phases, of 3, 2, 2 and 3 taps
};

struct ConvShape {
  int batch, depth, height, width;  // the tiles cover this grid: that of x, or its small pixels
  int channels;                     // of x
  int outputs;                      // of one phase
  int taps_d, taps_h, taps_w;       // of the weight: odd and centred; 3 in h and w from classes
  Grid grid = Grid::kSame;
  int split = 1;                           // blocks that share one tile's sum, a cluster
  int group = 32;                          // rows of the weight that are permuted among themselves
  bool permuted = false;                   // so that a thread's accumulators are neighbouring outputs
  int tile_d = 1, tile_h = 1, tile_w = 0;  // powers of two; tile_w 0: chosen at launch
  int log_h = 0, log_w = 0;                // set at launch, like the tiles
  int tiles_d = 0, tiles_h = 0, tiles_w = 0;
  bool whole_tiles = false;  // whether all have all their pixels, as in most images
  Divisor by_tiles_d{}, by_tiles_h{}, by_tiles_w{};
  Divisor by_columns{}, by_tiles{};                  // pieces of the outputs, all tiles; set by `lay_out`
  const float *squares = nullptr, *gamma = nullptr;  // of what x is multiplied by, for convnext/grn_loop.cuh alone

  LPKERNELS_HOST_DEVICE int axis_phases() const { return grid == Grid::kFromClasses ? 4 : 1; }
  LPKERNELS_HOST_DEVICE int phases() const { return axis_phases() * axis_phases(); }
  // Rows of x, and of y, for one row of the tiles' grid.
  LPKERNELS_HOST_DEVICE int stride_of_x() const { return grid == Grid::kFromClasses ? 3 : 1; }
  LPKERNELS_HOST_DEVICE int stride_of_y() const { return axis_phases(); }
  LPKERNELS_HOST_DEVICE int boxes() const { return ceil_div(channels, kBoxChannels); }
};

inline int log2_of(int value) {
  int log = 0;
  while ((1 << log) < value) {
    ++log;
  }
  return log;
}

// Chooses the tile if it is not set: as wide as the image, then as high, the rest in depth.
inline void complete(ConvShape& shape, int block_m) {
  if (shape.tile_w == 0) {
    const int most = shape.stride_of_x() == 1 ? 256 : 64;  // a box spans at most 256 rows of x
    shape.tile_w = std::min({block_m, most, 1 << log2_of(shape.width)});
    shape.tile_h = std::min({block_m / shape.tile_w, most, 1 << log2_of(shape.height)});
    shape.tile_d = block_m / shape.tile_w / shape.tile_h;
  }
  shape.log_h = log2_of(shape.tile_h);
  shape.log_w = log2_of(shape.tile_w);
  shape.tiles_d = ceil_div(shape.depth, shape.tile_d);
  shape.tiles_h = ceil_div(shape.height, shape.tile_h);
  shape.tiles_w = ceil_div(shape.width, shape.tile_w);
  shape.whole_tiles =
      shape.depth % shape.tile_d == 0 && shape.height % shape.tile_h == 0 && shape.width % shape.tile_w == 0;
  shape.by_tiles_d = Divisor(shape.tiles_d);
  shape.by_tiles_h = Divisor(shape.tiles_h);
  shape.by_tiles_w = Divisor(shape.tiles_w);
}

LPKERNELS_HOST_DEVICE int tiles(const ConvShape& shape) {
  return shape.tiles_d * shape.tiles_h * shape.tiles_w * shape.batch;
}

// A piece of work: the first pixel of a tile, its outputs, its phase, a part of the sum.
struct ConvBlock {
  int tile;        // its number
  int b, d, h, w;  // its first pixel
  int n;           // first output
  int c = 0;       // first channel of x
  int weight_row;  // its row in the weight
  int phase_h, phase_w;
  int k_begin, k_end;
  bool first = true;  // the first a block does
  bool fresh = true;  // a block that goes on to another tile: whether its image or its outputs are others
  int turn = 0;       // 0 or 1: of every other fresh tile
};

// The taps of an axis in a phase: `count` of them from x's row stride_of_x * i + `first` on, `stored` the weight's
// first.
struct AxisTaps {
  int first, stored, count;
};

LPKERNELS_HOST_DEVICE AxisTaps axis_taps(const ConvShape& shape, int taps, int phase) {
  if (shape.grid == Grid::kSame) {
    return {-(taps / 2), 0, taps};
  }
  return {phase == 3 ? 1 : phase - 1, 0, phase % 3 == 0 ? 3 : 2};
}

// Position in the sum: the taps' numbers within the phase, the box of 64 channels.
struct KStep {
  int box, d, h, w;
};

LPKERNELS_HOST_DEVICE int steps_of(const ConvShape& shape, int phase_h, int phase_w) {
  return shape.taps_d * axis_taps(shape, shape.taps_h, phase_h).count * axis_taps(shape, shape.taps_w, phase_w).count *
         shape.boxes();
}

LPKERNELS_HOST_DEVICE ConvBlock block_at(const ConvShape& shape, int n, int tile, int phase, int part) {
  ConvBlock block;
  const int row = shape.by_tiles_w.quotient(tile), plane = shape.by_tiles_h.quotient(row);
  block.tile = tile;
  block.w = (tile - row * shape.tiles_w) * shape.tile_w;
  block.h = (row - plane * shape.tiles_h) * shape.tile_h;
  block.b = shape.by_tiles_d.quotient(plane);
  block.d = (plane - block.b * shape.tiles_d) * shape.tile_d;
  block.n = n;
  block.weight_row = phase * shape.outputs + n;
  block.phase_h = phase / 4;
  block.phase_w = phase % 4;
  const int steps = steps_of(shape, block.phase_h, block.phase_w);
  block.k_begin = 0;
  block.k_end = steps;
  if (shape.split > 1) {
    block.k_begin = steps * part / shape.split;
    block.k_end = steps * (part + 1) / shape.split;
  }
  return block;
}

// The steps of a block's sum: 64 channels after 64, then the taps in the order w, h, d.
struct StepOrder {
  int boxes, across, down;

  LPKERNELS_HOST_DEVICE StepOrder(const ConvShape& shape, const ConvBlock& block)
      : boxes(shape.boxes()),
        across(axis_taps(shape, shape.taps_w, block.phase_w).count),
        down(axis_taps(shape, shape.taps_h, block.phase_h).count) {}

  LPKERNELS_HOST_DEVICE KStep first(const ConvBlock& block) const {
    if (block.k_begin == 0) {
      return {0, 0, 0, 0};
    }
    const int tap = block.k_begin / boxes;
    return {block.k_begin % boxes, tap / (across * down), tap / across % down, tap % across};
  }

  LPKERNELS_HOST_DEVICE void next(KStep& k) const {
    if (++k.box < boxes) {
      return;
    }
    k.box = 0;
    if (++k.w < across) {
      return;
    }
    k.w = 0;
    if (++k.h < down) {
      return;
    }
    k.h = 0;
    ++k.d;
  }
};

// Row m of a block's tile as a pixel of x's grid; it may lie beyond the image.
struct Pixel {
  int d, h, w;
};

LPKERNELS_HOST_DEVICE Pixel pixel_at(const ConvShape& shape, const ConvBlock& block, int row) {
  return {block.d + (row >> (shape.log_w + shape.log_h)), block.h + ((row >> shape.log_w) & (shape.tile_h - 1)),
          block.w + (row & (shape.tile_w - 1))};
}

LPKERNELS_HOST_DEVICE bool inside(const ConvShape& shape, const Pixel& at) {
  return at.d < shape.depth && at.h < shape.height && at.w < shape.width;
}

// The pixel of y that a pixel of the tiles' grid stands for in the block's phase.
LPKERNELS_HOST_DEVICE Pixel pixel_of_y(const ConvShape& shape, const ConvBlock& block, const Pixel& at) {
  const int stride = shape.stride_of_y();
  return {at.d, at.h * stride + block.phase_h, at.w * stride + block.phase_w};
}

// Its number in y, whose pixels lie next to each other.
LPKERNELS_HOST_DEVICE int64_t index_in_y(const ConvShape& shape, const ConvBlock& block, const Pixel& at) {
  const int stride = shape.stride_of_y();
  const int64_t plane = int64_t{block.b} * shape.depth + at.d;
  return (plane * shape.height * stride + at.h) * shape.width * stride + at.w;
}

// Neighbouring outputs of one pixel in a thread's accumulators, when the weight's rows are permuted in groups of
// 4 * Width. The two multiplying warpgroups have threads 0 to 255.
template <int Width>
struct Fragment {
  static constexpr int kGroup = 4 * Width;

  // Accumulator i of rows lane / 4 + 8 s, group j, in 64-row product `tile_m` of the warpgroup.
  static LPKERNELS_HOST_DEVICE constexpr int index(int block_n, int tile_m, int s, int j, int i) {
    return i % 2 + 2 * s + 4 * (Width / 2 * j + i / 2) + tile_m * (block_n / 2);
  }
  // The tile's row those accumulators belong to.
  static LPKERNELS_HOST_DEVICE int row(int thread, int tile_m, int s) {
    return tile_m * 128 + thread / 32 * 16 + thread % 32 / 4 + 8 * s;
  }
  // The first of the thread's outputs in group j, counted from the block's first.
  static LPKERNELS_HOST_DEVICE int output(int thread, int j) { return kGroup * j + Width * (thread % 4); }
  // The column of the product in which an output lies.
  static LPKERNELS_HOST_DEVICE int column(int output) {
    return output / kGroup * kGroup + output % Width / 2 * 8 + output % kGroup / Width * 2 + output % 2;
  }
};

// How many pieces of work there are.
LPKERNELS_HOST_DEVICE int blocks(const ConvShape& shape, int block_n) {
  return ceil_div(shape.outputs, block_n) * tiles(shape) * shape.phases();
}

// Phases with many taps come first, so that blocks end at about the same time.
LPKERNELS_HOST_DEVICE int phase_at(const ConvShape& shape, int place) {
  constexpr uint64_t kOrder = 0xa965b874ed21fc30;  // of phases 4 r + q, the first in the lowest digit
  return shape.grid == Grid::kFromClasses ? static_cast<int>(kOrder >> 4 * place & 15) : place;
}

// Sets what `block_of` needs, once the tile is chosen.
inline void lay_out(ConvShape& shape, int block_n) {
  shape.by_columns = Divisor(ceil_div(shape.outputs, block_n));
  shape.by_tiles = Divisor(tiles(shape));
}

// Piece `index`: outputs first, so that neighbours read the same pixels.
LPKERNELS_HOST_DEVICE ConvBlock block_of(const ConvShape& shape, int block_n, int index, int part) {
  const int row = shape.by_columns.quotient(index), n = (index - row * shape.by_columns.value) * block_n;
  const int place = shape.by_tiles.quotient(row), tile = row - place * shape.by_tiles.value;
  return block_at(shape, n, tile, phase_at(shape, place), part);
}

// Where the `size` blocks of a cluster have the same outputs of neighbouring tiles, of which there must be a multiple
// of `size`: the piece of block `index`.
LPKERNELS_HOST_DEVICE ConvBlock block_in_cluster(const ConvShape& shape, int block_n, int size, int index) {
  const int cluster = index / size, row = shape.by_columns.quotient(cluster);
  const int n = (cluster - row * shape.by_columns.value) * block_n;
  return block_at(shape, n, size * row + index % size, 0, 0);
}

}  // namespace lpkernels::hopper
