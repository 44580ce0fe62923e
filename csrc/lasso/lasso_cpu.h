// The inner loops of the CPU backend, one table per instruction set; see lasso_cpu.cpp for the plan.
#pragma once

#include "lasso.h"

namespace stitchkern::lasso {

struct Kernels {
  int64_t (*scratch)(int p);                              // bytes of one target
  void (*target)(const Path&, int64_t k, void* scratch);  // the path of one target
  int64_t (*grouped_scratch)(int p, int64_t q);           // bytes of a grouped path
  void (*grouped)(const Path&, void* scratch);            // one path of all targets
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

}  // namespace stitchkern::lasso
