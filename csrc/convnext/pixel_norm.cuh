// The layer norm of depthwise_linear, applied behind its product, so that the blocks of a cluster exchange nothing but
// v: (v - mean) / deviation W^T = (v W^T - mean * sums of W's rows) / deviation.
//
// The sums of a row of W are known before the wait for the kernel ahead. Those of a pixel and of its squares fall out
// of the fragments of v that a warp multiplies anyway, on the tensor cores: v or ones times v^T, of v v^T the diagonal.
// Squares of halves minus the mean's square, in float: worse than v's own rounding only where |mean| is 1000
// deviations.
#pragma once

#include "convnext/product.cuh"

namespace lpkernels::convnext {

constexpr uint32_t kOnes = 0x3c003c00;  // a pair

// totals[column]: sums of the rows of W. sums: [group][column]; all of this thread's copies of weights are to be there.
template <class Product>
__device__ void add_up_weights(const Product& product, const uint4* shared, float* sums, float* totals) {
  constexpr int kColumns = Product::kColumns;
  const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
  float own[Product::kTiles][4] = {};
  __syncwarp();  // a warp copies its own weights
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    uint32_t w[Product::kTiles][4];
    product.load_step(step, shared, w);
#pragma unroll
    for (int j = 0; j < Product::kTiles; ++j) {
      multiply_add(own[j], ones, w[j][0], w[j][1]);
      multiply_add(own[j], ones, w[j][2], w[j][3]);
    }
  }
  const int lane = product.lane();
  if (lane < 4 && product.first_row() == 0) {  // all rows of the product are the same
#pragma unroll
    for (int j = 0; j < Product::kTiles; ++j) {
      float* to = sums + product.group() * kColumns + product.first_column() + 8 * j + 2 * lane;
      *reinterpret_cast<float2*>(to) = make_float2(own[j][0], own[j][1]);
    }
  }
  __syncthreads();
  if (product.thread < kColumns) {
    float sum = sums[product.thread];
#pragma unroll
    for (int group = 1; group < Product::kGroups; ++group) {
      sum += sums[group * kColumns + product.thread];
    }
    totals[product.thread] = sum;
  }
}

// Sums of v and of its squares over a part of the channels. Warps with the same rows and k share them by their groups
// of columns: two, the warp's 32 pixels; the next two, where there are as many, its two chunks of k; the last, eights
// of pixels.
template <class Product>
struct PixelSums {
  static constexpr int kShares = Product::kColumnGroups < 4 ? 1 : 2;
  static constexpr int kParts = Product::kGroups * kShares;  // of the channels
  static constexpr int kEights = Product::kColumnGroups < 8 ? 2 : 1;
  static_assert(2 <= Product::kColumnGroups && Product::kColumnGroups <= 8);

  const Product& product;
  float products[kEights][4] = {};  // of eight pixels and of ones with these pixels

  __device__ explicit PixelSums(const Product& product) : product(product) {}

  __device__ int share() const { return product.column_group() / 2 % kShares; }
  __device__ int eight(int i) const { return kEights == 2 ? i : product.column_group() / 4; }

  __device__ void add(int chunk, const uint32_t (&rows)[4]) {
#pragma unroll
    for (int i = 0; i < kEights; ++i) {
      const bool last = eight(i) != 0;
      const uint32_t low = last ? rows[1] : rows[0], high = last ? rows[3] : rows[2];
      const uint32_t pixels[4] = {low, kOnes, high, kOnes};
      multiply_add_if(kShares == 1 || share() == chunk, products[i], pixels, low, high);
    }
  }

  // parts[part][pixel]
  __device__ void store(float2* parts) const {
    const int lane = product.lane(), g = lane / 4;
    if (lane % 4 == g / 2) {  // has the diagonal's g-th
      float2* own = parts + (product.group() * kShares + share()) * Product::kRows + product.row(0) + g;
#pragma unroll
      for (int i = 0; i < kEights; ++i) {
        const float (&d)[4] = products[i];
        own[8 * eight(i)] = g % 2 == 0 ? make_float2(d[2], d[0]) : make_float2(d[3], d[1]);
      }
    }
  }
};

// Mean and one over deviation of a pixel, from its channels' sum and that of their squares.
__device__ inline float2 norm_from(float2 total, int channels) {
  const float inverse_count = approximate_reciprocal(static_cast<float>(channels));
  const float mean = total.x * inverse_count;
  const float variance = fmaxf(fmaf(-mean, total.x, total.y) * inverse_count, 0.f);
  return make_float2(mean, rsqrtf(variance + kEpsilon));
}

// The same from all parts.
template <class Product>
__device__ float2 norm_of(const float2* parts, int pixel, int channels) {
  float2 total = parts[pixel];
#pragma unroll
  for (int part = 1; part < PixelSums<Product>::kParts; ++part) {
    const float2 more = parts[part * Product::kRows + pixel];
    total.x += more.x;
    total.y += more.y;
  }
  return norm_from(total, channels);
}

}  // namespace lpkernels::convnext
