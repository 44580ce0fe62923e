// Sums over two kernel matrices, tile by tile: what all backends share. No torch, no CUDA headers.
//
// K and L (n × n) are the kernel matrices of x (n × p) and y (n × q), each less a constant of its own, K'_ij = k(x_i,
// x_j) − c. Centring takes constants out of HSIC, biased and unbiased, so c is free: near the mean of K it keeps the
// digits that large bandwidths would otherwise lose, where all of K is close to 1. What HSIC needs, for each pair of
// bandwidths, are the row sums of K' and L' and Σ K'∘L', Σ K'∘K', Σ L'∘L', all off the diagonal, and the diagonals.
#pragma once

#include <cstdint>

#include "../common/dtype.h"
#include "../common/rows.h"

namespace stitchkern::hsic {

// linear: (a − m)ᵀ(b − m), m the mean. rbf: exp(−|a − b|² / (2 σ²)). laplace: exp(−|a − b| / σ).
enum class Kernel : int { linear, rbf, laplace, count };
inline constexpr const char* KERNEL_NAMES[] = {"linear", "rbf", "laplace"};
static_assert(sizeof KERNEL_NAMES / sizeof *KERNEL_NAMES == size_t(Kernel::count));

enum Side : int { X, Y, SIDES };
// Rows of the sums of products.
enum Product : int { XY, XX, YY, PRODUCTS };

struct Batch {
  Rows x[SIDES];
  Kernel kernel[SIDES];
  const double* bandwidth;  // [SIDES, bandwidths]: σ; not looked at where the kernel is linear
  const double* shift;      // [SIDES, bandwidths]: c
  int64_t count;            // n
  int64_t bandwidths;
  double* rows;      // [SIDES, bandwidths, n], out: Σ_{j ≠ i} K'_ij
  double* diagonal;  // [SIDES, bandwidths, n], out: K'_ii
  double* sums;      // [PRODUCTS, bandwidths], out: Σ_{i ≠ j}
};

}  // namespace stitchkern::hsic
