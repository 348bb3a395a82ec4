// A ConvNeXt block as kernels of their own, for who has their parameters; sizes and pointers are checked.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace lpkernels::convnext {

struct DepthwiseLinear;
struct GrnLinear;

// Its two halves.
void launch_depthwise_linear(const char* op, DepthwiseLinear p, int batch, cudaStream_t stream);
void launch_grn_linear(const char* op, GrnLinear p, int batch, cudaStream_t stream);

// Many images on Hopper (batched_block.cu): whether the current GPU takes so many channels that are widened to so many;
// rows of squares for an image; and the kernels of a block. a: as large as x, may become y; factors (images, wide). y
// is not to be x.
bool takes_many_images(int channels, int wide);
int tiles_of_many_images(const DepthwiseLinear& p, int images);
void launch_batched_block(const char* op, const DepthwiseLinear& expand, const GrnLinear& project, __half* a,
                          float* factors, int images, cudaStream_t stream);

}  // namespace lpkernels::convnext
