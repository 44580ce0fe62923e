// Tasks over torch's own threads (torch.set_num_threads holds). Which thread runs a task is left to timing, so tasks
// must write to places of their own; that is also what keeps results independent of the thread count.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace stitchkern {

// `cost`: of all tasks together, in multiply-adds or the like. Waking threads costs as much as a million of them.
template <class F>
void parallel_tasks(int64_t count, int64_t cost, const F& task) {
  const int64_t useful = 1 + (cost >> 20);
  const int64_t workers = std::min({count, useful, int64_t(torch::stable::get_num_threads())});
  if (workers <= 1) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(i);
  });
}

}  // namespace stitchkern
