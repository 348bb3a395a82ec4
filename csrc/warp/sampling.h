// What the samplers of the feature volume share: coordinates, and the two neighbours of a position along one axis.
//
// Coordinates are normalised, -1..1 with corners aligned: voxel i of n stands at 2 i / (n - 1) - 1. A sample at
// coordinate x is taken at voxel position ((x + 1) n - 1) / 2 (corners not aligned), with zeros outside the volume.
#pragma once

#include <cmath>

#include "common/host_device.h"
#include "common/stable.h"

namespace lpkernels {

// The coordinate of a voxel; `inverse` is 1 / (size - 1). Exact at the middle, an ulp from 1 at most at the ends.
LPKERNELS_HOST_DEVICE float coordinate_of(int index, int size, float inverse) {
  return (2 * index - (size - 1)) * inverse;
}

LPKERNELS_HOST_DEVICE float to_voxel(float coordinate, int size) {
  return ((coordinate + 1.f) * size - 1.f) * 0.5f;
}

// 2^x; on the device one instruction with a relative error of 2^-22.
LPKERNELS_HOST_DEVICE float exp2_fast(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// Neighbours `first` and `first + 1` with their weights. Both are always inside the axis (of at least 2 voxels): where
// the sample lies between the last voxel and the outside, the pair moves inwards and one weight is zero. Both weights
// are zero where the position is outside or NaN, so nothing is ever read out of bounds.
struct AxisPair {
  int first;
  float weight[2];
};

LPKERNELS_HOST_DEVICE AxisPair axis_pair(float position, int size) {
  const bool inside = position > -1.f && position < size;
  const float lower = floorf(position), fraction = position - lower;
  const int index = inside ? static_cast<int>(lower) : 0;  // of NaN it would be undefined
  const int first = index < 0 ? 0 : index > size - 2 ? size - 2 : index;
  const float here = inside ? 1.f - fraction : 0.f, next = inside ? fraction : 0.f;  // of index and index + 1
  const float left = first > index ? next : first < index ? 0.f : here;
  const float right = first > index ? 0.f : first < index ? here : next;
  return {first, {left, right}};
}

}  // namespace lpkernels
