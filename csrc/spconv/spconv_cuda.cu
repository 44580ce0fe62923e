// The sparse 1×1 convolution on the GPU: the launchers. What is computed, and why in this way, is in
// spconv_kernels.cuh.
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../common/launch.h"
#include "spconv_kernels.cuh"
#include "spconv_op.h"

namespace stitchkern::spconv {
namespace {

constexpr int64_t PARTIAL_BYTES = int64_t(1) << 26;  // of the sums of all chunks of a weight gradient

// Calls f with the widest tile that fits: the widest of all only where two blocks share a multiprocessor.
template <class F>
void with_tile(const char* what, int64_t channels, int most, int64_t (*bytes)(int positions, int64_t channels), F&& f) {
  if (bytes(64, channels) <= most / 2) return f(std::integral_constant<int, 64>{});
  if (bytes(32, channels) <= most) return f(std::integral_constant<int, 32>{});
  if (bytes(16, channels) <= most) return f(std::integral_constant<int, 16>{});
  STD_TORCH_CHECK(bytes(8, channels) <= most, what, ": ", channels,
                  " channels do not fit into the shared memory of this GPU; use the dense product");
  f(std::integral_constant<int, 8>{});
}

template <class T>
int64_t forward_bytes(int positions, int64_t columns) {
  switch (positions) {
    case 64: return ForwardTask<T, 64>::shared_bytes(columns);
    case 32: return ForwardTask<T, 32>::shared_bytes(columns);
    case 16: return ForwardTask<T, 16>::shared_bytes(columns);
    default: return ForwardTask<T, 8>::shared_bytes(columns);
  }
}

template <class T>
int64_t weight_bytes(int positions, int64_t channels) {
  switch (positions) {
    case 64: return WeightTask<T, 64>::shared_bytes(channels);
    case 32: return WeightTask<T, 32>::shared_bytes(channels);
    case 16: return WeightTask<T, 16>::shared_bytes(channels);
    default: return WeightTask<T, 8>::shared_bytes(channels);
  }
}

int64_t bytes_of(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2; }

Tensor spconv_cuda(Tensor x, Tensor values, std::optional<Tensor> bias, std::vector<Tensor> pattern,
                   int64_t channel_dim) {
  // check
  const Arguments a = unpack(x, values, bias, pattern, channel_dim);
  const Map& map = a.map;

  // nothing to do
  const int64_t positions = map.x.count(), rows = map.matrix.rows;
  if (positions == 0 || rows == 0) return a.y;

  // plan
  poison(const_cast<void*>(map.y.data), positions * rows * bytes_of(map.y.dtype));
#if !defined(STITCHKERN_EXECUTOR)
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
#endif
  const DeviceInfo device = device_info(x.get_device_index());
  const Stream stream = current_stream(x.get_device_index());
  dispatch_data(map.x.dtype, [&](auto type) {
    using T = decltype(type);
    with_tile("spconv", map.matrix.columns, most_shared_bytes(device.capability), forward_bytes<T>, [&](auto width) {
      constexpr int P = width.value;
      const int64_t tiles = (positions + P - 1) / P;
      const int64_t parts = std::clamp<int64_t>(2 * device.multiprocessors / tiles, 1, (rows + CHUNK - 1) / CHUNK);
      const ForwardTask<T, P> task(map, int(parts));

      // launch
      launch("spconv forward", forward<T, P>, task.blocks(), THREADS, task.offset.end(), stream, task);
    });
  });
  return a.y;
}

Tensor spconv_weight_grad_cuda(Tensor x, Tensor grad, std::vector<Tensor> pattern, int64_t channel_dim) {
  // check
  const GradArguments a = unpack_grad(x, grad, pattern, channel_dim);
  const Matrix& m = a.matrix;
  const ScalarType type = a.x.dtype == DType::f64 ? ScalarType::Double : ScalarType::Float;
  const Tensor out = torch::stable::new_empty(x, {m.nonzeros}, std::make_optional(type));

  // nothing to do
  if (m.nonzeros == 0) return out;

  // plan
#if !defined(STITCHKERN_EXECUTOR)
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
#endif
  const DeviceInfo device = device_info(x.get_device_index());
  const int64_t groups = (m.nonzeros + ENTRIES - 1) / ENTRIES;
  const int64_t wanted = std::min(4 * device.multiprocessors / groups, PARTIAL_BYTES / (8 * m.nonzeros));
  const int64_t most_chunks = std::clamp<int64_t>(wanted, 1, std::max<int64_t>((a.positions + 63) / 64, 1));
  const int64_t chunk = std::max<int64_t>((a.positions + most_chunks - 1) / most_chunks, 1);
  const int64_t chunks = std::max<int64_t>((a.positions + chunk - 1) / chunk, 1);
  const Tensor sums = torch::stable::new_empty(x, {chunks, m.nonzeros}, std::make_optional(ScalarType::Double));
  double* partial = static_cast<double*>(sums.data_ptr());
  poison(partial, chunks * m.nonzeros * int64_t(sizeof(double)));
  poison(out.data_ptr(), m.nonzeros * bytes_of(type == ScalarType::Double ? DType::f64 : DType::f32));

  // launch
  const Stream stream = current_stream(x.get_device_index());
  dispatch_data(a.x.dtype, [&](auto data) {
    using T = decltype(data);
    with_tile("spconv_weight_grad", m.rows + m.columns, most_shared_bytes(device.capability), weight_bytes<T>,
              [&](auto width) {
                constexpr int P = width.value;
                const WeightTask<T, P> task(a.x, a.grad, m, chunk, partial);
                launch("spconv weight gradient", weight_grad<T, P>, chunks * groups, THREADS, task.offset.end(), stream,
                       task);
              });
    launch("spconv add chunks", add_chunks<Sum<T>>, (m.nonzeros + THREADS - 1) / THREADS, THREADS, 0, stream,
           static_cast<const double*>(partial), chunks, m.nonzeros, static_cast<Sum<T>*>(out.data_ptr()));
  });
  return out;
}

}  // namespace
}  // namespace stitchkern::spconv

STITCHKERN_CUDA_IMPL(m) {
  m.impl("spconv", TORCH_BOX(&stitchkern::spconv::spconv_cuda));
  m.impl("spconv_weight_grad", TORCH_BOX(&stitchkern::spconv::spconv_weight_grad_cuda));
}
