// Consecutive ConvNeXt V2 blocks of one size in one kernel, and the step before them: the halves of each block in turn,
// by thread blocks that stay where they are.
//
//   x = step(x);  for each block:  h, squares = expand(x),  x = y = project(h, squares) + x
//
// (stage_step.cuh, stage_expand.cuh, stage_project.cuh.) Layouts: x, y (B, H, W, C), the weights as in the ops of the
// halves, with the block of the network in front. A thread block has a multiprocessor to itself, and the same places of
// both halves throughout. Whatever thread blocks hand each other goes through the L2, in words that tell by themselves
// whether they have arrived (mail.cuh): x, v, h, squares and norms. Nobody waits for more than what it reads. The mail
// has three slots; the next one, which all have read, is made absent while this one is used, behind a barrier of the
// grid that has half a block of the network to come about. Weights of either half come by TMA as soon as those before
// them have been read; the products are wgmma's (warpgroup_product.cuh), for Hopper alone.
#pragma once

#include "convnext/stage_expand.cuh"
#include "convnext/stage_project.cuh"
#include "convnext/stage_step.cuh"

namespace lpkernels::convnext {

// Where a thread block's shared memory has what.
template <class Expand, class Project>
struct StageMemory {
  uint64_t arrivals[5];  // of both halves' weights, of taps and biases, of sums and of norms from the cluster
  Expand expand_work;    // worked out once
  Project project_work;
  typename Expand::Memory expand;
  typename Project::Memory project;
  alignas(16) __half halo[Expand::Shape::kSize];
  union {  // whatever was sent has arrived before the next sums are staged
    alignas(16) typename Expand::Staged staged;
    alignas(16) typename Project::Sent sent;
  };
  // Not the last: the product reads beyond them where its last 64 columns are not all there.
  alignas(1024) uint4 project_weights[Project::Product::kWeightBytes / 16];
  alignas(1024) uint4 expand_weights[Expand::Product::kWeightBytes / 16];
  alignas(16) __half a[std::max(Expand::kABytes, Project::kABytes) / sizeof(__half)];
};

// Makes all words of a block of the network's slot absent, by `threads` threads of every thread block.
__device__ inline void make_absent(const Mail& mail, int block, int thread, int threads) {
  unsigned char* slot = mail.slot(block);
  const int stride = 16 * static_cast<int>(gridDim.x) * threads;
#pragma unroll 4
  for (int i = 16 * (block_index() * threads + thread); i < mail.slot_bytes; i += stride) {
    store_words(slot + i, absent_if(true));
  }
}

// Grid: as many thread blocks as either half has, in whole clusters of the second's pieces of K.
template <class Expand, class Project, class Step>
__global__ void __launch_bounds__(kThreads, 1) convnext_stage_kernel(const __grid_constant__ ConvNextStage p) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Memory = StageMemory<Expand, Project>;
  Memory& memory = *reinterpret_cast<Memory*>(shared_memory());
  const BoxedWeights<typename Expand::Product> expand_weights{p.expand_weights, memory.expand_weights, memory.arrivals};
  const BoxedWeights<typename Project::Product> project_weights{p.project_weights, memory.project_weights,
                                                                memory.arrivals + 1};
  const BoxedWeights<typename Project::Product> step_weights{p.step_weights, memory.project_weights,
                                                             memory.arrivals + 1};
  uint64_t* constants = memory.arrivals + 2;
  const bool expands = block_index() < p.expand_blocks, projects = block_index() < p.project_blocks;
  // By those that ask.
  const auto ask_for_expand_weights = [&](int i, int thread) {
    expand_weights.ask(i, memory.expand_work.first_n, 0, thread);
  };
  const auto ask_for_project_weights = [&](int i, int thread) {
    const Project work = memory.project_work;
    const int more = thread == kConvolving ? work.ask_for_gamma(p, i, memory.project, memory.arrivals + 1) : 0;
    project_weights.ask(i, work.first_n, work.first_k(), thread, more);
  };
  // Weights that the memory takes as long to give as a block of the network: brought to the L2 one block ahead, by one
  // thread block of those that share them.
  const auto prefetch = [&](int i, int thread) {
    constexpr bool kMany = Expand::Product::kDepth > 384;
    if (const Expand work = memory.expand_work; kMany && expands && i < p.blocks && work.image + work.tile == 0) {
      expand_weights.prefetch(i, work.first_n, 0, thread);
    }
    if (const Project work = memory.project_work;
        kMany && projects && i < p.blocks && work.image + work.first_strip == 0) {
      project_weights.prefetch(i, work.first_n, work.first_k(), thread);
    }
  };
  // Taps and biases of the first half of a block of the network, and the bias of the second of another.
  const auto ask_for_constants = [&](int expand, int project) {
    int bytes = 0;
    if (expands && expand < p.blocks) {
      bytes += memory.expand_work.ask(p, expand, memory.expand, constants);
    }
    if (projects && (project >= 0 || p.steps())) {
      const float* bias = project >= 0 ? p.bias + int64_t{project} * p.channels : p.step.bias;
      bytes += memory.project_work.ask(p, bias, memory.project, constants);
    }
    expect_bytes(constants, bytes);
  };

