// What both keypoint ops read and end with: rows of float32 tensors, and the strength of a motion.
#pragma once

#include <initializer_list>
#include <iterator>

#include "common/host_device.h"
#include "common/stable.h"

namespace lpkernels {

// One row of values for each batch element; a single row serves them all.
struct Rows {
  const float* data = nullptr;
  int64_t stride = 0;

  LPKERNELS_HOST_DEVICE const float* at(int64_t b) const { return data + b * stride; }
};

// A motion of `multiplier` strength: the source's keypoint for 0, the driven one for 1.
LPKERNELS_HOST_DEVICE float strengthened(float x_s, float x_d, float multiplier) {
  return multiplier == 1.f ? x_d : x_s + (x_d - x_s) * multiplier;
}

inline std::string row_shape_string(int64_t batch, std::initializer_list<int64_t> sizes) {
  std::string text = "(1 or " + std::to_string(batch);
  for (const int64_t size : sizes) {
    text += ", " + std::to_string(size);
  }
  return text + ")";
}

// `tensor` as rows: float32 of shape (1 or `batch`, sizes...), each row dense, on the device of `like`.
inline Rows rows_of(const char* op, const char* name, const Tensor& tensor, const Tensor& like, int64_t batch,
                    std::initializer_list<int64_t> sizes) {
  STD_TORCH_CHECK(tensor.is_cpu() == like.is_cpu() && tensor.get_device_index() == like.get_device_index(), op, ": ",
                  name, " must be on the device of the driving motion");
  int64_t axis = static_cast<int64_t>(sizes.size()), dense = 1;
  bool fits = tensor.dim() == axis + 1 && tensor.scalar_type() == ScalarType::Float &&
              (tensor.size(0) == 1 || tensor.size(0) == batch);
  for (auto size = std::rbegin(sizes); fits && size != std::rend(sizes); ++size, --axis) {
    fits = tensor.size(axis) == *size && (*size == 1 || tensor.stride(axis) == dense);
    dense *= *size;
  }
  STD_TORCH_CHECK(fits, op, ": ", name, " must be float32 of shape ", row_shape_string(batch, sizes),
                  " with dense rows, got ", shape_string(tensor));
  return {static_cast<const float*>(tensor.data_ptr()), tensor.size(0) == 1 ? 0 : tensor.stride(0)};
}

}  // namespace lpkernels
