// norm_downsample on GPUs with clusters of blocks (sm_90, sm_100); the kernel and its layouts in norm_downsample.cuh.
#include "convnext/norm_downsample.cuh"

#include "common/cuda.h"
#include "common/kernel_table.h"
#include "convnext/arguments.h"
#include "convnext/launch.h"

namespace lpkernels::convnext {
namespace {

constexpr const char* kOp = "norm_downsample";

}  // namespace

Tensor norm_downsample_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const Sizes in(kOp, x);
  const int64_t channels = in.channels, n = weight.size(0), pixels = in.height / 2 * (in.width / 2);
  constexpr int kMostChannels = WidestDownsample::kMostChannels;
  STD_TORCH_CHECK(channels % 8 == 0 && channels <= kMostChannels && n % 8 == 0 && n < (1 << 15), kOp,
                  ": made for channels and outputs in multiples of 8, at most ", kMostChannels, " channels; got ",
                  channels, " and ", n);
  STD_TORCH_CHECK(pixels > 0 && in.batch * pixels < (int64_t{1} << 28), kOp,
                  ": x must be at least 2 pixels high and wide, and not too large: ", shape_string(x));
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::new_empty(x, {in.batch, in.height / 2, in.width / 2, n});
  const NormDownsample p{.x = checked<__half>(kOp, "x", x, ScalarType::Half, {in.batch, in.height, in.width, channels}),
                         .weight = checked<__half>(kOp, "weight", weight, ScalarType::Half, {n, 2, 2, channels}),
                         .bias = checked<float>(kOp, "bias", bias, ScalarType::Float, {n}),
                         .y = static_cast<__half*>(y.data_ptr()),
                         .height = in.height,
                         .width = in.width,
                         .channels = in.channels,
                         .outputs = static_cast<int>(n),
                         .rows = static_cast<int>(in.batch * pixels)};
  with_downsample(p, [&](auto variant, int tiles, int columns) {
    using V = decltype(variant);
    launch_clusters(kOp, V::kKernel, dim3(tiles, columns), kThreads, DownsampleMemory::kBytes, V::kSplits,
                    current_stream(x), p);
  });
  return y;
}

namespace {

template <int Splits>
RegisterKernel registered(const char* name) {
  return RegisterKernel(
      {name, reinterpret_cast<const void*>(DownsampleVariant<Splits>::kKernel), kThreads, DownsampleMemory::kBytes});
}
const RegisterKernel kernels[] = {registered<1>("norm_downsample<1>"), registered<2>("norm_downsample<2>"),
                                  registered<4>("norm_downsample<4>")};

}  // namespace
}  // namespace lpkernels::convnext

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def("norm_downsample(Tensor x, Tensor weight, Tensor bias) -> Tensor y");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("norm_downsample", TORCH_BOX(&lpkernels::convnext::norm_downsample_cuda));
}
