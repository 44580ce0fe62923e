// Streaming moments on the GPU: the kernels. Raw pointers and sizes only; moments_cuda.cu decides what to launch.
//
// One batch is five launches, none of which waits for the host:
//
//   prepare   pilot mean, offset from the origin and (for bfloat16) scale of each feature; partial sums of the weights
//   gram      partial tiles of Σ w u uᵀ, u = z − s; the tiles on the diagonal also sum w u, which finds NaN and Inf
//   norms     (two-sided) partial sums of third and fourth order, float64
//   settle    adds up the first-order partials, in order; decides whether the batch is good
//   apply     adds up the tiles, in order; moves them to the origin; adds them to the state, if the batch is good
//
// What bounds gram: multiplication, from P = 256 on. On an H200 (2^20, 512) takes 1.4e11 multiply-adds on or above the
// diagonal: 5.1 ms of float64 tensor cores, 1.3 ms for three and 2.6 ms for six bfloat16 products at the full rate, of
// which mma.sync reaches perhaps 60 %. Reading takes 0.5 ms. So:
//
// - Tiles of 128 × 64 features, 8 warps of 32 × 32: the accumulators are 64 registers of a thread in float64, 96 as
//   pairs of float32, and nothing spills. At the float64 peak this asks 2.7 TB/s of the second-level cache. Tiles
//   across the diagonal waste 1.25× at P = 512; warps that lie wholly below it do not multiply.
// - One block of 8 warps to a multiprocessor, and half of them a phase apart: one warp of each scheduler multiplies
//   while the other converts. (Two blocks, at 128 registers, spill.)
// - Data goes global → registers → (widen, shift, scale, weigh) → shared, two stages, so that one kernel serves every
//   type and layout. 3072 conversions stand against 131072 multiply-adds of a slab, and 64 of 128 bytes a clock are
//   read from shared memory. Vectors of 16 bytes (8 for 16-bit types) are loaded where alignment allows, and stored as
//   [row][feature], swizzled so that neither direction of writing nor the fragments meet bank conflicts.
// - Row offsets and weights are worked out two slabs ahead by a few threads: no division in the way of a load.
// - bfloat16 products are summed in float32 inside the tensor cores, which truncate: a sum of squares loses about 2^-25
//   in each step. Every PROMOTE slabs the sums move into pairs of float32 (48 bits, two-sum), which on chips with slow
//   float64 costs a tenth of what float64 additions would.
//
// Expected, not measured, at (2^20, 512) on an H200: float64 6.5–8 ms, three products 3 ms, six 5.5 ms, one 2 ms (bound
// by the second-level cache: every element is read by five tiles).
#pragma once

#include "../common/device.h"
#include "moments_plan.h"

namespace stitchkern::moments {

using namespace stitchkern::device;

inline constexpr int THREADS = 256, WARPS = THREADS / WARP;

// Entries of the workspace's header
enum Header : int { FRESH, ROOT_UNSCALE, SUM_WEIGHT, SUM_WEIGHT_SQ, SUM_NORMS, FOUND_BAD_WEIGHT = SUM_NORMS + 3 };

// How the tiles read one side: which of channels and rows neighbour each other in memory, and whether vectors of them
// may be loaded.
struct Access {
  bool rows_inside, wide;
};

struct Task {
  Rows x, y, weight;  // weight.data may be null
  Access access_x, access_y;
  int64_t rows;
  State state;
  Plan plan;
  double* workspace;  // laid out by plan
  bool check_finite;

