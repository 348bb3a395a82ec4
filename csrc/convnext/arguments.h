// Checks of the tensors that ConvNeXt's kernels take: on a CUDA device, contiguous, aligned to 16 bytes.
#pragma once

#include <initializer_list>

#include "common/stable.h"

namespace lpkernels::convnext {

template <class T>
T* checked(const char* op, const char* name, const Tensor& tensor, ScalarType dtype,
           std::initializer_list<int64_t> sizes) {
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size()) && tensor.scalar_type() == dtype && tensor.is_cuda() &&
              tensor.is_contiguous() && reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0;
  int64_t i = 0;
  for (const int64_t size : sizes) {
    fits = fits && tensor.size(i++) == size;
  }
  STD_TORCH_CHECK(fits, op, ": ", name, " must be contiguous on a CUDA device, begin at a multiple of 16 bytes and be ",
                  dtype == ScalarType::Half ? "float16" : "float32", " of a shape that fits; got ",
                  shape_string(tensor));
  return static_cast<T*>(tensor.data_ptr());
}

// Sizes of a channels-last activation (B, H, W, C), small enough for the kernels' 32-bit arithmetic within a pixel row.
struct Sizes {
  int batch, height, width, channels;

  Sizes(const char* op, const Tensor& x) {
    STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, op, ": x must have shape (B, H, W, C), none of them 0; got ",
                    shape_string(x));
    for (int64_t i = 0; i < 4; ++i) {
      STD_TORCH_CHECK(x.size(i) < (1 << 15), op, ": x is too large: ", shape_string(x));
    }
    batch = static_cast<int>(x.size(0));
    height = static_cast<int>(x.size(1));
    width = static_cast<int>(x.size(2));
    channels = static_cast<int>(x.size(3));
  }
};

}  // namespace lpkernels::convnext
