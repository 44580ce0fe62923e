// The library stitchkern_executor: the product's op schemas on CPU tensors, run by the executor; and, through ctypes,
// what the tests set and ask.
#include <torch/csrc/stable/library.h>

#include "../../csrc/moments/moments_plan.h"
#include "../../csrc/ops.h"
#include "include/executor.h"

STABLE_TORCH_LIBRARY(stitchkern_executor, m) {
  for (const char* schema : stitchkern::SCHEMAS) m.def(schema);
}

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void executor_set(int order, int capability, int multiprocessors, int kind) {
  executor::settings() = {order, capability, multiprocessors};
  stitchkern::moments::forced_kind() = kind;
}

// out: kind, pairs, splits, split_rows, workspace_bytes, norm_chunks
EXPORT void executor_moments_plan(int64_t rows, int64_t p, int64_t q, int in_float64, int precision, int capability,
                                  int multiprocessors, int64_t* out) {
  using namespace stitchkern::moments;
  const Plan made = plan(rows, p, q, in_float64, Precision(precision), false, q > 0, capability, multiprocessors);
  const int64_t values[] = {int64_t(made.kind), made.pairs,           made.splits,
                            made.split_rows,    made.workspace_bytes, made.norm_chunks};
  for (int i = 0; i < 6; ++i) out[i] = values[i];
}
