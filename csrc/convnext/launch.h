// The two halves of a ConvNeXt block as kernels of their own, for who has their parameters; sizes and pointers are
// checked.
#pragma once

#include <cuda_runtime.h>

namespace lpkernels::convnext {

struct DepthwiseLinear;
struct GrnLinear;

void launch_depthwise_linear(const char* op, DepthwiseLinear p, int batch, cudaStream_t stream);
void launch_grn_linear(const char* op, GrnLinear p, int batch, cudaStream_t stream);

}  // namespace lpkernels::convnext
