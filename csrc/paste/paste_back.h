// paste_back: the animated picture warped into its place in the source picture and blended through a mask.
//
//   (u, v)   = M_o2c (x, y, 1)                        M_o2c the inverse of M_c2o; pixel centres at whole numbers
//   warped   = floor(bilinear(image, u, v) + 1/2)     zeros outside the image
//   out      = floor((m warped + (255 - m) source) / 255)
//
// at the pixels of the mask's box whose m (0..255) is not zero; any other pixel is the source's. The original's
// arithmetic (src/utils/crop.py: prepare_paste_back, paste_back), with exact coordinates and a blend in integers.
#pragma once

#include <vector>

#include "common/stable.h"
#include "warp/sampling.h"

namespace lpkernels {

// Pictures are dense uint8 (rows, columns, 3); `rows` and `columns` are those of the box, which begins at (x, y).
struct PasteBack {
  int batch, image_height, image_width, height, width;
  int x, y, rows, columns;
  float to_image[6];  // 2x3, from a pixel of the box, counted from its corner, to (u, v)
  int64_t picture_size,
      source_stride;  // bytes of a picture, and to the next batch element's source: 0 where it serves all
  bool copies;        // the source has to be copied into `out` before
  const uint8_t *image, *source, *mask;
  uint8_t* out;
};

// Checks everything the kernels rely on (the op can be called without the Python wrapper) and inverts M_c2o.
PasteBack paste_back_arguments(const Tensor& image, const Tensor& source, const Tensor& mask,
                               const std::vector<double>& matrix, const std::vector<int64_t>& box, bool copy_rest,
                               const Tensor& out);

// One pixel of the box. Reads its own pixel of the source before it writes: `out` may be the source.
LPKERNELS_HOST_DEVICE void paste_pixel(const PasteBack& p, int64_t b, int row, int column) {
  const int mask = p.mask[row * p.columns + column];
  if (mask == 0) {
    return;
  }
  const float *M = p.to_image, column_f = static_cast<float>(column), row_f = static_cast<float>(row);
  const AxisPair u = axis_pair(M[0] * column_f + M[1] * row_f + M[2], p.image_width);
  const AxisPair v = axis_pair(M[3] * column_f + M[4] * row_f + M[5], p.image_height);
  const int line = 3 * p.image_width;
  const uint8_t* upper = p.image + b * p.image_height * line + (v.first * line + 3 * u.first);
  const uint8_t* lower = upper + line;
  const int at = 3 * ((p.y + row) * p.width + p.x + column);
  const uint8_t* source = p.source + b * p.source_stride + at;
  int levels[3];
  for (int c = 0; c < 3; ++c) {
    const float above = u.weight[0] * upper[c] + u.weight[1] * upper[c + 3];
    const float below = u.weight[0] * lower[c] + u.weight[1] * lower[c + 3];
    const int warped = static_cast<int>(v.weight[0] * above + v.weight[1] * below + 0.5f);
    levels[c] = (mask * warped + (255 - mask) * source[c]) / 255;
  }
  uint8_t* out = p.out + b * p.picture_size + at;
  for (int c = 0; c < 3; ++c) {
    out[c] = static_cast<uint8_t>(levels[c]);
  }
}

}  // namespace lpkernels