  SK_HOST_DEVICE int64_t p() const { return x.channels; }
  SK_HOST_DEVICE int64_t features() const { return x.channels + y.channels; }
};

// 32-bit divisions where they do: this runs for every row of every tile.
SK_DEVICE int64_t row_offset(const Rows& r, int64_t row) {
  if (r.size[0] == 1 && r.size[1] == 1) return row * r.stride[2];
  if (uint64_t(row | r.size[1] | r.size[2]) >> 32) return r.offset(row);
  const uint32_t outer = uint32_t(row) / uint32_t(r.size[2]), inner = uint32_t(row) - outer * uint32_t(r.size[2]);
  const uint32_t sample = outer / uint32_t(r.size[1]), middle = outer - sample * uint32_t(r.size[1]);
  return sample * r.stride[0] + middle * r.stride[1] + inner * r.stride[2];
}

SK_DEVICE double weight_at(const Rows& weight, int64_t row) {
  return weight.data ? static_cast<const double*>(weight.data)[row_offset(weight, row)] : 1.0;
}

// Not through <cmath>: its names differ between host and device.
SK_DEVICE bool finite(double v) { return v - v == 0; }
SK_DEVICE double magnitude(double v) { return v < 0 ? -v : v; }

// The power of two at or below |v|, kept where it and its inverse are float32 numbers; 1 for 0, NaN and Inf.
SK_DEVICE double power_of_two(double v) {
  const uint64_t exponent = bit_cast<uint64_t>(v) >> 52 & 0x7ff;
  if (v == 0 || exponent == 0x7ff) return 1;
  const uint64_t kept = exponent < 1023 - 126 ? 1023 - 126 : exponent > 1023 + 126 ? 1023 + 126 : exponent;
  return bit_cast<double>(kept << 52);
}

// ---------------------------------------------------------------------------------------------------- prepare

inline constexpr int PILOT_FEATURES = WARP;  // of one block: a warp of neighbours, 8 warps share the rows

struct PrepareShared {
  SharedArray<int64_t> offset{0, PILOT_ROWS};  // of the pilot rows
  SharedArray<double> weight{offset.end(), PILOT_ROWS};
  SharedArray<double> sums{weight.end(), 2 * WARPS * PILOT_FEATURES};
};

// Partial sums of the weights: block `chunk` takes every weight_chunks-th run of THREADS rows.
SK_DEVICE void sum_weights(const Task& t, int chunk) {
  constexpr PrepareShared shared;
  double sum = 0, square = 0, bad = 0;
  for (int64_t row = int64_t(chunk) * THREADS + threadIdx.x; row < t.rows; row += t.plan.weight_chunks * THREADS) {
    const double w = weight_at(t.weight, row);
    sum += w, square += w * w;
    if (!(w >= 0 && finite(w))) bad = 1;
  }
  sum = warp_sum(sum), square = warp_sum(square), bad = warp_sum(bad);

  double* warps = shared.sums.get();  // [3][WARPS]
  const int warp = int(threadIdx.x) / WARP;
  if (lane() == 0) warps[warp] = sum, warps[WARPS + warp] = square, warps[2 * WARPS + warp] = bad;
  __syncthreads();
  if (threadIdx.x < 3) {
    double total = 0;
    for (int i = 0; i < WARPS; ++i) total += warps[threadIdx.x * WARPS + i];
    t.workspace[t.plan.partial_weight + chunk * 3 + threadIdx.x] = total;
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS) prepare(const __grid_constant__ Task t) {
  constexpr PrepareShared shared;
  const int blocks_x = int((t.p() + PILOT_FEATURES - 1) / PILOT_FEATURES);
  const int blocks_y = int((t.y.channels + PILOT_FEATURES - 1) / PILOT_FEATURES);
  int block = int(blockIdx.x);
  if (block >= blocks_x + blocks_y) return sum_weights(t, block - blocks_x - blocks_y);

  // where the pilot rows are
  const bool of_x = block < blocks_x;
  const Rows& side = of_x ? t.x : t.y;
  const int count = int(t.rows < PILOT_ROWS ? t.rows : PILOT_ROWS);
  int64_t* offset = shared.offset.get();
  double* weight = shared.weight.get();
  if (int(threadIdx.x) < count) {
    const int64_t row = pilot_row(threadIdx.x, count, t.rows);
    offset[threadIdx.x] = row_offset(side, row);
    weight[threadIdx.x] = weight_at(t.weight, row);
  }
  __syncthreads();

  // mean over the rows with weight: a warp's share each, then the warps in order
  const int warp = int(threadIdx.x) / WARP, share = (count + WARPS - 1) / WARPS;
  const int begin = warp * share, end = begin + share < count ? begin + share : count;
  const int64_t channel = int64_t(of_x ? block : block - blocks_x) * PILOT_FEATURES + lane();
  const bool mine = channel < side.channels;
  const T* from = static_cast<const T*>(side.data) + (mine ? channel * side.channel_stride : 0);
  double sum = 0, used = 0;
  for (int i = begin; i < end; ++i)
    if (weight[i] > 0) sum += double(widen(from[offset[i]])), used += 1;
  double *sums = shared.sums.get(), *counts = sums + WARPS * PILOT_FEATURES;  // [WARPS][PILOT_FEATURES] each
  sums[warp * PILOT_FEATURES + lane()] = sum, counts[warp * PILOT_FEATURES + lane()] = used;
  __syncthreads();
  sum = used = 0;
  for (int i = 0; i < WARPS; ++i) sum += sums[i * PILOT_FEATURES + lane()], used += counts[i * PILOT_FEATURES + lane()];
  __syncthreads();
  const double mean = sum / (used > 0 ? used : 1), rounded = sizeof(T) == 8 ? mean : double(float(mean));
  const bool fresh = t.state.totals[WEIGHT] == 0;
  const int64_t feature = (of_x ? 0 : t.p()) + (mine ? channel : 0);
  const double fallback = fresh ? 0.0 : double(float(t.state.origin[feature]));  // no pilot row has weight, or bad data
  const double shift = used > 0 && finite(rounded) ? rounded : fallback;

  // the largest distance from it, for the range of float32
  double top = 0;
  for (int i = begin; i < end; ++i) {
    const double size = magnitude(double(widen(from[offset[i]])) - shift);
    if (weight[i] > 0 && size > top) top = size;
  }
  sums[warp * PILOT_FEATURES + lane()] = top;
  __syncthreads();

  const bool scaled = t.plan.kind >= Kind::bf16x1;
  if (warp == 0 && mine) {
    for (int i = 1; i < WARPS; ++i)
      top = sums[i * PILOT_FEATURES + lane()] > top ? sums[i * PILOT_FEATURES + lane()] : top;
    const double about = fresh ? shift : t.state.origin[feature];
    t.workspace[t.plan.shift + feature] = shift;
    t.workspace[t.plan.offset + feature] = shift - about;
    t.workspace[t.plan.about + feature] = about;
    t.workspace[t.plan.unscale + feature] = scaled ? power_of_two(top) : 1;
  }
  if (block == 0 && threadIdx.x == 0) {
    double largest = 0;
    for (int i = 0; i < count; ++i) largest = weight[i] > largest ? weight[i] : largest;
    t.workspace[t.plan.header + FRESH] = fresh;
    t.workspace[t.plan.header + ROOT_UNSCALE] = scaled && finite(largest) ? power_of_two(sqrt(largest)) : 1;
  }
}

// ---------------------------------------------------------------------------------------------------- gram: arithmetic
//
// A warp multiplies a 32 × 32 piece: 2 × 4 mma tiles of 16 × 8, rows at m0 of the tile's rows, columns at n0 of its
// columns. c[i][j][r] is element (m0 + 16 i + g + 8 (r / 2), n0 + 8 j + 2 t + r % 2), g = lane / 4, t = lane % 4.

inline constexpr int WARP_TILE = 32, WARPS_DOWN = TILE_ROWS / WARP_TILE, WARPS_ACROSS = TILE_COLUMNS / WARP_TILE;
static_assert(WARPS_DOWN * WARPS_ACROSS == WARPS);

// float64: tensor cores, or plain fused multiply-adds in the same places.
template <bool TENSOR_CORES>
struct DoubleMath {
  using Element = double;  // what u is computed in
  using Stored = double;
  static constexpr int SLAB = 16;  // rows in shared memory at once
  static constexpr bool SCALED = false;
  static constexpr int PROMOTE = 0;
  template <int F>
  static constexpr int STAGE = SLAB * (F + 4);  // numbers of one side of a slab

  // Row k starts 4 numbers (8 banks) further on than row k − 1, which spreads the fragments' 4 × 4 reads. The first
  // flip spreads writes down a column, the second those of 16 bytes in steps of 32.
  template <int F>
  static SK_DEVICE int at(int k, int f) {
    static_assert((F + 4) % 16 == 4 && SLAB == 16);
    return k * (F + 4) + (f ^ (k >> 2 & 3) << 2 ^ (f >> 4 & 1) << 1);
  }

  template <int F, int V>
  static SK_DEVICE void store_features(double* stage, int k, int f, const double (&u)[V]) {
    struct alignas(16) Pair {
      double v[2];
    };
#pragma unroll
    for (int v = 0; v < V; v += 2) *reinterpret_cast<Pair*>(stage + at<F>(k, f + v)) = Pair{{u[v], u[v + 1]}};
  }

  template <int F, int V>
  static SK_DEVICE void store_rows(double* stage, int k, int f, const double (&u)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v) stage[at<F>(k + v, f)] = u[v];
  }

  struct Sums {
    double c[2][4][4] = {};
    SK_DEVICE double value(int i, int j, int r) const { return c[i][j][r]; }
    SK_DEVICE void promote() {}
  };

  static SK_DEVICE void multiply(Sums& sums, const double* a, const double* b, int m0, int n0) {
    const int g = lane() / 4, t = lane() % 4;
    if constexpr (TENSOR_CORES) {
#pragma unroll
      for (int k = 0; k < SLAB; k += 8) {
        double av[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int r = 0; r < 4; ++r) av[i][r] = a[at<TILE_ROWS>(k + t + 4 * (r / 2), m0 + 16 * i + g + 8 * (r % 2))];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          double bv[2];
#pragma unroll
          for (int r = 0; r < 2; ++r) bv[r] = b[at<TILE_COLUMNS>(k + t + 4 * r, n0 + 8 * j + g)];
#pragma unroll
          for (int i = 0; i < 2; ++i) mma_f64_m16n8k8(sums.c[i][j], av[i], bv);
        }
      }
    } else {
      for (int k = 0; k < SLAB; ++k) {
        double av[2][2];
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int h = 0; h < 2; ++h) av[i][h] = a[at<TILE_ROWS>(k, m0 + 16 * i + g + 8 * h)];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const double bv = b[at<TILE_COLUMNS>(k, n0 + 8 * j + 2 * t + h)];
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
              for (int r = 0; r < 2; ++r) sums.c[i][j][2 * r + h] += av[i][r] * bv;
          }
        }
      }
    }
  }
};

