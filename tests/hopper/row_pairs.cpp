// Walks through the mask head's convolution as the Hopper kernel does (csrc/hopper/row_pairs.h): boxes of rows, weight
// tiles, groups of two products and what the sums turn into, one multiplication at a time. Reads a case, prints P.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "boxes.h"
#include "hopper/row_pairs.h"

using namespace lpkernels::hopper;

namespace {

struct Walk {
  const ConvShape& shape;
  const std::vector<float>&x, &weight;
  std::vector<float> boxes[kPairBoxes], tile;
  std::vector<float> sums[2][2];  // of a warpgroup's two rows: [pixel][column]
  int tiles = 0;

  void begin_step(const ConvBlock& block, int step) {
    const PairStep at = pair_step(step);
    for (int box = 0; box < kPairBoxes; ++box) {
      boxes[box] = fetch_all(x, pair_box(shape, at.left_over), pair_box_at(block, at, box), at.left_over ? 2 : 8);
    }
  }

  // Channel c of the group's 16, of row u of a warpgroup.
  float u(int step, int warpgroup, int row, int pixel, int k, int c) const {
    const std::vector<float>& box = boxes[warpgroup + row / kPairBoxRows];
    const bool left_over = pair_step(step).left_over;
    const uint32_t place = pair_place(left_over, pair_chunk(left_over, pixel, c / 8), k, row % kPairBoxRows);
    return box.at(place / 2 + c % 8);
  }

  void multiply(int step, const PairGroup& group, bool more) {
    if (group.opens != tile.empty()) {
      std::exit(3);  // a tile that is not there, or one that was not used up
    }
    if (group.opens) {
      const TensorBox box = pair_weight_box();
      for (int half = 0; half < 2; ++half) {
        const auto part = fetch_all(weight, box, {tiles * 64, half * kPairColumns / 2, 0, 0, 0});
        tile.insert(tile.end(), part.begin(), part.end());
      }
      ++tiles;
    }
    for (int warpgroup = 0; warpgroup < 2; ++warpgroup) {
      for (int pixel = 0; pixel < kPairTileW; ++pixel) {
        for (int c = 0; c < 16; ++c) {
          const auto row = [&](int i) { return u(step, warpgroup, group.row + i, pixel, group.k, c); };
          float operands[2] = {row(0), row(1)};
          if (group.kind == PairKind::kHalfSums) {
            operands[0] = row(0) + row(1), operands[1] = row(1) - row(0);
          } else if (group.kind == PairKind::kTaps) {
            operands[0] = row(0) - row(2), operands[1] = row(3) - row(1);
          }
          for (int sum = 0; sum < 2; ++sum) {
            for (int column = 0; column < kPairColumns; ++column) {
              sums[warpgroup][sum][pixel * kPairColumns + column] +=
                  operands[sum] * tile[column * 64 + group.weight[sum] * 16 + c];
            }
          }
        }
      }
    }
    if (group.closes) {
      tile.clear();
    } else if (!more) {
      std::exit(3);
    }
  }

  void run(const ConvBlock& block) {
    for (auto& sum : {&sums[0][0], &sums[0][1], &sums[1][0], &sums[1][1]}) {
      sum->assign(kPairTileW * kPairColumns, 0.f);
    }
    for (int step = 0; step < kPairSteps; ++step) {
      begin_step(block, step);
      for (const bool first : {true, false}) {
        const bool taps = (step % 2 == 0) == first;
        const int groups = pair_groups(taps, pair_products(step));
        for (int i = 0; i < groups; ++i) {
          multiply(step, pair_group(taps, pair_products(step), i), i + 1 < groups);
        }
        for (size_t i = 0; first && i < sums[0][0].size(); ++i) {
          for (auto& pair : sums) {
            taps ? half_sums_of_rows(pair[0][i], pair[1][i]) : rows_of_half_sums(pair[0][i], pair[1][i]);
          }
        }
      }
    }
    if (tiles != kPairSteps * kStepTiles) {
      std::exit(3);
    }
    tiles = 0;
  }
};

}  // namespace

int main() {
  ConvShape shape{
      .channels = kPairChannels, .outputs = kPairColumns, .taps_d = kPairTaps, .taps_h = kPairTaps, .taps_w = 1};
  if (std::scanf("%d %d %d %d", &shape.batch, &shape.depth, &shape.height, &shape.width) != 4) {
    return 2;
  }
  set_pair_tile(shape);
  const size_t pixels = size_t{1} * shape.batch * shape.depth * shape.height * shape.width;
  const std::vector<float> x = read(pixels * kPairChannels), weight = read(size_t{kPairColumns} * kPairWeights);
  std::vector<float> columns(pixels * kPairColumns, 1e30f);
  Walk walk{shape, x, weight, {}, {}, {}};
  for (int index = 0; index < tiles(shape); ++index) {
    const ConvBlock block = block_at(shape, 0, index, 0, 0);
    walk.run(block);
    for (int i = 0; i < kPairTileH * kPairTileW * kPairColumns; ++i) {
      const int column = i % kPairColumns, w = i / kPairColumns % kPairTileW, row = i / kPairColumns / kPairTileW;
      const Pixel at{block.d, block.h + pair_row(row / 2, row % 2), block.w + w};
      if (inside(shape, at)) {
        const size_t plane = size_t{1} * block.b * shape.depth + at.d;
        const size_t pixel = (plane * shape.height + at.h) * shape.width + at.w;
        columns.at(pixel * kPairColumns + column) = walk.sums[row / 2][row % 2][w * kPairColumns + column];
      }
    }
  }
  for (const float value : columns) {
    std::printf("%.9g\n", value);
  }
}
