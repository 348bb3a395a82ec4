// stitch_mlp: one of the three keypoint MLPs and the update of the keypoints it is for.
//
//   features = [x_s, x_d], or with ratios [x_s, constants..., ratio]
//   delta    = linear layers with a ReLU between each two
//   x        = x_d + delta[: 3K], and where the MLP has 3K + 2 outputs, plus their last two in x and y
//   x_new    = x_s + (x - x_s) multiplier
//
// Weights are one flat float32 array, layer after layer: the matrix transposed, a row of outputs for each input, then
// the bias as one more row. Rows are padded to a multiple of four outputs.
#pragma once

#include <optional>
#include <vector>

#include "keypoints/rows.h"

namespace lpkernels {

constexpr int kMaxLayers = 8, kMaxWidth = 512, kMaxConstants = 4;

struct StitchMlp {
  int batch, coordinates, layers;  // coordinates: 3K
  int sizes[kMaxLayers + 1];
  int constants;
  float constant[kMaxConstants];
  bool joined;  // x_d is a feature, ratios are not
  float multiplier;
  Rows x_s, x_d, ratio;  // ratio: no data where it is not given
  const float* weights;
  int64_t weight_count;
  float* x_new;  // (B, K, 3)
};

LPKERNELS_HOST_DEVICE int padded_outputs(int outputs) {
  return (outputs + 3) / 4 * 4;
}

// Input i of the first layer.
LPKERNELS_HOST_DEVICE float feature(const StitchMlp& p, int64_t b, int i) {
  if (i < p.coordinates) {
    return p.x_s.at(b)[i];
  }
  i -= p.coordinates;
  if (p.joined) {
    return p.x_d.at(b)[i];
  }
  return i < p.constants ? p.constant[i] : p.ratio.at(b)[0];
}

// Coordinate i of x_new, from the last layer's outputs.
LPKERNELS_HOST_DEVICE float updated_coordinate(const StitchMlp& p, int64_t b, const float* delta, int i) {
  float x = p.x_d.at(b)[i] + delta[i];
  if (p.sizes[p.layers] > p.coordinates && i % 3 < 2) {
    x += delta[p.coordinates + i % 3];
  }
  return strengthened(p.x_s.at(b)[i], x, p.multiplier);
}

// Checks everything the kernels rely on (the op can be called without the Python wrapper), makes the output, and
// gathers pointers and options.
StitchMlp stitch_mlp_arguments(const Tensor& x_s, const Tensor& x_d, const Tensor& weights,
                               const std::vector<int64_t>& sizes, const std::vector<double>& constants,
                               const std::optional<Tensor>& ratio, double multiplier, Tensor* x_new);

}  // namespace lpkernels
