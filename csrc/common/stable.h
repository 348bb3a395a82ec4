// What every op needs of PyTorch's stable ABI: tensors, checks and dtype dispatch. An op library built from these
// headers alone runs on torch 2.11 and later, whatever the Python.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <array>
#include <cstdint>
#include <string>

namespace lpkernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_string(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    text += (i ? ", " : "") + std::to_string(tensor.size(i));
  }
  return text + ")";
}

// Calls run(T{}) with the element type T of `dtype`; raises for any other dtype.
template <class Run>
void dispatch_float(ScalarType dtype, const char* op, Run&& run) {
  switch (dtype) {
    case ScalarType::Float:
      return run(float{});
    case ScalarType::Half:
      return run(torch::headeronly::Half{});
    case ScalarType::BFloat16:
      return run(torch::headeronly::BFloat16{});
    default:
      STD_TORCH_CHECK(false, op, ": dtype must be float32, float16 or bfloat16");
  }
}

template <int N>
std::array<int64_t, N> strides_of(const Tensor& tensor) {
  std::array<int64_t, N> strides{};
  for (int i = 0; i < N; ++i) {
    strides[i] = tensor.stride(i);
  }
  return strides;
}

}  // namespace lpkernels
