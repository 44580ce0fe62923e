// Inner loops of the sparse 1×1 convolution, compiled once per instruction set.
//
// What bounds it is reading x and writing y once, and below some 90 % of zeros one vector load per vector
// multiply-add. So a tile of positions of all channels of x is packed first (256 channels × 128 bytes are a
// first-level cache): that is the only time that x is read, in runs of GROUP_BYTES, whatever its strides, and the
// gathers of the sparse rows never meet the pages and cache sets that strides of x would put them in. Then each
// output channel walks its entries with the sums of the whole tile in registers and leaves for y.
//
// Sums of an output run over its entries in a fixed order that depends on nothing else, so that neither threads nor
// neighbours in a tile change a bit.
#include <cstring>

#include "spconv_cpu.h"

#include "../common/simd.h"

namespace stitchkern::spconv::STITCHKERN_PATH {

using namespace stitchkern::STITCHKERN_PATH;

constexpr int NV = 128 / VECTOR_BYTES;  // vectors of a tile: two cache lines
constexpr int CHAINS = 8 / NV;          // sums of an output, so that additions need not wait for each other
static_assert(8 % NV == 0 && NV >= 2, "eight sums in registers, and half a tile is whole vectors");
template <class C>
constexpr int TILE = NV * LANES<C>;
template <class C>
constexpr int GROUP = GROUP_BYTES / int(sizeof(C));
template <class C>
constexpr int TILES = GROUP<C> / TILE<C>;

// ---------------------------------------------------------------------------------------------------- positions

// Where the positions of a group lie.
template <int N>
struct Places {
  int64_t offset[N];
  int count;

  Places(const Rows& rows, int64_t first, int64_t count) : count(int(count)) {
    int64_t inner = first % rows.size[2], outer = first / rows.size[2];
    int64_t at = rows.offset(first);
    for (int i = 0; i < count; ++i) {
      offset[i] = at, at += rows.stride[2];
      if (++inner == rows.size[2]) inner = 0, ++outer, at = rows.offset(outer * rows.size[2]);
    }
  }
  // Whether these are neighbours in memory, each of the next: a transposed image has its first and last place there
  // too.
  bool run(int first, int length) const {
    bool all = true;
    for (int i = first + 1; i < first + length; ++i) all &= offset[i] - offset[i - 1] == 1;
    return all;
  }
};

template <class C, class T>
SK_HOST_DEVICE Vector<C> load_wide(const T* from) {
  if constexpr (sizeof(T) == sizeof(C)) {
    return load(from);
  } else {
    C wide[LANES<C>];
    for (int i = 0; i < LANES<C>; ++i) wide[i] = widen(from[i]);
    return load(wide);
  }
}

template <class C, class T>
SK_HOST_DEVICE void store_narrow(T* to, Vector<C> v) {
  if constexpr (sizeof(T) == sizeof(C)) {
    store(to, v);
  } else {
    C wide[LANES<C>];
    T narrowed[LANES<C>];
    store(wide, v);
    for (int i = 0; i < LANES<C>; ++i) narrowed[i] = narrow<T>(wide[i]);
    memcpy(to, narrowed, sizeof narrowed);
  }
}

// packed[tile][channel][TILE] of the channels that are used; zero beyond the last position of a tile.
template <class T>
void pack(const Rows& x, const Places<GROUP<Sum<T>>>& places, const Matrix* used, Sum<T>* packed) {
  using C = Sum<T>;
  constexpr int L = LANES<C>;
  const T* data = static_cast<const T*>(x.data);
  const int tiles = (places.count + TILE<C> - 1) / TILE<C>;
  const auto at = [&](int tile, int64_t channel) { return packed + (tile * x.channels + channel) * TILE<C>; };
  const auto one = [&](int tile, int64_t channel) {  // whatever the strides
    C* to = at(tile, channel);
    for (int i = 0; i < TILE<C>; ++i) {
      const int place = tile * TILE<C> + i;
      to[i] = place < places.count ? widen(data[places.offset[place] + channel * x.channel_stride]) : C(0);
    }
  };

  if (x.channel_stride == 1 && x.channels >= L) {  // squares of L × L, transposed
    for (int tile = 0; tile < tiles; ++tile) {
      for (int64_t channel = 0; channel < x.channels; channel += L) {
        if (channel + L > x.channels) channel = x.channels - L;  // the last ones once more
        for (int i = 0; i < TILE<C>; i += L) {
          Vector<C> square[L];
          for (int k = 0; k < L; ++k) {
            const int place = tile * TILE<C> + i + k;
            square[k] = place < places.count ? load_wide<C>(data + places.offset[place] + channel) : Vector<C>{};
          }
          transpose<C>(square);
          for (int k = 0; k < L; ++k) store(at(tile, channel + k) + i, square[k]);
        }
      }
    }
    return;
  }
  bool runs[TILES<C>];
  for (int tile = 0; tile < tiles; ++tile)
    runs[tile] = (tile + 1) * TILE<C> <= places.count && places.run(tile * TILE<C>, TILE<C>);
  for (int64_t channel = 0; channel < x.channels; ++channel) {
    if (used && !used->uses(channel)) continue;
    for (int tile = 0; tile < tiles; ++tile) {
      if (!runs[tile]) {
        one(tile, channel);
        continue;
      }
      const T* from = data + places.offset[tile * TILE<C>] + channel * x.channel_stride;
      C* to = at(tile, channel);
#pragma GCC unroll 8
      for (int n = 0; n < NV; ++n) store(to + n * L, load_wide<C>(from + n * L));
    }
  }
}

// ---------------------------------------------------------------------------------------------------- forward

// sums[n] = bias + Σ values[k] tile[col[k]][n], N vectors of a tile
template <class C, int N>
SK_HOST_DEVICE void multiply(Vector<C> (&sums)[N], const C* tile, const C* values, const int32_t* col, int32_t count,
                             C bias) {
  constexpr int L = LANES<C>;
  Vector<C> chain[CHAINS][N] = {};
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) chain[0][n] = splat(bias);
  int32_t k = 0;
  for (; k + CHAINS <= count; k += CHAINS) {
#pragma GCC unroll 8
    for (int c = 0; c < CHAINS; ++c) {
      const C* from = tile + int64_t(col[k + c]) * TILE<C>;
      const Vector<C> value = splat(values[k + c]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) chain[c][n] += value * load(from + n * L);
    }
  }
  for (; k < count; ++k) {
    const C* from = tile + int64_t(col[k]) * TILE<C>;
    const Vector<C> value = splat(values[k]);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) chain[0][n] += value * load(from + n * L);
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    sums[n] = chain[0][n];
#pragma GCC unroll 8
    for (int c = 1; c < CHAINS; ++c) sums[n] += chain[c][n];
  }
}

