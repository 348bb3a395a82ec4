// csrc/common/stable.h without PyTorch: what the checks of an op's arguments need to compile; no test calls them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <string>

#define STD_TORCH_CHECK(condition, ...) \
  if (!(condition)) {                   \
    std::abort();                       \
  }

namespace lpkernels {

enum class ScalarType { Half, Float };

struct Tensor {
  int64_t dim() const { return 0; }
  int64_t size(int64_t) const { return 0; }
  int64_t stride(int64_t) const { return 0; }
  int64_t numel() const { return 0; }
  void* data_ptr() const { return nullptr; }
  ScalarType scalar_type() const { return ScalarType::Half; }
  bool is_cuda() const { return false; }
  bool is_contiguous() const { return false; }
};

inline std::string shape_string(const Tensor&) {
  return "";
}

}  // namespace lpkernels
