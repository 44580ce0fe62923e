// Sums over kernel matrices of any number of sides, tile by tile: what all backends share. No torch, no CUDA headers.
//
// K^a (n × n) is the kernel matrix of side a (n × p_a) less a constant of its own, K^a_ij = k(x_i, x_j) − c_a. Centring
// takes constants out of HSIC, biased and unbiased, so c is free: near the mean of K it keeps the digits that large
// bandwidths would otherwise lose, where all of K is close to 1. What HSIC needs, for each bandwidth, are the row sums
// of each K^a and Σ K^a∘K^c for all pairs of sides, all off the diagonal, and the diagonals.
#pragma once

#include <cstdint>

#include "../common/dtype.h"
#include "../common/rows.h"

namespace stitchkern::hsic {

// linear: (a − m)ᵀ(b − m), m the mean. rbf: exp(−|a − b|² / (2 σ²)). laplace: exp(−|a − b| / σ).
enum class Kernel : int { linear, rbf, laplace, count };
inline constexpr const char* KERNEL_NAMES[] = {"linear", "rbf", "laplace"};
static_assert(sizeof KERNEL_NAMES / sizeof *KERNEL_NAMES == size_t(Kernel::count));

struct Side {
  Rows x;
  Kernel kernel;
};

struct Batch {
  const Side* sides;        // [sides_count]
  int64_t sides_count;      // s
  const double* bandwidth;  // [s, b]: σ; not looked at where the kernel is linear
  const double* shift;      // [s, b]: c
  int64_t count;            // n
  int64_t bandwidths;       // b
  double* rows;             // [s, b, n], out: Σ_{j ≠ i} K_ij
  double* diagonal;         // [s, b, n], out: K_ii
  double* sums;             // [b, s, s], out: Σ_{i ≠ j} K^a_ij K^c_ij
};

}  // namespace stitchkern::hsic
