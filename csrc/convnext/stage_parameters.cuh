// What convnext_stage's kernel takes, and what its two halves share.
#pragma once

#include "convnext/mail.cuh"
#include "convnext/warpgroup_product.cuh"

namespace lpkernels::convnext {

struct ConvNextStage {
  BoxMap expand_weights, project_weights;  // boxes of as many rows as a block has outputs
  const __half* x;
  const float *taps, *taps_bias, *wide_bias, *gamma, *bias;  // with the block of the network in front
  __half* y;
  int blocks, batch, height, width, channels, wide;
  int tiles = 0;   // of an image, of the first half
  int splits = 0;  // of the second half's K: a power of two, the cluster
  Mail mail{};
};

// Of a block's threads: the first convolve, the last do what does not wait for x meanwhile, and ask for weights.
constexpr int kConvolving = kThreads - kWarpgroup;
constexpr int kAskingThread = kConvolving;

// A thread block's weights of one half: one thread asks for those of a block of the network, all wait for them.
template <class Product>
struct BoxedWeights {
  const BoxMap& map;
  uint4* shared;
  uint64_t* arrival;

  __device__ void ask(int block, int first_n, int first_k) const {
    if (thread_index() == kAskingThread) {
      expect_bytes(arrival, Product::kWeightBytes);
#pragma unroll 1
      for (int i = 0; i < Product::kBoxes; ++i) {
        load_box(shared + i * (Product::kBoxBytes / 16), map, first_k + i * kBoxDepth, first_n, block, arrival);
      }
    }
  }
  __device__ void wait(int block) const { wait_for_bytes(arrival, block); }
};

// Asks for a block's part of a row of floats, zeros beyond `count`.
template <int Count>
__device__ void copy_row(float* to, const float* from, int count, int thread) {
  if (const int i = 4 * thread; i < Count) {
    copy_async(to + i, from + i, i < count);
  }
}

}  // namespace lpkernels::convnext
