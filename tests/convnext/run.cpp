// Runs ConvNeXt's CUDA kernels (csrc/convnext), and others that take its instructions, on the CPU. Arguments: the op
// and its sizes; stdin: its tensors, one after the other; stdout: its answers.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "convnext/convnext_stage.cuh"
#include "convnext/depthwise_linear.cuh"
#include "convnext/depthwise_norm.cuh"
#include "convnext/grn_factors.cuh"
#include "convnext/grn_linear.cuh"
#include "convnext/norm_downsample.cuh"
#include "convnext/patch_norm.cuh"
#include "convnext/polynomial_gelu.h"
#include "convnext/pool_norm_linear.cuh"
#include "warp/occlusion_head.cuh"

using namespace lpkernels::convnext;

namespace {

template <class T>
struct Array {
  std::vector<uint4> words;  // of the alignment that kernels ask for
  size_t count;

  explicit Array(size_t count) : words((count * sizeof(T) + 15) / 16, uint4{~0u, ~0u, ~0u, ~0u}), count(count) {}
  T* data() { return reinterpret_cast<T*>(words.data()); }
};

template <class T>
Array<T> read(size_t count) {
  Array<T> array(count);
  if (std::fread(array.data(), sizeof(T), count, stdin) != count) {
    std::exit(2);
  }
  return array;
}

template <class T>
void write(Array<T>& array) {
  std::fwrite(array.data(), sizeof(T), array.count, stdout);
}

void depthwise_linear(int batch, int height, int width, int channels, int outputs) {
  const size_t pixels = size_t{1} * batch * height * width;
  auto x = read<__half>(pixels * channels);
  auto taps = read<float>(size_t{1} * kTaps * kTaps * channels), taps_bias = read<float>(channels);
  auto weight = read<__half>(size_t{1} * outputs * channels);
  auto bias = read<float>(outputs);
  DepthwiseLinear p{x.data(), taps.data(), taps_bias.data(), weight.data(), bias.data(), nullptr, nullptr,
                    height,   width,       channels,         outputs};
  const int tiles = p.tiles = tiles_of(p, patch_height(p));
  Array<__half> h(pixels * outputs);
  Array<float> squares(size_t{1} * batch * tiles * outputs);
  p.h = h.data();
  p.squares = squares.data();
  with_variant(p, [&](auto variant, int columns) {
    using V = decltype(variant);
    p.cluster = cluster_for(p, columns, kLargestCluster);
    p.at = V::memory(channels, p.cluster);
    const Index grid{static_cast<unsigned>(blocks_of<typename V::Work>(p, batch)), 1, 1};
    emulated::launch(V::kKernel, grid, kThreads, V::shared_bytes(channels, p.cluster), p.cluster, p);
  });
  write(h);
  write(squares);
}

void grn_linear(int batch, int pixels, int depth, int outputs, int rows) {
  auto x = read<__half>(size_t{1} * batch * pixels * depth);
  auto squares = read<float>(size_t{1} * batch * rows * depth), gamma = read<float>(depth);
  auto weight = read<__half>(size_t{1} * outputs * depth);
  auto bias = read<float>(outputs);
  auto residual = read<__half>(size_t{1} * batch * pixels * outputs);
  Array<__half> y(size_t{1} * batch * pixels * outputs);
  GrnLinear p{x.data(), squares.data(), gamma.data(), weight.data(), bias.data(), residual.data(),
              y.data(), pixels,         depth,        outputs,       rows,        1,
              1};
  choose_cluster(p, NarrowSplit::kRows, kLargestCluster);
  const int cluster = p.splits * p.tiles;
  const Index grid{static_cast<unsigned>(blocks_of<GrnWork<NarrowSplit>>(p, batch)), 1, 1};
  const size_t bytes = kArrivalsBytes + GrnMemory<NarrowSplit>::kBytes;
  emulated::launch(&grn_linear_kernel, grid, kThreads, bytes, cluster, p);
  write(y);
}

// Three blocks, each four times as wide as the channels.
// With a step: of half as many channels, and a last row that is left out.
template <bool Step>
void convnext_stage(int batch, int height, int width, int channels, int blocks) {
  const int wide = 4 * channels, x_height = 2 * height + 1, x_width = 2 * width, x_channels = channels / 2;
  const size_t pixels = size_t{1} * batch * height * width;
  auto x = read<__half>(Step ? size_t{1} * batch * x_height * x_width * x_channels : pixels * channels);
  auto taps = read<float>(size_t{1} * blocks * kTaps * kTaps * channels), taps_bias = read<float>(blocks * channels);
  auto wide_weight = read<__half>(size_t{1} * blocks * wide * channels);
  auto wide_bias = read<float>(blocks * wide), gamma = read<float>(blocks * wide);
  auto weight = read<__half>(size_t{1} * blocks * channels * wide);
  auto bias = read<float>(blocks * channels);
  auto step_weight = read<__half>(Step ? size_t{4} * channels * x_channels : 0);
  auto step_bias = read<float>(Step ? channels : 0);
  Array<__half> y(pixels * channels);
  ConvNextStage p{{wide_weight.data(), channels, wide, blocks, 0},
                  {weight.data(), wide, channels, blocks, 0},
                  {step_weight.data(), 4 * x_channels, channels, 1, 0},
                  {reinterpret_cast<const __half*>(taps.data()), 2 * channels, kTaps * kTaps, blocks, kTaps * kTaps},
                  x.data(),
                  taps.data(),
                  taps_bias.data(),
                  wide_bias.data(),
                  gamma.data(),
                  bias.data(),
                  y.data(),
                  blocks,
                  batch,
                  height,
                  width,
                  channels,
                  wide};
  with_stage(p, [&](auto variant, int64_t grid) {
    using V = decltype(variant);
    Array<unsigned char> mail(mail_bytes(p));
    std::memset(mail.data(), 0, mail.count);  // as if all of it had arrived
    p.mail.first = mail.data();
    p.expand_weights.box_rows = V::Expand::Product::kColumns;
    p.project_weights.box_rows = V::Project::Product::kColumns;
    p.taps_boxes.box_columns = 2 * V::Expand::kConvolved;
    if (Step) {
      p.step_weights.box_rows = V::Project::Product::kColumns;
      p.step = {step_bias.data(), x_height, x_width, x_channels, V::Project::Product::kDepth / x_channels};
      if (!V::Step::takes(x_channels, p.splits)) {
        std::exit(2);
      }
    }
    emulated::launch(V::kKernel, Index{static_cast<unsigned>(grid), 1, 1}, kThreads, sizeof(typename V::Memory),
                     p.splits, p, true);
  });
  write(y);
}

void depthwise_norm(int batch, int height, int width, int channels, int) {
  const size_t values = size_t{1} * batch * height * width * channels;
  auto x = read<__half>(values);
  auto taps = read<float>(size_t{1} * kTaps * kTaps * channels), taps_bias = read<float>(channels);
  Array<__half> a(values);
  DepthwiseNorm p{x.data(), taps.data(), taps_bias.data(), a.data(), height, width, channels};
  with_depthwise_norm(channels, [&](auto tile) {
    using Tile = decltype(tile);
    Tile::lay_out(p);
    const Index grid{static_cast<unsigned>(Tile::tiles(p)), static_cast<unsigned>(batch), 1};
    emulated::launch(&depthwise_norm_kernel<Tile>, grid, Tile::kThreads, Tile::shared_bytes(p), 1, p);
  });
  write(a);
}

struct FactorsOfImages {
  GrnFactors grn;
  float* factors;
};

// As the threads of a block that have an image: 256, or 128 of which there are two.
void grn_factors_kernel(const FactorsOfImages& p) {
  auto& memory = *reinterpret_cast<GrnFactors::Memory*>(shared_memory());
  const int image = blockIdx.x, thread = threadIdx.x, threads = emulated::current->block->threads();
  for (int i = 0; i < 2; ++i) {  // the second time while others may still read the first's
    p.grn.make(image, thread, threads, memory, [] { __syncthreads(); });
    for (int quad = thread; quad < p.grn.depth / 4; quad += threads) {
      reinterpret_cast<float4*>(p.factors)[image * (p.grn.depth / 4) + quad] = memory.factors[quad];
    }
  }
}

void grn_factors(int batch, int rows, int depth, int threads, int) {
  auto squares = read<float>(size_t{1} * batch * rows * depth), gamma = read<float>(depth);
  Array<float> factors(size_t{1} * batch * depth);
  const FactorsOfImages p{{squares.data(), gamma.data(), rows, depth}, factors.data()};
  const Index grid{static_cast<unsigned>(batch), 1, 1};
  emulated::launch(&grn_factors_kernel, grid, threads, sizeof(GrnFactors::Memory), 1, p);
  write(factors);
}

void gelu(int count, int, int, int, int) {
  auto v = read<float>(count);
  for (int i = 0; i < count; ++i) {
    v.data()[i] = polynomial_gelu(v.data()[i]);
  }
  write(v);
}

void norm_downsample(int batch, int height, int width, int channels, int outputs) {
  auto x = read<__half>(size_t{1} * batch * height * width * channels);
  auto weight = read<__half>(size_t{4} * outputs * channels);
  auto bias = read<float>(outputs);
  const int rows = batch * (height / 2) * (width / 2);
  Array<__half> y(size_t{1} * rows * outputs);
  const NormDownsample p{x.data(), weight.data(), bias.data(), y.data(), height, width, channels, outputs, rows};
  with_downsample(p, [&](auto variant, int tiles, int columns) {
    using V = decltype(variant);
    const Index grid{static_cast<unsigned>(tiles), static_cast<unsigned>(columns), 1};
    emulated::launch(V::kKernel, grid, kThreads, DownsampleMemory::kBytes, V::kSplits, p);
  });
  write(y);
}

// Pictures of `Pixel`s, their channels next to each other (planar: a plane each).
template <class Pixel, bool Planar>
void patch_norm(int batch, int height, int width, int channels, int outputs) {
  using P = PatchNorm;
  auto x = read<Pixel>(size_t{1} * batch * height * width * channels);
  auto weight = read<__half>(size_t{1} * outputs * P::kPatch * P::kRowValues);
  auto bias = read<float>(outputs), norm_weight = read<float>(outputs), norm_bias = read<float>(outputs);
  const int rows = height / P::kPatch, columns = width / P::kPatch, patches = batch * rows * columns;
  Array<__half> y(size_t{1} * patches * outputs);
  const int64_t pixel = Planar ? 1 : channels, plane = Planar ? int64_t{1} * height * width : 1;
  const P p{x.data(),
            weight.data(),
            bias.data(),
            norm_weight.data(),
            norm_bias.data(),
            y.data(),
            int64_t{1} * height * width * channels,
            pixel * width,
            pixel,
            plane,
            lpkernels::Divisor(rows),
            lpkernels::Divisor(columns),
            outputs,
            patches,
            sizeof(Pixel) == 1 ? 1.f / 255.f : 1.f};
  const Index grid{static_cast<unsigned>(ceil_div(patches, P::kPatches)), 1, 1};
  emulated::launch(&patch_norm_kernel<Pixel>, grid, P::kThreads, P::kBytes, 1, p);
  write(y);
}

// x has `gap` channels of others behind each pixel's own.
template <int Gap>
void occlusion_head(int batch, int depth, int height, int width, int channels) {
  namespace occlusion = lpkernels::occlusion;
  const int size = height * width, groups = occlusion::groups_of(depth);
  auto x = read<__half>(size_t{1} * batch * depth * size * (channels + Gap));
  auto weight = read<__half>(size_t{1} * occlusion::kRows * depth * channels);
  auto bias = read<float>(1);
  Array<float> columns(size_t{1} * batch * groups * occlusion::kTaps * occlusion::column_pitch(size));
  Array<float> map(size_t{1} * batch * size);
  const occlusion::OcclusionHead p{x.data(), weight.data(), bias.data(), columns.data(), map.data(),
                                   depth,    height,        width,       channels,       (channels + Gap) / 8};
  const auto grid = [&](int pixels, int y, int z) {
    return Index{static_cast<unsigned>(ceil_div(size, pixels)), static_cast<unsigned>(y), static_cast<unsigned>(z)};
  };
  emulated::launch(&occlusion::occlusion_columns_kernel, grid(occlusion::kPixels, groups, batch), occlusion::kThreads,
                   occlusion::weight_bytes(channels), 1, p);
  emulated::launch(&occlusion::occlusion_sum_kernel, grid(occlusion::kSumPixels, batch, 1), occlusion::kSumThreads,
                   occlusion::kSumBytes, 1, p);
  write(map);
}

void pool_norm_linear(int batch, int height, int width, int channels, int outputs) {
  auto x = read<__half>(size_t{1} * batch * height * width * channels);
  auto weight = read<float>(size_t{1} * outputs * channels), bias = read<float>(outputs);
  Array<float> y(size_t{1} * batch * outputs);
  const PoolNormLinear p{x.data(), weight.data(), bias.data(), y.data(), height * width, channels, outputs};
  const Index grid{static_cast<unsigned>(blocks_of(p)), static_cast<unsigned>(batch), 1};
  emulated::launch(&pool_norm_linear_kernel, grid, kThreads, PoolMemory::kBytes, PoolMemory::kCluster, p);
  write(y);
}

const std::map<std::string, void (*)(int, int, int, int, int)> kOps = {
    {"convnext_stage with a step", &convnext_stage<true>},
    {"convnext_stage", &convnext_stage<false>},
    {"depthwise_linear", &depthwise_linear},
    {"depthwise_norm", &depthwise_norm},
    {"gelu", &gelu},
    {"grn_factors", &grn_factors},
    {"grn_linear", &grn_linear},
    {"norm_downsample", &norm_downsample},
    {"occlusion_head of a slice", &occlusion_head<24>},
    {"occlusion_head", &occlusion_head<0>},
    {"patch_norm of bytes", &patch_norm<uint8_t, false>},
    {"patch_norm of floats in planes", &patch_norm<float, true>},
    {"pool_norm_linear", &pool_norm_linear}};

}  // namespace

int main(int count, char** arguments) {
  if (count != 7) {
    return 2;
  }
  int sizes[5];
  for (int i = 0; i < 5; ++i) {
    sizes[i] = std::atoi(arguments[2 + i]);
  }
  kOps.at(arguments[1])(sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]);
}
