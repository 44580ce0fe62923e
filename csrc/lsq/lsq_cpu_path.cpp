// Inner loops of the CPU least squares, compiled once per instruction set.
//
// Everything is one loop: MR rows by NV vectors, in registers, minus the product of MR broadcasts of U with rows that
// are done. Going down, the broadcasts are neighbours in a row of U and the rows are those above; with the columns of U
// itself on the right that is the Cholesky factorisation, with a strip of right-hand sides it is the forward
// elimination. Going up, the broadcasts are neighbours in a column and the rows are those below. Each pass over a panel
// of MR rows ends with the small triangle on its diagonal, still in registers.
//
// Features are padded to a multiple of MR by ones on the diagonal and zeros elsewhere, columns to whole vectors by
// zeros: no loop has a remainder.
#include <cstring>
#include <limits>
#include <utility>

#include "lsq_cpu.h"

#include "../common/simd.h"

namespace stitchkern::lsq::STITCHKERN_PATH {

using namespace stitchkern::STITCHKERN_PATH;

constexpr int L = LANES<double>;
#if defined(__AVX512F__)
constexpr int MR = 8, NV = 3;  // 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int MR = 4, NV = 3;  // 12 of 16
#else
constexpr int MR = 4, NV = 2;  // 8 of 16: without fused multiply-add the products need some
#endif
constexpr int STRIP = NV * L;             // right-hand sides that go through together
constexpr int STRIDE = CPU_FEATURES + 8;  // of U: no power of two, so that columns do not share a cache set
static_assert(CPU_FEATURES % MR == 0 && MR % L == 0 && STRIDE % L == 0, "rows and panels start on whole vectors");

struct Scratch {
  alignas(64) double upper[CPU_FEATURES * STRIDE];  // [p][STRIDE]: A, then U in its place
  alignas(64) double strip[CPU_FEATURES * STRIP];   // [p][STRIP]
  double inverse_scale[CPU_FEATURES];               // 1 / d; 0 for a dead feature
  double deviation[CPU_FEATURES];                   // sqrt(C_jj)
  double penalty[CPU_FEATURES];                     // sqrt(ridge) / d: at most 1, where ridge |X|² could overflow
  double inverse[CPU_FEATURES];                     // 1 / U_jj
};

// ---------------------------------------------------------------------------------------------------- elimination

template <int N>
using Tile = Vector<double>[MR][N];

template <int N>
SK_HOST_DEVICE void load_tile(Tile<N>& tile, const double* from, int stride) {
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) tile[i][n] = load(from + i * stride + n * L);
}

template <int N>
SK_HOST_DEVICE void store_tile(double* to, int stride, const Tile<N>& tile) {
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store(to + i * stride + n * L, tile[i][n]);
}

// tile[i] −= Σ_j left[i ROW + j STEP] right[j], rows of `right` `stride` apart
template <int N, int ROW, int STEP>
SK_HOST_DEVICE void subtract(Tile<N>& tile, const double* left, const double* right, int stride, int count) {
  for (int j = 0; j < count; ++j, left += STEP, right += stride) {
    Vector<double> r[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) r[n] = load(right + n * L);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const Vector<double> l = splat(left[i * ROW]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) tile[i][n] -= l * r[n];
    }
  }
}

// Panel k0 of some columns, downwards: all rows above, then the triangle. `columns`: row 0 of them.
template <int N>
SK_HOST_DEVICE void down(const Scratch& s, int k0, double* columns, int stride) {
  Tile<N> tile;
  load_tile<N>(tile, columns + k0 * stride, stride);
  subtract<N, 1, STRIDE>(tile, s.upper + k0, columns, stride, k0);
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
    const double* row = s.upper + (k0 + i) * STRIDE + k0;
    const Vector<double> inverse = splat(s.inverse[k0 + i]);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) tile[i][n] *= inverse;
#pragma GCC unroll 8
    for (int below = i + 1; below < MR; ++below)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) tile[below][n] -= splat(row[below]) * tile[i][n];
  }
  store_tile<N>(columns + k0 * stride, stride, tile);
}

// The same upwards: all rows below, then the triangle.
template <int N>
SK_HOST_DEVICE void up(const Scratch& s, int k0, int padded, double* columns, int stride) {
  Tile<N> tile;
  load_tile<N>(tile, columns + k0 * stride, stride);
  const int next = k0 + MR;
  subtract<N, STRIDE, 1>(tile, s.upper + k0 * STRIDE + next, columns + next * stride, stride, padded - next);
#pragma GCC unroll 8
  for (int i = MR - 1; i >= 0; --i) {
    const Vector<double> inverse = splat(s.inverse[k0 + i]);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) tile[i][n] *= inverse;
#pragma GCC unroll 8
    for (int above = i - 1; above >= 0; --above) {
      const Vector<double> u = splat(s.upper[(k0 + above) * STRIDE + k0 + i]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) tile[above][n] -= u * tile[i][n];
    }
  }
  store_tile<N>(columns + k0 * stride, stride, tile);
}