// bfloat16 parts of float32: u = hi + lo (to 2^-16) or hi + mid + lo (exact); the smallest products of parts are
// dropped.
template <int PRODUCTS>
struct SplitMath {
  static_assert(PRODUCTS == 1 || PRODUCTS == 3 || PRODUCTS == 6);
  using Element = float;
  using Stored = BFloat16;
  static constexpr int SLAB = 32;
  static constexpr bool SCALED = true;
  static constexpr int PARTS = PRODUCTS == 1 ? 1 : PRODUCTS == 3 ? 2 : 3;
  static constexpr int PROMOTE = PRODUCTS == 1 ? 16 : PRODUCTS == 3 ? 8 : 2;  // slabs: 512, 256, 64 rows
  template <int F>
  static constexpr int PART = SLAB * (F + 8);
  template <int F>
  static constexpr int STAGE = PARTS * PART<F>;

  // Row k starts 4 banks further on than row k − 1: ldmatrix reads 8 rows without conflict. The flip of 8-feature
  // chunks spreads writes down a column.
  template <int F>
  static SK_DEVICE int at(int k, int f) {
    static_assert((F + 8) % 64 == 8 && SLAB == 32);
    return k * (F + 8) + (f ^ (k >> 3 & 3) << 3);
  }

  // words[part][i] holds numbers 2 i and 2 i + 1
  template <int V>
  static SK_DEVICE void split(const float (&u)[V], uint32_t (&words)[PARTS][V / 2]) {
#pragma unroll
    for (int i = 0; i < V / 2; ++i) {
      float low = u[2 * i], high = u[2 * i + 1];
#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
        const uint32_t word = pack_bf16(low, high);
        words[part][i] = word;
        low -= bit_cast<float>(word << 16), high -= bit_cast<float>(word & 0xffff0000u);
      }
    }
  }

  template <int F, int V>
  static SK_DEVICE void store_features(BFloat16* stage, int k, int f, const float (&u)[V]) {
    static_assert(V == 4);
    struct alignas(8) Four {
      uint32_t v[2];
    };
    uint32_t words[PARTS][V / 2];
    split(u, words);
#pragma unroll
    for (int part = 0; part < PARTS; ++part)
      *reinterpret_cast<Four*>(stage + part * PART<F> + at<F>(k, f)) = Four{{words[part][0], words[part][1]}};
  }

  template <int F, int V>
  static SK_DEVICE void store_rows(BFloat16* stage, int k, int f, const float (&u)[V]) {
    uint32_t words[PARTS][V / 2];
    split(u, words);
#pragma unroll
    for (int part = 0; part < PARTS; ++part)
#pragma unroll
      for (int v = 0; v < V; ++v)
        stage[part * PART<F> + at<F>(k + v, f)] = BFloat16{uint16_t(words[part][v / 2] >> 16 * (v % 2))};
  }

  // c: the tensor cores' sums since the last promotion; high + low: those before, as a pair of float32.
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

  static SK_DEVICE void multiply(Sums& sums, const BFloat16* a, const BFloat16* b, int m0, int n0) {
    // the row that this lane gives to ldmatrix: matrices along k (lanes 8 and up, or 16 and up) and along features
    const int l = lane(), row = l % 8;
    const int k_a = row + l / 16 * 8, m_a = m0 + l / 8 % 2 * 8;
    const int k_b = row + l / 8 % 2 * 8, n_b = n0 + l / 16 * 8;
#pragma unroll
    for (int k = 0; k < SLAB; k += 16) {
      // fragments of all parts
      uint32_t av[PARTS][2][4], bv[PARTS][4][2];
#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          ldmatrix_x4_trans(av[part][i], a + part * PART<TILE_ROWS> + at<TILE_ROWS>(k + k_a, m_a + 16 * i));
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
          uint32_t both[4];
          ldmatrix_x4_trans(both, b + part * PART<TILE_COLUMNS> + at<TILE_COLUMNS>(k + k_b, n_b + 8 * j));
          bv[part][j][0] = both[0], bv[part][j][1] = both[1], bv[part][j + 1][0] = both[2],
          bv[part][j + 1][1] = both[3];
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
            for (int j = 0; j < 4; ++j) mma_bf16_m16n8k16(sums.c[i][j], av[part][i], bv[order - part][j]);
    }
  }
};

