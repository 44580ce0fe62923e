// Sums over kernel matrices of any number of sides (layers), tile by tile: what all backends share. No torch, no CUDA
// headers.
//
// K (n × n) is the kernel matrix of one side's features x (n × p), less a constant, K_ij = k(x_i, x_j) − c. Centring
// takes constants out of HSIC, biased and unbiased, so c is free: near the mean of K it keeps the digits that large
// bandwidths would otherwise lose, where all of K is close to 1. What HSIC needs of two sides are the row sums of K and
// L and Σ K∘L, Σ K∘K, Σ L∘L, all off the diagonal, and the diagonals. A tile of each side is made once, and meets those
// of all sides: s sides cost s products of features, not one for each pair.
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
  Rows x;  // (n, p)
  Kernel kernel;
};

struct Batch {
  const Side* sides;        // [sides_count]
  int64_t sides_count;      // s
  const double* bandwidth;  // [s, bandwidths]: σ; not looked at where the kernel is linear
  const double* shift;      // [s, bandwidths]: c
  int64_t count;            // n
  int64_t bandwidths;
  double* rows;      // [s, bandwidths, n], out: Σ_{j ≠ i} K_ij
  double* diagonal;  // [s, bandwidths, n], out: K_ii
  double* sums;      // [bandwidths, s, s], out: Σ_{i ≠ j} K_ij L_ij of every two sides
};

}  // namespace stitchkern::hsic
