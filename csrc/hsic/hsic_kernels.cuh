// Sums over kernel matrices on the GPU: the kernels. Raw pointers and sizes only; hsic_cuda.cu plans.
//
// A call is five launches, none of which waits for the host:
//
//   sum_features, finish_means   means about the first row
//   sum_norms                    |x_i − mean|²
//   sum_tiles                    the tiles of sample pairs above the diagonal, for all sides and bandwidths
//   finish                       adds up row sums and products, in order
//
// What bounds sum_tiles: n²/2 Σ p multiply-adds on the float64 tensor cores, 128 a clock of a multiprocessor, then one
// exponential a pair, side and bandwidth: about 24 operations at 64 a clock. So:
//
// - hsic_tile.cuh: a block makes a tile's kernels for one side after the other; each thread keeps its 32 pairs of each
//   side and bandwidth (a plane) in a place of its own, in shared memory where two blocks' planes fit, otherwise in
//   global memory, which the second-level cache holds or not: a plane is written once and read s / 32 times.
// - Products of all pairs of sides are one more matrix product, over the pairs of samples. Up to four sides do with
//   plain multiply-adds; more use the tensor cores, 32 × 32 sides at a time, each warp for the pairs it made itself: no
//   barrier of the block.
// - A unit is a square of tiles that one block goes through in order. Each unit adds its row sums into a place of its
//   own, [column of units][plane][n]: at most 64 n numbers a plane, and no addition depends on timing. Blocks take
//   units in a fixed order, each adds products up in a place of its own.
// - Neighbouring blocks work on neighbouring units: at any time they share the rows of few tiles, which the
//   second-level cache holds.
//
// Float64 throughout, except that chips without fast float64 take six bfloat16 products where that is good enough, as
// hsic_safe.h says. Only the device knows; both kernels are launched, and one of them returns at once.
//
// Expected, not measured, on an H200: docs/GPU.md.
#pragma once

#include "hsic_safe.h"
#include "hsic_tile.cuh"

namespace stitchkern::hsic {

inline constexpr int PLAIN_SIDES = 4;   // up to which products take plain multiply-adds
inline constexpr int BLOCK_SIDES = 32;  // of one side of a block of products

struct Task {
  Views views;
  double* partial_rows;              // [columns of units, planes, n]
  double* partial_sums;              // [blocks, WARPS, bandwidths, sides, sides]: a <= c
  double* plane_memory;              // [blocks, planes, PAIRS]: null where these are in shared memory
  SharedArray<double> planes{0, 0};  // [planes, PAIRS], where they are in shared memory
  double* rows;                      // [s, b, n], out
  double* diagonal;                  // [s, b, n], out
  double* sums;                      // [b, s, s], out
  int64_t all_sides;                 // s
  int unit_tiles;                    // of a unit's edge
  int columns;                       // of units
  int blocks;                        // of sum_tiles

