// Paths of Lasso problems in Gram form: what all backends share. No torch, no CUDA headers.
//
// For each target k and each penalty of its path, with H = G + l2 I,
//
//   minimise over w   ½ wᵀ G w − wᵀ s + l1 ‖w‖₁ + ½ l2 ‖w‖²,        c = s − G w
//
// whose optimum is where c_j − l2 w_j = l1 sign(w_j) for w_j ≠ 0 and |c_j| ≤ l1 elsewhere (with `positive`, w ≥ 0 and
// c_j ≤ l1). Grouped, the penalty is l1 Σ_j ‖M_:j‖₂ over the columns of M (q × p): a feature serves all targets or
// none. A feature of no variance (G_jj = 0) has the coefficient 0.
//
// Every α starts at the optimum of the one before it. c is found from G, not updated, whenever it decides anything, and
// what is reported is that of the coefficients returned. Determinism: one target (grouped: one path) is one unit of
// work.
#pragma once

#include <cstdint>

#include "../common/dtype.h"

namespace stitchkern::lasso {

inline constexpr int CUDA_FEATURES = 4096;  // what a warp has shared memory for

// What is known of each α and target. VIOLATION: the largest of what optimality asks of c, relative to max |s|. GAP: an
// upper bound of the objective above its minimum; grouped: shares of one, to be added up. EXPLAINED: 2 wᵀ s − wᵀ G w.
// NORM: ‖w‖₁, or the target's share of Σ_j ‖M_:j‖₂. SQUARES: ‖w‖². SWEEPS: passes over the active features (coordinate
// descent), or steps (active sets). NONZERO.
enum Score : int { VIOLATION, GAP, EXPLAINED, NORM, SQUARES, SWEEPS, NONZERO, SCORES };

struct Path {
  const double* gram;    // [p, p], symmetric
  const double* cross;   // [p, q]
  const double* energy;  // [q]: E (y − ȳ)²
  const double* l1;      // [alphas, q]; grouped: of an α, the same for all targets
  const double* l2;      // [alphas, q], likewise
  const double* start;   // [q, p]: where the first α starts
  double* coefficients;  // [alphas, q, p], out
  double* score;         // [alphas, q, SCORES], out
  int64_t alphas, q;
  int p;
  bool positive;
  double tol;
  int max_sweeps;
};

SK_HOST_DEVICE double magnitude(double v) { return v < 0 ? -v : v; }
SK_HOST_DEVICE double larger(double a, double b) { return a > b ? a : b; }

// Sums over the features of one target, and what its score needs beside them.
struct Sums {
  double cross = 0;     // wᵀ s
  double gradient = 0;  // wᵀ c
  double norm = 0;      // ‖w‖₁
  double squares = 0;   // ‖w‖²
  double beyond = 0;    // Σ_j (|c_j| − l1)₊²
  double largest = 0;   // max_j |c_j − l2 w_j|, or what counts of it
  double violation = 0;
  int nonzero = 0;

  // What optimality asks of one coefficient.
  SK_HOST_DEVICE void add(double w, double s, double c, double l1, double l2, bool positive) {
    const double slope = c - l2 * w, reach = positive ? larger(c, 0) : magnitude(c);
    cross += w * s, gradient += w * c, norm += magnitude(w), squares += w * w;
    const double over = larger(reach - l1, 0);
    beyond += over * over;
    largest = larger(largest, positive ? slope : magnitude(slope));
    violation = larger(violation, w == 0 ? over : magnitude(slope - (w < 0 ? -l1 : l1)));
    nonzero += w != 0;
  }
};

// Fenchel: of the objective at w and a feasible dual point. With l2, c itself is one: Σ_j h(w_j) + h*(c_j) − w_j c_j.
// Without, it has to be shrunk until no |c_j| is beyond l1. Rounding may leave it below 0.
SK_HOST_DEVICE double duality_gap(double energy, double cross, double gradient, double norm, double squares,
                                  double beyond, double largest, double l1, double l2) {
  if (l2 > 0) return l1 * norm + l2 * squares / 2 + beyond / (2 * l2) - gradient;
  const double share = largest <= l1 ? 1 : l1 / largest, rest = 1 - share;
  return rest * rest * energy / 2 - (1 + share * share) * (cross + gradient) / 2 + l1 * norm + share * cross;
}

SK_HOST_DEVICE void write_score(double* score, const Sums& s, double energy, double l1, double l2, double scale,
                                int sweeps) {
  score[VIOLATION] = scale > 0 ? s.violation / scale : 0;
  score[GAP] = duality_gap(energy, s.cross, s.gradient, s.norm, s.squares, s.beyond, s.largest, l1, l2);
  score[EXPLAINED] = s.cross + s.gradient;
  score[NORM] = s.norm, score[SQUARES] = s.squares;
  score[SWEEPS] = sweeps, score[NONZERO] = s.nonzero;
}

}  // namespace stitchkern::lasso
