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
#include <type_traits>

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
// instead of two. MostSplits: of K, at least two if not one; what they send each other is in half precision.
template <class P, bool FewTiles, int MostSplits>
struct StageProject {
  using Product = P;
  static constexpr int kMostSplits = MostSplits, kLeastSplits = MostSplits > 1 ? 2 : 1;
  static constexpr int kMostWide = MostSplits * Product::kDepth;            // of N
  static constexpr int kQuadsOfThread = ceil_div(kMostWide / 4, kThreads);  // whose norms a thread receives
  static constexpr int kGroups = Product::kGroups, kColumns = Product::kColumns;
  static constexpr int kSumming = Product::kSumming;
  // Of y: a thread has two pixels of two columns of so many strips, for all sums that its block adds up.
  static constexpr int kOwn = ceil_div(kGroups / kLeastSplits * kSumming, kThreads);
  static_assert(kQuadsOfThread <= 2 && Product::kDepth < kThreads && kGroups % MostSplits == 0);
  using Sum = std::conditional_t<MostSplits == 1, float4, uint2>;  // of two columns by two pixels

  struct Memory {
    alignas(16) float gains[Product::kDepth];  // gamma, then gamma |h|, of the piece's columns
    alignas(16) float sums[kWarps];            // of |h|
    alignas(16) float bias[kColumns];
    alignas(16) Sum parts[kGroups][kSumming];  // of this block's strips: [piece of K, strip][thread of the product]
  };
  using Sent = Sum[kGroups][kSumming];  // to whom it concerns: [part, strip][thread]
  static constexpr size_t kABytes = sizeof(__half) * Product::kRows * Product::kDepth;

  int image, first_strip, first_n, part;  // part: its rank in the cluster

  __device__ StageProject(const ConvNextStage& p, int block) {
    const int place = p.project_splits.quotient(block), row = p.project_tiles.quotient(place);
    part = block - place * p.splits;
    first_strip = (place - row * p.project_tiles.value) * kGroups;
    image = p.project_columns.quotient(row);
    first_n = (row - image * p.project_columns.value) * Product::kColumns;
  }

  // Squares of so many tiles are a thread's for all of its columns, if not 0.
  static int few_tiles(int tiles, int quads) {
    const bool two = FewTiles && tiles <= 2, four = FewTiles && tiles <= 4 && quads <= kThreads;
    return two ? 2 : four ? 4 : 0;
  }

  __device__ int first_k() const { return part * Product::kDepth; }

  // Where a thread's numbers are, the same in every block of the network: a column of h, and of the strips whose sums
  // its block adds up two columns of a pixel in x and y and those 8 further, the transpose of what it has in the sums.
  struct Own {
    int h, strips;    // the column in the first strip; how many strips there are, none if negative
    int place[kOwn];  // the first of the two columns, negative where there is none
    bool both[kOwn];  // whether those 8 further exist

