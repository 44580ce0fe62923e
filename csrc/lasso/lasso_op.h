// From the op's arguments to a Path and its outputs; shared by the launchers of all backends.
#pragma once

#include "../common/tensor.h"
#include "lasso.h"

namespace stitchkern::lasso {

struct Arguments {
  Path path;
  Tensor coefficients, score;
};

// Contiguous float64 data of these sizes.
inline const double* data_of(const Tensor& t, std::initializer_list<int64_t> sizes, const char* name,
                             const char* shape) {
  bool fits = t.dim() == int64_t(sizes.size()) && t.scalar_type() == ScalarType::Double && t.is_contiguous();
  for (int64_t d = 0; fits && d < t.dim(); ++d) fits = t.size(d) == sizes.begin()[d];
  STD_TORCH_CHECK(fits, name, " must be ", shape, " contiguous float64, ", sizes.begin()[sizes.size() - 1],
                  " in its last dimension; got ", t.dim(), " dimensions, the last of ",
                  t.dim() ? t.size(t.dim() - 1) : 0, t.scalar_type() == ScalarType::Double ? "" : ", of another type");
  return static_cast<const double*>(t.data_ptr());
}

inline Arguments unpack(const Tensor& gram, const Tensor& cross, const Tensor& energy, const Tensor& l1,
                        const Tensor& l2, const Tensor& start, bool positive, double tol, int64_t max_sweeps) {
  STD_TORCH_CHECK(cross.dim() == 2 && l1.dim() == 2, "cross must be (p, q) and l1 (a, q); got ", cross.dim(), " and ",
                  l1.dim(), " dimensions");
  const int64_t p = cross.size(0), q = cross.size(1), alphas = l1.size(0);
  STD_TORCH_CHECK(p >= 1 && q >= 1, "cross must be (p, q) with at least one of each; got (", p, ", ", q, ")");
  STD_TORCH_CHECK(tol > 0 && max_sweeps >= 1 && max_sweeps <= INT32_MAX,
                  "tol must be positive and max_sweeps 1 … 2^31 − 1; got ", tol, " and ", max_sweeps);
  Path path;
  path.gram = data_of(gram, {p, p}, "gram", "(p, p)");
  path.cross = data_of(cross, {p, q}, "cross", "(p, q)");
  path.energy = data_of(energy, {q}, "energy", "(q,)");
  path.l1 = data_of(l1, {alphas, q}, "l1", "(a, q)");
  path.l2 = data_of(l2, {alphas, q}, "l2", "(a, q)");
  path.start = data_of(start, {q, p}, "start", "(q, p)");
  check_same_device(gram, cross, "gram", "cross");
  check_same_device(gram, energy, "gram", "energy");
  check_same_device(gram, l1, "gram", "l1");
  check_same_device(gram, l2, "gram", "l2");
  check_same_device(gram, start, "gram", "start");

  const Tensor coefficients = torch::stable::new_empty(gram, {alphas, q, p});
  const Tensor score = torch::stable::new_empty(gram, {alphas, q, int64_t(SCORES)});
  path.coefficients = static_cast<double*>(coefficients.data_ptr());
  path.score = static_cast<double*>(score.data_ptr());
  path.alphas = alphas, path.q = q, path.p = int(p);
  path.positive = positive, path.tol = tol, path.max_sweeps = int(max_sweeps);
  return {path, coefficients, score};
}

}  // namespace stitchkern::lasso
