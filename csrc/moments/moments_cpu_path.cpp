// Inner loops of the CPU moments, compiled once per instruction set.
//
// Panels are `width` features wide and stored row by row, so one layout serves both sides of the product: a strip of MR
// features is read as broadcasts, the whole panel as NV vectors. MR × NV accumulators fill the register file. Every sum
// runs over rows in order, so all paths with fused multiply-add give the same bits.
#include "moments_cpu.h"

#include "../common/simd.h"

namespace stitchkern::moments::STITCHKERN_PATH {

using namespace stitchkern::STITCHKERN_PATH;

// Rows summed at a stretch. Equal rows round the same way again and again, so an error can grow with the length of a
// run (worst case half of it, in roundings) instead of its root: 32, then up to 8 runs, keeps it below 20 roundings
// where one run of 256 may reach 128. It costs one addition for 32 multiply-adds.
constexpr int64_t RUN_ROWS = 32;

template <class T>
struct Shape {
#if defined(__AVX512F__)
  static constexpr int NV = 2, MR = 8;  // 16 of 32 registers: a width that divides the usual channel counts
#else
  static constexpr int NV = 2, MR = 4;  // 8 of 16 registers
#endif
  static constexpr int WIDTH = NV * LANES<T>;
  static_assert(WIDTH % MR == 0, "strips must fill a panel");
  static_assert(NV == 2, "the diagonal skips the first of two vectors");
};

// ---------------------------------------------------------------------------------------------------- multiply

// One strip of MR features against vectors FROM … NV of the other panel.
template <class T, int FROM>
void multiply_strip(const T* a, const T* b, int64_t rows, double* c, int64_t ldc, int rows_c, int columns_c) {
  constexpr int NV = Shape<T>::NV, MR = Shape<T>::MR, WIDTH = Shape<T>::WIDTH;
  // sum short runs in registers, and the runs of the block in turn
  Vector<T> totals[MR][NV - FROM] = {};
  for (int64_t run = 0; run < rows; run += RUN_ROWS) {
    Vector<T> sums[MR][NV - FROM] = {};
    const int64_t last = rows - run < RUN_ROWS ? rows - run : RUN_ROWS;
    for (int64_t k = 0; k < last; ++k, a += WIDTH, b += WIDTH) {
      Vector<T> bv[NV - FROM];
#pragma GCC unroll 8
      for (int n = 0; n < NV - FROM; ++n) bv[n] = load(b + (n + FROM) * LANES<T>);
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) {
        const Vector<T> ai = splat(a[i]);
#pragma GCC unroll 8
        for (int n = 0; n < NV - FROM; ++n) sums[i][n] += ai * bv[n];
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
      for (int n = 0; n < NV - FROM; ++n) totals[i][n] += sums[i][n];
  }
  // promote
  T lanes[WIDTH];
  for (int i = 0; i < rows_c; ++i, c += ldc) {
    for (int n = 0; n < NV - FROM; ++n) store(lanes + (n + FROM) * LANES<T>, totals[i][n]);
    int j = FROM * LANES<T>;
    for (; j + LANES<double> <= columns_c; j += LANES<double>) store(c + j, load(c + j) + load_double(lanes + j));
    for (; j < columns_c; ++j) c[j] += double(lanes[j]);
  }
}

template <class T>
void multiply(const T* a, const T* b, int64_t rows, double* c, int64_t ldc, int rows_c, int columns_c, bool diagonal) {
  constexpr int MR = Shape<T>::MR;
  for (int strip = 0; strip < rows_c; strip += MR) {
    const int count = rows_c - strip < MR ? rows_c - strip : MR;
    if (diagonal && strip >= LANES<T>)  // the first vector lies below the diagonal
      multiply_strip<T, Shape<T>::NV - 1>(a + strip, b, rows, c + strip * ldc, ldc, count, columns_c);
    else
      multiply_strip<T, 0>(a + strip, b, rows, c + strip * ldc, ldc, count, columns_c);
  }
}

// ---------------------------------------------------------------------------------------------------- pack

// One group of at most LANES rows of a panel in the element type, zero beyond the last channel; `raw` [LANES][WIDTH].
template <class T, class Source>
void gather(const Source* x, int64_t row_stride, int64_t channel_stride, int64_t rows, int64_t channels, T* raw) {
  constexpr int WIDTH = Shape<T>::WIDTH, L = LANES<T>;
  if (channel_stride == 1) {  // (n, c), channels_last
    for (int64_t k = 0; k < rows; ++k) {
      const Source* from = x + k * row_stride;
      T* to = raw + k * WIDTH;
      if (channels == WIDTH) {
        for (int j = 0; j < WIDTH; ++j) to[j] = T(widen(from[j]));
      } else {
        for (int64_t j = 0; j < WIDTH; ++j) to[j] = j < channels ? T(widen(from[j])) : T(0);
      }
    }
    return;
  }
  if (row_stride == 1 && rows == L) {  // NCHW: positions are contiguous
    for (int j0 = 0; j0 < WIDTH; j0 += L) {
      Vector<T> tile[L];
      if (j0 + L <= channels) {
#pragma GCC unroll 16
        for (int j = 0; j < L; ++j) {
          const Source* from = x + (j0 + j) * channel_stride;
          T lanes[L];
          for (int k = 0; k < L; ++k) lanes[k] = T(widen(from[k]));
          tile[j] = load(lanes);
        }
      } else {
        for (int j = 0; j < L; ++j) {
          const Source* from = x + (j0 + j) * channel_stride;
          T lanes[L];
          for (int k = 0; k < L; ++k) lanes[k] = j0 + j < channels ? T(widen(from[k])) : T(0);
          tile[j] = load(lanes);
        }
      }
      transpose<T>(tile);
#pragma GCC unroll 16
      for (int k = 0; k < L; ++k) store(raw + k * WIDTH + j0, tile[k]);
    }
    return;
  }
  for (int64_t k = 0; k < rows; ++k)
    for (int64_t j = 0; j < WIDTH; ++j)
      raw[k * WIDTH + j] = j < channels ? T(widen(x[k * row_stride + j * channel_stride])) : T(0);
}

// Shift, weigh, add up, store: the same for every layout. `raw` [rows][raw_stride] holds a panel in the element type.
// Up to LANES rows are added up in that type before they are promoted.
template <class T, bool WEIGHTED>
void finish_rows(const T* raw, int64_t raw_stride, int64_t rows, const T* shift, const double* weight, T* packed,
                 double* first, T* largest) {
  constexpr int NV = Shape<T>::NV, WIDTH = Shape<T>::WIDTH, L = LANES<T>, D = LANES<double>;
  for (int n = 0; n < NV; ++n) {
    const Vector<T> s = load(shift + n * L);
    Vector<T> sums = {};
    Vector<double> heavy[L / D] = {};  // with weights, which may be of any size
    auto top = magnitude_bits(load(largest + n * L));
    for (int64_t k = 0; k < rows; ++k) {
      T* to = packed + k * WIDTH + n * L;
      if (WEIGHTED && weight[k] == 0) {
        store(to, Vector<T>{});
        continue;
      }
      const Vector<T> u = load(raw + k * raw_stride + n * L) - s;
      const auto size = magnitude_bits(u);
      top = size > top ? size : top;
      store(to, u);
      if (WEIGHTED) {
        for (int h = 0; h < L / D; ++h) heavy[h] += splat(weight[k]) * load_double(to + h * D);
        store(to, u * splat(T(__builtin_sqrt(weight[k]))));
      } else {
        sums += u;
      }
    }
    store(largest + n * L, Vector<T>(top));
    T lanes[L];
    store(lanes, sums);
    for (int h = 0; h < L / D; ++h) {
      double* to = first + n * L + h * D;
      store(to, load(to) + (WEIGHTED ? heavy[h] : load_double(lanes + h * D)));
    }
  }
}

// Rows [k, k + count), all in one run, of one panel.
template <class T, class Source>
void pack_group(const PackTask<T>& t, int panel, int64_t k, int64_t count, const Source* data) {
  constexpr int WIDTH = Shape<T>::WIDTH, L = LANES<T>;
  const int64_t row_stride = t.x->stride[2], channel_stride = t.x->channel_stride;
  const int64_t channels = t.channels - panel * WIDTH < WIDTH ? t.channels - panel * WIDTH : WIDTH;
  const Source* from = data + panel * WIDTH * channel_stride;
  alignas(64) T copied[L * WIDTH];
  const T* raw = copied;
  int64_t raw_stride = WIDTH;
  bool direct = false;
  if constexpr (sizeof(T) == sizeof(Source)) {  // of one type already: read in place
    direct = channel_stride == 1 && channels == WIDTH;
    if (direct) raw = reinterpret_cast<const T*>(from), raw_stride = row_stride;
  }
  if (!direct) gather<T, Source>(from, row_stride, channel_stride, count, channels, copied);
  T* packed = t.packed + (panel * BLOCK_ROWS + k) * WIDTH;
  const int64_t j = int64_t(panel) * WIDTH;
  if (t.weight)
    finish_rows<T, true>(raw, raw_stride, count, t.shift + j, t.weight + k, packed, t.first + j, t.largest + j);
  else
    finish_rows<T, false>(raw, raw_stride, count, t.shift + j, nullptr, packed, t.first + j, t.largest + j);
}

template <class T, class Source>
void pack_source(const PackTask<T>& t) {
  const Source* data = static_cast<const Source*>(t.x->data) + t.channel0 * t.x->channel_stride;
  for (int j = 0; j < t.panels * Shape<T>::WIDTH; ++j) t.first[j] = 0, t.largest[j] = 0;
  // Memory order decides which loop is inside: neighbouring panels are neighbours in memory where channels are.
  const bool panels_inside = t.x->channel_stride == 1;
  for (int outer = 0; outer < (panels_inside ? 1 : t.panels); ++outer) {
    for (int64_t k = 0; k < t.rows;) {
      const int64_t row = t.row0 + k, run = t.x->size[2] - row % t.x->size[2];
      int64_t count = run < t.rows - k ? run : t.rows - k;
      if (count > LANES<T>) count = LANES<T>;
      const Source* from = data + t.x->offset(row);
      if (panels_inside) {
        for (int panel = 0; panel < t.panels; ++panel) pack_group<T, Source>(t, panel, k, count, from);
      } else {
        pack_group<T, Source>(t, outer, k, count, from);
      }
      k += count;
    }
  }
}

template <class T>
void pack(const PackTask<T>& task) {
  dispatch(task.x->dtype, [&](auto source) { pack_source<T, decltype(source)>(task); });
}

// ---------------------------------------------------------------------------------------------------- norms

template <class T>
void norms(const T* packed, int64_t panel_stride, int panels_x, int panels, int64_t rows, const double* weight,
           const double* d, double* third, int64_t third_stride, double* norms) {
  constexpr int WIDTH = Shape<T>::WIDTH, D = LANES<double>, GROUP = 8;  // rows that share a pass over `third`
  static_assert(WIDTH % D == 0);
  for (int64_t k0 = 0; k0 < rows; k0 += GROUP) {
    const int count = int(rows - k0 < GROUP ? rows - k0 : GROUP);
    double along_a[GROUP], along_b[GROUP];  // sqrt(w) a and sqrt(w) b: times the packed sqrt(w) u they give w a u
    double total_a = 0, total_b = 0;        // Σ w a, Σ w b of the group
    for (int g = 0; g < count; ++g) {
      const double w = weight ? weight[k0 + g] : 1, root = __builtin_sqrt(w), inverse = w > 0 ? 1 / root : 0;
      double square[2] = {0, 0};
      for (int side = 0; side < 2; ++side) {
        Vector<double> sums = {};
        for (int panel = side ? panels_x : 0; panel < (side ? panels : panels_x); ++panel) {
          const T* row = packed + panel * panel_stride + (k0 + g) * WIDTH;
          for (int j = 0; j < WIDTH; j += D) {
            const Vector<double> z = load_double(row + j) * splat(inverse) + load(d + panel * WIDTH + j);
            sums += z * z;
          }
        }
        square[side] = w > 0 ? sum<double>(sums) : 0;
      }
      along_a[g] = root * square[0], along_b[g] = root * square[1];
      total_a += w * square[0], total_b += w * square[1];
      norms[0] += w * square[0] * square[0];
      norms[1] += w * square[0] * square[1];
      norms[2] += w * square[1] * square[1];
    }
    for (int panel = 0; panel < panels; ++panel) {
      const T* block = packed + panel * panel_stride + k0 * WIDTH;
      for (int j = 0; j < WIDTH; j += D) {
        double *out_a = third + panel * WIDTH + j, *out_b = out_a + third_stride;
        const Vector<double> shift = load(d + panel * WIDTH + j);
        Vector<double> a = load(out_a) + splat(total_a) * shift, b = load(out_b) + splat(total_b) * shift;
        for (int g = 0; g < count; ++g) {
          const Vector<double> u = load_double(block + g * WIDTH + j);
          a += splat(along_a[g]) * u, b += splat(along_b[g]) * u;
        }
        store(out_a, a), store(out_b, b);
      }
    }
  }
}

template <class T>
constexpr Kernels<T> table() {
  return {Shape<T>::WIDTH, pack<T>, multiply<T>, norms<T>};
}

const Kernels<float> kernels_f32 = table<float>();
const Kernels<double> kernels_f64 = table<double>();

}  // namespace stitchkern::moments::STITCHKERN_PATH
