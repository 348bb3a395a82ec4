// The depthwise 7x7 convolution of depthwise_linear: a tile's pixels with 3 more on each side come to shared memory,
// chunk by chunk of 48 channels, and a thread convolves runs of four pixels for two channels, in float registers: of
// each row around them it reads 10 pixels and 7 taps for 28 products a channel. Where that keeps too few warps busy,
// two threads share a run, the rows of taps divided between them.
#pragma once

#include "convnext/product.cuh"

namespace lpkernels::convnext {

struct DepthwiseLinear {
  const __half* x;
  const float *taps, *taps_bias;
  const __half* weight;
  const float* bias;
  __half* h;
  float* squares;
  int height, width, channels, outputs;
  int cluster;  // a power of two, at most 8 and at most the chunks of the channels; divides the grid's x
};

constexpr int kTaps = 7;
constexpr int kPatchW = 8;
constexpr int kHaloW = kPatchW + kTaps - 1;
constexpr int kRun = 4;     // neighbouring pixels that a thread convolves at once, for two channels
constexpr int kChunk = 48;  // channels
constexpr int kPairs = kChunk / 2;
constexpr int kVectors = kChunk / 8;
// Elements between rows of the halo: runs below each other, which a warp reads at once, begin 24 banks apart.
constexpr int kHaloPitch = kHaloW * kChunk + 16;

// Where a block's shared memory has what, the same in every block of a cluster. At 0 the halos and taps of two chunks,
// in their place later the normalised pixels a, which all blocks of the cluster send when all have convolved, and in
// theirs and the weights' the sums.
template <class Product, int PatchH, int Parts>
struct DepthwiseMemory {
  static constexpr int kPixels = PatchH * kPatchW;
  static constexpr size_t kHaloBytes = sizeof(__half) * (PatchH + kTaps - 1) * kHaloPitch;
  static constexpr size_t kTapBytes = sizeof(float) * (kTaps * kTaps + 1) * kChunk;  // the last row is the bias
  static constexpr size_t kSlotBytes = kHaloBytes + kTapBytes;

  int most;  // chunks of a block
  int pitch_a, pitch_v;
  size_t weights, convolved, statistics, arrivals, bias, bytes;

  LPKERNELS_HOST_DEVICE DepthwiseMemory(int channels, int cluster) {
    most = share_of(ceil_div(channels, kChunk), cluster);
    pitch_a = row_pitch(padded_depth(channels));
    pitch_v = most * kChunk;
    const size_t slots = (most < 2 ? most : 2) * kSlotBytes, a = sizeof(__half) * kPixels * pitch_a;
    weights = a > slots ? a : slots;
    const size_t end = weights + Product::kWeightBytes;
    convolved = end > Product::kStagedBytes ? end : Product::kStagedBytes;  // v, then squares by slice
    statistics = convolved + Parts * sizeof(float) * kPixels * pitch_v;
    arrivals = statistics + sizeof(float2) * cluster * kPixels;  // of statistics, and of a
    bias = arrivals + 2 * sizeof(uint64_t);
    bytes = bias + sizeof(float) * Product::kColumns;
    static_assert(sizeof(float4) * Product::kQuads * Product::kSlices <= sizeof(float) * kPixels * kChunk);
  }
};

// Asks for a chunk's taps and, as their last row, its bias: taps[50][48].
__device__ inline void load_taps(const DepthwiseLinear& p, int chunk, float* taps) {
  constexpr int kQuads = kChunk / 4, kRows = kThreads / kQuads;
  const int first = static_cast<int>(threadIdx.x / kQuads), quad = static_cast<int>(threadIdx.x % kQuads);
  const int c = chunk * kChunk + quad * 4;
  const bool exists = c < p.channels;
#pragma unroll
  for (int i = 0; i < ceil_div(kTaps * kTaps + 1, kRows); ++i) {
    const int tap = first + i * kRows;
    const float* row = tap < kTaps * kTaps ? p.taps + tap * p.channels : p.taps_bias;
    if (first < kRows && tap <= kTaps * kTaps) {
      copy_async(taps + tap * kChunk + quad * 4, row + c, exists);
    }
  }
}

// A thread's part of a chunk of the tile's pixels and of those 3 around it: eight channels of a pixel in every kRows-th
// row. What does not depend on the chunk is known before the wait for the kernel ahead.
template <int PatchH>
struct Halo {
  static constexpr int kRows = kThreads / (kHaloW * kVectors);  // that the block's threads load at once