// ---------------------------------------------------------------------------------------------------- gram: data

inline constexpr int FIRST_SUMS = 4;  // of one thread: the vectors of a piece, or the numbers of a vector

// What one thread brings of one side of a slab: N vectors of V numbers, along features or along rows.
template <class T, int F, int SLAB>
struct Piece {
  static constexpr int V = sizeof(T) == 8 ? 2 : 4;
  static constexpr int N = F * SLAB / V / THREADS;
  static_assert(N * V * THREADS == F * SLAB && THREADS % (F / V) == 0 && F % V == 0 && SLAB % V == 0);
  struct alignas(V * sizeof(T)) Vector {
    T v[V];
  };
  Vector part[N];

  static SK_DEVICE int feature(bool rows_inside, int n) {
    const int i = int(threadIdx.x) + n * THREADS;
    return rows_inside ? i / (SLAB / V) : i % (F / V) * V;
  }
  static SK_DEVICE int row(bool rows_inside, int n) {
    const int i = int(threadIdx.x) + n * THREADS;
    return rows_inside ? i % (SLAB / V) * V : i / (F / V);
  }

  // Global → registers. `data` is the tile's first feature, of which there are `channels`; `offset` [SLAB] of the rows,
  // −1 past the end. Wide vectors of rows never cross a sample or the end: the launcher saw to it.
  SK_DEVICE void load(const T* data, int64_t channel_stride, int channels, Access access, const int64_t* offset) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      part[n] = Vector{};
      const int f = feature(access.rows_inside, n), k = row(access.rows_inside, n);
      if (f >= channels) continue;
      const T* from = data + f * channel_stride;
      if (access.rows_inside) {
        if (access.wide) {
          if (offset[k] >= 0) part[n] = *reinterpret_cast<const Vector*>(from + offset[k]);
        } else {
#pragma unroll
          for (int v = 0; v < V; ++v)
            if (offset[k + v] >= 0) part[n].v[v] = from[offset[k + v]];
        }
      } else if (offset[k] >= 0) {
        from += offset[k];
        if (access.wide && f + V <= channels) {
          part[n] = *reinterpret_cast<const Vector*>(from);
        } else {
#pragma unroll
          for (int v = 0; v < V; ++v)
            if (f + v < channels) part[n].v[v] = from[v * channel_stride];
        }
      }
    }
  }

  // Registers → shared: u = √w (z − s), scaled. A row of weight zero counts as zeros, whatever it holds. Where SUM, w u
  // is added to this thread's `first` [FIRST_SUMS][THREADS], by vector (along rows) or by number within it.
  template <class Math, bool SUM, bool ROWS_INSIDE>
  SK_DEVICE void store(typename Math::Stored* stage, const typename Math::Element* shift,
                       const typename Math::Element* scale, const typename Math::Element* root, double* first) const {
    using Element = typename Math::Element;
    static_assert(FIRST_SUMS >= N && FIRST_SUMS >= V);
    constexpr int S = ROWS_INSIDE ? N : V;
    Element sums[S] = {};
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int f = feature(ROWS_INSIDE, n), k = row(ROWS_INSIDE, n);
      Element u[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int fv = ROWS_INSIDE ? f : f + v;
        const Element r = root[ROWS_INSIDE ? k + v : k];
        Element e = Element(widen(part[n].v[v])) - shift[fv];
        if constexpr (Math::SCALED) e *= scale[fv];
        u[v] = r != 0 ? e * r : Element(0);
        if constexpr (SUM) sums[ROWS_INSIDE ? n : v] += u[v] * r;
      }
      if constexpr (ROWS_INSIDE)
        Math::template store_rows<F, V>(stage, k, f, u);
      else
        Math::template store_features<F, V>(stage, k, f, u);
    }
    if constexpr (SUM)
#pragma unroll
      for (int i = 0; i < S; ++i) first[i * THREADS] += double(sums[i]);
  }
};

