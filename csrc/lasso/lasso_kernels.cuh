// Paths of Lasso problems on the GPU: the kernels. Raw pointers and sizes only; lasso_cuda.cu plans.
//
// Coordinate descent, one warp for one target: w and c lie in shared memory, G in the second-level cache, where all
// warps meet it. A coefficient that moves takes p multiply-adds, 32 at a time, after a chain of one read of c, one
// division and one barrier of the warp, some hundred cycles; that chain, not G, is the bound up to p of a few hundred,
// and targets run beside each other. Sweeps go over the features that have a coefficient or should have one; before
// anything is decided, c is found from G.
//
// Grouped, all targets move together, so there is one block, a thread for some targets: what is carried from feature to
// feature is the norm over the targets alone.
//
// Expected, not measured: ill-conditioned problems take as many sweeps as coordinate descent takes. Active sets (lasso_
// cpu.cpp) do not; the matrices they carry are not what a GPU has caches for.
#pragma once

#include "../common/device.h"
#include "lasso.h"

namespace stitchkern::lasso {

using namespace stitchkern::device;

inline constexpr int MOST_WARPS = 4;    // of a block of targets
inline constexpr int THREADS = 256;     // of the grouped path's block
inline constexpr int MOST_SWEEPS = 50;  // until c is found anew

// The largest over the warp, the same in all lanes even where there are NaN.
SK_DEVICE double warp_max(double v) {
#pragma unroll
  for (int mask = WARP / 2; mask > 0; mask /= 2) v = larger(v, shuffle_xor(v, mask));
  return shuffle(v, 0);
}

// ---------------------------------------------------------------------------------------------------- targets

struct TargetsTask {
  Path path;
  int warps;

  // shared memory, a part for each warp
  SharedArray<double> weight;    // [warps][p]
  SharedArray<double> gradient;  // [warps][p]: c
  SharedArray<int> active;       // [warps][p]

  TargetsTask(const Path& path, int warps)
      : path(path),
        warps(warps),
        weight(0, warps * path.p),
        gradient(weight.end(), warps * path.p),
        active(gradient.end(), warps * path.p) {}
  int shared_bytes() const { return active.end(); }
};

// What lane i says of features i, i + 32, …, summed over the warp.
SK_DEVICE void sum_over_warp(Sums& s) {
  s.cross = warp_sum(s.cross), s.gradient = warp_sum(s.gradient), s.norm = warp_sum(s.norm);
  s.squares = warp_sum(s.squares), s.beyond = warp_sum(s.beyond);
  s.largest = warp_max(s.largest), s.violation = warp_max(s.violation), s.nonzero = warp_sum(s.nonzero);
}

static __global__ void __launch_bounds__(MOST_WARPS* WARP) descend(const __grid_constant__ TargetsTask t) {
  const Path& path = t.path;
  const int p = path.p, warp = int(threadIdx.x) / WARP;
  const int64_t k = int64_t(blockIdx.x) * t.warps + warp;
  if (k >= path.q) return;
  double *w = t.weight.get() + warp * p, *c = t.gradient.get() + warp * p;
  int* active = t.active.get() + warp * p;
  const auto cross = [&](int j) { return path.gram[int64_t(j) * p + j] > 0 ? path.cross[j * path.q + k] : 0; };

  // where it starts, and its scale
  double scale = 0;
  for (int j = lane(); j < p; j += WARP) {
    const double first = path.start[k * p + j];
    const bool usable = path.gram[int64_t(j) * p + j] > 0 && !(path.positive && first < 0);
    w[j] = usable ? first : 0;
    scale = larger(scale, magnitude(cross(j)));
  }
  scale = warp_max(scale);
  const double threshold = path.tol * scale;
  __syncwarp();

  for (int64_t a = 0; a < path.alphas; ++a) {
    const double l1 = path.l1[a * path.q + k], l2 = path.l2[a * path.q + k];
    bool stuck = false;
    int sweeps = 0;
    Sums sums;
    while (true) {
      // c from G, and what it says
      for (int j = lane(); j < p; j += WARP) c[j] = cross(j);
      for (int i = 0; i < p; ++i) {
        const double wi = w[i];
        if (wi == 0) continue;
        const double* row = path.gram + int64_t(i) * p;
#pragma unroll 4
        for (int j = lane(); j < p; j += WARP) c[j] -= wi * row[j];
      }
      sums = Sums();
      for (int j = lane(); j < p; j += WARP) sums.add(w[j], cross(j), c[j], l1, l2, path.positive);
      sum_over_warp(sums);
      __syncwarp();
      if (!(sums.violation > threshold) || stuck || sweeps >= path.max_sweeps) break;

      // the features that have a coefficient or should have one
      int count = 0;
      if (lane() == 0)
        for (int j = 0; j < p; ++j)
          if (w[j] != 0 ||
              ((path.positive ? c[j] : magnitude(c[j])) > l1 + threshold && path.gram[int64_t(j) * p + j] > 0))
            active[count++] = j;
      count = shuffle(count, 0);
      __syncwarp();

      // over them, until they hardly move; where nothing does, rounding is all that is left
      stuck = true;
      for (int sweep = 0; sweep < MOST_SWEEPS && sweeps < path.max_sweeps; ++sweep) {
        double moved = 0;
        ++sweeps;
        for (int i = 0; i < count; ++i) {
          const int j = active[i];
          const double* row = path.gram + int64_t(j) * p;
          const double diagonal = row[j], before = w[j], z = c[j] + diagonal * before;
          const double reach = (path.positive ? z : magnitude(z)) - l1;
          const double after = reach > 0 ? (z < 0 ? -reach : reach) / (diagonal + l2) : 0, change = after - before;
          if (change == 0) continue;  // the same in all lanes
          moved = larger(moved, (diagonal + l2) * magnitude(change));
          __syncwarp();
          if (lane() == 0) w[j] = after;
#pragma unroll 4
          for (int m = lane(); m < p; m += WARP) c[m] -= change * row[m];
          __syncwarp();
        }
        stuck = stuck && moved == 0;
        if (moved <= threshold / 4) break;
      }
    }
    double* out = path.coefficients + (a * path.q + k) * p;
    for (int j = lane(); j < p; j += WARP) out[j] = w[j];
    if (lane() == 0) write_score(path.score + (a * path.q + k) * SCORES, sums, path.energy[k], l1, l2, scale, sweeps);
  }
}

// ---------------------------------------------------------------------------------------------------- groups

struct GroupedTask {
  Path path;
  double* gradient;  // [p, q]: C
  double* weight;    // [p, q]: W = Mᵀ
  double* change;    // [q]

