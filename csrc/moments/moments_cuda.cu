// Streaming moments on the GPU: the launcher. What is computed, and why in this way, is in moments_kernels.cuh.
#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "../common/launch.h"
#include "moments_kernels.cuh"
#include "moments_op.h"

namespace stitchkern::moments {
namespace {

// Whether vectors of `width` numbers may be loaded along the stride-one direction: base and all other strides in step.
template <class T>
Access access_of(const Rows& r) {
  constexpr int width = Piece<T, TILE_ROWS, 32>::V;
  const bool aligned = reinterpret_cast<uintptr_t>(r.data) % (width * sizeof(T)) == 0;
  const auto in_step = [](int64_t size, int64_t stride) { return size == 1 || stride % width == 0; };
  const bool samples_in_step = in_step(r.size[0], r.stride[0]) && in_step(r.size[1], r.stride[1]);
  const bool rows_inside = r.channel_stride != 1 && r.stride[2] < r.channel_stride;
  const bool rows_wide = r.stride[2] == 1 && r.size[2] % width == 0 && in_step(r.channels, r.channel_stride);
  const bool channels_wide = r.channel_stride == 1 && in_step(r.size[2], r.stride[2]);
  return {rows_inside, aligned && samples_in_step && (rows_inside ? rows_wide : channels_wide)};
}

template <class Math, class T>
void launch_gram(const Task& task, Stream stream) {
  constexpr GramShared<Math> shared;
  launch("moments gram", gram<Math, T>, task.plan.pairs * task.plan.splits, THREADS, shared.first.end(), stream, task);
}

template <class T>
void update(Task& task, Stream stream) {
  const Plan& plan = task.plan;
  task.access_x = access_of<T>(task.x);
  task.access_y = access_of<T>(task.y);
  const auto blocks = [](int64_t count, int64_t each) { return (count + each - 1) / each; };

  const int64_t pilots = blocks(task.p(), PILOT_FEATURES) + blocks(task.y.channels, PILOT_FEATURES);
  launch("moments prepare", prepare<T>, pilots + plan.weight_chunks, THREADS, PrepareShared{}.sums.end(), stream, task);
  switch (plan.kind) {
    case Kind::plain: launch_gram<DoubleMath<false>, T>(task, stream); break;
    case Kind::float64: launch_gram<DoubleMath<true>, T>(task, stream); break;
    default:
      if constexpr (sizeof(T) < 8) {  // float64 data is never planned for bfloat16
        if (plan.kind == Kind::bf16x1) launch_gram<SplitMath<1>, T>(task, stream);
        if (plan.kind == Kind::bf16x3) launch_gram<SplitMath<3>, T>(task, stream);
        if (plan.kind == Kind::bf16x6) launch_gram<SplitMath<6>, T>(task, stream);
      }
  }
  if (plan.norm_chunks)
    launch("moments norms", norms<T>, plan.norm_chunks, THREADS, NormsShared{}.third.end(), stream, task);
  const int64_t features = blocks(task.features(), THREADS);
  launch("moments settle", settle, features, THREADS, FoundShared{}.found.end(), stream, task);
  launch("moments apply", apply, plan.pairs * PIECES + features, THREADS, FoundShared{}.found.end(), stream, task);
}

void moments_update_cuda(Tensor second, Tensor first, Tensor third, Tensor origin, Tensor totals, Tensor x,
                         std::optional<Tensor> y, std::optional<Tensor> weight, int64_t precision, bool check_finite) {
  // check
  const auto [state, batch] = unpack(second, first, third, origin, totals, x, y, weight, precision, check_finite);
  STD_TORCH_CHECK(!batch.y.channels || batch.x.dtype == batch.y.dtype, "x and y must have one dtype on a GPU");

  // nothing to do
  if (batch.rows == 0 || batch.features() == 0) return;

  // plan
#if !defined(STITCHKERN_EXECUTOR)
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
#endif
  const DeviceInfo device = device_info(x.get_device_index());
  Task task{batch.x, batch.y, batch.weight, {}, {}, batch.rows, state, {}, nullptr, check_finite};
  task.plan = plan(batch.rows, batch.p(), batch.y.channels, batch.in_float64(), batch.precision,
                   batch.weight.data != nullptr, state.third != nullptr, device.capability, device.multiprocessors);
  const Tensor workspace = torch::stable::new_empty(second, {task.plan.workspace_bytes / int64_t(sizeof(double))});
  task.workspace = static_cast<double*>(workspace.data_ptr());
  poison(task.workspace, task.plan.workspace_bytes);

  // launch
  const Stream stream = current_stream(x.get_device_index());
  dispatch(batch.x.dtype, [&](auto type) { update<decltype(type)>(task, stream); });
}

}  // namespace
}  // namespace stitchkern::moments

STITCHKERN_CUDA_IMPL(m) { m.impl("moments_update_", TORCH_BOX(&stitchkern::moments::moments_update_cuda)); }
