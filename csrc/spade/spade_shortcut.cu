// spade_shortcut on Hopper: the shortcut of a block that changes its width, SPADE and 1x1 conv, in one kernel.
//
//   [gamma1 | beta] = conv3x3(actv, weight) + bias          beta: that of SPADE behind conv_s, as wide as y
//   y = conv_s((x - mean) * rstd * gamma1) + beta           x's instance-norm statistics are given
//
// actv may be a grid of classes (hopper/conv_shape.h): then y is as that enlarged, and the weight has 16 phases.
//
// Layouts: actv (B, H, W, K), x (B, H, W, 256) and y (B, H, W, 64), x perhaps half as high and wide and read
// nearest-upsampled, all perhaps slices of wider buffers; weight (256 + 64, 3, 3, K), gamma's rows, then beta's; conv_s
// (64, 256), which stays in shared memory. A block owns 128 pixels and all 320 columns, 64 pixels a warpgroup. A thread
// holds gamma of eight neighbouring channels in the places where wgmma wants its left factor, so the modulated values
// go back to the tensor cores as they are, and their products onto the sums of beta. Bound by the tensor cores and by
// shared memory alike.
#include "common/kernel_table.h"
#include "spade/modulation.cuh"

namespace lpkernels {

struct Shortcut {
  struct Params {
    SpadeParams spade;
    const __half* weight;  // of conv_s
  };

  using F = Fragment<8>;
  using Element = cute::half_t;
  static constexpr int kChannels = 256, kOutputs = 64;
  static constexpr int kGroups = kChannels / F::kGroup, kRows = 2;  // vectors of channels of a row; rows of a thread
  static constexpr int kAhead = 2, kUnderWay = 3;  // groups of x read before the products, and at once after them
  static constexpr bool kClusters = false, kManyTiles = true, kHasValues = true;
  static constexpr int kValues = 3;  // bias, of every column; mean and reciprocal deviation of the channels
  static constexpr size_t kWeightBytes = sizeof(__half) * kOutputs * kChannels;

