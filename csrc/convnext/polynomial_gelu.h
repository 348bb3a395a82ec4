// The exact GELU where its instructions are what counts.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/host_device.h"

namespace lpkernels::convnext {

// v Phi(v), within 4e-5 of it. Phi(v) = 1/2 + v P(v^2), P of degree 8 fitted for v^2 P to be equally far everywhere
// below |v| = 4.3; beyond, P's highest term takes Phi past 0 and 1, where it is cut off. 11 instructions without a
// division or a power, of which a multiprocessor does 16 a clock.
LPKERNELS_HOST_DEVICE float polynomial_gelu(float v) {
  const float square = v * v;
  float p = 4.1971596e-11f;
  p = fmaf(p, square, -4.2487783e-9f);
  p = fmaf(p, square, 1.9021716e-7f);
  p = fmaf(p, square, -5.0060545e-6f);
  p = fmaf(p, square, 8.7116555e-5f);
  p = fmaf(p, square, -1.0713802e-3f);
  p = fmaf(p, square, 9.6951294e-3f);
  p = fmaf(p, square, -6.6155567e-2f);
  p = fmaf(p, square, 3.9880207e-1f);
  const float phi = fmaf(v, p, 0.5f);
#ifdef __CUDA_ARCH__
  return v * __saturatef(phi);
#else
  return v * std::clamp(phi, 0.f, 1.f);
#endif
}

}  // namespace lpkernels::convnext
