// Inner loops of the CPU kernel sums, compiled once per instruction set.
//
// Tiles are packed into panels of `width` samples, channel by channel, so that one layout serves both sides of the
// product: a strip of MR samples is read as broadcasts, a whole panel as NV vectors. The exponential of a row of a tile
// is one loop without branches. All but the products is float64.
#include "hsic_cpu.h"

#include "../common/simd.h"
#include "hsic_exp.h"

namespace stitchkern::hsic::STITCHKERN_PATH {

using namespace stitchkern::STITCHKERN_PATH;

constexpr int L = LANES<double>;
#if defined(__AVX512F__)
constexpr int MR = 8, NV = 3;  // 24 accumulators of 32 registers
template <class T>
constexpr int PANEL = NV;
#elif defined(__AVX2__)
constexpr int MR = 4, NV = 3;  // 12 of 16
template <class T>
constexpr int PANEL = sizeof(T) == 4 ? 2 : NV;  // narrow panels waste less beside the diagonal
#else
constexpr int MR = 4, NV = 2;  // 8 of 16: without fused multiply-add the products need some
template <class T>
constexpr int PANEL = NV;
#endif
template <class T>
constexpr int WIDTH = PANEL<T> * LANES<T>;
static_assert(TILE % WIDTH<float> == 0 && TILE % WIDTH<double> == 0 && WIDTH<double> % MR == 0,
              "strips must fill panels, and panels tiles");
static_assert(TILE / 2 % WIDTH<float> == 0 && TILE / 2 % WIDTH<double> == 0, "and half tiles");

using Real = Vector<double>;

// ---------------------------------------------------------------------------------------------------- pack

// Rows apart by megabytes are no stream to the hardware: four at a time are read, the next four asked for.
template <class Source>
void mean_of(const MeanTask& t) {
  constexpr int WIDE = 512, LINE = 64 / int(sizeof(Source)), ROWS = 4;
  const int64_t step = t.x->channel_stride;
  const auto* data = static_cast<const Source*>(t.x->data) + t.channel0 * step;
  for (int64_t c0 = 0; c0 < t.channels; c0 += WIDE) {
    const int count = int(t.channels - c0 < WIDE ? t.channels - c0 : WIDE);
    alignas(64) double first[WIDE];
    double* sums = t.sums + c0;
    for (int c = 0; c < count; ++c) first[c] = widen(data[(c0 + c) * step]), sums[c] = 0;
    int64_t row = 0;
    for (; step == 1 && row + ROWS <= t.rows; row += ROWS) {
      const Source *from[ROWS], *next[ROWS];
      for (int r = 0; r < ROWS; ++r) {
        from[r] = data + t.x->offset(t.row0 + row + r) + c0;
        next[r] = row + ROWS + r < t.rows ? data + t.x->offset(t.row0 + row + ROWS + r) + c0 : from[r];
      }
      int c = 0;
      for (; c + LINE <= count; c += LINE) {
        for (int r = 0; r < ROWS; ++r) __builtin_prefetch(next[r] + c);
        for (int k = c; k < c + LINE; ++k) {
          double total = sums[k];
          for (int r = 0; r < ROWS; ++r) total += double(widen(from[r][k])) - first[k];
          sums[k] = total;
        }
      }
      for (; c < count; ++c)
        for (int r = 0; r < ROWS; ++r) sums[c] += double(widen(from[r][c])) - first[c];
    }
    for (; row < t.rows; ++row) {
      const Source* from = data + t.x->offset(t.row0 + row) + c0 * step;
      for (int c = 0; c < count; ++c) sums[c] += double(widen(from[c * step])) - first[c];
    }
  }
}

void mean(const MeanTask& task) {
  dispatch(task.x->dtype, [&](auto source) { mean_of<decltype(source)>(task); });
}

// Up to LANES samples of one panel, at most CHANNELS of their channels: row r goes to packed[·, r]. What is subtracted
// comes in two parts, as one float32 would leave up to 2^-24 of a far mean.
template <class T, class Source>
void pack_rows(const PackTask<T>& t, int row, int64_t c0, int count, const T* high, const T* low, T* packed) {
  constexpr int N = LANES<T>, W = WIDTH<T>;
  alignas(64) T buffer[N][CHANNELS];
  const T *rows[N], *next[N] = {};  // samples far apart are no stream to the hardware: the next ones are asked for
  const int64_t step = t.x->channel_stride;
  for (int r = 0; r < N; ++r) {
    if (row + r >= t.rows) {
      rows[r] = high;  // set to zero below
      continue;
    }
    const Source* from =
        static_cast<const Source*>(t.x->data) + t.x->offset(t.row0 + row + r) + (t.channel0 + c0) * step;
    if constexpr (sizeof(Source) == sizeof(T)) {
      if (step == 1) {
        rows[r] = reinterpret_cast<const T*>(from);
        if (row + N + r < t.rows)
          next[r] = rows[r] + (t.x->offset(t.row0 + row + N + r) - t.x->offset(t.row0 + row + r));
        continue;
      }
    }
    if (step == 1)
      for (int c = 0; c < count; ++c) buffer[r][c] = T(widen(from[c]));
    else
      for (int c = 0; c < count; ++c) buffer[r][c] = T(widen(from[c * step]));
    rows[r] = buffer[r];
  }
  int c = 0;
  for (; c + N <= count; c += N) {
    Vector<T> v[N];
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r) {
      v[r] = load(rows[r] + c) - load(high + c) - load(low + c);
      __builtin_prefetch(next[r] + c);
    }
    transpose<T>(v);
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k) store(packed + (c + k) * W, v[k]);
  }
  for (; c < count; ++c)
    for (int r = 0; r < N; ++r) packed[c * W + r] = rows[r][c] - high[c] - low[c];
  for (int r = t.rows > row ? t.rows - row : 0; r < N; ++r)
    for (c = 0; c < count; ++c) packed[c * W + r] = 0;
}

