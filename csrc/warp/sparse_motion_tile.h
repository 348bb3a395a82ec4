// Steps of the tiled sparse_motion kernel (sparse_motion.cu): the walk down a column, the stores.
#pragma once

#include <type_traits>

#include "warp/sparse_motion.h"
#include "warp/words.h"

namespace lpkernels {

constexpr int kColumns = 32;  // a block's voxels along w: a warp's lanes
constexpr int kWarps = 24;    // and motions of a round
constexpr int kThreads = 32 * kWarps;
constexpr int kChannels = 4;  // of the compressed volume where it is tiled
constexpr int kStep = kChannels + 1;
constexpr int kRound = kWarps * kStep;  // channels
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
constexpr int kRows = sizeof(T) == 2 ? 8 : 4;

// From one staged voxel to the next.
template <class T>
constexpr int kPitchWords = kRound * sizeof(T) / 4 | 1;

// A warp's own rows, then the staged voxels: at most 64 KB, all that sm_75 has.
template <class T>
constexpr int kSharedBytes =
    kRows<T> * (kWarps * static_cast<int>(sizeof(float4)) + 4 * kColumns * static_cast<int>(kPitchWords<T>));
static_assert(kSharedBytes<uint16_t> <= 64 << 10 && kSharedBytes<float> <= 64 << 10);

// Weights of the four neighbours along z and x of a sample, number 2 dz + dx. Halves are blended as pairs of halves,
// two channels an instruction: three of their roundings stay below the output's own. All else as floats.
template <class T>
struct Blend {
  static constexpr bool kPairs = std::is_same_v<T, torch::headeronly::Half>;
  std::conditional_t<kPairs, __half2, float> weight[4];

  __device__ Blend(const AxisPair& z, const AxisPair& x) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float product = z.weight[i >> 1] * x.weight[i & 1];
      if constexpr (kPairs) {
        weight[i] = __float2half2_rn(product);
      } else {
        weight[i] = product;
      }
    }
  }

  // The four channels of a row of the volume, from its lower neighbours on.
  __device__ void row(const T* at, int plane, float (&sum)[kChannels]) const {
    using Raw = std::conditional_t<sizeof(T) == 2, uint2, uint4>;
    Raw raw[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      raw[i] = __ldg(reinterpret_cast<const Raw*>(at + (i >> 1) * plane) + (i & 1));
    }
    if constexpr (kPairs) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        __half2 both = __hmul2(weight[0], reinterpret_cast<const __half2*>(&raw[0])[pair]);
#pragma unroll
        for (int i = 1; i < 4; ++i) {
          both = __hfma2(weight[i], reinterpret_cast<const __half2*>(&raw[i])[pair], both);
        }
        const float2 wide = __half22float2(both);
        sum[2 * pair] = wide.x;
        sum[2 * pair + 1] = wide.y;
      }
    } else {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        sum[c] = 0.f;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[c] += weight[i] * static_cast<float>(reinterpret_cast<const T*>(&raw[i])[c]);
        }
      }
    }
  }
};

// Heatmap and channels of one motion at one voxel, which begin in the middle of a word of halves if `odd`.
template <class T>
__device__ void put(T* at, bool odd, float heatmap, const float (&values)[kChannels]) {
  if constexpr (sizeof(T) == 2) {
    const float twice[2] = {heatmap, heatmap};
    const uint32_t first = word_of<T>(twice), low = word_of<T>(values), high = word_of<T>(values + 2);
    uint32_t* words = reinterpret_cast<uint32_t*>(at + odd);
    words[0] = __byte_perm(first, low, odd ? 0x7654 : 0x5410);
    words[1] = __byte_perm(low, high, odd ? 0x7654 : 0x5432);
    reinterpret_cast<uint16_t*>(at)[odd ? 0 : kChannels] =
        static_cast<uint16_t>(__byte_perm(first, high, odd ? 0x10 : 0x76));
  } else {
    at[0] = heatmap;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      at[1 + c] = values[c];
    }
  }
}

// What a motion needs along y in a row: weights, and Gaussians times those along z.
struct MotionRow {
  float weight[2], driving, source;
};

