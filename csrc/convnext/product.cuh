// The matrix product of ConvNeXt's linear layers in half precision, sums in float: C[m, n] = sum over k A[m, k] W[n,
// k].
//
// A is in shared memory, a row's k next to each other; W (N, K) is in registers from the first instructions of a kernel
// on, before the kernel ahead of it has ended. Of the 8 warps GroupsK share a product's k, and the others its columns:
// a warp owns all M rows, 24 columns and Steps * 32 products of each sum. Within 32 k, the tensor cores' order of k is
// permuted, alike for A and W, so that what a lane needs is 16 bytes in a row: k = 8t .. 8t + 7 with t = lane % 4.
#pragma once

#include "common/host_device.h"
#include "convnext/device.cuh"

namespace lpkernels::convnext {

constexpr float kEpsilon = 1e-6f;  // of every norm in ConvNeXt V2
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kWarpColumns = 24;
constexpr int kStep = 32;  // k of two products of the tensor cores

LPKERNELS_HOST_DEVICE constexpr int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

// k of one row of A, with zeros at its end.
LPKERNELS_HOST_DEVICE constexpr int padded_depth(int k) {
  return ceil_div(k, kStep) * kStep;
}

// Elements between the rows of A: an odd multiple of 64 bytes, so that the two rows of 8 lanes lie in different banks.
LPKERNELS_HOST_DEVICE constexpr int row_pitch(int padded_depth) {
  return padded_depth / kStep % 2 == 1 ? padded_depth : padded_depth + kStep;
}

template <int M, int GroupsK, int Steps>
struct HeldProduct {
  static constexpr int kRows = M;
  static constexpr int kColumns = kWarps / GroupsK * kWarpColumns;  // of a block
  static constexpr int kGroups = GroupsK;
  static constexpr int kDepth = GroupsK * Steps * kStep;  // the most k that the registers hold
  static constexpr int kStagedPitch = kColumns + 8;       // floats: four rows of a warp's store lie in different banks
  static constexpr size_t kStagedBytes = sizeof(float) * kGroups * M * kStagedPitch;

  uint4 weights[Steps][kWarpColumns / 8];
  float sums[M / 16][kWarpColumns / 8][4];

  __device__ static int group() { return static_cast<int>(threadIdx.x) / 32 % GroupsK; }
  __device__ static int first_column() { return static_cast<int>(threadIdx.x) / 32 / GroupsK * kWarpColumns; }
  __device__ static int first_k(int step) { return (group() * Steps + step) * kStep; }

  // W[n .., k ..] of a matrix (outputs, depth) with rows of whole 16 bytes; zeros outside.
  __device__ void load_weights(const __half* weight, int n, int outputs, int k, int depth) {
    const int lane = static_cast<int>(threadIdx.x) % 32, column = k + first_k(0) + lane % 4 * 8;
#pragma unroll
    for (int j = 0; j < kWarpColumns / 8; ++j) {
      const int row = n + first_column() + 8 * j + lane / 4;
      const __half* from = weight + int64_t{row} * depth + column;
#pragma unroll
      for (int step = 0; step < Steps; ++step) {
        weights[step][j] = make_uint4(0, 0, 0, 0);
        if (row < outputs && column + step * kStep < depth) {
          weights[step][j] = load_constant(from + step * kStep);
        }
      }
    }
  }

  __device__ void clear() {
#pragma unroll
    for (auto& row : sums) {
#pragma unroll
      for (auto& tile : row) {
        tile[0] = tile[1] = tile[2] = tile[3] = 0.f;
      }
    }
  }

  // sums += A W^T over the first `depth` k of A, a multiple of kStep.
  __device__ void multiply(const __half* a, int pitch, int depth) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const __half* own = a + lane / 4 * pitch + lane % 4 * 8;
#pragma unroll
    for (int step = 0; step < Steps; ++step) {
      const int k = first_k(step);
      if (k >= depth) {
        break;
      }
#pragma unroll
      for (int m = 0; m < M / 16; ++m) {
        const uint4 upper = *reinterpret_cast<const uint4*>(own + 16 * m * pitch + k);
        const uint4 lower = *reinterpret_cast<const uint4*>(own + (16 * m + 8) * pitch + k);
        const uint32_t first[4] = {upper.x, lower.x, upper.y, lower.y};
        const uint32_t second[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
        for (int j = 0; j < kWarpColumns / 8; ++j) {
          multiply_add(sums[m][j], first, weights[step][j].x, weights[step][j].y);
          multiply_add(sums[m][j], second, weights[step][j].z, weights[step][j].w);
        }
      }
    }
  }

  // The sums of this block's groups as staged[group][row][column], from where any thread may add them up.
  __device__ void stage(float* staged) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float* own = staged + (group() * M + lane / 4) * kStagedPitch + first_column() + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < M / 16; ++m) {
#pragma unroll
      for (int j = 0; j < kWarpColumns / 8; ++j) {
        float* place = own + 16 * m * kStagedPitch + 8 * j;
        *reinterpret_cast<float2*>(place) = make_float2(sums[m][j][0], sums[m][j][1]);
        *reinterpret_cast<float2*>(place + 8 * kStagedPitch) = make_float2(sums[m][j][2], sums[m][j][3]);
      }
    }
  }
};

__device__ inline float4 operator+(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__device__ inline uint32_t halves(float first, float second) {
  const __half2 rounded = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&rounded);
}

__device__ inline float2 floats(uint32_t halves) {
  return __half22float2(*reinterpret_cast<const __half2*>(&halves));
}

}  // namespace lpkernels::convnext
