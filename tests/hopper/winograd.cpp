// Walks through a convolution of three taps along h as the Hopper kernels do (csrc/hopper/winograd.h): boxes of rows,
// weight tiles, groups of two products, or together of four, and what the sums turn into, one multiplication at a time.
// Reads a case, prints y.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "boxes.h"
#include "hopper/winograd.h"

using namespace lpkernels::hopper;

namespace {

struct Walk {
  const ConvShape& shape;
  const int64_t pixel_stride;
  const bool together;
  const std::vector<float>&x, &weight;
  std::vector<float> box;
  std::vector<float> sums[2][kWinogradProducts];  // of a warpgroup's products: [pixel][column]; kind by kind two
  int next_tile = 0;

  int tiles() const { return shape.taps_d * winograd_depth_tiles(shape.channels, together); }

  // Channel c of slice k, of row u of a warpgroup.
  float u(int warpgroup, int row, int pixel, int k, int c) const {
    const uint32_t place = winograd_place(winograd_chunk(pixel, c / 8), k, winograd_row(warpgroup, 0) + row);
    return box.at(place / 2 + c % 8);
  }

  // A group's two products of a kind, of 16 channels, to the sums from `first` on; their weights begin at `column` of
  // the tile.
  void multiply(bool taps, int tap, int k, int tile, int column, int first) {
    const float* weights = weight.data() + size_t{64} * tile + column;
    for (int warpgroup = 0; warpgroup < 2; ++warpgroup) {
      for (int pixel = 0; pixel < kWinogradTileW; ++pixel) {
        for (int c = 0; c < 16; ++c) {
          const auto row = [&](int i) { return u(warpgroup, i, pixel + tap, k, c); };
          const float operands[2] = {taps ? row(0) - row(2) : row(1) + row(2),
                                     taps ? row(3) - row(1) : row(2) - row(1)};
          for (int sum = 0; sum < 2; ++sum) {
            for (int output = 0; output < shape.outputs; ++output) {
              sums[warpgroup][first + sum][pixel * shape.outputs + output] +=
                  operands[sum] * weights[size_t{64} * tiles() * output + 16 * sum + c];
            }
          }
        }
      }
    }
  }

  void add(bool taps, int slices) {
    for (int i = 0; i < winograd_groups(slices); ++i) {
      multiply(taps, i / slices, i % slices, next_tile + i / 2, i % 2 * 32, 0);
    }
    next_tile += winograd_tiles(slices, false) / 2;
  }

  void turn(bool taps) {
    for (auto& pair : sums) {
      for (size_t i = 0; i < pair[0].size(); ++i) {
        taps ? half_sums_of_rows(pair[0][i], pair[1][i]) : rows_of_half_sums(pair[0][i], pair[1][i]);
      }
    }
  }

  void add_together(int slices) {
    for (int i = 0; i < winograd_groups(slices); ++i) {
      multiply(true, i / slices, i % slices, next_tile + i, 0, 0);
      multiply(false, i / slices, i % slices, next_tile + i, 32, 2);
    }
    next_tile += winograd_tiles(slices, true);
  }

  // The rows of y out of all four sums.
  void end() {
    for (auto& of : sums) {
      for (size_t i = 0; i < of[0].size(); ++i) {
        of[0][i] += of[2][i] + of[3][i];
        of[1][i] += of[2][i] - of[3][i];
      }
    }
  }

  void run(const ConvBlock& block) {
    for (auto& of : sums) {
      for (auto& sum : of) {
        sum.assign(size_t{kWinogradTileW} * shape.outputs, 0.f);
      }
    }
    next_tile = 0;
    const int steps = shape.taps_d * shape.boxes();
    for (int step = 0; step < steps; ++step) {
      const int channel = step % shape.boxes() * kBoxChannels, d = block.d + step / shape.boxes() - shape.taps_d / 2;
      box = fetch_all(x, winograd_box(pixel_stride, shape), {channel, block.w - 1, block.h - 1, d, block.b}, 8);
      const int slices = std::min(kBoxChannels, shape.channels - channel) / 16;
      if (together) {
        add_together(slices);
        continue;
      }
      const bool taps = winograd_taps_first(steps, step);
      add(taps, slices);
      turn(taps);
      add(!taps, slices);
    }
    if (together) {
      end();
    }
    if (next_tile != tiles()) {
      std::exit(3);  // some tiles were not used, or there are too few
    }
  }
};

}  // namespace

int main() {
  ConvShape shape{.taps_h = kWinogradTaps, .taps_w = kWinogradTaps};
  int pixel_stride, together;
  if (std::scanf("%d %d %d %d %d %d %d %d %d", &together, &shape.batch, &shape.depth, &shape.height, &shape.width,
                 &pixel_stride, &shape.channels, &shape.outputs, &shape.taps_d) != 9) {
    return 2;
  }
  set_winograd_tile(shape);
  const size_t pixels = size_t{1} * shape.batch * shape.depth * shape.height * shape.width;
  const std::vector<float> x = read(pixels * pixel_stride);
  const std::vector<float> weight =
      read(size_t{64} * shape.outputs * shape.taps_d * winograd_depth_tiles(shape.channels, together));
  std::vector<float> y(pixels * shape.outputs, 1e30f);
  Walk walk{shape, pixel_stride, together != 0, x, weight, {}, {}};
  lay_out(shape, shape.outputs);
  for (int index = 0; index < blocks(shape, shape.outputs); ++index) {
    const ConvBlock block = block_of(shape, shape.outputs, index, 0);
    walk.run(block);
    for (int i = 0; i < kWinogradTileH * kWinogradTileW; ++i) {
      const int warpgroup = i / kWinogradTileW / 2, sum = i / kWinogradTileW % 2, w = i % kWinogradTileW;
      const Pixel at{block.d, block.h + winograd_row(warpgroup, sum), block.w + w};
      if (inside(shape, at)) {
        const float* found = walk.sums[warpgroup][sum].data() + size_t{1} * w * shape.outputs;
        std::copy_n(found, shape.outputs, y.begin() + index_in_y(shape, block, at) * shape.outputs);
      }
    }
  }
  for (const float value : y) {
    std::printf("%.9g\n", value);
  }
}