// One tile of y from one of x, N vectors wide; `made` [channels][TILE] where y does not take whole vectors
template <class T, int N>
void multiply_tile(const Map& map, const Piece& piece, const Sum<T>* tile, T* direct, Sum<T>* made) {
  using C = Sum<T>;
  const Matrix& m = map.matrix;
  const C *values = static_cast<const C*>(map.values), *bias = static_cast<const C*>(map.bias);
  for (int64_t i = 0; i < piece.channels; ++i) {
    const int64_t row = piece.channel + i;
    const int32_t begin = m.crow[row], count = m.crow[row + 1] - begin;
    Vector<C> sums[N];
    multiply<C, N>(sums, tile, values + begin, m.col + begin, count, bias ? bias[row] : C(0));
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      if (direct)
        store_narrow<C>(direct + row * map.y.channel_stride + n * LANES<C>, sums[n]);
      else
        store(made + i * TILE<C> + n * LANES<C>, sums[n]);
    }
  }
}

// made [channels][TILE] to the places of y
template <class T>
void spread(const Map& map, const Piece& piece, const Sum<T>* made, const int64_t* offset, int count) {
  using C = Sum<T>;
  constexpr int L = LANES<C>;
  T* y = static_cast<T*>(const_cast<void*>(map.y.data));
  if (map.channels_inside() && piece.channels >= L) {
    for (int first = 0; first < count; first += L) {
      for (int64_t channel = 0; channel < piece.channels; channel += L) {
        if (channel + L > piece.channels) channel = piece.channels - L;
        Vector<C> square[L];
        for (int k = 0; k < L; ++k) square[k] = load(made + (channel + k) * TILE<C> + first);
        transpose<C>(square);
        for (int k = 0; k < L && first + k < count; ++k)
          store_narrow<C>(y + offset[first + k] + piece.channel + channel, square[k]);
      }
    }
    return;
  }
  for (int64_t channel = 0; channel < piece.channels; ++channel) {
    T* to = y + (piece.channel + channel) * map.y.channel_stride;
    for (int i = 0; i < count; ++i) to[offset[i]] = narrow<T>(made[channel * TILE<C> + i]);
  }
}

