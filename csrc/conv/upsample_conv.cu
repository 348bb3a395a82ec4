// upsample_conv on Hopper: nearest upsampling by 2 or 4 in h and w, conv of three taps an axis, bias and activation, as
// sub-pixel convolutions on the small grid with summed taps (lpkernels/rewrites.py, upsample_conv_phases).
//
//   y[s h + r, s w + q] = act(bias + sum over 2 x 2 taps of x[h + first(r) + i, w + first(q) + j] weight[phase(r, q),
//   i, j])
//
// With scale 4 y may be stored as its classes (hopper/conv_shape.h): each phase once, at y[3 h + phase, 3 w + phase].
//
// Layouts: x and y channels-last, y perhaps a slice of a wider buffer; weight (phases, O, [3,] 2, 2, C). A block owns
// BlockM small pixels and BlockN outputs of one phase; with scale 4 the middle phase answers for two rows or columns.
// Bound by the tensor cores; the smallest maps by reading the weight, which is why a cluster shares their sums.
#include "common/cuda.h"
#include "common/kernel_table.h"
#include "hopper/activation.h"
#include "hopper/epilogue.cuh"

namespace lpkernels {

using namespace hopper;

struct Upsample {
  struct Params {
    const float* bias;
    __half* out;
    int64_t out_stride;
    float negative_slope;
  };

  static constexpr bool kReads = false;
  static constexpr int kValues = 1;      // bias
  static constexpr int kMostCopies = 2;  // of a value, along an axis

  template <class Config>
  static constexpr size_t own_bytes() {
    return 0;
  }

  __device__ static void values(const Params& params, const ConvShape&, const ConvBlock&, int output,
                                float (&values)[kValues]) {
    values[0] = __ldg(params.bias + output);
  }

  struct Row {
    __half* out;
    int rows, columns;  // of y with this value
  };

  __device__ static Row row(const Params& params, const ConvShape& shape, const ConvBlock& block, const Pixel& at) {
    const int64_t pixel = index_in_y(shape, block, pixel_of_y(shape, block, at));
    return {params.out + pixel * params.out_stride, residues(shape, block.phase_h).count,
            residues(shape, block.phase_w).count};
  }

  __device__ static const __half* address(const Params&, const Row&) { return nullptr; }

  template <int Width>
  __device__ static void apply(const Params& params, const Row&, const float (&values)[kValues][Width],
                               const HalfBits<Width>&, float (&v)[Width]) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Width; ++i) {
      v[i] = leaky_relu(v[i] + values[0][i], params.negative_slope);
    }
  }

  template <int Width>
  __device__ static void store(const Params& params, const ConvShape& shape, const Row& row, int output,
                               const float (&v)[Width]) {
    const int64_t line = int64_t{shape.width} * shape.stride_of_y();
    const HalfBits<Width> bits = to_halves(v);
    CUTLASS_PRAGMA_UNROLL
    for (int r = 0; r < kMostCopies; ++r) {
      CUTLASS_PRAGMA_UNROLL
      for (int q = 0; q < kMostCopies; ++q) {
        if (r < row.rows && q < row.columns) {
          *reinterpret_cast<HalfBits<Width>*>(row.out + (r * line + q) * params.out_stride + output) = bits;
        }
      }
    }
  }

  template <class Config, int Width, class Accumulator>
  __device__ static void finish(const Params&, const ConvShape&, const ConvBlock&, const Accumulator&, int,
                                unsigned char*) {}
};

namespace {

using Narrow = BoxLoop<ConvConfig</*BlockM=*/128, /*BlockN=*/64, /*Stages=*/8, /*Channels=*/0, /*Clusters=*/true>>;
using Square = BoxLoop<ConvConfig</*BlockM=*/128, /*BlockN=*/128, /*Stages=*/6, /*Channels=*/0, /*Clusters=*/true>>;
// Of large maps, whose tiles are enough.
using Wide = BoxLoop<ConvConfig</*BlockM=*/128, /*BlockN=*/192, /*Stages=*/5>>;

template <class Loop>
void launch(const Activation& x, const Tensor& weight, ConvShape shape, const Upsample::Params& params,
            cudaStream_t stream) {
  Loop::set_tile(shape);
  if constexpr (Loop::Config::Clusters) {
    shape.split = split_for<Loop, PixelEpilogue<Upsample, 8>>(shape);
  }
  shape.permuted = true;
  launch_conv<Loop, PixelEpilogue<Upsample, 8>>(x.data, x.pixel_stride, weight.data_ptr(), shape, params, stream);
}

void upsample_conv_cuda(const Tensor& x_tensor, const Tensor& weight, const Tensor& bias, double negative_slope,
                        const Tensor& out_tensor) {
  const Activation x = activation("upsample_conv", "x", x_tensor), out = activation("upsample_conv", "out", out_tensor);
  const Grid grid = out.height == 2 * x.height   ? Grid::kEnlarged2
                    : out.height == 3 * x.height ? Grid::kToClasses
                                                 : Grid::kEnlarged4;
  const ConvShape shape = conv_shape("upsample_conv", x, weight, grid);
  STD_TORCH_CHECK(out_tensor.dim() == x_tensor.dim() && out.written_by(shape) && out.channels == shape.outputs &&
                      shape.outputs % 32 == 0,
                  "upsample_conv: out must be x enlarged 2 or 4 times, or its classes, with the weight's outputs, a "
                  "multiple of 32; got ",
                  shape_string(out_tensor), " and ", shape_string(x_tensor));
  check_floats("upsample_conv", "bias", bias, {shape.outputs});
  const Upsample::Params params{static_cast<const float*>(bias.data_ptr()), static_cast<__half*>(out.data),
                                out.pixel_stride, static_cast<float>(negative_slope)};
  const torch::stable::accelerator::DeviceGuard guard(x_tensor.get_device_index());
  if (shape.outputs <= 64) {
    launch<Narrow>(x, weight, shape, params, current_stream(x_tensor));
  } else if (shape.outputs % 192 == 0) {  // the hidden activations of three norms
    launch<Wide>(x, weight, shape, params, current_stream(x_tensor));
  } else {
    launch<Square>(x, weight, shape, params, current_stream(x_tensor));
  }
  check_launch("upsample_conv");
}

const RegisterKernel kernels[] = {
    RegisterKernel(conv_entry<Narrow, PixelEpilogue<Upsample, 8>>("upsample_conv<128x64>")),
    RegisterKernel(conv_entry<Square, PixelEpilogue<Upsample, 8>>("upsample_conv<128x128>")),
    RegisterKernel(conv_entry<Wide, PixelEpilogue<Upsample, 8>>("upsample_conv<128x192>"))};

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def("upsample_conv(Tensor x, Tensor weight, Tensor bias, float negative_slope, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("upsample_conv", TORCH_BOX(&lpkernels::upsample_conv_cuda));
}
