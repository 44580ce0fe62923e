// From the op's arguments to a Batch and its outputs; shared by the launchers of all backends.
#pragma once

#include <string>
#include <vector>

#include "../common/tensor.h"
#include "hsic.h"

namespace stitchkern::hsic {

struct Arguments {
  std::vector<Side> sides;  // what batch.sides points to
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

inline Arguments unpack(const std::vector<Tensor>& x, const std::vector<int64_t>& kernels, const Tensor& bandwidth,
                        const Tensor& shift) {
  Arguments found;
  const int64_t sides = int64_t(x.size());
  STD_TORCH_CHECK(sides >= 1, "x must hold at least one side");
  STD_TORCH_CHECK(int64_t(kernels.size()) == sides, "kernels must hold one code for each of ", sides, " sides; got ",
                  kernels.size());
  STD_TORCH_CHECK(bandwidth.dim() == 2 && bandwidth.size(0) == sides, "bandwidth must be (", sides,
                  ", b), a row for each side; got ", bandwidth.dim(), " dimensions");
  Batch& b = found.batch;
  b.sides_count = sides;
  b.bandwidths = bandwidth.size(1);
  STD_TORCH_CHECK(shift.dim() == 2 && shift.size(0) == sides && shift.size(1) == b.bandwidths, "shift must be (", sides,
                  ", b) like bandwidth, b = ", b.bandwidths);
  b.bandwidth = state_of(bandwidth, sides * b.bandwidths, "bandwidth");
  b.shift = state_of(shift, sides * b.bandwidths, "shift");
  check_same_device(x[0], bandwidth, "x[0]", "bandwidth");
  check_same_device(x[0], shift, "x[0]", "shift");
  for (int64_t a = 0; a < sides; ++a) {
    const std::string name = "x[" + std::to_string(a) + "]";
    STD_TORCH_CHECK(kernels[a] >= 0 && kernels[a] < int64_t(Kernel::count), "kernels must be 0 … ",
                    int(Kernel::count) - 1, "; got ", kernels[a]);
    found.sides.push_back({features_of(x[a], name.c_str()), static_cast<Kernel>(kernels[a])});
    check_same_device(x[0], x[a], "x[0]", name.c_str());
    STD_TORCH_CHECK(x[a].size(0) == x[0].size(0), "all sides must have the same rows; x[0] has ", x[0].size(0), ", ",
                    name, " ", x[a].size(0));
  }
  b.sides = found.sides.data();
  b.count = x[0].size(0);

  found.rows = torch::stable::new_empty(bandwidth, {sides, b.bandwidths, b.count});
  found.diagonal = torch::stable::new_empty(bandwidth, {sides, b.bandwidths, b.count});
  found.sums = torch::stable::new_empty(bandwidth, {b.bandwidths, sides, sides});
  b.rows = static_cast<double*>(found.rows.data_ptr());
  b.diagonal = static_cast<double*>(found.diagonal.data_ptr());
  b.sums = static_cast<double*>(found.sums.data_ptr());
  return found;
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
