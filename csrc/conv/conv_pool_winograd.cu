// conv_pool on Hopper for a weight whose products two rows of y share (hopper/winograd.h): conv_pool.cu with 2/3 of the
// products. A block owns 4 rows of 64 pixels, two of which a thread has at the same place: those that are pooled. Bound
// by shared memory (hopper/winograd_narrow_loop.cuh).
#include "conv/conv_pool.cuh"

#include "common/kernel_table.h"
#include "hopper/winograd_narrow_loop.cuh"

namespace lpkernels {
namespace {

// The hourglass's first down block: 110 channels, padded.
constexpr int kHourglass = 112;
using Hourglass = WinogradNarrowLoop</*BlockN=*/64, /*Stages=*/9, /*Channels=*/kHourglass>;
using Narrow = WinogradNarrowLoop</*BlockN=*/64, /*Stages=*/9>;

}  // namespace

void launch_conv_pool_winograd(const Activation& x, const Tensor& weight, ConvShape shape,
                               const PoolEpilogue::Params& params, cudaStream_t stream) {
  STD_TORCH_CHECK(
      is_together(weight) && shape.outputs == 64 && (shape.channels == kHourglass || shape.channels % 64 == 0),
      "conv_pool: products that rows share are made, together, for 64 outputs of ", kHourglass,
      " or a multiple of 64 channels, got weight ", shape_string(weight));
  shape.permuted = true;
  if (shape.channels == kHourglass) {
    launch_conv<Hourglass, PoolEpilogue>(x.data, x.pixel_stride, weight.data_ptr(), shape, params, stream);
  } else {
    launch_conv<Narrow, PoolEpilogue>(x.data, x.pixel_stride, weight.data_ptr(), shape, params, stream);
  }
}

namespace {

const RegisterKernel kernels[] = {
    RegisterKernel(conv_entry<Hourglass, PoolEpilogue>("conv_pool<256x64, winograd, 112 channels>")),
    RegisterKernel(conv_entry<Narrow, PoolEpilogue>("conv_pool<256x64, winograd>"))};

}  // namespace
}  // namespace lpkernels
