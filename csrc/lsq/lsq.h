// Batches of small least-squares problems from moments: what all backends share. No torch, no CUDA headers.
//
// One problem is C = cov_xx (p × p), S = cov_xy (p × q), a ridge r and right-hand sides W (p × k). In correlation form,
// with d_j = sqrt(C_jj + r),
//
//   A = D⁻¹ (C + r I) D⁻¹ = Uᵀ U,   Z = U⁻ᵀ D⁻¹ S,   X = D⁻¹ U⁻¹ Z,   V = U⁻¹ U⁻ᵀ W
//
// so that the scales of the features, from 1e-150 to 1e150, neither overflow nor decide what is a small pivot. X is the
// solution; the score is what choosing between candidates needs and what the factors give away for nothing: how much is
// explained, |Z|² + r |X|², and how far A is from singular.
//
// A problem whose elimination meets a pivot that is not a positive number has the solution zero, and its score says so.
// Determinism: one problem is one unit of work, and the order of its sums depends on p, q, k and the machine alone.
#pragma once

#include <cstdint>

#include "../common/dtype.h"

namespace stitchkern::lsq {

inline constexpr int MAX_FEATURES = 128, MAX_PROBES = 8;

// Entries of one problem's score. EXPLAINED: |Z|² + r |X|². PIVOT: the smallest U_jj², or the one that failed. NORM:
// |A|. INVERSE: the root of the mean of |A⁻¹ w|² over the probes, an estimate of |A⁻¹|; infinite where a pivot failed.
enum Score : int { EXPLAINED, PIVOT, NORM, INVERSE, SCORES };

// The batch. Inner two dimensions contiguous.
struct Batch {
  const double* cov_xx;                        // [count, p, p], upper triangles
  const double* cov_xy;                        // [count, p, q]
  const double* ridge;                         // [count]
  const double* probes;                        // [p, k]; may be null when k == 0
  double* solution;                            // [count, p, q], contiguous, out
  double* score;                               // [count, SCORES], contiguous, out
  int64_t stride_xx, stride_xy, stride_ridge;  // between problems, in elements
  int64_t count, q;
  int p, k;
};

// One problem of the batch.
struct Problem {
  const double* cov_xx;  // [p, p], upper triangle
  const double* cov_xy;  // [p, q]
  const double* probes;  // [p, k]
  double* solution;      // [p, q], out
  double* score;         // [SCORES], out
  double ridge;
  int64_t q;
  int p, k;

  SK_HOST_DEVICE Problem(const Batch& b, int64_t i)
      : cov_xx(b.cov_xx + i * b.stride_xx),
        cov_xy(b.cov_xy + i * b.stride_xy),
        probes(b.probes),
        solution(b.solution + i * b.p * b.q),
        score(b.score + i * SCORES),
        ridge(b.ridge[i * b.stride_ridge]),
        q(b.q),
        p(b.p),
        k(b.k) {}
};

SK_HOST_DEVICE bool finite(double v) { return v - v == 0; }
// What a pivot must be, and a diagonal entry for its root to be a scale: neither 0, negative, infinite nor NaN.
SK_HOST_DEVICE bool usable(double v) { return v > 0 && finite(v); }

}  // namespace stitchkern::lsq
