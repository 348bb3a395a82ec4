// Consecutive ConvNeXt V2 blocks of one size in one kernel: the halves of each in turn, by thread blocks that stay
// where they are.
//
//   for each block:  h, squares = depthwise_linear(y),  y = grn_linear(h, squares, residual = y)
//
// Layouts: x, y (B, H, W, C), h (B, H, W, N), squares (B, tiles, N) as in the two ops, their weights with the block in
// front. A thread block has the same places of both ops throughout, a multiprocessor to itself, and meets all others in
// a barrier of the grid between the halves. Its weights of either half come by TMA as soon as those before them have
// been read, a whole block of the network ahead; the products are wgmma's (warpgroup_product.cuh), for Hopper alone.
//
// It is a sequence of some twenty short steps, most of them waits: for the barriers, 5,200 clocks a block of the
// network by stamps in the third published stage, for v on its way through the cluster, 3,300, and for x and h out of
// the L2. Of its arithmetic the convolution takes 2,000 clocks, the two ends with GELU and sums 3,600; the two
// products, with the sums of v beside the first, by count 2,000.
#pragma once

#include "convnext/depthwise_linear.cuh"
#include "convnext/grn_linear.cuh"
#include "convnext/warpgroup_product.cuh"

namespace lpkernels::convnext {

struct ConvNextStage {
  BoxMap expand_weights, project_weights;  // boxes of as many rows as a block has outputs
  DepthwiseLinear expand;                  // of the first block, as the next
  GrnLinear project;
  int blocks, batch;
  int cluster;  // of thread blocks, the larger of the two ops'

  LPKERNELS_HOST_DEVICE DepthwiseLinear expand_of(int block) const {
    DepthwiseLinear p = expand;
    if (block > 0) {
      p.x = project.y;
    }
    p.taps += int64_t{block} * kTaps * kTaps * p.channels;
    p.taps_bias += int64_t{block} * p.channels;
    p.weight += int64_t{block} * p.outputs * p.channels;
    p.bias += int64_t{block} * p.outputs;
    return p;
  }

  LPKERNELS_HOST_DEVICE GrnLinear project_of(int block) const {
    GrnLinear p = project;
    if (block > 0) {
      p.residual = project.y;
    }
    p.gamma += int64_t{block} * p.depth;
    p.weight += int64_t{block} * p.outputs * p.depth;
    p.bias += int64_t{block} * p.outputs;
    return p;
  }
};

// Where a thread block's shared memory has what: the counts of what arrives, the weights of both halves, and what the
// halves take in turn.
template <class Expand, class Project>
struct StageMemory {
  static constexpr int kExpandWeights = 1024;  // boxes begin at multiples of 1024
  static constexpr int kProjectWeights = kExpandWeights + Expand::Product::kWeightBytes;
  static constexpr int kWork = kProjectWeights + Project::Product::kWeightBytes;
};

// Asks for weights: of the last warpgroup, which never has sums to stage.
constexpr int kAskingThread = kThreads - kWarpgroup;

// A thread block's weights of one half: one thread asks for those of a block of the network, all wait for them.
template <class Product>
struct BoxedWeights {
  const BoxMap& map;
  uint4* shared;
  uint64_t* arrival;

  __device__ void ask(int block, int first_n, int first_k) const {
    if (threadIdx.x == kAskingThread) {
      expect_bytes(arrival, Product::kWeightBytes);
#pragma unroll 1
      for (int i = 0; i < Product::kBoxes; ++i) {
        load_box(shared + i * (Product::kBoxBytes / 16), map, first_k + i * kBoxDepth, first_n, block, arrival);
      }
    }
  }
  __device__ void wait(int block) const { wait_for_bytes(arrival, block); }
};

// Grid: as many thread blocks as either op has, in whole clusters.
template <class Expand, class Project>
__global__ void __launch_bounds__(kThreads, 1) convnext_stage_kernel(const __grid_constant__ ConvNextStage p) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Memory = StageMemory<Expand, Project>;
  unsigned char* memory = shared_memory();
  auto* arrivals = reinterpret_cast<uint64_t*>(memory);  // one of expand's, two of project's, and their weights'
  const BoxedWeights<typename Expand::Product> expand_weights{
      p.expand_weights, reinterpret_cast<uint4*>(memory + Memory::kExpandWeights), arrivals + 3};
  const BoxedWeights<typename Project::Product> project_weights{
      p.project_weights, reinterpret_cast<uint4*>(memory + Memory::kProjectWeights), arrivals + 4};
  // Of a thread block whose index is read anew.
  const auto expand_work = [&](const DepthwiseLinear& own, int block) {
    return Expand(own, memory + Memory::kWork, expand_weights.shared, arrivals, block, block & (p.cluster - 1));
  };
  const auto project_work = [&](const GrnLinear& own, int block) {
    return Project(own, memory + Memory::kWork, project_weights.shared, arrivals + 1, block, block & (p.cluster - 1));
  };
  const auto expands = [&](int block) { return block < blocks_of<Expand>(p.expand, p.batch); };
  const auto projects = [&](int block) { return block < blocks_of<Project>(p.project, p.batch); };

