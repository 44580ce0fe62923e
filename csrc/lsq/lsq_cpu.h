// The inner loops of the CPU backend, one table per instruction set; see lsq_cpu.cpp for the plan.
#pragma once

#include "lsq.h"

namespace stitchkern::lsq {

struct Kernels {
  int64_t scratch_bytes;                         // of one thread
  void (*solve)(const Problem&, void* scratch);  // scratch on a cache line
};

namespace baseline {
extern const Kernels kernels;
}
#if defined(STITCHKERN_X86_PATHS)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

}  // namespace stitchkern::lsq
