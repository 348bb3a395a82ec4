// conv_act on Hopper for a weight whose products two rows of y share (hopper/winograd.h): conv_act.cu with 2/3 of the
// products. A block owns 4 rows of 64 pixels and BlockN outputs. Bound by shared memory (hopper/winograd_loop.cuh).
#include "conv/conv_act.cuh"

#include "common/kernel_table.h"
#include "hopper/winograd_loop.cuh"
#include "hopper/winograd_narrow_loop.cuh"

namespace lpkernels {
namespace {

using Square = WinogradLoop</*BlockN=*/128, /*Stages=*/6>;
using Narrow = WinogradNarrowLoop</*BlockN=*/64, /*Stages=*/9>;
// The hourglass's last convolution: 142 channels on 142, padded.
using Hourglass = WinogradLoop</*BlockN=*/144, /*Stages=*/5, /*Channels=*/144>;

using Epilogue = PixelEpilogue<ConvAct, 8>;
using HourglassEpilogue = PixelEpilogue<ConvAct, 4>;

}  // namespace

void launch_conv_act_winograd(const Activation& x, const Tensor& weight, ConvShape shape, const ConvAct::Params& params,
                              cudaStream_t stream) {
  const bool together = is_together(weight), hourglass = shape.outputs == 144 && shape.channels == 144 && !together;
  STD_TORCH_CHECK(
      hourglass || (shape.outputs % (together ? 64 : 128) == 0 && shape.channels % 64 == 0),
      "conv_act: products that rows share are made for multiples of 64 channels and of 64 outputs (together) "
      "or 128 (kind by kind; or 144 of 144), got ",
      shape.channels, " and ", shape.outputs);
  const void* w = weight.data_ptr();
  shape.permuted = true;
  if (hourglass) {
    shape.group = Fragment<4>::kGroup;
    launch_conv<Hourglass, HourglassEpilogue>(x.data, x.pixel_stride, w, shape, params, stream);
  } else if (together) {
    launch_conv<Narrow, Epilogue>(x.data, x.pixel_stride, w, shape, params, stream);
  } else {
    launch_conv<Square, Epilogue>(x.data, x.pixel_stride, w, shape, params, stream);
  }
}

namespace {

const RegisterKernel kernels[] = {
    RegisterKernel(conv_entry<Square, Epilogue>("conv_act<256x128, winograd>")),
    RegisterKernel(conv_entry<Narrow, Epilogue>("conv_act<256x64, winograd>")),
    RegisterKernel(conv_entry<Hourglass, HourglassEpilogue>("conv_act<256x144, winograd, 144 channels>"))};

}  // namespace
}  // namespace lpkernels
