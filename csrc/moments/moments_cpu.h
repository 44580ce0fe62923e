// The inner loops of the CPU backend, one table per instruction set and element type; see moments_cpu.cpp for the plan.
#pragma once

#include "moments.h"

namespace stitchkern::moments {

// Rows of a block: enough that promoting to float64 costs little, few enough that float32 sums stay short
// (their error grows with the root of this) and that two packed panels stay in the second-level cache.
inline constexpr int64_t BLOCK_ROWS = 256;

// One block of some neighbouring panels: u[k][j] = sqrt(w_k) (x[row0 + k][channel0 + j] − shift[j]), zero beyond the
// last channel.
template <class T>
struct PackTask {
  const Rows* x;
  int64_t row0, rows;          // rows <= BLOCK_ROWS
  int64_t channel0, channels;  // channels <= panels × width
  int panels;
  const T* shift;        // [panels][width]
  const double* weight;  // [rows]; null: ones. Rows of weight zero are not looked at.
  T* packed;             // [panels][BLOCK_ROWS][width], out
  double* first;         // [panels][width], out: Σ w (x − shift)
  T* largest;            // [panels][width], out: max |x − shift| over rows with weight
};

template <class T>
struct Kernels {
  int width;  // features of a panel

  void (*pack)(const PackTask<T>&);

  // c[i][j] += Σ_k a[k][i] b[k][j] for i < rows_c, j < columns_c, summed in T over the block and added in float64.
  // With `diagonal` only j >= i is wanted (what lies below may or may not be written).
  void (*multiply)(const T* a, const T* b, int64_t rows, double* c, int64_t ldc, int rows_c, int columns_c,
                   bool diagonal);

  // Third and fourth order over one block, in float64, about the origin (z = u / sqrt(w) + d):
  // third[0] += Σ w a z, third[1] += Σ w b z, norms += Σ w a², w a b, w b².
  void (*norms)(const T* packed, int64_t panel_stride, int panels_x, int panels, int64_t rows, const double* weight,
                const double* d, double* third, int64_t third_stride, double* norms);
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

}  // namespace stitchkern::moments
