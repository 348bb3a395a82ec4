// pool_norm_linear on GPUs with clusters of blocks (sm_90, sm_100); the kernel and its layouts in pool_norm_linear.cuh.
#include "convnext/pool_norm_linear.cuh"

#include "common/cuda.h"
#include "common/kernel_table.h"
#include "convnext/arguments.h"

namespace lpkernels::convnext {
namespace {

constexpr const char* kOp = "pool_norm_linear";

Tensor pool_norm_linear_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const Sizes in(kOp, x);
  const int64_t channels = in.channels, n = weight.size(0);
  STD_TORCH_CHECK(channels % 8 == 0 && channels <= PoolMemory::kMostChannels && n < (1 << 20), kOp,
                  ": made for channels in multiples of 8, at most ", PoolMemory::kMostChannels, "; got ", channels);
  STD_TORCH_CHECK(in.batch < (1 << 16), kOp, ": x is too large: ", shape_string(x));
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::new_empty(bias, {in.batch, n});
  const PoolNormLinear p{.x = checked<__half>(kOp, "x", x, ScalarType::Half, {in.batch, in.height, in.width, channels}),
                         .weight = checked<float>(kOp, "weight", weight, ScalarType::Float, {n, channels}),
                         .bias = checked<float>(kOp, "bias", bias, ScalarType::Float, {n}),
                         .y = static_cast<float*>(y.data_ptr()),
                         .pixels = in.height * in.width,
                         .channels = in.channels,
                         .outputs = static_cast<int>(n)};
  launch_clusters(kOp, &pool_norm_linear_kernel, dim3(blocks_of(p), in.batch), kThreads, PoolMemory::kBytes,
                  PoolMemory::kCluster, current_stream(x), p);
  return y;
}

const RegisterKernel registered({"pool_norm_linear", reinterpret_cast<const void*>(&pool_norm_linear_kernel), kThreads,
                                 PoolMemory::kBytes});

}  // namespace
}  // namespace lpkernels::convnext

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def("pool_norm_linear(Tensor x, Tensor weight, Tensor bias) -> Tensor y");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("pool_norm_linear", TORCH_BOX(&lpkernels::convnext::pool_norm_linear_cuda));
}
