// The Cholesky factor of H_AA that an active set carries: features join at its end and leave from anywhere. Include
// only from *_path.cpp files.
//
// H_AA = Uᵀ U, U upper, rows contiguous: both eliminations, and the rotations that a leaving feature takes, run along
// rows.
#pragma once

#include <cmath>
#include <cstring>

#include "lasso_rows.h"

namespace stitchkern::lasso::STITCHKERN_PATH {

struct Factor {
  static constexpr int BLOCK = 4;  // rows that are eliminated together

  double* upper;    // [p][stride]
  double* inverse;  // [p]: 1 / U_ii
  int64_t stride;   // no power of two, so that a column does not share a cache set
  int size = 0;

  static int64_t stride_of(int p) { return (p + 7) / 8 * 8 + 8; }
  double* row(int i) const { return upper + i * stride; }

  // U⁻ᵀ b in its place
  void down(double* b) const {
    for (int first = 0; first < size; first += BLOCK) {
      const int count = size - first < BLOCK ? size - first : BLOCK, next = first + count;
      for (int i = first; i < next; ++i) {
        for (int k = first; k < i; ++k) b[i] -= row(k)[i] * b[k];
        b[i] *= inverse[i];
      }
      if (count == BLOCK)
        subtract_rows<BLOCK>(b + next,
                             {row(first) + next, row(first + 1) + next, row(first + 2) + next, row(first + 3) + next},
                             {b[first], b[first + 1], b[first + 2], b[first + 3]}, size - next);
    }
  }

  // U⁻¹ b in its place
  void up(double* b) const {
    for (int first = (size - 1) / BLOCK * BLOCK; first >= 0; first -= BLOCK) {
      const int count = size - first < BLOCK ? size - first : BLOCK, next = first + count;
      if (count == BLOCK) {
        double sums[BLOCK];
        dot_rows<BLOCK>(sums, {row(first) + next, row(first + 1) + next, row(first + 2) + next, row(first + 3) + next},
                        b + next, size - next);
        for (int i = 0; i < BLOCK; ++i) b[first + i] -= sums[i];
      }
      for (int i = next - 1; i >= first; --i) {
        for (int k = i + 1; k < next; ++k) b[i] -= row(i)[k] * b[k];
        b[i] *= inverse[i];
      }
    }
  }

  // One more column: U⁻ᵀ H_Aj, and the pivot that is left of H_jj.
  void append(const double* column, double pivot) {
    for (int i = 0; i < size; ++i) row(i)[size] = column[i];
    const double root = std::sqrt(pivot);
    row(size)[size] = root, inverse[size] = 1 / root;
    ++size;
  }

  // Feature k leaves: its column goes, and rotations of neighbouring rows bring the others back to a triangle.
  void remove(int k) {
    const int last = size - 1;
    for (int i = 0; i < k; ++i) memmove(row(i) + k, row(i) + k + 1, (last - k) * sizeof(double));
    if (k < last) memmove(row(k) + k, row(k) + k + 1, (last - k) * sizeof(double));
    for (int i = k; i < last; ++i) {
      // row i has columns i … from the left on; row i + 1, still where it was, one further to the right
      double *above = row(i), *below = row(i + 1) + 1;
      const double a = above[i], b = below[i], radius = std::sqrt(a * a + b * b), c = a / radius, s = b / radius;
      above[i] = radius, inverse[i] = 1 / radius;
      rotate(above + i + 1, below + i + 1, below + i, c, s, last - i - 1);
    }
    size = last;
  }

 private:
  // (a, b) ← (c a + s b, c b − s a); the second goes to `to`, one place before b
  static void rotate(double* a, const double* b, double* to, double c, double s, int count) {
    constexpr int L = LANES<double>;
    const Vector<double> vc = splat(c), vs = splat(s);
    int at = 0;
    for (; at + L <= count; at += L) {
      const Vector<double> x = load(a + at), y = load(b + at);
      store(a + at, vc * x + vs * y);
      store(to + at, vc * y - vs * x);
    }
    for (; at < count; ++at) {
      const double x = a[at], y = b[at];
      a[at] = c * x + s * y, to[at] = c * y - s * x;
    }
  }
};

}  // namespace stitchkern::lasso::STITCHKERN_PATH
