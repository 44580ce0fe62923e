// Batches of small least-squares problems on the GPU: the kernel. Raw pointers and sizes only; lsq_cuda.cu plans.
//
// One block is one problem from its moments to its score: one launch, nothing in between in memory. What bounds it is
// neither arithmetic (p = q = 64: 3.2e5 multiply-adds, 19 ns of an H200's float64 peak) nor memory (80 KB, 17 ns) but
// the chain of dependent steps: p pivots, one root after the other, then p rows down and p rows up. So barriers and
// trips through memory are kept off that chain, and several problems share a multiprocessor where they fit:
//
// - U stays in shared memory, packed by panels of 8 rows without what lies left of the diagonal: 71 KB at p = 128, 19
//   KB at p = 64. Rows are an odd number of doubles apart, so that 8 rows can be read at once in either direction.
// - A warp carries 8 columns through a panel: lane l has row l % 8 and columns l / 8 and l / 8 + 4. A step of the
//   elimination reads 8 numbers of U and 8 of the columns and does 64 multiply-adds.
// - The triangle at the end of a panel is solved by shuffles inside the warp. Right-hand sides never leave their warp:
//   once U is there, each warp takes 8 columns of [S | W] from memory through both eliminations to the solution, in a
//   strip of shared memory of its own, without any barrier of the block.
// - The factorisation is the same step on the columns of U itself, with two barriers to a panel. The 8 × 8 triangle on
//   the diagonal is one lane's work, in registers: its 8 roots depend on each other anyway.
//
// Expected, not measured, on an H200: docs/GPU.md.
#pragma once

#include "../common/device.h"
#include "lsq.h"

namespace stitchkern::lsq {

using namespace stitchkern::device;

inline constexpr int THREADS = 256, WARPS = THREADS / WARP;
inline constexpr int PANEL = 8;            // rows that are eliminated together
inline constexpr int GROUP = 8;            // columns of a warp
inline constexpr int HALF = WARP / PANEL;  // a lane has column c and column c + HALF of them
inline constexpr int LANE_COLUMNS = GROUP / HALF;
inline constexpr int LANE_GROUPS = CUDA_FEATURES / GROUP / WARPS;  // of a panel of U that one warp has at most
static_assert(HALF * LANE_COLUMNS == GROUP && LANE_COLUMNS == 2 && PANEL == GROUP && CUDA_FEATURES % PANEL == 0);

// Panel t of U: rows 8 t … 8 t + 7, columns 8 t … padded, from `panel_start` on, rows `panel_stride` apart.
SK_HOST_DEVICE int panel_start(int padded, int t) { return PANEL * (t * (padded + 1) - PANEL * t * (t - 1) / 2); }
SK_HOST_DEVICE int panel_stride(int padded, int t) { return padded - PANEL * t + 1; }

struct Task {
  Batch batch;
  int padded;  // p, up to whole panels: ones on the diagonal, zeros elsewhere
  int strips;  // warps that have one

  // shared memory
  SharedArray<double> upper;      // panels: A, then U in its place
  SharedArray<double> strip;      // [strips][padded][GROUP]
  SharedArray<double> scale;      // [padded]: 1 / d; 0 for a dead feature
  SharedArray<double> deviation;  // [padded]: sqrt(C_jj)
  SharedArray<double> inverse;    // [padded]: the diagonal of A, then 1 / U_jj
  SharedArray<double> block;      // [PANEL][PANEL]: the triangle on the diagonal of the panel at hand
  SharedArray<double> sums;       // [4][WARPS]: |A|², explained, |A⁻¹ W|², |D X|²
  SharedArray<double> status;     // [2]: the smallest pivot or the one that failed; whether one failed

