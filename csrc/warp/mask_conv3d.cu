// mask_conv3d on Hopper: the mask head's 7x7x7 convolution with kw folded into the columns.
//
//   P[pixel, k * O + o] = sum_{kd, kh, c} x[pixel + (kd - 3, kh - 3, 0), c] weight[k * O + o, kd, kh, c]
//   logits[pixel, o]    = bias[o] + sum_k P[pixel + k - 3 along w, k * O + o]
//
// Layouts: x (B, D, H, W, C), weight (N, kd, kh, C), logits (B, D, H, W, O) float32. A block owns four whole rows of W
// <= 64 pixels, so that the shifted sum needs nothing of its neighbours, and all N = 160 columns; the columns pass
// through shared memory in FP32. Bound by the tensor cores: 7 * 22 = 154 columns fill a tile that 22 would leave empty.
#include "common/cuda.h"
#include "common/kernel_table.h"
#include "hopper/epilogue.cuh"

namespace lpkernels {
namespace {

using namespace hopper;

constexpr int kOutputs = 22, kTaps = 7, kColumns = 160, kChannels = 144;
constexpr int kTileH = 4, kTileW = 64;
using MaskLoop = HaloLoop<kTileH, kTileW, kColumns, /*TapsH=*/kTaps, /*XStages=*/2, /*WeightStages=*/3, kChannels>;

struct ShiftedSum : ReadsNothingAhead, HasNoValues {
  static constexpr bool kClusters = false, kManyTiles = false;

  struct Params {
    const float* bias;
    float* logits;
  };

  template <class Config>
  static constexpr size_t staged_bytes() {
    return Staged<Config>::kBytes;
  }

  template <class Config>
  static constexpr size_t own_bytes() {
    return 0;
  }

  template <class Config, class Accumulator>
  __device__ static void run(const Params& params, const ConvShape& shape, const ConvBlock& block,
                             const Accumulator& acc, int thread, const EpilogueMemory& memory, NothingAhead) {
    constexpr int kPitch = Staged<Config>::kPitch;
    float* columns = reinterpret_cast<float*>(memory.stages);
    sync_consumers();  // until then the other warpgroup may read the stages that P overwrites
    Staged<Config>::store(acc, thread, columns);
    sync_consumers();
    // A warp sums one pixel at a time, a lane per output: neighbouring lanes read neighbouring columns.
    const int o = thread % 32;
    if (o >= kOutputs) {
      return;
    }
    const float bias = params.bias[o];
    for (int m = thread / 32; m < Config::BlockM; m += 8) {
      const int w = m % kTileW, h = block.h + m / kTileW;
      if (w >= shape.width || h >= shape.height) {
        continue;
      }
      float sum = bias;
      CUTLASS_PRAGMA_UNROLL
      for (int k = 0; k < kTaps; ++k) {
        const int shift = k - kTaps / 2;
        if (w + shift >= 0 && w + shift < kTileW) {  // beyond shape.width P is zero: its x was padding
          sum += columns[(m + shift) * kPitch + k * kOutputs + o];
        }
      }
      const int64_t pixel = ((int64_t{block.b} * shape.depth + block.d) * shape.height + h) * shape.width + w;
      params.logits[pixel * kOutputs + o] = sum;
    }
  }
};

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
  STD_TORCH_CHECK(is(weight, {kColumns, kTaps, kTaps, kChannels}, ScalarType::Half),
                  "mask_conv3d: weight must be contiguous float16 of shape (160, 7, 7, 144), got ",
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
  Tensor logits = torch::stable::new_empty(bias, {x.size(0), x.size(1), x.size(2), x.size(3), kOutputs});
  launch_conv<MaskLoop, ShiftedSum>(
      x.data_ptr(), kChannels, weight.data_ptr(), shape,
      {static_cast<const float*>(bias.data_ptr()), static_cast<float*>(logits.data_ptr())}, current_stream(x));
  check_launch("mask_conv3d");
  return logits;
}

const RegisterKernel mask_kernel(conv_entry<MaskLoop, ShiftedSum>("mask_conv3d"));

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def("mask_conv3d(Tensor x, Tensor weight, Tensor bias) -> Tensor logits");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("mask_conv3d", TORCH_BOX(&lpkernels::mask_conv3d_cuda));
}
