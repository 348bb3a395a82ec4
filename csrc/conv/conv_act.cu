// conv_act on Hopper: y = act(conv(x, weight) + bias + residual) * gain, and y's instance-norm statistics.
//
// Layouts: x and y channels-last, weight (O, taps, C). A block owns BlockM pixels and BlockN outputs; each thread holds
// eight (four where O is no multiple of 32) neighbouring outputs of a pixel, so that everything but the bias is read
// and written in one access. Statistics: a block reduces its columns to mean and variance; `stats` (B, parts, O, 2)
// takes those of every tile, (B, O, 2) what a second kernel combines them to. Bound by the tensor cores
// (hopper/conv.cuh).
#include "conv/conv_act.cuh"

#include "common/cuda.h"
#include "common/kernel_table.h"

namespace lpkernels {
namespace {

using Narrow = BoxLoop<ConvConfig</*BlockM=*/256, /*BlockN=*/64, /*Stages=*/5>>;
using Square = BoxLoop<ConvConfig</*BlockM=*/128, /*BlockN=*/128, /*Stages=*/6, /*Channels=*/0, /*Clusters=*/true>>;
// 2 rows of 64 pixels: a box of x serves three taps, which leaves shared memory more time for the tensor cores.
using SquareHalo = HaloLoop</*TileH=*/2, /*TileW=*/64, /*BlockN=*/128, /*TapsH=*/3, /*XStages=*/3, /*WeightStages=*/6>;
using Wide = BoxLoop<ConvConfig</*BlockM=*/128, /*BlockN=*/256, /*Stages=*/4>>;
// The hourglass's last convolution: 142 channels on 142, padded.
using Hourglass = HaloLoop</*TileH=*/4, /*TileW=*/64, /*BlockN=*/144, /*TapsH=*/3, /*XStages=*/2, /*WeightStages=*/6,
                           /*Channels=*/144>;
// Few outputs: 8 rows of 32 pixels read their halo 1.9 times less often than single boxes would.
using NarrowHalo = HaloLoop</*TileH=*/8, /*TileW=*/32, /*BlockN=*/64, /*TapsH=*/3, /*XStages=*/3, /*WeightStages=*/9>;

using Epilogue = PixelEpilogue<ConvAct, 8>;

enum class Kernel { kNarrow, kNarrowHalo, kSquare, kSquareHalo, kWide, kHourglass, kWinograd };

// The part of the chip that works on average while `blocks` run, one a multiprocessor.
double busy(int64_t blocks) {
  const int64_t room = multiprocessors(), waves = (blocks + room - 1) / room;
  return static_cast<double>(blocks) / static_cast<double>(waves * room);
}

// A block as narrow as the outputs wastes no product; of the others the wide one reads x half as often, where its fewer
// blocks keep the chip as busy.
Kernel choose(const ConvShape& shape) {
  const int64_t pixels = int64_t{shape.batch} * shape.depth * shape.height * shape.width * shape.phases();
  if (shape.outputs == 144) {
    return Kernel::kHourglass;
  }
  if (shape.outputs <= 64 && pixels >= 256 * multiprocessors()) {
    return shape.taps_h == 3 && shape.grid == Grid::kSame ? Kernel::kNarrowHalo : Kernel::kNarrow;
  }
  const int64_t square_blocks = (pixels + 127) / 128 * ceil_div(shape.outputs, 128);
  if (shape.outputs % 256 == 0 && busy(square_blocks / 2) > 0.95 * busy(square_blocks)) {
    return Kernel::kWide;
  }
  const bool rows = shape.taps_h == 3 && shape.grid == Grid::kSame && shape.width % 64 == 0 && shape.height % 2 == 0;
  return rows && 4 * square_blocks >= 3 * multiprocessors() ? Kernel::kSquareHalo : Kernel::kSquare;
}

// Sets the tile of `kernel`, which the statistics need before it runs.
void set_tile(Kernel kernel, ConvShape& shape) {
  switch (kernel) {
    case Kernel::kWinograd:
      return set_winograd_tile(shape);
    case Kernel::kNarrowHalo:
      return NarrowHalo::set_tile(shape);
    case Kernel::kHourglass:
      return Hourglass::set_tile(shape);
    case Kernel::kNarrow:
      return Narrow::set_tile(shape);
    case Kernel::kSquare:
      return Square::set_tile(shape);
    case Kernel::kSquareHalo:
      return SquareHalo::set_tile(shape);
    case Kernel::kWide:
      return Wide::set_tile(shape);
  }
}

void launch(Kernel kernel, const Activation& x, const Tensor& weight, ConvShape shape, const ConvAct::Params& params,
            cudaStream_t stream) {
  shape.permuted = true;
  const void* w = weight.data_ptr();
  switch (kernel) {
    case Kernel::kNarrow:
      return launch_conv<Narrow, Epilogue>(x.data, x.pixel_stride, w, shape, params, stream);
    case Kernel::kNarrowHalo:
      return launch_conv<NarrowHalo, Epilogue>(x.data, x.pixel_stride, w, shape, params, stream);
    case Kernel::kSquare:
      return launch_conv<Square, Epilogue>(x.data, x.pixel_stride, w, shape, params, stream);
    case Kernel::kSquareHalo:
      return launch_conv<SquareHalo, Epilogue>(x.data, x.pixel_stride, w, shape, params, stream);
    case Kernel::kWide:
      return launch_conv<Wide, Epilogue>(x.data, x.pixel_stride, w, shape, params, stream);
    case Kernel::kHourglass:
      shape.group = Fragment<4>::kGroup;
      return launch_conv<Hourglass, PixelEpilogue<ConvAct, 4>>(x.data, x.pixel_stride, w, shape, params, stream);
    case Kernel::kWinograd:
      return launch_conv_act_winograd(x, weight, shape, params, stream);
  }
}

}  // namespace

int statistics_parts(ConvShape shape, bool winograd) {
  set_tile(winograd ? Kernel::kWinograd : choose(shape), shape);
  return shape.whole_tiles ? tiles(shape) / shape.batch : 0;
}

void conv_act_cuda(const Tensor& x_tensor, const Tensor& weight, const Tensor& bias, double negative_slope,
                   const std::optional<Tensor>& residual, const std::optional<Tensor>& gain, const Tensor& out_tensor,
                   const std::optional<Tensor>& stats) {
  const Activation x = activation("conv_act", "x", x_tensor), out = activation("conv_act", "out", out_tensor);
  const bool winograd = is_winograd(weight);
  const Grid grid = out.height == x.height ? Grid::kSame : Grid::kFromClasses;
  ConvShape shape = winograd ? winograd_shape("conv_act", x, weight) : conv_shape("conv_act", x, weight, grid);
  STD_TORCH_CHECK(out.written_by(shape) && out.channels == shape.outputs &&
                      (shape.outputs % 32 == 0 || (shape.outputs == 144 && shape.channels == 144)),
                  "conv_act: out must have the pixels of x (4 for 3 of a grid of classes) and the outputs of weight, a "
                  "multiple of 32 (or 144 of 144 channels); got ",
                  shape_string(out_tensor));
  STD_TORCH_CHECK(!stats || shape.grid == Grid::kSame, "conv_act: no stats of what is made from classes");
  check_floats("conv_act", "bias", bias, {shape.outputs});
  ConvAct::Params params{.bias = static_cast<const float*>(bias.data_ptr()),
                         .residual = nullptr,
                         .gain = nullptr,
                         .out = static_cast<__half*>(out.data),
                         .partials = nullptr,
                         .residual_stride = 0,
                         .out_stride = out.pixel_stride,
                         .negative_slope = static_cast<float>(negative_slope),
                         .residual_shift = 0};
  if (residual) {
    set_residual("conv_act", params, *residual, out);
  }
  if (gain) {
    STD_TORCH_CHECK(out.depth == 1, "conv_act: gain goes with pictures, got ", shape_string(out_tensor));
    check_floats("conv_act", "gain", *gain, {out.batch, out.height, out.width});
    params.gain = static_cast<const float*>(gain->data_ptr());
  }
  const torch::stable::accelerator::DeviceGuard guard(x_tensor.get_device_index());
  const cudaStream_t stream = current_stream(x_tensor);
  const Kernel kernel = winograd ? Kernel::kWinograd : choose(shape);
  set_tile(kernel, shape);
  if (!stats) {
    shape.split = kernel == Kernel::kSquare ? split_for<Square, Epilogue>(shape) : 1;
    launch(kernel, x, weight, shape, params, stream);
    return;
  }
  const bool in_parts = stats->dim() == 4;
  const int parts = tiles(shape) / shape.batch;
  if (in_parts) {
    STD_TORCH_CHECK(shape.whole_tiles, "conv_act: stats in parts need an image of whole tiles, got ",
                    shape_string(out_tensor));
    check_floats("conv_act", "stats", *stats, {out.batch, parts, shape.outputs, 2});
    params.partials = static_cast<float2*>(stats->data_ptr());
    launch(kernel, x, weight, shape, params, stream);
    return;
  }
  check_floats("conv_act", "stats", *stats, {out.batch, shape.outputs, 2});
  Tensor partials = torch::stable::new_empty(bias, {tiles(shape), shape.outputs, 2});
  params.partials = static_cast<float2*>(partials.data_ptr());
  launch(kernel, x, weight, shape, params, stream);
  combine_statistics(shape, params.partials, static_cast<float2*>(stats->data_ptr()), stream);
}

namespace {

const RegisterKernel kernels[] = {
    RegisterKernel(conv_entry<Narrow, Epilogue>("conv_act<256x64>")),
    RegisterKernel(conv_entry<NarrowHalo, Epilogue>("conv_act<256x64, halo>")),
    RegisterKernel(conv_entry<Square, Epilogue>("conv_act<128x128>")),
    RegisterKernel(conv_entry<SquareHalo, Epilogue>("conv_act<128x128, halo>")),
    RegisterKernel(conv_entry<Wide, Epilogue>("conv_act<128x256>")),
    RegisterKernel(conv_entry<Hourglass, PixelEpilogue<ConvAct, 4>>("conv_act<256x144, halo, 144 channels>"))};

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def(
      "conv_act(Tensor x, Tensor weight, Tensor bias, float negative_slope, Tensor? residual, Tensor? gain, Tensor(a!) "
      "out, Tensor(b!)? stats) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("conv_act", TORCH_BOX(&lpkernels::conv_act_cuda));
}
