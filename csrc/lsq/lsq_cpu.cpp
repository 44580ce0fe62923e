// Batches of small least-squares problems on the CPU.
//
// Bound: p³/6 + p² (q + k) multiply-adds a problem over the fused multiply-add peak. So one problem is one task and
// stays in the caches of one core: the triangle U (p = 256: 270 KB, p = 128: 70, p = 64: 18 are touched) and one strip
// of right-hand sides at a time, which passes through both eliminations while it lies in the first-level cache (p = 64:
// 6 KB) and leaves as a piece of the solution. p = q = 64 runs at six tenths of the rate of a large matrix product, p =
// q = 128 at eight (two cores, AVX2): small triangles and short sums cost the rest.
#include <tuple>

#include "../common/cpu.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "lsq_cpu.h"
#include "lsq_op.h"

namespace stitchkern::lsq {
namespace {

std::tuple<Tensor, Tensor, Tensor> lsq_solve_cpu(Tensor cov_xx, Tensor cov_xy, Tensor mean_x, Tensor ridge,
                                                 Tensor probes) {
  const auto [batch, solution, sums, score] = unpack(cov_xx, cov_xy, mean_x, ridge, probes, CPU_FEATURES);
  const Kernels& kernel = STITCHKERN_FOR_CPU_PATH(kernels);
  const int64_t p = batch.p, cost = p * p * p / 6 + p * p * (batch.q + batch.k);
  parallel_tasks(batch.count, batch.count * cost, [&, &batch = batch](int64_t i) {
    kernel.solve(Problem(batch, i), thread_scratch(kernel.scratch_bytes));
  });
  return {solution, sums, score};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stitchkern, CPU, m) { m.impl("lsq_solve", TORCH_BOX(&lsq_solve_cpu)); }

}  // namespace stitchkern::lsq
