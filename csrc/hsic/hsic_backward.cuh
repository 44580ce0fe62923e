// The derivative of the kernel sums on the GPU: the kernels. Raw pointers and sizes only; hsic_cuda.cu plans.
//
// With r, d, S the gradients of row sums, diagonals and products, G = S + Sᵀ, and W^a_ik = (r^a_i + r^a_k) / 2 + Σ_c
// G_ac K^c_ik for i ≠ k, the loss moves by Σ W^a_ik dK^a_ik + Σ d^a_i dK^a_ii. So for every side there is a symmetric
// M, summed over the bandwidths, and a product with the centred features c:
//
//   linear    M = W, d on the diagonal            gradient of c_i: 2 Σ_k M_ik c_k; that of x is it less its mean
//   rbf       M = W exp(−|c_i − c_k|²/(2σ²)) / σ²                  2 (Σ_k M_ik c_k − c_i Σ_k M_ik)
//   laplace   M = W exp(−|c_i − c_k|/σ) / (σ |c_i − c_k|)          likewise; 0 where the distance is 0
//
// Rows of tiles go in bands. weigh_tiles makes M of a band for all sides, [side][row][column], from all tiles of the
// band, with the tiles of hsic_tile.cuh; multiply_features is one matrix product for each side, tile of rows and 64
// features over all columns. A number of the result is made by one thread: no atomics, and no order that depends on
// timing. Float64 throughout. Twice the products of the sums (no symmetry is used), and as many multiplications again
// for the features: four times the work.
#pragma once

#include "hsic_tile.cuh"

namespace stitchkern::hsic {

inline constexpr int FEATURES = 64;      // of a block of multiply_features
inline constexpr int SIDES_AT_ONCE = 4;  // in weigh_tiles

struct BackwardTask {
  Views views;
  const double* grad_rows;      // [s, b, n]
  const double* grad_diagonal;  // [s, b, n]
  const double* grad_sums;      // [b, s, s]
  double* plane_memory;         // [blocks, planes, PAIRS]: K, then 1 / distance of the Laplace sides
  double* weights;              // M, [sides, band rows, columns]
  double* gradient[MAX_SIDES];  // [n, channels] each, out
  int64_t columns;              // n, up to whole tiles
  int planes;                   // with those of distances
  int first_tile, tiles;        // of the band
  int blocks;                   // of weigh_tiles
  bool add;                     // to M of earlier bandwidths

  SK_HOST_DEVICE double* weights_of(int a) const { return weights + int64_t(a) * tiles * SAMPLES * columns; }
};

template <class Math>
struct WeighShared {
  SharedArray<typename Math::Stored> stages{0, 2 * Math::STAGE};
  SharedArray<int64_t> samples{stages.end(), 2 * SAMPLES};
};

template <class T>
__global__ void __launch_bounds__(THREADS, 2) weigh_tiles(const __grid_constant__ BackwardTask task) {
  using Math = DoubleMath;
  constexpr WeighShared<Math> shared;
  const Views& t = task.views;
  const int thread = int(threadIdx.x), sides = t.sides;
  const int64_t n = t.count;
  double* stages = shared.stages.get();
  int64_t* samples = shared.samples.get();
  double* plane = task.plane_memory + int64_t(blockIdx.x) * task.planes * PAIRS + thread;

  for (int tile = int(blockIdx.x); tile < task.tiles * t.tiles(); tile += task.blocks) {
    const int64_t row0 = int64_t(task.first_tile + tile / t.tiles()) * SAMPLES;
    const int64_t column0 = int64_t(tile % t.tiles()) * SAMPLES;
    const Extent extent(row0, column0, n, false);

    // K of all sides and bandwidths
    __syncthreads();
    multiply_sides<Math, T>(t, row0, column0, samples, stages, true, [&](int a, Products& v) {
      const Kernel kernel = t.view[a].kernel;
      values_of(v, kernel, t.norms + a * n, extent);
      const auto each = [&](double* to, auto number) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int c = 0; c < 4; ++c)
#pragma unroll
            for (int r = 0; r < 4; ++r) to[(i * 16 + c * 4 + r) * THREADS] = number(v[i][c][r]);
      };
      for (int j = 0; j < t.bandwidths; ++j) {
        const double scale = scale_of(kernel, t.bandwidth[t.at(a, j)]), shift = t.shift[t.at(a, j)];
        double* to = plane + int64_t(j * sides + a) * PAIRS;
        if (kernel == Kernel::linear)
          each(to, [&](double value) { return value - shift; });
        else
          each(to, [&](double value) { return exp_minus(value * scale, shift); });
      }
      if (kernel == Kernel::laplace)
        each(plane + int64_t(t.view[a].extra) * PAIRS, [](double value) { return value == 0 ? 0 : -1 / value; });
    });

