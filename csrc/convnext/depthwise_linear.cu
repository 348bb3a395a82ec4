// depthwise_linear on GPUs with clusters of blocks (sm_90, sm_100); the kernel and its layouts in depthwise_linear.cuh.
#include "convnext/depthwise_linear.cuh"

#include <tuple>

#include "common/cuda.h"
#include "common/kernel_table.h"
#include "convnext/arguments.h"
#include "convnext/launch.h"

namespace lpkernels::convnext {
namespace {

constexpr const char* kOp = "depthwise_linear";

std::tuple<Tensor, Tensor> depthwise_linear_cuda(const Tensor& x, const Tensor& taps, const Tensor& taps_bias,
                                                 const Tensor& weight, const Tensor& bias) {
  const Sizes in(kOp, x);
  const int64_t channels = in.channels, n = weight.size(0);
  STD_TORCH_CHECK(channels % 8 == 0 && channels <= WideDepthwise::Product::kDepth && n % 8 == 0 && n < (1 << 15), kOp,
                  ": made for channels and outputs in multiples of 8, at most ", WideDepthwise::Product::kDepth,
                  " channels; got ", channels, " and ", n);
  DepthwiseLinear p{.x = checked<__half>(kOp, "x", x, ScalarType::Half, {in.batch, in.height, in.width, channels}),
                    .taps = checked<float>(kOp, "taps", taps, ScalarType::Float, {kTaps, kTaps, channels}),
                    .taps_bias = checked<float>(kOp, "taps_bias", taps_bias, ScalarType::Float, {channels}),
                    .weight = checked<__half>(kOp, "weight", weight, ScalarType::Half, {n, channels}),
                    .bias = checked<float>(kOp, "bias", bias, ScalarType::Float, {n}),
                    .h = nullptr,
                    .squares = nullptr,
                    .height = in.height,
                    .width = in.width,
                    .channels = in.channels,
                    .outputs = static_cast<int>(n)};
  p.tiles = tiles_of(p, patch_height(p));
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor h = torch::stable::new_empty(x, {in.batch, in.height, in.width, n});
  Tensor squares = torch::stable::new_empty(bias, {in.batch, p.tiles, n});
  p.h = static_cast<__half*>(h.data_ptr());
  p.squares = static_cast<float*>(squares.data_ptr());
  launch_depthwise_linear(kOp, p, in.batch, current_stream(x));
  return {h, squares};
}

// Shared memory for the published stage of so many channels.
template <class V>
RegisterKernel registered(const char* name, int channels, int cluster) {
  return RegisterKernel(
      {name, reinterpret_cast<const void*>(V::kKernel), kThreads, V::shared_bytes(channels, cluster)});
}
const RegisterKernel kernels[] = {registered<LargeDepthwise>("depthwise_linear<64x192>", 96, 2),
                                  registered<NarrowDepthwise>("depthwise_linear<32x192>", 192, 4),
                                  registered<MiddleDepthwise>("depthwise_linear<32x96>", 384, 8),
                                  registered<WideDepthwise>("depthwise_linear<32x48>", 768, 8)};

}  // namespace

// p.tiles: as many as its variant has.
void launch_depthwise_linear(const char* op, DepthwiseLinear p, int batch, cudaStream_t stream) {
  with_variant(p, [&](auto variant, int columns) {
    using V = decltype(variant);
    p.cluster = cluster_for(p, columns, kLargestCluster);
    p.at = V::memory(p.channels, p.cluster);
    launch_clusters(op, V::kKernel, dim3(blocks_of<typename V::Work>(p, batch)), kThreads,
                    V::shared_bytes(p.channels, p.cluster), p.cluster, stream, p);
  });
}

}  // namespace lpkernels::convnext

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def(
      "depthwise_linear(Tensor x, Tensor taps, Tensor taps_bias, Tensor weight, Tensor bias) -> (Tensor h, Tensor "
      "squares)");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("depthwise_linear", TORCH_BOX(&lpkernels::convnext::depthwise_linear_cuda));
}
