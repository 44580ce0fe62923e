// From the op's arguments to a Batch and its outputs; shared by the launchers of all backends.
#pragma once

#include "../common/tensor.h"
#include "lsq.h"

namespace stitchkern::lsq {

struct Arguments {
  Batch batch;
  Tensor solution, sums, score;
};

// Float64 data whose last `inner` dimensions are contiguous, in row-major order.
inline const double* data_of(const Tensor& t, int64_t dimensions, int64_t inner, const char* name, const char* shape) {
  STD_TORCH_CHECK(t.dim() == dimensions && t.scalar_type() == ScalarType::Double, name, " must be ", shape,
                  " float64; got ", t.dim(), " dimensions",
                  t.scalar_type() == ScalarType::Double ? "" : " of another type");
  int64_t stride = 1;
  for (int64_t d = dimensions - 1; d >= dimensions - inner; --d) {
    STD_TORCH_CHECK(t.numel() == 0 || t.size(d) == 1 || t.stride(d) == stride, name, " must be ", shape,
                    " with its last two dimensions contiguous; dimension ", d, " has stride ", t.stride(d), ", not ",
                    stride);
    stride *= t.size(d);
  }
  return static_cast<const double*>(t.data_ptr());
}

inline Arguments unpack(const Tensor& cov_xx, const Tensor& cov_xy, const Tensor& mean_x, const Tensor& ridge,
                        const Tensor& probes, int max_features) {
  Batch b;
  b.cov_xx = data_of(cov_xx, 3, 2, "cov_xx", "(b, p, p)");
  b.cov_xy = data_of(cov_xy, 3, 2, "cov_xy", "(b, p, q)");
  b.mean_x = data_of(mean_x, 2, 1, "mean_x", "(b, p)");
  b.ridge = data_of(ridge, 1, 0, "ridge", "(b,)");
  b.probes = data_of(probes, 2, 2, "probes", "(p, k)");
  check_same_device(cov_xx, cov_xy, "cov_xx", "cov_xy");
  check_same_device(cov_xx, mean_x, "cov_xx", "mean_x");
  check_same_device(cov_xx, ridge, "cov_xx", "ridge");
  check_same_device(cov_xx, probes, "cov_xx", "probes");

  const int64_t count = cov_xx.size(0), p = cov_xx.size(1), q = cov_xy.size(2), k = probes.size(1);
  STD_TORCH_CHECK(cov_xx.size(2) == p, "cov_xx must be (b, p, p); got (", count, ", ", p, ", ", cov_xx.size(2), ")");
  STD_TORCH_CHECK(p >= 1 && p <= max_features, "cov_xx must have 1 … ", max_features, " features; got ", p);
  STD_TORCH_CHECK(cov_xy.size(0) == count && cov_xy.size(1) == p && q >= 1, "cov_xy must be (b, p, q) = (", count, ", ",
                  p, ", 1 or more); got (", cov_xy.size(0), ", ", cov_xy.size(1), ", ", q, ")");
  STD_TORCH_CHECK(mean_x.size(0) == count && mean_x.size(1) == p, "mean_x must be (b, p) = (", count, ", ", p,
                  "); got (", mean_x.size(0), ", ", mean_x.size(1), ")");
  STD_TORCH_CHECK(ridge.size(0) == count, "ridge must be (b,) = (", count, ",); got (", ridge.size(0), ",)");
  STD_TORCH_CHECK(probes.size(0) == p && k <= MAX_PROBES, "probes must be (p, k) = (", p, ", 0 … ", MAX_PROBES,
                  "); got (", probes.size(0), ", ", k, ")");
  b.stride_xx = cov_xx.stride(0), b.stride_xy = cov_xy.stride(0);
  b.stride_mean = mean_x.stride(0), b.stride_ridge = ridge.stride(0);
  b.count = count, b.q = q, b.p = int(p), b.k = int(k);

  const Tensor solution = torch::stable::new_empty(cov_xx, {count, p, q});
  const Tensor sums = torch::stable::new_empty(cov_xx, {count, int64_t(SUMS), q});
  const Tensor score = torch::stable::new_empty(cov_xx, {count, int64_t(SCORES)});
  b.solution = static_cast<double*>(solution.data_ptr());
  b.sums = static_cast<double*>(sums.data_ptr());
  b.score = static_cast<double*>(score.data_ptr());
  return {b, solution, sums, score};
}

}  // namespace stitchkern::lsq
