// An image enlarged (nearest) and then convolved with three taps an axis, as products that its phases share.
//
// Along an axis the first and the last pixel made of small pixel i, and all between, are
//   first = here[i] + before,   last = here[i] + after,   between = here[i]
//   here = (w0 + w1 + w2) x[i],   before = w0 (x[i - 1] - x[i]),   after = w2 (x[i + 1] - x[i])
// so that in h and w all phases are sums of 3 x 3 products, product 3 p + q of difference p along h of difference q
// along w, where phases one by one take 16 (2 x 2 of them) or 25 (3 x 3). Plain arithmetic for host and device, as
// conv_shape.h.
#pragma once

#include "hopper/conv_boxes.h"

namespace lpkernels::hopper {

constexpr int kNeighbors = 3;                       // along an axis: before, here, after
constexpr int kProducts = kNeighbors * kNeighbors;  // of a pair of axes
constexpr int kNeighborOutputs = 32;                // outputs of a tile
constexpr int kNeighborPixels = 128;                // small pixels of a tile
constexpr int kNeighborRows = 184, kZeroRow = 183;  // rows of a box of x, with room for a row of zeros behind them

// Tiles whose pixels and neighbours are few rows: at most 180.
inline void set_neighbor_tile(ConvShape& shape) {
  shape.tile_w = std::min(16, 1 << log2_of(shape.width));
  shape.tile_h = std::min(kNeighborPixels / shape.tile_w, 1 << log2_of(shape.height));
  shape.tile_d = kNeighborPixels / shape.tile_w / shape.tile_h;
  complete(shape, kNeighborPixels);
}

// The box of x that a tile needs: its pixels and, along an axis that has several tiles, their neighbours.
struct NeighborBox {
  int halo_h, halo_w, height, width;

  LPKERNELS_HOST_DEVICE explicit NeighborBox(const ConvShape& shape)
      : halo_h(shape.tiles_h > 1),
        halo_w(shape.tiles_w > 1),
        height(shape.tile_h + 2 * halo_h),
        width(shape.tile_w + 2 * halo_w) {}

  LPKERNELS_HOST_DEVICE int rows(const ConvShape& shape) const { return shape.tile_d * height * width; }

  // The box's row that holds the neighbour (dh, dw) of the tile's row m.
  LPKERNELS_HOST_DEVICE int row(const ConvShape& shape, int m, int dh, int dw) const {
    const int d = m >> (shape.log_w + shape.log_h);
    const int h = ((m >> shape.log_w) & (shape.tile_h - 1)) + dh + halo_h;
    const int w = (m & (shape.tile_w - 1)) + dw + halo_w;
    return h < 0 || h >= height || w < 0 || w >= width ? kZeroRow : (d * height + h) * width + w;
  }

  // Where it begins for the step's depth and channels.
  LPKERNELS_HOST_DEVICE std::array<int, 5> at(const ConvShape& shape, const ConvBlock& block, const KStep& k) const {
    return {k.box * kBoxChannels, block.w - halo_w, block.h - halo_h, block.d + k.d - shape.taps_d / 2, block.b};
  }
};

inline TensorBox neighbor_box(int64_t pixel_stride, const ConvShape& shape) {
  const NeighborBox neighbors(shape);
  TensorBox box = pixel_box(pixel_stride, shape);
  box.box[1] = static_cast<uint32_t>(neighbors.width);
  box.box[2] = static_cast<uint32_t>(neighbors.height);
  return box;
}

// The weight is (products, outputs, taps in d, C): a box has the rows of one product, as weight_box permutes them.
inline TensorBox neighbor_weight_box(ConvShape shape) {
  shape.outputs *= kProducts;
  return weight_box(shape, kNeighborOutputs);
}

// Turns a thread's products into the pixels that they make, in their place: product 3 p + q into pixel (p, q).
template <class Sums>
LPKERNELS_HOST_DEVICE void add_neighbors(Sums&& sums, int i) {
  for (int q = 0; q < kNeighbors; ++q) {
    sums(q, i) += sums(kNeighbors + q, i);
    sums(2 * kNeighbors + q, i) += sums(kNeighbors + q, i);
  }
  for (int p = 0; p < kNeighbors; ++p) {
    sums(kNeighbors * p, i) += sums(kNeighbors * p + 1, i);
    sums(kNeighbors * p + 2, i) += sums(kNeighbors * p + 1, i);
  }
}

// What becomes of them along an axis: `side` rows of y for one of x. 2: the first and the last. 3: each stored once
// (a grid of classes). 4: the one between twice.
struct EnlargedRows {
  int first, count;
};

LPKERNELS_HOST_DEVICE EnlargedRows enlarged_rows(int side, int neighbor) {
  if (side == 2) {
    return {neighbor / 2, neighbor != 1};
  }
  return {side == 4 && neighbor == 2 ? 3 : neighbor, side == 4 && neighbor == 1 ? 2 : 1};
}

}  // namespace lpkernels::hopper
