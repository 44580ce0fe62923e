// Inner loops of the CPU kernel sums, compiled once per instruction set.
//
// Tiles are packed into panels of `width` samples, channel by channel, so that one layout serves both sides of the
// product: a strip of MR samples is read as broadcasts, a whole panel as NV vectors. The exponential of a whole row of
// a tile is one loop without branches. All but
// the products is float64.
#include "hsic_cpu.h"

#include "../common/simd.h"

namespace stitchkern::hsic::STITCHKERN_PATH {

using namespace stitchkern::STITCHKERN_PATH;

constexpr int L = LANES<double>;
#if defined(__AVX512F__)
constexpr int MR = 8, NV = 3;  // 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int MR = 4, NV = 3;  // 12 of 16
#else
constexpr int MR = 4, NV = 2;  // 8 of 16: without fused multiply-add the products need some
#endif
template <class T>
constexpr int WIDTH = NV * LANES<T>;
// Multiplied at a stretch: a panel of them stays in the first-level cache, and float32 sums stay short.
template <class T>
constexpr int64_t CHANNELS = sizeof(T) == 8 ? 256 : 128;
static_assert(TILE % WIDTH<float> == 0 && TILE % WIDTH<double> == 0 && WIDTH<double> % MR == 0,
              "strips must fill panels, and panels tiles");

using Real = Vector<double>;

// ---------------------------------------------------------------------------------------------------- pack

template <class T, class Source>
void pack_source(const PackTask<T>& t) {
  constexpr int W = WIDTH<T>;
  const int64_t channels = t.x->channels, step = t.x->channel_stride;
  for (int panel = 0; panel < TILE / W; ++panel) {
    T* packed = t.packed + panel * W * channels;
    for (int r = 0; r < W; ++r) {
      const int row = panel * W + r;
      if (row >= t.rows) {
        for (int64_t c = 0; c < channels; ++c) packed[c * W + r] = 0;
        continue;
      }
      const Source* from = static_cast<const Source*>(t.x->data) + t.x->offset(t.row0 + row);
      for (int64_t c = 0; c < channels; ++c) packed[c * W + r] = T(double(widen(from[c * step])) - t.mean[c]);
    }
    for (int r = 0; r < W; r += L) {
      Real norms = {};
      for (int64_t c0 = 0; c0 < channels; c0 += CHANNELS<T>) {  // as multiply() adds them up
        Real sums = {};
        for (int64_t c = c0; c < c0 + CHANNELS<T> && c < channels; ++c) {
          const Real v = load_double(packed + c * W + r);
          sums += v * v;
        }
        norms = c0 ? norms + sums : sums;
      }
      store(t.norms + panel * W + r, norms);
    }
  }
}

template <class T>
void pack(const PackTask<T>& task) {
  dispatch(task.x->dtype, [&](auto source) { pack_source<T, decltype(source)>(task); });
}

// ---------------------------------------------------------------------------------------------------- values

// One strip of MR samples against one panel.
template <class T>
void multiply(const T* a, const T* b, int64_t channels, bool first, double* to) {
  Vector<T> sums[MR][NV] = {};
  for (int64_t c = 0; c < channels; ++c, a += WIDTH<T>, b += WIDTH<T>) {
    Vector<T> right[NV];
#pragma GCC unroll 8
    for (int n = 0; n < NV; ++n) right[n] = load(b + n * LANES<T>);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const Vector<T> left = splat(a[i]);
#pragma GCC unroll 8
      for (int n = 0; n < NV; ++n) sums[i][n] += left * right[n];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int n = 0; n < NV; ++n) {
      T lanes[LANES<T>];
      store(lanes, sums[i][n]);
#pragma GCC unroll 2
      for (int l = 0; l < LANES<T>; l += L) {
        double* at = to + i * TILE + n * LANES<T> + l;
        store(at, first ? load_double(lanes + l) : load(at) + load_double(lanes + l));
      }
    }
}

// The first column of row i that is wanted, down to a whole vector.
int first_column(const Extent& e, int i) { return e.diagonal ? (i + 1) / L * L : 0; }

template <class T>
void values(const ValueTask<T>& t) {
  constexpr int W = WIDTH<T>;
  const Extent& e = t.extent;
  for (int64_t c0 = 0; c0 < t.channels; c0 += CHANNELS<T>) {
    const int64_t channels = t.channels - c0 < CHANNELS<T> ? t.channels - c0 : CHANNELS<T>;
    for (int j = 0; j < e.columns; j += W)
      for (int i = 0; i < e.rows; i += MR) {
        if (e.diagonal && i >= j + W) break;  // below the diagonal, as are all that follow
        const T* a = t.a + (i / W) * W * t.channels + c0 * W + i % W;
        multiply(a, t.b + j * t.channels + c0 * W, channels, c0 == 0, t.values + i * TILE + j);
      }
  }
  if (t.kernel == Kernel::linear) return;
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

// exp(v) − shift for v <= 0: 2^k (exp(r) − 1) + (2^k − shift), |r| <= log(2) / 2, exp(r) − 1 by its series up to r^13.
// Without a shift within 2 ulp; near shift = 1 what is small keeps its digits, as expm1 does. Below −708, where doubles
// lose theirs, it stays at exp(−708). NaN stays NaN.
SK_HOST_DEVICE Real exp_minus(Real v, Real shift) {
  constexpr double ROUND = 0x1.8p52;  // the last bits of a sum with this are a whole number
  constexpr double LOG2_E = 0x1.71547652b82fep0;
  constexpr double LN2_HIGH = 0x1.62e42feep-1, LN2_LOW = 0x1.a39ef35793c76p-33;  // k × the first is exact
  v = v < -708.0 ? splat(-708.0) : v;
  const Real rounded = v * LOG2_E + ROUND, k = rounded - ROUND;
  const Real r = (v - k * LN2_HIGH) - k * LN2_LOW;
  const Real power = Real((Bits64(rounded) << 52) + (int64_t(1023) << 52));
  Real series = splat(1.0 / 6227020800);
  series = series * r + 1.0 / 479001600;
  series = series * r + 1.0 / 39916800;
  series = series * r + 1.0 / 3628800;
  series = series * r + 1.0 / 362880;
  series = series * r + 1.0 / 40320;
  series = series * r + 1.0 / 5040;
  series = series * r + 1.0 / 720;
  series = series * r + 1.0 / 120;
  series = series * r + 1.0 / 24;
  series = series * r + 1.0 / 6;
  series = series * r + 0.5;
  return power * (series * r * r + r) + (power - shift);
}

// ---------------------------------------------------------------------------------------------------- sums

template <bool RADIAL>
SK_HOST_DEVICE Real kernel_of(const double* value, Real scale, Real shift) {
  if constexpr (RADIAL)
    return exp_minus(load(value) * scale, shift);
  else
    return load(value) - shift;
}

template <bool RADIAL_X, bool RADIAL_Y>
void add(const SumTask& t) {
  const Extent& e = t.extent;
  const Real scale_x = splat(t.scale[X]), scale_y = splat(t.scale[Y]);
  const Real shift_x = splat(t.shift[X]), shift_y = splat(t.shift[Y]);
  Bits64 lane;
  for (int l = 0; l < L; ++l) lane[l] = l;
  Real xy = {}, xx = {}, yy = {};
  for (int i = 0; i < e.rows; ++i) {
    Real row_x = {}, row_y = {};
    const auto one = [&](int j, bool partly) {
      Real k = kernel_of<RADIAL_X>(t.values[X] + i * TILE + j, scale_x, shift_x);
      Real l = kernel_of<RADIAL_Y>(t.values[Y] + i * TILE + j, scale_y, shift_y);
      if (partly) {  // the others are zeros, whatever the tile holds there
        const Bits64 column = lane + j;
        const Bits64 wanted = (column < e.columns) & (column > (e.diagonal ? i : -1));
        k = Real(Bits64(k) & wanted), l = Real(Bits64(l) & wanted);
      }
      row_x += k, row_y += l;
      store(t.columns[X] + j, load(t.columns[X] + j) + k);
      store(t.columns[Y] + j, load(t.columns[Y] + j) + l);
      xy += k * l, xx += k * k, yy += l * l;
    };
    int j = first_column(e, i);
    if (e.diagonal && j < e.columns) one(j, true), j += L;
    for (; j + L <= e.columns; j += L) one(j, false);
    if (j < e.columns) one(j, true);
    t.rows[X][i] += sum<double>(row_x), t.rows[Y][i] += sum<double>(row_y);
  }
  t.sums[XY] += sum<double>(xy), t.sums[XX] += sum<double>(xx), t.sums[YY] += sum<double>(yy);
}

void add_tile(const SumTask& t) {
  const bool x = t.kernel[X] != Kernel::linear, y = t.kernel[Y] != Kernel::linear;
  if (x)
    y ? add<true, true>(t) : add<true, false>(t);
  else
    y ? add<false, true>(t) : add<false, false>(t);
}

const Kernels<float> kernels_f32 = {pack<float>, values<float>, add_tile};
const Kernels<double> kernels_f64 = {pack<double>, values<double>, add_tile};

}  // namespace stitchkern::hsic::STITCHKERN_PATH
