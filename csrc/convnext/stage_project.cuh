// The second half of a ConvNeXt V2 block within convnext_stage:
//
//   n = |h|_HW / (mean_N |h|_HW + 1e-6),  y = (h * (1 + gamma * n)) W^T + bias + x
//
// |h| as stage_norms.cuh has it. A thread block owns kGroups strips of eight pixels of an image, kColumns outputs and
// one of `splits` pieces of 384 of N: a thread multiplies a column of h, eight pixels a vector, by its factor, in half
// precision, on its way into shared memory. The blocks of a cluster have the pieces of the same outputs, and add up
// their sums through distributed shared memory, in half precision on the way, each those of some strips, in order. x of
// these comes from where the same threads have written it.
//
// A chain of waits. Clocks of the third published stage, by stamps, from the block's own h on: squares 1,500, h 2,400,
// of which 48 KB out of the L2 take 1,100; multiplying it by its factors and writing it 900, product 1,250, the
// cluster's sums and y 1,700.
#pragma once

#include <algorithm>
#include <type_traits>

#include "convnext/stage_norms.cuh"

namespace lpkernels::convnext {

// FewTiles: as StageNorms says. MostSplits: of K, at least two if not one; what they send each other is in half
// precision.
template <class P, bool FewTiles, int MostSplits>
struct StageProject {
  using Product = P;
  static constexpr int kLeastSplits = MostSplits > 1 ? 2 : 1;
  static constexpr int kMostWide = MostSplits * Product::kDepth;  // of N
  using Norms = StageNorms<FewTiles, MostSplits, Product::kDepth>;
  static constexpr int kGroups = Product::kGroups, kColumns = Product::kColumns;
  static constexpr int kSumming = Product::kSumming;
  // Of y: a thread has two pixels of two columns of so many strips, for all sums that its block adds up.
  static constexpr int kOwn = ceil_div(kGroups / kLeastSplits * kSumming, kThreads);
  static_assert(Product::kDepth < kThreads && kGroups % MostSplits == 0);
  using Sum = std::conditional_t<MostSplits == 1, float4, uint2>;  // of two columns by two pixels

  struct Memory {
    typename Norms::Memory norms;
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
      const int count = p.own_strips, strips_w = p.expand_tiles_w.value;
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
      copy_bulk(memory.norms.gamma, p.gamma + int64_t{block} * p.wide + first_k(), bytes, arrival);
    }
    return bytes;
  }
  // Asks for the bias, of a block of the network or of the step; bytes of it. One thread does.
  __device__ int ask(const ConvNextStage& p, const float* bias, Memory& memory, uint64_t* arrival) const {
    const int bytes = kFloat * min(p.channels - first_n, Product::kColumns);
    copy_bulk(memory.bias, bias + first_n, bytes, arrival);
    return bytes;
  }

  // What of the others of the cluster is counted as it arrives: sums of the product, and of norms.
  struct Arrivals {
    uint64_t *sums, *norms;
  };
  using Residual = uint32_t[kOwn][2];

