// The sparse 1×1 convolution, y = M x + b at every position, and the gradient of the non-zeros of M: what all backends
// share. No torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "../common/rows.h"

namespace stitchkern::spconv {

// M in compressed rows; how many entries its columns have tells which channels of x are never read.
struct Matrix {
  int64_t rows = 0, columns = 0, nonzeros = 0;
  const int32_t* crow = nullptr;          // [rows + 1]
  const int32_t* col = nullptr;           // [nonzeros]
  const int32_t* row = nullptr;           // [nonzeros]
  const int32_t* crow_columns = nullptr;  // [columns + 1], of the transposed matrix

  SK_HOST_DEVICE bool uses(int64_t column) const { return crow_columns[column] < crow_columns[column + 1]; }
};

struct Map {
  Rows x;  // positions of `columns` channels
  Rows y;  // the same positions, `rows` channels, written; either channels or positions have stride one
  Matrix matrix;
  const void* values = nullptr;  // [nonzeros], in the type of the sums
  const void* bias = nullptr;    // [rows], may be null

  SK_HOST_DEVICE bool channels_inside() const { return y.channel_stride == 1; }
};

// What multiplies and adds: float64 for float64, float32 for everything else.
template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <class T>
using Sum = typename SumOf<T>::type;

template <class T>
SK_HOST_DEVICE T narrow(Sum<T> v) {
  return v;
}
template <>
SK_HOST_DEVICE BFloat16 narrow<BFloat16>(float v) {
  return round_to_bf16(v);
}

// Calls f(T{}) with the type of the data; spconv_op.h lets no other one through.
template <class F>
inline void dispatch_data(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64: return f(double{});
    case DType::bf16: return f(BFloat16{});
    default: return f(float{});
  }
}

}  // namespace stitchkern::spconv
