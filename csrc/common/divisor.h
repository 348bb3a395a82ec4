// Integer division on the device by numbers that the host knows.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace lpkernels {

// Division by a number that the host knows, in three instructions, for 0 <= n < 2^31 (Granlund and Montgomery 1994): a
// block works out its place in some ten divisions before it can load anything, and the compiler takes 30 for each.
struct Divisor {
  int value = 1;
  uint32_t multiplier = 0;
  int shift = 0;

  Divisor() = default;
  explicit Divisor(int value) : value(value) {
    if (value > 1) {
      while ((int64_t{1} << shift) < value) {
        ++shift;
      }
      const uint64_t power = uint64_t{1} << (31 + shift);
      multiplier = static_cast<uint32_t>((power + value - 1) / value);
      --shift;
    }
  }

  LPKERNELS_HOST_DEVICE int quotient(int n) const {
    return value == 1 ? n : static_cast<int>(static_cast<uint64_t>(n) * multiplier >> 32 >> shift);
  }
};

}  // namespace lpkernels
