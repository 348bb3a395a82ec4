// Walks through a convolution of an enlarged image as the Hopper kernel does (csrc/hopper/neighbors.h): boxes of pixels
// and of weights, neighbours, products, phases and clusters, one multiplication at a time. Reads a case, prints y.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "boxes.h"
#include "hopper/neighbors.h"

using namespace lpkernels::hopper;

namespace {

// The sums of a tile's products, [product][pixel][column], over the steps of a block.
void multiply(const ConvShape& shape, const ConvBlock& block, const std::vector<float>& x, int64_t pixel_stride,
              const std::vector<float>& weight, std::vector<float>& sums) {
  const TensorBox x_box = neighbor_box(pixel_stride, shape), weight_part = neighbor_weight_box(shape);
  const NeighborBox neighbors(shape);
  const int rows = neighbors.rows(shape);
  if (rows > kZeroRow || x_box.box[1] > 256 || x_box.box[2] > 256 || x_box.box[3] > 256) {
    std::exit(4);  // more than a stage has, or TMA takes
  }
  const WeightOrigin weight_origin(shape, block);
  const StepOrder order(shape, block);
  KStep k = order.first(block);
  for (int step = block.k_begin; step < block.k_end; ++step, order.next(k)) {
    std::vector<float> box(size_t{kNeighborRows} * kBoxChannels, 0.f);
    for (int i = 0; i < rows * kBoxChannels; ++i) {
      box[i] = fetch(x, x_box, neighbors.at(shape, block, k), i);
    }
    for (int m = 0; m < kNeighborPixels; ++m) {
      for (int c = 0; c < kBoxChannels; ++c) {
        float rows_of[kNeighbors][kNeighbors];
        for (int i = 0; i < kProducts; ++i) {
          const int row = neighbors.row(shape, m, i / kNeighbors - 1, i % kNeighbors - 1);
          rows_of[i / kNeighbors][i % kNeighbors] = box.at(row * kBoxChannels + c);
        }
        for (auto& [before, here, after] : rows_of) {
          before -= here;
          after -= here;
        }
        for (int q = 0; q < kNeighbors; ++q) {
          rows_of[0][q] -= rows_of[1][q];
          rows_of[2][q] -= rows_of[1][q];
        }
        std::array<int, 5> from = weight_origin.at(k);
        for (int product = 0; product < kProducts; ++product, from[4] += shape.outputs / shape.group) {
          for (int column = 0; column < kNeighborOutputs; ++column) {
            sums[(product * kNeighborPixels + m) * kNeighborOutputs + column] +=
                rows_of[product / kNeighbors][product % kNeighbors] *
                fetch(weight, weight_part, from, column * kBoxChannels + c);
          }
        }
      }
    }
  }
}

}  // namespace

int main() {
  ConvShape shape{.taps_h = 1, .taps_w = 1};
  int side = 0, pixel_stride = 0;
  if (std::scanf("%d %d %d %d %d %d %d %d %d %d", &shape.batch, &shape.depth, &shape.height, &shape.width,
                 &shape.channels, &shape.outputs, &shape.taps_d, &shape.split, &side, &pixel_stride) != 10) {
    return 2;
  }
  shape.permuted = true;
  set_neighbor_tile(shape);
  lay_out(shape, kNeighborOutputs);
  const size_t pixels = size_t{1} * shape.batch * shape.depth * shape.height * shape.width;
  const std::vector<float> x = read(pixels * pixel_stride);
  const std::vector<float> weight = read(size_t{kProducts} * shape.outputs * shape.taps_d * shape.channels);
  std::vector<float> y(pixels * side * side * shape.outputs, 1e30f);
  for (int index = 0; index < blocks(shape, kNeighborOutputs); ++index) {
    std::vector<float> sums(size_t{kProducts} * kNeighborPixels * kNeighborOutputs, 0.f);
    for (int part = 0; part < shape.split; ++part) {
      multiply(shape, block_of(shape, kNeighborOutputs, index, part), x, pixel_stride, weight, sums);
    }
    const ConvBlock block = block_of(shape, kNeighborOutputs, index, 0);
    for (int m = 0; m < kNeighborPixels; ++m) {
      const Pixel at = pixel_at(shape, block, m);
      if (!inside(shape, at)) {
        continue;
      }
      for (int output = 0; output < kNeighborOutputs; ++output) {
        const int column = Fragment<8>::column(output);
        const auto sum = [&](int product, int) -> float& {
          return sums[(product * kNeighborPixels + m) * kNeighborOutputs + column];
        };
        add_neighbors(sum, 0);
        for (int product = 0; product < kProducts; ++product) {
          const EnlargedRows rows = enlarged_rows(side, product / kNeighbors);
          const EnlargedRows columns = enlarged_rows(side, product % kNeighbors);
          for (int r = rows.first; r < rows.first + rows.count; ++r) {
            for (int q = columns.first; q < columns.first + columns.count; ++q) {
              const int64_t plane = int64_t{block.b} * shape.depth + at.d;
              const int64_t line = (plane * shape.height + at.h) * side + r;
              y.at(((line * shape.width + at.w) * side + q) * shape.outputs + block.n + output) = sum(product, 0);
            }
          }
        }
      }
    }
  }
  for (const float value : y) {
    std::printf("%.9g\n", value);
  }
}
