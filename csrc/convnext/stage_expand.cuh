// The first half of a ConvNeXt V2 block within convnext_stage:
//
//   v = conv7x7(x, taps, groups = C) + taps_bias,  h = gelu((v - mean_C v) / sqrt(var_C v + 1e-6) W^T + b)
//   squares[tile, n] = sum over the tile's pixels of h^2
//
// A thread block owns a tile of PatchH x 8 pixels and kColumns of the N outputs. Those with the same tile share its
// convolution: each has some vectors of eight channels, and hands v, rounded to half precision, to all of them by mail.
// The norm is applied to the product's sums, with the sums of W's rows (pixel_norm.cuh says how).
//
// A chain of waits. Clocks of the third published stage, by stamps: x 1,700, of which 700 are the L2's and as many what
// the slowest block is late; convolution 1,300, code that is fetched as it is run; v 2,200, 48 KB out of the L2;
// writing it 450, product 1,250, norm, GELU, squares 1,600; in the first stage 3,200, bound by instructions.
#pragma once

#include "convnext/depthwise_conv.cuh"
#include "convnext/pixel_norm.cuh"
#include "convnext/polynomial_gelu.h"
#include "convnext/stage_parameters.cuh"

namespace lpkernels::convnext {

// Vectors: of eight channels that a thread block convolves at once.
template <int PatchH, int Vectors, class P>
struct StageExpand {
  using Product = P;
  using Shape = HaloShape<PatchH, Vectors>;
  static constexpr int kPatchH = PatchH, kPixels = PatchH * kPatchW;
  static constexpr int kConvolved = 8 * Vectors;  // channels at once
  static_assert(Product::kRows == kPixels && Product::kColumns % Product::kTile == 0);

  // Where few warps multiply, all take a part of the rows of their sums; else each its own.
  static constexpr int kParts = kThreads / Product::kMultiplying;
  static constexpr int kRows = PatchH / kParts;  // of the patch, of a thread
  // As many as a block's threads would have columns, some of whom have none.
  static constexpr int kColumns = kParts > 1 ? Product::kColumns : kThreads / 2;
  using Staged = float4[kParts > 1 ? PatchH : 1][Product::kMultiplying];

  // What this half has alone; a shares its place with the other half's.
  struct Memory {
    PackedTaps<Vectors> taps;
    alignas(16) float bias[kColumns], weight_totals[kColumns];
    alignas(16) float2 norms[kPixels];
    union {
      float2 pixel_sums[kThreads];                              // [part of the channels][pixel]
      alignas(128) float raw_taps[kTaps * kTaps * kConvolved];  // of the next block of the network, in between
    };
    alignas(16) __half ones[8 * Product::kStep];
    float squares[kParts][Product::kColumns];
  };
  static constexpr size_t kABytes = sizeof(__half) * kPixels * Product::kDepth;

  int image, tile, top, left, first_n;
  struct {
    int first, count;  // vectors of eight channels that it convolves
  } share;

  __device__ StageExpand(const ConvNextStage& p, int block) {
    const int tile_of_all = p.expand_columns.quotient(block), column = block - tile_of_all * p.expand_columns.value;
    image = p.expand_tiles.quotient(tile_of_all);
    tile = tile_of_all - image * p.tiles;
    const int row = p.expand_tiles_w.quotient(tile), most = p.vectors_of_block;
    top = row * PatchH;
    left = (tile - row * p.expand_tiles_w.value) * kPatchW;
    first_n = column * Product::kColumns;
    share.first = min(column * most, p.channels / 8);
    share.count = min(most, p.channels / 8 - share.first);
  }

  // Once, before anything else.
  __device__ static void begin(Memory& memory, int thread) {
    if (thread < 8 * Product::kStep / 2) {
      reinterpret_cast<uint32_t*>(memory.ones)[thread] = kOnes;
    }
  }