  if (threadIdx.x == kTellingThread) {
#pragma unroll
    for (int i = 0; i < 5; ++i) {
      init_arrivals(memory.arrivals + i);
    }
    memory.expand_work = Expand(p, block_index());
  } else if (threadIdx.x == 0) {
    memory.project_work = Project(p, block_index());
  }
  __syncthreads();
  arrive_at_cluster();
  if (threadIdx.x == 0) {
    ask_for_constants(0, -1);
  } else if (asks(threadIdx.x)) {
    if (projects && p.steps()) {
      const Project work = memory.project_work;
      step_weights.ask(0, work.first_n, work.first_k(), threadIdx.x);
    }
    if (projects && !p.steps()) {
      ask_for_project_weights(0, threadIdx.x);
    }
  }
  Expand::begin(memory.expand, thread_index());
  Project::Norms::begin(memory.project.norms, thread_index());
  const typename Project::Own own(p, memory.project_work, thread_index());
  publish_to_copies();  // and to the tensor cores
  wait_for_cluster();   // all of its blocks run: their memory may be written
  wait_for_kernel_before();
  const GridBarrier barrier;
  __syncthreads();
  // Makes the block's part of the first slot absent, and says so.
  const auto open_first_slot = [&] {
    if (const int thread = thread_index(); thread >= kConvolving) {
      make_absent(p.mail, 0, thread - kConvolving, kWarpgroup);
      meet<2, kWarpgroup>();
      if (thread == kTellingThread) {
        barrier.arrive();
      }
    }
  };
  if (!projects || !p.steps()) {
    open_first_slot();
  }
  const typename Project::Arrivals arrivals{memory.arrivals + 3, memory.arrivals + 4};
  const auto first_half = [&](int i) {
    const bool last = i + 1 == p.blocks;
    if (const int thread = thread_index(); thread >= kConvolving) {
      if (!last) {
        make_absent(p.mail, i + 1, thread - kConvolving, kWarpgroup);  // read by all, who have met behind it
      }
      if (expands) {
        expand_weights.wait(i);
        Expand::add_up_weights(memory.expand_weights, thread, memory.expand);
      }
      if (i == 0) {
        barrier.wait(0);  // for those that have nothing to convolve
      }
    } else if (expands) {
      const Expand work = memory.expand_work;
      work.convolve(p, i, thread, memory.expand, memory.halo, [&] { i == 0 ? barrier.wait(0) : void(); });
    }
    wait_for_cluster();  // the others have received this block's sums, and it has used theirs
    const auto while_multiplying = [&] {
      if (thread_index() == kTellingThread && !last) {
        barrier.arrive();  // its part of the next slot is absent
      }
    };
    if (expands) {
      const Expand work = memory.expand_work;
      work.run(p, i, thread_index(), memory.expand, memory.staged, memory.a, memory.expand_weights, while_multiplying,
               [&] { expand_weights.wait(i); });
    } else {
      __syncthreads();
      while_multiplying();
    }
    if (thread_index() == kTellingThread) {
      ask_for_constants(i + 1, i);
    }
    if (!p.few_tiles) {
      add_up_squares(p, i, thread_index());
    }
  };
  // What the last warpgroup does for the next block of the network while others multiply.
  const auto prepare = [&](int i, int thread) {
    if (i < p.blocks) {
      if (expands && asks(thread)) {
        ask_for_expand_weights(i, thread);
      }
      wait_for_bytes(constants, i);
      Expand::pack_taps(thread - kConvolving, memory.expand);
      if (thread >= kThreads - 32 && (i > 0 || p.steps())) {
        barrier.wait(i);  // its slot may be written; many that ask would be in the way of those that tell
      }
    } else {
      wait_for_bytes(constants, i);  // the bias
    }
  };
#pragma unroll 1
  for (int i = -1; i < p.blocks; ++i) {  // -1: the step, if any; its second half is run through by the same code
    if (i >= 0) {
      first_half(i);
    }
    const int thread = thread_index();
    const bool multiplies = projects && (i >= 0 || p.steps());
    const Project work = memory.project_work;
    typename Project::Residual residual = {};
    const auto product = [&] {
      if (!multiplies) {
        return typename Project::Product(thread);
      }
      if (i < 0) {
        return work.template step<Step>(p, thread, memory.a, memory.project_weights, arrivals, open_first_slot,
                                        [&] { step_weights.wait(0); });
      }
      return work.run(p, i, thread, own, memory.project, memory.a, memory.project_weights, arrivals, residual,
                      [&] { project_weights.wait(i + p.steps()); });
    }();
    if (thread >= kConvolving) {
      prepare(i + 1, thread);
    }
    if (multiplies) {
      work.add_up(p, i, own, product, residual, memory.project, memory.sent, arrivals, [&] {
        if (asks(thread) && i + 1 < p.blocks) {
          ask_for_project_weights(i + 1, thread);
          prefetch(i + 2, thread);
        }
      });
    } else {
      __syncthreads();
    }
    arrive_at_cluster();
  }
  wait_for_cluster();
#endif
}

