// What happens to the accumulators: vectors of neighbouring outputs of one pixel are handed to an operation, straight
// from the registers, or, where the blocks of a cluster share a tile's sum, after adding up their parts.
#pragma once

#include "hopper/conv.cuh"

#include <cuda_fp16.h>

namespace lpkernels::hopper {

// The accumulators as rows of BlockN floats in shared memory, columns in the weight's own order.
template <class Config>
struct Staged {
  static constexpr int kPitch = Config::BlockN + 8;  // 8 mod 32 banks: the 8-byte stores of a warp never collide
  static constexpr size_t kBytes = sizeof(float) * Config::BlockM * kPitch;

  template <class Accumulator>
  __device__ static void store(const Accumulator& acc, int thread, float* staged) {
    CUTLASS_PRAGMA_UNROLL
    for (int tile_m = 0; tile_m < Config::BlockM / 128; ++tile_m) {
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < Config::BlockN / 2; i += 2) {
        const int row = tile_m * 128 + thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2);
        const int column = 8 * (i / 4) + 2 * (thread % 4);
        const int at = i + tile_m * (Config::BlockN / 2);
        *reinterpret_cast<float2*>(staged + row * kPitch + column) = make_float2(acc(at), acc(at + 1));
      }
    }
  }
};

// Width halves, as they lie in memory.
template <int Width>
using HalfBits = std::conditional_t<Width == 8, uint4, uint2>;

// Width halves at `address`, a multiple of 2 * Width bytes. Fresh: this kernel itself may have written them, so that
// they are not to be read as constants.
template <int Width, bool Fresh = false>
__device__ HalfBits<Width> load_halves(const __half* address) {
  const auto* bits = reinterpret_cast<const HalfBits<Width>*>(address);
  return Fresh ? __ldcg(bits) : __ldg(bits);
}

template <int Width>
__device__ void to_floats(const HalfBits<Width>& bits, float (&v)[Width]) {
  const auto* pairs = reinterpret_cast<const __half2*>(&bits);
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Width / 2; ++i) {
    const float2 pair = __half22float2(pairs[i]);
    v[2 * i] = pair.x;
    v[2 * i + 1] = pair.y;
  }
}

template <int Width>
__device__ HalfBits<Width> to_halves(const float (&v)[Width]) {
  HalfBits<Width> bits;
  auto* pairs = reinterpret_cast<__half2*>(&bits);
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Width / 2; ++i) {
    pairs[i] = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
  }
  return bits;
}

template <int Width>
__device__ void store_vector(__half* address, const float (&v)[Width]) {
  *reinterpret_cast<HalfBits<Width>*>(address) = to_halves(v);
}

// Width floats at `address`, a multiple of 16 bytes, in global or shared memory.
template <int Width>
__device__ void load_vector(const float* address, float (&v)[Width]) {
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Width; i += 4) {
    const float4 quad = *reinterpret_cast<const float4*>(address + i);
    v[i] = quad.x, v[i + 1] = quad.y, v[i + 2] = quad.z, v[i + 3] = quad.w;
  }
}

__device__ inline float leaky_relu(float value, float negative_slope) {
  return value > 0.f ? value : value * negative_slope;
}

// An epilogue is a type with
//   Params        what the kernel is launched with
//   kClusters     whether it can add up the parts of a cluster: then Sums<Config> is the ClusterSums it uses, and
//                 shared_own_bytes what it needs beside that one's
//   kManyTiles    whether it leaves the stages alone, so that a block may go on to another tile
//   staged_bytes  what it stages over the stages, own_bytes what it needs beside them
//   kHasValues    whether outputs have numbers that store_values, called by two warps beside the products, puts where
//                 run finds them
//   read_ahead    called by the two multiplying warpgroups before they multiply; answers what run gets
//   run           called by them with their accumulators
struct NothingAhead {};

struct ReadsNothingAhead {
  template <class Config, class Params>
  __device__ static NothingAhead read_ahead(const Params&, const ConvShape&, const ConvBlock&, int) {
    return {};
  }
};

struct HasNoValues {
  static constexpr bool kHasValues = false;

  template <class Config, class Params>
  __device__ static void store_values(const Params&, const ConvShape&, const ConvBlock&, int, const EpilogueMemory&) {}
};

