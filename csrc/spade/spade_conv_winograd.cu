// spade_conv on Hopper for a weight whose products two rows of y share (hopper/winograd.h): spade_conv.cu with 2/3 of
// the products. A block owns 4 rows of 64 pixels and 128 columns. Bound by shared memory (hopper/winograd_loop.cuh).
#include "spade/spade_conv.cuh"

#include "common/kernel_table.h"
#include "hopper/winograd_loop.cuh"

namespace lpkernels {
namespace {

using Loop = WinogradLoop</*BlockN=*/128, /*Stages=*/6>;

const RegisterKernel registered(conv_entry<Loop, GammaBeta>("spade_conv<256x128, winograd>"));

}  // namespace

void launch_spade_conv_winograd(const Activation& actv, const Tensor& weight, ConvShape shape,
                                const SpadeParams& params, cudaStream_t stream) {
  STD_TORCH_CHECK(
      !is_together(weight) && shape.outputs % Loop::Config::BlockN == 0 && shape.channels % kBoxChannels == 0,
      "spade_conv: products that rows share are made, kind by kind, for a multiple of ", Loop::Config::BlockN,
      " outputs and of ", kBoxChannels, " channels, got weight ", shape_string(weight));
  shape.permuted = true;
  launch_conv<Loop, GammaBeta>(actv.data, actv.pixel_stride, weight.data_ptr(), shape, params, stream);
}

}  // namespace lpkernels
