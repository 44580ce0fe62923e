// Tasks over torch's own threads (torch.set_num_threads holds). Which thread runs a task is left to timing, so tasks
// must write to places of their own; that is also what keeps results independent of the thread count.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace stitchkern {

template <class F>
void parallel_tasks(int64_t count, const F& task) {
  const int64_t workers = std::min<int64_t>(count, torch::stable::get_num_threads());
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
