// The inner loops of the CPU backend, one table per instruction set; see hsic_cpu.cpp for the plan.
#pragma once

#include "hsic.h"

namespace stitchkern::hsic {

// Samples of a tile: whole panels on every instruction set.
inline constexpr int TILE = 96;
// Channels multiplied at a stretch: two panels of them stay in the first-level cache, and float32 sums stay short.
inline constexpr int64_t CHANNELS = 256;

// Σ (x_i − x_0) over some samples, of some channels: constant channels become exactly zero.
struct MeanTask {
  const Rows* x;
  int64_t row0, rows;
  int64_t channel0, channels;
  double* sums;  // [channels], out
};

// Some channels of some samples, centred, in panels that serve both sides of a product: [panel][channel][width], width
// × panels = TILE, zero beyond the last sample. T: the type of the products.
template <class T>
struct PackTask {
  const Rows* x;
  const double* mean;  // of these channels
  int64_t row0;
  int rows;  // <= TILE
  int64_t channel0, channels;
  T* packed;      // [TILE × channels], out
  double* norms;  // [TILE], += |x_i − mean|², in the order of the products: equal rows then have distance 0; or null
};

// Which entries of a tile are wanted: j < columns, and j > i where it lies on the diagonal.
struct Extent {
  int rows, columns;  // <= TILE
  bool diagonal;
};

template <class T>
struct MultiplyTask {
  const T *a, *b;  // packed
  int64_t channels;
  Extent extent;
  int row0, row1;  // of these rows only, multiples of TILE / 2
  bool first;      // whether to start from zero
  double* values;  // [TILE, TILE], +=
};

// What a side's kernel is a function of, from products: −|a − b|² or −|a − b|. In place; nothing to do where linear.
struct DistanceTask {
  Kernel kernel;
  const double *norms_a, *norms_b;  // [TILE]
  Extent extent;
  double* values;  // [TILE, TILE]
};

// The sums of one tile of all sides for one bandwidth of each.
struct SumTask {
  int sides;
  const Side* side;
  const double* values;         // [sides, TILE, TILE]
  const double *scale, *shift;  // [sides]: K = exp(scale × value) − shift, or value − shift where linear
  Extent extent;
  double *rows, *columns;  // [sides, TILE], out: row sums, and sums over rows
  double* sums;            // [sides, sides], out: from the diagonal up
  double* scratch;         // [scratch_size(sides)]
};
inline constexpr int SUM_ROWS = 8;  // of a tile, whose kernels are made before they meet each other
inline constexpr int BLOCK = 4;     // sides of which products are summed in registers
inline constexpr int64_t scratch_size(int64_t sides) {
  const int64_t blocks = (sides + BLOCK - 1) / BLOCK, lanes = 8;
  return sides * SUM_ROWS * TILE + blocks * blocks * BLOCK * BLOCK * lanes + 64;
}

// What the gradient of one tile of all sides for one bandwidth of each adds to a matrix A of each side, whose product
// with the features is their gradient; see hsic_cpu_backward.cpp.
struct WeightTask {
  int sides;
  const Side* side;
  const double* values;           // [sides, TILE, TILE]
  const double *scale, *shift;    // [sides]
  const double* mix;              // [sides, sides]: the gradient of the sums of products plus its transpose
  const double *grad_i, *grad_j;  // the gradient of the row sums, of the samples of both directions
  int64_t grad_stride;            // from side to side
  Extent extent;                  // all of a tile is wanted; `diagonal`: but its diagonal
  double* weights;                // [sides, TILE, TILE], += A
  double* scratch;                // [sides × TILE]
};

// gradient += A (x − mean): `rows` × `channels`, from a tile of A and features of `columns` samples.
struct ProductTask {
  const double* weights;  // [TILE, TILE]
  const double* packed;   // [channels / width][TILE][width]: see `spread`
  int rows, columns;
  int64_t channels;
  double* gradient;  // += ; rows are `stride` apart
  int64_t stride;
};
inline constexpr int64_t WIDEST = 24;  // channels of a panel, at most
// Some channels of some samples, centred, in panels of channels: [panel][sample][width], zero beyond the last channel.
struct SpreadTask {
  const Rows* x;
  const double* mean;  // of these channels
  int64_t row0;
  int rows;
  int64_t channel0, channels;
  double* packed;  // [TILE × (channels + WIDEST)], out
};

template <class T>
struct Products {
  void (*pack)(const PackTask<T>&);
  void (*multiply)(const MultiplyTask<T>&);
};

struct Functions {
  void (*mean)(const MeanTask&);
  void (*distances)(const DistanceTask&);
  void (*add)(const SumTask&);
  void (*weigh)(const WeightTask&);
  void (*spread)(const SpreadTask&);
  void (*apply)(const ProductTask&);
};

namespace baseline {
extern const Products<float> products_f32;
extern const Products<double> products_f64;
extern const Functions functions;
}  // namespace baseline
#if defined(STITCHKERN_X86_PATHS)
namespace avx2 {
extern const Products<float> products_f32;
extern const Products<double> products_f64;
extern const Functions functions;
}  // namespace avx2
namespace avx512 {
extern const Products<float> products_f32;
extern const Products<double> products_f64;
extern const Functions functions;
}  // namespace avx512
#endif

}  // namespace stitchkern::hsic