// Numbers that belong to a block's outputs, Count for each, as Count rows of BlockN floats. Those of two tiles take
// turns: when the next but one comes, all are done with this one's.
template <class Config, int Count>
struct OutputValues {
  static constexpr size_t kBytes = 2 * Count * Config::BlockN * sizeof(float);

  __device__ static float* of_tile(unsigned char* memory, const ConvBlock& block) {
    return reinterpret_cast<float*>(memory) + block.turn * Count * Config::BlockN;
  }

  // value(n, values) gives those of output n, counted from the block's first; the threads are 0 to 63.
  template <class Value>
  __device__ static void store(unsigned char* memory, const ConvBlock& block, int thread, Value&& value) {
    CUTLASS_PRAGMA_NO_UNROLL
    for (int n = thread; n < Config::BlockN; n += 64) {
      float values[Count] = {};
      value(n, values);
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < Count; ++i) {
        of_tile(memory, block)[i * Config::BlockN + n] = values[i];
      }
    }
  }
};

// Treats every pixel alike. Op has
//   Params, own_bytes
//   kValues, values(params, shape, block, output, values)  numbers that belong to an output
//   Row, row(params, shape, block, pixel)                  what the outputs of a pixel share
//   kReads, address(params, row)                           a pixel's halves that apply gets, or null
//   apply(params, row, values, read, v)                    on each vector of Width outputs, with all their values
//   store(params, shape, row, output, v)                   what that left, where there is such a pixel and output
//   finish                                                 on all that in the accumulators, zeros where there is none
// There is no branch around a vector, so that the instructions of several fill each other's gaps. Fresh: what it reads
// this kernel itself may have written.
template <class Op, int Width, bool Fresh = false>
struct PixelEpilogue {
  using Params = typename Op::Params;
  using Bits = HalfBits<Width>;
  using F = Fragment<Width>;
  static constexpr bool kClusters = Width == 8, kManyTiles = true, kHasValues = true;

  template <class Config>
  static constexpr int kRows = Config::BlockM / 64;  // of a thread
  template <class Config>
  static constexpr int kVectors = kRows<Config> * (Config::BlockN / F::kGroup);
  // Vectors read before the products, and under way after them; large tiles leave registers for fewer.
  template <class Config>
  static constexpr int kAhead = !Op::kReads                                   ? 0
                                : Config::BlockM * Config::BlockN < 128 * 256 ? 8
                                                                              : 4;
  template <class Config>
  static constexpr int kUnderWay = std::min(2 * kAhead<Config>, kVectors<Config>);

  template <class Config>
  struct Ahead {
    Bits bits[std::max(kAhead<Config>, 1)];
  };

  template <class Config>
  using Sums = ClusterSums<Config, 1>;

  template <class Config>
  static constexpr size_t staged_bytes() {
    return 0;
  }

  template <class Config>
  static constexpr size_t own_bytes() {
    return OutputValues<Config, Op::kValues>::kBytes + Op::template own_bytes<Config>();
  }

  template <class Config>
  static constexpr size_t shared_own_bytes() {
    return OutputValues<Config, Op::kValues>::kBytes;
  }

