// conv_spade on Hopper: one kernel where the GPU holds all of its blocks at once and they keep it busy
// (conv_spade.cuh), else conv_act's and spade_conv's, one after the other.
#include "spade/conv_spade.cuh"

#include "common/cuda.h"
#include "common/kernel_table.h"

namespace lpkernels {
namespace {

constexpr const char* kOp = "conv_spade";

// Whether the tiles are whole and the blocks, one a multiprocessor, have three quarters of them or more.
bool fits(const ConvShape& conv) {
  const int64_t pixels = int64_t{conv.batch} * conv.height * conv.width;
  const int64_t blocks = pixels / ConvSpade::ConvConfig::BlockM * (conv.outputs / ConvSpade::ConvConfig::BlockN);
  const int room = multiprocessors();
  return conv.height % ConvSpade::kRows == 0 && conv.width % ConvSpade::kWidth == 0 &&
         conv.outputs % ConvSpade::ConvConfig::BlockN == 0 && blocks <= room && 4 * blocks >= 3 * room;
}

// Sets the tiles of one of the two convolutions and says what TMA loads for it.
template <class Loop>
ConvMaps prepare(ConvShape& shape, const Activation& x, const Tensor& weight) {
  shape.permuted = true;
  Loop::set_tile(shape);
  lay_out(shape, Loop::Config::BlockN);
  return {tensor_map(x.data, Loop::x_box(x.pixel_stride, shape)),
          tensor_map(weight.data_ptr(), weight_box(shape, Loop::Config::BlockN))};
}

void run_as_one(ConvSpade p, const Activation& x, const Tensor& weight, const Activation& actv,
                const Tensor& spade_weight, const Tensor& like, cudaStream_t stream) {
  check_hopper();
  p.conv_maps = prepare<ConvSpade::ConvLoop>(p.conv, x, weight);
  p.spade_maps = prepare<ConvSpade::SpadeLoop>(p.spade, actv, spade_weight);
  const Tensor partials = torch::stable::new_empty(like, {tiles(p.conv), p.conv.outputs, 2});
  p.conv_params.partials = static_cast<float2*>(partials.data_ptr());
  p.spade_params.stats = static_cast<const float*>(partials.data_ptr());
  p.spade_params.parts = tiles(p.conv) / p.conv.batch;
  launch_clusters</*Cooperative=*/true>(kOp, &conv_spade_kernel, dim3(blocks(p.conv, ConvSpade::ConvConfig::BlockN)),
                                        ConvSpade::kThreads, ConvSpade::kBytes, /*cluster=*/1, stream, p);
}

void run_in_two(const ConvShape& conv, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& actv,
                const Tensor& spade_weight, const Tensor& spade_bias, double negative_slope,
                const std::optional<Tensor>& residual, const std::optional<Tensor>& kept, const Tensor& out) {
  const Tensor y = kept ? *kept : torch::stable::new_empty(x, {conv.batch, conv.height, conv.width, conv.outputs});
  const int parts = statistics_parts(conv);
  const Tensor stats = parts > 0 && parts <= kMostParts
                           ? torch::stable::new_empty(bias, {conv.batch, parts, conv.outputs, 2})
                           : torch::stable::new_empty(bias, {conv.batch, conv.outputs, 2});
  conv_act_cuda(x, weight, bias, /*negative_slope=*/1., residual, std::nullopt, y, stats);
  spade_conv_cuda(actv, spade_weight, spade_bias, y, stats, negative_slope, out);
}

void conv_spade_cuda(const Tensor& x_tensor, const Tensor& weight, const Tensor& bias, const Tensor& actv_tensor,
                     const Tensor& spade_weight, const Tensor& spade_bias, double negative_slope,
                     const std::optional<Tensor>& residual, const std::optional<Tensor>& y_tensor,
                     const Tensor& out_tensor) {
  const Activation x = activation(kOp, "x", x_tensor), actv = activation(kOp, "actv", actv_tensor);
  const Activation out = activation(kOp, "out", out_tensor);
  ConvSpade p{};
  p.conv = conv_shape(kOp, x, weight, Grid::kSame);
  p.spade = conv_shape(kOp, actv, spade_weight, Grid::kSame);
  const auto three_taps = [](const ConvShape& shape) {
    return shape.taps_d == 1 && shape.taps_h == 3 && shape.taps_w == 3;
  };
  STD_TORCH_CHECK(three_taps(p.conv) && three_taps(p.spade) && p.conv.depth == 1, kOp,
                  ": made for pictures and 3x3 taps, got weights ", shape_string(weight), " and ",
                  shape_string(spade_weight));
  STD_TORCH_CHECK(out.written_by(p.conv) && out.written_by(p.spade) && out.channels == p.conv.outputs &&
                      p.spade.outputs == 2 * p.conv.outputs && out.channels % 32 == 0,
                  kOp,
                  ": out must have the pixels of x and actv, the outputs of weight and half of spade_weight's, a "
                  "multiple of 32; got ",
                  shape_string(out_tensor), ", ", shape_string(x_tensor), ", ", shape_string(actv_tensor), ", ",
                  shape_string(weight), " and ", shape_string(spade_weight));
  check_floats(kOp, "bias", bias, {p.conv.outputs});
  check_floats(kOp, "spade_bias", spade_bias, {p.spade.outputs});
  p.conv_params.bias = static_cast<const float*>(bias.data_ptr());
  p.spade_params.bias = static_cast<const float*>(spade_bias.data_ptr());
  p.spade_params.out = static_cast<__half*>(out.data);
  p.spade_params.out_stride = out.pixel_stride;
  p.spade_params.negative_slope = static_cast<float>(negative_slope);
  p.spade_params.channels = out.channels;
  if (residual) {
    set_residual(kOp, p.conv_params, *residual, out);
  }
  if (y_tensor) {
    const Activation y = activation(kOp, "y", *y_tensor);
    STD_TORCH_CHECK(y.written_by(p.conv) && y.channels == out.channels, kOp, ": y must have the shape of out, got ",
                    shape_string(*y_tensor), " and ", shape_string(out_tensor));
    p.conv_params.out = static_cast<__half*>(y.data);
    p.conv_params.out_stride = y.pixel_stride;
  }
  const torch::stable::accelerator::DeviceGuard guard(x_tensor.get_device_index());
  if (fits(p.conv)) {
    run_as_one(p, x, weight, actv, spade_weight, bias, current_stream(x_tensor));
    return check_launch(kOp);
  }
  run_in_two(p.conv, x_tensor, weight, bias, actv_tensor, spade_weight, spade_bias, negative_slope, residual, y_tensor,
             out_tensor);
}

const RegisterKernel kernels[] = {
    RegisterKernel({"conv_spade<128x128, halo>", reinterpret_cast<const void*>(&conv_spade_kernel), ConvSpade::kThreads,
                    ConvSpade::kBytes})};

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def(
      "conv_spade(Tensor x, Tensor weight, Tensor bias, Tensor actv, Tensor spade_weight, Tensor spade_bias, float "
      "negative_slope, Tensor? residual, Tensor(a!)? y, Tensor(b!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("conv_spade", TORCH_BOX(&lpkernels::conv_spade_cuda));
}
