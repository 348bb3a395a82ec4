// patch_norm on GPUs that start a kernel before the one ahead has ended (sm_90, sm_100); the kernel and its layouts in
// patch_norm.cuh.
#include "convnext/patch_norm.cuh"

#include <cuda_bf16.h>

#include "common/cuda.h"
#include "common/kernel_table.h"
#include "convnext/arguments.h"

namespace lpkernels::convnext {
namespace {

constexpr const char* kOp = "patch_norm";

template <class Run>
void with_pixel(ScalarType dtype, Run&& run) {
  switch (dtype) {
    case ScalarType::Byte:
      return run(uint8_t{});
    case ScalarType::Half:
      return run(__half{});
    case ScalarType::BFloat16:
      return run(__nv_bfloat16{});
    case ScalarType::Float:
      return run(float{});
    default:
      STD_TORCH_CHECK(false, kOp, ": x must be uint8, float16, bfloat16 or float32");
  }
}

Tensor patch_norm_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& norm_weight,
                       const Tensor& norm_bias) {
  using P = PatchNorm;
  const Sizes in(kOp, x);
  const int64_t n = weight.size(0), height = in.height / P::kPatch, width = in.width / P::kPatch;
  STD_TORCH_CHECK(in.channels == P::kColours && n > 0 && n % 8 == 0 && n <= P::kMostOutputs, kOp,
                  ": made for pictures of 3 channels and outputs in multiples of 8, at most ", P::kMostOutputs,
                  "; got ", in.channels, " and ", n);
  STD_TORCH_CHECK(height * width > 0 && in.batch * height * width < (int64_t{1} << 28), kOp,
                  ": x must be at least 4 pixels high and wide, and not too large: ", shape_string(x));
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::new_empty(weight, {in.batch, height, width, n});
  const P p{.x = x.data_ptr(),
            .weight = checked<__half>(kOp, "weight", weight, ScalarType::Half, {n, P::kPatch, P::kPatch, P::kColours}),
            .bias = checked<float>(kOp, "bias", bias, ScalarType::Float, {n}),
            .norm_weight = checked<float>(kOp, "norm_weight", norm_weight, ScalarType::Float, {n}),
            .norm_bias = checked<float>(kOp, "norm_bias", norm_bias, ScalarType::Float, {n}),
            .y = static_cast<__half*>(y.data_ptr()),
            .stride_b = x.stride(0),
            .stride_h = x.stride(1),
            .stride_w = x.stride(2),
            .stride_c = x.stride(3),
            .height = Divisor(static_cast<int>(height)),
            .width = Divisor(static_cast<int>(width)),
            .outputs = static_cast<int>(n),
            .patches = static_cast<int>(in.batch * height * width),
            .scale = x.scalar_type() == ScalarType::Byte ? 1.f / 255.f : 1.f};
  with_pixel(x.scalar_type(), [&](auto pixel) {
    launch_clusters(kOp, &patch_norm_kernel<decltype(pixel)>, dim3(ceil_div(p.patches, P::kPatches)), P::kThreads,
                    P::kBytes, 1, current_stream(x), p);
  });
  return y;
}

template <class Pixel>
RegisterKernel registered(const char* name) {
  return RegisterKernel(
      {name, reinterpret_cast<const void*>(&patch_norm_kernel<Pixel>), PatchNorm::kThreads, PatchNorm::kBytes});
}
const RegisterKernel kernels[] = {registered<uint8_t>("patch_norm<bytes>"), registered<__half>("patch_norm<half>"),
                                  registered<__nv_bfloat16>("patch_norm<bfloat16>"),
                                  registered<float>("patch_norm<float>")};

}  // namespace
}  // namespace lpkernels::convnext

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def("patch_norm(Tensor x, Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias) -> Tensor y");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("patch_norm", TORCH_BOX(&lpkernels::convnext::patch_norm_cuda));
}
