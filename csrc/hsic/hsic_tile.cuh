// A tile of sample pairs on the GPU: what the kernels of hsic_kernels.cuh and hsic_backward.cuh are made of. Raw
// pointers and sizes only.
//
// A tile is 64 × 64 samples, a block 4 warps of 32 × 32, and two blocks share a multiprocessor, so that one multiplies
// while the other takes exponentials. For each side, slabs of 16 features go global → registers → (widen, less the
// mean) → shared memory, two stages; the products of all sides are one pipeline. What a thread gets of a tile stays its
// own: 32 pairs of samples, the same for every side.
//
// Loads are 16 bytes wide (8 of 16-bit types). A side that does not allow it, with features apart or odd strides, is
// copied once: next to n² p multiplications that costs nothing, and a second way to load would cost registers.
#pragma once

#include "../common/device.h"
#include "hsic.h"
#include "hsic_exp.h"

namespace stitchkern::hsic {

using namespace stitchkern::device;

inline constexpr int THREADS = 128, WARPS = THREADS / WARP;
inline constexpr int SAMPLES = 64;                     // of either side of a tile
inline constexpr int SLAB = 16;                        // features in shared memory at once
inline constexpr int PAIRS = SAMPLES * SAMPLES;        // of a tile
inline constexpr int THREAD_PAIRS = PAIRS / THREADS;   // of a thread
inline constexpr int MAX_SIDES = 64, MAX_PLANES = 64;  // of one launch; a plane: a tile of one side and bandwidth
inline constexpr int WARP_TILE = 32;
static_assert(SAMPLES == 2 * WARP_TILE && WARPS == 4 && THREAD_PAIRS == 32);

// Numbers that are loaded at once.
template <class T>
inline constexpr int WIDTH = sizeof(T) == 8 ? 2 : 4;

// One side as the kernels see it: features contiguous, rows aligned to WIDTH numbers.
struct View {
  const void* data;
  int64_t row_stride;  // in elements
  int64_t channels;
  int64_t start;  // of its features among those of all sides, each padded to whole slabs
  int slabs;
  Kernel kernel;
  int side;   // its number in the outputs
  int extra;  // the plane of its distances, in the backward pass
};

// What all launches need to know.
struct Views {
  View view[MAX_SIDES];
  const double* bandwidth;  // [s, stride]
  const double* shift;      // [s, stride]
  double* mean;             // [padded features], zero where padded
  double* norms;            // [sides, n]: |x_i − mean|²
  int* narrow;              // whether bfloat16 parts are good enough; null: not asked
  int64_t count;            // n
  int64_t features;         // of all sides, padded
  int64_t stride;           // bandwidths of the outputs
  int sides, first, bandwidths;

  SK_HOST_DEVICE int tiles() const { return int((count + SAMPLES - 1) / SAMPLES); }
  SK_HOST_DEVICE int planes() const { return sides * bandwidths; }
  // Where side `a` and bandwidth `j` of this launch are among those of the outputs.
  SK_HOST_DEVICE int64_t at(int a, int j) const { return view[a].side * stride + first + j; }
};

// ---------------------------------------------------------------------------------------------------- exponential

SK_DEVICE double exp_minus(double v, double shift) {
  return exp_minus(v, shift, [](double rounded) {
    return bit_cast<double>((bit_cast<uint64_t>(rounded) << 52) + (uint64_t(1023) << 52));
  });
}

// What the exponent's value is multiplied with: −|a − b|² or −|a − b|.
SK_DEVICE double scale_of(Kernel kernel, double width) {
  return kernel == Kernel::rbf ? 1 / (2 * width * width) : 1 / width;
}

// ---------------------------------------------------------------------------------------------------- arithmetic
//
// A warp multiplies a 32 × 32 piece: 2 × 4 mma tiles of 16 × 8, at m0 of the tile's rows and n0 of its columns. Number
// (i, j, r) of a thread is pair (m0 + 16 i + g + 8 (r / 2), n0 + 8 j + 2 t + r % 2), g = lane / 4, t = lane % 4. Stages
// hold the tile's rows, then its columns: sample s, feature k at [s][k]. Lane t takes features 2 t and 2 t + 1, in one
// read, where the mma has t and t + 4 (and likewise for bfloat16): the order of a sum is free.

using Products = double[2][4][4];

struct alignas(16) Pair {
  double v[2];
};

struct DoubleMath {
  using Stored = double;
  static constexpr int STAGE = 2 * SAMPLES * SLAB;