  // The product with conv_s, 16 channels a step; conv_s lies in shared memory as 4 boxes of 64 channels.
  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<Element, Element, float, cute::Shape<cute::_128, cute::Int<kOutputs>, cute::_64>,
                                 cute::GMMA::Major::K, cute::GMMA::Major::K>(),
      cute::Layout<cute::Shape<cute::_2, cute::_1, cute::_1>>{}));
  using WeightLayout = decltype(cute::tile_to_shape(cute::GMMA::Layout_K_SW128_Atom<Element>{},
                                                    cute::Shape<cute::Int<kOutputs>, cute::Int<kChannels>>{}));

  struct Ahead {
    uint4 x[kAhead][kRows];
  };

  template <class Config>
  static constexpr size_t staged_bytes() {
    return 0;
  }

  template <class Config>
  static constexpr size_t own_bytes() {
    return kWeightBytes + OutputValues<Config, kValues>::kBytes;
  }

  // The thread's pixels.
  struct Rows {
    SpadeRow row[kRows];
    bool inside[kRows];

    __device__ Rows(const Params& params, const ConvShape& shape, const ConvBlock& block, int thread) {
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const Pixel at = pixel_at(shape, block, F::row(thread, 0, r));
        inside[r] = hopper::inside(shape, at);
        row[r] = SpadeRow(params.spade, shape, block, at);
      }
    }

    __device__ void read(int group, int thread, uint4 (&x)[kRows]) const {
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < kRows; ++r) {
        x[r] = inside[r] ? load_halves<8>(row[r].x + F::output(thread, group)) : uint4{};
      }
    }
  };

  template <class Config>
  __device__ static Ahead read_ahead(const Params& params, const ConvShape& shape, const ConvBlock& block, int thread) {
    const Rows rows(params, shape, block, thread);
    Ahead ahead;
    CUTLASS_PRAGMA_UNROLL
    for (int group = 0; group < kAhead; ++group) {
      rows.read(group, thread, ahead.x[group]);
    }
    return ahead;
  }

  template <class Config>
  __device__ static void store_values(const Params& params, const ConvShape&, const ConvBlock& block, int thread,
                                      const EpilogueMemory& memory) {
    if (block.first) {
      store_weight(params.weight, thread, memory.own);
    }
    OutputValues<Config, kValues>::store(memory.own + kWeightBytes, block, thread, [&](int n, float (&values)[3]) {
      values[0] = __ldg(params.spade.bias + n);
      if (n < kChannels) {
        const float2 stats = stats_of(params.spade, block, n);
        values[1] = stats.x;
        values[2] = stats.y;
      }
    });
  }

  template <class Config, class Accumulator>
  __device__ __forceinline__ static void run(const Params& params, const ConvShape& shape, const ConvBlock& block,
                                             Accumulator& acc, int thread, const EpilogueMemory& memory,
                                             const Ahead& ahead) {
    using namespace cute;
    static_assert(Config::BlockM == 128 && Config::MainN == kChannels && Config::SideN == kOutputs);
    const float* values = OutputValues<Config, kValues>::of_tile(memory.own + kWeightBytes, block);
    const Rows rows(params, shape, block, thread);
    uint4 x[kUnderWay][kRows];
    CUTLASS_PRAGMA_UNROLL
    for (int group = 0; group < kUnderWay; ++group) {
      if (group >= kAhead) {
        rows.read(group, thread, x[group]);
        continue;
      }
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < kRows; ++r) {
        x[group][r] = ahead.x[group][r];
      }
    }
    Mma mma;
    mma.accumulate_ = GMMA::ScaleOut::One;
    const auto weight = make_tensor(make_smem_ptr(reinterpret_cast<Element*>(memory.own)), WeightLayout{});
    const auto fragment_weight = mma.get_thread_slice(thread).partition_fragment_B(weight);
    constexpr int kSteps = kChannels / 16;
    auto modulated = make_tensor<Element>(Shape<Shape<_2, _2, _2>, _1, Int<kSteps>>{});
    auto words = recast<uint32_t>(modulated);
    warpgroup_fence_operand(acc.side);
    // The products of a group run while the next is modulated.
    CUTLASS_PRAGMA_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      const float* of_group = values + F::output(thread, group);
      float bias[8], mean[8], rstd[8];
      load_vector(of_group, bias);
      load_vector(of_group + Config::BlockN, mean);
      load_vector(of_group + 2 * Config::BlockN, rstd);
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < kRows; ++r) {
        float v[8];
        to_floats<8>(x[group % kUnderWay][r], v);
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < 8; ++i) {
          v[i] = (v[i] - mean[i]) * rstd[i] * (acc.main(F::index(kChannels, 0, r, group, i)) + bias[i]);
        }
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < 8; i += 2) {
          const __half2 pair = __floats2half2_rn(v[i], v[i + 1]);
          words(F::index(kChannels, 0, r, group, i) / 2) = reinterpret_cast<const uint32_t&>(pair);
        }
      }
      if (group + kUnderWay < kGroups) {
        rows.read(group + kUnderWay, thread, x[group % kUnderWay]);
      }
      warpgroup_fence_operand(words);
      warpgroup_arrive();
      CUTLASS_PRAGMA_UNROLL
      for (int k = 2 * group; k < 2 * group + 2; ++k) {
        cute::gemm(mma, modulated(_, _, k), fragment_weight(_, _, k), acc.side);
      }
      warpgroup_commit_batch();
    }
    warpgroup_wait<0>();
    warpgroup_fence_operand(acc.side);
    warpgroup_fence_operand(words);
    store(rows, acc.side, values + kChannels, thread);
  }

 private:
  // conv_s's weight as wgmma reads it, swizzled, both axes in the order of the columns of a weight box. Threads 0
  // to 63.
  __device__ static void store_weight(const __half* weight, int thread, unsigned char* memory) {
    constexpr int kBoxBytes = kOutputs * 128;
    CUTLASS_PRAGMA_NO_UNROLL
    for (int i = thread; i < kOutputs * kGroups; i += 64) {
      const int output = i / kGroups, group = i % kGroups, row = F::column(output);
      uint32_t pairs[4][4];  // of channels 8 q + 2 j and the next
      CUTLASS_PRAGMA_UNROLL
      for (int q = 0; q < 4; ++q) {
        const uint4 bits = load_halves<8>(weight + output * kChannels + group * F::kGroup + 8 * q);
        pairs[q][0] = bits.x, pairs[q][1] = bits.y, pairs[q][2] = bits.z, pairs[q][3] = bits.w;
      }
      CUTLASS_PRAGMA_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int vector = (4 * group + j) % 8;  // of a box's row
        unsigned char* to = memory + group / 2 * kBoxBytes + row * 128 + (vector ^ row % 8) * 16;
        *reinterpret_cast<uint4*>(to) = make_uint4(pairs[0][j], pairs[1][j], pairs[2][j], pairs[3][j]);
      }
    }
    cutlass::arch::fence_view_async_shared();  // wgmma reads it by another way than these stores went
  }

  template <class Sums>
  __device__ __forceinline__ static void store(const Rows& rows, const Sums& sums, const float* bias, int thread) {
    CUTLASS_PRAGMA_UNROLL
    for (int group = 0; group < kOutputs / F::kGroup; ++group) {
      const int output = F::output(thread, group);
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < kRows; ++r) {
        float v[8];
        load_vector(bias + output, v);
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < 8; ++i) {
          v[i] += sums(F::index(kOutputs, 0, r, group, i));
        }
        if (rows.inside[r]) {
          store_vector(rows.row[r].out + output, v);
        }
      }
    }
  }
};

