// Which pieces of work the blocks of a Hopper convolution take, one after the other (csrc/hopper/work.cuh). Arguments:
// batch, height, width, outputs, blocks that run at once. A line for each piece: block, tile, first output, image and
// first pixel, and whether it is the block's last, has new outputs or another image than the one before, and whose turn
// it is of its two kinds of memory.
#include <cstdio>
#include <cstdlib>

#include "hopper/products.cuh"

#include "hopper/winograd.h"
#include "hopper/work.cuh"

using namespace lpkernels::hopper;

namespace {

struct Config {
  static constexpr int Outputs = 64;
};

void run(const ConvShape& shape) {
  Work<Config> work(shape);
  do {
    const ConvBlock& block = work.block;
    std::printf("%u %d %d %d %d %d %d %d %d\n", blockIdx.x, block.tile, block.n, block.b, block.h, block.w, work.last(),
                block.fresh, block.turn);
  } while (work.next());
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 6) {
    return 2;
  }
  const auto number = [&](int i) { return std::atoi(arguments[i]); };
  ConvShape shape{.batch = number(1), .depth = 1, .height = number(2), .width = number(3), .outputs = number(4)};
  set_winograd_tile(shape);
  lay_out(shape, Config::Outputs);
  const unsigned at_once = std::min(blocks(shape, Config::Outputs), number(5));
  emulated::launch(&run, Index{at_once, 1, 1}, 1, 0, 1, shape);
}
