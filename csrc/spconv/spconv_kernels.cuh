// The sparse 1×1 convolution on the GPU: the kernels. Raw pointers and sizes only; spconv_cuda.cu plans.
//
// What bounds it is reading x and writing y once (32×256×28×28 float32: 51 MB, 16 µs of an H200's bandwidth at 90 % of
// zeros as at 99 %) and, above some 10 % of non-zeros, one load from shared memory for 32 multiply-adds. So a block
// stages a tile of positions of all channels of x in shared memory, whatever its strides: x is read once, along
// whichever of channels and positions lie together. A warp then has one row of M and a lane one or two positions: the
// entries of the row are the same for all lanes, their loads from the tile free of conflicts, and no lane waits for a
// longer row than its neighbours'. Rows leave in chunks through shared memory, so that writes are wide too.
//
// Sums run over the entries of a row in their order, as in the plain definition.
#pragma once

#include "../common/device.h"
#include "spconv.h"

namespace stitchkern::spconv {

using namespace stitchkern::device;

inline constexpr int THREADS = 256, WARPS = THREADS / WARP;

SK_HOST_DEVICE constexpr int stride_of(int positions) { return positions + 1; }  // odd: columns meet all banks

// tile[channel][stride_of(P)] in the type of the sums, zero beyond `count` positions. `offset` [P]: where they lie.
template <class T, int P>
SK_DEVICE void stage(const Rows& rows, const int64_t* offset, int count, Sum<T>* tile) {
  const T* data = static_cast<const T*>(rows.data);
  const int channels = int(rows.channels);  // they fit into shared memory
  const bool channels_inside = rows.channel_stride == 1;
  for (int i = int(threadIdx.x); i < channels * P; i += THREADS) {
    const int channel = channels_inside ? i % channels : i / P, position = channels_inside ? i / channels : i % P;
    tile[channel * stride_of(P) + position] =
        position < count ? widen(data[offset[position] + channel * rows.channel_stride]) : Sum<T>(0);
  }
}

// ---------------------------------------------------------------------------------------------------- forward

inline constexpr int CHUNK = 32;  // rows of M that leave together

template <class T, int P>
struct ForwardTask {
  Map map;
  int64_t positions;
  int parts, channels;  // rows of M of each of `parts`

  // shared memory
  SharedArray<Sum<T>> x;        // [columns][stride_of(P)]
  SharedArray<Sum<T>> y;        // [CHUNK][stride_of(P)]
  SharedArray<int64_t> offset;  // [2][P]: of x, of y

  ForwardTask(const Map& map, int parts)
      : map(map),
        positions(map.x.count()),
        parts(parts),
        channels(int((map.matrix.rows + parts - 1) / parts)),
        x(0, int(map.matrix.columns) * stride_of(P)),
        y(x.end(), CHUNK * stride_of(P)),
        offset(y.end(), 2 * P) {}
  int64_t blocks() const { return (positions + P - 1) / P * parts; }
  static int64_t shared_bytes(int64_t columns) {
    return (columns + CHUNK) * stride_of(P) * int64_t(sizeof(Sum<T>)) + 2 * P * 8 + 64;
  }
};

template <class T, int P>
static __global__ void __launch_bounds__(THREADS) forward(const __grid_constant__ ForwardTask<T, P> t) {
  using C = Sum<T>;
  constexpr int ACROSS = P < WARP ? P : WARP;  // lanes that share a row of M
  constexpr int EACH = P / ACROSS;             // positions of a lane: ACROSS apart
  constexpr int ROWS = WARP / ACROSS;          // of a warp at once
  static_assert(P % ACROSS == 0 && WARP % ACROSS == 0, "lanes share rows evenly");
  const Map& map = t.map;
  const Matrix& m = map.matrix;
  C *x = t.x.get(), *y = t.y.get();
  int64_t *from = t.offset.get(), *to = from + P;
  const int64_t first = int64_t(blockIdx.x / unsigned(t.parts)) * P;
  const int count = int(t.positions - first < P ? t.positions - first : P);
  const int thread = int(threadIdx.x), warp = thread / WARP, across = lane() % ACROSS;

  // the tile
  for (int i = thread; i < count; i += THREADS) from[i] = map.x.offset(first + i), to[i] = map.y.offset(first + i);
  __syncthreads();
  stage<T, P>(map.x, from, count, x);
  __syncthreads();

  const int64_t begin = int64_t(blockIdx.x % unsigned(t.parts)) * t.channels;
  const int64_t end = begin + t.channels < m.rows ? begin + t.channels : m.rows;
  const C *values = static_cast<const C*>(map.values), *bias = static_cast<const C*>(map.bias);
  T* out = static_cast<T*>(const_cast<void*>(map.y.data));
  for (int64_t chunk = begin; chunk < end; chunk += CHUNK) {
    const int rows = int(end - chunk < CHUNK ? end - chunk : CHUNK);

    // multiply
    for (int i = warp * ROWS + lane() / ACROSS; i < rows; i += WARPS * ROWS) {
      C sums[EACH];
#pragma unroll
      for (int e = 0; e < EACH; ++e) sums[e] = bias ? bias[chunk + i] : C(0);
      const int32_t last = m.crow[chunk + i + 1];
#pragma unroll 4
      for (int32_t k = m.crow[chunk + i]; k < last; ++k) {
        const C value = values[k];
        const C* column = x + m.col[k] * stride_of(P) + across;
#pragma unroll
        for (int e = 0; e < EACH; ++e) sums[e] += value * column[e * ACROSS];
      }
#pragma unroll
      for (int e = 0; e < EACH; ++e) y[i * stride_of(P) + across + e * ACROSS] = sums[e];
    }
    __syncthreads();

    // write
    for (int i = thread; i < rows * P; i += THREADS) {
      const int row = map.channels_inside() ? i % rows : i / P, position = map.channels_inside() ? i / rows : i % P;
      if (position < count)
        out[to[position] + (chunk + row) * map.y.channel_stride] = narrow<T>(y[row * stride_of(P) + position]);
    }
    __syncthreads();
  }
}

// ---------------------------------------------------------------------------------------------------- weight gradient
//
// A thread has EACH entries of M in registers and walks through the positions of a chunk, tile by tile. Chunks are
// added in their order by a second kernel: no atomics, the same bits in every run.

inline constexpr int EACH = 8, ENTRIES = EACH * THREADS;
inline constexpr int SHORT_TILES = 32;  // after so many, float32 sums are added to those in float64

template <class T, int P>
struct WeightTask {
  Rows x, grad;
  Matrix matrix;
  int64_t positions, chunk;  // positions of a chunk
  int groups;                // of ENTRIES
  double* sums;              // [chunks][nonzeros], out

