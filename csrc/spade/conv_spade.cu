// conv_spade on Hopper: one kernel where the GPU holds all of its blocks at once and they keep it busy
// (conv_spade.cuh), else conv_act's and spade_conv's, one after the other.
#include "spade/conv_spade.cuh"

#include "common/cuda.h"
#include "common/kernel_table.h"

namespace lpkernels {

// The blocks, one a multiprocessor, must have three quarters of them or more: fewer are slower than two kernels.
bool runs_as_one(const ConvSpadeSteps& steps) {
  const ConvShape& conv = steps.conv;
  const int64_t pixels = int64_t{conv.batch} * conv.height * conv.width;
  const int64_t tiles = pixels / ConvSpade::ConvConfig::BlockM;
  const int64_t blocks = tiles * (conv.outputs / ConvSpade::ConvConfig::BlockN);
  return steps.winograd && conv.height % kWinogradTileH == 0 && conv.width % kWinogradTileW == 0 &&
         conv.outputs % ConvSpade::ConvConfig::BlockN == 0 && tiles % kSpadeCluster == 0 &&
         4 * blocks >= 3 * multiprocessors() &&
         holds_all(&conv_spade_kernel, ConvSpade::kThreads, static_cast<int>(ConvSpade::kBytes), kSpadeCluster, blocks);
}

ConvSpadeSteps conv_spade_steps(const char* op, const Activation& x, const Tensor& weight, const Tensor& bias,
                                const Activation& actv, const Tensor& spade_weight, const Tensor& spade_bias,
                                double negative_slope, const Activation& out) {
  ConvSpadeSteps steps{};
  const bool winograd = steps.winograd = is_together(weight);
  STD_TORCH_CHECK(winograd == is_winograd(spade_weight) && !is_together(spade_weight), op,
                  ": both weights must be of taps, or weight of products together and spade_weight kind by kind; got ",
                  shape_string(weight), " and ", shape_string(spade_weight));
  const auto shape_of = [&](const Activation& of, const Tensor& with) {
    return winograd ? winograd_shape(op, of, with) : conv_shape(op, of, with, Grid::kSame);
  };
  const ConvShape& conv = steps.conv = shape_of(x, weight);
  const ConvShape& spade = steps.spade = shape_of(actv, spade_weight);
  const auto three_taps = [](const ConvShape& shape) {
    return shape.taps_d == 1 && shape.taps_h == 3 && shape.taps_w == 3;
  };
  STD_TORCH_CHECK(three_taps(conv) && three_taps(spade) && conv.depth == 1, op,
                  ": made for pictures and 3x3 taps, got weights ", shape_string(weight), " and ",
                  shape_string(spade_weight));
  STD_TORCH_CHECK(out.written_by(conv) && out.written_by(spade) && out.channels == conv.outputs &&
                      spade.outputs == 2 * conv.outputs && out.channels % 32 == 0,
                  op,
                  ": out must have the pixels of x and actv, the outputs of weight and half of spade_weight's, a "
                  "multiple of 32; got ",
                  out.batch, "x", out.height, "x", out.width, "x", out.channels, ", x ", x.batch, "x", x.height, "x",
                  x.width, ", actv ", actv.batch, "x", actv.height, "x", actv.width, ", weights ", shape_string(weight),
                  " and ", shape_string(spade_weight));
  check_floats(op, "bias", bias, {conv.outputs});
  check_floats(op, "spade_bias", spade_bias, {spade.outputs});
  steps.conv_params.bias = static_cast<const float*>(bias.data_ptr());
  steps.spade_params.bias = static_cast<const float*>(spade_bias.data_ptr());
  steps.spade_params.out = static_cast<__half*>(out.data);
  steps.spade_params.out_stride = out.pixel_stride;
  steps.spade_params.negative_slope = static_cast<float>(negative_slope);
  steps.spade_params.channels = out.channels;
  return steps;
}

namespace {

constexpr const char* kOp = "conv_spade";

// Sets the tiles of one of the two convolutions.
template <class Loop>
void set_tiles(ConvShape& shape) {
  shape.permuted = true;
  Loop::set_tile(shape);
  lay_out(shape, Loop::Config::BlockN);
}

void run_in_two(const ConvSpadeSteps& steps, const Tensor& x, const Tensor& weight, const Tensor& bias,
                const Tensor& actv, const Tensor& spade_weight, const Tensor& spade_bias, double negative_slope,
                const std::optional<Tensor>& residual, const std::optional<Tensor>& kept, const Tensor& out) {
  const ConvShape& conv = steps.conv;
  const Tensor y = kept ? *kept : torch::stable::new_empty(x, {conv.batch, conv.height, conv.width, conv.outputs});
  const int parts = statistics_parts(conv, steps.winograd);
  const Tensor stats = parts > 0 && parts <= kMostParts
                           ? torch::stable::new_empty(bias, {conv.batch, parts, conv.outputs, 2})
                           : torch::stable::new_empty(bias, {conv.batch, conv.outputs, 2});
  conv_act_cuda(x, weight, bias, /*negative_slope=*/1., residual, std::nullopt, y, stats);
  spade_conv_cuda(actv, spade_weight, spade_bias, y, stats, negative_slope, out);
}

const RegisterKernel kernels[] = {
    RegisterKernel({"conv_spade<256x64, winograd>", reinterpret_cast<const void*>(&conv_spade_kernel),
                    ConvSpade::kThreads, ConvSpade::kBytes})};

}  // namespace

void launch_conv_spade(const char* op, const ConvSpadeSteps& steps, const Activation& x, const Tensor& weight,
                       const Activation& actv, const Tensor& spade_weight, const Tensor& like, cudaStream_t stream) {
  using K = ConvSpade;
  check_hopper();
  K p{};
  p.steps = steps;
  ConvShape &conv = p.steps.conv, &spade = p.steps.spade;
  set_tiles<K::ConvLoop>(conv);
  set_tiles<K::SpadeLoop>(spade);
  p.conv_maps = {tensor_map(x.data, K::ConvLoop::x_box(x.pixel_stride, conv)),
                 tensor_map(weight.data_ptr(), p.steps.weights<K::ConvLoop>(conv))};
  p.spade_maps = {tensor_map(actv.data, p.steps.actv<K::SpadeLoop>(actv.pixel_stride)),
                  tensor_map(spade_weight.data_ptr(), p.steps.weights<K::SpadeLoop>(spade))};
  if (steps.count > 1) {
    p.out = tensor_map(steps.spade_params.out, K::ConvLoop::x_box(steps.spade_params.out_stride, conv));
  }
  const Tensor partials = torch::stable::new_empty(like, {tiles(conv), conv.outputs, 2});
  p.steps.conv_params.partials = static_cast<float2*>(partials.data_ptr());
  p.steps.spade_params.stats = static_cast<const float*>(partials.data_ptr());
  p.steps.spade_params.parts = tiles(conv) / conv.batch;
  launch_clusters</*Cooperative=*/true>(op, &conv_spade_kernel, dim3(blocks(conv, K::ConvConfig::BlockN)), K::kThreads,
                                        K::kBytes, kSpadeCluster, stream, p);
}

void conv_spade_cuda(const Tensor& x_tensor, const Tensor& weight, const Tensor& bias, const Tensor& actv_tensor,
                     const Tensor& spade_weight, const Tensor& spade_bias, double negative_slope,
                     const std::optional<Tensor>& residual, const std::optional<Tensor>& y_tensor,
                     const Tensor& out_tensor) {
  const Activation x = activation(kOp, "x", x_tensor), actv = activation(kOp, "actv", actv_tensor);
  const Activation out = activation(kOp, "out", out_tensor);
  ConvSpadeSteps steps = conv_spade_steps(kOp, x, weight, bias, actv, spade_weight, spade_bias, negative_slope, out);
  if (residual) {
    set_residual(kOp, steps.conv_params, *residual, out);
  }
  if (y_tensor) {
    const Activation y = activation(kOp, "y", *y_tensor);
    STD_TORCH_CHECK(y.written_by(steps.conv) && y.channels == out.channels, kOp, ": y must have the shape of out, got ",
                    shape_string(*y_tensor), " and ", shape_string(out_tensor));
    steps.conv_params.out = static_cast<__half*>(y.data);
    steps.conv_params.out_stride = y.pixel_stride;
  }
  const torch::stable::accelerator::DeviceGuard guard(x_tensor.get_device_index());
  if (runs_as_one(steps)) {
    return launch_conv_spade(kOp, steps, x, weight, actv, spade_weight, bias, current_stream(x_tensor));
  }
  run_in_two(steps, x_tensor, weight, bias, actv_tensor, spade_weight, spade_bias, negative_slope, residual, y_tensor,
             out_tensor);
}

}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def(
      "conv_spade(Tensor x, Tensor weight, Tensor bias, Tensor actv, Tensor spade_weight, Tensor spade_bias, float "
      "negative_slope, Tensor? residual, Tensor(a!)? y, Tensor(b!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("conv_spade", TORCH_BOX(&lpkernels::conv_spade_cuda));
}