  template <class Config>
  __device__ static Ahead<Config> read_ahead(const Params& params, const ConvShape& shape, const ConvBlock& block,
                                             int thread) {
    Ahead<Config> ahead{};
    if (Op::kReads && shape.split == 1) {
      const Rows<Config> rows(params, shape, block, thread);
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kAhead<Config>; ++i) {
        ahead.bits[i] = rows.read(params, shape, block, thread, i);
      }
    }
    return ahead;
  }

  template <class Config>
  __device__ static void store_values(const Params& params, const ConvShape& shape, const ConvBlock& block, int thread,
                                      const EpilogueMemory& memory) {
    OutputValues<Config, Op::kValues>::store(memory.own, block, thread, [&](int n, float (&values)[Op::kValues]) {
      if (block.n + n < shape.outputs) {
        Op::values(params, shape, block, block.n + n, values);
      }
    });
  }

  template <class Config, class Accumulator>
  __device__ static void run(const Params& params, const ConvShape& shape, const ConvBlock& block, Accumulator& acc,
                             int thread, const EpilogueMemory& memory, const Ahead<Config>& ahead) {
    const float* values = OutputValues<Config, Op::kValues>::of_tile(memory.own, block);
    if constexpr (kClusters && Config::Clusters) {
      if (shape.split > 1) {
        return Sums<Config>::add_up(shape.split, acc, thread, memory.received,
                                    [&](int tile_m, int s, int j, float (&v)[1][Width]) {
                                      apply_to_sum<Config>(params, shape, block, Config::row(thread, tile_m, s),
                                                           F::output(thread, j), values, v[0]);
                                    });
      }
    }
    constexpr int kAll = kVectors<Config>, kSlots = kUnderWay<Config>;
    const Rows<Config> rows(params, shape, block, thread);
    Bits read[std::max(kSlots, 1)];
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kSlots; ++i) {
      read[i] = i < kAhead<Config> ? ahead.bits[i] : rows.read(params, shape, block, thread, i);
    }
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kAll; ++i) {
      const int r = i % kRows<Config>, j = i / kRows<Config>, output = F::output(thread, j);
      const bool exists = rows.inside[r] && block.n + output < shape.outputs;
      float of_output[Op::kValues][Width], v[Width];
      load_values<Config>(values + output, of_output);
      CUTLASS_PRAGMA_UNROLL
      for (int e = 0; e < Width; ++e) {
        v[e] = acc(F::index(Config::BlockN, r / 2, r % 2, j, e));
      }
      Op::apply(params, rows.row[r], of_output, Op::kReads ? read[i % std::max(kSlots, 1)] : Bits{}, v);
      if (exists) {
        Op::store(params, shape, rows.row[r], block.n + output, v);
      }
      CUTLASS_PRAGMA_UNROLL
      for (int e = 0; e < Width; ++e) {
        acc(F::index(Config::BlockN, r / 2, r % 2, j, e)) = exists ? v[e] : 0.f;
      }
      if (Op::kReads && i + kSlots < kAll) {
        read[i % std::max(kSlots, 1)] = rows.read(params, shape, block, thread, i + kSlots);
      }
    }
    Op::template finish<Config, Width>(params, shape, block, acc, thread,
                                       memory.own + OutputValues<Config, Op::kValues>::kBytes);
  }

 private:
  template <class Config>
  struct Rows {
    typename Op::Row row[kRows<Config>];
    bool inside[kRows<Config>];

    __device__ Rows(const Params& params, const ConvShape& shape, const ConvBlock& block, int thread) {
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < kRows<Config>; ++r) {
        const Pixel at = pixel_at(shape, block, Config::row(thread, r / 2, r % 2));
        inside[r] = hopper::inside(shape, at);
        row[r] = Op::row(params, shape, block, at);
      }
    }

    // Vector i of the thread: all rows of a group of outputs, then the next group.
    __device__ Bits read(const Params& params, const ConvShape& shape, const ConvBlock& block, int thread,
                         int i) const {
      const int r = i % kRows<Config>, output = block.n + F::output(thread, i / kRows<Config>);
      const __half* address = Op::address(params, row[r]);
      return address != nullptr && inside[r] && output < shape.outputs ? load_halves<Width, Fresh>(address + output)
                                                                       : Bits{};
    }
  };

  // All values of Width neighbouring outputs, the first of which has its own at `first`.
  template <class Config>
  __device__ static void load_values(const float* first, float (&values)[Op::kValues][Width]) {
    CUTLASS_PRAGMA_UNROLL
    for (int kind = 0; kind < Op::kValues; ++kind) {
      load_vector(first + kind * Config::BlockN, values[kind]);
    }
  }

  // Row m of the tile and the outputs from `output` on, where a cluster has summed them up.
  template <class Config>
  __device__ static void apply_to_sum(const Params& params, const ConvShape& shape, const ConvBlock& block, int m,
                                      int output, const float* values, float (&v)[Width]) {
    const Pixel at = pixel_at(shape, block, m);
    if (!inside(shape, at) || block.n + output >= shape.outputs) {
      return;
    }
    const typename Op::Row row = Op::row(params, shape, block, at);
    const __half* address = Op::address(params, row);
    float of_output[Op::kValues][Width];
    load_values<Config>(values + output, of_output);
    Op::apply(params, row, of_output,
              address != nullptr ? load_halves<Width, Fresh>(address + block.n + output) : Bits{}, v);
    Op::store(params, shape, row, block.n + output, v);
  }
};

}  // namespace lpkernels::hopper