  // Asks for what a block of the network brings beside its weights, taps and biases; bytes of it. One thread does.
  __device__ int ask(const ConvNextStage& p, int block, Memory& memory, uint64_t* arrival) const {
    const int channel = 8 * share.first, channels = min(p.channels - channel, kConvolved);
    const int outputs = min(p.wide - first_n, Product::kColumns);
    copy_bulk(memory.bias, p.wide_bias + int64_t{block} * p.wide + first_n, kFloat * outputs, arrival);
    if (channels == 0) {
      return kFloat * outputs;
    }
    copy_bulk(memory.taps.bias, p.taps_bias + int64_t{block} * p.channels + channel, kFloat * channels, arrival);
    load_box(memory.raw_taps, p.taps_boxes, 2 * channel, 0, block, arrival);
    return kFloat * (outputs + channels) + static_cast<int>(sizeof(memory.raw_taps));
  }
  // Puts taps that have arrived where the convolution has them, before the block meets; the last warpgroup does.
  __device__ static void pack_taps(int thread, Memory& memory) {
    constexpr int kRow = kTaps * kConvolved;
#pragma unroll 1
    for (int i = thread; i < kRow; i += kWarpgroup) {
      const float* own = memory.raw_taps + i;  // [row of taps][column, channel]
      memory.taps.columns[i] = make_uint4(halves(own[0], own[kRow]), halves(own[2 * kRow], own[3 * kRow]),
                                          halves(own[4 * kRow], own[5 * kRow]), halves(own[6 * kRow], 0.f));
    }
  }

  // v of the block's own channels, into the mail, by the first threads. before_store(): what a warp waits for then.
  template <class Before>
  __device__ void convolve(const ConvNextStage& p, int block, int thread, Memory& memory, __half* halo,
                           Before&& before_store) const {
    __half* mail = p.mail.at<__half>(block, p.mail.v) + (image * p.tiles + tile) * p.channels * kPixels;
#pragma unroll 1
    for (int pass = 0; pass < share.count; pass += Vectors) {
      if (pass > 0) {
        meet<1, kConvolving>();
        Taps<kConvolved> taps;
        taps.load(p.taps + int64_t{block} * kTaps * kTaps * p.channels, p.taps_bias + int64_t{block} * p.channels,
                  8 * (share.first + pass), p.channels, thread, memory.taps);
        taps.store(memory.taps, thread);
        commit_copies();
        wait_for_copies<0>();
      }
      load_halo(p, block, pass, thread, halo);
      meet<1, kConvolving>();
      __half* v = mail + (share.first + pass) * 8 * kPixels;
      const int end = (share.count - pass) * 8 * kPixels;
      const auto store = [&](int at, uint32_t pair) {
        if (at < end) {
          store_words(v + at, pair);
        }
      };
      convnext::convolve<PatchH, Vectors, kConvolving / 32>(thread, halo, memory.taps, before_store, store);
    }
  }

  // The sums of the rows of W, by the last warpgroup.
  __device__ static void add_up_weights(const uint4* weights, int thread, Memory& memory) {
    const Operand ones = operand_of_vectors(memory.ones, 8);
    const Product own(thread % kWarpgroup);
#pragma unroll 1
    for (int i = 0; i < Product::kColumns / Product::kTile; ++i) {
      float sums[4] = {};
      Product::template multiply<false>(weights, i, sums, [&](int) { return ones; });
      if (thread % 4 == 0) {
        float* totals = memory.weight_totals + i * Product::kTile + own.column();
        totals[0] = sums[0];
        totals[8] = sums[2];
      }
    }
  }

