// The second half of a ConvNeXt V2 block within convnext_stage:
//
//   n = |h|_HW / (mean_N |h|_HW + 1e-6),  y = (h * (1 + gamma * n)) W^T + bias + x
//
// The grid's blocks divide the N columns among themselves, add up the tiles' squares and hand |h| to all by mail; of an
// image of few tiles all blocks add up all squares. A thread block owns kRows pixels of an image, kColumns outputs and
// one of `splits` pieces of 384 of N: it multiplies h by the factors, in half precision, on its way into shared memory.
// The blocks of a cluster have the pieces of the same outputs, and add up their sums through distributed shared memory,
// each those of some of the pixels, in order. x of these comes from where the same threads have written it.
//
// A chain of waits. Clocks of the third published stage, by stamps: squares 2,500 from the block's own on, an L2's way
// and what the slowest block is late; h meanwhile; factors 700, product 1,050, sums 430, theirs through the cluster
// 1,700 at 14 bytes a clock, y 600.
#pragma once

#include <algorithm>

#include "convnext/stage_parameters.cuh"

namespace lpkernels::convnext {

__device__ inline float4 roots(float4 v) {
  return make_float4(approximate_root(v.x), approximate_root(v.y), approximate_root(v.z), approximate_root(v.w));
}

// The norms of some columns, of all images, that a thread block adds up and puts into the mail, by a warp each: first
// by those that neither load h nor ask for weights.
__device__ inline void add_up_squares(const ConvNextStage& p, int block, int thread) {
  constexpr int kFirstWarp = kAskingThread / 32 + 1;
  const int lane = thread % 32, first = block_index() * p.quads_of_block;
  const int count = min(p.quads_of_image.value * p.batch - first, p.quads_of_block);
#pragma unroll 1
  for (int i = (thread / 32 + kWarps - kFirstWarp) % kWarps; i < count; i += kWarps) {
    const int quad = first + i, image = p.quads_of_image.quotient(quad);
    const float* from =
        p.mail.at<const float>(block, p.mail.squares) + int64_t{image} * (p.tiles - 1) * p.wide + 4 * quad;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 1
    for (int rows = 0; rows < p.tiles; rows += 2 * 32) {
      const int row = rows + lane;
      uint4 values[2] = {absent_if(row < p.tiles), absent_if(row + 32 < p.tiles)};
      receive(values, [&](int i) { return reinterpret_cast<const uint4*>(from + int64_t{row + i * 32} * p.wide); });
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

// FewTiles: whether tiles may be so few that every block adds up all of their squares itself, one way through the L2
// instead of two.
template <class P, bool FewTiles>
struct StageProject {
  using Product = P;
  static constexpr int kMostWide = 8 * Product::kDepth;                              // of N
  static constexpr int kQuadsOfThread = ceil_div(kMostWide / 4, kThreads);           // whose norms a thread receives
  static constexpr int kVectors = Product::kDepth / 8, kLoading = kThreads * 3 / 4;  // of h
  static constexpr int kAtOnce = kLoading / kVectors, kOwn = Product::kRows / kAtOnce;
  static_assert(kQuadsOfThread == 2 && kLoading % kVectors == 0 && Product::kRows % kAtOnce == 0);

  struct Memory {
    alignas(16) float gains[Product::kDepth];  // gamma, then gamma |h|, of the piece's columns
    alignas(16) float sums[kWarps];            // of |h|
    alignas(16) float bias[Product::kColumns];
  };
  static constexpr size_t kABytes = std::max(sizeof(__half) * Product::kRows * Product::kDepth, Product::kStagedBytes);
  // What blocks send each other, with two splits or more.
  static constexpr size_t kReceivedBytes = sizeof(float) * Product::kRows * Product::kPitch;

  int image, first_pixel, first_n, part;  // part: its rank in the cluster

  __device__ StageProject(const ConvNextStage& p, int block) {
    const int place = p.project_splits.quotient(block), row = p.project_tiles.quotient(place);
    part = block - place * p.splits;
    first_pixel = (place - row * p.project_tiles.value) * Product::kRows;
    image = p.project_columns.quotient(row);
    first_n = (row - image * p.project_columns.value) * Product::kColumns;
  }

  // Squares of so many tiles are a thread's for all of its columns, if not 0.
  static int few_tiles(int tiles, int quads) {
    const bool two = FewTiles && tiles <= 2, four = FewTiles && tiles <= 4 && quads <= kThreads;
    return two ? 2 : four ? 4 : 0;
  }

  __device__ int first_k() const { return part * Product::kDepth; }

  static constexpr int kOwnRows = Product::kRows / Product::kSlices;  // of y, of a thread, at most
  static_assert(Product::kRows % Product::kSlices == 0);

  // Where a thread's numbers are, the same in every block of the network: a vector of h in every kAtOnce-th row, four
  // columns of y in every kSlices-th of the rows whose sums its block adds up.
  struct Own {
    int h, h_rows, y, y_rows;  // from the first number of all images; of the rows from the first on, none if negative

    __device__ Own(const ConvNextStage& p, const StageProject& work, int thread) {
      const int pixels = p.height * p.width, first = work.image * pixels + work.first_pixel;
      const int h_row = thread / kVectors, k = thread % kVectors * 8;
      const bool loads = thread < kLoading && work.first_k() + k < p.wide;
      h = (first + h_row) * p.wide + work.first_k() + k;
      h_rows = loads ? pixels - work.first_pixel - h_row : 0;
      const int rows = share_of(Product::kRows, p.splits), y_first = work.part * rows;
      const int slice = thread / Product::kQuads, n = work.first_n + thread % Product::kQuads * 4;
      y = (first + y_first + slice) * p.channels + n;
      y_rows = slice < Product::kSlices && n < p.channels ? min(rows, pixels - work.first_pixel - y_first) - slice : 0;
    }
  };

  // Asks for gamma of its piece of N, which arrives with the weights; bytes of it. One thread does.
  __device__ int ask_for_gamma(const ConvNextStage& p, int block, Memory& memory, uint64_t* arrival) const {
    const int bytes = kFloat * max(min(p.wide - first_k(), Product::kDepth), 0);
    if (bytes > 0) {
      copy_bulk(memory.gains, p.gamma + int64_t{block} * p.wide + first_k(), bytes, arrival);
    }
    return bytes;
  }
  // Asks for the bias; bytes of it. One thread does.
  __device__ int ask(const ConvNextStage& p, int block, Memory& memory, uint64_t* arrival) const {
    const int bytes = kFloat * min(p.channels - first_n, Product::kColumns);
    copy_bulk(memory.bias, p.bias + int64_t{block} * p.channels + first_n, bytes, arrival);
    return bytes;
  }

  // y, into the mail or, of the last block of the network, the answer. before_h(), before_product(),
  // weights_are_read(): called when what waits for nobody has been worked out, before the block meets for the product,
  // and behind it.
  template <class Wait, class BeforeH, class BeforeProduct, class Read>
  __device__ void run(const ConvNextStage& p, int block, int thread, const Own& own, Memory& memory, unsigned char* a,
                      float* received, const uint4* weights, uint64_t* arrivals, BeforeH&& before_h,
                      Wait&& wait_for_weights, BeforeProduct&& before_product, Read&& weights_are_read) const {
    uint2 residual[kOwnRows];
    load_residual(p, block, own, residual);
    const __half* from = p.mail.at<const __half>(block, p.mail.h) + own.h;
    const auto place_of = [&](int i) { return reinterpret_cast<const uint4*>(from + i * kAtOnce * p.wide); };
    before_h();
    uint4 first[1] = {absent_if(own.h_rows > 0)}, h[kOwn];
    receive(first, place_of);  // not all at once while nothing is there
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      h[i] = i == 0 ? first[0] : absent_if(own.h_rows > i * kAtOnce);
    }
    load_absent(h, place_of);
    wait_for_weights();
    const float inverse = receive_norms(p, block, thread, memory);
    receive(h, place_of);
    if (thread < kLoading) {
      scale(memory, h, thread / kVectors, thread % kVectors * 8, inverse, reinterpret_cast<uint4*>(a));
    }
    before_product();
    publish_to_copies();  // and to the tensor cores
    __syncthreads();
    Product product(thread);
    if (product.multiplies()) {
      const Operand boxes = operand_in_box(a);
      Product::multiply(weights, product.tile(), product.sums,
                        [&](int i) { return boxes.at(Product::step_in_boxes(i, Product::kRows)); });
    }
    __syncthreads();  // a has been read: the sums take its place
    weights_are_read();
    auto* staged = reinterpret_cast<float*>(a);
    product.stage(staged);
    if (p.splits > 1 && product.multiplies()) {
      publish_to_copies();
    }
    __syncthreads();
    if (p.splits > 1) {
      exchange(p, thread, staged, received, arrivals, block);
    }
    __half* y = (block + 1 == p.blocks ? p.y : p.mail.at<__half>(block + 1, p.mail.x)) + own.y;
    const int slice = thread / Product::kQuads, column = thread % Product::kQuads * 4;
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      if (i * Product::kSlices < own.y_rows) {
        const float4 sum = add_up(p, slice + i * Product::kSlices, column, staged, received) +
                           *reinterpret_cast<const float4*>(memory.bias + column);
        const float2 first = floats(residual[i].x), second = floats(residual[i].y);
        store_words(y + i * Product::kSlices * p.channels,
                    make_uint2(halves(sum.x + first.x, sum.y + first.y), halves(sum.z + second.x, sum.w + second.y)));
      }
    }
  }

 private:
  // Gives the others of the cluster their rows of this block's sums, and waits for its own of theirs.
  __device__ void exchange(const ConvNextStage& p, int thread, const float* staged, float* received, uint64_t* arrivals,
                           int turn) const {
    const int size = share_of(Product::kRows, p.splits) * Product::kPitch, bytes = kFloat * size;
    if (thread == kAskingThread) {
      expect_bytes(arrivals, (p.splits - 1) * bytes);
    }
    if (const int other = thread / 32; thread % 32 == 0 && other < p.splits && other != part) {
      send_bytes(received + part * size, staged + other * size, bytes, other, arrivals);
    }
    wait_for_bytes(arrivals, turn);
  }

  // The sums of all parts, in order, of four columns of one of the block's rows.
  __device__ float4 add_up(const ConvNextStage& p, int row, int column, const float* staged,
                           const float* received) const {
    const int size = share_of(Product::kRows, p.splits) * Product::kPitch;
    const auto sum_of = [&](int of) {
      return Product::staged_sum((of == part ? staged : received) + of * size, row, column);
    };
    float4 sum = sum_of(0);
#pragma unroll 1
    for (int i = 1; i < p.splits; ++i) {
      sum = sum + sum_of(i);
    }
    return sum;
  }

  __device__ static void load_residual(const ConvNextStage& p, int block, const Own& own, uint2 (&residual)[kOwnRows]) {
    const __half* x = (block == 0 ? p.x : p.mail.at<const __half>(block, p.mail.x)) + own.y;
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      residual[i] = make_uint2(0, 0);
      if (i * Product::kSlices < own.y_rows) {
        residual[i] = load_words(reinterpret_cast<const uint2*>(x + i * Product::kSlices * p.channels));
      }
    }
  }

  // |h| of a thread's columns from the squares of p.few_tiles tiles, two of two groups of columns or four of one.
  __device__ void add_up_few_tiles(const ConvNextStage& p, int block, int thread,
                                   float4 (&norms)[kQuadsOfThread]) const {
    const int quads = p.quads_of_image.value;
    const auto* from = p.mail.at<const uint4>(block, p.mail.squares) + image * p.tiles * quads + thread;
    const auto tile_of = [&](int i) { return i & (p.few_tiles - 1); };
    const auto quad_of = [&](int i) { return i >= p.few_tiles ? kThreads : 0; };
    uint4 values[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = absent_if(tile_of(i) < p.tiles && thread + quad_of(i) < quads);
    }
    receive(values, [&](int i) { return from + tile_of(i) * quads + quad_of(i); });
    const float4 first = floats_of(values[0]) + floats_of(values[1]);
    const float4 second = floats_of(values[2]) + floats_of(values[3]);
    norms[0] = roots(p.few_tiles == 4 ? first + second : first);
    norms[1] = p.few_tiles == 4 ? make_float4(0.f, 0.f, 0.f, 0.f) : roots(second);
  }

  // 1 / (mean_N |h| + eps) of the image, and gamma |h| of the piece's columns into `memory`; the block meets.
  __device__ float receive_norms(const ConvNextStage& p, int block, int thread, Memory& memory) const {
    float4 norms[kQuadsOfThread];
    if (FewTiles && p.few_tiles > 0) {
      add_up_few_tiles(p, block, thread, norms);
    } else {
      const auto* from = p.mail.at<const uint4>(block, p.mail.norms) + image * p.wide / 4 + thread;
      uint4 values[kQuadsOfThread];
#pragma unroll
      for (int i = 0; i < kQuadsOfThread; ++i) {
        values[i] = absent_if(4 * (thread + i * kThreads) < p.wide);
      }
      receive(values, [&](int i) { return from + i * kThreads; });
#pragma unroll
      for (int i = 0; i < kQuadsOfThread; ++i) {
        norms[i] = floats_of(values[i]);
      }
    }
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kQuadsOfThread; ++i) {
      const float4 norm = norms[i];
      sum += (norm.x + norm.y) + (norm.z + norm.w);
      if (const int k = 4 * (thread + i * kThreads) - first_k(); static_cast<unsigned>(k) < Product::kDepth) {
        auto* gain = reinterpret_cast<float4*>(memory.gains + k);
        const float4 gamma = k + first_k() < p.wide ? *gain : make_float4(0.f, 0.f, 0.f, 0.f);
        *gain = make_float4(gamma.x * norm.x, gamma.y * norm.y, gamma.z * norm.z, gamma.w * norm.w);
      }
    }
    sum = sum_of_lanes<32>(sum);
    if (thread % 32 == 0) {
      memory.sums[thread / 32] = sum;
    }
    __syncthreads();
    float4 total = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int i = 0; i < kWarps; i += 4) {
      total = total + *reinterpret_cast<const float4*>(memory.sums + i);
    }
    const float mean = ((total.x + total.y) + (total.z + total.w)) * approximate_reciprocal(static_cast<float>(p.wide));
    return approximate_reciprocal(mean + kEpsilon);
  }

  // v * (1 + gain) of two halves, rounded once.
  __device__ static uint32_t grown(uint32_t v, uint32_t gain) {
    const __half2 own = *reinterpret_cast<const __half2*>(&v);
    const __half2 result = __hfma2(own, *reinterpret_cast<const __half2*>(&gain), own);
    return *reinterpret_cast<const uint32_t*>(&result);
  }

  // a = h * (1 + gain * inverse), what is in brackets behind the one rounded too; in boxes.
  __device__ static void scale(const Memory& memory, const uint4 (&h)[kOwn], int row, int column, float inverse,
                               uint4* a) {
    const float4 low = *reinterpret_cast<const float4*>(memory.gains + column);
    const float4 high = *reinterpret_cast<const float4*>(memory.gains + column + 4);
    const uint32_t gains[4] = {halves(low.x * inverse, low.y * inverse), halves(low.z * inverse, low.w * inverse),
                               halves(high.x * inverse, high.y * inverse), halves(high.z * inverse, high.w * inverse)};
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      a[Product::place_in_boxes(row + i * kAtOnce, column, Product::kRows)] = make_uint4(
          grown(h[i].x, gains[0]), grown(h[i].y, gains[1]), grown(h[i].z, gains[2]), grown(h[i].w, gains[3]));
    }
  }
};

}  // namespace lpkernels::convnext