  SK_HOST_DEVICE int units() const { return columns * (columns + 1) / 2; }
  SK_HOST_DEVICE double* sums_of(int block, int warp) const {
    return partial_sums + int64_t(block * WARPS + warp) * views.bandwidths * views.sides * views.sides;
  }
  // Row sums of a plane from the units of one column (or, below the diagonal, row).
  SK_HOST_DEVICE double* rows_of(int column, int plane) const {
    return partial_rows + int64_t(column * views.planes() + plane) * views.count;
  }
};

template <class Math>
struct SumShared {
  SharedArray<typename Math::Stored> stages{0, 2 * Math::STAGE};
  SharedArray<int64_t> samples{stages.end(), 2 * SAMPLES};
  SharedArray<double> halves{samples.end(),
                             2 * 4 * SAMPLES};  // [2][rows: 2 columns of warps; columns: 2 rows][SAMPLES]
};

// ---------------------------------------------------------------------------------------------------- products

// Pairs of SIDES sides by plain multiply-adds. planes: of this thread, sides PAIRS apart.
template <int SIDES>
SK_DEVICE void add_plain(const double* planes, double* sums) {
  double total[SIDES * (SIDES + 1) / 2] = {};
#pragma unroll 4
  for (int i = 0; i < THREAD_PAIRS; ++i) {
    double k[SIDES];
#pragma unroll
    for (int a = 0; a < SIDES; ++a) k[a] = planes[a * PAIRS + i * THREADS];
    int at = 0;
#pragma unroll
    for (int a = 0; a < SIDES; ++a)
#pragma unroll
      for (int c = a; c < SIDES; ++c) total[at++] += k[a] * k[c];
  }
  int at = 0;
#pragma unroll
  for (int a = 0; a < SIDES; ++a)
#pragma unroll
    for (int c = a; c < SIDES; ++c) {
      const double sum = warp_sum(total[at++]);
      if (lane() == 0) sums[a * SIDES + c] += sum;
    }
}

// Sides first_a … against first_c …, 32 of each at most: a Gram matrix over the warp's pairs. planes: of the warp.
SK_DEVICE void add_block(const double* planes, int sides, int first_a, int first_c, double* sums) {
  const int g = lane() / 4, t = lane() % 4;
  const bool diagonal = first_a == first_c;
  const double* from[2][4];  // side g of each group of 8; past the last one that again
#pragma unroll
  for (int which = 0; which < 2; ++which)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int side = (which ? first_c : first_a) + 8 * j + g;
      from[which][j] = planes + (side < sides ? side : sides - 1) * int64_t(PAIRS) + 2 * t;
    }
  double total[2][4][4] = {};
#pragma unroll 1
  for (int i = 0; i < THREAD_PAIRS; ++i) {
#pragma unroll 2
    for (int k = 0; k < WARP; k += 8) {
      const int at = i * THREADS + k;
      Pair a[4], c[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        a[j] = first_a + 8 * j < sides ? *reinterpret_cast<const Pair*>(from[0][j] + at) : Pair{};
        c[j] = diagonal ? a[j] : first_c + 8 * j < sides ? *reinterpret_cast<const Pair*>(from[1][j] + at) : Pair{};
      }
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (first_c + 8 * j >= sides || (diagonal && j < 2 * m)) continue;
          const double left[4] = {a[2 * m].v[0], a[2 * m + 1].v[0], a[2 * m].v[1], a[2 * m + 1].v[1]};
          mma_f64_m16n8k8(total[m][j], left, c[j].v);
        }
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int a = first_a + 16 * m + g + 8 * (r / 2), c = first_c + 8 * j + 2 * t + r % 2;
        if (a <= c && c < sides) sums[a * sides + c] += total[m][j][r];
      }
}

// All pairs of sides, for one bandwidth, of what the warp's threads left in their planes.
SK_DEVICE void add_products(const double* planes, int sides, double* sums) {
  const int warp = int(threadIdx.x) / WARP;
  const double* own = planes + threadIdx.x;
  switch (sides) {
    case 1: return add_plain<1>(own, sums);
    case 2: return add_plain<2>(own, sums);
    case 3: return add_plain<3>(own, sums);
    case 4: return add_plain<PLAIN_SIDES>(own, sums);
  }
  __syncwarp();
  for (int a = 0; a < sides; a += BLOCK_SIDES)
    for (int c = a; c < sides; c += BLOCK_SIDES) add_block(planes + warp * WARP, sides, a, c, sums);
}

// ---------------------------------------------------------------------------------------------------- tiles

