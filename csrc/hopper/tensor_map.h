// TMA descriptors on the host: boxes of channels-last activations and of packed weights, half precision, zeros outside.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "common/stable.h"
#include "hopper/conv_boxes.h"

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

// Rows of the box are the bytes of the swizzle: 128 as wgmma reads them, or fewer.
inline CUtensorMap tensor_map(const void* base, const TensorBox& box,
                              CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B) {
  constexpr uint64_t kElementBytes = 2;
  std::array<uint64_t, 4> stride_bytes{};
  for (int i = 0; i < 4; ++i) {
    stride_bytes[i] = box.strides[i] * kElementBytes;
  }
  CUtensorMap map{};
  const CUresult result =
      tensor_map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 5, const_cast<void*>(base), box.sizes.data(),
                           stride_bytes.data(), box.box.data(), box.every.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
                           swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  STD_TORCH_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with error ", static_cast<int>(result));
  return map;
}

}  // namespace lpkernels::hopper
