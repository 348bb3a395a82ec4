// TMA descriptors on the host: a box of a channels-last activation or of packed weights, half precision, zeros outside.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "common/stable.h"

namespace lpkernels::hopper {

// The driver's encoder, found at run time so that the library loads where no driver is installed.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    STD_TORCH_CHECK(error == cudaSuccess && found == cudaDriverEntryPointSuccess,
                    "the CUDA driver has no cuTensorMapEncodeTiled: update it to 525 or later");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return encoder;
}

// Rank N, innermost first; sizes and box in elements, strides of dimensions 1..N-1 in elements. Rows of the box are 128
// bytes, swizzled as wgmma reads them.
template <int N>
CUtensorMap make_tensor_map(const void* base, const std::array<uint64_t, N>& sizes,
                            const std::array<uint64_t, N - 1>& strides, const std::array<uint32_t, N>& box) {
  constexpr uint64_t kElementBytes = 2;
  std::array<uint64_t, N - 1> stride_bytes{};
  std::array<uint32_t, N> element_strides{};
  for (int i = 0; i < N; ++i) {
    element_strides[i] = 1;
    if (i > 0) {
      stride_bytes[i - 1] = strides[i - 1] * kElementBytes;
    }
  }
  CUtensorMap map{};
  const CUresult result = tensor_map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, N, const_cast<void*>(base),
                                               sizes.data(), stride_bytes.data(), box.data(), element_strides.data(),
                                               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  STD_TORCH_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with error ", static_cast<int>(result));
  return map;
}

}  // namespace lpkernels::hopper
