// From the ops' arguments to a Batch and its outputs; shared by the launchers of all backends.
#pragma once

#include <vector>

#include "../common/tensor.h"
#include "hsic.h"

namespace stitchkern::hsic {

// (n, p), any strides
inline Rows features_of(const Tensor& t, int64_t side) {
  STD_TORCH_CHECK(t.dim() == 2 && t.size(1) >= 1, "x[", side, "] must be (n, 1 or more features); got ", t.dim(),
                  " dimensions", t.dim() == 2 ? " without features" : "");
  Rows rows;
  rows.data = t.data_ptr();
  rows.dtype = dtype_of(t, "x");
  rows.size[0] = 1, rows.size[2] = t.size(0), rows.stride[2] = t.stride(0);
  rows.channels = t.size(1);
  rows.channel_stride = t.stride(1);
  return rows;
}

struct Arguments {
  std::vector<Side> sides;
  Batch batch;
  Tensor rows, diagonal, sums;
};

inline Arguments unpack(const std::vector<Tensor>& x, const std::vector<int64_t>& kernels, const Tensor& bandwidth,
                        const Tensor& shift) {
  Arguments a;
  const int64_t sides = int64_t(x.size());
  STD_TORCH_CHECK(sides >= 1, "x must hold at least one side");
  STD_TORCH_CHECK(int64_t(kernels.size()) == sides, "kernels must be one code per side, ", sides, "; got ",
                  kernels.size());
  for (int64_t i = 0; i < sides; ++i) {
    STD_TORCH_CHECK(kernels[i] >= 0 && kernels[i] < int64_t(Kernel::count), "kernels must be 0 … ",
                    int(Kernel::count) - 1, "; got ", kernels[i]);
    a.sides.push_back({features_of(x[i], i), Kernel(kernels[i])});
    check_same_device(x[0], x[i], "x[0]", "every x");
    STD_TORCH_CHECK(x[i].size(0) == x[0].size(0), "all x must have the same rows; got ", x[0].size(0), " and ",
                    x[i].size(0));
  }
  STD_TORCH_CHECK(bandwidth.dim() == 2 && bandwidth.size(0) == sides, "bandwidth must be (", sides, ", b)");
  STD_TORCH_CHECK(shift.dim() == 2 && shift.size(0) == sides && shift.size(1) == bandwidth.size(1), "shift must be (",
                  sides, ", b) like bandwidth, b = ", bandwidth.size(1));
  check_same_device(x[0], bandwidth, "x", "bandwidth");
  check_same_device(x[0], shift, "x", "shift");

  Batch& b = a.batch;
  b.sides_count = sides, b.count = x[0].size(0), b.bandwidths = bandwidth.size(1);
  b.bandwidth = state_of(bandwidth, sides * b.bandwidths, "bandwidth");
  b.shift = state_of(shift, sides * b.bandwidths, "shift");
  a.rows = torch::stable::new_empty(bandwidth, {sides, b.bandwidths, b.count});
  a.diagonal = torch::stable::new_empty(bandwidth, {sides, b.bandwidths, b.count});
  a.sums = torch::stable::new_empty(bandwidth, {b.bandwidths, sides, sides});
  b.rows = static_cast<double*>(a.rows.data_ptr());
  b.diagonal = static_cast<double*>(a.diagonal.data_ptr());
  b.sums = static_cast<double*>(a.sums.data_ptr());
  b.sides = nullptr;
  return a;
}

}  // namespace stitchkern::hsic
