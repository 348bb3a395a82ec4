// upsample_conv on Hopper: nearest upsampling by 2 or 4 in h and w, conv of three taps an axis, bias and activation.
//
//   y[s h + r, s w + q] = act(bias + the sum of products that phase (r, q) shares with others)        neighbors.h
//
// With scale 4 y may be stored as its classes (hopper/conv_shape.h): each value once, 3 by 3 for a small pixel.
//
// Layouts: x and y channels-last, y perhaps a slice of a wider buffer; weight (3, 3, O, [3,] C). A block owns 128 small
// pixels and 32 outputs of all that is made of them: nine products in registers, added up at the end. Bound by shared
// memory, from where pixels go to registers; the smallest maps by reading the weight, so a cluster shares their sums.
#include "common/cuda.h"
#include "common/kernel_table.h"
#include "hopper/activation.h"
#include "hopper/epilogue.cuh"
#include "hopper/neighbor_loop.cuh"

namespace lpkernels {

using namespace hopper;

// Phases: along an axis, 2 (scale 2) or 3.
template <int Phases>
struct Enlarge : ReadsNothingAhead {
  struct Params {
    const float* bias;
    __half* out;
    int64_t out_stride;
    float negative_slope;
    int side;  // rows of y for one of x: 2, 3 (classes), 4
  };

  using F = Fragment<8>;
  struct TileOutputs {
    static constexpr int BlockN = kNeighborOutputs;
  };
  using Bias = OutputValues<TileOutputs, 1>;
  static constexpr bool kClusters = Phases == 2, kManyTiles = true, kHasValues = true;

  template <class Config>
  using Sums = ClusterSums<Config, 1>;

  template <class Config>
  static constexpr size_t staged_bytes() {
    return 0;
  }
  template <class Config>
  static constexpr size_t own_bytes() {
    return Bias::kBytes;
  }
  template <class Config>
  static constexpr size_t shared_own_bytes() {
    return Bias::kBytes;
  }

  template <class Config>
  __device__ static void store_values(const Params& params, const ConvShape&, const ConvBlock& block, int thread,
                                      const EpilogueMemory& memory) {
    Bias::store(memory.own, block, thread,
                [&](int n, float (&values)[1]) { values[0] = __ldg(params.bias + block.n + n); });
  }

  template <class Config, class Accumulator>
  __device__ static void run(const Params& params, const ConvShape& shape, const ConvBlock& block, Accumulator& acc,
                             int thread, const EpilogueMemory& memory, const NothingAhead&) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Accumulator::kOfPhase; ++i) {
      add_neighbors([&](int product, int i) -> float& { return acc.products[product](i); }, i);
    }
    const float* bias = Bias::of_tile(memory.own, block) + F::output(thread, 0);
    if constexpr (kClusters) {
      if (shape.split > 1) {
        return Sums<Config>::add_up(shape.split, acc, thread, memory.received,
                                    [&](int, int s, int phase, float (&v)[1][8]) {
                                      store(params, Pixels(params, shape, block, thread, s), phase, bias, v[0]);
                                    });
      }
    }
    CUTLASS_PRAGMA_UNROLL
    for (int s = 0; s < 2; ++s) {
      const Pixels pixels(params, shape, block, thread, s);
      CUTLASS_PRAGMA_UNROLL
      for (int phase = 0; phase < Phases * Phases; ++phase) {
        float v[8];
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < 8; ++i) {
          v[i] = acc(F::index(Config::BlockN, 0, s, phase, i));
        }
        store(params, pixels, phase, bias, v);
      }
    }
  }

 private:
  // What is made of a small pixel of the thread, and its eight outputs.
  struct Pixels {
    bool exist;
    __half* first;
    int64_t line;  // elements

    __device__ Pixels(const Params& params, const ConvShape& shape, const ConvBlock& block, int thread, int s) {
      const Pixel at = pixel_at(shape, block, F::row(thread, 0, s));
      exist = inside(shape, at);
      line = params.out_stride * (int64_t{shape.width} * params.side);
      const int64_t plane = int64_t{block.b} * shape.depth + at.d;
      first = params.out + (plane * shape.height + at.h) * params.side * line +
              int64_t{at.w} * params.side * params.out_stride + block.n + F::output(thread, 0);
    }
  };

  __device__ static void store(const Params& params, const Pixels& pixels, int phase, const float* bias,
                               float (&v)[8]) {
    constexpr int kApart = Phases == 2 ? 2 : 1, kMostCopies = Phases == 2 ? 1 : 2;
    const EnlargedRows rows = enlarged_rows(Phases == 2 ? 2 : params.side, phase / Phases * kApart);
    const EnlargedRows columns = enlarged_rows(Phases == 2 ? 2 : params.side, phase % Phases * kApart);
    float of_output[8];
    load_vector(bias, of_output);
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < 8; ++i) {
      v[i] = leaky_relu(v[i] + of_output[i], params.negative_slope);
    }
    const HalfBits<8> bits = to_halves(v);
    __half* out = pixels.first + rows.first * pixels.line + columns.first * params.out_stride;
    CUTLASS_PRAGMA_UNROLL
    for (int r = 0; r < kMostCopies; ++r) {
      CUTLASS_PRAGMA_UNROLL
      for (int q = 0; q < kMostCopies; ++q) {
        if (pixels.exist && r < rows.count && q < columns.count) {
          *reinterpret_cast<HalfBits<8>*>(out + r * pixels.line + q * params.out_stride) = bits;
        }
      }
    }
  }
};

