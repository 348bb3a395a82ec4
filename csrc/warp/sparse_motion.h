// sparse_motion: what the dense motion network's hourglass reads, from the compressed volume and the keypoints.
//
//   out[b, d, h, w, m (C + 1)]         = gaussian(kp_driving[b, k]) - gaussian(kp_source[b, k])     m = k + 1; 0 for m
//   = 0 out[b, d, h, w, m (C + 1) + 1 + c] = compressed[c] sampled at (x_w, y_h, z_d) - kp_driving[b, k] + kp_source[b,
//   k] out[b, d, h, w, 1 + c]             = background[b, d, h, w, c]
//
// and zero in the channels beyond (K + 1)(C + 1), with the coordinates and the sample of sampling.h and
// gaussian(kp) = exp(-|(x, y, z) - kp|^2 / (2 * 0.01)). A keypoint moves the whole grid by one translation, so that
// neighbours, weights and Gaussians are products of those of three axes: D + H + W of each, not D * H * W.
#pragma once

#include "common/stable.h"
#include "warp/sampling.h"

namespace lpkernels {

struct SparseMotionShape {
  int batch, keypoints, channels, depth, height, width;
  int outputs;                                            // N, channels of out
  int compressed_pixel, background_pixel, out_pixel;      // elements from one voxel to the next
  int64_t compressed_batch, background_batch, out_batch;  // and from one batch element to the next, or 0
};

// One keypoint along one axis at one index: the neighbours of its sample, and the Gaussians of both keypoints.
struct AxisMotion {
  AxisPair pair;
  float driving, source;
};

LPKERNELS_HOST_DEVICE AxisMotion axis_motion(int index, int size, float source, float driving) {
  constexpr float kScale = -0.5f / 0.01f;
  const float inverse = 1.f / (size - 1), x = coordinate_of(index, size, inverse);
  const float to_driving = x - driving, to_source = x - source;
  return {axis_pair(to_voxel(x + (source - driving), size), size), expf(kScale * to_driving * to_driving),
          expf(kScale * to_source * to_source)};
}

// Checks everything the kernels rely on (the op can be called without the Python wrapper) and returns the shape.
SparseMotionShape sparse_motion_shape(const Tensor& compressed, const Tensor& background, const Tensor& kp_source,
                                      const Tensor& kp_driving, const Tensor& out);

}  // namespace lpkernels