  const __half* from;  // of a chunk at channel 0
  int channel, first, y, row_of_x;
  bool exists;

  __device__ Halo(const DepthwiseLinear& p, int image, int top, int left) {
    const int pixel = static_cast<int>(threadIdx.x / kVectors), x = left - kTaps / 2 + pixel % kHaloW;
    channel = static_cast<int>(threadIdx.x % kVectors) * 8;
    first = pixel / kHaloW;
    y = top - kTaps / 2 + first;
    from = p.x + ((int64_t{image} * p.height + y) * p.width + x) * p.channels + channel;
    row_of_x = p.width * p.channels;
    exists = x >= 0 && x < p.width;
  }

  // Asks for halo[row][column][48], zeros outside the image.
  __device__ void load(const DepthwiseLinear& p, int chunk, __half* halo) const {
    const int c = chunk * kChunk;
    const bool channels_exist = exists && c + channel < p.channels;
    __half* to = halo + first * kHaloPitch + static_cast<int>(threadIdx.x / kVectors % kHaloW) * kChunk + channel;
#pragma unroll
    for (int i = 0; i < ceil_div(PatchH + kTaps - 1, kRows); ++i) {
      const int row = i * kRows;
      if (first < kRows && first + row < PatchH + kTaps - 1) {
        const bool inside = channels_exist && static_cast<unsigned>(y + row) < static_cast<unsigned>(p.height);
        copy_async(to + row * kHaloPitch, from + c + int64_t{row} * row_of_x, inside);
      }
    }
  }
};

// v[part][pixel][channel], rows of `pitch`, of so many chunks whose halos and taps lie `slot` bytes apart. A part has
// some rows of the taps.
template <int PatchH, int Parts>
__device__ void convolve(int chunks, const unsigned char* halos, const unsigned char* all_taps, size_t slot, float* v,
                         int pitch) {
  constexpr unsigned kRuns = PatchH * kPatchW / kRun, kRows = ceil_div(kTaps, Parts);
#pragma unroll 1
  for (unsigned item = threadIdx.x; item < chunks * kPairs * kRuns * Parts; item += kThreads) {
    const int pair = item % kPairs, run = item / kPairs % kRuns, part = item / (kPairs * kRuns) % Parts;
    const int chunk = item / (kPairs * kRuns * Parts), top = run % PatchH, left = run / PatchH * kRun;
    const int first = part * kRows, end = min(first + static_cast<int>(kRows), kTaps);
    const auto* pixels = reinterpret_cast<const __half2*>(halos + chunk * slot) +
                         ((top + first) * kHaloPitch + left * kChunk) / 2 + pair;
    const auto* taps = reinterpret_cast<const float2*>(all_taps + chunk * slot) + pair;
    const float2 start = part == 0 ? taps[kTaps * kTaps * kPairs] : make_float2(0.f, 0.f);
    taps += first * kTaps * kPairs;
    float2 sums[kRun];
#pragma unroll
    for (float2& sum : sums) {
      sum = start;
    }
#pragma unroll 1  // straight through, the instructions would have to be fetched seven times as often as they are used
    for (int row = first; row < end; ++row, pixels += kHaloPitch / 2, taps += kTaps * kPairs) {
      float2 w[kTaps];
#pragma unroll
      for (int i = 0; i < kTaps; ++i) {
        w[i] = taps[i * kPairs];
      }
#pragma unroll
      for (int column = 0; column < kRun + kTaps - 1; ++column) {
        const float2 value = __half22float2(pixels[column * kPairs]);
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          if (column >= i && column < i + kTaps) {
            sums[i].x = fmaf(value.x, w[column - i].x, sums[i].x);
            sums[i].y = fmaf(value.y, w[column - i].y, sums[i].y);
          }
        }
      }
    }
    float* to = v + ((part * PatchH + top) * kPatchW + left) * pitch + chunk * kChunk + 2 * pair;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      *reinterpret_cast<float2*>(to + i * pitch) = sums[i];
    }
  }
}

}  // namespace lpkernels::convnext
