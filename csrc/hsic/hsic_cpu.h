// The inner loops of the CPU backend, one table per instruction set; see hsic_cpu.cpp for the plan.
#pragma once

#include "hsic.h"

namespace stitchkern::hsic {

// Samples of a tile: whole panels on every instruction set; two packed tiles of 256 features fit a second-level cache.
inline constexpr int TILE = 96;

// Some tile of one side's features, centred: [panel][channel][width], width × panels = TILE, zero beyond the last row.
// T: the type of the products.
template <class T>
struct PackTask {
  const Rows* x;
  const double* mean;  // [channels]
  int64_t row0;
  int rows;       // <= TILE
  T* packed;      // [TILE × channels], out
  double* norms;  // [TILE], out: |x_i − mean|², in float64 summed in the order of the products: equal rows then have
                  // distance 0
};

// Which entries of a tile are wanted: j < columns, and j > i where it lies on the diagonal.
struct Extent {
  int rows, columns;  // <= TILE
  bool diagonal;
};

// What the kernels of one tile of one side are functions of: the products, −|a − b|² or −|a − b|.
template <class T>
struct ValueTask {
  Kernel kernel;
  const T *a, *b;                   // packed tiles
  const double *norms_a, *norms_b;  // [TILE]
  int64_t channels;
  Extent extent;
  double* values;  // [TILE, TILE], out
};

// The sums of one tile for one pair of bandwidths.
struct SumTask {
  const double* values[SIDES];  // [TILE, TILE]
  Kernel kernel[SIDES];
  double scale[SIDES];  // K = exp(scale × value); not looked at where the kernel is linear
  double shift[SIDES];
  Extent extent;
  double* rows[SIDES];     // [TILE], +=
  double* columns[SIDES];  // [TILE], +=
  double* sums;            // [PRODUCTS], +=
};

template <class T>
struct Kernels {
  void (*pack)(const PackTask<T>&);
  void (*values)(const ValueTask<T>&);
  void (*add)(const SumTask&);
};

namespace baseline {
extern const Kernels<float> kernels_f32;
extern const Kernels<double> kernels_f64;
}  // namespace baseline
#if defined(STITCHKERN_X86_PATHS)
namespace avx2 {
extern const Kernels<float> kernels_f32;
extern const Kernels<double> kernels_f64;
}  // namespace avx2
namespace avx512 {
extern const Kernels<float> kernels_f32;
extern const Kernels<double> kernels_f64;
}  // namespace avx512
#endif

}  // namespace stitchkern::hsic
