// Host side: from torch's stable tensors to the plain structs that kernels read, with checks that name the argument.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "rows.h"

namespace stitchkern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return DType::f64;
    case ScalarType::Float: return DType::f32;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: STD_TORCH_CHECK(false, name, " must be float64, float32, bfloat16 or float16");
  }
}

// (n, h, w, c), any strides
inline Rows rows_of(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, name, " must be (n, h, w, c); got ", t.dim(), " dimensions");
  Rows rows;
  rows.data = t.data_ptr();
  rows.dtype = dtype_of(t, name);
  for (int d = 0; d < 3; ++d) rows.size[d] = t.size(d), rows.stride[d] = t.stride(d);
  rows.channels = t.size(3);
  rows.channel_stride = t.stride(3);
  rows.collapse();
  return rows;
}

// (n, h, w) float64, any strides: rows of one channel
inline Rows weights_of(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 3 && t.scalar_type() == ScalarType::Double, name, " must be (n, h, w) float64");
  Rows rows;
  rows.data = t.data_ptr();
  rows.dtype = DType::f64;
  for (int d = 0; d < 3; ++d) rows.size[d] = t.size(d), rows.stride[d] = t.stride(d);
  rows.channels = 1;
  rows.collapse();
  return rows;
}

// A float64 contiguous state tensor of exactly `numel` numbers
inline double* state_of(const Tensor& t, int64_t numel, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Double && t.is_contiguous() && t.numel() == numel, name,
                  " must be contiguous float64 with ", numel, " elements; got ", t.numel());
  return static_cast<double*>(t.data_ptr());
}

inline void check_same_device(const Tensor& a, const Tensor& b, const char* name_a, const char* name_b) {
  STD_TORCH_CHECK(a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(), name_a, " and ", name_b,
                  " must be on one device");
}

}  // namespace stitchkern
