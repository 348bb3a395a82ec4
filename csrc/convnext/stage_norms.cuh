// GRN's norms within convnext_stage: |h| = sqrt(sum over an image of h^2), of each of the N columns, and their mean.
//
// The squares of an image of few tiles come to whoever has the column of h, one way through the L2; the blocks of a
// cluster, which have all columns among them, tell each other the sums of their |h|, while h is on its way. Of more
// tiles the grid's blocks divide the columns among themselves, add up their squares and hand |h| to all by mail.
#pragma once

#include "convnext/stage_parameters.cuh"

namespace lpkernels::convnext {

__device__ inline float4 roots(float4 v) {
  return make_float4(approximate_root(v.x), approximate_root(v.y), approximate_root(v.z), approximate_root(v.w));
}

// The norms of some columns, of all images, that a thread block adds up and puts into the mail, by a warp each: first
// by those that neither load h nor ask for weights.
__device__ inline void add_up_squares(const ConvNextStage& p, int block, int thread) {
  constexpr int kFirstWarp = kTellingThread / 32 + 1;
  const int lane = thread % 32, first = block_index() * p.quads_of_block;
  const int count = min(p.quads_of_image.value * p.batch - first, p.quads_of_block);
#pragma unroll 1
  for (int i = (thread / 32 + kWarps - kFirstWarp) % kWarps; i < count; i += kWarps) {
    const int quad = first + i, image = p.quads_of_image.quotient(quad);
    const float* from = p.mail.at<const float>(block, p.mail.squares) + image * (p.tiles - 1) * p.wide + 4 * quad;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 1
    for (int rows = 0; rows < p.tiles; rows += 2 * 32) {
      const int row = rows + lane;
      uint4 values[2] = {absent_if(row < p.tiles), absent_if(row + 32 < p.tiles)};
      receive(values, [&](int i) { return reinterpret_cast<const uint4*>(from + (row + i * 32) * p.wide); });
      sum = sum + (floats_of(values[0]) + floats_of(values[1]));
    }
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      sum = sum + shuffled(sum, lanes);
    }
    if (lane == 0) {
      store_words(p.mail.at<float>(block, p.mail.norms) + 4 * quad, words_of(roots(sum)));
    }
  }
}

// |h| of the column that a thread has of h: the squares of at most kTiles tiles or, by mail, the number itself and,
// where FewTiles does not say that the cluster adds up, those of the other pieces of N. Depth: of a piece.
template <bool FewTiles, int MostSplits, int Depth>
struct StageNorms {
  static constexpr int kTiles = 4;
  static constexpr int kWords = FewTiles ? kTiles : MostSplits;
  static_assert(Depth < kThreads && MostSplits <= 8);

  struct Memory {
    alignas(16) float gamma[Depth];  // of the piece's columns
    alignas(16) float sums[kWarps];  // of |h|
    alignas(16) float sums_of_pieces[8];
  };

  const uint32_t* from;
  int step;  // from one word to the next
  uint32_t values[kWords];

  // Whether the squares of so many tiles are added up by who needs their sum.
  static bool few_tiles(int tiles) { return FewTiles && tiles <= kTiles; }

  // Once, before anything else.
  __device__ static void begin(Memory& memory, int thread) {
    if (thread < 8) {
      memory.sums_of_pieces[thread] = 0.f;
    }
  }

  // Asks for them, of the thread's column of the piece from first_k on.
  __device__ StageNorms(const ConvNextStage& p, int block, int image, int first_k, int thread) {
    const bool squares = FewTiles && p.few_tiles;
    const int rows = squares ? p.tiles : 1, k = FewTiles ? first_k + thread : thread;
    step = FewTiles ? p.wide : Depth;
    from = p.mail.at<const uint32_t>(block, squares ? p.mail.squares : p.mail.norms) + image * rows * p.wide + k;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      values[i] = absent_word_if(thread < Depth && (FewTiles ? k < p.wide && i < rows : k + i * Depth < p.wide));
    }
    load_absent(values, *this);
  }

  // Where the i-th word is.
  __device__ const uint32_t* operator()(int i) const { return from + i * step; }

  __device__ void receive() { convnext::receive(values, *this); }

  // |h| of the thread's column over their mean (+ eps); the block meets. arrivals: of the sums of the cluster's pieces.
  __device__ float finish(const ConvNextStage& p, int block, int part, int thread, Memory& memory,
                          uint64_t* arrivals) const {
    float norm = 0.f, sum = 0.f;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const float value = __uint_as_float(values[i]);
      norm = FewTiles || i != part ? norm : value;
      sum += value;
    }
    if (FewTiles) {
      norm = sum = p.few_tiles ? approximate_root(sum) : sum;
    }
    sum = sum_of_lanes<32>(sum);
    if (thread % 32 == 0) {
      memory.sums[thread / 32] = sum;
    }
    __syncthreads();
    const auto all = [](const float* sums, int count) {
      float4 total = *reinterpret_cast<const float4*>(sums);
#pragma unroll
      for (int i = 4; i < count; i += 4) {
        total = total + *reinterpret_cast<const float4*>(sums + i);
      }
      return (total.x + total.y) + (total.z + total.w);
    };
    if constexpr (FewTiles) {
      if (thread < p.splits) {
        send(memory.sums_of_pieces + part, all(memory.sums, kWarps), thread, arrivals);
      }
      wait_for_bytes(arrivals, block);
      sum = all(memory.sums_of_pieces, 8);
    } else {
      sum = all(memory.sums, kWarps);
    }
    return norm * approximate_reciprocal(fmaf(sum, approximate_reciprocal(static_cast<float>(p.wide)), kEpsilon));
  }
  // How many bytes of the cluster's pieces come; one thread says so.
  __device__ static void expect(const ConvNextStage& p, uint64_t* arrivals) {
    if (FewTiles) {
      expect_bytes(arrivals, p.splits * static_cast<int>(sizeof(float)));
    }
  }
};

}  // namespace lpkernels::convnext
