// Convolution on Hopper as an implicit matrix product: TMA loads, wgmma, FP32 accumulators, an own epilogue.
//
//   acc[m, n] = sum over taps t and channels c of x[pixel(m) + offset(t), c] * weight[n, t, c]
//
// Layouts: x is channels-last (B, D, H, W, C), a slice of a wider buffer if need be; weight (N, taps, C). A block owns
// a box of output pixels (its BlockM rows m) and BlockN outputs, and goes on to another while there are any. Two
// producer threads keep boxes in flight, of x and of weights, across tiles if the epilogue leaves their memory alone;
// two warpgroups multiply; two warps fetch what the epilogue needs of each output. Where an image has too few tiles for
// the chip, the blocks of a cluster share one tile's sum (`split`). How boxes come and are multiplied is the main
// loop's (box_loop.cuh, halo_loop.cuh), what becomes of the sums the epilogue's (epilogue.cuh).
#pragma once

#include <atomic>

#include <cutlass/arch/reg_reconfig.h>

#include "common/dependent_launch.cuh"
#include "common/kernel_table.h"
#include "hopper/block_memory.cuh"
#include "hopper/box_loop.cuh"
#include "hopper/cluster_sums.cuh"
#include "hopper/halo_loop.cuh"
#include "hopper/tensor_map.h"
#include "hopper/work.cuh"

namespace lpkernels::hopper {

template <class Loop, class Epilogue>
__global__ void __launch_bounds__(Loop::Config::Threads, 1)
    conv_kernel(const __grid_constant__ ConvMaps maps, const ConvShape shape, const typename Epilogue::Params params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace cute;
  using Config = typename Loop::Config;
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& storage = *reinterpret_cast<typename Loop::Storage*>(memory);
  const int warpgroup = threadIdx.x / 128;
  const bool shared = kShares<Loop, Epilogue> && shape.split > 1;
  const EpilogueMemory epilogue_memory = BlockMemory<Loop, Epilogue>::of(memory, shared);
  if (threadIdx.x == 0) {
    cute::prefetch_tma_descriptor(&maps.x);
    cute::prefetch_tma_descriptor(&maps.weight);
    storage.init();
    cutlass::arch::fence_barrier_init();
    if constexpr (kShares<Loop, Epilogue>) {
      if (shared) {
        Epilogue::template Sums<Config>::expect(shape.split, epilogue_memory.received);
      }
    }
  }
  __syncthreads();
  if (shared) {
    cluster_arrive_relaxed();  // waited for before anything is sent
  }
  typename Loop::Cursors cursors;
  if constexpr (kShares<Loop, Epilogue>) {
    if (shared) {
      Loop::use_stages(cursors, BlockMemory<Loop, Epilogue>::kStages);
    }
  }
  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<Config::ProducerRegisters>();
    Work<Config> work(shape);
    if (threadIdx.x == 0) {
      wait_for_kernel_before();
      do {
        Loop::load_pixels(maps.x, shape, storage, work.block, cursors);
      } while (work.next());
    } else if (threadIdx.x == 32) {  // no kernel before this one writes weights: they come while that drains
      do {
        Loop::load_weights(maps.weight, shape, storage, work.block, cursors);
      } while (work.next());
    } else if (Epilogue::kHasValues && threadIdx.x >= 64) {
      wait_for_kernel_before();
      do {
        if (work.block.fresh) {
          Epilogue::template store_values<Config>(params, shape, work.block, threadIdx.x - 64, epilogue_memory);
          sync_values();
        }
      } while (work.next());
    }
    __syncwarp();
    if (shared) {
      cluster_wait();
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<Config::ConsumerRegisters>();
    const int thread = threadIdx.x - 128;
    Work<Config> work(shape);
    wait_for_kernel_before();  // the epilogue reads what others wrote, and writes what they may still read
    do {
      const ConvBlock& block = work.block;
      // What the epilogue needs of each pixel comes while the sums are made.
      const auto ahead = Epilogue::template read_ahead<Config>(params, shape, block, thread);
      typename Config::Accumulator acc;
      Loop::consume(shape, storage, block, thread, acc, cursors);
      if (work.last()) {
        let_next_kernel_start();
      }
      if (Epilogue::kHasValues && block.fresh) {
        sync_values();
      }
      Epilogue::template run<Config>(params, shape, block, acc, thread, epilogue_memory, ahead);
    } while (work.next());
  }
#endif
}

inline int current_device() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}

// Of the current device: 114 to 132 on Hopper.
inline int multiprocessors() {
  int count = 0;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, current_device());
  return std::max(count, 1);
}

// Whether the current GPU is one and the library holds code for it.
inline bool runs_here() {
#ifdef LPKERNELS_SM90A
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, current_device());
  return major == 9;
#else
  return false;
#endif
}

