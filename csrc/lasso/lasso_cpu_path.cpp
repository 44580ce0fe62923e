// Both solvers of the CPU backend, compiled once per instruction set.
#include "lasso_active.h"
#include "lasso_cpu.h"
#include "lasso_grouped.h"

namespace stitchkern::lasso::STITCHKERN_PATH {

const Kernels kernels = {
    ActiveSet::scratch,
    [](const Path& path, int64_t k, void* scratch) { ActiveSet(path, k, scratch).run(); },
    GroupedPath::scratch,
    [](const Path& path, void* scratch) { GroupedPath(path, scratch).run(); },
};

}  // namespace stitchkern::lasso::STITCHKERN_PATH