template <class Math, class T>
__global__ void __launch_bounds__(THREADS, 2) sum_tiles(const __grid_constant__ Task task) {
  const Views& t = task.views;
  constexpr bool NARROW = Math::PROMOTE > 0;
  if (t.narrow && (*t.narrow != 0) != NARROW) return;
  const int thread = int(threadIdx.x), warp = thread / WARP, planes = t.planes();
  constexpr SumShared<Math> shared;
  typename Math::Stored* stages = shared.stages.get();
  int64_t* samples = shared.samples.get();
  double* halves = shared.halves.get();
  double* plane = task.plane_memory ? task.plane_memory + int64_t(blockIdx.x) * planes * PAIRS : task.planes.get();
  double* sums = task.sums_of(blockIdx.x, warp);
  for (int i = lane(); i < t.bandwidths * t.sides * t.sides; i += WARP) sums[i] = 0;
  __syncwarp();

  const int64_t n = t.count;
  int side_of_halves = 0;
  for (int unit = int(blockIdx.x); unit < task.units(); unit += task.blocks) {
    int unit_row = 0, left = unit;
    while (left >= task.columns - unit_row) left -= task.columns - unit_row++;
    const int unit_column = unit_row + left;
    const int row_begin = unit_row * task.unit_tiles, column_begin = unit_column * task.unit_tiles;
    const int row_end = row_begin + task.unit_tiles < t.tiles() ? row_begin + task.unit_tiles : t.tiles();
    const int column_end = column_begin + task.unit_tiles < t.tiles() ? column_begin + task.unit_tiles : t.tiles();

    // the unit's row sums
    __syncthreads();
    for (int p = 0; p < planes; ++p) {
      double *of_rows = task.rows_of(unit_column, p), *of_columns = task.rows_of(unit_row, p);
      const int64_t rows = int64_t(row_end) * SAMPLES, columns = int64_t(column_end) * SAMPLES;
      for (int64_t i = int64_t(row_begin) * SAMPLES + thread; i < rows && i < n; i += THREADS) of_rows[i] = 0;
      for (int64_t i = int64_t(column_begin) * SAMPLES + thread; i < columns && i < n; i += THREADS) of_columns[i] = 0;
    }
    __syncthreads();

    for (int tile_row = row_begin; tile_row < row_end; ++tile_row)
      for (int tile_column = tile_row > column_begin ? tile_row : column_begin; tile_column < column_end;
           ++tile_column) {
        const int64_t row0 = int64_t(tile_row) * SAMPLES, column0 = int64_t(tile_column) * SAMPLES;
        const Extent extent(row0, column0, n, true);
        const bool works = tile_row != tile_column || warp / 2 <= warp % 2;
        multiply_sides<Math, T>(t, row0, column0, samples, stages, works, [&](int a, Products& v) {
          const Kernel kernel = t.view[a].kernel;
          values_of(v, kernel, t.norms + a * n, extent);
          for (int j = 0; j < t.bandwidths; ++j) {
            const int64_t at = t.at(a, j);
            const double scale = scale_of(kernel, t.bandwidth[at]), shift = t.shift[at];
            double* to = plane + int64_t(j * t.sides + a) * PAIRS + thread;
            double of_row[2][2] = {}, of_column[4][2] = {};
            const auto add = [&](auto radial) {
#pragma unroll
              for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int c = 0; c < 4; ++c)
#pragma unroll
                  for (int r = 0; r < 4; ++r) {
                    double k = kernel_of<decltype(radial)::value>(v[i][c][r], scale, shift);
                    if (!extent.all && !extent.wants(i, c, r)) k = 0;
                    to[(i * 16 + c * 4 + r) * THREADS] = k;
                    of_row[i][r / 2] += k, of_column[c][r % 2] += k;
                  }
            };
            if (kernel == Kernel::linear)
              add(Is<false>{});
            else
              add(Is<true>{});

            // row sums: over the 4 lanes of a row, the 8 of a column, then the two warps that share them
            double* half = halves + side_of_halves * 4 * SAMPLES;
            side_of_halves ^= 1;
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
              for (int h = 0; h < 2; ++h) {
                const double sum = warp_sum(of_row[i][h], 4);
                if (lane() % 4 == 0)
                  half[warp % 2 * SAMPLES + warp / 2 * WARP_TILE + 16 * i + 8 * h + lane() / 4] = sum;
              }
#pragma unroll
            for (int c = 0; c < 4; ++c)
#pragma unroll
              for (int h = 0; h < 2; ++h) {
                double sum = of_column[c][h];
#pragma unroll
                for (int mask = 4; mask < WARP; mask *= 2) sum += shuffle_xor(sum, mask);
                if (lane() < 4) half[(2 + warp / 2) * SAMPLES + warp % 2 * WARP_TILE + 8 * c + 2 * lane() + h] = sum;
              }
            __syncthreads();
            const int s = thread % SAMPLES;
            const bool is_row = thread < SAMPLES;
            const int64_t sample = (is_row ? row0 : column0) + s;
            double sum = half[(is_row ? 0 : 2) * SAMPLES + s] + half[(is_row ? 1 : 3) * SAMPLES + s];
            if (tile_row == tile_column) sum += half[2 * SAMPLES + s] + half[3 * SAMPLES + s];
            if (sample < n && (is_row || tile_row != tile_column))
              task.rows_of(is_row ? unit_column : unit_row, j * t.sides + a)[sample] += sum;
          }
        });
        for (int j = 0; j < t.bandwidths; ++j)
          add_products(plane + int64_t(j) * t.sides * PAIRS, t.sides, sums + j * t.sides * t.sides);
      }
  }
}