  if (threadIdx.x == kAskingThread) {
#pragma unroll
    for (int i = 0; i < 5; ++i) {
      init_arrivals(arrivals + i);
    }
  }
  arrive_at_cluster();
  if (const int block = block_index(); expands(block)) {
    expand_weights.ask(0, expand_work(p.expand, block).place.first_n, 0);
  }
  if (const int block = block_index(); projects(block)) {
    const Project work = project_work(p.project, block);
    project_weights.ask(0, work.place.first_n, work.first_k());
  }
  GridBarrier barrier;
#pragma unroll 1
  for (int i = 0; i < p.blocks; ++i) {
    const bool last = i + 1 == p.blocks;
    {
      const int block = block_index();
      const DepthwiseLinear own = p.expand_of(i);
      const Expand work = expand_work(own, block);
      if (expands(block)) {
        work.prepare(own);
      }
      if (i > 0) {
        barrier.wait();
      } else {
        wait_for_cluster();  // all of its blocks run: their memory may be written
        wait_for_kernel_before();
      }
      if (expands(block)) {
        const auto next = [&] { last ? void() : expand_weights.ask(i + 1, work.place.first_n, 0); };
        work.run(own, i, [&] { expand_weights.wait(i); }, next);
      } else {
        work.stand_by(own);
      }
      barrier.arrive();
    }
    {
      const int block = block_index();
      const GrnLinear own = p.project_of(i);
      Project work = project_work(own, block);
      if (projects(block)) {
        work.prepare(own);
      }
      barrier.wait();
      if (projects(block)) {
        const auto next = [&] { last ? void() : project_weights.ask(i + 1, work.place.first_n, work.first_k()); };
        work.run(own, i, [&] { project_weights.wait(i); }, next);
      }
      if (!last) {
        barrier.arrive();
      }
    }
  }
#endif
}

// An instance of the kernel: in clusters small enough for as many thread blocks as the published stage of so many
// channels has, each with a multiprocessor to itself.
template <class E, class P, int Cluster>
struct StageVariant {
  using Expand = E;
  using Project = P;
  using Memory = StageMemory<Expand, Project>;
  static constexpr int kCluster = Cluster;
  static constexpr int kMostChannels = Expand::Product::kDepth;
  static constexpr int kMostWidth = Cluster * Project::Product::kDepth;
  static constexpr auto kKernel = &convnext_stage_kernel<Expand, Project>;
};

// Thread blocks: 128, 128, 96 and 96; of 64, 32, 64 and 32 pixels by 192, 192, 64 and 64 outputs, and 32, 32, 64 and 64
// by 96, 96, 64 and 64.
using NarrowProject = GrnWork<WarpgroupProduct<32, 96, 384>>;
using WideProject = GrnWork<WarpgroupProduct<64, 64, 384>>;
using Stage96 = StageVariant<DepthwiseWork<8, WarpgroupProduct<64, 192, 96>>, NarrowProject, 2>;
using Stage192 = StageVariant<DepthwiseWork<4, WarpgroupProduct<32, 192, 192>>, NarrowProject, 2>;
using Stage384 = StageVariant<DepthwiseWork<8, WarpgroupProduct<64, 64, 384>>, WideProject, 8>;
using Stage768 = StageVariant<DepthwiseWork<4, WarpgroupProduct<32, 64, 768>>, WideProject, 8>;

// Fills in what both ops derive from their sizes, and calls run(variant, blocks of the grid, bytes of shared memory).
template <class Run>
void with_stage(ConvNextStage& p, Run&& run) {
  const auto call = [&](auto variant) {
    using V = decltype(variant);
    using Expand = typename V::Expand;
    using Project = typename V::Project;
    DepthwiseLinear& expand = p.expand;
    p.project.rows = expand.tiles = tiles_of(expand, Expand::kPatchH);
    choose_cluster(p.project, Project::Product::kRows, V::kCluster);
    expand.cluster = cluster_for(expand, ceil_div(expand.outputs, Expand::Product::kColumns), V::kCluster);
    const int cluster = p.project.splits * p.project.tiles;
    p.cluster = max(expand.cluster, cluster);
    expand.at = typename Expand::Memory(expand.channels, expand.cluster, kMultiprocessor - V::Memory::kWork);
    const int blocks = max(blocks_of<Expand>(expand, p.batch), blocks_of<Project>(p.project, p.batch));
    const int bytes = Project::Memory::kBytes;
    run(variant, ceil_div(blocks, p.cluster) * p.cluster, V::Memory::kWork + max(expand.at.bytes, bytes));
  };
  const auto takes = [&](auto variant) {
    return p.expand.channels <= variant.kMostChannels && p.expand.outputs <= variant.kMostWidth;
  };
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

}  // namespace lpkernels::convnext
