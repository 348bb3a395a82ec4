// keypoint_transform: from the motion extractor's heads to the source's driving keypoints, before stitching.
//
//   degrees = 3 sum_i i softmax(bins)_i - 97.5          of pitch, yaw and roll
//   R = (Rz(roll) Ry(yaw) Rx(pitch))^T
//   relative:  R' = (R R_0^T) R_s,  exp' = exp_s + exp - exp_0,  t' = t_s + t - t_0,  scale' = scale_s scale / scale_0
//   absolute:  R' = R,  exp' = exp,  t' = t,  scale' = scale_s
//   x(motion)  = scale' (kp_s @ R' + exp') + t'         t' moves x and y only
//   x_d        = x(motion), or x_s + (x(motion) - x(first)) multiplier in expression-friendly motion
//   x_d        = x_s + (x_d - x_s) driving_multiplier
//
// Index 0 is the first driving frame, s the source. What the options do not move keeps the source's value. A packed
// motion is a row of exp (3K), R (9, row-major), t (3), scale (1); heads are a row of pitch, yaw, roll (bins each),
// t (3), exp (3K), scale (1), kp (3K, not read: the source's canonical keypoints are moved).
#pragma once

#include <cmath>
#include <optional>

#include "keypoints/rows.h"

namespace lpkernels {

constexpr float kDegreesPerBin = 3.f, kFirstBinDegrees = -97.5f;
constexpr int kRotation = 9, kPose = kRotation + 3 + 1;  // values of R; of R, t and scale

struct KeypointTransform {
  int batch, keypoints;
  int bins;  // 0: driving rows are packed motions already
  bool relative, pose, scale;
  float driving_multiplier;
  Rows driving, kp, x_s, source, first, multiplier;  // first and multiplier: no data where they are not given
  const uint8_t* taken;                              // (K, 3): whether exp comes from the driving motion; null: all
  float *x_d, *motion;                               // (B, K, 3) and (B, 3K + 13)
};

struct MotionView {
  const float *exp, *R, *t, *scale;
};

LPKERNELS_HOST_DEVICE MotionView packed_motion(const float* row, int keypoints) {
  const float* R = row + 3 * keypoints;
  return {row, R, R + kRotation, R + kRotation + 3};
}

// The driving motion of batch element b; R is where its rotation was put.
LPKERNELS_HOST_DEVICE MotionView driving_motion(const KeypointTransform& p, int64_t b, const float* R) {
  const float* row = p.driving.at(b);
  if (p.bins == 0) {
    return packed_motion(row, p.keypoints);
  }
  const float *t = row + 3 * p.bins, *exp = t + 3;
  return {exp, R, t, exp + 3 * p.keypoints};
}

// The first frame's motion: without one, each driving motion is its own.
LPKERNELS_HOST_DEVICE MotionView first_motion(const KeypointTransform& p, int64_t b, const MotionView& driving) {
  return p.first.data == nullptr ? driving : packed_motion(p.first.at(b), p.keypoints);
}

LPKERNELS_HOST_DEVICE float degrees_of(float mean_bin) {
  return mean_bin * kDegreesPerBin + kFirstBinDegrees;
}

LPKERNELS_HOST_DEVICE void sine_cosine(float degrees, float* sine, float* cosine) {
#if defined(__CUDA_ARCH__)
  sincospif(degrees * (1.f / 180.f), sine, cosine);  // in half turns: no argument reduction
#else
  const float radians = degrees * 0.017453292519943295f;
  *sine = std::sin(radians);
  *cosine = std::cos(radians);
#endif
}

// R from the sines and cosines of pitch, yaw and roll.
LPKERNELS_HOST_DEVICE void rotation(const float sine[3], const float cosine[3], float R[kRotation]) {
  const float sx = sine[0], sy = sine[1], sz = sine[2], cx = cosine[0], cy = cosine[1], cz = cosine[2];
  R[0] = cz * cy;
  R[1] = sz * cy;
  R[2] = -sy;
  R[3] = cz * sy * sx - sz * cx;
  R[4] = sz * sy * sx + cz * cx;
  R[5] = cy * sx;
  R[6] = cz * sy * cx + sz * sx;
  R[7] = sz * sy * cx - cz * sx;
  R[8] = cy * cx;
}

// Entry i of R'.
LPKERNELS_HOST_DEVICE float combined_rotation(const KeypointTransform& p, const MotionView& source,
                                              const MotionView& driving, const MotionView& first, int i) {
  if (!p.pose) {
    return source.R[i];
  }
  if (!p.relative) {
    return driving.R[i];
  }
  const float* row = driving.R + i / 3 * 3;
  float sum = 0.f;
  for (int j = 0; j < 3; ++j) {
    const float* other = first.R + 3 * j;
    sum += (row[0] * other[0] + row[1] * other[1] + row[2] * other[2]) * source.R[3 * j + i % 3];
  }
  return sum;
}

// Coordinate i of x(driving), with R' made already.
LPKERNELS_HOST_DEVICE float driven_coordinate(const KeypointTransform& p, const float* kp, const MotionView& source,
                                              const MotionView& driving, const MotionView& first, const float* R,
                                              int i) {
  const int axis = i % 3;
  float exp = source.exp[i], scale = source.scale[0], shift = 0.f;
  if (p.taken == nullptr || p.taken[i]) {
    exp = p.relative ? exp + (driving.exp[i] - first.exp[i]) : driving.exp[i];
  }
  if (p.scale && p.relative) {
    scale *= driving.scale[0] / first.scale[0];
  }
  if (axis < 2) {
    shift = source.t[axis];
    if (p.pose) {
      shift = p.relative ? shift + (driving.t[axis] - first.t[axis]) : driving.t[axis];
    }
  }
  const float* point = kp + i / 3 * 3;
  const float rotated = point[0] * R[axis] + point[1] * R[3 + axis] + point[2] * R[6 + axis];
  return scale * (rotated + exp) + shift;
}

// Coordinate i of x_d; R' of the driving motion, and of the first one where there is a multiplier.
LPKERNELS_HOST_DEVICE float final_coordinate(const KeypointTransform& p, int64_t b, const MotionView& source,
                                             const MotionView& driving, const MotionView& first, const float* R,
                                             const float* first_R, int i) {
  const float *kp = p.kp.at(b), x_s = p.x_s.at(b)[i];
  float x_d = driven_coordinate(p, kp, source, driving, first, R, i);
  if (p.multiplier.data != nullptr) {
    x_d = x_s + (x_d - driven_coordinate(p, kp, source, first, first, first_R, i)) * p.multiplier.at(b)[0];
  }
  return strengthened(x_s, x_d, p.driving_multiplier);
}

struct KeypointTransformOutputs {
  Tensor x_d, motion;
};

// Checks everything the kernels rely on (the op can be called without the Python wrapper), makes the outputs, and
// gathers pointers and options.
KeypointTransform keypoint_transform_arguments(const Tensor& driving, const Tensor& kp, const Tensor& x_s,
                                               const Tensor& source, const std::optional<Tensor>& first,
                                               const std::optional<Tensor>& taken,
                                               const std::optional<Tensor>& multiplier, int64_t bins, bool relative,
                                               bool pose, bool scale, double driving_multiplier,
                                               KeypointTransformOutputs* out);

}  // namespace lpkernels