// One keypoint's motion of a warp's columns, kRows staged voxels from `to` for each lane. `rows`: the warp's own.
template <class T>
__device__ void move_columns(const SparseMotionShape& shape, const float* source, const float* driving, int d, int h,
                             int w, const T* volume, bool odd, MotionRow* rows, T* to) {
  constexpr int R = kRows<T>, kToNext = kColumns * kPitchWords<T> * 4 / sizeof(T);
  const int lane = threadIdx.x % 32, last = 31;
  const bool has_row = lane < R;
  // Each of the first lanes works out a row's place along y, the others the one along z.
  const AxisMotion own = axis_motion(has_row ? h + lane : d, has_row ? shape.height : shape.depth,
                                     has_row ? shape.inverse_height : shape.inverse_depth,
                                     has_row ? source[1] : source[2], has_row ? driving[1] : driving[2]);
  const AxisMotion x = axis_motion(w, shape.width, shape.inverse_width, source[0], driving[0]);
  const float z_driving = __shfl_sync(kAllLanes, own.driving, last);
  const float z_source = __shfl_sync(kAllLanes, own.source, last);
  const AxisPair z = {
      __shfl_sync(kAllLanes, own.pair.first, last),
      {__shfl_sync(kAllLanes, own.pair.weight[0], last), __shfl_sync(kAllLanes, own.pair.weight[1], last)}};
  if (has_row) {
    *reinterpret_cast<float4*>(rows + lane) =
        make_float4(own.pair.weight[0], own.pair.weight[1], own.driving * z_driving, own.source * z_source);
  }
  __syncwarp();
  const int first = __shfl_sync(kAllLanes, own.pair.first, 0);
  // Neighbouring rows as a rule have neighbouring sources; one is left out once in a height, and at the edges.
  const bool regular = __all_sync(kAllLanes, !has_row || own.pair.first == first + lane);

  const int line = shape.width * kChannels, plane = shape.height * line;
  const T* column = volume + (z.first * plane + x.pair.first * kChannels);
  const Blend<T> blend(z, x.pair);
  const auto put_row = [&](int r, const float (&lower)[kChannels], const float (&upper)[kChannels]) {
    const float4 row = reinterpret_cast<const float4*>(rows)[r];
    float values[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      values[c] = row.x * lower[c] + row.y * upper[c];
    }
    put(to + r * kToNext, odd, x.driving * row.z - x.source * row.w, values);
  };
  if (regular) {
    const T* from = column + first * line;
    float lines[R + 1][kChannels];
    blend.row(from, plane, lines[0]);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      from += line;
      asm("" : "+l"(from));  // one address at a time: the compiler would keep those of all rows
      blend.row(from, plane, lines[r + 1]);
      put_row(r, lines[r], lines[r + 1]);
    }
  } else {
#pragma unroll 1
    for (int r = 0; r < R; ++r) {
      const T* from = column + __shfl_sync(kAllLanes, own.pair.first, r) * line;
      float lower[kChannels], upper[kChannels];
      blend.row(from, plane, lower);
      blend.row(from + line, plane, upper);
      put_row(r, lower, upper);
    }
  }
}

// The still background at a warp's columns, kRows staged voxels from `to`; its heatmap is zero. `from`: the block's
// first voxel.
template <class T>
__device__ void put_background(const SparseMotionShape& shape, const T* from, int height, int width, T* to) {
  constexpr int R = kRows<T>, kToNext = kColumns * kPitchWords<T> * 4 / sizeof(T), kOnce = 4;
  const int column = min(static_cast<int>(threadIdx.x % 32), width - 1);
#pragma unroll 1
  for (int first = 0; first < R; first += kOnce) {
    T values[kOnce][kChannels];
#pragma unroll
    for (int r = 0; r < kOnce; ++r) {  // all under way at once
      const int voxel = min(first + r, height - 1) * shape.width + column;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        values[r][c] = from[voxel * shape.background_pixel + c];
      }
    }
#pragma unroll
    for (int r = 0; r < kOnce; ++r) {
      T* at = to + (first + r) * kToNext;
      at[0] = static_cast<T>(0.f);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        at[1 + c] = values[r][c];
      }
    }
  }
}

// A staged round's channels to the output: some warps for each row, the lanes of half a warp (a warp, for floats) the
// vectors of a voxel.
template <class T>
__device__ void copy_out(const SparseMotionShape& shape, const uint32_t* buffer, bool wide, int channels, int height,
                         int width, T* out) {
  constexpr int kVector = 16 / sizeof(T), kVectors = kRound / kVector, kLanes = kVectors <= 16 ? 16 : 32;
  constexpr int kWarpsOfRow = kWarps / kRows<T>, kAtOnce = kWarpsOfRow * (32 / kLanes);  // voxels of a row
  static_assert(kVectors * kVector == kRound && kVectors <= 32 && kWarpsOfRow * kRows<T> == kWarps);
  if (!wide) {
#pragma unroll 1
    for (int p = threadIdx.x; p < height * kColumns; p += kThreads) {
      T* to = out + (p / kColumns * shape.width + p % kColumns) * shape.out_pixel;
      for (int c = 0; c < channels && p % kColumns < width; ++c) {
        to[c] = reinterpret_cast<const T*>(buffer + p * kPitchWords<T>)[c];
      }
    }
    return;
  }
  const int warp = threadIdx.x / 32, h = warp / kWarpsOfRow, vector = threadIdx.x % kLanes;
  const int first = warp % kWarpsOfRow * (32 / kLanes) + threadIdx.x % 32 / kLanes;
  if (h >= height || vector * kVector >= channels) {
    return;
  }
  const uint32_t* from = buffer + (h * kColumns + first) * kPitchWords<T> + 4 * vector;
  T* to = out + (h * shape.width + first) * shape.out_pixel + vector * kVector;
#pragma unroll
  for (int w = 0; w < kColumns; w += kAtOnce) {
    if (first + w < width) {
      const uint32_t* words = from + w * kPitchWords<T>;
      const uint32_t held[4] = {words[0], words[1], words[2], words[3]};
      store_words(to, held);
    }
    to += kAtOnce * shape.out_pixel;
  }
}

}  // namespace lpkernels