  // The sums of the product that this thread has, and x of the pixels whose sums its block adds up.
  template <class Wait>
  __device__ Product run(const ConvNextStage& p, int block, int thread, const Own& own, Memory& memory, __half* a,
                         const uint4* weights, const Arrivals& arrivals, Residual& residual,
                         Wait&& wait_for_weights) const {
    const __half* from = p.mail.at<const __half>(block, p.mail.h) + own.h;
    const auto place_of = [&](int i) { return reinterpret_cast<const uint4*>(from + i * kPatchW * p.wide); };
    if (thread == kTellingThread) {
      expect_sums(p, arrivals.sums);
      Norms::expect(p, arrivals.norms);
    }
    uint4 first[1] = {absent_if(own.strips > 0)}, h[kGroups];
    if (!FewTiles) {
      receive(first, place_of);  // not all at once while nothing is there
    }
    Norms norms(p, block, image, first_k(), thread);
    if (FewTiles) {
      norms.receive();  // just before h, of all its tiles
    }
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      h[i] = i == 0 ? first[0] : absent_if(own.strips > i);
    }
    load_absent(h, place_of);
    load_residual(p, block, own, residual);
    wait_for_weights();
    if (!FewTiles) {
      norms.receive();
    }
    const float norm = norms.finish(p, block, part, thread, memory.norms, arrivals.norms);
    receive(h, place_of);
    if (thread < Product::kDepth) {
      const float gamma = own.strips > 0 ? memory.norms.gamma[thread] : 0.f;
      scale(gamma * norm, h, reinterpret_cast<uint4*>(a) + thread);
    }
    publish_to_copies();  // and to the tensor cores
    __syncthreads();
    Product product(thread);
    if (product.multiplies()) {
      const Operand columns = operand_of_columns(a, Product::kDepth);
      Product::template multiply<true>(weights, product.tile(), product.sums,
                                       [&](int i) { return columns.at(i * Product::kStep); });
    }
    return product;
  }

  // Those of the step before the first block of the network (stage_step.cuh).
  template <class Step, class While, class Wait>
  __device__ Product step(const ConvNextStage& p, int thread, __half* a, const uint4* weights, const Arrivals& arrivals,
                          While&& while_loading, Wait&& wait_for_weights) const {
    if (thread == kTellingThread) {
      expect_sums(p, arrivals.sums);
    }
    Step::normalize(p, *this, thread, reinterpret_cast<uint4*>(a), while_loading);
    publish_to_copies();  // and to the tensor cores
    __syncthreads();
    Product product(thread);
    if (product.multiplies()) {
      wait_for_weights();
      const Operand vectors = operand_of_vectors(a, Product::kRows);
      Product::template multiply<false>(weights, product.tile(), product.sums,
                                        [&](int i) { return vectors.at(i * (Product::kStep / 8) * Product::kRows); });
    }
    return product;
  }

  // From these to y, into the mail or, of the last block of the network, the answer. block: -1 is the step.
  // weights_are_read(): called when they have been.
  template <class Read>
  __device__ void add_up(const ConvNextStage& p, int block, const Own& own, const Product& product,
                         const Residual& residual, Memory& memory, Sent& sent, const Arrivals& arrivals,
                         Read&& weights_are_read) const {
    if (product.sums_exist()) {
      stage(p, product, memory, sent);
    }
    __syncthreads();
    if (MostSplits > 1) {
      exchange(p, product.thread, memory, sent, arrivals.sums);
    }
    weights_are_read();
    const int thread = thread_index();
    float4 sums[kOwn];
    __half* to[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {  // what waits for nobody
      const float* bias = memory.bias + of_product(thread, i) / 32 * 16 + thread % 32 / 4;
      const float2 first = floats(transposed(residual[i][0])), second = floats(transposed(residual[i][1]));
      sums[i] = make_float4(bias[0] + first.x, bias[0] + first.y, bias[8] + second.x, bias[8] + second.y);
      to[i] = worked_out((block + 1 == p.blocks ? p.y : p.mail.at<__half>(block + 1, p.mail.x)) + own.place[i]);
    }
    if (MostSplits > 1) {
      wait_for_bytes(arrivals.sums, block + p.steps());
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (strip_of(thread, i) < p.own_strips) {
        add_parts(p, &memory.parts[strip_of(thread, i)][of_product(thread, i)], sums[i]);
        const uint32_t words[2] = {transposed(halves(sums[i].x, sums[i].y)), transposed(halves(sums[i].z, sums[i].w))};
        if (own.place[i] >= 0) {
          store_words(to[i], words[0]);
          if (own.both[i]) {
            store_words(to[i] + 8, words[1]);
          }
        }
      }
    }
  }

 private:
  __device__ static void load_residual(const ConvNextStage& p, int block, const Own& own, Residual& residual) {
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

  // In half precision: where y is finite, parts of it may be larger.
  static constexpr float kSentScale = 1.f / 16;

  // sum += those of all pieces of K, in order; received: the first.
  __device__ static void add_parts(const ConvNextStage& p, const Sum* received, float4& sum) {
    if constexpr (MostSplits == 1) {
      sum = sum + *received;
    } else {
      constexpr int kAtOnce = std::min(MostSplits, 4);
#pragma unroll 1
      for (int part = 0; part < p.splits; part += kAtOnce) {
        uint2 theirs[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const bool exists = part + i < p.splits;
          theirs[i] = exists ? received[(part + i) * p.own_strips * kSumming] : make_uint2(0, 0);
        }
#pragma unroll
        for (const uint2& pairs : theirs) {
          const float2 first = floats(pairs.x), second = floats(pairs.y);
          sum.x = fmaf(first.x, 1 / kSentScale, sum.x);
          sum.y = fmaf(first.y, 1 / kSentScale, sum.y);
          sum.z = fmaf(second.x, 1 / kSentScale, sum.z);
          sum.w = fmaf(second.y, 1 / kSentScale, sum.w);
        }
      }
    }
  }

  // A thread's sums to where they are added up, or are sent from.
  __device__ void stage(const ConvNextStage& p, const Product& product, Memory& memory, Sent& sent) const {
    const int strips = p.own_strips, first = part * strips;
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
    const int strips = p.own_strips;
    if (const int other = thread / 32; thread % 32 == 0 && other < p.splits && other != part) {
      send_bytes(memory.parts[part * strips], sent[other * strips], sent_bytes(p), other, arrivals);
    }
  }
  // What is to come of the others' sums; one thread says so.
  __device__ static void expect_sums(const ConvNextStage& p, uint64_t* arrivals) {
    if (MostSplits > 1) {
      expect_bytes(arrivals, (p.splits - 1) * sent_bytes(p));
    }
  }
  __device__ static int sent_bytes(const ConvNextStage& p) {
    return p.own_strips * static_cast<int>(sizeof(Sent) / kGroups);
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
