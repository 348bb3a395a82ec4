// Runs the loops of products that rows share (csrc/hopper/winograd*_loop.cuh) on the CPU, in blocks that take one tile
// after the other, as conv.cuh's kernel does. Arguments: loop, batch, depth, height, width, channels, outputs, taps in
// depth, blocks that run at once, seed; stdin: x, weight; stdout: y in float32.
#include "hopper/conv.cuh"

#include "hopper/winograd_loop.cuh"
#include "hopper/winograd_narrow_loop.cuh"
#include "hopper/work.cuh"

using namespace lpkernels::hopper;

namespace {

template <class T>
std::vector<T> read(size_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, stdin) != count) {
    std::exit(2);
  }
  return values;
}

template <class Loop>
struct Kernel {
  using Config = typename Loop::Config;
  ConvShape shape;
  ConvMaps maps;
  float* y;

  void run(unsigned char* memory) const {
    auto& storage = *reinterpret_cast<typename Loop::Storage*>(memory);
    if (threadIdx.x == 0) {
      storage.init();
    }
    __syncthreads();
    typename Loop::Cursors cursors;
    Work<Config> work(shape);
    do {
      if (threadIdx.x == 0) {
        Loop::load_pixels(maps.x, shape, storage, work.block, cursors);
      } else if (threadIdx.x == 32) {
        Loop::load_weights(maps.weight, shape, storage, work.block, cursors);
      } else if (threadIdx.x >= 128) {
        const int thread = static_cast<int>(threadIdx.x) - 128;
        typename Config::Accumulator acc;
        Loop::consume(shape, storage, work.block, thread, acc, cursors);
        store(work.block, acc, thread);
      }
    } while (work.next());
  }

  void store(const ConvBlock& block, const typename Config::Accumulator& acc, int thread) const {
    for (int i = 0; i < Config::BlockN; ++i) {
      const int sum = i / (Config::BlockN / 2), of_sum = i % (Config::BlockN / 2);
      const Pixel at = pixel_at(shape, block, Config::row(thread, sum, of_sum / 2 % 2));
      const int output = block.n + of_sum / 4 * 8 + thread % 4 * 2 + of_sum % 2;
      if (inside(shape, at)) {
        y[index_in_y(shape, block, at) * shape.outputs + output] = acc(i);
      }
    }
  }
};

template <class Loop>
void launch(ConvShape shape, int at_once) {
  using Config = typename Loop::Config;
  Loop::set_tile(shape);
  lay_out(shape, Config::Outputs);
  const size_t pixels = size_t{1} * shape.batch * shape.depth * shape.height * shape.width;
  const auto x = read<__half>(pixels * shape.channels);
  const auto weight = read<__half>(size_t{1} * shape.outputs * Loop::weight_row(shape));
  std::vector<float> y(pixels * shape.outputs);
  const Kernel<Loop> p{
      shape, {{x.data(), Loop::x_box(shape.channels, shape)}, {weight.data(), Loop::weight_box(shape)}}, y.data()};
  const auto kernel = [](const Kernel<Loop>& p) {
    emulated::run_thread(Config::Threads, 0, [&](unsigned char* memory) { p.run(memory); });
  };
  const unsigned grid = std::min(blocks(shape, Config::Outputs), at_once);
  emulated::launch(kernel, Index{grid, 1, 1}, Config::Threads + emulated::kEngineThreads,
                   sizeof(typename Loop::Storage), 1, p);
  std::fwrite(y.data(), sizeof(float), y.size(), stdout);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 11) {
    return 2;
  }
  const auto number = [&](int i) { return std::atoi(arguments[i]); };
  const ConvShape shape{.batch = number(2),
                        .depth = number(3),
                        .height = number(4),
                        .width = number(5),
                        .channels = number(6),
                        .outputs = number(7),
                        .taps_d = number(8),
                        .taps_h = kWinogradTaps,
                        .taps_w = kWinogradTaps};
  emulated::chance.seed(number(10));
  const auto launch_loop = std::array{&launch<WinogradLoop<128, 6>>,          &launch<WinogradLoop<144, 5, 144>>,
                                      &launch<WinogradNarrowLoop<64, 9>>,     &launch<WinogradNarrowLoop<64, 9, 112>>,
                                      &launch<WinogradNarrowLoop<64, 9, 80>>, &launch<WinogradLoop<128, 6, 80>>};
  launch_loop.at(number(1))(shape, number(9));
}
