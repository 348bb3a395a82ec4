// paste_back: schema, checks, and the CPU kernel. A task owns whole rows: it copies the source's, then blends the part
// that lies in the box. Bound by the four texels of each blended pixel.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "paste/paste_back.h"

namespace lpkernels {
namespace {

constexpr int64_t kMostPixels = INT32_MAX / 3;  // offsets into one picture are ints
constexpr int64_t kMostRows = 1 << 19;          // 65535 blocks of eight

// Rank 3 or 4 with batch first; sizes in front of the three channels are (height, width).
void check_pictures(const char* name, const Tensor& tensor, const Tensor& like) {
  const int64_t rank = tensor.dim();
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Byte && tensor.is_contiguous(), "paste_back: ", name,
                  " must be contiguous uint8");
  STD_TORCH_CHECK((rank == 3 || rank == 4) && tensor.size(rank - 1) == 3, "paste_back: ", name,
                  " must have shape ([B,] H, W, 3), got ", shape_string(tensor));
  const int64_t height = tensor.size(rank - 3), width = tensor.size(rank - 2);
  STD_TORCH_CHECK(height > 0 && width > 0 && height < kMostRows && width < kMostRows && height * width <= kMostPixels,
                  "paste_back: ", name, " must have 1 to ", kMostPixels, " pixels, got ", shape_string(tensor));
  STD_TORCH_CHECK(tensor.is_cpu() == like.is_cpu() && tensor.get_device_index() == like.get_device_index(),
                  "paste_back: ", name, " must be on the device of image");
}

// M_c2o inverted, from a pixel counted from (x, y): so far from the picture's origin float32 would lose digits.
void invert(const std::vector<double>& M, int64_t x, int64_t y, float inverse[6]) {
  STD_TORCH_CHECK(M.size() == 6 && std::all_of(M.begin(), M.end(), [](double value) { return std::isfinite(value); }),
                  "paste_back: matrix must be 2x3, six finite numbers");
  const double determinant = M[0] * M[4] - M[1] * M[3];
  const double largest = std::max({std::abs(M[0]), std::abs(M[1]), std::abs(M[3]), std::abs(M[4])});
  STD_TORCH_CHECK(std::abs(determinant) > 1e-9 * largest * largest, "paste_back: matrix is singular");
  const double a = M[4] / determinant, b = -M[1] / determinant;
  const double c = -M[3] / determinant, d = M[0] / determinant;
  const double dx = static_cast<double>(x) - M[2], dy = static_cast<double>(y) - M[5];
  const double values[6] = {a, b, a * dx + b * dy, c, d, c * dx + d * dy};
  std::transform(values, values + 6, inverse, [](double value) { return static_cast<float>(value); });
}

}  // namespace

PasteBack paste_back_arguments(const Tensor& image, const Tensor& source, const Tensor& mask,
                               const std::vector<double>& matrix, const std::vector<int64_t>& box, bool copy_rest,
                               const Tensor& out) {
  check_pictures("image", image, image);
  check_pictures("source", source, image);
  check_pictures("out", out, image);
  STD_TORCH_CHECK(image.dim() == 4 && out.dim() == 4 && image.size(0) > 0 && image.size(0) <= 65535 &&
                      image.size(1) >= 2 && image.size(2) >= 2 && out.size(0) == image.size(0),
                  "paste_back: image must have shape (B, S, S, 3) with B at most 65535, S at least 2, and out the same "
                  "batch, got ",
                  shape_string(image), " and ", shape_string(out));
  const int64_t rank = source.dim(), height = out.size(1), width = out.size(2);
  STD_TORCH_CHECK((rank == 3 || source.size(0) == image.size(0)) && source.size(rank - 3) == height &&
                      source.size(rank - 2) == width,
                  "paste_back: source must have shape ([B,] H, W, 3) with the B, H and W of out, got ",
                  shape_string(source), " and ", shape_string(out));
  STD_TORCH_CHECK(box.size() == 4, "paste_back: box must be x, y, width, height");
  const int64_t x = box[0], y = box[1], columns = box[2], rows = box[3];
  STD_TORCH_CHECK(columns > 0 && rows > 0 && x >= 0 && y >= 0 && x <= width - columns && y <= height - rows,
                  "paste_back: box must lie in the source, got x ", x, ", y ", y, ", width ", columns, ", height ",
                  rows, " for ", shape_string(source));
  STD_TORCH_CHECK(mask.dim() == 2 && mask.size(0) == rows && mask.size(1) == columns &&
                      mask.scalar_type() == ScalarType::Byte && mask.is_contiguous() &&
                      mask.is_cpu() == image.is_cpu() && mask.get_device_index() == image.get_device_index(),
                  "paste_back: mask must be contiguous uint8 of shape (", rows, ", ", columns,
                  ") on the device of image, got ", shape_string(mask));
  PasteBack p{};
  p.batch = static_cast<int>(image.size(0));
  p.image_height = static_cast<int>(image.size(1));
  p.image_width = static_cast<int>(image.size(2));
  p.height = static_cast<int>(height);
  p.width = static_cast<int>(width);
  p.x = static_cast<int>(x);
  p.y = static_cast<int>(y);
  p.rows = static_cast<int>(rows);
  p.columns = static_cast<int>(columns);
  invert(matrix, x, y, p.to_image);
  p.picture_size = 3 * height * width;
  p.source_stride = rank == 4 ? p.picture_size : 0;
  p.copies = copy_rest && out.data_ptr() != source.data_ptr();
  p.image = static_cast<const uint8_t*>(image.data_ptr());
  p.source = static_cast<const uint8_t*>(source.data_ptr());
  p.mask = static_cast<const uint8_t*>(mask.data_ptr());
  p.out = static_cast<uint8_t*>(out.data_ptr());
  return p;
}

namespace {

void paste_back_cpu(const Tensor& image, const Tensor& source, const Tensor& mask, const std::vector<double>& matrix,
                    const std::vector<int64_t>& box, bool copy_rest, const Tensor& out) {
  const PasteBack p = paste_back_arguments(image, source, mask, matrix, box, copy_rest, out);
  const int first = p.copies ? 0 : p.y, rows = p.copies ? p.height : p.rows;
  torch::stable::parallel_for(0, int64_t{p.batch} * rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t b = index / rows, line = 3 * int64_t{p.width};
      const int row = first + static_cast<int>(index % rows);
      if (p.copies) {
        std::memcpy(p.out + b * p.picture_size + row * line, p.source + b * p.source_stride + row * line, line);
      }
      for (int column = 0; row >= p.y && row < p.y + p.rows && column < p.columns; ++column) {
        paste_pixel(p, b, row - p.y, column);
      }
    }
  });
}

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def(
      "paste_back(Tensor image, Tensor source, Tensor mask, float[] matrix, int[] box, bool copy_rest, Tensor(a!) out) "
      "-> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CPU, library) {
  library.impl("paste_back", TORCH_BOX(&lpkernels::paste_back_cpu));
}