  // shared memory
  SharedArray<Sum<T>> tile_x;     // [columns][stride_of(P)]
  SharedArray<Sum<T>> tile_grad;  // [rows][stride_of(P)]
  SharedArray<int64_t> offset;    // [2][P]: of x, of grad

  WeightTask(const Rows& x, const Rows& grad, const Matrix& matrix, int64_t chunk, double* sums)
      : x(x),
        grad(grad),
        matrix(matrix),
        positions(x.count()),
        chunk(chunk),
        groups(int((matrix.nonzeros + ENTRIES - 1) / ENTRIES)),
        sums(sums),
        tile_x(0, int(matrix.columns) * stride_of(P)),
        tile_grad(tile_x.end(), int(matrix.rows) * stride_of(P)),
        offset(tile_grad.end(), 2 * P) {}
  static int64_t shared_bytes(int64_t channels) {
    return channels * stride_of(P) * int64_t(sizeof(Sum<T>)) + 2 * P * 8 + 64;
  }
};

template <class T, int P>
static __global__ void __launch_bounds__(THREADS) weight_grad(const __grid_constant__ WeightTask<T, P> t) {
  using C = Sum<T>;
  const Matrix& m = t.matrix;
  C *x = t.tile_x.get(), *grad = t.tile_grad.get();
  int64_t *at_x = t.offset.get(), *at_grad = at_x + P;
  const int thread = int(threadIdx.x);
  const int64_t chunk = blockIdx.x / unsigned(t.groups);
  const int64_t entry = int64_t(blockIdx.x % unsigned(t.groups)) * ENTRIES + thread;

  const C *of_x[EACH], *of_grad[EACH];
  C sums[EACH] = {};
  double totals[EACH] = {};
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    const int64_t k = entry + e * THREADS;
    of_x[e] = x + (k < m.nonzeros ? m.col[k] : 0) * stride_of(P);
    of_grad[e] = grad + (k < m.nonzeros ? m.row[k] : 0) * stride_of(P);
  }

  const int64_t end = (chunk + 1) * t.chunk < t.positions ? (chunk + 1) * t.chunk : t.positions;
  int tiles = 0;
  for (int64_t first = chunk * t.chunk; first < end; first += P) {
    // the tiles
    const int count = int(end - first < P ? end - first : P);
    for (int i = thread; i < count; i += THREADS)
      at_x[i] = t.x.offset(first + i), at_grad[i] = t.grad.offset(first + i);
    __syncthreads();
    stage<T, P>(t.x, at_x, count, x);
    stage<T, P>(t.grad, at_grad, count, grad);
    __syncthreads();

    // multiply
    for (int i = 0; i < count; ++i)
#pragma unroll
      for (int e = 0; e < EACH; ++e) sums[e] += of_x[e][i] * of_grad[e][i];
    if (++tiles % SHORT_TILES == 0) {
#pragma unroll
      for (int e = 0; e < EACH; ++e) totals[e] += double(sums[e]), sums[e] = 0;
    }
    __syncthreads();
  }
#pragma unroll
  for (int e = 0; e < EACH; ++e)
    if (const int64_t k = entry + e * THREADS; k < m.nonzeros)
      t.sums[chunk * m.nonzeros + k] = totals[e] + double(sums[e]);
}

template <class C>
static __global__ void __launch_bounds__(THREADS)
    add_chunks(const double* sums, int64_t chunks, int64_t nonzeros, C* out) {
  const int64_t k = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (k >= nonzeros) return;
  double total = 0;
  for (int64_t i = 0; i < chunks; ++i) total += sums[i * nonzeros + k];
  out[k] = C(total);
}

}  // namespace stitchkern::spconv
