// The matrix product of ConvNeXt's linear layers in half precision, sums in float: C[m, n] = sum over k A[m, k] W[n,
// k].
//
// A is in shared memory, 8 of a row's k next to each other; W (N, K) is loaded by the first instructions of a kernel,
// before the kernel ahead of it has ended: Held of three steps of it to registers, the rest to shared memory. GroupsK
// of the warps share a product's k, GroupsM its rows and the others its columns: a warp owns 32 rows, 24 columns and 96
// products of each sum.
#pragma once

#include <bit>

#include "common/host_device.h"
#include "convnext/device.cuh"

namespace lpkernels::convnext {

constexpr float kEpsilon = 1e-6f;  // of every norm in ConvNeXt V2
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kLargestCluster = 8;  // that every GPU with clusters has
constexpr int kWarpRows = 32, kWarpColumns = 24;
constexpr int kStep = 32;  // k of two products of the tensor cores
constexpr int kSteps = 3;  // of a warp

// At the front of a block's shared memory: its counts of what the cluster sends it.
constexpr size_t kArrivalsBytes = 128;

LPKERNELS_HOST_DEVICE constexpr int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

// a / b rounded up, b a power of two up to 8: the blocks of a cluster. Divisions would be a dozen instructions each.
LPKERNELS_HOST_DEVICE constexpr int share_of(int a, int b) {
  return (a + b - 1) >> ((b > 1) + (b > 2) + (b > 4));
}

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

__device__ inline float4 shuffled(float4 v, int lanes) {
  return make_float4(__shfl_xor_sync(~0u, v.x, lanes), __shfl_xor_sync(~0u, v.y, lanes),
                     __shfl_xor_sync(~0u, v.z, lanes), __shfl_xor_sync(~0u, v.w, lanes));
}

// Sum over groups of so many lanes.
template <int Lanes>
__device__ float sum_of_lanes(float v) {
#pragma unroll
  for (int lanes = 1; lanes < Lanes; lanes *= 2) {
    v += __shfl_xor_sync(~0u, v, lanes);
  }
  return v;
}

template <int GroupsM, int GroupsK, int Held>
struct HeldProduct {
  static constexpr int kRows = GroupsM * kWarpRows;
  static constexpr int kColumns = kWarps / GroupsM / GroupsK * kWarpColumns;  // of a block
  static constexpr int kGroups = GroupsK;
  static constexpr int kColumnGroups = kColumns / kWarpColumns;
  static constexpr int kDepth = GroupsK * kSteps * kStep;  // the most k that a block holds weights of
  static constexpr int kHeld = Held;                       // steps whose weights are in registers
  static constexpr int kTiles = kWarpColumns / 8;
  static constexpr int kWeightBytes = 16 * (kSteps - kHeld) * kTiles * kThreads;
  static constexpr int kWeightSumsBytes = sizeof(float) * kColumns * kGroups;
  static constexpr int kPitch = kColumns + 8;  // floats between rows of sums: four of a warp's lie in different banks
  static constexpr size_t kStagedBytes = sizeof(float) * kGroups * kRows * kPitch;
  // The threads that add up the groups' sums: each has four columns of every kSlices-th row.
  static constexpr int kQuads = kColumns / 4;
  static constexpr int kSlices = std::bit_floor(static_cast<unsigned>(kThreads / kQuads));

  int thread;
  uint32_t weights[kHeld > 0 ? kHeld : 1][kTiles][4];
  float sums[kWarpRows / 16][kTiles][4];

  __device__ explicit HeldProduct(int thread) : thread(thread) {}

  __device__ int lane() const { return thread % 32; }
  __device__ int warp() const { return thread / 32; }
  __device__ int group() const { return warp() % GroupsK; }
  __device__ int first_row() const { return warp() / GroupsK % GroupsM * kWarpRows; }
  __device__ int column_group() const { return warp() / GroupsK / GroupsM; }
  __device__ int first_column() const { return column_group() * kWarpColumns; }
  // The warp's m-th 16 rows. Every other group of columns begins with the second: what else is to be done with rows of
  // A, they share by doing it with their first alone.
  __device__ int row(int m) const { return first_row() + 16 * (m ^ (column_group() & 1)); }
  __device__ int first_k() const { return group() * kSteps * kStep; }