  // Halves of a row change places in every other one: two rows' fragments, and writes, then meet no bank conflicts.
  static SK_DEVICE int at(int sample, int k) { return sample * SLAB + (k ^ (sample & 1) << 3); }

  template <int V>
  static SK_DEVICE void store(double* stage, int sample, int k, const double (&u)[V]) {
    if constexpr (V == 2) {
      *reinterpret_cast<Pair*>(stage + at(sample, k)) = Pair{{u[0], u[1]}};
    } else {
      static_assert(V == 4);
      const bool odd = sample & 1;  // these write the other half first: neighbours then meet no bank conflicts
      *reinterpret_cast<Pair*>(stage + at(sample, k + (odd ? 2 : 0))) = odd ? Pair{{u[2], u[3]}} : Pair{{u[0], u[1]}};
      *reinterpret_cast<Pair*>(stage + at(sample, k + (odd ? 0 : 2))) = odd ? Pair{{u[0], u[1]}} : Pair{{u[2], u[3]}};
    }
  }

  struct Sums {
    Products c = {};
    SK_DEVICE void promote() {}
    SK_DEVICE double value(int i, int j, int r) const { return c[i][j][r]; }
  };
  static constexpr int PROMOTE = 0;

  // T: of the data; what is on its way of float64 leaves no registers for two steps at once.
  template <class T>
  static SK_DEVICE void multiply(Sums& sums, const double* stage, int m0, int n0) {
    [[maybe_unused]] constexpr int STEPS = sizeof(T) == 8 ? 1 : SLAB / 8;
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll STEPS
    for (int k = 0; k < SLAB; k += 8) {
      double a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Pair both = *reinterpret_cast<const Pair*>(stage + at(m0 + 16 * i + g + 8 * half, k + 2 * t));
          a[i][half] = both.v[0], a[i][2 + half] = both.v[1];
        }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Pair both = *reinterpret_cast<const Pair*>(stage + at(SAMPLES + n0 + 8 * j + g, k + 2 * t));
        const double b[2] = {both.v[0], both.v[1]};
#pragma unroll
        for (int i = 0; i < 2; ++i) mma_f64_m16n8k8(sums.c[i][j], a[i], b);
      }
    }
  }
};

// Six products of the bfloat16 parts of float32, u = hi + mid + lo (exact); the smallest products are dropped. The
// tensor cores sum in float32 and truncate; every PROMOTE slabs the sums move to pairs of float32 (48 bits, two-sum).
struct SplitMath {
  using Stored = BFloat16;
  static constexpr int PARTS = 3, PART = 2 * SAMPLES * SLAB, STAGE = PARTS * PART;
  static constexpr int PROMOTE = 4;  // 64 features

  template <int V>
  static SK_DEVICE void store(BFloat16* stage, int sample, int k, const double (&u)[V]) {
    static_assert(V == 4);
    struct alignas(8) Four {
      uint32_t v[2];
    };
    float left[V];
#pragma unroll
    for (int v = 0; v < V; ++v) left[v] = float(u[v]);
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      Four words;
#pragma unroll
      for (int i = 0; i < V / 2; ++i) {
        words.v[i] = pack_bf16(left[2 * i], left[2 * i + 1]);
        left[2 * i] -= bit_cast<float>(words.v[i] << 16), left[2 * i + 1] -= bit_cast<float>(words.v[i] & 0xffff0000u);
      }
      *reinterpret_cast<Four*>(stage + part * PART + sample * SLAB + k) = words;
    }
  }

  // c: the tensor cores' sums since the last promotion; high + low: those before.
  struct Sums {
    float c[2][4][4] = {}, high[2][4][4] = {}, low[2][4][4] = {};
    SK_DEVICE double value(int i, int j, int r) const { return double(high[i][j][r]) + double(low[i][j][r]); }
    SK_DEVICE void promote() {
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const float x = high[i][j][r], y = c[i][j][r], sum = x + y, part = sum - x;
            low[i][j][r] += (x - (sum - part)) + (y - part);  // what the sum lost
            high[i][j][r] = sum;
            c[i][j][r] = 0;
          }
    }
  };

  template <class T>
  static SK_DEVICE void multiply(Sums& sums, const BFloat16* stage, int m0, int n0) {
    struct alignas(8) Words {
      uint32_t v[2];
    };
    const int g = lane() / 4, t = lane() % 4;
    uint32_t a[PARTS][2][4], b[PARTS][4][2];
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      const BFloat16* from = stage + part * PART + 4 * t;
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Words both = *reinterpret_cast<const Words*>(from + (m0 + 16 * i + g + 8 * half) * SLAB);
          a[part][i][half] = both.v[0], a[part][i][2 + half] = both.v[1];
        }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Words both = *reinterpret_cast<const Words*>(from + (SAMPLES + n0 + 8 * j + g) * SLAB);
        b[part][j][0] = both.v[0], b[part][j][1] = both.v[1];
      }
    }
    // the smallest products first; neighbours in time go to different accumulators