  // shared memory
  SharedArray<double> norm;  // [p]: ‖W_j‖
  SharedArray<int> active;   // [p]
  SharedArray<double> sums;  // [THREADS / WARP]

  GroupedTask(const Path& path, double* workspace)
      : path(path),
        gradient(workspace),
        weight(gradient + path.p * path.q),
        change(weight + path.p * path.q),
        norm(0, path.p),
        active(norm.end(), path.p),
        sums(active.end(), THREADS / WARP) {}
  static int64_t workspace(int64_t p, int64_t q) { return (2 * p + 1) * q; }
  int shared_bytes() const { return sums.end(); }
};

// √Σ v² over the targets of all threads; every thread gets it.
SK_DEVICE double block_length(double squares, double* sums) {
  squares = warp_sum(squares);
  if (lane() == 0) sums[int(threadIdx.x) / WARP] = squares;
  __syncthreads();
  double total = 0;
  for (int i = 0; i < THREADS / WARP; ++i) total += sums[i];
  __syncthreads();
  return sqrt(total);
}

static __global__ void __launch_bounds__(THREADS, 1) descend_grouped(const __grid_constant__ GroupedTask t) {
  const Path& path = t.path;
  const int p = path.p, thread = int(threadIdx.x);
  const int64_t q = path.q;
  double *norm = t.norm.get(), *partial = t.sums.get(), *c = t.gradient, *w = t.weight;
  int* active = t.active.get();
  const auto diagonal = [&](int j) { return path.gram[int64_t(j) * p + j]; };
  const auto cross = [&](int j, int64_t k) { return diagonal(j) > 0 ? path.cross[j * q + k] : 0; };
  // √Σ_k f(k)² over all targets; k is this thread's from its first to its last use
  const auto length = [&](const auto& f) {
    double squares = 0;
    for (int64_t k = thread; k < q; k += THREADS) {
      const double v = f(k);
      squares += v * v;
    }
    return block_length(squares, partial);
  };

  double scale = 0;
  for (int j = 0; j < p; ++j) {
    for (int64_t k = thread; k < q; k += THREADS) {
      const double first = path.start[k * p + j];
      w[j * q + k] = diagonal(j) > 0 && !(path.positive && first < 0) ? first : 0;
    }
    scale = larger(scale, length([&](int64_t k) { return cross(j, k); }));
  }
  const double threshold = path.tol * scale;

  for (int64_t a = 0; a < path.alphas; ++a) {
    const double l1 = path.l1[a * q], l2 = path.l2[a * q];
    double worst = 0;
    bool stuck = false;
    int sweeps = 0;
    while (true) {
      // C from G, and what it says
      for (int j = 0; j < p; ++j) {
        const double size = length([&](int64_t k) { return w[j * q + k]; });
        if (thread == 0) norm[j] = size;
      }
      __syncthreads();
      for (int j = 0; j < p; ++j)
        for (int64_t k = thread; k < q; k += THREADS) {
          double sum = cross(j, k);
          for (int i = 0; i < p; ++i)
            if (norm[i] > 0) sum -= path.gram[int64_t(j) * p + i] * w[i * q + k];
          c[j * q + k] = sum;
        }
      int count = 0;
      worst = 0;
      for (int j = 0; j < p; ++j) {
        const double pull = norm[j] > 0 ? l1 / norm[j] + l2 : 0;
        double off = length([&](int64_t k) {
          const double v = c[j * q + k] - pull * w[j * q + k];
          return path.positive && w[j * q + k] == 0 ? larger(v, 0) : v;
        });
        if (norm[j] == 0) off = larger(off - l1, 0);
        worst = larger(worst, off);
        if (diagonal(j) > 0 && (norm[j] > 0 || off > threshold)) {
          if (thread == 0) active[count] = j;
          ++count;
        }
      }
      __syncthreads();
      if (!(worst > threshold) || stuck || sweeps >= path.max_sweeps) break;

      // over the active features, until they hardly move
      stuck = true;
      for (int sweep = 0; sweep < MOST_SWEEPS && sweeps < path.max_sweeps; ++sweep) {
        double moved = 0;
        ++sweeps;
        for (int i = 0; i < count; ++i) {
          const int j = active[i];
          const double g = diagonal(j);
          const auto pulled = [&](int64_t k) {
            const double z = c[j * q + k] + g * w[j * q + k];
            return path.positive ? larger(z, 0) : z;
          };
          const double size = length(pulled), share = size > l1 ? (1 - l1 / size) / (g + l2) : 0;
          const double step = length([&](int64_t k) {
            const double after = share * pulled(k), change = after - w[j * q + k];
            w[j * q + k] = after;
            return t.change[k] = change;
          });
          if (step == 0) continue;  // the same in all threads
          moved = larger(moved, (g + l2) * step);
          for (int m = 0; m < count; ++m) {
            const double factor = path.gram[int64_t(j) * p + active[m]];
            for (int64_t k = thread; k < q; k += THREADS) c[active[m] * q + k] -= factor * t.change[k];
          }
        }
        stuck = stuck && moved == 0;
        if (moved <= threshold / 4) break;
      }
    }

    // what the features have in common, then the targets' own
    double largest = 0, beyond = 0;
    for (int j = 0; j < p; ++j) {
      const double reach = length([&](int64_t k) { return path.positive ? larger(c[j * q + k], 0) : c[j * q + k]; });
      const double over = larger(reach - l1, 0);
      beyond += over * over;
      largest = larger(largest, length([&](int64_t k) {
                         const double v = c[j * q + k] - l2 * w[j * q + k];
                         return path.positive ? larger(v, 0) : v;
                       }));
    }
    for (int64_t k = thread; k < q; k += THREADS) {
      Sums sums;
      double shares = 0;
      for (int j = 0; j < p; ++j) {
        const double v = w[j * q + k];
        path.coefficients[(a * q + k) * p + j] = v;
        sums.add(v, cross(j, k), c[j * q + k], l1, l2, path.positive);
        if (norm[j] > 0) shares += v / norm[j] * v;
      }
      sums.norm = shares, sums.violation = worst, sums.largest = largest, sums.beyond = beyond / double(q);
      write_score(path.score + (a * q + k) * SCORES, sums, path.energy[k], l1, l2, scale, sweeps);
    }
    __syncthreads();
  }
}

}  // namespace stitchkern::lasso
