// flow_warp: from mask logits and keypoints to the warped feature volume.
//
//   m = softmax_k(mask_logits[b, k, d, h, w])                                   k = 0 is the background
//   deformation[b, d, h, w] = (x_w, y_h, z_d) + sum_k m[k + 1] (kp_source[b, k] - kp_driving[b, k])
//   warped[b, c, d, h, w] = trilinear sample of volume[b, c] at the deformation, zeros outside
//
// with x_w = 2 w / (W - 1) - 1 (corners aligned) for the grid, and pixel ((x + 1) W - 1) / 2 (not aligned) for the
// sample. The identity stands alone because the masks sum to one (LivePortrait's dense motion with the grid factored
// out).
#pragma once

#include <cmath>

#include "common/stable.h"

#if defined(__CUDACC__)
#define LPKERNELS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LPKERNELS_HOST_DEVICE inline
#endif

namespace lpkernels {

struct FlowWarpShape {
  int batch, keypoints, channels, depth, height, width;
  int64_t voxels;  // depth * height * width
  std::array<int64_t, 5> logits_strides, volume_strides;
};

// Deformation coordinate (-1..1 over the volume) to a sample's position in voxels.
LPKERNELS_HOST_DEVICE float to_voxel(float coordinate, int size) {
  return ((coordinate + 1.f) * size - 1.f) * 0.5f;
}

// The eight corners of a trilinear sample: element offset into one channel and weight. Corners outside the volume get
// weight and offset zero, and so do all eight where the position is outside or NaN: nothing is read out of bounds.
struct Corners {
  int64_t offset[8];
  float weight[8];
};

LPKERNELS_HOST_DEVICE Corners corners_at(float x, float y, float z, const FlowWarpShape& shape) {
  Corners corners;
  const float px = to_voxel(x, shape.width), py = to_voxel(y, shape.height), pz = to_voxel(z, shape.depth);
  const bool inside = px > -1.f && px < shape.width && py > -1.f && py < shape.height && pz > -1.f && pz < shape.depth;
  const float fx = floorf(px), fy = floorf(py), fz = floorf(pz);
  for (int i = 0; i < 8; ++i) {
    const int dx = i & 1, dy = (i >> 1) & 1, dz = i >> 2;
    // Converting before the test on `inside` would be undefined for NaN and for positions beyond int.
    const int xi = inside ? static_cast<int>(fx) + dx : -1;
    const int yi = inside ? static_cast<int>(fy) + dy : -1;
    const int zi = inside ? static_cast<int>(fz) + dz : -1;
    const bool valid = xi >= 0 && xi < shape.width && yi >= 0 && yi < shape.height && zi >= 0 && zi < shape.depth;
    const float wx = dx ? px - fx : 1.f - (px - fx);
    const float wy = dy ? py - fy : 1.f - (py - fy);
    const float wz = dz ? pz - fz : 1.f - (pz - fz);
    corners.weight[i] = valid ? wx * wy * wz : 0.f;
    corners.offset[i] =
        valid ? zi * shape.volume_strides[2] + yi * shape.volume_strides[3] + xi * shape.volume_strides[4] : 0;
  }
  return corners;
}

// Checks everything the kernels rely on (the op can be called without the Python wrapper) and returns the shape.
FlowWarpShape flow_warp_shape(const Tensor& mask_logits, const Tensor& kp_source, const Tensor& kp_driving,
                              const Tensor& volume);

// Calls run(T{}, Logit{}): T the volume's element type, Logit the logits', which is T or float.
template <class Run>
void dispatch_warp(const Tensor& mask_logits, const Tensor& volume, Run&& run) {
  const bool wide = mask_logits.scalar_type() == ScalarType::Float;
  dispatch_float(volume.scalar_type(), "flow_warp", [&](auto element) {
    if (wide) {
      run(element, float{});
    } else {
      run(element, element);
    }
  });
}

struct FlowWarpOutputs {
  Tensor warped;       // (B, C, D, H, W), the volume's dtype, contiguous
  Tensor deformation;  // (B, D, H, W, 3), float32, contiguous
};

FlowWarpOutputs flow_warp_outputs(const FlowWarpShape& shape, const Tensor& volume, const Tensor& kp_source);

}  // namespace lpkernels
