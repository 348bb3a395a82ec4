// spade_conv on Hopper: a SPADE normalisation whose gamma and beta never leave the registers.
//
//   [gamma1 | beta] = conv3x3(actv, weight) + bias          the 1 of 1 + gamma is in the bias
//   out = act((x - mean) * rstd * gamma1 + beta)            x's instance-norm statistics are given
//
// actv may be a grid of classes (hopper/conv_shape.h): then out is as that enlarged, and the weight has 16 phases.
//
// Layouts: actv (B, H, W, K), x and out (B, H, W, C), x perhaps half as high and wide and read nearest-upsampled, all
// perhaps slices of wider buffers; weight (2 C, 3, 3, K), 32 gammas and the 32 betas of the same channels in turn, or
// (C, 3, 3, K), gamma alone. A block owns BlockM pixels and BlockN columns; each thread holds gamma and beta of eight
// neighbouring channels, so that x comes and out goes in 16-byte accesses. Bound by the tensor cores.
#include "spade/spade_conv.cuh"

#include "common/kernel_table.h"

namespace lpkernels {

namespace {

using Wide = BoxLoop<ConvConfig</*BlockM=*/128, /*BlockN=*/256, /*Stages=*/4>>;
using Tall = BoxLoop<ConvConfig</*BlockM=*/256, /*BlockN=*/128, /*Stages=*/4>>;
// 2 rows of 64 pixels: a box of actv serves three taps.
using WideHalo = HaloLoop</*TileH=*/2, /*TileW=*/64, /*BlockN=*/256, /*TapsH=*/3, /*XStages=*/2, /*WeightStages=*/4>;

template <class Epilogue>
void launch(const Activation& actv, const Tensor& weight, ConvShape shape, const SpadeParams& params,
            cudaStream_t stream) {
  shape.permuted = true;
  // Its larger boxes come later: worth it where a block has several tiles.
  const bool rows = shape.grid == Grid::kSame && shape.height % 2 == 0 && shape.width % 64 == 0 &&
                    int64_t{shape.batch} * shape.height * shape.width / 128 * shape.outputs / 256 > multiprocessors();
  if (shape.outputs % 256 == 0 && rows) {
    launch_conv<WideHalo, Epilogue>(actv.data, actv.pixel_stride, weight.data_ptr(), shape, params, stream);
  } else if (shape.outputs % 256 == 0) {
    launch_conv<Wide, Epilogue>(actv.data, actv.pixel_stride, weight.data_ptr(), shape, params, stream);
  } else {
    launch_conv<Tall, Epilogue>(actv.data, actv.pixel_stride, weight.data_ptr(), shape, params, stream);
  }
}

}  // namespace

void spade_conv_cuda(const Tensor& actv_tensor, const Tensor& weight, const Tensor& bias, const Tensor& x_tensor,
                     const Tensor& stats, double negative_slope, const Tensor& out_tensor) {
  const auto [actv, x, out, shape, params] =
      spade_call("spade_conv", actv_tensor, weight, bias, x_tensor, stats, negative_slope, out_tensor);
  STD_TORCH_CHECK(x.channels == out.channels && out.channels % 32 == 0,
                  "spade_conv: out must have the channels of x, a multiple of 32; got ", shape_string(out_tensor),
                  " and ", shape_string(x_tensor));
  const bool gamma_alone = shape.outputs == x.channels, winograd = is_winograd(weight);
  STD_TORCH_CHECK(shape.outputs == 2 * x.channels || (gamma_alone && !winograd), "spade_conv: weight must have ",
                  2 * x.channels, " outputs or, of taps, ", x.channels, "; got ", shape_string(weight));
  const torch::stable::accelerator::DeviceGuard guard(actv_tensor.get_device_index());
  const cudaStream_t stream = current_stream(actv_tensor);
  if (winograd) {
    launch_spade_conv_winograd(actv, weight, shape, params, stream);
  } else if (gamma_alone) {
    launch<GammaEpilogue>(actv, weight, shape, params, stream);
  } else {
    launch<GammaBeta>(actv, weight, shape, params, stream);
  }
}

namespace {

const RegisterKernel kernels[] = {
    RegisterKernel(conv_entry<Wide, GammaBeta>("spade_conv<128x256>")),
    RegisterKernel(conv_entry<WideHalo, GammaBeta>("spade_conv<128x256, halo>")),
    RegisterKernel(conv_entry<WideHalo, GammaEpilogue>("spade_conv<128x256, halo, gamma alone>")),
    RegisterKernel(conv_entry<Tall, GammaBeta>("spade_conv<256x128>")),
    RegisterKernel(conv_entry<Wide, GammaEpilogue>("spade_conv<128x256, gamma alone>")),
    RegisterKernel(conv_entry<Tall, GammaEpilogue>("spade_conv<256x128, gamma alone>"))};

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def(
      "spade_conv(Tensor actv, Tensor weight, Tensor bias, Tensor x, Tensor stats, float negative_slope, Tensor(a!) "
      "out) "
      "-> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("spade_conv", TORCH_BOX(&lpkernels::spade_conv_cuda));
}
