// Walks through a convolution as the Hopper kernel does (csrc/hopper/conv_shape.h): boxes, taps, columns, fragments,
// phases and clusters, one multiplication at a time. Reads a case from stdin, prints y.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "boxes.h"

using namespace lpkernels::hopper;

namespace {

template <int Width>
void walk(ConvShape shape, int block_m, int block_n, int pixel_stride) {
  complete(shape, block_m);
  lay_out(shape, block_n);
  shape.group = Fragment<Width>::kGroup;
  const int rows = shape.phases() * shape.outputs, taps = shape.taps_d * shape.taps_h * shape.taps_w;
  const int height = shape.height * shape.stride_of_y(), width = shape.width * shape.stride_of_y();
  const size_t small_pixels = size_t{1} * shape.batch * shape.depth * shape.height * shape.width;
  const size_t pixels = small_pixels * shape.stride_of_x() * shape.stride_of_x();
  const std::vector<float> x = read(pixels * pixel_stride), weight = read(size_t{1} * rows * taps * shape.channels);
  std::vector<float> y(size_t{1} * shape.batch * shape.depth * height * width * shape.outputs, 1e30f);
  const TensorBox x_box = pixel_box(pixel_stride, shape), weight_part = weight_box(shape, block_n);
  for (int dim = 0; dim < 5; ++dim) {
    if (x_box.box[dim] > 256 || weight_part.box[dim] > 256) {
      std::exit(4);  // more than TMA takes
    }
  }
  for (int place = 0; place < shape.phases(); ++place) {
    for (int tile = 0; tile < tiles(shape); ++tile) {
      for (int n = 0; n < shape.outputs; n += block_n) {
        std::vector<float> product(size_t{1} * block_m * block_n, 0.f);  // summed over the cluster
        for (int part = 0; part < shape.split; ++part) {
          const int index = (place * tiles(shape) + tile) * shape.by_columns.value + n / block_n;
          const ConvBlock block = block_of(shape, block_n, index, part);
          const StepOrder order(shape, block);
          const PixelOrigin pixel_origin(shape, block);
          const WeightOrigin weight_origin(shape, block);
          KStep k = order.first(block);
          for (int step = block.k_begin; step < block.k_end; ++step) {
            const std::array<int, 5> at = pixel_origin.at(k);
            const std::array<int, 5> weight_at = weight_origin.at(k);
            for (int m = 0; m < block_m; ++m) {
              for (int column = 0; column < block_n; ++column) {
                for (int c = 0; c < kBoxChannels; ++c) {
                  product[m * block_n + column] += fetch(x, x_box, at, m * kBoxChannels + c) *
                                                   fetch(weight, weight_part, weight_at, column * kBoxChannels + c);
                }
              }
            }
            order.next(k);
          }
        }
        const ConvBlock block = block_at(shape, n, tile, phase_at(shape, place), 0);
        const auto put = [&](int row, int output, float value) {
          const Pixel at = pixel_at(shape, block, row);
          if (!inside(shape, at) || output >= shape.outputs) {
            return;
          }
          const int64_t pixel = index_in_y(shape, block, pixel_of_y(shape, block, at));
          y.at(pixel * shape.outputs + output) = value;
        };
        if (!shape.permuted) {
          for (int i = 0; i < block_m * block_n; ++i) {
            put(i / block_n, n + i % block_n, product[i]);
          }
          continue;
        }
        for (int thread = 0; thread < 256; ++thread) {
          // wgmma: accumulator a of a thread is row lane / 4 + 8 (a / 2 % 2), column 8 (a / 4) + 2 (lane % 4) + a % 2.
          std::vector<float> acc(size_t{1} * block_m / 128 * block_n / 2);
          for (size_t a = 0; a < acc.size(); ++a) {
            const int tile_m = static_cast<int>(a) / (block_n / 2), i = static_cast<int>(a) % (block_n / 2);
            const int row = tile_m * 128 + thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2);
            acc[a] = product[row * block_n + 8 * (i / 4) + 2 * (thread % 4) + i % 2];
          }
          using F = Fragment<Width>;
          for (int tile_m = 0; tile_m < block_m / 128; ++tile_m) {
            for (int s = 0; s < 2; ++s) {
              for (int j = 0; j < block_n / F::kGroup; ++j) {
                for (int i = 0; i < Width; ++i) {
                  put(F::row(thread, tile_m, s), n + F::output(thread, j) + i,
                      acc.at(F::index(block_n, tile_m, s, j, i)));
                }
              }
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

}  // namespace

int main() {
  ConvShape shape{};
  int grid = 0, block_m = 0, block_n = 0, pixel_stride = 0, permuted = 0, width = 0;
  if (std::scanf("%d %d %d %d %d %d %d %d %d %d %d %d %d %d %d %d %d %d", &shape.batch, &shape.depth, &shape.height,
                 &shape.width, &shape.channels, &shape.outputs, &shape.taps_d, &shape.taps_h, &shape.taps_w, &grid,
                 &shape.split, &shape.tile_w, &shape.tile_h, &block_m, &block_n, &pixel_stride, &permuted,
                 &width) != 18) {
    return 2;
  }
  shape.grid = static_cast<Grid>(grid);
  if (shape.tile_w > 0) {
    shape.tile_d = block_m / shape.tile_w / shape.tile_h;
  }
  shape.permuted = permuted != 0;
  width == 4 ? walk<4>(shape, block_m, block_n, pixel_stride) : walk<8>(shape, block_m, block_n, pixel_stride);
}
