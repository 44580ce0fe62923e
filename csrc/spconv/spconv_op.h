// From the ops' arguments to a Map and its output; shared by the launchers of all backends.
#pragma once

#include <limits>
#include <vector>

#include "../common/tensor.h"
#include "spconv.h"

namespace stitchkern::spconv {

// The members of the argument `pattern` that kernels read. Python packs and checks it once (stitchkern/nn/sparse.py);
// with its halves exchanged it is the transposed one.
enum Member : int { CROW, COL, ROW, CROW_T = 4 };
inline constexpr size_t MEMBERS = 8;

struct Arguments {
  Map map;
  Tensor y;
  Tensor values, bias;  // in the type of the sums, kept alive
};

inline const int32_t* indices_of(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 1 && t.scalar_type() == ScalarType::Int && t.is_contiguous(), "pattern: ", name,
                  " must be one contiguous dimension of int32");
  return static_cast<const int32_t*>(t.data_ptr());
}

inline Matrix matrix_of(const std::vector<Tensor>& pattern, const Tensor& x) {
  STD_TORCH_CHECK(pattern.size() == MEMBERS, "pattern must hold ", MEMBERS, " tensors; got ", pattern.size());
  const Tensor &crow = pattern[CROW], &col = pattern[COL], &crow_t = pattern[CROW_T];
  for (const Tensor* t : {&crow, &col, &pattern[ROW], &crow_t}) check_same_device(x, *t, "x", "pattern");
  Matrix m;
  m.crow = indices_of(crow, "crow"), m.col = indices_of(col, "col"), m.row = indices_of(pattern[ROW], "row");
  m.crow_columns = indices_of(crow_t, "crow_t");
  STD_TORCH_CHECK(crow.numel() >= 1 && crow_t.numel() >= 1, "pattern: crow and crow_t must not be empty");
  m.rows = crow.numel() - 1, m.columns = crow_t.numel() - 1, m.nonzeros = col.numel();
  STD_TORCH_CHECK(pattern[ROW].numel() == m.nonzeros, "pattern: row and col must have one length; got ",
                  pattern[ROW].numel(), " and ", m.nonzeros);
  return m;
}

inline int64_t dimension_of(const Tensor& t, int64_t channel_dim, const char* name) {
  const int64_t rank = t.dim();
  STD_TORCH_CHECK(rank >= 1 && rank <= 4, name, " must have 1 … 4 dimensions; got ", rank);
  STD_TORCH_CHECK(channel_dim >= -rank && channel_dim < rank, "channel_dim must be ", -rank, " … ", rank - 1, "; got ",
                  channel_dim);
  return channel_dim < 0 ? channel_dim + rank : channel_dim;
}

// Up to three dimensions of positions around that of channels, any strides
inline Rows positions_of(const Tensor& t, int64_t dim, const char* name) {
  Rows rows;
  rows.data = t.data_ptr();
  rows.dtype = dtype_of(t, name);
  STD_TORCH_CHECK(rows.dtype != DType::f16, name, " must be float64, float32 or bfloat16; got float16");
  int at = 3 - int(t.dim() - 1);
  for (int d = 0; d < at; ++d) rows.size[d] = 1;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (d != dim) rows.size[at] = t.size(d), rows.stride[at] = t.stride(d), ++at;
  rows.channels = t.size(dim), rows.channel_stride = t.stride(dim);
  rows.collapse();
  return rows;
}

// Dense, of `channels`, with channels inside where those of x are; ops.py's shape function says the same.
inline Tensor output_like(const Tensor& x, int64_t dim, int64_t channels) {
  std::vector<int64_t> sizes;
  const bool inside = x.stride(dim) == 1 && x.size(dim) > 1;
  for (int64_t d = 0; d < x.dim(); ++d)
    if (d != dim || !inside) sizes.push_back(d == dim ? channels : x.size(d));
  if (inside) sizes.push_back(channels);
  Tensor y = torch::stable::new_empty(x, sizes);
  for (int64_t d = x.dim() - 1; inside && d > dim; --d) y = torch::stable::transpose(y, d, d - 1);
  return y;
}

// [size] in the type of the sums of x
inline Tensor numbers_of(const Tensor& t, int64_t size, const Tensor& x, const char* name, const char* shape) {
  STD_TORCH_CHECK(t.dim() == 1 && t.numel() == size, name, " must be ", shape, " = (", size, ",); got ", t.dim(),
                  " dimensions of ", t.numel(), " numbers");
  dtype_of(t, name);
  check_same_device(x, t, "x", name);
  const ScalarType type = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor same = t.scalar_type() == type ? t : torch::stable::to(t, std::make_optional(type));
  return same.is_contiguous() ? same : torch::stable::contiguous(same);
}

inline Arguments unpack(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
                        const std::vector<Tensor>& pattern, int64_t channel_dim) {
  const int64_t dim = dimension_of(x, channel_dim, "x");
  Map map;
  map.x = positions_of(x, dim, "x");
  map.matrix = matrix_of(pattern, x);
  const Matrix& m = map.matrix;
  STD_TORCH_CHECK(map.x.channels == m.columns, "x must have ", m.columns, " channels in dimension ", dim, "; got ",
                  map.x.channels);
  const Tensor v = numbers_of(values, m.nonzeros, x, "values", "(nonzeros,)");
  const Tensor b = bias ? numbers_of(*bias, m.rows, x, "bias", "(q,)") : v;
  map.values = v.data_ptr();
  if (bias) map.bias = b.data_ptr();
  const Tensor y = output_like(x, dim, m.rows);
  map.y = positions_of(y, dim, "y");
  return {map, y, v, b};
}

struct GradArguments {
  Rows x, grad;
  Matrix matrix;
  int64_t positions;
};

inline GradArguments unpack_grad(const Tensor& x, const Tensor& grad, const std::vector<Tensor>& pattern,
                                 int64_t channel_dim) {
  const int64_t dim = dimension_of(x, channel_dim, "x");
  GradArguments a{positions_of(x, dim, "x"), {}, matrix_of(pattern, x), 0};
  STD_TORCH_CHECK(grad.dim() == x.dim() && grad.scalar_type() == x.scalar_type(),
                  "grad must have the dimensions and the type of x; got ", grad.dim(), " dimensions");
  check_same_device(x, grad, "x", "grad");
  for (int64_t d = 0; d < x.dim(); ++d)
    STD_TORCH_CHECK(d == dim || grad.size(d) == x.size(d), "grad must have the positions of x; dimension ", d, " has ",
                    grad.size(d), ", not ", x.size(d));
  a.grad = positions_of(grad, dim, "grad");
  STD_TORCH_CHECK(a.x.channels == a.matrix.columns && a.grad.channels == a.matrix.rows, "x and grad must have ",
                  a.matrix.columns, " and ", a.matrix.rows, " channels in dimension ", dim, "; got ", a.x.channels,
                  " and ", a.grad.channels);
  a.positions = a.x.count();
  return a;
}

}  // namespace stitchkern::spconv
