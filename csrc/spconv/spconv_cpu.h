// The inner loops of the CPU backend, one table per instruction set; see spconv_cpu_path.cpp for the plan.
#pragma once

#include "spconv.h"

namespace stitchkern::spconv {

inline constexpr int GROUP_BYTES = 512;  // of one channel's positions that are packed together, in the type of the sums

struct Piece {
  int64_t position, positions;  // at most a group
  int64_t channel, channels;    // of y
};

struct Kernels {
  // y at a piece. scratch: forward_bytes
  void (*forward)(const Map&, const Piece&, void* scratch);
  // out[k] = Σ grad[row] x[col] over the positions, for each entry k of M. `grad` are its rows. scratch: weight_bytes
  void (*weight_grad)(const Rows& x, const Rows& grad, const Matrix&, int64_t position, int64_t positions, double* out,
                      void* scratch);
};

// Scratch: all channels of x and of y over a group of positions, and of each entry the sums of a cache line.
inline int64_t group_bytes(const Matrix& m) { return (m.rows + m.columns) * GROUP_BYTES; }
inline int64_t weight_bytes(const Matrix& m) { return group_bytes(m) + m.nonzeros * 64; }

namespace baseline {
extern const Kernels kernels_f64, kernels_f32, kernels_bf16;
}
#if defined(STITCHKERN_X86_PATHS)
namespace avx2 {
extern const Kernels kernels_f64, kernels_f32, kernels_bf16;
}
namespace avx512 {
extern const Kernels kernels_f64, kernels_f32, kernels_bf16;
}
#endif

}  // namespace stitchkern::spconv
