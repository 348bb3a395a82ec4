// CUDA's keywords, vector types and half precision for the host's compiler.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__

using __half = _Float16;
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint2 make_uint2(uint32_t x, uint32_t y) {
  return {x, y};
}
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  return {x, y, z, w};
}
inline float2 __half22float2(__half2 v) {
  return {static_cast<float>(v.x), static_cast<float>(v.y)};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {static_cast<__half>(x), static_cast<__half>(y)};
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  const auto sum = [](__half a, __half b, __half c) {
    return static_cast<__half>(std::fma(static_cast<double>(a), static_cast<double>(b), static_cast<double>(c)));
  };
  return {sum(a.x, b.x, c.x), sum(a.y, b.y, c.y)};
}
inline uint32_t __float_as_uint(float v) {
  return std::bit_cast<uint32_t>(v);
}
inline float __uint_as_float(uint32_t v) {
  return std::bit_cast<float>(v);
}
// The bytes of y:x that the four lowest digits of `which` name.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned which) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<unsigned>(bytes >> 8 * (which >> 4 * i & 7) & 0xff) << 8 * i;
  }
  return result;
}
inline float rsqrtf(float v) {
  return 1.f / std::sqrt(v);
}
using std::max;
using std::min;
