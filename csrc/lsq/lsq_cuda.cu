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

// Shared memory that one block may have (CUDA programming guide, technical specifications by compute capability).
int most_shared_bytes(int capability) {
  if (capability == 80 || capability == 87) return 163 << 10;
  if (capability >= 90 && capability < 120) return 227 << 10;
  return 99 << 10;
}

// A strip for each warp that finds columns, as far as they fit.
Task plan(const Batch& batch, int capability) {
  const int64_t groups = (batch.q + batch.k + GROUP - 1) / GROUP;
  for (int strips = int(std::min<int64_t>(WARPS, groups)); strips > 1; --strips)
    if (const Task task(batch, strips); task.shared_bytes() <= most_shared_bytes(capability)) return task;
  return Task(batch, 1);
}

std::tuple<Tensor, Tensor> lsq_solve_cuda(Tensor cov_xx, Tensor cov_xy, Tensor ridge, Tensor probes) {
  // check
  const auto [batch, solution, score] = unpack(cov_xx, cov_xy, ridge, probes);

  // nothing to do
  if (batch.count == 0) return {solution, score};

  // plan
#if !defined(STITCHKERN_EXECUTOR)
  const torch::stable::accelerator::DeviceGuard guard(cov_xx.get_device_index());
#endif
  const Task task = plan(batch, device_info(cov_xx.get_device_index()).capability);
  poison(batch.solution, batch.count * batch.p * batch.q * int64_t(sizeof(double)));
  poison(batch.score, batch.count * SCORES * int64_t(sizeof(double)));

  // launch
  launch("lsq solve", solve, batch.count, THREADS, task.shared_bytes(), current_stream(cov_xx.get_device_index()),
         task);
  return {solution, score};
}

}  // namespace
}  // namespace stitchkern::lsq

STITCHKERN_CUDA_IMPL(m) { m.impl("lsq_solve", TORCH_BOX(&stitchkern::lsq::lsq_solve_cuda)); }