template <class T, class Source>
void pack_source(const PackTask<T>& t) {
  constexpr int W = WIDTH<T>;
  for (int64_t c0 = 0; c0 < t.channels; c0 += CHANNELS) {
    const int count = int(t.channels - c0 < CHANNELS ? t.channels - c0 : CHANNELS);
    alignas(64) T high[CHANNELS], low[CHANNELS];
    for (int c = 0; c < count; ++c) {
      high[c] = T(t.mean[c0 + c]);
      low[c] = T(t.mean[c0 + c] - double(high[c]));
    }
    for (int panel = 0; panel < TILE / W; ++panel) {
      T* packed = t.packed + (panel * t.channels + c0) * W;
      for (int r = 0; r < W; r += LANES<T>) pack_rows<T, Source>(t, panel * W + r, c0, count, high, low, packed + r);
      if (!t.norms) continue;
      Real norms[W / L] = {};
      for (int c = 0; c < count; ++c)
#pragma GCC unroll 8
        for (int k = 0; k < W / L; ++k) {
          const Real v = load_double(packed + c * W + k * L);
          norms[k] += v * v;
        }
      double* to = t.norms + panel * W;
      for (int k = 0; k < W / L; ++k) store(to + k * L, load(to + k * L) + norms[k]);
    }
  }
}

template <class T>
void pack(const PackTask<T>& task) {
  dispatch(task.x->dtype, [&](auto source) { pack_source<T, decltype(source)>(task); });
}

// ---------------------------------------------------------------------------------------------------- products

