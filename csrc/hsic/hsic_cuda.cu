// Sums over kernel matrices on the GPU: the launchers. What is computed, and why in this way, is in hsic_kernels.cuh.
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/launch.h"
#include "hsic_backward.cuh"
#include "hsic_kernels.cuh"
#include "hsic_op.h"
#include "hsic_safe.h"

namespace stitchkern::hsic {
namespace {

constexpr int BLOCKS_PER_PROCESSOR = 2;
constexpr int64_t MEAN_ROWS = 1024, MAX_MEAN_CHUNKS = 64;  // of one block of the mean sums, at least; chunks at most
constexpr int64_t FEW_PLANES = 8;                          // that have more and smaller units
constexpr int64_t MANY_COLUMNS = 64, FEW_COLUMNS = 32;     // of units, at most
constexpr int64_t WEIGHT_BYTES = int64_t(256) << 20;       // of a band's M, unless one row of tiles needs more

int64_t blocks_of(int64_t count, int64_t each) { return (count + each - 1) / each; }

// Shared memory that each of two blocks may have: a multiprocessor's, less 1 KiB for each (CUDA programming guide,
// technical specifications by compute capability).
int shared_bytes_of_two(int capability) {
  const int all = capability == 80 || capability == 87 ? 164 : capability >= 90 && capability < 120 ? 228 : 100;
  return (all - BLOCKS_PER_PROCESSOR) * 1024 / BLOCKS_PER_PROCESSOR;
}

bool fast_float64(int capability) { return capability == 80 || capability == 90 || capability == 100; }

// Memory of a call, cut into arrays.
class Workspace {
 public:
  explicit Workspace(const Tensor& like) : like_(like) {}
  double* doubles(int64_t count) {
    tensors_.push_back(torch::stable::new_empty(like_, {std::max<int64_t>(count, 1)}));
    auto* data = static_cast<double*>(tensors_.back().data_ptr());
    poison(data, count * int64_t(sizeof(double)));
    return data;
  }

