// Sums of rows and products with them: the two loops that all CPU kernels of this folder consist of. Include only from
// *_path.cpp files.
#pragma once

#include "../common/simd.h"

namespace stitchkern::lasso::STITCHKERN_PATH {

using namespace stitchkern::STITCHKERN_PATH;

// y −= Σ_i factor[i] row[i]
template <int N>
SK_HOST_DEVICE void subtract_rows(double* y, const double* const (&row)[N], const double (&factor)[N], int64_t count) {
  constexpr int L = LANES<double>;
  Vector<double> f[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) f[i] = splat(factor[i]);
  int64_t at = 0;
  for (; at + L <= count; at += L) {
    Vector<double> v = load(y + at);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) v -= f[i] * load(row[i] + at);
    store(y + at, v);
  }
  for (; at < count; ++at)
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) y[at] -= factor[i] * row[i][at];
}

// out[i] = row[i]ᵀ x
template <int N>
SK_HOST_DEVICE void dot_rows(double (&out)[N], const double* const (&row)[N], const double* x, int64_t count) {
  constexpr int L = LANES<double>;
  Vector<double> sums[N] = {};
  int64_t at = 0;
  for (; at + L <= count; at += L) {
    const Vector<double> v = load(x + at);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) sums[i] += v * load(row[i] + at);
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) out[i] = sum<double>(sums[i]);
  for (; at < count; ++at)
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) out[i] += row[i][at] * x[at];
}

SK_HOST_DEVICE double dot(const double* a, const double* b, int64_t count) {
  double out[1];
  dot_rows<1>(out, {a}, b, count);
  return out[0];
}

// y −= Σ_i factor(i) row(i) over `rows` of them, eight at a time
template <class Row, class Factor>
SK_HOST_DEVICE void subtract_all(double* y, int64_t count, int rows, const Row& row, const Factor& factor) {
  int i = 0;
  for (; i + 8 <= rows; i += 8)
    subtract_rows<8>(y, {row(i), row(i + 1), row(i + 2), row(i + 3), row(i + 4), row(i + 5), row(i + 6), row(i + 7)},
                     {factor(i), factor(i + 1), factor(i + 2), factor(i + 3), factor(i + 4), factor(i + 5),
                      factor(i + 6), factor(i + 7)},
                     count);
  for (; i + 2 <= rows; i += 2) subtract_rows<2>(y, {row(i), row(i + 1)}, {factor(i), factor(i + 1)}, count);
  if (i < rows) subtract_rows<1>(y, {row(i)}, {factor(i)}, count);
}

}  // namespace stitchkern::lasso::STITCHKERN_PATH
