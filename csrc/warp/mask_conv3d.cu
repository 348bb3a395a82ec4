// mask_conv3d on Hopper: the mask head's 7x7x7 convolution with kw folded into the columns.
//
//   P[pixel, k * O + o] = sum_{kd, kh, c} x[pixel + (kd - 3, kh - 3, 0), c] w[k * O + o, kd, kh, c]
//   logits[pixel, o]    = bias[o] + sum_k P[pixel + k - 3 along w, k * O + o]
//
// Layouts: x (B, D, H, W, C), logits (B, D, H, W, O) float32, the weight as products that two rows of y share, tiles in
// the order of their use (hopper/row_pairs.h). A block owns four whole rows of W <= 64 pixels, so that the shifted sum
// needs nothing of its neighbours, and all N = 160 columns, which pass through shared memory in FP32; two blocks of a
// cluster share the weights' way there. Bound by the tensor cores and shared memory alike: 7 * 22 = 154 columns fill a
// tile that 22 would leave empty.
#include "common/cuda.h"
#include "common/kernel_table.h"
#include "hopper/epilogue.cuh"
#include "hopper/row_pair_loop.cuh"

namespace lpkernels {
namespace {

using namespace hopper;

constexpr int kOutputs = 22, kTaps = kPairTaps, kColumns = kPairColumns, kChannels = kPairChannels;
constexpr int kTileW = kPairTileW;
using Config = RowPairConfig;
using Columns = Staged<Config>;

struct Logits {
  const float* bias;
  float* logits;

