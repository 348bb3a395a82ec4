// Runs conv_spade's kernel (csrc/spade/conv_spade.cuh) on the CPU, in as many steps as spade_blocks has. Arguments:
// batch, height, width, channels, hidden channels of a step, steps, seed; stdin: x, dx, actv, weight, bias,
// spade_weight, spade_bias; stdout: y and the answer.
#include "spade/conv_spade.cuh"

using namespace lpkernels;
using K = ConvSpade;

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
void set_tiles(ConvShape& shape) {
  shape.permuted = true;
  Loop::set_tile(shape);
  lay_out(shape, Loop::Config::BlockN);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 8) {
    return 2;
  }
  const auto number = [&](int i) { return std::atoi(arguments[i]); };
  const int batch = number(1), height = number(2), width = number(3), channels = number(4), hidden = number(5);
  const int steps = number(6);
  emulated::chance.seed(number(7));
  const unsigned late = number(7) % kSpadeCluster;
  const size_t pixels = size_t{1} * batch * height * width, values = pixels * channels;
  const auto row = [](int of, bool together) {  // elements of an output's weight
    return size_t{kBoxChannels} * winograd_depth_tiles(of, together);
  };
  auto x = read<__half>(values), dx = read<__half>(values), actv = read<__half>(pixels * steps * hidden);
  const auto weight = read<__half>(steps * channels * row(channels, /*together=*/true));
  const auto bias = read<float>(steps * channels);
  const auto spade_weight = read<__half>(steps * 2 * channels * row(hidden, /*together=*/false));
  const auto spade_bias = read<float>(steps * 2 * channels);
  std::vector<__half> y(values), out(values);

  K p{};
  p.steps.conv = {.batch = batch,
                  .depth = 1,
                  .height = height,
                  .width = width,
                  .channels = channels,
                  .outputs = channels,
                  .taps_d = 1,
                  .taps_h = 3,
                  .taps_w = 3};
  p.steps.spade = p.steps.conv;
  p.steps.spade.channels = hidden;
  p.steps.spade.outputs = 2 * channels;
  p.steps.count = steps;
  p.steps.pairs = true;
  ConvShape &conv = p.steps.conv, &spade = p.steps.spade;
  set_tiles<K::ConvLoop>(conv);
  set_tiles<K::SpadeLoop>(spade);
  p.conv_maps = {{dx.data(), K::ConvLoop::x_box(channels, conv)}, {weight.data(), p.steps.weights<K::ConvLoop>(conv)}};
  p.spade_maps = {{actv.data(), p.steps.actv<K::SpadeLoop>(steps * hidden)},
                  {spade_weight.data(), p.steps.weights<K::SpadeLoop>(spade)}};
  p.out = {out.data(), K::ConvLoop::x_box(channels, conv)};
  std::vector<float2> partials(size_t{1} * tiles(conv) * channels);
  p.steps.conv_params.bias = bias.data();
  p.steps.conv_params.residual = x.data();
  p.steps.conv_params.residual_stride = p.steps.conv_params.out_stride = channels;
  p.steps.conv_params.out = y.data();
  p.steps.conv_params.partials = partials.data();
  p.steps.spade_params.bias = spade_bias.data();
  p.steps.spade_params.stats = reinterpret_cast<const float*>(partials.data());
  p.steps.spade_params.out = out.data();
  p.steps.spade_params.out_stride = p.steps.spade_params.channels = channels;
  p.steps.spade_params.negative_slope = 0.2f;
  p.steps.spade_params.parts = tiles(conv) / batch;
  const auto grid = static_cast<unsigned>(blocks(conv, K::ConvConfig::BlockN));
  const auto kernel = [late](const K& p) {
    emulated::run_thread(K::kThreads, late, [&](unsigned char* memory) { p.run(memory); });
  };
  emulated::launch(kernel, Index{grid, 1, 1}, K::kThreads + emulated::kEngineThreads, K::kBytes, kSpadeCluster, p,
                   /*cooperative=*/true);
  std::fwrite(y.data(), sizeof(__half), values, stdout);
  std::fwrite(out.data(), sizeof(__half), values, stdout);
}