template <class T>
void forward(const Map& map, const Piece& piece, void* scratch) {
  using C = Sum<T>;
  C* packed = static_cast<C*>(scratch);              // [TILES][columns][TILE]
  C* made = packed + map.matrix.columns * GROUP<C>;  // [channels][TILE]
  const Places<GROUP<C>> from(map.x, piece.position, piece.positions), to(map.y, piece.position, piece.positions);
  pack<T>(map.x, from, &map.matrix, packed);
  for (int first = 0, tile = 0; first < from.count; first += TILE<C>, ++tile) {
    const C* x = packed + tile * map.matrix.columns * TILE<C>;
    const int count = from.count - first < TILE<C> ? from.count - first : TILE<C>;
    const bool whole = count == TILE<C> && !map.channels_inside() && to.run(first, TILE<C>);
    T* direct = whole ? static_cast<T*>(const_cast<void*>(map.y.data)) + to.offset[first] : nullptr;
    if (count <= LANES<C>)
      multiply_tile<T, 1>(map, piece, x, direct, made);
    else if (count <= TILE<C> / 2)
      multiply_tile<T, NV / 2>(map, piece, x, direct, made);
    else
      multiply_tile<T, NV>(map, piece, x, direct, made);
    if (!direct) spread<T>(map, piece, made, to.offset + first, count);
  }
}

// ---------------------------------------------------------------------------------------------------- weight gradient

// Lanes are added up in float64 after this many positions, so that float32 sums stay short.
constexpr int64_t SHORT = 4096;

template <class T>
void weight_grad(const Rows& x, const Rows& grad, const Matrix& m, int64_t position, int64_t positions, double* out,
                 void* scratch) {
  using C = Sum<T>;
  constexpr int L = LANES<C>;
  C* packed_x = static_cast<C*>(scratch);            // [TILES][columns][TILE]
  C* packed_grad = packed_x + m.columns * GROUP<C>;  // [TILES][rows][TILE]
  C* sums = packed_grad + m.rows * GROUP<C>;         // [nonzeros][L]
  for (int64_t k = 0; k < m.nonzeros; ++k) out[k] = 0;
  for (int64_t begin = 0; begin < positions; begin += SHORT) {
    const int64_t end = begin + SHORT < positions ? begin + SHORT : positions;
    memset(sums, 0, size_t(m.nonzeros) * L * sizeof(C));
    for (int64_t first = begin; first < end; first += GROUP<C>) {
      const int64_t count = end - first < GROUP<C> ? end - first : GROUP<C>;
      pack<T>(x, Places<GROUP<C>>(x, position + first, count), &m, packed_x);
      pack<T>(grad, Places<GROUP<C>>(grad, position + first, count), nullptr, packed_grad);
      for (int64_t tile = 0; tile * TILE<C> < count; ++tile) {
        const C *from = packed_x + tile * m.columns * TILE<C>, *g = packed_grad + tile * m.rows * TILE<C>;
        for (int64_t row = 0; row < m.rows; ++row, g += TILE<C>) {
          Vector<C> of_row[NV];
#pragma GCC unroll 8
          for (int n = 0; n < NV; ++n) of_row[n] = load(g + n * L);
          const int32_t* col = m.col;
          for (int32_t k = m.crow[row], last = m.crow[row + 1]; k < last; ++k) {
            const C* of_column = from + int64_t(col[k]) * TILE<C>;
            Vector<C> sum = load(sums + int64_t(k) * L);
#pragma GCC unroll 8
            for (int n = 0; n < NV; ++n) sum += of_row[n] * load(of_column + n * L);
            store(sums + int64_t(k) * L, sum);
          }
        }
      }
    }
    for (int64_t k = 0; k < m.nonzeros; ++k) {
      double total = 0;
      for (int i = 0; i < L; ++i) total += double(sums[k * L + i]);
      out[k] += total;
    }
  }
}

template <class T>
constexpr Kernels KERNELS = {forward<T>, weight_grad<T>};
const Kernels kernels_f64 = KERNELS<double>, kernels_f32 = KERNELS<float>, kernels_bf16 = KERNELS<BFloat16>;

}  // namespace stitchkern::spconv::STITCHKERN_PATH
