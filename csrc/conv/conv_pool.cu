// conv_pool on Hopper: y = the mean over 2x2 pixels of relu(conv(x, weight) + bias), a down block of the hourglass.
//
// Layouts: x (B, D, H, W, C), y (B, D, H/2, W/2, O), both perhaps slices of a wider buffer; weight (O, 3, 3, 3, C). A
// block owns 8 pixels in w: then rows r and r + 8 of its tile are neighbours in h and lie in one thread, those in w in
// threads next to each other, and pooling needs registers and one shuffle. Small maps share a tile's sum among the
// blocks of a cluster, perhaps in tiles of 2 or 4 pixels in w, whose neighbours in h lie in other threads too. Bound by
// the tensor cores, the smallest maps by reading the weight.
#include "common/cuda.h"
#include "common/kernel_table.h"
#include "hopper/activation.h"
#include "hopper/epilogue.cuh"

namespace lpkernels {

using namespace hopper;

struct PoolEpilogue : ReadsNothingAhead {
  static constexpr bool kClusters = true, kManyTiles = true, kHasValues = true;
  static constexpr int kWidth = 8;
  using F = Fragment<kWidth>;

  struct Params {
    const float* bias;
    __half* out;
    int64_t out_stride;
  };

  template <class Config>
  using Sums = ClusterSums<Config, 2>;

  template <class Config>
  static constexpr size_t staged_bytes() {
    return 0;
  }

  template <class Config>
  static constexpr size_t own_bytes() {
    return OutputValues<Config, 1>::kBytes;
  }

  template <class Config>
  static constexpr size_t shared_own_bytes() {
    return own_bytes<Config>();
  }

  template <class Config>
  __device__ static void store_values(const Params& params, const ConvShape& shape, const ConvBlock& block, int thread,
                                      const EpilogueMemory& memory) {
    OutputValues<Config, 1>::store(memory.own, block, thread, [&](int n, float (&bias)[1]) {
      if (block.n + n < shape.outputs) {
        bias[0] = __ldg(params.bias + block.n + n);
      }
    });
  }

  // Rows g and g + 8 of product tile_m, at the lane's outputs of group j: v. All lanes of a warp call it together.
  template <bool AnyTile>
  __device__ static void pool(const Params& params, const ConvShape& shape, const ConvBlock& block, int thread,
                              const float* all_bias, int tile_m, int j, float (&v)[2][kWidth]) {
    float bias[kWidth];
    load_vector(all_bias + F::output(thread, j), bias);
    CUTLASS_PRAGMA_UNROLL
    for (int s = 0; s < 2; ++s) {
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kWidth; ++i) {
        v[s][i] = fmaxf(v[s][i] + bias[i], 0.f);
      }
    }
    if (AnyTile && shape.tile_w < 8) {
      CUTLASS_PRAGMA_UNROLL
      for (int s = 0; s < 2; ++s) {
        add_neighbours(v[s], 4);
        add_neighbours(v[s], 4 * shape.tile_w);
        store(params, shape, block, F::row(thread, tile_m, s), F::output(thread, j), v[s]);
      }
      return;
    }
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      v[0][i] += v[1][i];
    }
    add_neighbours(v[0], 4);
    store(params, shape, block, F::row(thread, tile_m, 0), F::output(thread, j), v[0]);
  }

  // Those of the lane whose number differs by `lanes`.
  template <int Width>
  __device__ static void add_neighbours(float (&v)[Width], int lanes) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Width; ++i) {
      v[i] += __shfl_xor_sync(~0u, v[i], lanes);
    }
  }

  // v: the sum of four pixels, where `row` of the tile is the upper left of them.
  template <int Width>
  __device__ static void store(const Params& params, const ConvShape& shape, const ConvBlock& block, int row,
                               int output, const float (&v)[Width]) {
    const Pixel at = pixel_at(shape, block, row);
    if (block.n + output >= shape.outputs || at.w % 2 != 0 || at.h % 2 != 0 || !inside(shape, at)) {
      return;
    }
    float mean[Width];
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Width; ++i) {
      mean[i] = v[i] * 0.25f;
    }
    const int64_t line = (int64_t{block.b} * shape.depth + at.d) * (shape.height / 2) + at.h / 2;
    store_vector(params.out + (line * (shape.width / 2) + at.w / 2) * params.out_stride + block.n + output, mean);
  }

  template <class Config, class Accumulator>
  __device__ static void run(const Params& params, const ConvShape& shape, const ConvBlock& block, Accumulator& acc,
                             int thread, const EpilogueMemory& memory, NothingAhead) {
    const float* bias = OutputValues<Config, 1>::of_tile(memory.own, block);
    if constexpr (Config::Clusters) {
      if (shape.split > 1) {
        return Sums<Config>::add_up(shape.split, acc, thread, memory.received,
                                    [&](int tile_m, int, int j, float (&v)[2][kWidth]) {
                                      pool<true>(params, shape, block, thread, bias, tile_m, j, v);
                                    });
      }
    }
    CUTLASS_PRAGMA_UNROLL
    for (int tile_m = 0; tile_m < Config::BlockM / 128; ++tile_m) {
      CUTLASS_PRAGMA_UNROLL
      for (int j = 0; j < Config::BlockN / F::kGroup; ++j) {
        float v[2][kWidth];
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kWidth; ++i) {
          v[0][i] = acc(F::index(Config::BlockN, tile_m, 0, j, i));
          v[1][i] = acc(F::index(Config::BlockN, tile_m, 1, j, i));
        }
        pool<false>(params, shape, block, thread, bias, tile_m, j, v);
      }
    }
  }
};