template <class Math>
struct GramShared {
  using Stored = typename Math::Stored;
  using Element = typename Math::Element;
  SharedArray<Stored> a{0, 2 * Math::template STAGE<TILE_ROWS>};  // [2 stages][parts][SLAB][TILE_ROWS + padding]
  SharedArray<Stored> b{a.end(), 2 * Math::template STAGE<TILE_COLUMNS>};  // likewise
  SharedArray<Element> root{b.end(), 3 * Math::SLAB};                      // [3][SLAB]: √w, 0 past the end
  SharedArray<int64_t> offset_a{root.end(), 3 * Math::SLAB};               // [3][SLAB]: of the rows, −1 past the end
  SharedArray<int64_t> offset_b{offset_a.end(), 3 * Math::SLAB};
  SharedArray<Element> shift{offset_b.end(), TILE_ROWS + TILE_COLUMNS};
  SharedArray<Element> scale{shift.end(), TILE_ROWS + TILE_COLUMNS};
  SharedArray<double> first{scale.end(), THREADS * FIRST_SUMS};  // [FIRST_SUMS][THREADS]
};

// The features of a tile: `start` counts in z.
struct TileSide {
  bool of_x;
  int64_t channel, start;
  int channels;  // at most the tile's; the rest is zero

  SK_DEVICE TileSide(const Task& t, int tile, int tiles_x, int width) {
    of_x = tile < tiles_x;
    channel = int64_t(of_x ? tile : tile - tiles_x) * width;
    start = of_x ? channel : t.p() + channel;
    const int64_t left = (of_x ? t.p() : t.y.channels) - channel;
    channels = int(left < width ? left : width);
  }
};