    __device__ Own(const ConvNextStage& p, const StageProject& work, int thread) {
      const int k = work.first_k() + thread;
      h = ((work.image * p.strips + work.first_strip) * p.wide + k) * kPatchW;
      strips = thread < Product::kDepth && k < p.wide ? p.strips - work.first_strip : 0;
      const int count = own_strips(p), strips_w = p.expand_tiles_w.value;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const int strip = work.first_strip + work.part * count + strip_of(thread, i), of = of_product(thread, i);
        const int row = p.expand_tiles_w.quotient(strip), column = (strip - row * strips_w) * kPatchW + of % 32 / 4;
        const int n = work.first_n + of / 32 * 16 + of % 4 * 2;
        const bool exists = strip_of(thread, i) < count && strip < p.strips && column < p.width && n < p.channels;
        place[i] = exists ? ((work.image * p.height + row) * p.width + column) * p.channels + n : -1;
        both[i] = n + 8 < p.channels;
      }
    }
  };
  // Which of the block's strips, and which thread's of the product.
  __device__ static int strip_of(int thread, int i) { return (thread + i * kThreads) / kSumming; }
  __device__ static int of_product(int thread, int i) { return (thread + i * kThreads) % kSumming; }

  // Asks for gamma of its piece of N, which arrives with the weights; bytes of it. One thread does.
  __device__ int ask_for_gamma(const ConvNextStage& p, int block, Memory& memory, uint64_t* arrival) const {
    const int bytes = kFloat * max(min(p.wide - first_k(), Product::kDepth), 0);
    if (bytes > 0) {
      copy_bulk(memory.gains, p.gamma + int64_t{block} * p.wide + first_k(), bytes, arrival);
    }
    return bytes;
  }
  // Asks for the bias, of a block of the network or of the step; bytes of it. One thread does.
  __device__ int ask(const ConvNextStage& p, const float* bias, Memory& memory, uint64_t* arrival) const {
    const int bytes = kFloat * min(p.channels - first_n, Product::kColumns);
    copy_bulk(memory.bias, bias + first_n, bytes, arrival);
    return bytes;
  }

  // y, into the mail or, of the last block of the network, the answer. before_h(), weights_are_read(): called when what
  // waits for nobody has been worked out, and behind the product.
  template <class Wait, class BeforeH, class Read>
  __device__ void run(const ConvNextStage& p, int block, int thread, const Own& own, Memory& memory, Sent& sent,
                      __half* a, const uint4* weights, uint64_t* arrivals, BeforeH&& before_h, Wait&& wait_for_weights,
                      Read&& weights_are_read) const {
    const __half* from = p.mail.at<const __half>(block, p.mail.h) + own.h;
    const auto place_of = [&](int i) { return reinterpret_cast<const uint4*>(from + i * kPatchW * p.wide); };
    expect_sums(p, thread, arrivals);
    before_h();
    uint4 first[1] = {absent_if(own.strips > 0)}, h[kGroups];
    receive(first, place_of);              // not all at once while nothing is there
    Norms norms(p, block, *this, thread);  // before the rest of h, for more is to be done behind them
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      h[i] = i == 0 ? first[0] : absent_if(own.strips > i);
    }
    load_absent(h, place_of);
    wait_for_weights();
    const float inverse = finish_norms(p, norms, thread, memory);
    receive(h, place_of);
    if (thread < Product::kDepth) {
      scale(memory.gains[thread] * inverse, h, reinterpret_cast<uint4*>(a) + thread);
    }
    publish_to_copies();  // and to the tensor cores
    __syncthreads();
    uint32_t residual[kOwn][2];
    load_residual(p, block, own, residual);
    Product product(thread);
    if (product.multiplies()) {
      const Operand columns = operand_of_columns(a, Product::kDepth);
      Product::template multiply<true>(weights, product.tile(), product.sums,
                                       [&](int i) { return columns.at(i * Product::kStep); });
    }
    __half* y = block + 1 == p.blocks ? p.y : p.mail.at<__half>(block + 1, p.mail.x);
    add_up(p, block + p.steps(), own, product, residual, memory, sent, arrivals, y, weights_are_read);
  }

  // The step before the first block of the network (stage_step.cuh): x, into the mail. while_multiplying(): called
  // then, before the block meets.
  template <class Step, class Wait, class While, class Read>
  __device__ void step(const ConvNextStage& p, int thread, const Own& own, Memory& memory, Sent& sent, __half* a,
                       const uint4* weights, uint64_t* arrivals, Wait&& wait_for_weights, While&& while_multiplying,
                       Read&& weights_are_read) const {
    expect_sums(p, thread, arrivals);
    Step::normalize(p, *this, thread, reinterpret_cast<uint4*>(a));
    publish_to_copies();  // and to the tensor cores
    __syncthreads();
    Product product(thread);
    if (product.multiplies()) {
      wait_for_weights();
      const Operand vectors = operand_of_vectors(a, Product::kRows);
      Product::template multiply<false>(weights, product.tile(), product.sums,
                                        [&](int i) { return vectors.at(i * (Product::kStep / 8) * Product::kRows); });
    }
    while_multiplying();
    const uint32_t residual[kOwn][2] = {};
    add_up(p, 0, own, product, residual, memory, sent, arrivals, p.mail.at<__half>(0, p.mail.x), weights_are_read);
  }

 private:
  // Strips whose sums this block adds up: of all as many as it has of the pieces of K.
  __device__ static int own_strips(const ConvNextStage& p) { return share_of(kGroups, p.splits); }

  __device__ static void load_residual(const ConvNextStage& p, int block, const Own& own,
                                       uint32_t (&residual)[kOwn][2]) {
    const __half* x = p.x_of(block);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      residual[i][0] = residual[i][1] = 0;
      if (const auto* from = reinterpret_cast<const uint32_t*>(x + own.place[i]); own.place[i] >= 0) {
        residual[i][0] = load_words(from);
        residual[i][1] = own.both[i] ? load_words(from + 4) : 0;
      }
    }
  }

  // From the product to y. turn: how many times the cluster has added up before.
  template <class Read>
  __device__ void add_up(const ConvNextStage& p, int turn, const Own& own, const Product& product,
                         const uint32_t (&residual)[kOwn][2], Memory& memory, Sent& sent, uint64_t* arrivals, __half* y,
                         Read&& weights_are_read) const {
    if (product.sums_exist()) {
      stage(p, product, memory, sent);
    }
    __syncthreads();
    if (MostSplits > 1) {
      exchange(p, product.thread, memory, sent, arrivals);
    }
    weights_are_read();
    if (MostSplits > 1) {
      wait_for_bytes(arrivals, turn);
    }
    finish(p, product.thread, own, residual, memory, y);
  }

  // y: the sums of all pieces of K in order, bias and residual.
  __device__ static void finish(const ConvNextStage& p, int thread, const Own& own, const uint32_t (&residual)[kOwn][2],
                                const Memory& memory, __half* y) {
    const int strips = own_strips(p);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int strip = strip_of(thread, i), of = of_product(thread, i);
      if (strip >= strips) {
        return;
      }
      const float* bias = memory.bias + of / 32 * 16 + of % 32 / 4;
      float4 sum = make_float4(bias[0], bias[0], bias[8], bias[8]);
      if constexpr (MostSplits == 1) {
        sum = sum + memory.parts[strip][of];
      } else {
#pragma unroll 2
        for (int part = 0; part < p.splits; ++part) {
          const uint2 theirs = memory.parts[part * strips + strip][of];
          const float2 first = floats(theirs.x), second = floats(theirs.y);
          sum.x = fmaf(first.x, 1 / kSentScale, sum.x);
          sum.y = fmaf(first.y, 1 / kSentScale, sum.y);
          sum.z = fmaf(second.x, 1 / kSentScale, sum.z);
          sum.w = fmaf(second.y, 1 / kSentScale, sum.w);
        }
      }
      const float2 first = floats(transposed(residual[i][0])), second = floats(transposed(residual[i][1]));
      const uint32_t words[2] = {transposed(halves(sum.x + first.x, sum.y + first.y)),
                                 transposed(halves(sum.z + second.x, sum.w + second.y))};
      if (own.place[i] >= 0) {
        store_words(y + own.place[i], words[0]);
        if (own.both[i]) {
          store_words(y + own.place[i] + 8, words[1]);
        }
      }
    }
  }

  // In half precision: where y is finite, parts of it may be larger.
  static constexpr float kSentScale = 1.f / 16;

  // A thread's sums to where they are added up, or are sent from.
  __device__ void stage(const ConvNextStage& p, const Product& product, Memory& memory, Sent& sent) const {
    const int strips = own_strips(p), first = part * strips;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const float* sums = product.sums + 4 * i;
      if constexpr (MostSplits == 1) {
        memory.parts[i][product.thread] = make_float4(sums[0], sums[1], sums[2], sums[3]);
      } else {
        const bool own = static_cast<unsigned>(i - first) < static_cast<unsigned>(strips);
        Sent& to = own ? memory.parts : sent;
        to[i][product.thread] = make_uint2(halves(sums[0] * kSentScale, sums[1] * kSentScale),
                                           halves(sums[2] * kSentScale, sums[3] * kSentScale));
      }
    }
    if (MostSplits > 1) {
      publish_to_copies();
    }
  }

  // Gives the others of the cluster this block's sums of their strips.
  __device__ void exchange(const ConvNextStage& p, int thread, Memory& memory, Sent& sent, uint64_t* arrivals) const {
    const int strips = own_strips(p);
    if (const int other = thread / 32; thread % 32 == 0 && other < p.splits && other != part) {
      send_bytes(memory.parts[part * strips], sent[other * strips], sent_bytes(p), other, arrivals);
    }
  }
  // What is to come of the others' sums; one thread says so.
  __device__ static void expect_sums(const ConvNextStage& p, int thread, uint64_t* arrivals) {
    if (MostSplits > 1 && thread == kTellingThread) {
      expect_bytes(arrivals, (p.splits - 1) * sent_bytes(p));
    }
  }
  __device__ static int sent_bytes(const ConvNextStage& p) {
    return own_strips(p) * static_cast<int>(sizeof(Sent) / kGroups);
  }

  // |h| of a thread's columns on its way here: the norms of some groups of four columns, or the squares of
  // p.few_tiles tiles, two of two groups or four of one.
  struct Norms {
    static constexpr int kWords = FewTiles ? 4 : kQuadsOfThread;
    const uint4* from;
    int few_tiles, quads;
    uint4 values[kWords];

    __device__ Norms(const ConvNextStage& p, int block, const StageProject& work, int thread)
        : few_tiles(FewTiles ? p.few_tiles : 0), quads(p.quads_of_image.value) {
      const int rows = few_tiles > 0 ? p.tiles : 1;
      from = p.mail.at<const uint4>(block, few_tiles > 0 ? p.mail.squares : p.mail.norms) +
             int64_t{work.image} * rows * quads + thread;
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        values[i] = absent_if(row_of(i) < rows && thread + group_of(i) * kThreads < quads);
      }
      load_absent(values, *this);
    }

    __device__ int row_of(int i) const { return few_tiles > 0 ? i & (few_tiles - 1) : 0; }
    __device__ int group_of(int i) const { return few_tiles > 0 ? i >> (few_tiles / 2) : i; }
    __device__ const uint4* operator()(int i) const { return from + row_of(i) * quads + group_of(i) * kThreads; }

    __device__ void receive(float4 (&norms)[kQuadsOfThread]) {
      convnext::receive(values, *this);
#pragma unroll
      for (int i = 0; i < kQuadsOfThread; ++i) {
        norms[i] = floats_of(values[i]);
      }
      if constexpr (FewTiles) {
        const float4 first = floats_of(values[0]) + floats_of(values[1]);
        const float4 second = floats_of(values[2]) + floats_of(values[3]);
        if (few_tiles == 4) {
          norms[0] = roots(first + second);
          norms[1] = make_float4(0.f, 0.f, 0.f, 0.f);
        } else if (few_tiles == 2) {
          norms[0] = roots(first);
          norms[1] = roots(second);
        }
      }
    }
  };

  // 1 / (mean_N |h| + eps) of the image, and gamma |h| of the piece's columns into `memory`; the block meets.
  __device__ float finish_norms(const ConvNextStage& p, Norms& received, int thread, Memory& memory) const {
    float4 norms[kQuadsOfThread];
    received.receive(norms);
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

  // a = h * (1 + gain) of a column's pixels, what is in brackets behind the one rounded too.
  __device__ static void scale(float gain, const uint4 (&h)[kGroups], uint4* a) {
    const uint32_t gains = halves(gain, gain);
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      a[i * Product::kDepth] =
          make_uint4(grown(h[i].x, gains), grown(h[i].y, gains), grown(h[i].z, gains), grown(h[i].w, gains));
    }
  }
};

}  // namespace lpkernels::convnext
