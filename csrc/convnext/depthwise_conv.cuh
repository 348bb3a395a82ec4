// The depthwise 7x7 convolution of depthwise_linear on the tensor cores: a tile's pixels with 3 more on each side come
// to shared memory, chunk by chunk of 48 channels, and a warp convolves a band of 4 x 8 pixels for eight channels.
//
// A product has 16 pixels, two rows of the band, two taps below each other times eight channels as its k, and the taps
// as a diagonal matrix for each: seven eighths of it are zeros, and yet it takes a seventh of the instructions. Rows 0
// and 2 with the taps 2j, 2j + 1 and rows 1 and 3 with the taps 2j - 1, 2j see the same pixels, so that of the ten rows
// around a band 4 loads feed 8 products for each of the seven columns of taps. The taps are rounded to half precision.
#pragma once

#include "convnext/product.cuh"

namespace lpkernels::convnext {

// Where a block's shared memory has what; in bytes. From the host, for it depends on the sizes.
struct DepthwiseOffsets {
  int a, bias, weight_sums, weight_totals, statistics, norms, targets, bytes;
  bool apart;  // a does not overlap the halos
};

struct DepthwiseLinear {
  const __half* x;
  const float *taps, *taps_bias;
  const __half* weight;
  const float* bias;
  __half* h;
  float* squares;
  int height, width, channels, outputs;
  int tiles = 1;    // of an image
  int cluster = 1;  // a power of two, at most 8 and at most the chunks of the channels; divides the blocks of a tile
  DepthwiseOffsets at{};
};

constexpr int kTaps = 7;
constexpr int kPatchW = 8;
constexpr int kHaloW = kPatchW + kTaps - 1;
constexpr int kBand = 4;    // rows of pixels that a warp convolves, for eight channels
constexpr int kChunk = 48;  // channels
constexpr int kVectors = kChunk / 8;

// The halo of a tile, of so many vectors of eight channels.
template <int PatchH, int Vectors>
struct HaloShape {
  static constexpr int kRows = PatchH + kTaps - 1;
  // Elements between pixels: an odd multiple of 16 bytes, so that eight of them lie in different banks.
  static constexpr int kPixelPitch = 8 * (Vectors + 1);
  static constexpr int kPitch = kHaloW * kPixelPitch;
  static constexpr int kSize = kRows * kPitch;
  static_assert(Vectors % 2 == 0);
};

// What so many vectors of channels are convolved with: seven taps and a zero by [column of taps][channel].
template <int Vectors>
struct PackedTaps {
  uint4 columns[kTaps * 8 * Vectors];
  alignas(16) float bias[8 * Vectors];
};

// A column of a channel's taps, for each of the first threads: loaded and stored apart, so that other loads come
// between.
template <int Channels>
struct Taps {
  static constexpr int kThreadsOfAll = kTaps * Channels;

  float column[kTaps];
  bool takes_part;

  // Of the channels from `first` on, of `channels`.
  __device__ void load(const float* taps, const float* taps_bias, int first, int channels, int thread,
                       PackedTaps<Channels / 8>& packed) {
    const int c = first + thread % Channels;
    takes_part = thread < kThreadsOfAll;
    const bool exists = takes_part && c < channels;
    const float* from = taps + thread / Channels * channels + c;
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      column[i] = load_constant(from + i * kTaps * channels, exists);
    }
    if (thread < Channels / 4) {
      const int quad = 4 * thread;
      copy_async(packed.bias + quad, taps_bias + first + quad, first + quad < channels);
    }
  }

  __device__ void store(PackedTaps<Channels / 8>& taps, int thread) const {
    if (takes_part) {
      taps.columns[thread] = make_uint4(halves(column[0], column[1]), halves(column[2], column[3]),
                                        halves(column[4], column[5]), halves(column[6], 0.f));
    }
  }
};

// A thread's part of a chunk of the tile's pixels and of those 3 around it: eight channels of a pixel in every kRows-th
// row. What does not depend on the chunk is known before the wait for the kernel ahead.
template <int PatchH>
struct Halo {
  static constexpr int kRows = kThreads / (kHaloW * kVectors);  // that the block's threads load at once

  const __half* from;  // of a chunk at channel 0
  int channel, first, column, y, row_of_x;
  bool exists;