// ---------------------------------------------------------------------------------------------------- finish

// Blocks of THREADS numbers of the rows and diagonals, then a warp to each pair of sides and bandwidth.
static __global__ void __launch_bounds__(THREADS) finish(const __grid_constant__ Task task) {
  const Views& t = task.views;
  const int64_t numbers = t.planes() * t.count, row_blocks = (numbers + THREADS - 1) / THREADS;
  if (blockIdx.x < row_blocks) {
    const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= numbers) return;
    const int plane = int(i / t.count), a = plane % t.sides, j = plane / t.sides;
    const int64_t row = i % t.count, at = t.at(a, j);
    double sum = 0;
    for (int column = 0; column < task.columns; ++column) sum += task.rows_of(column, plane)[row];
    task.rows[at * t.count + row] = sum;
    const double self = t.view[a].kernel == Kernel::linear ? t.norms[a * t.count + row] : 1;
    task.diagonal[at * t.count + row] = self - t.shift[at];
    return;
  }
  const int64_t pair = (int64_t(blockIdx.x) - row_blocks) * WARPS + threadIdx.x / WARP;
  const int sides = t.sides, a = int(pair / sides % sides), c = int(pair % sides);
  const int64_t j = pair / sides / sides;
  if (j >= t.bandwidths || a > c) return;
  double sum = 0;
  for (int i = lane(); i < task.blocks * WARPS; i += WARP)
    sum += task.sums_of(0, 0)[int64_t(i) * t.bandwidths * sides * sides + pair];
  sum = 2 * warp_sum(sum);
  if (lane() == 0) {
    double* to = task.sums + (t.first + j) * task.all_sides * task.all_sides;
    to[t.view[a].side * task.all_sides + t.view[c].side] = sum;
    to[t.view[c].side * task.all_sides + t.view[a].side] = sum;
  }
}

// Whether bfloat16 parts are good enough, by one block.
static __global__ void __launch_bounds__(THREADS) decide(const __grid_constant__ Views t) {
  constexpr MeanShared shared;
  double* found = shared.sums.get();
  bool good = true;
  for (int a = 0; a < t.sides; ++a) {
    const Kernel kernel = t.view[a].kernel;
    double largest = 0;
    for (int64_t i = threadIdx.x; i < t.count; i += THREADS) {
      const double norm = t.norms[a * t.count + i];
      if (!(norm <= largest)) largest = norm <= SAFE_LARGEST ? norm : 2 * SAFE_LARGEST;  // NaN too
    }
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
      const double other = shuffle_xor(largest, mask);
      largest = other > largest ? other : largest;
    }
    if (lane() == 0) found[threadIdx.x / WARP] = largest;
    __syncthreads();
    for (int i = 0; i < WARPS; ++i) largest = found[i] > largest ? found[i] : largest;
    __syncthreads();
    good &= safe_norm(largest, kernel);
    for (int j = 0; j < t.bandwidths; ++j) good &= safe_width(largest, kernel, t.bandwidth[t.at(a, j)]);
  }
  if (threadIdx.x == 0) *t.narrow = good;
}

}  // namespace stitchkern::hsic
