// What convnext_stage's kernel takes, and what its two halves share.
#pragma once

#include "common/divisor.h"
#include "convnext/mail.cuh"
#include "convnext/warpgroup_product.cuh"

namespace lpkernels::convnext {

struct ConvNextStage {
  BoxMap expand_weights, project_weights, step_weights;  // boxes of as many rows as a block has outputs
  BoxMap taps_boxes;                                     // all taps of as many channels as it convolves at once
  const __half* x;                                       // of the first block of the network, or of the step before it
  const float *taps, *taps_bias, *wide_bias, *gamma, *bias;  // with the block of the network in front
  __half* y;
  int blocks, batch, height, width, channels, wide;
  struct {
    const float* bias;
    int height, width, channels;  // of x; no channels: there is no step
    int taps_of_piece;
  } step{};
  int tiles = 0;       // of an image, of the first half
  int strips = 0;      // of an image: eight pixels of a row next to each other, zeros beyond its end
  int splits = 0;      // of the second half's K: a power of two, the cluster
  int own_strips = 0;  // of the strips that a cluster has, whose sums one of its blocks adds up
  int expand_blocks = 0, project_blocks = 0;
  int vectors_of_block = 0;  // of eight channels, of a tile, that a thread block convolves
  bool few_tiles = false;    // whose squares are added up by who needs their sum
  int quads_of_block = 0;    // groups of four columns, of all images, whose norms a thread block adds up
  Divisor expand_columns{}, expand_tiles{}, expand_tiles_w{};  // blocks of a tile; tiles of an image, of a row of them
  Divisor project_splits{}, project_tiles{}, project_columns{};
  Divisor quads_of_image{};
  Mail mail{};

  __device__ bool steps() const { return step.channels > 0; }
  // Where a block of the network has its x.
  __device__ bool x_comes_by_mail(int block) const { return block > 0 || steps(); }
  __device__ const __half* x_of(int block) const {
    return x_comes_by_mail(block) ? mail.at<const __half>(block, mail.x) : x;
  }
};

// Of a block's threads: the first convolve, the last do meanwhile what does not wait for x. The first of each of their
// warps asks for a part of the weights, one for all else, and tells the grid what is absent: each request holds up a
// warp for 100 clocks.
constexpr int kConvolving = kThreads - kWarpgroup;
constexpr int kTellingThread = kConvolving + 32;
__device__ inline bool asks(int thread) {
  return thread >= kConvolving && thread % 32 == 0;
}
constexpr int kFloat = sizeof(float);

// A thread block's weights of one half: those that ask do so for a block of the network, any wait for them.
template <class Product>
struct BoxedWeights {
  const BoxMap& map;
  uint4* shared;
  uint64_t* arrival;

  // `more`: bytes that the first of them has asked for, to arrive with the weights.
  __device__ void ask(int block, int first_n, int first_k, int thread, int more = 0) const {
    if (thread == kConvolving) {
      expect_bytes(arrival, Product::kWeightBytes + more);
    }
#pragma unroll 1
    for (int i = (thread - kConvolving) / 32; i < Product::kBoxes; i += kWarpgroup / 32) {
      load_box(shared + i * (Product::kBoxBytes / 16), map, first_k + i * kBoxDepth, first_n, block, arrival);
    }
  }
  // Those that ask bring them to the L2, long before.
  __device__ void prefetch(int block, int first_n, int first_k, int thread) const {
#pragma unroll 1
    for (int i = (thread - kConvolving) / 32; i < Product::kBoxes; i += kWarpgroup / 32) {
      prefetch_box(map, first_k + i * kBoxDepth, first_n, block);
    }
  }
  __device__ void wait(int block) const { wait_for_bytes(arrival, block); }
};

}  // namespace lpkernels::convnext
