// Paths of Lasso problems on the GPU: the launcher. What is computed, and why in this way, is in lasso_kernels.cuh.
#include <torch/csrc/stable/accelerator.h>

#include <tuple>

#include "../common/launch.h"
#include "lasso_kernels.cuh"
#include "lasso_op.h"

namespace stitchkern::lasso {
namespace {

std::tuple<Tensor, Tensor> lasso_path_cuda(Tensor gram, Tensor cross, Tensor energy, Tensor l1, Tensor l2, Tensor start,
                                           bool positive, bool grouped, double tol, int64_t max_sweeps) {
  // check
  const auto [path, coefficients, score] = unpack(gram, cross, energy, l1, l2, start, positive, tol, max_sweeps);
  STD_TORCH_CHECK(path.p <= CUDA_FEATURES, "on a GPU x may have ", CUDA_FEATURES, " features; got ", path.p);

  // nothing to do
  if (path.alphas == 0) return {coefficients, score};

  // plan
  poison(path.coefficients, coefficients.numel() * int64_t(sizeof(double)));
  poison(path.score, score.numel() * int64_t(sizeof(double)));
#if !defined(STITCHKERN_EXECUTOR)
  const torch::stable::accelerator::DeviceGuard guard(gram.get_device_index());
#endif
  const Stream stream = current_stream(gram.get_device_index());

  // launch
  if (grouped) {
    const Tensor workspace = torch::stable::new_empty(gram, {GroupedTask::workspace(path.p, path.q)});
    poison(workspace.data_ptr(), workspace.numel() * int64_t(sizeof(double)));
    const GroupedTask task(path, static_cast<double*>(workspace.data_ptr()));
    launch("lasso path, grouped", descend_grouped, 1, THREADS, task.shared_bytes(), stream, task);
    return {coefficients, score};
  }
  const int warps = path.p <= CUDA_FEATURES / MOST_WARPS ? MOST_WARPS : 1;
  const TargetsTask task(path, warps);
  launch("lasso path", descend, (path.q + warps - 1) / warps, warps * WARP, task.shared_bytes(), stream, task);
  return {coefficients, score};
}

}  // namespace
}  // namespace stitchkern::lasso

STITCHKERN_CUDA_IMPL(m) { m.impl("lasso_path", TORCH_BOX(&stitchkern::lasso::lasso_path_cuda)); }