  Task(const Batch& batch, int strips)
      : batch(batch),
        padded((batch.p + PANEL - 1) / PANEL * PANEL),
        strips(strips),
        upper(0, panel_start(padded, padded / PANEL)),
        strip(upper.end(), strips * padded * GROUP),
        scale(strip.end(), padded),
        deviation(scale.end(), padded),
        inverse(deviation.end(), padded),
        block(inverse.end(), PANEL * PANEL),
        sums(block.end(), 4 * WARPS),
        status(sums.end(), 2) {}
  int shared_bytes() const { return status.end(); }
};

// v[c] −= Σ_i left[i left_step] right[i right_step + HALF c] over PANEL steps
SK_DEVICE void subtract(double (&v)[LANE_COLUMNS], const double* left, int left_step, const double* right,
                        int right_step) {
#pragma unroll
  for (int i = 0; i < PANEL; ++i) {
    const double l = left[i * left_step];
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) v[c] -= l * right[i * right_step + HALF * c];
  }
}

// The triangle at the end of a panel, for the columns of a warp: row after row, downwards or upwards, each sent to the
// lanes of the rows that are left. `u`: the lane's number of U in the triangle's row (down) or column (up) 0, the next
// ones `step` apart.
template <bool DOWN>
SK_DEVICE void solve_triangle(double (&v)[LANE_COLUMNS], const double* u, int step, const double* inverse) {
  const int row = lane() % PANEL;
#pragma unroll
  for (int n = 0; n < PANEL; ++n) {
    const int i = DOWN ? n : PANEL - 1 - n;
    const double factor = u[i * step], inverse_i = inverse[i];
    const bool waits = DOWN ? row > i : row < i;
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) {
      const double x = shuffle(v[c] * inverse_i, lane() - row + i);
      v[c] = waits ? v[c] - factor * x : row == i ? x : v[c];
    }
  }
}

// Cholesky of the triangle on the diagonal, by one thread; `features`: rows that are not padding. False: `pivot` is the
// one that failed; otherwise the smallest so far.
SK_DEVICE bool factor_triangle(double* block, double* inverse, int features, double& pivot) {
  double u[PANEL][PANEL];
#pragma unroll
  for (int i = 0; i < PANEL; ++i)
#pragma unroll
    for (int j = i; j < PANEL; ++j) u[i][j] = block[i * PANEL + j];
#pragma unroll
  for (int i = 0; i < PANEL; ++i) {
    if (!usable(u[i][i])) {
      pivot = u[i][i];
      return false;
    }
    if (i < features && u[i][i] < pivot) pivot = u[i][i];
    const double inverse_i = inverse_sqrt(u[i][i]);
    inverse[i] = inverse_i;
#pragma unroll
    for (int j = i; j < PANEL; ++j) block[i * PANEL + j] = u[i][j] *= inverse_i;
#pragma unroll
    for (int below = i + 1; below < PANEL; ++below)
#pragma unroll
      for (int j = below; j < PANEL; ++j) u[below][j] -= u[i][below] * u[i][j];
  }
  return true;
}

