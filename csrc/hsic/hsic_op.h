// From the op's arguments to a Batch and its outputs; shared by the launchers of all backends.
#pragma once

#include "../common/tensor.h"
#include "hsic.h"

namespace stitchkern::hsic {

struct Arguments {
  Batch batch;
  Tensor rows, diagonal, sums;
};

// (n, p), any strides
inline Rows features_of(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2 && t.size(1) >= 1, name, " must be (n, 1 or more features); got ", t.dim(),
                  " dimensions", t.dim() == 2 ? " without features" : "");
  Rows rows;
  rows.data = t.data_ptr();
  rows.dtype = dtype_of(t, name);
  rows.size[0] = 1, rows.size[2] = t.size(0), rows.stride[2] = t.stride(0);
  rows.channels = t.size(1);
  rows.channel_stride = t.stride(1);
  return rows;
}

inline Kernel kernel_of(int64_t code, const char* name) {
  STD_TORCH_CHECK(code >= 0 && code < int64_t(Kernel::count), name, " must be 0 … ", int(Kernel::count) - 1, "; got ",
                  code);
  return static_cast<Kernel>(code);
}

inline Arguments unpack(const Tensor& x, const Tensor& y, int64_t kernel_x, int64_t kernel_y, const Tensor& bandwidth,
                        const Tensor& shift) {
  Batch b;
  b.x[X] = features_of(x, "x"), b.x[Y] = features_of(y, "y");
  b.kernel[X] = kernel_of(kernel_x, "kernel_x"), b.kernel[Y] = kernel_of(kernel_y, "kernel_y");
  b.count = b.x[X].count();
  STD_TORCH_CHECK(b.x[Y].count() == b.count, "x and y must have the same rows; got ", b.count, " and ", b.x[Y].count());
  STD_TORCH_CHECK(bandwidth.dim() == 2 && bandwidth.size(0) == SIDES, "bandwidth must be (2, b); got ", bandwidth.dim(),
                  " dimensions");
  b.bandwidths = bandwidth.size(1);
  STD_TORCH_CHECK(shift.dim() == 2 && shift.size(0) == SIDES && shift.size(1) == b.bandwidths,
                  "shift must be (2, b) like bandwidth, b = ", b.bandwidths);
  b.bandwidth = state_of(bandwidth, SIDES * b.bandwidths, "bandwidth");
  b.shift = state_of(shift, SIDES * b.bandwidths, "shift");
  check_same_device(x, y, "x", "y");
  check_same_device(x, bandwidth, "x", "bandwidth");
  check_same_device(x, shift, "x", "shift");

  const Tensor rows = torch::stable::new_empty(bandwidth, {int64_t(SIDES), b.bandwidths, b.count});
  const Tensor diagonal = torch::stable::new_empty(bandwidth, {int64_t(SIDES), b.bandwidths, b.count});
  const Tensor sums = torch::stable::new_empty(bandwidth, {int64_t(PRODUCTS), b.bandwidths});
  b.rows = static_cast<double*>(rows.data_ptr());
  b.diagonal = static_cast<double*>(diagonal.data_ptr());
  b.sums = static_cast<double*>(sums.data_ptr());
  return {b, rows, diagonal, sums};
}

}  // namespace stitchkern::hsic