namespace {

// Few outputs: 32 rows of 8 pixels read their halo twice less often than single boxes would.
using Narrow = HaloLoop</*TileH=*/32, /*TileW=*/8, /*BlockN=*/64, /*TapsH=*/3, /*XStages=*/3, /*WeightStages=*/9>;
using Square = BoxLoop<ConvConfig</*BlockM=*/128, /*BlockN=*/128, /*Stages=*/6, /*Channels=*/0, /*Clusters=*/true>>;

// A large map has tiles enough; the blocks of a small one share sums, and its whole width in a tile wastes less of it.
void launch_square(const Activation& x, const Tensor& weight, ConvShape shape, const PoolEpilogue::Params& params,
                   cudaStream_t stream) {
  constexpr int kTile = Square::Config::BlockM;
  shape.tile_w = std::min(8, std::max(2, 1 << log2_of(shape.width)));
  shape.tile_h = std::min(kTile / shape.tile_w, std::max(2, 1 << log2_of(shape.height)));
  shape.tile_d = kTile / shape.tile_w / shape.tile_h;
  complete(shape, kTile);
  shape.split = split_for<Square, PoolEpilogue>(shape);
  if (shape.split == 1 && shape.tile_w != 8) {  // pooled without shuffles in h
    shape.tile_w = 8;
    shape.tile_h = 2;
    shape.tile_d = kTile / 16;
    complete(shape, kTile);
  }
  shape.permuted = true;
  launch_conv<Square, PoolEpilogue>(x.data, x.pixel_stride, weight.data_ptr(), shape, params, stream);
}

void launch_narrow(const Activation& x, const Tensor& weight, ConvShape shape, const PoolEpilogue::Params& params,
                   cudaStream_t stream) {
  shape.permuted = true;
  launch_conv<Narrow, PoolEpilogue>(x.data, x.pixel_stride, weight.data_ptr(), shape, params, stream);
}

void conv_pool_cuda(const Tensor& x_tensor, const Tensor& weight, const Tensor& bias, const Tensor& out_tensor) {
  const Activation x = activation("conv_pool", "x", x_tensor), out = activation("conv_pool", "out", out_tensor);
  const ConvShape shape = conv_shape("conv_pool", x, weight, Grid::kSame);
  STD_TORCH_CHECK(x_tensor.dim() == 5 && x.height % 2 == 0 && x.width % 2 == 0 && out.batch == x.batch &&
                      out.depth == x.depth && 2 * out.height == x.height && 2 * out.width == x.width &&
                      out.channels == shape.outputs && shape.outputs % 32 == 0,
                  "conv_pool: out must be (B, D, H/2, W/2, O) for x (B, D, H, W, C), O a multiple of 32; got ",
                  shape_string(out_tensor), " and ", shape_string(x_tensor));
  check_floats("conv_pool", "bias", bias, {shape.outputs});
  const PoolEpilogue::Params params{static_cast<const float*>(bias.data_ptr()), static_cast<__half*>(out.data),
                                    out.pixel_stride};
  const torch::stable::accelerator::DeviceGuard guard(x_tensor.get_device_index());
  const cudaStream_t stream = current_stream(x_tensor);
  if (shape.outputs <= 64 && shape.taps_h == Narrow::kTapsH && x.width >= 16) {
    launch_narrow(x, weight, shape, params, stream);
  } else {
    launch_square(x, weight, shape, params, stream);
  }
  check_launch("conv_pool");
}

const RegisterKernel kernels[] = {RegisterKernel(conv_entry<Narrow, PoolEpilogue>("conv_pool<256x64, halo>")),
                                  RegisterKernel(conv_entry<Square, PoolEpilogue>("conv_pool<128x128>"))};

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def("conv_pool(Tensor x, Tensor weight, Tensor bias, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("conv_pool", TORCH_BOX(&lpkernels::conv_pool_cuda));
}