namespace {

using Loop = BoxLoop<ConvConfig</*BlockM=*/128, /*BlockN=*/Shortcut::kChannels + Shortcut::kOutputs, /*Stages=*/3>>;

void spade_shortcut_cuda(const Tensor& actv_tensor, const Tensor& weight, const Tensor& bias, const Tensor& shortcut,
                         const Tensor& x_tensor, const Tensor& stats, const Tensor& out_tensor) {
  constexpr int kChannels = Shortcut::kChannels, kOutputs = Shortcut::kOutputs;
  STD_TORCH_CHECK(!is_winograd(weight), "spade_shortcut: weight must be one of taps, got ", shape_string(weight));
  const SpadeCall call = spade_call("spade_shortcut", actv_tensor, weight, bias, x_tensor, stats, 1., out_tensor);
  STD_TORCH_CHECK(call.x.channels == kChannels && call.out.channels == kOutputs &&
                      call.shape.outputs == kChannels + kOutputs && call.actv.channels % kBoxChannels == 0,
                  "spade_shortcut: made for x of ", kChannels, " channels, out of ", kOutputs,
                  ", a weight of both together and actv of a multiple of ", kBoxChannels, "; got ",
                  shape_string(x_tensor), ", ", shape_string(out_tensor), ", ", shape_string(weight), " and ",
                  shape_string(actv_tensor));
  STD_TORCH_CHECK(shortcut.scalar_type() == ScalarType::Half && shortcut.is_cuda() && shortcut.is_contiguous() &&
                      shortcut.dim() == 2 && shortcut.size(0) == kOutputs && shortcut.size(1) == kChannels &&
                      reinterpret_cast<uintptr_t>(shortcut.data_ptr()) % 16 == 0,
                  "spade_shortcut: shortcut must be contiguous, aligned float16 (", kOutputs, ", ", kChannels,
                  "), got ", shape_string(shortcut));
  ConvShape shape = call.shape;
  shape.permuted = true;
  const Shortcut::Params params{call.params, static_cast<const __half*>(shortcut.data_ptr())};
  const torch::stable::accelerator::DeviceGuard guard(actv_tensor.get_device_index());
  launch_conv<Loop, Shortcut>(call.actv.data, call.actv.pixel_stride, weight.data_ptr(), shape, params,
                              current_stream(actv_tensor));
}

const RegisterKernel kernels[] = {RegisterKernel(conv_entry<Loop, Shortcut>("spade_shortcut<128x320>"))};

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def(
      "spade_shortcut(Tensor actv, Tensor weight, Tensor bias, Tensor shortcut, Tensor x, Tensor stats, Tensor(a!) "
      "out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("spade_shortcut", TORCH_BOX(&lpkernels::spade_shortcut_cuda));
}
