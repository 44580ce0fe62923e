// Paths of Lasso problems on the CPU.
//
// Bound: coordinate descent would do p multiply-adds for every coefficient it moves, as often as the condition of the
// problem demands: a few sweeps of well-conditioned features, thousands of real activations. So a target carries its
// active set A, with signs, and the Cholesky factor of H_AA, and solves for w_A itself: A's optimum costs |A|² whatever
// the condition. What is left is to find A. Features whose |c_j| is beyond l1 join, all at once, each for a forward
// elimination; on the way to the solution the first coefficient that would change its sign stops at 0 and leaves, which
// takes rotations of the factor (the feature-sign search of Lee et al. 2007, along the grid of penalties). The
// objective falls with every step, so that no set comes twice. Linearly dependent features cannot join; they replace
// one of those they depend on, along the direction in which no prediction changes. A step of a path costs p |A| for c
// and |A|² for each solution, from G and a factor in the second-level cache.
//
// Grouped: block coordinate descent; a channel's coefficients move together, and with them the gradients of all active
// channels.
#include <tuple>

#include "../common/cpu.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "lasso_cpu.h"
#include "lasso_op.h"

namespace stitchkern::lasso {
namespace {

std::tuple<Tensor, Tensor> lasso_path_cpu(Tensor gram, Tensor cross, Tensor energy, Tensor l1, Tensor l2, Tensor start,
                                          bool positive, bool grouped, double tol, int64_t max_sweeps) {
  const auto [path, coefficients, score] = unpack(gram, cross, energy, l1, l2, start, positive, tol, max_sweeps);
  const Kernels& kernel = STITCHKERN_FOR_CPU_PATH(kernels);
  if (grouped) {
    Scratch scratch;  // not a thread's: it may be large
    kernel.grouped(path, scratch.get<char>(kernel.grouped_scratch(path.p, path.q)));
    return {coefficients, score};
  }
  const int64_t bytes = kernel.scratch(path.p), p = path.p, cost = path.q * path.alphas * p * p;
  parallel_tasks(path.q, cost, [&, &path = path](int64_t k) {
    Scratch scratch;
    kernel.target(path, k, scratch.get<char>(bytes));
  });
  return {coefficients, score};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stitchkern, CPU, m) { m.impl("lasso_path", TORCH_BOX(&lasso_path_cpu)); }

}  // namespace stitchkern::lasso
