// sparse_motion: what the dense motion network's hourglass reads, from the compressed volume and the keypoints.
//
//   out[b, d, h, w, m (C + 1)]         = gaussian(kp_driving[b, k]) - gaussian(kp_source[b, k])            m = k + 1
//   out[b, d, h, w, m (C + 1) + 1 + c] = compressed[c] at (x_w, y_h, z_d) - kp_driving[b, k] + kp_source[b, k]
//   out[b, d, h, w, 0]                 = 0                                                                 m = 0
//   out[b, d, h, w, 1 + c]             = background[b, d, h, w, c]
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
  float inverse_depth, inverse_height, inverse_width;     // 1 / (size - 1)
  int outputs;                                            // N, channels of out
  int compressed_pixel, background_pixel, out_pixel;      // elements from one voxel to the next
  int64_t compressed_batch, background_batch, out_batch;  // and from one batch element to the next, or 0
};

// One keypoint along one axis at one index: the neighbours of its sample, and the Gaussians of both keypoints.
struct AxisMotion {
  AxisPair pair;
  float driving, source;
};

// `inverse` is 1 / (size - 1). The index may lie beyond the axis, as those of a block's idle threads do.
LPKERNELS_HOST_DEVICE AxisMotion axis_motion(int index, int size, float inverse, float source, float driving) {
  constexpr float kScale = -0.5f / 0.01f * 1.4426950408889634f;  // to a power of two
  const float x = coordinate_of(index, size, inverse), to_driving = x - driving, to_source = x - source;
  return {axis_pair(to_voxel(x + (source - driving), size), size), exp2_fast(kScale * to_driving * to_driving),
          exp2_fast(kScale * to_source * to_source)};
}

// One motion at one voxel, its places along z, y and x: heatmap and samples into C + 1 channels of `out`.
template <class T>
LPKERNELS_HOST_DEVICE void move_voxel(const AxisMotion& z, const AxisMotion& y, const AxisMotion& x,
                                      const SparseMotionShape& shape, const T* volume, T* out) {
  const int pixel = shape.compressed_pixel, row = shape.width * pixel, plane = shape.height * row;
  const T* corner = volume + (z.pair.first * plane + y.pair.first * row + x.pair.first * pixel);
  out[0] = static_cast<T>(z.driving * y.driving * x.driving - z.source * y.source * x.source);
  for (int c = 0; c < shape.channels; ++c) {
    float value = 0.f;
    for (int i = 0; i < 8; ++i) {
      const int dx = i & 1, dy = (i >> 1) & 1, dz = i >> 2;
      value += z.pair.weight[dz] * y.pair.weight[dy] * x.pair.weight[dx] *
               static_cast<float>(corner[dz * plane + dy * row + dx * pixel + c]);
    }
    out[1 + c] = static_cast<T>(value);
  }
}

// Checks everything the kernels rely on (the op can be called without the Python wrapper) and returns the shape.
SparseMotionShape sparse_motion_shape(const Tensor& compressed, const Tensor& background, const Tensor& kp_source,
                                      const Tensor& kp_driving, const Tensor& out);

}  // namespace lpkernels
