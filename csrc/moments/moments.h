// Streaming moments: what all backends share. No torch, no CUDA headers.
//
// x and y are treated as one matrix z = [x, y] of P = p + q features: the upper triangle of Σ w z zᵀ holds xx, xy and
// yy. All sums are float64 and taken about `origin`, which the first batch with weight sets to its pilot mean and which
// never moves after that. What is multiplied is shifted by the batch's own pilot mean s (a mean over at most PILOT_ROWS
// rows with weight, spread over the batch, rounded to the type of the products), so that features far from zero keep
// their digits whatever the first batch looked like: with d = s − origin and u = z − s,
//
//   Σ w (u + d)           = Σ w u + W d
//   Σ w (u + d)(u + d)ᵀ   = Σ w u uᵀ + (Σ w u) dᵀ + d (Σ w u)ᵀ + W d dᵀ
//
// The right-hand corrections are float64 and cost one pass over the state per batch.
//
// Two-sided moments also keep, about `origin` and in float64 throughout, with a = ‖x‖² and b = ‖y‖² of a row:
// third = (Σ w a z, Σ w b z), norms = (Σ w a², Σ w a b, Σ w b²). Unbiased HSIC needs them.
//
// Determinism: every number is added up in an order that depends on the shapes alone, never on threads or timing.
#pragma once

#include <cstdint>

#include "../common/rows.h"

namespace stitchkern::moments {

enum class Precision : int { medium, high, highest, float64 };

// Entries of `totals`. The bad_* entries count finds since the caller last cleared them; a batch with any find changes
// nothing else.
enum Total : int { ROWS, WEIGHT, WEIGHT_SQ, NORM_XX, NORM_XY, NORM_YY, BAD_X, BAD_Y, BAD_WEIGHT, TOTALS };

inline constexpr const char* TOTAL_NAMES[TOTALS] = {"rows",    "weight", "weight_sq", "norm_xx",   "norm_xy",
                                                    "norm_yy", "bad_x",  "bad_y",     "bad_weight"};
inline constexpr const char* PRECISION_NAMES[4] = {"medium", "high", "highest", "float64"};

inline constexpr int64_t PILOT_ROWS = 128;

// The float64 sums, contiguous.
struct State {
  double* second;  // [P, P], upper triangle
  double* first;   // [P]
  double* third;   // [2, P]; null: not kept
  double* origin;  // [P]
  double* totals;  // [TOTALS]
};

struct Batch {
  Rows x;       // [rows, p]
  Rows y;       // [rows, q]; q may be 0
  Rows weight;  // [rows, 1] float64; data may be null: all ones
  int64_t rows;
  Precision precision;
  bool check_finite;

  int64_t p() const { return x.channels; }
  int64_t features() const { return x.channels + y.channels; }
  bool in_float64() const {
    return precision == Precision::float64 || x.dtype == DType::f64 || (y.channels && y.dtype == DType::f64);
  }
};

// The i-th of `count` pilot rows: one from each of `count` equal parts of the batch, at a scrambled place in it, so
// that they never all fall on one token or pixel.
SK_HOST_DEVICE int64_t pilot_row(int64_t i, int64_t count, int64_t rows) {
  const int64_t begin = i * rows / count, size = (i + 1) * rows / count - begin;
  return begin + int64_t((uint64_t(i) * 0x9e3779b97f4a7c15u >> 33) % uint64_t(size));
}

}  // namespace stitchkern::moments