#pragma unroll
    for (int order = PARTS - 1; order >= 0; --order)
#pragma unroll
      for (int part = order; part >= 0; --part)
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) mma_bf16_m16n8k16(sums.c[i][j], a[part][i], b[order - part][j]);
  }
};

// ---------------------------------------------------------------------------------------------------- data

// What one thread brings of a slab: N vectors, of the same features of N samples.
template <class T>
struct Piece {
  static constexpr int V = WIDTH<T>, ACROSS = SLAB / V, N = 2 * SAMPLES * ACROSS / THREADS;
  static_assert(N * THREADS == 2 * SAMPLES * ACROSS && THREADS % ACROSS == 0);
  struct alignas(V * sizeof(T)) Vector {
    T v[V];
  };
  Vector part[N];

  static SK_DEVICE int sample(int n) { return int(threadIdx.x) / ACROSS + n * (THREADS / ACROSS); }
  static SK_DEVICE int feature() { return int(threadIdx.x) % ACROSS * V; }

  // Global → registers: features k0 … of the samples numbered in `samples`; past the last feature zeros.
  SK_DEVICE void load(const View& view, int64_t k0, const int64_t* samples) {
    const int64_t k = k0 + feature();
    const T* data = static_cast<const T*>(view.data) + k;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const T* from = data + samples[sample(n)] * view.row_stride;
      if (k + V <= view.channels) {
        part[n] = *reinterpret_cast<const Vector*>(from);
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v) part[n].v[v] = k + v < view.channels ? from[v] : T{};
      }
    }
  }

  // Registers → shared, less the mean; `mean`: of the slab.
  template <class Math>
  SK_DEVICE void store(typename Math::Stored* stage, const double* mean) const {
    double m[V];
#pragma unroll
    for (int v = 0; v < V; ++v) m[v] = mean[feature() + v];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      double u[V];
#pragma unroll
      for (int v = 0; v < V; ++v) u[v] = double(widen(part[n].v[v])) - m[v];
      Math::template store<V>(stage, sample(n), feature(), u);
    }
  }
};

// A place in the features of all sides.
struct Place {
  int side = 0, slab = 0;
  SK_DEVICE void step(const Views& t) {
    if (++slab == t.view[side].slabs) ++side, slab = 0;
  }
};

// The tile at row0, column0: for each side its products, then use(side, products) by every thread. `works`: whether the
// warp has any pairs. samples [2 × SAMPLES], stages [2 × Math::STAGE]: shared; nobody reads them when this is entered.
template <class Math, class T, class Use>
SK_DEVICE void multiply_sides(const Views& t, int64_t row0, int64_t column0, int64_t* samples,
                              typename Math::Stored* stages, bool works, const Use& use) {
  const int warp = int(threadIdx.x) / WARP, m0 = warp / 2 * WARP_TILE, n0 = warp % 2 * WARP_TILE;
  static_assert(THREADS == 2 * SAMPLES);
  const int64_t sample = int(threadIdx.x) < SAMPLES ? row0 + threadIdx.x : column0 + (threadIdx.x - SAMPLES);
  samples[threadIdx.x] = sample < t.count ? sample : t.count - 1;  // past the last one that again
  __syncthreads();

  Piece<T> piece;
  Place ahead, held;  // what is loaded next, what `piece` holds
  const auto load = [&] {
    held = ahead;
    if (ahead.side >= t.sides) return;
    piece.load(t.view[ahead.side], int64_t(ahead.slab) * SLAB, samples);
    ahead.step(t);
  };
  const auto store = [&](int stage) {
    if (held.side >= t.sides) return;
    const double* mean = t.mean + t.view[held.side].start + int64_t(held.slab) * SLAB;
    piece.template store<Math>(stages + stage * Math::STAGE, mean);
  };

  // Multiply a slab, bring the next one to shared memory and the one after to registers.
  load();
  store(0);
  load();
  __syncthreads();
  int stage = 0;
  for (int a = 0; a < t.sides; ++a) {
    typename Math::Sums sums;
    for (int slab = 0; slab < t.view[a].slabs; ++slab) {
      store(stage ^ 1);
      load();
      if (works) {
        Math::template multiply<T>(sums, stages + stage * Math::STAGE, m0, n0);
        if constexpr (Math::PROMOTE > 0)
          if (slab % Math::PROMOTE == Math::PROMOTE - 1) sums.promote();
      }
      stage ^= 1;
      __syncthreads();
    }
    sums.promote();
    Products products;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int r = 0; r < 4; ++r) products[i][j][r] = sums.value(i, j, r);
    use(a, products);
  }
}

