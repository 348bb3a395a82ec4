// ConvNeXt's other kernels for convnext_stage: the two halves of a block for who has their parameters, sizes and
// pointers checked, and the step before the first.
#pragma once

#include <cuda_runtime.h>

#include "common/stable.h"

namespace lpkernels::convnext {

struct DepthwiseLinear;
struct GrnLinear;

void launch_depthwise_linear(const char* op, DepthwiseLinear p, int batch, cudaStream_t stream);
void launch_grn_linear(const char* op, GrnLinear p, int batch, cudaStream_t stream);
Tensor norm_downsample_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias);

}  // namespace lpkernels::convnext