// An instance of the kernel, for so many channels and outputs of the first half as one of the second's clusters takes.
template <class E, class P>
struct StageVariant {
  using Expand = E;
  using Project = P;
  using Step = StageStep<Project, Expand::Product::kDepth / 2>;  // of half as many channels, at most
  using Memory = StageMemory<Expand, Project>;
  static constexpr int kMostChannels = Expand::Product::kDepth;
  static constexpr int kMostWide = Project::kMostWide;
  static constexpr auto kKernel = &convnext_stage_kernel<Expand, Project, Step>;
  static_assert(sizeof(Memory) <= 227 << 10);
};

// Thread blocks: 128, 128, 96 and 96; of 64, 32, 64 and 32 pixels by 192, 192, 64 and 64 outputs, and 32, 32, 64 and 64
// by 96, 96, 64 and 64.
template <int MostSplits>
using NarrowProject = StageProject<WarpgroupProduct<32, 96, 384>, /*FewTiles=*/false, MostSplits>;
using WideProject = StageProject<WarpgroupProduct<64, 64, 384>, /*FewTiles=*/true, /*MostSplits=*/8>;
using Stage96 = StageVariant<StageExpand<8, 6, WarpgroupProduct<64, 192, 96>>, NarrowProject<1>>;
using Stage192 = StageVariant<StageExpand<4, 6, WarpgroupProduct<32, 192, 192>>, NarrowProject<2>>;
using Stage384 = StageVariant<StageExpand<8, 2, WarpgroupProduct<64, 64, 384>>, WideProject>;
using Stage768 = StageVariant<StageExpand<4, 2, WarpgroupProduct<32, 64, 768>>, WideProject>;

// Fills in what the sizes tell, and calls run(variant, blocks of the grid, in 64 bits: a grid too large is not held).
template <class Run>
void with_stage(ConvNextStage& p, Run&& run) {
  const auto call = [&](auto variant) {
    using V = decltype(variant);
    using Expand = typename V::Expand;
    using Project = typename V::Project;
    const int pixels = p.height * p.width;
    p.tiles = ceil_div(p.height, Expand::kPatchH) * ceil_div(p.width, kPatchW);
    p.strips = p.height * ceil_div(p.width, kPatchW);
    p.splits = Project::kLeastSplits;
    while (p.splits * Project::Product::kDepth < p.wide) {
      p.splits *= 2;
    }
    p.own_strips = share_of(Project::kGroups, p.splits);
    Mail& mail = p.mail;
    int64_t end = 0;
    const auto place = [&](int64_t numbers, int bytes) {
      const auto first = static_cast<int>(end);  // small, if the GPU holds the grid
      end += (numbers * bytes + 15) / 16 * 16;
      return first;
    };
    const int64_t tiles = int64_t{p.batch} * p.tiles;
    mail.x = place(int64_t{p.batch} * pixels * p.channels, sizeof(__half));
    mail.v = place(tiles * Expand::kPixels * p.channels, sizeof(__half));
    mail.h = place(int64_t{p.batch} * p.strips * kPatchW * p.wide, sizeof(__half));
    mail.squares = place(tiles * p.wide, sizeof(float));
    mail.norms = place(int64_t{p.batch} * p.wide, sizeof(float));
    mail.slot_bytes = static_cast<int>(end);
    const int tiles_w = ceil_div(p.width, kPatchW), columns = ceil_div(p.wide, Expand::Product::kColumns);
    p.expand_columns = Divisor(columns);
    p.expand_tiles = Divisor(p.tiles);
    p.expand_tiles_w = Divisor(tiles_w);
    p.vectors_of_block = ceil_div(p.channels / 8, columns);
    const int64_t expand_blocks = int64_t{columns} * p.tiles * p.batch;
    const int project_tiles = ceil_div(p.strips, Project::kGroups);
    p.project_splits = Divisor(p.splits);
    p.project_tiles = Divisor(project_tiles);
    p.project_columns = Divisor(ceil_div(p.channels, Project::Product::kColumns));
    const int64_t project_blocks = int64_t{project_tiles} * p.project_columns.value * p.splits * p.batch;
    const int64_t grid = (max(expand_blocks, project_blocks) + p.splits - 1) / p.splits * p.splits;
    p.expand_blocks = static_cast<int>(expand_blocks);
    p.project_blocks = static_cast<int>(project_blocks);
    p.quads_of_image = Divisor(p.wide / 4);
    p.few_tiles = Project::Norms::few_tiles(p.tiles);
    p.quads_of_block = p.few_tiles ? 0 : static_cast<int>((p.batch * p.wide / 4 + grid - 1) / grid);
    run(variant, grid);
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
