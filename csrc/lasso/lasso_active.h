// The path of one target by active sets; lasso_cpu.cpp says why. Include only from *_path.cpp files.
#pragma once

#include <algorithm>
#include <limits>

#include "lasso.h"
#include "lasso_factor.h"

namespace stitchkern::lasso::STITCHKERN_PATH {

class ActiveSet {
 public:
  static int64_t scratch(int p) { return int64_t(sizeof(double)) * p * (Factor::stride_of(p) + 8) + 2 * 4 * p + 64; }

  ActiveSet(const Path& path, int64_t k, void* memory) : path(path), k(k), p(path.p) {
    double* next = static_cast<double*>(memory);
    const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
    factor.stride = Factor::stride_of(p);
    factor.upper = take(p * factor.stride), factor.inverse = take(p);
    s = take(p), c = take(p), w = take(p), sign = take(p), slope = take(p), step = take(p), column = take(p);
    active = reinterpret_cast<int*>(next), candidates = active + p;
    for (int j = 0; j < p; ++j) {
      s[j] = gram(j, j) > 0 ? path.cross[j * path.q + k] : 0;
      w[j] = gram(j, j) > 0 ? path.start[k * p + j] : 0;
      if (path.positive && w[j] < 0) w[j] = 0;
      sign[j] = 0;
      scale = std::max(scale, magnitude(s[j]));
    }
    threshold = path.tol * scale;
  }

  void run() {
    for (int64_t a = 0; a < path.alphas; ++a) {
      l1 = path.l1[a * path.q + k];
      l2 = path.l2[a * path.q + k];
      if (a == 0 || l2 > factor_l2) stale = true;
      constrained = l1 > 0 || path.positive;
      const int steps = solve();
      Sums sums;
      double* out = path.coefficients + (a * path.q + k) * p;
      for (int j = 0; j < p; ++j) sums.add(out[j] = w[j], s[j], c[j], l1, l2, path.positive);
      write_score(path.score + (a * path.q + k) * SCORES, sums, path.energy[k], l1, l2, scale, steps);
    }
  }

 private:
  const Path& path;
  const int64_t k;
  const int p;
  Factor factor;                  // of H_AA, in the order of `active`
  double *s, *c;                  // [p]: the target's column of cross; s − G w, of this w where `current`
  double *w, *sign;               // [p]: sign ±1 in the active set, 0 outside
  double *slope, *step, *column;  // [|A|]: minus the gradient of the objective, at fixed signs; scratch
  int *active, *candidates;       // [|A|], [p]
  double scale = 0, threshold = 0, l1 = 0, l2 = 0;
  // The factor may be of a larger l2 than the penalty at hand: a step is then short by a known part, and others follow.
  double factor_l2 = 0;
  bool constrained = true, current = false, stale = true;

  double gram(int i, int j) const { return path.gram[int64_t(i) * p + j]; }
  // Minus the derivative along active feature i, on its side of 0.
  double slope_of(int i) const { return c[active[i]] - l2 * w[active[i]] - l1 * sign[active[i]]; }

  void find_gradient() {
    if (current) return;
    std::copy(s, s + p, c);
    subtract_all(
        c, p, factor.size, [&](int i) { return path.gram + int64_t(active[i]) * p; },
        [&](int i) { return w[active[i]]; });
    current = true;
  }

  int solve() {
    int steps = 0, stalled = 0;
    double least = std::numeric_limits<double>::infinity(), lowest = least;
    while (true) {
      if (stale) rebuild();
      find_gradient();
      double worst_active = 0, objective = 0;
      for (int i = 0; i < factor.size; ++i) {
        const int j = active[i];
        if (w[j] != 0) sign[j] = w[j] < 0 ? -1 : 1;
        worst_active = std::max(worst_active, magnitude(slope_of(i)));
        objective += w[j] * (l2 * w[j] - s[j] - c[j]) / 2 + l1 * magnitude(w[j]);
      }
      int count = 0, most = -1;
      double worst = worst_active;
      for (int j = 0; j < p; ++j) {
        if (sign[j] != 0) continue;
        const double over = (path.positive ? c[j] : magnitude(c[j])) - l1;
        if (!(over > threshold)) continue;
        candidates[count++] = j;
        if (over > worst) worst = over, most = j;
      }
      if (worst <= threshold || steps >= path.max_sweeps) break;

      // A step that lowers nothing was rounding, or several features that joined at 0 were in each other's way: one
      // alone is in nobody's.
      stalled = worst < least || objective < lowest ? 0 : stalled + 1;
      if (stalled == MOST_STALLED) break;
      least = std::min(least, worst), lowest = std::min(lowest, objective);

      if (stalled > 0 && most >= 0) candidates[0] = most, count = 1;
      int joined = 0;
      for (int i = 0; i < count; ++i) joined += join(candidates[i]);
      if (!joined && worst_active <= threshold) break;
      move(steps);
    }
    return steps;
  }