// ---------------------------------------------------------------------------------------------------- kernels

// Which pairs of a thread's are wanted, and where they are.
struct Extent {
  int64_t row, column;  // of number (0, 0, 0)
  int64_t count;
  bool all;    // every pair of the tile is wanted
  bool upper;  // only those above the diagonal; otherwise those off it

  SK_DEVICE Extent(int64_t row0, int64_t column0, int64_t count, bool upper) : count(count), upper(upper) {
    const int warp = int(threadIdx.x) / WARP;
    row = row0 + warp / 2 * WARP_TILE + lane() / 4, column = column0 + warp % 2 * WARP_TILE + 2 * (lane() % 4);
    all = row0 != column0 && row0 + SAMPLES <= count && column0 + SAMPLES <= count;
  }
  SK_DEVICE int64_t row_of(int i, int half) const { return row + 16 * i + 8 * half; }
  SK_DEVICE int64_t column_of(int j, int half) const { return column + 8 * j + half; }
  SK_DEVICE bool wants(int i, int j, int r) const {
    const int64_t at_row = row_of(i, r / 2), at_column = column_of(j, r % 2);
    return at_row < count && at_column < count && (upper ? at_column > at_row : at_column != at_row);
  }
};

// Products in place to what the kernel is a function of: themselves, −|a − b|² or −|a − b|. norms: [n].
SK_DEVICE void values_of(Products& v, Kernel kernel, const double* norms, const Extent& e) {
  if (kernel == Kernel::linear) return;
  double row_norm[2][2], column_norm[4][2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 2; ++i) row_norm[i][half] = e.row_of(i, half) < e.count ? norms[e.row_of(i, half)] : 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) column_norm[j][half] = e.column_of(j, half) < e.count ? norms[e.column_of(j, half)] : 0;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const double value = 2 * v[i][j][r] - (row_norm[i][r / 2] + column_norm[j][r % 2]);
        v[i][j][r] = value > 0 ? 0 : value;  // NaN stays NaN
      }
  if (kernel == Kernel::laplace)
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int r = 0; r < 4; ++r) v[i][j][r] = -sqrt(-v[i][j][r]);
}

template <bool VALUE>
struct Is {
  static constexpr bool value = VALUE;
};

// K of one value, as `kernel` was told apart outside the loop.
template <bool RADIAL>
SK_DEVICE double kernel_of(double value, double scale, double shift) {
  if constexpr (RADIAL)
    return exp_minus(value * scale, shift);
  else
    return value - shift;
}

// ---------------------------------------------------------------------------------------------------- prepare

// A side with contiguous features and aligned rows, in its own type or another one that holds all of its numbers.
// `padded`: from row to row of the copy.
template <class From, class To>
__global__ void __launch_bounds__(THREADS) copy_side(const From* from, int64_t row_stride, int64_t channel_stride,
                                                     int64_t channels, int64_t padded, int64_t count, To* to) {
  const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  const int64_t row = i / padded, channel = i % padded;
  if (row >= count) return;
  const From* source = from + row * row_stride + channel * channel_stride;
  if constexpr (sizeof(From) == sizeof(To))
    to[i] = channel < channels ? *source : To{};
  else
    to[i] = channel < channels ? To(widen(*source)) : To(0);
}