  // Where a warp's 8 rows of W by 32 k lie in `shared`: vector k of row n. Whether eight are copied, two rows of four,
  // or read, one of eight rows, they lie in different banks.
  __device__ int place(int step, int tile, int n, int k) const {
    return ((step - kHeld) * kTiles + tile) * kThreads + 32 * warp() + 8 * k + (n ^ 2 * k);
  }

  // W[n .., k ..] of a matrix (outputs, depth) with rows of whole 16 bytes; zeros beyond its depth, anything beyond its
  // outputs. Those that are not held in registers are in `shared` for the block once all of its threads have waited for
  // their copies.
  __device__ void load_weights(const __half* weight, int n, int outputs, int k, int depth, uint4* shared) {
    load_held(weight, n, outputs, k, depth);
    load_shared(weight, n, outputs, k, depth, shared);
  }

  // Those in shared memory alone.
  __device__ void load_shared(const __half* weight, int n, int outputs, int k, int depth, uint4* shared) const {
    const int g = thread / 4 % 8, t = thread % 4;
    const int column = k + first_k() + 8 * t;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const __half* vectors = weight + int64_t{row_of_w(n, j, outputs)} * depth + column;
#pragma unroll
      for (int step = kHeld; step < kSteps; ++step) {
        copy_async(shared + place(step, j, g, t), vectors + step * kStep, column + step * kStep < depth);
      }
    }
  }

  // Those in registers alone.
  __device__ void load_held(const __half* weight, int n, int outputs, int k, int depth) {
    const int column = k + first_k(), t = thread % 4;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const __half* pairs = weight + int64_t{row_of_w(n, j, outputs)} * depth + column + 2 * t;
#pragma unroll
      for (int i = 0; i < 4 * kHeld; ++i) {
        weights[i / 4][j][i % 4] = load_constant(pairs + 8 * i, column + 8 * i < depth);
      }
    }
  }

  // Of a thread in a warp's j-th tile.
  __device__ int row_of_w(int n, int j, int outputs) const {
    return min(n + first_column() + 8 * j + thread / 4 % 8, outputs - 1);
  }

  // The weights of a step as the tensor cores take them.
  __device__ void load_step(int step, const uint4* shared, uint32_t (&w)[kTiles][4]) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (step < kHeld) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          w[j][i] = weights[step < kHeld ? step : 0][j][i];
        }
      } else {
        load_matrices(w[j], shared + place(step, j, lane() % 8, lane() / 8));
      }
    }
  }

  // sums = A W^T, where A has zeros beyond its depth, up to kDepth. vector(m, i): where this lane's row of the warp's
  // m-th 16 rows has 8 of its i-th 16 k, lanes below 16 the first 8. Calls also(m, i, these 16 x 16 of A).
  template <class Vector, class Also>
  __device__ void multiply(const uint4* shared, Vector&& vector, Also&& also) {
#pragma unroll
    for (auto& row : sums) {
#pragma unroll
      for (auto& tile : row) {
        tile[0] = tile[1] = tile[2] = tile[3] = 0.f;
      }
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t w[kTiles][4];
      load_step(step, shared, w);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int m = 0; m < kWarpRows / 16; ++m) {
          uint32_t rows[4];
          load_matrices(rows, vector(m, 2 * step + half));
#pragma unroll
          for (int j = 0; j < kTiles; ++j) {
            multiply_add(sums[m][j], rows, w[j][2 * half], w[j][2 * half + 1]);
          }
          also(m, 2 * step + half, rows);
        }
      }
    }
  }

  // The sums of this block's groups as staged[group][row][column], from where any thread may add them up after a
  // barrier.
  __device__ void stage(float* staged) {
    float* own = staged + (group() * kRows + lane() / 4) * kPitch + first_column() + lane() % 4 * 2;
#pragma unroll
    for (int m = 0; m < kWarpRows / 16; ++m) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        auto* place = reinterpret_cast<float2*>(own + row(m) * kPitch + 8 * j);
        place[0] = make_float2(sums[m][j][0], sums[m][j][1]);
        place[4 * kPitch] = make_float2(sums[m][j][2], sums[m][j][3]);
      }
    }
  }

  // Sum over the groups of what they staged, for four columns.
  __device__ static float4 staged_sum(const float* staged, int row, int column) {
    const float* own = staged + row * kPitch + column;
    float4 sum = *reinterpret_cast<const float4*>(own);
#pragma unroll
    for (int group = 1; group < kGroups; ++group) {
      sum = sum + *reinterpret_cast<const float4*>(own + group * kRows * kPitch);
    }
    return sum;
  }
};

}  // namespace lpkernels::convnext