// ---------------------------------------------------------------------------------------------------- factor

// A into s.upper, padded; returns |A|.
double load_matrix(const Problem& t, Scratch& s, int padded) {
  double diagonal[CPU_FEATURES];
  const double root = __builtin_sqrt(t.ridge);
  for (int j = 0; j < padded; ++j) {
    const double variance = j < t.p ? t.cov_xx[int64_t(j) * t.p + j] : 1, v = j < t.p ? variance + t.ridge : 1;
    const double inverse_scale = usable(v) ? 1 / __builtin_sqrt(v) : v == 0 ? 0 : 1;
    diagonal[j] = usable(v) || v == 0 ? 1 : v;
    s.inverse_scale[j] = inverse_scale;
    s.deviation[j] = variance > 0 ? __builtin_sqrt(variance) : 0;
    s.penalty[j] = root * inverse_scale;
  }
  Vector<double> squares = {};  // above the diagonal
  double on_diagonal = 0;
  for (int i = 0; i < padded; ++i) {
    double* row = s.upper + i * STRIDE;
    const int begin = i / MR * MR;
    for (int j = begin; j <= i; ++j) row[j] = 0;
    if (i < t.p) {
      const double* from = t.cov_xx + int64_t(i) * t.p;
      for (int j = i + 1; j < t.p; ++j) row[j] = from[j] * s.inverse_scale[i] * s.inverse_scale[j];
      for (int j = t.p; j < padded; ++j) row[j] = 0;
      for (int j = begin; j < padded; j += L) squares += load(row + j) * load(row + j);
      on_diagonal += diagonal[i] * diagonal[i];
    } else {
      for (int j = i + 1; j < padded; ++j) row[j] = 0;
    }
    row[i] = diagonal[i];
  }
  return __builtin_sqrt(2 * sum<double>(squares) + on_diagonal);
}

// U in the place of A. False: `pivot` is the one that failed; otherwise it is the smallest.
bool factor(Scratch& s, int p, int padded, double& pivot) {
  pivot = std::numeric_limits<double>::infinity();
  for (int k0 = 0; k0 < padded; k0 += MR) {
    // the triangle on the diagonal
    double* corner = s.upper + k0 * STRIDE + k0;
    Tile<MR / L> tile;
    load_tile<MR / L>(tile, corner, STRIDE);
    subtract<MR / L, 1, STRIDE>(tile, s.upper + k0, s.upper + k0, STRIDE, k0);
    store_tile<MR / L>(corner, STRIDE, tile);
    for (int i = 0; i < MR; ++i) {
      double* row = corner + i * STRIDE;
      if (!usable(row[i])) {
        pivot = row[i];
        return false;
      }
      if (k0 + i < p && row[i] < pivot) pivot = row[i];
      const double inverse = 1 / __builtin_sqrt(row[i]);
      s.inverse[k0 + i] = inverse;
      for (int j = i; j < MR; ++j) row[j] *= inverse;
      for (int below = i + 1; below < MR; ++below)
        for (int j = below; j < MR; ++j) corner[below * STRIDE + j] -= row[below] * row[j];
    }
    // the columns to its right
    int column = k0 + MR;
    for (; column + NV * L <= padded; column += NV * L) down<NV>(s, k0, s.upper + column, STRIDE);
    for (; column < padded; column += L) down<1>(s, k0, s.upper + column, STRIDE);
  }
  return true;
}

// ---------------------------------------------------------------------------------------------------- right-hand sides

// Σ over the rows of (factor[i] strip[i][c])², factors of one where there are none, for each column c of the strip.
template <int N, bool FACTORS>
void column_squares(const Scratch& s, int padded, const double* factor, double* out) {
  Vector<double> sums[N] = {};
  for (int i = 0; i < padded; ++i)
    for (int n = 0; n < N; ++n) {
      Vector<double> v = load(s.strip + i * N * L + n * L);
      if (FACTORS) v *= splat(factor[i]);
      sums[n] += v * v;
    }
  for (int n = 0; n < N; ++n) store(out + n * L, sums[n]);
}

struct Sums {
  double explained = 0, inverse = 0, size = 0;
};