    // M of four sides and the four pairs of one mma tile at a time
#pragma unroll 1
    for (int first = 0; first < sides; first += SIDES_AT_ONCE) {
#pragma unroll 1
      for (int q = 0; q < THREAD_PAIRS / 4; ++q) {
        const int i = q / 4, c = q % 4;
        double m[SIDES_AT_ONCE][4] = {};
#pragma unroll 1
        for (int j = 0; j < t.bandwidths; ++j) {
          double w[SIDES_AT_ONCE][4] = {};
#pragma unroll 1
          for (int other = 0; other < sides; ++other) {
            double k[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) k[r] = plane[int64_t(j * sides + other) * PAIRS + (4 * q + r) * THREADS];
#pragma unroll
            for (int a = 0; a < SIDES_AT_ONCE; ++a) {
              if (first + a >= sides) continue;
              const double* both = task.grad_sums + (t.first + j) * int64_t(sides) * sides;
              const double g = both[(first + a) * sides + other] + both[other * sides + first + a];
#pragma unroll
              for (int r = 0; r < 4; ++r) w[a][r] += g * k[r];
            }
          }
#pragma unroll
          for (int a = 0; a < SIDES_AT_ONCE; ++a) {
            if (first + a >= sides) continue;
            const View& view = t.view[first + a];
            const int64_t at = t.at(first + a, j);
            const double *of_rows = task.grad_rows + at * n, shift = t.shift[at], width = t.bandwidth[at];
            const double *own = plane + int64_t(j * sides + first + a) * PAIRS + 4 * q * THREADS,
                         *inverse = plane + int64_t(view.extra) * PAIRS + 4 * q * THREADS;
#pragma unroll
            for (int r = 0; r < 4; ++r) {
              const int64_t row = extent.row_of(i, r / 2), column = extent.column_of(c, r % 2);
              const bool inside = row < n && column < n;
              double weight = w[a][r] + (inside ? (of_rows[row] + of_rows[column]) / 2 : 0);
              if (view.kernel == Kernel::rbf) weight *= (own[r * THREADS] + shift) / (width * width);
              if (view.kernel == Kernel::laplace) weight *= (own[r * THREADS] + shift) / width * inverse[r * THREADS];
              if (row == column)
                weight = view.kernel == Kernel::linear && inside ? task.grad_diagonal[at * n + row] : 0;
              m[a][r] += inside ? weight : 0;
            }
          }
        }
#pragma unroll
        for (int a = 0; a < SIDES_AT_ONCE; ++a) {
          if (first + a >= sides) continue;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int64_t row = extent.row_of(i, half) - int64_t(task.first_tile) * SAMPLES;
            auto* to =
                reinterpret_cast<Pair*>(task.weights_of(first + a) + row * task.columns + extent.column_of(c, 0));
            const Pair before = task.add ? *to : Pair{};
            *to = Pair{{before.v[0] + m[a][2 * half], before.v[1] + m[a][2 * half + 1]}};
          }
        }
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------- features

// Slabs of 16 samples: M as [row][sample], the features as [sample][feature]. Neither writes nor fragments meet bank
// conflicts: quarters of a row of M change places, rows of features start 4 numbers (8 banks) further on.
struct FeatureShared {
  static constexpr int ACROSS = FEATURES + 4;
  static constexpr int WEIGHTS = SAMPLES * SLAB, VALUES = SLAB * ACROSS;
  SharedArray<double> weights{0, 2 * WEIGHTS};            // [2][SAMPLES][SLAB]
  SharedArray<double> values{weights.end(), 2 * VALUES};  // [2][SLAB][ACROSS]
  static SK_DEVICE int at(int row, int k) { return row * SLAB + (k ^ (row & 3) << 2); }
};

// Block: a side, 64 of its features, a tile of rows.
template <class T>
__global__ void __launch_bounds__(THREADS, 2) multiply_features(const __grid_constant__ BackwardTask task) {
  constexpr FeatureShared shared;
  constexpr int V = WIDTH<T>, ACROSS = FEATURES / V, N = SLAB * FEATURES / V / THREADS;
  constexpr int M = SAMPLES * SLAB / 2 / THREADS;  // pairs of M that a thread brings
  static_assert(N * V * THREADS == SLAB * FEATURES && THREADS % ACROSS == 0);
  struct alignas(V * sizeof(T)) Vector {
    T v[V];
  };
  const Views& t = task.views;
  const int thread = int(threadIdx.x), warp = thread / WARP, g = lane() / 4, q = lane() % 4;
  const int tile = int(blockIdx.x % task.tiles);
  int64_t group = blockIdx.x / task.tiles;
  int side = 0;
  while (group >= (t.view[side].channels + FEATURES - 1) / FEATURES)
    group -= (t.view[side++].channels + FEATURES - 1) / FEATURES;
  const View& view = t.view[side];
  const T* data = static_cast<const T*>(view.data);
  const double* mean = t.mean + view.start;
  const double* weights = task.weights_of(side) + int64_t(tile) * SAMPLES * task.columns;
  double *weight_stages = shared.weights.get(), *value_stages = shared.values.get();

  // what this thread brings
  const int64_t feature = group * FEATURES + thread % ACROSS * V;
  double m[V];
#pragma unroll
  for (int v = 0; v < V; ++v) m[v] = feature + v < view.channels ? mean[feature + v] : 0;
  Vector value[N];
  Pair weight[M];
  const auto load = [&](int64_t k0) {
#pragma unroll
    for (int i = 0; i < M; ++i) {
      const int at = thread + i * THREADS;
      weight[i] = *reinterpret_cast<const Pair*>(weights + at / (SLAB / 2) * task.columns + k0 + at % (SLAB / 2) * 2);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int64_t sample = k0 + thread / ACROSS + i * (THREADS / ACROSS);
      const T* from = data + (sample < t.count ? sample : t.count - 1) * view.row_stride + feature;
      if (feature + V <= view.channels) {
        value[i] = *reinterpret_cast<const Vector*>(from);
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v) value[i].v[v] = feature + v < view.channels ? from[v] : T{};
      }
    }
  };
  const auto store = [&](int stage) {
#pragma unroll
    for (int i = 0; i < M; ++i) {
      const int at = thread + i * THREADS;
      *reinterpret_cast<Pair*>(weight_stages + stage * FeatureShared::WEIGHTS +
                               FeatureShared::at(at / (SLAB / 2), at % (SLAB / 2) * 2)) = weight[i];
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int f = thread % ACROSS * V;
      double* to = value_stages + stage * FeatureShared::VALUES +
                   (thread / ACROSS + i * (THREADS / ACROSS)) * FeatureShared::ACROSS + f;
      double u[V];
#pragma unroll
      for (int v = 0; v < V; ++v) u[v] = double(widen(value[i].v[v])) - m[v];
#pragma unroll
      for (int v = 0; v < V; v += 2) *reinterpret_cast<Pair*>(to + v) = Pair{{u[v], u[v + 1]}};
    }
  };

  // Multiply a slab, bring the next one to shared memory and the one after to registers.
  const int m0 = warp / 2 * WARP_TILE, n0 = warp % 2 * WARP_TILE, slabs = int(task.columns / SLAB);
  Products sums = {};
  double of_row[2][2] = {};
  load(0);
  store(0);
  if (slabs > 1) load(SLAB);
  __syncthreads();
#pragma unroll 1
  for (int slab = 0; slab < slabs; ++slab) {
    if (slab + 1 < slabs) store((slab + 1) & 1);
    if (slab + 2 < slabs) load(int64_t(slab + 2) * SLAB);
    const double *left = weight_stages + (slab & 1) * FeatureShared::WEIGHTS,
                 *right = value_stages + (slab & 1) * FeatureShared::VALUES;
#pragma unroll
    for (int k = 0; k < SLAB; k += 8) {
      double a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          a[i][r] = left[FeatureShared::at(m0 + 16 * i + g + 8 * (r % 2), k + q + 4 * (r / 2))];
          of_row[i][r % 2] += a[i][r];
        }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        double b[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) b[r] = right[(k + q + 4 * r) * FeatureShared::ACROSS + n0 + 8 * j + g];
#pragma unroll
        for (int i = 0; i < 2; ++i) mma_f64_m16n8k8(sums[i][j], a[i], b);
      }
    }
    __syncthreads();
  }

  // the gradient
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const double total = warp_sum(of_row[i][half], 4);
      const int64_t row = int64_t(task.first_tile + tile) * SAMPLES + m0 + 16 * i + g + 8 * half;
      if (row >= t.count) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int64_t channel = group * FEATURES + n0 + 8 * j + 2 * q + r;
          if (channel >= view.channels) continue;
          double own = 0;
          if (view.kernel != Kernel::linear)
            own = total * (double(widen(data[row * view.row_stride + channel])) - mean[channel]);
          task.gradient[side][row * view.channels + channel] = 2 * (sums[i][j][2 * half + r] - own);
        }
    }
}

// The gradient of a linear side less its mean over the samples. `t`: gradients in place of the features.
static __global__ void __launch_bounds__(THREADS) subtract_mean(const __grid_constant__ Views t, int side) {
  const View& view = t.view[side];
  const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= t.count * view.channels) return;
  auto* gradient = static_cast<double*>(const_cast<void*>(view.data));
  gradient[i] -= t.mean[view.start + i % view.channels];
}

}  // namespace stitchkern::hsic
