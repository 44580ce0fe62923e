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

struct BackwardArguments {
  std::vector<Side> sides;  // what batch.sides points to
  Batch batch;
  const double* grad_rows;        // [s, b, n]
  const double* grad_diagonal;    // [s, b, n]
  const double* grad_sums;        // [b, s, s]
  std::vector<Tensor> gradients;  // (n, p_a) float64 each, out
};

inline BackwardArguments unpack_backward(const std::vector<Tensor>& x, const std::vector<int64_t>& kernels,
                                         const Tensor& bandwidth, const Tensor& shift, const Tensor& grad_rows,
                                         const Tensor& grad_diagonal, const Tensor& grad_sums) {
  Arguments forward = unpack(x, kernels, bandwidth, shift);
  const Batch& b = forward.batch;
  const int64_t numbers = b.sides_count * b.bandwidths * b.count;
  BackwardArguments found{std::move(forward.sides), b};
  found.batch.sides = found.sides.data();
  found.batch.rows = found.batch.diagonal = found.batch.sums = nullptr;
  found.grad_rows = state_of(grad_rows, numbers, "grad_rows");
  found.grad_diagonal = state_of(grad_diagonal, numbers, "grad_diagonal");
  found.grad_sums = state_of(grad_sums, b.bandwidths * b.sides_count * b.sides_count, "grad_sums");
  check_same_device(x[0], grad_rows, "x[0]", "grad_rows");
  check_same_device(x[0], grad_diagonal, "x[0]", "grad_diagonal");
  check_same_device(x[0], grad_sums, "x[0]", "grad_sums");
  for (const Tensor& t : x) found.gradients.push_back(torch::stable::new_empty(bandwidth, {t.size(0), t.size(1)}));
  return found;
}

}  // namespace stitchkern::hsic
