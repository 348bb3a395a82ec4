// stitch_mlp: schema, checks, and the CPU kernel: one batch element after the other, a layer as a sum of weight rows,
// so that the inner loop runs over neighbouring outputs.
#include "keypoints/stitch_mlp.h"

#include <algorithm>

namespace lpkernels {

StitchMlp stitch_mlp_arguments(const Tensor& x_s, const Tensor& x_d, const Tensor& weights,
                               const std::vector<int64_t>& sizes, const std::vector<double>& constants,
                               const std::optional<Tensor>& ratio, double multiplier, Tensor* x_new) {
  const char* op = "stitch_mlp";
  STD_TORCH_CHECK(
      x_d.dim() == 3 && x_d.size(0) > 0 && x_d.size(0) < INT32_MAX && x_d.size(1) > 0 && 3 * x_d.size(1) <= kMaxWidth,
      "stitch_mlp: x_d must have shape (B, K, 3), 3K at most ", kMaxWidth, ", got ", shape_string(x_d));
  const int64_t batch = x_d.size(0), keypoints = x_d.size(1), coordinates = 3 * keypoints;
  const int64_t layers = static_cast<int64_t>(sizes.size()) - 1;
  STD_TORCH_CHECK(layers >= 1 && layers <= kMaxLayers, "stitch_mlp: sizes must name 1 to ", kMaxLayers, " layers, got ",
                  layers);
  STD_TORCH_CHECK(constants.size() <= kMaxConstants, "stitch_mlp: at most ", kMaxConstants, " ratios, got ",
                  constants.size());
  StitchMlp p{};
  p.batch = static_cast<int>(batch);
  p.coordinates = static_cast<int>(coordinates);
  p.layers = static_cast<int>(layers);
  for (int64_t i = 0; i <= layers; ++i) {
    STD_TORCH_CHECK(sizes[i] >= 1 && sizes[i] <= kMaxWidth, "stitch_mlp: sizes must be 1 to ", kMaxWidth, ", got ",
                    sizes[i]);
    p.sizes[i] = static_cast<int>(sizes[i]);
    if (i > 0) {
      p.weight_count += (sizes[i - 1] + 1) * padded_outputs(p.sizes[i]);
    }
  }
  p.constants = static_cast<int>(constants.size());
  std::copy(constants.begin(), constants.end(), p.constant);
  p.joined = constants.empty() && !ratio;
  const int64_t inputs = coordinates + (p.joined ? coordinates : p.constants + (ratio ? 1 : 0));
  STD_TORCH_CHECK(p.sizes[0] == inputs && (p.sizes[layers] == coordinates || p.sizes[layers] == coordinates + 2),
                  "stitch_mlp: sizes must lead from ", inputs, " to ", coordinates, " or ", coordinates + 2, ", got ",
                  p.sizes[0], " to ", p.sizes[layers]);
  p.multiplier = static_cast<float>(multiplier);
  p.x_s = rows_of(op, "x_s", x_s, x_d, batch, {keypoints, 3});
  p.x_d = rows_of(op, "x_d", x_d, x_d, batch, {keypoints, 3});
  if (ratio) {
    p.ratio = rows_of(op, "ratio", *ratio, x_d, batch, {1});
  }
  STD_TORCH_CHECK(weights.dim() == 1, "stitch_mlp: weights must be flat, got ", shape_string(weights));
  STD_TORCH_CHECK(weights.size(0) == p.weight_count, "stitch_mlp: weights must hold ", p.weight_count, " values, got ",
                  weights.size(0));
  const Tensor row = torch::stable::unsqueeze(weights, 0);
  p.weights = rows_of(op, "weights", row, x_d, batch, {p.weight_count}).data;
  *x_new = torch::stable::new_empty(x_d, {batch, keypoints, 3});
  p.x_new = static_cast<float*>(x_new->data_ptr());
  return p;
}

namespace {

void stitch_row(const StitchMlp& p, int64_t b) {
  float before[kMaxWidth], after[kMaxWidth];
  for (int i = 0; i < p.sizes[0]; ++i) {
    before[i] = feature(p, b, i);
  }
  const float* weights = p.weights;
  for (int layer = 0; layer < p.layers; ++layer) {
    const int inputs = p.sizes[layer], outputs = padded_outputs(p.sizes[layer + 1]);
    std::copy_n(weights + inputs * outputs, outputs, after);
    for (int i = 0; i < inputs; ++i, weights += outputs) {
      for (int o = 0; o < outputs; ++o) {
        after[o] += before[i] * weights[o];
      }
    }
    weights += outputs;  // the bias
    const bool last = layer + 1 == p.layers;
    std::transform(after, after + outputs, before, [=](float value) { return last || !(value < 0.f) ? value : 0.f; });
  }
  for (int i = 0; i < p.coordinates; ++i) {
    p.x_new[b * p.coordinates + i] = updated_coordinate(p, b, before, i);
  }
}

Tensor stitch_mlp_cpu(const Tensor& x_s, const Tensor& x_d, const Tensor& weights, std::vector<int64_t> sizes,
                      std::vector<double> ratios, const std::optional<Tensor>& ratio, double multiplier) {
  Tensor x_new;
  const StitchMlp p = stitch_mlp_arguments(x_s, x_d, weights, sizes, ratios, ratio, multiplier, &x_new);
  for (int64_t b = 0; b < p.batch; ++b) {
    stitch_row(p, b);
  }
  return x_new;
}

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def(
      "stitch_mlp(Tensor x_s, Tensor x_d, Tensor weights, int[] sizes, float[] ratios, Tensor? ratio, float "
      "multiplier) -> Tensor x_new");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CPU, library) {
  library.impl("stitch_mlp", TORCH_BOX(&lpkernels::stitch_mlp_cpu));
}