template <class Math, class T>
__global__ void __launch_bounds__(THREADS, 1) gram(const __grid_constant__ Task t) {
  using Element = typename Math::Element;
  constexpr GramShared<Math> shared;
  constexpr int SLAB = Math::SLAB;
  constexpr int STAGE_A = Math::template STAGE<TILE_ROWS>, STAGE_B = Math::template STAGE<TILE_COLUMNS>;
  static_assert(SPLIT_ALIGNMENT % SLAB == 0 && 3 * SLAB <= THREADS);
  using PieceA = Piece<T, TILE_ROWS, SLAB>;
  using PieceB = Piece<T, TILE_COLUMNS, SLAB>;

  // which tile, which rows: neighbouring blocks share rows, so that these come from the cache
  const int thread = int(threadIdx.x), warp = thread / WARP;
  const int64_t split = blockIdx.x / t.plan.pairs, pair = blockIdx.x % t.plan.pairs;
  int tile_row, tile_column;
  t.plan.tiles.locate(int(pair), tile_row, tile_column);
  const TileSide side_a(t, tile_row, t.plan.tiles.rows_x, TILE_ROWS),
      side_b(t, tile_column, t.plan.tiles.columns_x, TILE_COLUMNS);
  const bool owner = tile_column == t.plan.tiles.first_column(tile_row);  // of the first sums of its rows' features
  const int64_t row_begin = split * t.plan.split_rows;
  const int64_t row_end = row_begin + t.plan.split_rows < t.rows ? row_begin + t.plan.split_rows : t.rows;
  const int slabs = int((row_end - row_begin + SLAB - 1) / SLAB);

  // shared memory
  typename Math::Stored *stage_a = shared.a.get(), *stage_b = shared.b.get();
  Element *root = shared.root.get(), *shift = shared.shift.get(), *scale = shared.scale.get();
  int64_t *offset_a = shared.offset_a.get(), *offset_b = shared.offset_b.get();
  double* first = shared.first.get();
  for (int i = thread; i < TILE_ROWS + TILE_COLUMNS; i += THREADS) {
    const bool in_a = i < TILE_ROWS;
    const int f = in_a ? i : i - TILE_ROWS;
    const bool inside = f < (in_a ? side_a.channels : side_b.channels);
    const int64_t feature = (in_a ? side_a.start : side_b.start) + f;
    shift[i] = inside ? Element(t.workspace[t.plan.shift + feature]) : Element(0);
    scale[i] = inside ? Element(1 / t.workspace[t.plan.unscale + feature]) : Element(1);
  }
#pragma unroll
  for (int i = 0; i < FIRST_SUMS; ++i) first[i * THREADS + thread] = 0;
  const double root_scale = 1 / t.workspace[t.plan.header + ROOT_UNSCALE];

  // offsets and weights of a slab, into one of three slots
  const Rows &rows_a = side_a.of_x ? t.x : t.y, &rows_b = side_b.of_x ? t.x : t.y;
  const auto look_ahead = [&](int slab, int slot) {
    const int k = thread % SLAB, at = slot * SLAB + k;
    const int64_t row = row_begin + int64_t(slab) * SLAB + k;
    const bool inside = row < row_end;
    if (thread < SLAB)
      offset_a[at] = inside ? row_offset(rows_a, row) : -1;
    else if (thread < 2 * SLAB)
      offset_b[at] = inside ? row_offset(rows_b, row) : -1;
    else if (thread < 3 * SLAB)
      root[at] = inside ? Element(sqrt(weight_at(t.weight, row)) * root_scale) : Element(0);
  };

  // data
  const Access access_a = side_a.of_x ? t.access_x : t.access_y, access_b = side_b.of_x ? t.access_x : t.access_y;
  const int64_t stride_a = rows_a.channel_stride, stride_b = rows_b.channel_stride;
  const T* data_a = static_cast<const T*>(rows_a.data) + side_a.channel * stride_a;
  const T* data_b = static_cast<const T*>(rows_b.data) + side_b.channel * stride_b;
  PieceA piece_a;
  PieceB piece_b;
  const auto load = [&](int slot) {
    piece_a.load(data_a, stride_a, side_a.channels, access_a, offset_a + slot * SLAB);
    piece_b.load(data_b, stride_b, side_b.channels, access_b, offset_b + slot * SLAB);
  };
  const auto store = [&](int slot, int stage) {
    typename Math::Stored *to_a = stage_a + stage * STAGE_A, *to_b = stage_b + stage * STAGE_B;
    const Element* r = root + slot * SLAB;
    if (access_a.rows_inside) {
      if (owner)
        piece_a.template store<Math, true, true>(to_a, shift, scale, r, first + thread);
      else
        piece_a.template store<Math, false, true>(to_a, shift, scale, r, first + thread);
    } else {
      if (owner)
        piece_a.template store<Math, true, false>(to_a, shift, scale, r, first + thread);
      else
        piece_a.template store<Math, false, false>(to_a, shift, scale, r, first + thread);
    }
    if (access_b.rows_inside)
      piece_b.template store<Math, false, true>(to_b, shift + TILE_ROWS, scale + TILE_ROWS, r, nullptr);
    else
      piece_b.template store<Math, false, false>(to_b, shift + TILE_ROWS, scale + TILE_ROWS, r, nullptr);
  };

  // a warp has work where its piece reaches above the diagonal and holds features
  const int m0 = warp / WARPS_ACROSS * WARP_TILE, n0 = warp % WARPS_ACROSS * WARP_TILE;
  const bool works = side_a.start + m0 < side_b.start + n0 + WARP_TILE && m0 < side_a.channels && n0 < side_b.channels;
  typename Math::Sums products;

  // Multiply a slab, bring the next one to shared memory and the one after to registers, look one further ahead; the
  // first two rounds only fill the pipeline. Of the two warps of a scheduler one multiplies first and one last, so that
  // the tensor cores do not wait for conversions.
  const bool early = warp < WARPS / 2;
  look_ahead(0, 0);
  __syncthreads();
  for (int slab = -2, slot = 1; slab < slabs; ++slab) {
    const int next = slot == 2 ? 0 : slot + 1, after = next == 2 ? 0 : next + 1;
    const auto bring = [&] {
      if (slab >= -1 && slab + 1 < slabs) store(next, (slab + 1) & 1);
      if (slab + 2 < slabs) load(after);
    };
    if (early) bring();
    if (works && slab >= 0) {
      Math::multiply(products, stage_a + (slab & 1) * STAGE_A, stage_b + (slab & 1) * STAGE_B, m0, n0);
      if constexpr (Math::PROMOTE > 0)
        if (slab % Math::PROMOTE == Math::PROMOTE - 1) products.promote();
    }
    if (!early) bring();
    look_ahead(slab + 3, slot);
    slot = next;
    __syncthreads();
  }
  products.promote();

  // the tile
  if (works) {
    struct alignas(16) Pair {
      double v[2];
    };
    double* tile =
        t.workspace + t.plan.partial_second + (pair * t.plan.splits + split) * TILE;  // [TILE_ROWS][TILE_COLUMNS]
    const int g = lane() / 4, c = n0 + 2 * (lane() % 4);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          *reinterpret_cast<Pair*>(tile + (m0 + 16 * i + g + 8 * half) * TILE_COLUMNS + c + 8 * j) =
              Pair{{products.value(i, j, 2 * half), products.value(i, j, 2 * half + 1)}};
  }

  // the first sums: those threads that share a feature, in order
  if (owner && thread < TILE_ROWS) {
    constexpr int V = PieceA::V, ROW_THREADS = SLAB / V, FEATURE_THREADS = TILE_ROWS / V;
    constexpr int FEATURES_AT_ONCE = THREADS / ROW_THREADS;
    double total = 0;
    if (access_a.rows_inside) {
      const double* from = first + thread / FEATURES_AT_ONCE * THREADS + thread % FEATURES_AT_ONCE * ROW_THREADS;
      for (int i = 0; i < ROW_THREADS; ++i) total += from[i];
    } else {
      for (int i = thread / V; i < THREADS; i += FEATURE_THREADS) total += first[thread % V * THREADS + i];
    }
    t.workspace[t.plan.partial_first + (tile_row * t.plan.splits + split) * TILE_ROWS + thread] = total;
  }
}

// ---------------------------------------------------------------------------------------------------- norms

inline constexpr int NORM_FEATURES = 64;  // of one step

struct NormsShared {
  SharedArray<double> z{0, NORM_ROWS * (NORM_FEATURES + 1)};  // [NORM_ROWS][NORM_FEATURES + 1]: z − origin
  SharedArray<int64_t> offset{z.end(), 2 * NORM_ROWS};        // [x, y][NORM_ROWS], −1: no row, or weight zero
  SharedArray<double> weight{offset.end(), NORM_ROWS};
  SharedArray<double> square{weight.end(), 2 * NORM_ROWS};  // [a, b][NORM_ROWS]
  SharedArray<double> third{square.end(), 2 * THREADS};     // [2][THREADS]
};

