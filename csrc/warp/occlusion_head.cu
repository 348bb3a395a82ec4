// occlusion_head on GPUs that start a kernel before the one ahead has ended (sm_90, sm_100); the kernels and their
// layouts in occlusion_head.cuh.
#include "warp/occlusion_head.cuh"

#include "common/cuda.h"
#include "common/kernel_table.h"
#include "hopper/activation.h"

namespace lpkernels::occlusion {
namespace {

constexpr const char* kOp = "occlusion_head";

Tensor occlusion_head_cuda(const Tensor& x_tensor, const Tensor& weight, const Tensor& bias) {
  const hopper::Activation x = hopper::activation(kOp, "x", x_tensor);
  STD_TORCH_CHECK(x_tensor.dim() == 5 && x.channels % 16 == 0 && x.channels <= kMostChannels, kOp,
                  ": x must have shape (B, D, H, W, C), C a multiple of 16, at most ", kMostChannels, "; got ",
                  shape_string(x_tensor));
  const int64_t size = int64_t{x.height} * x.width;
  const int groups = groups_of(x.depth);
  STD_TORCH_CHECK(kDepths * size * x.pixel_stride < (int64_t{1} << 31) && groups < (1 << 16) && x.batch < (1 << 16),
                  kOp, ": x is too large: ", shape_string(x_tensor));
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(0) == kRows && weight.size(1) == x.depth &&
                      weight.size(2) == x.channels && weight.scalar_type() == ScalarType::Half &&
                      weight.is_contiguous() && reinterpret_cast<uintptr_t>(weight.data_ptr()) % 16 == 0,
                  kOp, ": weight must be contiguous float16 of shape (56, ", x.depth, ", ", x.channels,
                  ") and begin at a multiple of 16 bytes, got ", shape_string(weight));
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == 1 && bias.scalar_type() == ScalarType::Float, kOp,
                  ": bias must be float32 of shape (1), got ", shape_string(bias));
  STD_TORCH_CHECK(weight.is_cuda() && bias.is_cuda() && weight.get_device_index() == x_tensor.get_device_index() &&
                      bias.get_device_index() == x_tensor.get_device_index(),
                  kOp, ": x, weight and bias must be on one device");
  const torch::stable::accelerator::DeviceGuard guard(x_tensor.get_device_index());
  Tensor columns = torch::stable::new_empty(bias, {x.batch, groups, kTaps, column_pitch(static_cast<int>(size))});
  Tensor map = torch::stable::new_empty(bias, {x.batch, x.height, x.width});
  const OcclusionHead p{.x = static_cast<const __half*>(x.data),
                        .weight = static_cast<const __half*>(weight.data_ptr()),
                        .bias = static_cast<const float*>(bias.data_ptr()),
                        .columns = static_cast<float*>(columns.data_ptr()),
                        .map = static_cast<float*>(map.data_ptr()),
                        .depth = x.depth,
                        .height = x.height,
                        .width = x.width,
                        .channels = x.channels,
                        .pixel_vectors = static_cast<int>(x.pixel_stride / 8)};
  const auto tiles = [&](int pixels) { return static_cast<unsigned>((size + pixels - 1) / pixels); };
  const cudaStream_t stream = current_stream(x_tensor);
  launch_clusters(kOp, &occlusion_columns_kernel, dim3(tiles(kPixels), groups, x.batch), kThreads,
                  weight_bytes(x.channels), 1, stream, p);
  launch_clusters(kOp, &occlusion_sum_kernel, dim3(tiles(kSumPixels), x.batch), kSumThreads, kSumBytes, 1, stream, p);
  return map;
}

constexpr int kPublishedChannels = 144;
const RegisterKernel kernels[] = {
    RegisterKernel({"occlusion_head, columns", reinterpret_cast<const void*>(&occlusion_columns_kernel), kThreads,
                    weight_bytes(kPublishedChannels)}),
    RegisterKernel(
        {"occlusion_head, sum", reinterpret_cast<const void*>(&occlusion_sum_kernel), kSumThreads, kSumBytes})};

}  // namespace
}  // namespace lpkernels::occlusion

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def("occlusion_head(Tensor x, Tensor weight, Tensor bias) -> Tensor map");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("occlusion_head", TORCH_BOX(&lpkernels::occlusion::occlusion_head_cuda));
}