inline constexpr int MEAN_FEATURES = WARP;  // of one block of the mean sums

SK_HOST_DEVICE int64_t feature_groups(int64_t channels) { return (channels + MEAN_FEATURES - 1) / MEAN_FEATURES; }

struct MeanShared {
  SharedArray<double> sums{0, WARPS * MEAN_FEATURES};
};

// Sums of the features about the first row, so that constant features become exactly zero: a group of features of one
// side, and the rows of one chunk. partial: [chunks, features].
template <class T>
__global__ void __launch_bounds__(THREADS)
    sum_features(const __grid_constant__ Views t, double* partial, int64_t groups, int64_t chunk_rows) {
  constexpr MeanShared shared;
  int64_t group = blockIdx.x % groups;
  const int64_t chunk = blockIdx.x / groups;
  int side = 0;
  while (group >= feature_groups(t.view[side].channels)) group -= feature_groups(t.view[side++].channels);
  const View& view = t.view[side];

  const int warp = int(threadIdx.x) / WARP;
  const int64_t channel = group * MEAN_FEATURES + lane();
  const bool mine = channel < view.channels;
  const T* from = static_cast<const T*>(view.data) + (mine ? channel : 0);
  const double first = double(widen(*from));
  const int64_t end = (chunk + 1) * chunk_rows < t.count ? (chunk + 1) * chunk_rows : t.count;
  double sum = 0;
#pragma unroll 4
  for (int64_t i = chunk * chunk_rows + warp; i < end; i += WARPS)
    sum += double(widen(from[i * view.row_stride])) - first;
  double* sums = shared.sums.get();
  sums[warp * MEAN_FEATURES + lane()] = sum;
  __syncthreads();
  if (warp == 0 && mine) {
    double total = 0;
    for (int i = 0; i < WARPS; ++i) total += sums[i * MEAN_FEATURES + lane()];
    partial[chunk * t.features + view.start + channel] = total;
  }
}

// One thread to a padded feature.
template <class T>
__global__ void __launch_bounds__(THREADS)
    finish_means(const __grid_constant__ Views t, const double* partial, int64_t chunks) {
  const int64_t feature = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (feature >= t.features) return;
  int side = t.sides - 1;
  while (t.view[side].start > feature) --side;
  const View& view = t.view[side];
  const int64_t channel = feature - view.start;
  double mean = 0;
  if (channel < view.channels) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) mean += partial[chunk * t.features + feature];
    mean = mean / double(t.count) + double(widen(static_cast<const T*>(view.data)[channel]));
  }
  t.mean[feature] = mean;
}

// |x_i − mean|² of SAMPLES samples of one side, by the instructions of the products and in their order: equal samples
// then have distance 0. A warp has 16 samples.
template <class T>
__global__ void __launch_bounds__(THREADS) sum_norms(const __grid_constant__ Views t) {
  const int side = int(blockIdx.x / t.tiles()), g = lane() / 4, q = lane() % 4;
  const View& view = t.view[side];
  const double* mean = t.mean + view.start;
  const int64_t row0 = int64_t(blockIdx.x % t.tiles()) * SAMPLES + threadIdx.x / WARP * 16;
  const T* from[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = row0 + g + 8 * half;
    from[half] = static_cast<const T*>(view.data) + (row < t.count ? row : t.count - 1) * view.row_stride;
  }
  double low[4] = {}, high[4] = {};
#pragma unroll 2
  for (int64_t k0 = 0; k0 < view.channels; k0 += 8) {
    double a[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int64_t k = k0 + 2 * q + r / 2;
      a[r] = k < view.channels ? double(widen(from[r % 2][k])) - mean[k] : 0;
    }
    const double first[2] = {a[0], a[2]}, second[2] = {a[1], a[3]};
    mma_f64_m16n8k8(low, a, first);
    mma_f64_m16n8k8(high, a, second);
  }
  if (q == g / 2) {  // has (g, g) and (g + 8, g + 8)
    double* to = t.norms + side * t.count + row0 + g;
    if (row0 + g < t.count) to[0] = g % 2 ? low[1] : low[0];
    if (row0 + g + 8 < t.count) to[8] = g % 2 ? high[3] : high[2];
  }
}

}  // namespace stitchkern::hsic