// Groups of NORM_ROWS rows: once through their features for a = ‖x‖² and b = ‖y‖², once more (from the cache) for Σ w a
// z, Σ w b z.
template <class T>
__global__ void __launch_bounds__(THREADS, 3) norms(const __grid_constant__ Task t) {
  constexpr NormsShared shared;
  double *z = shared.z.get(), *weight = shared.weight.get(), *square = shared.square.get(), *third = shared.third.get();
  int64_t* offset = shared.offset.get();
  const int thread = int(threadIdx.x);
  const int64_t row_begin = int64_t(blockIdx.x) * t.plan.norm_chunk_rows;
  const int64_t row_end = row_begin + t.plan.norm_chunk_rows < t.rows ? row_begin + t.plan.norm_chunk_rows : t.rows;
  double* partial = t.workspace + t.plan.partial_third + int64_t(blockIdx.x) * 2 * t.features();  // [2, P]

  // NORM_ROWS × NORM_FEATURES of one side, about the origin, into z
  const auto load = [&](int side, int64_t channel0) {
    const Rows& rows = side ? t.y : t.x;
    const bool rows_inside = side ? t.access_y.rows_inside : t.access_x.rows_inside;
    for (int i = thread; i < NORM_ROWS * NORM_FEATURES; i += THREADS) {
      const int k = rows_inside ? i % NORM_ROWS : i / NORM_FEATURES,
                f = rows_inside ? i / NORM_ROWS : i % NORM_FEATURES;
      const int64_t channel = channel0 + f, start = offset[side * NORM_ROWS + k];
      double v = 0;
      if (channel < rows.channels && start >= 0)
        v = double(widen(static_cast<const T*>(rows.data)[start + channel * rows.channel_stride])) -
            t.workspace[t.plan.about + (side ? t.p() : 0) + channel];
      z[k * (NORM_FEATURES + 1) + f] = v;
    }
  };

  double norm[3] = {0, 0, 0};
  for (int64_t row0 = row_begin; row0 < row_end; row0 += NORM_ROWS) {
    // where the rows are
    if (thread < 2 * NORM_ROWS) {
      const int64_t row = row0 + thread % NORM_ROWS;
      const double w = row < row_end ? weight_at(t.weight, row) : 0;
      offset[thread] = w != 0 ? row_offset(thread < NORM_ROWS ? t.x : t.y, row) : -1;
      if (thread < NORM_ROWS) weight[thread] = w;
    }
    __syncthreads();

    // a and b: eight threads to a row
    constexpr int TEAM = THREADS / NORM_ROWS;
    const int k = thread / TEAM;
    for (int side = 0; side < 2; ++side) {
      double sum = 0;
      for (int64_t channel = 0; channel < (side ? t.y : t.x).channels; channel += NORM_FEATURES) {
        load(side, channel);
        __syncthreads();
        for (int f = thread % TEAM; f < NORM_FEATURES; f += TEAM) {
          const double v = z[k * (NORM_FEATURES + 1) + f];
          sum += v * v;
        }
        __syncthreads();
      }
      sum = warp_sum(sum, TEAM);
      if (thread % TEAM == 0) square[side * NORM_ROWS + k] = sum;
    }
    __syncthreads();
    if (thread == 0) {
      for (int i = 0; i < NORM_ROWS; ++i) {
        const double w = weight[i], a = square[i], b = square[NORM_ROWS + i];
        norm[0] += w * a * a, norm[1] += w * a * b, norm[2] += w * b * b;
      }
    }

    // Σ w a z and Σ w b z: four threads to a feature
    for (int side = 0; side < 2; ++side) {
      for (int64_t channel = 0; channel < (side ? t.y : t.x).channels; channel += NORM_FEATURES) {
        load(side, channel);
        __syncthreads();
        const int f = thread % NORM_FEATURES;
        double along_a = 0, along_b = 0;
        for (int i = thread / NORM_FEATURES; i < NORM_ROWS; i += THREADS / NORM_FEATURES) {
          const double wz = weight[i] * z[i * (NORM_FEATURES + 1) + f];
          along_a += square[i] * wz, along_b += square[NORM_ROWS + i] * wz;
        }
        third[thread] = along_a, third[THREADS + thread] = along_b;
        __syncthreads();
        if (thread < 2 * NORM_FEATURES && channel + f < (side ? t.y : t.x).channels) {
          const int which = thread / NORM_FEATURES;
          double total = 0;
          for (int i = f; i < THREADS; i += NORM_FEATURES) total += third[which * THREADS + i];
          double& to = partial[which * t.features() + (side ? t.p() : 0) + channel + f];
          to = row0 == row_begin ? total : to + total;
        }
      }
    }
    __syncthreads();
  }
  if (thread == 0)
    for (int i = 0; i < 3; ++i) t.workspace[t.plan.partial_norms + 3 * int64_t(blockIdx.x) + i] = norm[i];
}

// ---------------------------------------------------------------------------------------------------- settle, apply

struct FoundShared {
  SharedArray<int> found{0, 2 * WARPS};  // [2][WARPS]
};

// Whether any thread of the block has each of two flags; every thread gets it.
SK_DEVICE void any_of_block(bool (&flags)[2]) {
  constexpr FoundShared shared;
  int* found = shared.found.get();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int count = warp_sum(int(flags[i]));
    if (lane() == 0) found[i * WARPS + int(threadIdx.x) / WARP] = count;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    flags[i] = false;
    for (int warp = 0; warp < WARPS; ++warp) flags[i] |= found[i * WARPS + warp] != 0;
  }
}

// Sum of `count` numbers `stride` apart, by one warp; every lane gets it.
SK_DEVICE double warp_total(const double* from, int64_t count, int64_t stride) {
  double sum = 0;
  for (int64_t i = lane(); i < count; i += WARP) sum += from[i * stride];
  return warp_sum(sum);
}

