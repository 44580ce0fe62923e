// The sparse 1×1 convolution on the CPU: tasks, over groups of positions, and of output channels where there are few
// groups. What is computed, and why in this way, is in spconv_cpu_path.cpp.
#include <algorithm>

#include "../common/cpu.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "spconv_cpu.h"
#include "spconv_op.h"

namespace stitchkern::spconv {
namespace {

constexpr int64_t PIECES = 64;                       // tasks worth having, and chunks of the sums of a weight gradient
constexpr int64_t LEAST_POSITIONS = 1024;            // of such a chunk
constexpr int64_t PARTIAL_BYTES = int64_t(1) << 26;  // of all chunks' sums together

int64_t pieces(int64_t count, int64_t each) { return (count + each - 1) / each; }

// What a kernel would read or write out of bounds with: checked in every call, as it costs nothing beside the product.
void check_pattern(const Matrix& m) {
  bool good = m.crow[0] == 0 && m.crow[m.rows] == m.nonzeros;
  for (int64_t i = 0; i < m.rows; ++i) good &= m.crow[i] <= m.crow[i + 1];
  for (int64_t i = 0; i < m.columns; ++i) good &= m.crow_columns[i] <= m.crow_columns[i + 1];
  uint32_t largest = 0;
  for (int64_t k = 0; k < m.nonzeros; ++k) largest = std::max(largest, uint32_t(m.col[k]));
  STD_TORCH_CHECK(good && (m.nonzeros == 0 || largest < m.columns),
                  "pattern: crow must rise from 0 to the number of non-zeros, ", m.nonzeros, ", and col be 0 … ",
                  m.columns - 1);
}

const Kernels& kernels_of(DType type) {
  switch (type) {
    case DType::f64: return STITCHKERN_FOR_CPU_PATH(kernels_f64);
    case DType::bf16: return STITCHKERN_FOR_CPU_PATH(kernels_bf16);
    default: return STITCHKERN_FOR_CPU_PATH(kernels_f32);
  }
}

Tensor spconv_cpu(Tensor x, Tensor values, std::optional<Tensor> bias, std::vector<Tensor> pattern,
                  int64_t channel_dim) {
  // check
  const Arguments a = unpack(x, values, bias, pattern, channel_dim);
  const Map& map = a.map;
  const Matrix& m = map.matrix;
  check_pattern(m);

  // nothing to do
  const int64_t positions = map.x.count();
  if (positions == 0 || m.rows == 0) return a.y;

  // tasks
  const Kernels& kernels = kernels_of(map.x.dtype);
  const int64_t group = GROUP_BYTES / (map.x.dtype == DType::f64 ? 8 : 4), groups = pieces(positions, group);
  const int64_t parts = std::clamp<int64_t>(std::min(PIECES / groups, m.nonzeros * group >> 18), 1, m.rows);
  const int64_t channels = pieces(m.rows, parts), cost = positions * (m.nonzeros + m.rows + m.columns);
  parallel_tasks(groups * parts, cost, [&](int64_t i) {
    Piece piece{i / parts * group, 0, i % parts * channels, 0};
    piece.positions = std::min(group, positions - piece.position);
    piece.channels = std::min(channels, m.rows - piece.channel);
    if (piece.channels > 0) kernels.forward(map, piece, thread_scratch(group_bytes(m)));
  });
  return a.y;
}

Tensor spconv_weight_grad_cpu(Tensor x, Tensor grad, std::vector<Tensor> pattern, int64_t channel_dim) {
  // check
  const GradArguments a = unpack_grad(x, grad, pattern, channel_dim);
  const Matrix& m = a.matrix;
  check_pattern(m);
  const bool in_float64 = a.x.dtype == DType::f64;
  const Tensor out = torch::stable::new_empty(x, {m.nonzeros},
                                              std::make_optional(in_float64 ? ScalarType::Double : ScalarType::Float));

  // chunks of positions, whose sums are added in their order: the same for any number of threads
  const Kernels& kernels = kernels_of(a.x.dtype);
  const int64_t fit = std::max<int64_t>(PARTIAL_BYTES / (8 * std::max<int64_t>(m.nonzeros, 1)), 1);
  const int64_t chunks = std::clamp<int64_t>(std::min(a.positions / LEAST_POSITIONS, fit), 1, PIECES);
  const int64_t chunk = pieces(a.positions, chunks);
  std::vector<double> sums(chunks * m.nonzeros);
  parallel_tasks(chunks, a.positions * (m.nonzeros + m.rows + m.columns), [&](int64_t i) {
    const int64_t begin = std::min(i * chunk, a.positions), end = std::min(begin + chunk, a.positions);
    kernels.weight_grad(a.x, a.grad, m, begin, end - begin, sums.data() + i * m.nonzeros,
                        thread_scratch(weight_bytes(m)));
  });
  for (int64_t i = 1; i < chunks; ++i)
    for (int64_t k = 0; k < m.nonzeros; ++k) sums[k] += sums[i * m.nonzeros + k];
  for (int64_t k = 0; k < m.nonzeros; ++k) {
    if (in_float64)
      static_cast<double*>(out.data_ptr())[k] = sums[k];
    else
      static_cast<float*>(out.data_ptr())[k] = float(sums[k]);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stitchkern, CPU, m) {
  m.impl("spconv", TORCH_BOX(&spconv_cpu));
  m.impl("spconv_weight_grad", TORCH_BOX(&spconv_weight_grad_cpu));
}

}  // namespace stitchkern::spconv
