// Batches of small least-squares problems on the GPU: the launcher. What is computed, and why in this way, is in
// lsq_kernels.cuh.
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <tuple>

#include "../common/launch.h"
#include "lsq_kernels.cuh"
#include "lsq_op.h"

namespace stitchkern::lsq {
namespace {

// A strip for each warp that finds columns, as far as they fit.
Task plan(const Batch& batch, int capability) {
  const int64_t groups = (batch.q + batch.k + GROUP - 1) / GROUP;
  for (int strips = int(std::min<int64_t>(WARPS, groups)); strips > 1; --strips)
    if (const Task task(batch, strips); task.shared_bytes() <= most_shared_bytes(capability)) return task;
  return Task(batch, 1);
}

std::tuple<Tensor, Tensor, Tensor> lsq_solve_cuda(Tensor cov_xx, Tensor cov_xy, Tensor mean_x, Tensor ridge,
                                                  Tensor probes) {
  // check
  const auto [batch, solution, sums, score] = unpack(cov_xx, cov_xy, mean_x, ridge, probes, CUDA_FEATURES);

  // nothing to do
  if (batch.count == 0) return {solution, sums, score};

  // plan
  poison(batch.solution, batch.count * batch.p * batch.q * int64_t(sizeof(double)));
  poison(batch.sums, batch.count * SUMS * batch.q * int64_t(sizeof(double)));
  poison(batch.score, batch.count * SCORES * int64_t(sizeof(double)));
#if !defined(STITCHKERN_EXECUTOR)
  const torch::stable::accelerator::DeviceGuard guard(cov_xx.get_device_index());
#endif
  const Task task = plan(batch, device_info(cov_xx.get_device_index()).capability);

  // launch
  launch("lsq solve", solve, batch.count, THREADS, task.shared_bytes(), current_stream(cov_xx.get_device_index()),
         task);
  return {solution, sums, score};
}

}  // namespace
}  // namespace stitchkern::lsq

STITCHKERN_CUDA_IMPL(m) { m.impl("lsq_solve", TORCH_BOX(&stitchkern::lsq::lsq_solve_cuda)); }