// One thread to a feature: its first sum over the splits. Block 0 also settles the weights and the norms.
static __global__ void __launch_bounds__(THREADS) settle(const __grid_constant__ Task t) {
  double *workspace = t.workspace, *header = workspace + t.plan.header;
  const int thread = int(threadIdx.x);

  bool bad[2] = {false, false};
  const int64_t feature = int64_t(blockIdx.x) * THREADS + thread;
  if (feature < t.features()) {
    const bool of_x = feature < t.p();
    const int64_t channel = of_x ? feature : feature - t.p();
    const int64_t tile = channel / TILE_ROWS + (of_x ? 0 : t.plan.tiles.rows_x);
    const double* from = workspace + t.plan.partial_first + tile * t.plan.splits * TILE_ROWS + channel % TILE_ROWS;
    double sum = 0;
    for (int64_t split = 0; split < t.plan.splits; ++split) sum += from[split * TILE_ROWS];
    const double root = header[ROOT_UNSCALE];
    workspace[t.plan.first + feature] = sum * workspace[t.plan.unscale + feature] * root * root;
    bad[0] = of_x && !finite(sum), bad[1] = !of_x && !finite(sum);
  }
  any_of_block(bad);
  if (thread < 2) workspace[t.plan.bad + 2 * int64_t(blockIdx.x) + thread] = thread == 0 ? bad[0] : bad[1];

  if (blockIdx.x == 0 && thread < WARP) {
    double sums[3] = {double(t.rows), double(t.rows), 0};
    if (t.plan.weight_chunks)
      for (int i = 0; i < 3; ++i) sums[i] = warp_total(workspace + t.plan.partial_weight + i, t.plan.weight_chunks, 3);
    double norm[3] = {0, 0, 0};
    if (t.plan.norm_chunks)
      for (int i = 0; i < 3; ++i) norm[i] = warp_total(workspace + t.plan.partial_norms + i, t.plan.norm_chunks, 3);
    if (thread == 0) {
      header[SUM_WEIGHT] = sums[0], header[SUM_WEIGHT_SQ] = sums[1], header[FOUND_BAD_WEIGHT] = sums[2];
      for (int i = 0; i < 3; ++i) header[SUM_NORMS + i] = norm[i];
    }
  }
}

inline constexpr int PIECES = 8, PIECE_SIZE = TILE / PIECES;  // blocks to a tile in apply

// Blocks of one piece of a tile each, then blocks of THREADS features each.
static __global__ void __launch_bounds__(THREADS) apply(const __grid_constant__ Task t) {
  const double *workspace = t.workspace, *header = workspace + t.plan.header;
  const double *f = workspace + t.plan.first, *d = workspace + t.plan.offset;  // [P]
  const double weight = header[SUM_WEIGHT];
  const int thread = int(threadIdx.x);

  // is the batch good? what is wrong with a weight is not blamed on the data
  bool bad[2] = {false, false};
  const bool bad_weight = header[FOUND_BAD_WEIGHT] != 0;
  const int64_t blocks = (t.features() + THREADS - 1) / THREADS;
  for (int64_t i = thread; i < blocks; i += THREADS) {
    bad[0] |= workspace[t.plan.bad + 2 * i] != 0;
    bad[1] |= workspace[t.plan.bad + 2 * i + 1] != 0;
  }
  any_of_block(bad);
  const bool bad_x = !bad_weight && bad[0], bad_y = !bad_weight && bad[1];
  const bool good = !t.check_finite || !(bad_weight || bad_x || bad_y);

  const int64_t block = blockIdx.x, tiles_end = t.plan.pairs * PIECES;
  if (block < tiles_end) {
    if (!good) return;
    const int64_t pair = block / PIECES;
    int tile_row, tile_column;
    t.plan.tiles.locate(int(pair), tile_row, tile_column);
    const TileSide rows(t, tile_row, t.plan.tiles.rows_x, TILE_ROWS),
        columns(t, tile_column, t.plan.tiles.columns_x, TILE_COLUMNS);
    const double *unscale = workspace + t.plan.unscale, root = header[ROOT_UNSCALE];
    for (int i = thread; i < PIECE_SIZE; i += THREADS) {
      const int element = int(block % PIECES) * PIECE_SIZE + i, r = element / TILE_COLUMNS, c = element % TILE_COLUMNS;
      const int64_t row = rows.start + r, column = columns.start + c;
      if (r >= rows.channels || c >= columns.channels || row > column) continue;
      const double* from = workspace + t.plan.partial_second + pair * t.plan.splits * TILE + element;
      double sum = 0;
#pragma unroll 4
      for (int64_t split = 0; split < t.plan.splits; ++split) sum += from[split * TILE];
      sum *= unscale[row] * unscale[column] * (root * root);
      t.state.second[row * t.features() + column] +=
          sum + f[row] * d[column] + d[row] * (f[column] + weight * d[column]);
    }
    return;
  }

  const int64_t feature = (block - tiles_end) * THREADS + thread;
  if (good && feature < t.features()) {
    t.state.first[feature] += f[feature] + weight * d[feature];
    t.state.origin[feature] = workspace[t.plan.about + feature];
    if (t.state.third) {
      for (int side = 0; side < 2; ++side) {
        const double* from = workspace + t.plan.partial_third + side * t.features() + feature;
        double sum = 0;
#pragma unroll 4
        for (int64_t chunk = 0; chunk < t.plan.norm_chunks; ++chunk) sum += from[chunk * 2 * t.features()];
        t.state.third[side * t.features() + feature] += sum;
      }
    }
  }
  if (feature == 0) {
    double* totals = t.state.totals;
    if (good) {
      totals[ROWS] += double(t.rows), totals[WEIGHT] += weight, totals[WEIGHT_SQ] += header[SUM_WEIGHT_SQ];
      for (int i = 0; i < 3; ++i) totals[NORM_XX + i] += header[SUM_NORMS + i];
    } else {
      totals[BAD_X] += bad_x, totals[BAD_Y] += bad_y, totals[BAD_WEIGHT] += bad_weight;
    }
  }
}

}  // namespace stitchkern::moments