  // The shifted sums of a block's columns.
  template <class Columns>
  __device__ void store(const ConvShape& shape, const ConvBlock& block, const float* columns, int thread) const {
    // A warp sums one pixel at a time, a lane per output: neighbouring lanes read neighbouring columns.
    const int o = thread % 32;
    if (o >= kOutputs) {
      return;
    }
    const float own = bias[o];
    for (int m = thread / 32; m < Config::BlockM; m += 8) {
      const int w = m % kTileW, h = block.h + pair_row(m / kTileW % 2, m / kTileW / 2);
      if (w >= shape.width || h >= shape.height || block.b >= shape.batch) {
        continue;
      }
      float sum = own;
      CUTLASS_PRAGMA_UNROLL
      for (int k = 0; k < kTaps; ++k) {
        const int shift = k - kTaps / 2;
        if (w + shift >= 0 && w + shift < kTileW) {  // beyond shape.width P is zero: its x was padding
          sum += columns[(m + shift) * Columns::kPitch + k * kOutputs + o];
        }
      }
      const int64_t pixel = ((int64_t{block.b} * shape.depth + block.d) * shape.height + h) * shape.width + w;
      logits[pixel * kOutputs + o] = sum;
    }
  }
};

// The last block may have no tile, for there are two to a cluster: its rows lie beyond the batch, and are zeros.
__global__ void __launch_bounds__(Config::Threads, 1)
    mask_conv3d_kernel(const __grid_constant__ RowPairMaps maps, const ConvShape shape, const Logits to) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& storage = *reinterpret_cast<RowPairLoop::Storage*>(memory);
  static_assert(Columns::kBytes <= offsetof(RowPairLoop::Storage, x_ring));  // the other block still arrives at those
  if (threadIdx.x == 0) {
    cute::prefetch_tma_descriptor(&maps.x);
    cute::prefetch_tma_descriptor(&maps.left_over);
    cute::prefetch_tma_descriptor(&maps.weight);
    storage.init();
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  cute::cluster_sync();
  const ConvBlock block = block_at(shape, 0, static_cast<int>(blockIdx.x), 0, 0);
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<Config::ProducerRegisters>();
    if (threadIdx.x == 0) {
      wait_for_kernel_before();
      RowPairLoop::load_pixels(maps, storage, block);
    } else if (threadIdx.x == 32) {  // no kernel before this one writes weights: they come while that drains
      RowPairLoop::load_weights(maps, storage);
    }
    __syncwarp();
    cute::cluster_arrive();
  } else {
    cutlass::arch::warpgroup_reg_alloc<Config::ConsumerRegisters>();
    const int thread = static_cast<int>(threadIdx.x) - 128;
    wait_for_kernel_before();  // that may still read what this one writes
    Config::Accumulator acc;
    RowPairLoop::consume(storage, thread, acc);
    let_next_kernel_start();
    cute::cluster_arrive();
    float* columns = reinterpret_cast<float*>(memory);
    sync_consumers();  // until then the other warpgroup may read the stages that P overwrites
    Columns::store(acc, thread, columns);
    sync_consumers();
    to.store<Columns>(shape, block, columns, thread);
    __syncwarp();
  }
  cute::cluster_wait();  // the other block arrives at barriers of this one until it is done with the weights
#endif
}

bool is(const Tensor& tensor, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  if (tensor.dim() != static_cast<int64_t>(sizes.size()) || tensor.scalar_type() != dtype || !tensor.is_contiguous()) {
    return false;
  }
  int64_t i = 0;
  for (const int64_t size : sizes) {
    if (tensor.size(i++) != size) {
      return false;
    }
  }
  return true;
}

Tensor mask_conv3d_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  STD_TORCH_CHECK(x.dim() == 5 && x.numel() > 0 && x.size(4) == kChannels && x.size(3) <= kTileW && x.is_contiguous() &&
                      x.scalar_type() == ScalarType::Half,
                  "mask_conv3d: x must be contiguous float16 of shape (B, D, H, W <= 64, 144), got ", shape_string(x));
  STD_TORCH_CHECK(is(weight, {kColumns, kPairSteps, kStepTiles, 64}, ScalarType::Half),
                  "mask_conv3d: weight must be contiguous float16 of shape (160, 16, 9, 64), got ",
                  shape_string(weight));
  STD_TORCH_CHECK(is(bias, {kOutputs}, ScalarType::Float),
                  "mask_conv3d: bias must be contiguous float32 of shape (22), got ", shape_string(bias));
  STD_TORCH_CHECK(weight.get_device_index() == x.get_device_index() && bias.get_device_index() == x.get_device_index(),
                  "mask_conv3d: x, weight and bias must be on one device");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  ConvShape shape{.batch = static_cast<int>(x.size(0)),
                  .depth = static_cast<int>(x.size(1)),
                  .height = static_cast<int>(x.size(2)),
                  .width = static_cast<int>(x.size(3)),
                  .channels = kChannels,
                  .outputs = kColumns,
                  .taps_d = kTaps,
                  .taps_h = kTaps,
                  .taps_w = 1};
  set_pair_tile(shape);
  check_hopper();
  Tensor logits = torch::stable::new_empty(bias, {x.size(0), x.size(1), x.size(2), x.size(3), kOutputs});
  const RowPairMaps maps{tensor_map(x.data_ptr(), pair_box(shape, false)),
                         tensor_map(x.data_ptr(), pair_box(shape, true), CU_TENSOR_MAP_SWIZZLE_32B),
                         tensor_map(weight.data_ptr(), pair_weight_box())};
  const int blocks = ceil_div(tiles(shape), Config::kCluster) * Config::kCluster;
  launch_clusters("mask_conv3d", &mask_conv3d_kernel, dim3(blocks), Config::Threads, sizeof(RowPairLoop::Storage),
                  Config::kCluster, current_stream(x), maps, shape,
                  Logits{static_cast<const float*>(bias.data_ptr()), static_cast<float*>(logits.data_ptr())});
  return logits;
}

const RegisterKernel mask_kernel({"mask_conv3d", reinterpret_cast<const void*>(&mask_conv3d_kernel), Config::Threads,
                                  sizeof(RowPairLoop::Storage)});

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def("mask_conv3d(Tensor x, Tensor weight, Tensor bias) -> Tensor logits");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("mask_conv3d", TORCH_BOX(&lpkernels::mask_conv3d_cuda));
}
