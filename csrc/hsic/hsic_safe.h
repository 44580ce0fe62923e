// Where products of float32 accuracy are good enough; hsic_cpu.cpp says why. No torch, no CUDA headers.
#pragma once

#include <algorithm>

#include "hsic.h"

namespace stitchkern::hsic {

inline constexpr double SAFE_REACH = 4;  // |a|² / σ² that they may have
inline constexpr double SAFE_SMALLEST = 0x1p-60,
                        SAFE_LARGEST = 0x1p100;  // |a|², lest what adds up to it leaves float32
inline constexpr int64_t SAFE_ROWS_RADIAL = 1024, SAFE_ROWS_LINEAR = 128;  // samples that they need

// Whether they may be; norms have the last word.
inline bool may_be_float32(const Batch& batch) {
  return std::all_of(batch.sides, batch.sides + batch.sides_count, [&](const Side& side) {
    const int64_t least = side.kernel == Kernel::linear ? SAFE_ROWS_LINEAR : SAFE_ROWS_RADIAL;
    return side.x.dtype != DType::f64 && side.kernel != Kernel::laplace && batch.count >= least;
  });
}

// The largest |a|² of a side, or something larger than SAFE_LARGEST where one is not a number.
SK_HOST_DEVICE bool safe_norm(double largest, Kernel kernel) {
  return (largest == 0 && kernel == Kernel::linear) || (largest >= SAFE_SMALLEST && largest <= SAFE_LARGEST);
}
SK_HOST_DEVICE bool safe_width(double largest, Kernel kernel, double width) {
  return kernel == Kernel::linear || largest <= SAFE_REACH * width * width;
}

}  // namespace stitchkern::hsic