 private:
  Tensor like_;
  std::vector<Tensor> tensors_;
};

// The widest type among the sides: every other one fits into it without rounding, except bfloat16 beside float16.
DType common_type(const std::vector<Side>& sides) {
  DType type = sides[0].x.dtype;
  for (const Side& side : sides)
    if (side.x.dtype != type) type = std::min({type, side.x.dtype, DType::f32});
  return type;
}

int width_of(DType type) { return type == DType::f64 ? WIDTH<double> : WIDTH<float>; }
int64_t bytes_of(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2; }

// Gives sides of another type, or with features apart or rows that are not aligned, copies that the kernels can load;
// these must live as long as the launches.
std::vector<Tensor> loadable(DType type, std::vector<Side>& sides, const Tensor& like, Stream stream) {
  std::vector<Tensor> copies;
  for (Side& side : sides) {
    Rows& x = side.x;
    const int64_t n = x.count(), width = width_of(type), padded = blocks_of(x.channels, width) * width;
    const bool contiguous = x.channel_stride == 1 || x.channels == 1;
    const bool aligned =
        reinterpret_cast<uintptr_t>(x.data) % (width * bytes_of(type)) == 0 && x.stride[2] % width == 0;
    if (n == 0 || (x.dtype == type && contiguous && aligned)) continue;
    copies.push_back(torch::stable::new_empty(like, {blocks_of(n * padded * bytes_of(type), 8)}));
    void* to = copies.back().data_ptr();
    const auto copy = [&](auto from, auto element) {
      using From = decltype(from);
      using To = decltype(element);
      launch("hsic copy_side", copy_side<From, To>, blocks_of(n * padded, THREADS), THREADS, 0, stream,
             static_cast<const From*>(x.data), x.stride[2], x.channel_stride, x.channels, padded, n,
             static_cast<To*>(to));
    };
    dispatch(x.dtype, [&](auto from) {
      if (x.dtype == type)
        copy(from, from);
      else if (type == DType::f64)
        copy(from, double{});
      else if constexpr (sizeof(from) < 4)
        copy(from, float{});
    });
    x.data = to, x.dtype = type, x.stride[2] = padded, x.channel_stride = 1;
  }
  return copies;
}

// Which sides to launch together, so that every pair of them meets.
std::vector<std::vector<int>> groups_of(int sides) {
  std::vector<std::vector<int>> groups;
  const int size = sides <= MAX_SIDES ? sides : MAX_SIDES / 2;
  for (int a = 0; a < sides; a += size)
    for (int c = sides <= MAX_SIDES ? a : a + size; c < sides; c += size) {
      std::vector<int> which;
      for (int i = a; i < std::min(a + size, sides); ++i) which.push_back(i);
      for (int i = std::max(c, a + size); i < std::min(c + size, sides); ++i) which.push_back(i);
      groups.push_back(which);
    }
  return groups;
}

// Some sides and bandwidths of a batch.
Views views_of(const Batch& batch, const std::vector<Side>& sides, const std::vector<int>& which) {
  Views t{};
  t.bandwidth = batch.bandwidth, t.shift = batch.shift;
  t.count = batch.count, t.stride = batch.bandwidths;
  for (const int i : which) {
    const Rows& x = sides[i].x;
    const int64_t slabs = blocks_of(x.channels, SLAB);
    t.view[t.sides++] = {x.data, x.stride[2], x.channels, t.features, int(slabs), sides[i].kernel, i, 0};
    t.features += slabs * SLAB;
  }
  return t;
}

template <class T>
void find_means(Views& t, Workspace& memory, Stream stream) {
  t.mean = memory.doubles(t.features);
  const int64_t chunk_rows = std::max(MEAN_ROWS, blocks_of(t.count, MAX_MEAN_CHUNKS));
  const int64_t chunks = blocks_of(t.count, chunk_rows);
  double* partial = memory.doubles(chunks * t.features);
  int64_t groups = 0;
  for (int a = 0; a < t.sides; ++a) groups += feature_groups(t.view[a].channels);
  launch("hsic sum_features", sum_features<T>, groups * chunks, THREADS, MeanShared{}.sums.end(), stream, t, partial,
         groups, chunk_rows);
  launch("hsic finish_means", finish_means<T>, blocks_of(t.features, THREADS), THREADS, 0, stream, t, partial, chunks);
}

// What all tiles need.
template <class T>
void prepare(Views& t, Workspace& memory, Stream stream) {
  find_means<T>(t, memory, stream);
  t.norms = memory.doubles(t.sides * t.count);
  launch("hsic sum_norms", sum_norms<T>, int64_t(t.sides) * t.tiles(), THREADS, 0, stream, t);
}

template <class Math, class T>
void launch_tiles(Task& task, int most_shared, Workspace& memory, Stream stream) {
  constexpr SumShared<Math> shared;
  const int planes = task.views.planes();
  int bytes = shared.halves.end();
  task.planes = SharedArray<double>(bytes, planes * PAIRS);
  if (task.planes.end() <= most_shared)
    bytes = task.planes.end();
  else if (!task.plane_memory)
    task.plane_memory = memory.doubles(int64_t(task.blocks) * planes * PAIRS);
  launch("hsic sum_tiles", sum_tiles<Math, T>, task.blocks, THREADS, bytes, stream, task);
}

template <class T>
void sum(const Batch& batch, Views t, const Tensor& like, DeviceInfo device, Stream stream) {
  Workspace memory(like);
  if (t.count) prepare<T>(t, memory, stream);
  const bool narrow = sizeof(T) < 8 && may_be_float32(batch) && !fast_float64(device.capability);

  for (; t.first < batch.bandwidths; t.first += t.bandwidths) {
    // plan
    t.bandwidths = int(std::min<int64_t>(batch.bandwidths - t.first, std::max(1, MAX_PLANES / t.sides)));
    Workspace part(like);
    if (narrow) t.narrow = reinterpret_cast<int*>(part.doubles(1));
    Task task{};
    task.views = t;
    task.rows = batch.rows, task.diagonal = batch.diagonal, task.sums = batch.sums;
    task.all_sides = batch.sides_count;
    task.unit_tiles =
        int(std::max<int64_t>(1, blocks_of(t.tiles(), t.planes() <= FEW_PLANES ? MANY_COLUMNS : FEW_COLUMNS)));
    task.columns = int(blocks_of(t.tiles(), task.unit_tiles));
    task.blocks = std::min(task.units(), BLOCKS_PER_PROCESSOR * device.multiprocessors);
    task.partial_rows = part.doubles(int64_t(task.columns) * t.planes() * t.count);
    task.partial_sums = part.doubles(int64_t(task.blocks) * WARPS * t.bandwidths * t.sides * t.sides);

    // launch
    if (t.count) {
      const int most_shared = shared_bytes_of_two(device.capability);
      if constexpr (sizeof(T) < 8)
        if (narrow) {
          launch("hsic decide", decide, 1, THREADS, MeanShared{}.sums.end(), stream, t);
          launch_tiles<SplitMath, T>(task, most_shared, part, stream);
        }
      launch_tiles<DoubleMath, T>(task, most_shared, part, stream);
    }
    const int64_t pairs = int64_t(t.bandwidths) * t.sides * t.sides;
    launch("hsic finish", finish, blocks_of(t.planes() * t.count, THREADS) + blocks_of(pairs, WARPS), THREADS, 0,
           stream, task);
  }
}

std::tuple<Tensor, Tensor, Tensor> hsic_sums_cuda(std::vector<Tensor> x, std::vector<int64_t> kernels, Tensor bandwidth,
                                                  Tensor shift) {
  // check
  auto [sides, batch, rows, diagonal, sums] = unpack(x, kernels, bandwidth, shift);

  // nothing to do
  if (batch.bandwidths == 0) return {rows, diagonal, sums};

  // plan
#if !defined(STITCHKERN_EXECUTOR)
  const torch::stable::accelerator::DeviceGuard guard(bandwidth.get_device_index());
#endif
  const DeviceInfo device = device_info(bandwidth.get_device_index());
  const Stream stream = current_stream(bandwidth.get_device_index());
  poison(batch.rows, rows.numel() * int64_t(sizeof(double)));
  poison(batch.diagonal, diagonal.numel() * int64_t(sizeof(double)));
  poison(batch.sums, sums.numel() * int64_t(sizeof(double)));
  const DType type = common_type(sides);
  const std::vector<Tensor> copies = loadable(type, sides, bandwidth, stream);
  batch.sides = sides.data();

  // launch: all sides at once, or two groups at a time
  dispatch(type, [&](auto element) {
    for (const std::vector<int>& which : groups_of(int(sides.size())))
      sum<decltype(element)>(batch, views_of(batch, sides, which), bandwidth, device, stream);
  });
  return {rows, diagonal, sums};
}

// ---------------------------------------------------------------------------------------------------- backward

template <class T>
void differentiate(const Batch& batch, BackwardTask task, const Tensor& like, DeviceInfo device, Stream stream) {
  // means, norms, a plane for each side whose distances are needed
  Workspace memory(like);
  Views& t = task.views;
  prepare<T>(t, memory, stream);
  int laplace = 0;
  for (int a = 0; a < t.sides; ++a) laplace += t.view[a].kernel == Kernel::laplace;
  const int at_once = int(std::clamp<int64_t>((MAX_PLANES - laplace) / t.sides, 1, batch.bandwidths));
  task.planes = at_once * t.sides;
  for (int a = 0; a < t.sides; ++a)
    if (t.view[a].kernel == Kernel::laplace) t.view[a].extra = task.planes++;

  // memory of a band
  task.columns = int64_t(t.tiles()) * SAMPLES;
  const int64_t tile_bytes = t.sides * SAMPLES * task.columns * int64_t(sizeof(double));
  const int band = int(std::clamp<int64_t>(WEIGHT_BYTES / tile_bytes, 1, t.tiles()));
  task.blocks = int(std::min<int64_t>(int64_t(band) * t.tiles(), BLOCKS_PER_PROCESSOR * device.multiprocessors));
  task.plane_memory = memory.doubles(int64_t(task.blocks) * task.planes * PAIRS);
  task.weights = memory.doubles(band * tile_bytes / int64_t(sizeof(double)));

  // launch
  int64_t groups = 0;
  for (int a = 0; a < t.sides; ++a) groups += blocks_of(t.view[a].channels, FEATURES);
  for (task.first_tile = 0; task.first_tile < t.tiles(); task.first_tile += task.tiles) {
    task.tiles = std::min(band, t.tiles() - task.first_tile);
    for (t.first = 0; t.first < batch.bandwidths; t.first += at_once) {
      t.bandwidths = int(std::min<int64_t>(at_once, batch.bandwidths - t.first));
      task.add = t.first > 0;
      launch("hsic weigh_tiles", weigh_tiles<T>, task.blocks, THREADS, WeighShared<DoubleMath>{}.samples.end(), stream,
             task);
    }
    launch("hsic multiply_features", multiply_features<T>, groups * task.tiles, THREADS, FeatureShared{}.values.end(),
           stream, task);
  }

  // the gradients of linear sides are less their mean
  Views linear = t;
  linear.sides = 0, linear.features = 0;
  for (int a = 0; a < t.sides; ++a) {
    if (t.view[a].kernel != Kernel::linear) continue;
    View& view = linear.view[linear.sides++] = t.view[a];
    view.data = task.gradient[a], view.row_stride = view.channels, view.start = linear.features;
    linear.features += int64_t(view.slabs) * SLAB;
  }
  if (linear.sides == 0) return;
  find_means<double>(linear, memory, stream);
  for (int a = 0; a < linear.sides; ++a)
    launch("hsic subtract_mean", subtract_mean, blocks_of(t.count * linear.view[a].channels, THREADS), THREADS, 0,
           stream, linear, a);
}

std::vector<Tensor> hsic_backward_cuda(std::vector<Tensor> x, std::vector<int64_t> kernels, Tensor bandwidth,
                                       Tensor shift, Tensor grad_rows, Tensor grad_diagonal, Tensor grad_sums) {
  // check
  auto arguments = unpack_backward(x, kernels, bandwidth, shift, grad_rows, grad_diagonal, grad_sums);
  auto& [sides, batch, of_rows, of_diagonal, of_sums, gradients] = arguments;
  STD_TORCH_CHECK(int64_t(sides.size()) <= MAX_SIDES, "hsic_backward takes at most ", MAX_SIDES,
                  " sides on a GPU; got ", sides.size());

  // nothing to do
  if (batch.count == 0) return gradients;
  STD_TORCH_CHECK(batch.bandwidths >= 1, "hsic_backward needs at least one bandwidth");

  // plan
#if !defined(STITCHKERN_EXECUTOR)
  const torch::stable::accelerator::DeviceGuard guard(bandwidth.get_device_index());
#endif
  const DeviceInfo device = device_info(bandwidth.get_device_index());
  const Stream stream = current_stream(bandwidth.get_device_index());
  const DType type = common_type(sides);
  const std::vector<Tensor> copies = loadable(type, sides, bandwidth, stream);
  BackwardTask task{};
  task.views = views_of(batch, sides, groups_of(int(sides.size()))[0]);
  task.grad_rows = of_rows, task.grad_diagonal = of_diagonal, task.grad_sums = of_sums;
  for (size_t i = 0; i < sides.size(); ++i) {
    task.gradient[i] = static_cast<double*>(gradients[i].data_ptr());
    poison(task.gradient[i], gradients[i].numel() * int64_t(sizeof(double)));
  }

  // launch
  dispatch(type, [&](auto element) { differentiate<decltype(element)>(batch, task, bandwidth, device, stream); });
  return gradients;
}

}  // namespace
}  // namespace stitchkern::hsic

STITCHKERN_CUDA_IMPL(m) {
  m.impl("hsic_sums", TORCH_BOX(&stitchkern::hsic::hsic_sums_cuda));
  m.impl("hsic_backward", TORCH_BOX(&stitchkern::hsic::hsic_backward_cuda));
}