  __device__ Halo(const DepthwiseLinear& p, int image, int top, int left, int thread) {
    const int pixel = thread / kVectors;
    channel = thread % kVectors * 8;
    first = pixel / kHaloW;
    column = pixel % kHaloW;
    const int x = left - kTaps / 2 + column;
    y = top - kTaps / 2 + first;
    from = p.x + ((int64_t{image} * p.height + y) * p.width + x) * p.channels + channel;
    row_of_x = p.width * p.channels;
    exists = x >= 0 && x < p.width;
  }

  // Asks for halo[row][column][channel], zeros outside the image.
  __device__ void load(const DepthwiseLinear& p, int chunk, __half* halo) const {
    const int c = chunk * kChunk;
    const bool channels_exist = exists && c + channel < p.channels;
    using Shape = HaloShape<PatchH, kVectors>;
    __half* to = halo + first * Shape::kPitch + column * Shape::kPixelPitch + channel;
#pragma unroll
    for (int i = 0; i < ceil_div(PatchH + kTaps - 1, kRows); ++i) {
      const int row = i * kRows;
      if (first < kRows && first + row < PatchH + kTaps - 1) {
        const bool inside = channels_exist && static_cast<unsigned>(y + row) < static_cast<unsigned>(p.height);
        copy_async(to + row * Shape::kPitch, from + c + int64_t{row} * row_of_x, inside);
      }
    }
  }
};

// v[vector of 8 channels][pixel], rounded: store(place, v of two channels), before any of which a warp calls
// before_store(). By the block's first warps.
template <int PatchH, int Vectors, int Warps, class Before, class Store>
__device__ void convolve(int thread, const __half* halo, const PackedTaps<Vectors>& packed, Before&& before_store,
                         Store&& store) {
  using Shape = HaloShape<PatchH, Vectors>;
  constexpr int kBands = PatchH / kBand;
  const int lane = thread % 32, g = lane / 4, t = lane % 4;
  // A lane has the columns 2t and 2t + 1 of the diagonal matrix's row g. These put a tap, the lower or the upper half
  // of a word, into the half that lies on the diagonal.
  const unsigned lower = g / 2 != t ? 0x4444 : g % 2 == 0 ? 0x4410 : 0x1044;
  const unsigned upper = g / 2 != t ? 0x4444 : g % 2 == 0 ? 0x4432 : 0x3244;
#pragma unroll 1
  for (int unit = thread / 32; unit < Vectors * kBands; unit += Warps) {
    const int vector = unit % Vectors, band = unit / Vectors;
    const int row = band * kBand + lane / 8 % 2 * 2 + lane / 16;  // 0, 2, 1, 3
    const __half* pixels = halo + row * Shape::kPitch + lane % 8 * Shape::kPixelPitch + vector * 8;
    const uint4* taps = packed.columns + vector * 8 + g;
    const float2 bias = reinterpret_cast<const float2*>(packed.bias)[vector * 4 + t];
    // [rows 0 and 2 or 1 and 3]; two of each, for a product waits for the one whose sum it continues
    float sums[2][2][4] = {};
#pragma unroll
    for (auto& sum : sums[0]) {
      sum[0] = sum[2] = bias.x;
      sum[1] = sum[3] = bias.y;
    }
#pragma unroll
    for (int column = 0; column < kTaps; ++column) {
      const uint4 own = taps[column * 8 * Vectors];
      const uint32_t words[4] = {own.x, own.y, own.z, own.w};
      const auto tap = [&](int i) {
        return i < 0 || i == kTaps ? 0 : __byte_perm(words[i / 2], 0, i % 2 == 0 ? lower : upper);
      };
#pragma unroll
      for (int i = 0; i < kTaps; i += 2) {
        uint32_t rows[4];
        load_matrices(rows, pixels + i * Shape::kPitch + column * Shape::kPixelPitch);
        multiply_add(sums[i / 2 % 2][0], rows, tap(i), tap(i + 1));
        multiply_add(sums[i / 2 % 2][1], rows, tap(i - 1), tap(i));
      }
    }
    before_store();
    const int to = ((vector * PatchH + band * kBand) * kPatchW + g) * 8 + 2 * t;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto at = [&](int half) { return sums[0][i % 2][i / 2 * 2 + half] + sums[1][i % 2][i / 2 * 2 + half]; };
      store(to + i * kPatchW * 8, halves(at(0), at(1)));
    }
  }
}

}  // namespace lpkernels::convnext