  // h and squares, into the mail. a: v as [vector][pixel]. while_multiplying(): called then.
  template <class While, class Wait>
  __device__ void run(const ConvNextStage& p, int block, int thread, Memory& memory, Staged& staged, __half* a,
                      const uint4* weights, While&& while_multiplying, Wait&& wait_for_weights) const {
    memory.pixel_sums[thread] = receive_v(p, block, thread, a);
    publish_to_copies();  // and to the tensor cores
    __syncthreads();
    Product product(thread);
    if (product.multiplies()) {
      wait_for_weights();
      const Operand vectors = operand_of_vectors(a, kPixels);
      Product::template multiply<false>(weights, product.tile(), product.sums,
                                        [&](int i) { return vectors.at(i * (Product::kStep / 8) * kPixels); });
      if constexpr (kParts > 1) {
#pragma unroll
        for (int row = 0; row < PatchH; ++row) {
          const float* sums = product.sums + 4 * row;
          staged[row][thread] = make_float4(sums[0], sums[1], sums[2], sums[3]);
        }
      }
    }
    while_multiplying();
    if (const int pixel = kThreads - 1 - thread; pixel < kPixels) {
      memory.norms[pixel] = norm_of(memory.pixel_sums, pixel, p.channels);
    }
    const int of = thread % Product::kMultiplying, part = thread / Product::kMultiplying;
    const Columns columns(memory, of);
    __syncthreads();
    if constexpr (kParts > 1) {
      float sums[4 * kRows];
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        *reinterpret_cast<float4*>(sums + 4 * row) = staged[part * kRows + row][of];
      }
      finish(p, block, of, part, sums, columns, memory);
    } else if (product.multiplies()) {
      finish(p, block, of, 0, product.sums, columns, memory);
    }
  }

 private:
  // The two outputs whose sums a thread of the product has.
  struct Columns {
    int first;  // the other is 8 further
    float biases[2], totals[2];