// N vectors of the columns of [S | W], from `column` on, through both eliminations.
template <int N>
void solve_strip(const Problem& t, Scratch& s, int padded, int64_t column, Sums& sums) {
  constexpr int WIDTH = N * L;
  const int of_s = int(t.q - column < 0 ? 0 : t.q - column < WIDTH ? t.q - column : WIDTH);
  const int64_t probe = column + of_s - t.q;  // the first one here
  const int of_w = int(of_s == WIDTH ? 0 : t.k - probe < WIDTH - of_s ? t.k - probe : WIDTH - of_s);

  // D⁻¹ S, W, and zeros
  for (int i = 0; i < padded; ++i) {
    double* row = s.strip + i * WIDTH;
    const double* from = t.cov_xy + int64_t(i) * t.q + column;
    if (i < t.p && of_s == WIDTH) {
      for (int n = 0; n < N; ++n) store(row + n * L, load(from + n * L) * splat(s.inverse_scale[i]));
      continue;
    }
    for (int c = 0; c < WIDTH; ++c) row[c] = 0;
    if (i >= t.p) continue;
    for (int c = 0; c < of_s; ++c) row[c] = from[c] * s.inverse_scale[i];
    for (int c = 0; c < of_w; ++c) row[of_s + c] = t.probes[i * t.k + probe + c];
  }

  double squares[WIDTH];
  for (int k0 = 0; k0 < padded; k0 += MR) down<N>(s, k0, s.strip, WIDTH);
  if (of_s) {
    column_squares<N, false>(s, padded, nullptr, squares);
    for (int c = 0; c < of_s; ++c) sums.explained += squares[c];
  }
  for (int k0 = padded - MR; k0 >= 0; k0 -= MR) up<N>(s, k0, padded, s.strip, WIDTH);
  if (of_s && t.ridge > 0) {
    column_squares<N, true>(s, padded, s.penalty, squares);
    for (int c = 0; c < of_s; ++c) sums.explained += squares[c];
  }
  column_squares<N, false>(s, padded, nullptr, squares);
  for (int c = 0; c < of_s; ++c) sums.size += squares[c];
  for (int c = of_s; c < of_s + of_w; ++c) sums.inverse += squares[c];

  // X, and its sums over the features
  Vector<double> at_mean[N] = {}, reach[N] = {};
  for (int i = 0; i < t.p; ++i) {
    double x[WIDTH];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const Vector<double> v = load(s.strip + i * WIDTH + n * L) * splat(s.inverse_scale[i]);
      at_mean[n] += v * splat(t.mean_x[i]);
      reach[n] += Vector<double>(magnitude_bits(v)) * splat(s.deviation[i]);
      store(x + n * L, v);
    }
    memcpy(t.solution + int64_t(i) * t.q + column, x, of_s * sizeof(double));
  }
  double out[WIDTH];
  for (const auto& [which, from] : {std::pair{AT_MEAN, at_mean}, std::pair{REACH, reach}}) {
    for (int n = 0; n < N; ++n) store(out + n * L, from[n]);
    memcpy(t.sums + which * t.q + column, out, of_s * sizeof(double));
  }
}

void solve(const Problem& t, void* scratch) {
  Scratch& s = *static_cast<Scratch*>(scratch);
  const int padded = (t.p + MR - 1) / MR * MR;
  t.score[NORM] = load_matrix(t, s, padded);
  if (!factor(s, t.p, padded, t.score[PIVOT])) {
    for (int64_t i = 0; i < t.p * t.q; ++i) t.solution[i] = 0;
    for (int64_t i = 0; i < SUMS * t.q; ++i) t.sums[i] = 0;
    t.score[EXPLAINED] = t.score[SIZE] = 0, t.score[INVERSE] = std::numeric_limits<double>::infinity();
    return;
  }
  Sums sums;
  const int64_t columns = t.q + t.k;
  int64_t column = 0;
  for (; columns - column > (NV - 1) * L; column += NV * L) solve_strip<NV>(t, s, padded, column, sums);
  if constexpr (NV > 2)
    if (columns - column > L) solve_strip<2>(t, s, padded, column, sums), column += 2 * L;
  if (column < columns) solve_strip<1>(t, s, padded, column, sums);
  t.score[EXPLAINED] = sums.explained;
  t.score[SIZE] = __builtin_sqrt(sums.size);
  t.score[INVERSE] = t.k ? __builtin_sqrt(sums.inverse / t.k) : 0;
}

const Kernels kernels = {sizeof(Scratch), solve};

}  // namespace stitchkern::lsq::STITCHKERN_PATH
