// flow_warp: from mask logits and keypoints to the warped feature volume.
//
//   m = softmax_k(mask_logits[b, k, d, h, w])                                   k = 0 is the background
//   deformation[b, d, h, w] = (x_w, y_h, z_d) + sum_k m[k + 1] (kp_source[b, k] - kp_driving[b, k])
//   warped[b, c, d, h, w] = trilinear sample of volume[b, c] at the deformation, zeros outside
//
// with the coordinates of sampling.h. The identity stands alone because the masks sum to one (LivePortrait's dense
// motion with the grid factored out).
#pragma once

#include "common/stable.h"
#include "warp/sampling.h"

namespace lpkernels {

struct FlowWarpShape {
  int batch, keypoints, channels, depth, height, width;
  float inverse_depth, inverse_height, inverse_width;  // 1 / (size - 1)
  int64_t voxels;                                      // depth * height * width
  // Channels of a voxel next to each other and voxels dense, in slices of wider voxels too: so is `warped` then, as a
  // view of (B, H, W, D, C), for the next convolution's channels are (D, C).
  bool channels_last;
  std::array<int64_t, 5> logits_strides, volume_strides, warped_strides;
};

// The eight corners of a trilinear sample: element offset into one channel and weight. A weight of zero marks a corner
// that is not in the volume, or does not count: its value must not be used, for zero times infinity is NaN.
struct Corners {
  int64_t offset[8];
  float weight[8];
};

LPKERNELS_HOST_DEVICE Corners corners_at(const float position[3], const FlowWarpShape& shape) {
  const AxisPair x = axis_pair(to_voxel(position[0], shape.width), shape.width);
  const AxisPair y = axis_pair(to_voxel(position[1], shape.height), shape.height);
  const AxisPair z = axis_pair(to_voxel(position[2], shape.depth), shape.depth);
  Corners corners;
  for (int i = 0; i < 8; ++i) {
    const int dx = i & 1, dy = (i >> 1) & 1, dz = i >> 2;
    corners.weight[i] = x.weight[dx] * y.weight[dy] * z.weight[dz];
    corners.offset[i] = (z.first + dz) * shape.volume_strides[2] + (y.first + dy) * shape.volume_strides[3] +
                        (x.first + dx) * shape.volume_strides[4];
  }
  return corners;
}

// The deformation of voxel (d, h, w) from its weighted mean of the keypoints' motions.
LPKERNELS_HOST_DEVICE void deform(const float mean[3], int d, int h, int w, const FlowWarpShape& shape,
                                  float deformation[3]) {
  deformation[0] = coordinate_of(w, shape.width, shape.inverse_width) + mean[0];
  deformation[1] = coordinate_of(h, shape.height, shape.inverse_height) + mean[1];
  deformation[2] = coordinate_of(d, shape.depth, shape.inverse_depth) + mean[2];
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
  Tensor warped;       // (B, C, D, H, W), the volume's dtype, warped_strides
  Tensor deformation;  // (B, D, H, W, 3), float32, contiguous; or empty

  float* wanted_deformation() const {  // null where it is not wanted
    return deformation.numel() == 0 ? nullptr : static_cast<float*>(deformation.data_ptr());
  }
};

// Allocates the outputs; those of `shape.channels_last` have its layout.
FlowWarpOutputs flow_warp_outputs(const FlowWarpShape& shape, const Tensor& volume, const Tensor& kp_source,
                                  bool want_deformation);

}  // namespace lpkernels