    __device__ Columns(const Memory& memory, int of) : first(of / 32 * 16 + of % 32 / 4) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        biases[i] = memory.bias[first + 8 * i];
        totals[i] = memory.weight_totals[first + 8 * i];
      }
    }
  };

  // halo[row][column][channel]: x of the tile and of 3 pixels around it, zeros outside the image. A thread has a vector
  // of one column, in every kAtOnce-th row.
  __device__ void load_halo(const ConvNextStage& p, int block, int pass, int thread, __half* halo) const {
    constexpr int kRow = kHaloW * Vectors, kAtOnce = kConvolving / kRow, kOwn = ceil_div(Shape::kRows, kAtOnce);
    const int first = thread / kRow, pixel = thread / Vectors % kHaloW, vector = thread % Vectors;
    const int row = top - kTaps / 2 + first, column = left - kTaps / 2 + pixel;
    const bool takes_part = first < kAtOnce && pass + vector < share.count &&
                            static_cast<unsigned>(column) < static_cast<unsigned>(p.width);
    const __half* x =
        p.x_of(block) + ((image * p.height + row) * p.width + column) * p.channels + 8 * (share.first + pass + vector);
    const int step = kAtOnce * p.width * p.channels;
    uint4 values[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      values[i] = absent_if(takes_part && static_cast<unsigned>(row + i * kAtOnce) < static_cast<unsigned>(p.height) &&
                            first + i * kAtOnce < Shape::kRows);
    }
    const auto place_of = [&](int i) { return reinterpret_cast<const uint4*>(x + i * step); };
    if (p.x_comes_by_mail(block)) {
      receive(values, place_of);
    } else {  // any word may be there
      load_absent(values, place_of);
    }
    __half* to = halo + first * Shape::kPitch + pixel * Shape::kPixelPitch + vector * 8;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (first < kAtOnce && first + i * kAtOnce < Shape::kRows) {
        *reinterpret_cast<uint4*>(to + i * kAtOnce * Shape::kPitch) = values[i];
      }
    }
  }

  // a = v, zeros beyond the channels; the sum of this thread's part of a pixel's channels, and of their squares.
  __device__ float2 receive_v(const ConvNextStage& p, int block, int thread, __half* a) const {
    constexpr int kCount = Product::kDepth / 8 * kPixels, kOwn = ceil_div(kCount, kThreads);
    static_assert(kThreads % kPixels == 0);
    const auto* from =
        p.mail.at<const uint4>(block, p.mail.v) + (image * p.tiles + tile) * (p.channels / 8) * kPixels + thread;
    const int count = p.channels / 8 * kPixels;
    float2 sum = make_float2(0.f, 0.f);
    uint4 first[1] = {absent_if(thread < count)};
    receive(first, [&](int) { return from; });  // not all at once while nothing is there
    uint4 values[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      values[i] = i == 0 ? first[0] : absent_if(thread + i * kThreads < count);
    }
    receive(values, [&](int i) { return from + i * kThreads; });
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int place = thread + i * kThreads;
      if (kCount % kThreads == 0 || place < kCount) {
        reinterpret_cast<uint4*>(a)[place] = values[i];
      }
      for (const uint32_t pair : {values[i].x, values[i].y, values[i].z, values[i].w}) {
        const float2 v = floats(pair);
        sum.x += v.x + v.y;
        sum.y = fmaf(v.x, v.x, fmaf(v.y, v.y, sum.y));
      }
    }
    return sum;
  }

  // Norm, bias and GELU of the sums that thread `of` of the product has, for two pixels of each of the part's rows of
  // the patch: squares, and h by strips, zeros outside the image.
  __device__ void finish(const ConvNextStage& p, int block, int of, int part, const float* sums, const Columns& own,
                         Memory& memory) const {
    const int pair = of % 4, first_row = part * kRows;
    const int rows = p.height - top - first_row;    // that exist, from the part's first on
    const int columns = p.width - left - 2 * pair;  // from the first of the two pixels on
    const uint32_t existing = columns > 1 ? ~0u : columns > 0 ? 0xffffu : 0u;
    uint32_t h[2][kRows];
    float squares[2] = {};
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float4 norms = reinterpret_cast<const float4*>(memory.norms)[(first_row + row) * kPatchW / 2 + pair];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto value = [&](float sum, float mean, float scale) {
          return polynomial_gelu(fmaf(fmaf(-mean, own.totals[i], sum), scale, own.biases[i]));
        };
        const float first = value(sums[4 * row + 2 * i], norms.x, norms.y);
        const float second = value(sums[4 * row + 2 * i + 1], norms.z, norms.w);
        if (row < rows && columns > 0) {
          squares[i] = fmaf(first, first, squares[i]);
        }
        if (row < rows && columns > 1) {
          squares[i] = fmaf(second, second, squares[i]);
        }
        h[i][row] = halves(first, second) & existing;
      }
    }
    const float2 total = make_float2(sum_of_lanes<4>(squares[0]), sum_of_lanes<4>(squares[1]));
    const int column = own.first + 8 * pair;  // of the first two lanes
    if constexpr (kParts > 1) {
      if (pair < 2) {
        memory.squares[part][column] = pair == 0 ? total.x : total.y;
      }
      __syncthreads();
      if (const int thread = part * Product::kMultiplying + of; thread < Product::kColumns) {
        float sum = memory.squares[0][thread];
#pragma unroll
        for (int i = 1; i < kParts; ++i) {
          sum += memory.squares[i][thread];
        }
        store_squares(p, block, thread, sum);
      }
    } else if (pair < 2) {
      store_squares(p, block, column, pair == 0 ? total.x : total.y);
    }
    const int n = first_n + own.first, strips_w = p.expand_tiles_w.value;
    const int strip = image * p.strips + (top + first_row) * strips_w + left / kPatchW;
    const int row_of_strips = strips_w * p.wide * kPatchW;
    __half* to = p.mail.at<__half>(block, p.mail.h) + (strip * p.wide + n) * kPatchW + 2 * pair;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (row < rows && n + 8 * i < p.wide) {
          store_words(to + 8 * i * kPatchW, h[i][row]);
        }
      }
      to += row_of_strips;
    }
  }

  __device__ void store_squares(const ConvNextStage& p, int block, int column, float sum) const {
    float* to = p.mail.at<float>(block, p.mail.squares) + (image * p.tiles + tile) * p.wide + first_n;
    if (first_n + column < p.wide) {
      store_words(to + column, __float_as_uint(sum));
    }
  }

  // Mean and one over deviation of a pixel, from all parts.
  __device__ static float2 norm_of(const float2* parts, int pixel, int channels) {
    float2 total = parts[pixel];
#pragma unroll
    for (int part = 1; part < kThreads / kPixels; ++part) {
      total.x += parts[part * kPixels + pixel].x;
      total.y += parts[part * kPixels + pixel].y;
    }
    return norm_from(total, channels);
  }
};

}  // namespace lpkernels::convnext