// Raises unless this is a Hopper GPU and the library holds code for it: elsewhere conv_kernel has no body.
inline void check_hopper() {
#ifndef LPKERNELS_SM90A
  STD_TORCH_CHECK(false, "the op library was built without sm_90a: rebuild with TORCH_CUDA_ARCH_LIST=9.0a");
#endif
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, current_device());
  STD_TORCH_CHECK(major == 9, "needs a Hopper GPU (compute capability 9.0), this is ", major, ".x");
}

// Clusters of `size` blocks that run at once.
template <class Loop, class Epilogue>
int clusters_at_once(int size) {
  constexpr int kDevices = 64;  // beyond them the places are shared: only speed depends on the answer
  static std::array<std::atomic<int>, kDevices*(kLargestCluster + 1)> answers{};
  std::atomic<int>& known = answers[current_device() % kDevices * (kLargestCluster + 1) + size];
  if (const int found = known.load(std::memory_order_relaxed)) {
    return found;
  }
  int count = 0;
  const cudaError_t error = lpkernels::clusters_at_once(&conv_kernel<Loop, Epilogue>, Loop::Config::Threads,
                                                        shared_bytes<Loop, Epilogue>(), size, &count);
  STD_TORCH_CHECK(error == cudaSuccess, "conv: clusters of ", size, ": ", cudaGetErrorString(error));
  known.store(std::max(count, 1), std::memory_order_relaxed);
  return std::max(count, 1);
}

// How many blocks should share a tile's sum so that as many as possible run, all at once, each with enough to add up.
template <class Loop, class Epilogue>
int split_for(const ConvShape& shape) {
  static_assert(kShares<Loop, Epilogue>);
  const int all = blocks(shape, Loop::Config::Outputs);
  const int steps = steps_of(shape, shape.axis_phases() / 2, shape.axis_phases() / 2);  // of the phase with the fewest
  const int room = multiprocessors();
  int split = 1;
  for (int size = 2; size <= kLargestCluster && all * size <= room && steps / size >= Loop::kFewestSteps; ++size) {
    if (all <= clusters_at_once<Loop, Epilogue>(size)) {
      split = size;
    }
  }
  return split;
}

// x: the first channel of pixel (0, 0, 0, 0), `pixel_stride` elements between pixels; weight: (phases * outputs, taps,
// C) contiguous. As many blocks as there are pieces of work, or multiprocessors if each may take several.
template <class Loop, class Epilogue>
void launch_conv(const void* x, int64_t pixel_stride, const void* weight, ConvShape shape,
                 const typename Epilogue::Params& params, cudaStream_t stream) {
  using Config = typename Loop::Config;
  check_hopper();
  Loop::set_tile(shape);
  STD_TORCH_CHECK(Config::Channels == 0 || shape.channels == Config::Channels, "conv: made for ", Config::Channels,
                  " channels, got ", shape.channels);
  STD_TORCH_CHECK(Loop::kTapsH == 0 || (shape.taps_h == Loop::kTapsH && shape.grid == Grid::kSame && shape.split == 1),
                  "conv: made for ", Loop::kTapsH, " taps in h, got ", shape.taps_h);
  STD_TORCH_CHECK((kShares<Loop, Epilogue>) || shape.split == 1, "conv: this kernel sums over no cluster");
  STD_TORCH_CHECK(shape.tile_d * shape.tile_h * shape.tile_w == Config::BlockM, "conv: a tile must have ",
                  Config::BlockM, " pixels");
  STD_TORCH_CHECK(!shape.permuted || (shape.outputs % shape.group == 0 && Config::Outputs % shape.group == 0),
                  "conv: outputs must be a multiple of ", shape.group, ", got ", shape.outputs);
  lay_out(shape, Config::Outputs);
  const ConvMaps maps{tensor_map(x, Loop::x_box(pixel_stride, shape)), tensor_map(weight, Loop::weight_box(shape))};
  constexpr int kShared = shared_bytes<Loop, Epilogue>();
  const auto kernel = &conv_kernel<Loop, Epilogue>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  const int all = blocks(shape, Config::Outputs);
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;  // start while the kernel before drains
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(shape.split), 1, 1};
  cudaLaunchConfig_t config{};
  const bool one_tile_each = shape.split > 1 || !Epilogue::kManyTiles;
  config.gridDim = dim3(one_tile_each ? all * shape.split : std::min(all, multiprocessors()));
  config.blockDim = dim3(Config::Threads);
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = shape.split > 1 ? 2 : 1;
  cudaLaunchKernelEx(&config, kernel, maps, shape, params);
  check_launch("conv");
}

// An entry of the kernel table.
template <class Loop, class Epilogue>
KernelEntry conv_entry(const char* name) {
  return {name, reinterpret_cast<const void*>(&conv_kernel<Loop, Epilogue>), Loop::Config::Threads,
          static_cast<size_t>(shared_bytes<Loop, Epilogue>())};
}

}  // namespace lpkernels::hopper
