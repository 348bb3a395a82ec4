// Consecutive ConvNeXt V2 blocks of one size in one kernel: the halves of each in turn, by thread blocks that stay
// where they are.
//
//   for each block:  h, squares = expand(x),  x = y = project(h, squares) + x      (stage_expand.cuh, stage_project.cuh)
//
// Layouts: x, y (B, H, W, C), the weights as in the ops of the halves, with the block of the network in front. A thread
// block has a multiprocessor to itself, and the same places of both halves throughout. Whatever thread blocks hand each
// other goes through the L2, in words that tell by themselves whether they have arrived (mail.cuh): x, v, h, squares
// and norms, five ways for a block of the network, and nobody waits for more than what it reads. The mail has three
// slots; a slot that all have read is made absent again, behind a barrier of the grid that has a whole block of the
// network to come about. Weights of either half come by TMA as soon as those before them have been read; the products
// are wgmma's (warpgroup_product.cuh), for Hopper alone.
#pragma once

#include "convnext/stage_expand.cuh"
#include "convnext/stage_project.cuh"

namespace lpkernels::convnext {

// What a thread block does in either half, if anything. Worked out once: divisions are some thirty instructions each.
template <class Expand, class Project>
struct StagePlaces {
  Expand expand;
  Project project;
  NormShare norms;
  bool expands, projects;

  __device__ StagePlaces(const ConvNextStage& p, int block)
      : expand(p, block),
        project(p, block),
        norms(p, block),
        expands(block < Expand::blocks(p.wide, p.tiles, p.batch)),
        projects(block < Project::blocks(p.height * p.width, p.channels, p.splits, p.batch)) {}
};

// Where a thread block's shared memory has what.
template <class Expand, class Project>
struct StageMemory {
  uint64_t arrivals[3];  // of both halves' weights, and of the second's sums
  StagePlaces<Expand, Project> places;
  typename Expand::Memory expand;
  typename Project::Memory project;
  union {
    typename Expand::Sums sums;
    struct {
      alignas(16) unsigned char received[Project::kReceivedBytes];
      alignas(16) __half halo[Expand::Shape::kSize];
    };
  };
  // Not the last: the product reads beyond them where its last 64 columns are not all there.
  alignas(1024) uint4 project_weights[Project::Product::kWeightBytes / 16];
  alignas(1024) uint4 expand_weights[Expand::Product::kWeightBytes / 16];
  alignas(1024) unsigned char a[std::max(Expand::kABytes, Project::kABytes)];
};

// The mail's slots are used again, so that blocks of the network meet behind `block`.
__device__ inline bool meets_behind(const ConvNextStage& p, int block) {
  return p.blocks > kMailSlots && block >= 0 && block + 2 < p.blocks;
}

// Makes all words of a piece of the mail absent, by `threads` threads of every thread block.
__device__ inline void make_absent(unsigned char* first, int64_t bytes, int thread, int threads) {
  const auto stride = static_cast<int64_t>(gridDim.x) * threads;
#pragma unroll 4
  for (int64_t i = int64_t{block_index()} * threads + thread; i < bytes / 16; i += stride) {
    store_words(first + 16 * i, absent_if(true));
  }
}

// Grid: as many thread blocks as either half has, in whole clusters of the second's pieces of K.
template <class Expand, class Project>
__global__ void __launch_bounds__(kThreads, 1) convnext_stage_kernel(const __grid_constant__ ConvNextStage p) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Memory = StageMemory<Expand, Project>;
  Memory& memory = *reinterpret_cast<Memory*>(shared_memory());
  const BoxedWeights<typename Expand::Product> expand_weights{p.expand_weights, memory.expand_weights, memory.arrivals};
  const BoxedWeights<typename Project::Product> project_weights{p.project_weights, memory.project_weights,
                                                                memory.arrivals + 1};
  const StagePlaces<Expand, Project>& places = memory.places;
  if (threadIdx.x == kAskingThread) {
    memory.places = StagePlaces<Expand, Project>(p, block_index());
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      init_arrivals(memory.arrivals + i);
    }
  }
  __syncthreads();
  arrive_at_cluster();
  if (places.expands) {
    const Expand work = places.expand;
    expand_weights.ask(0, work.first_n, 0);
    work.begin(p, memory.expand, thread_index());
    typename Expand::OwnTaps taps;
    work.prefetch(p, 0, thread_index(), memory.expand, taps);
    taps.store(memory.expand.taps, thread_index());
    commit_copies();
  }
  if (places.projects) {
    const Project work = places.project;
    project_weights.ask(0, work.first_n, work.first_k());
  }
  publish_to_copies();  // and to the tensor cores
  wait_for_cluster();   // all of its blocks run: their memory may be written
  wait_for_kernel_before();
  const GridBarrier barrier;
  make_absent(p.mail.first, int64_t{min(p.blocks, kMailSlots)} * p.mail.slot_bytes, thread_index(), kThreads);
  wait_for_copies<0>();
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier.arrive();
  }
