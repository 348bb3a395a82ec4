// paste_back on any CUDA device (sm_75 and later); equation and layouts in paste_back.h.
//
// The device's own copy lays the source into `out`, where it is not there already; then a thread takes a pixel of the
// mask's box, a block 32 x 8 of them, so that a warp's reads and writes of picture and mask lie side by side and its
// texels, turned with the face, stay in a few lines of the L1. Bound by latency: one byte of mask decides whether the
// pixel is read at all, then eighteen bytes are waited for together. Texels come through the L2 once.
#include "common/cuda.h"
#include "common/kernel_table.h"
#include "paste/paste_back.h"

namespace lpkernels {
namespace {

constexpr int kColumns = 32, kRows = 8;

__global__ void __launch_bounds__(kColumns* kRows) paste_back_kernel(const __grid_constant__ PasteBack p) {
  const int column = blockIdx.x * kColumns + threadIdx.x, row = blockIdx.y * kRows + threadIdx.y;
  if (column < p.columns && row < p.rows) {
    paste_pixel(p, blockIdx.z, row, column);
  }
}

void copy_source(const PasteBack& p, cudaStream_t stream) {
  const bool shared = p.source_stride == 0;
  const size_t size = static_cast<size_t>(p.picture_size) * (shared ? 1 : p.batch);
  for (int64_t b = 0; b < (shared ? p.batch : 1); ++b) {
    const cudaError_t error =
        cudaMemcpyAsync(p.out + b * p.picture_size, p.source, size, cudaMemcpyDeviceToDevice, stream);
    STD_TORCH_CHECK(error == cudaSuccess, "paste_back: the source cannot be copied: ", cudaGetErrorString(error));
  }
}

void paste_back_cuda(const Tensor& image, const Tensor& source, const Tensor& mask, const std::vector<double>& matrix,
                     const std::vector<int64_t>& box, bool copy_rest, const Tensor& out) {
  const PasteBack p = paste_back_arguments(image, source, mask, matrix, box, copy_rest, out);
  const torch::stable::accelerator::DeviceGuard guard(image.get_device_index());
  const cudaStream_t stream = current_stream(image);
  if (p.copies) {
    copy_source(p, stream);
  }
  const dim3 grid((p.columns + kColumns - 1) / kColumns, (p.rows + kRows - 1) / kRows, p.batch);
  paste_back_kernel<<<grid, dim3(kColumns, kRows), 0, stream>>>(p);
  check_launch("paste_back");
}

const RegisterKernel registered({"paste_back", reinterpret_cast<const void*>(&paste_back_kernel), kColumns * kRows, 0});

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("paste_back", TORCH_BOX(&lpkernels::paste_back_cuda));
}