// One strip of R samples against one panel.
template <class T, int R>
void multiply_strip(const T* a, const T* b, int64_t channels, bool first, double* to) {
  constexpr int N = PANEL<T>;
  Vector<T> sums[R][N] = {};
#pragma GCC unroll 2
  for (int64_t c = 0; c < channels; ++c, a += WIDTH<T>, b += WIDTH<T>) {
    Vector<T> right[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) right[n] = load(b + n * LANES<T>);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const Vector<T> left = splat(a[i]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sums[i][n] += left * right[n];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      T lanes[LANES<T>];
      store(lanes, sums[i][n]);
#pragma GCC unroll 2
      for (int l = 0; l < LANES<T>; l += L) {
        double* at = to + i * TILE + n * LANES<T> + l;
        store(at, first ? load_double(lanes + l) : load(at) + load_double(lanes + l));
      }
    }
}

// From sample I on, all strips of a panel: as many samples at a time as there are registers for.
template <class T, int I = 0>
void multiply_panel(const T* a, const T* b, int64_t channels, bool first, double* to) {
  constexpr int W = WIDTH<T>, MOST = MR * NV / PANEL<T>, R = W - I < MOST ? W - I : MOST;
  multiply_strip<T, R>(a + I, b, channels, first, to + I * TILE);
  if constexpr (I + R < W) multiply_panel<T, I + R>(a, b, channels, first, to);
}

template <class T>
void multiply(const MultiplyTask<T>& t) {
  constexpr int W = WIDTH<T>;
  const Extent& e = t.extent;
  const int last = t.row1 < e.rows ? t.row1 : e.rows;
  for (int64_t c0 = 0; c0 < t.channels; c0 += CHANNELS) {
    const int64_t channels = t.channels - c0 < CHANNELS ? t.channels - c0 : CHANNELS;
    for (int j = 0; j < e.columns; j += W)
      for (int i = t.row0; i < last; i += W) {
        if (e.diagonal && i > j) break;  // below the diagonal, as are all that follow
        multiply_panel(t.a + i * t.channels + c0 * W, t.b + j * t.channels + c0 * W, channels, t.first && c0 == 0,
                       t.values + i * TILE + j);
      }
  }
}

// The first column of row i that is wanted, down to a whole vector.
int first_column(const Extent& e, int i) { return e.diagonal ? (i + 1) / L * L : 0; }

void distances(const DistanceTask& t) {
  const Extent& e = t.extent;
  for (int i = 0; i < e.rows; ++i) {
    double* row = t.values + i * TILE;
    const Real norm = splat(t.norms_a[i]);
    for (int j = first_column(e, i); j < e.columns; j += L) {
      const Real v = 2 * load(row + j) - (norm + load(t.norms_b + j));
      store(row + j, v > 0 ? Real{} : v);  // NaN stays NaN
    }
    if (t.kernel == Kernel::laplace)
      for (int j = first_column(e, i); j < e.columns; ++j) row[j] = -__builtin_sqrt(-row[j]);
  }
}

// ---------------------------------------------------------------------------------------------------- exponential

SK_HOST_DEVICE Real exp_minus(Real v, Real shift) {
  return hsic::exp_minus(v, shift, [](Real rounded) { return Real((Bits64(rounded) << 52) + (int64_t(1023) << 52)); });
}

// ---------------------------------------------------------------------------------------------------- sums

// One row of one side's tile: K where it is wanted and zero elsewhere, up to `width`, its sum, and its part of the sums
// over rows.
template <bool RADIAL>
double kernel_row(const double* values, double scale, double shift, const Extent& e, int i, int width, double* k,
                  double* columns) {
  const Real scales = splat(scale), shifts = splat(shift);
  Bits64 lane;
  for (int l = 0; l < L; ++l) lane[l] = l;
  Real total = {};
  const auto one = [&](int j, bool partly) {
    Real v = load(values + j);
    if constexpr (RADIAL)
      v = exp_minus(v * scales, shifts);
    else
      v -= shifts;
    if (partly) {  // the others are zeros, whatever the tile holds there
      const Bits64 column = lane + j;
      v = Real(Bits64(v) & (column < e.columns) & (column > (e.diagonal ? i : -1)));
    }
    store(k + j, v);
    store(columns + j, load(columns + j) + v);
    total += v;
  };
  int j = first_column(e, i);
  for (int zero = 0; zero < j && zero < width; zero += L) store(k + zero, Real{});
  if (e.diagonal && j < e.columns) one(j, true), j += L;
  for (; j + L <= e.columns; j += L) one(j, false);
  if (j < e.columns) one(j, true);
  return sum<double>(total);
}

// Σ over `count` entries of the products of A sides with C sides, which lie `stride` apart.
template <int A, int C>
void meet(const double* a, const double* c, int64_t stride, int count, double* to) {
  Real sums[A][C];
  for (int i = 0; i < A; ++i)
    for (int k = 0; k < C; ++k) sums[i][k] = load(to + (i * BLOCK + k) * L);
  for (int j = 0; j < count; j += L) {
    Real right[C];
#pragma GCC unroll 4
    for (int k = 0; k < C; ++k) right[k] = load(c + k * stride + j);
#pragma GCC unroll 4
    for (int i = 0; i < A; ++i) {
      const Real left = load(a + i * stride + j);
#pragma GCC unroll 4
      for (int k = 0; k < C; ++k) sums[i][k] += left * right[k];
    }
  }
  for (int i = 0; i < A; ++i)
    for (int k = 0; k < C; ++k) store(to + (i * BLOCK + k) * L, sums[i][k]);
}

using Meet = void (*)(const double*, const double*, int64_t, int, double*);
constexpr Meet MEET[BLOCK][BLOCK] = {{meet<1, 1>, meet<1, 2>, meet<1, 3>, meet<1, 4>},
                                     {meet<2, 1>, meet<2, 2>, meet<2, 3>, meet<2, 4>},
                                     {meet<3, 1>, meet<3, 2>, meet<3, 3>, meet<3, 4>},
                                     {meet<4, 1>, meet<4, 2>, meet<4, 3>, meet<4, 4>}};

void add(const SumTask& t) {
  const Extent& e = t.extent;
  const int width = (e.columns + L - 1) / L * L, blocks = (t.sides + BLOCK - 1) / BLOCK;
  constexpr int64_t STRIDE = SUM_ROWS * TILE;
  double *k = t.scratch, *sums = t.scratch + t.sides * STRIDE;
  for (int i = 0; i < blocks * blocks * BLOCK * BLOCK * L; ++i) sums[i] = 0;
  for (int i = 0; i < t.sides * TILE; ++i) t.columns[i] = t.rows[i] = 0;
  for (int i = 0; i < e.rows; i += SUM_ROWS) {
    const int rows = e.rows - i < SUM_ROWS ? e.rows - i : SUM_ROWS;
    for (int side = 0; side < t.sides; ++side) {
      auto* row_of = t.side[side].kernel == Kernel::linear ? kernel_row<false> : kernel_row<true>;
      for (int r = 0; r < rows; ++r)
        t.rows[side * TILE + i + r] =
            row_of(t.values + (int64_t(side) * TILE + i + r) * TILE, t.scale[side], t.shift[side], e, i + r, width,
                   k + side * STRIDE + r * width, t.columns + side * TILE);
    }
    for (int a = 0; a < blocks; ++a)
      for (int c = a; c < blocks; ++c) {
        const int left = t.sides - a * BLOCK, right = t.sides - c * BLOCK;
        MEET[(left < BLOCK ? left : BLOCK) - 1][(right < BLOCK ? right : BLOCK) - 1](
            k + a * BLOCK * STRIDE, k + c * BLOCK * STRIDE, STRIDE, rows * width,
            sums + (a * blocks + c) * BLOCK * BLOCK * L);
      }
  }
  for (int a = 0; a < t.sides; ++a)
    for (int c = a; c < t.sides; ++c) {
      const int at = (a / BLOCK * blocks + c / BLOCK) * BLOCK * BLOCK + a % BLOCK * BLOCK + c % BLOCK;
      t.sums[a * t.sides + c] = sum<double>(load(sums + at * L));
    }
}

// ---------------------------------------------------------------------------------------------------- gradients

void weigh(const WeightTask& t) {
  const Extent& e = t.extent;
  const Extent whole{e.rows, e.columns, false};
  const int width = (e.columns + L - 1) / L * L;
  alignas(64) double columns[TILE];  // whose sums nobody wants
  for (int j = 0; j < TILE; ++j) columns[j] = 0;
  for (int i = 0; i < e.rows; ++i) {
    const int64_t at = int64_t(i) * TILE;
    for (int a = 0; a < t.sides; ++a) {
      auto* row = t.side[a].kernel == Kernel::linear ? &kernel_row<false> : &kernel_row<true>;
      (*row)(t.values + int64_t(a) * TILE * TILE + at, t.scale[a], t.shift[a], whole, i, width, t.scratch + a * TILE,
             columns);
    }
    for (int a = 0; a < t.sides; ++a) {
      const double* value = t.values + int64_t(a) * TILE * TILE + at;
      double* weights = t.weights + int64_t(a) * TILE * TILE + at;
      const double own = t.grad_i[a * t.grad_stride + i];
      const Kernel kernel = t.side[a].kernel;
      for (int j = 0; j < width; j += L) {
        Real w;
        for (int l = 0; l < L; ++l) w[l] = j + l < e.columns ? (own + t.grad_j[a * t.grad_stride + j + l]) / 2 : 0;
        for (int c = 0; c < t.sides; ++c) w += t.mix[a * t.sides + c] * load(t.scratch + c * TILE + j);
        const Real k = load(t.scratch + a * TILE + j) + t.shift[a];
        if (kernel == Kernel::linear) {
          w *= 2.0;
        } else if (kernel == Kernel::rbf) {
          w *= k * (4 * t.scale[a]);
        } else {
          const Real d = load(value + j);  // −|a − b|
          w = d < 0.0 ? w * k * (2 * t.scale[a]) / -d : (d == 0.0 ? Real{} : d);
        }
        for (int l = 0; l < L; ++l)
          if (j + l < e.columns && !(e.diagonal && j + l == i)) weights[j + l] += w[l];
      }
    }
  }
}

constexpr int APPLY_WIDTH = NV * L;
static_assert(APPLY_WIDTH <= WIDEST && TILE % MR == 0);

void spread(const SpreadTask& t) {
  dispatch(t.x->dtype, [&](auto source) {
    for (int k = 0; k < t.rows; ++k) {
      const auto* from =
          static_cast<const decltype(source)*>(t.x->data) + t.x->offset(t.row0 + k) + t.channel0 * t.x->channel_stride;
      for (int64_t c = 0; c < (t.channels + APPLY_WIDTH - 1) / APPLY_WIDTH * APPLY_WIDTH; ++c)
        t.packed[(c / APPLY_WIDTH * TILE + k) * APPLY_WIDTH + c % APPLY_WIDTH] =
            c < t.channels ? double(widen(from[c * t.x->channel_stride])) - t.mean[c] : 0;
    }
  });
}

void apply(const ProductTask& t) {
  for (int64_t c0 = 0; c0 < t.channels; c0 += APPLY_WIDTH)
    for (int i = 0; i < t.rows; i += MR) {
      Real sums[MR][NV] = {};
      const double* a = t.weights + int64_t(i) * TILE;  // rows beyond the last one are there, and not stored
      const double* b = t.packed + c0 * TILE;
      for (int k = 0; k < t.columns; ++k, b += APPLY_WIDTH) {
        Real right[NV];
#pragma GCC unroll 8
        for (int n = 0; n < NV; ++n) right[n] = load(b + n * L);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
          const Real left = splat(a[r * TILE + k]);
#pragma GCC unroll 8
          for (int n = 0; n < NV; ++n) sums[r][n] += left * right[n];
        }
      }
      for (int r = 0; r < MR && i + r < t.rows; ++r)
        for (int n = 0; n < NV; ++n)
          for (int l = 0; l < L; ++l)
            if (const int64_t c = c0 + n * L + l; c < t.channels) t.gradient[(i + r) * t.stride + c] += sums[r][n][l];
    }
}

const Products<float> products_f32 = {pack<float>, multiply<float>};
const Products<double> products_f64 = {pack<double>, multiply<double>};
const Functions functions = {mean, distances, add, weigh, spread, apply};

}  // namespace stitchkern::hsic::STITCHKERN_PATH
