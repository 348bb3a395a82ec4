// What spade_conv's kernels do to gamma and beta, for spade_conv itself and for who has x in registers.
//
//   out = act((x - mean) * rstd * (gamma1 + bias) + beta + bias)
#pragma once

#include "spade/modulation.cuh"

namespace lpkernels {

// gamma1 and beta of eight channels to the result, in gamma1's place.
__device__ inline void modulate(const SpadeParams& params, const uint4& bits, const float (&mean)[8],
                                const float (&rstd)[8], float (&gamma1)[8], const float (&beta)[8]) {
  float x[8];
  to_floats<8>(bits, x);
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < 8; ++i) {
    gamma1[i] = leaky_relu(fmaf((x[i] - mean[i]) * rstd[i], gamma1[i], beta[i]), params.negative_slope);
  }
}

// Columns in pairs of groups: 32 gammas, then the 32 betas of the same channels.
struct GammaBeta {
  using Params = SpadeParams;
  using F = Fragment<8>;
  static constexpr bool kClusters = false, kManyTiles = true, kHasValues = true;
  static constexpr int kValues = 3;  // bias, of every column; mean and reciprocal deviation of channel n in column n

  template <class Config>
  static constexpr int rows() {  // of a thread
    return Config::BlockM / 64;
  }

  template <class Config>
  static constexpr int pairs() {  // vectors of channels of a row
    return Config::BlockN / F::kGroup / 2;
  }

  template <class Config>
  struct Ahead {
    uint4 x[pairs<Config>()][rows<Config>()];
  };

  template <class Config>
  static constexpr size_t staged_bytes() {
    return 0;
  }

  template <class Config>
  static constexpr size_t own_bytes() {
    return OutputValues<Config, kValues>::kBytes;
  }

  template <class Config>
  __device__ static Ahead<Config> read_ahead(const Params& params, const ConvShape& shape, const ConvBlock& block,
                                             int thread) {
    Ahead<Config> ahead{};
    CUTLASS_PRAGMA_UNROLL
    for (int r = 0; r < rows<Config>(); ++r) {
      const Pixel at = pixel_at(shape, block, Config::row(thread, r / 2, r % 2));
      const SpadeRow row(params, shape, block, at);
      CUTLASS_PRAGMA_UNROLL
      for (int pair = 0; pair < pairs<Config>(); ++pair) {
        const int channel = block.n / 2 + F::output(thread, pair);
        if (inside(shape, at) && channel < params.channels) {
          ahead.x[pair][r] = load_halves<8>(row.x + channel);
        }
      }
    }
    return ahead;
  }

  // Fresh: this kernel itself has written the statistics.
  template <class Config, bool Fresh = false>
  __device__ static void store_values(const Params& params, const ConvShape& shape, const ConvBlock& block, int thread,
                                      const EpilogueMemory& memory) {
    OutputValues<Config, kValues>::store(memory.own, block, thread, [&](int n, float (&values)[kValues]) {
      values[0] = block.n + n < shape.outputs ? __ldg(params.bias + block.n + n) : 0.f;
      const int channel = block.n / 2 + n;
      if (n < Config::BlockN / 2 && channel < params.channels) {
        const float2 stats = stats_of<Fresh>(params, block, channel);
        values[1] = stats.x;
        values[2] = stats.y;
      }
    });
  }

  template <class Config, class Accumulator>
  __device__ static void run(const Params& params, const ConvShape& shape, const ConvBlock& block, Accumulator& acc,
                             int thread, const EpilogueMemory& memory, const Ahead<Config>& ahead) {
    const float* values = OutputValues<Config, kValues>::of_tile(memory.own, block);
    SpadeRow row[rows<Config>()];
    bool inside[rows<Config>()];
    CUTLASS_PRAGMA_UNROLL
    for (int r = 0; r < rows<Config>(); ++r) {
      const Pixel at = pixel_at(shape, block, Config::row(thread, r / 2, r % 2));
      row[r] = SpadeRow(params, shape, block, at);
      inside[r] = hopper::inside(shape, at);
    }
    CUTLASS_PRAGMA_UNROLL
    for (int pair = 0; pair < pairs<Config>(); ++pair) {
      const int n = F::output(thread, pair), channel = block.n / 2 + n;  // from the block's first, and of x
      float bias_gamma[8], bias_beta[8], mean[8], rstd[8];
      load_vector(values + F::output(thread, 2 * pair), bias_gamma);
      load_vector(values + F::output(thread, 2 * pair + 1), bias_beta);
      load_vector(values + Config::BlockN + n, mean);
      load_vector(values + 2 * Config::BlockN + n, rstd);
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < rows<Config>(); ++r) {
        float gamma1[8], beta[8];
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < 8; ++i) {
          gamma1[i] = bias_gamma[i] + acc(F::index(Config::BlockN, r / 2, r % 2, 2 * pair, i));
          beta[i] = bias_beta[i] + acc(F::index(Config::BlockN, r / 2, r % 2, 2 * pair + 1, i));
        }
        modulate(params, ahead.x[pair][r], mean, rstd, gamma1, beta);
        if (inside[r] && channel < params.channels) {
          store_vector(row[r].out + channel, gamma1);
        }
      }
    }
  }
};

// Gamma alone: out = act((x - mean) * rstd * (gamma1 + bias)).
struct GammaAlone {
  using Params = SpadeParams;
  using Row = SpadeRow;
  static constexpr bool kReads = true;
  static constexpr int kValues = 3;  // bias, mean, reciprocal deviation

  template <class Config>
  static constexpr size_t own_bytes() {
    return 0;
  }

  __device__ static void values(const Params& params, const ConvShape&, const ConvBlock& block, int channel,
                                float (&values)[kValues]) {
    const float2 stats = stats_of(params, block, channel);
    values[0] = __ldg(params.bias + channel);
    values[1] = stats.x;
    values[2] = stats.y;
  }

  __device__ static Row row(const Params& params, const ConvShape& shape, const ConvBlock& block, const Pixel& at) {
    return {params, shape, block, at};
  }

  __device__ static const __half* address(const Params&, const Row& row) { return row.x; }

  template <int Width>
  __device__ static void apply(const Params& params, const Row&, const float (&values)[kValues][Width],
                               const HalfBits<Width>& read, float (&gamma1)[Width]) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Width; ++i) {
      gamma1[i] += values[0][i];
    }
    constexpr float kNone[Width] = {};
    modulate(params, read, values[1], values[2], gamma1, kNone);
  }

  template <int Width>
  __device__ static void store(const Params&, const ConvShape&, const Row& row, int channel, const float (&v)[Width]) {
    store_vector(row.out + channel, v);
  }

  template <class Config, int Width, class Accumulator>
  __device__ static void finish(const Params&, const ConvShape&, const ConvBlock&, const Accumulator&, int,
                                unsigned char*) {}
};

using GammaEpilogue = PixelEpilogue<GammaAlone, 8>;

// spade_conv_winograd.cu
void launch_spade_conv_winograd(const Activation& actv, const Tensor& weight, ConvShape shape,
                                const SpadeParams& params, cudaStream_t stream);

void spade_conv_cuda(const Tensor& actv, const Tensor& weight, const Tensor& bias, const Tensor& x, const Tensor& stats,
                     double negative_slope, const Tensor& out);

}  // namespace lpkernels