static __global__ void __launch_bounds__(THREADS, 2) solve(const __grid_constant__ Task t) {
  const Problem problem(t.batch, blockIdx.x);
  const int p = problem.p, padded = t.padded, panels = padded / PANEL;
  double *upper = t.upper.get(), *scale = t.scale.get(), *deviation = t.deviation.get(), *inverse = t.inverse.get(),
         *block = t.block.get(), *sums = t.sums.get(), *status = t.status.get();
  const int thread = int(threadIdx.x), warp = thread / WARP, row = lane() % PANEL, column = lane() / PANEL;
  const double infinity = bit_cast<double>(uint64_t(0x7ff) << 52);

  // scales
  for (int j = thread; j < padded; j += THREADS) {
    const double variance = j < p ? problem.cov_xx[j * p + j] : 1, v = j < p ? variance + problem.ridge : 1;
    scale[j] = usable(v) ? inverse_sqrt(v) : v == 0 ? 0 : 1;
    inverse[j] = usable(v) || v == 0 ? 1 : v;
    deviation[j] = variance > 0 ? sqrt(variance) : 0;
  }
  if (thread == 0) status[0] = infinity, status[1] = 0;
  __syncthreads();

  // A and its norm, a warp to a row
  double squares = 0;
  for (int i = warp; i < padded; i += WARPS) {
    const int begin = i / PANEL * PANEL;
    double* to = upper + panel_start(padded, i / PANEL) + (i - begin) * panel_stride(padded, i / PANEL) - begin;
#pragma unroll 4
    for (int j = begin + lane(); j < padded; j += WARP) {
      double v = 0;
      if (j > i && j < p) v = problem.cov_xx[i * p + j] * scale[i] * scale[j];
      if (j == i) v = inverse[i];
      to[j] = v;
      if (i < p) squares += j > i ? 2 * v * v : v * v;
    }
  }
  squares = warp_sum(squares);
  if (lane() == 0) sums[warp] = squares;
  __syncthreads();

  // U: the columns of a panel by eights, those of its triangle first
  bool failed = false;
  for (int panel = 0; panel < panels; ++panel) {
    double* own = upper + panel_start(padded, panel) + row * panel_stride(padded, panel) + column;
    double v[LANE_GROUPS][LANE_COLUMNS];
#pragma unroll
    for (int g = 0; g < LANE_GROUPS; ++g) {
      const int group = warp + g * WARPS;
      if (group >= panels - panel) continue;
#pragma unroll
      for (int c = 0; c < LANE_COLUMNS; ++c) v[g][c] = own[group * GROUP + c * HALF];
      for (int above = 0; above < panel; ++above) {
        const double* from = upper + panel_start(padded, above) + (panel - above) * PANEL;
        const int stride = panel_stride(padded, above);
        subtract(v[g], from + row, stride, from + group * GROUP + column, stride);
      }
    }
    if (warp == 0) {
#pragma unroll
      for (int c = 0; c < LANE_COLUMNS; ++c) block[row * PANEL + column + c * HALF] = v[0][c];
      __syncwarp();
      if (lane() == 0) status[1] = !factor_triangle(block, inverse + panel * PANEL, p - panel * PANEL, status[0]);
    }
    __syncthreads();
    failed = status[1] != 0;
    if (failed) break;
#pragma unroll
    for (int g = 0; g < LANE_GROUPS; ++g) {
      const int group = warp + g * WARPS;
      if (group >= panels - panel) continue;
      if (group > 0) solve_triangle<true>(v[g], block + row, PANEL, inverse + panel * PANEL);
#pragma unroll
      for (int c = 0; c < LANE_COLUMNS; ++c) {
        const int in_block = column + c * HALF;
        own[group * GROUP + c * HALF] = group > 0 ? v[g][c] : in_block >= row ? block[row * PANEL + in_block] : 0;
      }
    }
    __syncthreads();
  }
  if (failed) {
    for (int64_t i = thread; i < p * problem.q; i += THREADS) problem.solution[i] = 0;
    for (int64_t i = thread; i < SUMS * problem.q; i += THREADS) problem.sums[i] = 0;
    if (thread == 0) {
      double total = 0;
      for (int i = 0; i < WARPS; ++i) total += sums[i];
      problem.score[EXPLAINED] = problem.score[SIZE] = 0, problem.score[PIVOT] = status[0],
      problem.score[NORM] = sqrt(total);
      problem.score[INVERSE] = infinity;
    }
    return;
  }

  // right-hand sides: 8 columns of [S | W] at a time, each warp for itself
  double explained = 0, of_inverse = 0, size = 0;
  const double root = sqrt(problem.ridge);
  const int64_t columns = problem.q + problem.k;
  double* strip = t.strip.get() + warp % t.strips * padded * GROUP;
  for (int64_t first = int64_t(warp) * GROUP; warp < t.strips && first < columns; first += t.strips * GROUP) {
    // D⁻¹ S, W, and zeros; lanes that neighbour each other read neighbours
    const int64_t read = first + lane() % GROUP;
#pragma unroll 4
    for (int i = lane() / GROUP; i < padded; i += WARP / GROUP) {
      double v = 0;
      if (i < p && read < problem.q) v = problem.cov_xy[i * problem.q + read] * scale[i];
      if (i < p && read >= problem.q && read < columns) v = problem.probes[i * problem.k + (read - problem.q)];
      strip[i * GROUP + lane() % GROUP] = v;
    }
    __syncwarp();

    // down to Z
    for (int panel = 0; panel < panels; ++panel) {
      double* own = strip + (panel * PANEL + row) * GROUP + column;
      double v[LANE_COLUMNS];
#pragma unroll
      for (int c = 0; c < LANE_COLUMNS; ++c) v[c] = own[c * HALF];
      for (int above = 0; above < panel; ++above)
        subtract(v, upper + panel_start(padded, above) + (panel - above) * PANEL + row, panel_stride(padded, above),
                 strip + above * PANEL * GROUP + column, GROUP);
      solve_triangle<true>(v, upper + panel_start(padded, panel) + row, panel_stride(padded, panel),
                           inverse + panel * PANEL);
#pragma unroll
      for (int c = 0; c < LANE_COLUMNS; ++c) {
        own[c * HALF] = v[c];
        if (first + column + c * HALF < problem.q) explained += v[c] * v[c];
      }
      __syncwarp();
    }

    // up to the solution, and its sums over the features
    double at_mean[LANE_COLUMNS] = {}, reach[LANE_COLUMNS] = {};
    for (int panel = panels - 1; panel >= 0; --panel) {
      const int i = panel * PANEL + row;
      double* own = strip + i * GROUP + column;
      const double* u = upper + panel_start(padded, panel) + row * panel_stride(padded, panel);
      double v[LANE_COLUMNS];
#pragma unroll
      for (int c = 0; c < LANE_COLUMNS; ++c) v[c] = own[c * HALF];
      for (int below = panel + 1; below < panels; ++below)
        subtract(v, u + (below - panel) * PANEL, 1, strip + below * PANEL * GROUP + column, GROUP);
      solve_triangle<false>(v, u, 1, inverse + panel * PANEL);
      const double penalty = root * scale[i];  // at most 1: ridge |X|² could overflow where this does not
#pragma unroll
      for (int c = 0; c < LANE_COLUMNS; ++c) {
        own[c * HALF] = v[c];
        const int64_t at = first + column + c * HALF;
        if (at < problem.q && i < p) {
          const double x = v[c] * scale[i];
          explained += penalty * v[c] * (penalty * v[c]);
          size += v[c] * v[c];
          at_mean[c] += x * problem.mean_x[i];
          reach[c] += (x < 0 ? -x : x) * deviation[i];
          problem.solution[i * problem.q + at] = x;
        }
        if (at >= problem.q) of_inverse += v[c] * v[c];  // zero beyond the last probe
      }
      __syncwarp();
    }
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) {
      const double total_mean = warp_sum(at_mean[c], PANEL), total_reach = warp_sum(reach[c], PANEL);
      const int64_t at = first + column + c * HALF;
      if (row == 0 && at < problem.q) {
        problem.sums[AT_MEAN * problem.q + at] = total_mean;
        problem.sums[REACH * problem.q + at] = total_reach;
      }
    }
  }

  // the score
  explained = warp_sum(explained), of_inverse = warp_sum(of_inverse), size = warp_sum(size);
  if (lane() == 0) sums[WARPS + warp] = explained, sums[2 * WARPS + warp] = of_inverse, sums[3 * WARPS + warp] = size;
  __syncthreads();
  if (thread == 0) {
    double total[4] = {};
    for (int n = 0; n < 4; ++n)
      for (int i = 0; i < WARPS; ++i) total[n] += sums[n * WARPS + i];
    problem.score[EXPLAINED] = total[1], problem.score[PIVOT] = status[0], problem.score[NORM] = sqrt(total[0]);
    problem.score[SIZE] = sqrt(total[3]);
    problem.score[INVERSE] = problem.k ? sqrt(total[2] / problem.k) : 0;
  }
}

}  // namespace stitchkern::lsq
