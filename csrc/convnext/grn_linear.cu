// grn_linear on GPUs with clusters of blocks (sm_90, sm_100); the kernel and its layouts in grn_linear.cuh.
#include "convnext/grn_linear.cuh"

#include "common/cuda.h"
#include "common/kernel_table.h"
#include "convnext/arguments.h"
#include "convnext/launch.h"

namespace lpkernels::convnext {
namespace {

constexpr const char* kOp = "grn_linear";
using Work = GrnWork<NarrowSplit>;

Tensor grn_linear_cuda(const Tensor& x, const Tensor& squares, const Tensor& gamma, const Tensor& weight,
                       const Tensor& bias, const Tensor& residual) {
  const Sizes in(kOp, x);
  const int64_t depth = in.channels, n = weight.size(0), rows = squares.size(1);
  STD_TORCH_CHECK(depth % 8 == 0 && depth <= kMostDepth && n % 8 == 0 && n < (1 << 15) && rows < (1 << 24), kOp,
                  ": made for channels and outputs in multiples of 8, at most ", kMostDepth, " channels; got ", depth,
                  " and ", n);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::new_empty(x, {in.batch, in.height, in.width, n});
  GrnLinear p{
      .x = checked<__half>(kOp, "x", x, ScalarType::Half, {in.batch, in.height, in.width, depth}),
      .squares = checked<float>(kOp, "squares", squares, ScalarType::Float, {in.batch, rows, depth}),
      .gamma = checked<float>(kOp, "gamma", gamma, ScalarType::Float, {depth}),
      .weight = checked<__half>(kOp, "weight", weight, ScalarType::Half, {n, depth}),
      .bias = checked<float>(kOp, "bias", bias, ScalarType::Float, {n}),
      .residual = checked<__half>(kOp, "residual", residual, ScalarType::Half, {in.batch, in.height, in.width, n}),
      .y = static_cast<__half*>(y.data_ptr()),
      .pixels = in.height * in.width,
      .depth = in.channels,
      .outputs = static_cast<int>(n),
      .rows = static_cast<int>(rows),
      .splits = 1,
      .tiles = 1};
  launch_grn_linear(kOp, p, in.batch, current_stream(x));
  return y;
}

const RegisterKernel registered({"grn_linear<32x96>", reinterpret_cast<const void*>(&grn_linear_kernel), kThreads,
                                 kArrivalsBytes + Work::Memory::kBytes});

}  // namespace

void launch_grn_linear(const char* op, GrnLinear p, int batch, cudaStream_t stream) {
  choose_cluster(p, Work::Product::kRows, kLargestCluster);
  launch_clusters(op, &grn_linear_kernel, dim3(blocks_of<Work>(p, batch)), kThreads,
                  kArrivalsBytes + Work::Memory::kBytes, p.splits * p.tiles, stream, p);
}

}  // namespace lpkernels::convnext

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def(
      "grn_linear(Tensor x, Tensor squares, Tensor gamma, Tensor weight, Tensor bias, Tensor residual) -> Tensor y");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("grn_linear", TORCH_BOX(&lpkernels::convnext::grn_linear_cuda));
}
