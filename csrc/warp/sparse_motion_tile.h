// Steps of the tiled sparse_motion kernel (sparse_motion.cu): tables, the walk down a column, the stores.
#pragma once

#include <type_traits>

#include "warp/sparse_motion.h"
#include "warp/words.h"

namespace lpkernels {

constexpr int kColumns = 32;  // a block's voxels along w: a warp's lanes
constexpr int kWarps = 8;     // and motions of a round
constexpr int kThreads = 32 * kWarps;
constexpr int kMotions = 3 * kWarps;  // motions a block's tables hold at a time
constexpr int kChannels = 4;          // of the compressed volume where it is tiled
constexpr int kStep = kChannels + 1;

template <class T>
constexpr int kRows = sizeof(T) == 2 ? 8 : 4;

// From one staged voxel to the next, and from one buffer to the other.
template <class T>
constexpr int kPitchWords = kWarps * kStep * sizeof(T) / 4 | 1;
template <class T>
constexpr int kBufferWords = kRows<T> * kColumns * kPitchWords<T>;

// What a motion needs of its keypoint: its rows' first neighbours, weights and Gaussians (times those along z) along y,
// z's neighbours, and x itself.
template <int R>
struct Motion {
  struct Row {
    float weight[2], driving, source;
  };
  alignas(16) Row rows[R];
  alignas(16) int first[R];
  AxisPair z;
  float x_source, x_driving;
};

template <int R>
__device__ void prepare(const SparseMotionShape& shape, const float* source, const float* driving, int d, int h, int r,
                        Motion<R>& motion) {
  const AxisMotion z = axis_motion(d, shape.depth, shape.inverse_depth, source[2], driving[2]);
  const AxisMotion y = axis_motion(h, shape.height, shape.inverse_height, source[1], driving[1]);
  motion.rows[r] = {{y.pair.weight[0], y.pair.weight[1]}, y.driving * z.driving, y.source * z.source};
  motion.first[r] = y.pair.first;
  if (r == 0) {
    motion.z = z.pair;
    motion.x_source = source[0];
    motion.x_driving = driving[0];
  }
}

// The four channels of a row of the volume blended over (z, x): sum of corner[2 dz + dx] * value.
template <class T>
__device__ void blend(const T* at, int plane, const float corner[4], float sum[kChannels]) {
  using Raw = std::conditional_t<sizeof(T) == 2, uint2, uint4>;
  Raw raw[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    raw[i] = __ldg(reinterpret_cast<const Raw*>(at + (i >> 1) * plane) + (i & 1));
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    sum[c] = 0.f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[c] += corner[i] * static_cast<float>(reinterpret_cast<const T*>(&raw[i])[c]);
    }
  }
}

// Heatmap and channels of one motion at one voxel; a word of halves holds two of them, from the second on if `odd`.
template <class T>
__device__ void put(T* at, bool odd, const float values[kStep]) {
  if constexpr (sizeof(T) == 2) {
    float shifted[kChannels];
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      shifted[i] = odd ? values[i + 1] : values[i];
    }
    uint32_t* words = reinterpret_cast<uint32_t*>(at + odd);
    words[0] = word_of<T>(shifted);
    words[1] = word_of<T>(shifted + 2);
    at[odd ? 0 : kChannels] = static_cast<T>(odd ? values[0] : values[kChannels]);
  } else {
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      at[i] = static_cast<T>(values[i]);
    }
  }
}

// One keypoint's motion of a lane's column, kRows staged voxels from `to`.
template <class T, int R>
__device__ void move_column(const SparseMotionShape& shape, const Motion<R>& motion, int w, const T* volume, bool odd,
                            T* to) {
  const AxisMotion x = axis_motion(w, shape.width, shape.inverse_width, motion.x_source, motion.x_driving);
  const int line = shape.width * kChannels, plane = shape.height * line;
  const T* column = volume + motion.z.first * plane + x.pair.first * kChannels;
  float corner[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    corner[i] = motion.z.weight[i >> 1] * x.pair.weight[i & 1];
  }
  const auto put_row = [&](int r, const float* lower, const float* upper) {
    const typename Motion<R>::Row row = motion.rows[r];
    float values[kStep];
    values[0] = x.driving * row.driving - x.source * row.source;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      values[c + 1] = row.weight[0] * lower[c] + row.weight[1] * upper[c];
    }
    put(to + r * (kColumns * kPitchWords<T> * 4 / static_cast<int>(sizeof(T))), odd, values);
  };
  bool regular = true;  // the same for all lanes; false where a row is left out, once in a height, and at the edges
#pragma unroll
  for (int r = 1; r < R; ++r) {
    regular = regular && motion.first[r] == motion.first[0] + r;
  }
  if (regular) {
    const T* from = column + motion.first[0] * line;
    float lines[R + 1][kChannels];
    blend(from, plane, corner, lines[0]);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      blend(from + (r + 1) * line, plane, corner, lines[r + 1]);
      put_row(r, lines[r], lines[r + 1]);
    }
  } else {
    float lower[kChannels], upper[kChannels];
    int held = -1;  // the source row in `lower`
#pragma unroll 1
    for (int r = 0; r < R; ++r) {
      const int first = motion.first[r];
      if (held != first) {
        blend(column + first * line, plane, corner, lower);
      }
      blend(column + (first + 1) * line, plane, corner, upper);
      put_row(r, lower, upper);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        lower[c] = upper[c];
      }
      held = first + 1;
    }
  }
}

// A staged round's channels to the output, vector after vector of voxel after voxel.
template <class T>
__device__ void copy_out(const SparseMotionShape& shape, const uint32_t* buffer, bool wide, int channels, int height,
                         int width, T* out) {
  constexpr int kVector = 16 / sizeof(T), kVectors = kWarps * kStep / kVector;
  static_assert(kVectors * kVector == kWarps * kStep);
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
#pragma unroll
  for (int round = 0; round < kRows<T> * kColumns * kVectors / kThreads; ++round) {
    const int i = round * kThreads + threadIdx.x, p = i / kVectors, j = i % kVectors;
    const int h = p / kColumns, w = p % kColumns;
    if (h < height && w < width && j * kVector < channels) {
      const uint32_t* from = buffer + p * kPitchWords<T> + 4 * j;
      const uint32_t words[4] = {from[0], from[1], from[2], from[3]};
      store_words(out + (h * shape.width + w) * shape.out_pixel + j * kVector, words);
    }
  }
}

}  // namespace lpkernels