namespace {

template <int Phases>
void launch(const Activation& x, const Tensor& weight, ConvShape shape, const typename Enlarge<2>::Params& own,
            cudaStream_t stream) {
  using Loop = NeighborLoop<Phases>;
  const typename Enlarge<Phases>::Params params{own.bias, own.out, own.out_stride, own.negative_slope, own.side};
  Loop::set_tile(shape);
  if constexpr (Loop::Config::Clusters) {
    shape.split = split_for<Loop, Enlarge<Phases>>(shape);
  }
  shape.permuted = true;
  launch_conv<Loop, Enlarge<Phases>>(x.data, x.pixel_stride, weight.data_ptr(), shape, params, stream);
}

void upsample_conv_cuda(const Tensor& x_tensor, const Tensor& weight, const Tensor& bias, double negative_slope,
                        const Tensor& out_tensor) {
  const Activation x = activation("upsample_conv", "x", x_tensor), out = activation("upsample_conv", "out", out_tensor);
  const ConvShape shape = neighbor_shape("upsample_conv", x, weight);
  const int side = out.height / x.height;
  STD_TORCH_CHECK(out_tensor.dim() == x_tensor.dim() && side >= 2 && side <= 4 && out.batch == x.batch &&
                      out.depth == x.depth && out.height == side * x.height && out.width == side * x.width &&
                      out.channels == shape.outputs && shape.outputs % kNeighborOutputs == 0,
                  "upsample_conv: out must be x enlarged 2 or 4 times, or its classes, with the weight's outputs, a "
                  "multiple of 32; got ",
                  shape_string(out_tensor), " and ", shape_string(x_tensor));
  check_floats("upsample_conv", "bias", bias, {shape.outputs});
  const Enlarge<2>::Params params{static_cast<const float*>(bias.data_ptr()), static_cast<__half*>(out.data),
                                  out.pixel_stride, static_cast<float>(negative_slope), side};
  const torch::stable::accelerator::DeviceGuard guard(x_tensor.get_device_index());
  if (side == 2) {
    launch<2>(x, weight, shape, params, current_stream(x_tensor));
  } else {
    launch<3>(x, weight, shape, params, current_stream(x_tensor));
  }
}

const RegisterKernel kernels[] = {RegisterKernel(conv_entry<NeighborLoop<2>, Enlarge<2>>("upsample_conv<2x2>")),
                                  RegisterKernel(conv_entry<NeighborLoop<3>, Enlarge<3>>("upsample_conv<3x3>"))};

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def("upsample_conv(Tensor x, Tensor weight, Tensor bias, float negative_slope, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("upsample_conv", TORCH_BOX(&lpkernels::upsample_conv_cuda));
}