  // To the minimum over the active set, as far as signs hold: whoever comes to 0 on the way leaves.
  void move(int& steps) {
    for (int i = 0; i < factor.size; ++i) slope[i] = slope_of(i);
    while (factor.size > 0 && steps < path.max_sweeps) {
      ++steps;
      std::copy(slope, slope + factor.size, step);
      factor.down(step), factor.up(step);
      double share = 1;
      if (constrained)
        for (int i = 0; i < factor.size; ++i) share = std::min(share, share_of(i));
      current = false;
      const double lag = factor_l2 - l2;  // (H + lag I) step = slope
      if (!constrained || share >= 1) {
        double before = 0, after = 0;
        for (int i = 0; i < factor.size; ++i) {
          w[active[i]] += step[i];
          before = std::max(before, magnitude(slope[i]));
          slope[i] = lag * step[i];
          after = std::max(after, magnitude(slope[i]));
        }
        stale = after > SLOW * before;
        if (stale || after <= threshold / 4) return;
        continue;
      }
      int left = 0;
      for (int i = 0; i < factor.size; ++i) {
        if (share_of(i) <= share)
          candidates[left++] = i;
        else
          w[active[i]] += share * step[i];
        slope[i] = (1 - share) * slope[i] + share * lag * step[i];
      }
      while (left) leave(candidates[--left]);
    }
  }

  // How far along `step` active feature i keeps its sign.
  double share_of(int i) const {
    const int j = active[i];
    const double at = w[j] * sign[j], by = step[i] * sign[j];
    return by >= 0 || at + by > 0 ? 1 : std::min(at / -by, 1 - 0x1p-53);
  }

  void leave(int i) {
    w[active[i]] = sign[active[i]] = 0;
    std::copy(active + i + 1, active + factor.size, active + i);
    std::copy(slope + i + 1, slope + factor.size, slope + i);
    factor.remove(i);
    current = false;
  }

  // Whether feature j could be put into the active set.
  bool join(int j) {
    if (!(gram(j, j) > 0)) return false;
    const double side = c[j] < 0 && !path.positive ? -1 : 1;
    while (!append(j, side)) {
      // x_j = Σ_i column_i x_i, so along (−column, 1) nothing but the penalty changes: down, until one of them is 0
      if (!(l1 > 0)) return false;
      double share = std::numeric_limits<double>::infinity(), gain = -1, largest = 0;
      int first = -1;
      for (int i = 0; i < factor.size; ++i) largest = std::max(largest, magnitude(column[i]));
      for (int i = 0; i < factor.size; ++i) {
        const double at = w[active[i]] * sign[active[i]], by = side * column[i] * sign[active[i]];
        gain += by;
        if (by > TINY * largest && at < share * by) share = at / by, first = i;
      }
      if (first < 0 || !(gain > path.tol / 4) || share == 0) {
        if (w[j] != 0) w[j] = 0, current = false;
        return false;
      }
      for (int i = 0; i < factor.size; ++i) w[active[i]] -= share * side * column[i];
      w[j] += share * side;
      leave(first);
      current = true;  // c is what it was
    }
    return true;
  }

  // False: j depends linearly on the active features, by the coefficients that `column` has then.
  bool append(int j, double side) {
    for (int i = 0; i < factor.size; ++i) column[i] = gram(j, active[i]);
    factor.down(column);
    const double diagonal = gram(j, j) + factor_l2, pivot = diagonal - dot(column, column, factor.size);
    if (!(pivot > DOUBTFUL * diagonal)) {
      std::copy(column, column + factor.size, step);
      factor.up(step);
      double size = diagonal;
      for (int i = 0; i < factor.size; ++i) size += step[i] * step[i] * (gram(active[i], active[i]) + factor_l2);
      if (!(pivot > ROUNDING * std::sqrt(double(p)) * size)) {
        std::copy(step, step + factor.size, column);
        return false;
      }
    }
    active[factor.size] = j, sign[j] = side;
    factor.append(column, pivot);
    return true;
  }

  // The active set from the coefficients that are not 0; those that depend on others are set to 0.
  void rebuild() {
    factor.size = 0, factor_l2 = l2, current = stale = false;
    for (int j = 0; j < p; ++j) sign[j] = 0;
    for (int j = 0; j < p; ++j)
      if (w[j] != 0 && !append(j, w[j] < 0 ? -1 : 1)) w[j] = 0;
  }

  static constexpr int MOST_STALLED = 8;
  static constexpr double SLOW = 0.2;  // what a step of an old factor may leave
  // Pivots, relative to the diagonal: from where on they are looked at, and what rounding makes of 0.
  static constexpr double DOUBTFUL = 1e-6, ROUNDING = 0x1p-48;
  static constexpr double TINY = 0x1p-36;  // coefficients of a dependence, relative to the largest
};

}  // namespace stitchkern::lasso::STITCHKERN_PATH
