// A grouped path of all targets by block coordinate descent. Include only from *_path.cpp files.
//
// The coefficients of one feature move together: with z = C_j + G_jj W_j (q numbers, W = Mᵀ, C = S − G W),
//
//   W_j ← (1 − l1 / ‖z‖)₊ z / (G_jj + l2)          (positive: with z₊ for z)
//
// Sweeps go over the active features, whose rows of C alone follow; between them C is found from G.
#pragma once

#include <algorithm>
#include <cmath>

#include "lasso.h"
#include "lasso_rows.h"

namespace stitchkern::lasso::STITCHKERN_PATH {

class GroupedPath {
 public:
  static int64_t scratch(int p, int64_t q) { return int64_t(sizeof(double)) * (3 * p * q + q + 2 * p) + 4 * p + 64; }

  GroupedPath(const Path& path, void* memory) : path(path), p(path.p), q(path.q) {
    s = static_cast<double*>(memory), w = s + p * q, c = w + p * q, z = c + p * q, norm = z + q, diagonal = norm + p;
    active = reinterpret_cast<int*>(diagonal + p);
    for (int j = 0; j < p; ++j) {
      diagonal[j] = path.gram[int64_t(j) * p + j];
      const bool live = diagonal[j] > 0;
      for (int64_t k = 0; k < q; ++k) {
        const double first = path.start[k * p + j];
        s[j * q + k] = live ? path.cross[j * q + k] : 0;
        w[j * q + k] = live && !(path.positive && first < 0) ? first : 0;
      }
      scale = std::max(scale, length(s + j * q));
    }
    threshold = path.tol * scale;
  }

  void run() {
    for (int64_t a = 0; a < path.alphas; ++a) {
      l1 = path.l1[a * q], l2 = path.l2[a * q];
      const int sweeps = solve();
      write(a, sweeps);
    }
  }

 private:
  const Path& path;
  const int64_t p, q;
  double *s, *w, *c;        // [p, q]
  double* z;                // [q]
  double *norm, *diagonal;  // [p]: ‖W_j‖; G_jj
  int* active;              // [p]
  double scale = 0, threshold = 0, l1 = 0, l2 = 0;

  double length(const double* v) const { return std::sqrt(dot(v, v, q)); }

  // How far feature j is from optimal.
  double violation(int64_t j) {
    const double *cj = c + j * q, *wj = w + j * q;
    const double pull = norm[j] > 0 ? l1 / norm[j] + l2 : 0;
    for (int64_t k = 0; k < q; ++k) {
      z[k] = cj[k] - pull * wj[k];
      if (path.positive && wj[k] == 0) z[k] = larger(z[k], 0);
    }
    return norm[j] > 0 ? length(z) : larger(length(z) - l1, 0);
  }

  int solve() {
    int sweeps = 0;
    bool stuck = false;
    while (true) {
      // C and what it says
      int count = 0;
      for (int64_t j = 0; j < p; ++j)
        if ((norm[j] = length(w + j * q)) > 0) active[count++] = int(j);
      std::copy(s, s + p * q, c);
      for (int64_t j = 0; j < p; ++j)
        subtract_all(
            c + j * q, q, count, [&](int i) { return w + active[i] * q; },
            [&](int i) { return path.gram[j * p + active[i]]; });
      double worst = 0;
      count = 0;
      for (int64_t j = 0; j < p; ++j) {
        const double v = violation(j);
        worst = std::max(worst, v);
        if (diagonal[j] > 0 && (norm[j] > 0 || v > threshold)) active[count++] = int(j);
      }
      if (worst <= threshold || stuck || sweeps >= path.max_sweeps) return sweeps;

      // over the active features, until they hardly move; where nothing does, rounding is all that is left
      stuck = true;
      for (int sweep = 0; sweep < MOST_SWEEPS && sweeps < path.max_sweeps; ++sweep) {
        double moved = 0;
        ++sweeps;
        for (int i = 0; i < count; ++i) moved = std::max(moved, update(active[i], count));
        stuck = stuck && moved == 0;
        if (moved <= threshold / 4) break;
      }
    }
  }

  // One feature to its minimum, and the active rows of C after it; returns H_jj ‖ΔW_j‖.
  double update(int64_t j, int count) {
    double *cj = c + j * q, *wj = w + j * q;
    for (int64_t k = 0; k < q; ++k) {
      z[k] = cj[k] + diagonal[j] * wj[k];
      if (path.positive) z[k] = larger(z[k], 0);
    }
    const double size = length(z), h = diagonal[j] + l2, share = size > l1 ? (1 - l1 / size) / h : 0;
    for (int64_t k = 0; k < q; ++k) {
      const double next = share * z[k];
      z[k] = next - wj[k], wj[k] = next;
    }
    const double moved = length(z);
    if (moved > 0)
      for (int i = 0; i < count; ++i) subtract_rows<1>(c + active[i] * q, {z}, {path.gram[j * p + active[i]]}, q);
    return h * moved;
  }

  void write(int64_t a, int sweeps) {
    // what the features have in common: the violation, the largest ‖C_j − l2 W_j‖, Σ_j (‖C_j‖ − l1)₊²
    double worst = 0, largest = 0, beyond = 0;
    for (int64_t j = 0; j < p; ++j) {
      worst = std::max(worst, violation(j));
      for (int64_t k = 0; k < q; ++k) z[k] = path.positive ? larger(c[j * q + k], 0) : c[j * q + k];
      const double over = larger(length(z) - l1, 0);
      beyond += over * over;
      for (int64_t k = 0; k < q; ++k) {
        z[k] = c[j * q + k] - l2 * w[j * q + k];
        if (path.positive) z[k] = larger(z[k], 0);
      }
      largest = std::max(largest, length(z));
    }
    for (int64_t k = 0; k < q; ++k) {
      Sums sums;
      double shares = 0;
      double* out = path.coefficients + (a * q + k) * p;
      for (int64_t j = 0; j < p; ++j) {
        const double v = out[j] = w[j * q + k];
        sums.add(v, s[j * q + k], c[j * q + k], l1, l2, path.positive);
        if (norm[j] > 0) shares += v / norm[j] * v;
      }
      sums.norm = shares, sums.violation = worst, sums.largest = largest, sums.beyond = beyond / double(q);
      write_score(path.score + (a * q + k) * SCORES, sums, path.energy[k], l1, l2, scale, sweeps);
    }
  }

  static constexpr int MOST_SWEEPS = 100;
};

}  // namespace stitchkern::lasso::STITCHKERN_PATH
