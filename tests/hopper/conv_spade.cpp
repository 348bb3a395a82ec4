// Where conv_spade's threads have the convolution's outputs and the SPADE's columns: a line for each vector of
// outputs, with the image, row and column of its pixel and its first output; then the same of the SPADE's pixel, and
// the columns of its gammas and betas. Argument: batch, height, width, outputs.
#include <cstdio>
#include <cstdlib>

#include "hopper/winograd.h"

using namespace lpkernels::hopper;

constexpr int kOutputs = 64;  // of a block
constexpr int kCluster = 2;   // kSpadeCluster

// The tile's pixel that a thread's row r of four has, of two sums, as WinogradConfig has them.
static int row_of(int thread, int r) {
  return winograd_row(thread / 128, r / 2) * kWinogradTileW + thread % 128 / 32 * 16 + thread % 32 / 4 + r % 2 * 8;
}

static ConvShape shape_of(char** size, int channels, int outputs) {
  ConvShape shape{.batch = std::atoi(size[1]),
                  .depth = 1,
                  .height = std::atoi(size[2]),
                  .width = std::atoi(size[3]),
                  .channels = channels,
                  .outputs = outputs,
                  .taps_d = 1,
                  .taps_h = 3,
                  .taps_w = 3};
  shape.permuted = true;
  set_winograd_tile(shape);
  lay_out(shape, outputs == std::atoi(size[4]) ? kOutputs : 2 * kOutputs);
  return shape;
}

int main(int, char** size) {
  using F = Fragment<8>;
  const int outputs = std::atoi(size[4]);
  const ConvShape conv = shape_of(size, 80, outputs), spade = shape_of(size, 64, 2 * outputs);
  for (int index = 0; index < blocks(conv, kOutputs); ++index) {
    const ConvBlock first = block_in_cluster(conv, kOutputs, kCluster, index);
    const ConvBlock second = block_in_cluster(spade, 2 * kOutputs, kCluster, index);
    for (int thread = 0; thread < 256; ++thread) {
      for (int i = 0; i < 4 * kOutputs / F::kGroup; ++i) {
        const int row = row_of(thread, i % 4), vector = i / 4;
        const Pixel y = pixel_at(conv, first, row), out = pixel_at(spade, second, row);
        std::printf("%d %d %d %d %d %d %d %d %d\n", first.b, y.h, y.w, first.n + F::output(thread, vector), second.b,
                    out.h, out.w, second.n + F::output(thread, 2 * vector),
                    second.n + F::output(thread, 2 * vector + 1));
      }
    }
  }
}