#pragma unroll 1
  for (int i = 0; i < p.blocks; ++i) {
    if (const int thread = thread_index(); thread >= kConvolving) {
      if (meets_behind(p, i - 1)) {
        barrier.wait(i);
      }
      if (meets_behind(p, i - 1) && i + 2 < p.blocks) {
        make_absent(p.mail.slot(i - 1), p.mail.slot_bytes, thread - kConvolving, kWarpgroup);
      }
      if (places.expands) {
        expand_weights.wait(i);
        Expand::add_up_weights(memory.expand_weights, thread, memory.expand);
      }
    } else if (places.expands) {
      const Expand work = places.expand;
      work.convolve(p, i, thread, memory.expand, memory.halo, [&] {
        if (i == 0) {
          barrier.wait(0);
        }
      });
    }
    if (i == 0) {
      barrier.wait(0);  // who has nothing to convolve
    }
    if (places.expands) {
      const Expand work = places.expand;
      work.run(
          p, i, thread_index(), memory.expand, memory.sums, reinterpret_cast<__half*>(memory.a), memory.expand_weights,
          [&] { expand_weights.wait(i); },
          [&] { i + 1 < p.blocks ? expand_weights.ask(i + 1, work.first_n, 0) : void(); });
    }
    {
      const int thread = thread_index();
      const Project work = places.project;
      float4 gamma[Project::kQuadsOfThread];
      typename Expand::OwnTaps taps;
      if (places.projects) {
        work.prefetch(p, i, thread, memory.project, gamma);
      }
      const bool goes_on = places.expands && i + 1 < p.blocks;
      if (goes_on) {
        const Expand next = places.expand;
        next.prefetch(p, i + 1, thread, memory.expand, taps);
      }
      commit_copies();
      const NormShare norms = places.norms;
      norms.add_up(p, i, thread);
      const auto end_of_prefetch = [&] {
        if (goes_on) {
          taps.store(memory.expand.taps, thread);
        }
        wait_for_copies<0>();
      };
      const auto all_read = [&] {
        if (thread == kAskingThread && meets_behind(p, i)) {
          barrier.arrive();
        }
      };
      if (places.projects) {
        work.run(
            p, i, thread, memory.project, memory.a, memory.received, gamma, memory.project_weights,
            memory.arrivals + 2, [&] { project_weights.wait(i); }, end_of_prefetch,
            [&] {
              i + 1 < p.blocks ? project_weights.ask(i + 1, work.first_n, work.first_k()) : void();
              all_read();
            });
      } else {
        end_of_prefetch();
        __syncthreads();
        all_read();
      }
    }
  }
#endif
}

// An instance of the kernel, for so many channels and outputs of the first half as one of the second's clusters takes.
template <class E, class P, int Splits>
struct StageVariant {
  using Expand = E;
  using Project = P;
  using Memory = StageMemory<Expand, Project>;
  static constexpr int kMostChannels = Expand::Product::kDepth;
  static constexpr int kMostWide = Splits * Project::Product::kDepth;
  static constexpr auto kKernel = &convnext_stage_kernel<Expand, Project>;
  static_assert(sizeof(Memory) <= 227 << 10);
};

// Thread blocks: 128, 128, 96 and 96; of 64, 32, 64 and 32 pixels by 192, 192, 64 and 64 outputs, and 32, 32, 64 and 64
// by 96, 96, 64 and 64.
using NarrowProject = StageProject<WarpgroupProduct<32, 96, 384>>;
using WideProject = StageProject<WarpgroupProduct<64, 64, 384>>;
using Stage96 = StageVariant<StageExpand<8, 6, WarpgroupProduct<64, 192, 96>>, NarrowProject, 2>;
using Stage192 = StageVariant<StageExpand<4, 6, WarpgroupProduct<32, 192, 192>>, NarrowProject, 2>;
using Stage384 = StageVariant<StageExpand<8, 2, WarpgroupProduct<64, 64, 384>>, WideProject, 8>;
using Stage768 = StageVariant<StageExpand<4, 2, WarpgroupProduct<32, 64, 768>>, WideProject, 8>;

// Fills in what the sizes tell, and calls run(variant, blocks of the grid).
template <class Run>
void with_stage(ConvNextStage& p, Run&& run) {
  const auto call = [&](auto variant) {
    using V = decltype(variant);
    using Expand = typename V::Expand;
    using Project = typename V::Project;
    const int pixels = p.height * p.width;
    p.tiles = ceil_div(p.height, Expand::kPatchH) * ceil_div(p.width, kPatchW);
    p.splits = 1;
    while (p.splits * Project::Product::kDepth < p.wide) {
      p.splits *= 2;
    }
    Mail& mail = p.mail;
    int64_t end = 0;
    const auto place = [&](int64_t numbers, int bytes) {
      const int64_t first = end;
      end += (numbers * bytes + 15) / 16 * 16;
      return first;
    };
    const int64_t tiles = int64_t{p.batch} * p.tiles;
    mail.x = place(int64_t{p.batch} * pixels * p.channels, sizeof(__half));
    mail.v = place(tiles * Expand::kPixels * p.channels, sizeof(__half));
    mail.h = place(int64_t{p.batch} * pixels * p.wide, sizeof(__half));
    mail.squares = place(tiles * p.wide, sizeof(float));
    mail.norms = place(int64_t{p.batch} * p.wide, sizeof(float));
    mail.slot_bytes = end;
    const int blocks = max(Expand::blocks(p.wide, p.tiles, p.batch),
                           Project::blocks(pixels, p.channels, p.splits, p.batch));
    run(variant, ceil_div(blocks, p.splits) * p.splits);
  };
  const auto takes = [&](auto variant) { return p.channels <= variant.kMostChannels && p.wide <= variant.kMostWide; };
  if (takes(Stage96{})) {
    call(Stage96{});
  } else if (takes(Stage192{})) {
    call(Stage192{});
  } else if (takes(Stage384{})) {
    call(Stage384{});
  } else {
    call(Stage768{});
  }
}

inline int64_t mail_bytes(const ConvNextStage& p) {
  return int64_t{min(p.blocks, kMailSlots)} * p.mail.slot_bytes;
}

}  // namespace lpkernels::convnext
